//! From what services answer on to the keys of the look-ups: which service has a packet where several could.
//!
//! The kernel looks in three places (see [`director_common::tables::RangeKey`]), and what it finds first counts. So
//! everything is settled here: a class holds what its prefix has, and of shorter prefixes only the ports that
//! longer ones leave free; exact ports of single addresses are in the hash alone.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use director_common::tables::{
    Address, Config, MAX_CLASSES, MAX_RANGE_KEYS, MAX_SERVICE_KEYS, RangeKey, ServiceKey,
};

use super::maps;
use super::spec::{Ports, Protocol, ServiceAddress, ServiceSpec, SpecError, limit};

/// A prefix of mapped addresses; bits behind its length are zero.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Prefix {
    pub(super) address: Address,
    /// In bits: 128 for a single address of either family.
    pub(super) length: u32,
}

impl Prefix {
    /// The first `length` bits of this one.
    fn shortened(self, length: u32) -> Self {
        let mask = u128::MAX.checked_shl(Address::BITS.saturating_sub(length)).unwrap_or(0);
        let bits = u128::from_be_bytes(self.address.0) & mask;
        Self { address: Address(bits.to_be_bytes()), length }
    }

    fn is_single(self) -> bool {
        self.length == Address::BITS
    }
}

/// A key of either kind.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Key {
    /// Of the hash.
    Exact(ServiceKey),
    /// Of the trie of classes: the key, and how many of its bits count.
    Range(RangeKey, u32),
}

impl Key {
    fn whole(key: RangeKey) -> Self {
        Self::Range(key, RangeKey::BITS)
    }

    /// Whether it marks a VIP, and so leads to no service.
    pub(super) fn is_marker(&self) -> bool {
        let (Self::Exact(ServiceKey { kind, .. }) | Self::Range(RangeKey { kind, .. }, _)) = self;
        *kind == ServiceKey::KIND_VIP
    }

    /// Whether it has all ports of one address.
    pub(super) fn is_any_port(&self) -> bool {
        matches!(self, Self::Exact(key) if key.kind == ServiceKey::KIND_SERVICE && key.port == 0)
    }
}

/// Every key that a list of services needs.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Keys {
    /// Those that lead to a service, by its place in the list.
    pub(super) services: Vec<Vec<Key>>,
    /// Those that mark VIPs, and whether any service there has a real server.
    pub(super) vips: BTreeMap<Key, bool>,
    /// The class of each prefix that has one.
    pub(super) classes: BTreeMap<Prefix, u32>,
}

impl Keys {
    /// Where the program has to look for all of this, as flags of the settings.
    pub(super) fn look_ups(&self) -> u32 {
        look_ups(self.services.iter().flatten(), !self.classes.is_empty())
    }
}

/// Where the program has to look for these keys, as flags of the settings.
pub(super) fn look_ups<'a>(mut keys: impl Iterator<Item = &'a Key>, classes: bool) -> u32 {
    let any_port = if keys.any(Key::is_any_port) { Config::FLAG_ANY_PORT } else { 0 };
    if classes { any_port | Config::FLAG_CLASSES } else { any_port }
}

/// What a service has of a prefix and a protocol.
#[derive(Clone, Copy, Debug)]
struct Rule {
    ports: Ports,
    /// The service's place in the list.
    service: usize,
}

/// All rules of one prefix, by protocol; wider ranges before those within them.
type Rules = BTreeMap<Protocol, Vec<Rule>>;

/// Works out the keys. A prefix that has a class `in_force` keeps it.
pub(super) fn compile(
    services: &[ServiceSpec<'_>],
    in_force: &BTreeMap<Prefix, u32>,
) -> Result<Keys, SpecError> {
    let prefixes = gather(services)?;
    let served: Vec<bool> = services.iter().map(ServiceSpec::is_served).collect();
    let mut compiler = Compiler {
        keys: Keys { services: vec![Vec::new(); services.len()], ..Keys::default() },
        served,
        lengths: prefixes.keys().map(|prefix| prefix.length).collect(),
        prefixes: &prefixes,
    };
    compiler.keys.classes = classes(&prefixes, in_force);
    limit("address prefixes and addresses with port ranges", compiler.keys.classes.len(), MAX_CLASSES)?;
    for prefix in prefixes.keys() {
        compiler.add(*prefix);
    }
    let keys = compiler.keys;
    let all = keys.services.iter().flatten().chain(keys.vips.keys());
    let (exact, ranges): (Vec<&Key>, Vec<&Key>) = all.partition(|key| matches!(key, Key::Exact(_)));
    limit("service addresses", exact.len(), MAX_SERVICE_KEYS)?;
    limit("ports of ranges and prefixes", ranges.len(), MAX_RANGE_KEYS)?;
    Ok(keys)
}

/// The prefixes that services name, each with its rules.
fn gather(services: &[ServiceSpec<'_>]) -> Result<BTreeMap<Prefix, Rules>, SpecError> {
    let mut prefixes: BTreeMap<Prefix, Rules> = BTreeMap::new();
    for (place, service) in services.iter().enumerate() {
        for address in &service.addresses {
            let prefix = prefix(service.name, address)?;
            let Ports { first, last } = address.ports;
            if first > last || (first == 0 && address.ports != Ports::ALL) {
                return Err(SpecError::Ports { service: service.name.to_owned(), ports: address.ports });
            }
            let rules = prefixes.entry(prefix).or_default().entry(address.protocol).or_default();
            rules.push(Rule { ports: address.ports, service: place });
        }
    }
    for (prefix, rules) in &mut prefixes {
        for (protocol, rules) in rules {
            nest(rules).map_err(|pair| clash(services, *prefix, *protocol, pair))?;
        }
    }
    Ok(prefixes)
}

fn prefix(service: &str, address: &ServiceAddress) -> Result<Prefix, SpecError> {
    let wrong =
        |reason| Err(SpecError::Prefix { service: service.to_owned(), prefix: address.prefix, reason });
    if address.prefix.trunc() != address.prefix {
        return wrong("bits behind its length are set");
    }
    let length = u32::from(address.prefix.prefix_len());
    let (ip, length) = match address.prefix.addr() {
        IpAddr::V4(ip) => (IpAddr::V4(ip), length + 96),
        IpAddr::V6(ip) => (IpAddr::V6(ip), length),
    };
    let prefix = Prefix { address: maps::address(ip), length };
    let mapped = Prefix { address: Address::from_ipv4([0; 4]), length: 96 };
    let overlap = length.min(mapped.length);
    if address.prefix.addr().is_ipv6() && prefix.shortened(overlap) == mapped.shortened(overlap) {
        return wrong("it has IPv4 addresses in the form of IPv6's (::ffff:0:0/96)");
    }
    Ok(prefix)
}

/// Sorts rules so that a wider range is before those within it; the two that are equal or cross, if any.
fn nest(rules: &mut [Rule]) -> Result<(), (Rule, Rule)> {
    rules.sort_by_key(|rule| (rule.ports.first, std::cmp::Reverse(rule.ports.last)));
    let mut around: Vec<Rule> = Vec::new();
    for rule in rules.iter() {
        while around.last().is_some_and(|outer| outer.ports.last < rule.ports.first) {
            around.pop();
        }
        if let Some(outer) = around.last()
            && (outer.ports == rule.ports || outer.ports.last < rule.ports.last)
        {
            return Err((*rule, *outer));
        }
        around.push(*rule);
    }
    Ok(())
}

fn clash(
    services: &[ServiceSpec<'_>],
    prefix: Prefix,
    protocol: Protocol,
    (one, two): (Rule, Rule),
) -> SpecError {
    let name = |rule: Rule| services.get(rule.service).map_or_else(String::new, |it| it.name.to_owned());
    let (service, other) = (name(one), name(two));
    let ip = maps::ip_address(prefix.address);
    let length = if ip.is_ipv4() { prefix.length - 96 } else { prefix.length };
    let net = u8::try_from(length).ok().and_then(|length| ipnet::IpNet::new(ip, length).ok());
    let prefix = net.unwrap_or_else(|| ip.into());
    let address = ServiceAddress { prefix, protocol, ports: one.ports };
    if one.ports == two.ports {
        SpecError::DuplicateAddress { service, other, address }
    } else {
        SpecError::Overlap { service, address, other, ports: two.ports }
    }
}

/// Gives a class to each prefix of several addresses and each address with ranges of ports.
fn classes(prefixes: &BTreeMap<Prefix, Rules>, in_force: &BTreeMap<Prefix, u32>) -> BTreeMap<Prefix, u32> {
    let taken: BTreeSet<u32> = in_force.values().copied().collect();
    let mut free = (0_u32..).filter(|class| !taken.contains(class));
    prefixes
        .iter()
        .filter(|(prefix, rules)| !prefix.is_single() || rules.values().any(|rules| has_range(rules)))
        .filter_map(|(prefix, _)| {
            let class = in_force.get(prefix).copied().or_else(|| free.next())?;
            Some((*prefix, class))
        })
        .collect()
}

fn has_range(rules: &[Rule]) -> bool {
    rules.iter().any(|rule| rule.ports.is_range())
}

struct Compiler<'a> {
    prefixes: &'a BTreeMap<Prefix, Rules>,
    /// Lengths that occur among them.
    lengths: BTreeSet<u32>,
    /// Whether each service has a real server.
    served: Vec<bool>,
    keys: Keys,
}

impl Compiler<'_> {
    /// Adds the keys of one prefix.
    fn add(&mut self, prefix: Prefix) {
        // Its own rules, then those of the prefixes around it, the longest first.
        let around = self.lengths.range(..prefix.length).rev();
        let lengths = std::iter::once(&prefix.length).chain(around);
        let layers: Vec<&Rules> =
            lengths.filter_map(|length| self.prefixes.get(&prefix.shortened(*length))).collect();
        let class = self.keys.classes.get(&prefix).copied();
        let mut is_served = false;
        for protocol in [Protocol::Tcp, Protocol::Udp] {
            let layers: Vec<&[Rule]> =
                layers.iter().filter_map(|rules| rules.get(&protocol)).map(Vec::as_slice).collect();
            let own = self.prefixes.get(&prefix).and_then(|rules| rules.get(&protocol));
            let own = own.map(Vec::as_slice).unwrap_or_default();
            let effective = effective(&layers);
            let owners = owners(&effective);
            is_served |= owners.iter().any(|owner| self.served.get(*owner) == Some(&true));
            // A fragment has no port: it can be told whose it is only where one service has the address alone.
            if let (Some(owner), 1) = (owners.first(), owners.len()) {
                let key = match class {
                    Some(class) if !prefix.is_single() => {
                        Key::whole(RangeKey::fragment(class, protocol.number()))
                    }
                    _ => Key::Exact(ServiceKey::fragment(prefix.address, protocol.number())),
                };
                self.push(*owner, key);
            }
            if prefix.is_single() {
                self.add_exact(prefix, protocol, own);
            }
            if let Some(class) = class {
                self.add_class(class, protocol, &effective);
            }
        }
        let marker = match class {
            Some(class) if !prefix.is_single() => Key::whole(RangeKey::vip(class)),
            _ => Key::Exact(ServiceKey::vip(prefix.address)),
        };
        self.keys.vips.insert(marker, is_served);
    }

    /// Single ports, and all ports where no range comes before them, go into the hash.
    fn add_exact(&mut self, prefix: Prefix, protocol: Protocol, own: &[Rule]) {
        for rule in own {
            let port = match rule.ports.single() {
                Some(port) => port,
                None if rule.ports == Ports::ALL && !has_range(own) => 0,
                None => continue,
            };
            let key = ServiceKey::service(prefix.address, protocol.number(), port);
            self.push(rule.service, Key::Exact(key));
        }
    }

    fn add_class(&mut self, class: u32, protocol: Protocol, effective: &[Rule]) {
        // Where a range and one within it share a block, the latter comes later and has it.
        let mut owners: BTreeMap<Key, usize> = BTreeMap::new();
        for rule in effective {
            for (port, bits) in blocks(rule.ports) {
                let key = RangeKey::port(class, protocol.number(), port);
                owners.insert(Key::Range(key, RangeKey::BITS - 16 + bits), rule.service);
            }
        }
        for (key, owner) in owners {
            self.push(owner, key);
        }
    }

    fn push(&mut self, service: usize, key: Key) {
        if let Some(keys) = self.keys.services.get_mut(service) {
            keys.push(key);
        }
    }
}

/// What counts of the rules of a prefix and those around it: of each the ports that no prefix before it has.
fn effective(layers: &[&[Rule]]) -> Vec<Rule> {
    let mut taken: Vec<Ports> = Vec::new();
    let mut effective = Vec::new();
    for rules in layers {
        for rule in *rules {
            effective.extend(without(rule.ports, &taken).map(|ports| Rule { ports, ..*rule }));
        }
        taken.extend(rules.iter().map(|rule| rule.ports));
        taken = merged(taken);
        if taken.first() == Some(&Ports::ALL) {
            break;
        }
    }
    effective
}

/// The services that have a port by these rules: not one whose range those within it, which come later, cover.
fn owners(effective: &[Rule]) -> BTreeSet<usize> {
    let mut owners = BTreeSet::new();
    let mut later: BTreeSet<Ports> = BTreeSet::new();
    for rule in effective.iter().rev() {
        let seen = match rule.ports.single() {
            Some(_) => !later.contains(&rule.ports),
            None => {
                let inner = later.iter().filter(|other| rule.ports.contains(**other)).copied().collect();
                without(rule.ports, &merged(inner)).next().is_some()
            }
        };
        if seen {
            owners.insert(rule.service);
        }
        later.insert(rule.ports);
    }
    owners
}

/// What remains of `ports` without `taken`, which is in order and apart.
fn without(ports: Ports, taken: &[Ports]) -> impl Iterator<Item = Ports> {
    let end = u32::from(ports.last) + 1;
    let mut from = u32::from(ports.first);
    let mut gaps = Vec::new();
    for hole in taken {
        let (first, after) = (u32::from(hole.first), u32::from(hole.last) + 1);
        if first > from {
            gaps.push((from, first.min(end)));
        }
        from = from.max(after);
    }
    gaps.push((from, end));
    let port = |port: u32| u16::try_from(port).ok();
    gaps.into_iter()
        .filter(|(from, end)| from < end)
        .filter_map(move |(from, end)| Some(Ports { first: port(from)?, last: port(end - 1)? }))
}

/// The same ports, in order and apart.
fn merged(mut ports: Vec<Ports>) -> Vec<Ports> {
    ports.sort_unstable();
    let mut merged: Vec<Ports> = Vec::new();
    for next in ports {
        match merged.last_mut() {
            Some(last) if u32::from(next.first) <= u32::from(last.last) + 1 => {
                last.last = last.last.max(next.last);
            }
            _ => merged.push(next),
        }
    }
    merged
}

/// The fewest prefixes of port numbers that make up a range: first port and length in bits.
fn blocks(ports: Ports) -> impl Iterator<Item = (u16, u32)> {
    let end = u32::from(ports.last) + 1;
    let mut at = u32::from(ports.first);
    std::iter::from_fn(move || {
        let left = end.checked_sub(at).filter(|left| *left > 0)?;
        // As large as its place allows, and no larger than what is left.
        let size = at.trailing_zeros().min(left.ilog2()).min(16);
        let block = (u16::try_from(at).ok()?, 16 - size);
        at += 1 << size;
        Some(block)
    })
}

#[cfg(test)]
mod tests;
