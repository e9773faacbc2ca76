//! Whole networks of speakers on one virtual clock.

mod ageing;
mod areas;
mod authentication;
mod broadcast;
mod details;
mod externals;
mod flooding;
mod fuzz;
mod graceful;
mod hello;
mod inspection;
mod interfaces;
mod liveness;
mod opaque;
mod passive;
mod protocol;
mod random;
mod reconfiguration;
mod recording;
mod refusals;
mod reminder;
mod restart;
mod scale;
mod sequence;
mod simulator;
mod stubby;
mod unnumbered;
mod version_3;

use std::{net::Ipv4Addr, time::Duration};

use ipnet::Ipv4Net;

use self::simulator::{Faults, Simulator, id};
use super::{Event, NeighborState, Stop};
use crate::{
    config::{InterfaceConfig, Network},
    packet::ROUTER,
};

fn seconds(count: u64) -> Duration {
    Duration::from_secs(count)
}

fn net(text: &str) -> Ipv4Net {
    text.parse().expect("a prefix")
}

fn fast(network: Network, priority: u8) -> InterfaceConfig {
    InterfaceConfig {
        hello_interval: 1,
        dead_interval: 4,
        priority,
        ..InterfaceConfig::new("replaced", network)
    }
}

fn p2p() -> InterfaceConfig {
    fast(Network::PointToPoint, 0)
}

fn lan(priority: u8) -> InterfaceConfig {
    fast(Network::Broadcast, priority)
}

/// Two switches, `directors` directors linked to both; node 0 and 1 are the switches.
fn fabric(directors: usize, seed: u64) -> Simulator {
    let mut sim = Simulator::new(seed);
    for director in 2..2 + directors {
        sim.segment(&[(0, p2p()), (director, p2p())]);
        sim.segment(&[(1, p2p()), (director, p2p())]);
    }
    sim.start();
    sim
}

#[test]
fn two_speakers_become_full_over_a_point_to_point_link_within_a_second() {
    let mut sim = Simulator::new(1);
    sim.segment(&[(0, p2p()), (1, p2p())]);
    sim.start();
    sim.until(seconds(1), |sim| sim.all_full(2));
    sim.until(seconds(3), |sim| sim.databases_equal() && sim.lsa_count(0, ROUTER) == 2);
}

#[test]
fn vip_appears_with_a_next_hop_per_director_and_goes_when_withdrawn() {
    let mut sim = fabric(3, 2);
    let vip = net("203.0.113.10/32");
    for director in 2..5 {
        sim.announce(director, &[(vip, 10)]);
    }
    sim.until(seconds(10), |sim| sim.hops(0, vip) == 3 && sim.hops(1, vip) == 3);
    sim.run(seconds(5));
    sim.announce(3, &[]);
    sim.until(Duration::from_millis(300), |sim| sim.hops(0, vip) == 2 && sim.hops(1, vip) == 2);
    // The second change within a second waits for MinLSArrival, and no longer.
    sim.announce(3, &[(vip, 10)]);
    sim.until(Duration::from_millis(1300), |sim| sim.hops(0, vip) == 3 && sim.hops(1, vip) == 3);
    sim.run(seconds(5));
    sim.announce(4, &[(vip, 1010)]);
    sim.until(Duration::from_millis(300), |sim| sim.hops(0, vip) == 2);
    assert_eq!(sim.hops(2, vip), 0, "a director must not install a VIP that it announces");
}

#[test]
fn director_is_never_a_way_through() {
    let mut sim = fabric(2, 3);
    sim.until(seconds(10), |sim| sim.all_full(8) && sim.databases_equal());
    let loopback = net("10.255.9.9/32");
    sim.announce(1, &[(loopback, 1)]);
    sim.until(seconds(3), |sim| sim.cost(2, loopback) == Some(11));
    // Between the switches there is no other way than a director, at a cost nobody would choose.
    sim.until(seconds(1), |sim| sim.cost(0, loopback) == Some(10 + 0xffff + 1));
}

#[test]
fn broadcast_segment_elects_by_priority_and_zero_stays_out() {
    let mut sim = Simulator::new(4);
    sim.segment(&[(0, lan(10)), (1, lan(5)), (2, lan(0)), (3, lan(0))]);
    sim.start();
    // Directors are adjacent to the two switches only: 2 + 2 * 4 directions are full.
    sim.until(seconds(20), |sim| sim.all_full(10) && sim.databases_equal());
    assert_eq!(sim.neighbor_state(2, 3), Some(NeighborState::TwoWay));
    let vip = net("203.0.113.10/32");
    sim.announce(2, &[(vip, 10)]);
    sim.announce(3, &[(vip, 10)]);
    sim.until(seconds(5), |sim| sim.hops(0, vip) == 2 && sim.hops(1, vip) == 2);
    // The designated router dies: its backup takes over, and no director ever does.
    sim.kill(0);
    sim.until(seconds(20), |sim| sim.hops(1, vip) == 2 && sim.designated(2) == sim.address(1));
}

#[test]
fn killed_director_times_out_and_comes_back_with_one_new_router_lsa() {
    let mut sim = fabric(2, 5);
    let vip = net("203.0.113.10/32");
    sim.announce(2, &[(vip, 10)]);
    sim.announce(3, &[(vip, 10)]);
    sim.until(seconds(10), |sim| sim.hops(0, vip) == 2 && sim.hops(1, vip) == 2);
    sim.kill(3);
    sim.until(seconds(5), |sim| sim.hops(0, vip) == 1 && sim.hops(1, vip) == 1);
    let before = sim.sequence(0, id(3)).expect("the old LSA is still held");
    sim.restart(3);
    sim.announce(3, &[(vip, 10)]);
    sim.until(seconds(2), |sim| sim.hops(0, vip) == 2 && sim.hops(1, vip) == 2);
    for _ in 0..200 {
        sim.run(Duration::from_millis(50));
        assert_eq!((sim.hops(0, vip), sim.hops(1, vip)), (2, 2), "next hop lost again after the restart");
    }
    assert_eq!(sim.sequence(0, id(3)), Some(before + 1), "superseded exactly once");
}

#[test]
fn clean_stop_withdraws_then_flushes_within_two_seconds() {
    let mut sim = fabric(2, 6);
    let vip = net("203.0.113.10/32");
    sim.announce(2, &[(vip, 10)]);
    sim.announce(3, &[(vip, 10)]);
    sim.until(seconds(10), |sim| sim.hops(0, vip) == 2 && sim.hops(1, vip) == 2);
    sim.run(seconds(3));
    sim.stop(3, Stop::Flush);
    sim.until(Duration::from_millis(100), |sim| sim.hops(0, vip) == 1 && sim.hops(1, vip) == 1);
    assert_eq!(sim.full(0), 2, "the adjacency outlives the withdrawal");
    sim.until(seconds(2), |sim| sim.has_stopped(3));
    sim.until(Duration::from_millis(100), |sim| sim.sequence(0, id(3)).is_none() && sim.full(0) == 1);
}

#[test]
fn suspended_speaker_falls_silent_and_leaves_everything() {
    let mut sim = fabric(1, 7);
    let vip = net("203.0.113.10/32");
    sim.announce(2, &[(vip, 10)]);
    sim.until(seconds(10), |sim| sim.hops(0, vip) == 1);
    sim.run(seconds(5)); // old enough to be flushed
    sim.stop(2, Stop::Keep);
    sim.run(seconds(2));
    assert!(sim.has_stopped(2));
    assert_eq!(sim.hops(0, vip), 1);
}

#[test]
fn link_loss_removes_the_next_hop_at_once_and_it_comes_back() {
    let mut sim = fabric(2, 8);
    let vip = net("203.0.113.10/32");
    sim.announce(2, &[(vip, 10)]);
    sim.announce(3, &[(vip, 10)]);
    sim.until(seconds(10), |sim| sim.hops(0, vip) == 2);
    sim.run(seconds(3));
    sim.set_link(2, false);
    sim.until(Duration::from_millis(200), |sim| sim.hops(0, vip) == 1);
    sim.set_link(2, true);
    sim.until(seconds(4), |sim| sim.hops(0, vip) == 2);
}

#[test]
fn network_converges_over_links_that_lose_duplicate_and_reorder() {
    for seed in 0..12 {
        let mut sim = fabric(4, 100 + seed);
        sim.segment(&[(0, lan(1)), (1, lan(1)), (6, lan(0)), (7, lan(0))]);
        sim.start();
        sim.faults = Faults { loss: 15, duplicate: 10, jitter: Duration::from_millis(40) };
        let vip = net("203.0.113.10/32");
        for director in 2..8 {
            sim.announce(director, &[(vip, 10)]);
        }
        for round in 0..6 {
            sim.run(seconds(7));
            let prefix = Ipv4Net::new(Ipv4Addr::new(198, 51, 100, round), 32).expect("a prefix");
            sim.announce(2 + usize::from(round % 4), &[(vip, 10), (prefix, 5)]);
        }
        sim.faults = Faults::default();
        sim.until(seconds(60), |sim| sim.databases_equal() && sim.hops(0, vip) == 6 && sim.hops(1, vip) == 6);
    }
}

#[test]
fn speakers_given_the_same_inputs_do_the_same() {
    let trace = || {
        let mut sim = fabric(3, 9);
        sim.faults = Faults { loss: 10, duplicate: 5, jitter: Duration::from_millis(20) };
        sim.run(seconds(30));
        sim.trace()
    };
    assert_eq!(trace(), trace());
}

#[test]
fn lsas_are_refreshed_after_half_an_hour_and_never_age_out() {
    let mut sim = fabric(1, 10);
    sim.until(seconds(10), |sim| sim.all_full(4) && sim.databases_equal());
    sim.run(seconds(5));
    let before = sim.sequence(0, id(2)).expect("held");
    sim.run(seconds(1900));
    assert_eq!(sim.sequence(0, id(2)), Some(before + 1));
    sim.run(seconds(2000));
    assert_eq!(sim.lsa_count(0, ROUTER), 3);
}

#[test]
fn mtu_mismatch_is_visible_while_stuck() {
    let mut sim = Simulator::new(11);
    sim.segment(&[(0, p2p()), (1, p2p())]);
    sim.mtu(0, 0, 9000);
    sim.start();
    sim.run(seconds(10));
    let reasons: Vec<_> = (0..2).map(|node| sim.status(node).neighbors[0].reason.clone()).collect();
    assert_eq!(reasons[1].as_deref(), Some("MTU: peer 9000, ours 1500"));
    sim.mtu(0, 0, 1500);
    sim.until(seconds(10), |sim| sim.all_full(2));
}

#[test]
fn second_router_with_our_id_is_reported_from_afar() {
    let mut sim = Simulator::new(12);
    sim.segment(&[(0, p2p()), (1, p2p())]);
    sim.segment(&[(1, p2p()), (2, p2p())]);
    sim.rename(2, id(0));
    sim.start();
    sim.announce(0, &[(net("203.0.113.1/32"), 1)]);
    sim.announce(2, &[(net("203.0.113.2/32"), 1)]);
    sim.until(seconds(60), |sim| {
        sim.events(0).iter().any(|event| matches!(event, Event::RouterIdContested { .. }))
    });
}

/// After a crash the neighbours still hold the Router-LSA of the life before. One that lacks a link would reach the switch
/// at its other end by way of the first, and take the next hop away there.
#[test]
fn first_router_lsa_waits_for_the_other_interfaces_but_not_for_long() {
    let mut sim = Simulator::new(61);
    sim.segment(&[(0, p2p()), (1, p2p())]);
    sim.segment(&[(0, p2p()), (2, p2p())]);
    sim.start();
    sim.until(seconds(5), |sim| sim.all_full(4) && sim.databases_equal());
    sim.run(seconds(3));
    let at_first_neighbor = |sim: &Simulator| sim.sequence(1, id(0));
    let before = at_first_neighbor(&sim).expect("known");

    sim.kill(0);
    sim.kill(2);
    sim.run(seconds(6));
    sim.restart(0);
    sim.until(seconds(2), |sim| sim.full(0) == 1);
    sim.run(Duration::from_millis(500));
    assert_eq!(at_first_neighbor(&sim), Some(before), "one link is missing yet");
    sim.restart(2);
    sim.until(seconds(2), |sim| sim.full(0) == 2);
    sim.run(Duration::from_millis(50));
    assert_eq!(at_first_neighbor(&sim), Some(before + 1), "all that was waited for is there");
    sim.run(seconds(5));
    assert_eq!(at_first_neighbor(&sim), Some(before + 1), "one instance was enough");

    sim.kill(0);
    sim.kill(2);
    sim.run(seconds(6));
    sim.restart(0);
    sim.until(seconds(2), |sim| sim.full(0) == 1);
    sim.run(Duration::from_millis(1050));
    assert_eq!(at_first_neighbor(&sim), Some(before + 2), "who does not come is not waited for");
}
