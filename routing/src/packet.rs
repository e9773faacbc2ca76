//! The packet formats of OSPFv2 (RFC 2328 appendix A) and OSPFv3 (RFC 5340 appendix A): `parse` and `emit`
//! are each other's inverse, and nothing here knows about state or time.
//!
//! [`wire`] is what the versions share, generic over [`wire::Version`]; [`v3`] is what version 3 has of its
//! own. The names at the root are version 2's.

pub mod checksum;
pub mod grace;
mod lsa;
mod message;
mod reader;
#[cfg(test)]
pub(crate) mod tests;
mod v2;
pub mod v3;
mod version;

pub use self::{
    lsa::{INITIAL_SEQUENCE, LSA_HEADER_LEN, MAX_AGE, MAX_SEQUENCE},
    v2::{
        Body, Description, EXTERNAL, HEADER_LEN, Hello, Lsa, LsaHeader, LsaKey, NETWORK, NSSA, OPAQUE_AREA,
        OPAQUE_AS, OPAQUE_LINK, OPTION_O, Packet, ROUTER, SUMMARY_ASBR, SUMMARY_NETWORK, V2, VERSION,
        body::{
            ExternalBody, FLAG_BORDER, FLAG_EXTERNAL, LS_INFINITY, LinkKind, LsaBody, MAX_LINK_METRIC,
            NetworkBody, RouterBody, RouterLink, SummaryBody,
        },
    },
};

/// What both versions have in common, generic over [`Version`](wire::Version).
pub mod wire {
    pub use super::{
        lsa::{Lsa, LsaHeader, LsaKey},
        message::{Body, Description},
        version::{Address, Envelope, Greeting, LsKind, Version},
    };
}

/// Option bit: external routing capability; the same in both versions (RFC 2328 section A.2, RFC 5340 section A.2).
pub const OPTION_E: u8 = 0x02;
/// Option bit: NSSA capability, the same in both versions (RFC 3101, RFC 5340 section A.2).
pub const OPTION_NP: u8 = 0x08;
/// Database description flag: master.
pub const DD_MASTER: u8 = 0x01;
/// Database description flag: more to follow.
pub const DD_MORE: u8 = 0x02;
/// Database description flag: first packet.
pub const DD_INIT: u8 = 0x04;

/// Why bytes are not a packet, or an LSA in a packet is not one.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ParseError {
    /// The bytes end inside a field.
    #[error("{what} is cut short")]
    Short {
        /// The structure that did not fit.
        what: &'static str,
    },
    /// Another protocol version.
    #[error("version {version} instead of {expected}")]
    Version {
        /// The version in the packet.
        version: u8,
        /// The version spoken here.
        expected: u8,
    },
    /// A length field that does not fit the packet.
    #[error("length field says {length}, received {received} bytes")]
    Length {
        /// What the header says.
        length: u16,
        /// What came.
        received: usize,
    },
    /// The checksum of the packet is wrong.
    #[error("wrong packet checksum")]
    Checksum,
    /// A packet type that does not exist.
    #[error("unknown packet type {kind}")]
    Type {
        /// The type in the packet.
        kind: u8,
    },
    /// An authentication type that is not in use here.
    #[error("authentication type {kind}, expected none (0)")]
    Authentication {
        /// The type in the packet.
        kind: u16,
    },
    /// An LSA whose length field does not fit.
    #[error("LSA {lsa} has an impossible length of {length}")]
    LsaLength {
        /// The LSA.
        lsa: String,
        /// Its length field.
        length: u16,
    },
    /// An LSA type that is not known.
    #[error("unknown LSA type {kind}")]
    LsaType {
        /// The type in the LSA.
        kind: u16,
    },
    /// An IPv6 prefix of more than 128 bits.
    #[error("prefix length {length} is above 128")]
    PrefixLength {
        /// The length in the LSA.
        length: u8,
    },
}

#[cfg(test)]
use {bytes::Bytes, std::net::Ipv4Addr};
