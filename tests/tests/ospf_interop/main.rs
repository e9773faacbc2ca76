//! The speaker against FRR and BIRD as they are in Debian 12: adjacency, ECMP on the switch's kernel table,
//! withdrawal, link loss, crash and restart, clean stop, and learned routes on our side; OSPFv2 and OSPFv3.

mod areas;
mod authentication;
mod lab;
mod liveness;
mod restart;
mod speaker;

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use cluster_tests::netns::{Namespace, is_root, until};

use self::{
    lab::{Brand, Family, Lab, Net},
    speaker::Speaker,
};

/// The whole life of two directors beside a switch.
fn life_of_two_directors(test: &str, brand: Brand, net: Net) -> Result<()> {
    life_of_two(test, Family::V4, brand, net)
}

fn life_of_two(test: &str, family: Family, brand: Brand, net: Net) -> Result<()> {
    if !is_root(test) {
        return Ok(());
    }
    let lab = Lab::of(family, brand, net)?;
    let behind = family.behind();
    let mut one = lab.speaker(0)?;
    let mut two = lab.speaker(1)?;
    until("both are full", Duration::from_secs(30), || Ok(one.full()? == 1 && two.full()? == 1))?;
    lab.until_next_hops("ECMP of both", 2, 20)?;
    until("route learned", Duration::from_secs(10), || Ok(lab.learned(0)?.contains(behind)))?;
    ensure!(!lab.learned(0)?.contains(family.vip()), "a director must not install the VIP of another");
    lab.stays(2, Duration::from_secs(2))?;
    change_the_announcement(&lab, &mut two)?;
    lose_the_link(&lab)?;

    two.kill()?;
    lab.until_next_hops("killed, dead interval", 1, 6)?;
    let mut two = lab.speaker(1)?;
    lab.until_next_hops("restarted", 2, 20)?;
    lab.stays(2, Duration::from_secs(8)).context("the restart must not flap")?;

    let start = Instant::now();
    two.tell("stop")?;
    lab.until_next_hops("clean stop", 1, 2)?;
    until("process ends", Duration::from_secs(3), || two.has_ended())?;
    ensure!(start.elapsed() < Duration::from_millis(2300), "a stop took {:?}", start.elapsed());
    ensure!(lab.learned(1)?.is_empty(), "learned routes go with a clean stop");
    ensure!(!lab.learned(0)?.is_empty(), "and stay where no one stopped");
    Ok(())
}

fn change_the_announcement(lab: &Lab, speaker: &mut Speaker) -> Result<()> {
    let vip = lab.family.vip_prefix();
    speaker.tell("announce")?;
    lab.until_next_hops("withdrawn", 1, 2)?;
    speaker.tell(&format!("announce {vip}=10"))?;
    lab.until_next_hops("announced again within a second", 2, 4)?;
    lab.stays(2, Duration::from_secs(2))?;
    speaker.tell(&format!("announce {vip}=1010"))?;
    lab.until_next_hops("drained by metric", 1, 2)?;
    ensure!(speaker.full()? == 1, "draining keeps the adjacency");
    speaker.tell(&format!("announce {vip}=10"))?;
    lab.until_next_hops("back from drain", 2, 4)?;
    Ok(())
}

fn lose_the_link(lab: &Lab) -> Result<()> {
    lab.switch.ip("link set s2 down")?;
    lab.until_next_hops("link down", 1, if lab.net == Net::Broadcast { 6 } else { 2 })?;
    lab.switch.ip("link set s2 up")?;
    lab.until_next_hops("link up", 2, 20)?;
    Ok(())
}

#[test]
fn frr_over_point_to_point_links() -> Result<()> {
    life_of_two_directors("frr_over_point_to_point_links", Brand::Frr, Net::PointToPoint)
}

#[test]
fn bird_over_point_to_point_links() -> Result<()> {
    life_of_two_directors("bird_over_point_to_point_links", Brand::Bird, Net::PointToPoint)
}

#[test]
fn frr_over_a_broadcast_segment() -> Result<()> {
    life_of_two_directors("frr_over_a_broadcast_segment", Brand::Frr, Net::Broadcast)
}

#[test]
fn bird_over_a_broadcast_segment() -> Result<()> {
    life_of_two_directors("bird_over_a_broadcast_segment", Brand::Bird, Net::Broadcast)
}

#[test]
fn frr_over_point_to_point_links_in_version_3() -> Result<()> {
    let test = "frr_over_point_to_point_links_in_version_3";
    life_of_two(test, Family::V6, Brand::Frr, Net::PointToPoint)
}

#[test]
fn bird_over_point_to_point_links_in_version_3() -> Result<()> {
    let test = "bird_over_point_to_point_links_in_version_3";
    life_of_two(test, Family::V6, Brand::Bird, Net::PointToPoint)
}

#[test]
fn frr_over_a_broadcast_segment_in_version_3() -> Result<()> {
    let test = "frr_over_a_broadcast_segment_in_version_3";
    life_of_two(test, Family::V6, Brand::Frr, Net::Broadcast)
}

#[test]
fn bird_over_a_broadcast_segment_in_version_3() -> Result<()> {
    let test = "bird_over_a_broadcast_segment_in_version_3";
    life_of_two(test, Family::V6, Brand::Bird, Net::Broadcast)
}

#[test]
fn both_versions_run_side_by_side_in_one_process() -> Result<()> {
    if !is_root("both_versions_run_side_by_side_in_one_process") {
        return Ok(());
    }
    let (director, switch) = (Namespace::new("rt-d")?, Namespace::new("rt-s")?);
    switch.veth("eth1", "10.9.1.1/30", &director, "eth1", "10.9.1.2/30")?;
    let link = "eth1:p2p:hello=1:dead=4";
    let vips = ["203.0.113.10/32=10", "2001:db8:ffff::10/128=10"];
    let _switch = Speaker::start(&switch, &["10.255.1.1", "-4", "-6", link])?;
    let mut both = Speaker::start(&director, &["10.255.0.1", "-4", "-6", link, vips[0], vips[1]])?;
    let ten = Duration::from_secs(10);
    until("full in both versions", ten, || Ok(both.full()? == 2))?;
    let routes = |option: &str| switch.ip(&format!("{option} route show proto 201"));
    let have = |count: usize| {
        let all = format!("{}{}", routes("-4")?, routes("-6")?);
        Ok(all.matches("203.0.113.10").count() + all.matches("2001:db8:ffff::10").count() == count)
    };
    until("both VIPs known", ten, || have(2))?;
    ensure!(routes("-6")?.contains("via fe80::"), "by a link-local next hop: {}", routes("-6")?);
    both.tell(&format!("announce {}", vips[0]))?;
    // Young as the switch is, it knows this route for one of its own. A second change so soon waits for
    // MinLSArrival (1.1 s) and then for the longest back-off of the receiver's calculation (2 s).
    until("one withdrawn", ten, || have(1))?;
    both.tell("stop")?;
    until("none after the stop", ten, || have(0))?;
    Ok(())
}

#[test]
fn mismatches_are_counted_and_shown() -> Result<()> {
    if !is_root("mismatches_are_counted_and_shown") {
        return Ok(());
    }
    let lab = Lab::new(Brand::Frr, Net::PointToPoint)?;
    let counted = |speaker: &mut Speaker, name: &str| Ok(speaker.refused(name)? > 0);
    let ten = Duration::from_secs(10);
    let mut slow = Speaker::start(&lab.directors[0], &["10.255.0.1", "eth1:p2p:hello=2:dead=8"])?;
    until("hello interval counted", ten, || counted(&mut slow, "hello_interval"))?;
    let mut twin = Speaker::start(&lab.directors[1], &["10.255.1.1", "eth1:p2p:hello=1:dead=4"])?;
    until("router id counted", ten, || counted(&mut twin, "duplicate_router_id"))?;
    slow.kill()?;
    lab.directors[0].ip("link set eth1 mtu 1400")?;
    let mut small = lab.speaker(0)?;
    until("MTU shown", ten, || Ok(small.status()?["neighbors"][0]["reason"] == "MTU: peer 1500, ours 1400"))?;
    lab.directors[0].ip("link set eth1 mtu 1500")?;
    until("full once the MTU is right", Duration::from_secs(20), || Ok(small.full()? == 1))?;
    Ok(())
}

#[test]
fn suspended_speaker_leaves_routes_and_its_successor_adopts_them() -> Result<()> {
    if !is_root("suspended_speaker_leaves_routes_and_its_successor_adopts_them") {
        return Ok(());
    }
    let lab = Lab::new(Brand::Frr, Net::PointToPoint)?;
    let behind = lab.family.behind();
    let mut one = lab.speaker(0)?;
    lab.until_next_hops("announced", 1, 20)?;
    until("route learned", Duration::from_secs(10), || Ok(lab.learned(0)?.contains(behind)))?;
    lab.directors[0].ip("route add 198.18.99.0/24 via 10.9.1.1 proto 201 metric 110")?;
    one.tell("keep")?;
    until("process ends", Duration::from_secs(2), || one.has_ended())?;
    ensure!(lab.learned(0)?.contains(behind), "routes stay");
    ensure!(lab.next_hops()?.len() == 1, "the switch has heard nothing");
    let mut successor = lab.speaker(0)?;
    until("successor full", Duration::from_secs(10), || {
        ensure!(lab.learned(0)?.contains(behind), "the route must not flap");
        Ok(successor.full()? == 1)
    })?;
    until("stale route goes", Duration::from_secs(25), || Ok(!lab.learned(0)?.contains("198.18.99.0")))?;
    ensure!(lab.learned(0)?.contains(behind), "the live one stays");
    Ok(())
}

#[test]
fn two_uplinks_make_a_multipath_route_that_is_kept_right() -> Result<()> {
    if !is_root("two_uplinks_make_a_multipath_route_that_is_kept_right") {
        return Ok(());
    }
    let (director, left, right) = (Namespace::new("rt-d")?, Namespace::new("rt-l")?, Namespace::new("rt-r")?);
    director.veth("eth1", "10.9.1.1/30", &left, "eth1", "10.9.1.2/30")?;
    director.veth("eth2", "10.9.2.1/30", &right, "eth1", "10.9.2.2/30")?;
    let prefix = "198.51.100.0/24";
    let switch = |namespace, router| {
        Speaker::start(namespace, &[router, "eth1:p2p:hello=1:dead=4", &format!("{prefix}=5")])
    };
    let _left = switch(&left, "10.255.1.1")?;
    let mut right_switch = switch(&right, "10.255.1.2")?;
    let uplinks = ["10.255.0.1", "eth1:p2p:hello=1:dead=4", "eth2:p2p:hello=1:dead=4"];
    let mut one = Speaker::start(&director, &uplinks)?;
    let hops = || Ok::<_, anyhow::Error>(director.ip("route show 198.51.100.0/24")?.matches("via").count());
    let ten = Duration::from_secs(10);
    until("two next hops", ten, || Ok(hops()? == 2))?;
    director.ip("route del 198.51.100.0/24 proto 201")?;
    until("a removed route comes back", Duration::from_secs(15), || Ok(hops()? == 2))?;
    right.ip("link set eth1 down")?;
    until("one next hop after the loss of a link", ten, || Ok(hops()? == 1))?;
    right.ip("link set eth1 up")?;
    until("two again", ten, || Ok(hops()? == 2))?;
    right_switch.tell("stop")?;
    until("one next hop after a stop", ten, || Ok(hops()? == 1))?;
    one.kill()?;
    ensure!(hops()? == 1, "a killed speaker leaves its routes");
    let mut again = Speaker::start(&director, &uplinks)?;
    until("full again", ten, || Ok(again.full()? == 1))?;
    again.tell("stop")?;
    until("a clean stop removes them", Duration::from_secs(3), || Ok(hops()? == 0))?;
    Ok(())
}
