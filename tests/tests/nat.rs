//! NAT in the lab: three directors behind two switches, real servers that answer through any of them.
//!
//! Downloads and uploads of both families are under way when the director that leads loses its process and its cables at
//! once. What counts is what curl and the sums of the bytes say afterwards.

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use cluster_tests::ecmp::{DIRECTORS, Ecmp, wait};
use cluster_tests::requirement::{Requirement, met};
use cluster_tests::transfers::{Pace, Transfers};
use serde_json::Value;

const VIPS: [&str; 2] = ["203.0.113.30", "[2001:db8:113::30]"];
const SERVICES: [&str; 2] = ["web-nat", "web6-nat"];

#[test]
fn downloads_and_uploads_by_nat_survive_the_loss_of_a_director() -> Result<()> {
    let programs = ["bird", "nginx", "curl", "openssl", "ethtool", "sha256sum"].map(Requirement::Program);
    if !met(&[Requirement::Root]) || !met(&programs) {
        return Ok(());
    }
    let folder = tempfile::tempdir()?;
    let ecmp = Ecmp::up(&format!("nat-{}", std::process::id()), folder.path())?;
    let told = story(&ecmp);
    if told.is_err() {
        for director in DIRECTORS {
            let log = ecmp.lab.sh(director, "tail -n 25 /var/log/director.log").unwrap_or_default();
            eprintln!("--- {director}\n{log}");
        }
    }
    told
}

fn story(ecmp: &Ecmp) -> Result<()> {
    ecmp.until_next_hops(3, Duration::from_secs(60))?;
    for director in DIRECTORS {
        wait("serving, every real server up for everybody", Duration::from_secs(60), || {
            let services = services(ecmp, director)?;
            let up = |real: &Value| real["votes_up"] == 3 && real["state"] == "active";
            let all_up = |service: &Value| service["reals"].as_array().is_some_and(|all| all.iter().all(up));
            ensure!(services.iter().all(all_up), "{director}: {services:?}");
            Ok(ecmp.ask(director, "status")?["state"] == "serving")
        })?;
    }
    every_director_carries_answers(ecmp)?;
    a_real_server_is_told_at_once(ecmp)?;
    transfers_survive(ecmp)
}

/// What a director says of the services with NAT.
fn services(ecmp: &Ecmp, director: &str) -> Result<Vec<Value>> {
    let found = ecmp.services(director, &SERVICES)?;
    ensure!(found.iter().all(|service| service["forwarding"] == "nat"), "{director}: {found:?}");
    Ok(found)
}

/// A director's counter of a service with NAT.
fn traffic(ecmp: &Ecmp, director: &str, service: usize, what: &str) -> Result<u64> {
    let services = services(ecmp, director)?;
    let found = services.iter().find(|found| found["name"] == SERVICES[service]).context("service")?;
    Ok(found["traffic"][what].as_u64().unwrap_or(0))
}

/// Real servers answer through all directors, whichever one their request came by.
fn every_director_carries_answers(ecmp: &Ecmp) -> Result<()> {
    wait("requests and answers through every director", Duration::from_secs(60), || {
        for vip in VIPS {
            let requests =
                format!("for i in 1 2 3 4 5 6; do curl -sf -m 5 -o /dev/null 'http://{vip}/tiny'; done");
            ecmp.lab.sh("client", &requests)?;
        }
        for director in DIRECTORS {
            for service in 0..SERVICES.len() {
                for way in ["packets_in", "packets_out"] {
                    ensure!(traffic(ecmp, director, service, way)? > 0, "{director}: no {way} of {service}");
                }
            }
        }
        Ok(true)
    })
}

/// A real server is no client of a service with NAT, and need not wait to learn that.
fn a_real_server_is_told_at_once(ecmp: &Ecmp) -> Result<()> {
    for (vip, source) in VIPS.into_iter().zip(["10.0.4.11", "2001:db8:4::11"]) {
        let ask = format!(
            "curl -s -m 20 -o /dev/null --interface {source} -w '%{{exitcode}} %{{time_total}}' 'http://{vip}/tiny' || true"
        );
        let said = ecmp.lab.sh("real1", &ask)?;
        let (code, seconds) = said.trim().split_once(' ').with_context(|| said.clone())?;
        // 7 is "failed to connect".
        ensure!(code == "7" && seconds.parse::<f64>()? < 10.0, "{vip} from {source}: {said}");
    }
    let mut counted = 0;
    for director in DIRECTORS {
        let status = ecmp.ask(director, "status")?;
        let all = status["verdicts"].as_array().context("verdicts")?;
        let hairpin =
            |verdict: &&Value| verdict["name"].as_str().is_some_and(|name| name.contains("hairpin"));
        counted += all.iter().filter(hairpin).filter_map(|verdict| verdict["packets"].as_u64()).sum::<u64>();
    }
    ensure!(counted >= 2, "counted: {counted}");
    Ok(())
}

fn transfers_survive(ecmp: &Ecmp) -> Result<()> {
    let transfers = Transfers::begin(ecmp, VIPS, Pace::Quick)?;
    let cut = "kill -9 $(cat /run/director.pid); for i in 1 2 3; do ip link set eth$i down; done";
    ecmp.lab.sh("director1", cut)?;
    ensure!(transfers.established()? > transfers.count() / 4, "the loss must come in the middle");
    transfers.end()
}
