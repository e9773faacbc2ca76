//! ICMP (RFC 792) and ICMPv6 (RFC 4443): errors about a packet, and echo.

use super::ipv4::fold;
use super::{Ethernet, Frame, Ip, ip};
use crate::tables::FlowKey;

/// Length of the header of errors and echo in bytes; in an error the packet it is about follows.
const LEN: usize = 8;
const CHECKSUM: usize = 2;
/// Hop limit of what is sent from here.
const HOP_LIMIT: u8 = 64;

/// What a message is, as far as it matters here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Icmp {
    /// Something went wrong with a packet, part of which is in the message.
    Error,
    /// An echo request.
    EchoRequest,
    /// Anything else.
    Other,
}

impl Icmp {
    /// The message behind `ip`; `None` if the frame ends within its header.
    #[inline(always)]
    pub fn parse(frame: &impl Frame, ip: &Ip) -> Option<Self> {
        let [kind, code, ..] = frame.read::<LEN>(ip.payload)?;
        Some(match (ip.is_v6(), kind, code) {
            (false, 3 | 11 | 12, _) | (true, 1..=4, _) => Self::Error,
            (false, 8, 0) | (true, 128, 0) => Self::EchoRequest,
            _ => Self::Other,
        })
    }
}

/// Parses the packet that the error behind `ip` is about. Its addresses and ports go to `flow` the other way
/// round: it was sent *by* the VIP, and what is asked is where the client's packets go. Eight bytes of its
/// transport header suffice (RFC 792), and one extension header is walked, which a fragment has. `None` if it is cut shorter, or not the beginning of one.
#[inline(always)]
pub fn parse_inner(frame: &impl Frame, ip: &Ip, flow: &mut FlowKey) -> Option<Ip> {
    let inner = ip::parse_at::<1>(frame, ip.is_v6(), ip.payload.wrapping_add(LEN), flow).ok()?;
    if inner.broken.is_some() || inner.fragment_offset != 0 {
        return None;
    }
    core::mem::swap(&mut flow.source, &mut flow.destination);
    let [s0, s1, d0, d1] = frame.read(inner.payload)?;
    flow.source_port = u16::from_be_bytes([d0, d1]);
    flow.destination_port = u16::from_be_bytes([s0, s1]);
    Some(inner)
}

/// Turns the echo request behind `ip` into its reply (RFC 1122, section 3.2.2.6; RFC 4443, section 4.2), to where
/// it came from; `None` if the frame is not the one `ip` was parsed of.
#[inline(always)]
pub fn emit_echo_reply(frame: &mut impl Frame, ip: &Ip) -> Option<()> {
    Ethernet::emit_swapped(frame)?;
    ip.emit_swapped(frame, HOP_LIMIT)?;
    // The only 16-bit word that changes is type and code; the pseudo-header of ICMPv6 is symmetric.
    let (request, reply): (u16, u16) = if ip.is_v6() { (128, 129) } else { (8, 0) };
    let at = ip.payload.wrapping_add(CHECKSUM);
    let checksum = u16::from_be_bytes(frame.read(at)?);
    let change = u32::from(!(request << 8)).wrapping_add(u32::from(reply << 8));
    let sum = fold(fold(u32::from(!checksum).wrapping_add(change)));
    frame.write(ip.payload, [reply as u8])?;
    frame.write(at, (!(sum as u16)).to_be_bytes())
}
