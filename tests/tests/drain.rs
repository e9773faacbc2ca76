//! An operator drains a director that carries traffic: nothing is lost, and nothing comes back by itself.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use cluster_tests::downloads::Downloads;
use cluster_tests::ecmp::{Ecmp, SWITCHES, VIP, VIPS, in_a_lab, wait};
use lab::routes::RouteWatch;
use serde_json::Value;

/// Downloads under way, a third of them through each director.
const DOWNLOADS: usize = 45;
/// Longest time for the lab to come to rest, on a machine that has other work.
const PATIENCE: Duration = Duration::from_secs(120);

#[test]
fn draining_a_director_under_load_loses_no_connection() -> Result<()> {
    in_a_lab("drain", history)
}

fn history(ecmp: &Ecmp) -> Result<()> {
    ecmp.until_next_hops(3, PATIENCE)?;
    wait("director2 knows that others announce the VIPs", PATIENCE, || {
        let routes = ecmp.ask("director2", "routes")?.to_string();
        Ok(VIPS.iter().all(|vip| routes.contains(&format!("{vip}/"))))
    })?;
    let downloads = Downloads::start(ecmp, DOWNLOADS)?;
    drain_under_load(ecmp)?;
    downloads.go_on()?;
    drained_it_stays(ecmp)?;
    back_in_service(ecmp)?;
    downloads.go_on()?;
    the_last_one_is_not_drained(ecmp, &downloads)
}

/// How long it takes each switch's kernel to forget the director is printed; the daemons there share two processors
/// with the whole lab.
fn drain_under_load(ecmp: &Ecmp) -> Result<()> {
    let addresses: BTreeSet<IpAddr> = [VIP.parse()?].into();
    let watches = SWITCHES.map(|switch| {
        let namespace = ecmp.lab.network_namespace(switch)?;
        RouteWatch::start(&namespace, addresses.clone())
    });
    let [frr, bird] = watches;
    let watches = [("FRR", frr?), ("BIRD", bird?)];
    let before = Instant::now();
    let done = ecmp.ask("director2", "drain")?;
    eprintln!("drained: {done}");
    for (brand, watch) in &watches {
        let gone = watch
            .changes_since(before)
            .into_iter()
            .find(|(_, routes)| routes.values().all(|hops| hops.len() == 2));
        let (at, _) = gone.with_context(|| format!("{brand}: the next hop was never gone"))?;
        eprintln!("{brand}: the next hop was gone {:?} after the command began", at - before);
    }
    ensure!(done["state"] == "finished", "{done}");
    ensure!(done["packets"].as_u64().is_some_and(|packets| packets > 0), "a third of the traffic: {done}");
    ensure!(done["packets_after_withdrawal"] == 0, "withdrawn before the traffic had moved: {done}");
    ecmp.until_next_hops(2, PATIENCE)?;
    let status = ecmp.ask("director2", "status")?;
    ensure!(status["state"] == "drained", "{status}");
    ensure!(announced(&status) == ["10.255.0.2/32"], "only its own: {status}");
    let full = ecmp.ask("director2", "neighbors")?["neighbors"].to_string().matches("\"Full\"").count();
    ensure!(full == 4, "the adjacencies stay");
    Ok(())
}

fn announced(status: &Value) -> Vec<&str> {
    let all = status["announcements"].as_array().map(Vec::as_slice).unwrap_or_default();
    all.iter().filter_map(|one| one["prefix"].as_str()).collect()
}

/// A restart does not put it back, and a second `drain` has nothing to do.
fn drained_it_stays(ecmp: &Ecmp) -> Result<()> {
    ecmp.end_and_start("director2")?;
    wait("drained, and Full again", PATIENCE, || Ok(ecmp.ask("director2", "status")?["state"] == "drained"))?;
    let status = ecmp.ask("director2", "status")?;
    ensure!(announced(&status) == ["10.255.0.2/32"], "{status}");
    ensure!(ecmp.has_next_hops(2)?);
    let again = ecmp.ask("director2", "drain")?;
    ensure!(again["packets"] == 0, "{again}");
    Ok(())
}

fn back_in_service(ecmp: &Ecmp) -> Result<()> {
    let reply = ecmp.ask("director2", "undrain")?;
    ensure!(reply["was"] == "drained", "{reply}");
    ecmp.until_next_hops(3, PATIENCE)?;
    ensure!(ecmp.ask("director2", "status")?["state"] == "serving");
    ensure!(ecmp.ask("director2", "undrain")?["was"] == "");
    Ok(())
}

/// Two directors are drained; the third is told that nobody is left, and keeps its VIPs.
fn the_last_one_is_not_drained(ecmp: &Ecmp, downloads: &Downloads<'_>) -> Result<()> {
    ecmp.ask("director1", "drain")?;
    ecmp.ask("director2", "drain")?;
    ecmp.until_next_hops(1, PATIENCE)?;
    let refused = ecmp.ask("director3", "drain").expect_err("nobody is left").to_string();
    ensure!(refused.contains("nobody else announces") && refused.contains(VIP), "{refused}");
    ensure!(ecmp.ask("director3", "status")?["state"] == "serving");
    downloads.go_on()?;
    for director in ["director1", "director2"] {
        ecmp.ask(director, "undrain")?;
    }
    ecmp.until_next_hops(3, PATIENCE)
}
