//! The node's configuration, in the words of each part.

use std::collections::BTreeSet;
use std::io::{self, Read as _};
use std::net::IpAddr;
use std::sync::Arc;

use director_proto::tables::{ServiceTable, TableReal, TableSet};
use ipnet::IpNet;

use crate::config::Forwarding as Way;
use crate::config::{self, Config, Echo, Protocol, Service, Tunnel, VirtualAddress, XdpMode};
use crate::dataplane::{
    self, Forwarding, HashInput, LocalAddresses, Ports, RealSpec, ServiceAddress, ServiceSpec, WhenFull,
};

pub(super) fn dataplane_options(config: &Config, fresh: bool) -> dataplane::Options {
    dataplane::Options {
        pin_dir: config.node.pin_dir.clone(),
        interfaces: config.node.interfaces.clone(),
        mode: match config.node.xdp_mode {
            XdpMode::Auto => dataplane::XdpMode::Auto,
            XdpMode::Native => dataplane::XdpMode::Native,
            XdpMode::Generic => dataplane::XdpMode::Generic,
        },
        flow_accounting: config.node.flow_accounting,
        discard_pins: fresh,
        tunnel_sources: dataplane::TunnelSources {
            v4: config.node.tunnel_sources.v4,
            v6: config.node.tunnel_sources.v6,
        },
        echo: match config.node.echo {
            Echo::WhileServed => dataplane::EchoPolicy::WhileServed,
            Echo::Always => dataplane::EchoPolicy::Always,
            Echo::Kernel => dataplane::EchoPolicy::Kernel,
        },
        icmp_rate: config.node.icmp_rate,
        pins: config.node.connections,
        half_open: config.node.half_open,
        locals: local_addresses(config),
        holds_leases: true,
        margin: sync_config(config).skew(),
        ..dataplane::Options::default()
    }
}

/// What full NAT puts in the place of clients.
pub(super) fn local_addresses(config: &Config) -> LocalAddresses {
    let config::Locals { addresses, ports } = &config.node.locals;
    LocalAddresses { addresses: addresses.clone(), ports: Ports { first: ports.first, last: ports.last } }
}

pub(super) fn sync_config(config: &Config) -> syncd::Config {
    let cluster = &config.cluster;
    syncd::Config {
        cluster: cluster.name.clone(),
        router_id: config.node.router_id,
        listen: cluster.listen,
        peers: cluster.peers.clone(),
        tls: cluster.tls.as_ref().map(|tls| syncd::TlsFiles {
            ca: tls.ca.clone(),
            certificate: tls.certificate.clone(),
            key: tls.key.clone(),
        }),
        state_dir: Some(config.node.state_dir.clone()),
        grace: cluster.grace,
        heartbeat: cluster.heartbeat,
        dead: cluster.dead,
        isolation: match cluster.isolated {
            config::Isolated::Withdraw => syncd::Isolation::Withdraw,
            config::Isolated::Serve => syncd::Isolation::Serve,
        },
        version: env!("CARGO_PKG_VERSION").to_owned(),
        config_digest: config.services_digest(),
        definitions: Arc::clone(&config.definitions),
        local_addresses: config.node.locals.addresses.clone(),
        allow_plaintext: false,
    }
}

/// What the kernel shall hold: every configured service that the cluster has a table for.
pub(super) fn specs<'a>(config: &'a Config, tables: &'a TableSet) -> Vec<ServiceSpec<'a>> {
    let with_table = config
        .services
        .iter()
        .filter_map(|(name, service)| Some((name, service, tables.services.get(name)?)));
    with_table.map(|(name, service, table)| spec(name, service, table)).collect()
}

/// One service in the data plane's words.
fn spec<'a>(name: &'a str, service: &'a Service, table: &'a ServiceTable) -> ServiceSpec<'a> {
    let address = |address: &VirtualAddress| ServiceAddress {
        prefix: address.prefix,
        protocol: match address.protocol {
            Protocol::Tcp => dataplane::Protocol::Tcp,
            Protocol::Udp => dataplane::Protocol::Udp,
        },
        ports: Ports { first: address.ports.first, last: address.ports.last },
    };
    // A server that left the configuration, but not the table yet, has no id any more.
    let quic_id = |real: &TableReal| {
        service.reals.iter().find(|known| known.address == real.address).and_then(|known| known.quic_id)
    };
    // Elsewhere packets keep their ports.
    let one_port = service.one_port().is_some();
    // The table may still have the port of before a reload: only NAT makes a difference of it.
    let port = |port: u16| match service.forwarding {
        _ if !one_port => 0,
        Way::Nat | Way::FullNat => port,
        Way::Dr | Way::Tunnel(_) => service.port(),
    };
    let known = |address: IpAddr| service.reals.iter().find(|known| known.address == address);
    let is_left =
        |real: &TableReal| known(real.address).is_none_or(|known| port(known.port) != port(real.port));
    let real = |real: &TableReal| RealSpec {
        alive: !real.dead,
        weight: real.weight,
        thresholds: known(real.address).map(|known| known.thresholds).unwrap_or_default(),
        is_left: is_left(real),
        quic_id: quic_id(real),
        ..RealSpec::new(real.address, port(real.port))
    };
    let mut reals: Vec<RealSpec> = table.reals.iter().map(real).collect();
    // Not in the table, unless it was a real server: it has no slots, and nobody asks how it is.
    if let Some(address) = service.sorry_server().filter(|address| known(*address).is_none()) {
        let sorry = RealSpec { is_sorry: true, ..RealSpec::new(address, port(service.port())) };
        match reals.iter_mut().find(|real| (real.address, real.port) == (sorry.address, sorry.port)) {
            Some(former) => *former = sorry,
            None => reals.push(sorry),
        }
    }
    ServiceSpec {
        name,
        addresses: service.addresses.iter().map(address).collect(),
        hash: if service.hash_port { HashInput::SourcePort } else { HashInput::Source },
        forwarding: match service.forwarding {
            Way::Dr => Forwarding::DirectReturn,
            Way::Nat => Forwarding::Nat,
            Way::FullNat => Forwarding::FullNat,
            Way::Tunnel(Tunnel::Ipip) => Forwarding::Ipip,
            Way::Tunnel(Tunnel::Gre) => Forwarding::Gre,
            Way::Tunnel(Tunnel::Gue { port }) => Forwarding::Gue { port },
        },
        reals,
        slots: &table.slots,
        timeouts: dataplane::Timeouts {
            established: service.timeouts.established,
            fin: service.timeouts.fin,
            udp: service.timeouts.udp,
        },
        tracking: service.tracking.map(|tracking| dataplane::Tracking {
            method: tracking.method,
            when_full: if tracking.refuse { WhenFull::Refuse } else { WhenFull::Forward },
            persistence: tracking.persistence.map(|persistence| dataplane::Persistence {
                timeout: persistence.timeout,
                prefix_v4: persistence.prefix_v4,
                prefix_v6: persistence.prefix_v6,
                expire_quiescent: persistence.expire_quiescent,
            }),
        }),
        datagrams: match service.datagrams {
            config::Datagrams::Tracked => dataplane::Datagrams::Tracked,
            config::Datagrams::OnePacket => dataplane::Datagrams::OnePacket,
            config::Datagrams::Quic { offset, length } => dataplane::Datagrams::Quic { offset, length },
        },
    }
}

/// Addresses whose next hops the kernel needs.
pub(super) fn real_addresses(config: &Config, tables: &TableSet) -> BTreeSet<IpAddr> {
    let tables = config.services.keys().filter_map(|name| tables.services.get(name));
    let reals = tables.flat_map(|table| &table.reals).map(|real| real.address);
    let sorry = config.services.values().filter_map(Service::sorry_server);
    reals.chain(sorry).collect()
}

/// Fills `bytes` from the operating system's source of randomness.
pub(super) fn random(bytes: &mut [u8]) -> io::Result<()> {
    std::fs::File::open("/dev/urandom")?.read_exact(bytes)
}

/// OSPF, if it is configured. Learned routes exclude what we announce by themselves; `import` narrows them.
pub(super) fn routing_config(config: &Config) -> Option<routing::Config> {
    let ospf = config.ospf.as_ref()?;
    let interface = |interface: &config::OspfInterface| routing::InterfaceConfig {
        area: interface.area,
        area_kind: interface.area_kind,
        cost: interface.cost,
        hello_interval: ospf.hello_interval,
        dead_interval: ospf.dead_interval,
        priority: interface.priority,
        passive: interface.passive,
        bfd: interface.bfd.map(|bfd| routing::BfdConfig {
            interval: std::time::Duration::from_millis(bfd.interval_ms.into()),
            multiplier: bfd.multiplier,
        }),
        authentication: interface.authentication.clone(),
        ttl_security: interface.ttl_security,
        unnumbered: interface.unnumbered,
        ..routing::InterfaceConfig::new(
            &interface.name,
            if interface.broadcast { routing::Network::Broadcast } else { routing::Network::PointToPoint },
        )
    };
    let mut routing =
        routing::Config::new(config.node.router_id, ospf.interfaces.iter().map(interface).collect());
    routing.ipv6 = ospf.ipv6;
    routing.external = ospf.external;
    routing.aggregates.clone_from(&ospf.aggregates);
    if let Some(import) = &ospf.import {
        let (mut v4, mut v6) = (Vec::new(), Vec::new());
        for prefix in import {
            match prefix {
                IpNet::V4(prefix) => v4.push(*prefix),
                IpNet::V6(prefix) => v6.push(*prefix),
            }
        }
        (routing.import, routing.import6) = (v4, v6);
    }
    Some(routing)
}

/// A number that differs between runs.
pub(super) fn seed() -> u32 {
    let mut bytes = [0; 4];
    match random(&mut bytes) {
        Ok(()) => u32::from_ne_bytes(bytes),
        Err(_) => std::process::id(),
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use director_proto::tables::{Epoch, TableSet};
    use syncd::HealthView;

    use super::specs;
    use crate::config::Config;
    use crate::node::plan::deal;

    const TEXT: &str = r#"
[node]
router_id = "10.255.0.1"
interfaces = ["eth1"]
[[service]]
name = "web"
vip = "203.0.113.10"
port = 80
scheduler = "wlc"
[[service.real]]
address = "10.0.2.11"
[[service.real]]
address = "10.0.2.12"
"#;

    #[test]
    fn a_real_server_that_becomes_the_sorry_server_is_that_where_it_was() {
        let config = |text: &str| Config::parse(Path::new("d.toml"), text).expect("valid");
        let before = config(TEXT);
        let after = config(
            &TEXT
                .replace("[[service.real]]\naddress = \"10.0.2.12\"\n", "")
                .replace("\"wlc\"", "\"wlc\"\nsorry_server = \"10.0.2.12\""),
        );
        let set = |services| TableSet {
            epoch: Epoch { number: 1, leader: before.node.router_id },
            hash_key: [1; 16],
            services,
        };
        let mut tables = set(deal(&before, &before.definitions, None, &HealthView::new()));
        let former = tables.services.get_mut("web").expect("service").reals.iter_mut();
        former.for_each(|real| real.dead = real.address.to_string() == "10.0.2.12");
        let tables = set(deal(&after, &after.definitions, Some(&tables), &HealthView::new()));
        let sorry = |config: &Config| -> Vec<(String, bool)> {
            let reals = specs(config, &tables).remove(0).reals;
            reals.iter().map(|real| (real.address.to_string(), real.is_sorry && real.alive)).collect()
        };
        assert_eq!(sorry(&after), [("10.0.2.11".to_owned(), false), ("10.0.2.12".to_owned(), true)]);
        assert!(sorry(&before).iter().all(|(_, is_sorry)| !is_sorry));
    }
}
