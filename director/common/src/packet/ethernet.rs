//! Ethernet II (IEEE 802.3, clause 3).

use super::Frame;

/// EtherType of IPv4.
pub const ETHERTYPE_IPV4: u16 = 0x0800;

/// The header of an Ethernet frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ethernet {
    /// Station it was sent to.
    pub destination: [u8; 6],
    /// What follows.
    pub ethertype: u16,
}

impl Ethernet {
    /// Length of the header in bytes.
    pub const LEN: usize = 14;
    const ADDRESSES: usize = 0;
    const ETHERTYPE: usize = 12;

    /// The header, or `None` if the frame is shorter than one.
    #[inline(always)]
    pub fn parse(frame: &impl Frame) -> Option<Self> {
        let ethertype = u16::from_be_bytes(frame.read(Self::ETHERTYPE)?);
        Some(Self { destination: frame.read(Self::ADDRESSES)?, ethertype })
    }

    /// Writes both addresses; `None` if the frame is shorter than a header.
    #[inline(always)]
    pub fn emit_addresses(frame: &mut impl Frame, destination: [u8; 6], source: [u8; 6]) -> Option<()> {
        let [a, b, c, d, e, f] = destination;
        let [g, h, i, j, k, l] = source;
        frame.write(Self::ADDRESSES, [a, b, c, d, e, f, g, h, i, j, k, l])
    }
}
