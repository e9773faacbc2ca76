//! Flooding on broadcast networks (RFC 2328 sections 13.3 and 13.5), for each part that a router can have there, and
//! retransmission (section 13.6). Nothing is lost here, so no retransmission hides what was not sent.

use std::{net::Ipv4Addr, time::Duration};

use bytes::Bytes;

use super::{
    lan, net, p2p,
    protocol::{deliver, hello},
    seconds,
    simulator::{Family, Network, Sent, Simulator, id},
};
use crate::{
    packet::{Body, Lsa, LsaHeader, LsaKey, OPTION_E, Packet, ROUTER, SUMMARY_NETWORK, V2, v3::V3, wire},
    speaker::{ALL_D_ROUTERS, ALL_SPF_ROUTERS, Input, InterfaceId, InterfaceState, Scope},
};

/// Priorities that give node 0 its part; node 1 has the other one of the two, or is designated router with node 2 as backup.
const AS_DR: [u8; 4] = [10, 5, 0, 0];
const AS_BACKUP: [u8; 4] = [5, 10, 0, 0];
const AS_OTHER: [u8; 4] = [0, 10, 5, 0];

/// Within this nothing is retransmitted.
const BEFORE_RETRANSMISSION: Duration = Duration::from_millis(1900);

/// A segment of four, everybody adjacent as far as they should be, and at rest.
fn segment<V: Family>(priorities: [u8; 4]) -> Network<V> {
    let mut sim = Network::new(551);
    let members: Vec<_> = priorities.iter().map(|priority| lan(*priority)).enumerate().collect();
    sim.segment(&members);
    sim.start();
    // Two pairs of each of the two with the rest, and the two with each other.
    sim.until(seconds(20), |sim| sim.all_full(10));
    sim.run(seconds(10));
    assert_eq!(sim.status(0).neighbors.iter().map(|n| n.unacknowledged).sum::<usize>(), 0);
    sim.wire = Some(Vec::new());
    sim
}

fn address(node: usize) -> Ipv4Addr {
    Ipv4Addr::new(10, 0, 0, u8::try_from(node + 1).expect("few"))
}

/// Hands node 0 a packet in the name of another one.
fn from(sim: &mut Simulator, node: usize, body: Body) {
    let payload = Packet { router: id(node), area: Ipv4Addr::UNSPECIFIED, body }.emit().to_vec();
    let (source, destination) = (address(node), ALL_SPF_ROUTERS);
    sim.input(0, Input::Packet { interface: InterfaceId(0), source, destination, payload });
}

/// What node 0 has sent but for Hellos: when, where to, what.
fn said(sim: &mut Simulator) -> Vec<(Duration, Ipv4Addr, Body)> {
    let sent = sim.wire.replace(Vec::new()).expect("listened to");
    let body = |sent: Sent<V2>| {
        let body = Packet::parse(&Bytes::from(sent.payload)).expect("well-formed").body;
        (sent.at, sent.destination, body)
    };
    let of_0 = sent.into_iter().filter(|sent| sent.node == 0).map(body);
    of_0.filter(|(_, _, body)| !matches!(body, Body::Hello(_))).collect()
}

fn stranger(number: u8, sequence: i32) -> Lsa {
    let router = Ipv4Addr::new(192, 0, 2, 99);
    let key = LsaKey { kind: SUMMARY_NETWORK, id: Ipv4Addr::new(198, 51, 100, number), router };
    Lsa::build(key, OPTION_E, sequence, &[255, 255, 255, 255, 0, 0, 0, 1]).expect("short")
}

/// Where packets of one type went, and how many LSAs each was about.
type Sendings = Vec<(Ipv4Addr, usize)>;

/// Updates and acknowledgements.
fn summary(said: &[(Duration, Ipv4Addr, Body)]) -> (Sendings, Sendings) {
    let (mut updates, mut acks) = (Vec::new(), Vec::new());
    for (_, destination, body) in said {
        match body {
            Body::Update(lsas) => updates.push((*destination, lsas.len())),
            Body::Ack(headers) => acks.push((*destination, headers.len())),
            other => panic!("{other:?}"),
        }
    }
    (updates, acks)
}

/// "(3) If the new LSA was received on this interface, and it was received from either the Designated Router or the Backup
/// Designated Router, chances are that all the neighbors have received the LSA already. Therefore, examine the next
/// interface. (4) If the new LSA was received on this interface, and the interface state is Backup …, examine the next
/// interface. The Designated Router will do the flooding on this interface." (section 13.3)
///
/// "LSA has been flooded back out receiving interface: No acknowledgment sent. … LSA is more recent than database copy, but
/// was not flooded back out receiving interface: [Backup] Delayed acknowledgment sent if advertisement received from
/// Designated Router, otherwise do nothing. [others] Delayed acknowledgment sent." (table 19)
#[test]
fn new_lsa_goes_back_out_and_is_acknowledged_as_the_part_of_the_router_demands() {
    let all = vec![(ALL_SPF_ROUTERS, 2)];
    let designated = vec![(ALL_D_ROUTERS, 2)];
    let rows = [
        ("designated router, from the backup", AS_DR, 1, vec![], all.clone()),
        ("designated router, from another", AS_DR, 2, all.clone(), vec![]),
        ("backup, from the designated router", AS_BACKUP, 1, vec![], all),
        ("backup, from another", AS_BACKUP, 2, vec![], vec![]),
        ("another, from the designated router", AS_OTHER, 1, vec![], designated.clone()),
        ("another, from the backup", AS_OTHER, 2, vec![], designated),
    ];
    for (what, priorities, sender, updates, acks) in rows {
        let mut sim = segment(priorities);
        from(&mut sim, sender, Body::Update(vec![stranger(1, 1), stranger(2, 1)]));
        let at_once = summary(&said(&mut sim));
        assert_eq!(at_once, (updates, vec![]), "{what}: at once");
        sim.run(BEFORE_RETRANSMISSION);
        let later = summary(&said(&mut sim));
        assert_eq!(later, (vec![], acks), "{what}: after a moment, in one packet");
    }
}

/// "LSA is a duplicate, and was treated as an implied acknowledgment: [Backup] Delayed acknowledgment sent if advertisement
/// received from Designated Router, otherwise do nothing. [others] No acknowledgment sent. … LSA is a duplicate, and was not
/// treated as an implied acknowledgment: Direct acknowledgment sent." (table 19)
#[test]
fn duplicate_is_acknowledged_as_the_part_of_the_router_demands() {
    let rows = [
        ("designated router, from the backup", AS_DR, 1, vec![]),
        ("backup, from the designated router", AS_BACKUP, 1, vec![(ALL_SPF_ROUTERS, 1)]),
        ("backup, from another", AS_BACKUP, 2, vec![]),
        ("another, from the designated router", AS_OTHER, 1, vec![]),
        ("another, from the backup", AS_OTHER, 2, vec![]),
    ];
    for (what, priorities, sender, delayed) in rows {
        let mut sim = segment(priorities);
        sim.cut(0, true);
        sim.announce(0, &[(net("203.0.113.10/32"), 10)]);
        said(&mut sim);
        let area = Scope::Area(Ipv4Addr::UNSPECIFIED);
        let own = sim.machine(0).living(area).find(|(key, _)| key.kind == ROUTER && key.router == id(0));
        let own = own.expect("held").1.clone();
        from(&mut sim, sender, Body::Update(vec![own.clone()]));
        assert_eq!(summary(&said(&mut sim)), (vec![], vec![]), "{what}: at once");
        sim.run(Duration::from_millis(500));
        assert_eq!(summary(&said(&mut sim)), (vec![], delayed), "{what}: implied");
        from(&mut sim, sender, Body::Update(vec![own]));
        let direct = (vec![], vec![(address(sender), 1)]);
        assert_eq!(summary(&said(&mut sim)), direct, "{what}: not implied, to the sender alone");
    }
}

/// "On broadcast networks, the Link State Update packets are multicast. The destination IP address specified for the Link
/// State Update Packet depends on the state of the interface. If the interface state is DR or Backup, the address
/// AllSPFRouters should be used. Otherwise, the address AllDRouters should be used." (section 13.3)
fn own_floods<V: Family>(prefix: V::Net) {
    let rows = [
        (AS_DR, InterfaceState::Dr, V::ALL_SPF_ROUTERS),
        (AS_BACKUP, InterfaceState::Backup, V::ALL_SPF_ROUTERS),
        (AS_OTHER, InterfaceState::DrOther, V::ALL_D_ROUTERS),
    ];
    for (priorities, state, expected) in rows {
        let mut sim = segment::<V>(priorities);
        assert_eq!(sim.status(0).interfaces[0].state, state);
        sim.announce(0, &[(prefix, 10)]);
        let sent = sim.wire.take().expect("listened to");
        let destinations: Vec<_> = sent.iter().map(|sent| sent.destination).collect();
        assert!(
            !destinations.is_empty() && destinations.iter().all(|to| *to == expected),
            "{destinations:?}"
        );
    }
}

#[test]
fn own_lsas_go_to_all_from_the_designated_routers_and_to_these_from_the_others() {
    own_floods::<V2>(net("203.0.113.10/32"));
    own_floods::<V3>("2001:db8:ffff::10/128".parse().expect("a prefix"));
}

/// Everybody has an LSA by floods alone, whoever originates it, and acknowledges it so that nobody sends it again.
fn one_flood_is_enough<V: Family>(prefix: impl Fn(usize) -> V::Net) {
    let mut sim = segment::<V>(AS_DR);
    for origin in 0..4 {
        sim.run(seconds(3));
        sim.wire = Some(Vec::new());
        sim.announce(origin, &[(prefix(origin), 10)]);
        sim.run(Duration::from_millis(50));
        assert!(sim.databases_agree(), "origin {origin}: everybody has it, and nobody was lost");
        sim.until(Duration::from_millis(500), |sim| {
            let owed = |node: usize| sim.status(node).neighbors.iter().all(|n| n.unacknowledged == 0);
            (0..4).all(owed)
        });
        sim.run(seconds(10));
        let sent = sim.wire.take().expect("listened to");
        let update = |sent: &&Sent<V>| sent.payload[1] == 4;
        let updates: Vec<_> = sent.iter().filter(update).map(|sent| sent.destination).collect();
        let again = updates.iter().filter(|to| !V::is_multicast(**to)).count();
        assert_eq!(again, 0, "origin {origin}: retransmissions are unicast");
        // One by its originator, and one by the designated router that passes it on to all.
        let most = if origin < 2 { 2 } else { 4 };
        assert!((1..=most).contains(&updates.len()), "origin {origin}: {updates:?}");
    }
}

#[test]
fn one_flood_reaches_everybody_and_is_acknowledged_by_all() {
    let number = |origin: usize| u8::try_from(origin).expect("few");
    one_flood_is_enough::<V2>(|origin| {
        ipnet::Ipv4Net::new_assert(Ipv4Addr::new(203, 0, 113, number(origin)), 32)
    });
    one_flood_is_enough::<V3>(|origin| format!("2001:db8:ffff::{origin:x}/128").parse().expect("a prefix"));
}

/// "these LSAs are retransmitted until they are acknowledged. The length of time between retransmissions is a configurable
/// per-interface value, RxmtInterval. … Link State Update Packets carrying retransmissions are always sent directly to the
/// neighbor. On multi-access networks, this means that retransmissions should be sent to the neighbor's IP address."
/// (section 13.6)
#[test]
fn what_is_not_acknowledged_is_sent_again_to_whom_it_concerns_until_it_is() {
    let mut sim = segment::<V2>(AS_DR);
    sim.cut(0, true); // less than the dead interval
    sim.announce(0, &[(net("203.0.113.10/32"), 10)]);
    let first = said(&mut sim);
    let (at, header) = match &first[..] {
        [(at, ALL_SPF_ROUTERS, Body::Update(lsas))] => (*at, lsas[0].header),
        other => panic!("{other:?}"),
    };
    for node in [1, 3] {
        from(&mut sim, node, Body::Ack(vec![header]));
    }
    sim.run(BEFORE_RETRANSMISSION);
    assert_eq!(summary(&said(&mut sim)), (vec![], vec![]), "not before RxmtInterval");
    sim.run(Duration::from_millis(200));
    match &said(&mut sim)[..] {
        [(then, to, Body::Update(lsas))] => {
            assert_eq!((*then - at, *to), (seconds(2), address(2)), "RxmtInterval later, to node 2 alone");
            assert_eq!((lsas.len(), lsas[0].header.sequence), (1, header.sequence));
        }
        other => panic!("{other:?}"),
    }
    from(&mut sim, 2, Body::Ack(vec![LsaHeader { age: 7, ..header }]));
    sim.cut(0, false);
    sim.run(seconds(6));
    let updates = summary(&said(&mut sim)).0;
    assert_eq!(updates, [], "acknowledged, whatever the age says");
}

/// The interval is the interface's, and each LSA has its own.
#[test]
fn each_lsa_is_sent_again_by_its_own_time_over_a_point_to_point_link() {
    let mut sim = Simulator::new(552);
    let patient = || crate::config::InterfaceConfig { retransmit_interval: 5, ..p2p() };
    sim.segment(&[(0, p2p()), (1, p2p())]);
    sim.segment(&[(0, patient()), (2, patient())]);
    sim.start();
    sim.until(seconds(5), |sim| sim.all_full(4) && sim.databases_equal());
    sim.run(seconds(3));
    sim.kill(2); // its part is played from here on
    sim.wire = Some(Vec::new());
    let greet = |sim: &mut Simulator, body: Body| {
        let payload = Packet { router: id(2), area: Ipv4Addr::UNSPECIFIED, body }.emit().to_vec();
        let (source, destination) = (Ipv4Addr::new(10, 0, 1, 2), ALL_SPF_ROUTERS);
        sim.input(0, Input::Packet { interface: InterfaceId(1), source, destination, payload });
    };
    let alive = |sim: &mut Simulator| {
        greet(sim, Body::Hello(hello()));
        sim.run(Duration::from_millis(500));
    };
    deliver(&mut sim, Body::Update(vec![stranger(1, 1), stranger(2, 1)]));
    for _ in 0..4 {
        alive(&mut sim);
    }
    deliver(&mut sim, Body::Update(vec![stranger(3, 1)]));
    for _ in 0..18 {
        alive(&mut sim);
    }
    greet(&mut sim, Body::Ack(vec![stranger(1, 1).header, stranger(3, 1).header]));
    for _ in 0..10 {
        alive(&mut sim);
    }
    let sent = sim.wire.take().expect("listened to");
    let start = sent[0].at;
    let mut times = [Vec::new(), Vec::new(), Vec::new()];
    for sent in sent.iter().filter(|sent| (sent.node, sent.interface) == (0, InterfaceId(1))) {
        let packet = Packet::parse(&Bytes::from(sent.payload.clone())).expect("well-formed");
        if let Body::Update(lsas) = packet.body {
            assert_eq!(sent.destination, ALL_SPF_ROUTERS);
            for lsa in lsas {
                let number = usize::from(lsa.header.key.id.octets()[3]);
                times[number - 1].push((sent.at - start).as_secs());
            }
        }
    }
    assert_eq!(times, [vec![0, 5, 10], vec![0, 5, 10, 15], vec![2, 7]]);
}

/// The delay is short against RxmtInterval, and what comes meanwhile goes with it: "a) it facilitates the packaging of
/// multiple acknowledgments in a single Link State Acknowledgment packet" (section 13.5).
#[test]
fn delayed_acknowledgements_of_several_updates_share_a_packet() {
    let mut sim = segment::<V2>(AS_OTHER);
    let mut expected: Vec<wire::LsaKey<V2>> = Vec::new();
    for number in 1..=5 {
        let lsa = stranger(number, 1);
        expected.push(lsa.header.key);
        from(&mut sim, 1, Body::Update(vec![lsa]));
        sim.run(Duration::from_millis(10));
    }
    assert_eq!(summary(&said(&mut sim)), (vec![], vec![]));
    sim.run(Duration::from_millis(100));
    match &said(&mut sim)[..] {
        [(_, ALL_D_ROUTERS, Body::Ack(headers))] => {
            assert_eq!(headers.iter().map(|header| header.key).collect::<Vec<_>>(), expected);
        }
        other => panic!("{other:?}"),
    }
}
