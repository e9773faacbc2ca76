//! One plan being carried out: the task that probes, and what it has found so far.

use std::borrow::Cow;
use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use serde::Serialize;
use tokio::sync::Semaphore;
use tokio::time::{Instant, MissedTickBehavior};
use tracing::{debug, info, warn};

use super::judge::{Change, Judge};
use super::outbox::Outbox;
use super::probe::ProbeError;
use super::target::Plan;
use super::{Observation, State, TargetId};

/// What all probes of a node share.
#[derive(Debug)]
pub(super) struct Shared {
    pub(super) permits: Semaphore,
    pub(super) outbox: Outbox,
    pub(super) jitter: u64,
    pub(super) spread: Duration,
}

#[derive(Debug)]
pub(super) struct Watch {
    plan: Arc<Plan>,
    found: Mutex<Found>,
}

#[derive(Debug)]
struct Found {
    judge: Judge,
    last: Option<Last>,
    probes: u64,
    unable: u64,
    targets: BTreeSet<TargetId>,
}

#[derive(Clone, Debug)]
struct Last {
    outcome: Outcome,
    reason: Cow<'static, str>,
    latency: Duration,
    at: Instant,
}

/// What one probe says of the real server.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Outcome {
    /// It answered as expected.
    Passed,
    /// It did not.
    Failed,
    /// Nothing: this node lacked the means to probe (sockets, ports, memory) or a route. Such a probe is not counted.
    Unable,
}

/// Where a target stands, for `director status`.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Status {
    /// What is checked.
    #[serde(flatten)]
    pub target: TargetId,
    /// Kind of check.
    pub check: &'static str,
    /// State held at present.
    pub state: State,
    /// Whether results have decided it; `false` while it is only assumed.
    pub observed: bool,
    /// How long the state has lasted, in milliseconds.
    pub state_age_ms: u64,
    /// Successes in a row, up to now.
    pub successes: u32,
    /// Failures in a row, up to now.
    pub failures: u32,
    /// Probes that were made and counted.
    pub probes: u64,
    /// Probes that this node could not make.
    pub unable: u64,
    /// The latest result, absent before the first probe.
    pub last: Option<LastResult>,
}

/// The latest result of a target.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct LastResult {
    /// What it says.
    pub outcome: Outcome,
    /// The same in words: `status 503`, `connection refused`.
    pub reason: String,
    /// How long the probe took, in milliseconds.
    pub latency_ms: f64,
    /// How long ago it ended, in milliseconds.
    pub age_ms: u64,
}

impl Watch {
    /// Begins in state `initial`, which takes the place of the plan's where a predecessor knew better.
    pub(super) fn new(plan: Arc<Plan>, initial: State) -> Self {
        let judge = Judge::new(plan.rise, plan.fall, initial, Instant::now().into_std());
        let found = Found { judge, last: None, probes: 0, unable: 0, targets: BTreeSet::new() };
        Self { plan, found: Mutex::new(found) }
    }

    /// Adds a target; what is already known of it is published at once.
    pub(super) fn attach(&self, target: TargetId, outbox: &Outbox) {
        let mut found = self.lock();
        if found.judge.observed() {
            let reason = found.last.as_ref().map(|last| last.reason.to_string()).unwrap_or_default();
            outbox.put(found.observation(target.clone(), reason));
        }
        found.targets.insert(target);
    }

    /// Takes a target away. Returns the state it was in.
    pub(super) fn detach(&self, target: &TargetId) -> State {
        let mut found = self.lock();
        found.targets.remove(target);
        found.judge.state()
    }

    /// Whether no target needs it any more.
    pub(super) fn is_idle(&self) -> bool {
        self.lock().targets.is_empty()
    }

    /// Where one of its targets stands.
    pub(super) fn status(&self, target: &TargetId) -> Status {
        let found = self.lock();
        let age =
            |since: std::time::Instant| millis(Instant::now().into_std().saturating_duration_since(since));
        Status {
            target: target.clone(),
            check: self.plan.check.name(),
            state: found.judge.state(),
            observed: found.judge.observed(),
            state_age_ms: age(found.judge.since()),
            successes: found.judge.successes(),
            failures: found.judge.failures(),
            probes: found.probes,
            unable: found.unable,
            last: found.last.as_ref().map(|last| LastResult {
                outcome: last.outcome,
                reason: last.reason.to_string(),
                latency_ms: last.latency.as_secs_f64() * 1e3,
                age_ms: age(last.at.into_std()),
            }),
        }
    }

    /// Probes until the task is aborted.
    pub(super) async fn run(&self, shared: &Shared) {
        let begin = Instant::now() + self.plan.first_delay(shared.jitter, shared.spread);
        let mut ticks = tokio::time::interval_at(begin, self.plan.interval);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            ticks.tick().await;
            let permit = shared.permits.acquire().await.expect("invariant: the semaphore is never closed");
            let begun = Instant::now();
            let result = self.plan.check.probe(self.plan.to, self.plan.timeout).await;
            drop(permit);
            self.record(result, begun, &shared.outbox);
        }
    }

    /// Counts one result and publishes what it changes.
    pub(super) fn record(
        &self,
        result: Result<Cow<'static, str>, ProbeError>,
        begun: Instant,
        outbox: &Outbox,
    ) {
        let now = Instant::now();
        let (outcome, reason) = match result {
            Ok(detail) => (Outcome::Passed, detail),
            Err(error) if error.is_local() => (Outcome::Unable, error.to_string().into()),
            Err(error) => (Outcome::Failed, error.to_string().into()),
        };
        let mut found = self.lock();
        let last = Last { outcome, reason: reason.clone(), latency: now.duration_since(begun), at: now };
        let before = found.last.replace(last).map(|last| last.outcome);
        if outcome == Outcome::Unable {
            found.unable += 1;
            if before != Some(Outcome::Unable) {
                warn!(real = %self.plan.to, %reason, "no means to check the real server: its state stands");
            }
            return;
        }
        found.probes += 1;
        let Some(change) = found.judge.handle_result(outcome == Outcome::Passed, now.into_std()) else {
            return;
        };
        for target in &found.targets {
            log(target, change, &reason);
            outbox.put(found.observation(target.clone(), reason.to_string()));
        }
    }

    fn lock(&self) -> MutexGuard<'_, Found> {
        self.found.lock().expect("invariant: nothing panics while a watch is locked")
    }
}

impl Found {
    fn observation(&self, target: TargetId, reason: String) -> Observation {
        Observation { target, state: self.judge.state(), reason, since: self.judge.since() }
    }
}

fn log(target: &TargetId, change: Change, reason: &str) {
    let TargetId { service, address, port } = target;
    match change {
        Change::Confirmed(state) => {
            debug!(service, %address, port, reason, "real server is {}, as assumed", state.name());
        }
        Change::Turned { to: State::Down, .. } => {
            warn!(service, %address, port, reason, "real server is down");
        }
        Change::Turned { to, .. } => info!(service, %address, port, reason, "real server is {}", to.name()),
    }
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}
