//! Calculating routes to other areas and outside the domain, and no more of it than needed.

use std::{net::Ipv4Addr, time::Duration};

use ipnet::Ipv4Net;

use super::{
    fabric, net, p2p, seconds,
    simulator::{Family, Network, Simulator, id},
};
use crate::{
    announce::Announcement,
    config::{ExternalConfig, MetricType},
    packet::{
        Body, EXTERNAL, ExternalBody, FLAG_BORDER, FLAG_EXTERNAL, LS_INFINITY, Lsa, LsaKey, OPTION_E, Packet,
        ROUTER, SUMMARY_ASBR, SUMMARY_NETWORK, V2, v3::V3,
    },
    speaker::{ALL_SPF_ROUTERS, Event, Extent, Input, InterfaceId, LsaAction, Scope},
};

const FAR: Ipv4Addr = Ipv4Addr::new(10, 255, 9, 9);

/// Node 0 beside node 1, in whose name an area border and AS boundary router speaks.
fn beside_a_border_router() -> Simulator {
    let mut sim = Simulator::new(400);
    sim.segment(&[(0, p2p()), (1, p2p())]);
    sim.start();
    sim.until(seconds(5), |sim| sim.all_full(2) && sim.databases_equal());
    sim.run(seconds(3)); // so that node 1 has said all
    let mut router = sim.body_of(0, ROUTER, id(1));
    router[0] = FLAG_BORDER | FLAG_EXTERNAL;
    let sequence = sim.sequence(0, id(1)).expect("held").cast_signed() + 1;
    deliver(&mut sim, vec![lsa(ROUTER, id(1), id(1), sequence, &router)]);
    sim.run(seconds(4));
    sim
}

fn deliver(sim: &mut Simulator, lsas: Vec<Lsa>) {
    let packet = Packet { router: id(1), area: Ipv4Addr::UNSPECIFIED, body: Body::Update(lsas) };
    let (source, destination) = (Ipv4Addr::new(10, 0, 0, 2), ALL_SPF_ROUTERS);
    let payload = packet.emit().to_vec();
    sim.input(0, Input::Packet { interface: InterfaceId(0), source, destination, payload });
}

fn lsa(kind: u8, at: Ipv4Addr, router: Ipv4Addr, sequence: i32, body: &[u8]) -> Lsa {
    Lsa::build(LsaKey { kind, id: at, router }, OPTION_E, sequence, body).expect("short")
}

fn summary(kind: u8, at: Ipv4Addr, mask: Ipv4Addr, metric: u32, sequence: i32) -> Lsa {
    let body = [mask.octets(), metric.to_be_bytes()].concat();
    lsa(kind, at, id(1), sequence, &body)
}

fn external(prefix: &str, router: Ipv4Addr, body: ExternalBody, sequence: i32) -> Lsa {
    let net: Ipv4Net = net(prefix);
    let body = ExternalBody { mask: net.netmask(), ..body };
    lsa(EXTERNAL, net.network(), router, sequence, &body.emit())
}

fn metric(type_2: bool, metric: u32) -> ExternalBody {
    let none = Ipv4Addr::UNSPECIFIED;
    ExternalBody { mask: none, type_2, metric, forwarding: none, tag: 0 }
}

#[test]
fn externals_are_reached_by_their_originator_or_their_forwarding_address() {
    let mut sim = beside_a_border_router();
    let beyond = summary(SUMMARY_NETWORK, Ipv4Addr::new(172, 16, 0, 0), Ipv4Addr::new(255, 255, 0, 0), 7, 1);
    let boundary = summary(SUMMARY_ASBR, FAR, Ipv4Addr::UNSPECIFIED, 5, 1);
    let forwarding = |address: [u8; 4]| ExternalBody { forwarding: address.into(), ..metric(false, 3) };
    deliver(
        &mut sim,
        vec![
            beyond,
            boundary,
            external("192.0.2.0/26", id(1), metric(false, 3), 1),
            external("192.0.2.64/26", FAR, metric(false, 3), 1),
            external("192.0.2.128/26", FAR, metric(true, 3), 1),
            external("198.51.100.0/26", id(1), forwarding([172, 16, 1, 1]), 1),
            external("198.51.100.64/26", id(1), forwarding([9, 9, 9, 9]), 1),
            external("198.51.100.128/26", id(1), forwarding([10, 0, 0, 77]), 1),
            external("198.51.100.192/26", id(1), metric(false, LS_INFINITY), 1),
            external("100.64.0.0/24", Ipv4Addr::new(1, 2, 3, 4), metric(false, 3), 1),
        ],
    );
    sim.run(Duration::from_millis(300));
    assert_eq!(sim.cost(0, net("172.16.0.0/16")), Some(10 + 7));
    assert_eq!(sim.cost(0, net("192.0.2.0/26")), Some(10 + 3), "a boundary router beside us");
    assert_eq!(sim.cost(0, net("192.0.2.64/26")), Some(10 + 5 + 3), "one in another area (type 4)");
    assert_eq!(sim.cost(0, net("192.0.2.128/26")), Some(3), "of type 2, the metric alone");
    assert_eq!(sim.cost(0, net("198.51.100.0/26")), Some(17 + 3), "by the forwarding address");
    // "If no such routing table entry exists … do nothing with this LSA" (section 16.4 step 3).
    assert_eq!(sim.cost(0, net("198.51.100.64/26")), None, "whose forwarding address is unknown");
    assert_eq!(sim.cost(0, net("100.64.0.0/24")), None, "whose originator is unknown");
    assert_eq!(sim.cost(0, net("198.51.100.192/26")), None, "LSInfinity");
    let routes = sim.status(0).routes;
    let on_link = routes.iter().find(|route| route.prefix == net("198.51.100.128/26").into()).expect("there");
    assert_eq!(on_link.next_hops[0].gateway, Some(Ipv4Addr::new(10, 0, 0, 77).into()), "on our own link");
}

/// "(c) … select the preferred paths based on the intra-AS paths to the ASBR/forwarding addresses", "(d) … least cost"
/// (RFC 2328 section 16.4 step 6); equal paths add up.
#[test]
fn of_two_externals_the_nearer_wins_and_equals_share() {
    let mut sim = Simulator::new(401);
    for other in [1, 2, 3] {
        let cost = if other == 3 { 20 } else { 10 };
        sim.segment(&[(0, crate::config::InterfaceConfig { cost, ..p2p() }), (other, p2p())]);
    }
    sim.start();
    let (one, two) = (net("203.0.113.1/32"), net("203.0.113.2/32"));
    for other in [1, 2, 3] {
        let dear = if other == 1 { 11 } else { 10 };
        sim.announce_as(other, &[(one, Announcement::external(10)), (two, Announcement::external(dear))]);
    }
    sim.until(seconds(6), |sim| sim.hops(0, one) == 2 && sim.hops(0, two) == 1);
}

/// "If only AS-external-LSAs have changed … it is not necessary to recalculate" the rest (RFC 2328 section 16.6), and
/// 16.5 for summaries.
#[test]
fn only_the_stages_that_a_change_concerns_are_calculated() {
    let mut sim = beside_a_border_router();
    let last = |sim: &Simulator| sim.status(0).spf_events.last().cloned().expect("there was one");
    deliver(&mut sim, vec![external("192.0.2.0/24", id(1), metric(true, 3), 1)]);
    let event = last(&sim);
    assert_eq!((event.extent, event.changed, event.delay_ms), (Extent::Externals, true, 0));
    assert!(event.triggers[0].contains("type 5 id 192.0.2.0"), "{event:?}");
    sim.run(seconds(4));
    let (there, mask) = (Ipv4Addr::new(172, 16, 0, 0), Ipv4Addr::new(255, 255, 0, 0));
    deliver(&mut sim, vec![summary(SUMMARY_NETWORK, there, mask, 7, 1)]);
    assert_eq!(last(&sim).extent, Extent::InterArea);
    assert_eq!(sim.cost(0, net("192.0.2.0/24")), Some(3), "the externals are still there");
    sim.run(seconds(4));
    sim.announce(0, &[(net("172.16.0.0/16"), 1)]);
    let event = last(&sim);
    assert_eq!((event.extent, event.triggers), (Extent::Selection, vec!["announcements".to_owned()]));
    assert_eq!(sim.cost(0, net("172.16.0.0/16")), None, "ours now");
    sim.run(seconds(4));
    // A refresh that says the same calculates nothing.
    let before = sim.status(0).spf_events.len();
    deliver(&mut sim, vec![external("192.0.2.0/24", id(1), metric(true, 3), 2)]);
    sim.run(seconds(4));
    assert_eq!(sim.status(0).spf_events.len(), before);
    let events = sim.status(0).lsa_events;
    let refresh = events.iter().rfind(|event| event.kind == 5).expect("recorded");
    assert_eq!((refresh.action, refresh.changed, refresh.from), (LsaAction::Received, false, Some(id(1))));
    let machine = sim.machine(0);
    let staged = machine.routes.clone();
    assert_eq!(machine.calculate_routes(Extent::Full), staged, "the stages add up to the whole");
}

#[test]
fn one_of_a_thousand_externals_is_withdrawn_without_touching_the_others() {
    let mut sim = fabric(2, 402);
    let vips: Vec<_> = (0..1000u32)
        .map(|n| Ipv4Net::from(Ipv4Addr::from(0xcb00_0000 + n)))
        .map(|net| (net, Announcement::external(10)))
        .collect();
    for director in [2, 3] {
        sim.announce_as(director, &vips);
    }
    sim.until(seconds(20), |sim| {
        vips.iter().all(|(vip, _)| sim.hops(0, *vip) == 2 && sim.hops(1, *vip) == 2)
    });
    sim.run(seconds(4));
    let (before, router) = (sim.events(2).len(), sim.sequence(0, id(2)));
    sim.announce_as(2, &vips[1..]);
    sim.until(Duration::from_millis(100), |sim| sim.hops(0, vips[0].0) == 1 && sim.hops(1, vips[0].0) == 1);
    sim.run(seconds(2));
    let originated = |event: &&Event| matches!(event, Event::Originated { .. });
    assert_eq!(sim.events(2)[before..].iter().filter(originated).count(), 1);
    assert_eq!(sim.sequence(0, id(2)), router, "the Router-LSA stays as it is");
    assert!(vips[1..].iter().all(|(vip, _)| sim.hops(0, *vip) == 2));
    // The last one goes like the first: that costs nobody a calculation of the tree.
    sim.run(seconds(4));
    sim.announce_as(2, &[]);
    sim.until(Duration::from_millis(400), |sim| vips[1..].iter().all(|(vip, _)| sim.hops(0, *vip) == 1));
    assert_eq!(sim.sequence(0, id(2)), router);
}

fn says_its_own<V: Family>(nets: [V::Net; 2]) {
    let mut sim = Network::<V>::new(403);
    sim.external = ExternalConfig { metric_type: MetricType::Two, tag: 7 };
    sim.segment(&[(0, p2p()), (1, p2p())]);
    sim.start();
    let own = ExternalConfig { metric_type: MetricType::One, tag: 9 };
    let told = |external| Announcement { external, ..Announcement::external(20) };
    sim.announce_as(0, &[(nets[0], told(None)), (nets[1], told(Some(own)))]);
    sim.until(seconds(5), |sim| nets.iter().all(|net| sim.hops(1, *net) == 1));
    // Of type 1 the way counts as well, of type 2 the metric alone.
    assert_eq!(nets.map(|net| sim.cost(1, net)), [Some(20), Some(30)]);
    let said = |sim: &mut Network<V>| -> Vec<String> {
        sim.machine(1).living(Scope::Domain).map(|(_, lsa)| V::describe(lsa).join(" ")).collect()
    };
    let tagged = |sim: &mut Network<V>, tag: &str| said(sim).iter().filter(|text| text.contains(tag)).count();
    assert_eq!([tagged(&mut sim, "tag 7"), tagged(&mut sim, "tag 9")], [1, 1], "{:?}", said(&mut sim));
    // It changes like a metric.
    sim.run(seconds(3));
    sim.announce_as(0, &[(nets[0], told(None)), (nets[1], told(None))]);
    sim.until(seconds(5), |sim| sim.cost(1, nets[1]) == Some(20));
    assert_eq!([tagged(&mut sim, "tag 7"), tagged(&mut sim, "tag 9")], [2, 0]);
}

#[test]
fn an_external_has_a_metric_type_and_a_tag_of_its_own() {
    says_its_own::<V2>([net("203.0.113.10/32"), net("203.0.113.11/32")]);
    let net6 = |text: &str| text.parse().expect("a prefix");
    says_its_own::<V3>([net6("2001:db8:f::10/128"), net6("2001:db8:f::11/128")]);
}
