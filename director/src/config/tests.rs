mod full_nat;
mod persistence;
mod tracking;

use std::path::Path;
use std::time::Duration;

use routing::{AnnounceAs, AreaKind, MetricType};

use super::{Config, Datagrams, Echo, Forwarding, Ports, Protocol, Service, Timeouts, Tunnel};

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
    assert_eq!(web.addresses[0].to_string(), "tcp 203.0.113.10:80");
    assert_eq!((web.addresses[0].protocol, web.forwarding), (Protocol::Tcp, Forwarding::Dr));
    assert!(web.hash_port);
    assert_eq!(web.reals[0].weight, 100);
    assert_eq!(config.ospf.expect("ospf").dead_interval, 4);
}

#[test]
fn bfd_is_off_unless_asked_for_and_has_frrs_defaults() {
    let bfd = |line: &str| {
        let config = parse(&GOOD.replacen("cost = 10", line, 1)).expect("valid");
        config.ospf.expect("ospf").interfaces[0].bfd.map(|bfd| (bfd.interval_ms, bfd.multiplier.get()))
    };
    assert_eq!(bfd("cost = 10"), None);
    assert_eq!(bfd("bfd = {}"), Some((300, 3)));
    assert_eq!(bfd("bfd = { interval_ms = 50, multiplier = 5 }"), Some((50, 5)));
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
        ("announce = [\"10.255.0.1/32\"]", "area_type = \"stub\"", "d.toml:9:13: ", "set `area`"),
        ("announce = [\"10.255.0.1/32\"]", "area_type = \"stubby\"", "d.toml:9:13: ", "unknown variant"),
        ("announce = [\"10.255.0.1/32\"]", "external = { type = 3 }", "d.toml:9:21: ", "use 1"),
        (
            "announce = [\"10.255.0.1/32\"]",
            "announce = [\"10.255.0.1/32\", \"203.0.113.10/32\"]",
            "d.toml:9:30: ",
            "is a VIP of service \"web\", which announces it while it can be served; leave it out",
        ),
        (
            "announce = [\"10.255.0.1/32\"]",
            "aggregate = [\"203.0.113.1/24\"]",
            "d.toml:9:14: ",
            "write 203.0.113.0/24",
        ),
        (
            "announce = [\"10.255.0.1/32\"]",
            "aggregate = [\"203.0.113.0/24\", \"203.0.113.0/25\"]",
            "d.toml:9:32: ",
            "overlaps with 203.0.113.0/24",
        ),
        (
            "cost = 10",
            "area = \"0.0.0.1\"\n[[ospf.interface]]\nname = \"eth2\"\narea = \"0.0.0.1\"\narea_type = \"nssa\"",
            "d.toml:17:13: ",
            "two types",
        ),
        ("dead_interval = 4", "dead_interval = 1", "d.toml:8:17: ", "must be longer"),
        ("dead_interval = 4", "dead_intervall = 4", "d.toml:8:1: ", "unknown field `dead_intervall`"),
        ("cost = 10", "cost = 0", "d.toml:13:8: ", "1 to 65535"),
        ("cost = 10", "bfd = { interval_ms = 9 }", "d.toml:13:23: ", "10 to 60000"),
        ("cost = 10", "bfd = { interval_ms = 60001 }", "d.toml:13:23: ", "10 to 60000"),
        ("cost = 10", "bfd = { multiplier = 0 }", "d.toml:13:22: ", "1 to 255"),
        ("cost = 10", "bfd = { multiplier = 256 }", "d.toml:13:22: ", "1 to 255"),
        ("cost = 10", "bfd = { interval = 50 }", "d.toml:13:9: ", "unknown field `interval`"),
        ("cost = 10", "bfd = {}\npassive = true", "d.toml:11:8: ", "watches nobody"),
        ("cost = 10", "authentication = { key_id = 1 }", "d.toml:13:20: ", "unknown field `key_id`"),
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
        ("\"203.0.113.10\"", "\"2001:db8::1\"", "d.toml:31:11: ", "forwarding = \"tunnel\""),
        ("protocol = \"tcp\"", "protocol = \"sctp\"", "d.toml:23:12: ", "use \"tcp\" or \"udp\""),
        ("\"dr\"", "\"local\"", "d.toml:25:14: ", "use \"dr\", \"tunnel\", \"nat\" or \"fullnat\""),
        ("port = 80\nforwarding", "port = 65536\nforwarding", "d.toml:24:8: ", "65536"),
        ("\"dr\"", "\"nat\"\ntunnel = {}", "d.toml:26:10: ", "needs forwarding = \"tunnel\""),
        ("\"mh\"", "\"fair\"", "d.toml:26:13: ", "use one of mh, ch, rr"),
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

/// What to replace in the good file, and by what.
type Edit<'a> = (&'a str, &'a str);

/// The good file with more in it.
fn edited(rows: &[Edit<'_>]) -> String {
    rows.iter().fold(GOOD.to_owned(), |text, (from, to)| {
        assert!(text.contains(from), "the row replaces nothing: {from}");
        text.replacen(from, to, 1)
    })
}

/// All of the file, also what nothing carries out yet.
fn web(rows: &[Edit<'_>]) -> Service {
    parse(&edited(rows)).expect("valid").services["web"].clone()
}

const UDP: Edit<'_> = ("protocol = \"tcp\"", "protocol = \"udp\"");
const TUNNEL: Edit<'_> = ("forwarding = \"dr\"", "forwarding = \"tunnel\"");
const SOURCES: Edit<'_> = ("\"eth2\"]", "\"eth2\"]\ntunnel_source = [\"10.255.0.1\", \"2001:db8:ff::1\"]");
const V6_VIP: Edit<'_> = ("\"203.0.113.10\"", "\"2001:db8::10\"");
const V6_REAL: Edit<'_> = ("\"10.0.2.11\"", "\"2001:db8:2::11\"");

#[test]
fn the_nodes_keys_have_defaults_and_are_taken() {
    let plain = parse(GOOD).expect("valid").node;
    assert_eq!((plain.echo, plain.icmp_rate), (Echo::WhileServed, 1_000));
    assert_eq!(plain.tunnel_sources, super::TunnelSources::default());
    for (word, echo) in
        [("while-served", Echo::WhileServed), ("always", Echo::Always), ("kernel", Echo::Kernel)]
    {
        let keys = format!("\"eth2\"]\necho = \"{word}\"\nicmp_rate = 5");
        let node = parse(&edited(&[("\"eth2\"]", &keys)])).expect("valid").node;
        assert_eq!((node.echo, node.icmp_rate), (echo, 5));
    }
    let sources = parse(&edited(&[SOURCES])).expect("valid").node.tunnel_sources;
    assert_eq!(sources.v4, Some([10, 255, 0, 1].into()));
    assert_eq!(sources.v6, Some("2001:db8:ff::1".parse().expect("address")));
}

#[test]
fn vips_of_both_families_are_direct_or_in_a_tunnel() {
    assert_eq!(web(&[V6_VIP, V6_REAL]).addresses[0].to_string(), "tcp [2001:db8::10]:80");
    for rows in [&[TUNNEL, SOURCES][..], &[TUNNEL, SOURCES, V6_VIP], &[TUNNEL, SOURCES, V6_REAL]] {
        assert_eq!(web(rows).forwarding, Forwarding::Tunnel(Tunnel::Ipip));
    }
    for (keys, kind, text) in [
        ("tunnel = {}", Tunnel::Ipip, "tunnel ipip"),
        ("tunnel = { type = \"gre\" }", Tunnel::Gre, "tunnel gre"),
        ("tunnel = { type = \"gue\" }", Tunnel::Gue { port: 6080 }, "tunnel gue port 6080"),
        ("tunnel = { type = \"gue\", port = 7 }", Tunnel::Gue { port: 7 }, "tunnel gue port 7"),
    ] {
        let forwarding = web(&[TUNNEL, SOURCES, ("scheduler", &format!("{keys}\nscheduler"))]).forwarding;
        assert_eq!((forwarding, forwarding.to_string().as_str()), (Forwarding::Tunnel(kind), text));
    }
}

const NAT: Edit<'_> = ("\"dr\"", "\"nat\"");

#[test]
fn nat_gives_real_servers_ports_of_their_own() {
    let mapped = web(&[NAT, ("\nport = 80\nweight", "\nport = 8080\nweight")]);
    assert_eq!((mapped.forwarding, mapped.forwarding.to_string().as_str()), (Forwarding::Nat, "nat"));
    assert_eq!((mapped.reals[0].port, mapped.members()[0].port, mapped.port()), (8080, 8080, 80));
    assert_eq!(web(&[NAT, ("\nport = 80\nweight", "\nweight")]).reals[0].port, 80);
    for (edits, part) in [
        (&[NAT, ("\nport = 80\nweight", "\nport = 0\nweight")][..], "port 0"),
        (&[NAT, ("port = 80\nforwarding", "ports = \"80-89\"\nforwarding")], "leave it out"),
        (&[NAT, ("\"203.0.113.10\"", "\"203.0.113.0/28\"")], "needs single VIPs"),
        (&[NAT, ("\"203.0.113.10\"", "\"2001:db8::1\"")], "nat cannot take packets for the IPv6 VIP"),
    ] {
        let message = parse(&edited(edits)).expect_err(part);
        assert!(message.contains(part), "{message}");
    }
}

#[test]
fn a_port_of_a_real_server_has_one_vip_by_nat() {
    let other = |vip: &str, more: &str, real: &str| {
        let text = edited(&[NAT]);
        parse(&format!(
            "{text}\n[[service]]\nname = \"other\"\nvip = \"{vip}\"\n{more}forwarding = \"nat\"\n[[service.real]]\n{real}"
        ))
    };
    let message =
        other("203.0.113.11", "port = 443\n", "address = \"10.0.2.11\"\nport = 80\n").expect_err("port 80");
    assert!(message.contains("services \"web\" and \"other\"") && message.contains("10.0.2.11"), "{message}");
    assert!(message.starts_with("d.toml:41:11: "), "{message}");
    let all = other("203.0.113.11", "port = 0\n", "address = \"10.0.2.11\"\n").expect_err("all ports");
    assert!(all.contains("services \"web\" and \"other\""), "{all}");
    let also = "port = 443\nalso = [{ vip = \"203.0.113.12\" }]\n";
    let same = other("203.0.113.11", also, "address = \"10.0.2.12\"\n").expect_err("two addresses");
    assert!(same.contains("two addresses of service \"other\""), "{same}");
    for (more, real) in [
        ("port = 443\n", "address = \"10.0.2.11\"\n"),
        ("port = 80\nprotocol = \"udp\"\n", "address = \"10.0.2.11\"\n"),
        ("port = 80\n", "address = \"10.0.2.12\"\n"),
    ] {
        other("203.0.113.11", more, real).expect("another port, protocol or server");
    }
}

#[test]
fn a_service_has_ranges_prefixes_and_more_addresses() {
    let ports = |to: &str| web(&[("port = 80\nforwarding", to), ("\nport = 80\nweight", "\nweight")]);
    assert_eq!(ports("port = 0\nforwarding").addresses[0].ports, Ports::ALL);
    let range = ports("ports = \"8000-8999\"\nforwarding");
    assert_eq!(range.addresses[0].ports, Ports { first: 8000, last: 8999 });
    assert_eq!((range.port(), range.addresses[0].to_string().as_str()), (8000, "tcp 203.0.113.10:8000-8999"));
    let prefix = web(&[("\"203.0.113.10\"", "\"203.0.113.0/28\"")]);
    assert_eq!(prefix.addresses[0].to_string(), "tcp 203.0.113.0/28:80");
    let group = "also = [{ vip = \"203.0.113.11\" }, { vip = \"203.0.113.12\", port = 443 }, \
                 { vip = \"203.0.113.13\", protocol = \"udp\", ports = \"1-9\" }]\nscheduler";
    let group = web(&[("scheduler", group), ("\nport = 80\nweight", "\nweight")]);
    let names: Vec<String> = group.addresses.iter().map(ToString::to_string).collect();
    assert_eq!(
        names,
        ["tcp 203.0.113.10:80", "tcp 203.0.113.11:80", "tcp 203.0.113.12:443", "udp 203.0.113.13:1-9"]
    );
    // Nested ranges and prefixes are no conflict.
    let nested = "also = [{ vip = \"203.0.113.10\", ports = \"80-90\" }, { vip = \"203.0.113.10\", port = 0 }, \
                  { vip = \"203.0.113.0/24\" }, { vip = \"203.0.113.10\", ports = \"82-90\" }, \
                  { vip = \"203.0.113.10\", ports = \"91-99\" }]\nscheduler";
    assert_eq!(web(&[("scheduler", nested), ("\nport = 80\nweight", "\nweight")]).addresses.len(), 6);
}

#[test]
fn idle_times_slots_datagrams_and_weight_zero_are_taken() {
    assert_eq!(web(&[]).timeouts, Timeouts::default());
    let taken = web(&[("scheduler", "timeouts = { established = 60 }\nscheduler")]);
    assert_eq!(taken.timeouts, Timeouts { established: Duration::from_secs(60), ..Timeouts::default() });
    assert_eq!((web(&[]).slots, web(&[("scheduler", "slots = 4093\nscheduler")]).slots), (65_537, 4_093));
    assert_eq!(web(&[]).datagrams, Datagrams::Tracked);
    let one_packet = web(&[UDP, ("scheduler", "one_packet = true\nscheduler")]);
    assert_eq!(one_packet.datagrams, Datagrams::OnePacket);
    let quic = "quic = { offset = 1, length = 2 }\nscheduler";
    let quic = web(&[UDP, ("scheduler", quic), ("weight = 100", "weight = 0\nquic_id = 65535")]);
    assert_eq!(quic.datagrams, Datagrams::Quic { offset: 1, length: 2 });
    assert_eq!((quic.reals[0].weight, quic.reals[0].quic_id), (0, Some(65_535)));
}

/// Each row: edits of the good file, and parts of the message, the first of them its place.
#[test]
fn every_mistake_in_the_newer_keys_is_named_with_its_place() {
    let key = |keys: &'static str| ("scheduler = \"mh\"", keys);
    let second_real = |text: &'static str| ("weight = 100\n", text);
    let rows: &[(&[Edit<'_>], [&str; 2])] = &[
        (
            &[("\"eth2\"]", "\"eth2\"]\ntunnel_source = [\"10.0.0.1\", \"10.0.0.2\"]")],
            ["5:30: ", "a second IPv4"],
        ),
        (&[("\"eth2\"]", "\"eth2\"]\ntunnel_source = [\"fe80::1\"]")], ["5:18: ", "link-local"]),
        (&[("\"eth2\"]", "\"eth2\"]\necho = \"never\"")], ["5:8: ", "unknown variant"]),
        (&[("\"eth2\"]", "\"eth2\"]\nicmp_rate = -1")], ["5:13: ", "-1"]),
        (&[("\"203.0.113.10\"", "\"203.0.113\"")], ["22:7: ", "neither an IP address nor a prefix"]),
        (&[("\"203.0.113.10\"", "\"203.0.113.10/28\"")], ["22:7: ", "write \"203.0.113.0/28\""]),
        (&[("\"203.0.113.10\"", "\"0.0.0.0/0\"")], ["22:7: ", "cannot be a VIP"]),
        (&[("\"203.0.113.10\"", "\"fe80::1\"")], ["22:7: ", "link-local"]),
        (&[("\"203.0.113.10\"", "\"::ffff:10.0.0.1\"")], ["22:7: ", "IPv4 written as IPv6"]),
        (&[("port = 80\nforwarding", "forwarding")], ["21:8: ", "has no port"]),
        (&[key("ports = \"1-2\"")], ["26:9: ", "not both"]),
        (&[("port = 80\nforwarding", "ports = \"9-8\"\nforwarding")], ["24:9: ", "the lower one first"]),
        (&[("port = 80\nforwarding", "ports = \"80\"\nforwarding")], ["24:9: ", "no range of ports"]),
        (&[("port = 80\nforwarding", "ports = \"8-8\"\nforwarding")], ["24:9: ", "write port = 8"]),
        (&[("port = 80\nforwarding", "ports = \"0-65535\"\nforwarding")], ["24:9: ", "write port = 0"]),
        (&[("port = 80\nforwarding", "ports = \"8-9\"\nforwarding")], ["32:8: ", "leave it out"]),
        (&[key("also = [{ vip = \"203.0.113.10\" }]")], ["26:9: ", "lists tcp 203.0.113.10:80 twice"]),
        (&[key("also = [{ vip = \"203.0.113.10\", prt = 1 }]")], ["26:33: ", "unknown field `prt`"]),
        (
            &[
                ("port = 80\nforwarding", "ports = \"80-90\"\nforwarding"),
                key("also = [{ vip = \"203.0.113.10\", ports = \"85-95\" }]"),
                ("\nport = 80\nweight", "\nweight"),
            ],
            ["26:9: ", "neither is within the other"],
        ),
        (&[key("also = [{ vip = \"2001:db8::1\" }]")], ["31:11: ", "2001:db8::1"]),
        (&[V6_REAL], ["31:11: ", "use its IPv4 address"]),
        (&[TUNNEL], ["31:11: ", "add an IPv4 address of this node to tunnel_source"]),
        (
            &[TUNNEL, V6_REAL, ("\"eth2\"]", "\"eth2\"]\ntunnel_source = [\"10.0.0.1\"]")],
            ["32:11: ", "add an IPv6 address"],
        ),
        (&[key("tunnel = {}")], ["26:10: ", "needs forwarding = \"tunnel\""]),
        (&[TUNNEL, SOURCES, key("tunnel = { type = \"vxlan\" }")], ["27:19: ", "unknown variant"]),
        (&[TUNNEL, SOURCES, key("tunnel = { port = 6080 }")], ["27:19: ", "leave it out"]),
        (&[TUNNEL, SOURCES, key("tunnel = { type = \"gue\", port = 0 }")], ["27:33: ", "port 0"]),
        (&[("\"10.0.2.11\"", "\"203.0.113.10\"")], ["31:11: ", "which it is itself"]),
        (&[("\"10.0.2.11\"", "\"ff02::1\"")], ["31:11: ", "multicast"]),
        (&[key("metric = 65535")], ["26:10: ", "unreachable"]),
        (
            &[TUNNEL, SOURCES, ("\"203.0.113.10\"", "\"10.255.0.0/24\"")],
            ["25:8: ", "tunnel_source of this node"],
        ),
        (&[key("slots = 100")], ["26:9: ", "65537, or 4093"]),
        (&[key("timeouts = { established = 0 }")], ["26:28: ", "from 1 to 604800"]),
        (&[key("timeouts = { udp = 10 }")], ["26:20: ", "no udp address"]),
        (&[UDP, key("timeouts = { fin = 10 }")], ["26:20: ", "no tcp address"]),
        (&[key("one_packet = true")], ["26:14: ", "protocol = \"udp\""]),
        (&[key("quic = { offset = 1, length = 2 }")], ["26:8: ", "protocol = \"udp\""]),
        (&[UDP, key("one_packet = true\nquic = { offset = 1, length = 2 }")], ["27:8: ", "exclude"]),
        (&[UDP, key("quic = { offset = 1, length = 5 }")], ["26:31: ", "1 to 4 bytes"]),
        (&[UDP, key("quic = { offset = 19, length = 2 }")], ["26:19: ", "exceed the 20 bytes"]),
        (&[UDP, key("quic = { offset = 1, length = 2 }")], ["31:11: ", "needs quic_id"]),
        (
            &[UDP, key("quic = { offset = 1, length = 1 }"), second_real("quic_id = 256\n")],
            ["33:11: ", "from 0 to 255"],
        ),
        (
            &[
                UDP,
                key("quic = { offset = 1, length = 1 }"),
                second_real("quic_id = 7\n[[service.real]]\naddress = \"10.0.2.12\"\nquic_id = 7\n"),
            ],
            ["36:11: ", "taken by real server 10.0.2.11"],
        ),
        (&[second_real("quic_id = 7\n")], ["33:11: ", "needs quic = "]),
        (&[second_real("[[service.real]]\naddress = \"10.0.2.11\"\n")], ["34:11: ", "listed twice"]),
    ];
    let mut wrong = Vec::new();
    for (edits, [place, part]) in rows {
        let message = parse(&edited(edits)).expect_err(part);
        let placed = message.strip_prefix("d.toml:").is_some_and(|rest| rest.starts_with(place));
        if !placed || !message.contains(part) {
            wrong.push(format!("expected {place}{part}: {message}"));
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}

#[test]
fn areas_and_announcements_are_as_the_file_says() {
    let ospf = "hello_interval = 1\narea = \"0.0.0.1\"\narea_type = \"nssa\"\naggregate = [\"203.0.113.0/24\"]\nexternal = { type = 1, tag = 7 }";
    let second = "cost = 10\n[[ospf.interface]]\nname = \"eth2\"\narea = \"0.0.0.0\"";
    let external = ("scheduler = \"mh\"", "scheduler = \"mh\"\nannounce = \"external\"");
    let edits = [("hello_interval = 1", ospf), ("cost = 10", second), external];
    let config = parse(&edited(&edits)).expect("valid");
    let read = config.ospf.expect("there is one");
    let areas: Vec<_> = read.interfaces.iter().map(|i| (i.area.to_string(), i.area_kind)).collect();
    assert_eq!(areas, [("0.0.0.1".to_owned(), AreaKind::Nssa), ("0.0.0.0".to_owned(), AreaKind::Normal)]);
    assert_eq!((read.external.metric_type, read.external.tag), (MetricType::One, 7));
    assert_eq!(read.aggregates, ["203.0.113.0/24".parse().expect("a prefix")]);
    assert_eq!(config.services["web"].announce, AnnounceAs::External);
    assert_eq!(config.services["web"].external, None, "as [ospf] says");
    let own = (
        "scheduler = \"mh\"",
        "scheduler = \"mh\"\nannounce = \"external\"\nexternal = { type = 2, tag = 9 }",
    );
    let config = parse(&edited(&[("hello_interval = 1", ospf), ("cost = 10", second), own])).expect("valid");
    let own = config.services["web"].external.expect("its own");
    assert_eq!((own.metric_type, own.tag), (MetricType::Two, 9));
    let idle = ("scheduler = \"mh\"", "scheduler = \"mh\"\nexternal = { tag = 9 }");
    let refused = parse(&edited(&[idle])).expect_err("a stub link has no tag");
    assert!(refused.contains("beside announce"), "{refused}");
    let stub = "hello_interval = 1\narea = \"0.0.0.1\"\narea_type = \"totally-stubby\"";
    let refused = parse(&edited(&[("hello_interval = 1", stub), external])).expect_err("no area takes it");
    assert!(refused.contains("\"web\"") && refused.contains("nssa"), "{refused}");
}

#[test]
fn keys_that_leave_the_usual_are_understood() {
    let key = |keys: &'static str| ("scheduler = \"mh\"", keys);
    let no_real_port = ("\nport = 80\nweight", "\nweight");
    for edits in [
        &[key("slots = 65537\none_packet = false")][..],
        &[UDP],
        &[TUNNEL, SOURCES],
        &[("\"203.0.113.10\"", "\"203.0.113.0/28\"")],
        &[("port = 80\nforwarding", "ports = \"8-9\"\nforwarding"), no_real_port],
        &[key("also = [{ vip = \"203.0.113.11\" }]")],
        &[key("slots = 4093")],
        &[key("timeouts = { fin = 10 }")],
        &[UDP, key("one_packet = true")],
        &[UDP, key("quic = { offset = 1, length = 1 }"), ("weight = 100", "quic_id = 7")],
    ] {
        parse(&edited(edits)).expect("valid");
    }
}
