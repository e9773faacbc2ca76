//! The formats of OSPFv3 (RFC 5340 appendix A) that version 2 does not share.

pub mod body;
mod kind;
mod prefix;
#[cfg(test)]
mod tests;

use std::net::{Ipv4Addr, Ipv6Addr};

use bytes::{BufMut, Bytes, BytesMut};

pub use self::{
    kind::{
        EXTERNAL, FloodingScope, GRACE, INTER_AREA_PREFIX, INTER_AREA_ROUTER, INTRA_AREA_PREFIX, LINK,
        LsType, NETWORK, NSSA, ROUTER,
    },
    prefix::{PREFIX_LA, PREFIX_NU, PREFIX_P, Prefix},
};
use super::{
    ParseError, checksum, lsa, message,
    reader::Reader,
    version::{Envelope, Greeting, Version},
};

/// OSPF for IPv6 (RFC 5340).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct V3;

/// Type, id and originator of an LSA.
pub type LsaKey = lsa::LsaKey<V3>;
/// The header of an LSA.
pub type LsaHeader = lsa::LsaHeader<V3>;
/// One LSA, kept byte for byte.
pub type Lsa = lsa::Lsa<V3>;
/// A database description.
pub type Description = message::Description<V3>;
/// The five packet types.
pub type Body = message::Body<V3>;

/// Length of the OSPF header in bytes.
pub const HEADER_LEN: usize = 16;
/// The version in every packet.
pub const VERSION: u8 = 3;
/// IPv6's number for OSPF, part of the checksum's pseudo-header.
const NEXT_HEADER: u8 = 89;

/// Option bit: takes part in IPv6 routing (section A.2).
pub const OPTION_V6: u32 = 0x01;
/// Option bit: an active router, which forwards (section A.2).
pub const OPTION_R: u32 = 0x10;

/// A Hello (section A.3.2).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Hello {
    /// Number of the sender's interface.
    pub interface_id: u32,
    /// Priority to become designated router; 0 is never.
    pub priority: u8,
    /// Option bits, 24 of them.
    pub options: u32,
    /// Seconds between Hellos.
    pub hello_interval: u16,
    /// Seconds of silence after which the sender declares a neighbour dead.
    pub dead_interval: u16,
    /// Router id of the designated router in the sender's view, or zero.
    pub dr: Ipv4Addr,
    /// Router id of the backup, or zero.
    pub bdr: Ipv4Addr,
    /// Router ids heard lately.
    pub neighbors: Vec<Ipv4Addr>,
}

impl From<Greeting> for Hello {
    fn from(greeting: Greeting) -> Self {
        let Greeting { mark, hello_interval, options, priority, dead_interval, dr, bdr, neighbors } =
            greeting;
        let dead_interval = u16::try_from(dead_interval).unwrap_or(u16::MAX);
        let (interface_id, options) = (mark, V3::options(options));
        Self { interface_id, priority, options, hello_interval, dead_interval, dr, bdr, neighbors }
    }
}

impl From<Hello> for Greeting {
    fn from(hello: Hello) -> Self {
        let Hello { interface_id, priority, options, hello_interval, dead_interval, dr, bdr, neighbors } =
            hello;
        let (mark, dead_interval) = (interface_id, u32::from(dead_interval));
        Self { mark, hello_interval, options, priority, dead_interval, dr, bdr, neighbors }
    }
}

/// A whole packet, behind the IPv6 header.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Packet {
    /// Router id of the sender.
    pub router: Ipv4Addr,
    /// Area of the link.
    pub area: Ipv4Addr,
    /// Which of several OSPF instances on the link (section 2.4).
    pub instance: u8,
    /// What it carries.
    pub body: Body,
}

impl Packet {
    /// Parses a packet that came from `source` to `destination`, checking version, length and checksum in
    /// this order. Bytes behind the header's length are ignored: an LLS block (RFC 5613) sits there.
    ///
    /// # Errors
    /// See [`ParseError`].
    pub fn parse(bytes: &Bytes, source: Ipv6Addr, destination: Ipv6Addr) -> Result<Self, ParseError> {
        Self::parse_with(bytes, |packet| checksum(packet, source, destination) == 0)
    }

    /// Parses a packet whose digest was verified; it has no checksum (RFC 7166 section 2.2).
    pub(crate) fn parse_authentic(bytes: &Bytes) -> Result<Self, ParseError> {
        Self::parse_with(bytes, |_| true)
    }

    fn parse_with(bytes: &Bytes, is_intact: impl Fn(&[u8]) -> bool) -> Result<Self, ParseError> {
        let mut reader = Reader::new(bytes, "header");
        let (version, kind, length) = (reader.u8()?, reader.u8()?, reader.u16()?);
        if version != VERSION {
            return Err(ParseError::Version { version, expected: VERSION });
        }
        let (router, area) = (reader.address()?, reader.address()?);
        reader.skip(2)?;
        let instance = reader.u8()?;
        reader.skip(1)?;
        let end = usize::from(length);
        if end < HEADER_LEN || end > bytes.len() {
            return Err(ParseError::Length { length, received: bytes.len() });
        }
        if !is_intact(&bytes[..end]) {
            return Err(ParseError::Checksum);
        }
        let body = Body::parse(kind, bytes.slice(HEADER_LEN..end))?;
        Ok(Self { router, area, instance, body })
    }

    /// The bytes of the packet on its way from `source` to `destination`.
    #[must_use]
    pub fn emit(&self, source: Ipv6Addr, destination: Ipv6Addr) -> Bytes {
        let mut out = BytesMut::with_capacity(256);
        out.put_u8(VERSION);
        out.put_u8(self.body.kind());
        out.put_u16(0);
        out.put_slice(&self.router.octets());
        out.put_slice(&self.area.octets());
        out.put_u16(0);
        out.put_u8(self.instance);
        out.put_u8(0);
        self.body.emit(&mut out);
        let length = u16::try_from(out.len()).expect("invariant: packets are built to fit a datagram");
        out[2..4].copy_from_slice(&length.to_be_bytes());
        let sum = checksum(&out, source, destination);
        out[12..14].copy_from_slice(&sum.to_be_bytes());
        out.freeze()
    }
}

/// The checksum of a packet with the pseudo-header of IPv6 (section A.3.1, RFC 8200 section 8.1); zero over
/// a packet whose checksum holds.
fn checksum(packet: &[u8], source: Ipv6Addr, destination: Ipv6Addr) -> u16 {
    let length = u32::try_from(packet.len()).unwrap_or(u32::MAX).to_be_bytes();
    let tail = [0, 0, 0, NEXT_HEADER];
    checksum::internet(&[&source.octets(), &destination.octets(), &length, &tail, packet])
}

/// A packet of any type with any content, and a right checksum.
#[cfg(test)]
pub(crate) fn sealed(
    kind: u8,
    router: Ipv4Addr,
    content: &[u8],
    source: Ipv6Addr,
    destination: Ipv6Addr,
) -> Vec<u8> {
    let mut bytes = vec![VERSION, kind, 0, 0];
    bytes.extend(router.octets());
    bytes.resize(HEADER_LEN, 0);
    bytes.extend(content);
    let length = u16::try_from(bytes.len()).expect("short");
    bytes[2..4].copy_from_slice(&length.to_be_bytes());
    let sum = checksum(&bytes, source, destination);
    bytes[12..14].copy_from_slice(&sum.to_be_bytes());
    bytes
}

impl Version for V3 {
    const NUMBER: u8 = VERSION;
    const HEADER_LEN: usize = HEADER_LEN;
    const DESCRIPTION_LEN: usize = 12;
    type Address = Ipv6Addr;
    type Kind = LsType;
    type Options = u32;
    type LsaOptions = ();
    type Hello = Hello;

    fn open(
        payload: &Bytes,
        source: Ipv6Addr,
        destination: Ipv6Addr,
    ) -> Result<(Envelope, Body), ParseError> {
        let Packet { router, area, instance, body } = Packet::parse(payload, source, destination)?;
        Ok((Envelope { router, area, instance }, body))
    }

    fn seal(envelope: Envelope, body: Body, source: Ipv6Addr, destination: Ipv6Addr) -> Bytes {
        let Envelope { router, area, instance } = envelope;
        Packet { router, area, instance, body }.emit(source, destination)
    }

    fn options(bits: u32) -> u32 {
        bits & 0x00ff_ffff
    }

    fn requested_kind(field: u32) -> LsType {
        let [_, _, high, low] = field.to_be_bytes(); // the first two are reserved
        LsType(u16::from_be_bytes([high, low]))
    }

    fn parse_kind(reader: &mut Reader<'_>) -> Result<((), LsType), ParseError> {
        Ok(((), LsType(reader.u16()?)))
    }

    fn emit_kind((): (), kind: LsType, out: &mut BytesMut) {
        out.put_u16(kind.0);
    }

    fn parse_hello(bytes: &[u8]) -> Result<Hello, ParseError> {
        let mut reader = Reader::new(bytes, "hello");
        let (interface_id, priority, options) = (reader.u32()?, reader.u8()?, reader.u24()?);
        Ok(Hello {
            interface_id,
            priority,
            options,
            hello_interval: reader.u16()?,
            dead_interval: reader.u16()?,
            dr: reader.address()?,
            bdr: reader.address()?,
            neighbors: reader.addresses()?,
        })
    }

    fn emit_hello(hello: &Hello, out: &mut BytesMut) {
        out.put_u32(hello.interface_id);
        out.put_u8(hello.priority);
        put_u24(out, hello.options);
        out.put_u16(hello.hello_interval);
        out.put_u16(hello.dead_interval);
        out.put_slice(&hello.dr.octets());
        out.put_slice(&hello.bdr.octets());
        for neighbor in &hello.neighbors {
            out.put_slice(&neighbor.octets());
        }
    }

    fn parse_description(reader: &mut Reader<'_>) -> Result<Description, ParseError> {
        reader.skip(1)?;
        let (options, mtu) = (reader.u24()?, reader.u16()?);
        reader.skip(1)?;
        let (flags, sequence) = (reader.u8()?, reader.u32()?);
        Ok(Description { mtu, options, flags, sequence, headers: Vec::new() })
    }

    fn emit_description(description: &Description, out: &mut BytesMut) {
        out.put_u8(0);
        put_u24(out, description.options);
        out.put_u16(description.mtu);
        out.put_u8(0);
        out.put_u8(description.flags);
        out.put_u32(description.sequence);
    }
}

/// The low 24 bits of `value`.
fn put_u24(out: &mut BytesMut, value: u32) {
    out.put_slice(&value.to_be_bytes()[1..]);
}
