//! What the node wants, computed from what it knows: pure functions of configuration, tables and next hops.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use director_proto::definitions::Definitions;
use director_proto::health::{Health, RealId};
use director_proto::tables::{ServiceTable, TableReal, TableSet};
use ipnet::IpNet;
use routing::{AnnounceAs, ExternalConfig, MetricType};
use syncd::HealthView;

use super::cluster;
use crate::config::{Config, Forwarding, Real, Service};
use crate::slots::{self, Member};

/// Deals the tables of every configured service, starting from those in force. A real server is dead if the cluster
/// finds it so; where nobody has an opinion, it stays what it was.
pub(super) fn deal(
    config: &Config,
    definitions: &Definitions,
    in_force: Option<&TableSet>,
    health: &HealthView,
) -> BTreeMap<String, ServiceTable> {
    config
        .services
        .iter()
        .map(|(name, service)| {
            let previous = in_force.and_then(|tables| tables.services.get(name));
            let previous = previous.map(|table| with_ports_of(service, table));
            let previous = previous.as_ref();
            let members: Vec<Member> = service
                .members()
                .into_iter()
                .map(|real| Member { dead: is_dead(name, service, &real, previous, health), ..real })
                .collect();
            let table = slots::deal(service.scheduler, service.slots as usize, previous, &members);
            let definition = definitions.get(name).cloned().unwrap_or_default();
            (name.clone(), ServiceTable { definition, ..table })
        })
        .collect()
}

/// A table in force, with the ports that its real servers have by now. Where packets keep theirs, a service that is
/// moved to another port has the same real servers as before.
fn with_ports_of(service: &Service, table: &ServiceTable) -> ServiceTable {
    let mut table = table.clone();
    if !matches!(service.forwarding, Forwarding::Nat | Forwarding::FullNat) {
        for known in &mut table.reals {
            let same = service.reals.iter().find(|real| real.address == known.address);
            known.port = same.map_or(known.port, |real| real.port);
        }
    }
    table
}

fn is_dead(
    name: &str,
    service: &Service,
    real: &Member,
    in_force: Option<&ServiceTable>,
    health: &HealthView,
) -> bool {
    if service.health.is_none() {
        return false;
    }
    let id = RealId { service: name.to_owned(), address: real.address, port: real.port };
    let same = |known: &&TableReal| (known.address, known.port) == (real.address, real.port);
    match health.get(&id).map_or(Health::Unknown, |votes| votes.verdict()) {
        Health::Up => false,
        Health::Down => true,
        Health::Unknown => {
            in_force.and_then(|table| table.reals.iter().find(same)).is_some_and(|known| known.dead)
        }
    }
}

/// Whether two sets of tables say the same of their services, forward alike and were dealt by the same weights. Positions that a server left
/// behind do not count: they are no reason for an epoch. That one of weight 0 is dead is: its connections are given up.
pub(super) fn same_effect(
    ours: &BTreeMap<String, ServiceTable>,
    theirs: &BTreeMap<String, ServiceTable>,
) -> bool {
    let live = |table: &ServiceTable| {
        let reals = table.reals.iter().enumerate().filter(|(_, real)| real.weight > 0 || real.dead);
        reals.map(|(position, real)| (position, real.clone())).collect::<Vec<_>>()
    };
    ours.keys().eq(theirs.keys())
        && ours.values().zip(theirs.values()).all(|(ours, theirs)| {
            (&ours.scheduler, &ours.definition) == (&theirs.scheduler, &theirs.definition)
                && ours.slots == theirs.slots
                && live(ours) == live(theirs)
        })
}

/// Changes that a cause names; of the others it gives the number.
const NAMED_CHANGES: usize = 4;

/// Why tables change, in words for the logs of all directors.
pub(super) fn cause(before: Option<&TableSet>, after: &BTreeMap<String, ServiceTable>) -> String {
    let Some(before) = before else { return "the first tables".to_owned() };
    let mut changes = Vec::new();
    for (name, table) in after {
        match before.services.get(name) {
            None => changes.push(format!("service {name} added")),
            Some(old) if old.scheduler != table.scheduler => {
                changes.push(format!("{name}: scheduler {} -> {}", old.scheduler, table.scheduler));
            }
            Some(old) => {
                let reals = changes_of_reals(name, old, table);
                if reals.is_empty() && old.definition != table.definition && !old.definition.is_empty() {
                    changes.push(format!("{name}: other settings"));
                }
                changes.extend(reals);
            }
        }
    }
    let gone = before.services.keys().filter(|name| !after.contains_key(*name));
    changes.extend(gone.map(|name| format!("service {name} removed")));
    let more = changes.len().saturating_sub(NAMED_CHANGES);
    changes.truncate(NAMED_CHANGES);
    match (changes.is_empty(), more) {
        (true, _) => "slots dealt anew".to_owned(),
        (false, 0) => changes.join(", "),
        (false, more) => format!("{} and {more} more", changes.join(", ")),
    }
}

fn changes_of_reals(name: &str, old: &ServiceTable, new: &ServiceTable) -> Vec<String> {
    let by_address = |table: &ServiceTable| -> BTreeMap<(IpAddr, u16), TableReal> {
        table.reals.iter().map(|real| ((real.address, real.port), real.clone())).collect()
    };
    let (before, after) = (by_address(old), by_address(new));
    let mut changes = Vec::new();
    for (place, real) in &after {
        let what = match before.get(place) {
            Some(old) if old == real => continue,
            Some(old) if old.dead != real.dead => {
                if real.dead { "found dead" } else { "found live" }.to_owned()
            }
            Some(old) => format!("weight {} -> {}", old.weight, real.weight),
            None => format!("added, weight {}", real.weight),
        };
        changes.push(format!("{name}: {} {what}", real.address));
    }
    let gone = before.keys().filter(|place| !after.contains_key(*place));
    changes.extend(gone.map(|(address, _)| format!("{name}: {address} removed")));
    changes
}

/// A prefix to announce.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Announcement {
    /// OSPF metric.
    pub(super) metric: u16,
    /// As what OSPF announces it.
    pub(super) announce: AnnounceAs,
    /// Metric type and tag as an external; `None`: those of `[ospf]`.
    pub(super) external: Option<ExternalConfig>,
    /// For whom.
    pub(super) purpose: Purpose,
}

impl From<&Announcement> for routing::Announcement {
    fn from(said: &Announcement) -> Self {
        Self { metric: said.metric, kind: said.announce, external: said.external }
    }
}

/// For whom a prefix is announced.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Purpose {
    /// The node itself, whether it serves or not.
    Node,
    /// The service that it is a VIP of.
    Service(String),
    /// Clients of services with full NAT, for whom the address stands here.
    Local,
    /// The same of another director, should nobody else announce it.
    Backup,
}

impl Purpose {
    /// The service's name, if it is for one.
    pub(super) fn service(&self) -> Option<&str> {
        match self {
            Self::Service(name) => Some(name),
            Self::Node | Self::Local | Self::Backup => None,
        }
    }
}

/// The metric of local addresses of other directors: whatever the way to their owner costs, it is the better one; and
/// better than that of a director that is drained (`drain::METRIC`).
pub(super) const BACKUP_METRIC: u16 = 1 << 15;

/// Services that have their quorum of live real servers in the tables, given those that `had` it before. One whose
/// real servers all have weight 0 takes no new connections, but those it has go on: it needs one of them live.
pub(super) fn quorate(
    config: &Config,
    tables: Option<&TableSet>,
    had: &BTreeSet<String>,
) -> BTreeSet<String> {
    let has = |(name, service): (&String, &Service)| {
        let table = tables?.services.get(name)?;
        if is_drained(service) {
            return drained(service, table).any(|real| !real.dead).then(|| name.clone());
        }
        let taking = table.reals.iter().filter(|real| real.weight > 0);
        let (live, dead): (Vec<&TableReal>, Vec<&TableReal>) = taking.partition(|real| !real.dead);
        let (live, all) = (live.len() as u32, (live.len() + dead.len()) as u32);
        service.quorum.holds(had.contains(name), live, all).then(|| name.clone())
    };
    config.services.iter().filter_map(has).collect()
}

/// Whether every configured real server has weight 0. A service without any is not drained but empty.
fn is_drained(service: &Service) -> bool {
    !service.reals.is_empty() && service.reals.iter().all(|real| real.weight == 0)
}

/// The configured real servers of weight 0, as the table has them.
fn drained<'a>(service: &'a Service, table: &'a ServiceTable) -> impl Iterator<Item = &'a TableReal> {
    let is_configured = |known: &&TableReal| {
        service.reals.iter().any(|real| real.weight == 0 && real.address == known.address)
    };
    table.reals.iter().filter(is_configured)
}

/// Everything to announce: the node's own prefixes, and, while `serving`, each VIP that has a service with its
/// quorum (`quorate`) and a real server to forward to, or with a sorry server that can be reached. A VIP shared by
/// services takes the lowest metric, and is a stub link if it is for one of them.
pub(super) fn announcements(
    config: &Config,
    tables: Option<&TableSet>,
    quorate: &BTreeSet<String>,
    reachable: impl Fn(IpAddr) -> bool,
    serving: bool,
) -> BTreeMap<IpNet, Announcement> {
    let mut announcements = BTreeMap::new();
    for prefix in config.ospf.iter().flat_map(|ospf| &ospf.announce) {
        let node =
            Announcement { metric: 0, announce: AnnounceAs::Stub, external: None, purpose: Purpose::Node };
        announcements.insert(*prefix, node);
    }
    if !serving {
        return announcements;
    }
    for (name, service) in &config.services {
        let Some(table) = tables.and_then(|tables| tables.services.get(name)) else { continue };
        let by_reals = quorate.contains(name) && can_serve(service, table, &reachable);
        if !by_reals && !service.sorry_server().is_some_and(&reachable) {
            continue;
        }
        for prefix in service.prefixes() {
            announcements
                .entry(prefix)
                .and_modify(|present: &mut Announcement| {
                    present.metric = present.metric.min(service.metric);
                    present.announce = present.announce.min(service.announce);
                    // Of the first by name that says something.
                    present.external = present.external.or(service.external);
                })
                .or_insert_with(|| Announcement {
                    metric: service.metric,
                    announce: service.announce,
                    external: service.external,
                    purpose: Purpose::Service(name.clone()),
                });
        }
    }
    announcements
}

/// Adds local addresses to what is announced, each by a route to the address alone: this director's own, and those of
/// `others`, which it takes over where nobody else announces them. Own ones only while `serving`, also if they are among
/// the node's prefixes: what comes to them is for connections that must be known here. Whatever another director says is
/// its own, a VIP or a real server is none.
pub(super) fn announce_locals(
    announcements: &mut BTreeMap<IpNet, Announcement>,
    config: &Config,
    others: &BTreeSet<IpAddr>,
    serving: bool,
) {
    let own = &config.node.locals.addresses;
    let vips = vips(config);
    let is_other = |address: &IpAddr| {
        let mut reals = config.services.values().flat_map(|service| &service.reals);
        !vips.iter().any(|vip| vip.contains(address)) && !reals.any(|real| real.address == *address)
    };
    let of = |metric, purpose| Announcement { metric, announce: AnnounceAs::Stub, external: None, purpose };
    for address in own {
        match serving {
            true => announcements.insert(IpNet::from(*address), of(0, Purpose::Local)),
            false => announcements.remove(&IpNet::from(*address)),
        };
    }
    for address in others.iter().filter(|address| serving && is_other(address)) {
        let backup = || of(BACKUP_METRIC, Purpose::Backup);
        announcements.entry(IpNet::from(*address)).or_insert_with(backup);
    }
}

/// Every VIP of the configuration: routes to them are never learned from others.
pub(super) fn vips(config: &Config) -> BTreeSet<IpNet> {
    config.services.values().flat_map(Service::prefixes).collect()
}

/// Whether any real server that takes new flows can be reached; of a drained service, one that still has some.
fn can_serve(service: &Service, table: &ServiceTable, reachable: impl Fn(IpAddr) -> bool) -> bool {
    if is_drained(service) {
        return drained(service, table).any(|real| !real.dead && reachable(real.address));
    }
    table.reals.iter().any(|real| real.share() > 0 && reachable(real.address))
}

/// Share of all slots, over the services that both sets know, that `after` gives to other servers.
pub(super) fn share_moved(before: &TableSet, after: &TableSet) -> f64 {
    let pairs = after.services.iter().filter_map(|(name, table)| Some((before.services.get(name)?, table)));
    let shares: Vec<f64> = pairs.map(|(old, new)| slots::share_moved(old, new)).collect();
    match shares.len() {
        0 => 0.0,
        count => shares.iter().sum::<f64>() / count as f64,
    }
}

/// What a reload changes, one line each; an error where the running process cannot follow.
pub(super) fn differences(old: &Config, new: &Config) -> Result<Vec<String>, String> {
    for (section, same) in [
        ("[node]", old.node == new.node),
        ("[cluster]", old.cluster == new.cluster),
        ("[metrics]", old.metrics == new.metrics),
    ] {
        if !same {
            return Err(format!(
                "{section} has changed: that needs a restart of this director (forwarding goes on meanwhile)"
            ));
        }
    }
    let mut changes = ospf_differences(old, new)?;
    changes.extend(services_differences(old, new));
    Ok(changes)
}

/// How two configurations differ in their services, one line for each service and key.
pub(super) fn services_differences(old: &Config, new: &Config) -> Vec<String> {
    let gone = old.services.keys().filter(|name| !new.services.contains_key(*name));
    let names = new.services.keys().chain(gone);
    names.flat_map(|name| service_changes(name, old.services.get(name), new.services.get(name))).collect()
}

/// How one service differs; nothing where it is the same.
pub(super) fn service_changes(name: &str, old: Option<&Service>, new: Option<&Service>) -> Vec<String> {
    match (old, new) {
        (None, None) => Vec::new(),
        (None, Some(_)) => vec![format!("service {name:?} added")],
        (Some(_), None) => vec![format!("service {name:?} removed")],
        (Some(old), Some(new)) if old == new => Vec::new(),
        (Some(old), Some(new)) => service_differences(name, old, new),
    }
}

/// What of `[ospf]` changes; an error where an adjacency would not outlive it.
fn ospf_differences(old: &Config, new: &Config) -> Result<Vec<String>, String> {
    let (before, after) = match (cluster::routing_config(old), cluster::routing_config(new)) {
        (Some(before), Some(after)) => (before, after),
        (None, None) => return Ok(Vec::new()),
        (Some(_), None) | (None, Some(_)) => {
            return Err(
                "[ospf] has come or gone: that needs a restart of this director (forwarding goes on \
                        meanwhile)"
                    .to_owned(),
            );
        }
    };
    let changes = before.changes_to(&after).map_err(|error| format!("[ospf] {error}"))?;
    let mut lines: Vec<String> = changes.into_iter().map(|change| format!("[ospf] {change}")).collect();
    let own = |config: &Config| -> BTreeSet<IpNet> {
        config.ospf.iter().flat_map(|ospf| &ospf.announce).copied().collect()
    };
    let (before, after) = (own(old), own(new));
    lines.extend(after.difference(&before).map(|prefix| format!("[ospf] announce: {prefix} added")));
    lines.extend(before.difference(&after).map(|prefix| format!("[ospf] announce: {prefix} removed")));
    Ok(lines)
}

fn service_differences(name: &str, old: &Service, new: &Service) -> Vec<String> {
    let reals = |service: &Service| -> BTreeMap<IpAddr, Real> {
        service.reals.iter().map(|real| (real.address, *real)).collect()
    };
    let (before, after) = (reals(old), reals(new));
    let mut lines = Vec::new();
    // A port that is written, other than the service's: that is told of the service.
    let mapped =
        |service: &Service, real: &Real| Some(real.port).filter(|port| Some(*port) != service.one_port());
    for (address, real) in &after {
        let what = match before.get(address) {
            None => format!("added, {}", weight(real)),
            Some(before)
                if *before == (Real { port: before.port, ..*real })
                    && mapped(old, before) == mapped(new, real) =>
            {
                continue;
            }
            Some(old) if old.weight != real.weight => {
                format!("weight {} -> {}{}", old.weight, real.weight, draining(real))
            }
            Some(before) if mapped(old, before) != mapped(new, real) => {
                format!("port {} -> {}", before.port, real.port)
            }
            Some(old) if old.thresholds != real.thresholds => {
                format!(
                    "thresholds {}/{} -> {}/{}",
                    old.thresholds.upper, old.thresholds.lower, real.thresholds.upper, real.thresholds.lower
                )
            }
            Some(_) => "quic_id changed".to_owned(),
        };
        lines.push(format!("service {name:?}: real server {address} {what}"));
    }
    for address in before.keys().filter(|address| !after.contains_key(*address)) {
        lines.push(format!("service {name:?}: real server {address} removed"));
    }
    let changes = settings(old).into_iter().zip(settings(new)).filter(|(old, new)| old != new);
    lines.extend(changes.map(|((what, old), (_, new))| format!("service {name:?}: {what}: {old} -> {new}")));
    lines
}

fn weight(real: &Real) -> String {
    format!("weight {}{}", real.weight, draining(real))
}

fn draining(real: &Real) -> &'static str {
    if real.weight == 0 { " (draining)" } else { "" }
}

/// Everything of a service but its real servers, by name, as text. The pattern is exhaustive on purpose: a new
/// setting must get its line.
fn settings(service: &Service) -> [(&'static str, String); 13] {
    let Service {
        addresses, forwarding, scheduler: _, tracking, slots, hash_port, timeouts, datagrams, ..
    } = service;
    let Service { metric, announce, external, health, quorum, reals: _, .. } = service;
    let addresses: Vec<String> = addresses.iter().map(ToString::to_string).collect();
    [
        ("addresses", addresses.join(", ")),
        ("forwarding", forwarding.to_string()),
        ("scheduler", service.scheduler_name().to_owned()),
        ("tracking", tracking.map_or("none".to_owned(), |tracking| tracking.to_string())),
        ("slots", slots.to_string()),
        ("hash", if *hash_port { "source-port" } else { "source" }.to_owned()),
        ("timeouts", timeouts.to_string()),
        ("datagrams", datagrams.to_string()),
        ("metric", metric.to_string()),
        ("announce", if *announce == AnnounceAs::External { "external" } else { "stub" }.to_owned()),
        ("external", external.map_or("as [ospf] says".to_owned(), external_in_words)),
        ("health check", health.as_ref().map_or("none".to_owned(), ToString::to_string)),
        ("quorum", format!("{}, hysteresis {}", quorum.needed, quorum.hysteresis)),
    ]
}

fn external_in_words(ExternalConfig { metric_type, tag }: ExternalConfig) -> String {
    let number = match metric_type {
        MetricType::One => 1,
        MetricType::Two => 2,
    };
    format!("type {number}, tag {tag}")
}

#[cfg(test)]
mod tests;
