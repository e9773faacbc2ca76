//! Authentication and TTL security against FRR and BIRD: who has the same key is a neighbour, who has not is
//! none and is counted, and keys roll over under way.

use std::time::{Duration, SystemTime};

use anyhow::{Result, ensure};
use cluster_tests::netns::{is_root, until};

use super::{
    lab::{Brand, Extra, Family, Lab, Net},
    speaker::Speaker,
};

const TEN: Duration = Duration::from_secs(10);

/// Fails if a packet was refused for its authentication.
fn nothing_refused(speaker: &mut Speaker) -> Result<()> {
    let counters = speaker.status()?["counters"].clone();
    let mut reasons = counters.as_object().into_iter().flat_map(|all| all.keys());
    ensure!(!reasons.any(|reason| reason.starts_with("authentication")), "refused: {counters}");
    Ok(())
}

/// Two directors with the switch's key become neighbours of it; a third process with another one does not.
fn like_the_switch(
    test: &str,
    (family, brand, net): (Family, Brand, Net),
    extra: Extra<'_>,
    (wrong, reason): (&str, &str),
) -> Result<()> {
    if !is_root(test) {
        return Ok(());
    }
    let lab = Lab::with(family, brand, net, extra)?;
    let mut one = lab.speaker(0)?;
    let mut two = lab.speaker(1)?;
    until("both are full", Duration::from_secs(30), || Ok(one.full()? == 1 && two.full()? == 1))?;
    lab.until_next_hops("ECMP of both", 2, 20)?;
    until("route learned", TEN, || Ok(lab.learned(0)?.contains(family.behind())))?;
    two.kill()?;
    let mut two = lab.speaker(1)?;
    until("full again after a crash", TEN, || Ok(two.full()? == 1))?;
    lab.until_next_hops("ECMP again", 2, 20)?;
    nothing_refused(&mut one)?;
    nothing_refused(&mut two)?;
    two.kill()?;
    lab.until_next_hops("the killed one is gone", 1, 10)?;
    let kind = if net == Net::Broadcast { "broadcast" } else { "p2p" };
    let interface = format!("eth1:{kind}:hello=1:dead=4{wrong}");
    let announced = format!("{}=10", family.vip_prefix());
    let mut stranger =
        Speaker::start(&lab.directors[1], &["10.255.0.2", lab.option(), &interface, &announced])?;
    until("the stranger counts why", TEN, || Ok(stranger.refused(reason)? >= 3))?;
    ensure!(stranger.full()? == 0, "no neighbour without the key");
    ensure!(lab.next_hops()?.len() == 1, "and no route");
    Ok(())
}

const SIMPLE: Extra<'_> = Extra { speaker: ":password=sesame", ..Extra::NONE };
const MD5: Extra<'_> = Extra { speaker: ":key=7,md5,swordfish", ..Extra::NONE };
const WRONG_PASSWORD: (&str, &str) = (":password=simsim", "authentication_digest");
const WRONG_SECRET: (&str, &str) = (":key=7,md5,catfish", "authentication_digest");

const FRR_SIMPLE: &str = " ip ospf authentication\n ip ospf authentication-key sesame\n";
const FRR_MD5: &str = " ip ospf authentication message-digest\n ip ospf message-digest-key 7 md5 swordfish\n";
const BIRD_SIMPLE: &str = "authentication simple; password \"sesame\";";
const BIRD_MD5: &str = "authentication cryptographic; password \"swordfish\" { id 7; algorithm keyed md5; };";

#[test]
fn password_with_frr() -> Result<()> {
    let (lab, extra) = ((Family::V4, Brand::Frr, Net::PointToPoint), Extra { switch: FRR_SIMPLE, ..SIMPLE });
    like_the_switch("password_with_frr", lab, extra, WRONG_PASSWORD)
}

#[test]
fn password_with_bird() -> Result<()> {
    let (lab, extra) = ((Family::V4, Brand::Bird, Net::Broadcast), Extra { switch: BIRD_SIMPLE, ..SIMPLE });
    like_the_switch("password_with_bird", lab, extra, WRONG_PASSWORD)
}

#[test]
fn md5_with_frr() -> Result<()> {
    let (lab, extra) = ((Family::V4, Brand::Frr, Net::Broadcast), Extra { switch: FRR_MD5, ..MD5 });
    like_the_switch("md5_with_frr", lab, extra, WRONG_SECRET)
}

#[test]
fn md5_with_bird() -> Result<()> {
    let (lab, extra) = ((Family::V4, Brand::Bird, Net::PointToPoint), Extra { switch: BIRD_MD5, ..MD5 });
    like_the_switch("md5_with_bird", lab, extra, (":key=8,md5,swordfish", "authentication_key"))
}

/// Every algorithm of HMAC with BIRD, whose names for them differ.
fn hmac_with_bird(test: &str, family: Family, algorithm: (&str, &str)) -> Result<()> {
    let (ours, theirs) = algorithm;
    let switch =
        format!("authentication cryptographic; password \"swordfish\" {{ id 9; algorithm {theirs}; }};");
    let speaker = format!(":key=9,{ours},swordfish");
    let extra = Extra { switch: &switch, speaker: &speaker, ..Extra::NONE };
    like_the_switch(test, (family, Brand::Bird, Net::PointToPoint), extra, ("", "authentication"))
}

#[test]
fn hmac_sha_1_with_bird() -> Result<()> {
    hmac_with_bird("hmac_sha_1_with_bird", Family::V4, ("hmac-sha-1", "hmac sha1"))
}

#[test]
fn hmac_sha_256_with_bird() -> Result<()> {
    hmac_with_bird("hmac_sha_256_with_bird", Family::V4, ("hmac-sha-256", "hmac sha256"))
}

#[test]
fn hmac_sha_384_with_bird() -> Result<()> {
    hmac_with_bird("hmac_sha_384_with_bird", Family::V4, ("hmac-sha-384", "hmac sha384"))
}

#[test]
fn hmac_sha_512_with_bird() -> Result<()> {
    hmac_with_bird("hmac_sha_512_with_bird", Family::V4, ("hmac-sha-512", "hmac sha512"))
}

#[test]
fn trailer_of_version_3_with_bird() -> Result<()> {
    let test = "trailer_of_version_3_with_bird";
    hmac_with_bird(test, Family::V6, ("hmac-sha-256", "hmac sha256"))
}

#[test]
fn long_trailer_of_version_3_with_bird() -> Result<()> {
    let test = "long_trailer_of_version_3_with_bird";
    hmac_with_bird(test, Family::V6, ("hmac-sha-512", "hmac sha512"))
}

#[test]
fn trailer_of_version_3_with_frr() -> Result<()> {
    let switch = " ipv6 ospf6 authentication key-id 9 hash-algo hmac-sha-256 key swordfish\n";
    // FRR 8.4 swaps the bytes of the protocol's id, so what is right by the RFC is wrong to it.
    let extra = Extra { switch, speaker: ":key=9,hmac-sha-256,swordfish,,,swapped", ..Extra::NONE };
    let wrong = (":key=9,hmac-sha-256,swordfish", "authentication_digest");
    let lab = (Family::V6, Brand::Frr, Net::Broadcast);
    like_the_switch("trailer_of_version_3_with_frr", lab, extra, wrong)
}

/// Key 1 goes, key 2 comes: first on our side by the clock, then on the switch's by its configuration, then
/// key 1 is forgotten. The adjacency lasts throughout.
fn roll_over(test: &str, family: Family) -> Result<()> {
    if !is_root(test) {
        return Ok(());
    }
    let password =
        |id: u8, secret: &str| format!("password \"{secret}\" {{ id {id}; algorithm hmac sha256; }};");
    let (old, new) = (password(1, "yesterday"), password(2, "tomorrow"));
    let both = format!("authentication cryptographic; {old} {new}");
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH)?.as_secs();
    let change = now + 8;
    let ours = format!(":key=1,hmac-sha-256,yesterday:key=2,hmac-sha-256,tomorrow,{change}");
    let extra = Extra { switch: &both, speaker: &ours, ..Extra::NONE };
    let lab = Lab::with(family, Brand::Bird, Net::PointToPoint, extra)?;
    let mut one = lab.speaker(0)?;
    until("full with the old key", TEN, || Ok(one.full()? == 1))?;
    lab.until_next_hops("announced", 1, 10)?;
    ensure!(one.status()?["interfaces"][0]["authentication"] == "key 1, hmac-sha-256", "{}", one.status()?);
    let since = |speaker: &mut Speaker| {
        Ok::<_, anyhow::Error>(speaker.status()?["neighbors"][0]["in_state_ms"].as_u64())
    };
    until("the new key by the clock", Duration::from_secs(20), || {
        ensure!(one.full()? == 1, "the adjacency must last");
        Ok(one.status()?["interfaces"][0]["authentication"] == "key 2, hmac-sha-256")
    })?;
    lab.stays(1, Duration::from_secs(5))?;
    lab.reconfigure_bird(&format!("authentication cryptographic; {new}"))?;
    lab.stays(1, Duration::from_secs(5))?;
    let before = since(&mut one)?;
    one.tell("keys eth1 2,hmac-sha-256,tomorrow")?;
    lab.stays(1, Duration::from_secs(5))?;
    ensure!(one.full()? == 1 && since(&mut one)? >= before, "full ever since: {}", one.status()?);
    nothing_refused(&mut one)
}

#[test]
fn keys_roll_over_without_loss() -> Result<()> {
    roll_over("keys_roll_over_without_loss", Family::V4)
}

#[test]
fn keys_roll_over_without_loss_in_version_3() -> Result<()> {
    roll_over("keys_roll_over_without_loss_in_version_3", Family::V6)
}

/// BIRD with TTL security takes our packets, and we its; from a switch without it everything is refused.
fn ttl_security(test: &str, family: Family) -> Result<()> {
    if !is_root(test) {
        return Ok(());
    }
    let extra = Extra { switch: "ttl security yes;", speaker: ":ttl-security", ..Extra::NONE };
    let lab = Lab::with(family, Brand::Bird, Net::Broadcast, extra)?;
    let mut one = lab.speaker(0)?;
    until("full", Duration::from_secs(20), || Ok(one.full()? == 1))?;
    ensure!(one.refused("ttl")? == 0, "{}", one.status()?);
    lab.reconfigure_bird("ttl security no;")?;
    until("packets with TTL 1 are refused", TEN, || Ok(one.refused("ttl")? > 0))?;
    until("and the neighbour goes", TEN, || Ok(one.full()? == 0))?;
    Ok(())
}

#[test]
fn ttl_security_with_bird() -> Result<()> {
    ttl_security("ttl_security_with_bird", Family::V4)
}

#[test]
fn ttl_security_with_bird_in_version_3() -> Result<()> {
    ttl_security("ttl_security_with_bird_in_version_3", Family::V6)
}
