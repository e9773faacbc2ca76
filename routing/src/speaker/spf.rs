//! Shortest paths inside an area (RFC 2328 section 16.1, RFC 5340 section 4.8): Dijkstra with all equal paths,
//! rooted in the interfaces rather than in our own Router-LSA, whose transit metrics are meant for others.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, Ipv4Addr},
    time::Duration,
};

use ipnet::IpNet;

use super::{InterfaceState, Machine, NextHop, Protocol, Time, is_due};

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

/// A transit network: in version 2 by the address of its designated router alone, in version 3 by router id
/// and interface id of the designated router.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct NetworkId {
    /// Router id of the designated router; zero in version 2.
    pub(super) router: Ipv4Addr,
    /// Link state id of the Network-LSA.
    pub(super) id: Ipv4Addr,
}

/// A vertex of the graph; networks come before routers of the same distance (section 16.1 step 3).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Vertex {
    Network(NetworkId),
    /// By router id.
    Router(Ipv4Addr),
}

/// How a vertex is reached.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Reach {
    pub(super) cost: u32,
    pub(super) hops: BTreeSet<NextHop>,
}

/// What a router says of itself.
#[derive(Debug, Default)]
pub(super) struct RouterVertex {
    /// [`FLAG_BORDER`](crate::packet::FLAG_BORDER) and [`FLAG_EXTERNAL`](crate::packet::FLAG_EXTERNAL).
    pub(super) flags: u8,
    /// Not a way through to others (the R bit of RFC 5340 section A.2 is clear).
    pub(super) leaf: bool,
    /// Its links to others, with their costs.
    pub(super) edges: Vec<(Vertex, u32)>,
}

/// What an area border router says of other areas.
#[derive(Debug)]
pub(super) enum Summary {
    Prefix(IpNet),
    /// An AS boundary router.
    Boundary(Ipv4Addr),
}

/// An area's LSAs, whatever version they are of.
#[derive(Debug, Default)]
pub struct Graph {
    pub(super) routers: BTreeMap<Ipv4Addr, RouterVertex>,
    /// Routers attached to each network.
    pub(super) networks: BTreeMap<NetworkId, Vec<Ipv4Addr>>,
    /// Addresses of routers on transit networks, where they are next hops.
    pub(super) addresses: BTreeMap<(NetworkId, Ipv4Addr), IpAddr>,
    /// Prefixes at vertices, with the cost from there.
    pub(super) prefixes: Vec<(Vertex, IpNet, u32)>,
    /// By which border router, what, and at which cost from there.
    pub(super) summaries: Vec<(Ipv4Addr, Summary, u32)>,
}

impl Graph {
    /// The edges that leave a vertex, those that come back only (step 2b).
    fn edges(&self, from: Vertex) -> Vec<(Vertex, u32)> {
        let edges: Vec<_> = match from {
            Vertex::Network(id) => {
                let routers = self.networks.get(&id).into_iter().flatten();
                routers.map(|router| (Vertex::Router(*router), 0)).collect()
            }
            Vertex::Router(id) => {
                let router = self.routers.get(&id).filter(|router| !router.leaf);
                router.map(|router| router.edges.clone()).unwrap_or_default()
            }
        };
        edges.into_iter().filter(|(to, _)| self.leads_back(*to, from)).collect()
    }

    pub(super) fn leads_back(&self, from: Vertex, to: Vertex) -> bool {
        match (from, to) {
            (Vertex::Router(id), to) => {
                let router = self.routers.get(&id);
                router.is_some_and(|router| router.edges.iter().any(|(target, _)| *target == to))
            }
            (Vertex::Network(id), Vertex::Router(router)) => {
                self.networks.get(&id).is_some_and(|routers| routers.contains(&router))
            }
            (Vertex::Network(_), Vertex::Network(_)) => false,
        }
    }

    /// Next hops of `to`, reached over `via` (section 16.1.1).
    fn hops(&self, via: Vertex, hops: &BTreeSet<NextHop>, to: Vertex) -> BTreeSet<NextHop> {
        let resolve = |hop: &NextHop| match (hop.gateway, via, to) {
            (None, Vertex::Network(network), Vertex::Router(router)) => {
                let gateway = *self.addresses.get(&(network, router))?;
                Some(NextHop { gateway: Some(gateway), ..*hop })
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

impl<V: Protocol> Machine<V> {
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
                roots.push((Vertex::Network(V::network_id(interface)), cost, hop));
            } else if interface.state == InterfaceState::PointToPoint {
                for neighbor in interface.full() {
                    let hop = NextHop { interface: *id, gateway: Some(neighbor.address.into()) };
                    roots.push((Vertex::Router(neighbor.router), cost, hop));
                }
            }
        }
        roots
    }
}
