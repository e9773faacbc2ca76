//! What packets carry (RFC 2328 section A.3, RFC 5340 section A.3), generic over the version.

use bytes::{BufMut, Bytes, BytesMut};
use serde::{Deserialize, Serialize};

use super::{
    ParseError,
    lsa::{Lsa, LsaHeader, LsaKey},
    reader::Reader,
    version::Version,
};

/// A database description (RFC 2328 section A.3.3, RFC 5340 section A.3.3).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(bound = "")]
pub struct Description<V: Version> {
    /// Largest IP datagram the sender's interface takes, in bytes.
    pub mtu: u16,
    /// Option bits.
    pub options: V::Options,
    /// [`DD_INIT`](super::DD_INIT), [`DD_MORE`](super::DD_MORE) and [`DD_MASTER`](super::DD_MASTER).
    pub flags: u8,
    /// Sequence number of the exchange.
    pub sequence: u32,
    /// Headers of LSAs that the sender holds.
    pub headers: Vec<LsaHeader<V>>,
}

/// The five packet types.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Body<V: Version> {
    /// Type 1.
    Hello(V::Hello),
    /// Type 2.
    Description(Description<V>),
    /// Type 3: the LSAs asked for. A type that cannot be becomes 0, which nobody holds.
    Request(Vec<LsaKey<V>>),
    /// Type 4.
    Update(Vec<Lsa<V>>),
    /// Type 5.
    Ack(Vec<LsaHeader<V>>),
}

impl<V: Version> Body<V> {
    /// The packet type.
    pub(super) fn kind(&self) -> u8 {
        match self {
            Self::Hello(_) => 1,
            Self::Description(_) => 2,
            Self::Request(_) => 3,
            Self::Update(_) => 4,
            Self::Ack(_) => 5,
        }
    }

    /// Parses what follows the packet header.
    pub(super) fn parse(kind: u8, bytes: Bytes) -> Result<Self, ParseError> {
        match kind {
            1 => V::parse_hello(&bytes).map(Self::Hello),
            2 => Description::parse(&bytes).map(Self::Description),
            3 => parse_request(&bytes).map(Self::Request),
            4 => parse_update(bytes).map(Self::Update),
            5 => parse_headers(&mut Reader::new(&bytes, "acknowledgement")).map(Self::Ack),
            _ => Err(ParseError::Type { kind }),
        }
    }

    /// The inverse of [`Body::parse`].
    pub(super) fn emit(&self, out: &mut BytesMut) {
        match self {
            Self::Hello(hello) => V::emit_hello(hello, out),
            Self::Description(description) => {
                V::emit_description(description, out);
                description.headers.iter().for_each(|header| header.emit(out));
            }
            Self::Request(keys) => {
                for key in keys {
                    out.put_u32(u32::from(key.kind.into()));
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

impl<V: Version> Description<V> {
    fn parse(bytes: &[u8]) -> Result<Self, ParseError> {
        let mut reader = Reader::new(bytes, "database description");
        let description = V::parse_description(&mut reader)?;
        Ok(Self { headers: parse_headers(&mut reader)?, ..description })
    }
}

fn parse_headers<V: Version>(reader: &mut Reader<'_>) -> Result<Vec<LsaHeader<V>>, ParseError> {
    let mut headers = Vec::new();
    while !reader.is_empty() {
        headers.push(LsaHeader::parse(reader)?);
    }
    Ok(headers)
}

fn parse_request<V: Version>(bytes: &[u8]) -> Result<Vec<LsaKey<V>>, ParseError> {
    let mut reader = Reader::new(bytes, "request");
    let mut keys = Vec::new();
    while !reader.is_empty() {
        let kind = V::requested_kind(reader.u32()?);
        keys.push(LsaKey { kind, id: reader.address()?, router: reader.address()? });
    }
    Ok(keys)
}

fn parse_update<V: Version>(mut bytes: Bytes) -> Result<Vec<Lsa<V>>, ParseError> {
    let count = Reader::new(&bytes, "update").u32()?;
    let mut lsas = Vec::new();
    bytes = bytes.slice(4..);
    for _ in 0..count {
        lsas.push(Lsa::parse(&mut bytes)?);
    }
    if bytes.is_empty() { Ok(lsas) } else { Err(ParseError::Short { what: "update's count of LSAs" }) }
}
