//! Dealing slots to real servers: the first table of a service, and every change to it.
//!
//! A table is *seeded* once, by [`maglev`] (scheduler `mh`) or by the `consistent_hash` [`ring`] (scheduler
//! `ch`). From then on `mh` tables are changed minimally: a real server that leaves hands out only its own slots, one
//! that comes (or gains weight) takes slots evenly from those that hold more than their share, and no slot
//! ever moves between two servers that the change does not concern. A ring has that property by itself.
//!
//! Everything here is a pure function of its arguments: equal input gives equal bytes on every director.

mod maglev;
mod ring;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use director_proto::tables::{NO_REAL, ServiceTable, TableReal};

/// How a service's slots are dealt.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Scheduler {
    /// `mh`: Maglev seeding, then minimal change; shares are within one slot of the weights' at the seed.
    Maglev,
    /// `ch`: a ring of virtual nodes (crate `consistent_hash`); shares differ from the weights' by up to a
    /// sixth or so, in exchange for a table that depends on the present set of servers alone.
    Ring,
}

impl Scheduler {
    /// Name in the configuration and in tables.
    pub fn name(self) -> &'static str {
        match self {
            Self::Maglev => "mh",
            Self::Ring => "ch",
        }
    }

    /// The scheduler of that name.
    pub fn from_name(name: &str) -> Option<Self> {
        match name {
            "mh" => Some(Self::Maglev),
            "ch" => Some(Self::Ring),
            _ => None,
        }
    }
}

/// A real server that shall be in a table.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Member {
    /// Address of the real server.
    pub address: IpAddr,
    /// Port on the real server.
    pub port: u16,
    /// Share of new flows relative to the other members; 0 takes none.
    pub weight: u32,
    /// Taken for dead: it takes no packet at all.
    pub dead: bool,
}

/// Deals the `size` slots of one service to `members`, starting from the table in force (`previous`), if any and of
/// that size.
///
/// The order of `members` does not matter. Members that `previous` knows keep their positions; a position
/// is given to another server only when no slot of `previous` names it. With no member of positive weight
/// every slot is [`NO_REAL`].
pub fn deal(
    scheduler: Scheduler,
    size: usize,
    previous: Option<&ServiceTable>,
    members: &[Member],
) -> ServiceTable {
    let previous = previous.filter(|table| table.scheduler == scheduler.name() && table.slots.len() == size);
    let reals = place(previous, members);
    let slots = match (scheduler, previous) {
        // Of thousands of services most do not change: they share their slots with the table in force.
        (_, Some(table)) if table.reals == reals && is_dealt(table) => table.slots.clone(),
        (Scheduler::Ring, _) => ring::seed(&reals, size).into(),
        (Scheduler::Maglev, Some(table)) if table.slots.iter().any(|slot| *slot != NO_REAL) => {
            change(table, &reals).into()
        }
        (Scheduler::Maglev, _) => maglev::seed(&reals, size).into(),
    };
    ServiceTable { scheduler: scheduler.name().to_owned(), reals, slots, definition: "".into() }
}

/// Whether every slot names a server that takes new flows.
fn is_dealt(table: &ServiceTable) -> bool {
    let takes = |slot: &u16| table.reals.get(usize::from(*slot)).is_some_and(|real| real.weight > 0);
    table.slots.iter().all(takes)
}

/// Share of slots that `next` gives to another server than `previous` did, from 0 to 1; where their number differs,
/// of the
/// slots that both have.
pub fn share_moved(previous: &ServiceTable, next: &ServiceTable) -> f64 {
    if previous == next || next.slots.is_empty() {
        return 0.0;
    }
    let identity = |table: &ServiceTable, slot: u16| {
        table.reals.get(usize::from(slot)).map(|real| (real.address, real.port))
    };
    let moved = previous
        .slots
        .iter()
        .zip(&next.slots)
        .filter(|(old, new)| identity(previous, **old) != identity(next, **new))
        .count();
    moved as f64 / next.slots.len() as f64
}

/// Slots held by each position of the table.
pub fn counts(table: &ServiceTable) -> Vec<usize> {
    let mut counts = vec![0; table.reals.len()];
    for slot in &table.slots {
        if let Some(count) = counts.get_mut(usize::from(*slot)) {
            *count += 1;
        }
    }
    counts
}

/// Gives every member a position: its old one, else a free one, else a new one at the end.
fn place(previous: Option<&ServiceTable>, members: &[Member]) -> Vec<TableReal> {
    let mut wanted: BTreeMap<(IpAddr, u16), &Member> =
        members.iter().map(|member| ((member.address, member.port), member)).collect();
    let mut reals = previous.map(|table| table.reals.clone()).unwrap_or_default();
    let named: BTreeSet<u16> =
        previous.map(|table| table.slots.iter().copied().collect()).unwrap_or_default();
    let mut free = Vec::new();
    for (position, real) in (0u16..).zip(&mut reals) {
        match wanted.remove(&(real.address, real.port)) {
            Some(member) => (real.weight, real.dead) = (member.weight, member.dead),
            None => {
                (real.weight, real.dead) = (0, false);
                if !named.contains(&position) {
                    free.push(usize::from(position));
                }
            }
        }
    }
    let mut free = free.into_iter();
    for ((address, port), member) in wanted {
        let real = TableReal { address, port, weight: member.weight, dead: member.dead };
        match free.next() {
            Some(position) => reals[position] = real,
            None => reals.push(real),
        }
    }
    // What nobody wants and no slot names is dropped from the end.
    let unused: BTreeSet<usize> = free.collect();
    while reals.len().checked_sub(1).is_some_and(|last| unused.contains(&last)) {
        reals.pop();
    }
    reals
}

/// What a change asks of one position. Deviations are scaled by the sum of the weights, so that all
/// arithmetic is exact.
struct Holding {
    weight: i128,
    held: i128,
    /// May take slots from servers that the change does not concern: new, or heavier than before.
    rises: bool,
    /// Gives slots to anybody: lighter than before.
    falls: bool,
    gain: usize,
    give: usize,
}

impl Holding {
    /// How many slots (times `total`) this position holds above its share.
    fn surplus(&self, total: i128, slots: usize) -> i128 {
        self.held * total - self.weight * slots as i128
    }
}

/// Changes `table` minimally so that its slots follow the weights of `reals`.
fn change(table: &ServiceTable, reals: &[TableReal]) -> Vec<u16> {
    let total: i128 = reals.iter().map(|real| i128::from(real.share())).sum();
    if total == 0 {
        return vec![NO_REAL; table.slots.len()];
    }
    let held = counts(table);
    let mut holdings: Vec<Holding> = reals
        .iter()
        .enumerate()
        .map(|(position, real)| {
            let before = table
                .reals
                .get(position)
                .filter(|old| (old.address, old.port) == (real.address, real.port))
                .map_or(0, TableReal::share);
            Holding {
                weight: real.share().into(),
                held: held.get(position).copied().unwrap_or(0) as i128,
                rises: real.share() > before,
                falls: real.share() < before,
                gain: 0,
                give: 0,
            }
        })
        .collect();
    let mut slots = table.slots.to_vec();
    hand_out(&mut slots, &mut holdings, total);
    take(&mut slots, &mut holdings, total);
    slots
}

/// Slots of servers that went or became lighter are handed to whoever is furthest below its share.
fn hand_out(slots: &mut [u16], holdings: &mut [Holding], total: i128) {
    let size = slots.len();
    let mut pool = slots.iter().filter(|slot| usize::from(**slot) >= holdings.len()).count();
    for holding in holdings.iter_mut() {
        let keep = match holding.weight {
            0 => 0,
            // Rounded: a lighter server keeps the whole number nearest to its share.
            weight if holding.falls => holding.held.min((weight * size as i128 + total / 2) / total),
            _ => holding.held,
        };
        holding.give = usize::try_from(holding.held - keep).unwrap_or(0);
        holding.held = keep;
        pool += holding.give;
    }
    let mut by_surplus: BTreeSet<(i128, usize)> = (0..)
        .zip(holdings.iter())
        .filter(|(_, holding)| holding.weight > 0)
        .map(|(position, holding)| (holding.surplus(total, size), position))
        .collect();
    for _ in 0..pool {
        let Some((_, position)) = by_surplus.pop_first() else { break };
        holdings[position].gain += 1;
        holdings[position].held += 1;
        by_surplus.insert((holdings[position].surplus(total, size), position));
    }
    move_slots(slots, holdings);
}

/// Servers that came or became heavier take what they still lack from whoever holds most above its share.
fn take(slots: &mut [u16], holdings: &mut [Holding], total: i128) {
    let size = slots.len();
    let mut by_surplus: BTreeSet<(i128, usize)> = (0..)
        .zip(holdings.iter())
        .filter(|(_, holding)| holding.weight > 0 && !holding.rises)
        .map(|(position, holding)| (holding.surplus(total, size), position))
        .collect();
    let mut takers: BTreeSet<(i128, usize)> = (0..)
        .zip(holdings.iter())
        .filter(|(_, holding)| holding.rises)
        .map(|(position, holding)| (holding.surplus(total, size), position))
        .collect();
    while let (Some((lack, taker)), Some((excess, giver))) = (takers.pop_first(), by_surplus.last().copied())
    {
        // Moving one slot shifts both by `total`; it pays as long as the two are more than that apart.
        if excess - lack <= total {
            break;
        }
        by_surplus.remove(&(excess, giver));
        holdings[giver].held -= 1;
        holdings[giver].give += 1;
        holdings[taker].held += 1;
        holdings[taker].gain += 1;
        by_surplus.insert((holdings[giver].surplus(total, size), giver));
        takers.insert((holdings[taker].surplus(total, size), taker));
    }
    move_slots(slots, holdings);
}

/// Carries the planned gains and gives out. The table is walked in long strides, so that what a server
/// gives is spread over its slots, and the takers are served in turn.
fn move_slots(slots: &mut [u16], holdings: &mut [Holding]) {
    const STRIDE: usize = 40_503; // Knuth's multiplicative constant for 16 bits; no multiple of either prime number of slots.
    let mut takers: std::collections::VecDeque<usize> =
        (0..holdings.len()).filter(|position| holdings[*position].gain > 0).collect();
    let mut index = 0;
    for _ in 0..slots.len() {
        index = (index + STRIDE) % slots.len();
        let owner = usize::from(slots[index]);
        match holdings.get_mut(owner) {
            Some(holding) if holding.give > 0 => holding.give -= 1,
            Some(_) => continue,
            None => {}
        }
        let Some(taker) = takers.pop_front() else { break };
        slots[index] = u16::try_from(taker).expect("invariant: positions fit in a slot");
        holdings[taker].gain -= 1;
        if holdings[taker].gain > 0 {
            takers.push_back(taker);
        }
    }
}

/// Identity of a real server as seeding hashes it: 16 bytes of address (IPv4 mapped), 2 of port.
fn identity(real: &TableReal) -> [u8; 18] {
    let mut bytes = [0; 18];
    let address = match real.address {
        IpAddr::V4(address) => address.to_ipv6_mapped(),
        IpAddr::V6(address) => address,
    };
    bytes[..16].copy_from_slice(&address.octets());
    bytes[16..].copy_from_slice(&real.port.to_be_bytes());
    bytes
}
