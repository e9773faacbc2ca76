//! The seam between the versions as far as authentication goes: what a packet says of it, and where it puts
//! a digest.

use std::ops::Range;

use bytes::{Bytes, BytesMut};

use super::{Algorithm, Number};
use crate::packet::{
    ParseError,
    wire::{Body, Envelope, Version},
};

/// What a packet says about its authentication. Nothing of it is verified.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Claim {
    /// None.
    None,
    /// A password, padded with zeros.
    Simple([u8; 8]),
    /// A digest.
    Keyed {
        /// Key id or SA id.
        id: u16,
        /// Cryptographic sequence number.
        sequence: u64,
        /// Where the digest is. It covers everything before it.
        digest: Range<usize>,
        /// The packet type.
        kind: u8,
    },
    /// A type that does not exist.
    Unknown {
        /// The number in the packet.
        kind: u16,
    },
}

impl Claim {
    /// The type in words, with its number in OSPFv2 packets.
    pub(super) fn says(&self) -> String {
        match self {
            Self::None => "none (0)".into(),
            Self::Simple(_) => "simple password (1)".into(),
            Self::Keyed { .. } => "keyed digest (2)".into(),
            Self::Unknown { kind } => format!("an unknown type ({kind})"),
        }
    }
}

/// How one version authenticates.
pub trait Authenticated: Version {
    /// What is appended to a secret before use: the protocol's id in version 3 (RFC 7166 section 4.5), in
    /// network byte order.
    const PROTOCOL_ID: Option<[u8; 2]>;
    /// A sequence number that was heard before is refused.
    const STRICT: bool;

    /// Where a password is in a packet; none if the version knows no passwords.
    const PASSWORD: Option<Range<usize>>;

    /// Bytes that a digest adds to a packet.
    fn overhead(algorithm: Algorithm) -> usize;

    /// Packet types with the same lane share a sequence of numbers.
    fn lane(kind: u8) -> usize;

    /// The packet with a password in it; none if the version knows no passwords.
    fn with_password(packet: &[u8], password: &[u8]) -> Option<Bytes>;

    /// The packet as far as a digest covers it, which is to follow directly.
    fn with_claim(packet: &[u8], id: u8, algorithm: Algorithm, number: Number) -> BytesMut;

    /// What stands in the place of the digest while it is computed.
    fn pad(algorithm: Algorithm, source: Self::Address) -> Vec<u8>;

    /// What the packet says. `keyed` is whether keys are in use here: some packets of version 3 do not say
    /// themselves whether a trailer follows.
    ///
    /// # Errors
    /// The header, or what it announces, is cut short or of another version.
    fn claim(payload: &[u8], keyed: bool) -> Result<Claim, ParseError>;

    /// How many bytes from the first a packet consists of and its claim is read from. Digests that do not count are
    /// behind it, whoever they are for; without them the claim is the same.
    fn read_by_claim(payload: &[u8], keyed: bool) -> usize;

    /// Parses a packet whose password or digest is right. A checksum that the authentication replaces is not
    /// looked at.
    ///
    /// # Errors
    /// See [`ParseError`].
    fn open_authentic(
        payload: &Bytes,
        source: Self::Address,
        destination: Self::Address,
    ) -> Result<(Envelope, Body<Self>), ParseError>;
}
