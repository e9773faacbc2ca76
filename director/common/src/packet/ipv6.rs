//! IPv6 (RFC 8200): the header of section 3, and the chain of extension headers of section 4.

use super::ip::{Ip, may_travel};
use super::{Frame, PROTOCOL_AH};
use crate::tables::{Address, FlowKey};
use crate::verdict::{DropReason, PassReason};

/// Length of the header in bytes.
pub(super) const LEN: usize = 40;
/// Most bytes of extension headers that are walked.
pub(super) const MAX_EXTENSIONS: usize = 512;
const HOP_LIMIT: usize = 7;

const HOP_BY_HOP: u8 = 0;
const ROUTING: u8 = 43;
const FRAGMENT: u8 = 44;
const DESTINATION_OPTIONS: u8 = 60;

/// Parses the header at `start` and walks up to `EXTENSIONS` extensions of it.
#[inline(always)]
pub(super) fn parse<const EXTENSIONS: usize>(
    frame: &impl Frame,
    start: usize,
    flow: &mut FlowKey,
) -> Result<Ip, PassReason> {
    let [v0, v1, _, _, l0, l1, next, hop_limit] = frame.read(start).ok_or(PassReason::ShortHeader)?;
    if v0 >> 4 != 6 {
        return Err(PassReason::BadVersion);
    }
    flow.source = Address(frame.read(start.wrapping_add(8)).ok_or(PassReason::ShortHeader)?);
    flow.destination = Address(frame.read(start.wrapping_add(24)).ok_or(PassReason::ShortHeader)?);
    if !may_travel(flow.source) || !may_travel(flow.destination) {
        return Err(PassReason::MappedAddress);
    }
    let mut ip = Ip {
        version: 6,
        start,
        payload: start.wrapping_add(LEN),
        total_len: usize::from(u16::from_be_bytes([l0, l1])).wrapping_add(LEN),
        hop_limit,
        traffic_class: v0 << 4 | v1 >> 4,
        protocol: next,
        dont_fragment: true,
        ..Ip::default()
    };
    if is_extension(next) {
        ip.broken = walk::<EXTENSIONS>(frame, &mut ip, start.wrapping_add(LEN + MAX_EXTENSIONS)).err();
    }
    Ok(ip)
}

/// Whether a header of this type is walked over. (Behind an encapsulating security payload nothing can be read:
/// it is a protocol like any other that is not balanced.)
#[inline(always)]
const fn is_extension(next: u8) -> bool {
    matches!(next, HOP_BY_HOP | ROUTING | FRAGMENT | DESTINATION_OPTIONS | PROTOCOL_AH)
}

/// Moves `ip.payload` and `ip.protocol` behind the extension headers, and those may not end beyond `furthest`.
#[inline(always)]
fn walk<const EXTENSIONS: usize>(frame: &impl Frame, ip: &mut Ip, furthest: usize) -> Result<(), DropReason> {
    for _ in 0..EXTENSIONS {
        // A later fragment goes on with the middle of something.
        if !is_extension(ip.protocol) || ip.fragment_offset != 0 {
            break;
        }
        let at = frame.launder(ip.payload);
        if at > furthest {
            return Err(DropReason::BadExtension);
        }
        let [next, length, a, b, i0, i1, i2, i3] = frame.read(at).ok_or(DropReason::BadExtension)?;
        let bytes = match ip.protocol {
            FRAGMENT => {
                let field = u16::from_be_bytes([a, b]);
                ip.fragment_offset = field >> 3;
                ip.more_fragments = field & 1 != 0;
                ip.identification = u32::from_be_bytes([i0, i1, i2, i3]);
                8
            }
            // In units of 4 bytes, not counting the first two (RFC 4302, section 2.2).
            PROTOCOL_AH => usize::from(length).wrapping_mul(4).wrapping_add(8),
            // Segments left: the packet is only passing through here (RFC 8200, section 4.4).
            ROUTING if b != 0 => return Err(DropReason::RoutingHeader),
            _ => usize::from(length).wrapping_mul(8).wrapping_add(8),
        };
        ip.protocol = next;
        ip.payload = at.wrapping_add(bytes);
    }
    let unfinished = is_extension(ip.protocol) && ip.fragment_offset == 0;
    if unfinished || ip.payload > furthest { Err(DropReason::BadExtension) } else { Ok(()) }
}

/// Writes the hop limit of the header at `start`.
#[inline(always)]
pub(super) fn emit_hop_limit(frame: &mut impl Frame, start: usize, hop_limit: u8) -> Option<()> {
    frame.write(start.wrapping_add(HOP_LIMIT), [hop_limit])
}

/// Exchanges the addresses of the header at `start`.
#[inline(always)]
pub(super) fn emit_swapped(frame: &mut impl Frame, start: usize) -> Option<()> {
    let source: [u8; 16] = frame.read(start.wrapping_add(8))?;
    let destination: [u8; 16] = frame.read(start.wrapping_add(24))?;
    frame.write(start.wrapping_add(8), destination)?;
    frame.write(start.wrapping_add(24), source)
}
