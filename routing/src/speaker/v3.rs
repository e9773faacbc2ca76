//! What is particular to version 3 (RFC 5340): routers speak over link-local addresses and name each other by
//! router id, links by interface id; topology and prefixes are LSAs apart.

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
    InterfaceId, Link, Machine, Refusal,
    interface::Interface,
    lsdb::Scope,
    origination::Wanted,
    route::External,
    spf::{Graph, NetworkId},
    version::Protocol,
};
use crate::{
    config::{AreaKind, Config, InterfaceConfig, Network},
    packet::{
        OPTION_E,
        v3::{FloodingScope, INTRA_AREA_PREFIX, LsType, Lsa, LsaKey, OPTION_R, OPTION_V6, V3, body::LsaBody},
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
        origination::wanted(machine, with_announced)
    }

    fn network_id(interface: &Interface<Self>) -> NetworkId {
        NetworkId { router: interface.dr, id: designated_interface(interface).into() }
    }

    fn graph(machine: &Machine<Self>, area: Ipv4Addr) -> Graph {
        graph::graph(machine, area)
    }

    fn externals(machine: &Machine<Self>) -> Vec<External> {
        graph::externals(machine)
    }
}
