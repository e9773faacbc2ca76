//! Announced prefixes as destinations outside the domain: AS-external-LSAs (RFC 2328 section 12.4.4), and
//! NSSA-LSAs in areas that have none (RFC 3101 section 2.4).

use std::{
    collections::{BTreeMap, BTreeSet},
    net::Ipv4Addr,
};

use ipnet::{IpNet, Ipv4Net};

use super::{Interface, InterfaceState, Machine, Protocol};
use crate::{
    announce::AnnounceAs,
    config::{AreaKind, ExternalConfig, Metric},
};

impl<V: Protocol> Machine<V> {
    /// Announced prefixes of one kind, with their metrics.
    pub(super) fn announced_as(&self, kind: AnnounceAs) -> impl Iterator<Item = (&IpNet, Metric)> {
        self.announced
            .iter()
            .filter(move |(_, announcement)| announcement.kind == kind)
            .map(|(prefix, announcement)| (prefix, announcement.metric))
    }

    /// Announced externals, with their metrics and what else their LSAs say.
    pub(super) fn announced_externals(&self) -> impl Iterator<Item = (&IpNet, Metric, ExternalConfig)> {
        let externals = self.announced.iter().filter(|(_, said)| said.kind == AnnounceAs::External);
        externals.map(|(net, said)| (net, said.metric, said.external.unwrap_or(self.config.external)))
    }

    /// Whether AS-external-LSAs have an area to be flooded in.
    pub(super) fn has_normal_area(&self) -> bool {
        self.interfaces_up().any(|(_, interface)| interface.config.area_kind == AreaKind::Normal)
    }

    /// NSSAs that we have an interface in.
    pub(super) fn nssas(&self) -> BTreeSet<Ipv4Addr> {
        let nssa = self.interfaces_up().filter(|(_, i)| i.config.area_kind == AreaKind::Nssa);
        nssa.map(|(_, interface)| interface.config.area).collect()
    }

    /// Whether the Router-LSA of an area says that we are an AS boundary router. Once we were one it stays so: the
    /// withdrawal of the last external prefix shall not cost everybody a calculation of the tree.
    pub(super) fn is_boundary(&self, kind: AreaKind) -> bool {
        self.boundary && matches!(kind, AreaKind::Normal | AreaKind::Nssa)
    }

    /// Interfaces of an area in the order in which they offer a forwarding address: "preference should be given to
    /// the router's active OSPF stub network addresses" (RFC 3101 section 2.3).
    pub(super) fn forwarding_interfaces(&self, area: Ipv4Addr) -> impl Iterator<Item = &Interface<V>> {
        let stub = |interface: &Interface<V>| interface.state == InterfaceState::Passive;
        let here = move || self.interfaces_up().map(|(_, i)| i).filter(move |i| i.config.area == area);
        here().filter(move |i| stub(i)).chain(here().filter(move |i| !stub(i)))
    }

    /// Whether an address belongs to a VIP, which every director has.
    pub(super) fn is_protected(&self, address: IpNet) -> bool {
        self.protected.iter().any(|vip| vip.contains(&address))
    }
}

/// Link state ids of external prefixes: their network address, or where two prefixes share it another address
/// inside the shorter one, from its last downwards (RFC 2328 appendix E). A prefix all of whose addresses are
/// taken by longer ones has none, and needs none.
pub(super) fn link_state_ids(prefixes: impl Iterator<Item = Ipv4Net>) -> BTreeMap<Ipv4Net, Ipv4Addr> {
    let mut longest_first: Vec<_> = prefixes.collect();
    longest_first.sort_by_key(|prefix| (std::cmp::Reverse(prefix.prefix_len()), *prefix));
    let mut taken = BTreeSet::new();
    let choose = |prefix: Ipv4Net| {
        let (first, last) = (u32::from(prefix.network()), u32::from(prefix.broadcast()));
        let id = std::iter::once(first).chain((first..=last).rev()).find(|id| taken.insert(*id))?;
        Some((prefix, Ipv4Addr::from(id)))
    };
    longest_first.into_iter().filter_map(choose).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ids(prefixes: &[&str]) -> Vec<(String, String)> {
        let nets = prefixes.iter().map(|text| text.parse::<Ipv4Net>().expect("a prefix"));
        link_state_ids(nets).into_iter().map(|(net, id)| (net.to_string(), id.to_string())).collect()
    }

    fn rows(expected: &[(&str, &str)]) -> Vec<(String, String)> {
        expected.iter().map(|(net, id)| ((*net).to_owned(), (*id).to_owned())).collect()
    }

    /// "…the Link State ID is set to the network's address, with one or more of the network's host bits also set"
    /// (RFC 2328 section 12.1.4).
    #[test]
    fn prefixes_of_one_address_have_ids_of_their_own() {
        assert_eq!(ids(&["203.0.113.10/32"]), rows(&[("203.0.113.10/32", "203.0.113.10")]));
        assert_eq!(
            ids(&["10.0.0.0/8", "10.0.0.0/16", "10.0.0.0/32", "10.0.255.255/32"]),
            rows(&[
                ("10.0.0.0/8", "10.255.255.255"),
                ("10.0.0.0/16", "10.0.255.254"),
                ("10.0.0.0/32", "10.0.0.0"),
                ("10.0.255.255/32", "10.0.255.255"),
            ])
        );
        let covered = ids(&["192.0.2.0/31", "192.0.2.0/32", "192.0.2.1/32"]);
        assert_eq!(covered.len(), 2, "the longer two say all: {covered:?}");
    }
}
