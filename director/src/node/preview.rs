//! What would come of other services: which change, whose slots move, and which connections that concerns, by the live
//! tables of this director.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};

use director_common::hash::FlowHash;
use director_common::siphash::HashKey;
use director_common::slot::slot_of_flow;
use director_common::tables::{Address, HashInput};
use director_proto::control as wire;
use director_proto::tables::ServiceTable;

use super::{Node, plan};
use crate::config::{Config, Service};
use crate::dataplane::{Flow, monotonic_seconds};
use crate::slots;

/// Connections of one service at this director.
#[derive(Default)]
struct Connections {
    /// Pinned to a real server, by the server.
    pinned: BTreeMap<SocketAddr, u64>,
    /// That are counted.
    flows: Vec<Flow>,
}

impl Node {
    /// What comes of putting the services of `file` in force, by the tables that this director has and by what it knows of
    /// health. Without tables nothing can be said.
    pub(super) fn preview_of(&self, file: &Config) -> wire::ReloadReply {
        let Some(tables) = &self.tables else {
            let notes = vec!["no tables are in force here yet: nothing is known of slots".to_owned()];
            return wire::ReloadReply { dry_run: true, notes, ..wire::ReloadReply::default() };
        };
        let definitions = file.in_words_of(&self.config);
        let dealt = self.deal(file, &definitions);
        let (connections, mut notes) = self.connections_by_service();
        let key = HashKey::from_bytes(tables.hash_key);
        let hash = FlowHash::new(key);
        let names: BTreeSet<&String> = self.config.services.keys().chain(file.services.keys()).collect();
        let none = Connections::default();
        let mut services = Vec::new();
        for name in names {
            let (before, after) = (tables.services.get(name), dealt.get(name));
            let connections = connections.get(name).unwrap_or(&none);
            let (old, new) = (self.config.services.get(name), file.services.get(name));
            let lines = plan::service_changes(name, old, new);
            let moved = match (before, after) {
                (Some(before), Some(after)) => slots::share_moved(before, after),
                _ => 0.0,
            };
            let rehashed = rehashed(old, new);
            if lines.is_empty() && moved == 0.0 {
                continue;
            }
            services.push(wire::ServicePreview {
                name: name.clone(),
                what: match (old, new) {
                    (None, _) => "added",
                    (_, None) => "removed",
                    _ => "changed",
                }
                .to_owned(),
                changes: lines,
                slots_moved: if rehashed { 1.0 } else { moved },
                pinned: connections.pinned.values().sum(),
                leaving: connections
                    .pinned
                    .iter()
                    .filter(|(real, _)| new.is_none_or(|new| !has(new, real.ip())))
                    .map(|(_, count)| count)
                    .sum(),
                flows_moving: self.config.node.flow_accounting.then(|| match (before, after, old) {
                    (Some(before), Some(after), Some(old)) if !rehashed => {
                        let moves = |flow: &&Flow| moves(&hash, old, before, after, flow.source);
                        connections.flows.iter().filter(moves).count() as u64
                    }
                    _ => connections.flows.len() as u64,
                }),
            });
        }
        if !self.config.node.flow_accounting {
            notes.push(
                "connections that the slots alone keep in place are not counted here (flow_accounting = true in [node] \
                 does)"
                    .to_owned(),
            );
        }
        let known = dealt.iter().filter_map(|(name, table)| Some((tables.services.get(name)?, table)));
        let shares: Vec<f64> = known.map(|(before, after)| slots::share_moved(before, after)).collect();
        wire::ReloadReply {
            dry_run: true,
            services,
            slots_moved: shares.iter().sum::<f64>() / shares.len().max(1) as f64,
            notes,
            ..wire::ReloadReply::default()
        }
    }

    fn connections_by_service(&self) -> (BTreeMap<String, Connections>, Vec<String>) {
        let mut all: BTreeMap<String, Connections> = BTreeMap::new();
        let mut notes = Vec::new();
        match self.dataplane.pins(monotonic_seconds()) {
            Ok(pins) => {
                for pin in pins {
                    *all.entry(pin.service).or_default().pinned.entry(pin.real).or_default() += 1;
                }
            }
            Err(error) => notes.push(format!("connections are not counted: {error}")),
        }
        if self.config.node.flow_accounting {
            match self.dataplane.flows() {
                Ok(flows) => {
                    for flow in flows {
                        if let Some(service) = flow.service.clone() {
                            all.entry(service).or_default().flows.push(flow);
                        }
                    }
                }
                Err(error) => notes.push(format!("flows are not counted: {error}")),
            }
        }
        (all, notes)
    }
}

/// Whether every flow gets another slot.
fn rehashed(old: Option<&Service>, new: Option<&Service>) -> bool {
    let both = old.zip(new);
    both.is_some_and(|(old, new)| (old.hash_port, old.slots) != (new.hash_port, new.slots))
}

/// The form in which the hash takes an address.
fn address(address: IpAddr) -> Address {
    match address {
        IpAddr::V4(address) => Address::from_ipv4(address.octets()),
        IpAddr::V6(address) => Address(address.octets()),
    }
}

fn has(service: &Service, real: IpAddr) -> bool {
    service.reals.iter().any(|known| known.address == real)
}

/// Whether the slot of a client changes its real server.
fn moves(
    hash: &FlowHash,
    service: &Service,
    before: &ServiceTable,
    after: &ServiceTable,
    client: SocketAddr,
) -> bool {
    let input = if service.hash_port { HashInput::SourcePort } else { HashInput::Source };
    let count = u32::try_from(before.slots.len()).unwrap_or(u32::MAX);
    let persistence = service.tracking.and_then(|tracking| tracking.persistence);
    let source = persistence.map_or(client.ip(), |persistence| persistence.client(client.ip()));
    let slot = slot_of_flow(hash, address(source), client.port(), input, count);
    let owner = |table: &ServiceTable| {
        let position = table.slots.get(usize::try_from(slot).ok()?)?;
        table.reals.get(usize::from(*position)).map(|real| (real.address, real.port))
    };
    owner(before) != owner(after)
}
