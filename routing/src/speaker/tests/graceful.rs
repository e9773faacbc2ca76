//! Helping neighbours that restart gracefully, both versions.

use std::{net::Ipv4Addr, time::Duration};

use super::{
    lan, p2p, seconds,
    simulator::{Family, Network, id},
};
use crate::{
    config::{BfdConfig, InterfaceConfig},
    packet::{
        INITIAL_SEQUENCE, MAX_AGE, OPAQUE_LINK, OPTION_E, V2,
        v3::{GRACE, V3},
        wire::{Lsa, LsaKey},
    },
    speaker::{Event, HelpEnd, Input, InterfaceId, NeighborState, Refusal, Scope},
};

/// How a version says that it restarts.
trait Graceful: Family {
    const KIND: Self::Kind;
    const OPTIONS: Self::LsaOptions;

    fn prefix(number: u8) -> Self::Net;
}

impl Graceful for V2 {
    const KIND: u8 = OPAQUE_LINK;
    const OPTIONS: u8 = OPTION_E;

    fn prefix(number: u8) -> ipnet::Ipv4Net {
        format!("198.18.{number}.0/24").parse().expect("a prefix")
    }
}

impl Graceful for V3 {
    const KIND: crate::packet::v3::LsType = GRACE;
    const OPTIONS: () = ();

    fn prefix(number: u8) -> ipnet::Ipv6Net {
        format!("2001:db8:198:{number}::/64").parse().expect("a prefix")
    }
}

/// A node says on its first link that it restarts within `period` seconds.
fn say_grace<V: Graceful>(sim: &mut Network<V>, node: usize, period: u8) {
    let body = [0, 1, 0, 4, 0, 0, 0, period, 0, 2, 0, 1, 1, 0, 0, 0];
    let key = LsaKey { kind: V::KIND, id: Ipv4Addr::new(3, 0, 0, 0), router: id(node) };
    let lsa = Lsa::build(key, V::OPTIONS, INITIAL_SEQUENCE, &body).expect("short");
    sim.machine(node).install_and_flood(Scope::Link(InterfaceId(0)), lsa, None);
    sim.input(node, Input::Timer);
    sim.run(Duration::from_millis(300));
}

fn ends<V: Family>(sim: &Network<V>, node: usize) -> Vec<HelpEnd> {
    let end = |event: &Event| match event {
        Event::HelpEnded { reason, .. } => Some(*reason),
        _ => None,
    };
    sim.events(node).iter().filter_map(end).collect()
}

/// Node 0 helps node 1, which announces a prefix.
fn pair<V: Graceful>() -> Network<V> {
    let mut sim = Network::<V>::new(81);
    let link = || InterfaceConfig { bfd: Some(BfdConfig::default()), ..p2p() };
    sim.segment(&[(0, link()), (1, link())]);
    sim.start();
    sim.announce(1, &[(V::prefix(1), 1)]);
    sim.until(seconds(10), |sim| sim.all_full(2) && sim.hops(0, V::prefix(1)) == 1);
    sim.run(seconds(5));
    sim
}

/// "the helper … continues to announce its … adjacency with X as if X had remained in continuous OSPF operation" (RFC
/// 3623 section 3).
fn is_kept_through_a_restart<V: Graceful>() {
    let mut sim = pair::<V>();
    let sequence = sim.sequence(0, id(0));
    say_grace(&mut sim, 1, 60);
    assert!(sim.status(0).neighbors[0].helped_for_ms.is_some_and(|left| left > 55_000));
    sim.kill(1);
    for tenth in 0..400 {
        sim.run(Duration::from_millis(100));
        if tenth == 100 {
            sim.restart(1); // long after the dead interval of 4 s
            sim.announce(1, &[(V::prefix(1), 1)]);
        }
        assert!(sim.neighbor_state(0, 1).is_some(), "the neighbour stays, {tenth}");
        assert_eq!(sim.hops(0, V::prefix(1)), 1, "the route stays, {tenth}");
    }
    let begins_anew = |event: &Event| matches!(event, Event::Neighbor { from: NeighborState::Full, .. });
    assert!(sim.events(0).iter().any(begins_anew), "the databases were brought together anew");
    assert!(sim.all_full(2) && sim.databases_agree());
    assert_eq!(sim.sequence(0, id(0)), sequence, "our Router-LSA said the same all the while");
    assert_eq!(ends(&sim, 0), [HelpEnd::Completed]);
    assert_eq!(sim.status(0).neighbors[0].helped_for_ms, None);
}

#[test]
fn adjacency_is_kept_through_a_graceful_restart() {
    is_kept_through_a_restart::<V2>();
    is_kept_through_a_restart::<V3>();
}

/// "The grace period expires." (RFC 3623 section 3.2)
fn ends_with_the_grace_period<V: Graceful>() {
    let mut sim = pair::<V>();
    say_grace(&mut sim, 1, 20);
    sim.kill(1);
    sim.run(seconds(18));
    assert_eq!(sim.hops(0, V::prefix(1)), 1);
    sim.until(seconds(3), |sim| sim.neighbor_state(0, 1).is_none() && sim.hops(0, V::prefix(1)) == 0);
    assert_eq!(ends(&sim, 0), [HelpEnd::Expired]);
}

#[test]
fn help_ends_with_the_grace_period() {
    ends_with_the_grace_period::<V2>();
    ends_with_the_grace_period::<V3>();
}

/// "A change in link-state database contents indicates a network topology change, which forces termination of a graceful
/// restart." (RFC 3623 section 3.2)
fn ends_when_the_network_changes<V: Graceful>() {
    let mut sim = pair::<V>();
    say_grace(&mut sim, 1, 60);
    sim.kill(1);
    sim.run(seconds(10));
    assert!(ends(&sim, 0).is_empty());
    sim.announce(0, &[(V::prefix(7), 1)]);
    sim.run(Duration::from_millis(200));
    assert_eq!(ends(&sim, 0), [HelpEnd::TopologyChanged]);
    assert_eq!((sim.neighbor_state(0, 1), sim.hops(0, V::prefix(1))), (None, 0), "silent for too long");
}

#[test]
fn help_ends_when_the_network_changes() {
    ends_when_the_network_changes::<V2>();
    ends_when_the_network_changes::<V3>();
}

#[test]
fn a_neighbour_that_is_there_stays_when_help_ends() {
    let mut sim = pair::<V2>();
    say_grace(&mut sim, 1, 60);
    sim.announce(0, &[(V2::prefix(7), 1)]);
    sim.run(seconds(5));
    assert_eq!(ends(&sim, 0), [HelpEnd::TopologyChanged]);
    assert!(sim.all_full(2) && sim.hops(0, V2::prefix(1)) == 1);
}

/// RFC 5882 section 4.3.2.2: BFD that shares its fate with the control plane goes down with it.
#[test]
fn bfd_that_goes_down_with_the_restart_is_no_failure() {
    let mut sim = pair::<V2>();
    let peer = sim.watched(0).first().expect("watched").peer;
    say_grace(&mut sim, 1, 60);
    sim.kill(1);
    sim.input(0, Input::PathDown { interface: InterfaceId(0), peer });
    sim.run(seconds(10));
    assert_eq!((sim.full(0), sim.hops(0, V2::prefix(1))), (1, 1));
    sim.set_link(0, false);
    sim.run(seconds(1));
    assert_eq!((ends(&sim, 0), sim.hops(0, V2::prefix(1))), (vec![HelpEnd::Gone], 0), "the link is gone");
}

#[test]
fn who_has_not_all_we_said_and_who_is_not_full_is_not_helped() {
    let mut sim = pair::<V2>();
    sim.faults.loss = 100;
    sim.announce(0, &[(V2::prefix(7), 1)]);
    sim.run(Duration::from_millis(100));
    sim.faults.loss = 0;
    // Before the change is sent again, the Grace-LSA of a node that does not know of it comes.
    say_grace(&mut sim, 1, 60);
    let refused = |sim: &Network<V2>| sim.status(0).counters.get(&Refusal::Grace).copied().unwrap_or(0);
    assert_eq!(refused(&sim), 1);
    assert_eq!(sim.status(0).neighbors[0].helped_for_ms, None);
    // An aged one whose time is over.
    let mut sim = pair::<V2>();
    say_grace(&mut sim, 1, 0);
    assert_eq!(refused(&sim), 1);
}

/// "If X was the Designated Router on segment S …, Y maintains X as the Designated Router until the helping relationship
/// is terminated." (RFC 3623 section 3)
#[test]
fn a_designated_router_that_restarts_stays_one() {
    let mut sim = Network::<V2>::new(82);
    sim.segment(&[(0, lan(10)), (1, lan(5)), (2, lan(0))]);
    sim.start();
    let behind = V2::prefix(1);
    sim.announce(1, &[(behind, 1)]);
    sim.until(seconds(20), |sim| sim.all_full(6) && sim.hops(2, behind) == 1);
    sim.run(seconds(5));
    let dr = sim.address(0);
    say_grace(&mut sim, 0, 20);
    sim.kill(0);
    for _ in 0..15 {
        sim.run(seconds(1));
        assert_eq!((sim.designated(1), sim.designated(2)), (dr, dr));
        assert_eq!(sim.hops(2, behind), 1, "the network is still there");
    }
    sim.until(seconds(10), |sim| sim.designated(1) != dr && sim.designated(2) == sim.designated(1));
    sim.until(seconds(10), |sim| sim.hops(2, behind) == 1);
}

#[test]
fn grace_lsa_is_shown_as_what_it_is() {
    let mut sim = pair::<V3>();
    say_grace(&mut sim, 1, 60);
    let lsdb = sim.machine(0).lsdb(true);
    let grace = lsdb.iter().find(|detail| detail.name == "grace").expect("held");
    assert_eq!(grace.body, ["restarts gracefully within 60 s (software restart)"]);
    assert!(grace.lsa.age < MAX_AGE);
}
