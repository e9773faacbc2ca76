//! LS types of OSPFv3: a U bit, a flooding scope and a function code (RFC 5340 section A.4.2.1).

use std::fmt;

use serde::{Deserialize, Serialize};

/// An LS type (section A.4.2.1): U bit, flooding scope and function code.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct LsType(pub u16);

/// LS type of a Router-LSA.
pub const ROUTER: LsType = LsType(0x2001);
/// LS type of a Network-LSA.
pub const NETWORK: LsType = LsType(0x2002);
/// LS type of an Inter-Area-Prefix-LSA.
pub const INTER_AREA_PREFIX: LsType = LsType(0x2003);
/// LS type of an Inter-Area-Router-LSA.
pub const INTER_AREA_ROUTER: LsType = LsType(0x2004);
/// LS type of an AS-External-LSA.
pub const EXTERNAL: LsType = LsType(0x4005);
/// LS type of an NSSA-LSA: an external destination, known in its NSSA.
pub const NSSA: LsType = LsType(0x2007);
/// LS type of a Link-LSA.
pub const LINK: LsType = LsType(0x0008);
/// LS type of an Intra-Area-Prefix-LSA.
pub const INTRA_AREA_PREFIX: LsType = LsType(0x2009);

/// LS type of a Grace-LSA (RFC 5187 section 2.2).
pub const GRACE: LsType = LsType(0x000b);

/// How far an LSA is flooded (section A.4.2.1).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FloodingScope {
    /// Over the link it was received on.
    Link,
    /// Inside the area.
    Area,
    /// Everywhere.
    Domain,
}

impl LsType {
    /// The scope that the S bits say; none for the reserved value.
    #[must_use]
    pub fn scope(self) -> Option<FloodingScope> {
        match self.0 >> 13 & 3 {
            0 => Some(FloodingScope::Link),
            1 => Some(FloodingScope::Area),
            2 => Some(FloodingScope::Domain),
            _ => None,
        }
    }

    /// Whether those who do not know the type shall flood it all the same (the U bit).
    #[must_use]
    pub fn is_flooded_unknown(self) -> bool {
        self.0 & 0x8000 != 0
    }

    /// Whether the type is one of RFC 5340.
    #[must_use]
    pub fn is_known(self) -> bool {
        [ROUTER, NETWORK, INTER_AREA_PREFIX, INTER_AREA_ROUTER, EXTERNAL, NSSA, LINK, INTRA_AREA_PREFIX]
            .contains(&self)
    }
}

impl fmt::Display for LsType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:#06x}", self.0)
    }
}

impl From<LsType> for u16 {
    fn from(kind: LsType) -> Self {
        kind.0
    }
}
