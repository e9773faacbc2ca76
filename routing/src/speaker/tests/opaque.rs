//! Opaque LSAs (RFC 5250): nothing is read in them, and everybody gets those of their scope who wants them.

use std::net::Ipv4Addr;

use bytes::Bytes;

use super::{
    p2p,
    protocol::{count, deliver, hello, receive},
    seconds,
    simulator::{Sent, Simulator, id},
};
use crate::{
    config::{AreaKind, InterfaceConfig},
    packet::{
        Body, DD_INIT, DD_MASTER, DD_MORE, Description, Hello, Lsa, LsaKey, MAX_AGE, OPAQUE_AREA, OPAQUE_AS,
        OPAQUE_LINK, OPTION_E, OPTION_O, Packet, V2,
    },
    speaker::{ALL_SPF_ROUTERS, Input, InterfaceId, NeighborState, Refusal},
};

/// Originator of the LSAs: nobody who lives here and would flush them.
const STRANGER: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 99);

fn opaque(kind: u8, sequence: i32) -> Lsa {
    // Opaque type 4 (router information), whose content is of no interest here.
    let key = LsaKey { kind, id: Ipv4Addr::new(4, 0, 0, 0), router: STRANGER };
    Lsa::build(key, OPTION_E, sequence, &[0, 1, 0, 4, 0x60, 0, 0, 0]).expect("short")
}

fn area(number: u8, area_kind: AreaKind) -> InterfaceConfig {
    InterfaceConfig { area: Ipv4Addr::new(0, 0, 0, number), area_kind, ..p2p() }
}

/// Which of the three types a node holds.
fn held(sim: &Simulator, node: usize) -> [bool; 3] {
    [OPAQUE_LINK, OPAQUE_AREA, OPAQUE_AS].map(|kind| sim.lsa_count(node, kind) == 1)
}

/// Node 0 has node 1 and 2 in its backbone area, and one neighbour each in a normal area, a stub area and an NSSA.
fn crossing() -> Simulator {
    let mut sim = Simulator::new(521);
    for (neighbor, config) in [
        (1, p2p()),
        (2, p2p()),
        (3, area(1, AreaKind::Normal)),
        (4, area(2, AreaKind::Stub)),
        (5, area(3, AreaKind::Nssa)),
    ] {
        sim.segment(&[(0, config.clone()), (neighbor, config)]);
    }
    sim.start();
    sim.until(seconds(5), |sim| sim.all_full(10));
    sim.run(seconds(3));
    sim
}

/// "Type-9 Opaque LSAs are not flooded beyond the local (sub)network. … Type-10 Opaque LSAs are not flooded beyond the
/// borders of their associated area. … type-11 Opaque LSAs are 1) flooded throughout all transit areas, 2) not flooded into
/// stub areas or Not-So-Stubby Areas (NSSAs)" (RFC 5250 section 3.1).
#[test]
fn each_type_is_held_and_flooded_within_its_scope() {
    let mut sim = crossing();
    let all = [OPAQUE_LINK, OPAQUE_AREA, OPAQUE_AS].map(|kind| opaque(kind, 1));
    deliver(&mut sim, Body::Update(all.to_vec()));
    sim.run(seconds(1));
    let expected = [
        (0, [true, true, true]),
        (2, [false, true, true]),
        (3, [false, false, true]),
        (4, [false, false, false]),
        (5, [false, false, false]),
    ];
    for (node, types) in expected {
        assert_eq!(held(&sim, node), types, "node {node}");
    }
    let unacknowledged: Vec<_> = sim.status(0).neighbors.iter().map(|n| n.unacknowledged).collect();
    assert_eq!(unacknowledged, [0; 5], "whoever is not sent a copy owes no acknowledgement");
    // They go the way they came.
    deliver(&mut sim, Body::Update(all.map(|lsa| lsa.with_age(MAX_AGE)).to_vec()));
    sim.until(seconds(3), |sim| (0..6).all(|node| node == 1 || held(sim, node) == [false; 3]));
}

/// A neighbour that comes later gets them by its database exchange, within the same scopes.
#[test]
fn descriptions_list_each_type_within_its_scope() {
    let mut sim = crossing();
    for neighbor in 2..6 {
        sim.kill(neighbor);
    }
    sim.run(seconds(6));
    deliver(
        &mut sim,
        Body::Update([OPAQUE_LINK, OPAQUE_AREA, OPAQUE_AS].map(|kind| opaque(kind, 1)).to_vec()),
    );
    for neighbor in 2..6 {
        sim.restart(neighbor);
    }
    sim.until(seconds(5), |sim| sim.all_full(10));
    let none = [false; 3];
    let heard: Vec<_> = (2..6).map(|node| held(&sim, node)).collect();
    assert_eq!(heard, [[false, true, true], [false, false, true], none, none]);
}

/// "As with type-5 LSAs, if a type-11 Opaque LSA is received in a stub area or NSSA from a neighboring router within the
/// stub area or NSSA, the LSA is rejected." (RFC 5250 section 3.1)
#[test]
fn as_wide_opaque_lsa_from_a_stub_area_is_rejected() {
    for kind in [AreaKind::Stub, AreaKind::TotallyStubby, AreaKind::Nssa] {
        let mut sim = Simulator::new(522);
        sim.segment(&[(0, area(1, kind)), (1, area(1, kind))]);
        sim.start();
        sim.until(seconds(5), |sim| sim.all_full(2));
        let body = Body::Update(vec![opaque(OPAQUE_AS, 1), opaque(OPAQUE_AREA, 1)]);
        let packet = Packet { router: id(1), area: Ipv4Addr::new(0, 0, 0, 1), body };
        receive(&mut sim, packet.emit().to_vec());
        assert_eq!(count(&sim, Refusal::LsaScope), 1, "{kind:?}");
        assert_eq!(held(&sim, 0), [false, true, false], "{kind:?}: the next one is taken");
    }
}

/// Plays the part of node 1, which comes back with other options: from nothing to Full, up to what node 0 lists.
fn exchange(sim: &mut Simulator, options: u8) -> Vec<u8> {
    sim.wire = Some(Vec::new());
    deliver(sim, Body::Hello(Hello { neighbors: Vec::new(), ..hello() }));
    deliver(sim, Body::Hello(hello()));
    assert_eq!(sim.neighbor_state(0, 1), Some(NeighborState::ExStart));
    for (flags, sequence) in [(DD_INIT | DD_MORE | DD_MASTER, 100), (DD_MASTER, 101)] {
        let description = Description { mtu: 1500, options, flags, sequence, headers: Vec::new() };
        deliver(sim, Body::Description(description));
    }
    assert_eq!(sim.neighbor_state(0, 1), Some(NeighborState::Full));
    let listed = |body| match body {
        Body::Description(description) => description.headers.iter().map(|header| header.key.kind).collect(),
        _ => Vec::new(),
    };
    sent_to_1(sim).into_iter().flat_map(listed).collect()
}

/// What node 0 sent over the link to node 1 since somebody began to listen.
fn sent_to_1(sim: &mut Simulator) -> Vec<Body> {
    let sent = sim.wire.replace(Vec::new()).expect("listened to");
    let here = |sent: &Sent<V2>| (sent.node, sent.interface) == (0, InterfaceId(0));
    let body = |sent: Sent<V2>| Packet::parse(&Bytes::from(sent.payload)).expect("well-formed").body;
    sent.into_iter().filter(here).map(body).collect()
}

fn opaque_updates(bodies: &[Body]) -> Vec<u8> {
    let kinds = |body: &Body| match body {
        Body::Update(lsas) => {
            lsas.iter().map(|lsa| lsa.header.key).filter(LsaKey::is_opaque).map(|key| key.kind).collect()
        }
        _ => Vec::new(),
    };
    bodies.iter().flat_map(kinds).collect()
}

/// "A neighbor is opaque-capable if and only if it sets the O-bit in the Options field of its Database Description packets;
/// the O-bit SHOULD NOT be set and MUST be ignored when received in packets other than Database Description packets." (RFC
/// 5250 section 3.1)
#[test]
fn only_a_neighbor_with_the_o_bit_in_its_descriptions_gets_opaque_lsas() {
    for (options, capable) in [(OPTION_E, false), (OPTION_E | OPTION_O, true)] {
        let mut sim = Simulator::new(523);
        sim.segment(&[(0, p2p()), (1, p2p())]);
        sim.segment(&[(0, p2p()), (2, p2p())]);
        sim.start();
        sim.until(seconds(5), |sim| sim.all_full(4));
        sim.run(seconds(3));
        sim.kill(1);
        let from_2 = |sim: &mut Simulator, lsas: Vec<Lsa>| {
            let body = Body::Update(lsas);
            let payload = Packet { router: id(2), area: Ipv4Addr::UNSPECIFIED, body }.emit().to_vec();
            let (source, destination) = (Ipv4Addr::new(10, 0, 1, 2), ALL_SPF_ROUTERS);
            sim.input(0, Input::Packet { interface: InterfaceId(1), source, destination, payload });
        };
        from_2(&mut sim, vec![opaque(OPAQUE_AREA, 1), opaque(OPAQUE_AS, 1)]);
        // An O bit in the Hellos says nothing.
        let boasting = Body::Hello(Hello { options: OPTION_E | OPTION_O, neighbors: Vec::new(), ..hello() });
        deliver(&mut sim, boasting);
        let listed: Vec<_> =
            exchange(&mut sim, options).into_iter().filter(|kind| *kind >= OPAQUE_LINK).collect();
        let both = [OPAQUE_AREA, OPAQUE_AS];
        assert_eq!(listed, both[..if capable { 2 } else { 0 }], "described");
        sim.run(seconds(1));
        assert_eq!(opaque_updates(&sent_to_1(&mut sim)), [0; 0], "nothing is new");
        from_2(&mut sim, vec![opaque(OPAQUE_AREA, 2), opaque(OPAQUE_AS, 2)]);
        assert_eq!(opaque_updates(&sent_to_1(&mut sim)), both[..if capable { 2 } else { 0 }], "flooded");
        let neighbors = sim.status(0).neighbors;
        let owed = neighbors.iter().find(|n| n.router_id == id(1)).expect("there").unacknowledged;
        assert_eq!(owed, if capable { 2 } else { 0 }, "nor waited for");
    }
}
