//! What the node shows of itself: its state as messages of the control protocol.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use director_proto::control as wire;
use director_proto::health::RealId;
use director_proto::tables::{ServiceTable, TableReal};
use routing::speaker::{BfdStatus, NeighborStatus};

use super::plan::Purpose;
use super::{Node, PATIENCE};
use crate::config::{Persistence, Service, VirtualAddress, family};
use crate::dataplane::{
    Adoption, Counters, NextHop, ReadError, SlotStates, TemplateRecord, monotonic_seconds,
};
use crate::slots::{self, Member};

impl Node {
    pub(super) async fn status(&self) -> wire::Status {
        let sync = self.sync.status().await.ok();
        let routing = self.routing_status().await;
        let (state, reason) = self.state(routing.as_ref());
        let counters = self.counters();
        wire::Status {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            router_id: self.config.node.router_id.to_string(),
            cluster: self.config.cluster.name.clone(),
            state: state.to_owned(),
            reason,
            epoch: self.tables.as_ref().map(|tables| tables.epoch.to_string()).unwrap_or_default(),
            table_digest: self.tables.as_ref().map(|tables| tables.digest().to_string()).unwrap_or_default(),
            leader: sync.and_then(|sync| sync.leader).map(|leader| leader.to_string()).unwrap_or_default(),
            uptime_seconds: self.started.elapsed().as_secs(),
            file_differs: self.difference(),
            data_plane: match self.adoption {
                Adoption::Fresh => "fresh".to_owned(),
                Adoption::Adopted { .. } => "adopted".to_owned(),
            },
            interfaces: self.interfaces(),
            announcements: self
                .announced
                .iter()
                .map(|(prefix, announcement)| wire::Announcement {
                    prefix: prefix.to_string(),
                    metric: announcement.metric.into(),
                    service: announcement.purpose.service().unwrap_or_default().to_owned(),
                    role: match announcement.purpose {
                        Purpose::Node | Purpose::Service(_) => "",
                        Purpose::Local => "local address",
                        Purpose::Backup => "backup",
                    }
                    .to_owned(),
                })
                .collect(),
            verdicts: counters
                .outcomes
                .iter()
                .map(|(outcome, packets)| wire::Count { name: outcome.to_string(), packets: *packets })
                .collect(),
            ospf_refused: routing
                .map(|status| {
                    let counters = status.counters.into_iter();
                    counters
                        .map(|(reason, packets)| wire::Count { name: format!("{reason:?}"), packets })
                        .collect()
                })
                .unwrap_or_default(),
        }
    }

    /// The interfaces with the program on them.
    pub(super) fn interfaces(&self) -> Vec<wire::Interface> {
        let interfaces = self.dataplane.interfaces().into_iter();
        interfaces
            .map(|interface| wire::Interface {
                name: interface.name,
                ifindex: interface.ifindex,
                xdp_mode: interface.mode.name().to_owned(),
            })
            .collect()
    }

    /// One word for what the node is doing, and why if it is not serving.
    fn state(&self, routing: Option<&routing::Status>) -> (&'static str, String) {
        if let Some(trouble) = &self.trouble {
            return ("waiting", trouble.clone());
        }
        match self.standing {
            syncd::Standing::Current if !self.attached => {
                ("waiting", "programs are not attached yet".to_owned())
            }
            syncd::Standing::Current if !self.exchange.is_whole() => {
                ("waiting", "the other directors' connections are not known yet".to_owned())
            }
            syncd::Standing::Current => match routing {
                Some(routing)
                    if routing
                        .neighbors
                        .iter()
                        .all(|neighbor| neighbor.state != routing::NeighborState::Full) =>
                {
                    ("waiting", "no OSPF neighbour is Full".to_owned())
                }
                _ => match self.drain.phase() {
                    None => ("serving", String::new()),
                    Some(phase) => (phase.word(), "`director undrain` takes it back into service".to_owned()),
                },
            },
            syncd::Standing::Joining => ("joining", "waiting for the cluster's tables".to_owned()),
            syncd::Standing::Behind => {
                ("waiting", "this director has not followed the others to newer tables yet".to_owned())
            }
            syncd::Standing::Isolated => (
                "isolated",
                "most of the other directors are not heard: they may have changed the tables; \
                 look at the network between them, or set [cluster] isolated = \"serve\""
                    .to_owned(),
            ),
            syncd::Standing::Diverged => {
                ("diverged", "another director holds other tables under the same epoch".to_owned())
            }
        }
    }

    fn counters(&self) -> Counters {
        self.dataplane.counters().unwrap_or_else(|error| {
            tracing::error!(%error, "counters");
            Counters::default()
        })
    }

    pub(super) async fn routing_status(&self) -> Option<routing::Status> {
        let status = self.routing.as_ref()?.status();
        tokio::time::timeout(PATIENCE, status).await.ok().flatten()
    }

    pub(super) fn services(&self) -> wire::Services {
        let (counters, states) = (self.counters(), self.dataplane.slot_states());
        let services = self
            .config
            .services
            .iter()
            .map(|(name, service)| {
                let table = self.tables.as_ref().and_then(|tables| tables.services.get(name));
                let slots = states.get(name).map(slots_by_state);
                wire::VirtualService { slots, ..self.service(name, service, table, &counters) }
            })
            .collect();
        wire::Services { services }
    }

    fn service(
        &self,
        name: &str,
        service: &Service,
        table: Option<&ServiceTable>,
        counters: &Counters,
    ) -> wire::VirtualService {
        let counted = counters.services.get(name);
        let first = service.addresses.first();
        wire::VirtualService {
            name: name.to_owned(),
            vip: first.map(VirtualAddress::vip).unwrap_or_default(),
            protocol: first.map(|address| address.protocol.name()).unwrap_or_default().to_owned(),
            port: service.port().into(),
            scheduler: service.scheduler_name().to_owned(),
            hash: if service.hash_port { "source-port" } else { "source" }.to_owned(),
            forwarding: service.forwarding.to_string(),
            table_digest: table.map(|table| table.digest().to_string()).unwrap_or_default(),
            announced: service.prefixes().iter().all(|prefix| self.announced.contains_key(prefix)),
            traffic: counted.map(|counted| traffic(&counted.total)),
            reals: table.map(|table| self.reals(name, service, table, counted)).unwrap_or_default(),
            family: families(service),
            addresses: service.addresses.iter().map(ToString::to_string).collect(),
            slots: None,
            persistence: service.tracking.and_then(|tracking| tracking.persistence).map(persistence),
        }
    }

    fn reals(
        &self,
        name: &str,
        service: &Service,
        table: &ServiceTable,
        counted: Option<&crate::dataplane::ServiceCounters>,
    ) -> Vec<wire::RealServer> {
        let loads = self.dataplane.loads();
        let load = |address: IpAddr| {
            let of = |(service, real, _): &(String, IpAddr, u16)| service == name && *real == address;
            loads.iter().find(|(key, _)| of(key)).map(|(_, load)| *load)
        };
        let templates = self.dataplane.template_counts();
        let kept = |address: IpAddr| {
            let of = |(service, real, _): &(String, IpAddr, u16)| service == name && *real == address;
            templates.iter().find(|(key, _)| of(key)).map(|(_, count)| *count)
        };
        let total: f64 = table.reals.iter().map(|real| f64::from(real.share())).sum();
        let configured: BTreeSet<IpAddr> = service.reals.iter().map(|real| real.address).collect();
        let show = |real: &TableReal, slots: usize| wire::RealServer {
            address: real.address.to_string(),
            port: real.port.into(),
            weight: real.weight,
            slots: u32::try_from(slots).unwrap_or(u32::MAX),
            ideal_slots: match total > 0.0 {
                true => f64::from(real.share()) * table.slots.len() as f64 / total,
                false => 0.0,
            },
            next_hop: self.dataplane.next_hop(real.address).map(way).unwrap_or_default(),
            traffic: None,
            active_connections: load(real.address).map(|(active, _)| active),
            inactive_connections: load(real.address).map(|(_, inactive)| inactive),
            persistent_clients: kept(real.address),
            state: match (real.weight, configured.contains(&real.address)) {
                _ if real.dead => "dead",
                (0, false) => "leaving",
                (0, true) => "draining",
                (1.., _) => "active",
            }
            .to_owned(),
            ..self.health_of(name, real)
        };
        let counters = |real: &TableReal| {
            let counted = counted?.reals.iter().find(|counted| counted.address == real.address)?;
            Some(traffic(&counted.counters))
        };
        let rows = table.reals.iter().zip(slots::counts(table));
        let mut shown: Vec<wire::RealServer> = rows
            // A server that has gone keeps its position for a while.
            .filter(|(real, slots)| *slots > 0 || configured.contains(&real.address))
            .map(|(real, slots)| wire::RealServer { traffic: counters(real), ..show(real, slots) })
            .collect();
        // One that came at weight 0 has had no slot, and no place in the table.
        let absent = service.members().into_iter().filter(|member| {
            member.weight == 0 && table.reals.iter().all(|real| real.address != member.address)
        });
        shown.extend(absent.map(|Member { address, port, weight, dead }| {
            show(&TableReal { address, port, weight, dead }, 0)
        }));
        shown
    }

    /// What the directors' checks say of a real server, and what this one's own came to.
    fn health_of(&self, service: &str, real: &TableReal) -> wire::RealServer {
        let id = RealId { service: service.to_owned(), address: real.address, port: real.port };
        let votes = self.health.view.get(&id).copied().unwrap_or_default();
        wire::RealServer {
            votes_up: votes.up.into(),
            votes_down: votes.down.into(),
            finding: self.health.finding(&id).unwrap_or_default(),
            ..wire::RealServer::default()
        }
    }

    pub(super) async fn neighbors(&self) -> wire::Neighbors {
        self.routing_status().await.as_ref().map(neighbors).unwrap_or_default()
    }

    pub(super) async fn peers(&self) -> wire::Peers {
        let Ok(status) = self.sync.status().await else { return wire::Peers::default() };
        let show = |value: Option<String>| value.unwrap_or_default();
        wire::Peers {
            epoch: show(status.epoch.map(|epoch| epoch.to_string())),
            table_digest: show(status.digest.map(|digest| digest.to_string())),
            leader: show(status.leader.map(|leader| leader.to_string())),
            phase: status.phase.to_string(),
            peers: status
                .peers
                .into_iter()
                .map(|peer| wire::Peer {
                    address: show(peer.address.map(|address| address.to_string())),
                    router_id: show(peer.router_id.map(|id| id.to_string())),
                    boot_id: show(peer.boot_id.map(|id| id.to_string())),
                    state: peer_state(peer.state).to_owned(),
                    epoch: show(peer.epoch.map(|epoch| epoch.to_string())),
                    table_digest: show(peer.digest.map(|digest| digest.to_string())),
                    same_tables: peer.same_tables,
                    same_config: peer.same_config,
                    differences: peer
                        .router_id
                        .and_then(|id| self.differences.get(&id))
                        .map(|difference| difference.lines.clone())
                        .unwrap_or_default(),
                    last_heard_ms: peer.last_heard_ms.unwrap_or_default(),
                    round_trip_ms: peer.rtt_ms.unwrap_or_default(),
                    version: show(peer.version),
                    refused: show(peer.refused.or(peer.error)),
                    messages_in: peer.messages_in,
                    messages_out: peer.messages_out,
                    bytes_in: peer.bytes_in,
                    bytes_out: peer.bytes_out,
                    unacknowledged: peer.unacked,
                    phase: show(peer.phase.map(|phase| phase.to_string())),
                    bytes_in_per_second: peer.bytes_in_per_second,
                    bytes_out_per_second: peer.bytes_out_per_second,
                    pin_lag_records: peer.pins.lag_records,
                    pin_lag_ms: peer.pins.lag_ms,
                    pin_records_out: peer.pins.records_out,
                    pin_records_in: peer.pins.records_in,
                    pin_snapshots_out: peer.pins.snapshots_out,
                    pins_whole: peer.pins.whole,
                    pin_batches_refused: peer.pins.refused,
                    pin_silenced: peer.pins.silenced,
                })
                .collect(),
            pins: Some(self.pin_totals()),
        }
    }

    fn pin_totals(&self) -> wire::PinTotals {
        let totals = self.exchange.totals();
        wire::PinTotals {
            replicas: self.dataplane.replicas() as u64,
            added: totals.added as u64,
            removed: totals.removed as u64,
            redundant: totals.redundant as u64,
            unknown_services: totals.strangers.into(),
            unknown_servers: totals.unknown_servers.into(),
            refused: totals.refused as u64,
            conflicts: totals.conflicts as u64,
        }
    }

    /// The flows that are counted, and the connections that are tracked.
    pub(super) fn connections(&self, limit: u32) -> Result<wire::Connections, String> {
        let tracks = self.config.services.values().any(|service| service.tracking.is_some());
        if !self.config.node.flow_accounting && !tracks {
            return Err(
                "no service tracks its connections, and flows are not counted here: set flow_accounting = true in \
                 [node] and restart the director"
                    .to_owned(),
            );
        }
        let now = monotonic();
        let mut connections = BTreeMap::new();
        for flow in self.dataplane.flows().map_err(|error| format!("flows: {error}"))? {
            let key = (flow.protocol, flow.source, flow.destination);
            let connection = wire::Connection {
                protocol: protocol(flow.protocol),
                source: flow.source.to_string(),
                destination: flow.destination.to_string(),
                service: flow.service.unwrap_or_default(),
                real: flow.real.map(|real| real.to_string()).unwrap_or_default(),
                packets: flow.packets,
                bytes: flow.bytes,
                last_seen_ms: u64::try_from(now.saturating_sub(flow.last_seen).as_millis())
                    .unwrap_or(u64::MAX),
                ..wire::Connection::default()
            };
            connections.insert(key, connection);
        }
        self.add_tracked(&mut connections).map_err(|error| format!("connections: {error}"))?;
        let mut connections: Vec<_> = connections.into_values().collect();
        let templates = self.dataplane.templates(monotonic_seconds());
        for record in templates.map_err(|error| format!("templates: {error}"))? {
            let service = self.config.services.get(&record.service);
            let tracking = service.and_then(|service| service.tracking);
            connections.push(template(record, tracking.and_then(|tracking| tracking.persistence)));
        }
        connections.sort_by_key(|connection| std::cmp::Reverse(connection.packets));
        if limit > 0 {
            connections.truncate(usize::try_from(limit).unwrap_or(usize::MAX));
        }
        Ok(wire::Connections { connections })
    }

    /// Adds the connections of tracked services, or what is known of them besides their packets.
    fn add_tracked(
        &self,
        connections: &mut BTreeMap<(u8, SocketAddr, SocketAddr), wire::Connection>,
    ) -> Result<(), ReadError> {
        let now = monotonic_seconds();
        let half_open = self.dataplane.half_open(now)?;
        let states = half_open.into_iter().map(|record| (record, "half-open"));
        let pins = self.dataplane.pins(now)?;
        let pins = pins.into_iter().map(|record| (record, "open"));
        for (record, state) in pins.chain(states) {
            if self.config.services.get(&record.service).is_none_or(|service| service.tracking.is_none()) {
                continue;
            }
            let key = (record.protocol, record.source, record.destination);
            let connection = connections.entry(key).or_insert_with(|| wire::Connection {
                protocol: protocol(record.protocol),
                source: record.source.to_string(),
                destination: record.destination.to_string(),
                service: record.service,
                real: record.real.ip().to_string(),
                last_seen_ms: u64::from(record.idle) * 1_000,
                ..wire::Connection::default()
            });
            connection.state = if record.is_closing { "closing" } else { state }.to_owned();
            connection.expires_s = record.remaining;
            connection.local = record.local.map(|local| local.to_string()).unwrap_or_default();
        }
        Ok(())
    }
}

fn persistence(persistence: Persistence) -> wire::Persistence {
    let Persistence { timeout, prefix_v4, prefix_v6, expire_quiescent } = persistence;
    wire::Persistence {
        timeout_s: u32::try_from(timeout.as_secs()).unwrap_or(u32::MAX),
        prefix_v4: prefix_v4.into(),
        prefix_v6: prefix_v6.into(),
        expire_quiescent,
    }
}

/// A template, as a row among the connections: what its client has besides.
fn template(record: TemplateRecord, persistence: Option<Persistence>) -> wire::Connection {
    let length = match (persistence, record.client) {
        (Some(persistence), IpAddr::V4(_)) => persistence.prefix_v4,
        (Some(persistence), IpAddr::V6(_)) => persistence.prefix_v6,
        (None, IpAddr::V4(_)) => 32,
        (None, IpAddr::V6(_)) => 128,
    };
    wire::Connection {
        protocol: "any".to_owned(),
        source: format!("{}/{length}", record.client),
        service: record.service,
        real: record.real.ip().to_string(),
        last_seen_ms: u64::from(record.idle) * 1_000,
        state: if record.is_assured { "template" } else { "new template" }.to_owned(),
        expires_s: record.remaining,
        ..wire::Connection::default()
    }
}

/// The families of a service's addresses.
fn families(service: &Service) -> String {
    let families: BTreeSet<&str> = service.prefixes().iter().map(|prefix| family(prefix.addr())).collect();
    families.into_iter().collect::<Vec<_>>().join("+")
}

/// What the neighbour is on its link: designated router, backup, other, or nothing of the kind.
fn role(status: &routing::Status, neighbor: &NeighborStatus) -> &'static str {
    let on = |interface: &&routing::speaker::InterfaceStatus| {
        interface.name == neighbor.interface && interface.version == neighbor.version
    };
    let interface = status.interfaces.iter().find(on);
    match interface {
        Some(interface) if interface.network == routing::Network::PointToPoint => "",
        Some(interface) if interface.dr == neighbor.identity => "DR",
        Some(interface) if interface.bdr == neighbor.identity => "BDR",
        _ => "other",
    }
}

fn bfd(status: &BfdStatus) -> wire::Bfd {
    wire::Bfd {
        state: status.state.to_string(),
        remote_state: status.remote_state.to_string(),
        in_state_ms: status.in_state_ms,
        detection_ms: status.detection_ms,
        downs: status.downs,
        error: status.error.clone().unwrap_or_default(),
    }
}

fn peer_state(state: syncd::PeerState) -> &'static str {
    match state {
        syncd::PeerState::Connecting => "connecting",
        syncd::PeerState::Refused => "refused",
        syncd::PeerState::Up => "up",
        syncd::PeerState::Down => "down",
    }
}

/// The clock that packets are stamped with.
fn monotonic() -> Duration {
    nix::time::clock_gettime(nix::time::ClockId::CLOCK_MONOTONIC).map_or(Duration::ZERO, Duration::from)
}

pub(super) fn protocol(number: u8) -> String {
    match number {
        6 => "tcp".to_owned(),
        17 => "udp".to_owned(),
        other => other.to_string(),
    }
}

fn slots_by_state(states: &SlotStates) -> wire::SlotStates {
    let number = |slots: usize| u32::try_from(slots).unwrap_or(u32::MAX);
    wire::SlotStates {
        settled: number(states.settled),
        moving: number(states.moving),
        pinned: number(states.pinned),
    }
}

fn traffic(counters: &director_common::counters::TrafficCounters) -> wire::Traffic {
    wire::Traffic {
        packets_in: counters.packets_in,
        bytes_in: counters.bytes_in,
        packets_out: counters.packets_out,
        bytes_out: counters.bytes_out,
        connections: counters.connections,
        dropped: counters.dropped,
    }
}

/// A next hop for people: link address and interface.
pub(super) fn way(hop: NextHop) -> String {
    format!("{} on {}", mac(hop.destination_mac), interface(hop.ifindex))
}

/// A link address as people write it.
pub(super) fn mac([a, b, c, d, e, f]: [u8; 6]) -> String {
    format!("{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{f:02x}")
}

/// An interface's name; its number if it is gone.
pub(super) fn interface(ifindex: u32) -> String {
    nix::net::if_::if_indextoname(ifindex)
        .map_or_else(|_| format!("#{ifindex}"), |name| name.to_string_lossy().into_owned())
}

/// The neighbours in a status.
pub(crate) fn neighbors(status: &routing::Status) -> wire::Neighbors {
    let neighbors = status
        .neighbors
        .iter()
        .map(|neighbor| wire::Neighbor {
            router_id: neighbor.router_id.to_string(),
            address: neighbor.address.to_string(),
            interface: neighbor.interface.clone(),
            state: format!("{:?}", neighbor.state),
            priority: neighbor.priority.into(),
            role: role(status, neighbor).to_owned(),
            dead_in_ms: neighbor.dead_in_ms,
            in_state_ms: neighbor.in_state_ms,
            reason: neighbor.reason.clone().unwrap_or_default(),
            bfd: neighbor.bfd.as_ref().map(bfd),
        })
        .collect();
    wire::Neighbors { neighbors }
}
