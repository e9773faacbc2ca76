//! From shortest paths to routes (RFC 2328 sections 16.1 step 4, 16.2, 16.4), and which of them are wanted.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::Ipv4Addr,
};

use ipnet::Ipv4Net;
use serde::{Deserialize, Serialize};

use super::{
    InterfaceId, InterfaceState, Scope, Speaker,
    spf::{Graph, Reach, Vertex},
};
use crate::packet::{
    EXTERNAL, ExternalBody, FLAG_BORDER, FLAG_EXTERNAL, LS_INFINITY, LinkKind, LsaBody, LsaKey, MAX_AGE,
    SUMMARY_ASBR, SUMMARY_NETWORK,
};

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
    /// Router to send to; none where the destination is on the link.
    pub gateway: Option<Ipv4Addr>,
}

/// A learned route.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Route {
    /// Destination.
    pub prefix: Ipv4Net,
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
struct Table(BTreeMap<Ipv4Net, (Rank, BTreeSet<NextHop>)>);

impl Table {
    fn offer(&mut self, prefix: Ipv4Net, rank: Rank, hops: &BTreeSet<NextHop>) {
        match self.0.get_mut(&prefix) {
            Some((known, _)) if *known < rank => {}
            Some((known, all)) if *known == rank => all.extend(hops),
            _ => drop(self.0.insert(prefix, (rank, hops.clone()))),
        }
    }

    /// The longest match inside the domain.
    fn lookup(&self, address: Ipv4Addr) -> Option<(u32, &BTreeSet<NextHop>)> {
        let internal = |(prefix, (rank, _)): &(&Ipv4Net, &(Rank, BTreeSet<NextHop>))| {
            prefix.contains(&address) && rank.0 <= PathKind::InterArea
        };
        let (_, (rank, hops)) =
            self.0.iter().filter(internal).max_by_key(|(prefix, _)| prefix.prefix_len())?;
        Some((rank.1, hops))
    }
}

fn prefix(id: Ipv4Addr, mask: Ipv4Addr) -> Option<Ipv4Net> {
    Ipv4Net::with_netmask(id, mask).ok().map(|net| net.trunc())
}

/// The best ways to AS boundary routers: an inter-area one only where there is no other.
type Boundaries = BTreeMap<Ipv4Addr, (PathKind, Reach)>;

impl Speaker {
    pub(super) fn calculate_routes(&self) -> Vec<Route> {
        let areas: BTreeSet<_> = self.interfaces.values().map(|i| i.config.area).collect();
        let mut table = Table::default();
        let mut boundaries = Boundaries::new();
        for area in areas {
            self.calculate_area(area, &mut table, &mut boundaries);
        }
        self.add_externals(&mut table, &boundaries);
        let wanted = |(prefix, _): &(Ipv4Net, _)| self.admits(prefix);
        table.0.into_iter().filter(wanted).filter_map(|(prefix, found)| self.route(prefix, found)).collect()
    }

    /// A route for the kernel, unless the destination is on one of our links anyway.
    fn route(&self, prefix: Ipv4Net, (rank, hops): (Rank, BTreeSet<NextHop>)) -> Option<Route> {
        let hops = hops.into_iter().filter(|hop| hop.gateway.is_some());
        let next_hops: Vec<_> = hops.take(self.config.max_paths).collect();
        let route = Route { prefix, kind: rank.0, cost: rank.1, next_hops };
        (!route.next_hops.is_empty()).then_some(route)
    }

    /// Whether a learned prefix may go to the kernel.
    fn admits(&self, prefix: &Ipv4Net) -> bool {
        let attached = |interface: &super::Interface| {
            interface.state != InterfaceState::Down
                && interface.link.address.is_some_and(|net| net.trunc() == *prefix)
        };
        self.config.import.iter().any(|admitted| admitted.contains(prefix))
            && !self.announced.contains_key(prefix)
            && !self.protected.iter().any(|protected| protected.contains(prefix))
            && !self.interfaces.values().any(attached)
    }

    fn calculate_area(&self, area: Ipv4Addr, table: &mut Table, boundaries: &mut Boundaries) {
        let Some(database) = self.database(Scope::Area(area)) else { return };
        let graph = Graph::new(database, self.now);
        let tree = graph.shortest_paths(self.config.router_id, self.roots(area));
        for (vertex, reach) in &tree {
            self.add_intra_area(&graph, *vertex, reach, table, boundaries);
        }
        let summaries = database.iter().filter(|(_, entry)| entry.age(self.now) < MAX_AGE);
        for (key, entry) in summaries {
            if let Ok(LsaBody::Summary(body)) = LsaBody::parse(&entry.lsa) {
                let border = graph.routers.get(&key.router).is_some_and(|r| r.flags & FLAG_BORDER != 0);
                let reach = tree.get(&Vertex::Router(key.router)).filter(|_| border);
                if let Some(reach) = reach.filter(|_| body.metric < LS_INFINITY) {
                    let cost = reach.cost.saturating_add(body.metric);
                    Self::add_summary(key, body.mask, cost, reach, table, boundaries);
                }
            }
        }
    }

    /// Step 4 and the second stage of section 16.1.
    fn add_intra_area(
        &self,
        graph: &Graph,
        vertex: Vertex,
        reach: &Reach,
        table: &mut Table,
        boundaries: &mut Boundaries,
    ) {
        let mut add = |id, mask, cost: u32| {
            if let Some(net) = prefix(id, mask) {
                table.offer(net, (PathKind::IntraArea, cost, 0), &reach.hops);
            }
        };
        match vertex {
            Vertex::Network(id) => {
                graph.networks.get(&id).into_iter().for_each(|net| add(id, net.mask, reach.cost));
            }
            Vertex::Router(id) => {
                let Some(router) = graph.routers.get(&id) else { return };
                for link in router.links.iter().filter(|link| link.kind == LinkKind::Stub) {
                    add(link.id, link.data, reach.cost.saturating_add(u32::from(link.metric)));
                }
                if router.flags & FLAG_EXTERNAL != 0 {
                    Self::offer_boundary(boundaries, id, PathKind::IntraArea, reach.clone());
                }
            }
        }
    }

    /// Section 16.2.
    fn add_summary(
        key: &LsaKey,
        mask: Ipv4Addr,
        cost: u32,
        reach: &Reach,
        table: &mut Table,
        boundaries: &mut Boundaries,
    ) {
        match key.kind {
            SUMMARY_NETWORK => {
                if let Some(net) = prefix(key.id, mask) {
                    table.offer(net, (PathKind::InterArea, cost, 0), &reach.hops);
                }
            }
            SUMMARY_ASBR => {
                let reach = Reach { cost, hops: reach.hops.clone() };
                Self::offer_boundary(boundaries, key.id, PathKind::InterArea, reach);
            }
            _ => {}
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
        let Some(database) = self.database(Scope::Domain) else { return };
        let live = database.iter().filter(|(key, entry)| {
            key.kind == EXTERNAL && key.router != self.config.router_id && entry.age(self.now) < MAX_AGE
        });
        for (key, entry) in live {
            let Ok(LsaBody::External(body)) = LsaBody::parse(&entry.lsa) else { continue };
            let (Some(net), Some((_, boundary))) = (prefix(key.id, body.mask), boundaries.get(&key.router))
            else {
                continue;
            };
            if let Some((distance, hops)) = Self::way_out(&body, boundary, table) {
                let rank = if body.type_2 {
                    (PathKind::External2, body.metric, distance)
                } else {
                    (PathKind::External1, distance.saturating_add(body.metric), 0)
                };
                table.offer(net, rank, &hops);
            }
        }
    }

    /// Distance and next hops to the forwarding address, or to the originator where there is none (step 3).
    fn way_out(body: &ExternalBody, boundary: &Reach, table: &Table) -> Option<(u32, BTreeSet<NextHop>)> {
        if body.metric >= LS_INFINITY {
            return None;
        }
        if body.forwarding.is_unspecified() {
            return Some((boundary.cost, boundary.hops.clone()));
        }
        let (cost, hops) = table.lookup(body.forwarding)?;
        let direct = |hop: &NextHop| NextHop { gateway: hop.gateway.or(Some(body.forwarding)), ..*hop };
        Some((cost, hops.iter().map(direct).collect()))
    }
}
