//! An operator upgrades a director in place, under load: its process is another program from one moment to the next, and
//! neither the switches nor the clients notice.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use cluster_tests::downloads::Downloads;
use cluster_tests::ecmp::{DIRECTORS, Ecmp, SWITCHES, VIPS, in_a_lab, wait};
use lab::routes::RouteWatch;

const DIRECTOR: &str = "director2";
/// Downloads under way, a third of them through each director.
const DOWNLOADS: usize = 45;
/// Longest time for the lab to come to rest, on a machine that has other work.
const PATIENCE: Duration = Duration::from_secs(120);
/// Milliseconds after which nobody has anything to say of an adjacency any more.
const CALM: u64 = 15_000;
/// The dead interval of the switches, and a little more: what they have not noticed by then they never will.
const DEAD: Duration = Duration::from_secs(6);

#[test]
fn upgrading_a_director_under_load_is_seen_by_nobody() -> Result<()> {
    in_a_lab("upgrade", |ecmp| {
        ecmp.until_next_hops(3, PATIENCE)?;
        watched_by_bfd_it_is_refused(ecmp)?;
        prepare(ecmp)?;
        let downloads = Downloads::start(ecmp, DOWNLOADS)?;
        upgrade(ecmp)?;
        downloads.go_on()?;
        // What is left is a director like any other: it withdraws, and comes back.
        ecmp.ask(DIRECTOR, "drain")?;
        ecmp.until_next_hops(2, PATIENCE)?;
        ecmp.ask(DIRECTOR, "undrain")?;
        ecmp.until_next_hops(3, PATIENCE)?;
        downloads.go_on()
    })
}

/// BFD would end with the process, and the switches take that for a failure.
fn watched_by_bfd_it_is_refused(ecmp: &Ecmp) -> Result<()> {
    wait("BFD is up with both switches, in both versions", PATIENCE, || {
        let neighbors = ecmp.ask(DIRECTOR, "neighbors")?;
        let all = neighbors["neighbors"].as_array().map(Vec::as_slice).unwrap_or_default();
        Ok(all.iter().filter(|neighbor| neighbor["bfd"]["state"] == "Up").count() == 4)
    })?;
    let refused = ecmp.ask(DIRECTOR, "restart").expect_err("BFD is up").to_string();
    ensure!(refused.contains("watches us by BFD"), "{refused}");
    ensure!(ecmp.ask(DIRECTOR, "status")?["state"] == "serving");
    Ok(())
}

/// Without BFD between this director and the switches, with FRR as a helper (BIRD is one by itself), and everything at
/// rest.
fn prepare(ecmp: &Ecmp) -> Result<()> {
    ecmp.lab.sh(
        "switch1",
        "vtysh -c 'configure terminal' -c 'router ospf' -c 'capability opaque' -c 'graceful-restart helper enable' -c exit \
         -c 'router ospf6' -c 'graceful-restart helper enable' -c exit \
         -c 'interface eth2' -c 'no ip ospf bfd' -c 'no ipv6 ospf6 bfd'",
    )?;
    ecmp.lab.sh(
        "switch2",
        "sed 's/bfd yes;//' /etc/bird/bird.conf > /tmp/bird.conf && \
         birdc -s /run/bird/bird.ctl configure '\"/tmp/bird.conf\"'",
    )?;
    ecmp.edit(DIRECTOR, "/^bfd = /d")?;
    ecmp.end_and_start(DIRECTOR)?;
    // The new program is another file, in the place of the old one.
    let program = "program=$(command -v director); cp $program /tmp/new && mount --bind /tmp/new $program";
    ecmp.lab.sh(DIRECTOR, program)?;
    wait("serving, with four neighbours that watch nobody", PATIENCE, || {
        let neighbors = ecmp.ask(DIRECTOR, "neighbors")?;
        let all = neighbors["neighbors"].as_array().map(Vec::as_slice).unwrap_or_default();
        let full = |neighbor: &&serde_json::Value| neighbor["state"] == "Full" && neighbor["bfd"].is_null();
        Ok(all.iter().filter(full).count() == 4 && ecmp.ask(DIRECTOR, "status")?["state"] == "serving")
    })?;
    // Whatever changes in the network ends a switch's help (RFC 3623, section 3.2), and taking BFD off has changed some.
    wait("nothing has changed anywhere for a while", PATIENCE, || {
        for director in DIRECTORS {
            let neighbors = ecmp.ask(director, "neighbors")?;
            let all = neighbors["neighbors"].as_array().map(Vec::as_slice).unwrap_or_default();
            let calm = |neighbor: &&serde_json::Value| {
                neighbor["state"] == "Full" && neighbor["in_state_ms"].as_u64().is_some_and(|age| age > CALM)
            };
            if all.iter().filter(calm).count() != 4 {
                return Ok(false);
            }
        }
        Ok(true)
    })?;
    ecmp.until_next_hops(3, PATIENCE)
}

/// Process and program of the director.
fn process(ecmp: &Ecmp) -> Result<(String, String)> {
    let process = ecmp.lab.sh(DIRECTOR, "cat /run/director.pid")?.trim().to_owned();
    let program = ecmp.lab.sh(DIRECTOR, &format!("stat -Lc %d:%i /proc/{process}/exe"))?.trim().to_owned();
    Ok((process, program))
}

fn upgrade(ecmp: &Ecmp) -> Result<()> {
    let addresses: BTreeSet<IpAddr> = VIPS.iter().map(|vip| vip.parse()).collect::<Result<_, _>>()?;
    let mut watches = Vec::new();
    for switch in SWITCHES {
        watches.push((switch, RouteWatch::start(&ecmp.lab.network_namespace(switch)?, addresses.clone())?));
    }
    let (process_before, program_before) = process(ecmp)?;
    let before = Instant::now();
    // What an LSA of a moment ago still has to be acknowledged for is a reason to ask again.
    let (mut reply, mut failed) = (None, None);
    wait("the restart is prepared", PATIENCE, || match ecmp.ask(DIRECTOR, "restart") {
        Ok(said) => {
            reply = Some(said);
            Ok(true)
        }
        Err(refused) if refused.to_string().contains("acknowledge") => Ok(false),
        Err(refused) => {
            failed = Some(refused);
            Ok(true)
        }
    })?;
    if let Some(refused) = failed {
        return Err(refused);
    }
    let reply = reply.context("wait has waited for it")?;
    ensure!(reply["adjacencies"] == 4, "{reply}");
    let mut events = String::new();
    wait("OSPF of both versions has resumed", PATIENCE, || {
        let said = ecmp.ask(DIRECTOR, "events")?;
        let all = said["events"].as_array().map(Vec::as_slice).unwrap_or_default();
        let over: Vec<_> =
            all.iter().filter(|event| event["kind"] == "restart" && event["action"] == "over").collect();
        events = format!("{over:?}");
        Ok(over.len() == 2)
    })
    .with_context(|| {
        ecmp.ask(DIRECTOR, "events").map_or_else(|error| error.to_string(), |all| all.to_string())
    })?;
    let over = before.elapsed();
    ensure!(events.matches("all adjacencies are back").count() == 2, "{events}");
    wait("serving, and in agreement", PATIENCE, || {
        let peers = ecmp.ask(DIRECTOR, "peers")?;
        let agreed = peers["peers"]
            .as_array()
            .is_some_and(|all| all.iter().all(|peer| peer["state"] == "up" && peer["same_tables"] == true));
        Ok(agreed && ecmp.ask(DIRECTOR, "status")?["state"] == "serving")
    })?;
    let serving = before.elapsed();
    let (process_after, program_after) = process(ecmp)?;
    ensure!(process_before == process_after, "another process: {process_before}, {process_after}");
    ensure!(program_before != program_after, "still the old program");
    let status = ecmp.ask(DIRECTOR, "status")?;
    ensure!(status["data_plane"] == "adopted", "{status}");
    std::thread::sleep(DEAD);
    for (switch, watch) in &watches {
        watch.now().with_context(|| switch.to_string())?;
        for (at, routes) in watch.changes_since(before) {
            if let Some((vip, hops)) = routes.iter().find(|(_, hops)| hops.len() != 3) {
                bail!("{switch}: {vip} had next hops by {hops:?} after {:?}", at - before);
            }
        }
    }
    println!("upgraded: OSPF resumed after {over:?}, serving after {serving:?}; no switch lost a next hop");
    Ok(())
}
