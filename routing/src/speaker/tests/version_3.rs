//! What OSPFv3 does otherwise, on whole networks; the machine itself is tested with version 2.

use std::{net::Ipv4Addr, time::Duration};

use ipnet::{IpNet, Ipv6Net};
use proptest::{collection::vec, prelude::*};

use super::{
    lan, p2p, seconds,
    simulator::{Faults, Simulator6, id},
};
use crate::{
    packet::{
        MAX_AGE, OPTION_E,
        v3::{
            self, Body, EXTERNAL, Hello, INTRA_AREA_PREFIX, LINK, LsType, Lsa, LsaKey, NETWORK, OPTION_R,
            OPTION_V6, Packet, ROUTER, V3,
        },
    },
    speaker::{Event, Input, InterfaceId, NeighborState, Protocol, Refusal, Stop},
};

fn net(text: &str) -> Ipv6Net {
    text.parse().expect("a prefix")
}

const VIP: &str = "2001:db8:ffff::10/128";

/// Two switches, `directors` directors linked to both; node 0 and 1 are the switches.
fn fabric(directors: usize, seed: u64) -> Simulator6 {
    let mut sim = Simulator6::new(seed);
    for director in 2..2 + directors {
        sim.segment(&[(0, p2p()), (director, p2p())]);
        sim.segment(&[(1, p2p()), (director, p2p())]);
    }
    sim.start();
    sim
}

/// Node 0 is under test, node 1 its full neighbour, in whose name packets are made.
fn adjacent() -> Simulator6 {
    let mut sim = Simulator6::new(77);
    sim.segment(&[(0, p2p()), (1, p2p())]);
    sim.start();
    sim.until(seconds(5), |sim| sim.all_full(2) && sim.databases_agree());
    sim.run(seconds(3));
    sim
}

pub(super) fn deliver(sim: &mut Simulator6, instance: u8, body: Body) {
    let (source, destination) = ("fe80::2".parse().expect("an address"), V3::ALL_SPF_ROUTERS);
    let packet = Packet { router: id(1), area: Ipv4Addr::UNSPECIFIED, instance, body };
    let payload = packet.emit(source, destination).to_vec();
    sim.input(0, Input::Packet { interface: InterfaceId(0), source, destination, payload });
}

fn hello(options: u32) -> Hello {
    Hello {
        interface_id: 1,
        priority: 1,
        options,
        hello_interval: 1,
        dead_interval: 4,
        dr: Ipv4Addr::UNSPECIFIED,
        bdr: Ipv4Addr::UNSPECIFIED,
        neighbors: vec![id(0)],
    }
}

fn count(sim: &Simulator6, reason: Refusal) -> u64 {
    sim.status(0).counters.get(&reason).copied().unwrap_or(0)
}

fn lsa(kind: LsType, number: u32, sequence: i32, body: &[u8]) -> Lsa {
    Lsa::build(LsaKey { kind, id: number.into(), router: id(1) }, (), sequence, body).expect("short")
}

#[test]
fn two_speakers_become_full_and_tell_each_other_topology_links_and_prefixes() {
    let mut sim = Simulator6::new(1);
    sim.segment(&[(0, p2p()), (1, p2p())]);
    sim.start();
    sim.until(seconds(1), |sim| sim.all_full(2));
    sim.until(seconds(3), |sim| {
        let two = |kind| sim.lsa_count(0, kind) == 2;
        sim.databases_agree() && two(ROUTER) && two(LINK) && two(INTRA_AREA_PREFIX)
    });
}

#[test]
fn vip_has_a_link_local_next_hop_per_director_and_goes_when_withdrawn() {
    let mut sim = fabric(3, 2);
    let (vip, other) = (net(VIP), net("2001:db8:ffff::11/128"));
    for director in 2..5 {
        sim.announce(director, &[(vip, 10)]);
    }
    sim.until(seconds(10), |sim| sim.hops(0, vip) == 3 && sim.hops(1, vip) == 3);
    let route = sim.status(0).routes.into_iter().find(|route| route.prefix == IpNet::V6(vip));
    let hops = route.expect("found just now").next_hops;
    assert!(
        hops.iter()
            .all(|hop| matches!(hop.gateway, Some(std::net::IpAddr::V6(a)) if a.is_unicast_link_local()))
    );
    sim.run(seconds(5));
    sim.announce(3, &[]);
    sim.until(Duration::from_millis(300), |sim| sim.hops(0, vip) == 2 && sim.hops(1, vip) == 2);
    // The second change within a second waits for MinLSArrival; another VIP does not wait with it.
    sim.announce(3, &[(vip, 10), (other, 10)]);
    sim.until(Duration::from_millis(300), |sim| sim.hops(0, other) == 1);
    sim.until(Duration::from_millis(1300), |sim| sim.hops(0, vip) == 3 && sim.hops(1, vip) == 3);
    sim.run(seconds(5));
    sim.announce(4, &[(vip, 1010)]);
    sim.until(Duration::from_millis(300), |sim| sim.hops(0, vip) == 2);
    assert_eq!(sim.hops(2, vip), 0, "a director must not install a VIP that it announces");
}

#[test]
fn withdrawing_one_of_many_touches_no_other_prefix_and_makes_the_tree_be_calculated() {
    let mut sim = fabric(1, 21);
    let vips: Vec<_> = (0..200).map(|n| (net(&format!("2001:db8:ffff::{n:x}/128")), 10)).collect();
    sim.announce(2, &vips);
    sim.until(seconds(10), |sim| vips.iter().all(|(vip, _)| sim.hops(0, *vip) == 1));
    sim.run(seconds(5));
    let before = sim.events(2).len();
    sim.announce(2, &vips[1..]);
    sim.until(Duration::from_millis(300), |sim| sim.hops(0, vips[0].0) == 0);
    let originated = |event: &Event| match event {
        Event::Originated { lsa, flushed, .. } => Some((lsa.clone(), *flushed)),
        _ => None,
    };
    let originated: Vec<_> = sim.events(2)[before..].iter().filter_map(originated).collect();
    let [(prefix, true), (router, false)] = &originated[..] else { panic!("{originated:?}") };
    assert!(
        prefix.starts_with("type 0x2009 id 0.0.0.1 ") && router.starts_with("type 0x2001 "),
        "{originated:?}"
    );
    assert!(vips[1..].iter().all(|(vip, _)| sim.hops(0, *vip) == 1));
}

#[test]
fn director_is_never_a_way_through() {
    let mut sim = fabric(2, 3);
    sim.until(seconds(10), |sim| sim.all_full(8) && sim.databases_agree());
    let loopback = net("2001:db8:9999::1/128");
    sim.announce(1, &[(loopback, 1)]);
    sim.until(seconds(3), |sim| sim.cost(2, loopback) == Some(11));
    sim.until(seconds(1), |sim| sim.cost(0, loopback) == Some(10 + 0xffff + 1));
}

#[test]
fn broadcast_segment_elects_by_priority_and_its_prefix_is_known_once() {
    let mut sim = Simulator6::new(4);
    sim.segment(&[(0, lan(10)), (1, lan(5)), (2, lan(0)), (3, lan(0))]);
    sim.segment(&[(0, p2p()), (4, p2p())]);
    sim.start();
    sim.until(seconds(20), |sim| sim.all_full(12) && sim.lsa_count(4, NETWORK) == 1);
    assert_eq!(sim.neighbor_state(2, 3), Some(NeighborState::TwoWay));
    let segment = net("2001:db8:0:0::/64");
    sim.until(seconds(3), |sim| sim.cost(4, segment) == Some(10 + 0xffff));
    let vip = net(VIP);
    sim.announce(2, &[(vip, 10)]);
    sim.announce(3, &[(vip, 10)]);
    sim.until(seconds(5), |sim| sim.hops(0, vip) == 2 && sim.hops(1, vip) == 2);
    sim.kill(0);
    sim.until(seconds(20), |sim| sim.hops(1, vip) == 2 && sim.designated(2) == sim.address(1));
    assert_eq!(sim.designated(2), id(1), "by router id");
}

#[test]
fn killed_director_times_out_and_comes_back_with_one_new_router_lsa() {
    let mut sim = fabric(2, 5);
    let vip = net(VIP);
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
fn restart_with_other_vips_flushes_those_of_the_earlier_life() {
    let mut sim = fabric(1, 51);
    let (old, new) = (net("2001:db8:ffff::1/128"), net("2001:db8:ffff::2/128"));
    sim.announce(2, &[(old, 10), (net("2001:db8:ffff::3/128"), 10)]);
    sim.until(seconds(10), |sim| sim.hops(0, old) == 1);
    sim.kill(2);
    sim.run(seconds(6));
    sim.restart(2);
    sim.announce(2, &[(new, 10)]);
    sim.until(seconds(4), |sim| sim.hops(0, new) == 1 && sim.hops(0, old) == 0);
    // Prefixes of the links, and one VIP, of the director; of each switch its links.
    sim.until(seconds(4), |sim| sim.lsa_count(0, INTRA_AREA_PREFIX) == 4);
}

#[test]
fn clean_stop_withdraws_then_flushes_within_two_seconds() {
    let mut sim = fabric(2, 6);
    let vip = net(VIP);
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
fn network_converges_over_links_that_lose_duplicate_and_reorder() {
    for seed in 0..8 {
        let mut sim = fabric(4, 100 + seed);
        sim.segment(&[(0, lan(1)), (1, lan(1)), (6, lan(0)), (7, lan(0))]);
        sim.start();
        sim.faults = Faults { loss: 15, duplicate: 10, jitter: Duration::from_millis(40) };
        let vip = net(VIP);
        for director in 2..8 {
            sim.announce(director, &[(vip, 10)]);
        }
        for round in 0..6usize {
            sim.run(seconds(7));
            let prefix = net(&format!("2001:db8:fffe::{round}/128"));
            sim.announce(2 + round % 4, &[(vip, 10), (prefix, 5)]);
        }
        sim.faults = Faults::default();
        sim.until(seconds(60), |sim| sim.databases_agree() && sim.hops(0, vip) == 6 && sim.hops(1, vip) == 6);
    }
}

#[test]
fn lsas_are_refreshed_after_half_an_hour_and_never_age_out() {
    let mut sim = fabric(1, 10);
    sim.announce(2, &[(net(VIP), 10)]);
    sim.until(seconds(10), |sim| sim.all_full(4) && sim.databases_agree());
    sim.run(seconds(5));
    let before = sim.sequence(0, id(2)).expect("held");
    sim.run(seconds(1900));
    assert_eq!(sim.sequence(0, id(2)), Some(before + 1));
    sim.run(seconds(2000));
    assert_eq!((sim.lsa_count(0, ROUTER), sim.hops(0, net(VIP))), (3, 1));
}

#[test]
fn prefix_that_comes_or_goes_keeps_the_adjacency() {
    let mut sim = adjacent();
    let more = net("2001:db8:77::/64");
    sim.change_link(0, 0, |link| {
        link.address.as_mut().expect("has one").prefixes.insert(more);
    });
    sim.until(seconds(3), |sim| sim.cost(1, more) == Some(20));
    assert_eq!(sim.neighbor_state(0, 1), Some(NeighborState::Full));
    // A VIP that is an address of the device as well is announced, or it is not.
    sim.input(0, Input::Protect([IpNet::V6(more)].into()));
    sim.until(seconds(3), |sim| sim.cost(1, more).is_none());
}

/// "If the LS type is unknown … if the U-bit is clear, treat the LSA as if it had link-local flooding scope;
/// … set, store and flood the LSA as if type understood" (RFC 5340 section A.4.2.1).
#[test]
fn unknown_types_go_by_their_u_bit_and_scope() {
    let mut sim = Simulator6::new(8);
    sim.segment(&[(0, p2p()), (1, p2p())]);
    sim.segment(&[(0, p2p()), (2, p2p())]);
    sim.start();
    sim.until(seconds(5), |sim| sim.all_full(4));
    sim.run(seconds(3));
    let (flooded, kept, domain, reserved) = (LsType(0xa0f0), LsType(0x20f1), LsType(0xc0f2), LsType(0xe0f3));
    for kind in [flooded, kept, domain, reserved] {
        deliver(&mut sim, 0, Body::Update(vec![lsa(kind, 5, 1, &[1, 2, 3, 4])]));
    }
    sim.run(seconds(3));
    let held = |node| [flooded, kept, domain, reserved].map(|kind| sim.lsa_count(node, kind));
    assert_eq!(held(0), [1, 1, 1, 0]);
    assert_eq!(held(2), [1, 0, 1, 0]);
    assert_eq!(count(&sim, Refusal::LsaType), 1);
}

#[test]
fn every_mismatch_has_its_counter() {
    let mut sim = adjacent();
    let good = OPTION_V6 | OPTION_R | u32::from(OPTION_E);
    deliver(&mut sim, 9, Body::Hello(hello(good)));
    assert_eq!(count(&sim, Refusal::Instance), 1);
    deliver(&mut sim, 0, Body::Hello(hello(OPTION_V6)));
    assert_eq!(count(&sim, Refusal::ExternalCapability), 1);
    deliver(&mut sim, 0, Body::Hello(Hello { hello_interval: 2, ..hello(good) }));
    assert_eq!(count(&sim, Refusal::HelloInterval), 1);
    let impossible = [0, 0, 0, 1, 200, 0, 0, 0];
    deliver(&mut sim, 0, Body::Update(vec![lsa(v3::INTER_AREA_PREFIX, 1, 1, &impossible)]));
    assert_eq!(count(&sim, Refusal::LsaBody), 1);
    let (source, destination) = ("2001:db8::2".parse().expect("an address"), V3::ALL_SPF_ROUTERS);
    let packet =
        Packet { router: id(1), area: Ipv4Addr::UNSPECIFIED, instance: 0, body: Body::Hello(hello(good)) };
    let payload = packet.emit(source, destination).to_vec();
    sim.input(0, Input::Packet { interface: InterfaceId(0), source, destination, payload: payload.clone() });
    assert_eq!(count(&sim, Refusal::Source), 1);
    let source = "fe80::2".parse().expect("an address");
    sim.input(0, Input::Packet { interface: InterfaceId(0), source, destination, payload });
    assert_eq!(count(&sim, Refusal::Checksum), 1, "the checksum covers the addresses");
    assert_eq!(sim.neighbor_state(0, 1), Some(NeighborState::Full), "none of it hurts the adjacency");
}

/// An area border router's summaries and an AS boundary router's externals, made by hand in the name of a
/// neighbour that is both.
#[test]
fn summaries_and_externals_become_routes_and_go_with_a_flush() {
    let mut sim = adjacent();
    let router = sim.body_of(0, ROUTER, id(1));
    let mut flagged = router.to_vec();
    flagged[0] = 0x03; // E and B
    let sequence = sim.sequence(0, id(1)).expect("held").cast_signed();
    deliver(&mut sim, 0, Body::Update(vec![lsa(ROUTER, 0, sequence + 1, &flagged)]));
    let word = |prefix: u16| [0x20, 0x01, 0x0d, 0xb8, prefix.to_be_bytes()[0], prefix.to_be_bytes()[1], 0, 0];
    let inter: Vec<_> = [0, 0, 0, 7, 48, 0, 0, 0].into_iter().chain(word(0xaaaa)).collect();
    let external: Vec<_> = [4, 0, 0, 9, 48, 0, 0, 0].into_iter().chain(word(0xbbbb)).collect();
    let not_unicast: Vec<_> = [0, 0, 0, 7, 48, 1, 0, 0].into_iter().chain(word(0xcccc)).collect();
    let summary = lsa(v3::INTER_AREA_PREFIX, 1, 1, &inter);
    let all =
        vec![summary.clone(), lsa(v3::INTER_AREA_PREFIX, 2, 1, &not_unicast), lsa(EXTERNAL, 3, 1, &external)];
    deliver(&mut sim, 0, Body::Update(all));
    sim.run(Duration::from_millis(400));
    assert_eq!(sim.cost(0, net("2001:db8:aaaa::/48")), Some(17));
    assert_eq!(sim.cost(0, net("2001:db8:bbbb::/48")), Some(9), "type 2");
    assert_eq!(sim.cost(0, net("2001:db8:cccc::/48")), None, "NU bit");
    sim.run(seconds(2));
    deliver(&mut sim, 0, Body::Update(vec![summary.with_age(MAX_AGE)]));
    sim.until(seconds(3), |sim| sim.cost(0, net("2001:db8:aaaa::/48")).is_none());
}

fn random_body() -> impl Strategy<Value = (u8, Vec<u8>)> {
    (1u8..6, vec(any::<u8>(), 0..120))
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// Whatever a neighbour sends, nothing panics, and afterwards the two agree again.
    #[test]
    fn garbage_from_a_neighbor_is_survived(packets in vec(random_body(), 1..30)) {
        let mut sim = adjacent();
        for (kind, content) in packets {
            let (source, destination) = ("fe80::2".parse().expect("an address"), V3::ALL_SPF_ROUTERS);
            let payload = v3::sealed(kind, id(1), &content, source, destination);
            sim.input(0, Input::Packet { interface: InterfaceId(0), source, destination, payload });
            sim.run(Duration::from_millis(50));
        }
        sim.until(seconds(30), |sim| sim.all_full(2));
    }
}
