use std::net::IpAddr;
use std::path::Path;

use director_proto::tables::{Epoch, TableSet};
use ipnet::IpNet;

use std::collections::BTreeSet;

use director_proto::health::RealId;
use syncd::{HealthView, Votes};

use super::{
    BACKUP_METRIC, Purpose, announce_locals, announcements, deal, differences, quorate, same_effect,
};
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
    TableSet {
        epoch,
        hash_key: [1; 16],
        services: deal(config, &config.definitions, None, &HealthView::new()),
    }
}

#[test]
fn local_addresses_are_announced_while_serving_those_of_others_behind_their_owners() {
    let text = TEXT
        .replace("\"10.255.0.1/32\"]", "\"10.255.0.1/32\", \"10.8.0.1/32\"]")
        .replace("[ospf]", "local_addresses = [\"10.8.0.1\", \"2001:db8:f8::1\"]\n[ospf]");
    let config = config(&text);
    let tables = tables(&config);
    let prefix = |text: &str| -> IpNet { text.parse().expect("prefix") };
    let address = |text: &str| -> IpAddr { text.parse().expect("address") };
    let quorate = quorate(&config, Some(&tables), &BTreeSet::new());
    // One of them is a VIP here, and stays that; another one is a real server, which is nobody's.
    let others = BTreeSet::from(["10.8.0.2", "203.0.113.10", "10.0.2.12"].map(address));
    let all = |serving| {
        let mut all = announcements(&config, Some(&tables), &quorate, |_| true, serving);
        announce_locals(&mut all, &config, &others, serving);
        let told =
            all.into_iter().map(|(prefix, announcement)| (prefix, announcement.metric, announcement.purpose));
        told.collect::<Vec<_>>()
    };
    let serving = [
        (prefix("10.8.0.1/32"), 0, Purpose::Local),
        (prefix("10.8.0.2/32"), BACKUP_METRIC, Purpose::Backup),
        (prefix("10.255.0.1/32"), 0, Purpose::Node),
        (prefix("203.0.113.10/32"), 5, Purpose::Service("a".to_owned())),
        (prefix("2001:db8:f8::1/128"), 0, Purpose::Local),
    ];
    assert_eq!(all(true), serving);
    assert_eq!(all(false), [serving[2].clone()], "whatever [ospf] announce says");
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
    let one = announcements(&config, Some(&tables), &quorate, |real| real.to_string() == "10.0.2.11", true);
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
        tables.services = deal(&config, &config.definitions, Some(&tables), &health);
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
    tables.services = deal(&drained, &drained.definitions, Some(&tables), &HealthView::new());
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
    let after = |up, down| {
        deal(
            &config,
            &config.definitions,
            Some(&tables),
            &HealthView::from([(real.clone(), Votes { up, down })]),
        )
    };
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
    tables.services = deal(&after, &after.definitions, Some(&tables), &HealthView::new());
    assert_eq!((ports(&tables), &tables.services["b"].slots), (vec![80, 444], &slots));
}

#[test]
fn a_service_without_a_live_real_server_is_announced_while_its_sorry_server_can_be_reached() {
    let keys = "port = 443\nscheduler = \"wlc\"\nsorry_server = \"10.0.2.99\"\nhealth = { check = \"tcp\" }";
    let config = config(&TEXT.replace("port = 443", keys));
    let mut tables = tables(&config);
    let real = RealId { service: "b".into(), address: "10.0.2.12".parse().expect("address"), port: 443 };
    let health = HealthView::from([(real, Votes { up: 0, down: 2 })]);
    tables.services = deal(&config, &config.definitions, Some(&tables), &health);
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
    assert!(lines(&TEXT.replace("[\"eth1\"]", "[\"eth2\"]")).expect_err("interfaces").starts_with("[node]"));
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
    assert_eq!(differences(&plain, &config(&with("cost = 20"))), line("interface \"eth1\": cost: 10 -> 20"));
    assert_eq!(
        differences(&plain, &config(&with("bfd = { interval_ms = 50 }"))),
        line("interface \"eth1\": bfd: none -> 50 ms x 3")
    );
    let announced = TEXT.replace("announce = [", "announce = [\"10.255.9.9/32\", ");
    assert_eq!(differences(&plain, &config(&announced)), line("announce: 10.255.9.9/32 added"));
    let faster = TEXT.replace("[ospf]", "[ospf]\nhello_interval = 1");
    assert_eq!(differences(&plain, &config(&faster)).map(|lines| lines.len()), Ok(2), "dead_interval, too");
    for line in ["ttl_security = true", "area = \"0.0.0.9\"", "passive = true"] {
        let refused = differences(&plain, &config(&with(line))).expect_err("a restart");
        let setting = line.split(' ').next().expect("a word");
        assert!(refused.starts_with("[ospf] ") && refused.contains(setting), "{refused}");
    }
}

#[test]
fn ipv6_vips_and_all_of_a_groups_prefixes_are_wanted() {
    let text = TEXT.replacen("203.0.113.10", "2001:db8::10", 1).replacen("10.0.2.11", "2001:db8:2::11", 1);
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
