//! From shortest paths to routes (RFC 2328 sections 16.1 step 4, 16.2, 16.4; RFC 5340 section 4.8), and which of them are wanted.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, Ipv4Addr},
};

use ipnet::IpNet;
use serde::{Deserialize, Serialize};

use super::{
    InterfaceId, InterfaceState, Machine, Protocol,
    spf::{Reach, Summary, Vertex},
};
use crate::packet::{FLAG_BORDER, FLAG_EXTERNAL, LS_INFINITY};

/// Kinds of paths, the preferred first (section 11).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum PathKind {
    /// Inside the area.
    IntraArea,
    /// In another area.
    InterArea,
    /// Outside, with a metric comparable to ours.
    External1,
    /// Outside, with a metric above all of ours.
    External2,
}

/// One way towards a destination.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct NextHop {
    /// Interface to send by.
    pub interface: InterfaceId,
    /// Router to send to, link-local in IPv6; none where the destination is on the link.
    pub gateway: Option<IpAddr>,
}

/// A learned route.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Route {
    /// Destination.
    pub prefix: IpNet,
    /// Kind of path.
    pub kind: PathKind,
    /// Cost; of the external metric for [`PathKind::External2`].
    pub cost: u32,
    /// Equal next hops in order, at least one.
    pub next_hops: Vec<NextHop>,
}

/// Order of preference: kind, then metric, then distance inside the domain.
type Rank = (PathKind, u32, u32);

#[derive(Debug, Default)]
struct Table(BTreeMap<IpNet, (Rank, BTreeSet<NextHop>)>);

impl Table {
    fn offer(&mut self, prefix: IpNet, rank: Rank, hops: &BTreeSet<NextHop>) {
        match self.0.get_mut(&prefix) {
            Some((known, _)) if *known < rank => {}
            Some((known, all)) if *known == rank => all.extend(hops),
            _ => drop(self.0.insert(prefix, (rank, hops.clone()))),
        }
    }

    /// The longest match inside the domain.
    fn lookup(&self, address: IpAddr) -> Option<(u32, &BTreeSet<NextHop>)> {
        let internal = |(prefix, (rank, _)): &(&IpNet, &(Rank, BTreeSet<NextHop>))| {
            prefix.contains(&address) && rank.0 <= PathKind::InterArea
        };
        let (_, (rank, hops)) =
            self.0.iter().filter(internal).max_by_key(|(prefix, _)| prefix.prefix_len())?;
        Some((rank.1, hops))
    }
}

/// A destination outside the domain, whatever version its LSA is of.
#[derive(Clone, Copy, Debug)]
pub struct External {
    /// Router id of the AS boundary router.
    pub(super) router: Ipv4Addr,
    pub(super) prefix: IpNet,
    /// Metric of type 2: above all metrics inside the domain.
    pub(super) type_2: bool,
    pub(super) metric: u32,
    /// Where to forward, if not to the boundary router.
    pub(super) forwarding: Option<IpAddr>,
}

/// The best ways to AS boundary routers: an inter-area one only where there is no other.
type Boundaries = BTreeMap<Ipv4Addr, (PathKind, Reach)>;

impl<V: Protocol> Machine<V> {
    pub(super) fn calculate_routes(&self) -> Vec<Route> {
        let areas: BTreeSet<_> = self.interfaces.values().map(|i| i.config.area).collect();
        let mut table = Table::default();
        let mut boundaries = Boundaries::new();
        for area in areas {
            self.calculate_area(area, &mut table, &mut boundaries);
        }
        self.add_externals(&mut table, &boundaries);
        let wanted = |(prefix, _): &(IpNet, _)| self.admits(prefix);
        table.0.into_iter().filter(wanted).filter_map(|(prefix, found)| self.route(prefix, found)).collect()
    }

    /// A route for the kernel, unless the destination is on one of our links anyway.
    fn route(&self, prefix: IpNet, (rank, hops): (Rank, BTreeSet<NextHop>)) -> Option<Route> {
        let hops = hops.into_iter().filter(|hop| hop.gateway.is_some());
        let next_hops: Vec<_> = hops.take(self.config.max_paths).collect();
        let route = Route { prefix, kind: rank.0, cost: rank.1, next_hops };
        (!route.next_hops.is_empty()).then_some(route)
    }

    /// Whether a learned prefix may go to the kernel.
    fn admits(&self, prefix: &IpNet) -> bool {
        let attached = |interface: &super::Interface<V>| {
            let nets = || interface.link.address.as_ref().map(V::nets).unwrap_or_default();
            interface.state != InterfaceState::Down && nets().iter().any(|net| net.trunc() == *prefix)
        };
        V::import(&self.config).iter().any(|admitted| admitted.contains(prefix))
            && !self.announced.contains_key(prefix)
            && !self.protected.iter().any(|protected| protected.contains(prefix))
            && !self.interfaces.values().any(attached)
    }

    fn calculate_area(&self, area: Ipv4Addr, table: &mut Table, boundaries: &mut Boundaries) {
        let graph = V::graph(self, area);
        let tree = graph.shortest_paths(self.config.router_id, self.roots(area));
        // Step 4 and the second stage of section 16.1.
        for (vertex, prefix, metric) in &graph.prefixes {
            if let Some(reach) = tree.get(vertex) {
                let cost = reach.cost.saturating_add(*metric);
                table.offer(*prefix, (PathKind::IntraArea, cost, 0), &reach.hops);
            }
        }
        let reached = |id: &Ipv4Addr, flag: u8| {
            let flagged = graph.routers.get(id).is_some_and(|router| router.flags & flag != 0);
            tree.get(&Vertex::Router(*id)).filter(|_| flagged)
        };
        for id in graph.routers.keys() {
            if let Some(reach) = reached(id, FLAG_EXTERNAL) {
                Self::offer_boundary(boundaries, *id, PathKind::IntraArea, reach.clone());
            }
        }
        // Section 16.2.
        for (border, summary, metric) in &graph.summaries {
            let Some(reach) = reached(border, FLAG_BORDER).filter(|_| *metric < LS_INFINITY) else {
                continue;
            };
            let cost = reach.cost.saturating_add(*metric);
            match summary {
                Summary::Prefix(prefix) => {
                    table.offer(*prefix, (PathKind::InterArea, cost, 0), &reach.hops);
                }
                Summary::Boundary(router) => {
                    let reach = Reach { cost, hops: reach.hops.clone() };
                    Self::offer_boundary(boundaries, *router, PathKind::InterArea, reach);
                }
            }
        }
    }

    fn offer_boundary(boundaries: &mut Boundaries, router: Ipv4Addr, kind: PathKind, reach: Reach) {
        match boundaries.get_mut(&router) {
            Some((known, best)) if (*known, best.cost) < (kind, reach.cost) => {}
            Some((known, best)) if (*known, best.cost) == (kind, reach.cost) => best.hops.extend(reach.hops),
            _ => drop(boundaries.insert(router, (kind, reach))),
        }
    }

    /// Section 16.4.
    fn add_externals(&self, table: &mut Table, boundaries: &Boundaries) {
        for external in V::externals(self).iter().filter(|external| external.metric < LS_INFINITY) {
            let Some((_, boundary)) = boundaries.get(&external.router) else { continue };
            if let Some((distance, hops)) = Self::way_out(external, boundary, table) {
                let rank = if external.type_2 {
                    (PathKind::External2, external.metric, distance)
                } else {
                    (PathKind::External1, distance.saturating_add(external.metric), 0)
                };
                table.offer(external.prefix, rank, &hops);
            }
        }
    }

    /// Distance and next hops to the forwarding address, or to the originator where there is none (step 3).
    fn way_out(external: &External, boundary: &Reach, table: &Table) -> Option<(u32, BTreeSet<NextHop>)> {
        let Some(forwarding) = external.forwarding else {
            return Some((boundary.cost, boundary.hops.clone()));
        };
        let (cost, hops) = table.lookup(forwarding)?;
        let direct = |hop: &NextHop| NextHop { gateway: hop.gateway.or(Some(forwarding)), ..*hop };
        Some((cost, hops.iter().map(direct).collect()))
    }
}
