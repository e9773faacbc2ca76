//! The kernel's routes, which are asked for the way to a client: ways to real servers are known beforehand, those to
//! clients are as many as there are clients.

use super::{Address, Plain};

/// A packet of which the way is asked for, as it is to leave.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct RouteQuery {
    /// Source address.
    pub source: Address,
    /// Destination address, of the same family.
    pub destination: Address,
    /// Source port in host order, 0 if the packet shows none.
    pub source_port: u16,
    /// Destination port in host order, 0 if the packet shows none.
    pub destination_port: u16,
    /// IP protocol number.
    pub protocol: u8,
    /// Type of service or traffic class.
    pub traffic_class: u8,
    /// Length of the IP packet in bytes; 0 if it does not matter.
    pub bytes: u16,
    /// Interface it came in by.
    pub ifindex: u32,
    /// Zero.
    pub reserved: u32,
}

const _: () = assert!(size_of::<RouteQuery>() == 48);
// SAFETY: `repr(C)` of integers and bytes without padding (2 x 16 + 2 x 2 + 2 + 2 + 2 x 4 = 48).
unsafe impl Plain for RouteQuery {}

impl RouteQuery {
    /// The query as the bytes that it has in memory.
    pub fn to_bytes(&self) -> [u8; size_of::<Self>()] {
        let mut bytes = [0; _];
        let ([p0, p1], [q0, q1]) = (self.source_port.to_ne_bytes(), self.destination_port.to_ne_bytes());
        let [b0, b1] = self.bytes.to_ne_bytes();
        let small = [p0, p1, q0, q1, self.protocol, self.traffic_class, b0, b1];
        let parts: [&[u8]; 5] = [
            &self.source.0,
            &self.destination.0,
            &small,
            &self.ifindex.to_ne_bytes(),
            &self.reserved.to_ne_bytes(),
        ];
        for (byte, value) in bytes.iter_mut().zip(parts.into_iter().flatten()) {
            *byte = *value;
        }
        bytes
    }
}

/// What the kernel's routes say about a packet.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct RouteEntry {
    /// One of the constants below. All else has a meaning only with [`Self::FORWARD`], but for `mtu`.
    pub answer: u32,
    /// Interface to leave by.
    pub ifindex: u32,
    /// Largest IP packet that fits, in bytes; only with [`Self::TOO_BIG`].
    pub mtu: u32,
    /// Link address of the next hop.
    pub destination_mac: [u8; 6],
    /// Link address of our interface.
    pub source_mac: [u8; 6],
}

const _: () = assert!(size_of::<RouteEntry>() == 24);
// SAFETY: `repr(C)` of integers and byte arrays without padding (3 x 4 + 2 x 6 = 24).
unsafe impl Plain for RouteEntry {}

impl RouteEntry {
    /// The entry that these bytes are in memory.
    pub fn from_bytes(bytes: &[u8; size_of::<Self>()]) -> Self {
        let [a0, a1, a2, a3, i0, i1, i2, i3, m0, m1, m2, m3, d0, d1, d2, d3, d4, d5, s0, s1, s2, s3, s4, s5] =
            *bytes;
        Self {
            answer: u32::from_ne_bytes([a0, a1, a2, a3]),
            ifindex: u32::from_ne_bytes([i0, i1, i2, i3]),
            mtu: u32::from_ne_bytes([m0, m1, m2, m3]),
            destination_mac: [d0, d1, d2, d3, d4, d5],
            source_mac: [s0, s1, s2, s3, s4, s5],
        }
    }

    /// It goes to a neighbour whose link address is known.
    pub const FORWARD: u32 = 0;
    /// It is for this node, or there is no route: it does not leave.
    pub const STAYS: u32 = 1;
    /// The kernel does not forward what comes in by that interface.
    pub const DISABLED: u32 = 2;
    /// A route says that it is to be refused.
    pub const REFUSED: u32 = 3;
    /// It is larger than fits.
    pub const TOO_BIG: u32 = 4;
    /// Only the kernel can send it: it has to find the neighbour first, or to put the packet into something.
    pub const BY_KERNEL: u32 = 5;
}

/// Where `decide` finds the way to a client.
pub trait Routes {
    /// What the kernel's routes say about a packet; `None` where they cannot be asked.
    fn route(&self, query: &RouteQuery) -> Option<&RouteEntry>;
}
