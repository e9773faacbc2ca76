//! Areas of different types: what is flooded where, who disagrees, and that a host passes nothing on.

use std::{net::Ipv4Addr, time::Duration};

use ipnet::IpNet;

use super::{
    net, p2p, seconds,
    simulator::{Simulator, Simulator6, id},
};
use crate::{
    announce::Announcement,
    config::{AreaKind, ExternalConfig, InterfaceConfig, MetricType},
    packet::{
        Body, EXTERNAL, ExternalBody, FLAG_EXTERNAL, Lsa, LsaBody, LsaKey, NSSA, OPTION_E, OPTION_NP, Packet,
        ROUTER,
        v3::{self, LsType, PREFIX_P},
    },
    speaker::{ALL_SPF_ROUTERS, Event, Input, InterfaceId, NeighborState, Refusal, Scope},
};

const AREA: Ipv4Addr = Ipv4Addr::new(0, 0, 0, 1);

fn area(kind: AreaKind) -> InterfaceConfig {
    InterfaceConfig { area: AREA, area_kind: kind, ..p2p() }
}

/// A switch (node 0) with two directors (1 and 2), all in one area.
fn star(kind: AreaKind) -> Simulator {
    let mut sim = Simulator::new(300);
    for director in [1, 2] {
        sim.segment(&[(0, area(kind)), (director, area(kind))]);
    }
    sim.start();
    sim.until(seconds(5), |sim| sim.all_full(4) && sim.databases_equal());
    sim.run(seconds(3));
    sim
}

/// The external bodies of one type that a node holds, with the options of their headers.
fn externals(sim: &mut Simulator, node: usize, scope: Scope, kind: u8) -> Vec<(u8, ExternalBody)> {
    let held = sim.machine(node).living(scope).filter(|(key, _)| key.kind == kind);
    let body = |lsa: &Lsa| match LsaBody::parse(lsa) {
        Ok(LsaBody::External(body)) => (lsa.header.options, body),
        other => panic!("{other:?}"),
    };
    held.map(|(_, lsa)| body(lsa)).collect()
}

/// "If the E-bit … does not match … the packet should be dropped" (RFC 2328 section 10.5), and the N bit of RFC 3101.
#[test]
fn routers_that_disagree_about_the_area_are_no_neighbors_and_both_say_why() {
    let rows = [
        (AreaKind::Stub, AreaKind::Normal, Refusal::ExternalCapability, "they say normal, we say stub"),
        (AreaKind::Nssa, AreaKind::Normal, Refusal::ExternalCapability, "they say normal, we say NSSA"),
        (AreaKind::Stub, AreaKind::Nssa, Refusal::NssaCapability, "they say NSSA, we say stub"),
    ];
    for (one, other, reason, words) in rows {
        let mut sim = Simulator::new(301);
        sim.segment(&[(0, area(one)), (1, area(other))]);
        sim.start();
        sim.run(seconds(3));
        for node in [0, 1] {
            assert!(sim.status(node).neighbors.is_empty(), "{one:?} {other:?}");
            assert!(sim.status(node).counters[&reason] > 0, "{one:?} {other:?}");
        }
        let said = |event: &Event| matches!(event, Event::Refused { detail, .. } if detail.contains(words));
        assert!(sim.events(0).iter().any(said), "{words}: {:?}", sim.events(0));
    }
    // Whether the border router sends summaries is its own affair.
    let mut sim = Simulator::new(302);
    sim.segment(&[(0, area(AreaKind::Stub)), (1, area(AreaKind::TotallyStubby))]);
    sim.start();
    sim.until(seconds(5), |sim| sim.all_full(2));
}

/// "AS-external-LSAs are not flooded into/throughout stub areas" (RFC 2328 section 3.6).
#[test]
fn stub_area_holds_no_externals_whoever_sends_them() {
    let mut sim = star(AreaKind::Stub);
    let (vip, outside) = (net("203.0.113.10/32"), net("203.0.113.11/32"));
    sim.announce_as(1, &[(vip, Announcement::stub(10)), (outside, Announcement::external(10))]);
    sim.until(seconds(3), |sim| sim.hops(0, vip) == 1);
    assert_eq!((sim.hops(0, outside), sim.lsa_count(1, EXTERNAL)), (0, 0));
    for kind in [EXTERNAL, NSSA] {
        let key = LsaKey { kind, id: Ipv4Addr::new(192, 0, 2, 0), router: id(1) };
        let lsa = Lsa::build(key, 0, 1, &[0; 16]).expect("short");
        let packet = Packet { router: id(1), area: AREA, body: Body::Update(vec![lsa]) };
        let (source, destination) = (Ipv4Addr::new(10, 0, 0, 2), ALL_SPF_ROUTERS);
        let payload = packet.emit().to_vec();
        sim.input(0, Input::Packet { interface: InterfaceId(0), source, destination, payload });
    }
    assert_eq!(sim.status(0).counters[&Refusal::LsaScope], 2);
    assert_eq!(sim.lsa_count(0, EXTERNAL) + sim.lsa_count(0, NSSA), 0);
}

/// "NSSA … Type-7 LSAs … originated … advertised only within a single NSSA"; "a forwarding address … non-zero" where
/// the P bit asks for translation (RFC 3101 section 2.3).
#[test]
fn nssa_hears_of_externals_by_type_7_with_p_bit_and_forwarding_address() {
    let mut sim = star(AreaKind::Nssa);
    let vip = net("203.0.113.10/32");
    for director in [1, 2] {
        sim.announce_as(director, &[(vip, Announcement::external(10))]);
    }
    sim.until(seconds(3), |sim| sim.hops(0, vip) == 2);
    assert_eq!((sim.lsa_count(0, NSSA), sim.lsa_count(0, EXTERNAL)), (2, 0));
    let forwarding: Vec<_> = externals(&mut sim, 0, Scope::Area(AREA), NSSA)
        .into_iter()
        .map(|(options, body)| {
            assert_eq!(options, OPTION_NP);
            assert_eq!((body.type_2, body.metric), (true, 10));
            body.forwarding
        })
        .collect();
    assert_eq!(forwarding, [Ipv4Addr::new(10, 0, 0, 2), Ipv4Addr::new(10, 0, 1, 2)], "of the links");
    // The router id, where it is an address that we announce, is reached over whichever link is left.
    let internal = net(&format!("{}/32", id(1)));
    sim.announce_as(1, &[(vip, Announcement::external(10)), (internal, Announcement::stub(0))]);
    sim.run(seconds(6));
    assert_eq!(externals(&mut sim, 0, Scope::Area(AREA), NSSA)[0].1.forwarding, id(1));
    assert_eq!(sim.hops(0, vip), 2);
    sim.announce_as(2, &[]);
    sim.until(Duration::from_millis(300), |sim| sim.hops(0, vip) == 1);
}

/// "the P-bit must be reset (P=0) in the Type-7 LSA so the Type-7 LSA isn't again translated" where the same router
/// sends a type 5 (RFC 3101 section 2.4), and the bit E of its Router-LSAs is set in both areas.
#[test]
fn host_in_two_areas_announces_into_each_and_passes_nothing_between() {
    let mut sim = Simulator::new(303);
    sim.segment(&[(0, p2p()), (1, p2p())]);
    sim.segment(&[(1, area(AreaKind::Nssa)), (2, area(AreaKind::Nssa))]);
    sim.start();
    sim.until(seconds(5), |sim| sim.all_full(4));
    sim.run(seconds(3));
    let (stub, outside, behind) = (net("203.0.113.10/32"), net("203.0.113.11/32"), net("198.51.100.1/32"));
    sim.announce(2, &[(behind, 1)]);
    sim.announce_as(1, &[(stub, Announcement::stub(10)), (outside, Announcement::external(10))]);
    for switch in [0, 2] {
        sim.until(seconds(3), |sim| sim.hops(switch, stub) == 1 && sim.hops(switch, outside) == 1);
    }
    assert_eq!(sim.hops(1, behind), 1, "known to the host itself");
    assert_eq!(sim.hops(0, behind), 0, "and to nobody beyond it");
    let type_5 = externals(&mut sim, 0, Scope::Domain, EXTERNAL);
    assert_eq!((type_5[0].0, type_5[0].1.forwarding), (OPTION_E, Ipv4Addr::UNSPECIFIED));
    assert_eq!(externals(&mut sim, 2, Scope::Area(AREA), NSSA)[0].0, 0, "no P bit");
    assert_eq!((sim.lsa_count(0, NSSA), sim.lsa_count(2, EXTERNAL)), (0, 0));
    for (node, scope) in [(0, Scope::Area(Ipv4Addr::UNSPECIFIED)), (2, Scope::Area(AREA))] {
        let machine = sim.machine(node);
        let (_, lsa) =
            machine.living(scope).find(|(k, _)| k.kind == ROUTER && k.router == id(1)).expect("held");
        assert_eq!(lsa.body()[0], FLAG_EXTERNAL, "an AS boundary router, not an area border router");
    }
}

#[test]
fn external_announcements_say_their_type_and_tag() {
    let mut sim = Simulator::new(304);
    sim.external = ExternalConfig { metric_type: MetricType::One, tag: 7 };
    sim.segment(&[(0, p2p()), (1, p2p())]);
    sim.start();
    let vip = net("203.0.113.10/32");
    sim.announce_as(1, &[(vip, Announcement::external(30))]);
    sim.until(seconds(5), |sim| sim.cost(0, vip) == Some(10 + 30));
    let body = externals(&mut sim, 0, Scope::Domain, EXTERNAL)[0].1;
    assert_eq!((body.type_2, body.metric, body.tag), (false, 30, 7));
}

#[test]
fn version_3_announces_externals_by_its_own_types() {
    let outside: ipnet::Ipv6Net = "2001:db8:ffff::10/128".parse().expect("a prefix");
    for (kind, config) in [(AreaKind::Normal, p2p()), (AreaKind::Nssa, area(AreaKind::Nssa))] {
        let mut sim = Simulator6::new(305);
        for director in [1, 2] {
            sim.segment(&[(0, config.clone()), (director, config.clone())]);
        }
        sim.start();
        for director in [1, 2] {
            sim.announce_as(director, &[(outside, Announcement::external(10))]);
        }
        sim.until(seconds(6), |sim| sim.hops(0, outside) == 2);
        let (expected, scope) = match kind {
            AreaKind::Nssa => (v3::NSSA, Scope::Area(AREA)),
            _ => (v3::EXTERNAL, Scope::Domain),
        };
        assert_eq!(sim.lsa_count(0, expected), 2);
        let machine = sim.machine(0);
        for (_, lsa) in machine.living(scope).filter(|(key, _)| key.kind == expected) {
            let Ok(v3::body::LsaBody::External(body)) = v3::body::LsaBody::parse(lsa) else {
                panic!("{lsa:?}")
            };
            let asked = body.prefix.options & PREFIX_P != 0;
            assert_eq!((asked, body.forwarding.is_some()), (kind == AreaKind::Nssa, kind == AreaKind::Nssa));
            assert!(body.forwarding.is_none_or(|address| !address.is_unicast_link_local()));
        }
        sim.run(seconds(3));
        sim.announce_as(1, &[]);
        sim.until(Duration::from_millis(300), |sim| sim.hops(0, outside) == 1);
    }
}

/// "an LSA whose LS type is unrecognized can only be flooded into/throughout a stub area if both a) the LSA has area
/// or link-local flooding scope and b) the LSA has U-bit set to 0" (RFC 5340 section 2.10).
#[test]
fn stub_area_of_version_3_takes_no_unknown_type_that_asks_to_be_flooded() {
    let mut sim = Simulator6::new(306);
    sim.segment(&[(0, area(AreaKind::Stub)), (1, area(AreaKind::Stub))]);
    sim.start();
    sim.until(seconds(5), |sim| sim.all_full(2));
    sim.run(seconds(3));
    let (flooded, kept) = (LsType(0xa0f0), LsType(0x20f1));
    for kind in [flooded, kept] {
        let key = v3::LsaKey { kind, id: 1.into(), router: id(1) };
        let lsa = v3::Lsa::build(key, (), 1, &[0; 4]).expect("short");
        let body = v3::Body::Update(vec![lsa]);
        let (source, destination) = ("fe80::2".parse().expect("an address"), "ff02::5".parse().expect("one"));
        let packet = v3::Packet { router: id(1), area: AREA, instance: 0, body };
        let payload = packet.emit(source, destination).to_vec();
        sim.input(0, Input::Packet { interface: InterfaceId(0), source, destination, payload });
    }
    assert_eq!((sim.lsa_count(0, flooded), sim.lsa_count(0, kept)), (0, 1));
    assert_eq!(sim.neighbor_state(0, 1), Some(NeighborState::Full));
}

#[test]
fn aggregate_is_told_while_one_of_its_vips_is_up_and_they_are_not() {
    let mut sim = Simulator::new(307);
    sim.aggregates = vec!["203.0.113.0/24".parse::<IpNet>().expect("a prefix")];
    for director in [1, 2] {
        sim.segment(&[(0, p2p()), (director, p2p())]);
    }
    sim.start();
    sim.aggregates = Vec::new();
    sim.restart(0); // a switch knows nothing of it
    let (pool, one, two) = (net("203.0.113.0/24"), net("203.0.113.1/32"), net("203.0.113.2/32"));
    sim.announce(1, &[(one, 10), (two, 10)]);
    sim.announce(2, &[(two, 10)]);
    sim.until(seconds(6), |sim| sim.hops(0, pool) == 2);
    assert_eq!((sim.hops(0, one), sim.hops(0, two)), (0, 0));
    sim.run(seconds(3));
    sim.announce(1, &[(two, 10)]);
    sim.run(seconds(2));
    assert_eq!(sim.hops(0, pool), 2, "one is left");
    sim.announce(1, &[]);
    sim.until(Duration::from_millis(300), |sim| sim.hops(0, pool) == 1);
    assert_eq!(sim.hops(1, pool), 0, "the pool of another director is not for our kernel");
}
