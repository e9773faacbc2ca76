//! What is particular to version 2 (RFC 2328): interfaces and networks are known by their IPv4 addresses,
//! and topology and prefixes share the same LSAs.

mod description;

use std::net::{IpAddr, Ipv4Addr};

use ipnet::{IpNet, Ipv4Net};

use super::{
    Extent, InterfaceId, InterfaceState, Machine, Refusal,
    calculation::External,
    external::link_state_ids,
    interface::Interface,
    lsdb::Scope,
    origination::Wanted,
    spf::{Graph, NetworkId, RouterVertex, Summary, Vertex},
    version::Protocol,
};
use crate::{
    announce::AnnounceAs,
    config::{AreaKind, Config, ExternalConfig, InterfaceConfig, Metric, MetricType, Network},
    packet::{
        EXTERNAL, ExternalBody, FLAG_EXTERNAL, LinkKind, Lsa, LsaBody, LsaKey, MAX_LINK_METRIC, NETWORK,
        NSSA, NetworkBody, OPAQUE_AREA, OPAQUE_AS, OPAQUE_LINK, OPTION_E, OPTION_NP, OPTION_O, ParseError,
        ROUTER, RouterBody, RouterLink, SUMMARY_ASBR, SUMMARY_NETWORK, V2, grace::GraceBody, wire::Version,
    },
};

/// Link state id of a Grace-LSA: opaque type 3, opaque id 0 (RFC 3623 appendix A).
const GRACE_ID: Ipv4Addr = Ipv4Addr::new(3, 0, 0, 0);

impl Protocol for V2 {
    type Attached = Ipv4Net;
    const ALL_SPF_ROUTERS: Ipv4Addr = super::ALL_SPF_ROUTERS;
    const ALL_D_ROUTERS: Ipv4Addr = super::ALL_D_ROUTERS;
    const IP_HEADER: usize = 20;
    const LEAST_MTU: u16 = 576;

    fn address(attached: &Ipv4Net) -> Ipv4Addr {
        attached.addr()
    }

    fn nets(attached: &Ipv4Net) -> Vec<IpNet> {
        vec![attached.trunc().into()]
    }

    fn shown(attached: &Ipv4Net) -> IpNet {
        (*attached).into()
    }

    fn is_same_link(before: &Ipv4Net, after: &Ipv4Net) -> bool {
        before == after
    }

    /// The network mask, 0 of an unnumbered link (section 9.5).
    fn mark(interface: &Interface<Self>) -> u32 {
        let numbered = |net: &Ipv4Net| interface.is_broadcast() || !is_host(net);
        interface.link.address.filter(numbered).map_or(0, |net| net.netmask().into())
    }

    fn identity(_: Ipv4Addr, address: Ipv4Addr) -> Ipv4Addr {
        address
    }

    /// By router id on point-to-point networks, by address on broadcast ones (section 10).
    fn neighbor_key(network: Network, router: Ipv4Addr, address: Ipv4Addr) -> Ipv4Addr {
        match network {
            Network::PointToPoint => router,
            Network::Broadcast => address,
        }
    }

    fn import(config: &Config) -> Vec<IpNet> {
        config.import.iter().copied().map(IpNet::from).collect()
    }

    fn capabilities(config: &InterfaceConfig) -> u32 {
        match config.area_kind {
            AreaKind::Normal => OPTION_E.into(),
            AreaKind::Stub | AreaKind::TotallyStubby => 0,
            AreaKind::Nssa => OPTION_NP.into(),
        }
    }

    fn description_capabilities(config: &InterfaceConfig) -> u32 {
        Self::capabilities(config) | u32::from(OPTION_O)
    }

    fn foreign_source(net: &Ipv4Net, source: Ipv4Addr) -> Option<String> {
        let foreign = !is_host(net) && !net.contains(&source);
        foreign.then(|| format!("source {source} is not in {}", net.trunc()))
    }

    fn foreign_mark(interface: &Interface<Self>, mark: u32) -> Option<String> {
        let ours = Self::mark(interface);
        let foreign = interface.is_broadcast() && mark != ours;
        let mask = Ipv4Addr::from;
        foreign.then(|| format!("network mask: they say {}, we say {}", mask(mark), mask(ours)))
    }

    fn scope(kind: u8, interface: InterfaceId, area: Ipv4Addr) -> Option<Scope> {
        match kind {
            ROUTER | NETWORK | SUMMARY_NETWORK | SUMMARY_ASBR | NSSA | OPAQUE_AREA => Some(Scope::Area(area)),
            EXTERNAL | OPAQUE_AS => Some(Scope::Domain),
            OPAQUE_LINK => Some(Scope::Link(interface)),
            _ => None,
        }
    }

    fn belongs(kind: u8, area: AreaKind) -> bool {
        match kind {
            EXTERNAL | OPAQUE_AS => area == AreaKind::Normal,
            NSSA => area == AreaKind::Nssa,
            _ => true,
        }
    }

    fn extent(kind: u8, own: bool) -> Option<Extent> {
        match kind {
            ROUTER => (!own).then_some(Extent::Full),
            NETWORK => Some(Extent::Full),
            SUMMARY_NETWORK | SUMMARY_ASBR => Some(Extent::InterArea),
            EXTERNAL | NSSA => (!own).then_some(Extent::Externals),
            _ => None,
        }
    }

    fn is_passed_over(_: u8) -> bool {
        false // "generate the neighbor event SeqNumberMismatch" (section 10.6)
    }

    /// Opaque LSAs go to those only who know them (RFC 5250 section 3.1).
    fn is_for(kind: u8, options: u32) -> bool {
        !matches!(kind, OPAQUE_LINK | OPAQUE_AREA | OPAQUE_AS) || options & u32::from(OPTION_O) != 0
    }

    fn judge(lsa: &Lsa) -> Result<(), (Refusal, String)> {
        let key = lsa.header.key;
        if key.kind == ROUTER && key.id != key.router {
            return Err((Refusal::LsaHeader, "link state id is not the originator".into()));
        }
        LsaBody::parse(lsa).map(drop).map_err(|error| (Refusal::LsaBody, error.to_string()))
    }

    fn grace(lsa: &Lsa) -> Option<Result<GraceBody, ParseError>> {
        lsa.header.key.is_grace().then(|| GraceBody::parse(lsa.body()))
    }

    fn grace_lsas(machine: &Machine<Self>, period: u32) -> Wanted<Self> {
        let router = machine.config.router_id;
        let lsa = |(id, interface): (InterfaceId, &Interface<Self>)| {
            let key = LsaKey { kind: OPAQUE_LINK, id: GRACE_ID, router };
            let options = Self::options(Self::capabilities(&interface.config)) & OPTION_E;
            // "must appear if the Grace-LSA is originated on a broadcast … segment"
            let address = interface.address().filter(|_| interface.is_broadcast());
            ((Scope::Link(id), key), (options, GraceBody::of_restart(period, address).emit()))
        };
        machine.interfaces_up().filter(|(_, interface)| interface.is_active()).map(lsa).collect()
    }

    fn kind_name(kind: u8) -> &'static str {
        description::kind_name(kind)
    }

    fn describe(lsa: &Lsa) -> Vec<String> {
        description::describe(lsa)
    }

    fn is_own(machine: &Machine<Self>, key: &LsaKey) -> bool {
        let own_address = |interface: &Interface<Self>| interface.address() == Some(key.id);
        key.router == machine.config.router_id
            || (key.kind == NETWORK && machine.interfaces.values().any(own_address))
    }

    fn note_announced(_: &mut Machine<Self>) {}

    fn wanted(machine: &Machine<Self>, with_announced: bool) -> Wanted<Self> {
        let mut wanted = Wanted::<Self>::new();
        let router = machine.config.router_id;
        for (_, interface) in machine.interfaces_up() {
            let area = interface.config.area;
            // The N bit is for Hellos; in an LSA its place is the P bit's (RFC 3101 appendix A).
            let options = Self::options(Self::capabilities(&interface.config)) & OPTION_E;
            let key = LsaKey { kind: ROUTER, id: router, router };
            let kind = interface.config.area_kind;
            let body = || (options, router_lsa(machine, area, kind, with_announced).emit());
            wanted.entry((Scope::Area(area), key)).or_insert_with(body);
            if let Some((id, body)) = network_lsa(machine, interface) {
                let key = LsaKey { kind: NETWORK, id, router };
                wanted.insert((Scope::Area(area), key), (options, body.emit()));
            }
        }
        if with_announced {
            add_external_lsas(machine, &mut wanted);
        }
        wanted
    }

    fn is_kept(_: u8) -> bool {
        false
    }

    fn is_linked(lsa: &Lsa, router: Ipv4Addr) -> bool {
        let Ok(LsaBody::Router(body)) = LsaBody::parse(lsa) else { return false };
        body.links.iter().any(|link| link.kind == LinkKind::PointToPoint && link.id == router)
    }

    fn network_id(interface: &Interface<Self>) -> NetworkId {
        network(interface.dr)
    }

    fn graph(machine: &Machine<Self>, area: Ipv4Addr) -> Graph {
        let mut graph = Graph::default();
        for (key, lsa) in machine.living(Scope::Area(area)) {
            match LsaBody::parse(lsa) {
                Ok(LsaBody::Router(body)) => add_router(&mut graph, key.router, &body),
                Ok(LsaBody::Network(body)) => {
                    let id = network(key.id);
                    let prefix = prefix(key.id, body.mask);
                    graph.prefixes.extend(prefix.map(|prefix| (Vertex::Network(id), prefix, 0)));
                    graph.networks.insert(id, body.routers);
                }
                Ok(LsaBody::Summary(_) | LsaBody::External(_) | LsaBody::Opaque) | Err(_) => {}
            }
        }
        graph
    }

    fn summaries(machine: &Machine<Self>, area: Ipv4Addr) -> Vec<(Ipv4Addr, Summary, u32)> {
        let summary = |(key, lsa): (&LsaKey, &Lsa)| {
            let Ok(LsaBody::Summary(body)) = LsaBody::parse(lsa) else { return None };
            let summary = match key.kind {
                SUMMARY_NETWORK => Summary::Prefix(prefix(key.id, body.mask)?),
                _ => Summary::Boundary(key.id),
            };
            Some((key.router, summary, body.metric))
        };
        let summaries = |(key, _): &(&LsaKey, &Lsa)| matches!(key.kind, SUMMARY_NETWORK | SUMMARY_ASBR);
        machine.living(Scope::Area(area)).filter(summaries).filter_map(summary).collect()
    }

    fn externals(machine: &Machine<Self>) -> Vec<External> {
        let external = |nssa: Option<Ipv4Addr>, (key, lsa): (&LsaKey, &Lsa)| {
            let Ok(LsaBody::External(body)) = LsaBody::parse(lsa) else { return None };
            let forwarding = Some(body.forwarding).filter(|address| !address.is_unspecified());
            Some(External {
                router: key.router,
                nssa,
                prefix: prefix(key.id, body.mask)?,
                type_2: body.type_2,
                metric: body.metric,
                forwarding: forwarding.map(IpAddr::from),
            })
        };
        let of = |kind: u8| {
            move |(key, _): &(&LsaKey, &Lsa)| key.kind == kind && key.router != machine.config.router_id
        };
        let domain = machine.living(Scope::Domain).filter(of(EXTERNAL));
        let mut all: Vec<_> = domain.filter_map(|lsa| external(None, lsa)).collect();
        for area in machine.nssas() {
            let inside = machine.living(Scope::Area(area)).filter(of(NSSA));
            all.extend(inside.filter_map(|lsa| external(Some(area), lsa)));
        }
        all
    }
}

fn network(id: Ipv4Addr) -> NetworkId {
    NetworkId { router: Ipv4Addr::UNSPECIFIED, id }
}

fn prefix(id: Ipv4Addr, mask: Ipv4Addr) -> Option<IpNet> {
    Ipv4Net::with_netmask(id, mask).ok().map(|net| net.trunc().into())
}

fn add_router(graph: &mut Graph, id: Ipv4Addr, body: &RouterBody) {
    let mut vertex = RouterVertex { flags: body.flags, ..RouterVertex::default() };
    for link in &body.links {
        let metric = u32::from(link.metric);
        match link.kind {
            LinkKind::PointToPoint => vertex.edges.push((Vertex::Router(link.id), metric)),
            LinkKind::Transit => {
                vertex.edges.push((Vertex::Network(network(link.id)), metric));
                graph.addresses.entry((network(link.id), id)).or_insert(link.data.into());
            }
            LinkKind::Stub => {
                let prefix = prefix(link.id, link.data);
                graph.prefixes.extend(prefix.map(|prefix| (Vertex::Router(id), prefix, metric)));
            }
            LinkKind::Virtual => {}
        }
    }
    graph.routers.insert(id, vertex);
}

/// Section 12.4.1. Never an area border router, never a way through.
fn router_lsa(machine: &Machine<V2>, area: Ipv4Addr, kind: AreaKind, with_announced: bool) -> RouterBody {
    let mut links = Vec::new();
    for interface in machine.interfaces.values().filter(|interface| interface.config.area == area) {
        describe_interface(interface, &mut links);
    }
    if with_announced {
        for (net, metric) in machine.announced_as(AnnounceAs::Stub) {
            if let IpNet::V4(net) = net {
                links.push(stub(*net, metric));
            }
        }
    }
    machine.originator.order(&mut links);
    RouterBody { flags: if machine.is_boundary(kind) { FLAG_EXTERNAL } else { 0 }, links }
}

/// Sections 12.4.4 and RFC 3101 section 2.4: each external prefix once for all normal areas, and once for each NSSA.
fn add_external_lsas(machine: &Machine<V2>, wanted: &mut Wanted<V2>) {
    let externals: Vec<(Ipv4Net, Metric, ExternalConfig)> = machine
        .announced_externals()
        .filter_map(|(net, metric, external)| match net {
            IpNet::V4(net) => Some((*net, metric, external)),
            IpNet::V6(_) => None,
        })
        .collect();
    if externals.is_empty() {
        return;
    }
    let ids = link_state_ids(externals.iter().map(|(net, ..)| *net));
    let router = machine.config.router_id;
    let mut add = |scope, kind, options, forwarding| {
        for (net, metric, external) in &externals {
            let Some(id) = ids.get(net) else { continue };
            let body = external_body(*net, *metric, *external, forwarding);
            wanted.insert((scope, LsaKey { kind, id: *id, router }), (options, body.emit()));
        }
    };
    let normal = machine.has_normal_area();
    if normal {
        add(Scope::Domain, EXTERNAL, OPTION_E, Ipv4Addr::UNSPECIFIED);
    }
    for area in machine.nssas() {
        let forwarding = forwarding_address(machine, area);
        // Those outside hear of it by the type 5, where we send one: "the P-bit must be reset".
        let options = if normal || forwarding.is_none() { 0 } else { OPTION_NP };
        add(Scope::Area(area), NSSA, options, forwarding.unwrap_or(Ipv4Addr::UNSPECIFIED));
    }
}

fn external_body(
    net: Ipv4Net,
    metric: Metric,
    external: ExternalConfig,
    forwarding: Ipv4Addr,
) -> ExternalBody {
    let type_2 = external.metric_type == MetricType::Two;
    ExternalBody { mask: net.netmask(), type_2, metric: metric.into(), forwarding, tag: external.tag }
}

/// "preference should be given first to the router's internal addresses" (RFC 3101 section 2.3): our router id where
/// we announce it as a host route, else the address of an interface.
fn forwarding_address(machine: &Machine<V2>, area: Ipv4Addr) -> Option<Ipv4Addr> {
    let router = machine.config.router_id;
    let internal = IpNet::from(Ipv4Net::from(router));
    if machine.announced_as(AnnounceAs::Stub).any(|(net, _)| *net == internal) {
        return Some(router);
    }
    machine.forwarding_interfaces(area).find_map(Interface::address)
}

/// Whether an address has no subnet: on a point-to-point network that makes the link unnumbered.
fn is_host(net: &Ipv4Net) -> bool {
    net.prefix_len() == 32
}

fn describe_interface(interface: &Interface<V2>, links: &mut Vec<RouterLink>) {
    let Some(net) = interface.link.address else { return };
    let link = |kind, id, data| RouterLink { kind, id, data, metric: MAX_LINK_METRIC };
    match interface.state {
        InterfaceState::Down => {}
        InterfaceState::PointToPoint => {
            // "For unnumbered point-to-point networks, the Link Data field should specify the interface's MIB-II ifIndex
            // value", and there is no stub link for them (section 12.4.1.1).
            let data = if is_host(&net) { Ipv4Addr::from(interface.link.index) } else { net.addr() };
            let full = interface.full();
            links.extend(full.map(|neighbor| link(LinkKind::PointToPoint, neighbor.router, data)));
            links.extend((!is_host(&net)).then(|| stub(net, interface.config.cost)));
        }
        _ if interface.is_on_transit() => links.push(link(LinkKind::Transit, interface.dr, net.addr())),
        _ => links.push(stub(net, interface.config.cost)),
    }
}

/// Section 12.4.2: the designated router describes the network, once it has a full adjacency.
fn network_lsa(machine: &Machine<V2>, interface: &Interface<V2>) -> Option<(Ipv4Addr, NetworkBody)> {
    let net = interface.link.address?;
    if interface.state != InterfaceState::Dr || !interface.is_on_transit() {
        return None;
    }
    let mut routers: Vec<_> = interface.full().map(|n| n.router).chain([machine.config.router_id]).collect();
    routers.sort_unstable();
    Some((net.addr(), NetworkBody { mask: net.netmask(), routers }))
}

fn stub(net: Ipv4Net, metric: u16) -> RouterLink {
    RouterLink { kind: LinkKind::Stub, id: net.network(), data: net.netmask(), metric }
}
