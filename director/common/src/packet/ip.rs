//! What the data plane uses of an IP header, whichever version: the families part in [`Ip::parse`] on the way
//! in and in [`Ip::emit_decremented_hop_limit`] on the way out, and nowhere between.

use super::ethernet::{ETHERTYPE_IPV4, ETHERTYPE_IPV6};
use super::{Ethernet, Frame, PROTOCOL_ICMP, PROTOCOL_ICMPV6, ipv4, ipv6};
use crate::tables::{Address, FlowKey};
use crate::verdict::{DropReason, PassReason};

/// An IP header, options or extension headers included. The addresses are in a [`FlowKey`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Ip {
    /// The version: 4 or 6 (0 in a value that was never parsed).
    pub version: usize,
    /// Offset of the header from the start of the frame.
    pub start: usize,
    /// Offset of what follows the header and all its extensions, from the start of the frame.
    pub payload: usize,
    /// Length of the packet in bytes, header included, as it claims.
    pub total_len: usize,
    /// Time to live or hop limit.
    pub hop_limit: u8,
    /// Type of service or traffic class: DSCP and ECN.
    pub traffic_class: u8,
    /// What follows the header and all its extensions.
    pub protocol: u8,
    /// Offset of this fragment in units of 8 bytes; 0 in a whole packet.
    pub fragment_offset: u16,
    /// More fragments follow.
    pub more_fragments: bool,
    /// No router may fragment it: a flag in version 4, always so in version 6.
    pub dont_fragment: bool,
    /// Identification of the datagram it is a fragment of; 0 in version 6 without a fragment header.
    pub identification: u32,
    /// What is wrong with the extension headers, if anything: the fields that follow from them mean nothing
    /// then, but the addresses hold.
    pub broken: Option<DropReason>,
}

/// Furthest offset of a transport header: a VLAN tag, and a header with all its extensions in a message about
/// another such.
const MAX_PAYLOAD: usize = Ethernet::TAGGED_LEN + 2 * (ipv6::LEN + ipv6::MAX_EXTENSIONS) + 8;

/// Most extension headers that are walked: each kind there is, and the second destination options.
const EXTENSIONS: usize = 6;

impl Ip {
    /// Parses the header behind `ethernet`; the addresses go to `flow`. Lengths are checked by
    /// [`Self::length_holds`] and the sum by [`Self::checksum_holds`]: only a packet that concerns us pays for
    /// those.
    ///
    /// # Errors
    /// Why there is no usable header, so that its destination cannot be trusted either.
    #[inline(always)]
    pub fn parse(frame: &impl Frame, ethernet: &Ethernet, flow: &mut FlowKey) -> Result<Self, PassReason> {
        match ethernet.ethertype {
            ETHERTYPE_IPV4 => parse_at::<EXTENSIONS>(frame, false, ethernet.len, flow),
            ETHERTYPE_IPV6 => parse_at::<EXTENSIONS>(frame, true, ethernet.len, flow),
            _ => Err(PassReason::NotIp),
        }
    }

    /// The version is 6, else 4.
    #[inline(always)]
    pub const fn is_v6(&self) -> bool {
        self.version == 6
    }

    /// Without options and extension headers.
    #[inline(always)]
    pub const fn is_bare(&self) -> bool {
        self.payload.wrapping_sub(self.start) == if self.is_v6() { ipv6::LEN } else { ipv4::LEN }
    }

    /// Bytes of the packet behind the header; `None` if its length is smaller than its header.
    #[inline(always)]
    pub fn payload_len(&self) -> Option<usize> {
        self.total_len.checked_sub(self.payload.wrapping_sub(self.start))
    }

    /// The packet is a fragment, first or later.
    #[inline(always)]
    pub const fn is_fragment(&self) -> bool {
        self.more_fragments || self.fragment_offset != 0
    }

    /// The protocol that ICMP is in this version.
    #[inline(always)]
    pub const fn icmp(&self) -> u8 {
        if self.is_v6() { PROTOCOL_ICMPV6 } else { PROTOCOL_ICMP }
    }

    /// The packet, as long as it claims to be, is within the frame. (Padding behind it is allowed.)
    #[inline(always)]
    pub fn length_holds(&self, frame: &impl Frame) -> bool {
        self.start.wrapping_add(self.total_len) <= frame.len()
    }

    /// The header's checksum is right, or the version has none.
    #[inline(always)]
    pub fn checksum_holds(&self, frame: &impl Frame) -> bool {
        self.is_v6() || ipv4::checksum_holds(frame, self.start, self.payload.wrapping_sub(self.start))
    }

    /// Writes a hop limit one less than it was (which must not be 0), and the checksum that follows from it.
    #[inline(always)]
    pub fn emit_decremented_hop_limit(&self, frame: &mut impl Frame) -> Option<()> {
        if self.is_v6() {
            return ipv6::emit_hop_limit(frame, self.start, self.hop_limit.wrapping_sub(1));
        }
        let ttl = (self.hop_limit, self.hop_limit.wrapping_sub(1));
        ipv4::emit_ttl(frame, self.start, ttl)
    }

    /// Sends the packet back with a fresh hop limit: the addresses change places.
    #[inline(always)]
    pub(super) fn emit_swapped(&self, frame: &mut impl Frame, hop_limit: u8) -> Option<()> {
        if self.is_v6() {
            ipv6::emit_swapped(frame, self.start)?;
            return ipv6::emit_hop_limit(frame, self.start, hop_limit);
        }
        ipv4::emit_swapped(frame, self.start)?;
        ipv4::emit_ttl(frame, self.start, (self.hop_limit, hop_limit))
    }
}

/// Parses the header at `start`, which is to be of this version, and walks up to `EXTENSIONS` extensions of it.
#[inline(always)]
pub(crate) fn parse_at<const EXTENSIONS: usize>(
    frame: &impl Frame,
    is_v6: bool,
    start: usize,
    flow: &mut FlowKey,
) -> Result<Ip, PassReason> {
    let mut ip =
        if is_v6 { ipv6::parse::<EXTENSIONS>(frame, start, flow) } else { ipv4::parse(frame, start, flow) }?;
    // All that the rest of the program branches on: each combination would be a path of its own there.
    ip.version = frame.launder(ip.version);
    ip.start = frame.launder(ip.start);
    ip.payload = frame.launder(ip.payload);
    ip.total_len = frame.launder(ip.total_len);
    ip.protocol = frame.launder(usize::from(ip.protocol)) as u8;
    ip.fragment_offset = frame.launder(usize::from(ip.fragment_offset)) as u16;
    if ip.payload > MAX_PAYLOAD {
        ip.broken = Some(DropReason::BadExtension);
        ip.payload = 0;
    }
    Ok(ip)
}

/// Whether an address may be in an IPv6 header: those that map IPv4 addresses never are (RFC 4291, section
/// 2.5.5.2, and RFC 6890), and were they let in, they would pass for IPv4 here.
#[inline(always)]
pub(super) const fn may_travel(address: Address) -> bool {
    address.ipv4().is_none()
}
