//! The nodes of the demo's cluster: what they say, and what they are told to do.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};

use super::edit::{self, Change};
use super::table::Convergence;
use super::{DIRECTORS, SERVICES, SWITCHES};
use crate::deploy::Lab;
use crate::routes::{NextHops, RouteWatch};

/// Where a director's configuration is, in its node.
const CONFIG: &str = "/etc/director/director.toml";

/// The part of `director services --json` that tells who serves.
#[derive(serde::Deserialize)]
struct Services {
    services: Vec<Service>,
}

#[derive(serde::Deserialize)]
struct Service {
    name: String,
    table_digest: String,
    #[serde(default)]
    reals: Vec<Real>,
}

#[derive(serde::Deserialize)]
struct Real {
    address: IpAddr,
    #[serde(default)]
    slots: u64,
}

/// Switches and directors, and the watches on the switches' routes.
pub(super) struct Cluster<'a> {
    lab: &'a Lab,
    watches: Vec<RouteWatch>,
}

impl<'a> Cluster<'a> {
    pub(super) fn watch(lab: &'a Lab) -> Result<Self> {
        let vips: BTreeSet<IpAddr> = SERVICES.iter().map(|(_, vip)| *vip).collect();
        let watch = |switch: &&str| RouteWatch::start(&lab.network_namespace(switch)?, vips.clone());
        Ok(Self { lab, watches: SWITCHES.iter().map(watch).collect::<Result<_>>()? })
    }

    /// Whether both switches have these directors, and no others, as next hops for every VIP.
    pub(super) fn next_hops_are(&self, expected: &BTreeSet<usize>) -> Result<bool> {
        for watch in &self.watches {
            let routes = watch.now()?;
            if !SERVICES.iter().all(|(_, vip)| routes.get(vip).and_then(directors).as_ref() == Some(expected))
            {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// The next hops, for people.
    pub(super) fn next_hops(&self) -> String {
        let one = |(switch, watch): (&&str, &RouteWatch)| match watch.now() {
            Ok(routes) => {
                let hops = |(vip, hops): (&IpAddr, &NextHops)| {
                    let names = hops.iter().map(String::as_str).collect::<Vec<_>>().join(" ");
                    format!("{vip} by {}", if names.is_empty() { "none" } else { &names })
                };
                format!("{switch}: {}", routes.iter().map(hops).collect::<Vec<_>>().join(", "))
            }
            Err(error) => format!("{switch}: {error:#}"),
        };
        SWITCHES.iter().zip(&self.watches).map(one).collect::<Vec<_>>().join("; ")
    }

    /// When each switch changed its next hops after `begin`; a switch that did not is not there.
    pub(super) fn changes(&self, begin: Instant) -> BTreeMap<String, Convergence> {
        let of = |watch: &RouteWatch| {
            let changes = watch.changes_since(begin);
            let after = |at: &Instant| millis(at.duration_since(begin));
            let ((first, _), (last, _)) = changes.first().zip(changes.last())?;
            Some(Convergence { first_ms: after(first), last_ms: after(last) })
        };
        let both = SWITCHES.iter().zip(&self.watches);
        both.filter_map(|(switch, watch)| Some(((*switch).to_owned(), of(watch)?))).collect()
    }

    /// Whether these directors' daemons answer.
    pub(super) fn all_answer(&self, expected: &BTreeSet<usize>) -> Result<bool> {
        for &index in expected {
            if !self.lab.exec(DIRECTORS[index], &["director", "status", "--json"])?.status.success() {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// Starts a director's daemon.
    pub(super) fn start_director(&self, index: usize) -> Result<()> {
        let script = format!("start director director run --config {CONFIG}");
        self.lab.sh(DIRECTORS[index], &script).map(drop)
    }

    /// Runs a script in a director's node.
    pub(super) fn on_director(&self, index: usize, script: &str) -> Result<()> {
        self.lab.sh(DIRECTORS[index], script).map(drop)
    }

    /// Makes a change in the configuration of every director.
    pub(super) fn reconfigure(&self, change: Change) -> Result<()> {
        let mut edited = Vec::new();
        for director in DIRECTORS {
            let text = self.lab.sh(director, &format!("cat {CONFIG}"))?;
            let text = edit::apply(&text, change)
                .with_context(|| format!("{director}: {change:?}: {CONFIG} has no such real server"))?;
            edited.push((director, text));
        }
        for (director, text) in edited {
            self.lab.sh(director, &format!("cat >{CONFIG} <<'END'\n{text}END\ndirector reload"))?;
        }
        Ok(())
    }

    /// Whether all directors have the same tables in force, and in the tables of every service under load the change is
    /// made: who was added has slots, who is drained has none, who was removed is not there.
    pub(super) fn in_force(&self, change: Change) -> Result<bool> {
        let mut first = None;
        for director in DIRECTORS {
            let output = self.lab.exec(director, &["director", "services", "--json"])?;
            if !output.status.success() {
                return Ok(false);
            }
            let said: Services = serde_json::from_slice(&output.stdout)
                .with_context(|| format!("{director}: what director services --json printed"))?;
            let of_load = |service: &&Service| SERVICES.iter().any(|(name, _)| *name == service.name);
            let services: Vec<_> = said.services.iter().filter(of_load).collect();
            if services.len() != SERVICES.len() || !services.iter().all(|service| service.shows(change)) {
                return Ok(false);
            }
            let digests: BTreeMap<String, String> =
                services.iter().map(|s| (s.name.clone(), s.table_digest.clone())).collect();
            if digests.values().any(String::is_empty)
                || first.get_or_insert_with(|| digests.clone()) != &digests
            {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// Connections to the services that a real server's own kernel has, whatever directors and clients believe.
    pub(super) fn connections_of(&self, real: &str) -> Result<usize> {
        Ok(self.lab.sh(real, "ss -Htn state established '( sport = :80 )'")?.lines().count())
    }
}

impl Service {
    fn shows(&self, change: Change) -> bool {
        let slots = |host: &str| self.reals.iter().find(|r| edit::is_host(r.address, host)).map(|r| r.slots);
        match change {
            Change::Add { host, .. } => slots(host).is_some_and(|slots| slots > 0),
            Change::Drain { host } => slots(host).unwrap_or(0) == 0,
            Change::Remove { host } => slots(host).is_none(),
        }
    }
}

/// The directors behind next hops: on both switches the one on `ethN` is directorN. None if there is any other.
fn directors(hops: &NextHops) -> Option<BTreeSet<usize>> {
    let index =
        |name: &String| DIRECTORS.iter().position(|d| d.strip_prefix("director") == name.strip_prefix("eth"));
    hops.iter().map(index).collect()
}

/// Polls until there is a value or the time is over.
pub(super) fn wait<T>(limit: Duration, mut poll: impl FnMut() -> Result<Option<T>>) -> Result<Option<T>> {
    let start = Instant::now();
    loop {
        if let Some(value) = poll().context("while waiting for the cluster")? {
            return Ok(Some(value));
        }
        if start.elapsed() > limit {
            return Ok(None);
        }
        std::thread::sleep(Duration::from_millis(50));
    }
}

pub(super) fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}
