//! What the node wants, computed from what it knows: pure functions of configuration, tables and next hops.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr};

use director_proto::tables::{SLOTS, ServiceTable, TableSet};
use ipnet::Ipv4Net;

use crate::config::{Config, Service};
use crate::slots;

/// Deals the tables of every configured service, starting from those in force.
pub(super) fn deal(config: &Config, in_force: Option<&TableSet>) -> BTreeMap<String, ServiceTable> {
    config
        .services
        .iter()
        .map(|(name, service)| {
            let previous = in_force.and_then(|tables| tables.services.get(name));
            (name.clone(), slots::deal(service.scheduler, SLOTS, previous, &service.reals))
        })
        .collect()
}

/// Whether two sets of tables forward alike and were dealt by the same weights. Positions that a server left
/// behind do not count: they are no reason for an epoch.
pub(super) fn same_effect(
    ours: &BTreeMap<String, ServiceTable>,
    theirs: &BTreeMap<String, ServiceTable>,
) -> bool {
    let live = |table: &ServiceTable| {
        let reals = table.reals.iter().enumerate().filter(|(_, real)| real.weight > 0);
        reals.map(|(position, real)| (position, real.clone())).collect::<Vec<_>>()
    };
    ours.keys().eq(theirs.keys())
        && ours.values().zip(theirs.values()).all(|(ours, theirs)| {
            ours.scheduler == theirs.scheduler && ours.slots == theirs.slots && live(ours) == live(theirs)
        })
}

/// A prefix to announce.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Announcement {
    /// OSPF metric.
    pub(super) metric: u16,
    /// Service the prefix is the VIP of; empty for the node's own.
    pub(super) service: String,
}

/// Everything to announce: the node's own prefixes, and, while `serving`, each VIP that has a service with a
/// real server to forward to. A VIP shared by services takes the lowest metric.
pub(super) fn announcements(
    config: &Config,
    tables: Option<&TableSet>,
    reachable: impl Fn(IpAddr) -> bool,
    serving: bool,
) -> BTreeMap<Ipv4Net, Announcement> {
    let mut announcements = BTreeMap::new();
    for prefix in config.ospf.iter().flat_map(|ospf| &ospf.announce) {
        announcements.insert(*prefix, Announcement { metric: 0, service: String::new() });
    }
    if !serving {
        return announcements;
    }
    for (name, service) in &config.services {
        let table = tables.and_then(|tables| tables.services.get(name));
        if table.is_some_and(|table| can_serve(table, &reachable)) {
            let announcement = Announcement { metric: service.metric, service: name.clone() };
            announcements
                .entry(host(service.vip))
                .and_modify(|present: &mut Announcement| {
                    present.metric = present.metric.min(announcement.metric);
                })
                .or_insert(announcement);
        }
    }
    announcements
}

/// The VIP as a host route.
pub(super) fn host(vip: Ipv4Addr) -> Ipv4Net {
    Ipv4Net::from(vip)
}

/// Every VIP of the configuration: routes to them are never learned from others.
pub(super) fn vips(config: &Config) -> BTreeSet<Ipv4Net> {
    config.services.values().map(|service| host(service.vip)).collect()
}

/// Whether any real server that takes new flows can be reached.
fn can_serve(table: &ServiceTable, reachable: impl Fn(IpAddr) -> bool) -> bool {
    table.reals.iter().any(|real| real.weight > 0 && reachable(real.address))
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
        ("[ospf]", old.ospf == new.ospf),
        ("[cluster]", old.cluster == new.cluster),
        ("[metrics]", old.metrics == new.metrics),
    ] {
        if !same {
            return Err(format!(
                "{section} has changed: that needs a restart of this director (forwarding goes on meanwhile)"
            ));
        }
    }
    let mut changes = Vec::new();
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

fn service_differences(name: &str, old: &Service, new: &Service) -> Vec<String> {
    let weights = |service: &Service| -> BTreeMap<(IpAddr, u16), u32> {
        service.reals.iter().map(|real| ((real.address, real.port), real.weight)).collect()
    };
    let (before, after) = (weights(old), weights(new));
    let mut lines = Vec::new();
    for ((address, port), weight) in &after {
        match before.get(&(*address, *port)) {
            None => {
                lines.push(format!("service {name:?}: real server {address}:{port} added, weight {weight}"))
            }
            Some(old) if old != weight => {
                lines
                    .push(format!("service {name:?}: real server {address}:{port} weight {old} -> {weight}"));
            }
            Some(_) => {}
        }
    }
    for (address, port) in before.keys().filter(|key| !after.contains_key(*key)) {
        lines.push(format!("service {name:?}: real server {address}:{port} removed"));
    }
    let rest = |service: &Service| Service { reals: Vec::new(), ..service.clone() };
    if rest(old) != rest(new) {
        lines.push(format!("service {name:?}: settings changed"));
    }
    lines
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use director_proto::tables::{Epoch, TableSet};

    use super::{announcements, deal, differences};
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
        TableSet { epoch, hash_key: [1; 16], services: deal(config, None) }
    }

    #[test]
    fn a_vip_is_announced_only_with_tables_and_a_reachable_real_server() {
        let config = config(TEXT);
        let tables = tables(&config);
        let vip = "203.0.113.10/32".parse().expect("prefix");
        let own = "10.255.0.1/32".parse().expect("prefix");
        let all = announcements(&config, Some(&tables), |_| true, true);
        assert_eq!(all[&vip].metric, 5);
        assert!(all.contains_key(&own));
        let one = announcements(&config, Some(&tables), |real| real.to_string() == "10.0.2.11", true);
        assert_eq!(one[&vip].metric, 10);
        for without in [
            announcements(&config, Some(&tables), |_| false, true),
            announcements(&config, Some(&tables), |_| true, false),
            announcements(&config, None, |_| true, true),
        ] {
            assert_eq!(without.keys().collect::<Vec<_>>(), [&own]);
        }
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
                "service \"b\": real server 10.0.2.13:443 added, weight 3".to_owned(),
                "service \"b\": real server 10.0.2.12:443 removed".to_owned(),
            ])
        );
        assert_eq!(
            lines(&TEXT.replace("metric = 5", "metric = 6")),
            Ok(vec!["service \"b\": settings changed".to_owned()])
        );
        assert!(
            lines(&TEXT.replace("[\"eth1\"]", "[\"eth2\"]")).expect_err("interfaces").starts_with("[node]")
        );
    }
}
