//! What we say in version 3 (RFC 5340 section 4.4.3): links in the Router-LSA, our end of each link in a
//! Link-LSA, prefixes in Intra-Area-Prefix-LSAs, one for each that is announced.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{Ipv4Addr, Ipv6Addr},
};

use bytes::BytesMut;
use ipnet::{IpNet, Ipv6Net};

use super::{LINK_PREFIXES, graph::is_unicast};
use crate::{
    announce::AnnounceAs,
    config::{ExternalConfig, InterfaceConfig, Metric, MetricType},
    packet::{
        FLAG_EXTERNAL, MAX_LINK_METRIC,
        v3::{
            EXTERNAL, INTRA_AREA_PREFIX, LINK, LsType, LsaKey, NETWORK, NSSA, PREFIX_P, Prefix, ROUTER, V3,
            body::{
                ExternalBody, IntraAreaPrefixBody, LinkBody, LinkKind, LsaBody, NetworkBody, RouterBody,
                RouterLink,
            },
        },
    },
    speaker::{
        InterfaceId, InterfaceState, Machine, Protocol, Scope, interface::Interface, origination::Wanted,
    },
};

/// Added to an interface id: the Intra-Area-Prefix-LSA with the prefixes of its network.
const NETWORK_PREFIXES: u32 = 0x8000_0000;

/// What each of our LSAs should say.
pub(super) fn wanted(machine: &Machine<V3>, with_announced: bool) -> Wanted<V3> {
    let mut wanted = Wanted::<V3>::new();
    let router = machine.config.router_id;
    let mut add = |scope, kind, id: u32, body: BytesMut| {
        wanted.insert((scope, LsaKey { kind, id: id.into(), router }), ((), body));
    };
    let areas: BTreeMap<_, _> =
        machine.interfaces_up().map(|(_, interface)| (interface.config.area, &interface.config)).collect();
    for (area, config) in areas {
        let scope = Scope::Area(area);
        add(scope, ROUTER, 0, router_lsa(machine, config).emit());
        let own = link_prefixes(machine, area);
        if !own.is_empty() {
            add(scope, INTRA_AREA_PREFIX, LINK_PREFIXES, prefixes_of_router(router, own));
        }
        if with_announced {
            for (net, metric, id) in announced(machine, AnnounceAs::Stub) {
                let prefix = Prefix { net, options: 0, field: metric };
                add(scope, INTRA_AREA_PREFIX, id, prefixes_of_router(router, vec![prefix]));
            }
        }
    }
    if with_announced {
        add_external_lsas(machine, &mut add);
    }
    for (id, interface) in machine.interfaces_up() {
        let (scope, index) = (Scope::Area(interface.config.area), interface.link.index);
        if let Some(body) = link_lsa(machine, interface) {
            add(Scope::Link(id), LINK, index, body.emit());
        }
        if interface.state == InterfaceState::Dr && interface.is_on_transit() {
            let (network, prefixes) = network_lsas(machine, id, interface);
            add(scope, NETWORK, index, network.emit());
            if !prefixes.prefixes.is_empty() {
                add(scope, INTRA_AREA_PREFIX, NETWORK_PREFIXES | index, prefixes.emit());
            }
        }
    }
    wanted
}

/// Announced prefixes of one kind with their metrics and link state ids.
fn announced(machine: &Machine<V3>, kind: AnnounceAs) -> impl Iterator<Item = (Ipv6Net, Metric, u32)> {
    machine.announced_as(kind).filter_map(|(net, metric)| match net {
        IpNet::V6(prefix) => Some((*prefix, metric, *machine.prefix_ids.get(net)?)),
        IpNet::V4(_) => None,
    })
}

/// Sections 4.4.3.6 and 4.4.3.7: each external prefix once for all normal areas, and once for each NSSA.
fn add_external_lsas(machine: &Machine<V3>, add: &mut impl FnMut(Scope, LsType, u32, BytesMut)) {
    let mut add = |scope, kind, options, forwarding| {
        for (net, metric, external) in machine.announced_externals() {
            let IpNet::V6(prefix) = net else { continue };
            let Some(id) = machine.prefix_ids.get(net) else { continue };
            let prefix = Prefix { net: *prefix, options, field: 0 };
            add(scope, kind, *id, external_body(prefix, metric, external, forwarding).emit());
        }
    };
    let normal = machine.has_normal_area();
    if normal {
        add(Scope::Domain, EXTERNAL, 0, None);
    }
    for area in machine.nssas() {
        let forwarding = forwarding_address(machine, area);
        // Those outside hear of it by the AS-External-LSA, where we send one (RFC 3101 section 2.4).
        let options = if normal || forwarding.is_none() { 0 } else { PREFIX_P };
        add(Scope::Area(area), NSSA, options, forwarding);
    }
}

fn external_body(
    prefix: Prefix,
    metric: Metric,
    external: ExternalConfig,
    forwarding: Option<Ipv6Addr>,
) -> ExternalBody {
    let tag = (external.tag != 0).then_some(external.tag);
    let type_2 = external.metric_type == MetricType::Two;
    ExternalBody { type_2, metric: metric.into(), prefix, forwarding, tag, referenced: None }
}

/// An address of ours in the area that is not link-local and not a VIP (RFC 3101 section 2.3).
fn forwarding_address(machine: &Machine<V3>, area: Ipv4Addr) -> Option<Ipv6Addr> {
    let attached =
        machine.forwarding_interfaces(area).filter_map(|interface| interface.link.address.as_ref());
    let mut addresses = attached.flat_map(|attached| attached.addresses.iter().copied());
    addresses.find(|address| !machine.is_protected(Ipv6Net::from(*address).into()))
}

/// Section 4.4.3.2. Never an area border router, never a way through.
fn router_lsa(machine: &Machine<V3>, config: &InterfaceConfig) -> RouterBody {
    let mut links = Vec::new();
    for (_, interface) in machine.interfaces_up().filter(|(_, i)| i.config.area == config.area) {
        let link = |kind, neighbor_interface, neighbor| RouterLink {
            kind,
            metric: MAX_LINK_METRIC,
            interface: interface.link.index,
            neighbor_interface,
            neighbor,
        };
        if interface.state == InterfaceState::PointToPoint {
            links.extend(interface.full().map(|n| link(LinkKind::PointToPoint, n.mark, n.router)));
        } else if interface.is_on_transit() {
            links.push(link(LinkKind::Transit, designated_interface(interface), interface.dr));
        }
    }
    machine.originator.order(&mut links);
    let flags = if machine.is_boundary(config.area_kind) { FLAG_EXTERNAL } else { 0 };
    RouterBody { flags, options: V3::capabilities(config), links }
}

/// Interface id of the designated router on its network; zero while it is not known.
pub(super) fn designated_interface(interface: &Interface<V3>) -> u32 {
    match interface.state {
        InterfaceState::Dr => interface.link.index,
        _ => interface.neighbors.get(&interface.dr).map_or(0, |neighbor| neighbor.mark),
    }
}

/// Prefixes of the links that are no transit networks (section 4.4.3.9).
fn link_prefixes(machine: &Machine<V3>, area: Ipv4Addr) -> Vec<Prefix> {
    let here = machine.interfaces_up().map(|(_, interface)| interface);
    let stubs = here.filter(|interface| interface.config.area == area && !interface.is_on_transit());
    let mut prefixes = BTreeMap::new();
    for interface in stubs {
        for net in own_prefixes(machine, interface) {
            let cost = prefixes.entry(net).or_insert(interface.config.cost);
            *cost = interface.config.cost.min(*cost);
        }
    }
    prefixes.into_iter().map(|(net, field)| Prefix { net, options: 0, field }).collect()
}

fn prefixes_of_router(router: Ipv4Addr, prefixes: Vec<Prefix>) -> BytesMut {
    IntraAreaPrefixBody { kind: ROUTER, id: Ipv4Addr::UNSPECIFIED, router, prefixes }.emit()
}

/// Prefixes of a link that are its own: a VIP that is an address of a device as well is announced, or it is
/// not, and must not come in by the back door.
fn own_prefixes(machine: &Machine<V3>, interface: &Interface<V3>) -> BTreeSet<Ipv6Net> {
    let all = interface.link.address.iter().flat_map(|attached| &attached.prefixes);
    all.filter(|net| !machine.is_protected(IpNet::V6(**net))).copied().collect()
}

/// Section 4.4.3.8.
fn link_lsa(machine: &Machine<V3>, interface: &Interface<V3>) -> Option<LinkBody> {
    let attached = interface.link.address.as_ref().filter(|_| interface.is_active())?;
    let prefix = |net| Prefix { net, options: 0, field: 0 };
    Some(LinkBody {
        priority: interface.config.priority,
        options: V3::capabilities(&interface.config),
        address: attached.link_local,
        prefixes: own_prefixes(machine, interface).into_iter().map(prefix).collect(),
    })
}

/// Sections 4.4.3.3 and 4.4.3.9: the designated router describes the network, and its prefixes as all who are
/// fully adjacent know them.
fn network_lsas(
    machine: &Machine<V3>,
    id: InterfaceId,
    interface: &Interface<V3>,
) -> (NetworkBody, IntraAreaPrefixBody) {
    let router = machine.config.router_id;
    let routers: BTreeSet<_> = interface.full().map(|n| n.router).chain([router]).collect();
    let own = link_lsa(machine, interface);
    let others =
        links_on(machine, id).filter(|(key, _)| key.router != router && routers.contains(&key.router));
    let (mut options, mut nets) = (0, BTreeSet::new());
    for link in own.into_iter().chain(others.map(|(_, link)| link)) {
        options |= link.options;
        let shared = |prefix: &&Prefix| is_unicast(prefix) && !prefix.net.addr().is_unicast_link_local();
        nets.extend(link.prefixes.iter().filter(shared).map(|prefix| prefix.net));
    }
    let prefixes = nets.into_iter().map(|net| Prefix { net, options: 0, field: 0 }).collect();
    let body = NetworkBody { options, routers: routers.into_iter().collect() };
    (body, IntraAreaPrefixBody { kind: NETWORK, id: interface.link.index.into(), router, prefixes })
}

/// Link-LSAs on an interface.
pub(super) fn links_on(machine: &Machine<V3>, id: InterfaceId) -> impl Iterator<Item = (&LsaKey, LinkBody)> {
    machine.living(Scope::Link(id)).filter_map(|(key, lsa)| match LsaBody::parse(lsa) {
        Ok(LsaBody::Link(body)) => Some((key, body)),
        _ => None,
    })
}
