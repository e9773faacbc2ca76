//! What real servers answer by NAT: from whom a packet comes decides which VIP it is to come from.
//!
//! No connection is remembered for it. A real server's address, port and protocol serve one VIP and port, which the
//! specification is checked for, so every director knows the way back of every packet.

use super::{Address, Plain};

/// Who sent a packet: a real server's address, port and protocol.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(C)]
pub struct ReplyKey {
    /// The real server.
    pub address: Address,
    /// Its port in host order; 0 for all those that no other entry has.
    pub port: u16,
    /// IP protocol number; 0 in a marker.
    pub protocol: u8,
    /// Zero.
    pub reserved: u8,
}

const _: () = assert!(size_of::<ReplyKey>() == 20);
// SAFETY: `repr(C)` of bytes and an aligned u16 without padding (16 + 2 + 1 + 1 = 20).
unsafe impl Plain for ReplyKey {}

impl ReplyKey {
    /// Key of what comes from a port.
    #[inline(always)]
    pub const fn of(address: Address, protocol: u8, port: u16) -> Self {
        Self { address, port, protocol, reserved: 0 }
    }

    /// Key that exists if the address is a real server's of any service with NAT.
    #[inline(always)]
    pub const fn marker(address: Address) -> Self {
        Self::of(address, 0, 0)
    }
}

/// As whose a real server's answer leaves.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct ReplyEntry {
    /// The VIP.
    pub vip: Address,
    /// The service's port in host order; 0 for the packet's own.
    pub port: u16,
    /// Zero.
    pub reserved: u16,
    /// The service's index.
    pub service: u32,
    /// Real server's index in the real-server map.
    pub real: u32,
}

const _: () = assert!(size_of::<ReplyEntry>() == 28);
// SAFETY: `repr(C)` of integers and bytes without padding (16 + 2 x 2 + 2 x 4 = 28).
unsafe impl Plain for ReplyEntry {}
