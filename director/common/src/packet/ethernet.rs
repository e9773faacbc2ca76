//! Ethernet II (IEEE 802.3, clause 3) and the customer VLAN tag (IEEE 802.1Q, clause 9.6).

use super::Frame;

/// EtherType of IPv4.
pub const ETHERTYPE_IPV4: u16 = 0x0800;
/// EtherType of IPv6.
pub const ETHERTYPE_IPV6: u16 = 0x86dd;
/// EtherType of a frame with a VLAN tag.
pub const ETHERTYPE_VLAN: u16 = 0x8100;

/// The header of an Ethernet frame, with its VLAN tag if it has one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ethernet {
    /// Station it was sent to.
    pub destination: [u8; 6],
    /// What follows, behind the tag.
    pub ethertype: u16,
    /// Length of the header in bytes, tag included: [`Self::LEN`] or [`Self::TAGGED_LEN`].
    pub len: usize,
}

impl Ethernet {
    /// Length of the header without a tag in bytes.
    pub const LEN: usize = 14;
    /// Length of the header with one tag in bytes.
    pub const TAGGED_LEN: usize = 18;
    /// Offset of the VLAN tag, where there is one.
    pub(crate) const TAG: usize = 12;
    pub(crate) const ADDRESSES: usize = 0;
    const ETHERTYPE: usize = 12;
    const TAGGED_ETHERTYPE: usize = 16;

    /// The header, or `None` if the frame is shorter than one. Of several tags only the first is read: what
    /// follows is then of no type that is forwarded.
    #[inline(always)]
    pub fn parse(frame: &impl Frame) -> Option<Self> {
        let destination = frame.read(Self::ADDRESSES)?;
        let ethertype = u16::from_be_bytes(frame.read(Self::ETHERTYPE)?);
        if ethertype != ETHERTYPE_VLAN {
            return Some(Self { destination, ethertype, len: Self::LEN });
        }
        let ethertype = u16::from_be_bytes(frame.read(Self::TAGGED_ETHERTYPE)?);
        Some(Self { destination, ethertype, len: Self::TAGGED_LEN })
    }

    /// The frame carries a VLAN tag.
    #[inline(always)]
    pub const fn is_tagged(&self) -> bool {
        self.len == Self::TAGGED_LEN
    }

    /// Writes both addresses; `None` if the frame is shorter than a header.
    #[inline(always)]
    pub fn emit_addresses(frame: &mut impl Frame, destination: [u8; 6], source: [u8; 6]) -> Option<()> {
        let [a, b, c, d, e, f] = destination;
        let [g, h, i, j, k, l] = source;
        frame.write(Self::ADDRESSES, [a, b, c, d, e, f, g, h, i, j, k, l])
    }

    /// Sends the frame back: the addresses change places.
    #[inline(always)]
    pub(super) fn emit_swapped(frame: &mut impl Frame) -> Option<()> {
        let (destination, source) = (frame.read(Self::ADDRESSES)?, frame.read(Self::ADDRESSES + 6)?);
        Self::emit_addresses(frame, source, destination)
    }
}
