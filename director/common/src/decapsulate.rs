//! The real server's end of a tunnel: which packets are taken out of it, and how.
//!
//! Terminates what [`Outer`](crate::packet::Outer) makes: IP in IP (RFC 2003, RFC 2473, RFC 4213), GRE (RFC 2784,
//! without options) and generic UDP encapsulation (draft-ietf-intarea-gue-09, variant 0, without extensions), each
//! family in each.
//!
//! - A packet that is no tunnel of ours to this host is the kernel's, unchanged. Once it is known to be one it is
//!   taken out or dropped under its own name; nothing but a packet to a VIP ever comes out.
//! - The checksum of UDP must be 0: the director writes no other, and one that nobody verifies is worth nothing.
//! - Fragments of tunnel packets are left to the kernel, which can reassemble them.
//! - ECN is combined by RFC 6040, section 4.2. DSCP, hop limit and all else of the inner packet stay.

mod shim;
#[cfg(test)]
mod tests;

use crate::packet::{self, Ethernet, Frame, Ip, PROTOCOL_GRE, PROTOCOL_IPV4, PROTOCOL_IPV6, PROTOCOL_UDP};
use crate::tables::{Address, FlowKey};
use crate::verdict::{Action, reasons};

/// A frame of which headers in front can be taken away.
pub trait Shrink: Frame {
    /// Cuts off the first `bytes` bytes; `None` if the frame is shorter, or cannot be cut.
    fn shrink(&mut self, bytes: usize) -> Option<()>;
}

/// What the end of a tunnel does, as one word: it lives in a BPF map.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(transparent)]
pub struct Settings(pub u32);

impl Settings {
    /// Terminates IP in IP.
    pub const IPIP: u32 = 1;
    /// Terminates GRE.
    pub const GRE: u32 = 2;
    /// Terminates GUE, at the port of [`Self::with_gue`].
    pub const GUE: u32 = 4;
    /// Only what comes from a listed source is taken out.
    pub const LISTED_ONLY: u32 = 8;
    /// Checks and counts, and leaves the taking out to a device of the kernel.
    pub const GUARD: u32 = 16;
    const PORT_SHIFT: u32 = 16;

    /// These, and GUE at a UDP port.
    #[must_use]
    pub const fn with_gue(self, port: u16) -> Self {
        Self(self.0 & 0xffff | Self::GUE | (port as u32) << Self::PORT_SHIFT)
    }

    /// Whether a flag is set.
    #[inline(always)]
    pub const fn has(self, flag: u32) -> bool {
        self.0 & flag != 0
    }

    /// UDP port of GUE.
    #[inline(always)]
    pub const fn gue_port(self) -> u16 {
        (self.0 >> Self::PORT_SHIFT) as u16
    }
}

/// What the end of a tunnel knows.
pub trait Endpoint {
    /// What it does.
    fn settings(&self) -> Settings;
    /// Whether packets to this address are for this host, and may be tunnels. Never true of a VIP.
    fn is_local(&self, address: &Address) -> bool;
    /// Whether directors may have this address; asked only if [`Settings::LISTED_ONLY`].
    fn is_listed(&self, source: &Address) -> bool;
    /// Whether this is a VIP that the host serves.
    fn serves(&self, vip: &Address) -> bool;
}

reasons! {
    /// What becomes of a frame at the end of a tunnel.
    Reception {
        /// The inner packet goes on into the kernel in its place.
        Decapsulated = "decapsulated",
        /// All is well, and a device of the kernel takes the inner packet out.
        LeftToDevice = "left-to-device",
        /// No IP packet of a kind that we terminate.
        NotTunnel = "not-a-tunnel",
        /// Of such a kind, to an address that is none of ours.
        NotForUs = "not-for-us",
        /// A fragment, which the kernel may reassemble.
        Fragment = "fragment",
        /// A fragment from an unlisted source, while a device of the kernel would take out what is in it unseen.
        FragmentUnlisted = "fragment-unlisted",
        /// The source is not on the list.
        SourceUnlisted = "source-unlisted",
        /// The outer packet's length is longer than the frame or shorter than its headers.
        OuterLength = "outer-length",
        /// The outer IPv4 header checksum is wrong.
        OuterChecksum = "outer-checksum",
        /// A GRE header with checksum, key, sequence number, routing or a version other than 0.
        GreOptions = "gre-options",
        /// The UDP length contradicts the outer packet's.
        UdpLength = "udp-length",
        /// A UDP checksum, which nobody verifies here.
        UdpChecksum = "udp-checksum",
        /// A GUE header of another variant, with extensions, or a control message.
        GueOptions = "gue-options",
        /// What is inside is announced as neither IPv4 nor IPv6.
        InnerProtocol = "inner-protocol",
        /// The inner header is not what was announced, or cut short.
        InnerHeader = "inner-header",
        /// The inner packet is longer than what carries it or shorter than its header.
        InnerLength = "inner-length",
        /// The inner packet is to no VIP that we serve.
        NotAVip = "not-a-vip",
        /// The outer packet met congestion, and the inner one cannot say so (RFC 6040, section 4.2).
        Congestion = "congestion",
        /// A bounds check failed while the headers were taken away.
        StripFailed = "strip-failed",
    }
}

/// Counters of outcomes: one for each [`Reception`].
pub const RECEPTION_COUNTERS: usize = 24;
const _: () = assert!(Reception::ALL.len() <= RECEPTION_COUNTERS);

impl Reception {
    /// What the kernel is told; after [`Self::Decapsulated`] it gets the inner packet.
    #[inline(always)]
    pub const fn action(self) -> Action {
        match self {
            Self::Decapsulated | Self::LeftToDevice | Self::NotTunnel | Self::NotForUs | Self::Fragment => {
                Action::Pass
            }
            Self::FragmentUnlisted
            | Self::SourceUnlisted
            | Self::OuterLength
            | Self::OuterChecksum
            | Self::GreOptions
            | Self::UdpLength
            | Self::UdpChecksum
            | Self::GueOptions
            | Self::InnerProtocol
            | Self::InnerHeader
            | Self::InnerLength
            | Self::NotAVip
            | Self::Congestion
            | Self::StripFailed => Action::Drop,
        }
    }
}

/// What becomes of a frame, and what [`strip`] needs for it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use]
pub struct Decapsulation {
    /// What becomes of it.
    pub reception: Reception,
    /// Offset of the outer IP header.
    pub outer: usize,
    /// Offset of the inner IP header.
    pub inner: usize,
    /// The inner packet is IPv6, else IPv4.
    pub inner_is_v6: bool,
    /// Traffic class that the inner packet has.
    pub before: u8,
    /// Traffic class that it gets.
    pub after: u8,
}

/// Decides what becomes of `frame`. Changes no byte of it: [`strip`] does, after [`Reception::Decapsulated`].
/// The addresses looked at are left in `flow`, whatever was in there: the caller lends the room.
#[inline(always)]
pub fn decapsulate(frame: &impl Frame, endpoint: &impl Endpoint, flow: &mut FlowKey) -> Decapsulation {
    let mut decision = Decapsulation {
        reception: Reception::NotTunnel,
        outer: 0,
        inner: 0,
        inner_is_v6: false,
        before: 0,
        after: 0,
    };
    decision.reception = match judge(frame, endpoint, flow, &mut decision) {
        Ok(()) if endpoint.settings().has(Settings::GUARD) => Reception::LeftToDevice,
        Ok(()) => Reception::Decapsulated,
        Err(reception) => reception,
    };
    decision
}

/// Takes the outer headers away: the frame is then as if the inner packet had come by itself, with the link addresses
/// and the VLAN tag of the outer one.
///
/// # Errors
/// [`Reception::StripFailed`] if the frame is shorter than the one decided on.
#[inline(always)]
pub fn strip(frame: &mut impl Shrink, decision: &Decapsulation) -> Result<(), Reception> {
    strip_frame(frame, decision).ok_or(Reception::StripFailed)
}

/// Fills in `decision`; an error is what becomes of a frame out of which nothing is taken.
#[inline(always)]
fn judge(
    frame: &impl Frame,
    endpoint: &impl Endpoint,
    flow: &mut FlowKey,
    decision: &mut Decapsulation,
) -> Result<(), Reception> {
    let ethernet = Ethernet::parse(frame).ok_or(Reception::NotTunnel)?;
    let is_v6 = match ethernet.ethertype {
        packet::ETHERTYPE_IPV4 => false,
        packet::ETHERTYPE_IPV6 => true,
        _ => return Err(Reception::NotTunnel),
    };
    // Of a malformed header not even the destination is sure: the kernel drops it.
    let outer = packet::parse_at::<0>(frame, is_v6, ethernet.len, flow).map_err(|_| Reception::NotTunnel)?;
    let settings = endpoint.settings();
    if !is_ours(frame, settings, &outer) {
        return Err(Reception::NotTunnel);
    }
    if !endpoint.is_local(&flow.destination) {
        return Err(Reception::NotForUs);
    }
    if settings.has(Settings::LISTED_ONLY) && !endpoint.is_listed(&flow.source) {
        return Err(Reception::SourceUnlisted);
    }
    if outer.is_fragment() || outer.protocol == FRAGMENT {
        let unseen = settings.has(Settings::GUARD) && !settings.has(Settings::LISTED_ONLY);
        return Err(if unseen { Reception::FragmentUnlisted } else { Reception::Fragment });
    }
    let payload_len = outer.payload_len().ok_or(Reception::OuterLength)?;
    if !outer.length_holds(frame) {
        return Err(Reception::OuterLength);
    }
    if !outer.checksum_holds(frame) {
        return Err(Reception::OuterChecksum);
    }
    let inner = match outer.protocol {
        PROTOCOL_GRE => shim::parse_gre(frame, outer.payload, payload_len)?,
        PROTOCOL_UDP => shim::parse_gue(frame, outer.payload, payload_len)?,
        protocol => shim::Inner { start: outer.payload, is_v6: usize::from(protocol == PROTOCOL_IPV6) },
    };
    decision.outer = outer.start;
    // Forgotten by the verifier, which would go through all that follows once for each kind of tunnel.
    // The mask changes nothing: it is what the verifier knows instead, wherever the offset is kept meanwhile.
    decision.inner = frame.launder(inner.start) & 0x7fff;
    decision.inner_is_v6 = frame.launder(inner.is_v6) != 0;
    let end = outer.start.wrapping_add(outer.total_len);
    judge_inner(frame, endpoint, flow, (end, outer.traffic_class), decision)
}

/// Next header of IPv6 with a fragment header (RFC 8200, section 4.5).
const FRAGMENT: u8 = 44;

/// Whether the packet is, or may be a fragment of, one of the tunnels that we terminate. Those with other extension
/// headers are not: the director writes none.
#[inline(always)]
fn is_ours(frame: &impl Frame, settings: Settings, outer: &Ip) -> bool {
    let protocol = if outer.is_v6() && outer.protocol == FRAGMENT {
        let Some([next]) = frame.read(outer.payload) else { return false };
        next
    } else {
        outer.protocol
    };
    match protocol {
        PROTOCOL_IPV4 | PROTOCOL_IPV6 => settings.has(Settings::IPIP),
        PROTOCOL_GRE => settings.has(Settings::GRE),
        // Whose a fragment of UDP is says its first one only: it is left to the kernel as what it seems to be.
        PROTOCOL_UDP => {
            settings.has(Settings::GUE)
                && outer.fragment_offset == 0
                && packet::Ports::parse(frame, outer)
                    .is_some_and(|ports| ports.destination == settings.gue_port())
        }
        _ => false,
    }
}

/// Judges the inner packet in an outer one that ends at the given offset and has this traffic class.
#[inline(always)]
fn judge_inner(
    frame: &impl Frame,
    endpoint: &impl Endpoint,
    flow: &mut FlowKey,
    (end, outer_class): (usize, u8),
    decision: &mut Decapsulation,
) -> Result<(), Reception> {
    let inner = packet::parse_at::<0>(frame, decision.inner_is_v6, decision.inner, flow)
        .map_err(|_| Reception::InnerHeader)?;
    let header = if decision.inner_is_v6 { LEN_V6 } else { inner.payload.wrapping_sub(inner.start) };
    if inner.total_len < header || inner.start.wrapping_add(inner.total_len) > end {
        return Err(Reception::InnerLength);
    }
    if !endpoint.serves(&flow.destination) {
        return Err(Reception::NotAVip);
    }
    decision.before = inner.traffic_class;
    let ecn = combine_ecn(inner.traffic_class, outer_class);
    if ecn == ECN_DROP {
        return Err(Reception::Congestion);
    }
    decision.after = inner.traffic_class & !ECN_MASK | ecn;
    Ok(())
}

/// Length of an IPv6 header without extensions in bytes.
const LEN_V6: usize = 40;
const ECN_MASK: u8 = 3;
const NOT_ECT: u8 = 0;
const ECT_1: u8 = 1;
const ECT_0: u8 = 2;
const CE: u8 = 3;
/// Instead of a codepoint: the packet is to be dropped.
const ECN_DROP: u8 = 4;

/// The codepoint that leaves the tunnel (RFC 6040, section 4.2, figure 4), of two traffic classes.
#[inline(always)]
const fn combine_ecn(inner: u8, outer: u8) -> u8 {
    match (inner & ECN_MASK, outer & ECN_MASK) {
        (NOT_ECT, CE) => ECN_DROP,
        (NOT_ECT, _) => NOT_ECT,
        (_, CE) | (CE, _) => CE,
        (ECT_0, ECT_1) => ECT_1,
        (own, _) => own,
    }
}

#[inline(always)]
fn strip_frame(frame: &mut impl Shrink, decision: &Decapsulation) -> Option<()> {
    if decision.after != decision.before {
        emit_traffic_class(frame, decision)?;
    }
    let ethertype =
        if decision.inner_is_v6 { packet::ETHERTYPE_IPV6 } else { packet::ETHERTYPE_IPV4 }.to_be_bytes();
    let addresses: [u8; 12] = frame.read(Ethernet::ADDRESSES)?;
    let tag: [u8; 4] = frame.read(Ethernet::TAG)?;
    frame.shrink(decision.inner.wrapping_sub(decision.outer))?;
    frame.write(Ethernet::ADDRESSES, addresses)?;
    if decision.outer == Ethernet::TAGGED_LEN {
        frame.write(Ethernet::TAG, tag)?;
        return frame.write(Ethernet::TAG.wrapping_add(tag.len()), ethertype);
    }
    frame.write(Ethernet::TAG, ethertype)
}

/// Writes the traffic class into the inner header, and the checksum that follows (RFC 1624, equation 3).
#[inline(always)]
fn emit_traffic_class(frame: &mut impl Frame, decision: &Decapsulation) -> Option<()> {
    /// Offset of the checksum in an IPv4 header.
    const CHECKSUM: usize = 10;
    let (at, after) = (decision.inner, decision.after);
    let [first, second] = frame.read(at)?;
    if decision.inner_is_v6 {
        return frame.write(at, [first & 0xf0 | after >> 4, after << 4 | second & 0x0f]);
    }
    let checksum = u16::from_be_bytes(frame.read(at.wrapping_add(CHECKSUM))?);
    // The other half of the word is the version: its share of ~m + m' is -0.
    let change = u32::from(!u16::from(decision.before)).wrapping_add(u32::from(after));
    let sum = packet::fold(packet::fold(u32::from(!checksum).wrapping_add(change)));
    frame.write(at, [first, after])?;
    frame.write(at.wrapping_add(CHECKSUM), (!(sum as u16)).to_be_bytes())
}
