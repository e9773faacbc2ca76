//! From whom a packet must come to be an answer by NAT, and as whose it leaves.
//!
//! A real server's address, protocol and port say by themselves which VIP and port its answers are to come from. That
//! is what lets any director send back what another one has sent there, with nothing remembered; and it is why no two
//! services with NAT may use the same port of the same real server ([`conflict`]).

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::ops::RangeInclusive;

use director_common::tables::{MAX_REPLY_KEYS, ReplyEntry, ReplyKey};

use super::Dataplane;
use super::error::ApplyError;
use super::maps;
use super::plan::{Block, Server};
use super::spec::{Forwarding, Ports, RealSpec, ServiceAddress, ServiceSpec, SpecError, limit};

/// That a service with NAT sends packets of one of its addresses to a real server.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct ReplyClaim {
    /// The real server.
    pub real: IpAddr,
    /// IP protocol number.
    pub protocol: u8,
    /// Its port; 0 for the packet's own.
    pub port: u16,
    /// The VIP.
    pub vip: IpAddr,
    /// The service's ports.
    pub ports: Ports,
}

impl ReplyClaim {
    /// The real server's ports that answers come from.
    fn from(&self) -> Ports {
        if self.port == 0 { self.ports } else { Ports::one(self.port) }
    }

    /// Whether an answer from a port of both would leave alike.
    fn agrees(&self, other: &Self) -> bool {
        let leaves = |claim: &Self| if claim.port == 0 { None } else { claim.ports.single() };
        self.vip == other.vip
            && match (leaves(self), leaves(other)) {
                (Some(one), Some(another)) => one == another,
                (Some(mapped), None) => mapped == self.port,
                (None, Some(mapped)) => mapped == other.port,
                (None, None) => true,
            }
    }

    /// The ports of its keys: every port has one of its own, unless it is all of them.
    /// How many keys of the kernel's map its answers take.
    pub(crate) fn keys_taken(&self) -> usize {
        self.key_ports().len()
    }

    fn key_ports(&self) -> RangeInclusive<u16> {
        let Ports { first, last } = self.from();
        if self.from() == Ports::ALL { 0..=0 } else { first..=last }
    }

    /// The keys, each with the port that its answers leave by; 0 for the packet's own.
    fn keys(&self) -> impl Iterator<Item = (ReplyKey, u16)> {
        let real = maps::address(self.real);
        let leaves = if self.port == 0 { 0 } else { self.ports.single().unwrap_or(0) };
        self.key_ports().map(move |port| (ReplyKey::of(real, self.protocol, port), leaves))
    }
}

/// Two claims of which a packet could be an answer to either, by their places: the later one second.
pub fn conflict(claims: &[ReplyClaim]) -> Option<(usize, usize)> {
    let mut order: Vec<usize> = (0..claims.len()).collect();
    let rank =
        |place: &usize| claims.get(*place).map(|claim| (claim.real, claim.protocol, claim.from(), *place));
    order.sort_by_key(rank);
    // Those whose ports may still hold the next one's.
    let mut around: Vec<(usize, &ReplyClaim)> = Vec::new();
    for place in order {
        let Some(claim) = claims.get(place) else { continue };
        let server = (claim.real, claim.protocol);
        around.retain(|(_, other)| {
            (other.real, other.protocol) == server && other.from().last >= claim.from().first
        });
        if let Some((other, _)) = around.iter().find(|(_, other)| !claim.agrees(other)) {
            return Some((place.min(*other), place.max(*other)));
        }
        around.push((place, claim));
    }
    None
}

/// The claim of one address of a service on one of its real servers.
fn claim(address: &ServiceAddress, real: IpAddr, port: u16) -> ReplyClaim {
    let (vip, protocol) = (address.prefix.addr(), address.protocol.number());
    ReplyClaim { real, protocol, port, vip, ports: address.ports }
}

/// Checks what NAT, and full NAT, ask of a service alone.
pub(super) fn check_service(service: &ServiceSpec<'_>) -> Result<(), SpecError> {
    if !matches!(service.forwarding, Forwarding::Nat | Forwarding::FullNat) {
        return Ok(());
    }
    let name = || service.name.to_owned();
    for address in &service.addresses {
        let is_single = address.prefix.prefix_len() == address.prefix.max_prefix_len();
        if !is_single && service.forwarding == Forwarding::Nat {
            return Err(SpecError::NatPrefix { service: name(), prefix: address.prefix });
        }
        let is_v4 = address.prefix.addr().is_ipv4();
        if let Some(real) = service.reals.iter().find(|real| real.address.is_ipv4() != is_v4) {
            return Err(SpecError::NatFamily { service: name(), address: real.address, wanted: *address });
        }
        let many = |real: &&RealSpec| real.port != 0 && address.ports.single().is_none();
        if let Some(real) = service.reals.iter().find(many) {
            let (address, port, wanted) = (real.address, real.port, *address);
            return Err(SpecError::Port { service: name(), address, port, wanted });
        }
    }
    Ok(())
}

/// Checks what NAT asks of all services together.
pub(super) fn check(services: &[ServiceSpec<'_>]) -> Result<(), SpecError> {
    let (mut claims, mut names) = (Vec::new(), Vec::new());
    for service in services.iter().filter(|service| service.forwarding == Forwarding::Nat) {
        for address in &service.addresses {
            let present = service.reals.iter().filter(|real| !real.is_left);
            claims.extend(present.map(|real| claim(address, real.address, real.port)));
            names.resize(claims.len(), service.name);
        }
    }
    if let Some((one, other)) = conflict(&claims)
        && let (Some(claim), Some(service), Some(other)) = (claims.get(one), names.get(one), names.get(other))
    {
        let (service, other) = ((*service).to_owned(), (*other).to_owned());
        return Err(SpecError::NatConflict { service, other, address: claim.real, ports: claim.from() });
    }
    let markers: BTreeSet<IpAddr> = claims.iter().map(|claim| claim.real).collect();
    let keys: usize = claims.iter().map(|claim| claim.key_ports().len()).sum();
    limit("ports of real servers with NAT", keys + markers.len(), MAX_REPLY_KEYS)
}

/// Where the answers of a service's servers go: those that are leaving, or the others.
fn replies<'a>(
    spec: &'a ServiceSpec<'_>,
    service: u32,
    block: Block,
    servers: &'a BTreeMap<u16, Server>,
    leaving: bool,
) -> impl Iterator<Item = (ReplyKey, ReplyEntry)> {
    let nat = spec.forwarding == Forwarding::Nat;
    let left = |server: &Server| {
        let same = |real: &&RealSpec| (real.address, real.port) == (server.address, server.port);
        server.is_leaving || spec.reals.iter().find(same).is_some_and(|real| real.is_left)
    };
    let servers = servers.iter().filter(move |(_, server)| nat && left(server) == leaving);
    servers.flat_map(move |(position, server)| {
        let real = block.base + u32::from(*position);
        let of_address = move |address: &ServiceAddress| {
            let (claim, vip) =
                (claim(address, server.address, server.port), maps::address(address.prefix.addr()));
            let entry = move |port| ReplyEntry { vip, port, reserved: 0, service, real };
            claim.keys().map(|(key, port)| (key, entry(port))).collect::<Vec<_>>()
        };
        let marker = (ReplyKey::marker(maps::address(server.address)), ReplyEntry::default());
        spec.addresses.iter().flat_map(of_address).chain([marker])
    })
}

impl Dataplane {
    /// Makes known whose answers those of a service's servers are, before a packet is sent to them.
    pub(super) fn add_replies(
        &mut self,
        spec: &ServiceSpec<'_>,
        service: u32,
        block: Block,
        servers: &BTreeMap<u16, Server>,
    ) -> Result<(), ApplyError> {
        for (key, entry) in replies(spec, service, block, servers, false) {
            self.set_reply(key, entry)?;
        }
        Ok(())
    }

    /// Makes the answers that are known exactly those of the servers that have a position now. Where a server that
    /// leaves one service has come to another, its answers are the latter's.
    pub(super) fn settle_replies(&mut self, services: &[ServiceSpec<'_>]) -> Result<(), ApplyError> {
        let mut wanted = BTreeMap::new();
        for leaving in [true, false] {
            for spec in services {
                let Some(placement) = self.plan.services.get(spec.name) else { continue };
                wanted.extend(replies(spec, placement.index, placement.block, &placement.servers, leaving));
            }
        }
        for (key, entry) in &wanted {
            self.set_reply(*key, *entry)?;
        }
        self.retain_replies(|key, _| wanted.contains_key(key))
    }

    /// Forgets the answers of servers that have been let go.
    pub(super) fn prune_replies(&mut self) -> Result<(), ApplyError> {
        if self.plan.replies.is_empty() {
            return Ok(());
        }
        let places = self.plan.services.values().flat_map(|placement| {
            placement.servers.keys().map(|position| placement.block.base + u32::from(*position))
        });
        let places: BTreeSet<u32> = places.collect();
        self.retain_replies(|key, entry| key.protocol == 0 || places.contains(&entry.real))?;
        let keys = self.plan.replies.keys().filter(|key| key.protocol != 0);
        let known: BTreeSet<_> = keys.map(|key| key.address).collect();
        self.retain_replies(|key, _| known.contains(&key.address))
    }

    fn set_reply(&mut self, key: ReplyKey, entry: ReplyEntry) -> Result<(), ApplyError> {
        if self.plan.replies.get(&key) != Some(&entry) {
            self.maps.set_reply(key, entry)?;
            self.plan.replies.insert(key, entry);
        }
        Ok(())
    }

    fn retain_replies(&mut self, keeps: impl Fn(&ReplyKey, &ReplyEntry) -> bool) -> Result<(), ApplyError> {
        let stale = self.plan.replies.iter().filter(|(key, entry)| !keeps(key, entry));
        let stale: Vec<ReplyKey> = stale.map(|(key, _)| *key).collect();
        for key in stale {
            self.maps.remove_reply(key)?;
            self.plan.replies.remove(&key);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn claim(real: &str, port: u16, vip: &str, ports: Ports) -> ReplyClaim {
        let ip = |text: &str| text.parse().expect("address");
        ReplyClaim { real: ip(real), protocol: 6, port, vip: ip(vip), ports }
    }

    #[test]
    fn claims_conflict_where_an_answer_could_be_either_ones() {
        const ONE: &str = "203.0.113.1";
        const TWO: &str = "203.0.113.2";
        let of = |port, vip, first, last| claim("10.0.0.1", port, vip, Ports { first, last });
        let rows = [
            ("one port, two VIPs", of(80, ONE, 80, 80), of(80, TWO, 80, 80), true),
            ("one port, two ports of the VIP", of(80, ONE, 80, 80), of(80, ONE, 81, 81), true),
            ("a port each", of(80, ONE, 80, 80), of(81, TWO, 80, 80), false),
            ("a range and a port of it", of(0, ONE, 80, 89), of(85, TWO, 443, 443), true),
            ("a range and a port beside", of(0, ONE, 80, 89), of(90, TWO, 443, 443), false),
            ("a range and its own port", of(0, ONE, 80, 89), of(85, ONE, 85, 85), false),
            ("a range and a port that is another", of(0, ONE, 80, 89), of(85, ONE, 99, 99), true),
            ("all ports and one", of(0, ONE, 0, 65_535), of(80, TWO, 80, 80), true),
            ("all ports and one of them", of(0, ONE, 0, 65_535), of(80, ONE, 80, 80), false),
            ("all ports of two VIPs", of(0, ONE, 0, 65_535), of(0, TWO, 0, 65_535), true),
        ];
        for (what, one, other, expected) in rows {
            assert_eq!(conflict(&[one, other]), expected.then_some((0, 1)), "{what}");
            assert_eq!(conflict(&[other, one]), expected.then_some((0, 1)), "{what}, the other way round");
            let elsewhere = ReplyClaim { real: "10.0.0.2".parse().expect("address"), ..other };
            assert_eq!(conflict(&[one, elsewhere]), None, "{what}, on two servers");
            assert_eq!(conflict(&[one, ReplyClaim { protocol: 17, ..other }]), None, "{what}, two protocols");
        }
    }
}
