//! `mh` as IPVS computes it: Maglev hashing (Eisenbud and others, NSDI 2016) with weights as turns.
//!
//! A service of ours with `scheduler = "mh"` is not dealt by this: its first table is Maglev's, its changes are minimal,
//! and its hash has a key of the cluster's own, where IPVS's is the same everywhere.

use super::{Pool, Server, divisor};
use crate::siphash::{HashKey, siphash13};
use crate::tables::Address;

use super::buckets::folded;

/// Entries of IPVS's table unless its kernel was built with another number.
pub const ENTRIES: usize = 4_093;
const SIZE: u32 = ENTRIES as u32;
/// Half the number of bits of that (`IP_VS_MH_TAB_BITS`): weights are scaled down to so many.
const WEIGHT_BITS: u32 = 6;
/// The keys of IPVS's two hashes, each twice the same word.
const KEYS: [u64; 2] = [2_654_435_761, 2_654_446_892];

/// Server of each entry by its place, `u16::MAX` where there is none.
pub type Table = [u16; ENTRIES];

/// A server as the table is made of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Member {
    /// Its address.
    pub address: Address,
    /// Its port.
    pub port: u16,
    /// Its weight, or the last one it had above 0: a server that is quiesced keeps its entries.
    pub weight: u32,
}

/// A server's walk through the table.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Walk {
    at: u32,
    skip: u32,
    turns: u32,
}

/// A remainder.
const fn below(bound: u32, value: u32) -> u32 {
    match value.checked_rem(bound) {
        Some(rest) => rest,
        None => 0,
    }
}

fn hash(address: &Address, port: u16, key: u64, offset: u32) -> u32 {
    let value = offset.wrapping_add(u32::from(port)).wrapping_add(folded(address));
    let word = key.to_le_bytes();
    let mut bytes = [0; 16];
    for (to, from) in bytes.iter_mut().zip(word.iter().chain(&word)) {
        *to = *from;
    }
    siphash13(HashKey::from_bytes(bytes), value.to_le_bytes()) as u32
}

/// Fills `table`; `walks` is room, one for each of `members`.
pub fn deal(members: &[Member], walks: &mut [Walk], table: &mut Table) {
    table.fill(u16::MAX);
    let common = members.iter().fold(0, |common, member| divisor(common, member.weight));
    let highest = members.iter().map(|member| member.weight).max().unwrap_or(0);
    let Some(highest) = highest.checked_div(common) else { return };
    let shift = (u32::BITS.wrapping_sub(highest.leading_zeros())).saturating_sub(WEIGHT_BITS);
    for (member, walk) in members.iter().zip(walks.iter_mut()) {
        let turns = member.weight.checked_div(common).unwrap_or(0) >> shift;
        *walk = Walk {
            at: below(SIZE, hash(&member.address, member.port, KEYS[0], 0)),
            skip: below(SIZE - 1, hash(&member.address, member.port, KEYS[1], 0)).wrapping_add(1),
            turns: if turns == 0 && member.weight != 0 { 1 } else { turns },
        };
    }
    let mut free = ENTRIES;
    while free > 0 {
        for (place, walk) in (0_u16..).zip(walks.iter_mut().take(members.len())) {
            for _ in 0..walk.turns {
                if free == 0 {
                    return;
                }
                claim(table, walk, place);
                free = free.wrapping_sub(1);
            }
        }
    }
}

/// Gives the next free entry on a server's walk to it.
fn claim(table: &mut Table, walk: &mut Walk, place: u16) {
    for _ in 0..ENTRIES {
        if let Some(entry) = table.get_mut(walk.at as usize)
            && *entry == u16::MAX
        {
            *entry = place;
            return;
        }
        walk.at = below(SIZE, walk.at.wrapping_add(walk.skip));
    }
}

/// The server of a source. `port` is 0 without `mh-port`. Is its server not available, there is none, or with
/// `fallback` (`mh-fallback`) the first that is on IPVS's walk from there.
pub fn pick(
    table: &Table,
    source: &Address,
    port: u16,
    fallback: bool,
    pool: &(impl Pool + ?Sized),
) -> Option<u32> {
    let at = |offset: u32| below(SIZE, hash(source, port, KEYS[0], offset));
    let of = |entry: u32| {
        let place = u32::from(*table.get(entry as usize)?);
        pool.server(place).filter(Server::is_available).map(|_| place)
    };
    let first = at(0);
    if let Some(place) = of(first) {
        return Some(place);
    }
    if !fallback {
        return None;
    }
    (0..ENTRIES as u32).find_map(|offset| of(at(below(SIZE, offset.wrapping_add(first)))))
}
