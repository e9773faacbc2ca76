//! The routing table in its stages (RFC 2328 section 16, RFC 3101 section 2.5, RFC 5340 section 4.8): the trees
//! of the areas, then what lies in other areas, then what lies outside the domain, last what of it is wanted.
//! Each stage keeps its result, so that a change begins with the first stage it concerns.
//!
//! External paths are compared by RFC 2328's rule (section 16.4.1), not by that of RFC 1583: the latter depends
//! on all routers of a domain doing the same, and one that only ever routes its own packets makes no loop.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, Ipv4Addr},
    sync::Arc,
};

use ipnet::IpNet;

use super::{
    Extent, Interface, InterfaceState, Machine, NextHop, Output, PathKind, Protocol, Route, Selection,
    route::{Hops, Rank, Table},
    spf::{Reach, Summary, Vertex},
};
use crate::{
    config::AreaKind,
    packet::{FLAG_BORDER, FLAG_EXTERNAL, LS_INFINITY},
};

/// A destination outside the domain, whatever version its LSA is of.
#[derive(Clone, Copy, Debug)]
pub struct External {
    /// Router id of the AS boundary router.
    pub(super) router: Ipv4Addr,
    /// The NSSA, if it is an NSSA-LSA.
    pub(super) nssa: Option<Ipv4Addr>,
    pub(super) prefix: IpNet,
    /// Metric of type 2: above all metrics inside the domain.
    pub(super) type_2: bool,
    pub(super) metric: u32,
    /// Where to forward, if not to the boundary router.
    pub(super) forwarding: Option<IpAddr>,
}

/// What the tree of an area says about its special routers.
#[derive(Debug)]
struct AreaView {
    kind: AreaKind,
    borders: BTreeMap<Ipv4Addr, Reach>,
    boundaries: BTreeMap<Ipv4Addr, Reach>,
}

/// How an AS boundary router is reached through one area.
#[derive(Clone, Debug)]
struct Way {
    kind: PathKind,
    reach: Reach,
}

/// Ways to AS boundary routers by area: an inter-area one only where there is no other.
type Boundaries = BTreeMap<Ipv4Addr, BTreeMap<Ipv4Addr, Way>>;

/// Results of the stages.
#[derive(Debug, Default)]
pub(super) struct Calculation {
    areas: BTreeMap<Ipv4Addr, AreaView>,
    /// Destinations inside our areas.
    intra: Table,
    /// And in other areas.
    internal: Table,
    boundaries: Boundaries,
    /// And outside the domain.
    all: Table,
}

impl<V: Protocol> Machine<V> {
    /// Calculates the routes if it is time, and hands them out if they differ.
    pub(super) fn run_spf(&mut self) {
        if !self.spf.poll_due(self.now) {
            return;
        }
        let extent = self.pending_extent().unwrap_or(Extent::Full);
        let routes = self.calculate_routes(extent);
        let changed = routes != self.routes;
        if changed {
            self.routes.clone_from(&routes);
            self.outputs.push_back(Output::Routes(routes));
        }
        self.record_spf(changed);
    }

    /// Brings the stages from `extent` on up to date.
    pub(super) fn calculate_routes(&mut self, extent: Extent) -> Vec<Route> {
        let mut stages = std::mem::take(&mut self.calculation);
        if extent >= Extent::Full {
            self.calculate_areas(&mut stages);
        }
        if extent >= Extent::InterArea {
            stages.internal = stages.intra.clone();
            self.add_summaries(&mut stages);
        }
        if extent >= Extent::Externals {
            stages.all = stages.internal.clone();
            self.add_externals(&mut stages);
        }
        let wanted = |prefix: &IpNet| self.selection(prefix) == Selection::Wanted;
        let routes = stages.all.routes(self.config.max_paths, wanted);
        self.calculation = stages;
        routes
    }

    /// Whether a learned prefix may go to the kernel, and why not.
    pub(super) fn selection(&self, prefix: &IpNet) -> Selection {
        let attached = |interface: &Interface<V>| {
            let nets = || interface.link.address.as_ref().map(V::nets).unwrap_or_default();
            interface.state != InterfaceState::Down && nets().iter().any(|net| net.trunc() == *prefix)
        };
        if self.interfaces.values().any(attached) {
            Selection::Attached
        } else if self.announced.contains_key(prefix) {
            Selection::Announced
        } else if self.is_protected(*prefix) {
            Selection::Protected
        } else if self.config.aggregates.iter().any(|pool| pool.contains(prefix)) {
            Selection::Aggregate
        } else if V::import(&self.config).iter().any(|admitted| admitted.contains(prefix)) {
            Selection::Wanted
        } else {
            Selection::NotImported
        }
    }

    /// Every destination that is known, with what becomes of it.
    pub(super) fn all_routes(&self) -> Vec<(Route, Selection)> {
        let judged = |route: Route| {
            let selection = self.selection(&route.prefix);
            (route, selection)
        };
        self.calculation.all.every_route(self.config.max_paths).map(judged).collect()
    }

    /// Section 16.1 for each area.
    fn calculate_areas(&self, stages: &mut Calculation) {
        *stages = Calculation::default();
        let areas: BTreeMap<_, _> =
            self.interfaces.values().map(|i| (i.config.area, i.config.area_kind)).collect();
        for (area, kind) in areas {
            let graph = V::graph(self, area);
            let tree = graph.shortest_paths(self.config.router_id, self.roots(area));
            for (vertex, prefix, metric) in &graph.prefixes {
                if let Some(reach) = tree.get(vertex) {
                    let cost = reach.cost.saturating_add(*metric);
                    stages.intra.offer(*prefix, Rank::internal(PathKind::IntraArea, cost), &reach.hops);
                }
            }
            let flagged = |flag: u8| {
                let routers = graph.routers.iter().filter(move |(_, router)| router.flags & flag != 0);
                routers.filter_map(|(id, _)| Some((*id, tree.get(&Vertex::Router(*id))?.clone()))).collect()
            };
            let (borders, boundaries) = (flagged(FLAG_BORDER), flagged(FLAG_EXTERNAL));
            stages.areas.insert(area, AreaView { kind, borders, boundaries });
        }
        self.add_own_links(&mut stages.intra);
    }

    /// Our own links are inside our areas, too: a forwarding address on one is reached without anybody's help.
    fn add_own_links(&self, intra: &mut Table) {
        for (id, interface) in self.interfaces_up() {
            let hops = Arc::new(BTreeSet::from([NextHop { interface: id, gateway: None }]));
            let rank = Rank::internal(PathKind::IntraArea, interface.config.cost.into());
            for net in interface.link.address.as_ref().map(V::nets).unwrap_or_default() {
                intra.offer(net.trunc(), rank, &hops);
            }
        }
    }

    /// Section 16.2, of every area: without being an area border router we have no backbone to prefer.
    fn add_summaries(&self, stages: &mut Calculation) {
        stages.boundaries.clear();
        for (area, view) in &stages.areas {
            for (router, reach) in &view.boundaries {
                let way = Way { kind: PathKind::IntraArea, reach: reach.clone() };
                stages.boundaries.entry(*router).or_default().insert(*area, way);
            }
            for (border, summary, metric) in V::summaries(self, *area) {
                // "If the cost specified by the LSA is equal to LSInfinity …, then examine the next LSA."
                let Some(reach) = view.borders.get(&border).filter(|_| metric < LS_INFINITY) else {
                    continue;
                };
                let cost = reach.cost.saturating_add(metric);
                match summary {
                    Summary::Prefix(prefix) if view.kind.admits_summary(&prefix) => {
                        let rank = Rank::internal(PathKind::InterArea, cost);
                        stages.internal.offer(prefix, rank, &reach.hops);
                    }
                    Summary::Prefix(_) => {}
                    Summary::Boundary(router) => {
                        let way = Way {
                            kind: PathKind::InterArea,
                            reach: Reach { cost, hops: Hops::clone(&reach.hops) },
                        };
                        offer_boundary(stages.boundaries.entry(router).or_default(), *area, way);
                    }
                }
            }
        }
    }

    /// Section 16.4, with RFC 3101 section 2.5.
    fn add_externals(&self, stages: &mut Calculation) {
        for external in V::externals(self).iter().filter(|external| external.metric < LS_INFINITY) {
            if let Some((preference, distance, hops)) = self.way_out(external, stages) {
                let rank = Rank::external(external.type_2, external.metric, preference, distance);
                stages.all.offer(external.prefix, rank, &hops);
            }
        }
    }

    /// Preference, distance and next hops to the forwarding address, or to the originator where there is none.
    fn way_out(&self, external: &External, stages: &Calculation) -> Option<(u8, u32, Hops)> {
        // "Since the flooding scope of a Type-7 LSA is restricted to the originating NSSA, the routing table entry of
        // its ASBR must be found in the originating NSSA." A type 5 needs an area that type 5 is flooded in.
        let usable = |area: &Ipv4Addr| match external.nssa {
            Some(nssa) => *area == nssa,
            None => stages.areas.get(area).is_some_and(|view| view.kind == AreaKind::Normal),
        };
        let ways = stages.boundaries.get(&external.router)?.iter().filter(|(area, _)| usable(area));
        // Section 16.4 step 3: the preferred, then the nearest, then of the area with the largest id.
        let best = ways.min_by_key(|(area, way)| {
            (preference(way.kind, **area), way.reach.cost, std::cmp::Reverse(**area))
        });
        let (area, way) = best?;
        let Some(forwarding) = external.forwarding else {
            let hops = Hops::clone(&way.reach.hops);
            return Some((preference(way.kind, *area), way.reach.cost, hops));
        };
        let (rank, hops) = stages.internal.lookup(forwarding)?;
        // "For a Type-5 LSA the matching routing table entry must specify an intra-area or inter-area path through a
        // Type-5 capable area. For a Type-7 LSA the matching routing table entry must specify an intra-area path
        // through the LSA's originating NSSA."
        if external.nssa.is_some() && rank.kind != PathKind::IntraArea {
            return None;
        }
        let area_of = |hop: &NextHop| self.interfaces.get(&hop.interface).map(|i| i.config.area);
        let there: Vec<_> = hops.iter().filter(|hop| area_of(hop).as_ref().is_some_and(usable)).collect();
        let area = there.iter().filter_map(|hop| area_of(hop)).max()?;
        let direct = |hop: &&NextHop| NextHop { gateway: hop.gateway.or(Some(forwarding)), ..**hop };
        let hops = Arc::new(there.iter().map(direct).collect());
        Some((preference(rank.kind, area), rank.distance, hops))
    }
}

/// "Intra-area paths using non-backbone areas are always the most preferred. The other paths, intra-area backbone
/// paths and inter-area paths, are of equal preference." (section 16.4.1)
fn preference(kind: PathKind, area: Ipv4Addr) -> u8 {
    u8::from(kind != PathKind::IntraArea || area.is_unspecified())
}

fn offer_boundary(ways: &mut BTreeMap<Ipv4Addr, Way>, area: Ipv4Addr, way: Way) {
    match ways.get_mut(&area) {
        Some(known) if (known.kind, known.reach.cost) < (way.kind, way.reach.cost) => {}
        Some(known) if (known.kind, known.reach.cost) == (way.kind, way.reach.cost) => {
            Arc::make_mut(&mut known.reach.hops).extend(way.reach.hops.iter());
        }
        _ => drop(ways.insert(area, way)),
    }
}
