//! What operators see: every route with what becomes of it, every LSA with what it says, and what happened.

use std::collections::BTreeSet;

use super::{fabric, net, p2p, seconds, simulator::Simulator, simulator::Simulator6, simulator::id};
use crate::{
    announce::Announcement,
    config::InterfaceConfig,
    packet::ROUTER,
    speaker::{Event, Input, NeighborState, Refusal, Selection},
};

#[test]
fn every_route_says_why_it_is_not_for_the_kernel() {
    let mut sim = fabric(1, 61);
    let (wanted, vip, own) = (net("198.18.0.0/24"), net("203.0.113.10/32"), net("203.0.113.11/32"));
    sim.announce(0, &[(wanted, 1), (vip, 1), (own, 1)]);
    sim.announce(2, &[(own, 10)]);
    sim.input(2, Input::Protect(BTreeSet::from([vip.into()])));
    sim.until(seconds(10), |sim| sim.cost(2, wanted) == Some(11));
    sim.run(seconds(3));
    let routes = sim.machine(2).route_status();
    let of = |prefix: &str| {
        let found = routes.iter().find(|route| route.prefix == net(prefix).into());
        found.map(|route| (route.selection, route.reason.is_none(), route.next_hops.clone()))
    };
    assert_eq!(
        of("198.18.0.0/24").map(|(selection, bare, _)| (selection, bare)),
        Some((Selection::Wanted, true))
    );
    assert_eq!(of("203.0.113.10/32").map(|(selection, ..)| selection), Some(Selection::Protected));
    assert_eq!(of("203.0.113.11/32").map(|(selection, ..)| selection), Some(Selection::Announced));
    assert_eq!(of("10.0.0.0/24").map(|(selection, ..)| selection), Some(Selection::Attached));
    let (.., hops) = of("198.18.0.0/24").expect("known");
    assert_eq!(hops[0].interface, "eth0");
    assert_eq!(hops[0].gateway, Some("10.0.0.1".parse().expect("an address")));
}

#[test]
fn route_outside_of_import_is_known_and_not_wanted() {
    let mut sim = Simulator::new(62);
    sim.segment(&[(0, p2p()), (1, p2p())]);
    sim.start();
    let (inside, outside) = (net("198.18.0.0/24"), net("198.19.0.0/24"));
    sim.announce(0, &[(inside, 1), (outside, 1)]);
    sim.until(seconds(10), |sim| sim.cost(1, inside).is_some() && sim.cost(1, outside).is_some());
    sim.machine(1).config.import = vec![net("198.18.0.0/16")];
    let routes = sim.machine(1).route_status();
    let refused: Vec<_> =
        routes.iter().filter(|route| route.selection == Selection::NotImported).map(|r| r.prefix).collect();
    assert_eq!(refused, [outside.into()]);
}

#[test]
fn databases_tell_our_own_lsas_from_others_and_what_each_says() {
    let mut sim = fabric(1, 63);
    let vip = net("203.0.113.10/32");
    sim.announce_as(2, &[(vip, Announcement::stub(7)), (net("203.0.113.11/32"), Announcement::external(8))]);
    sim.until(seconds(10), |sim| sim.hops(0, vip) == 1);
    sim.run(seconds(3));
    let lsdb = sim.machine(2).lsdb(true);
    let own: Vec<_> =
        lsdb.iter().filter(|detail| detail.lsa.own).map(|detail| detail.name.as_str()).collect();
    assert_eq!(own, ["router", "external"]);
    let says = |name: &str, router| {
        let found = lsdb.iter().find(|detail| detail.name == name && detail.lsa.router == router);
        found.map(|detail| detail.body.clone()).expect("held")
    };
    let router = says("router", id(2));
    for line in [
        "AS boundary router",
        "point-to-point link to 10.255.0.1, address 10.0.0.2, metric max",
        "stub network 203.0.113.10/32, metric 7",
    ] {
        assert!(router.iter().any(|said| said == line), "{line:?} is not in {router:?}");
    }
    assert_eq!(says("external", id(2)), ["prefix 203.0.113.11/32, metric 8 (E2)"]);
    assert!(!says("router", id(0)).is_empty(), "others' as well");
    assert!(sim.machine(2).lsdb(false).iter().all(|detail| detail.body.is_empty()));
}

#[test]
fn databases_of_version_3_say_whose_the_prefixes_are() {
    let mut sim = Simulator6::new(64);
    sim.segment(&[(0, p2p()), (1, p2p())]);
    sim.start();
    let vip = "2001:db8:ffff::10/128".parse().expect("a prefix");
    sim.announce(1, &[(vip, 7)]);
    sim.until(seconds(10), |sim| sim.hops(0, vip) == 1);
    let lsdb = sim.machine(0).lsdb(true);
    let of_vip = lsdb.iter().find(|detail| detail.body.iter().any(|line| line.contains("ffff::10")));
    let of_vip = of_vip.expect("held");
    assert_eq!((of_vip.name.as_str(), of_vip.lsa.own), ("intra-area-prefix", false));
    assert_eq!(of_vip.body, ["of router 10.255.0.2", "prefix 2001:db8:ffff::10/128, metric 7"]);
    let links = lsdb.iter().filter(|detail| detail.name == "link").count();
    assert_eq!(links, 2, "{lsdb:?}");
    assert!(lsdb.iter().any(|detail| detail.body[0].contains("point-to-point link to")));
}

#[test]
fn refusals_are_counted_where_they_happened() {
    let mut sim = Simulator::new(65);
    let slow = InterfaceConfig { hello_interval: 2, dead_interval: 8, ..p2p() };
    sim.segment(&[(0, p2p()), (1, p2p())]);
    sim.segment(&[(0, p2p()), (2, slow)]);
    sim.start();
    sim.until(seconds(10), |sim| sim.full(0) == 1);
    sim.run(seconds(5));
    let status = sim.status(0);
    assert!(status.interfaces[0].refused.is_empty());
    let refused = status.interfaces[1].refused.get(&Refusal::HelloInterval).copied().unwrap_or(0);
    assert!(refused > 0 && status.counters[&Refusal::HelloInterval] == refused, "{:?}", status.counters);
    assert_eq!((status.interfaces[0].neighbors, status.interfaces[0].adjacencies), (1, 1));
    assert!(status.interfaces[0].hello_in_ms.is_some_and(|due| due <= 1000));
}

#[test]
fn a_flap_can_be_read_afterwards() {
    let mut sim = Simulator::new(66);
    sim.segment(&[(0, p2p()), (1, p2p())]);
    sim.start();
    sim.until(seconds(5), |sim| sim.all_full(2) && sim.lsa_count(0, ROUTER) == 2);
    sim.set_link(0, false);
    sim.run(seconds(1));
    sim.set_link(0, true);
    sim.until(seconds(10), |sim| sim.all_full(2));
    sim.run(seconds(2));
    let states = sim.status(0).state_events;
    let fulls = states.iter().filter(|record| {
        matches!(record.event, Event::Neighbor { from: NeighborState::Full, to: NeighborState::Down, .. })
    });
    let ago: Vec<u64> = fulls.map(|record| record.ago_ms).collect();
    assert!(ago.len() == 1 && ago[0] >= 2000, "{states:?}");
    assert!(states.is_sorted_by_key(|record| std::cmp::Reverse(record.ago_ms)));
    assert!(states.iter().any(|record| matches!(record.event, Event::Interface { .. })));
}
