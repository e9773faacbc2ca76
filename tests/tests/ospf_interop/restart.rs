//! A switch that restarts its routing gracefully keeps its adjacency with us, and our VIP its next hop; and settings that
//! change in a running speaker.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use cluster_tests::netns::{is_root, until};
use serde_json::Value;

use crate::{
    lab::{Brand, Extra, Family, Lab, Net},
    speaker::Speaker,
};

/// The switch as a neighbour.
fn switch(speaker: &mut Speaker) -> Result<Value> {
    let status = speaker.status()?;
    let neighbors = status["neighbors"].as_array().context("neighbors")?;
    let found = neighbors.iter().find(|neighbor| neighbor["router_id"] == "10.255.1.1");
    Ok(found.with_context(|| format!("the switch is no neighbour any more: {neighbors:?}"))?.clone())
}

/// Whether a status holds an event of this name.
fn happened(status: &Value, name: &str) -> Option<Value> {
    let events = status["state_events"].as_array()?;
    events.iter().find_map(|record| record["event"].get(name)).cloned()
}

/// Sequence number of our own Router-LSA.
fn sequence(status: &Value) -> Option<u64> {
    let own = |lsa: &&Value| lsa["own"] == true && matches!(lsa["kind"].as_u64(), Some(1 | 0x2001));
    status["lsdb"].as_array()?.iter().find(own)?["sequence"].as_u64()
}

fn restarts_gracefully(test: &str, family: Family, brand: Brand) -> Result<()> {
    if !is_root(test) {
        return Ok(());
    }
    let extra = Extra { graceful: true, ..Extra::NONE };
    let mut lab = Lab::with(family, brand, Net::PointToPoint, extra)?;
    let mut director = lab.speaker(0)?;
    lab.until_next_hops("announced", 1, 30)?;
    until("route learned", Duration::from_secs(10), || Ok(lab.learned(0)?.contains(family.behind())))?;
    lab.stays(1, Duration::from_secs(6))?; // all LSAs acknowledged, and older than MinLSInterval
    let before = sequence(&director.status()?);

    lab.prepare_restart()?;
    until("the Grace-LSA is heard", Duration::from_secs(5), || {
        Ok(!switch(&mut director)?["helped_for_ms"].is_null())
    })?;
    lab.kill_ospf();
    // Well beyond the dead interval of 4 s.
    let mut lived = Duration::ZERO;
    while lived < Duration::from_secs(7) {
        lab.stays(1, Duration::from_millis(500)).context("while the switch is silent")?;
        ensure!(lab.learned(0)?.contains(family.behind()), "our route through the switch goes");
        switch(&mut director)?;
        lived += Duration::from_millis(500);
    }
    lab.restart_ospf()?;
    until("the restart is completed", Duration::from_secs(50), || {
        ensure!(lab.next_hops()?.len() == 1, "the switch's next hop goes");
        // BIRD 2.0.12 itself takes its Router-LSA out of the domain for a second when its restart is over.
        let kept = brand == Brand::Bird || lab.learned(0)?.contains(family.behind());
        ensure!(kept, "our route through the switch goes");
        let neighbor = switch(&mut director)?;
        Ok(neighbor["state"] == "Full" && neighbor["helped_for_ms"].is_null())
    })?;
    let status = director.status()?;
    let ended = happened(&status, "HelpEnded").context("the end was not recorded")?;
    ensure!(ended["reason"] == "completed", "{ended}");
    ensure!(sequence(&status) == before, "our Router-LSA changed in between");
    until("our route is there", Duration::from_secs(5), || Ok(lab.learned(0)?.contains(family.behind())))?;
    lab.stays(1, Duration::from_secs(6))
}

#[test]
fn frr_restarts_gracefully() -> Result<()> {
    restarts_gracefully("frr_restarts_gracefully", Family::V4, Brand::Frr)
}

#[test]
fn bird_restarts_gracefully() -> Result<()> {
    restarts_gracefully("bird_restarts_gracefully", Family::V4, Brand::Bird)
}

#[test]
fn bird_restarts_gracefully_in_version_3() -> Result<()> {
    restarts_gracefully("bird_restarts_gracefully_in_version_3", Family::V6, Brand::Bird)
}

/// Cost, BFD and its intervals come and go with the adjacency in place; what cannot change is refused, and changes
/// nothing.
#[test]
fn settings_change_with_the_adjacency_in_place() -> Result<()> {
    if !is_root("settings_change_with_the_adjacency_in_place") {
        return Ok(());
    }
    let lab = Lab::with(Family::V4, Brand::Frr, Net::PointToPoint, Extra { bfd: true, ..Extra::NONE })?;
    let plain = ["10.255.0.1", "-4", "eth1:p2p:hello=1:dead=4", "203.0.113.10/32=10"];
    let mut director = Speaker::start(&lab.directors[0], &plain)?;
    lab.until_next_hops("announced", 1, 30)?;
    let full = |director: &mut Speaker| -> Result<Value> {
        let neighbor = switch(director)?;
        ensure!(neighbor["state"] == "Full", "{neighbor}");
        Ok(neighbor)
    };
    let detection = |neighbor: &Value| neighbor["bfd"]["detection_ms"].as_u64();
    // Slow enough for a switch's daemon without a real-time class on a busy machine.
    for (link, expected) in [("bfd=300*3", 900), ("bfd=400*3", 1200), ("bfd=300*3:cost=30", 900)] {
        director.tell(&format!("reconfigure eth1:p2p:hello=1:dead=4:{link}"))?;
        until(link, Duration::from_secs(10), || {
            let neighbor = full(&mut director)?;
            Ok(neighbor["bfd"]["state"] == "up" && detection(&neighbor) == Some(expected))
        })?;
    }
    ensure!(director.status()?["interfaces"][0]["cost"] == 30);
    director.tell("reconfigure eth1:p2p:hello=1:dead=4:area=0.0.0.9:cost=77")?;
    lab.stays(1, Duration::from_secs(6))?;
    full(&mut director)?;
    let status = director.status()?;
    ensure!(status["interfaces"][0]["cost"] == 30, "a refused configuration changed something: {status}");
    ensure!(happened(&status, "Neighbor").is_some());
    let lost = |record: &&Value| record["event"]["Neighbor"]["from"] == "Full";
    let events = status["state_events"].as_array().context("events")?;
    ensure!(events.iter().filter(lost).count() == 0, "{events:?}");
    Ok(())
}
