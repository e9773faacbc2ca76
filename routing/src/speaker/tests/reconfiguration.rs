//! Settings that change in a running speaker, and adjacencies that outlive it.

use std::{net::Ipv4Addr, time::Duration};

use super::{fabric, lan, net, p2p, seconds, simulator::Simulator};
use crate::{
    announce::Announcement,
    config::{AreaKind, BfdConfig, Config, InterfaceConfig, MetricType},
    packet::EXTERNAL,
    speaker::{Event, Input, InterfaceState, NeighborState},
};

fn change(sim: &mut Simulator, node: usize, change: impl FnOnce(&mut Config)) {
    let mut config = sim.machine(node).config.clone();
    change(&mut config);
    config.validate().expect("valid");
    sim.input(node, Input::Reconfigure(Box::new(config)));
}

/// How often a node saw a neighbour leave Full.
fn losses(sim: &Simulator, node: usize) -> usize {
    let lost = |event: &&Event| matches!(event, Event::Neighbor { from: NeighborState::Full, .. });
    sim.events(node).iter().filter(lost).count()
}

#[test]
fn cost_changes_our_own_routes_at_once() {
    let mut sim = fabric(1, 71);
    let behind = net("198.18.0.0/24");
    sim.announce(0, &[(behind, 1)]);
    sim.announce(1, &[(behind, 1)]);
    sim.until(seconds(10), |sim| sim.hops(2, behind) == 2);
    sim.run(seconds(5));
    change(&mut sim, 2, |config| config.interfaces[0].cost = 30);
    sim.until(Duration::from_millis(100), |sim| sim.hops(2, behind) == 1 && sim.cost(2, behind) == Some(11));
    change(&mut sim, 2, |config| config.interfaces[1].cost = 30);
    sim.until(Duration::from_millis(200), |sim| sim.hops(2, behind) == 2 && sim.cost(2, behind) == Some(31));
    sim.run(seconds(5));
    assert_eq!(losses(&sim, 2) + losses(&sim, 0), 0);
}

/// "The following checks … HelloInterval and RouterDeadInterval … must match the values indicated in the Hello Packet"
/// (RFC 2328 section 10.5): both ends change, one after the other.
#[test]
fn timers_that_both_ends_change_within_the_dead_interval_cost_no_adjacency() {
    let mut sim = Simulator::new(72);
    sim.segment(&[(0, p2p()), (1, p2p())]);
    sim.start();
    sim.until(seconds(5), |sim| sim.all_full(2));
    sim.run(seconds(5));
    for (hello, dead) in [(2, 8), (1, 3)] {
        for node in [0, 1] {
            change(&mut sim, node, |config| {
                (config.interfaces[0].hello_interval, config.interfaces[0].dead_interval) = (hello, dead);
            });
            sim.run(Duration::from_millis(1500));
        }
        sim.run(seconds(20));
    }
    assert_eq!((losses(&sim, 0), losses(&sim, 1)), (0, 0));
    assert_eq!(sim.status(0).interfaces[0].dead_interval, 3);
    // One end alone: the other takes it for dead in the end, and says why.
    change(&mut sim, 0, |config| config.interfaces[0].hello_interval = 2);
    sim.until(seconds(4), |sim| sim.full(0) == 0 && sim.full(1) == 0);
}

#[test]
fn priority_takes_part_in_elections_and_gives_the_role_up() {
    let mut sim = Simulator::new(73);
    sim.segment(&[(0, lan(10)), (1, lan(5)), (2, lan(0))]);
    sim.start();
    sim.until(seconds(20), |sim| sim.all_full(6) && sim.designated(2) == sim.address(0));
    sim.run(seconds(5));
    change(&mut sim, 2, |config| config.interfaces[0].priority = 1);
    sim.run(seconds(5));
    assert_eq!(sim.designated(2), sim.address(0), "a newcomer takes nobody's place");
    change(&mut sim, 0, |config| config.interfaces[0].priority = 0);
    sim.until(seconds(5), |sim| (0..3).all(|node| sim.designated(node) == sim.address(1)));
    sim.until(seconds(5), |sim| sim.status(2).interfaces[0].state == InterfaceState::Backup);
    sim.until(seconds(10), |sim| sim.all_full(6) && sim.databases_equal());
    // The adjacency between the two that kept a role is the old one.
    let of = |node: usize, other: usize| {
        let router = super::id(other);
        let lost = |event: &&Event| matches!(event, Event::Neighbor { from: NeighborState::Full, router: of, .. } if *of == router);
        sim.events(node).iter().filter(lost).count()
    };
    assert_eq!((of(1, 0), of(1, 2)), (0, 0));
}

#[test]
fn bfd_comes_with_the_adjacency_in_place_and_does_not_go() {
    let mut sim = Simulator::new(74);
    sim.segment(&[(0, p2p()), (1, p2p())]);
    sim.start();
    sim.until(seconds(5), |sim| sim.all_full(2));
    assert!(sim.watched(0).is_empty());
    change(&mut sim, 0, |config| config.interfaces[0].bfd = Some(BfdConfig::default()));
    assert_eq!(sim.watched(0).len(), 1);
    // The neighbour would be told AdminDown: not every one keeps the adjacency then.
    change(&mut sim, 0, |config| config.interfaces[0].bfd = None);
    assert_eq!(sim.watched(0).len(), 1, "refused");
    assert_eq!(losses(&sim, 0), 0);
}

#[test]
fn imports_aggregates_and_externals_follow() {
    let mut sim = fabric(1, 75);
    let (behind, vip, pool) = (net("198.18.0.0/24"), net("203.0.113.10/32"), net("203.0.113.0/24"));
    sim.announce(0, &[(behind, 1)]);
    sim.announce_as(2, &[(vip, Announcement::external(20))]);
    sim.until(seconds(10), |sim| sim.hops(2, behind) == 1 && sim.hops(0, vip) == 1);
    sim.run(seconds(5));
    change(&mut sim, 2, |config| config.import.clear());
    sim.until(Duration::from_millis(100), |sim| sim.hops(2, behind) == 0);
    change(&mut sim, 2, |config| config.aggregates = vec![pool.into()]);
    sim.until(seconds(3), |sim| sim.hops(0, pool) == 1 && sim.hops(0, vip) == 0);
    sim.run(seconds(3));
    change(&mut sim, 2, |config| config.external.metric_type = MetricType::One);
    sim.until(seconds(3), |sim| sim.cost(0, pool) == Some(30));
    change(&mut sim, 2, |config| config.aggregates.clear());
    sim.until(seconds(3), |sim| sim.hops(0, pool) == 0 && sim.hops(0, vip) == 1);
    sim.until(seconds(5), |sim| sim.lsa_count(0, EXTERNAL) == 1);
    assert_eq!(losses(&sim, 0) + losses(&sim, 2), 0);
}

#[test]
fn a_totally_stubby_area_is_a_stub_area_to_the_neighbours() {
    let stub = || InterfaceConfig { area: Ipv4Addr::new(0, 0, 0, 1), area_kind: AreaKind::Stub, ..p2p() };
    let mut sim = Simulator::new(76);
    sim.segment(&[(0, stub()), (1, stub())]);
    sim.start();
    sim.until(seconds(5), |sim| sim.all_full(2));
    change(&mut sim, 0, |config| config.interfaces[0].area_kind = AreaKind::TotallyStubby);
    sim.run(seconds(10));
    assert_eq!((sim.full(0), losses(&sim, 0), losses(&sim, 1)), (1, 0, 0));
}

#[test]
fn what_cannot_be_followed_changes_nothing() {
    let mut sim = Simulator::new(77);
    sim.segment(&[(0, p2p()), (1, p2p())]);
    sim.start();
    sim.until(seconds(5), |sim| sim.all_full(2));
    change(&mut sim, 0, |config| {
        config.interfaces[0].area = Ipv4Addr::new(0, 0, 0, 9);
        config.interfaces[0].cost = 99;
    });
    sim.run(seconds(10));
    assert_eq!((sim.full(0), sim.status(0).interfaces[0].cost), (1, 10));
}
