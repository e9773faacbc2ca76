use std::path::Path;

use super::{Config, Protocol};

const GOOD: &str = r#"
[node]
router_id = "10.255.0.1"
interfaces = ["eth1", "eth2"]

[ospf]
hello_interval = 1
dead_interval = 4
announce = ["10.255.0.1/32"]
[[ospf.interface]]
name = "eth1"
network = "point-to-point"
cost = 10

[cluster]
name = "edge"
listen = "127.0.0.1:7000"
peers = ["127.0.0.2:7000"]

[[service]]
name = "web"
vip = "203.0.113.10"
protocol = "tcp"
port = 80
forwarding = "dr"
scheduler = "mh"
hash = "source-port"
[service.health]
check = "none"
[[service.real]]
address = "10.0.2.11"
port = 80
weight = 100
"#;

fn parse(text: &str) -> Result<Config, String> {
    Config::parse(Path::new("d.toml"), text).map_err(|error| error.to_string())
}

#[test]
fn a_full_file_is_understood() {
    let config = parse(GOOD).expect("valid");
    let web = &config.services["web"];
    assert_eq!(web.protocol, Protocol::Tcp);
    assert!(web.hash_port);
    assert_eq!(web.reals[0].weight, 100);
    assert_eq!(config.ospf.expect("ospf").dead_interval, 4);
}

/// Each row: what to replace in the good file, by what, and the start and a part of the message.
#[test]
fn every_mistake_is_named_with_its_place() {
    let rows: &[(&str, &str, &str, &str)] = &[
        ("[node]", "[nodes]", "d.toml:2:2: ", "unknown field `nodes`"),
        ("router_id = \"10.255.0.1\"", "router_id = \"10.255.0\"", "d.toml:3:13: ", "invalid IPv4 address"),
        (
            "router_id = \"10.255.0.1\"",
            "router_id = \"0.0.0.0\"",
            "d.toml:3:13: ",
            "loopback address of the node",
        ),
        ("router_id = \"10.255.0.1\"", "", "d.toml:2:1: ", "missing field `router_id`"),
        ("interfaces = [\"eth1\", \"eth2\"]", "interfaces = []", "d.toml:4:14: ", "at least one interface"),
        ("\"eth2\"]", "\"eth1\"]", "d.toml:4:23: ", "listed twice"),
        ("\"eth2\"]", "\"eth2\"]\nxdp_mode = \"hardware\"", "d.toml:5:12: ", "unknown variant `hardware`"),
        ("hello_interval = 1", "hello_interval = 0", "d.toml:7:18: ", "at least 1 second"),
        ("hello_interval = 1", "area_type = \"stub\"", "d.toml:7:13: ", "leave it out"),
        ("dead_interval = 4", "dead_interval = 1", "d.toml:8:17: ", "must be longer"),
        ("dead_interval = 4", "dead_intervall = 4", "d.toml:8:1: ", "unknown field `dead_intervall`"),
        ("cost = 10", "cost = 0", "d.toml:13:8: ", "1 to 65535"),
        ("cost = 10", "bfd = { interval_ms = 50 }", "d.toml:13:7: ", "not supported by this version"),
        ("cost = 10", "authentication = { key_id = 1 }", "d.toml:13:18: ", "not supported by this version"),
        ("network = \"point-to-point\"", "network = \"ptp\"", "d.toml:12:11: ", "expected"),
        ("listen = \"127.0.0.1:7000\"", "listen = \"10.0.0.1:7000\"", "d.toml:17:10: ", "add tls"),
        ("listen = \"127.0.0.1:7000\"", "", "d.toml:18:10: ", "needs `listen`"),
        ("[\"127.0.0.2:7000\"]", "[\"127.0.0.1:7000\"]", "d.toml:18:10: ", "own `listen` address"),
        ("peers = [\"127.0.0.2:7000\"]", "discover = \"ospf\"", "d.toml:18:12: ", "list the other directors"),
        (
            "peers = [",
            "tls = { ca = \"no.pem\", certificate = \"no.pem\", key = \"no.pem\" }\npeers = [",
            "d.toml:18:14: ",
            "cannot read no.pem",
        ),
        ("\"203.0.113.10\"", "\"224.0.0.1\"", "d.toml:22:7: ", "cannot be a VIP"),
        ("\"203.0.113.10\"", "\"2001:db8::1\"", "d.toml:22:7: ", "use an IPv4 address"),
        ("protocol = \"tcp\"", "protocol = \"sctp\"", "d.toml:23:12: ", "use \"tcp\" or \"udp\""),
        ("port = 80\nforwarding", "port = 65536\nforwarding", "d.toml:24:8: ", "65536"),
        ("\"dr\"", "\"nat\"", "d.toml:25:14: ", "use \"dr\""),
        ("\"mh\"", "\"wlc\"", "d.toml:26:13: ", "use \"mh\" or \"ch\""),
        ("\"none\"", "\"telnet\"", "d.toml:29:9: ", "unknown variant `telnet`"),
        ("\"10.0.2.11\"\nport = 80", "\"10.0.2.11\"\nport = 8080", "d.toml:32:8: ", "write port = 80"),
        ("weight = 100", "weight = 70000", "d.toml:33:10: ", "0 to 65535"),
        ("weight = 100", "weight = -1", "d.toml:33:10: ", "-1"),
        ("[[service.real]]", "[[service.real]\n", "d.toml:30:", "expected"),
    ];
    for (from, to, place, part) in rows {
        assert!(GOOD.contains(from), "the row replaces nothing: {from}");
        let message = parse(&GOOD.replacen(from, to, 1)).expect_err(to);
        assert!(message.starts_with(place) && message.contains(part), "{from} -> {to}: {message}");
    }
}

#[test]
fn services_that_share_an_address_are_both_named() {
    let twice = format!("{GOOD}\n[[service]]\nname = \"other\"\nvip = \"203.0.113.10\"\nport = 80\n");
    let message = parse(&twice).expect_err("duplicate");
    assert!(message.contains("\"web\" and \"other\""), "{message}");
}

#[test]
fn the_digest_ignores_order_and_sees_every_difference() {
    let config = parse(GOOD).expect("valid");
    let more = format!("{GOOD}[[service.real]]\naddress = \"10.0.2.12\"\nweight = 1\n");
    let swapped = GOOD.replace(
        "[[service.real]]",
        "[[service.real]]\naddress = \"10.0.2.12\"\nweight = 1\n[[service.real]]",
    );
    assert_eq!(
        parse(&more).expect("valid").services_digest(),
        parse(&swapped).expect("valid").services_digest()
    );
    for (from, to) in [("= 100", "= 99"), ("source-port", "source"), ("\"mh\"", "\"ch\"")] {
        let changed = parse(&GOOD.replace(from, to)).expect("valid");
        assert_ne!(config.services_digest(), changed.services_digest(), "{from} -> {to}");
    }
}
