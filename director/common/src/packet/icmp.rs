//! ICMP (RFC 792) and ICMPv6 (RFC 4443): errors about a packet, and echo.

use super::ipv4::LEN as LEN_V4;
use super::ipv4::fold;
use super::ipv6::LEN as LEN_V6;
use super::{Ethernet, Frame, Ip, ip};
use crate::tables::{Address, FlowKey};

/// Length of the header of errors and echo in bytes; in an error the packet it is about follows.
const LEN: usize = 8;
const CHECKSUM: usize = 2;
/// Bytes that an error shows of a packet with IP options or extension headers, behind which the transport header stands;
/// of a shorter one there is no error.
pub const SHOWN_LONG: usize = 128;
const _: () = assert!(LEN_V6 + LEN + SHOWN_LONG < 256);
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
/// transport header suffice (RFC 792), and one extension header is walked, which a fragment has. `None` if it is cut
/// shorter, or not the beginning of one.
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

/// An error about a packet that is told to who sent it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ErrorKind {
    /// Larger than fits: fragmentation needed (RFC 792, RFC 1191) or packet too big (RFC 4443, section 3.2).
    TooBig,
    /// Its time to live or hop limit ends here (RFC 792; RFC 4443, section 3.3).
    TimeExceeded,
    /// Communication administratively prohibited (RFC 1812, section 5.2.7.1; RFC 4443, section 3.1).
    Prohibited,
}

impl ErrorKind {
    /// Type and code in the packet's version of IP.
    #[inline(always)]
    const fn numbers(self, is_v6: bool) -> [u8; 2] {
        match (self, is_v6) {
            (Self::TooBig, false) => [3, 4],
            (Self::TooBig, true) => [2, 0],
            (Self::TimeExceeded, false) => [11, 0],
            (Self::TimeExceeded, true) => [3, 0],
            (Self::Prohibited, false) => [3, 13],
            (Self::Prohibited, true) => [1, 1],
        }
    }
}

/// Turns the packet `ip` was parsed of into an error of this kind about it, to where it came from; from `source`, an
/// address of its version, or if that is `None` from where it was sent to. `mtu` is the largest packet that fits, in
/// bytes, and 0 if that is not the matter. The message shows the header and eight bytes more, enough to find the flow, or
/// [`SHOWN_LONG`] bytes where there are options or extension headers. `None` if the frame is not the one that `ip` was parsed of, or cannot be changed so.
#[inline(always)]
pub fn emit_error(
    frame: &mut impl Frame,
    ip: &Ip,
    kind: ErrorKind,
    mtu: u32,
    source: Option<&Address>,
) -> Option<()> {
    Ethernet::emit_swapped(frame)?;
    let link: [u8; Ethernet::LEN] = frame.read(0)?;
    let (tag_rest, start): ([u8; 4], usize) = (frame.read(Ethernet::LEN)?, ip.start);
    if ip.is_v6() {
        frame.grow::<{ LEN_V6 + LEN }>()?;
    } else {
        frame.grow::<{ LEN_V4 + LEN }>()?;
    }
    frame.write(0, link)?;
    if start == Ethernet::TAGGED_LEN {
        frame.write(Ethernet::LEN, tag_rest)?;
    }
    let ([kind, code], [m0, m1, m2, m3]) = (kind.numbers(ip.is_v6()), mtu.to_be_bytes());
    let message = [kind, code, 0, 0, m0, m1, m2, m3];
    match (ip.is_v6(), ip.is_bare()) {
        (true, true) => emit_error_v6::<{ LEN_V6 + 8 }, { (LEN_V6 + 8) / 4 }>(frame, start, message, source),
        (true, false) => emit_error_v6::<SHOWN_LONG, { SHOWN_LONG / 4 }>(frame, start, message, source),
        (false, true) => emit_error_v4::<{ LEN_V4 + 8 }, { (LEN_V4 + 8) / 4 }>(frame, start, message, source),
        (false, false) => emit_error_v4::<SHOWN_LONG, { SHOWN_LONG / 4 }>(frame, start, message, source),
    }
}

/// The IPv4 header at `start`, the header of the message, whose checksum is 0, and behind it the `SHOWN` bytes, in `WORDS`
/// words, that it shows.
#[inline(always)]
fn emit_error_v4<const SHOWN: usize, const WORDS: usize>(
    frame: &mut impl Frame,
    start: usize,
    [kind, code, _, _, m0, m1, m2, m3]: [u8; LEN],
    source: Option<&Address>,
) -> Option<()> {
    let total = const { LEN_V4 + LEN + SHOWN } as u8;
    let shown = start.wrapping_add(LEN_V4 + LEN);
    frame.truncate(shown.wrapping_add(SHOWN))?;
    let [s0, s1, s2, s3, d0, d1, d2, d3] = frame.read(shown.wrapping_add(12))?;
    let [d0, d1, d2, d3] = source.map_or([d0, d1, d2, d3], Address::low);
    // Precedence of internetwork control (RFC 1812, section 4.3.2.5); an atomic packet (RFC 6864).
    let addresses = sum_of(0, [[d0, d1], [d2, d3], [s0, s1], [s2, s3]]);
    let header = sum_of(addresses, [[0x45, 0xc0], [0, total], [0x40, 0], [HOP_LIMIT, 1]]);
    let [c0, c1] = (!(fold(fold(header)) as u16)).to_be_bytes();
    frame.write(start, [0x45, 0xc0, 0, total, 0, 0, 0x40, 0])?;
    frame.write(start.wrapping_add(8), [HOP_LIMIT, 1, c0, c1, d0, d1, d2, d3, s0, s1, s2, s3])?;
    let sum = sum_at::<WORDS>(frame, shown, sum_of(0, [[kind, code], [m0, m1], [m2, m3]]))?;
    let [c0, c1] = (!(fold(fold(sum)) as u16)).to_be_bytes();
    frame.write(start.wrapping_add(LEN_V4), [kind, code, c0, c1, m0, m1, m2, m3])
}

/// As [`emit_error_v4`], for IPv6.
#[inline(always)]
fn emit_error_v6<const SHOWN: usize, const WORDS: usize>(
    frame: &mut impl Frame,
    start: usize,
    [kind, code, _, _, m0, m1, m2, m3]: [u8; LEN],
    source: Option<&Address>,
) -> Option<()> {
    let length = const { LEN + SHOWN } as u8;
    let shown = start.wrapping_add(LEN_V6 + LEN);
    frame.truncate(shown.wrapping_add(SHOWN))?;
    frame.write(start, [0x60, 0, 0, 0, 0, length, 58, HOP_LIMIT])?;
    let client: [u8; 16] = frame.read(shown.wrapping_add(8))?;
    frame.write(start.wrapping_add(24), client)?;
    // Each written where it is at hand: chosen first, the address would lie on the stack.
    match source {
        Some(source) => frame.write(start.wrapping_add(8), source.0)?,
        None => {
            let vip: [u8; 16] = frame.read(shown.wrapping_add(24))?;
            frame.write(start.wrapping_add(8), vip)?;
        }
    }
    // The pseudo-header (RFC 8200, section 8.1): both addresses, length and next header.
    let pseudo = sum_at::<8>(frame, start.wrapping_add(8), sum_of(0, [[0, length], [0, 58]]))?;
    let header = sum_of(pseudo, [[kind, code], [m0, m1], [m2, m3]]);
    let sum = sum_at::<WORDS>(frame, shown, header)?;
    let [c0, c1] = (!(fold(fold(sum)) as u16)).to_be_bytes();
    frame.write(start.wrapping_add(LEN_V6), [kind, code, c0, c1, m0, m1, m2, m3])
}

/// `sum` and these words.
#[inline(always)]
fn sum_of<const N: usize>(sum: u32, words: [[u8; 2]; N]) -> u32 {
    words.into_iter().fold(sum, |sum, word| sum.wrapping_add(u32::from(u16::from_be_bytes(word))))
}

/// `sum` and the `N` times four bytes at `offset`.
#[inline(always)]
fn sum_at<const N: usize>(frame: &impl Frame, offset: usize, mut sum: u32) -> Option<u32> {
    for at in 0..N {
        let [a, b, c, d] = frame.read(offset.wrapping_add(at.wrapping_mul(4)))?;
        sum = sum_of(sum, [[a, b], [c, d]]);
    }
    Some(sum)
}
