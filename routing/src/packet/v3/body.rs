//! Bodies of the LSA types of RFC 5340 section A.4. They are parsed when needed; flooding works on the
//! received bytes.

use std::net::{Ipv4Addr, Ipv6Addr};

use bytes::{BufMut, BytesMut};

use super::{
    EXTERNAL, INTER_AREA_PREFIX, INTER_AREA_ROUTER, INTRA_AREA_PREFIX, LINK, LsType, Lsa, NETWORK, NSSA,
    Prefix, ROUTER, put_u24,
};
use crate::packet::{ParseError, reader::Reader};

/// AS-External-LSA flag: a tag follows.
const EXTERNAL_TAG: u8 = 0x01;
/// AS-External-LSA flag: a forwarding address follows.
const EXTERNAL_FORWARDING: u8 = 0x02;
/// AS-External-LSA flag: metric of type 2.
const EXTERNAL_TYPE_2: u8 = 0x04;

/// What a link of a Router-LSA connects to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum LinkKind {
    /// Another router.
    PointToPoint,
    /// A transit network, named after its designated router.
    Transit,
    /// A virtual link.
    Virtual,
}

/// One link of a Router-LSA.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct RouterLink {
    /// Kind of link.
    pub kind: LinkKind,
    /// Cost of the link.
    pub metric: u16,
    /// Interface id of the originator's end.
    pub interface: u32,
    /// Interface id of the neighbour, or of the designated router.
    pub neighbor_interface: u32,
    /// Router id of the neighbour, or of the designated router.
    pub neighbor: Ipv4Addr,
}

/// Body of a Router-LSA (section A.4.3). A router may have several, which add up.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct RouterBody {
    /// Flags V, E and B, where version 2 has them.
    pub flags: u8,
    /// Option bits.
    pub options: u32,
    /// Links in the order of the LSA.
    pub links: Vec<RouterLink>,
}

impl RouterBody {
    fn parse(bytes: &[u8]) -> Result<Self, ParseError> {
        let mut reader = Reader::new(bytes, "router LSA");
        let (flags, options) = (reader.u8()?, reader.u24()?);
        let mut links = Vec::new();
        while !reader.is_empty() {
            let kind = reader.u8()?;
            reader.skip(1)?;
            let (metric, interface) = (reader.u16()?, reader.u32()?);
            let (neighbor_interface, neighbor) = (reader.u32()?, reader.address()?);
            let kind = match kind {
                1 => LinkKind::PointToPoint,
                2 => LinkKind::Transit,
                4 => LinkKind::Virtual,
                _ => continue, // unknown kinds are skipped, the rest of the LSA stands
            };
            links.push(RouterLink { kind, metric, interface, neighbor_interface, neighbor });
        }
        Ok(Self { flags, options, links })
    }

    /// The bytes of the body.
    #[must_use]
    pub fn emit(&self) -> BytesMut {
        let mut out = BytesMut::with_capacity(4 + 16 * self.links.len());
        out.put_u8(self.flags);
        put_u24(&mut out, self.options);
        for link in &self.links {
            out.put_u8(match link.kind {
                LinkKind::PointToPoint => 1,
                LinkKind::Transit => 2,
                LinkKind::Virtual => 4,
            });
            out.put_u8(0);
            out.put_u16(link.metric);
            out.put_u32(link.interface);
            out.put_u32(link.neighbor_interface);
            out.put_slice(&link.neighbor.octets());
        }
        out
    }
}

/// Body of a Network-LSA (section A.4.4).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NetworkBody {
    /// Option bits that any of the routers has.
    pub options: u32,
    /// Router ids of the routers attached to the network.
    pub routers: Vec<Ipv4Addr>,
}

impl NetworkBody {
    fn parse(bytes: &[u8]) -> Result<Self, ParseError> {
        let mut reader = Reader::new(bytes, "network LSA");
        reader.skip(1)?;
        Ok(Self { options: reader.u24()?, routers: reader.addresses()? })
    }

    /// The bytes of the body.
    #[must_use]
    pub fn emit(&self) -> BytesMut {
        let mut out = BytesMut::with_capacity(4 + 4 * self.routers.len());
        out.put_u8(0);
        put_u24(&mut out, self.options);
        for router in &self.routers {
            out.put_slice(&router.octets());
        }
        out
    }
}

/// Body of a Link-LSA (section A.4.9): what the routers of a link need to know of one of them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LinkBody {
    /// Its priority to become designated router.
    pub priority: u8,
    /// Its option bits.
    pub options: u32,
    /// Its link-local address: the next hop.
    pub address: Ipv6Addr,
    /// Its prefixes on the link.
    pub prefixes: Vec<Prefix>,
}

impl LinkBody {
    fn parse(bytes: &[u8]) -> Result<Self, ParseError> {
        let mut reader = Reader::new(bytes, "link LSA");
        let (priority, options) = (reader.u8()?, reader.u24()?);
        let address = Ipv6Addr::from(reader.take::<16>()?);
        let count = reader.u32()?;
        Ok(Self { priority, options, address, prefixes: parse_prefixes(&mut reader, count)? })
    }

    /// The bytes of the body.
    #[must_use]
    pub fn emit(&self) -> BytesMut {
        let mut out = BytesMut::with_capacity(24 + 20 * self.prefixes.len());
        out.put_u8(self.priority);
        put_u24(&mut out, self.options);
        out.put_slice(&self.address.octets());
        out.put_u32(u32::try_from(self.prefixes.len()).unwrap_or(u32::MAX));
        self.prefixes.iter().for_each(|prefix| prefix.emit(&mut out));
        out
    }
}

/// Body of an Intra-Area-Prefix-LSA (section A.4.10): prefixes of a router or of a network.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct IntraAreaPrefixBody {
    /// [`ROUTER`] or [`NETWORK`]: what the prefixes belong to.
    pub kind: LsType,
    /// Link state id of the referenced LSA; zero for a router.
    pub id: Ipv4Addr,
    /// Originator of the referenced LSA.
    pub router: Ipv4Addr,
    /// The prefixes, with their metrics.
    pub prefixes: Vec<Prefix>,
}

impl IntraAreaPrefixBody {
    fn parse(bytes: &[u8]) -> Result<Self, ParseError> {
        let mut reader = Reader::new(bytes, "intra-area-prefix LSA");
        let (count, kind) = (reader.u16()?, LsType(reader.u16()?));
        let (id, router) = (reader.address()?, reader.address()?);
        Ok(Self { kind, id, router, prefixes: parse_prefixes(&mut reader, u32::from(count))? })
    }

    /// The bytes of the body.
    #[must_use]
    pub fn emit(&self) -> BytesMut {
        let mut out = BytesMut::with_capacity(12 + 20 * self.prefixes.len());
        out.put_u16(u16::try_from(self.prefixes.len()).unwrap_or(u16::MAX));
        out.put_u16(self.kind.0);
        out.put_slice(&self.id.octets());
        out.put_slice(&self.router.octets());
        self.prefixes.iter().for_each(|prefix| prefix.emit(&mut out));
        out
    }
}

fn parse_prefixes(reader: &mut Reader<'_>, count: u32) -> Result<Vec<Prefix>, ParseError> {
    // Collected one by one: the count is the sender's, the memory is ours.
    (0..count).map(|_| Prefix::parse(reader)).collect()
}

/// Body of an AS-External-LSA (section A.4.7) or of an NSSA-LSA (section A.4.8).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ExternalBody {
    /// Metric of type 2: above all metrics inside the domain.
    pub type_2: bool,
    /// Cost, 24 bits.
    pub metric: u32,
    /// Destination.
    pub prefix: Prefix,
    /// Where to forward, if not to the originator.
    pub forwarding: Option<Ipv6Addr>,
    /// Tag of the operator.
    pub tag: Option<u32>,
    /// Link state id of an LSA with more about the destination, of the type in the prefix's field.
    pub referenced: Option<u32>,
}

impl ExternalBody {
    fn parse(bytes: &[u8]) -> Result<Self, ParseError> {
        let mut reader = Reader::new(bytes, "AS-external LSA");
        let (flags, metric, prefix) = (reader.u8()?, reader.u24()?, Prefix::parse(&mut reader)?);
        let follows = |flag: u8| flags & flag != 0;
        let forwarding = follows(EXTERNAL_FORWARDING).then(|| reader.take::<16>()).transpose()?;
        let tag = follows(EXTERNAL_TAG).then(|| reader.u32()).transpose()?;
        let referenced = (prefix.field != 0).then(|| reader.u32()).transpose()?;
        let forwarding = forwarding.map(Ipv6Addr::from);
        Ok(Self { type_2: follows(EXTERNAL_TYPE_2), metric, prefix, forwarding, tag, referenced })
    }

    /// The bytes of the body. The link state id of a referenced LSA goes out if the prefix's field names its type.
    #[must_use]
    pub fn emit(&self) -> BytesMut {
        let mut out = BytesMut::with_capacity(48);
        let flag = |set: bool, flag: u8| if set { flag } else { 0 };
        let optional = flag(self.forwarding.is_some(), EXTERNAL_FORWARDING);
        let tagged = flag(self.tag.is_some(), EXTERNAL_TAG);
        out.put_u8(flag(self.type_2, EXTERNAL_TYPE_2) | optional | tagged);
        put_u24(&mut out, self.metric);
        self.prefix.emit(&mut out);
        if let Some(forwarding) = self.forwarding {
            out.put_slice(&forwarding.octets());
        }
        if let Some(tag) = self.tag {
            out.put_u32(tag);
        }
        if self.prefix.field != 0 {
            out.put_u32(self.referenced.unwrap_or(0));
        }
        out
    }
}

/// A parsed body.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum LsaBody {
    /// Type 0x2001.
    Router(RouterBody),
    /// Type 0x2002.
    Network(NetworkBody),
    /// Type 0x2003: destination and metric of an area border router.
    InterAreaPrefix {
        /// Destination.
        prefix: Prefix,
        /// Cost, 24 bits.
        metric: u32,
    },
    /// Type 0x2004: an AS boundary router elsewhere.
    InterAreaRouter {
        /// Router id of the boundary router.
        router: Ipv4Addr,
        /// Cost, 24 bits.
        metric: u32,
    },
    /// Types 0x4005 and 0x2007.
    External(ExternalBody),
    /// Type 0x0008.
    Link(LinkBody),
    /// Type 0x2009.
    IntraAreaPrefix(IntraAreaPrefixBody),
    /// Any other type, whose content is not looked at.
    Unknown,
}

impl LsaBody {
    /// Parses the body of `lsa`.
    ///
    /// # Errors
    /// The body is too short for what it says it holds, or holds an impossible prefix.
    pub fn parse(lsa: &Lsa) -> Result<Self, ParseError> {
        let mut reader = Reader::new(lsa.body(), "LSA body");
        match lsa.header.key.kind {
            ROUTER => RouterBody::parse(lsa.body()).map(Self::Router),
            NETWORK => NetworkBody::parse(lsa.body()).map(Self::Network),
            INTER_AREA_PREFIX => {
                reader.skip(1)?;
                let metric = reader.u24()?;
                Ok(Self::InterAreaPrefix { prefix: Prefix::parse(&mut reader)?, metric })
            }
            INTER_AREA_ROUTER => {
                reader.skip(5)?;
                let metric = reader.u24()?;
                Ok(Self::InterAreaRouter { router: reader.address()?, metric })
            }
            EXTERNAL | NSSA => ExternalBody::parse(lsa.body()).map(Self::External),
            LINK => LinkBody::parse(lsa.body()).map(Self::Link),
            INTRA_AREA_PREFIX => IntraAreaPrefixBody::parse(lsa.body()).map(Self::IntraAreaPrefix),
            _ => Ok(Self::Unknown),
        }
    }
}
