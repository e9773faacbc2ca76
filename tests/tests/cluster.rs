//! Three real directors behind two real switches: one history of what operators do, each step checked on all nodes.

use std::time::Duration;

use anyhow::{Result, ensure};
use cluster_tests::ecmp::{CONFIG, DIRECTORS, Ecmp, VIP, wait};
use cluster_tests::requirement::{Requirement, met};

/// BIRD looks at its routes once a second, and both switches answer within a few Hellos.
const CONVERGENCE: Duration = Duration::from_secs(60);

#[test]
fn a_cluster_agrees_follows_changes_and_loses_no_one_by_accident() -> Result<()> {
    let programs = ["bird", "nginx", "curl", "openssl", "ethtool"].map(Requirement::Program);
    if !met(&[Requirement::Root]) || !met(&programs) {
        return Ok(());
    }
    let folder = tempfile::tempdir()?;
    let ecmp = Ecmp::up(&format!("hist-{}", std::process::id()), folder.path())?;
    let told = history(&ecmp);
    if told.is_err() {
        for director in DIRECTORS {
            let log = ecmp.lab.sh(director, "tail -n 25 /var/log/director.log").unwrap_or_default();
            eprintln!("--- {director}\n{log}");
        }
    }
    told
}

fn history(ecmp: &Ecmp) -> Result<()> {
    let first = directors_agree_and_serve(ecmp)?;
    let second = a_change_reaches_all(ecmp, &first)?;
    let third = a_dead_real_server_is_passed_over(ecmp, &second)?;
    a_bad_file_changes_nothing(ecmp, &third)?;
    a_second_director_is_refused(ecmp)?;
    a_clean_stop_leaves_nothing(ecmp)?;
    a_killed_daemon_forwards_and_is_taken_over(ecmp)?;
    an_outsider_announces_nothing(ecmp)
}

fn requests_succeed(ecmp: &Ecmp) -> Result<()> {
    // By link address, in a tunnel, and over IPv6.
    for vip in [VIP, "203.0.113.20", "[2001:db8:113::10]"] {
        for _ in 0..10 {
            ecmp.lab.sh("client", &format!("curl -sf -m 5 -o /dev/null 'http://{vip}/tiny'"))?;
        }
    }
    Ok(())
}

/// Waits until every director has the same table and returns its digest.
fn agreement(ecmp: &Ecmp, other_than: &str) -> Result<String> {
    wait("equal digests on all directors", Duration::from_secs(20), || {
        let digests = DIRECTORS.iter().map(|director| ecmp.digest(director)).collect::<Result<Vec<_>>>()?;
        Ok(digests.iter().all(|digest| !digest.is_empty() && digest != other_than && *digest == digests[0]))
    })?;
    ecmp.digest(DIRECTORS[0])
}

fn directors_agree_and_serve(ecmp: &Ecmp) -> Result<String> {
    ecmp.until_next_hops(3, CONVERGENCE)?;
    let digest = agreement(ecmp, "")?;
    for director in DIRECTORS {
        wait("serving", Duration::from_secs(10), || Ok(ecmp.ask(director, "status")?["state"] == "serving"))?;
        wait("two neighbours in each version, Full and watched by BFD", Duration::from_secs(20), || {
            let neighbors = ecmp.ask(director, "neighbors")?;
            let all = neighbors["neighbors"].as_array().map(Vec::as_slice).unwrap_or_default();
            let good = |n: &&serde_json::Value| n["state"] == "Full" && n["bfd"]["state"] == "Up";
            ensure!(all.iter().filter(good).count() == 4, "{director}: {neighbors}");
            Ok(true)
        })?;
        let peers = ecmp.ask(director, "peers")?;
        let good = peers["peers"].as_array().map_or(0, |all| {
            all.iter()
                .filter(|p| p["state"] == "up" && p["same_tables"] == true && p["same_config"] == true)
                .count()
        });
        ensure!(good == 2, "{director}: {peers}");
    }
    requests_succeed(ecmp)?;
    Ok(digest)
}

fn a_change_reaches_all(ecmp: &Ecmp, before: &str) -> Result<String> {
    // The third real server gets weight 0: it keeps no slot, and is shown as what it is.
    for director in DIRECTORS {
        ecmp.edit(director, "/^name = \"web\"$/,$ {/10.0.2.13/,$ s/weight = 100/weight = 0/}")?;
    }
    // The leader last: what the others are told is theirs to remember, not to carry out.
    for director in ["director3", "director2", "director1"] {
        let changes = ecmp.ask(director, "reload")?;
        ensure!(changes["changes"][0].as_str().is_some_and(|line| line.contains("100 -> 0")), "{changes}");
    }
    let digest = agreement(ecmp, before)?;
    let services = ecmp.ask("director2", "services")?;
    let reals = services["services"][0]["reals"].as_array().cloned().unwrap_or_default();
    let mut slots: Vec<u64> = reals.iter().filter_map(|real| real["slots"].as_u64()).collect();
    slots.sort_unstable();
    ensure!(slots == [0, 32_768, 32_769], "{services}");
    let off = |real: &serde_json::Value| {
        real["slots"].as_f64().unwrap_or(f64::MAX) - real["ideal_slots"].as_f64().unwrap_or(0.0)
    };
    ensure!(reals.iter().all(|real| off(real).abs() <= 0.5), "as many as its weight says: {services}");
    ensure!(reals.iter().filter(|real| real["state"] == "draining").count() == 1, "{services}");
    requests_succeed(ecmp)?;
    Ok(digest)
}

/// State and slots of a real server of the service `web`, as a director shows them.
fn real_server(ecmp: &Ecmp, director: &str, address: &str) -> Result<(String, u64)> {
    let services = ecmp.ask(director, "services")?;
    let all = services["services"].as_array().cloned().unwrap_or_default();
    let web = all.iter().find(|service| service["name"] == "web");
    let reals = web.and_then(|web| web["reals"].as_array()).cloned().unwrap_or_default();
    let found = reals.iter().find(|real| real["address"] == address);
    let state = found.map(|real| real["state"].as_str().unwrap_or_default().to_owned());
    Ok((state.unwrap_or_default(), found.and_then(|real| real["slots"].as_u64()).unwrap_or_default()))
}

/// Real server 2's web server ends: all directors find out, agree, and hand its slots to the other one; and back.
fn a_dead_real_server_is_passed_over(ecmp: &Ecmp, before: &str) -> Result<String> {
    const ADDRESS: &str = "10.0.2.12";
    let wait_for = |state: &str, some: bool| {
        wait(&format!("{ADDRESS} is {state} everywhere"), Duration::from_secs(30), || {
            let shown = DIRECTORS
                .iter()
                .map(|director| real_server(ecmp, director, ADDRESS))
                .collect::<Result<Vec<_>>>()?;
            Ok(shown.iter().all(|(now, slots)| now == state && (*slots > 0) == some))
        })
    };
    wait_for("active", true)?;
    ecmp.lab.sh("real2", "kill -TERM $(cat /run/nginx.pid)")?;
    wait_for("dead", false)?;
    agreement(ecmp, before)?;
    requests_succeed(ecmp)?;
    ecmp.lab.sh("real2", "nginx")?;
    wait_for("active", true)?;
    requests_succeed(ecmp)?;
    agreement(ecmp, "")
}

fn a_bad_file_changes_nothing(ecmp: &Ecmp, digest: &str) -> Result<()> {
    ecmp.edit("director1", "s/^scheduler = .*/scheduler = \"fastest\"/")?;
    let refused = ecmp.ask("director1", "reload").expect_err("a bad file is refused").to_string();
    ensure!(refused.contains("use one of mh, ch, rr"), "{refused}");
    ensure!(ecmp.digest("director1")? == digest, "tables changed by a file that was refused");
    ecmp.edit("director1", "s/^scheduler = .*/scheduler = \"mh\"/")
}

fn a_second_director_is_refused(ecmp: &Ecmp) -> Result<()> {
    let output = ecmp.lab.exec("director1", &["director", "run", "--config", CONFIG])?;
    let said = String::from_utf8_lossy(&output.stderr);
    ensure!(!output.status.success() && said.contains("another director runs here"), "{said}");
    Ok(())
}

/// Stops one of three directors, and waits until it is gone from the switches and itself.
fn stop(ecmp: &Ecmp, director: &str) -> Result<()> {
    ecmp.end(director, "TERM")?;
    ecmp.until_next_hops(2, CONVERGENCE)
}

fn a_clean_stop_leaves_nothing(ecmp: &Ecmp) -> Result<()> {
    stop(ecmp, "director2")?;
    let left = ecmp.lab.sh(
        "director2",
        "ip link show eth1 | grep -o xdp || true; ip route show proto 201; ls /run/director/bpf | grep -v '^.*[.]debug$' || true",
    )?;
    ensure!(left.trim().is_empty(), "left behind: {left}");
    requests_succeed(ecmp)?;
    ecmp.start("director2")?;
    ecmp.until_next_hops(3, CONVERGENCE)?;
    agreement(ecmp, "").map(drop)
}

fn a_killed_daemon_forwards_and_is_taken_over(ecmp: &Ecmp) -> Result<()> {
    // BIRD has just told of the director that came back, and keeps 5 s between two instances of its Router-LSA.
    std::thread::sleep(Duration::from_millis(5_500));
    ecmp.lab.sh("director3", "kill -9 $(cat /run/director.pid)")?;
    // BFD falls silent with the daemon: the switches take the director out well before the dead interval of 4 s.
    let killed = std::time::Instant::now();
    ecmp.until_next_hops(2, CONVERGENCE)?;
    let out = killed.elapsed();
    ensure!(out < Duration::from_secs(3), "out after {out:?}, which is not BFD but the dead interval");
    requests_succeed(ecmp)?;
    // Its kernel forwards whatever still comes: here all requests, by routes that are better than those of OSPF.
    let detour = |verb: &str| {
        let by = [("switch1", "10.1.3.1"), ("switch2", "10.2.3.1")];
        by.into_iter().try_for_each(|(switch, director3)| {
            let route = format!("ip route {verb} {VIP}/32 via {director3} metric 1");
            ecmp.lab.sh(switch, &route).map(drop)
        })
    };
    detour("add")?;
    for _ in 0..5 {
        requests_succeed(ecmp)?;
    }
    detour("del")?;
    ecmp.start("director3")?;
    wait("serving again", CONVERGENCE, || Ok(ecmp.ask("director3", "status")?["state"] == "serving"))?;
    let status = ecmp.ask("director3", "status")?;
    ensure!(status["data_plane"] == "adopted", "{status}");
    ecmp.until_next_hops(3, CONVERGENCE)
}

/// A director of another cluster is refused by all it asks, says so on both sides, and announces no VIP.
fn an_outsider_announces_nothing(ecmp: &Ecmp) -> Result<()> {
    stop(ecmp, "director3")?;
    ecmp.edit("director3", "s/^name = \"ecmp\"/name = \"elsewhere\"/")?;
    ecmp.lab.sh("director3", "rm -rf /var/lib/director")?;
    ecmp.start("director3")?;
    wait("refusals", Duration::from_secs(20), || {
        let peers = ecmp.ask("director3", "peers")?;
        Ok(peers["peers"]
            .as_array()
            .is_some_and(|all| all.len() == 2 && all.iter().all(|p| p["state"] == "refused")))
    })?;
    let peers = ecmp.ask("director3", "peers")?;
    ensure!(peers["peers"][0]["refused"].as_str().is_some_and(|why| why.contains("ecmp")), "{peers}");
    wait("a log line on the other side", Duration::from_secs(10), || {
        Ok(ecmp.lab.sh("director1", "grep -c elsewhere /var/log/director.log || true")?.trim() != "0")
    })?;
    // Longer than the grace time: it still does not help itself to tables of its own.
    let begin = std::time::Instant::now();
    while begin.elapsed() < Duration::from_secs(5) {
        ensure!(ecmp.ask("director3", "status")?["state"] == "joining");
        std::thread::sleep(Duration::from_millis(500));
    }
    ensure!(ecmp.has_next_hops(2)?);
    requests_succeed(ecmp)
}
