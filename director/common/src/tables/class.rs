//! Services that own more than single ports of single addresses.
//!
//! An exact address, protocol and port is one look-up in a hash. What is not found there goes by *classes*: the
//! longest prefix of the destination names a class, and a second trie holds for each class which service owns
//! which ports, as prefixes of port numbers (8000-8999 are 8000/6, 8064/7 … in all at most 30). User space puts into
//! a class
//! also what it takes over from shorter prefixes, so one look-up in each trie is enough; a range within another
//! consists of longer port prefixes than that other has there, so the narrower one wins.

use super::{Plain, ServiceKey};

/// What is looked up within a class: protocol and port, or one of the markers. The counterpart of [`ServiceKey`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(C)]
pub struct RangeKey {
    /// The class. It is matched whole, so its byte order does not matter.
    pub class: u32,
    /// IP protocol number.
    pub protocol: u8,
    /// One of [`ServiceKey`]'s `KIND_*`.
    pub kind: u8,
    /// Destination port in network order: the trie compares from the first bit on.
    pub port: [u8; 2],
}

const _: () = assert!(size_of::<RangeKey>() == 8);
// SAFETY: `repr(C)` of integers and bytes without padding (4 + 1 + 1 + 2 = 8).
unsafe impl Plain for RangeKey {}

impl RangeKey {
    /// Bits of the whole key.
    pub const BITS: u32 = 64;

    /// Key of a packet's port.
    #[inline(always)]
    pub const fn port(class: u32, protocol: u8, port: u16) -> Self {
        Self { class, protocol, kind: ServiceKey::KIND_SERVICE, port: port.to_be_bytes() }
    }

    /// Key under which the owner of a class's fragments is found.
    #[inline(always)]
    pub const fn fragment(class: u32, protocol: u8) -> Self {
        Self { class, protocol, kind: ServiceKey::KIND_FRAGMENT, port: [0; 2] }
    }

    /// Key of the marker of a class's addresses as VIPs.
    #[inline(always)]
    pub const fn vip(class: u32) -> Self {
        Self { class, protocol: 0, kind: ServiceKey::KIND_VIP, port: [0; 2] }
    }
}
