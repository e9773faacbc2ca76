//! BFD beside OSPF, against FRR and BIRD and between speakers of ours: who falls silent is out within a fraction of a
//! second whatever the dead interval, and the operator's AdminDown is no failure.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use cluster_tests::netns::{Namespace, is_root, until};
use serde_json::Value;

use crate::{
    lab::{Brand, Extra, Family, Lab, Net},
    speaker::Speaker,
};

/// Half of the dead interval in use: what happens within it, BFD did.
const BEFORE_HELLOS_TELL: Duration = Duration::from_secs(2);

/// The switch as a neighbour, if it is one; on a segment the other director is one, too.
fn neighbor(speaker: &mut Speaker) -> Result<Option<Value>> {
    Ok(neighbors(speaker)?.into_iter().find(|neighbor| neighbor["router_id"] == "10.255.1.1"))
}

fn is_up(neighbor: &Value) -> bool {
    let bfd = &neighbor["bfd"];
    neighbor["state"] == "Full" && bfd["state"] == "up" && bfd["remote_state"] == "up"
}

/// Waits until the adjacency is Full and its session Up at the negotiated 50 ms x 3.
fn until_watched(speaker: &mut Speaker) -> Result<()> {
    let mut last = None;
    let watched = until("Full and watched", Duration::from_secs(30), || {
        last = neighbor(speaker)?;
        Ok(last.as_ref().is_some_and(|last| is_up(last) && last["bfd"]["detection_ms"] == 150))
    });
    watched.with_context(|| format!("{last:?}")).map(drop)
}

/// Waits until both directors are next hops, are watched, and have been so for longer than MinLSInterval: BIRD would
/// delay
/// the change of its Router-LSA, and with it its route, by the rest. The switch's daemons have no real-time class: on a
/// busy machine they may be late by 150 ms themselves, so that it takes more than one attempt.
fn until_steady(lab: &Lab, mut directors: [&mut Speaker; 2]) -> Result<()> {
    for _ in 0..4 {
        lab.until_next_hops("ECMP of both", 2, 30)?;
        directors.iter_mut().try_for_each(|director| until_watched(director))?;
        if let Err(error) = lab.stays(2, Duration::from_secs(6)) {
            eprintln!("{}: not steady: {error:#}", lab.switch.name());
        } else {
            return Ok(());
        }
    }
    anyhow::bail!("{}: never steady", lab.switch.name())
}

/// A director dies: the switch's kernel knows soon. The switch dies: so does the director.
fn silence_is_noticed(test: &str, family: Family, brand: Brand, net: Net) -> Result<()> {
    if !is_root(test) {
        return Ok(());
    }
    let mut lab = Lab::with(family, brand, net, Extra { bfd: true, ..Extra::NONE })?;
    let mut one = lab.speaker(0)?;
    let mut two = lab.speaker(1)?;
    until_steady(&lab, [&mut one, &mut two])?;

    let start = Instant::now();
    two.kill()?;
    lab.until_next_hops("killed, BFD 50 ms x 3", 1, 4)?;
    let took = start.elapsed();
    // BIRD computes routes at most once a tick, which is a second.
    let tick = Duration::from_secs(if brand == Brand::Bird { 1 } else { 0 });
    ensure!(took < tick + Duration::from_secs(1), "the next hop of a dead director stayed for {took:?}");
    let mut two = lab.speaker(1)?;
    lab.until_next_hops("back", 2, 30)?;
    until_watched(&mut two)?;

    let start = Instant::now();
    lab.kill_bfd();
    let noticed = until("the switch's silence", BEFORE_HELLOS_TELL, || {
        // FRR's other daemons live on: its hellos begin a new adjacency.
        let since = |last: Value| last["in_state_ms"].as_u64().map(Duration::from_millis);
        Ok(neighbor(&mut one)?.and_then(since).is_none_or(|since| since < start.elapsed()))
    })?;
    eprintln!("{}: the switch is dead: {noticed:?}", lab.switch.name());
    if brand == Brand::Bird {
        ensure!(neighbor(&mut one)?.is_none(), "nobody is left");
        until("learned routes go with the neighbour", BEFORE_HELLOS_TELL, || {
            Ok(!lab.learned(0)?.contains(family.behind()))
        })?;
    } else {
        until("Full without BFD", Duration::from_secs(20), || Ok(one.full()? == 1))?;
        ensure!(neighbor(&mut one)?.is_some_and(|last| last["bfd"]["state"] == "down"), "BFD is not back");
    }
    Ok(())
}

#[test]
fn frr_and_we_notice_silence_over_a_link() -> Result<()> {
    let test = "frr_and_we_notice_silence_over_a_link";
    silence_is_noticed(test, Family::V4, Brand::Frr, Net::PointToPoint)
}

#[test]
fn bird_and_we_notice_silence_over_a_link() -> Result<()> {
    let test = "bird_and_we_notice_silence_over_a_link";
    silence_is_noticed(test, Family::V4, Brand::Bird, Net::PointToPoint)
}

#[test]
fn frr_and_we_notice_silence_over_a_link_in_version_3() -> Result<()> {
    let test = "frr_and_we_notice_silence_over_a_link_in_version_3";
    silence_is_noticed(test, Family::V6, Brand::Frr, Net::PointToPoint)
}

#[test]
fn bird_and_we_notice_silence_over_a_link_in_version_3() -> Result<()> {
    let test = "bird_and_we_notice_silence_over_a_link_in_version_3";
    silence_is_noticed(test, Family::V6, Brand::Bird, Net::PointToPoint)
}

#[test]
fn frr_and_we_notice_silence_on_a_segment() -> Result<()> {
    silence_is_noticed("frr_and_we_notice_silence_on_a_segment", Family::V4, Brand::Frr, Net::Broadcast)
}

#[test]
fn bird_and_we_notice_silence_on_a_segment_in_version_3() -> Result<()> {
    let test = "bird_and_we_notice_silence_on_a_segment_in_version_3";
    silence_is_noticed(test, Family::V6, Brand::Bird, Net::Broadcast)
}

/// Two speakers of ours on one cable, both versions, BFD at both ends, a dead interval of 10 s.
struct Cable {
    director: Speaker,
    switch: Speaker,
    near: Namespace,
    far: Namespace,
}

impl Cable {
    fn lay() -> Result<Self> {
        let (near, far) = (Namespace::new("rt-d")?, Namespace::new("rt-s")?);
        near.veth("eth1", "10.9.1.2/30", &far, "eth1", "10.9.1.1/30")?;
        let start = |namespace: &Namespace, router: &str| {
            Speaker::start(namespace, &[router, "-4", "-6", "eth1:p2p:hello=1:dead=10:bfd=50*3"])
        };
        let mut director = start(&near, "10.255.0.1")?;
        let switch = start(&far, "10.255.1.1")?;
        until("both versions Full, a session each", Duration::from_secs(15), || {
            Ok(neighbors(&mut director)?.iter().filter(|neighbor| is_up(neighbor)).count() == 2)
        })?;
        Ok(Self { director, switch, near, far })
    }
}

fn neighbors(speaker: &mut Speaker) -> Result<Vec<Value>> {
    Ok(speaker.status()?["neighbors"].as_array().context("neighbors")?.clone())
}

/// RFC 5882 section 3.2, of a session that goes down because the remote system says AdminDown: "clients SHOULD NOT take
/// any control protocol action".
#[test]
fn admin_down_of_the_peer_leaves_the_adjacency() -> Result<()> {
    if !is_root("admin_down_of_the_peer_leaves_the_adjacency") {
        return Ok(());
    }
    let mut cable = Cable::lay()?;
    // It leaves its LSAs where they are and says no word in OSPF; its BFD takes leave as the process ends.
    cable.switch.tell("keep")?;
    until("AdminDown is heard, or the silence after it", Duration::from_secs(3), || {
        let all = neighbors(&mut cable.director)?;
        ensure!(all.len() == 2 && all.iter().all(|one| one["state"] == "Full"), "{all:?}");
        Ok(all.iter().all(|one| one["bfd"]["state"] == "down"))
    })?;
    let start = Instant::now();
    while start.elapsed() < BEFORE_HELLOS_TELL {
        ensure!(cable.director.full()? == 2, "after {:?}", start.elapsed());
        std::thread::sleep(Duration::from_millis(50));
    }
    Ok(())
}

/// The path breaks in one direction: who still hears is told, and believes it.
#[test]
fn a_path_that_is_broken_in_one_direction_is_down_at_both_ends() -> Result<()> {
    if !is_root("a_path_that_is_broken_in_one_direction_is_down_at_both_ends") {
        return Ok(());
    }
    let mut cable = Cable::lay()?;
    let deaf = "table inet deaf { chain input { type filter hook input priority 0; policy drop; }; }";
    ensure!(cable.near.command("nft").arg(format!("add {deaf}")).status()?.success(), "nft");
    let start = Instant::now();
    until("the deaf end gives up", BEFORE_HELLOS_TELL, || Ok(neighbors(&mut cable.director)?.is_empty()))?;
    until("the heard end, too", BEFORE_HELLOS_TELL, || Ok(cable.switch.full()? == 0))?;
    eprintln!("{}: down at both ends after {:?}", cable.far.name(), start.elapsed());
    Ok(())
}

/// A device that is removed and made anew is another path: the neighbours on it get sessions of their own.
#[test]
fn device_made_anew_is_watched_again() -> Result<()> {
    if !is_root("device_made_anew_is_watched_again") {
        return Ok(());
    }
    let mut cable = Cable::lay()?;
    cable.near.ip("link del eth1")?;
    until("nobody is left", BEFORE_HELLOS_TELL, || Ok(neighbors(&mut cable.director)?.is_empty()))?;
    cable.near.veth("eth1", "10.9.1.2/30", &cable.far, "eth1", "10.9.1.1/30")?;
    until("Full and watched again", Duration::from_secs(20), || {
        let all = neighbors(&mut cable.director)?;
        Ok(all.iter().filter(|one| is_up(one)).count() == 2)
    })?;
    let all = neighbors(&mut cable.director)?;
    ensure!(all.iter().all(|one| one["bfd"]["error"].is_null()), "{all:?}");
    Ok(())
}
