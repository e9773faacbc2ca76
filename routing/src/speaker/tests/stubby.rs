//! Totally stubby areas: of all that lies outside the area only the default route counts.

use std::net::Ipv4Addr;

use ipnet::IpNet;

use super::{
    p2p, seconds,
    simulator::{Family, Network, Simulator, Simulator6, id},
};
use crate::{
    config::{AreaKind, InterfaceConfig},
    packet::{
        Body, FLAG_BORDER, Lsa, LsaKey, Packet, ROUTER, SUMMARY_NETWORK,
        v3::{self, INTER_AREA_PREFIX, V3},
    },
    speaker::{ALL_SPF_ROUTERS, Input, InterfaceId, Protocol},
};

const AREA: Ipv4Addr = Ipv4Addr::new(0, 0, 0, 1);

/// Node 0 under test and node 1, in whose name an area border router speaks.
fn area<V: Family>(area_kind: AreaKind) -> Network<V> {
    let config = InterfaceConfig { area: AREA, area_kind, ..p2p() };
    let mut sim = Network::new(531);
    sim.segment(&[(0, config.clone()), (1, config)]);
    sim.start();
    sim.until(seconds(5), |sim| sim.all_full(2) && sim.databases_agree());
    sim.run(seconds(3));
    sim
}

/// Costs of the default route and of the other destination, to the kernel and as they are known.
fn routes<V: Family>(sim: &mut Network<V>, default: V::Net, other: V::Net) -> [(Option<u32>, bool); 2] {
    [default, other].map(|net| {
        let prefix: IpNet = net.into();
        let known = sim.machine(0).all_routes().iter().any(|(route, _)| route.prefix == prefix);
        (sim.cost(0, net), known)
    })
}

fn version_2(kind: AreaKind) -> [(Option<u32>, bool); 2] {
    let mut sim: Simulator = area(kind);
    let mut router = sim.body_in(0, AREA, ROUTER, id(1));
    router[0] = FLAG_BORDER;
    let sequence = sim.sequence(0, id(1)).expect("held").cast_signed();
    let build = |kind, id: Ipv4Addr, sequence, body: &[u8]| {
        Lsa::build(LsaKey { kind, id, router: super::simulator::id(1) }, 0, sequence, body).expect("short")
    };
    let (default, other) = (Ipv4Addr::UNSPECIFIED, Ipv4Addr::new(192, 0, 2, 0));
    let lsas = vec![
        build(ROUTER, id(1), sequence + 1, &router),
        build(SUMMARY_NETWORK, default, 1, &[0, 0, 0, 0, 0, 0, 0, 1]),
        build(SUMMARY_NETWORK, other, 1, &[255, 255, 255, 0, 0, 0, 0, 5]),
    ];
    let packet = Packet { router: id(1), area: AREA, body: Body::Update(lsas) };
    let (source, destination) = (Ipv4Addr::new(10, 0, 0, 2), ALL_SPF_ROUTERS);
    let payload = packet.emit().to_vec();
    sim.input(0, Input::Packet { interface: InterfaceId(0), source, destination, payload });
    sim.until(seconds(2), |sim| sim.lsa_count(0, SUMMARY_NETWORK) == 2);
    sim.run(seconds(1));
    routes(&mut sim, super::net("0.0.0.0/0"), super::net("192.0.2.0/24"))
}

fn version_3(kind: AreaKind) -> [(Option<u32>, bool); 2] {
    let mut sim: Simulator6 = area(kind);
    let mut router = sim.body_in(0, AREA, v3::ROUTER, id(1));
    router[0] = FLAG_BORDER;
    let sequence = sim.sequence(0, id(1)).expect("held").cast_signed();
    let build = |kind, id: u32, sequence, body: &[u8]| {
        let key = v3::LsaKey { kind, id: id.into(), router: super::simulator::id(1) };
        v3::Lsa::build(key, (), sequence, body).expect("short")
    };
    let other = [0, 0, 0, 5, 32, 0, 0, 0, 0x20, 0x01, 0x0d, 0xb9];
    let lsas = vec![
        build(v3::ROUTER, 0, sequence + 1, &router),
        build(INTER_AREA_PREFIX, 1, 1, &[0, 0, 0, 1, 0, 0, 0, 0]),
        build(INTER_AREA_PREFIX, 2, 1, &other),
    ];
    let (source, destination) = ("fe80::2".parse().expect("an address"), V3::ALL_SPF_ROUTERS);
    let packet = v3::Packet { router: id(1), area: AREA, instance: 0, body: v3::Body::Update(lsas) };
    let payload = packet.emit(source, destination).to_vec();
    sim.input(0, Input::Packet { interface: InterfaceId(0), source, destination, payload });
    sim.until(seconds(2), |sim| sim.lsa_count(0, INTER_AREA_PREFIX) == 2);
    sim.run(seconds(1));
    routes(&mut sim, "::/0".parse().expect("a prefix"), "2001:db9::/32".parse().expect("a prefix"))
}

/// "routing to AS external destinations from within stub areas is based on a per-area default cost" (RFC 2328 section
/// 3.6), and where the area is totally stubby the default summary alone is for its routers.
#[test]
fn totally_stubby_area_uses_the_default_summary_alone() {
    let (default, other) = ((Some(11), true), (Some(15), true));
    for version in [version_2, version_3] {
        assert_eq!(version(AreaKind::Stub), [default, other]);
        assert_eq!(version(AreaKind::TotallyStubby), [default, (None, false)], "neither used nor known");
    }
}
