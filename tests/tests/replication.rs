//! Connections that outlive the director that saw them, though their real server is not their slot's any more.

use std::time::Duration;

use anyhow::{Result, bail, ensure};
use cluster_tests::ecmp::{Ecmp, VIP, in_a_lab, wait};
use serde_json::Value;

const DIRECTORS: [&str; 3] = ["director1", "director2", "director3"];
const CONFIG: &str = "/etc/director/director.toml";
/// Downloads under way; a third of them at the real server that is drained, and a third of all at each director.
const DOWNLOADS: usize = 45;
/// Longest time for the lab to come to rest, on a machine that has other work.
const PATIENCE: Duration = Duration::from_secs(120);

#[test]
fn connections_of_a_draining_server_outlive_the_director_that_saw_them() -> Result<()> {
    in_a_lab("repl", history)
}

fn history(ecmp: &Ecmp) -> Result<()> {
    ecmp.until_next_hops(3, PATIENCE)?;
    // Slow enough to last beyond everything below, and quick enough for the server not to give up. With a small receive
    // buffer: out of a large one curl reads for longer than the lab's services let a connection be idle.
    ecmp.lab.sh(
        "client",
        &format!(
            "sysctl -qw net.ipv4.tcp_rmem='4096 16384 65536'; mkdir -p /tmp/out; for n in $(seq {DOWNLOADS}); do \
             (curl -s -o /tmp/out/$n.data --limit-rate 200K -m 600 http://{VIP}/content; echo $? > /tmp/out/$n.code) \
             >/dev/null 2>&1 & done"
        ),
    )?;
    wait("all downloads under way", PATIENCE, || {
        Ok(ecmp.lab.sh("client", "find /tmp/out -name '*.data' -size +0 | wc -l")?.trim()
            == DOWNLOADS.to_string())
    })?;
    drain(ecmp)?;
    let peers = ecmp.ask("director1", "peers")?;
    let told = peers["peers"][0]["pin_records_out"].as_u64().unwrap_or(0);
    ensure!(told > 0, "the director to be lost has seen none of the drained server's connections: {peers}");
    lose(ecmp, "director1")?;
    // Each connection of the lost director has moved on when another one knows it.
    let mark = bytes(ecmp)?;
    wait("every download goes on", PATIENCE, || {
        Ok(bytes(ecmp)?.iter().zip(&mark).all(|(now, then)| now > then))
    })?;
    let codes = ecmp.lab.sh("client", "cat /tmp/out/*.code 2>/dev/null || true")?;
    if !codes.trim().is_empty() {
        let pins = ["director2", "director3"]
            .map(|director| ecmp.ask(director, "peers").map(|peers| peers["pins"].to_string()));
        bail!("downloads have ended: {codes}; {told} were told of; {pins:?}");
    }
    println!("the lost director had told of {told} connections: all {DOWNLOADS} go on");
    Ok(())
}

/// Takes every slot from the third real server, and waits until the windows are closed and nobody lags.
fn drain(ecmp: &Ecmp) -> Result<()> {
    for director in DIRECTORS.iter().rev() {
        let script = format!(
            "sed '/^name = \"web\"$/,$ {{ /10.0.2.13/,$ s/weight = 100/weight = 0/ }}' {CONFIG} > /tmp/edited.toml && \
             cat /tmp/edited.toml > {CONFIG}"
        );
        ecmp.lab.sh(director, &script)?;
        ecmp.ask(director, "reload")?;
    }
    wait("windows closed, connections pinned, nobody lags", PATIENCE, || {
        for director in DIRECTORS {
            let (slots, peers) = (web(ecmp, director)?["slots"].clone(), ecmp.ask(director, "peers")?);
            let at_rest = peers["peers"].as_array().is_some_and(|all| {
                all.iter().all(|peer| peer["pin_lag_records"] == 0 && peer["pins_whole"] == true)
            });
            let replicas = peers["pins"]["replicas"].as_u64().unwrap_or(0);
            if slots["moving"] != 0 || slots["pinned"] == 0 || !at_rest || replicas == 0 {
                return Ok(false);
            }
        }
        Ok(true)
    })
}

fn web(ecmp: &Ecmp, director: &str) -> Result<Value> {
    let services = ecmp.ask(director, "services")?;
    let all = services["services"].as_array().cloned().unwrap_or_default();
    Ok(all.into_iter().find(|service| service["name"] == "web").unwrap_or_default())
}

/// A director dies with its links.
fn lose(ecmp: &Ecmp, director: &str) -> Result<()> {
    ecmp.lab
        .sh(director, "for i in 1 2 3; do ip link set eth$i down; done; kill -9 $(cat /run/director.pid)")?;
    ecmp.until_next_hops(2, PATIENCE)
}

/// Bytes that each download has so far.
fn bytes(ecmp: &Ecmp) -> Result<Vec<u64>> {
    let script = format!("for n in $(seq {DOWNLOADS}); do stat -c %s /tmp/out/$n.data; done");
    Ok(ecmp.lab.sh("client", &script)?.split_whitespace().map(|size| size.parse().unwrap_or(0)).collect())
}
