//! The lab's cluster as these tests use it: changes by its operators, deaths at exact moments, and what is true after.

use std::time::Duration;

use anyhow::{Result, ensure};
use cluster_tests::ecmp::{DIRECTORS, Ecmp, LOSE, binary, wait};
use lab::load::control::Remote;

/// What a director says, on its node.
const LOG: &str = "/var/log/director.log";
/// Longest time for the lab to come to rest, on a machine that has other work.
pub(crate) const PATIENCE: Duration = Duration::from_secs(120);
/// The services under load.
const TARGETS: [&str; 2] = ["web=203.0.113.10:80", "web6=[2001:db8:113::10]:80"];
/// Downloads held open, and short requests a second.
const CONNECTIONS: &str = "200";
const RATE: &str = "40";

/// A log line of tables that come into force: their cause and the share of slots that it moves.
pub(crate) const EPOCH: &str = "cause.*moved.*%";

/// What an operator does to a service's real servers: a `sed` script for the file of a director.
pub(crate) const ADD_REAL4: &str =
    r#"/^address = "\(10\.0\.2\|2001:db8:2:\)[.:]11"/{N;N;h;s/11"/14"/;s/$/\n[[service.real]]/;p;g}"#;
/// Real server 3 gets no new connections.
pub(crate) const DRAIN_REAL3: &str =
    r#"/^address = "\(10\.0\.2\|2001:db8:2:\)[.:]13"/,/^weight/s/^weight = .*/weight = 0/"#;

/// Clients that check every byte, once all of their downloads are under way.
pub(crate) fn load(ecmp: &Ecmp) -> Result<Remote> {
    // Wherever the binary lies: /proc is the same in every node, and the rest need not be.
    let program = format!("/proc/{}/root{}", std::process::id(), binary("lab")?.display());
    let mut argv = vec![program.as_str(), "load", "--control", "--connections", CONNECTIONS, "--rate", RATE];
    for target in TARGETS {
        argv.extend(["--target", target]);
    }
    ecmp.lab
        .sh("client", &format!("tcpdump -i any -n -tttt -l -c 200 '{RESETS}' >{SEEN} 2>&1 </dev/null &"))?;
    wait("the client's resets are watched", PATIENCE, || {
        Ok(ecmp.lab.sh("client", &format!("grep -c listening {SEEN} || true"))?.trim() == "1")
    })?;
    let mut load = Remote::start(ecmp.lab.command("client", &argv)?)?;
    let all: u64 = CONNECTIONS.parse()?;
    wait("all downloads under way", PATIENCE, || Ok(load.sample()?.sum(|book| book.alive) == all))?;
    Ok(load)
}

/// Segments that reset a connection, over IPv4 and IPv6, as tcpdump says it.
const RESETS: &str = "tcp[13] & 4 != 0 or (ip6[6] = 6 and ip6[53] & 4 != 0)";
/// Where they are noted, in the client.
const SEEN: &str = "/tmp/resets";

/// Ends the load, and prints and checks its account: nothing reset, nothing lost, no byte wrong.
pub(crate) fn judge(ecmp: &Ecmp, scenario: &str, mut load: Remote) -> Result<()> {
    let mark = load.mark()?;
    let bytes = mark.sum(|book| book.bytes);
    wait("every download goes on", PATIENCE, || {
        let now = load.sample()?;
        Ok(now.current_stall_ms() < 2000 && now.sum(|book| book.bytes) > bytes)
    })?;
    let resets_seen = ecmp.lab.sh("client", &format!("cat {SEEN}"))?;
    let total = load.stop()?.total;
    let resets = total.sum(|book| book.resets());
    let losses = total.sum(|book| book.losses());
    let wrong = total.sum(|book| book.wrong_bytes);
    let requests = total.sum(|book| book.requests.succeeded);
    println!(
        "{scenario}: {CONNECTIONS} downloads, {requests} requests, {} bytes: {resets} resets, {losses} other losses, \
         {wrong} wrong bytes (criterion: 0, 0, 0)",
        total.sum(|book| book.bytes)
    );
    ensure!(total.clean(), "{scenario}: {total:?}\n{resets_seen}");
    Ok(())
}

/// Edits the files of these directors, of which the last one may carry the change out.
pub(crate) fn edit(ecmp: &Ecmp, directors: &[&str], sed: &str) -> Result<()> {
    for director in directors {
        ecmp.edit(director, sed)?;
        ecmp.ask(director, "reload")?;
    }
    Ok(())
}

/// The same on all directors, the leader last.
pub(crate) fn edit_all(ecmp: &Ecmp, sed: &str) -> Result<()> {
    edit(ecmp, &["director3", "director2", "director1"], sed)
}

/// What a director's log says so far of a pattern: how many lines.
pub(crate) fn lines(ecmp: &Ecmp, director: &str, pattern: &str) -> Result<u64> {
    Ok(ecmp.lab.sh(director, &format!("grep -c '{pattern}' {LOG} || true"))?.trim().parse()?)
}

/// The director loses its process and its links, after so many milliseconds from its log's next line of a pattern on:
/// what is returned waits for it, in the director's node, from now on.
pub(crate) fn lose_after(
    ecmp: &Ecmp,
    director: &str,
    pattern: &str,
    milliseconds: u64,
) -> Result<std::process::Child> {
    let before = lines(ecmp, director, pattern)?;
    let seconds = format!("{}.{:03}", milliseconds / 1000, milliseconds % 1000);
    let script = format!(
        "for turn in $(seq 12000); do [ $(grep -c '{pattern}' {LOG}) -gt {before} ] && break; sleep 0.01; done; \
         [ $(grep -c '{pattern}' {LOG}) -gt {before} ] || exit 1; sleep {seconds}; {LOSE}"
    );
    Ok(ecmp.lab.command(director, &["sh", "-c", &script])?.spawn()?)
}

/// A lost director is back, with all its links and announcements.
pub(crate) fn bring_back(ecmp: &Ecmp, director: &str) -> Result<()> {
    ecmp.bring_back(director)?;
    ecmp.until_next_hops(DIRECTORS.len(), PATIENCE)
}

/// Epoch and digest of the tables in force, and the phase of the epoch, as a director shows them.
pub(crate) fn tables(ecmp: &Ecmp, director: &str) -> Result<(String, String, String)> {
    let peers = ecmp.ask(director, "peers")?;
    let text = |key: &str| peers[key].as_str().unwrap_or_default().to_owned();
    Ok((text("epoch"), text("table_digest"), text("phase")))
}

/// Waits until these directors have equal tables, no epoch under way, and so many slots of the service `web` at a real
/// server: none, or some.
pub(crate) fn agreement(ecmp: &Ecmp, directors: &[&str], real: &str, has_slots: bool) -> Result<()> {
    wait(&format!("agreement of {directors:?} on {real}"), PATIENCE, || {
        let all = directors.iter().map(|director| tables(ecmp, director)).collect::<Result<Vec<_>>>()?;
        let same = all.iter().all(|tables| tables == &all[0]) && all[0].2 == "settled";
        let mut agreed = same;
        for director in directors {
            agreed &= (slots_of(ecmp, director, real)? > 0) == has_slots;
        }
        Ok(agreed)
    })?;
    for director in directors {
        ensure!(lines(ecmp, director, EPOCH)? > 0, "{director}: no log line of an epoch");
    }
    Ok(())
}

fn slots_of(ecmp: &Ecmp, director: &str, real: &str) -> Result<u64> {
    let services = ecmp.ask(director, "services")?;
    let all = services["services"].as_array().cloned().unwrap_or_default();
    let web = all.iter().find(|service| service["name"] == "web");
    let reals = web.and_then(|web| web["reals"].as_array()).cloned().unwrap_or_default();
    let found = reals.iter().find(|server| server["address"] == real);
    Ok(found.and_then(|server| server["slots"].as_u64()).unwrap_or(0))
}
