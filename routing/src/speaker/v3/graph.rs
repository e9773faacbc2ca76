//! What the databases of version 3 say about the network (RFC 5340 section 4.8): vertices from Router- and
//! Network-LSAs, prefixes at them from Intra-Area-Prefix-LSAs, next hops on a link from its Link-LSAs.

use std::net::{IpAddr, Ipv4Addr};

use super::origination::links_on;
use crate::{
    packet::v3::{
        EXTERNAL, INTER_AREA_PREFIX, INTER_AREA_ROUTER, Lsa, LsaKey, NETWORK, NSSA, OPTION_R, OPTION_V6,
        PREFIX_NU, Prefix, ROUTER, V3,
        body::{IntraAreaPrefixBody, LinkKind, LsaBody, RouterBody},
    },
    speaker::{
        InterfaceId, Machine, Protocol, Scope,
        calculation::External,
        interface::Interface,
        spf::{Graph, NetworkId, RouterVertex, Summary, Vertex},
    },
};

/// An area's LSAs as a graph (section 4.8.1).
pub(super) fn graph(machine: &Machine<V3>, area: Ipv4Addr) -> Graph {
    let mut graph = Graph::default();
    for (key, lsa) in machine.living(Scope::Area(area)) {
        match LsaBody::parse(lsa) {
            Ok(LsaBody::Router(body)) => add_router(&mut graph, key.router, &body),
            Ok(LsaBody::Network(body)) => {
                graph.networks.insert(NetworkId { router: key.router, id: key.id }, body.routers);
            }
            Ok(LsaBody::IntraAreaPrefix(body)) => add_prefixes(&mut graph, key, &body),
            Ok(
                LsaBody::InterAreaPrefix { .. }
                | LsaBody::InterAreaRouter { .. }
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

/// What border routers say (section 4.8.3).
pub(super) fn summaries(machine: &Machine<V3>, area: Ipv4Addr) -> Vec<(Ipv4Addr, Summary, u32)> {
    let summary = |(key, lsa): (&LsaKey, &Lsa)| match LsaBody::parse(lsa) {
        Ok(LsaBody::InterAreaPrefix { prefix, metric }) if is_unicast(&prefix) => {
            Some((key.router, Summary::Prefix(prefix.net.into()), metric))
        }
        Ok(LsaBody::InterAreaRouter { router, metric }) => {
            Some((key.router, Summary::Boundary(router), metric))
        }
        _ => None,
    };
    let summaries = |(key, _): &(&LsaKey, &Lsa)| [INTER_AREA_PREFIX, INTER_AREA_ROUTER].contains(&key.kind);
    machine.living(Scope::Area(area)).filter(summaries).filter_map(summary).collect()
}

/// Destinations outside the domain (section 4.8.5).
pub(super) fn externals(machine: &Machine<V3>) -> Vec<External> {
    let external = |nssa: Option<Ipv4Addr>, (key, lsa): (&LsaKey, &Lsa)| {
        let Ok(LsaBody::External(body)) = LsaBody::parse(lsa) else { return None };
        is_unicast(&body.prefix).then_some(External {
            router: key.router,
            nssa,
            prefix: body.prefix.net.into(),
            type_2: body.type_2,
            metric: body.metric,
            forwarding: body.forwarding.map(IpAddr::from),
        })
    };
    let of =
        |kind| move |(key, _): &(&LsaKey, &Lsa)| key.kind == kind && key.router != machine.config.router_id;
    let domain = machine.living(Scope::Domain).filter(of(EXTERNAL));
    let mut all: Vec<_> = domain.filter_map(|lsa| external(None, lsa)).collect();
    for area in machine.nssas() {
        let inside = machine.living(Scope::Area(area)).filter(of(NSSA));
        all.extend(inside.filter_map(|lsa| external(Some(area), lsa)));
    }
    all
}

/// Whether a prefix takes part in route calculation.
pub(super) fn is_unicast(prefix: &Prefix) -> bool {
    prefix.options & PREFIX_NU == 0
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
