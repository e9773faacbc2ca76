//! The formats of OSPFv2 (RFC 2328 appendix A) that version 3 does not share.

pub(super) mod body;

use std::net::Ipv4Addr;

use bytes::{BufMut, Bytes, BytesMut};

use super::{
    ParseError, checksum, lsa, message,
    reader::Reader,
    version::{Envelope, Greeting, Version},
};

/// OSPF for IPv4 (RFC 2328).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct V2;

/// Type, id and originator of an LSA.
pub type LsaKey = lsa::LsaKey<V2>;
/// The header of an LSA.
pub type LsaHeader = lsa::LsaHeader<V2>;
/// One LSA, kept byte for byte.
pub type Lsa = lsa::Lsa<V2>;
/// A database description.
pub type Description = message::Description<V2>;
/// The five packet types.
pub type Body = message::Body<V2>;

/// Length of the OSPF header in bytes.
pub const HEADER_LEN: usize = 24;
/// The protocol version spoken here.
pub const VERSION: u8 = 2;
/// Option bit: opaque LSAs (RFC 5250); meaningful in database descriptions only.
pub const OPTION_O: u8 = 0x40;

/// LS type of a Router-LSA.
pub const ROUTER: u8 = 1;
/// LS type of a Network-LSA.
pub const NETWORK: u8 = 2;
/// LS type of a Summary-LSA that describes a network.
pub const SUMMARY_NETWORK: u8 = 3;
/// LS type of a Summary-LSA that describes an AS boundary router.
pub const SUMMARY_ASBR: u8 = 4;
/// LS type of an AS-external-LSA.
pub const EXTERNAL: u8 = 5;
/// LS type of an NSSA-LSA: an external destination, known in its NSSA (RFC 3101).
pub const NSSA: u8 = 7;
/// LS type of an opaque LSA of link scope (RFC 5250).
pub const OPAQUE_LINK: u8 = 9;
/// LS type of an opaque LSA of area scope (RFC 5250).
pub const OPAQUE_AREA: u8 = 10;
/// LS type of an opaque LSA of AS scope (RFC 5250).
pub const OPAQUE_AS: u8 = 11;

impl LsaKey {
    /// Whether the LSA is a Grace-LSA (RFC 3623 appendix A): opaque type 3 of a link.
    #[must_use]
    pub fn is_grace(&self) -> bool {
        self.kind == OPAQUE_LINK && self.id.octets()[0] == 3
    }

    /// Whether the LSA is of one of the opaque types.
    #[must_use]
    pub fn is_opaque(&self) -> bool {
        matches!(self.kind, OPAQUE_LINK | OPAQUE_AREA | OPAQUE_AS)
    }
}

/// A Hello (section A.3.2).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Hello {
    /// Mask of the sender's interface.
    pub mask: Ipv4Addr,
    /// Seconds between Hellos.
    pub hello_interval: u16,
    /// Option bits.
    pub options: u8,
    /// Priority to become designated router; 0 is never.
    pub priority: u8,
    /// Seconds of silence after which the sender declares a neighbour dead.
    pub dead_interval: u32,
    /// Interface address of the designated router in the sender's view, or zero.
    pub dr: Ipv4Addr,
    /// Interface address of the backup, or zero.
    pub bdr: Ipv4Addr,
    /// Router ids heard lately.
    pub neighbors: Vec<Ipv4Addr>,
}

impl From<Greeting> for Hello {
    fn from(greeting: Greeting) -> Self {
        let Greeting { mark, hello_interval, options, priority, dead_interval, dr, bdr, neighbors } =
            greeting;
        let (mask, options) = (Ipv4Addr::from(mark), V2::options(options));
        Self { mask, hello_interval, options, priority, dead_interval, dr, bdr, neighbors }
    }
}

impl From<Hello> for Greeting {
    fn from(hello: Hello) -> Self {
        let Hello { mask, hello_interval, options, priority, dead_interval, dr, bdr, neighbors } = hello;
        let (mark, options) = (u32::from(mask), u32::from(options));
        Self { mark, hello_interval, options, priority, dead_interval, dr, bdr, neighbors }
    }
}

/// A whole packet, behind the IP header.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Packet {
    /// Router id of the sender.
    pub router: Ipv4Addr,
    /// Area of the link.
    pub area: Ipv4Addr,
    /// What it carries.
    pub body: Body,
}

impl Packet {
    /// Parses a packet, checking version, length, checksum and authentication type in this order
    /// (section 8.2). Bytes behind the header's length are ignored: an LLS block (RFC 5613) sits there.
    ///
    /// # Errors
    /// See [`ParseError`].
    pub fn parse(bytes: &Bytes) -> Result<Self, ParseError> {
        Self::parse_with(bytes, |authentication| match authentication {
            0 => Ok(true),
            kind => Err(ParseError::Authentication { kind }),
        })
    }

    /// Parses a packet whose authentication was verified. With a digest (type 2) there is no checksum
    /// (section D.4.3).
    pub(crate) fn parse_authentic(bytes: &Bytes) -> Result<Self, ParseError> {
        Self::parse_with(bytes, |authentication| Ok(authentication != 2))
    }

    /// `has_checksum` judges the authentication type.
    fn parse_with(
        bytes: &Bytes,
        has_checksum: impl Fn(u16) -> Result<bool, ParseError>,
    ) -> Result<Self, ParseError> {
        let mut reader = Reader::new(bytes, "header");
        let (version, kind, length) = (reader.u8()?, reader.u8()?, reader.u16()?);
        if version != VERSION {
            return Err(ParseError::Version { version, expected: VERSION });
        }
        let (router, area) = (reader.address()?, reader.address()?);
        reader.skip(2)?;
        let authentication = reader.u16()?;
        reader.skip(8)?;
        let end = usize::from(length);
        if end < HEADER_LEN || end > bytes.len() {
            return Err(ParseError::Length { length, received: bytes.len() });
        }
        let has_checksum = has_checksum(authentication)?;
        if has_checksum && checksum::internet(&[&bytes[..16], &bytes[HEADER_LEN..end]]) != 0 {
            return Err(ParseError::Checksum);
        }
        let body = Body::parse(kind, bytes.slice(HEADER_LEN..end))?;
        Ok(Self { router, area, body })
    }

    /// The bytes of the packet, with null authentication.
    #[must_use]
    pub fn emit(&self) -> Bytes {
        let mut out = BytesMut::with_capacity(256);
        out.put_u8(VERSION);
        out.put_u8(self.body.kind());
        out.put_u16(0);
        out.put_slice(&self.router.octets());
        out.put_slice(&self.area.octets());
        out.put_bytes(0, 12);
        self.body.emit(&mut out);
        let length = u16::try_from(out.len()).expect("invariant: packets are built to fit a datagram");
        out[2..4].copy_from_slice(&length.to_be_bytes());
        let sum = checksum::internet(&[&out[..16], &out[HEADER_LEN..]]);
        out[12..14].copy_from_slice(&sum.to_be_bytes());
        out.freeze()
    }
}

impl Version for V2 {
    const NUMBER: u8 = VERSION;
    const HEADER_LEN: usize = HEADER_LEN;
    const DESCRIPTION_LEN: usize = 8;
    type Address = Ipv4Addr;
    type Kind = u8;
    type Options = u8;
    type LsaOptions = u8;
    type Hello = Hello;

    fn open(payload: &Bytes, _: Ipv4Addr, _: Ipv4Addr) -> Result<(Envelope, Body), ParseError> {
        let Packet { router, area, body } = Packet::parse(payload)?;
        Ok((Envelope { router, area, instance: 0 }, body))
    }

    fn seal(envelope: Envelope, body: Body, _: Ipv4Addr, _: Ipv4Addr) -> Bytes {
        Packet { router: envelope.router, area: envelope.area, body }.emit()
    }

    fn options(bits: u32) -> u8 {
        bits.to_be_bytes()[3]
    }

    fn requested_kind(field: u32) -> u8 {
        u8::try_from(field).unwrap_or(0)
    }

    fn parse_kind(reader: &mut Reader<'_>) -> Result<(u8, u8), ParseError> {
        Ok((reader.u8()?, reader.u8()?))
    }

    fn emit_kind(options: u8, kind: u8, out: &mut BytesMut) {
        out.put_u8(options);
        out.put_u8(kind);
    }

    fn parse_hello(bytes: &[u8]) -> Result<Hello, ParseError> {
        let mut reader = Reader::new(bytes, "hello");
        Ok(Hello {
            mask: reader.address()?,
            hello_interval: reader.u16()?,
            options: reader.u8()?,
            priority: reader.u8()?,
            dead_interval: reader.u32()?,
            dr: reader.address()?,
            bdr: reader.address()?,
            neighbors: reader.addresses()?,
        })
    }

    fn emit_hello(hello: &Hello, out: &mut BytesMut) {
        out.put_slice(&hello.mask.octets());
        out.put_u16(hello.hello_interval);
        out.put_u8(hello.options);
        out.put_u8(hello.priority);
        out.put_u32(hello.dead_interval);
        out.put_slice(&hello.dr.octets());
        out.put_slice(&hello.bdr.octets());
        for neighbor in &hello.neighbors {
            out.put_slice(&neighbor.octets());
        }
    }

    fn parse_description(reader: &mut Reader<'_>) -> Result<Description, ParseError> {
        let (mtu, options, flags, sequence) = (reader.u16()?, reader.u8()?, reader.u8()?, reader.u32()?);
        Ok(Description { mtu, options, flags, sequence, headers: Vec::new() })
    }

    fn emit_description(description: &Description, out: &mut BytesMut) {
        out.put_u16(description.mtu);
        out.put_u8(description.options);
        out.put_u8(description.flags);
        out.put_u32(description.sequence);
    }
}
