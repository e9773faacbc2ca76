//! Shortest paths inside an area (RFC 2328 section 16.1): Dijkstra with all equal paths, rooted in the
//! interfaces rather than in our own Router-LSA, whose transit metrics are meant for others.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::Ipv4Addr,
    time::Duration,
};

use super::{Interface, InterfaceState, Lsdb, NeighborState, NextHop, Speaker, Time, is_due};
use crate::packet::{LinkKind, LsaBody, MAX_AGE, NetworkBody, RouterBody};

/// Distance of two calculations: at first, and at most when changes do not end.
const HOLD_FIRST: Duration = Duration::from_millis(50);
const HOLD_MOST: Duration = Duration::from_secs(2);

/// When to calculate: at once after quiet, ever later under churn.
#[derive(Debug, Default)]
pub(super) struct SpfTimer {
    due: Option<Time>,
    last: Option<Time>,
    hold: Duration,
}

impl SpfTimer {
    pub(super) fn due(&self) -> Option<Time> {
        self.due
    }

    /// Something that routes depend on has changed.
    pub(super) fn request(&mut self, now: Time) {
        let Some(last) = self.last else {
            self.due = Some(now);
            return;
        };
        if self.due.is_none() {
            let quiet = now.since(last) > 2 * self.hold.max(HOLD_FIRST);
            self.hold = if quiet { HOLD_FIRST } else { (self.hold * 2).clamp(HOLD_FIRST, HOLD_MOST) };
            self.due = Some(if quiet { now } else { last + self.hold });
        }
    }
}

/// A vertex of the graph; networks come before routers of the same distance (section 16.1 step 3).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Vertex {
    /// By link state id: the address of its designated router.
    Network(Ipv4Addr),
    /// By router id.
    Router(Ipv4Addr),
}

/// How a vertex is reached.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Reach {
    pub(super) cost: u32,
    pub(super) hops: BTreeSet<NextHop>,
}

/// An area's LSAs as a graph.
#[derive(Debug, Default)]
pub(super) struct Graph {
    pub(super) routers: BTreeMap<Ipv4Addr, RouterBody>,
    pub(super) networks: BTreeMap<Ipv4Addr, NetworkBody>,
}

impl Graph {
    pub(super) fn new(database: &Lsdb, now: Time) -> Self {
        let mut graph = Self::default();
        for (key, entry) in database.iter().filter(|(_, entry)| entry.age(now) < MAX_AGE) {
            match LsaBody::parse(&entry.lsa) {
                Ok(LsaBody::Router(body)) => drop(graph.routers.insert(key.router, body)),
                Ok(LsaBody::Network(body)) => drop(graph.networks.insert(key.id, body)),
                Ok(LsaBody::Summary(_) | LsaBody::External(_) | LsaBody::Opaque) | Err(_) => {}
            }
        }
        graph
    }

    /// The edges that leave a vertex, those that come back only (step 2b).
    fn edges(&self, from: Vertex) -> Vec<(Vertex, u32)> {
        let edges = match from {
            Vertex::Network(id) => {
                let routers = self.networks.get(&id).into_iter().flat_map(|net| &net.routers);
                routers.map(|router| (Vertex::Router(*router), 0)).collect()
            }
            Vertex::Router(id) => self.router_edges(id),
        };
        edges.into_iter().filter(|(to, _)| self.leads_back(*to, from)).collect()
    }

    fn router_edges(&self, id: Ipv4Addr) -> Vec<(Vertex, u32)> {
        let links = self.routers.get(&id).into_iter().flat_map(|router| &router.links);
        let edge = |link: &crate::packet::RouterLink| match link.kind {
            LinkKind::PointToPoint => Some((Vertex::Router(link.id), u32::from(link.metric))),
            LinkKind::Transit => Some((Vertex::Network(link.id), u32::from(link.metric))),
            LinkKind::Stub | LinkKind::Virtual => None,
        };
        links.filter_map(edge).collect()
    }

    pub(super) fn leads_back(&self, from: Vertex, to: Vertex) -> bool {
        match from {
            Vertex::Router(id) => self.router_edges(id).iter().any(|(target, _)| *target == to),
            Vertex::Network(id) => match to {
                Vertex::Router(router) => {
                    self.networks.get(&id).is_some_and(|net| net.routers.contains(&router))
                }
                Vertex::Network(_) => false,
            },
        }
    }

    /// The address of a router on a transit network.
    fn address_on(&self, router: Ipv4Addr, network: Ipv4Addr) -> Option<Ipv4Addr> {
        let links = &self.routers.get(&router)?.links;
        let link = links.iter().find(|link| link.kind == LinkKind::Transit && link.id == network)?;
        Some(link.data)
    }

    /// Next hops of `to`, reached over `via` (section 16.1.1).
    fn hops(&self, via: Vertex, hops: &BTreeSet<NextHop>, to: Vertex) -> BTreeSet<NextHop> {
        let resolve = |hop: &NextHop| match (hop.gateway, via, to) {
            (None, Vertex::Network(network), Vertex::Router(router)) => {
                Some(NextHop { gateway: Some(self.address_on(router, network)?), ..*hop })
            }
            _ => Some(*hop),
        };
        hops.iter().filter_map(resolve).collect()
    }

    /// The tree over `roots`: what is attached to us directly, with its cost and next hop.
    pub(super) fn shortest_paths(
        &self,
        us: Ipv4Addr,
        roots: Vec<(Vertex, u32, NextHop)>,
    ) -> BTreeMap<Vertex, Reach> {
        let mut candidates: BTreeMap<Vertex, Reach> = BTreeMap::new();
        let mut queue: BTreeSet<(u32, Vertex)> = BTreeSet::new();
        let mut tree = BTreeMap::new();
        let offer = |candidates: &mut BTreeMap<Vertex, Reach>,
                     queue: &mut BTreeSet<(u32, Vertex)>,
                     to: Vertex,
                     cost: u32,
                     hops: BTreeSet<NextHop>| {
            let known = candidates.get(&to).map(|reach| reach.cost);
            if hops.is_empty() || known.is_some_and(|known| known < cost) {
                return;
            }
            if known == Some(cost) {
                candidates.entry(to).or_default().hops.extend(hops);
                return;
            }
            if let Some(known) = known {
                queue.remove(&(known, to));
            }
            queue.insert((cost, to));
            candidates.insert(to, Reach { cost, hops });
        };
        for (to, cost, hop) in roots.into_iter().filter(|(to, ..)| self.leads_back(*to, Vertex::Router(us))) {
            offer(&mut candidates, &mut queue, to, cost, BTreeSet::from([hop]));
        }
        while let Some((cost, vertex)) = queue.pop_first() {
            let Some(reach) = candidates.remove(&vertex) else { continue };
            for (to, metric) in self.edges(vertex) {
                if to != Vertex::Router(us) && !tree.contains_key(&to) && to != vertex {
                    let hops = self.hops(vertex, &reach.hops, to);
                    offer(&mut candidates, &mut queue, to, cost.saturating_add(metric), hops);
                }
            }
            tree.insert(vertex, reach);
        }
        tree
    }
}

impl Speaker {
    /// Calculates the routes if it is time, and hands them out if they differ.
    pub(super) fn run_spf(&mut self) {
        if !is_due(self.spf.due, self.now) {
            return;
        }
        self.spf.due = None;
        self.spf.last = Some(self.now);
        let routes = self.calculate_routes();
        if routes != self.routes {
            self.routes.clone_from(&routes);
            self.outputs.push_back(super::Output::Routes(routes));
        }
    }

    /// What our interfaces attach us to in an area.
    pub(super) fn roots(&self, area: Ipv4Addr) -> Vec<(Vertex, u32, NextHop)> {
        let mut roots = Vec::new();
        for (id, interface) in self.interfaces.iter().filter(|(_, i)| i.config.area == area) {
            let cost = u32::from(interface.config.cost);
            if interface.is_on_transit() {
                let hop = NextHop { interface: *id, gateway: None };
                roots.push((Vertex::Network(interface.dr), cost, hop));
            } else if interface.state == InterfaceState::PointToPoint {
                let full = |interface: &Interface| {
                    let all = interface.neighbors.values();
                    let full = all.filter(|n| n.state == NeighborState::Full);
                    full.map(|n| (n.router, n.address)).collect::<Vec<_>>()
                };
                for (router, address) in full(interface) {
                    let hop = NextHop { interface: *id, gateway: Some(address) };
                    roots.push((Vertex::Router(router), cost, hop));
                }
            }
        }
        roots
    }
}
