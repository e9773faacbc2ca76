//! Link state advertisements: header, identity, recency, and the LSA kept as the bytes that were received
//! (RFC 2328 sections 12.1, 13.1 and A.4.1; RFC 5340 section A.4.2).

use std::{cmp::Ordering, fmt, net::Ipv4Addr, time::Duration};

use bytes::{BufMut, Bytes, BytesMut};
use serde::{Deserialize, Deserializer, Serialize, Serializer, de::Error as _};

use super::{ParseError, checksum, reader::Reader, version::Version};
use crate::serial::hex;

/// Length of an LSA header in bytes.
pub const LSA_HEADER_LEN: usize = 20;
/// Seconds after which an LSA is flushed (appendix B, MaxAge).
pub const MAX_AGE: u16 = 3600;
/// Ages that differ by no more than this many seconds count as equal (appendix B, MaxAgeDiff).
const MAX_AGE_DIFF: u16 = 900;
/// The first sequence number of an LSA (section 12.1.6).
pub const INITIAL_SEQUENCE: i32 = i32::MIN + 1;
/// The last sequence number of an LSA (section 12.1.6).
pub const MAX_SEQUENCE: i32 = i32::MAX;
/// The DoNotAge bit of RFC 1793: tolerated, and aged like any other.
const DO_NOT_AGE: u16 = 0x8000;

/// What makes two LSAs instances of the same thing (section 12.1).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(bound = "")]
pub struct LsaKey<V: Version> {
    /// LS type.
    pub kind: V::Kind,
    /// Link state id.
    pub id: Ipv4Addr,
    /// Router id of the originator.
    pub router: Ipv4Addr,
}

impl<V: Version> fmt::Display for LsaKey<V> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "type {} id {} from {}", self.kind, self.id, self.router)
    }
}

/// The header of an LSA.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(bound = "")]
pub struct LsaHeader<V: Version> {
    /// Seconds since origination, as sent (it may carry DoNotAge).
    pub age: u16,
    /// Capabilities of the described part of the domain; version 3 has them in the bodies.
    pub options: V::LsaOptions,
    /// Type, id and originator.
    pub key: LsaKey<V>,
    /// Sequence number: signed and linear (section 12.1.6).
    pub sequence: i32,
    /// Fletcher checksum.
    pub checksum: u16,
    /// Length with the header, in bytes.
    pub length: u16,
}

impl<V: Version> LsaHeader<V> {
    pub(super) fn parse(reader: &mut Reader<'_>) -> Result<Self, ParseError> {
        let age = reader.u16()?;
        let (options, kind) = V::parse_kind(reader)?;
        Ok(Self {
            age,
            options,
            key: LsaKey { kind, id: reader.address()?, router: reader.address()? },
            sequence: i32::from_be_bytes(reader.take()?),
            checksum: reader.u16()?,
            length: reader.u16()?,
        })
    }

    pub(super) fn emit(&self, out: &mut BytesMut) {
        out.put_u16(self.age);
        V::emit_kind(self.options, self.key.kind, out);
        out.put_slice(&self.key.id.octets());
        out.put_slice(&self.key.router.octets());
        out.put_i32(self.sequence);
        out.put_u16(self.checksum);
        out.put_u16(self.length);
    }

    /// Age in seconds, at most [`MAX_AGE`].
    #[must_use]
    pub fn age_seconds(&self) -> u16 {
        (self.age & !DO_NOT_AGE).min(MAX_AGE)
    }

    /// Which of two instances of one LSA is newer (section 13.1); `Greater` if `self` is.
    #[must_use]
    pub fn compare(&self, other: &Self) -> Ordering {
        let (mine, theirs) = (self.age_seconds(), other.age_seconds());
        self.sequence.cmp(&other.sequence).then(self.checksum.cmp(&other.checksum)).then_with(|| {
            match (mine == MAX_AGE, theirs == MAX_AGE) {
                (true, false) => Ordering::Greater,
                (false, true) => Ordering::Less,
                _ if mine.abs_diff(theirs) > MAX_AGE_DIFF => theirs.cmp(&mine),
                _ => Ordering::Equal,
            }
        })
    }
}

/// One LSA, kept byte for byte; serialised as those bytes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Lsa<V: Version> {
    /// The parsed header.
    pub header: LsaHeader<V>,
    bytes: Bytes,
}

impl<V: Version> Serialize for Lsa<V> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        hex::serialize(&self.bytes, serializer)
    }
}

impl<'de, V: Version> Deserialize<'de> for Lsa<V> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let mut bytes = Bytes::from(hex::deserialize(deserializer)?);
        Self::parse(&mut bytes).map_err(D::Error::custom)
    }
}

impl<V: Version> Lsa<V> {
    /// Takes one LSA off the front of `input`. The checksum is not judged here (see [`Lsa::verify`]).
    ///
    /// # Errors
    /// The header does not fit, or its length field is below a header or beyond the input.
    pub fn parse(input: &mut Bytes) -> Result<Self, ParseError> {
        let header = LsaHeader::parse(&mut Reader::new(input, "LSA header"))?;
        let length = usize::from(header.length);
        if length < LSA_HEADER_LEN || length > input.len() {
            return Err(ParseError::LsaLength { lsa: header.key.to_string(), length: header.length });
        }
        Ok(Self { header, bytes: input.split_to(length) })
    }

    /// Builds an instance of age 0 with length and checksum filled in.
    ///
    /// # Errors
    /// The body is longer than the length field can say.
    pub fn build(
        key: LsaKey<V>,
        options: V::LsaOptions,
        sequence: i32,
        body: &[u8],
    ) -> Result<Self, ParseError> {
        let length = u16::try_from(LSA_HEADER_LEN + body.len())
            .map_err(|_| ParseError::LsaLength { lsa: key.to_string(), length: u16::MAX })?;
        let mut header = LsaHeader { age: 0, options, key, sequence, checksum: 0, length };
        let mut bytes = BytesMut::with_capacity(usize::from(length));
        header.emit(&mut bytes);
        bytes.put_slice(body);
        header.checksum = checksum::fletcher(&bytes[2..]);
        bytes[16..18].copy_from_slice(&header.checksum.to_be_bytes());
        Ok(Self { header, bytes: bytes.freeze() })
    }

    /// Whether the Fletcher checksum holds (section 13, step 1).
    #[must_use]
    pub fn verify(&self) -> bool {
        checksum::fletcher_holds(&self.bytes[2..])
    }

    /// The body, behind the header.
    #[must_use]
    pub fn body(&self) -> &[u8] {
        &self.bytes[LSA_HEADER_LEN..]
    }

    /// The whole LSA as received.
    #[must_use]
    pub fn bytes(&self) -> &Bytes {
        &self.bytes
    }

    /// The same instance with another age in seconds; the checksum does not cover the age.
    #[must_use]
    pub fn with_age(&self, age: u16) -> Self {
        let mut bytes = BytesMut::from(&self.bytes[..]);
        bytes[..2].copy_from_slice(&age.to_be_bytes());
        Self { header: LsaHeader { age, ..self.header }, bytes: bytes.freeze() }
    }

    /// The same with a bit of one byte turned over, as memory may do it.
    #[cfg(test)]
    pub(crate) fn damaged(&self, at: usize) -> Self {
        let mut bytes = BytesMut::from(&self.bytes[..]);
        bytes[at] ^= 0x10;
        Self { header: self.header, bytes: bytes.freeze() }
    }

    /// Age in seconds once `held` has gone by since the instance came in.
    #[must_use]
    pub fn age_after(&self, held: Duration) -> u16 {
        let held = u16::try_from(held.as_secs()).unwrap_or(MAX_AGE);
        self.header.age_seconds().saturating_add(held).min(MAX_AGE)
    }
}

#[cfg(test)]
mod tests {
    use super::{super::*, *};
    use crate::packet::{Lsa, LsaHeader, LsaKey};

    fn header(age: u16, sequence: i32, checksum: u16) -> LsaHeader {
        let key = LsaKey { kind: ROUTER, id: Ipv4Addr::LOCALHOST, router: Ipv4Addr::LOCALHOST };
        LsaHeader { age, options: 0, key, sequence, checksum, length: 20 }
    }

    #[test]
    fn newer_is_decided_by_sequence_then_checksum_then_age() {
        use Ordering::{Equal, Greater, Less};
        let rows = [
            (header(0, 2, 0), header(0, 1, 9), Greater),
            (header(0, INITIAL_SEQUENCE, 0), header(0, MAX_SEQUENCE, 0), Less),
            (header(0, 1, 9), header(0, 1, 8), Greater),
            (header(MAX_AGE, 1, 1), header(3599, 1, 1), Greater),
            (header(0, 1, 1), header(901, 1, 1), Greater),
            (header(0, 1, 1), header(900, 1, 1), Equal),
            (header(MAX_AGE, 1, 1), header(MAX_AGE, 1, 1), Equal),
        ];
        for (left, right, expected) in rows {
            assert_eq!(left.compare(&right), expected, "{left:?} against {right:?}");
            assert_eq!(right.compare(&left), expected.reverse());
        }
    }

    #[test]
    fn built_lsa_verifies_and_ages_without_losing_its_checksum() {
        let key = LsaKey { kind: ROUTER, id: Ipv4Addr::LOCALHOST, router: Ipv4Addr::LOCALHOST };
        let lsa = Lsa::build(key, 2, INITIAL_SEQUENCE, &[0, 0, 0, 0]).expect("short");
        assert!(lsa.verify());
        let aged = lsa.with_age(77);
        assert!(aged.verify());
        assert_eq!(Lsa::parse(&mut aged.bytes().clone()), Ok(aged.clone()));
        assert_eq!(aged.age_after(Duration::from_secs(5000)), MAX_AGE);
    }
}
