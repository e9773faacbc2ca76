//! Links between nodes: veth pairs made directly in the two namespaces, so that nothing ever shows up on the host.

use std::fmt::Write as _;
use std::io::Write as _;
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};

use super::state::Lock;
use crate::topology::{Kind, Topology};

/// Makes all links, brings them up and enslaves those of bridges.
pub(super) fn create(topology: &Topology, lock: &Lock) -> Result<()> {
    let mut batch = String::new();
    for link in &topology.links {
        let [a, b] = &link.ends;
        let mtu = link.mtu;
        writeln!(
            batch,
            "link add name {} netns {} mtu {mtu} address {} type veth peer name {} netns {} mtu {mtu} address {}",
            a.interface,
            topology.long_name(&a.node),
            a.mac,
            b.interface,
            topology.long_name(&b.node),
            b.mac,
        )?;
    }
    ip_batch(None, &batch, lock).context("creating the links")?;
    for node in &topology.nodes {
        let interfaces =
            topology.links.iter().flat_map(|link| &link.ends).filter(|end| end.node == node.name);
        let mut batch = "link set dev lo up\n".to_owned();
        if node.kind == Kind::Bridge {
            writeln!(batch, "link add name {0} type bridge\nlink set dev {0} up", node.name)?;
        }
        for end in interfaces {
            if node.kind == Kind::Bridge {
                writeln!(batch, "link set dev {} master {}", end.interface, node.name)?;
            }
            writeln!(batch, "link set dev {} up", end.interface)?;
        }
        ip_batch(Some(&topology.long_name(&node.name)), &batch, lock)
            .with_context(|| format!("links of {}", node.name))?;
    }
    Ok(())
}

/// Runs `ip -batch` in a namespace or on the host.
fn ip_batch(namespace: Option<&str>, lines: &str, lock: &Lock) -> Result<()> {
    if lines.is_empty() {
        return Ok(());
    }
    let mut command = Command::new("ip");
    if let Some(name) = namespace {
        command.args(["-n", name]);
    }
    command.args(["-batch", "-"]).stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::piped());
    lock.share(&mut command);
    let mut child = command.spawn().context("starting ip (package iproute2)")?;
    child.stdin.take().context("ip has no stdin")?.write_all(lines.as_bytes()).context("writing to ip")?;
    let output = child.wait_with_output().context("waiting for ip")?;
    if !output.status.success() {
        bail!("ip: {}", String::from_utf8_lossy(&output.stderr).trim());
    }
    Ok(())
}
