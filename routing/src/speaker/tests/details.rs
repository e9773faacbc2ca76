//! Details of the packets and LSAs of version 2 that a neighbour of another make would trip over.

use std::{net::Ipv4Addr, time::Duration};

use bytes::Bytes;

use super::{
    fast, lan, p2p,
    protocol::{adjacent, count, deliver, hello, summary},
    seconds,
    simulator::{Sent, Simulator, Simulator6, id},
};
use crate::{
    config::{InterfaceConfig, Network},
    packet::{
        Body, DD_INIT, DD_MASTER, DD_MORE, Description, Hello, LinkKind, LsaBody, MAX_AGE, MAX_LINK_METRIC,
        OPTION_E, OPTION_O, Packet, ROUTER, RouterBody, RouterLink, SUMMARY_NETWORK, V2, v3,
    },
    speaker::{NeighborState, Refusal, Scope},
};

/// The DC bit of RFC 1793: an offer to suppress Hellos and refreshes, which nobody has to take.
const OPTION_DC: u8 = 0x20;
/// Its DoNotAge bit.
const DO_NOT_AGE: u16 = 0x8000;

/// All that was said so far, by whom.
fn said(sim: &mut Simulator) -> Vec<(usize, Body)> {
    let sent = sim.wire.replace(Vec::new()).expect("listened to");
    let body =
        |sent: Sent<V2>| (sent.node, Packet::parse(&Bytes::from(sent.payload)).expect("well-formed").body);
    sent.into_iter().map(body).collect()
}

fn router_body(sim: &Simulator, node: usize, router: usize) -> RouterBody {
    let key = crate::packet::LsaKey { kind: ROUTER, id: id(router), router: id(router) };
    let body = sim.body_of(node, ROUTER, id(router));
    match LsaBody::parse(&crate::packet::Lsa::build(key, 0, 1, &body).expect("short")) {
        Ok(LsaBody::Router(body)) => body,
        other => panic!("{other:?}"),
    }
}

/// "However, there is one exception to the above rule: on point-to-point networks and on virtual links, the Network Mask in
/// the received Hello Packet should be ignored." (RFC 2328 section 10.5)
#[test]
fn mask_in_a_hello_is_ignored_on_a_point_to_point_link_alone() {
    for mask in [Ipv4Addr::new(255, 255, 0, 0), Ipv4Addr::new(255, 255, 255, 254), Ipv4Addr::UNSPECIFIED] {
        for (network, taken) in [(Network::PointToPoint, true), (Network::Broadcast, false)] {
            let mut sim = Simulator::new(571);
            sim.segment(&[(0, fast(network, 0)), (1, fast(network, 0))]);
            sim.restart(0);
            deliver(&mut sim, Body::Hello(Hello { mask, ..hello() }));
            assert_eq!(sim.neighbor_state(0, 1).is_some(), taken, "{mask} {network:?}");
            assert_eq!(count(&sim, Refusal::HelloMask), u64::from(!taken), "{mask} {network:?}");
        }
    }
}

/// "Network mask: The network mask associated with this interface." (RFC 2328 section A.3.2) Zero is for virtual links and
/// unnumbered ones, and some compare it on point-to-point links, too.
#[test]
fn hellos_carry_the_mask_of_the_interface() {
    for (config, length) in [(p2p(), 24), (p2p(), 31), (lan(1), 26), (lan(0), 24)] {
        let mut sim = Simulator::new(572);
        sim.segment(&[(0, config.clone()), (1, config)]);
        sim.wire = Some(Vec::new());
        let address = ipnet::Ipv4Net::new_assert(Ipv4Addr::new(10, 0, 0, 1), length);
        sim.restart(0);
        said(&mut sim);
        sim.change_link(0, 0, |link| link.address = Some(address));
        sim.run(seconds(1));
        let masks: Vec<_> = said(&mut sim)
            .into_iter()
            .filter_map(|(_, body)| if let Body::Hello(hello) = body { Some(hello.mask) } else { None })
            .collect();
        assert!(!masks.is_empty() && masks.iter().all(|mask| *mask == address.netmask()), "{masks:?}");
    }
}

/// "If the neighboring router is fully adjacent, add a Type 1 link (point-to-point). … For numbered point-to-point networks,
/// the Link Data field … should specify the router interface's IP address. … In addition, as long as the state of the
/// interface is \"Point-to-Point\" (and regardless of the neighboring router state), a Type 3 link (stub network) should be
/// added. … Option 2: If a subnet has been assigned to the point-to-point link, set the Link ID of the Type 3 link to the
/// subnet's IP address, the Link Data to the subnet's mask, and the cost to the interface's configured output cost." (RFC 2328
/// section 12.4.1.1)
#[test]
fn numbered_point_to_point_link_is_a_link_and_a_stub() {
    let mut sim = Simulator::new(573);
    let cost = |cost| InterfaceConfig { cost, ..p2p() };
    sim.segment(&[(0, cost(7)), (1, cost(9))]);
    sim.segment(&[(0, cost(8)), (2, cost(10))]);
    sim.start();
    sim.until(seconds(5), |sim| sim.all_full(4) && sim.databases_equal());
    let link = |neighbor: usize, segment: u8| RouterLink {
        kind: LinkKind::PointToPoint,
        id: id(neighbor),
        data: Ipv4Addr::new(10, 0, segment, 1),
        metric: MAX_LINK_METRIC,
    };
    let stub = |segment: u8, metric| RouterLink {
        kind: LinkKind::Stub,
        id: Ipv4Addr::new(10, 0, segment, 0),
        data: Ipv4Addr::new(255, 255, 255, 0),
        metric,
    };
    let sorted = |mut body: RouterBody| {
        body.links.sort_unstable();
        body.links
    };
    assert_eq!(sorted(router_body(&sim, 1, 0)), [link(1, 0), link(2, 1), stub(0, 7), stub(1, 8)]);
    // The neighbour is gone, the subnet is not.
    sim.kill(2);
    sim.until(seconds(8), |sim| sim.full(0) == 1);
    sim.run(seconds(2));
    assert_eq!(sorted(router_body(&sim, 1, 0)), [link(1, 0), stub(0, 7), stub(1, 8)]);
}

/// "the O-bit SHOULD NOT be set … in packets other than Database Description packets" (RFC 5250 section 3.1).
#[test]
fn o_bit_is_set_in_descriptions_and_nowhere_else() {
    let mut sim = Simulator::new(574);
    sim.segment(&[(0, p2p()), (1, p2p())]);
    sim.segment(&[(0, lan(1)), (1, lan(1)), (2, lan(0))]);
    sim.wire = Some(Vec::new());
    sim.start();
    sim.until(seconds(10), |sim| sim.all_full(8) && sim.databases_equal());
    let (mut descriptions, mut others) = (0, 0);
    let mut expect_clear = |options: u8, what: &str| {
        assert_eq!(options & OPTION_O, 0, "{what}");
        others += 1;
    };
    for (_, body) in said(&mut sim) {
        match body {
            Body::Hello(hello) => expect_clear(hello.options, "Hello"),
            Body::Description(description) => {
                assert_eq!(description.options & OPTION_O, OPTION_O);
                descriptions += 1;
                description.headers.iter().for_each(|header| expect_clear(header.options, "header"));
            }
            Body::Update(lsas) => lsas.iter().for_each(|lsa| expect_clear(lsa.header.options, "LSA")),
            Body::Ack(_) | Body::Request(_) => {}
        }
    }
    assert!(descriptions > 10 && others > 30, "{descriptions} {others}");
}

/// A neighbour that supports demand circuits says so everywhere: "the DC-bit … is set in … Hello Packets, Database Description
/// packets and all LSAs" of one that can (RFC 1793 section 2.1), and its LSAs may carry DoNotAge.
#[test]
fn demand_circuit_bits_of_a_neighbor_change_nothing() {
    let mut sim = adjacent();
    sim.kill(1);
    let options = OPTION_E | OPTION_DC;
    for neighbors in [Vec::new(), vec![id(0)]] {
        deliver(&mut sim, Body::Hello(Hello { options, neighbors, ..hello() }));
    }
    assert_eq!(sim.neighbor_state(0, 1), Some(NeighborState::ExStart));
    let described = |flags, sequence, headers| {
        let options = options | OPTION_O;
        Body::Description(Description { mtu: 1500, options, flags, sequence, headers })
    };
    deliver(&mut sim, described(DD_INIT | DD_MORE | DD_MASTER, 100, Vec::new()));
    let lsa = summary(5, 1).with_age(DO_NOT_AGE | 100);
    let header = crate::packet::LsaHeader { age: DO_NOT_AGE | 100, ..lsa.header };
    deliver(&mut sim, described(DD_MASTER, 101, vec![header]));
    assert_eq!(sim.neighbor_state(0, 1), Some(NeighborState::Loading), "the LSA is asked for");
    deliver(&mut sim, Body::Update(vec![lsa]));
    assert_eq!(sim.neighbor_state(0, 1), Some(NeighborState::Full));
    assert_eq!(sim.status(0).counters.values().sum::<u64>(), 0, "{:?}", sim.status(0).counters);
}

/// deviations.md: "the bit is tolerated, LSAs age all the same".
#[test]
fn lsa_with_do_not_age_is_held_flooded_and_grows_old() {
    let mut sim = Simulator::new(575);
    sim.segment(&[(0, p2p()), (1, p2p())]);
    sim.segment(&[(0, p2p()), (2, p2p())]);
    sim.start();
    sim.until(seconds(5), |sim| sim.all_full(4) && sim.databases_equal());
    sim.run(seconds(3));
    // Not node 1's: it would flush its own.
    let stranger = crate::packet::LsaKey { router: Ipv4Addr::new(192, 0, 2, 99), ..summary(1, 1).header.key };
    let built = |sequence| {
        crate::packet::Lsa::build(stranger, OPTION_E, sequence, &[255, 255, 255, 0, 0, 0, 0, 1])
            .expect("short")
    };
    deliver(&mut sim, Body::Update(vec![built(5).with_age(DO_NOT_AGE | 100)]));
    sim.run(seconds(10));
    let ages = |sim: &Simulator| {
        [0, 2].map(|node| {
            let held = sim.status(node).lsdb.into_iter().find(|lsa| lsa.kind == u16::from(SUMMARY_NETWORK));
            held.map(|lsa| lsa.age)
        })
    };
    // As of the last thing that happened to each; InfTransDelay on the way.
    let [Some(first), Some(second)] = ages(&sim) else { panic!("{:?}", ages(&sim)) };
    assert!((108..=110).contains(&first) && (109..=111).contains(&second), "{first} {second}");
    // The same instance without the bit is a duplicate, and no newer one.
    deliver(&mut sim, Body::Update(vec![built(5).with_age(100)]));
    assert!(ages(&sim)[0] >= Some(first));
    // Of MaxAge it is a flush, with the bit as without.
    deliver(&mut sim, Body::Update(vec![built(5).with_age(DO_NOT_AGE | MAX_AGE)]));
    sim.until(seconds(3), |sim| ages(sim) == [None, None]);
    // And it does not outlive its originator.
    deliver(&mut sim, Body::Update(vec![built(6).with_age(DO_NOT_AGE | 3590)]));
    sim.run(seconds(5));
    assert!(ages(&sim).iter().all(Option::is_some));
    sim.until(seconds(10), |sim| ages(sim) == [None, None]);
}

/// "MaxLinkMetric … the link cost of all non-stub links … is set to" it (RFC 6987 section 2), whatever part the router has on
/// the network; the stub links of point-to-point networks keep their cost.
#[test]
fn links_to_broadcast_networks_have_max_link_metric() {
    let mut sim = Simulator::new(576);
    sim.segment(&[(0, lan(10)), (1, lan(5)), (2, lan(0))]);
    sim.start();
    sim.until(seconds(20), |sim| sim.all_full(6) && sim.databases_equal());
    sim.run(seconds(2));
    for router in 0..3 {
        let data = Ipv4Addr::new(10, 0, 0, u8::try_from(router + 1).expect("few"));
        let transit = RouterLink {
            kind: LinkKind::Transit,
            id: Ipv4Addr::new(10, 0, 0, 1),
            data,
            metric: MAX_LINK_METRIC,
        };
        assert_eq!(router_body(&sim, 0, router).links, [transit]);
    }
}

#[test]
fn links_to_broadcast_networks_of_version_3_have_max_link_metric() {
    let mut sim = Simulator6::new(577);
    sim.segment(&[(0, lan(10)), (1, lan(5)), (2, lan(0))]);
    sim.start();
    sim.until(seconds(20), |sim| sim.all_full(6) && sim.databases_agree());
    sim.run(seconds(2));
    let mut seen = 0;
    for (key, lsa) in sim.machine(0).living(Scope::Area(Ipv4Addr::UNSPECIFIED)) {
        if let Ok(v3::body::LsaBody::Router(body)) = v3::body::LsaBody::parse(lsa) {
            let [link] = &body.links[..] else { panic!("{key}: {body:?}") };
            assert_eq!((link.kind, link.metric), (v3::body::LinkKind::Transit, MAX_LINK_METRIC), "{key}");
            assert_eq!(link.neighbor, id(0));
            seen += 1;
        }
    }
    assert_eq!(seen, 3);
}

/// "If the router bit is clear, then routes that transit the advertising node cannot be computed." (RFC 5340 section A.2) Its
/// own prefixes are as near as ever.
#[test]
fn router_of_version_3_with_the_r_bit_clear_is_no_way_through() {
    let mut sim = Simulator6::new(578);
    sim.segment(&[(0, p2p()), (1, p2p())]);
    sim.segment(&[(1, p2p()), (2, p2p())]);
    sim.start();
    let [near, far] = ["2001:db8:ffff::1/128", "2001:db8:ffff::2/128"].map(|text| text.parse().expect("one"));
    sim.announce(1, &[(near, 3)]);
    sim.announce(2, &[(far, 3)]);
    let max = u32::from(MAX_LINK_METRIC);
    let costs = |sim: &Simulator6| [near, far].map(|net| sim.cost(0, net));
    sim.until(seconds(10), |sim| costs(sim) == [Some(13), Some(10 + max + 3)]);
    sim.run(seconds(3));
    let mut body = sim.body_of(0, v3::ROUTER, id(1));
    assert_eq!(u32::from(body[3]) & v3::OPTION_R, v3::OPTION_R, "ours is set");
    body[3] &= !0x10;
    let sequence = sim.sequence(0, id(1)).expect("held").cast_signed();
    let key = v3::LsaKey { kind: v3::ROUTER, id: 0.into(), router: id(1) };
    let leaf = v3::Lsa::build(key, (), sequence + 1, &body).expect("short");
    sim.cut(0, true); // its originator shall not hear of it
    super::version_3::deliver(&mut sim, 0, v3::Body::Update(vec![leaf]));
    sim.run(Duration::from_millis(1500));
    assert_eq!(costs(&sim), [Some(13), None]);
    assert_eq!(sim.neighbor_state(0, 1), Some(NeighborState::Full));
}
