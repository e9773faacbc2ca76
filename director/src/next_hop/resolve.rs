//! The decision: from what the kernel says to a way.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use crate::dataplane::NextHop;

/// An interface as far as it matters.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Link {
    /// Its link address.
    pub(super) mac: [u8; 6],
    /// Largest IP packet in bytes.
    pub(super) mtu: u32,
    /// Up, and with a carrier.
    pub(super) running: bool,
    /// Of a kind to which a program in the driver cannot redirect (no `ndo_xdp_xmit`): only one in generic mode can.
    pub(super) generic_only: bool,
}

/// What the kernel knows of a neighbour.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Neighbour {
    /// It has this link address. `fresh` if that needs no probing now.
    Known {
        /// The link address.
        mac: [u8; 6],
        /// Confirmed lately, being confirmed, or permanent.
        fresh: bool,
    },
    /// Being asked for.
    Resolving,
    /// It does not answer.
    Failed,
}

/// Where a route leads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Route {
    /// Interface to leave by.
    pub(super) ifindex: u32,
    /// Whom to ask for by its link address: the gateway, or the real server itself.
    pub(super) gateway: IpAddr,
    /// Largest IP packet on the way in bytes, if the route says (`ip route … mtu`, or a path MTU the kernel has
    /// learned).
    pub(super) mtu: Option<u32>,
}

/// Everything the kernel said at one time.
#[derive(Clone, Debug, Default)]
pub(super) struct Ways {
    pub(super) links: BTreeMap<u32, Link>,
    pub(super) neighbours: BTreeMap<(u32, IpAddr), Neighbour>,
    /// Addresses that have no route are missing.
    pub(super) routes: BTreeMap<IpAddr, Route>,
}

impl Ways {
    /// Neighbours on some way that should be probed: interface and address.
    pub(super) fn doubtful(&self) -> BTreeSet<(u32, IpAddr)> {
        let fresh = |key: &(u32, IpAddr)| {
            matches!(
                self.neighbours.get(key),
                Some(Neighbour::Known { fresh: true, .. } | Neighbour::Resolving)
            )
        };
        self.routes.values().map(|route| (route.ifindex, route.gateway)).filter(|key| !fresh(key)).collect()
    }
}

/// The way to `address`, given the one before.
pub(super) fn resolve(address: IpAddr, ways: &Ways, before: Option<NextHop>) -> Option<NextHop> {
    let route = ways.routes.get(&address)?;
    let link = ways.links.get(&route.ifindex).filter(|link| link.running)?;
    let way = |destination_mac| NextHop {
        ifindex: route.ifindex,
        source_mac: link.mac,
        destination_mac,
        mtu: route.mtu.map_or(link.mtu, |mtu| mtu.min(link.mtu)),
    };
    match ways.neighbours.get(&(route.ifindex, route.gateway)) {
        Some(Neighbour::Known { mac, .. }) => Some(way(*mac)),
        Some(Neighbour::Failed) => None,
        // Not said to be gone: the same station as before, as long as it is on the same link.
        Some(Neighbour::Resolving) | None => {
            before.filter(|before| before.ifindex == route.ifindex).map(|before| way(before.destination_mac))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const US: [u8; 6] = [2, 0, 0, 0, 0, 1];
    const THEM: [u8; 6] = [2, 0, 0, 0, 0, 2];

    fn real() -> IpAddr {
        IpAddr::from([10, 0, 2, 11])
    }

    fn ways(neighbour: Option<Neighbour>) -> Ways {
        let mut ways = Ways::default();
        ways.links.insert(3, Link { mac: US, mtu: 1500, running: true, generic_only: false });
        ways.routes.insert(real(), Route { ifindex: 3, gateway: real(), mtu: None });
        ways.neighbours.extend(neighbour.map(|neighbour| ((3, real()), neighbour)));
        ways
    }

    const WAY: NextHop = NextHop { ifindex: 3, source_mac: US, destination_mac: THEM, mtu: 1500 };

    #[test]
    fn neighbour_states_decide() {
        let known = |fresh| Some(Neighbour::Known { mac: THEM, fresh });
        let rows = [
            ("fresh", known(true), None, Some(WAY), false),
            ("stale", known(false), None, Some(WAY), true),
            ("being resolved, unknown before", Some(Neighbour::Resolving), None, None, false),
            ("being resolved, known before", Some(Neighbour::Resolving), Some(WAY), Some(WAY), false),
            ("collected as garbage", None, Some(WAY), Some(WAY), true),
            ("never heard of", None, None, None, true),
            ("does not answer", Some(Neighbour::Failed), Some(WAY), None, true),
        ];
        for (what, neighbour, before, expected, probed) in rows {
            let ways = ways(neighbour);
            assert_eq!(resolve(real(), &ways, before), expected, "{what}");
            assert_eq!(!ways.doubtful().is_empty(), probed, "{what}");
        }
    }

    #[test]
    fn link_down_and_lost_route_end_the_way_at_once() {
        let mut down = ways(Some(Neighbour::Known { mac: THEM, fresh: true }));
        down.links.insert(3, Link { mac: US, mtu: 1500, running: false, generic_only: false });
        assert_eq!(resolve(real(), &down, Some(WAY)), None);
        let mut unreachable = ways(Some(Neighbour::Known { mac: THEM, fresh: true }));
        unreachable.routes.clear();
        assert_eq!(resolve(real(), &unreachable, Some(WAY)), None);
    }

    #[test]
    fn a_way_by_another_link_is_not_guessed() {
        let mut moved = ways(None);
        moved.links.insert(4, Link { mac: US, mtu: 9000, running: true, generic_only: false });
        moved.routes.insert(real(), Route { ifindex: 4, gateway: real(), mtu: None });
        assert_eq!(resolve(real(), &moved, Some(WAY)), None);
    }

    #[test]
    fn the_smaller_of_the_links_and_the_routes_mtu_counts() {
        for (mtu, expected) in [(None, 1500), (Some(1400), 1400), (Some(9000), 1500)] {
            let mut ways = ways(Some(Neighbour::Known { mac: THEM, fresh: true }));
            ways.routes.insert(real(), Route { ifindex: 3, gateway: real(), mtu });
            assert_eq!(resolve(real(), &ways, None).map(|way| way.mtu), Some(expected));
        }
    }

    #[test]
    fn equal_link_local_gateways_on_two_links_are_two_neighbours() {
        let gateway = IpAddr::from([0xfe80, 0, 0, 0, 0, 0, 0, 1]);
        let reals = [11, 12].map(|last| IpAddr::from([0x2001, 0xdb8, 0, 0, 0, 0, 0, last]));
        let mut ways = Ways::default();
        for (ifindex, real) in [3, 4].into_iter().zip(reals) {
            let mac = [2, 0, 0, 0, 1, ifindex];
            let ifindex = u32::from(ifindex);
            ways.links.insert(ifindex, Link { mac: US, mtu: 1500, running: true, generic_only: false });
            ways.routes.insert(real, Route { ifindex, gateway, mtu: None });
            ways.neighbours.insert((ifindex, gateway), Neighbour::Known { mac, fresh: true });
        }
        let macs = reals.map(|real| resolve(real, &ways, None).map(|way| way.destination_mac));
        assert_eq!(macs, [Some([2, 0, 0, 0, 1, 3]), Some([2, 0, 0, 0, 1, 4])]);
    }
}
