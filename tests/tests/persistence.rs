//! Persistence in the lab: the connections of one client, which the switches spread over three directors, go to one real
//! server, by a scheduler that would send each to the next; also after a director is lost and when it is back, and to one
//! other server once that one is dead.

use std::collections::BTreeSet;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use cluster_tests::ecmp::{DIRECTORS, Ecmp, VIP, in_a_lab, wait};
use serde_json::Value;

/// Longest time for the lab to come to rest, on a machine that has other work.
const PATIENCE: Duration = Duration::from_secs(120);
const CLIENT: &str = "198.51.100.10/32";

#[test]
fn a_client_stays_with_its_real_server_whichever_director_has_its_connections() -> Result<()> {
    in_a_lab("persistence", story)
}

fn story(ecmp: &Ecmp) -> Result<()> {
    ecmp.until_next_hops(3, PATIENCE)?;
    every_director_serves(ecmp)?;
    for director in DIRECTORS {
        // Of service `web` alone; its connections are forgotten after seconds, its clients are not.
        let words = "s/^scheduler.*/scheduler = \"rr\"/;s/^hash.*/persistent = 600/";
        ecmp.edit(director, &format!("/name = \"web\"/,/^health/{{{words}}}"))?;
    }
    ecmp.lab.sh("director1", "director reload --cluster")?;
    for director in DIRECTORS {
        wait("the service is persistent", PATIENCE, || {
            Ok(web(ecmp, director)?["persistence"]["timeout_s"] == 600)
        })?;
    }
    let first = served_by(ecmp, 1)?;
    until_known(ecmp, &DIRECTORS)?;
    let before = packets(ecmp)?;
    stays(ecmp, &first)?;
    let after = packets(ecmp)?;
    ensure!(before.iter().zip(&after).all(|(before, after)| before < after), "{before:?}, then {after:?}");

    ecmp.lose("director2")?;
    ecmp.until_next_hops(2, PATIENCE)?;
    stays(ecmp, &first)?;
    ecmp.bring_back("director2")?;
    ecmp.until_next_hops(3, PATIENCE)?;
    until_known(ecmp, &DIRECTORS)?;
    stays(ecmp, &first)?;

    let server = first.iter().next().context("a real server")?;
    ecmp.lab.sh(server, "kill $(cat /run/nginx.pid)")?;
    for director in DIRECTORS {
        wait("a real server is dead", PATIENCE, || {
            let web = web(ecmp, director)?;
            let reals = web["reals"].as_array().context("real servers")?;
            Ok(reals.iter().filter(|real| real["state"] == "dead").count() == 1)
        })?;
    }
    let second = served_by(ecmp, 1)?;
    ensure!(second != first, "{second:?}");
    until_known(ecmp, &DIRECTORS)?;
    stays(ecmp, &second)
}

fn web(ecmp: &Ecmp, director: &str) -> Result<Value> {
    ecmp.services(director, &["web"])?.pop().context("the service")
}

fn every_director_serves(ecmp: &Ecmp) -> Result<()> {
    for director in DIRECTORS {
        wait("serving, every real server up for everybody", PATIENCE, || {
            let web = web(ecmp, director)?;
            let reals = web["reals"].as_array().context("real servers")?;
            let up = reals.iter().all(|real| real["votes_up"] == 3 && real["state"] == "active");
            Ok(up && ecmp.ask(director, "status")?["state"] == "serving")
        })?;
    }
    Ok(())
}

/// Packets for the service that each director has seen.
fn packets(ecmp: &Ecmp) -> Result<Vec<u64>> {
    let of = |director: &&str| Ok(web(ecmp, director)?["traffic"]["packets_in"].as_u64().unwrap_or(0));
    DIRECTORS.iter().map(of).collect()
}

/// Makes so many connections one after the other; the real servers that have answered.
fn served_by(ecmp: &Ecmp, count: usize) -> Result<BTreeSet<String>> {
    let ask = format!(
        "for i in $(seq {count}); do curl -sf -m 10 -o /dev/null -w '%header{{x-served-by}}\\n' http://{VIP}/tiny; done"
    );
    Ok(ecmp.lab.sh("client", &ask)?.lines().map(str::to_owned).collect())
}

fn stays(ecmp: &Ecmp, server: &BTreeSet<String>) -> Result<()> {
    let servers = served_by(ecmp, 60)?;
    ensure!(servers == *server && server.len() == 1, "by {servers:?}, where {server:?} has the client");
    Ok(())
}

/// Waits until these directors have the client's template, all at the same real server, which is not dead.
fn until_known(ecmp: &Ecmp, directors: &[&str]) -> Result<()> {
    wait("the client's template at every director", PATIENCE, || {
        let mut servers = BTreeSet::new();
        for director in directors {
            let said = ecmp.ask(director, "connections")?;
            let all = said.as_array().context("connections")?;
            let template = |row: &&Value| row["state"] == "template" && row["source"] == CLIENT;
            let found = all.iter().find(template).with_context(|| format!("{director} has none"))?;
            servers.insert(found["real"].as_str().unwrap_or_default().to_owned());
        }
        ensure!(servers.len() == 1, "at {servers:?}");
        Ok(true)
    })
}
