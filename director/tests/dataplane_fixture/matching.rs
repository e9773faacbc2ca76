//! Which service has a packet, worked out naively: a walk over everything there is.

use std::cell::OnceCell;
use std::net::IpAddr;

use director::dataplane::ServiceAddress;
use director_common::tables::{Address, RangeKey, ServiceEntry, ServiceKey};
use ipnet::IpNet;

/// Everything that services answer on. A class is the index of a prefix here.
#[derive(Debug, Default)]
pub struct Matching {
    rules: Vec<(ServiceAddress, ServiceEntry, bool)>,
    prefixes: Vec<IpNet>,
    classes: Vec<u32>,
    /// By prefix, worked out when first asked for.
    markers: OnceCell<Vec<ServiceEntry>>,
}

fn unmapped(address: &Address) -> IpAddr {
    match address.ipv4() {
        Some(octets) => octets.into(),
        None => address.0.into(),
    }
}

impl Matching {
    pub fn add(&mut self, address: ServiceAddress, entry: ServiceEntry, served: bool) {
        self.rules.push((address, entry, served));
        if !self.prefixes.contains(&address.prefix) {
            self.classes.push(self.prefixes.len() as u32);
            self.prefixes.push(address.prefix);
        }
        self.markers.take();
    }

    /// The longest prefix that has the address.
    pub fn class(&self, address: &Address) -> Option<&u32> {
        let ip = unmapped(address);
        let holds = |class: &&u32| self.prefixes[**class as usize].contains(&ip);
        self.classes.iter().filter(holds).max_by_key(|class| self.prefixes[**class as usize].prefix_len())
    }

    pub fn range(&self, key: &RangeKey) -> Option<&ServiceEntry> {
        let prefix = self.prefixes.get(key.class as usize)?;
        match key.kind {
            ServiceKey::KIND_VIP => {
                let all = || self.prefixes.iter().map(|prefix| self.marker(prefix)).collect::<Vec<_>>();
                self.markers.get_or_init(all).get(key.class as usize)
            }
            ServiceKey::KIND_FRAGMENT => {
                let mut owners = self.owners(prefix, key.protocol);
                let first = owners.next()?;
                owners.all(|(entry, _)| entry == first.0).then_some(first.0)
            }
            _ => self.owner(prefix, key.protocol, u16::from_be_bytes(key.port)).map(|(entry, _)| entry),
        }
    }

    /// The most specific service of a port, and whether it has a real server.
    fn owner(&self, prefix: &IpNet, protocol: u8, port: u16) -> Option<(&ServiceEntry, bool)> {
        self.rules
            .iter()
            .filter(|(rule, ..)| rule.prefix.contains(prefix) && rule.protocol.number() == protocol)
            .filter(|(rule, ..)| (rule.ports.first..=rule.ports.last).contains(&port))
            .min_by_key(|(rule, ..)| (u8::MAX - rule.prefix.prefix_len(), rule.ports.last - rule.ports.first))
            .map(|(_, entry, served)| (entry, *served))
    }

    /// Those of all ports: it changes only where a range begins or ends.
    fn owners(&self, prefix: &IpNet, protocol: u8) -> impl Iterator<Item = (&ServiceEntry, bool)> {
        let edges =
            self.rules.iter().flat_map(|(rule, ..)| [rule.ports.first, rule.ports.last.wrapping_add(1)]);
        let ports: Vec<u16> = edges.filter(|port| *port != 0).chain([1]).collect();
        let prefix = *prefix;
        ports.into_iter().filter_map(move |port| self.owner(&prefix, protocol, port))
    }

    fn marker(&self, prefix: &IpNet) -> ServiceEntry {
        let served = [6, 17].iter().any(|protocol| self.owners(prefix, *protocol).any(|(_, served)| served));
        ServiceEntry { flags: if served { ServiceEntry::FLAG_ECHO } else { 0 }, ..ServiceEntry::default() }
    }
}
