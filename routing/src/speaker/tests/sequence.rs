//! The end of the sequence numbers: "When an attempt is made to increment the sequence number past the maximum value of N - 1
//! (0x7fffffff; also referred to as MaxSequenceNumber), the current instance of the LSA must first be flushed from the
//! routing domain. This is done by prematurely aging the LSA (see Section 14.1) and reflooding it. As soon as this flood has
//! been acknowledged by all adjacent neighbors, a new instance can be originated with sequence number of
//! InitialSequenceNumber." (RFC 2328 section 12.1.6)

use std::{net::Ipv4Addr, time::Duration};

use bytes::Bytes;

use super::{
    net,
    protocol::{adjacent, deliver, hello},
    seconds,
    simulator::{Sent, Simulator6, id},
};
use crate::{
    announce::Announcement,
    packet::{
        Body, EXTERNAL, INITIAL_SEQUENCE, Lsa, LsaKey, MAX_AGE, MAX_SEQUENCE, OPTION_E, Packet, ROUTER, V2,
        v3,
    },
    speaker::{Event, Input, InterfaceId, Protocol},
};

/// What node 0 said of its own LSA of a type since the last call: age and sequence number.
fn said(sim: &mut super::simulator::Simulator, kind: u8) -> Vec<(u16, i32)> {
    let sent = sim.wire.replace(Vec::new()).expect("listened to");
    let instances =
        |sent: Sent<V2>| match Packet::parse(&Bytes::from(sent.payload)).expect("well-formed").body {
            Body::Update(lsas) if sent.node == 0 => lsas,
            _ => Vec::new(),
        };
    let own = |lsa: &Lsa| lsa.header.key.kind == kind && lsa.header.key.router == id(0);
    let lsas = sent.into_iter().flat_map(instances).filter(own);
    lsas.map(|lsa| (lsa.header.age, lsa.header.sequence)).collect()
}

/// An instance of node 0's Router-LSA that says nothing.
fn own(sequence: i32) -> Lsa {
    Lsa::build(LsaKey { kind: ROUTER, id: id(0), router: id(0) }, OPTION_E, sequence, &[0; 4]).expect("short")
}

/// Runs for `span` with a neighbour that is played, so that it stays.
fn keep_alive(sim: &mut super::simulator::Simulator, span: Duration) {
    for _ in 0..span.as_millis() / 500 {
        deliver(sim, Body::Hello(hello()));
        sim.run(Duration::from_millis(500));
    }
}

#[test]
fn last_number_is_flushed_and_acknowledged_before_the_first_is_used_again() {
    let mut sim = adjacent();
    sim.kill(1); // from here on its part is played
    sim.wire = Some(Vec::new());
    // What an earlier life left takes us to the last number but for one.
    deliver(&mut sim, Body::Update(vec![own(MAX_SEQUENCE - 1)]));
    keep_alive(&mut sim, seconds(1) + Duration::from_millis(500));
    let last = said(&mut sim, ROUTER);
    assert_eq!(last, [(1, MAX_SEQUENCE)], "the last number is used like any other");
    let ours = sim.machine(0).living(crate::speaker::Scope::Area(Ipv4Addr::UNSPECIFIED));
    let header = ours.into_iter().find(|(key, _)| key.router == id(0)).expect("held").1.header;
    deliver(&mut sim, Body::Ack(vec![header]));
    assert!(sim.machine(0).is_settled());

    // The next change is one too many.
    sim.announce(0, &[(net("203.0.113.10/32"), 10)]);
    keep_alive(&mut sim, seconds(9));
    let flush = said(&mut sim, ROUTER);
    assert!(flush.len() > 2, "sent again while it is not acknowledged: {flush:?}");
    assert!(flush.iter().all(|instance| *instance == (MAX_AGE, MAX_SEQUENCE)), "and nothing else: {flush:?}");
    deliver(&mut sim, Body::Ack(vec![crate::packet::LsaHeader { age: MAX_AGE, ..header }]));
    keep_alive(&mut sim, seconds(2));
    let first = said(&mut sim, ROUTER);
    assert!(
        !first.is_empty() && first.iter().all(|(_, sequence)| *sequence == INITIAL_SEQUENCE),
        "{first:?}"
    );
    let fresh = sim.body_of(0, ROUTER, id(0));
    assert!(fresh.windows(4).any(|bytes| bytes == [203, 0, 113, 10]), "it says what was to be said");
}

/// A withdrawn LSA has no successor, whatever its number; one that is wanted again begins anew.
#[test]
fn last_number_of_a_withdrawn_lsa_is_flushed_and_leaves_room_for_the_first() {
    let mut sim = adjacent();
    let outside = net("203.0.113.10/32");
    sim.announce_as(0, &[(outside, Announcement::external(10))]);
    sim.until(seconds(3), |sim| sim.hops(1, outside) == 1);
    sim.run(seconds(2));
    let key = LsaKey { kind: EXTERNAL, id: outside.addr(), router: id(0) };
    let newer = Lsa::build(key, OPTION_E, MAX_SEQUENCE - 1, &[0; 16]).expect("short");
    deliver(&mut sim, Body::Update(vec![newer]));
    let held = |sim: &super::simulator::Simulator, node: usize| {
        let lsdb = sim.status(node).lsdb;
        lsdb.into_iter().find(|l| l.kind == u16::from(EXTERNAL)).map(|l| l.sequence.cast_signed())
    };
    sim.until(seconds(3), |sim| held(sim, 1) == Some(MAX_SEQUENCE));
    sim.run(seconds(3));
    sim.announce_as(0, &[]);
    sim.until(seconds(3), |sim| held(sim, 0).is_none() && held(sim, 1).is_none());
    sim.run(seconds(5));
    sim.announce_as(0, &[(outside, Announcement::external(10))]);
    sim.until(seconds(3), |sim| held(sim, 1) == Some(INITIAL_SEQUENCE) && sim.hops(1, outside) == 1);
}

/// Between two speakers, of version 3: the neighbour that holds the last number gets the first one, and never an adjacency is
/// lost. The refresh that wraps says the same as before.
#[test]
fn neighbor_follows_from_the_last_number_to_the_first() {
    let mut sim = Simulator6::new(541);
    sim.segment(&[(0, super::p2p()), (1, super::p2p())]);
    sim.start();
    sim.until(seconds(5), |sim| sim.all_full(2) && sim.databases_agree());
    sim.run(seconds(3));
    let body = sim.body_of(0, v3::ROUTER, id(0));
    let key = v3::LsaKey { kind: v3::ROUTER, id: 0.into(), router: id(0) };
    let lsa = v3::Lsa::build(key, (), MAX_SEQUENCE, &body).expect("short");
    let (source, destination) = ("fe80::2".parse().expect("an address"), v3::V3::ALL_SPF_ROUTERS);
    let packet = v3::Packet {
        router: id(1),
        area: Ipv4Addr::UNSPECIFIED,
        instance: 0,
        body: v3::Body::Update(vec![lsa]),
    };
    let payload = packet.emit(source, destination).to_vec();
    let before = sim.events(0).len();
    sim.input(0, Input::Packet { interface: InterfaceId(0), source, destination, payload });
    sim.until(seconds(5), |sim| {
        let both = [0, 1].map(|node| sim.sequence(node, id(0)).map(u32::cast_signed));
        both == [Some(INITIAL_SEQUENCE); 2] && sim.databases_agree()
    });
    let originated: Vec<_> = sim.events(0)[before..]
        .iter()
        .filter_map(|event| match event {
            Event::Originated { sequence, flushed, .. } => Some((*sequence, *flushed)),
            _ => None,
        })
        .collect();
    assert_eq!(originated, [(MAX_SEQUENCE, true), (INITIAL_SEQUENCE, false)]);
    assert!(sim.all_full(2));
}
