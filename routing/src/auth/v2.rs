//! Version 2: 8 bytes in the header, and a digest behind the packet that its length does not count
//! (RFC 2328 section D.4). An LLS block (RFC 5613) comes behind the digest and is not covered.

use std::net::Ipv4Addr;

use bytes::{BufMut, Bytes, BytesMut};

use super::{Algorithm, Authenticated, Claim, Number, digest};
use crate::packet::{Body, HEADER_LEN, Packet, ParseError, V2, VERSION, checksum, wire::Envelope};

/// Where the checksum is in the header.
const CHECKSUM: std::ops::Range<usize> = 12..14;
/// Where the authentication type is.
const AUTHENTICATION_TYPE: std::ops::Range<usize> = 14..16;
/// Where the 8 bytes of authentication are.
const AUTHENTICATION: std::ops::Range<usize> = 16..HEADER_LEN;
/// Authentication types (RFC 2328 section D).
const SIMPLE: u16 = 1;
const CRYPTOGRAPHIC: u16 = 2;

impl Authenticated for V2 {
    const PROTOCOL_ID: Option<[u8; 2]> = None;
    const STRICT: bool = false;
    const PASSWORD: Option<std::ops::Range<usize>> = Some(AUTHENTICATION);

    fn overhead(algorithm: Algorithm) -> usize {
        algorithm.digest_len()
    }

    fn lane(_: u8) -> usize {
        0
    }

    fn with_password(packet: &[u8], password: &[u8]) -> Option<Bytes> {
        let mut out = BytesMut::from(packet);
        out[AUTHENTICATION_TYPE].copy_from_slice(&SIMPLE.to_be_bytes());
        for (to, from) in out[AUTHENTICATION].iter_mut().zip(password) {
            *to = *from;
        }
        // The checksum leaves the password out, but not the type.
        out[CHECKSUM].fill(0);
        let sum = checksum::internet(&[&out[..AUTHENTICATION.start], &out[HEADER_LEN..]]);
        out[CHECKSUM].copy_from_slice(&sum.to_be_bytes());
        Some(out.freeze())
    }

    fn with_claim(packet: &[u8], id: u8, algorithm: Algorithm, number: Number) -> BytesMut {
        let length = algorithm.digest_len();
        let mut out = BytesMut::with_capacity(packet.len() + length);
        out.put_slice(packet);
        out[CHECKSUM].fill(0);
        out[AUTHENTICATION_TYPE].copy_from_slice(&CRYPTOGRAPHIC.to_be_bytes());
        let mut field = &mut out[AUTHENTICATION];
        field.put_u16(0);
        field.put_u8(id);
        field.put_u8(u8::try_from(length).expect("invariant: digests are short"));
        field.put_u32(number.of_32_bits());
        out
    }

    fn pad(algorithm: Algorithm, _: Ipv4Addr) -> Vec<u8> {
        digest::apad(algorithm.digest_len()).collect()
    }

    fn claim(payload: &[u8], _: bool) -> Result<Claim, ParseError> {
        let header: &[u8; HEADER_LEN] = payload.first_chunk().ok_or(ParseError::Short { what: "header" })?;
        if header[0] != VERSION {
            return Err(ParseError::Version { version: header[0], expected: VERSION });
        }
        let field = |at: usize| u16::from_be_bytes([header[at], header[at + 1]]);
        match field(AUTHENTICATION_TYPE.start) {
            0 => Ok(Claim::None),
            SIMPLE => {
                let mut password = [0; 8];
                password.copy_from_slice(&header[AUTHENTICATION]);
                Ok(Claim::Simple(password))
            }
            CRYPTOGRAPHIC => {
                let end = usize::from(field(2));
                let digest = end..end + usize::from(header[19]);
                if end < HEADER_LEN || digest.end > payload.len() {
                    return Err(ParseError::Short { what: "digest behind the packet" });
                }
                let sequence = u32::from_be_bytes([header[20], header[21], header[22], header[23]]);
                Ok(Claim::Keyed { id: header[18].into(), sequence: sequence.into(), digest, kind: header[1] })
            }
            kind => Ok(Claim::Unknown { kind }),
        }
    }

    fn read_by_claim(payload: &[u8], _: bool) -> usize {
        if payload.first() != Some(&VERSION) {
            return AUTHENTICATION.start;
        }
        let length = payload.get(2..).and_then(|rest| rest.first_chunk());
        length.map_or(HEADER_LEN, |length| usize::from(u16::from_be_bytes(*length)).max(HEADER_LEN))
    }

    fn open_authentic(payload: &Bytes, _: Ipv4Addr, _: Ipv4Addr) -> Result<(Envelope, Body), ParseError> {
        let Packet { router, area, body } = Packet::parse_authentic(payload)?;
        Ok((Envelope { router, area, instance: 0 }, body))
    }
}
