//! Shortest paths inside an area (RFC 2328 section 16.1, RFC 5340 section 4.8): Dijkstra with all equal paths,
//! rooted in the interfaces rather than in our own Router-LSA, whose transit metrics are meant for others.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, Ipv4Addr},
    sync::Arc,
};

use ipnet::IpNet;

use super::{InterfaceState, Machine, NextHop, Protocol, route::Hops};

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
    pub(super) hops: Hops,
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
pub enum Summary {
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
    fn hops(&self, via: Vertex, hops: &Hops, to: Vertex) -> Hops {
        let (Vertex::Network(network), Vertex::Router(router)) = (via, to) else { return Hops::clone(hops) };
        if hops.iter().all(|hop| hop.gateway.is_some()) {
            return Hops::clone(hops);
        }
        let resolve = |hop: &NextHop| {
            let gateway = hop.gateway.or_else(|| self.addresses.get(&(network, router)).copied())?;
            Some(NextHop { gateway: Some(gateway), ..*hop })
        };
        Arc::new(hops.iter().filter_map(resolve).collect())
    }

    /// The tree over `roots`: what is attached to us directly, with its cost and next hop.
    pub(super) fn shortest_paths(
        &self,
        us: Ipv4Addr,
        roots: Vec<(Vertex, u32, NextHop)>,
    ) -> BTreeMap<Vertex, Reach> {
        let (mut candidates, mut tree) = (Candidates::default(), BTreeMap::new());
        for (to, cost, hop) in roots.into_iter().filter(|(to, ..)| self.leads_back(*to, Vertex::Router(us))) {
            candidates.offer(to, cost, Arc::new(BTreeSet::from([hop])));
        }
        while let Some((vertex, reach)) = candidates.pop() {
            for (to, metric) in self.edges(vertex) {
                if to != Vertex::Router(us) && !tree.contains_key(&to) && to != vertex {
                    let hops = self.hops(vertex, &reach.hops, to);
                    candidates.offer(to, reach.cost.saturating_add(metric), hops);
                }
            }
            tree.insert(vertex, reach);
        }
        tree
    }
}

/// The candidate list (section 16.1), with the nearest first.
#[derive(Debug, Default)]
struct Candidates {
    reached: BTreeMap<Vertex, Reach>,
    nearest: BTreeSet<(u32, Vertex)>,
}

impl Candidates {
    /// Step 2d: shorter ways replace what is known, equal ones add their next hops.
    fn offer(&mut self, to: Vertex, cost: u32, hops: Hops) {
        if hops.is_empty() {
            return;
        }
        match self.reached.get_mut(&to) {
            Some(known) if known.cost < cost => return,
            Some(known) if known.cost == cost => {
                if !hops.is_subset(&known.hops) {
                    Arc::make_mut(&mut known.hops).extend(hops.iter());
                }
                return;
            }
            Some(known) => drop(self.nearest.remove(&(known.cost, to))),
            None => {}
        }
        self.nearest.insert((cost, to));
        self.reached.insert(to, Reach { cost, hops });
    }

    /// Step 3.
    fn pop(&mut self) -> Option<(Vertex, Reach)> {
        let (_, vertex) = self.nearest.pop_first()?;
        Some((vertex, self.reached.remove(&vertex)?))
    }
}

impl<V: Protocol> Machine<V> {
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
