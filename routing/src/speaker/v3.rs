//! What is particular to version 3 (RFC 5340): routers speak over link-local addresses and name each other by
//! router id, links by interface id; topology and prefixes are LSAs apart.

mod description;
mod graph;
mod origination;

use std::{
    collections::BTreeSet,
    net::{Ipv4Addr, Ipv6Addr},
};

use ipnet::{IpNet, Ipv6Net};
use serde::{Deserialize, Serialize};

use self::origination::designated_interface;
use super::{
    Extent, InterfaceId, Machine, Refusal,
    calculation::External,
    interface::Interface,
    lsdb::Scope,
    origination::Wanted,
    spf::{Graph, NetworkId, Summary},
    version::Protocol,
};
use crate::{
    config::{AreaKind, Config, InterfaceConfig, Network},
    packet::{
        OPTION_E, OPTION_NP, ParseError,
        grace::GraceBody,
        v3::{
            EXTERNAL, FloodingScope, GRACE, INTER_AREA_PREFIX, INTER_AREA_ROUTER, INTRA_AREA_PREFIX, LINK,
            LsType, Lsa, LsaKey, NETWORK, NSSA, OPTION_R, OPTION_V6, ROUTER, V3,
            body::{LinkKind, LsaBody},
        },
    },
};

/// Link state id of the Intra-Area-Prefix-LSA with the prefixes of our links; announced prefixes follow.
const LINK_PREFIXES: u32 = 0;

/// The IPv6 addresses of a link.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Attached6 {
    /// What packets are sent from.
    pub link_local: Ipv6Addr,
    /// Prefixes of the other addresses, truncated.
    pub prefixes: BTreeSet<Ipv6Net>,
    /// The other addresses themselves.
    pub addresses: BTreeSet<Ipv6Addr>,
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

    fn mark(interface: &Interface<Self>) -> u32 {
        interface.link.index
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
            AreaKind::Stub | AreaKind::TotallyStubby => 0,
            AreaKind::Nssa => OPTION_NP.into(),
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

    /// "an LSA whose LS type is unrecognized can only be flooded into/throughout a stub area if both a) the LSA has
    /// area or link-local flooding scope and b) the LSA has U-bit set to 0" (section 2.10); in an NSSA likewise.
    fn belongs(kind: LsType, area: AreaKind) -> bool {
        match kind {
            NSSA => area == AreaKind::Nssa,
            _ if area == AreaKind::Normal => true,
            _ if kind.scope() == Some(FloodingScope::Domain) => false,
            _ => kind.is_known() || !kind.is_flooded_unknown(),
        }
    }

    fn extent(kind: LsType, own: bool) -> Option<Extent> {
        match kind {
            ROUTER => (!own).then_some(Extent::Full),
            NETWORK | INTRA_AREA_PREFIX | LINK => Some(Extent::Full),
            INTER_AREA_PREFIX | INTER_AREA_ROUTER => Some(Extent::InterArea),
            EXTERNAL | NSSA => (!own).then_some(Extent::Externals),
            _ => None,
        }
    }

    fn is_passed_over(kind: LsType) -> bool {
        !kind.is_known() && kind.scope().is_some()
    }

    fn is_for(_: LsType, _: u32) -> bool {
        true
    }

    fn judge(lsa: &Lsa) -> Result<(), (Refusal, String)> {
        LsaBody::parse(lsa).map(drop).map_err(|error| (Refusal::LsaBody, error.to_string()))
    }

    fn grace(lsa: &Lsa) -> Option<Result<GraceBody, ParseError>> {
        (lsa.header.key.kind == GRACE).then(|| GraceBody::parse(lsa.body()))
    }

    fn grace_lsas(machine: &Machine<Self>, period: u32) -> Wanted<Self> {
        let router = machine.config.router_id;
        let lsa = |(id, interface): (InterfaceId, &Interface<Self>)| {
            let key = LsaKey { kind: GRACE, id: interface.link.index.into(), router };
            ((Scope::Link(id), key), ((), GraceBody::of_restart(period, None).emit()))
        };
        machine.interfaces_up().filter(|(_, interface)| interface.is_active()).map(lsa).collect()
    }

    fn kind_name(kind: LsType) -> &'static str {
        description::kind_name(kind)
    }

    fn describe(lsa: &Lsa) -> Vec<String> {
        description::describe(lsa)
    }

    fn is_own(machine: &Machine<Self>, key: &LsaKey) -> bool {
        key.router == machine.config.router_id
    }

    /// Gives every announced prefix a link state id of its own, so that each has an LSA with its own pace. A
    /// prefix keeps its id; one that is free again must not name an LSA that is still on its way out.
    fn note_announced(machine: &mut Machine<Self>) {
        let announced = &machine.announced;
        machine.prefix_ids.retain(|prefix, _| announced.contains_key(prefix));
        let of_prefixes = [INTRA_AREA_PREFIX, EXTERNAL, NSSA];
        let prefix_lsa = |key: &LsaKey| of_prefixes.contains(&key.kind).then(|| u32::from(key.id));
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
        origination::wanted(machine, with_announced)
    }

    fn is_kept(kind: LsType) -> bool {
        kind == INTRA_AREA_PREFIX
    }

    fn is_linked(lsa: &Lsa, router: Ipv4Addr) -> bool {
        let Ok(LsaBody::Router(body)) = LsaBody::parse(lsa) else { return false };
        body.links.iter().any(|link| link.kind == LinkKind::PointToPoint && link.neighbor == router)
    }

    fn network_id(interface: &Interface<Self>) -> NetworkId {
        NetworkId { router: interface.dr, id: designated_interface(interface).into() }
    }

    fn graph(machine: &Machine<Self>, area: Ipv4Addr) -> Graph {
        graph::graph(machine, area)
    }

    fn summaries(machine: &Machine<Self>, area: Ipv4Addr) -> Vec<(Ipv4Addr, Summary, u32)> {
        graph::summaries(machine, area)
    }

    fn externals(machine: &Machine<Self>) -> Vec<External> {
        graph::externals(machine)
    }
}
