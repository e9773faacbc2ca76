//! What is asked for now and then rather than all the time: what every LSA says, and what becomes of every route.

use std::net::IpAddr;

use ipnet::IpNet;
use serde::{Deserialize, Serialize};

use super::{LsaStatus, Machine, PathKind, Protocol};

/// An LSA with its content.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct LsaDetail {
    /// Its header, and where it is held.
    #[serde(flatten)]
    pub lsa: LsaStatus,
    /// The name of its type: `router`, `network`, and so on.
    pub name: String,
    /// What it says, a line for each thing; empty unless asked for.
    pub body: Vec<String>,
}

/// Whether a learned route is meant for the kernel, and why not.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Selection {
    /// It is.
    Wanted,
    /// No prefix of `import` contains it.
    NotImported,
    /// We announce it ourselves.
    Announced,
    /// It leads to a VIP of the cluster, or to a part of one.
    Protected,
    /// It lies in an aggregate of ours.
    Aggregate,
    /// It is the prefix of one of our links: the kernel has it.
    Attached,
}

impl Selection {
    /// Why the route is not for the kernel, in words; none if it is.
    #[must_use]
    pub fn objection(self) -> Option<&'static str> {
        match self {
            Self::Wanted => None,
            Self::NotImported => Some("not admitted by import"),
            Self::Announced => Some("announced by this director"),
            Self::Protected => Some("a VIP of the cluster"),
            Self::Aggregate => Some("inside an aggregate"),
            Self::Attached => Some("a link of this director"),
        }
    }
}

/// A next hop by the name of its interface.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RouteHop {
    /// Interface to send by.
    pub interface: String,
    /// Router to send to; none where the destination is on the link.
    pub gateway: Option<IpAddr>,
}

/// A learned route and what became of it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RouteStatus {
    /// Version of OSPF, 2 or 3.
    pub version: u8,
    /// Destination.
    pub prefix: IpNet,
    /// Kind of path.
    pub kind: PathKind,
    /// Cost; of the external metric for [`PathKind::External2`].
    pub cost: u32,
    /// Equal next hops.
    pub next_hops: Vec<RouteHop>,
    /// Whether it is meant for the kernel.
    pub selection: Selection,
    /// Whether the kernel has it. The pure machine does not know, it is the driver's [`crate::Handle::routes`] that
    /// fills this in.
    pub installed: bool,
    /// Why not, in words; none if it is.
    pub reason: Option<String>,
}

impl<V: Protocol> Machine<V> {
    /// The databases, with what the LSAs say if `with_bodies`.
    #[must_use]
    pub fn lsdb(&self, with_bodies: bool) -> Vec<LsaDetail> {
        let mut all = Vec::new();
        for (scope, database) in &self.databases {
            let scope = self.scope_name(*scope);
            all.extend(database.iter().map(|(key, entry)| LsaDetail {
                lsa: self.lsa_status(&scope, key, entry),
                name: V::kind_name(key.kind).to_owned(),
                body: if with_bodies { V::describe(&entry.lsa) } else { Vec::new() },
            }));
        }
        all
    }

    /// Every known destination in order, as of the last calculation.
    #[must_use]
    pub fn route_status(&self) -> Vec<RouteStatus> {
        let name = |id| self.interfaces.get(&id).map(|interface| interface.config.name.clone());
        let show = |(route, selection): (super::Route, Selection)| RouteStatus {
            version: V::NUMBER,
            prefix: route.prefix,
            kind: route.kind,
            cost: route.cost,
            next_hops: route
                .next_hops
                .iter()
                .map(|hop| RouteHop {
                    interface: name(hop.interface).unwrap_or_default(),
                    gateway: hop.gateway,
                })
                .collect(),
            selection,
            installed: false,
            reason: selection.objection().map(str::to_owned),
        };
        self.all_routes().into_iter().map(show).collect()
    }
}
