//! Version 3: a trailer behind the packet that its length does not count (RFC 7166), announced by a bit in
//! the options of Hellos and database descriptions. An LLS block (RFC 5613) comes before the trailer and is
//! covered. The packet's checksum is left out.

use std::net::Ipv6Addr;

use bytes::{BufMut, Bytes, BytesMut};

use super::{Algorithm, Authenticated, Claim, Number, digest};
use crate::packet::{
    ParseError,
    v3::{Body, HEADER_LEN, Packet, V3, VERSION},
    wire::Envelope,
};

/// Option bit: an authentication trailer follows (RFC 7166 section 2.1).
const OPTION_AT: u32 = 0x400;
/// Option bit: an LLS block follows (RFC 5613 section 2.1).
const OPTION_L: u32 = 0x200;
/// Where the checksum is in the header.
const CHECKSUM: std::ops::Range<usize> = 12..14;
/// Bytes of a trailer before its digest.
const TRAILER_LEN: usize = 16;
/// The one authentication type of trailers (RFC 7166 section 4.1).
const HMAC: u16 = 1;

/// Where the 24 option bits of a packet are, if its type has them.
fn options_at(kind: u8) -> Option<usize> {
    match kind {
        1 => Some(HEADER_LEN + 5),
        2 => Some(HEADER_LEN + 1),
        _ => None,
    }
}

fn u16_at(payload: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_be_bytes(*payload.get(at..)?.first_chunk()?))
}

/// The option bits of a packet, if its type has them.
fn options(payload: &[u8], kind: u8) -> Option<u32> {
    let [high, middle, low] = *payload.get(options_at(kind)?..)?.first_chunk()?;
    Some(u32::from_be_bytes([0, high, middle, low]))
}

/// What comes behind a packet.
enum Behind {
    /// No trailer; where the packet ends.
    Nothing(usize),
    /// A trailer, and where it is to begin.
    Trailer(usize),
    /// It cannot be told, and how far that was read.
    Unreadable(ParseError, usize),
}

fn behind(payload: &[u8], keyed: bool) -> Behind {
    let Some(header) = payload.first_chunk::<HEADER_LEN>() else {
        return Behind::Unreadable(ParseError::Short { what: "header" }, HEADER_LEN);
    };
    if header[0] != VERSION {
        let error = ParseError::Version { version: header[0], expected: VERSION };
        return Behind::Unreadable(error, HEADER_LEN);
    }
    let length = u16::from_be_bytes([header[2], header[3]]);
    let end = usize::from(length);
    if end < HEADER_LEN || end > payload.len() {
        return Behind::Unreadable(ParseError::Length { length, received: payload.len() }, HEADER_LEN);
    }
    let said = options(payload, header[1]);
    // Types without options mean what the neighbour's Hellos said, which had to be what is in use here.
    if !said.map_or(keyed && payload.len() > end, |options| options & OPTION_AT != 0) {
        return Behind::Nothing(end);
    }
    if said.is_none_or(|options| options & OPTION_L == 0) {
        return Behind::Trailer(end);
    }
    match u16_at(payload, end + 2) {
        None => Behind::Unreadable(ParseError::Short { what: "LLS block" }, end),
        Some(words) => {
            let at = end + usize::from(words) * 4;
            if at + TRAILER_LEN <= payload.len() {
                return Behind::Trailer(at);
            }
            Behind::Unreadable(ParseError::Short { what: "authentication trailer" }, end + 4)
        }
    }
}

impl Authenticated for V3 {
    const PROTOCOL_ID: Option<[u8; 2]> = Some([0, 1]);
    const STRICT: bool = true;
    const PASSWORD: Option<std::ops::Range<usize>> = None;

    fn overhead(algorithm: Algorithm) -> usize {
        TRAILER_LEN + algorithm.digest_len()
    }

    /// Receivers may put some packet types first (RFC 4222): numbers are ordered within a type.
    fn lane(kind: u8) -> usize {
        usize::from(kind).saturating_sub(1)
    }

    fn with_password(_: &[u8], _: &[u8]) -> Option<Bytes> {
        None
    }

    fn with_claim(packet: &[u8], id: u8, algorithm: Algorithm, number: Number) -> BytesMut {
        let length = Self::overhead(algorithm);
        let mut out = BytesMut::with_capacity(packet.len() + length);
        out.put_slice(packet);
        out[CHECKSUM].fill(0);
        if let Some(at) = options_at(out[1]) {
            let [_, _, high, low] = OPTION_AT.to_be_bytes();
            out[at + 1] |= high;
            out[at + 2] |= low;
        }
        out.put_u16(HMAC);
        out.put_u16(u16::try_from(length).expect("invariant: digests are short"));
        out.put_u16(0);
        out.put_u16(id.into());
        out.put_u64(number.of_64_bits());
        out
    }

    /// The source address, then Apad (RFC 7166 section 4.5).
    fn pad(algorithm: Algorithm, source: Ipv6Addr) -> Vec<u8> {
        let address = source.octets();
        let rest = algorithm.digest_len().saturating_sub(address.len());
        address.into_iter().chain(digest::apad(rest)).collect()
    }

    fn claim(payload: &[u8], keyed: bool) -> Result<Claim, ParseError> {
        let at = match behind(payload, keyed) {
            Behind::Trailer(at) => at,
            Behind::Nothing(_) => return Ok(Claim::None),
            Behind::Unreadable(error, _) => return Err(error),
        };
        let (kind, short) = (payload[1], ParseError::Short { what: "authentication trailer" });
        let trailer = payload.get(at..).and_then(|rest| rest.first_chunk::<TRAILER_LEN>());
        let trailer = trailer.ok_or(short.clone())?;
        let field = |at: usize| u16::from_be_bytes([trailer[at], trailer[at + 1]]);
        if field(0) != HMAC {
            return Ok(Claim::Unknown { kind: field(0) });
        }
        let digest = at + TRAILER_LEN..at + usize::from(field(2));
        if digest.start > digest.end || digest.end > payload.len() {
            return Err(short);
        }
        let [.., a, b, c, d, e, f, g, h] = *trailer;
        let sequence = u64::from_be_bytes([a, b, c, d, e, f, g, h]);
        Ok(Claim::Keyed { id: field(6), sequence, digest, kind })
    }

    fn read_by_claim(payload: &[u8], keyed: bool) -> usize {
        match behind(payload, keyed) {
            Behind::Trailer(at) => at + TRAILER_LEN,
            Behind::Nothing(end) | Behind::Unreadable(_, end) => end,
        }
    }

    fn open_authentic(payload: &Bytes, _: Ipv6Addr, _: Ipv6Addr) -> Result<(Envelope, Body), ParseError> {
        let Packet { router, area, instance, body } = Packet::parse_authentic(payload)?;
        Ok((Envelope { router, area, instance }, body))
    }
}
