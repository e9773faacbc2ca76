//! What is particular to version 3 (RFC 5340): routers speak over link-local addresses and name each other by
//! router id, links by interface id; topology and prefixes are LSAs apart.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
};

use bytes::BytesMut;
use ipnet::{IpNet, Ipv6Net};
use serde::{Deserialize, Serialize};

use super::{
    InterfaceId, InterfaceState, Link, Machine, Refusal,
    interface::Interface,
    lsdb::Scope,
    origination::Wanted,
    route::External,
    spf::{Graph, NetworkId, RouterVertex, Summary, Vertex},
    version::Protocol,
};
use crate::{
    config::{AreaKind, Config, InterfaceConfig, Metric, Network},
    packet::{
        MAX_LINK_METRIC, OPTION_E,
        v3::{
            FloodingScope, INTRA_AREA_PREFIX, LINK, LsType, Lsa, LsaKey, NETWORK, OPTION_R, OPTION_V6,
            PREFIX_NU, Prefix, ROUTER, V3,
            body::{IntraAreaPrefixBody, LinkBody, LinkKind, LsaBody, NetworkBody, RouterBody, RouterLink},
        },
    },
};

/// Link state id of the Intra-Area-Prefix-LSA with the prefixes of our links; announced prefixes follow.
const LINK_PREFIXES: u32 = 0;
/// Added to an interface id: the Intra-Area-Prefix-LSA with the prefixes of its network.
const NETWORK_PREFIXES: u32 = 0x8000_0000;

/// The IPv6 addresses of a link.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Attached6 {
    /// What packets are sent from.
    pub link_local: Ipv6Addr,
    /// Prefixes of the other addresses, truncated.
    pub prefixes: BTreeSet<Ipv6Net>,
}

impl Protocol for V3 {
    type Attached = Attached6;
    const ALL_SPF_ROUTERS: Ipv6Addr = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 5);
    const ALL_D_ROUTERS: Ipv6Addr = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 6);
    const IP_HEADER: usize = 40;
    const LEAST_MTU: u16 = 1280;

    fn address(attached: &Attached6) -> Ipv6Addr {
        attached.link_local
    }

    fn nets(attached: &Attached6) -> Vec<IpNet> {
        attached.prefixes.iter().copied().map(IpNet::from).collect()
    }

    fn shown(attached: &Attached6) -> IpNet {
        Ipv6Net::new_assert(attached.link_local, 64).into()
    }

    /// Neighbours know the link-local address only.
    fn is_same_link(before: &Attached6, after: &Attached6) -> bool {
        before.link_local == after.link_local
    }

    fn mark(link: &Link<Self>) -> u32 {
        link.index
    }

    fn identity(router: Ipv4Addr, _: Ipv6Addr) -> Ipv4Addr {
        router
    }

    /// By router id everywhere (section 4.2.2).
    fn neighbor_key(_: Network, router: Ipv4Addr, _: Ipv6Addr) -> Ipv4Addr {
        router
    }

    fn import(config: &Config) -> Vec<IpNet> {
        config.import6.iter().copied().map(IpNet::from).collect()
    }

    fn capabilities(config: &InterfaceConfig) -> u32 {
        let external = match config.area_kind {
            AreaKind::Normal => OPTION_E.into(),
            AreaKind::Stub => 0,
        };
        OPTION_V6 | OPTION_R | external
    }

    fn description_capabilities(config: &InterfaceConfig) -> u32 {
        Self::capabilities(config)
    }

    fn foreign_source(_: &Attached6, source: Ipv6Addr) -> Option<String> {
        (!source.is_unicast_link_local()).then(|| format!("source {source} is not link-local"))
    }

    fn foreign_mark(_: &Interface<Self>, _: u32) -> Option<String> {
        None // an interface id means something to its owner alone
    }

    /// Section 4.5.2: types that are not known go by their U bit.
    fn scope(kind: LsType, interface: InterfaceId, area: Ipv4Addr) -> Option<Scope> {
        let scope = kind.scope()?;
        if !kind.is_known() && !kind.is_flooded_unknown() {
            return Some(Scope::Link(interface));
        }
        Some(match scope {
            FloodingScope::Link => Scope::Link(interface),
            FloodingScope::Area => Scope::Area(area),
            FloodingScope::Domain => Scope::Domain,
        })
    }

    fn is_for(_: LsType, _: u32) -> bool {
        true
    }

    fn judge(lsa: &Lsa) -> Result<(), (Refusal, String)> {
        LsaBody::parse(lsa).map(drop).map_err(|error| (Refusal::LsaBody, error.to_string()))
    }

    fn is_own(machine: &Machine<Self>, key: &LsaKey) -> bool {
        key.router == machine.config.router_id
    }

    /// Gives every announced prefix a link state id of its own, so that each has an LSA with its own pace. A
    /// prefix keeps its id; one that is free again must not name an LSA that is still on its way out.
    fn note_announced(machine: &mut Machine<Self>) {
        let announced = &machine.announced;
        machine.prefix_ids.retain(|prefix, _| announced.contains_key(prefix));
        let prefix_lsa = |key: &LsaKey| (key.kind == INTRA_AREA_PREFIX).then(|| u32::from(key.id));
        let known = machine.originator.own_keys().filter_map(|(_, key)| prefix_lsa(key));
        let mut taken: BTreeSet<u32> = known.chain(machine.prefix_ids.values().copied()).collect();
        let mut next = LINK_PREFIXES + 1;
        for prefix in machine.announced.keys() {
            machine.prefix_ids.entry(*prefix).or_insert_with(|| {
                while !taken.insert(next) {
                    next += 1;
                }
                next
            });
        }
    }

    fn wanted(machine: &Machine<Self>, with_announced: bool) -> Wanted<Self> {
        let mut wanted = Wanted::<Self>::new();
        let router = machine.config.router_id;
        let mut add = |scope, kind, id: u32, body: BytesMut| {
            wanted.insert((scope, LsaKey { kind, id: id.into(), router }), ((), body));
        };
        let areas: BTreeMap<_, _> = machine
            .interfaces_up()
            .map(|(_, interface)| (interface.config.area, &interface.config))
            .collect();
        for (area, config) in areas {
            let scope = Scope::Area(area);
            add(scope, ROUTER, 0, router_lsa(machine, config).emit());
            let own = link_prefixes(machine, area);
            if !own.is_empty() {
                add(scope, INTRA_AREA_PREFIX, LINK_PREFIXES, prefixes_of_router(router, own));
            }
            if with_announced {
                for (net, metric, id) in announced(machine) {
                    let prefix = Prefix { net, options: 0, field: metric };
                    add(scope, INTRA_AREA_PREFIX, id, prefixes_of_router(router, vec![prefix]));
                }
            }
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

    fn network_id(interface: &Interface<Self>) -> NetworkId {
        NetworkId { router: interface.dr, id: designated_interface(interface).into() }
    }

    fn graph(machine: &Machine<Self>, area: Ipv4Addr) -> Graph {
        let mut graph = Graph::default();
        for (key, lsa) in machine.living(Scope::Area(area)) {
            match LsaBody::parse(lsa) {
                Ok(LsaBody::Router(body)) => add_router(&mut graph, key.router, &body),
                Ok(LsaBody::Network(body)) => {
                    graph.networks.insert(NetworkId { router: key.router, id: key.id }, body.routers);
                }
                Ok(LsaBody::IntraAreaPrefix(body)) => add_prefixes(&mut graph, key, &body),
                Ok(LsaBody::InterAreaPrefix { prefix, metric }) if is_unicast(&prefix) => {
                    graph.summaries.push((key.router, Summary::Prefix(prefix.net.into()), metric));
                }
                Ok(LsaBody::InterAreaRouter { router, metric }) => {
                    graph.summaries.push((key.router, Summary::Boundary(router), metric));
                }
                Ok(
                    LsaBody::InterAreaPrefix { .. }
                    | LsaBody::External(_)
                    | LsaBody::Link(_)
                    | LsaBody::Unknown,
                )
                | Err(_) => {}
            }
        }
        add_addresses(machine, area, &mut graph);
        graph
    }

    fn externals(machine: &Machine<Self>) -> Vec<External> {
        let external = |(key, lsa): (&LsaKey, &Lsa)| {
            let Ok(LsaBody::External(body)) = LsaBody::parse(lsa) else { return None };
            is_unicast(&body.prefix).then_some(External {
                router: key.router,
                prefix: body.prefix.net.into(),
                type_2: body.type_2,
                metric: body.metric,
                forwarding: body.forwarding.map(IpAddr::from),
            })
        };
        let foreign = |(key, _): &(&LsaKey, &Lsa)| key.router != machine.config.router_id;
        machine.living(Scope::Domain).filter(foreign).filter_map(external).collect()
    }
}

fn is_unicast(prefix: &Prefix) -> bool {
    prefix.options & PREFIX_NU == 0
}

/// Announced prefixes with their metrics and link state ids.
fn announced(machine: &Machine<V3>) -> impl Iterator<Item = (Ipv6Net, Metric, u32)> {
    machine.announced.iter().filter_map(|(net, metric)| match net {
        IpNet::V6(prefix) => Some((*prefix, *metric, *machine.prefix_ids.get(net)?)),
        IpNet::V4(_) => None,
    })
}

/// Section 4.4.3.2. Never an area border or AS boundary router, never a way through.
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
    RouterBody { flags: 0, options: V3::capabilities(config), links }
}

/// Interface id of the designated router on its network; zero while it is not known.
fn designated_interface(interface: &Interface<V3>) -> u32 {
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
    let is_protected = |net: &Ipv6Net| machine.protected.iter().any(|vip| vip.contains(&IpNet::V6(*net)));
    all.filter(|net| !is_protected(net)).copied().collect()
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
fn links_on(machine: &Machine<V3>, id: InterfaceId) -> impl Iterator<Item = (&LsaKey, LinkBody)> {
    machine.living(Scope::Link(id)).filter_map(|(key, lsa)| match LsaBody::parse(lsa) {
        Ok(LsaBody::Link(body)) => Some((key, body)),
        _ => None,
    })
}

/// One of a router's Router-LSAs: their links add up, the first decides on options and flags (section 4.8.1).
fn add_router(graph: &mut Graph, id: Ipv4Addr, body: &RouterBody) {
    if body.options & OPTION_V6 == 0 {
        return; // takes no part in IPv6
    }
    let first =
        || RouterVertex { flags: body.flags, leaf: body.options & OPTION_R == 0, ..RouterVertex::default() };
    let vertex = graph.routers.entry(id).or_insert_with(first);
    for link in &body.links {
        let network = NetworkId { router: link.neighbor, id: link.neighbor_interface.into() };
        match link.kind {
            LinkKind::PointToPoint => {
                vertex.edges.push((Vertex::Router(link.neighbor), u32::from(link.metric)));
            }
            LinkKind::Transit => vertex.edges.push((Vertex::Network(network), u32::from(link.metric))),
            LinkKind::Virtual => {}
        }
    }
}

/// Section 4.8.1 (3): prefixes belong to the vertex that the LSA refers to, if that is its originator's.
fn add_prefixes(graph: &mut Graph, key: &LsaKey, body: &IntraAreaPrefixBody) {
    let vertex = match body.kind {
        _ if body.router != key.router => return,
        ROUTER => Vertex::Router(body.router),
        NETWORK => Vertex::Network(NetworkId { router: body.router, id: body.id }),
        _ => return,
    };
    let unicast = body.prefixes.iter().filter(|prefix| is_unicast(prefix));
    graph.prefixes.extend(unicast.map(|prefix| (vertex, prefix.net.into(), u32::from(prefix.field))));
}

/// Link-local addresses of the routers on our transit networks (section 4.8.2).
fn add_addresses(machine: &Machine<V3>, area: Ipv4Addr, graph: &mut Graph) {
    let transit = |(_, i): &(InterfaceId, &Interface<V3>)| i.config.area == area && i.is_on_transit();
    for (id, interface) in machine.interfaces_up().filter(transit) {
        let network = V3::network_id(interface);
        for (key, link) in links_on(machine, id) {
            graph.addresses.entry((network, key.router)).or_insert(link.address.into());
        }
    }
}
