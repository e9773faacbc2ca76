//! Connections that outlive the director that saw them, though their real server is not their slot's any more.

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use cluster_tests::downloads::Downloads;
use cluster_tests::ecmp::{DIRECTORS, Ecmp, in_a_lab, wait};
use serde_json::Value;

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
    let downloads = Downloads::start(ecmp, DOWNLOADS)?;
    drain(ecmp)?;
    let peers = ecmp.ask("director1", "peers")?;
    let told = peers["peers"][0]["pin_records_out"].as_u64().unwrap_or(0);
    ensure!(told > 0, "the director to be lost has seen none of the drained server's connections: {peers}");
    ecmp.lose("director1")?;
    ecmp.until_next_hops(2, PATIENCE)?;
    // Each connection of the lost director has moved on when another one knows it.
    downloads.go_on().with_context(|| {
        let pins = ["director2", "director3"]
            .map(|director| ecmp.ask(director, "peers").map(|peers| peers["pins"].to_string()));
        format!("{told} were told of; {pins:?}")
    })?;
    println!("the lost director had told of {told} connections: all {DOWNLOADS} go on");
    Ok(())
}

/// Takes every slot from the third real server, and waits until the windows are closed and nobody lags.
fn drain(ecmp: &Ecmp) -> Result<()> {
    for director in DIRECTORS.iter().rev() {
        ecmp.edit(director, r#"/^name = "web"$/,$ { /10.0.2.13/,$ s/weight = 100/weight = 0/ }"#)?;
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
