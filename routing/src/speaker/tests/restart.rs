//! Restarting gracefully ourselves, both versions; the neighbours in the simulation help.

use std::time::Duration;

use super::{
    graceful::Graceful,
    lan, p2p, seconds,
    simulator::{Network, id},
};
use crate::{
    packet::{V2, v3::V3},
    speaker::{Event, Grace, HelpEnd, Input, NeighborState, RestartEnd, RestartRefused, Stop},
};

/// Nodes 0 and 1 are switches, 2 the director between them, which announces a prefix and learns one.
fn fabric<V: Graceful>(seed: u64) -> Network<V> {
    let mut sim = Network::<V>::new(seed);
    sim.segment(&[(0, p2p()), (2, p2p())]);
    sim.segment(&[(1, p2p()), (2, p2p())]);
    sim.start();
    sim.announce(2, &[(V::prefix(1), 1)]);
    sim.announce(0, &[(V::prefix(7), 1)]);
    sim.announce(1, &[(V::prefix(7), 1)]);
    sim.until(seconds(10), |sim| {
        sim.hops(0, V::prefix(1)) == 1 && sim.hops(1, V::prefix(1)) == 1 && sim.hops(2, V::prefix(7)) == 2
    });
    sim.run(seconds(5));
    sim
}

fn prepare<V: Graceful>(sim: &mut Network<V>, node: usize, period: u32) -> Result<Grace, RestartRefused> {
    sim.input(node, Input::PrepareRestart { period });
    sim.until(seconds(4), |sim| sim.prepared(node).is_some());
    sim.prepared(node).cloned().expect("there")
}

fn second_life<V: Graceful>(sim: &mut Network<V>, node: usize, grace: Grace) {
    sim.restart_with(node, Some(grace));
    sim.announce(node, &[(V::prefix(1), 1)]);
}

fn resumed<V: Graceful>(sim: &Network<V>, node: usize) -> Vec<RestartEnd> {
    let end = |event: &Event| match event {
        Event::Resumed { reason } => Some(*reason),
        _ => None,
    };
    sim.events(node).iter().filter_map(end).collect()
}

fn help_ends<V: Graceful>(sim: &Network<V>, node: usize) -> Vec<HelpEnd> {
    let end = |event: &Event| match event {
        Event::HelpEnded { reason, .. } => Some(*reason),
        _ => None,
    };
    sim.events(node).iter().filter_map(end).collect()
}

/// "The restarting router … originates Grace-LSAs … The router … does not originate LSAs … until it exits graceful
/// restart" (RFC 3623 section 2), and both switches forward to it all the while.
fn nobody_notices<V: Graceful>() {
    let mut sim = fabric::<V>(91);
    let (ours, before) = (id(2), [sim.sequence(0, id(0)), sim.sequence(1, id(1))]);
    let sequence = sim.sequence(0, ours).expect("held");
    let grace = prepare(&mut sim, 2, 60).expect("both help");
    assert_eq!((grace.version, grace.period, grace.links.len()), (V::NUMBER, 60, 2));
    sim.stop(2, Stop::Keep);
    sim.kill(2);
    for tenth in 0..300 {
        sim.run(Duration::from_millis(100));
        if tenth == 100 {
            second_life(&mut sim, 2, grace.clone()); // long after the dead interval of 4 s
        }
        for switch in [0, 1] {
            assert_eq!(sim.hops(switch, V::prefix(1)), 1, "the next hop stays, {tenth}");
        }
    }
    assert_eq!(resumed(&sim, 2), [RestartEnd::Completed]);
    for switch in [0, 1] {
        assert_eq!(help_ends(&sim, switch), [HelpEnd::Completed]);
        assert_eq!(sim.lsa_count(switch, V::KIND), 0, "the Grace-LSA was flushed");
    }
    assert_eq!([sim.sequence(0, id(0)), sim.sequence(1, id(1))], before, "the switches said nothing new");
    assert_eq!(sim.sequence(0, ours), Some(sequence + 1), "one new instance, when it was over");
    assert!(sim.all_full(4) && sim.databases_agree());
    assert_eq!(sim.hops(2, V::prefix(7)), 2);
}

#[test]
fn a_planned_restart_is_not_noticed_by_the_switches() {
    nobody_notices::<V2>();
    nobody_notices::<V3>();
}

/// "X … should not … install … routes … into the system's forwarding tables" until it exits (RFC 3623 section 2): none
/// of one uplink before the other one is back.
#[test]
fn no_route_is_handed_out_before_all_adjacencies_are_back() {
    let mut sim = fabric::<V2>(92);
    let grace = prepare(&mut sim, 2, 60).expect("both help");
    sim.stop(2, Stop::Keep);
    sim.kill(2);
    sim.run(seconds(5));
    second_life(&mut sim, 2, grace);
    sim.cut(1, true);
    sim.until(seconds(5), |sim| sim.neighbor_state(2, 0) == Some(NeighborState::Full));
    let sequence = sim.sequence(0, id(2));
    sim.run(seconds(5));
    assert_eq!((sim.hops(2, V2::prefix(7)), resumed(&sim, 2)), (0, vec![]), "no routes yet");
    assert_eq!(sim.sequence(0, id(2)), sequence, "and no LSAs");
    assert_eq!(sim.hops(1, V2::prefix(1)), 1, "the other switch still helps");
    sim.cut(1, false);
    sim.until(seconds(5), |sim| sim.hops(2, V2::prefix(7)) == 2);
    assert_eq!(resumed(&sim, 2), [RestartEnd::Completed]);
}

/// "The grace period expires." (RFC 3623 section 2.2 (3))
#[test]
fn the_grace_period_ends_it_where_a_neighbour_is_gone() {
    let mut sim = fabric::<V2>(93);
    let grace = prepare(&mut sim, 2, 20).expect("both help");
    sim.stop(2, Stop::Keep);
    sim.kill(2);
    sim.kill(1);
    sim.run(seconds(5));
    second_life(&mut sim, 2, grace);
    sim.until(seconds(5), |sim| sim.neighbor_state(2, 0) == Some(NeighborState::Full));
    assert_eq!(resumed(&sim, 2), []);
    sim.until(seconds(16), |sim| resumed(sim, 2) == [RestartEnd::Expired]);
    sim.until(seconds(2), |sim| sim.hops(2, V2::prefix(7)) == 1);
    sim.until(seconds(2), |sim| sim.lsa_count(0, V2::KIND) == 0 && sim.hops(0, V2::prefix(1)) == 1);
}

/// "Router X receives an LSA that is inconsistent with its pre-restart router-LSA. For example, X receives a router-LSA
/// originated by router Y that does not contain a link to X, even though X's pre-restart router-LSA did contain a link
/// to Y." (RFC 3623 section 2.2 (2))
fn a_neighbour_that_does_not_help_ends_it<V: Graceful>() {
    let mut sim = fabric::<V>(94);
    sim.segment(&[(0, p2p()), (1, p2p())]);
    sim.start();
    for switch in [0, 1] {
        sim.announce(switch, &[(V::prefix(7), 1)]);
    }
    sim.announce(2, &[(V::prefix(1), 1)]);
    sim.until(seconds(10), |sim| sim.all_full(6) && sim.hops(1, V::prefix(1)) == 1);
    sim.run(seconds(5));
    let grace = prepare(&mut sim, 2, 60).expect("both acknowledge");
    sim.stop(2, Stop::Keep);
    sim.kill(2);
    sim.set_link(1, false);
    sim.run(seconds(3));
    assert_eq!(
        (help_ends(&sim, 1), help_ends(&sim, 0)),
        (vec![HelpEnd::Gone], vec![HelpEnd::TopologyChanged])
    );
    second_life(&mut sim, 2, grace);
    // The other switch holds a Router-LSA of this one in which we are missing.
    sim.until(seconds(5), |sim| resumed(sim, 2) == [RestartEnd::Inconsistent]);
    sim.until(seconds(5), |sim| sim.hops(2, V::prefix(7)) == 1 && sim.hops(1, V::prefix(1)) == 1);
    sim.until(seconds(5), |sim| sim.databases_agree() && sim.lsa_count(0, V::KIND) == 0);
}

#[test]
fn a_router_lsa_without_us_ends_the_restart() {
    a_neighbour_that_does_not_help_ends_it::<V2>();
    a_neighbour_that_does_not_help_ends_it::<V3>();
}

#[test]
fn a_restart_that_was_forgotten_is_an_ordinary_start() {
    let mut sim = fabric::<V2>(95);
    let grace = prepare(&mut sim, 2, 60).expect("both help");
    sim.stop(2, Stop::Flush); // by another hand
    sim.run(seconds(3));
    second_life(&mut sim, 2, grace);
    sim.until(seconds(5), |sim| resumed(sim, 2) == [RestartEnd::Forgotten]);
    sim.until(seconds(5), |sim| sim.hops(0, V2::prefix(1)) == 1 && sim.hops(1, V2::prefix(1)) == 1);
}

/// "The restarting router … determines that it was the Designated Router … by … Hello packets" (RFC 3623 section 2).
fn keeps_its_role<V: Graceful>() {
    let mut sim = Network::<V>::new(96);
    sim.segment(&[(0, lan(10)), (1, lan(5)), (2, lan(0))]);
    sim.start();
    sim.announce(0, &[(V::prefix(1), 1)]);
    sim.until(seconds(20), |sim| sim.all_full(6) && sim.hops(2, V::prefix(1)) == 1);
    sim.run(seconds(5));
    let dr = sim.address(0);
    let grace = prepare(&mut sim, 0, 60).expect("both help");
    sim.stop(0, Stop::Keep);
    sim.kill(0);
    for second in 0..20 {
        sim.run(seconds(1));
        if second == 8 {
            second_life(&mut sim, 0, grace.clone());
        }
        assert_eq!((sim.designated(1), sim.designated(2)), (dr, dr), "second {second}");
        assert_eq!(sim.hops(2, V::prefix(1)), 1, "second {second}");
    }
    assert_eq!(resumed(&sim, 0), [RestartEnd::Completed]);
    assert_eq!(sim.designated(0), dr);
}

#[test]
fn a_designated_router_comes_back_as_one() {
    keeps_its_role::<V2>();
    keeps_its_role::<V3>();
}

#[test]
fn it_is_refused_by_name_where_a_neighbour_cannot_help_and_leaves_no_trace() {
    // Not Full.
    let mut sim = fabric::<V2>(97);
    sim.mtu(0, 0, 9000);
    sim.set_link(0, false);
    sim.set_link(0, true);
    sim.run(seconds(3));
    let refused = prepare(&mut sim, 2, 60).expect_err("stuck");
    assert!(refused.to_string().contains("10.255.0.1 on eth0 cannot help"), "{refused}");
    // Not answering.
    let mut sim = fabric::<V2>(98);
    sim.cut(1, true);
    let refused = prepare(&mut sim, 2, 60).expect_err("silent");
    assert!(refused.to_string().contains("10.255.0.2 on eth1 does not help"), "{refused}");
    sim.cut(1, false);
    sim.until(seconds(6), |sim| sim.lsa_count(0, V2::KIND) + sim.lsa_count(1, V2::KIND) == 0);
    assert!(sim.all_full(4));
    // Not speaking.
    let mut sim = fabric::<V2>(99);
    sim.stop(2, Stop::Flush);
    sim.input(2, Input::PrepareRestart { period: 60 });
    assert_eq!(sim.prepared(2), Some(&Err(RestartRefused::Unsettled { version: 2 })));
}

#[test]
fn a_restart_that_was_called_off_leaves_no_trace() {
    let mut sim = fabric::<V3>(100);
    prepare(&mut sim, 2, 60).expect("both help");
    assert_eq!(sim.lsa_count(0, V3::KIND), 1);
    sim.input(2, Input::CancelRestart);
    sim.until(seconds(3), |sim| sim.lsa_count(0, V3::KIND) + sim.lsa_count(1, V3::KIND) == 0);
    assert_eq!(help_ends(&sim, 0), [HelpEnd::Completed]);
    assert!(sim.all_full(4) && sim.hops(0, V3::prefix(1)) == 1);
}

/// A stop while the restart is under way is a stop: neighbours that hear us hold nothing of ours afterwards, and do not
/// help any more, whatever the state of our adjacency.
fn a_stop_is_told<V: Graceful>(reached: NeighborState) {
    let mut sim = fabric::<V>(99);
    let grace = prepare(&mut sim, 2, 60).expect("both help");
    sim.stop(2, Stop::Keep);
    sim.kill(2);
    sim.run(seconds(5));
    sim.cut(1, true); // so that it is not over
    second_life(&mut sim, 2, grace);
    sim.until(seconds(10), |sim| sim.neighbor_state(2, 0) >= Some(reached));
    sim.stop(2, Stop::Flush);
    sim.until(seconds(2), |sim| sim.has_stopped(2));
    assert_eq!(resumed(&sim, 2), [RestartEnd::Stopped]);
    sim.until(seconds(1), |sim| sim.sequence(0, id(2)).is_none() && sim.lsa_count(0, V::KIND) == 0);
    assert_eq!((help_ends(&sim, 0), sim.hops(0, V::prefix(1))), (vec![HelpEnd::Completed], 0));
}

#[test]
fn a_stop_while_it_is_under_way_ends_the_help() {
    for reached in [NeighborState::Exchange, NeighborState::Full] {
        a_stop_is_told::<V2>(reached);
        a_stop_is_told::<V3>(reached);
    }
}

/// The first Router-LSA waits for the other uplink; a stop in that moment flushes the one of the life before all the same.
#[test]
fn a_stop_before_the_first_router_lsa_flushes_that_of_an_earlier_life() {
    let mut sim = fabric::<V2>(100);
    sim.kill(2);
    sim.cut(1, true);
    sim.restart(2);
    sim.until(seconds(10), |sim| sim.neighbor_state(2, 0) == Some(NeighborState::Full));
    sim.stop(2, Stop::Flush);
    sim.until(seconds(2), |sim| sim.has_stopped(2));
    assert_eq!(sim.sequence(0, id(2)), None);
}
