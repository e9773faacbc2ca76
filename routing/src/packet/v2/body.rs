//! Bodies of the LSA types that take part in route calculation (RFC 2328 section A.4). They are parsed
//! when needed; flooding works on the received bytes.

use std::net::Ipv4Addr;

use bytes::{BufMut, BytesMut};

use super::{
    EXTERNAL, Lsa, NETWORK, NSSA, OPAQUE_AREA, OPAQUE_AS, OPAQUE_LINK, ROUTER, SUMMARY_ASBR, SUMMARY_NETWORK,
};
use crate::packet::{ParseError, reader::Reader};

/// Router-LSA flag: area border router.
pub const FLAG_BORDER: u8 = 0x01;
/// Router-LSA flag: AS boundary router.
pub const FLAG_EXTERNAL: u8 = 0x02;
/// Metric of a link nobody should cross (RFC 6987, MaxLinkMetric).
pub const MAX_LINK_METRIC: u16 = 0xffff;
/// Metric of an unreachable summary or external destination (LSInfinity, appendix B).
pub const LS_INFINITY: u32 = 0x00ff_ffff;

/// What a link of a Router-LSA connects to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum LinkKind {
    /// Another router; the id is its router id.
    PointToPoint,
    /// A transit network; the id is the address of its designated router.
    Transit,
    /// A stub network; the id is its prefix and the data its mask.
    Stub,
    /// A virtual link; the id is the router id at its far end.
    Virtual,
}

/// One link of a Router-LSA.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct RouterLink {
    /// Kind of link.
    pub kind: LinkKind,
    /// Link id, see [`LinkKind`].
    pub id: Ipv4Addr,
    /// Link data: own interface address, or the mask of a stub network.
    pub data: Ipv4Addr,
    /// Cost of the link.
    pub metric: u16,
}

/// Body of a Router-LSA (section A.4.2).
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct RouterBody {
    /// Flags V, E and B.
    pub flags: u8,
    /// Links in the order of the LSA; metrics per type of service are skipped.
    pub links: Vec<RouterLink>,
}

impl RouterBody {
    fn parse(bytes: &[u8]) -> Result<Self, ParseError> {
        let mut reader = Reader::new(bytes, "router LSA");
        let flags = reader.u8()?;
        reader.skip(1)?;
        let count = reader.u16()?;
        let mut links = Vec::new();
        for _ in 0..count {
            let (id, data, kind, services, metric) =
                (reader.address()?, reader.address()?, reader.u8()?, reader.u8()?, reader.u16()?);
            reader.skip(usize::from(services) * 4)?;
            let kind = match kind {
                1 => LinkKind::PointToPoint,
                2 => LinkKind::Transit,
                3 => LinkKind::Stub,
                4 => LinkKind::Virtual,
                _ => continue, // unknown kinds are skipped, the rest of the LSA stands
            };
            links.push(RouterLink { kind, id, data, metric });
        }
        Ok(Self { flags, links })
    }

    /// The bytes of the body.
    #[must_use]
    pub fn emit(&self) -> BytesMut {
        let mut out = BytesMut::with_capacity(4 + 12 * self.links.len());
        out.put_u8(self.flags);
        out.put_u8(0);
        out.put_u16(u16::try_from(self.links.len()).unwrap_or(u16::MAX));
        for link in &self.links {
            out.put_slice(&link.id.octets());
            out.put_slice(&link.data.octets());
            out.put_u8(match link.kind {
                LinkKind::PointToPoint => 1,
                LinkKind::Transit => 2,
                LinkKind::Stub => 3,
                LinkKind::Virtual => 4,
            });
            out.put_u8(0);
            out.put_u16(link.metric);
        }
        out
    }
}

/// Body of a Network-LSA (section A.4.3).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NetworkBody {
    /// Mask of the network.
    pub mask: Ipv4Addr,
    /// Router ids of the routers attached to it.
    pub routers: Vec<Ipv4Addr>,
}

impl NetworkBody {
    fn parse(bytes: &[u8]) -> Result<Self, ParseError> {
        let mut reader = Reader::new(bytes, "network LSA");
        Ok(Self { mask: reader.address()?, routers: reader.addresses()? })
    }

    /// The bytes of the body.
    #[must_use]
    pub fn emit(&self) -> BytesMut {
        let mut out = BytesMut::with_capacity(4 + 4 * self.routers.len());
        out.put_slice(&self.mask.octets());
        for router in &self.routers {
            out.put_slice(&router.octets());
        }
        out
    }
}

/// Body of a Summary-LSA (section A.4.4), without metrics per type of service.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SummaryBody {
    /// Mask of the network; zero for an AS boundary router.
    pub mask: Ipv4Addr,
    /// Cost from the originator, 24 bits.
    pub metric: u32,
}

/// AS-external-LSA: the metric is of type 2.
const EXTERNAL_TYPE_2: u32 = 0x8000_0000;

/// Body of an AS-external-LSA (section A.4.5) or of an NSSA-LSA (RFC 3101 appendix B), without metrics per
/// type of service.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ExternalBody {
    /// Mask of the network.
    pub mask: Ipv4Addr,
    /// Whether the metric is of type 2, larger than any path inside the domain.
    pub type_2: bool,
    /// Cost, 24 bits.
    pub metric: u32,
    /// Where to forward, or zero for the originator.
    pub forwarding: Ipv4Addr,
    /// Tag of the operator.
    pub tag: u32,
}

impl ExternalBody {
    fn parse(bytes: &[u8]) -> Result<Self, ParseError> {
        let mut reader = Reader::new(bytes, "AS-external LSA");
        let (mask, metric) = (reader.address()?, reader.u32()?);
        let (type_2, metric) = (metric & EXTERNAL_TYPE_2 != 0, metric & LS_INFINITY);
        Ok(Self { mask, type_2, metric, forwarding: reader.address()?, tag: reader.u32()? })
    }

    /// The bytes of the body.
    #[must_use]
    pub fn emit(&self) -> BytesMut {
        let mut out = BytesMut::with_capacity(16);
        out.put_slice(&self.mask.octets());
        let kind = if self.type_2 { EXTERNAL_TYPE_2 } else { 0 };
        out.put_u32(kind | self.metric & LS_INFINITY);
        out.put_slice(&self.forwarding.octets());
        out.put_u32(self.tag);
        out
    }
}

/// A parsed body.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum LsaBody {
    /// Type 1.
    Router(RouterBody),
    /// Type 2.
    Network(NetworkBody),
    /// Types 3 and 4.
    Summary(SummaryBody),
    /// Types 5 and 7.
    External(ExternalBody),
    /// Types 9 to 11, whose content is not looked at.
    Opaque,
}

impl LsaBody {
    /// Parses the body of `lsa`.
    ///
    /// # Errors
    /// The body is too short for what it says it holds, or the type is not known.
    pub fn parse(lsa: &Lsa) -> Result<Self, ParseError> {
        let mut reader = Reader::new(lsa.body(), "LSA body");
        match lsa.header.key.kind {
            ROUTER => RouterBody::parse(lsa.body()).map(Self::Router),
            NETWORK => NetworkBody::parse(lsa.body()).map(Self::Network),
            SUMMARY_NETWORK | SUMMARY_ASBR => {
                let mask = reader.address()?;
                Ok(Self::Summary(SummaryBody { mask, metric: reader.u32()? & LS_INFINITY }))
            }
            EXTERNAL | NSSA => ExternalBody::parse(lsa.body()).map(Self::External),
            OPAQUE_LINK | OPAQUE_AREA | OPAQUE_AS => Ok(Self::Opaque),
            kind => Err(ParseError::LsaType { kind: kind.into() }),
        }
    }
}
