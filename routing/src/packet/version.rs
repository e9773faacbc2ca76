//! The seam between the two versions as far as bytes go: what RFC 5340 changed of RFC 2328's formats. All
//! that is the same stands once, in the modules beside this one, generic over [`Version`].

use std::{
    fmt,
    hash::Hash,
    net::{IpAddr, Ipv4Addr},
};

use bytes::{Bytes, BytesMut};
use serde::{Serialize, de::DeserializeOwned};

use super::{
    ParseError,
    message::{Body, Description},
    reader::Reader,
};

/// An address of the version's IP family.
pub trait Address:
    Copy + fmt::Debug + fmt::Display + Eq + Ord + Hash + Into<IpAddr> + Serialize + DeserializeOwned + Send + Sync
{
}

impl<T> Address for T where
    T: Copy
        + fmt::Debug
        + fmt::Display
        + Eq
        + Ord
        + Hash
        + Into<IpAddr>
        + Serialize
        + DeserializeOwned
        + Send
        + Sync
{
}

/// An LS type as its version writes it.
pub trait LsKind:
    Copy + fmt::Debug + fmt::Display + Eq + Ord + Hash + Into<u16> + Serialize + DeserializeOwned + Send + Sync
{
}

impl<T> LsKind for T where
    T: Copy
        + fmt::Debug
        + fmt::Display
        + Eq
        + Ord
        + Hash
        + Into<u16>
        + Serialize
        + DeserializeOwned
        + Send
        + Sync
{
}

/// Who sends a packet, and as which of the OSPF instances on the link.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Envelope {
    /// Router id of the sender.
    pub router: Ipv4Addr,
    /// Area of the link.
    pub area: Ipv4Addr,
    /// Instance id (RFC 5340 section 2.4); version 2 has none and says 0.
    pub instance: u8,
}

/// A Hello as the protocol machine sees it, in either version.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Greeting {
    /// What identifies the sender's end of the link: in version 2 its network mask, in version 3 its
    /// interface id.
    pub mark: u32,
    /// Seconds between Hellos.
    pub hello_interval: u16,
    /// Option bits.
    pub options: u32,
    /// Priority to become designated router; 0 is never.
    pub priority: u8,
    /// Seconds of silence after which the sender declares a neighbour dead.
    pub dead_interval: u32,
    /// The designated router in the sender's view, or zero: in version 2 by interface address, in version 3
    /// by router id.
    pub dr: Ipv4Addr,
    /// The backup, likewise.
    pub bdr: Ipv4Addr,
    /// Router ids heard lately.
    pub neighbors: Vec<Ipv4Addr>,
}

/// One version of OSPF on the wire.
pub trait Version: Copy + fmt::Debug + Default + Ord + Hash + Send + Sync + 'static {
    /// The number in the first byte of every packet.
    const NUMBER: u8;
    /// Length of the packet header in bytes.
    const HEADER_LEN: usize;
    /// Bytes of a database description before its LSA headers.
    const DESCRIPTION_LEN: usize;
    /// Addresses of IP packets.
    type Address: Address;
    /// LS types.
    type Kind: LsKind;
    /// Option bits of a Hello or a database description: 8 or 24 of them.
    type Options: Copy + fmt::Debug + Eq + Into<u32> + Serialize + DeserializeOwned + Send + Sync;
    /// Option bits in the header of an LSA: version 3 has none there.
    type LsaOptions: Copy + fmt::Debug + Eq + Serialize + DeserializeOwned + Send + Sync;
    /// The Hello of this version.
    type Hello: Clone + fmt::Debug + Eq + From<Greeting> + Into<Greeting> + Send + Sync;

    /// Parses a packet that came from `source` to `destination`.
    ///
    /// # Errors
    /// See [`ParseError`].
    fn open(
        payload: &Bytes,
        source: Self::Address,
        destination: Self::Address,
    ) -> Result<(Envelope, Body<Self>), ParseError>;

    /// The bytes of a packet that goes from `source` to `destination`.
    fn seal(envelope: Envelope, body: Body<Self>, source: Self::Address, destination: Self::Address)
    -> Bytes;

    /// Option bits as this version writes them; those that do not fit are lost.
    fn options(bits: u32) -> Self::Options;

    /// The LS type in a request; one that cannot be becomes 0, which nobody holds.
    fn requested_kind(field: u32) -> Self::Kind;

    /// The two bytes of an LSA header that follow the age.
    ///
    /// # Errors
    /// The bytes end.
    fn parse_kind(reader: &mut Reader<'_>) -> Result<(Self::LsaOptions, Self::Kind), ParseError>;

    /// The inverse of [`Version::parse_kind`].
    fn emit_kind(options: Self::LsaOptions, kind: Self::Kind, out: &mut BytesMut);

    /// A Hello behind the packet header.
    ///
    /// # Errors
    /// The bytes end.
    fn parse_hello(bytes: &[u8]) -> Result<Self::Hello, ParseError>;

    /// The inverse of [`Version::parse_hello`].
    fn emit_hello(hello: &Self::Hello, out: &mut BytesMut);

    /// The fields of a database description before its LSA headers.
    ///
    /// # Errors
    /// The bytes end.
    fn parse_description(reader: &mut Reader<'_>) -> Result<Description<Self>, ParseError>;

    /// The inverse of [`Version::parse_description`].
    fn emit_description(description: &Description<Self>, out: &mut BytesMut);
}
