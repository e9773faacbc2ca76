//! The packet formats of OSPFv2 (RFC 2328 appendix A): `parse` and `emit` are each other's inverse, and
//! nothing here knows about state or time.

mod body;
pub mod checksum;
mod lsa;
mod reader;
#[cfg(test)]
mod tests;

use std::net::Ipv4Addr;

use bytes::{BufMut, Bytes, BytesMut};

use self::reader::Reader;
pub use self::{
    body::{
        ExternalBody, FLAG_BORDER, FLAG_EXTERNAL, LS_INFINITY, LinkKind, LsaBody, MAX_LINK_METRIC,
        NetworkBody, RouterBody, RouterLink, SummaryBody,
    },
    lsa::{
        EXTERNAL, INITIAL_SEQUENCE, LSA_HEADER_LEN, Lsa, LsaHeader, LsaKey, MAX_AGE, MAX_SEQUENCE, NETWORK,
        OPAQUE_AREA, OPAQUE_AS, OPAQUE_LINK, ROUTER, SUMMARY_ASBR, SUMMARY_NETWORK,
    },
};

/// Length of the OSPF header in bytes.
pub const HEADER_LEN: usize = 24;
/// The protocol version spoken here.
pub const VERSION: u8 = 2;

/// Option bit: external routing capability (section A.2).
pub const OPTION_E: u8 = 0x02;
/// Option bit: NSSA capability (RFC 3101).
pub const OPTION_NP: u8 = 0x08;
/// Option bit: opaque LSAs (RFC 5250); meaningful in database descriptions only.
pub const OPTION_O: u8 = 0x40;

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
    #[error("version {version} instead of 2")]
    Version {
        /// The version in the packet.
        version: u8,
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
    #[error("LSA {key} has an impossible length of {length}")]
    LsaLength {
        /// The LSA.
        key: LsaKey,
        /// Its length field.
        length: u16,
    },
    /// An LSA type that is not known.
    #[error("unknown LSA type {kind}")]
    LsaType {
        /// The type in the LSA.
        kind: u8,
    },
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

/// A database description (section A.3.3).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Description {
    /// Largest IP datagram the sender's interface takes, in bytes.
    pub mtu: u16,
    /// Option bits.
    pub options: u8,
    /// [`DD_INIT`], [`DD_MORE`] and [`DD_MASTER`].
    pub flags: u8,
    /// Sequence number of the exchange.
    pub sequence: u32,
    /// Headers of LSAs that the sender holds.
    pub headers: Vec<LsaHeader>,
}

/// The five packet types.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Body {
    /// Type 1.
    Hello(Hello),
    /// Type 2.
    Description(Description),
    /// Type 3: the LSAs asked for. A type that does not fit a byte becomes 0, which nobody holds.
    Request(Vec<LsaKey>),
    /// Type 4.
    Update(Vec<Lsa>),
    /// Type 5.
    Ack(Vec<LsaHeader>),
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
        let mut reader = Reader::new(bytes, "header");
        let (version, kind, length) = (reader.u8()?, reader.u8()?, reader.u16()?);
        if version != VERSION {
            return Err(ParseError::Version { version });
        }
        let (router, area) = (reader.address()?, reader.address()?);
        reader.skip(2)?;
        let authentication = reader.u16()?;
        reader.skip(8)?;
        let end = usize::from(length);
        if end < HEADER_LEN || end > bytes.len() {
            return Err(ParseError::Length { length, received: bytes.len() });
        }
        if authentication != 0 {
            return Err(ParseError::Authentication { kind: authentication });
        }
        if checksum::internet(&[&bytes[..16], &bytes[HEADER_LEN..end]]) != 0 {
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

impl Body {
    fn kind(&self) -> u8 {
        match self {
            Self::Hello(_) => 1,
            Self::Description(_) => 2,
            Self::Request(_) => 3,
            Self::Update(_) => 4,
            Self::Ack(_) => 5,
        }
    }

    fn parse(kind: u8, bytes: Bytes) -> Result<Self, ParseError> {
        match kind {
            1 => Hello::parse(&bytes).map(Self::Hello),
            2 => Description::parse(&bytes).map(Self::Description),
            3 => parse_request(&bytes).map(Self::Request),
            4 => parse_update(bytes).map(Self::Update),
            5 => parse_headers(&mut Reader::new(&bytes, "acknowledgement")).map(Self::Ack),
            _ => Err(ParseError::Type { kind }),
        }
    }

    fn emit(&self, out: &mut BytesMut) {
        match self {
            Self::Hello(hello) => hello.emit(out),
            Self::Description(description) => description.emit(out),
            Self::Request(keys) => {
                for key in keys {
                    out.put_u32(u32::from(key.kind));
                    out.put_slice(&key.id.octets());
                    out.put_slice(&key.router.octets());
                }
            }
            Self::Update(lsas) => {
                out.put_u32(u32::try_from(lsas.len()).unwrap_or(u32::MAX));
                for lsa in lsas {
                    out.put_slice(lsa.bytes());
                }
            }
            Self::Ack(headers) => headers.iter().for_each(|header| header.emit(out)),
        }
    }
}

impl Hello {
    fn parse(bytes: &[u8]) -> Result<Self, ParseError> {
        let mut reader = Reader::new(bytes, "hello");
        let mut hello = Self {
            mask: reader.address()?,
            hello_interval: reader.u16()?,
            options: reader.u8()?,
            priority: reader.u8()?,
            dead_interval: reader.u32()?,
            dr: reader.address()?,
            bdr: reader.address()?,
            neighbors: Vec::new(),
        };
        while !reader.is_empty() {
            hello.neighbors.push(reader.address()?);
        }
        Ok(hello)
    }

    fn emit(&self, out: &mut BytesMut) {
        out.put_slice(&self.mask.octets());
        out.put_u16(self.hello_interval);
        out.put_u8(self.options);
        out.put_u8(self.priority);
        out.put_u32(self.dead_interval);
        out.put_slice(&self.dr.octets());
        out.put_slice(&self.bdr.octets());
        for neighbor in &self.neighbors {
            out.put_slice(&neighbor.octets());
        }
    }
}

impl Description {
    fn parse(bytes: &[u8]) -> Result<Self, ParseError> {
        let mut reader = Reader::new(bytes, "database description");
        let (mtu, options, flags, sequence) = (reader.u16()?, reader.u8()?, reader.u8()?, reader.u32()?);
        Ok(Self { mtu, options, flags, sequence, headers: parse_headers(&mut reader)? })
    }

    fn emit(&self, out: &mut BytesMut) {
        out.put_u16(self.mtu);
        out.put_u8(self.options);
        out.put_u8(self.flags);
        out.put_u32(self.sequence);
        self.headers.iter().for_each(|header| header.emit(out));
    }
}

fn parse_headers(reader: &mut Reader<'_>) -> Result<Vec<LsaHeader>, ParseError> {
    let mut headers = Vec::new();
    while !reader.is_empty() {
        headers.push(LsaHeader::parse(reader)?);
    }
    Ok(headers)
}

fn parse_request(bytes: &[u8]) -> Result<Vec<LsaKey>, ParseError> {
    let mut reader = Reader::new(bytes, "request");
    let mut keys = Vec::new();
    while !reader.is_empty() {
        let kind = u8::try_from(reader.u32()?).unwrap_or(0);
        keys.push(LsaKey { kind, id: reader.address()?, router: reader.address()? });
    }
    Ok(keys)
}

fn parse_update(mut bytes: Bytes) -> Result<Vec<Lsa>, ParseError> {
    let count = Reader::new(&bytes, "update").u32()?;
    let mut lsas = Vec::new();
    bytes = bytes.slice(4..);
    for _ in 0..count {
        lsas.push(Lsa::parse(&mut bytes)?);
    }
    if bytes.is_empty() { Ok(lsas) } else { Err(ParseError::Short { what: "update's count of LSAs" }) }
}
