//! `sh` and `dh`: 256 buckets of servers, and an address picks one.

use super::{Pool, Server};
use crate::tables::Address;

/// Buckets of a table (`IP_VS_SH_TAB_BITS`, `IP_VS_DH_TAB_BITS`: 8).
pub const BUCKETS: usize = 256;
/// What of a number is the bucket.
const MASK: usize = BUCKETS - 1;
/// Multiplier of the kernel's `hash_32`.
const GOLDEN_RATIO: u32 = 0x61c8_8647;

/// Server of each bucket by its place, `u16::MAX` where there is none.
pub type Buckets = [u16; BUCKETS];

/// The bucket of a number: the upper 8 bits of a product.
const fn bucket(value: u32) -> u32 {
    value.wrapping_mul(GOLDEN_RATIO) >> 24
}

/// An address as IPVS folds it: IPv4 as it is, of IPv6 the words over each other.
pub(super) fn folded(address: &Address) -> u32 {
    let [a, b, c, d] = address.words().map(u32::from_be);
    if address.is_v4() { d } else { a ^ b ^ c ^ d }
}

/// `dh`: by the destination.
pub mod destination {
    use super::{Address, BUCKETS, Buckets, Pool, Server, bucket, folded};

    /// Deals the buckets to `servers` servers in turn, whatever their weights.
    pub fn deal(servers: u16) -> Buckets {
        let mut buckets = [u16::MAX; BUCKETS];
        for (bucket, place) in buckets.iter_mut().zip((0..servers).cycle()) {
            *bucket = place;
        }
        buckets
    }

    /// The server of a destination; `None` if it is not available.
    pub fn pick(buckets: &Buckets, destination: &Address, pool: &(impl Pool + ?Sized)) -> Option<u32> {
        let place = u32::from(*buckets.get(bucket(folded(destination)) as usize)?);
        pool.server(place).filter(Server::is_available).map(|_| place)
    }
}

/// `sh`: by the source, and by its port with `sh-port`.
pub mod source {
    use super::{Address, BUCKETS, Buckets, MASK, Pool, Server, bucket, folded};

    /// Deals the buckets to the servers of `pool` in turn, to each as many as its weight says, and at least one.
    pub fn deal(pool: &(impl Pool + ?Sized)) -> Buckets {
        let mut buckets = [u16::MAX; BUCKETS];
        let count = pool.len();
        if count == 0 {
            return buckets;
        }
        let (mut place, mut dealt) = (0_u32, 0_u32);
        for bucket in &mut buckets {
            *bucket = place as u16;
            dealt = dealt.wrapping_add(1);
            if dealt >= pool.server(place).map_or(0, |server| server.weight) {
                dealt = 0;
                place = place.wrapping_add(1).checked_rem(count).unwrap_or(0);
            }
        }
        buckets
    }

    fn at(source: &Address, port: u16, offset: u32) -> usize {
        let hash = bucket(u32::from(port).wrapping_add(folded(source)));
        offset.wrapping_add(hash) as usize & MASK
    }

    /// The server of a source. `port` is 0 without `sh-port`. Is its server not available, there is none, or with
    /// `fallback` (`sh-fallback`) that of the first bucket after it, in IPVS's order, that has one.
    pub fn pick(
        buckets: &Buckets,
        source: &Address,
        port: u16,
        fallback: bool,
        pool: &(impl Pool + ?Sized),
    ) -> Option<u32> {
        let of = |bucket: usize| {
            let place = u32::from(*buckets.get(bucket)?);
            pool.server(place).filter(Server::is_available).map(|_| place)
        };
        let first = at(source, port, 0);
        if let Some(place) = of(first) {
            return Some(place);
        }
        if !fallback {
            return None;
        }
        (0..BUCKETS as u32).find_map(|offset| {
            let offset = offset.wrapping_add(first as u32) & MASK as u32;
            of(at(source, port, offset))
        })
    }
}
