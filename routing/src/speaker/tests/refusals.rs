//! Refusals that need more than one packet to bring about: each has its counter, its line in the log, and its consequence.

use std::net::Ipv4Addr;

use super::{
    p2p,
    protocol::{adjacent, count, deliver, hello, receive},
    seconds,
    simulator::{Simulator, id},
};
use crate::{
    config::{AreaKind, InterfaceConfig},
    packet::{
        Body, DD_INIT, DD_MASTER, DD_MORE, Description, EXTERNAL, Hello, INITIAL_SEQUENCE, Lsa, LsaHeader,
        LsaKey, OPTION_E, OPTION_O, Packet, ROUTER,
    },
    speaker::{Event, Input, InterfaceId, NeighborEvent, NeighborState, Refusal},
};

const FIRST: u8 = DD_INIT | DD_MORE | DD_MASTER;

fn description(flags: u8, sequence: u32, headers: Vec<LsaHeader>) -> Description {
    Description { mtu: 1500, options: OPTION_E | OPTION_O, flags, sequence, headers }
}

fn describe(sim: &mut Simulator, flags: u8, sequence: u32) {
    deliver(sim, Body::Description(description(flags, sequence, Vec::new())));
}

/// What was said aloud for a reason.
fn lines(sim: &Simulator, reason: Refusal) -> Vec<String> {
    let of = |event: &Event| match event {
        Event::Refused { reason: told, detail, .. } if *told == reason => Some(detail.clone()),
        _ => None,
    };
    sim.events(0).iter().filter_map(of).collect()
}

/// How often a neighbour's exchange began anew for this reason.
fn restarts(sim: &Simulator, because: NeighborEvent) -> usize {
    let restart = |event: &&Event| matches!(event, Event::Neighbor { to: NeighborState::ExStart, event, .. } if *event == because);
    sim.events(0).iter().filter(restart).count()
}

/// The neighbour comes back, and its part is played up to the state ExStart.
fn in_ex_start() -> Simulator {
    let mut sim = adjacent();
    sim.kill(1);
    deliver(&mut sim, Body::Hello(Hello { neighbors: Vec::new(), ..hello() }));
    deliver(&mut sim, Body::Hello(hello()));
    assert_eq!(sim.neighbor_state(0, 1), Some(NeighborState::ExStart));
    sim
}

/// The same up to Exchange: it leads, and has more to say.
fn in_exchange() -> Simulator {
    let mut sim = in_ex_start();
    describe(&mut sim, FIRST, 100);
    assert_eq!(sim.neighbor_state(0, 1), Some(NeighborState::Exchange));
    sim
}

#[test]
fn packet_on_an_interface_that_is_passive_or_down() {
    let mut sim = Simulator::new(561);
    sim.segment(&[(0, InterfaceConfig { passive: true, ..p2p() }), (1, p2p())]);
    sim.start();
    deliver(&mut sim, Body::Hello(hello()));
    assert_eq!(count(&sim, Refusal::InterfaceInactive), 1);
    assert_eq!(lines(&sim, Refusal::InterfaceInactive), ["interface is passive or down"]);
    let mut sim = adjacent();
    sim.change_link(0, 0, |link| link.up = false);
    deliver(&mut sim, Body::Hello(hello()));
    assert_eq!(count(&sim, Refusal::InterfaceInactive), 1);
    assert_eq!(sim.neighbor_state(0, 1), None);
}

/// "If the Interface MTU field in the Database Description packet indicates an IP datagram size that is larger than the
/// router can accept on the receiving interface without fragmentation, the Database Description packet is rejected." (RFC
/// 2328 section 10.6)
#[test]
fn description_with_a_larger_mtu() {
    let mut sim = in_ex_start();
    let sized = |mtu| Body::Description(Description { mtu, ..description(FIRST, 100, Vec::new()) });
    deliver(&mut sim, sized(1501));
    assert_eq!(count(&sim, Refusal::Mtu), 1);
    let line = "MTU: they say 1501, we say 1500; make them equal or set mtu_ignore";
    assert_eq!(lines(&sim, Refusal::Mtu), [line]);
    assert_eq!(sim.neighbor_state(0, 1), Some(NeighborState::ExStart));
    // A smaller one can be accepted.
    deliver(&mut sim, sized(1400));
    assert_eq!(sim.neighbor_state(0, 1), Some(NeighborState::Exchange));
    assert_eq!(count(&sim, Refusal::Mtu), 1);
}

/// "If the state of the MS-bit is inconsistent with the master/slave state of the connection, generate the neighbor event
/// SeqNumberMismatch and stop processing the packet. If the initialize(I) bit is set, generate the neighbor event
/// SeqNumberMismatch … If the packet's Options field indicates a different set of optional OSPF capabilities than were
/// previously received from the neighbor …, generate the neighbor event SeqNumberMismatch … If the router is slave and the
/// packet's DD sequence number is equal to one more than the previous … Else, generate the neighbor event
/// SeqNumberMismatch" (RFC 2328 section 10.6)
#[test]
fn description_out_of_sequence_while_exchanging() {
    let wrong = [
        ("the M/S bit", description(DD_MORE, 101, Vec::new())),
        ("the I bit", description(FIRST, 101, Vec::new())),
        ("the options", Description { options: OPTION_E, ..description(DD_MASTER, 101, Vec::new()) }),
        ("the number", description(DD_MASTER, 102, Vec::new())),
        ("a number of the past", description(DD_MASTER, 99, Vec::new())),
    ];
    for (what, wrong) in wrong {
        let mut sim = in_exchange();
        deliver(&mut sim, Body::Description(wrong.clone()));
        assert_eq!(count(&sim, Refusal::DescriptionSequence), 1, "{what}");
        let said = format!("flags {:#x} sequence {}, expected sequence 101", wrong.flags, wrong.sequence);
        assert_eq!(lines(&sim, Refusal::DescriptionSequence), [said], "{what}");
        assert_eq!(restarts(&sim, NeighborEvent::SeqNumberMismatch), 1, "{what}");
        assert_eq!(sim.neighbor_state(0, 1), Some(NeighborState::ExStart), "{what}");
    }
    // What fits, and what came before once more, are no reason.
    let mut sim = in_exchange();
    for sequence in [101, 101, 102] {
        describe(&mut sim, DD_MASTER | DD_MORE, sequence);
    }
    assert_eq!(count(&sim, Refusal::DescriptionSequence), 0);
    assert_eq!(sim.neighbor_state(0, 1), Some(NeighborState::Exchange));
}

/// "In states Loading and Full … any other packets received, including the reception of a packet with the Initialize(I) bit
/// set, should generate the neighbor event SeqNumberMismatch." (RFC 2328 section 10.6) A neighbour that has begun anew
/// without our noticing is how that comes about.
#[test]
fn description_to_a_full_neighbor_begins_the_exchange_anew() {
    let mut sim = adjacent();
    describe(&mut sim, FIRST, 4711);
    assert_eq!(count(&sim, Refusal::DescriptionSequence), 1);
    assert_eq!(restarts(&sim, NeighborEvent::SeqNumberMismatch), 1);
    assert_eq!(sim.neighbor_state(0, 1), Some(NeighborState::ExStart));
    sim.until(seconds(10), |sim| sim.all_full(2) && sim.databases_equal());
    // The last description once more is only that.
    let mut sim = in_exchange();
    describe(&mut sim, DD_MASTER, 101);
    assert_eq!(sim.neighbor_state(0, 1), Some(NeighborState::Full));
    describe(&mut sim, DD_MASTER, 101);
    assert_eq!(sim.neighbor_state(0, 1), Some(NeighborState::Full));
    assert_eq!(count(&sim, Refusal::DescriptionSequence), 0);
}

/// "If the LS type is unknown … or if this is an AS-external-LSA (LS type = 5) and the neighbor is associated with a stub
/// area, generate the neighbor event SeqNumberMismatch and stop processing the packet." (RFC 2328 section 10.6)
#[test]
fn description_of_what_cannot_be_in_the_area() {
    let header = |kind| {
        let key = LsaKey { kind, id: Ipv4Addr::new(192, 0, 2, 0), router: id(1) };
        Lsa::build(key, OPTION_E, 1, &[0; 16]).expect("short").header
    };
    let mut sim = in_exchange();
    deliver(&mut sim, Body::Description(description(DD_MASTER, 101, vec![header(77)])));
    assert_eq!(count(&sim, Refusal::DescriptionContent), 1);
    let line = "it describes an LSA that cannot be in this area: type 77 id 192.0.2.0 from 10.255.0.2";
    assert_eq!(lines(&sim, Refusal::DescriptionContent), [line]);
    assert_eq!(restarts(&sim, NeighborEvent::SeqNumberMismatch), 1);
    assert_eq!(sim.neighbor_state(0, 1), Some(NeighborState::ExStart));

    let area = Ipv4Addr::new(0, 0, 0, 1);
    let stub = || InterfaceConfig { area, area_kind: AreaKind::Stub, ..p2p() };
    let mut sim = Simulator::new(562);
    sim.segment(&[(0, stub()), (1, stub())]);
    sim.restart(0);
    let send = |sim: &mut Simulator, body| {
        receive(sim, Packet { router: id(1), area, body }.emit().to_vec());
    };
    send(&mut sim, Body::Hello(Hello { options: 0, ..hello() }));
    let dd = |flags, sequence, headers| {
        Body::Description(Description { options: OPTION_O, ..description(flags, sequence, headers) })
    };
    send(&mut sim, dd(FIRST, 100, Vec::new()));
    assert_eq!(sim.neighbor_state(0, 1), Some(NeighborState::Exchange));
    send(&mut sim, dd(DD_MASTER, 101, vec![header(EXTERNAL)]));
    assert_eq!(count(&sim, Refusal::DescriptionContent), 1);
    assert_eq!(sim.neighbor_state(0, 1), Some(NeighborState::ExStart));
}

/// "if the received self-originated LSA is newer than the last instance that the router actually originated, the router must
/// take special action. … In most cases, the router must then advance the LSA's LS sequence number one past the received LS
/// sequence number, and originate a new instance of the LSA." (RFC 2328 section 13.4)
#[test]
fn own_lsa_in_a_newer_instance() {
    let mut sim = adjacent();
    let newer = |sequence| {
        let key = LsaKey { kind: ROUTER, id: id(0), router: id(0) };
        Body::Update(vec![Lsa::build(key, OPTION_E, sequence, &[0; 4]).expect("short")])
    };
    deliver(&mut sim, newer(INITIAL_SEQUENCE + 41));
    assert_eq!(count(&sim, Refusal::LsaOwnNewer), 1);
    assert_eq!(lines(&sim, Refusal::LsaOwnNewer), ["type 1 id 10.255.0.1 from 10.255.0.1 superseded"]);
    let next = (INITIAL_SEQUENCE + 42).cast_unsigned();
    sim.until(seconds(2), |sim| [0, 1].iter().all(|node| sim.sequence(*node, id(0)) == Some(next)));
    // An older one is answered with ours, which is no refusal.
    sim.run(seconds(2));
    deliver(&mut sim, newer(INITIAL_SEQUENCE + 3));
    assert_eq!(count(&sim, Refusal::LsaOwnNewer), 1);
    assert_eq!(sim.sequence(0, id(0)), Some(next));
}

/// Counters are those of the interface, too.
#[test]
fn refusals_are_counted_where_they_happen() {
    let mut sim = Simulator::new(563);
    sim.segment(&[(0, InterfaceConfig { passive: true, ..p2p() }), (1, p2p())]);
    sim.segment(&[(0, p2p()), (2, p2p())]);
    sim.start();
    sim.until(seconds(5), |sim| sim.full(2) == 1);
    let before = count(&sim, Refusal::InterfaceInactive);
    let stranger = Packet { router: id(7), area: Ipv4Addr::UNSPECIFIED, body: Body::Ack(Vec::new()) };
    let payload = stranger.emit().to_vec();
    let (source, destination) = (Ipv4Addr::new(10, 0, 1, 2), crate::speaker::ALL_SPF_ROUTERS);
    sim.input(0, Input::Packet { interface: InterfaceId(1), source, destination, payload });
    deliver(&mut sim, Body::Hello(hello()));
    let interfaces = sim.status(0).interfaces;
    let at = |interface: usize, reason| interfaces[interface].refused.get(&reason).copied();
    assert_eq!(at(0, Refusal::InterfaceInactive), Some(before + 1));
    assert_eq!(at(1, Refusal::InterfaceInactive), None);
    assert_eq!((at(0, Refusal::UnknownNeighbor), at(1, Refusal::UnknownNeighbor)), (None, Some(1)));
}
