//! Single steps: a packet in, and what must come of it.

use std::{net::Ipv4Addr, time::Duration};

use proptest::{collection::vec, prelude::*};

use super::{
    fast, net, seconds,
    simulator::{Simulator, id},
};
use crate::{
    config::Network,
    packet::{
        Body, Hello, INITIAL_SEQUENCE, Lsa, LsaKey, MAX_AGE, OPTION_E, Packet, ROUTER, SUMMARY_NETWORK,
    },
    speaker::{ALL_SPF_ROUTERS, Event, Input, InterfaceId, NeighborState, Refusal},
};

/// Node 0 is under test, node 1 its full neighbour, in whose name packets are made.
pub(super) fn adjacent() -> Simulator {
    let mut sim = Simulator::new(77);
    sim.segment(&[(0, super::p2p()), (1, super::p2p())]);
    sim.start();
    sim.until(seconds(5), |sim| sim.all_full(2) && sim.databases_equal());
    sim.run(seconds(3));
    sim
}

pub(super) fn receive(sim: &mut Simulator, payload: Vec<u8>) {
    let source = Ipv4Addr::new(10, 0, 0, 2);
    let (interface, destination) = (InterfaceId(0), ALL_SPF_ROUTERS);
    sim.input(0, Input::Packet { interface, source, destination, payload });
}

pub(super) fn deliver(sim: &mut Simulator, body: Body) {
    let packet = Packet { router: id(1), area: Ipv4Addr::UNSPECIFIED, body };
    receive(sim, packet.emit().to_vec());
}

pub(super) fn hello() -> Hello {
    Hello {
        mask: Ipv4Addr::new(255, 255, 255, 0),
        hello_interval: 1,
        options: OPTION_E,
        priority: 1,
        dead_interval: 4,
        dr: Ipv4Addr::UNSPECIFIED,
        bdr: Ipv4Addr::UNSPECIFIED,
        neighbors: vec![id(0)],
    }
}

pub(super) fn count(sim: &Simulator, reason: Refusal) -> u64 {
    sim.status(0).counters.get(&reason).copied().unwrap_or(0)
}

pub(super) fn summary(sequence: i32, metric: u8) -> Lsa {
    let key = LsaKey { kind: SUMMARY_NETWORK, id: Ipv4Addr::new(192, 0, 2, 0), router: id(1) };
    Lsa::build(key, OPTION_E, sequence, &[255, 255, 255, 0, 0, 0, 0, metric]).expect("short")
}

#[test]
fn every_mismatch_of_a_hello_has_its_counter() {
    let mut sim = Simulator::new(78);
    sim.segment(&[(0, fast(Network::Broadcast, 0)), (1, fast(Network::Broadcast, 0))]);
    sim.start();
    type Spoil = fn(&mut Hello);
    let rows: [(Refusal, Spoil); 5] = [
        (Refusal::HelloMask, |hello| hello.mask = Ipv4Addr::new(255, 255, 0, 0)),
        (Refusal::HelloInterval, |hello| hello.hello_interval = 10),
        (Refusal::DeadInterval, |hello| hello.dead_interval = 40),
        (Refusal::ExternalCapability, |hello| hello.options = 0),
        (Refusal::NssaCapability, |hello| hello.options = OPTION_E | 8),
    ];
    for (reason, spoil) in rows {
        let mut hello = hello();
        spoil(&mut hello);
        deliver(&mut sim, Body::Hello(hello));
        assert_eq!(count(&sim, reason), 1, "{reason:?}");
        let said = |event: &Event| matches!(event, Event::Refused { reason: said, .. } if *said == reason);
        assert_eq!(sim.events(0).iter().filter(|event| said(event)).count(), 1);
    }
    assert!(sim.status(0).neighbors.is_empty());
}

#[test]
fn every_malformed_packet_has_its_counter() {
    let mut sim = adjacent();
    let good = Packet { router: id(1), area: Ipv4Addr::UNSPECIFIED, body: Body::Hello(hello()) };
    let bytes = good.emit().to_vec();
    let mut spoiled = |reason, spoil: &dyn Fn(&mut Vec<u8>)| {
        let mut bytes = bytes.clone();
        spoil(&mut bytes);
        receive(&mut sim, bytes);
        assert_eq!(count(&sim, reason), 1, "{reason:?}");
    };
    spoiled(Refusal::Short, &|bytes| bytes.truncate(20));
    spoiled(Refusal::Version, &|bytes| bytes[0] = 3);
    spoiled(Refusal::Length, &|bytes| bytes.truncate(30));
    spoiled(Refusal::Checksum, &|bytes| bytes[30] ^= 1);
    spoiled(Refusal::Authentication, &|bytes| bytes[15] = 1);
    let packet = |router, area| Packet { router, area, ..good.clone() }.emit().to_vec();
    spoiled(Refusal::Area, &|bytes| *bytes = packet(id(1), Ipv4Addr::new(0, 0, 0, 9)));
    spoiled(Refusal::RouterIdZero, &|bytes| *bytes = packet(Ipv4Addr::UNSPECIFIED, Ipv4Addr::UNSPECIFIED));
    spoiled(Refusal::DuplicateRouterId, &|bytes| *bytes = packet(id(0), Ipv4Addr::UNSPECIFIED));
    spoiled(Refusal::PacketType, &|bytes| {
        bytes[1] = 9;
        bytes[12..14].fill(0);
        let sum = crate::packet::checksum::internet(&[bytes]);
        bytes[12..14].copy_from_slice(&sum.to_be_bytes());
    });
    assert_eq!(sim.neighbor_state(0, 1), Some(NeighborState::Full), "none of it hurts the adjacency");
}

#[test]
fn every_malformed_lsa_has_its_counter() {
    let mut sim = adjacent();
    let build = |kind, id, sequence, body: &[u8]| {
        let key = LsaKey { kind, id, router: super::id(1) };
        Lsa::build(key, OPTION_E, sequence, body).expect("short")
    };
    let other = Ipv4Addr::new(9, 9, 9, 9);
    let mut wrong = build(SUMMARY_NETWORK, other, 1, &[0; 8]).bytes().to_vec();
    wrong[24] ^= 1;
    let wrong = Lsa::parse(&mut wrong.into()).expect("a header");
    let rows = [
        (Refusal::LsaChecksum, wrong),
        (Refusal::LsaType, build(77, other, 1, &[])),
        (Refusal::LsaHeader, build(ROUTER, other, 1, &[0; 4])),
        (Refusal::LsaBody, build(SUMMARY_NETWORK, other, 1, &[0; 5])),
    ];
    for (reason, lsa) in rows {
        deliver(&mut sim, Body::Update(vec![lsa]));
        assert_eq!(count(&sim, reason), 1, "{reason:?}");
    }
    deliver(&mut sim, Body::Update(vec![build(SUMMARY_NETWORK, other, i32::MIN, &[0; 8])]));
    assert_eq!(count(&sim, Refusal::LsaHeader), 2);
    assert_eq!(sim.status(0).lsdb.len(), 2, "nothing of it is in the database");
}

/// "If … the database copy was … installed less than MinLSArrival seconds ago, discard the new LSA
/// (without acknowledging it)" (section 13 step 5a).
#[test]
fn second_instance_within_a_second_is_dropped() {
    let mut sim = adjacent();
    deliver(&mut sim, Body::Update(vec![summary(5, 1)]));
    sim.run(Duration::from_millis(900));
    deliver(&mut sim, Body::Update(vec![summary(6, 2)]));
    assert_eq!(count(&sim, Refusal::LsaTooSoon), 1);
    sim.run(Duration::from_millis(200));
    deliver(&mut sim, Body::Update(vec![summary(6, 2)]));
    let held =
        sim.status(0).lsdb.iter().find(|lsa| lsa.kind == u16::from(SUMMARY_NETWORK)).map(|lsa| lsa.sequence);
    assert_eq!(held, Some(6));
}

/// "If the LSA's LS age is equal to MaxAge, and there is currently no instance of the LSA in the router's
/// link state database, and none of router's neighbors are in states Exchange or Loading, then …
/// acknowledge the receipt … and discard it" (section 13 step 4).
#[test]
fn flush_of_an_unknown_lsa_is_acknowledged_and_forgotten() {
    let mut sim = adjacent();
    deliver(&mut sim, Body::Update(vec![summary(5, 1).with_age(MAX_AGE)]));
    assert_eq!(sim.lsa_count(0, SUMMARY_NETWORK), 0);
    let sent = sim.trace().into_iter().rev().take_while(|line| line.contains(" 0 Send")).count();
    assert!(sent >= 1, "no acknowledgement");
}

/// "If the received self-originated LSA is newer … and the router no longer wishes to originate it … the
/// LSA should be flushed" (section 13.4).
#[test]
fn forgotten_lsa_of_an_earlier_life_is_flushed() {
    let mut sim = adjacent();
    let key = LsaKey { kind: SUMMARY_NETWORK, id: Ipv4Addr::new(192, 0, 2, 0), router: id(0) };
    let lsa =
        Lsa::build(key, OPTION_E, INITIAL_SEQUENCE + 7, &[255, 255, 255, 0, 0, 0, 0, 1]).expect("short");
    deliver(&mut sim, Body::Update(vec![lsa]));
    let flushed = |event: &Event| matches!(event, Event::Originated { flushed: true, sequence, .. } if *sequence == INITIAL_SEQUENCE + 7);
    assert!(sim.events(0).iter().any(flushed));
    sim.until(seconds(5), |sim| sim.lsa_count(0, SUMMARY_NETWORK) + sim.lsa_count(1, SUMMARY_NETWORK) == 0);
}

/// A flush of an earlier life that a neighbour still holds is in no database description. "The router must … advance the
/// LSA's LS sequence number one past the received LS sequence number, and originate a new instance" (section 13.4).
#[test]
fn flush_of_an_earlier_life_is_superseded_at_once_and_by_number() {
    let mut sim = Simulator::new(79);
    sim.segment(&[(0, super::p2p()), (1, super::p2p())]);
    sim.start();
    let newest = |sim: &Simulator| {
        let own = sim.status(0).lsdb.into_iter().find(|lsa| lsa.own && lsa.kind == u16::from(ROUTER));
        own.filter(|lsa| lsa.age < MAX_AGE).map(|lsa| lsa.sequence.cast_signed())
    };
    sim.until(seconds(5), |sim| newest(sim).is_some());
    assert_eq!(newest(&sim), Some(INITIAL_SEQUENCE));
    let flush = |sequence| {
        let key = LsaKey { kind: ROUTER, id: id(0), router: id(0) };
        let lsa = Lsa::build(key, OPTION_E, sequence, &[0; 4]).expect("short").with_age(MAX_AGE);
        Body::Update(vec![lsa])
    };
    deliver(&mut sim, flush(INITIAL_SEQUENCE + 7));
    assert_eq!(newest(&sim), Some(INITIAL_SEQUENCE + 8), "our first instance was taken by nobody");
    // Another one within the second keeps the pace, and its number although it was swept meanwhile.
    deliver(&mut sim, flush(INITIAL_SEQUENCE + 20));
    assert_eq!(newest(&sim), None, "too soon");
    sim.run(Duration::from_millis(1200));
    assert_eq!(newest(&sim), Some(INITIAL_SEQUENCE + 21));
}

#[test]
fn bad_request_restarts_the_exchange_and_it_recovers() {
    let mut sim = adjacent();
    let key = LsaKey { kind: ROUTER, id: Ipv4Addr::new(9, 9, 9, 9), router: Ipv4Addr::new(9, 9, 9, 9) };
    deliver(&mut sim, Body::Request(vec![key]));
    assert_eq!(count(&sim, Refusal::BadRequest), 1);
    assert_eq!(sim.neighbor_state(0, 1), Some(NeighborState::ExStart));
    sim.until(seconds(10), |sim| sim.all_full(2));
}

#[test]
fn one_way_hello_ends_the_adjacency_and_it_recovers() {
    let mut sim = adjacent();
    deliver(&mut sim, Body::Hello(Hello { neighbors: Vec::new(), ..hello() }));
    assert_eq!(sim.neighbor_state(0, 1), Some(NeighborState::Init));
    sim.until(seconds(10), |sim| sim.all_full(2));
}

#[test]
fn nothing_is_sent_before_enable() {
    use crate::{
        Time,
        config::Config,
        speaker::{Link, Output, Speaker},
    };
    let mut speaker = Speaker::new(Config::new(id(0), vec![super::p2p()]), 1).expect("valid");
    let link = Link { up: true, index: 1, mtu: 1500, address: Some(net("10.0.0.1/24")) };
    speaker.handle(Time::ZERO, Input::Link { interface: InterfaceId(0), link });
    speaker.handle(Time::from_start(seconds(60)), Input::Timer);
    assert_eq!(speaker.poll_output(), None);
    speaker.handle(Time::from_start(seconds(61)), Input::Enable);
    let mut outputs = std::iter::from_fn(|| speaker.poll_output());
    assert!(outputs.any(|output| matches!(output, Output::Send { .. })));
}

fn random_body() -> impl Strategy<Value = Vec<u8>> {
    (1u8..6, vec(any::<u8>(), 0..120)).prop_map(|(kind, content)| {
        let mut bytes = vec![2, kind, 0, 0];
        bytes.extend(id(1).octets());
        bytes.resize(24, 0);
        bytes.extend(content);
        let length = u16::try_from(bytes.len()).expect("short");
        bytes[2..4].copy_from_slice(&length.to_be_bytes());
        let sum = crate::packet::checksum::internet(&[&bytes]);
        bytes[12..14].copy_from_slice(&sum.to_be_bytes());
        bytes
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// Whatever a neighbour sends, nothing panics, and afterwards the two agree again.
    #[test]
    fn garbage_from_a_neighbor_is_survived(packets in vec(random_body(), 1..30)) {
        let mut sim = adjacent();
        for packet in packets {
            receive(&mut sim, packet);
            sim.run(Duration::from_millis(50));
        }
        sim.until(seconds(30), |sim| sim.all_full(2));
    }
}

/// What is refused before anybody looks inside, and what does not fit the neighbour's state: each has its counter, and one
/// line in the log for as many as come within half a minute.
#[test]
fn every_packet_out_of_place_has_its_counter_and_one_line() {
    let mut sim = adjacent();
    let from = |sim: &mut Simulator, source: [u8; 4], destination: Ipv4Addr| {
        let packet = Packet { router: id(1), area: Ipv4Addr::UNSPECIFIED, body: Body::Hello(hello()) };
        let (interface, source, payload) = (InterfaceId(0), source.into(), packet.emit().to_vec());
        sim.input(0, Input::Packet { interface, source, destination, payload });
    };
    let stranger = |body| Packet { router: id(7), area: Ipv4Addr::UNSPECIFIED, body }.emit().to_vec();
    for _ in 0..2 {
        from(&mut sim, [10, 0, 0, 1], ALL_SPF_ROUTERS);
        from(&mut sim, [192, 0, 2, 9], ALL_SPF_ROUTERS);
        from(&mut sim, [10, 0, 0, 2], Ipv4Addr::new(10, 0, 0, 9));
        receive(&mut sim, stranger(Body::Ack(Vec::new())));
    }
    let said = |sim: &Simulator, reason: Refusal| -> Vec<String> {
        let of = |event: &Event| match event {
            Event::Refused { reason: told, detail, .. } if *told == reason => Some(detail.clone()),
            _ => None,
        };
        sim.events(0).iter().filter_map(of).collect()
    };
    for (reason, detail) in [
        (Refusal::OwnPacket, "own packet came back"),
        (Refusal::Source, "source 192.0.2.9 is not in 10.0.0.0/24"),
        (Refusal::Destination, "addressed to 10.0.0.9"),
        (Refusal::UnknownNeighbor, "no Hello from 10.255.0.8 yet"),
    ] {
        assert_eq!((count(&sim, reason), said(&sim, reason)), (2, vec![detail.to_owned()]), "{reason:?}");
    }
    deliver(&mut sim, Body::Hello(Hello { neighbors: Vec::new(), ..hello() }));
    deliver(&mut sim, Body::Ack(Vec::new()));
    let detail = "neighbour is in state Init, packet needs Exchange or above";
    assert_eq!(said(&sim, Refusal::NeighborState), [detail]);
    sim.run(seconds(31));
    from(&mut sim, [10, 0, 0, 2], Ipv4Addr::new(10, 0, 0, 9));
    assert_eq!((count(&sim, Refusal::Destination), said(&sim, Refusal::Destination).len()), (3, 2));
}
