//! What becomes of LSAs while they are held.

use std::net::Ipv4Addr;

use super::{
    p2p, seconds,
    simulator::{Family, Network, id},
};
use crate::{
    Announcement,
    packet::{LSA_HEADER_LEN, V2, v3::V3, wire::LsaKey},
    speaker::{Event, LsaAction, NeighborState, Refusal, Scope},
};

/// Three routers in a row; node 1 is in the middle.
fn row<V: Family>() -> Network<V> {
    let mut sim = Network::new(5);
    sim.segment(&[(0, p2p()), (1, p2p())]);
    sim.segment(&[(1, p2p()), (2, p2p())]);
    sim.start();
    sim.until(seconds(5), |sim| sim.all_full(4));
    sim.run(seconds(10));
    sim
}

/// Damages a byte of the Router-LSA of `router` as node 1 holds it.
fn damage<V: Family>(sim: &mut Network<V>, router: Ipv4Addr, at: usize) {
    let database = sim.machine(1).databases.get_mut(&Scope::Area(Ipv4Addr::UNSPECIFIED)).expect("an area");
    let (key, _) =
        database.iter().find(|(key, _)| key.kind == V::ROUTER && key.router == router).expect("held");
    let key: LsaKey<V> = *key;
    let entry = database.get_mut(&key).expect("held");
    entry.lsa = entry.lsa.damaged(at);
}

fn found(sim: &Network<impl Family>) -> u64 {
    sim.status(1).counters.get(&Refusal::LsaDamaged).copied().unwrap_or(0)
}

fn was_lost(sim: &Network<impl Family>) -> bool {
    let left = |event: &Event| matches!(event, Event::Neighbor { from: NeighborState::Full, .. });
    (0..3).any(|node| sim.events(node).iter().any(left))
}

fn is_replaced<V: Family>(own: bool) {
    let mut sim = row::<V>();
    let victim = id(if own { 1 } else { 2 });
    let (before, body) = (sim.sequence(1, victim).expect("held"), sim.body_of(1, V::ROUTER, victim));
    // A body of ours that is not what it should be is noticed at once, like any change.
    damage(&mut sim, victim, if own { 4 } else { LSA_HEADER_LEN });
    assert_eq!(sim.body_of(1, V::ROUTER, victim) == body, own);
    sim.until(seconds(300), |sim| found(sim) > 0);
    sim.until(seconds(1), |sim| sim.databases_agree());
    // Ours is another instance, which everybody takes; that of another router is the one it has sent.
    assert_eq!(sim.sequence(0, victim), Some(if own { before + 1 } else { before }));
    assert_eq!(sim.body_of(1, V::ROUTER, victim), body);
    assert!(sim.events(1).iter().any(|event| matches!(event, Event::Damaged { .. })));
    let actions: Vec<_> = sim.status(1).lsa_events.iter().map(|event| event.action).collect();
    assert!(actions.contains(&LsaAction::Damaged), "{actions:?}");
    sim.run(seconds(310));
    assert_eq!(found(&sim), 1, "the others are in order");
    assert!(!was_lost(&sim) && sim.all_full(4));
    assert!(sim.status(1).neighbors.iter().all(|neighbor| neighbor.requested == 0));
}

/// RFC 2328 section 14: "the LS checksum should be verified" each CheckAge.
#[test]
fn a_damaged_lsa_of_another_router_is_asked_for_again() {
    is_replaced::<V2>(false);
    is_replaced::<V3>(false);
}

#[test]
fn a_damaged_lsa_of_ours_is_originated_anew() {
    is_replaced::<V2>(true);
    is_replaced::<V3>(true);
}

#[test]
fn a_lost_request_for_a_damaged_lsa_is_repeated() {
    let mut sim = row::<V2>();
    damage(&mut sim, id(2), LSA_HEADER_LEN);
    sim.cut(0, true);
    sim.cut(1, true);
    let found_it = |sim: &Network<V2>| found(sim) > 0;
    while !found_it(&sim) {
        // Hellos pass now and then, so that nobody is dead.
        for cut in [false, true] {
            sim.cut(0, cut);
            sim.cut(1, cut);
            let limit = if cut { 2 } else { 1 };
            sim.run(seconds(limit));
        }
    }
    sim.cut(0, false);
    sim.cut(1, false);
    sim.until(seconds(5), |sim| sim.databases_agree() && sim.sequence(1, id(2)).is_some());
    assert!(!was_lost(&sim));
}

#[test]
fn every_checksum_is_verified_once_in_check_age() {
    let mut sim = row::<V2>();
    let vip = |host| ipnet::Ipv4Net::from(Ipv4Addr::new(192, 0, 2, host));
    let announced: Vec<_> = (0..100).map(|host| (vip(host), Announcement::external(1))).collect();
    sim.announce_as(2, &announced);
    sim.run(seconds(10));
    let held = sim.machine(1).databases.get_mut(&Scope::Domain).expect("externals");
    let keys: Vec<_> = held.iter().map(|(key, _)| *key).collect();
    assert_eq!(keys.len(), 100);
    for key in &keys {
        let entry = held.get_mut(key).expect("held");
        entry.lsa = entry.lsa.damaged(LSA_HEADER_LEN);
    }
    sim.run(seconds(11));
    let once = found(&sim);
    assert!((1..=8).contains(&once), "{once} at once");
    sim.run(seconds(290));
    assert_eq!(found(&sim), 100);
}
