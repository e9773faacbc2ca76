//! The demo: a cluster under load loses a director, gets it back, and has another one's daemon killed, while every
//! client's connection and every byte is watched.

mod flows;
mod table;

use std::collections::BTreeSet;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use crate::deploy::{Lab, Options};
use crate::load::control::Remote;
use crate::load::{Failures, Sample, Stage};
use crate::routes::{NextHops, RouteWatch};
use crate::topology::Topology;
use flows::{Carriers, Ledger};
pub use table::{Outcome, StepResult};

const VIP: Ipv4Addr = Ipv4Addr::new(203, 0, 113, 10);
const DIRECTORS: [&str; 3] = ["director1", "director2", "director3"];
const SWITCHES: [&str; 2] = ["switch1", "switch2"];

/// Until all directors are announced after the lab came up or one of them came back.
const CONVERGE_LIMIT: Duration = Duration::from_secs(60);
/// Until no download waits for bytes any more after a step: a client's retransmissions double from 0.2 s on.
const SETTLE_LIMIT: Duration = Duration::from_secs(30);
/// How long things must stay quiet before a step is over; longer than the routers' dead interval of 4 s.
const QUIET: Duration = Duration::from_secs(5);
/// How long flows are watched to see who carries them: four times a download's pace.
const WATCH: Duration = Duration::from_secs(2);

/// What to run the demo with.
#[derive(Debug, Clone)]
pub struct Plan {
    /// `ecmp.clab.yml`.
    pub topology: PathBuf,
    /// The `director` binary.
    pub director: PathBuf,
    /// Where `prepare.sh` put certificates and content.
    pub data: PathBuf,
    /// Downloads.
    pub connections: usize,
    /// Short requests a second.
    pub rate: u32,
    /// Leave the lab up afterwards.
    pub keep: bool,
    /// Replace a running lab of the same name.
    pub reconfigure: bool,
    /// Name of the lab, instead of the file's.
    pub name: Option<String>,
}

/// Runs the demo; `say` gets a line for each thing that happened.
///
/// # Errors
/// When the lab cannot be put up or something besides the promise fails; a broken promise is in the outcome.
pub fn run(plan: &Plan, say: &mut dyn FnMut(&str)) -> Result<Outcome> {
    let begin = Instant::now();
    let mut topology = Topology::load_with(&plan.topology, &|name| match name {
        "DIRECTOR" => Some(plan.director.display().to_string()),
        "ECMP_DATA" => Some(plan.data.display().to_string()),
        other => std::env::var(other).ok(),
    })?;
    if let Some(name) = &plan.name {
        topology = topology.renamed(name)?;
    }
    let mut lab = Lab::up(&topology, &Options { reconfigure: plan.reconfigure, ..Options::default() })?;
    if plan.keep {
        lab.keep();
    }
    say(&format!(
        "lab {} is up: {} nodes, {:.1} s",
        topology.name,
        topology.nodes.len(),
        begin.elapsed().as_secs_f64()
    ));
    let result = Demo::start(&lab, plan, begin, say).and_then(|demo| demo.play(say));
    if !result.as_ref().is_ok_and(Outcome::passed) {
        say_logs(&lab, say);
    }
    if !plan.keep {
        lab.down()?;
    }
    let mut outcome = result?;
    outcome.seconds = begin.elapsed().as_secs_f64();
    Ok(outcome)
}

/// The ends of the directors' logs, for whoever has to find out why.
fn say_logs(lab: &Lab, say: &mut dyn FnMut(&str)) {
    for director in DIRECTORS {
        say(&format!("--- end of the log of {director}"));
        match lab.sh(director, "tail -n 15 /var/log/director.log") {
            Ok(text) => say(text.trim_end()),
            Err(error) => say(&format!("{error:#}")),
        }
    }
}

struct Demo<'a> {
    lab: &'a Lab,
    watches: Vec<RouteWatch>,
    load: Remote,
    ledger: Ledger,
    /// Who carried which flow when the last step was over.
    carriers: Carriers,
    last: Sample,
    steps: Vec<StepResult>,
}

impl<'a> Demo<'a> {
    /// Waits for the cluster, starts the load, and makes the first step's result of it.
    fn start(lab: &'a Lab, plan: &Plan, begin: Instant, say: &mut dyn FnMut(&str)) -> Result<Self> {
        let watch = |switch: &&str| RouteWatch::start(&lab.network_namespace(switch)?, VIP);
        let watches = SWITCHES.iter().map(watch).collect::<Result<Vec<_>>>()?;
        let all: BTreeSet<usize> = (0..DIRECTORS.len()).collect();
        let announced = wait(CONVERGE_LIMIT, || Ok(all_have(&watches, &all)?.then_some(())))?;
        let switches_ms = announced.map(|()| millis(begin.elapsed()));
        if announced.is_none() {
            bail!("after {} s the next hops are: {}", CONVERGE_LIMIT.as_secs(), describe(&watches)?);
        }
        let mut load = start_load(lab, plan)?;
        let target = plan.connections as u64;
        let up = wait(SETTLE_LIMIT, || {
            let sample = load.sample()?;
            Ok((sample.alive + sample.failures.total() >= target).then_some(()))
        })?;
        let complaint = up.is_none().then(|| "not all downloads came up in time".to_owned());
        let indices: Vec<_> = DIRECTORS.iter().copied().enumerate().collect();
        let mut ledger = Ledger::new(DIRECTORS.len());
        ledger.carriers(lab, &indices)?;
        let earlier = watch_flows(&mut ledger, lab, &indices)?;
        let carriers = watch_flows(&mut ledger, lab, &indices)?;
        // The first step counts from nothing.
        let mut last = load.mark()?;
        last.failures = Failures::default();
        last.requests.failures = Failures::default();
        last.wrong_bytes = 0;
        let mut demo = Self { lab, watches, load, ledger, carriers, last, steps: Vec::new() };
        let now = demo.load.sample()?;
        let sources = demo.sources()?;
        let (seen, changed) = flows::compare(&sources, &earlier, &demo.carriers, &demo.carriers);
        let name = "three next hops on both switches, load is up";
        demo.conclude(name, &now, (seen, changed), switches_ms, complaint, say);
        Ok(demo)
    }

    fn play(mut self, say: &mut dyn FnMut(&str)) -> Result<Outcome> {
        self.step("director1 lost: kill -9, links down", &[1, 2], say, |lab| {
            lab.sh(
                DIRECTORS[0],
                "kill -9 $(cat /run/director.pid); for i in 1 2 3; do ip link set eth$i down; done",
            )
        })?;
        self.step("director1 comes back and rejoins", &[0, 1, 2], say, |lab| {
            lab.sh(DIRECTORS[0], "for i in 1 2 3; do ip link set eth$i up; done")?;
            start_director(lab, DIRECTORS[0])
        })?;
        self.step("director2's daemon: kill -9, restart", &[0, 1, 2], say, |lab| {
            lab.sh(DIRECTORS[1], "kill -9 $(cat /run/director.pid)")?;
            start_director(lab, DIRECTORS[1])
        })?;
        let report = self.load.stop()?;
        Ok(Outcome {
            steps: self.steps,
            requests: report.total.requests.succeeded,
            bytes: report.total.bytes,
            seconds: 0.0,
        })
    }

    /// Does something to the cluster, waits until it has come to rest with the `expected` directors, and takes stock.
    fn step(
        &mut self,
        name: &str,
        expected: &[usize],
        say: &mut dyn FnMut(&str),
        act: impl FnOnce(&Lab) -> Result<String>,
    ) -> Result<()> {
        say(&format!("...    {name}"));
        let expected: BTreeSet<usize> = expected.iter().copied().collect();
        self.load.mark()?;
        let begin = Instant::now();
        act(self.lab)?;
        let complaint = self.rest(&expected)?;
        let switches_ms = self.last_change(begin);
        let indices: Vec<_> = expected.iter().map(|&index| (index, DIRECTORS[index])).collect();
        let during = self.ledger.carriers(self.lab, &indices)?;
        let end = watch_flows(&mut self.ledger, self.lab, &indices)?;
        let now = self.load.sample()?;
        let (seen, changed) = flows::compare(&self.sources()?, &self.carriers, &during, &end);
        self.carriers = end;
        self.conclude(name, &now, (seen, changed), switches_ms, complaint, say);
        Ok(())
    }

    /// Waits for the expected next hops and daemons, then for quiet; says what did not come.
    fn rest(&mut self, expected: &BTreeSet<usize>) -> Result<Option<String>> {
        let (lab, watches, load) = (self.lab, &self.watches, &mut self.load);
        let ready = wait(CONVERGE_LIMIT, || {
            Ok((all_have(watches, expected)? && all_answer(lab, expected)?).then_some(()))
        })?;
        if ready.is_none() {
            return Ok(Some(format!(
                "after {} s the next hops are: {}",
                CONVERGE_LIMIT.as_secs(),
                describe(watches)?
            )));
        }
        let mut quiet_since = Instant::now();
        let settled = wait(QUIET + SETTLE_LIMIT, || {
            if load.sample()?.current_stall_ms > 1000 || !all_have(watches, expected)? {
                quiet_since = Instant::now();
            }
            Ok((quiet_since.elapsed() >= QUIET).then_some(()))
        })?;
        Ok(settled.is_none().then(|| {
            format!("no quiet within {} s; next hops: {}", SETTLE_LIMIT.as_secs(), describe_or(watches))
        }))
    }

    /// Milliseconds from `begin` until the later switch made its last change.
    fn last_change(&self, begin: Instant) -> Option<u64> {
        let last = self
            .watches
            .iter()
            .filter_map(|watch| watch.changes_since(begin).last().map(|(at, _)| *at))
            .max()?;
        Some(millis(last.duration_since(begin)))
    }

    /// The clients' ends of all downloads that are alive.
    fn sources(&mut self) -> Result<Vec<SocketAddr>> {
        let alive = |c: &crate::load::Connection| (c.stage == Stage::Alive).then_some(c.source).flatten();
        Ok(self.load.connections()?.iter().filter_map(alive).collect())
    }

    fn conclude(
        &mut self,
        name: &str,
        now: &Sample,
        (seen, changed): (u64, u64),
        switches_ms: Option<u64>,
        complaint: Option<String>,
        say: &mut dyn FnMut(&str),
    ) {
        let failed = |s: &Sample| s.failures.total() + s.requests.failures.total();
        let reset = |s: &Sample| s.failures.reset + s.requests.failures.reset;
        let resets = reset(now) - reset(&self.last);
        let unseen = now.alive.saturating_sub(seen);
        // A zero in "changed" must mean something: nearly every download has to be on some director's list.
        let blind =
            (unseen * 50 > now.alive).then(|| format!("{unseen} downloads are on no director's list"));
        let result = StepResult {
            step: name.to_owned(),
            alive: now.alive,
            changed,
            seen,
            reset: resets,
            lost: failed(now) - failed(&self.last) - resets,
            wrong_bytes: now.wrong_bytes - self.last.wrong_bytes,
            longest_stall_ms: now.stall_since_mark_ms,
            switches_ms,
            complaint: complaint.or(blind),
        };
        say(&result.line());
        self.last = now.clone();
        self.steps.push(result);
    }
}

/// Who carries which flow now.
fn watch_flows(ledger: &mut Ledger, lab: &Lab, directors: &[(usize, &str)]) -> Result<Carriers> {
    std::thread::sleep(WATCH);
    ledger.carriers(lab, directors)
}

fn start_load(lab: &Lab, plan: &Plan) -> Result<Remote> {
    let (connections, rate, target) =
        (plan.connections.to_string(), plan.rate.to_string(), format!("{VIP}:80"));
    // This very program: /proc is the same in every node, wherever the binary lies.
    let argv = [
        "/proc/self/exe",
        "load",
        "--control",
        "--connections",
        &connections,
        "--rate",
        &rate,
        "--target",
        &target,
    ];
    Remote::start(lab.command("client", &argv)?)
}

fn start_director(lab: &Lab, node: &str) -> Result<String> {
    lab.sh(node, "start director director run --config /etc/director/director.toml")
}

/// The director behind a next hop: 10.S.N.1 on both switches.
fn director_of(hop: Ipv4Addr) -> Option<usize> {
    match hop.octets() {
        [10, 1 | 2, n, 1] => usize::from(n).checked_sub(1).filter(|index| *index < DIRECTORS.len()),
        _ => None,
    }
}

fn all_have(watches: &[RouteWatch], expected: &BTreeSet<usize>) -> Result<bool> {
    for watch in watches {
        let hops: NextHops = watch.now()?;
        let directors: Option<BTreeSet<usize>> = hops.iter().copied().map(director_of).collect();
        if directors.as_ref() != Some(expected) {
            return Ok(false);
        }
    }
    Ok(true)
}

fn all_answer(lab: &Lab, expected: &BTreeSet<usize>) -> Result<bool> {
    for &index in expected {
        if !lab.exec(DIRECTORS[index], &["director", "status", "--json"])?.status.success() {
            return Ok(false);
        }
    }
    Ok(true)
}

fn describe(watches: &[RouteWatch]) -> Result<String> {
    let one = |(switch, watch): (&&str, &RouteWatch)| {
        let hops: Vec<_> = watch.now()?.iter().map(ToString::to_string).collect();
        Ok(format!("{switch}: {}", if hops.is_empty() { "none".to_owned() } else { hops.join(" ") }))
    };
    Ok(SWITCHES.iter().zip(watches).map(one).collect::<Result<Vec<_>>>()?.join("; "))
}

fn describe_or(watches: &[RouteWatch]) -> String {
    describe(watches).unwrap_or_else(|error| format!("{error:#}"))
}

/// Polls until there is a value or the time is over.
fn wait<T>(limit: Duration, mut poll: impl FnMut() -> Result<Option<T>>) -> Result<Option<T>> {
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

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}
