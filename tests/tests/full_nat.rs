//! Full NAT in the lab: real servers in another subnet than the directors, which know no client and route nothing by a
//! director, answer to the director that has the connection; and while that one is lost, to those who take it over.
//!
//! The directors get local addresses and two services more, and are restarted for that while they serve. Then one is lost in
//! the middle of transfers, node and links, and comes back, while new connections begin all along.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use cluster_tests::ecmp::{CONFIG, DIRECTORS, Ecmp, SWITCHES, in_a_lab, wait};
use cluster_tests::transfers::{Pace, Transfers};
use serde_json::Value;

const VIPS: [&str; 2] = ["203.0.113.40", "[2001:db8:113::40]"];
const SERVICES: [&str; 2] = ["web-full", "web6-full"];
/// Real servers of each family, which are those of the services with NAT as well, by the same port.
const REALS: [[&str; 3]; 2] =
    [["10.0.4.11", "10.0.4.12", "10.0.4.13"], ["2001:db8:4::11", "2001:db8:4::12", "2001:db8:4::13"]];
/// Longest time for the lab to come to rest, on a machine that has other work.
const PATIENCE: Duration = Duration::from_secs(120);

#[test]
fn connections_by_full_nat_outlive_the_director_that_has_them_and_its_return() -> Result<()> {
    in_a_lab("fullnat", story)
}

#[test]
fn a_drained_director_gives_its_connections_by_full_nat_away() -> Result<()> {
    in_a_lab("fullnat-drain", drain)
}

fn drain(ecmp: &Ecmp) -> Result<()> {
    prepare(ecmp)?;
    let news = News::begin(ecmp)?;
    let transfers = Transfers::begin(ecmp, VIPS, Pace::Slow)?;
    let count = transfers.count();
    let before = connections_are_told_apart(ecmp, count)?;
    ensure!(before[1] > 0, "the director to be drained has none of the transfers: {before:?}");
    let done = ecmp.ask("director2", "drain")?;
    until_at(ecmp, 2, &BTreeSet::from([1, 3]))?;
    transfers.none_has_failed()?;
    let drained = news.count()?;
    news.go_on(drained)?;
    ecmp.ask("director2", "undrain")?;
    until_at(ecmp, 2, &BTreeSet::from([2]))?;
    connections_are_told_apart(ecmp, count)?;
    transfers.end()?;
    println!("{count} transfers outlived a drain of a director that had {} of them: {done}", before[1]);
    let lost = news.end()?;
    ensure!(lost <= 2 * News::PROCESSES, "{lost} requests came to nothing");
    Ok(())
}

/// In no link's subnet: the switches know the way by OSPF alone.
fn locals(number: usize) -> [String; 2] {
    [format!("10.8.0.{number}"), format!("2001:db8:f8::{number}")]
}

/// Every director has local addresses and the services, and takes its part of the connections.
fn prepare(ecmp: &Ecmp) -> Result<()> {
    for director in DIRECTORS {
        wait("serving", PATIENCE, || Ok(ecmp.ask(director, "status")?["state"] == "serving"))?;
    }
    for (number, director) in (1..).zip(DIRECTORS) {
        configure(ecmp, number, director)?;
    }
    all_serve(ecmp)?;
    for number in 1..=3 {
        until_at(ecmp, number, &BTreeSet::from([number]))?;
    }
    until_vips_at(ecmp, &BTreeSet::from([1, 2, 3]))?;
    every_director_has_connections(ecmp)
}

fn story(ecmp: &Ecmp) -> Result<()> {
    prepare(ecmp)?;
    let news = News::begin(ecmp)?;
    let transfers = Transfers::begin(ecmp, VIPS, Pace::Slow)?;
    let before = connections_are_told_apart(ecmp, transfers.count())?;
    ensure!(before[0] > 0, "the director to be lost has none of the transfers: {before:?}");
    nobody_lags(ecmp)?;
    let quiet = news.count()?;
    lose(ecmp)?;
    until_at(ecmp, 1, &BTreeSet::from([2, 3]))?;
    news.go_on(quiet)?;
    transfers.none_has_failed()?;
    come_back(ecmp)?;
    let back = news.count()?;
    all_serve(ecmp)?;
    until_at(ecmp, 1, &BTreeSet::from([1]))?;
    until_vips_at(ecmp, &BTreeSet::from([1, 2, 3]))?;
    news.go_on(back)?;
    let under_way = transfers.established()?;
    ensure!(under_way > transfers.count() / 2, "{under_way} transfers have seen the return");
    connections_are_told_apart(ecmp, transfers.count())?;
    let count = transfers.count();
    transfers.end()?;
    println!(
        "{count} transfers outlived the loss of a director that had {} of them, and its return",
        before[0]
    );
    let lost = news.end()?;
    ensure!(lost <= 2 * 2 * News::PROCESSES, "{lost} requests came to nothing");
    Ok(())
}

/// Every director serves, by tables in which all real servers are up.
fn all_serve(ecmp: &Ecmp) -> Result<()> {
    for director in DIRECTORS {
        wait("serving, every real server up for everybody", PATIENCE, || {
            let services = services(ecmp, director)?;
            let up = |real: &Value| real["votes_up"] == 3 && real["state"] == "active";
            let all_up = |service: &Value| service["reals"].as_array().is_some_and(|all| all.iter().all(up));
            ensure!(services.iter().all(all_up), "{director}: {services:?}");
            Ok(ecmp.ask(director, "status")?["state"] == "serving")
        })?;
    }
    Ok(())
}

/// Gives a director its local addresses and the services, and has it restarted.
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
    let said = ecmp.lab.sh(
        director,
        &format!(
            "set -e\nip address add {v4}/32 dev lo\nip address add {v6}/128 dev lo\n\
             sed -i 's/^flow_accounting = true/&\\n{node}/' {CONFIG}\ncat >>{CONFIG} <<'END'\n{text}END\n\
             director check --config {CONFIG}"
        ),
    )?;
    ensure!(!said.contains("warning"), "{director}: {said}");
    // As after a crash: what is in the kernel goes on, and is adopted. (The switches here help nobody to restart.)
    ecmp.end(director, "KILL")?;
    ecmp.start(director)?;
    wait("the successor serves", PATIENCE, || services(ecmp, director).map(|_| true))
}

/// What a director says of the services.
fn services(ecmp: &Ecmp, director: &str) -> Result<Vec<Value>> {
    let found = ecmp.services(director, &SERVICES)?;
    ensure!(found.iter().all(|service| service["forwarding"] == "fullnat"), "{director}: {found:?}");
    Ok(found)
}

/// Waits until both switches send what is for a director's local addresses to these directors.
fn until_at(ecmp: &Ecmp, number: usize, directors: &BTreeSet<usize>) -> Result<()> {
    until_sent(ecmp, &locals(number), directors)
}

/// The same of what is for the VIPs of the services with full NAT.
fn until_vips_at(ecmp: &Ecmp, directors: &BTreeSet<usize>) -> Result<()> {
    until_sent(ecmp, &VIPS.map(|vip| vip.trim_matches(['[', ']']).to_owned()), directors)
}

fn until_sent(ecmp: &Ecmp, addresses: &[String], directors: &BTreeSet<usize>) -> Result<()> {
    // The switches' links to the directors have the directors' numbers.
    let devices: BTreeSet<String> = directors.iter().map(|number| format!("eth{number}")).collect();
    for switch in SWITCHES {
        for address in addresses {
            let what = format!("{switch} sends what is for {address} to {devices:?}");
            wait(&what, PATIENCE, || {
                let found = devices_towards(ecmp, switch, address)?;
                ensure!(found == devices, "it sends that to {found:?}");
                Ok(true)
            })?;
        }
    }
    Ok(())
}

fn devices_towards(ecmp: &Ecmp, switch: &str, address: &str) -> Result<BTreeSet<String>> {
    let family = if address.contains(':') { "-6" } else { "-4" };
    let text = ecmp.lab.sh(switch, &format!("ip {family} -j route show {address}"))?;
    let routes: Vec<Value> = serde_json::from_str(&text)?;
    let hops = |route: &Value| route["nexthops"].as_array().cloned().unwrap_or_else(|| vec![route.clone()]);
    let device = |hop: Value| hop["dev"].as_str().map(str::to_owned);
    Ok(routes.iter().flat_map(hops).filter_map(device).collect())
}

/// Requests come to every director, and their answers come back to it.
fn every_director_has_connections(ecmp: &Ecmp) -> Result<()> {
    wait("requests and answers through every director", PATIENCE, || {
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

/// Every connection has a local address and port, the same at each director that knows it, which no other connection has
/// towards its real server; and to a real server those are all it sees. Returns how many are open at addresses of each
/// director.
fn connections_are_told_apart(ecmp: &Ecmp, transfers: usize) -> Result<[usize; 3]> {
    let own: Vec<BTreeSet<IpAddr>> = (1..=3)
        .map(|number| locals(number).iter().map(|local| local.parse()).collect::<Result<_, _>>())
        .collect::<Result<_, _>>()?;
    let (mut clients, mut open) = (BTreeMap::new(), BTreeMap::new());
    for director in DIRECTORS {
        let said = ecmp.ask(director, "connections --limit 0")?;
        for connection in said.as_array().context("connections")? {
            if !SERVICES.iter().any(|name| connection["service"] == *name)
                || connection["state"].as_str().is_none_or(str::is_empty)
            {
                continue;
            }
            let local = connection["local"].as_str().unwrap_or_default();
            let end: SocketAddr = local.parse().with_context(|| format!("{director}: {connection}"))?;
            let owner = own.iter().position(|own| own.contains(&end.ip()));
            let owner = owner.with_context(|| format!("{director}: {connection}: nobody's address"))?;
            ensure!((1_024..=9_999).contains(&end.port()), "{director}: {connection}");
            let ends = (end, connection["real"].to_string());
            let client = format!("{} -> {}", connection["source"], connection["destination"]);
            let known = clients.entry(ends).or_insert_with(|| client.clone());
            ensure!(*known == client, "{director}: {connection}, and {known} has it as well");
            if connection["state"] == "open" {
                open.insert(client, owner);
            }
        }
    }
    ensure!(open.len() > transfers / 2, "{} connections are open", open.len());
    let seen = ecmp.lab.sh("real1", "ss -Htn state established '( sport = :8080 )'")?;
    ensure!(seen.lines().count() > 0, "real1 serves somebody");
    ensure!(!seen.contains("198.51.100.10") && !seen.contains("2001:db8:c::10"), "{seen}");
    let of = |number: usize| open.values().filter(|owner| **owner == number).count();
    Ok([0, 1, 2].map(of))
}

/// Waits until every director has told the others of all that it knows.
fn nobody_lags(ecmp: &Ecmp) -> Result<()> {
    wait("nobody lags", PATIENCE, || {
        for director in DIRECTORS {
            let peers = ecmp.ask(director, "peers")?;
            let all = peers["peers"].as_array().context("peers")?;
            let rest = |peer: &Value| {
                peer["pins_whole"] == true && peer["pin_lag_ms"].as_u64().is_some_and(|lag| lag < 1_000)
            };
            ensure!(all.len() == 2 && all.iter().all(rest), "{director}: {peers}");
        }
        Ok(true)
    })
}

/// The first director dies with its links.
fn lose(ecmp: &Ecmp) -> Result<()> {
    ecmp.lose(DIRECTORS[0])?;
    until_vips_at(ecmp, &BTreeSet::from([2, 3]))
}

/// It is there again: links first, and then the program, which finds what its kernel has kept.
fn come_back(ecmp: &Ecmp) -> Result<()> {
    ecmp.bring_back(DIRECTORS[0])
}

/// Short requests without an end, one after the other in some processes, each with a connection of its own.
struct News<'a>(&'a Ecmp);

impl<'a> News<'a> {
    /// Processes for each VIP.
    const PROCESSES: u32 = 2;

    fn begin(ecmp: &'a Ecmp) -> Result<Self> {
        let begin = format!(
            "mkdir -p /run/news && cd /run/news
             for vip in '{}' '{}'; do for i in $(seq {}); do
               (while [ ! -e stop ]; do
                  age=$(curl -sS -f -m 20 -w '%{{time_connect}} %{{time_total}}' -o /dev/null http://$vip/tiny 2>>errors); echo $? $age >>codes
                  sleep 0.05
                done) &
             done; done >/dev/null 2>&1",
            VIPS[0],
            VIPS[1],
            Self::PROCESSES
        );
        ecmp.lab.sh("client", &begin)?;
        Ok(Self(ecmp))
    }

    /// Requests so far that were answered.
    fn count(&self) -> Result<u64> {
        let answered = self.0.lab.sh("client", "grep -c '^0 ' /run/news/codes || true")?;
        Ok(answered.trim().parse().unwrap_or(0))
    }

    /// Waits until there are many more than `before`: new connections find a way.
    fn go_on(&self, before: u64) -> Result<()> {
        wait("new connections", PATIENCE, || Ok(self.count()? > before + 40))
    }

    /// Ends them. None that was older than a second, which the other directors had heard of by then, was reset. Returns how
    /// many others came to nothing: those that were about to begin while their packets took another way, or were younger
    /// than that.
    fn end(self) -> Result<u32> {
        let script = "touch /run/news/stop; cut -d' ' -f1 /run/news/codes | sort | uniq -c; cat /run/news/errors; \
                      grep -v '^0 ' /run/news/codes || true";
        let said = self.0.lab.sh("client", script)?;
        println!("new connections, by curl's result: {}", said.trim().replace('\n', ";"));
        let codes = self.0.lab.sh("client", "grep -v '^0 ' /run/news/codes || true")?;
        for line in codes.lines() {
            let [code, connected, ended] = line.split(' ').collect::<Vec<_>>()[..] else {
                bail!("{line:?} of {said}");
            };
            // Since it was established: the client may have had to ask more than once for that.
            let is_young = ended.parse::<f64>()? - connected.parse::<f64>()? < 1.0;
            // No answer in time; never established, as a switch without a route says; reset.
            ensure!(["28", "7"].contains(&code) || code == "56" && is_young, "a request failed: {said}");
        }
        Ok(u32::try_from(codes.lines().count())?)
    }
}
