//! Full NAT in the lab: real servers in another subnet than the directors, which know no client and route nothing by a
//! director, answer to the director that has the connection.
//!
//! The directors get local addresses and two services more, and are restarted for that while they serve.

use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use cluster_tests::ecmp::{Ecmp, in_a_lab, wait};
use cluster_tests::transfers::Transfers;
use serde_json::Value;

const DIRECTORS: [&str; 3] = ["director1", "director2", "director3"];
const VIPS: [&str; 2] = ["203.0.113.40", "[2001:db8:113::40]"];
const SERVICES: [&str; 2] = ["web-full", "web6-full"];
/// Real servers of each family, which are those of the services with NAT as well, by the same port.
const REALS: [[&str; 3]; 2] =
    [["10.0.4.11", "10.0.4.12", "10.0.4.13"], ["2001:db8:4::11", "2001:db8:4::12", "2001:db8:4::13"]];

#[test]
fn downloads_and_uploads_by_full_nat_are_whole() -> Result<()> {
    in_a_lab("fullnat", story)
}

/// Those of its link to the first switch: the real servers' answers are routed there, and the program is on it. The node
/// asks from them how real servers are, too, by other ports.
fn locals(number: usize) -> [String; 2] {
    [format!("10.1.{number}.1"), format!("2001:db8:f1:{number}::2")]
}

fn story(ecmp: &Ecmp) -> Result<()> {
    for director in DIRECTORS {
        wait("serving", Duration::from_secs(90), || Ok(ecmp.ask(director, "status")?["state"] == "serving"))?;
    }
    for (number, director) in (1..).zip(DIRECTORS) {
        configure(ecmp, number, director)?;
    }
    for director in DIRECTORS {
        wait("serving, every real server up for everybody", Duration::from_secs(90), || {
            let services = services(ecmp, director)?;
            let up = |real: &Value| real["votes_up"] == 3 && real["state"] == "active";
            let all_up = |service: &Value| service["reals"].as_array().is_some_and(|all| all.iter().all(up));
            ensure!(services.iter().all(all_up), "{director}: {services:?}");
            Ok(ecmp.ask(director, "status")?["state"] == "serving")
        })?;
    }
    every_director_has_connections(ecmp)?;
    let transfers = Transfers::begin(ecmp, VIPS)?;
    connections_are_told_apart(ecmp, transfers.count())?;
    transfers.end()
}

/// Gives a director its local addresses and the services, and has it restarted. Its BFD is slow from then on: a path that
/// a busy machine lets fail would send connections to a director that does not know them.
fn configure(ecmp: &Ecmp, number: usize, director: &str) -> Result<()> {
    let [v4, v6] = locals(number);
    let mut text = String::new();
    for ((name, vip), reals) in SERVICES.iter().zip(VIPS).zip(REALS) {
        let vip = vip.trim_matches(['[', ']']);
        text += &format!(
            "[[service]]\nname = \"{name}\"\nvip = \"{vip}\"\nprotocol = \"tcp\"\nport = 80\n\
             forwarding = \"fullnat\"\nscheduler = \"wlc\"\n\
             health = {{ check = \"http\", path = \"/tiny\", interval_ms = 1000, timeout_ms = 3000, rise = 2, fall = 3 }}\n"
        );
        for real in reals {
            text += &format!("[[service.real]]\naddress = \"{real}\"\nport = 8080\nweight = 100\n");
        }
    }
    // The kernel of the lab's nodes gives out ports from 10,000 on.
    let node = format!("local_addresses = [\"{v4}\", \"{v6}\"]\\nlocal_ports = \"1024-9999\"");
    let file = "/etc/director/director.toml";
    ecmp.lab.sh(
        director,
        &format!(
            "set -e\nsed -i 's/^flow_accounting = true/&\\n{node}/; s/interval_ms = 300, multiplier = 3/interval_ms = 3000, multiplier = 20/' {file}\ncat >>{file} <<'END'\n{text}END\n\
             director check --config {file}"
        ),
    )?;
    // As after a crash: what is in the kernel goes on, and is adopted. (The switches here help nobody to restart.)
    let restart = format!(
        "pid=$(cat /run/director.pid); kill -9 $pid
         for i in $(seq 100); do kill -0 $pid 2>/dev/null || break; sleep 0.05; done
         start director director run --config {file}"
    );
    ecmp.lab.sh(director, &restart)?;
    wait("the successor serves", Duration::from_secs(60), || services(ecmp, director).map(|_| true))
}

/// What a director says of the services.
fn services(ecmp: &Ecmp, director: &str) -> Result<Vec<Value>> {
    let said = ecmp.ask(director, "services")?;
    let all = said["services"].as_array().context("services")?;
    let found: Vec<Value> =
        all.iter().filter(|service| SERVICES.iter().any(|name| service["name"] == *name)).cloned().collect();
    ensure!(found.len() == SERVICES.len(), "{director}: {said}");
    ensure!(found.iter().all(|service| service["forwarding"] == "fullnat"), "{director}: {said}");
    Ok(found)
}

/// Requests come to every director, and their answers come back to it.
fn every_director_has_connections(ecmp: &Ecmp) -> Result<()> {
    wait("requests and answers through every director", Duration::from_secs(60), || {
        for vip in VIPS {
            let requests =
                format!("for i in 1 2 3 4 5 6; do curl -sf -m 5 -o /dev/null 'http://{vip}/tiny'; done");
            ecmp.lab.sh("client", &requests)?;
        }
        for director in DIRECTORS {
            for service in services(ecmp, director)? {
                for way in ["packets_in", "packets_out"] {
                    let packets = service["traffic"][way].as_u64().unwrap_or(0);
                    ensure!(packets > 0, "{director}: no {way} of {}", service["name"]);
                }
            }
        }
        Ok(true)
    })
}

/// Every connection under way has a local address and port, of the director that has it, which no other one has towards
/// its real server; and to a real server those are all it sees.
fn connections_are_told_apart(ecmp: &Ecmp, transfers: usize) -> Result<()> {
    let (mut seen, mut open) = (BTreeSet::new(), 0);
    for (number, director) in (1..).zip(DIRECTORS) {
        let own: Vec<IpAddr> = locals(number).iter().map(|local| local.parse()).collect::<Result<_, _>>()?;
        let said = ecmp.ask(director, "connections")?;
        for connection in said.as_array().context("connections")? {
            if !SERVICES.iter().any(|name| connection["service"] == *name)
                || connection["state"].as_str().is_none_or(str::is_empty)
            {
                continue;
            }
            let local = connection["local"].as_str().unwrap_or_default();
            let end: SocketAddr = local.parse().with_context(|| format!("{director}: {connection}"))?;
            ensure!(
                own.contains(&end.ip()) && (1_024..=9_999).contains(&end.port()),
                "{director}: {connection}"
            );
            ensure!(seen.insert((end, connection["real"].to_string())), "twice: {connection}");
            open += usize::from(connection["state"] == "open");
        }
    }
    ensure!(open > transfers / 2, "{open} connections are open");
    let clients = ecmp.lab.sh("real1", "ss -Htn state established '( sport = :8080 )'")?;
    ensure!(clients.lines().count() > 0, "real1 serves somebody");
    ensure!(!clients.contains("198.51.100.10") && !clients.contains("2001:db8:c::10"), "{clients}");
    Ok(())
}
