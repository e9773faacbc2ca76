//! Drawings of a topology.

use std::fmt::Write as _;

use crate::topology::Topology;

/// One line per link, and one per node that has none.
#[must_use]
pub fn text(topology: &Topology) -> String {
    let end = |e: &crate::topology::Endpoint| format!("{}:{}", e.node, e.interface);
    let width = topology.links.iter().map(|link| end(&link.ends[0]).len()).max().unwrap_or(0);
    let mut out = String::new();
    for link in &topology.links {
        let [a, b] = &link.ends;
        let _ = writeln!(out, "{:width$} --- {}  (mtu {})", end(a), end(b), link.mtu);
    }
    for node in &topology.nodes {
        if !topology.links.iter().flat_map(|link| &link.ends).any(|end| end.node == node.name) {
            let _ = writeln!(out, "{} (no links)", node.name);
        }
    }
    out
}

/// Graphviz: `lab graph --dot FILE | dot -Tsvg`.
#[must_use]
pub fn dot(topology: &Topology) -> String {
    let mut out = format!("graph \"{}\" {{\n  node [shape=box];\n", topology.name);
    for node in &topology.nodes {
        let _ = writeln!(out, "  \"{}\";", node.name);
    }
    for link in &topology.links {
        let [a, b] = &link.ends;
        let _ = writeln!(
            out,
            "  \"{}\" -- \"{}\" [taillabel=\"{}\", headlabel=\"{}\"];",
            a.node, b.node, a.interface, b.interface
        );
    }
    out.push_str("}\n");
    out
}
