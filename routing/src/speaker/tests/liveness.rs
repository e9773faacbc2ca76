//! Which neighbours BFD is to watch, and what a failed path does, in both versions.

use std::{net::IpAddr, time::Duration};

use super::{
    lan, p2p, seconds,
    simulator::{Family, Network},
};
use crate::{
    config::{BfdConfig, InterfaceConfig},
    packet::{V2, v3::V3},
    speaker::{Event, Input, InterfaceId, NeighborEvent, NeighborState},
};

const FIRST: InterfaceId = InterfaceId(0);

fn watched(config: InterfaceConfig) -> InterfaceConfig {
    InterfaceConfig { bfd: Some(BfdConfig::default()), ..config }
}

/// Two full neighbours, of which node 0 asks for BFD.
fn pair<V: Family>() -> Network<V> {
    let mut sim = Network::new(11);
    sim.segment(&[(0, watched(p2p())), (1, p2p())]);
    sim.start();
    sim.until(seconds(5), |sim| sim.all_full(2) && sim.databases_agree());
    sim
}

/// The one peer that a node watches.
#[track_caller]
fn peer<V: Family>(sim: &Network<V>, node: usize) -> IpAddr {
    let mut all = sim.watched(node).iter();
    let only = all.next().expect("somebody is watched");
    assert_eq!((all.next(), only.interface), (None, FIRST));
    only.peer
}

fn failed_path_kills_at_once<V: Family>() {
    let mut sim = pair::<V>();
    let peer = peer(&sim, 0);
    assert!(sim.watched(1).is_empty(), "who does not ask for BFD watches nobody");
    let nobody = sim.watched(0).first().expect("watched").local;
    sim.input(0, Input::PathDown { interface: FIRST, peer: nobody });
    assert_eq!(sim.full(0), 1, "another address is another neighbour");

    sim.input(0, Input::PathDown { interface: FIRST, peer });
    assert!(sim.neighbor_state(0, 1).is_none() && sim.watched(0).is_empty());
    let last = |event: &&Event| matches!(event, Event::Neighbor { .. });
    let Some(Event::Neighbor { from, to, event, .. }) = sim.events(0).iter().rev().find(last) else {
        panic!("no event of a neighbour");
    };
    let expected = (NeighborState::Full, NeighborState::Down, NeighborEvent::KillNbr);
    assert_eq!((*from, *to, *event), expected);
    // Its Hellos go on: the session comes later or never, the adjacency does not wait for it.
    sim.until(seconds(5), |sim| sim.all_full(2) && sim.watched(0).len() == 1);
}

#[test]
fn failed_path_kills_the_neighbour_at_once() {
    failed_path_kills_at_once::<V2>();
    failed_path_kills_at_once::<V3>();
}

fn watched_from_two_way_until_gone<V: Family>() {
    let mut sim = Network::<V>::new(12);
    sim.segment(&[(0, lan(9)), (1, lan(8)), (2, watched(lan(0))), (3, lan(0))]);
    sim.start();
    // Node 3 stays at 2-Way, as neither is designated router.
    sim.until(seconds(20), |sim| sim.watched(2).len() == 3 && sim.full(2) == 2);
    sim.kill(3);
    sim.until(seconds(5), |sim| sim.watched(2).len() == 2);
    sim.set_link(0, false);
    assert!(sim.watched(2).is_empty());
}

#[test]
fn neighbour_is_watched_from_two_way_until_it_is_gone() {
    watched_from_two_way_until_gone::<V2>();
    watched_from_two_way_until_gone::<V3>();
}

#[test]
fn device_made_anew_is_another_path() {
    let mut sim = pair::<V2>();
    let device = |sim: &Network<V2>| sim.watched(0).first().map(|watched| watched.device);
    assert_eq!(device(&sim), Some(1));
    sim.change_link(0, 0, |link| link.index = 7);
    sim.until(seconds(5), |sim| device(sim) == Some(7));
}

#[test]
fn silence_without_bfd_takes_the_dead_interval() {
    let mut sim = pair::<V2>();
    sim.kill(1);
    sim.run(Duration::from_millis(2900));
    assert_eq!(sim.full(0), 1, "only the path tells of a death before");
    sim.until(seconds(2), |sim| sim.neighbor_state(0, 1).is_none());
}
