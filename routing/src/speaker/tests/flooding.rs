//! The steps of RFC 2328 section 13, each with the sentence it is about. Step 4, step 5 (a) and section 13.4 are in
//! `protocol`, the same for version 3 in `version_3`.

use std::{net::Ipv4Addr, time::Duration};

use bytes::Bytes;

use super::{
    p2p,
    protocol::{adjacent, count, deliver, hello, summary},
    seconds,
    simulator::{Simulator, id},
};
use crate::{
    config::{AreaKind, InterfaceConfig},
    packet::{
        Body, DD_INIT, DD_MASTER, DD_MORE, Description, EXTERNAL, Hello, Lsa, LsaHeader, LsaKey, MAX_AGE,
        MAX_SEQUENCE, OPTION_E, OPTION_O, Packet, ROUTER, SUMMARY_NETWORK,
    },
    speaker::{NeighborState, Refusal, Scope},
};

/// Node 0 under test, full with node 1, in whose name packets are made, and with node 2.
fn between() -> Simulator {
    let mut sim = Simulator::new(79);
    sim.segment(&[(0, p2p()), (1, p2p())]);
    sim.segment(&[(0, p2p()), (2, p2p())]);
    sim.start();
    sim.until(seconds(5), |sim| sim.all_full(4) && sim.databases_equal());
    sim.run(seconds(3));
    sim
}

/// What node 0 says by itself when an update comes, and within the next `span`.
fn answers(sim: &mut Simulator, lsas: Vec<Lsa>, span: Duration) -> Vec<Body> {
    sim.said = Some(Vec::new());
    deliver(sim, Body::Update(lsas));
    sim.run(span);
    let said = sim.said.take().expect("listened to");
    let body = |bytes: Vec<u8>| Packet::parse(&Bytes::from(bytes)).expect("well-formed").body;
    said.into_iter().map(body).filter(|body| !matches!(body, Body::Hello(_))).collect()
}

fn acknowledged(bodies: &[Body], header: &LsaHeader) -> usize {
    let acks = |body: &Body| match body {
        Body::Ack(headers) => {
            headers.iter().filter(|ack| ack.compare(header).is_eq() && ack.key == header.key).count()
        }
        _ => 0,
    };
    bodies.iter().map(acks).sum()
}

fn updated(bodies: &[Body], key: &LsaKey) -> Vec<i32> {
    let sequences = |body: &Body| match body {
        Body::Update(lsas) => {
            lsas.iter().filter(|lsa| lsa.header.key == *key).map(|lsa| lsa.header.sequence).collect()
        }
        _ => Vec::new(),
    };
    bodies.iter().flat_map(sequences).collect()
}

fn held(sim: &Simulator, node: usize, kind: u8) -> Option<u32> {
    sim.status(node).lsdb.iter().find(|lsa| lsa.kind == u16::from(kind)).map(|lsa| lsa.sequence)
}

const MOMENT: Duration = Duration::from_millis(300);

/// "Validate the LSA's LS checksum. If the checksum turns out to be invalid, discard the LSA and get the next one from the
/// Link State Update packet."
#[test]
fn step_1_a_wrong_checksum_costs_the_next_lsa_nothing() {
    let mut sim = adjacent();
    let mut wrong = summary(5, 1).bytes().to_vec();
    wrong[27] ^= 1;
    let wrong = Lsa::parse(&mut wrong.into()).expect("a header");
    let answers = answers(&mut sim, vec![wrong.clone(), summary(6, 2)], MOMENT);
    assert_eq!((count(&sim, Refusal::LsaChecksum), held(&sim, 0, SUMMARY_NETWORK)), (1, Some(6)));
    assert_eq!(acknowledged(&answers, &wrong.header), 0);
}

/// "Examine the LSA's LS type. If the LS type is unknown, discard the LSA and get the next one from the Link State Update
/// Packet."
#[test]
fn step_2_an_unknown_type_costs_the_next_lsa_nothing() {
    let mut sim = adjacent();
    let key = LsaKey { kind: 77, id: Ipv4Addr::new(9, 9, 9, 9), router: id(1) };
    let unknown = Lsa::build(key, OPTION_E, 1, &[]).expect("short");
    let answers = answers(&mut sim, vec![unknown.clone(), summary(6, 2)], MOMENT);
    assert_eq!((count(&sim, Refusal::LsaType), held(&sim, 0, SUMMARY_NETWORK)), (1, Some(6)));
    assert_eq!((held(&sim, 0, 77), acknowledged(&answers, &unknown.header)), (None, 0));
}

/// "Else if this is an AS-external-LSA (LS type = 5), and the area has been configured as a stub area, discard the LSA and
/// get the next one from the Link State Update Packet."
#[test]
fn step_3_no_external_gets_into_a_stub_area() {
    let stub = || InterfaceConfig { area_kind: AreaKind::Stub, area: Ipv4Addr::new(0, 0, 0, 1), ..p2p() };
    let mut sim = Simulator::new(80);
    sim.segment(&[(0, stub()), (1, stub())]);
    sim.start();
    sim.until(seconds(5), |sim| sim.all_full(2));
    sim.run(seconds(3));
    let key = LsaKey { kind: EXTERNAL, id: Ipv4Addr::new(192, 0, 2, 0), router: id(1) };
    let body = [255, 255, 255, 0, 0x80, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0];
    let external = Lsa::build(key, OPTION_E, 1, &body).expect("short");
    let packet = Packet {
        router: id(1),
        area: Ipv4Addr::new(0, 0, 0, 1),
        body: Body::Update(vec![external, summary(6, 2)]),
    };
    super::protocol::receive(&mut sim, packet.emit().to_vec());
    assert_eq!((count(&sim, Refusal::LsaScope), held(&sim, 0, EXTERNAL)), (1, None));
    assert_eq!(held(&sim, 0, SUMMARY_NETWORK), Some(6), "and the next one is taken");
}

/// "Otherwise immediately flood the new LSA out some subset of the router's interfaces (see Section 13.3). … Install the new
/// LSA in the link state database … Possibly acknowledge the receipt of the LSA by sending a Link State Acknowledgment
/// packet back out the receiving interface."
#[test]
fn step_5_b_d_e_a_newer_lsa_is_flooded_installed_and_acknowledged() {
    let mut sim = between();
    let lsa = summary(5, 1);
    let answers = answers(&mut sim, vec![lsa.clone()], MOMENT);
    assert_eq!(updated(&answers, &lsa.header.key), [5], "once, to the other neighbour");
    assert_eq!(acknowledged(&answers, &lsa.header), 1);
    assert_eq!((held(&sim, 0, SUMMARY_NETWORK), held(&sim, 2, SUMMARY_NETWORK)), (Some(5), Some(5)));
}

/// "Remove the current database copy from all neighbors' Link state retransmission lists."
#[test]
fn step_5_c_the_old_copy_is_not_sent_again() {
    let mut sim = between();
    sim.cut(1, true);
    deliver(&mut sim, Body::Update(vec![summary(5, 1)]));
    sim.run(Duration::from_millis(1200));
    let answers = answers(&mut sim, vec![summary(6, 2)], Duration::from_millis(2500));
    let sequences = updated(&answers, &summary(6, 2).header.key);
    assert!(sequences.len() > 1 && sequences.iter().all(|sequence| *sequence == 6), "{sequences:?}");
}

/// "Else, if there is an instance of the LSA on the sending neighbor's Link state request list, an error has occurred in
/// the Database Exchange process. In this case, restart the Database Exchange process by generating the neighbor event
/// BadLSReq for the sending neighbor and stop processing the Link State Update packet."
#[test]
fn step_6_an_old_copy_of_what_was_asked_for_restarts_the_exchange() {
    let mut sim = adjacent();
    deliver(&mut sim, Body::Update(vec![summary(5, 1)]));
    sim.kill(1); // from here on its part is played
    deliver(&mut sim, Body::Hello(Hello { neighbors: Vec::new(), ..hello() }));
    deliver(&mut sim, Body::Hello(hello()));
    assert_eq!(sim.neighbor_state(0, 1), Some(NeighborState::ExStart));
    let describe = |flags, sequence, headers| {
        let (mtu, options) = (1500, OPTION_E | OPTION_O);
        Body::Description(Description { mtu, options, flags, sequence, headers })
    };
    deliver(&mut sim, describe(DD_INIT | DD_MORE | DD_MASTER, 100, Vec::new()));
    deliver(&mut sim, describe(DD_MASTER, 101, vec![summary(9, 3).header]));
    assert_eq!(sim.neighbor_state(0, 1), Some(NeighborState::Loading));
    let other = LsaKey { id: Ipv4Addr::new(192, 0, 3, 0), ..summary(5, 1).header.key };
    let behind = Lsa::build(other, OPTION_E, 1, &[255, 255, 255, 0, 0, 0, 0, 1]).expect("short");
    deliver(&mut sim, Body::Update(vec![summary(5, 1), behind]));
    assert_eq!(sim.neighbor_state(0, 1), Some(NeighborState::ExStart));
    assert_eq!(sim.lsa_count(0, SUMMARY_NETWORK), 1, "what follows in the packet is not looked at");
}

/// "If the LSA is listed in the Link state retransmission list for the receiving adjacency, the router itself is expecting
/// an acknowledgment for this LSA. The router should treat the received LSA as an acknowledgment by removing the LSA from
/// the Link state retransmission list. This is termed an \"implied acknowledgment\"."
#[test]
fn step_7_a_the_same_instance_is_an_acknowledgement_where_one_is_due() {
    let mut sim = adjacent();
    sim.cut(0, true);
    sim.announce(0, &[(super::net("203.0.113.10/32"), 10)]);
    assert_eq!(sim.status(0).neighbors[0].unacknowledged, 1);
    let area = Scope::Area(Ipv4Addr::UNSPECIFIED);
    let own = sim.machine(0).living(area).find(|(key, _)| key.kind == ROUTER && key.router == id(0));
    let own = own.expect("held").1.clone();
    let answers = answers(&mut sim, vec![own.clone()], MOMENT);
    assert_eq!((sim.status(0).neighbors[0].unacknowledged, acknowledged(&answers, &own.header)), (0, 0));
}

/// "If the LSA was not treated as an implied acknowledgment": "duplicate … Direct acknowledgment sent." (table 19)
#[test]
fn step_7_b_a_duplicate_is_acknowledged_at_once() {
    let mut sim = adjacent();
    deliver(&mut sim, Body::Update(vec![summary(5, 1)]));
    sim.run(seconds(2));
    let answers = answers(&mut sim, vec![summary(5, 1)], Duration::ZERO);
    assert_eq!(acknowledged(&answers, &summary(5, 1).header), 1);
}

/// "Otherwise, as long as the database copy has not been sent in a Link State Update within the last MinLSArrival seconds,
/// send the database copy back to the sending neighbor … In so doing, do not put the database copy of the LSA on the
/// neighbor's link state retransmission list, and do not acknowledge the received (less recent) LSA instance."
#[test]
fn step_8_who_sends_an_older_instance_gets_ours() {
    let mut sim = adjacent();
    deliver(&mut sim, Body::Update(vec![summary(5, 1)]));
    sim.run(seconds(2));
    sim.cut(0, true); // the neighbour, whose LSA it is, would flush what it gets
    let old = summary(4, 1);
    let first = answers(&mut sim, vec![old.clone()], MOMENT);
    assert_eq!((updated(&first, &old.header.key), acknowledged(&first, &old.header)), (vec![5], 0));
    assert_eq!(sim.status(0).neighbors[0].unacknowledged, 0);
    let soon = answers(&mut sim, vec![old.clone()], MOMENT);
    assert!(updated(&soon, &old.header.key).is_empty(), "sent a moment ago");
    sim.run(seconds(1));
    let later = answers(&mut sim, vec![old.clone()], MOMENT);
    assert_eq!(updated(&later, &old.header.key), [5]);
}

/// "If the database copy has LS age equal to MaxAge and LS sequence number equal to MaxSequenceNumber, simply discard the
/// received LSA without acknowledging it."
#[test]
fn step_8_while_the_sequence_wraps_nothing_older_is_answered() {
    let mut sim = between();
    deliver(&mut sim, Body::Update(vec![summary(MAX_SEQUENCE, 1)]));
    sim.run(seconds(2));
    sim.cut(1, true); // the flush stays, unacknowledged
    deliver(&mut sim, Body::Update(vec![summary(MAX_SEQUENCE, 1).with_age(MAX_AGE)]));
    sim.run(Duration::from_millis(1200));
    let old = summary(4, 1);
    sim.said = Some(Vec::new());
    deliver(&mut sim, Body::Update(vec![old]));
    assert_eq!(sim.said.take(), Some(Vec::new()));
}

/// "If the acknowledgment is for the same instance that is contained on the list, remove the item from the list and examine
/// the next acknowledgment. Otherwise: Log the questionable acknowledgment, and examine the next one." (section 13.7)
#[test]
fn section_13_7_an_acknowledgement_counts_for_its_instance_alone() {
    let mut sim = adjacent();
    sim.cut(0, true);
    sim.announce(0, &[(super::net("203.0.113.10/32"), 10)]);
    let area = Scope::Area(Ipv4Addr::UNSPECIFIED);
    let own = sim.machine(0).living(area).find(|(key, _)| key.kind == ROUTER && key.router == id(0));
    let header = own.expect("held").1.header;
    deliver(&mut sim, Body::Ack(vec![LsaHeader { sequence: header.sequence - 1, ..header }]));
    assert_eq!((count(&sim, Refusal::StrayAck), sim.status(0).neighbors[0].unacknowledged), (1, 1));
    deliver(&mut sim, Body::Ack(vec![header]));
    assert_eq!((count(&sim, Refusal::StrayAck), sim.status(0).neighbors[0].unacknowledged), (1, 0));
}
