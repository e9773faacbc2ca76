use ipnet::IpNet;
use proptest::prelude::*;

use super::*;
use crate::dataplane::{Datagrams, Forwarding, HashInput, Timeouts};

const NO_SLOTS: &[u16] = &[];

fn service<'a>(name: &'a str, addresses: Vec<ServiceAddress>) -> ServiceSpec<'a> {
    ServiceSpec {
        name,
        addresses,
        hash: HashInput::Source,
        forwarding: Forwarding::DirectReturn,
        reals: vec![],
        slots: NO_SLOTS,
        timeouts: Timeouts::default(),
        datagrams: Datagrams::default(),
        tracking: None,
    }
}

fn address(prefix: &str, first: u16, last: u16) -> ServiceAddress {
    let prefix = prefix.parse().expect("prefix");
    ServiceAddress { prefix, protocol: Protocol::Tcp, ports: Ports { first, last } }
}

/// The look-ups of `decide`, step by step, in what was compiled.
struct Compiled {
    owners: BTreeMap<Key, usize>,
    keys: Keys,
}

impl Compiled {
    fn new(keys: Keys) -> Self {
        let owned = keys.services.iter().enumerate();
        let owners: Vec<(Key, usize)> =
            owned.flat_map(|(place, keys)| keys.iter().map(move |key| (*key, place))).collect();
        let unique: BTreeMap<Key, usize> = owners.iter().copied().collect();
        assert_eq!(unique.len(), owners.len(), "a key leads to one service");
        Self { owners: unique, keys }
    }

    fn class(&self, address: Address) -> Option<u32> {
        let whole = Prefix { address, length: 128 };
        (0..=128).rev().find_map(|length| self.keys.classes.get(&whole.shortened(length)).copied())
    }

    fn owner(&self, address: Address, protocol: Protocol, port: u16) -> Option<usize> {
        let exact = |port| Key::Exact(ServiceKey::service(address, protocol.number(), port));
        let hashed = self.owners.get(&exact(port)).or_else(|| self.owners.get(&exact(0)));
        hashed.copied().or_else(|| {
            let class = self.class(address)?;
            (0..=16).rev().find_map(|bits| {
                let port = (u32::from(port) >> (16 - bits) << (16 - bits)) as u16;
                let key = RangeKey::port(class, protocol.number(), port);
                self.owners.get(&Key::Range(key, 48 + bits)).copied()
            })
        })
    }

    fn fragment_owner(&self, address: Address, protocol: Protocol) -> Option<usize> {
        let exact = self.owners.get(&Key::Exact(ServiceKey::fragment(address, protocol.number())));
        exact.copied().or_else(|| {
            let class = self.class(address)?;
            let own = self.keys.vips.contains_key(&Key::Exact(ServiceKey::vip(address)));
            let key = Key::whole(RangeKey::fragment(class, protocol.number()));
            if own { None } else { self.owners.get(&key).copied() }
        })
    }

    fn is_vip(&self, address: Address) -> bool {
        self.keys.vips.contains_key(&Key::Exact(ServiceKey::vip(address)))
            || self
                .class(address)
                .is_some_and(|class| self.keys.vips.contains_key(&Key::whole(RangeKey::vip(class))))
    }
}

/// The oracle: a walk over the list. The longest prefix wins, then the narrowest range.
fn naive(services: &[ServiceSpec<'_>], ip: IpAddr, protocol: Protocol, port: u16) -> Option<usize> {
    let candidates = services
        .iter()
        .enumerate()
        .flat_map(|(place, service)| service.addresses.iter().map(move |address| (place, address)));
    candidates
        .filter(|(_, address)| address.prefix.contains(&ip) && address.protocol == protocol)
        .filter(|(_, address)| (address.ports.first..=address.ports.last).contains(&port))
        .min_by_key(|(_, address)| {
            let ports = u32::from(address.ports.last) - u32::from(address.ports.first);
            (std::cmp::Reverse(address.prefix.prefix_len()), ports)
        })
        .map(|(place, _)| place)
}

/// A port of every stretch that has one owner: it changes only where a range begins or ends. Port 0 is in no range but
/// that of all ports.
fn edges(services: &[ServiceSpec<'_>]) -> impl Iterator<Item = u16> {
    let ports = services.iter().flat_map(|service| &service.addresses).map(|address| address.ports);
    let edges: BTreeSet<u16> = ports.flat_map(|ports| [ports.first, ports.last.wrapping_add(1)]).collect();
    edges.into_iter()
}

fn addresses() -> impl Strategy<Value = ServiceAddress> {
    let v4 = (0_u8..16, 26_u8..=32).prop_map(|(host, length)| format!("203.0.113.{host}/{length}"));
    let v6 = (0_u8..16, 122_u8..=128).prop_map(|(host, length)| format!("2001:db8::{host:x}/{length}"));
    let ports = prop_oneof![
        3 => (1_u16..16).prop_map(Ports::one),
        2 => Just(Ports::ALL),
        4 => (1_u16..16, 0_u16..9).prop_map(|(first, more)| Ports { first, last: first + more }),
        1 => (0_u16..40).prop_map(|less| Ports { first: 3, last: u16::MAX - less }),
    ];
    (prop_oneof![v4, v6], prop::bool::ANY, ports).prop_map(|(prefix, tcp, ports)| ServiceAddress {
        prefix: prefix.parse::<IpNet>().expect("prefix").trunc(),
        protocol: if tcp { Protocol::Tcp } else { Protocol::Udp },
        ports,
    })
}

/// Those of `wanted` that do not contradict one before, dealt to services in turn.
fn consistent(wanted: Vec<ServiceAddress>) -> Vec<Vec<ServiceAddress>> {
    let mut taken: Vec<ServiceAddress> = Vec::new();
    for address in wanted {
        let nests = |other: &ServiceAddress| {
            let (one, two) = (address.ports, other.ports);
            let apart = one.last < two.first || two.last < one.first;
            let within = |a: Ports, b: Ports| b.first <= a.first && a.last <= b.last;
            apart || (one != two && (within(one, two) || within(two, one)))
        };
        let meets =
            |other: &&ServiceAddress| other.prefix == address.prefix && other.protocol == address.protocol;
        if taken.iter().filter(meets).all(nests) {
            taken.push(address);
        }
    }
    let mut services = vec![Vec::new(); 5];
    for (place, address) in taken.into_iter().enumerate() {
        services[place % 5].push(address);
    }
    services
}

#[test]
fn a_service_of_all_ports_has_port_0_too_so_fragments_are_not_its_neighbours() {
    let most = service("most", vec![address("203.0.113.10/32", 1, u16::MAX)]);
    let all = service("all", vec![address("203.0.113.10/32", 0, u16::MAX)]);
    let vip = maps::address("203.0.113.10".parse().expect("address"));
    let owner = |services: &[ServiceSpec<'_>]| {
        let compiled = Compiled::new(compile(services, &BTreeMap::new()).expect("nested"));
        compiled.fragment_owner(vip, Protocol::Tcp)
    };
    assert_eq!(owner(std::slice::from_ref(&most)), Some(0));
    assert_eq!(owner(std::slice::from_ref(&all)), Some(0));
    assert_eq!(owner(&[most, all]), None);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(256))]

    #[test]
    fn the_most_specific_service_wins(wanted in prop::collection::vec(addresses(), 0..40)) {
        let groups = consistent(wanted);
        let names = ["a", "b", "c", "d", "e"];
        let services: Vec<_> =
            names.iter().zip(groups).map(|(name, addresses)| service(name, addresses)).collect();
        let compiled = Compiled::new(compile(&services, &BTreeMap::new()).expect("consistent"));
        for host in 0..18_u8 {
            for ip in [format!("203.0.113.{host}"), format!("2001:db8::{host:x}")] {
                let ip: IpAddr = ip.parse().expect("address");
                let mapped = maps::address(ip);
                let covered = |spec: &ServiceSpec<'_>| spec.addresses.iter().any(|it| it.prefix.contains(&ip));
                prop_assert_eq!(compiled.is_vip(mapped), services.iter().any(covered));
                for protocol in [Protocol::Tcp, Protocol::Udp] {
                    let ports = (1..30).chain([1_024, u16::MAX - 41, u16::MAX - 1, u16::MAX]);
                    for port in ports {
                        let expected = naive(&services, ip, protocol, port);
                        prop_assert_eq!(compiled.owner(mapped, protocol, port), expected, "{} {}", ip, port);
                    }
                    let owners: BTreeSet<usize> =
                        edges(&services).filter_map(|port| naive(&services, ip, protocol, port)).collect();
                    let only = if owners.len() == 1 { owners.first().copied() } else { None };
                    prop_assert_eq!(compiled.fragment_owner(mapped, protocol), only, "{}", ip);
                }
            }
        }
    }

    #[test]
    fn blocks_are_the_range_and_at_most_thirty(first: u16, last: u16) {
        let ports = Ports { first: first.min(last), last: first.max(last) };
        let blocks: Vec<(u16, u32)> = blocks(ports).collect();
        prop_assert!(blocks.len() <= 30);
        let mut at = u32::from(ports.first);
        for (port, bits) in blocks {
            prop_assert_eq!(u32::from(port), at);
            prop_assert_eq!(at % (1 << (16 - bits)), 0, "a prefix");
            at += 1 << (16 - bits);
        }
        prop_assert_eq!(at, u32::from(ports.last) + 1);
    }
}

#[test]
fn ranges_that_cross_are_refused_by_the_names_of_both_services() {
    let one = service("one", vec![address("203.0.113.10/32", 8_000, 8_999)]);
    let two = service("two", vec![address("203.0.113.10/32", 8_500, 9_500)]);
    let error = compile(&[one.clone(), two], &BTreeMap::new()).expect_err("they cross");
    assert_eq!(
        error.to_string(),
        "service 'two' has 203.0.113.10/32 TCP ports 8500-9500 and service 'one' has ports 8000-8999 there: of \
         ranges that overlap one must be within the other"
    );
    let elsewhere = service("two", vec![address("203.0.113.0/28", 8_500, 9_500)]);
    assert!(compile(&[one, elsewhere], &BTreeMap::new()).is_ok(), "another prefix is another matter");
}

#[test]
fn wrong_prefixes_and_ports_are_refused() {
    for (wrong, message) in [
        (address("203.0.113.5/28", 80, 80), "bits behind its length"),
        (address("::/0", 80, 80), "IPv4 addresses in the form of IPv6's"),
        (address("::ffff:203.0.113.0/120", 80, 80), "IPv4 addresses in the form of IPv6's"),
        (address("203.0.113.5/32", 0, 0), "no range of 1-65535"),
        (address("203.0.113.5/32", 0, 80), "no range of 1-65535"),
        (address("203.0.113.5/32", 81, 80), "no range of 1-65535"),
    ] {
        let error = compile(&[service("web", vec![wrong])], &BTreeMap::new()).expect_err(message);
        assert!(error.to_string().contains(message), "{error}");
        assert!(error.to_string().contains("'web'"), "{error}");
    }
}

#[test]
fn a_prefix_keeps_its_class_and_a_new_one_takes_none_in_force() {
    let old = service("old", vec![address("203.0.113.0/28", 80, 80), address("198.51.100.0/28", 80, 80)]);
    let before = compile(&[old], &BTreeMap::new()).expect("keys").classes;
    let new = service("new", vec![address("203.0.113.0/28", 80, 80), address("192.0.2.0/28", 80, 80)]);
    let after = compile(&[new], &before).expect("keys").classes;
    let kept: Vec<_> = before.iter().filter(|(prefix, _)| after.contains_key(prefix)).collect();
    assert_eq!(kept.len(), 1);
    for (prefix, class) in after {
        match before.get(&prefix) {
            Some(old) => assert_eq!(*old, class),
            None => assert!(!before.values().any(|old| *old == class)),
        }
    }
}

#[test]
fn exact_services_alone_need_no_class() {
    let all = ServiceAddress { ports: Ports::ALL, ..address("203.0.113.11/32", 1, 1) };
    let keys = compile(&[service("web", vec![address("203.0.113.10/32", 80, 80), all])], &BTreeMap::new());
    let keys = keys.expect("keys");
    assert!(keys.classes.is_empty());
    assert!(keys.services[0].iter().all(|key| matches!(key, Key::Exact(_))));
}
