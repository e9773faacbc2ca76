//! Routes, and the table that collects them by preference (RFC 2328 section 11).

use std::{
    collections::{BTreeMap, BTreeSet, btree_map::Entry},
    net::IpAddr,
    sync::Arc,
};

use ipnet::IpNet;
use serde::{Deserialize, Serialize};

use super::InterfaceId;

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

/// Equal next hops, shared by all that go the same way.
pub(super) type Hops = Arc<BTreeSet<NextHop>>;

/// Order of preference among the paths to one destination (sections 11 and 16.4 step 6).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Rank {
    pub(super) kind: PathKind,
    /// External metric of type 2; zero for all other kinds.
    pub(super) type_2: u32,
    /// Preference of the way inside the domain (section 16.4.1); zero for all but external kinds.
    pub(super) way: u8,
    /// Distance inside the domain, of type 1 with the external metric.
    pub(super) distance: u32,
}

impl Rank {
    pub(super) fn internal(kind: PathKind, distance: u32) -> Self {
        Self { kind, type_2: 0, way: 0, distance }
    }

    pub(super) fn external(type_2: bool, metric: u32, way: u8, distance: u32) -> Self {
        if type_2 {
            Self { kind: PathKind::External2, type_2: metric, way, distance }
        } else {
            let distance = distance.saturating_add(metric);
            Self { kind: PathKind::External1, type_2: 0, way, distance }
        }
    }

    /// What is shown as the cost.
    fn cost(&self) -> u32 {
        if self.kind == PathKind::External2 { self.type_2 } else { self.distance }
    }
}

/// The best paths to each destination.
#[derive(Clone, Debug, Default)]
pub(super) struct Table(BTreeMap<IpNet, (Rank, Hops)>);

impl Table {
    /// Takes a path if none is better; equal ones add up.
    pub(super) fn offer(&mut self, prefix: IpNet, rank: Rank, hops: &Hops) {
        match self.0.entry(prefix) {
            Entry::Vacant(place) => drop(place.insert((rank, Hops::clone(hops)))),
            Entry::Occupied(mut place) => {
                let (known, all) = place.get_mut();
                if rank < *known {
                    (*known, *all) = (rank, Hops::clone(hops));
                } else if rank == *known && !hops.is_subset(all) {
                    Arc::make_mut(all).extend(hops.iter());
                }
            }
        }
    }

    /// The longest match.
    pub(super) fn lookup(&self, address: IpAddr) -> Option<(Rank, &Hops)> {
        let most = if address.is_ipv4() { 32 } else { 128 };
        let at = |length: u8| self.0.get(&IpNet::new(address, length).ok()?.trunc());
        let (rank, hops) = (0..=most).rev().find_map(at)?;
        Some((*rank, hops))
    }

    /// The routes in order of their destinations, with `most` next hops each. Destinations on one of our links
    /// need none.
    pub(super) fn routes(&self, most: usize, wanted: impl Fn(&IpNet) -> bool) -> Vec<Route> {
        let through_a_router = |(rank, hops): &(Rank, Hops), prefix: &IpNet| {
            let gateways = hops.iter().filter(|hop| hop.gateway.is_some());
            let next_hops: Vec<_> = gateways.take(most).copied().collect();
            let route = Route { prefix: *prefix, kind: rank.kind, cost: rank.cost(), next_hops };
            (!route.next_hops.is_empty()).then_some(route)
        };
        let wanted = self.0.iter().filter(|(prefix, _)| wanted(prefix));
        wanted.filter_map(|(prefix, path)| through_a_router(path, prefix)).collect()
    }

    /// Every route, those on our own links included, with `most` next hops each.
    pub(super) fn every_route(&self, most: usize) -> impl Iterator<Item = Route> {
        self.0.iter().map(move |(prefix, (rank, hops))| {
            let next_hops = hops.iter().take(most).copied().collect();
            Route { prefix: *prefix, kind: rank.kind, cost: rank.cost(), next_hops }
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn net(text: &str) -> IpNet {
        text.parse().expect("a prefix")
    }

    fn hops(gateway: &str) -> Hops {
        let gateway = Some(gateway.parse().expect("an address"));
        Arc::new(BTreeSet::from([NextHop { interface: InterfaceId(0), gateway }]))
    }

    #[test]
    fn longest_match_wins_and_the_default_matches_all() {
        let mut table = Table::default();
        let rank = |distance| Rank::internal(PathKind::IntraArea, distance);
        for (prefix, distance) in [("0.0.0.0/0", 1), ("10.0.0.0/8", 2), ("10.1.0.0/16", 3), ("::/0", 4)] {
            table.offer(net(prefix), rank(distance), &hops("10.9.9.9"));
        }
        let found =
            |address: &str| table.lookup(address.parse().expect("an address")).map(|(rank, _)| rank.distance);
        assert_eq!([found("10.1.2.3"), found("10.2.0.0"), found("9.9.9.9")], [Some(3), Some(2), Some(1)]);
        assert_eq!(found("2001:db8::1"), Some(4));
    }

    /// "(b) Type 1 external paths are always preferred over type 2 external paths. When all paths are type 2
    /// external paths, the paths with the smallest advertised type 2 metric are always preferred." (RFC 2328
    /// section 16.4 step 6)
    #[test]
    fn paths_are_preferred_in_the_order_of_the_rfc() {
        let order = [
            Rank::internal(PathKind::IntraArea, 9000),
            Rank::internal(PathKind::InterArea, 10),
            Rank::external(false, 100, 0, 900),
            Rank::external(false, 1, 1, 1), // a longer way by section 16.4.1, however cheap
            Rank::external(true, 5, 0, 900),
            Rank::external(true, 5, 1, 1),
            Rank::external(true, 6, 0, 1),
        ];
        assert!(order.is_sorted(), "{order:?}");
        let mut table = Table::default();
        for rank in order.iter().rev() {
            table.offer(net("192.0.2.0/24"), *rank, &hops("10.0.0.1"));
        }
        table.offer(net("192.0.2.0/24"), order[0], &hops("10.0.0.2"));
        let routes = table.routes(16, |_| true);
        assert_eq!((routes[0].cost, routes[0].next_hops.len()), (9000, 2));
    }
}
