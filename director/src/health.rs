//! Health of the real servers as this node sees it.
//!
//! A [`Target`] says what to check and how; [`Health::spawn`] starts the probes and gives a [`Handle`], by which the
//! set of targets is replaced as a whole, and a channel of [`Observation`]s, one per change. What the cluster makes of
//! the nodes' observations is decided elsewhere; whether enough is left to announce a VIP says [`Quorum`].
//!
//! | file | owns |
//! |---|---|
//! | `judge` | `rise` and `fall`: from results to a state. Pure |
//! | `quorum` | whether enough is live. Pure |
//! | `check` | the list of kinds; `tcp`, `http`, … hold one kind each, settings and probe together |
//! | `target` | targets, and the plan two of them may share |
//! | `watch` | the task of one plan, its findings and their logs |
//! | `outbox` | observations not yet read |
//!
//! Targets that ask the same of the same address are probed once. A probe goes to the real server's own address (with
//! direct routing and tunnels too, where LVS users have it so), never takes longer than its timeout, and follows
//! neither host names nor redirects. A shortage on this node (sockets, ports, memory) counts as no result.
//!
//! The names in backquotes at the fields of a check's settings are its keys in `[service.health]`, which are also what
//! [`CheckError::key`] gives; times end in `_ms` there. For https and grpc, `verify`, `ca` and `server_name` make the
//! [`Tls`].

mod check;
mod dns;
mod exec;
mod grpc;
mod http;
mod judge;
mod outbox;
mod ping;
mod probe;
mod quorum;
mod smtp;
mod target;
mod tcp;
#[cfg(test)]
mod tests;
mod tls;
mod udp;
mod watch;

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, Instant};

use tokio::runtime;
use tokio::sync::{Semaphore, mpsc};
use tokio::task::AbortHandle;

pub use self::check::{Check, CheckError};
pub use self::dns::{Dns, DnsRecord};
pub use self::exec::Exec;
pub use self::grpc::Grpc;
pub use self::http::{Body, Http, Method, Pattern, StatusSet};
pub use self::judge::{Change, Judge, State};
pub use self::quorum::Quorum;
pub use self::smtp::Smtp;
pub use self::target::{Target, TargetError, TargetId};
pub use self::tcp::Tcp;
pub use self::tls::{Authorities, Tls, Verify};
pub use self::udp::{Reply, Udp};
pub use self::watch::{LastResult, Outcome, Status};

use self::outbox::Outbox;
use self::target::Plan;
use self::watch::{Shared, Watch};

/// Observations the channel holds; more wait, the latest of each target.
const CHANNEL: usize = 64;

/// What this node has found out about a target. Sent when results first decide its state, be it the assumed one, and
/// whenever they change it. The latest one stands until the target is taken away.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Observation {
    /// What was checked.
    pub target: TargetId,
    /// `Up` or `Down`, never `Unknown`.
    pub state: State,
    /// The result that decided it, in words: `status 200`, `connection refused`, `timed out after 800 ms`.
    pub reason: String,
    /// When the state began.
    pub since: Instant,
}

/// How this node probes, whatever the target.
#[derive(Clone, Debug)]
pub struct Health {
    /// Probes under way at once, at least 1. Each takes a file descriptor or a process. Probes beyond wait their turn,
    /// which makes intervals longer: with n real servers that time out, a round takes n × timeout / concurrency.
    pub concurrency: usize,
    /// Differs from node to node (the router id, say), so that nodes do not probe a real server all together.
    pub jitter: u64,
    /// First probes are spread over a target's interval, but over no more than this.
    pub spread: Duration,
}

impl Default for Health {
    /// 512 probes at once, first probes within 10 s.
    fn default() -> Self {
        Self { concurrency: 512, jitter: 0, spread: Duration::from_secs(10) }
    }
}

impl Health {
    /// Starts to check `targets`. The probes stop when the last clone of the handle is dropped.
    ///
    /// # Panics
    /// Outside a tokio runtime.
    pub fn spawn(self, targets: Vec<Target>) -> Result<(Handle, mpsc::Receiver<Observation>), TargetError> {
        let (sender, receiver) = mpsc::channel(CHANNEL);
        let shared = Arc::new(Shared {
            permits: Semaphore::new(self.concurrency.clamp(1, Semaphore::MAX_PERMITS)),
            outbox: Outbox::default(),
            jitter: self.jitter,
            spread: self.spread,
        });
        let runtime = runtime::Handle::current();
        let forwarded = shared.clone();
        let forwarder =
            Task(runtime.spawn(async move { forwarded.outbox.forward(sender).await }).abort_handle());
        let checked = Mutex::new(Checked::default());
        let handle = Handle(Arc::new(Inner { runtime, shared, checked, _forwarder: forwarder }));
        handle.set_targets(targets)?;
        Ok((handle, receiver))
    }
}

/// The running checks.
#[derive(Clone, Debug)]
pub struct Handle(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    runtime: runtime::Handle,
    shared: Arc<Shared>,
    checked: Mutex<Checked>,
    _forwarder: Task,
}

#[derive(Debug, Default)]
struct Checked {
    targets: BTreeMap<TargetId, Arc<Plan>>,
    plans: HashMap<Arc<Plan>, Running>,
}

#[derive(Debug)]
struct Running {
    watch: Arc<Watch>,
    _task: Option<Task>,
}

/// A task that ends with its owner.
#[derive(Debug)]
struct Task(AbortHandle);

impl Drop for Task {
    fn drop(&mut self) {
        self.0.abort();
    }
}

impl Handle {
    /// Makes `targets` the whole of what is checked, or changes nothing.
    ///
    /// A target that stays as it was keeps its state and its schedule. One whose check has changed keeps its state
    /// until the new check has decided. Nothing more is sent about one that is gone, except what is already in the
    /// channel.
    pub fn set_targets(&self, targets: Vec<Target>) -> Result<(), TargetError> {
        let mut wanted = BTreeMap::new();
        for target in targets {
            let id = target.id();
            if let Err(source) = target.validate() {
                return Err(TargetError::Check { target: id, source });
            }
            if wanted.insert(id.clone(), target.plan()).is_some() {
                return Err(TargetError::Twice(id));
            }
        }
        let mut checked = self.lock();
        let before = checked.release(&wanted, &self.0.shared.outbox);
        for (id, plan) in wanted {
            if !checked.targets.contains_key(&id) {
                let known = before.get(&id).copied();
                self.begin(&mut checked, id, plan, known);
            }
        }
        checked.plans.retain(|_, running| !running.watch.is_idle());
        Ok(())
    }

    /// Where every target stands, in the order of their identities.
    pub fn status(&self) -> Vec<Status> {
        let checked = self.lock();
        let running = |(id, plan): (&TargetId, &Arc<Plan>)| Some(checked.plans.get(plan)?.watch.status(id));
        checked.targets.iter().filter_map(running).collect()
    }

    /// Checks one target by `plan`, together with others that ask the same. `known` is its state under another plan.
    fn begin(&self, checked: &mut Checked, id: TargetId, plan: Plan, known: Option<State>) {
        let shared = &self.0.shared;
        let (plan, watch) = match checked.plans.get_key_value(&plan) {
            Some((plan, running)) => (plan.clone(), running.watch.clone()),
            None => {
                let plan = Arc::new(plan);
                let running = self.start(plan.clone(), known);
                let watch = running.watch.clone();
                checked.plans.insert(plan.clone(), running);
                (plan, watch)
            }
        };
        watch.attach(id.clone(), &shared.outbox);
        checked.targets.insert(id, plan);
    }

    fn start(&self, plan: Arc<Plan>, known: Option<State>) -> Running {
        let initial = known.filter(|state| *state != State::Unknown).unwrap_or(plan.initial);
        if plan.check == Check::None {
            // Decided by decree; there is nothing to run.
            let decree = Arc::new(Plan { rise: 1, ..(*plan).clone() });
            let watch = Arc::new(Watch::new(decree, initial));
            watch.record(Ok("not checked".into()), tokio::time::Instant::now(), &self.0.shared.outbox);
            return Running { watch, _task: None };
        }
        let watch = Arc::new(Watch::new(plan, initial));
        let (probed, shared) = (watch.clone(), self.0.shared.clone());
        let task = self.0.runtime.spawn(async move { probed.run(&shared).await });
        Running { watch, _task: Some(Task(task.abort_handle())) }
    }

    fn lock(&self) -> MutexGuard<'_, Checked> {
        self.0.checked.lock().expect("invariant: nothing panics while the targets are locked")
    }
}

impl Checked {
    /// Takes away every target that is not wanted as it is. Returns the states of those that were checked.
    #[allow(
        clippy::mutable_key_type,
        reason = "a regular expression's cache is no part of its equality and hash"
    )]
    fn release(&mut self, wanted: &BTreeMap<TargetId, Plan>, outbox: &Outbox) -> BTreeMap<TargetId, State> {
        let mut before = BTreeMap::new();
        let plans = &self.plans;
        self.targets.retain(|id, plan| {
            if wanted.get(id) == Some(&**plan) {
                return true;
            }
            if let Some(running) = plans.get(plan) {
                before.insert(id.clone(), running.watch.detach(id));
            }
            if !wanted.contains_key(id) {
                outbox.forget(id);
            }
            false
        });
        before
    }
}
