//! The steps of the demo, and what each of them came to.
//!
//! Directors come and go before real servers do: what a director tracks while slots move is its own until it is
//! synchronised, so a director that is lost meanwhile takes it along.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use anyhow::{Result, bail};

use super::cluster::{Cluster, wait};
use super::edit::Change;
use super::flows::{self, Carriers, Flow, Ledger};
use super::table::{Outcome, ServiceResult, StepResult};
use super::{DIRECTORS, Plan, REALS, SERVICES};
use crate::deploy::Lab;
use crate::load::control::Remote;
use crate::load::{Book, RealBook, Sample, Stage};

/// Until all directors are announced after the lab came up or one of them came back, and until a change is in force.
const CONVERGE_LIMIT: Duration = Duration::from_secs(60);
/// Until no download waits for bytes any more after a step: a client's retransmissions double from 0.2 s on.
const SETTLE_LIMIT: Duration = Duration::from_secs(30);
/// How long things must stay quiet after directors came or went; longer than the routers' dead interval of 4 s.
const QUIET: Duration = Duration::from_secs(5);
/// The same after a change of real servers; longer than the services' idle timeout of 8 s, after which slots that moved
/// settle.
const WINDOW: Duration = Duration::from_secs(10);
/// How long flows are watched to see who carries them: four times a download's pace.
const WATCH: Duration = Duration::from_secs(2);
/// The time over which the clients of a drained real server come to their end, as users do some time.
const RETIRE: Duration = Duration::from_secs(3);
/// Until a drained real server has no connection left after that.
const DRAINED_LIMIT: Duration = Duration::from_secs(30);

/// The real server that is drained and removed, and the one that is added: positions in [`REALS`].
const OLD: usize = 0;
const NEW: usize = 3;

/// A demo that is going on.
pub(super) struct Demo<'a> {
    lab: &'a Lab,
    cluster: Cluster<'a>,
    load: Remote,
    ledger: Ledger,
    /// Downloads at the end of the last step, and who carried which of them.
    flows: BTreeMap<Flow, String>,
    carriers: Carriers,
    last: Sample,
    steps: Vec<StepResult>,
}

/// What is known of a step besides the load's own account.
struct Seen {
    /// When it began; the routes' changes count from then on.
    begin: Instant,
    /// Who carried which flow in its course, and at its end.
    during: Carriers,
    end: Carriers,
    complaint: Option<String>,
}

impl<'a> Demo<'a> {
    /// Waits for the cluster, starts the load, and makes the first step's result of it.
    pub(super) fn start(
        lab: &'a Lab,
        plan: &Plan,
        begin: Instant,
        say: &mut dyn FnMut(&str),
    ) -> Result<Self> {
        let cluster = Cluster::watch(lab)?;
        let all: BTreeSet<usize> = (0..DIRECTORS.len()).collect();
        if wait(CONVERGE_LIMIT, || Ok(cluster.next_hops_are(&all)?.then_some(())))?.is_none() {
            bail!("after {} s the next hops are: {}", CONVERGE_LIMIT.as_secs(), cluster.next_hops());
        }
        let mut load = start_load(lab, plan)?;
        let target = plan.connections as u64;
        let up = wait(SETTLE_LIMIT, || {
            let sample = load.sample()?;
            Ok((sample.sum(|book| book.alive + book.failures.total()) >= target).then_some(()))
        })?;
        let complaint = up.is_none().then(|| "not all downloads came up in time".to_owned());
        let mut ledger = Ledger::new(DIRECTORS.len());
        let indices = named(&all);
        ledger.carriers(lab, &indices)?;
        let carriers = watch_flows(&mut ledger, lab, &indices)?;
        let end = watch_flows(&mut ledger, lab, &indices)?;
        // The first step counts from nothing.
        let mut last = load.mark()?;
        for book in &mut last.services {
            *book = Book { service: std::mem::take(&mut book.service), ..Book::default() };
        }
        let flows = alive(&mut load)?;
        let mut demo = Self { lab, cluster, load, ledger, flows, carriers, last, steps: Vec::new() };
        let seen = Seen { begin, during: end.clone(), end, complaint };
        demo.conclude("three next hops on both switches, load is up", seen, say)?;
        Ok(demo)
    }

    /// All further steps.
    pub(super) fn play(mut self, say: &mut dyn FnMut(&str)) -> Result<Outcome> {
        self.directors("director1 lost: kill -9, links down", &[1, 2], say, |cluster| {
            let script = "kill -9 $(cat /run/director.pid); for i in 1 2 3; do ip link set eth$i down; done";
            cluster.on_director(0, script)
        })?;
        self.directors("director1 comes back and rejoins", &[0, 1, 2], say, |cluster| {
            cluster.on_director(0, "for i in 1 2 3; do ip link set eth$i up; done")?;
            cluster.start_director(0)
        })?;
        self.directors("director2's daemon: kill -9, restart", &[0, 1, 2], say, |cluster| {
            cluster.on_director(1, "kill -9 $(cat /run/director.pid)")?;
            cluster.start_director(1)
        })?;
        let (old, new) = (REALS[OLD], REALS[NEW]);
        self.reals(&format!("{} added", new.0), Change::Add { like: old.1, host: new.1 }, say)?;
        self.reals(
            &format!("{} drained: weight 0, its clients end", old.0),
            Change::Drain { host: old.1 },
            say,
        )?;
        self.reals(&format!("{} removed", old.0), Change::Remove { host: old.1 }, say)?;
        let report = self.load.stop()?;
        Ok(Outcome { steps: self.steps, total: report.total, seconds: 0.0 })
    }

    /// Does something to directors, waits until the cluster has come to rest with the `expected` ones, and takes stock.
    fn directors(
        &mut self,
        name: &str,
        expected: &[usize],
        say: &mut dyn FnMut(&str),
        act: impl FnOnce(&Cluster<'_>) -> Result<()>,
    ) -> Result<()> {
        say(&format!("...    {name}"));
        let expected: BTreeSet<usize> = expected.iter().copied().collect();
        self.load.mark()?;
        let begin = Instant::now();
        act(&self.cluster)?;
        let complaint = self.rest(&expected, QUIET)?;
        self.take_stock(name, &expected, begin, complaint, say)
    }

    /// Changes the real servers in all directors' configuration, waits until the slots that moved have settled, and
    /// takes stock.
    fn reals(&mut self, name: &str, change: Change, say: &mut dyn FnMut(&str)) -> Result<()> {
        say(&format!("...    {name}"));
        let all: BTreeSet<usize> = (0..DIRECTORS.len()).collect();
        self.load.mark()?;
        let begin = Instant::now();
        self.cluster.reconfigure(change)?;
        let cluster = &self.cluster;
        let mut complaint = None;
        if wait(CONVERGE_LIMIT, || Ok(cluster.in_force(change)?.then_some(())))?.is_none() {
            complaint = Some(format!("not in force on all directors within {} s", CONVERGE_LIMIT.as_secs()));
        }
        let in_force = self.load.sample()?;
        complaint = complaint.or(self.rest(&all, WINDOW)?);
        complaint = match change {
            Change::Add { .. } => complaint.or(self.serves(&in_force)?),
            Change::Drain { .. } => complaint.or(self.drain(&in_force)?),
            Change::Remove { .. } => complaint.or(self.is_out(&in_force)?),
        };
        self.take_stock(name, &all, begin, complaint, say)
    }

    /// A real server that was added gets new connections of every service.
    fn serves(&mut self, before: &Sample) -> Result<Option<String>> {
        let now = self.load.sample()?;
        let name = REALS[NEW].0;
        let idle =
            before.services.iter().zip(&now.services).find(|(b, n)| opened(n, name) == opened(b, name));
        Ok(idle.map(|(book, _)| format!("{name} got no connection of service {}", book.service)))
    }

    /// A drained real server keeps the connections that it has until they end, and gets no new one.
    fn drain(&mut self, in_force: &Sample) -> Result<Option<String>> {
        let name = REALS[OLD].0;
        let rested = self.load.sample()?;
        let (had, has) = (in_force.real(name).held, rested.real(name).held);
        if has < had {
            return Ok(Some(format!(
                "{} of {had} downloads left {name} although nobody ended them",
                had - has
            )));
        }
        self.load.retire(name, RETIRE)?;
        let cluster = &self.cluster;
        let left = wait(DRAINED_LIMIT, || Ok((cluster.connections_of(name)? == 0).then_some(())))?;
        if left.is_none() {
            let left = cluster.connections_of(name)?;
            return Ok(Some(format!("{name} has {left} connections after {} s", DRAINED_LIMIT.as_secs())));
        }
        let all_again =
            wait(SETTLE_LIMIT, || Ok((self.load.sample()?.sum(|book| book.starting) == 0).then_some(())))?;
        if all_again.is_none() {
            return Ok(Some("not all downloads that ended began anew in time".to_owned()));
        }
        let new = self.load.sample()?.real(name).opened - rested.real(name).opened;
        Ok((new > 0).then(|| format!("{new} new connections went to {name} after it was drained")))
    }

    /// A real server that was removed gets nothing.
    fn is_out(&mut self, before: &Sample) -> Result<Option<String>> {
        let name = REALS[OLD].0;
        let (before, now) = (before.real(name), self.load.sample()?.real(name));
        let silent = now == RealBook { held: 0, opened: before.opened };
        Ok((!silent).then(|| format!("{name} still serves: {now:?}, before {before:?}")))
    }

    /// Waits for the expected next hops and daemons, then for quiet; says what did not come.
    fn rest(&mut self, expected: &BTreeSet<usize>, quiet: Duration) -> Result<Option<String>> {
        let (cluster, load) = (&self.cluster, &mut self.load);
        let ready = wait(CONVERGE_LIMIT, || {
            Ok((cluster.next_hops_are(expected)? && cluster.all_answer(expected)?).then_some(()))
        })?;
        if ready.is_none() {
            return Ok(Some(format!(
                "after {} s the next hops are: {}",
                CONVERGE_LIMIT.as_secs(),
                cluster.next_hops()
            )));
        }
        let mut quiet_since = Instant::now();
        let settled = wait(quiet + SETTLE_LIMIT, || {
            if load.sample()?.current_stall_ms() > 1000 || !cluster.next_hops_are(expected)? {
                quiet_since = Instant::now();
            }
            Ok((quiet_since.elapsed() >= quiet).then_some(()))
        })?;
        Ok(settled.is_none().then(|| {
            format!("no quiet within {} s; next hops: {}", SETTLE_LIMIT.as_secs(), cluster.next_hops())
        }))
    }

    fn take_stock(
        &mut self,
        name: &str,
        expected: &BTreeSet<usize>,
        begin: Instant,
        complaint: Option<String>,
        say: &mut dyn FnMut(&str),
    ) -> Result<()> {
        let indices = named(expected);
        let during = self.ledger.carriers(self.lab, &indices)?;
        let end = watch_flows(&mut self.ledger, self.lab, &indices)?;
        self.conclude(name, Seen { begin, during, end, complaint }, say)
    }

    /// Makes the step's result of what was seen.
    fn conclude(&mut self, name: &str, seen: Seen, say: &mut dyn FnMut(&str)) -> Result<()> {
        let now = self.load.sample()?;
        let flows = alive(&mut self.load)?;
        let one = |(before, now): (&Book, &Book)| {
            // Downloads that began anew in the course of the step have no director before it.
            let held = || {
                flows
                    .iter()
                    .filter(|(flow, service)| **service == now.service && self.flows.contains_key(*flow))
            };
            let (traced, changed) =
                flows::compare(held().map(|(flow, _)| flow), &self.carriers, &seen.during, &seen.end);
            ServiceResult {
                service: now.service.clone(),
                alive: now.alive,
                held: held().count() as u64,
                seen: traced,
                changed,
                reset: now.resets() - before.resets(),
                lost: now.losses() - before.losses(),
                wrong_bytes: now.wrong_bytes - before.wrong_bytes,
                longest_stall_ms: now.stall_since_mark_ms,
            }
        };
        let services: Vec<_> = self.last.services.iter().zip(&now.services).map(one).collect();
        // A zero in "changed" must mean something: nearly every download has to be on some director's list.
        let blind = services.iter().find(|s| (s.held - s.seen) * 50 > s.held);
        let blind = blind
            .map(|s| format!("{} downloads of {} are on no director's list", s.held - s.seen, s.service));
        let reals = REALS.iter().map(|(name, _)| {
            let (before, now) = (self.last.real(name), now.real(name));
            ((*name).to_owned(), RealBook { held: now.held, opened: now.opened - before.opened })
        });
        let result = StepResult {
            step: name.to_owned(),
            reals: reals.collect(),
            services,
            switches: self.cluster.changes(seen.begin),
            complaint: seen.complaint.or(blind),
        };
        say(&result.line());
        self.steps.push(result);
        (self.last, self.flows, self.carriers) = (now, flows, seen.end);
        Ok(())
    }
}

/// Directors by position and name.
fn named(indices: &BTreeSet<usize>) -> Vec<(usize, &'static str)> {
    indices.iter().map(|&index| (index, DIRECTORS[index])).collect()
}

/// The flows of all downloads that are alive, with their services.
fn alive(load: &mut Remote) -> Result<BTreeMap<Flow, String>> {
    let flow =
        |c: crate::load::Connection| (c.stage == Stage::Alive).then_some(((c.source?, c.target), c.service));
    Ok(load.connections()?.into_iter().filter_map(flow).collect())
}

fn opened(book: &Book, real: &str) -> u64 {
    book.reals.get(real).map_or(0, |book| book.opened)
}

/// Who carries which flow now.
fn watch_flows(ledger: &mut Ledger, lab: &Lab, directors: &[(usize, &str)]) -> Result<Carriers> {
    std::thread::sleep(WATCH);
    ledger.carriers(lab, directors)
}

fn start_load(lab: &Lab, plan: &Plan) -> Result<Remote> {
    let (connections, rate) = (plan.connections.to_string(), plan.rate.to_string());
    // This very program: /proc is the same in every node, wherever the binary lies.
    let mut argv =
        vec!["/proc/self/exe", "load", "--control", "--connections", &connections, "--rate", &rate];
    let targets = SERVICES.map(|(name, vip)| format!("{name}={}", std::net::SocketAddr::new(vip, 80)));
    for target in &targets {
        argv.extend(["--target", target]);
    }
    Remote::start(lab.command("client", &argv)?)
}
