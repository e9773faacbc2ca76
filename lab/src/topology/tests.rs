use std::path::Path;

use super::{Kind, Topology, TopologyError};

fn parse(text: &str) -> Result<Topology, TopologyError> {
    Topology::parse(text, Path::new("/labs/one/x.clab.yml"), &|name| {
        (name == "IMAGE").then(|| "debian:12".to_owned())
    })
}

const INHERITANCE: &str = r#"
name: x
topology:
  defaults:
    image: ${IMAGE}
    env: {A: defaults, B: defaults, C: defaults, N: 0644}
    exec: ["echo defaults"]
    binds: ["conf/all:/etc/all", "conf/default:/etc/one:ro"]
  kinds:
    linux:
      env: {B: kind, C: kind}
      exec: ["echo 'the kind'"]
  groups:
    leaf:
      env: {C: group}
      binds: ["conf/__clabNodeName__.conf:/etc/one"]
  nodes:
    a:
      kind: linux
      group: leaf
      exec: ["sh -c 'echo a | cat'"]
      sysctls: {net.ipv4.ip_forward: 1}
    b: {kind: linux}
    sw: {kind: bridge}
  links:
    - endpoints: ["a:eth1", "sw:p1"]
      mtu: 1500
    - type: veth
      endpoints:
        - {node: b, interface: eth1, mac: "02:00:00:00:00:0A"}
        - {node: sw, interface: p2}
"#;

#[test]
fn nodes_inherit_as_in_containerlab() {
    let mut yaml = INHERITANCE.to_owned();
    let topology = parse(&yaml).unwrap_err();
    // A bridge inherits exec and binds from defaults too; the runner must not drop them silently.
    assert!(topology.to_string().contains("topology.nodes.sw"), "{topology}");
    yaml = yaml.replace("    sw: {kind: bridge}", "    sw: {kind: linux}");
    let topology = parse(&yaml).unwrap();
    let a = topology.node("a").unwrap();
    assert_eq!(a.kind, Kind::Linux);
    assert_eq!(a.image.as_deref(), Some("debian:12"));
    let env: Vec<_> = a.env.iter().map(|(k, v)| format!("{k}={v}")).collect();
    assert_eq!(env, ["A=defaults", "B=kind", "C=group", "N=0644"]);
    assert_eq!(
        a.exec,
        [vec!["echo", "defaults"], vec!["echo", "the kind"], vec!["sh", "-c", "echo a | cat"]]
    );
    assert_eq!(a.sysctls["net.ipv4.ip_forward"], "1");
    let binds: Vec<_> = a.binds.iter().map(|b| (b.source.to_str().unwrap(), b.read_only)).collect();
    assert_eq!(binds, [("/labs/one/conf/all", false), ("/labs/one/conf/a.conf", false)]);
    assert_eq!(topology.links[0].mtu, 1500);
    assert_eq!(topology.links[1].mtu, super::DEFAULT_MTU);
    assert_eq!(topology.links[1].ends[0].mac, "02:00:00:00:00:0a");
    assert_eq!(topology.long_name("a"), "clab-x-a");
}

/// Every refusal names the place and the remedy: rows of body, and what the message must say.
#[test]
fn what_is_not_honoured_is_refused_by_name_and_line() {
    let rows = [
        ("mgmt: {network: n}\n", "4:1: mgmt: not honoured"),
        ("colour: red\n", "4:9: colour: unknown field"),
    ];
    let base = "name: x\ntopology:\n  nodes: {a: {kind: linux}}\n";
    for (extra, message) in rows {
        let error = parse(&format!("{base}{extra}")).unwrap_err().to_string();
        assert!(error.contains(message), "{error}");
    }
    let in_node = [
        ("cpu: 2", "topology.nodes.a.cpu: not honoured"),
        ("stages: {create: {}}", "topology.nodes.a.stages: not honoured"),
        ("network-mode: host", "topology.nodes.a.network-mode: not honoured"),
        ("privileged: false", "topology.nodes.a.privileged: not honoured"),
        ("bind: []", "topology.nodes.a.bind: unknown field"),
        ("exec: ['echo \"']", "topology.nodes.a.exec[0]: unbalanced quotes"),
        ("exec: echo", "topology.nodes.a.exec: must be a list"),
        ("binds: ['$NOPE/x:/x']", "$NOPE/x:/x: variable is not set"),
        ("binds: ['x:y']", "must be absolute"),
        ("binds: ['x:/y:z']", "bind option z is not honoured"),
        ("binds: ['__clabDir__/x:/y']", "only __clabNodeName__"),
        ("hostname: __clabNodeName__", "in binds only"),
        ("sysctls: {kernel.panic: 1}", "only net.* belongs"),
        ("image: {{ .image }}", "Go templates"),
    ];
    for (field, message) in in_node {
        let error =
            parse(&format!("name: x\ntopology:\n  nodes:\n    a:\n      kind: linux\n      {field}\n"))
                .unwrap_err();
        let error = error.to_string();
        assert!(error.contains(message) && (error.starts_with("6:") || error.starts_with("4:")), "{error}");
    }
}

#[test]
fn impossible_links_are_refused() {
    let rows = [
        ("endpoints: ['a:eth1', 'c:eth1']", "c:eth1: no such node"),
        ("endpoints: ['a:eth1', 'a:eth1']", "already has a link"),
        ("endpoints: ['a:eth1']", "exactly two"),
        ("endpoints: ['a:eth1', 'host:x']", "no such node"),
        ("{type: macvlan, endpoints: ['a:eth1', 'b:eth1']}", "[0].type: not honoured"),
        ("{endpoints: ['a:eth1', 'b:eth1'], ipv4: [1.1.1.1/24]}", "[0].ipv4: not honoured"),
        ("{endpoints: ['a:eth1', 'b:eth1'], mtu: 12}", "68 to 65535"),
        ("endpoints: ['a:eth1', 'b:averyveryverylongname']", "not an interface name"),
        ("endpoints: [{node: a, interface: e, mac: 'ff:00:00:00:00:00'}, 'b:e']", "unicast MAC"),
    ];
    for (link, message) in rows {
        let text = format!(
            "name: x\ntopology:\n  nodes: {{a: {{kind: linux}}, b: {{kind: linux}}}}\n  links:\n    - {link}\n"
        );
        let error = parse(&text).unwrap_err().to_string();
        assert!(error.contains(message) && error.starts_with("5:"), "{link}: {error}");
    }
}

#[test]
fn anchors_and_merge_keys_expand() {
    let text = "name: x\ntopology:\n  nodes:\n    a: &base {kind: linux, env: {K: v}}\n    b:\n      <<: *base\n      hostname: bee\n";
    let b = parse(text).unwrap().node("b").unwrap().clone();
    assert_eq!((b.env["K"].as_str(), b.hostname.as_str()), ("v", "bee"));
}

#[test]
fn names_cannot_leave_their_folder() {
    for name in ["../x", "a/b", "", ".x"] {
        assert!(
            parse(&format!("name: '{name}'\ntopology:\n  nodes: {{a: {{kind: linux}}}}\n")).is_err(),
            "{name}"
        );
    }
}

proptest::proptest! {
    #[test]
    fn any_text_parses_or_is_refused(text in "(name: x\ntopology:\n)?[ a-z:\\[\\]{}&*<>|'\"$\n-]{0,120}") {
        let _ = parse(&text);
    }
}
