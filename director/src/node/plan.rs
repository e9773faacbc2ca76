//! What the node wants, computed from what it knows: pure functions of configuration, tables and next hops.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use director_proto::health::{Health, RealId};
use director_proto::tables::{ServiceTable, TableReal, TableSet};
use ipnet::IpNet;
use routing::AnnounceAs;
use syncd::HealthView;

use super::cluster;
use crate::config::{Config, Forwarding, Real, Service};
use crate::slots::{self, Member};

/// Deals the tables of every configured service, starting from those in force. A real server is dead if the cluster
/// finds it so; where nobody has an opinion, it stays what it was.
pub(super) fn deal(
    config: &Config,
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
            (name.clone(), slots::deal(service.scheduler, service.slots as usize, previous, &members))
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

/// Whether two sets of tables forward alike and were dealt by the same weights. Positions that a server left
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
            ours.scheduler == theirs.scheduler && ours.slots == theirs.slots && live(ours) == live(theirs)
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
            Some(old) => changes.extend(changes_of_reals(name, old, table)),
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
    /// Service the prefix is the VIP of; empty for the node's own.
    pub(super) service: String,
}

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
        announcements
            .insert(*prefix, Announcement { metric: 0, announce: AnnounceAs::Stub, service: String::new() });
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
                })
                .or_insert_with(|| Announcement {
                    metric: service.metric,
                    announce: service.announce,
                    service: name.clone(),
                });
        }
    }
    announcements
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
    for (name, service) in &new.services {
        match old.services.get(name) {
            None => changes.push(format!("service {name:?} added")),
            Some(before) if before != service => changes.extend(service_differences(name, before, service)),
            Some(_) => {}
        }
    }
    for name in old.services.keys().filter(|name| !new.services.contains_key(*name)) {
        changes.push(format!("service {name:?} removed"));
    }
    Ok(changes)
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
fn settings(service: &Service) -> [(&'static str, String); 12] {
    let Service {
        addresses, forwarding, scheduler: _, tracking, slots, hash_port, timeouts, datagrams, ..
    } = service;
    let Service { metric, announce, health, quorum, reals: _, .. } = service;
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
        ("health check", health.as_ref().map_or("none".to_owned(), ToString::to_string)),
        ("quorum", format!("{}, hysteresis {}", quorum.needed, quorum.hysteresis)),
    ]
}

#[cfg(test)]
mod tests {
    use std::net::IpAddr;
    use std::path::Path;

    use director_proto::tables::{Epoch, TableSet};
    use ipnet::IpNet;

    use std::collections::BTreeSet;

    use director_proto::health::RealId;
    use syncd::{HealthView, Votes};

    use super::{announcements, deal, differences, quorate, same_effect};
    use crate::config::Config;

    const TEXT: &str = r#"
[node]
router_id = "10.255.0.1"
interfaces = ["eth1"]
[ospf]
announce = ["10.255.0.1/32"]
[[ospf.interface]]
name = "eth1"
[[service]]
name = "a"
vip = "203.0.113.10"
port = 80
[[service.real]]
address = "10.0.2.11"
[[service]]
name = "b"
vip = "203.0.113.10"
port = 443
metric = 5
[[service.real]]
address = "10.0.2.12"
"#;

    fn config(text: &str) -> Config {
        Config::parse(Path::new("d.toml"), text).expect("valid")
    }

    fn tables(config: &Config) -> TableSet {
        let epoch = Epoch { number: 1, leader: config.node.router_id };
        TableSet { epoch, hash_key: [1; 16], services: deal(config, None, &HealthView::new()) }
    }

    #[test]
    fn a_vip_is_announced_only_with_tables_and_a_reachable_real_server() {
        let config = config(TEXT);
        let tables = tables(&config);
        let vip: IpNet = "203.0.113.10/32".parse().expect("prefix");
        let own: IpNet = "10.255.0.1/32".parse().expect("prefix");
        let quorate = quorate(&config, Some(&tables), &BTreeSet::new());
        let all = announcements(&config, Some(&tables), &quorate, |_| true, true);
        assert_eq!(all[&vip].metric, 5);
        assert!(all.contains_key(&own));
        let one =
            announcements(&config, Some(&tables), &quorate, |real| real.to_string() == "10.0.2.11", true);
        assert_eq!(one[&vip].metric, 10);
        for without in [
            announcements(&config, Some(&tables), &quorate, |_| false, true),
            announcements(&config, Some(&tables), &quorate, |_| true, false),
            announcements(&config, None, &quorate, |_| true, true),
        ] {
            assert_eq!(without.keys().collect::<Vec<_>>(), [&own]);
        }
    }

    #[test]
    fn what_the_cluster_finds_dead_gets_no_slots_until_it_finds_it_live() {
        let text = TEXT.replace("port = 443", "port = 443\nquorum = 2\nhealth = { check = \"tcp\" }");
        let config = config(&format!("{text}[[service.real]]\naddress = \"10.0.2.13\""));
        let real = RealId { service: "b".into(), address: "10.0.2.12".parse().expect("address"), port: 443 };
        let view = |up, down| HealthView::from([(real.clone(), Votes { up, down })]);
        let mut tables = tables(&config);
        let (mut had, mut dead) = (BTreeSet::new(), Vec::new());
        for health in [view(1, 1), view(1, 2), HealthView::new(), view(2, 1)] {
            tables.services = deal(&config, Some(&tables), &health);
            had = quorate(&config, Some(&tables), &had);
            let table = &tables.services["b"];
            let dead_now = table.reals.iter().any(|real| real.dead);
            let position = table.reals.iter().position(|known| known.address == real.address);
            let named = table.slots.iter().any(|slot| Some(usize::from(*slot)) == position);
            assert_eq!((named, had.contains("b")), (!dead_now, !dead_now));
            assert!(had.contains("a"), "another service's health");
            dead.push(dead_now);
        }
        // A tie counts as up; without an opinion it stays as it was.
        assert_eq!(dead, [false, true, true, false]);
    }

    #[test]
    fn a_drained_service_stays_announced_while_one_of_its_servers_can_be_reached() {
        let drained = config(&TEXT.replace("address = \"10.0.2.12\"", "address = \"10.0.2.12\"\nweight = 0"));
        let mut tables = tables(&config(TEXT));
        tables.services = deal(&drained, Some(&tables), &HealthView::new());
        let metric = |tables: &TableSet, reachable: fn(IpAddr) -> bool| {
            let quorate = quorate(&drained, Some(tables), &BTreeSet::new());
            let all = announcements(&drained, Some(tables), &quorate, reachable, true);
            all.get(&"203.0.113.10/32".parse::<IpNet>().expect("prefix")).map(|vip| vip.metric)
        };
        // The metric is the drained service's, which is the lower one, as long as it is announced.
        assert_eq!(metric(&tables, |_| true), Some(5));
        assert_eq!(metric(&tables, |real| real.to_string() != "10.0.2.12"), Some(10));
        let reals = &mut tables.services.get_mut("b").expect("service").reals;
        reals.iter_mut().for_each(|real| real.dead = true);
        assert_eq!(metric(&tables, |_| true), Some(10));
    }

    #[test]
    fn death_of_a_drained_server_is_a_reason_for_an_epoch() {
        let health = "weight = 0\n[service.health]\ncheck = \"tcp\"\n";
        let config =
            config(&TEXT.replace("address = \"10.0.2.12\"", &format!("address = \"10.0.2.12\"\n{health}")));
        let tables = tables(&config);
        let real = RealId { service: "b".into(), address: "10.0.2.12".parse().expect("address"), port: 443 };
        let after =
            |up, down| deal(&config, Some(&tables), &HealthView::from([(real.clone(), Votes { up, down })]));
        assert!(same_effect(&tables.services, &after(3, 0)));
        assert!(!same_effect(&tables.services, &after(0, 3)));
    }

    #[test]
    fn a_service_moved_to_another_port_keeps_its_servers_and_slots() {
        let (before, after) = (config(TEXT), config(&TEXT.replace("port = 443", "port = 444")));
        let mut tables = tables(&before);
        let ports = |tables: &TableSet| -> Vec<u16> {
            let specs = crate::node::cluster::specs(&after, tables);
            specs.iter().flat_map(|spec| &spec.reals).map(|real| real.port).collect()
        };
        assert_eq!(ports(&tables), [80, 444], "also with the table of before");
        let slots = tables.services["b"].slots.clone();
        tables.services = deal(&after, Some(&tables), &HealthView::new());
        assert_eq!((ports(&tables), &tables.services["b"].slots), (vec![80, 444], &slots));
    }

    #[test]
    fn a_service_without_a_live_real_server_is_announced_while_its_sorry_server_can_be_reached() {
        let keys =
            "port = 443\nscheduler = \"wlc\"\nsorry_server = \"10.0.2.99\"\nhealth = { check = \"tcp\" }";
        let config = config(&TEXT.replace("port = 443", keys));
        let mut tables = tables(&config);
        let real = RealId { service: "b".into(), address: "10.0.2.12".parse().expect("address"), port: 443 };
        let health = HealthView::from([(real, Votes { up: 0, down: 2 })]);
        tables.services = deal(&config, Some(&tables), &health);
        let quorate = quorate(&config, Some(&tables), &BTreeSet::new());
        assert!(!quorate.contains("b"));
        let metric = |tables: Option<&TableSet>, reachable: fn(IpAddr) -> bool| {
            let all = announcements(&config, tables, &quorate, reachable, true);
            all.get(&"203.0.113.10/32".parse::<IpNet>().expect("prefix")).map(|vip| vip.metric)
        };
        // The metric is that service's, as long as it is announced.
        assert_eq!(metric(Some(&tables), |_| true), Some(5));
        assert_eq!(metric(Some(&tables), |real| real.to_string() != "10.0.2.99"), Some(10));
        assert_eq!(metric(None, |_| true), None);
    }

    #[test]
    fn a_reload_lists_every_change_and_refuses_what_it_cannot_follow() {
        let old = config(TEXT);
        let lines = |text: &str| differences(&old, &config(text));
        assert_eq!(lines(TEXT), Ok(vec![]));
        let changed = TEXT.replace("address = \"10.0.2.12\"", "address = \"10.0.2.13\"\nweight = 3");
        assert_eq!(
            lines(&changed),
            Ok(vec![
                "service \"b\": real server 10.0.2.13 added, weight 3".to_owned(),
                "service \"b\": real server 10.0.2.12 removed".to_owned(),
            ])
        );
        assert_eq!(
            lines(&TEXT.replace("metric = 5", "metric = 6")),
            Ok(vec!["service \"b\": metric: 5 -> 6".to_owned()])
        );
        assert!(
            lines(&TEXT.replace("[\"eth1\"]", "[\"eth2\"]")).expect_err("interfaces").starts_with("[node]")
        );
    }

    #[test]
    fn a_reload_follows_of_ospf_what_an_adjacency_outlives() {
        let with = |line: &str| TEXT.replace("[[ospf.interface]]", &format!("[[ospf.interface]]\n{line}"));
        let keyed = |secret: &str| {
            with(&format!("keys = [{{ id = 1, algorithm = \"hmac-sha-256\", secret = \"{secret}\" }}]"))
        };
        let old = config(&keyed("yesterday"));
        let changed = "[ospf] interface \"eth1\": authentication changed".to_owned();
        assert_eq!(differences(&old, &config(&keyed("yesterday"))), Ok(vec![]));
        assert_eq!(differences(&old, &config(&keyed("tomorrow"))), Ok(vec![changed.clone()]));
        assert_eq!(differences(&old, &config(TEXT)), Ok(vec![changed]));
        let plain = config(TEXT);
        let line = |text: &str| Ok(vec![format!("[ospf] {text}")]);
        assert_eq!(
            differences(&plain, &config(&with("cost = 20"))),
            line("interface \"eth1\": cost: 10 -> 20")
        );
        assert_eq!(
            differences(&plain, &config(&with("bfd = { interval_ms = 50 }"))),
            line("interface \"eth1\": bfd: none -> 50 ms x 3")
        );
        let announced = TEXT.replace("announce = [", "announce = [\"10.255.9.9/32\", ");
        assert_eq!(differences(&plain, &config(&announced)), line("announce: 10.255.9.9/32 added"));
        let faster = TEXT.replace("[ospf]", "[ospf]\nhello_interval = 1");
        assert_eq!(
            differences(&plain, &config(&faster)).map(|lines| lines.len()),
            Ok(2),
            "dead_interval, too"
        );
        for line in ["ttl_security = true", "area = \"0.0.0.9\"", "passive = true"] {
            let refused = differences(&plain, &config(&with(line))).expect_err("a restart");
            let setting = line.split(' ').next().expect("a word");
            assert!(refused.starts_with("[ospf] ") && refused.contains(setting), "{refused}");
        }
    }

    #[test]
    fn ipv6_vips_and_all_of_a_groups_prefixes_are_wanted() {
        let text =
            TEXT.replacen("203.0.113.10", "2001:db8::10", 1).replacen("10.0.2.11", "2001:db8:2::11", 1);
        let mut config = config(&text);
        let b = config.services.get_mut("b").expect("service");
        b.addresses.push(crate::config::VirtualAddress {
            prefix: "203.0.113.64/28".parse().expect("prefix"),
            ..b.addresses[0]
        });
        let tables = tables(&config);
        let quorate = quorate(&config, Some(&tables), &BTreeSet::new());
        let wanted = announcements(&config, Some(&tables), &quorate, |_| true, true);
        let wanted: Vec<String> = wanted.keys().map(ToString::to_string).collect();
        assert_eq!(wanted, ["10.255.0.1/32", "203.0.113.10/32", "203.0.113.64/28", "2001:db8::10/128"]);
        assert_eq!(super::vips(&config).len(), 3);
    }

    #[test]
    fn a_reload_names_each_setting_and_what_it_was() {
        let text = TEXT.replace("[\"eth1\"]", "[\"eth1\"]\ntunnel_source = [\"10.255.0.1\"]");
        let old = config(&text);
        for (from, to, line) in [
            ("metric = 5", "metric = 5\nforwarding = \"tunnel\"", "forwarding: dr -> tunnel ipip"),
            ("metric = 5", "metric = 5\nhash = \"source-port\"", "hash: source -> source-port"),
            ("metric = 5", "metric = 5\nscheduler = \"ch\"", "scheduler: mh -> ch"),
            ("port = 443", "port = 444", "addresses: tcp 203.0.113.10:443 -> tcp 203.0.113.10:444"),
            (
                "address = \"10.0.2.12\"",
                "address = \"10.0.2.12\"\nweight = 0",
                "real server 10.0.2.12 weight 1 -> 0 (draining)",
            ),
        ] {
            let expected = format!("service \"b\": {line}");
            assert_eq!(differences(&old, &config(&text.replace(from, to))), Ok(vec![expected]));
        }
        let mut new = old.clone();
        let b = new.services.get_mut("b").expect("service");
        b.timeouts.udp = std::time::Duration::from_secs(7);
        b.datagrams = crate::config::Datagrams::Quic { offset: 1, length: 2 };
        b.reals[0].quic_id = Some(7);
        assert_eq!(
            differences(&old, &new),
            Ok(vec![
                "service \"b\": real server 10.0.2.12 quic_id changed".to_owned(),
                "service \"b\": timeouts: established 900 s, fin 120 s, udp 300 s -> established 900 s, fin 120 s, \
                 udp 7 s"
                    .to_owned(),
                "service \"b\": datagrams: tracked -> quic offset 1 length 2".to_owned(),
            ])
        );
    }
}
