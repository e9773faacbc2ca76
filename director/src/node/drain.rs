//! Taking this director out of service without losing a connection, and back.
//!
//! The metric of every VIP goes up until no switch uses this director where another one announces the VIP; packets
//! that are on their way are forwarded as ever. When none come any more, the VIPs are withdrawn. Raising the metrics
//! first rather than withdrawing at once leaves a way for what nobody else takes: that is seen, and said.
//!
//! What the operator wanted outlives the process, in a file of the state folder: a director that is drained and starts
//! again announces no VIP.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::Context as _;
use director_proto::control as wire;
use ipnet::IpNet;
use routing::speaker::PathKind;
use tokio::sync::mpsc;
use tokio::time::Instant;

use super::plan::{Announcement, Purpose};
use super::{Node, PATIENCE};

/// The metric of VIPs while a director is drained: above all others, and not yet unreachable (65535).
pub(super) const METRIC: u16 = u16::MAX - 1;

/// How long switches may take to move the traffic once they know, where no packet shows that they have: the slowest
/// known ones calculate routes once a second.
const MOVING: Duration = Duration::from_secs(2);
/// Without a packet for this long, the traffic has moved.
const QUIET: Duration = Duration::from_secs(1);
/// How long a withdrawal may take to be acknowledged, and packets to stop; then it is said what is missing.
const WITHDRAWING: Duration = Duration::from_secs(10);
/// How often it is looked.
const PERIOD: Duration = Duration::from_millis(100);
/// Told to the client at least this often.
const NEWS: Duration = Duration::from_secs(1);

/// The state of the last progress.
pub(crate) const FINISHED: &str = "finished";

/// How far out of service this director is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Phase {
    /// The metrics of the VIPs are raised.
    Raised,
    /// The VIPs are withdrawn.
    Withdrawn,
}

impl Phase {
    /// The word in the file, and as the state of the director.
    pub(super) fn word(self) -> &'static str {
        match self {
            Self::Raised => "draining",
            Self::Withdrawn => "drained",
        }
    }

    /// What of `wanted` is announced in this phase. Local addresses of full NAT move with the VIPs, to those who back
    /// them up. A prefix of the node itself counts as a VIP where it hides in an aggregate, whose metric is the lowest of
    /// those inside it.
    pub(super) fn apply(self, wanted: &mut BTreeMap<IpNet, Announcement>, aggregates: &[IpNet]) {
        let is_vip = |prefix: &IpNet, announcement: &Announcement| {
            announcement.purpose != Purpose::Node || aggregates.iter().any(|pool| pool.contains(prefix))
        };
        match self {
            Self::Raised => {
                for (prefix, announcement) in wanted {
                    if is_vip(prefix, announcement) {
                        announcement.metric = METRIC;
                    }
                }
            }
            Self::Withdrawn => wanted.retain(|prefix, announcement| !is_vip(prefix, announcement)),
        }
    }
}

/// What is seen at one moment.
#[derive(Clone, Copy, Debug)]
struct Sight {
    /// Packets for VIPs and answers by NAT that passed since the data plane was loaded.
    packets: u64,
    /// The switches have acknowledged what is announced.
    acknowledged: bool,
}

/// What follows from it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Step {
    Wait,
    /// The traffic has moved, or shall not be waited for: withdraw.
    Withdraw,
    /// It is safe to power the node off.
    Finish,
    /// The time is up, and packets still come, or a neighbour has not acknowledged.
    GiveUp,
}

/// The rule when to go on, without a clock of its own.
#[derive(Debug)]
struct Rule {
    started: Instant,
    limit: Instant,
    /// Withdraw when the time is up, whatever still comes.
    force: bool,
    phase: Phase,
    /// Packets when it began, when the VIPs were withdrawn, and at the last look.
    first: u64,
    withdrawn: Option<u64>,
    last: u64,
    last_packet: Option<Instant>,
    phase_since: Instant,
    /// When the switches were first seen to know of this phase.
    known: Option<Instant>,
    /// Why the VIPs may not be withdrawn although the traffic has moved, as of the last look.
    refused: Option<String>,
}

impl Rule {
    fn new(now: Instant, packets: u64, limit: Duration, force: bool) -> Self {
        Self {
            started: now,
            limit: now + limit,
            force,
            phase: Phase::Raised,
            first: packets,
            withdrawn: None,
            last: packets,
            last_packet: None,
            phase_since: now,
            known: None,
            refused: None,
        }
    }

    fn step(&mut self, now: Instant, sight: Sight) -> Step {
        self.refused = None;
        if sight.packets != self.last {
            (self.last, self.last_packet) = (sight.packets, Some(now));
        }
        if sight.acknowledged {
            self.known.get_or_insert(now);
        }
        let since = |at: Instant| now.duration_since(at);
        let quiet = self.last_packet.is_none_or(|at| since(at) >= QUIET);
        match self.phase {
            Phase::Raised if self.known.is_some_and(|at| since(at) >= MOVING) && quiet => Step::Withdraw,
            Phase::Raised if now >= self.limit && self.force => Step::Withdraw,
            Phase::Raised if now >= self.limit => Step::GiveUp,
            Phase::Withdrawn if self.known.is_some_and(|at| since(at) >= QUIET) && quiet => Step::Finish,
            Phase::Withdrawn
                if since(self.phase_since) >= WITHDRAWING && (self.known.is_none() || !quiet) =>
            {
                Step::GiveUp
            }
            Phase::Raised | Phase::Withdrawn => Step::Wait,
        }
    }

    /// What follows where the VIPs may not be withdrawn, though it was time to.
    fn refuse(&mut self, now: Instant, why: String) -> Step {
        self.refused = Some(why);
        if now >= self.limit { Step::GiveUp } else { Step::Wait }
    }

    /// Why it does not go on.
    fn objection(&self, now: Instant) -> String {
        if let Some(why) = &self.refused {
            return why.clone();
        }
        let (first, what, since) = match self.withdrawn {
            None => (self.first, "the raised metrics", "the metrics were raised"),
            Some(then) => (then, "the withdrawal", "the VIPs were withdrawn"),
        };
        match (self.known, self.last_packet) {
            (None, _) => format!("a neighbour has not acknowledged {what}"),
            (_, Some(last)) if now.duration_since(last) < QUIET => {
                format!("{} packets passed since {since}, and still do", self.last.saturating_sub(first))
            }
            _ => format!("the switches have known {what} for less than {MOVING:?}"),
        }
    }

    fn withdraw(&mut self, now: Instant) {
        (self.phase, self.phase_since, self.known) = (Phase::Withdrawn, now, None);
        self.withdrawn = Some(self.last);
    }

    fn progress(&self, now: Instant, state: &str) -> wire::DrainProgress {
        let millis = |from: Instant, to: Instant| {
            u64::try_from(to.duration_since(from).as_millis()).unwrap_or(u64::MAX)
        };
        wire::DrainProgress {
            state: state.to_owned(),
            elapsed_ms: millis(self.started, now),
            packets: self.last.saturating_sub(self.first),
            last_packet_ms: self.last_packet.map(|at| millis(self.started, at)),
            packets_after_withdrawal: self.withdrawn.map(|then| self.last.saturating_sub(then)),
            acknowledged: self.known.is_some(),
        }
    }
}

/// News for a client, or why there will be no more.
type News = mpsc::Sender<Result<wire::DrainProgress, String>>;

/// A drain under way, with those who wait for its end.
struct Watch {
    rule: Rule,
    look_at: Instant,
    told_at: Instant,
    clients: Vec<News>,
}

impl Watch {
    fn tell(&mut self, news: &Result<wire::DrainProgress, String>) {
        // A client that does not read misses some; one that is gone is forgotten.
        self.clients.retain(|client| {
            !matches!(client.try_send(news.clone()), Err(mpsc::error::TrySendError::Closed(_)))
        });
    }
}

/// Whether this director is drained, and what is under way.
pub(super) struct Drain {
    file: PathBuf,
    phase: Option<Phase>,
    watch: Option<Watch>,
}

impl Drain {
    /// What was wanted when the last process ended.
    ///
    /// # Errors
    /// The file cannot be read, or says what this version does not know: announcing VIPs against the operator's will
    /// would be worse than not to start.
    pub(super) fn load(folder: &Path) -> anyhow::Result<Self> {
        let file = folder.join("drain");
        let phase = match fs::read_to_string(&file) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => None,
            Err(error) => return Err(error).with_context(|| format!("cannot read {}", file.display())),
            Ok(text) => match text.trim() {
                word if word == Phase::Raised.word() => Some(Phase::Raised),
                word if word == Phase::Withdrawn.word() => Some(Phase::Withdrawn),
                word => anyhow::bail!(
                    "{}: {word:?} is neither \"draining\" nor \"drained\"; remove the file to announce the VIPs",
                    file.display()
                ),
            },
        };
        if let Some(phase) = phase {
            tracing::warn!(
                state = phase.word(),
                "an operator took this director out of service: `director undrain`"
            );
        }
        Ok(Self { file, phase, watch: None })
    }

    pub(super) fn phase(&self) -> Option<Phase> {
        self.phase
    }

    /// When it is time to look; none while nothing is under way.
    pub(super) fn look_at(&self) -> Option<Instant> {
        self.watch.as_ref().map(|watch| watch.look_at)
    }

    /// Enters a phase, on disk first: after a crash it is at least as far out of service as anybody was told.
    fn enter(&mut self, phase: Option<Phase>) -> Result<(), String> {
        save(&self.file, phase).map_err(|error| format!("cannot write {}: {error}", self.file.display()))?;
        self.phase = phase;
        Ok(())
    }

    /// Tells everybody who waits that there will be no more.
    fn end(&mut self, last: &Result<wire::DrainProgress, String>) {
        if let Some(mut watch) = self.watch.take() {
            watch.tell(last);
        }
    }
}

/// Writes the phase atomically, or removes the file: both are on disk when this returns.
fn save(file: &Path, phase: Option<Phase>) -> io::Result<()> {
    let line = phase.map(|phase| format!("{}\n", phase.word()));
    super::file::replace(file, line.as_deref().map(str::as_bytes))
}

/// What speaks against withdrawing VIPs that nobody else announces; nothing if there are none.
fn alone(vips: &[String]) -> Option<String> {
    let vips = Some(vips.join(", ")).filter(|vips| !vips.is_empty())?;
    Some(format!("nobody else announces {vips}: their clients would lose them"))
}

/// Waits until it is time to look; for ever while nothing is under way.
pub(super) async fn due(look_at: Option<Instant>) {
    match look_at {
        Some(at) => tokio::time::sleep_until(at).await,
        None => std::future::pending().await,
    }
}

impl Node {
    /// Begins to drain, or joins a drain under way; how it goes comes out of the returned end.
    pub(super) async fn start_drain(
        &mut self,
        request: wire::DrainRequest,
    ) -> Result<mpsc::Receiver<Result<wire::DrainProgress, String>>, String> {
        let (client, news) = mpsc::channel(16);
        let limit = Duration::from_millis(request.timeout_ms.into());
        let now = Instant::now();
        if self.drain.phase != Some(Phase::Withdrawn) {
            let alone = alone(&self.announced_by_nobody_else().await?);
            if let Some(alone) = alone.filter(|_| !request.force) {
                return Err(format!("{alone}. Start another director, or add --force"));
            }
        }
        let packets = self.packets()?;
        match &mut self.drain.watch {
            Some(watch) => {
                watch.rule.limit = now + limit;
                watch.rule.force |= request.force;
                watch.clients.push(client);
            }
            None => {
                let mut rule = Rule::new(now, packets, limit, request.force);
                match self.drain.phase {
                    Some(Phase::Withdrawn) => rule.withdraw(now),
                    Some(Phase::Raised) => {}
                    None => self.drain.enter(Some(Phase::Raised))?,
                }
                tracing::info!(metric = METRIC, "draining: the VIPs' metrics are raised");
                let clients = vec![client];
                self.drain.watch = Some(Watch { rule, look_at: now + PERIOD, told_at: now, clients });
                self.announce();
            }
        }
        Ok(news)
    }

    /// Takes the traffic back.
    pub(super) fn undrain(&mut self) -> Result<wire::UndrainReply, String> {
        let was = self.drain.phase;
        self.drain.enter(None)?;
        self.drain.end(&Err("`director undrain` took this director back into service".to_owned()));
        if let Some(phase) = was {
            tracing::info!(was = phase.word(), "no longer drained");
        }
        self.announce();
        Ok(wire::UndrainReply { was: was.map(Phase::word).unwrap_or_default().to_owned() })
    }

    /// Looks whether the drain under way can go on.
    pub(super) async fn advance_drain(&mut self) {
        let acknowledged = match &self.routing {
            Some(routing) => tokio::time::timeout(PATIENCE, routing.is_settled()).await.unwrap_or(false),
            None => true,
        };
        let packets = self.packets();
        let now = Instant::now();
        let Some(watch) = &mut self.drain.watch else { return };
        watch.look_at = now + PERIOD;
        let packets = packets.unwrap_or(watch.rule.last);
        let mut step = watch.rule.step(now, Sight { packets, acknowledged });
        if step == Step::Withdraw && !watch.rule.force {
            // Another look: whoever announced them at the start may be drained by now, or dead.
            let objection = match self.announced_by_nobody_else().await {
                Ok(vips) => alone(&vips),
                Err(error) => Some(error),
            };
            if let (Some(why), Some(watch)) = (objection, &mut self.drain.watch) {
                step = watch.rule.refuse(now, why);
            }
        }
        let Some(watch) = &mut self.drain.watch else { return };
        match step {
            Step::Wait => {
                if now.duration_since(watch.told_at) >= NEWS {
                    watch.told_at = now;
                    let news = watch.rule.progress(now, watch.rule.phase.word());
                    watch.tell(&Ok(news));
                }
            }
            Step::Withdraw => {
                watch.rule.withdraw(now);
                if let Err(error) = self.drain.enter(Some(Phase::Withdrawn)) {
                    return self.drain.end(&Err(error));
                }
                tracing::info!("draining: the traffic has moved, the VIPs are withdrawn");
                self.announce();
            }
            Step::Finish => {
                let done = watch.rule.progress(now, FINISHED);
                tracing::info!(?done, "drained");
                self.drain.end(&Ok(done));
            }
            Step::GiveUp => {
                let why = watch.rule.objection(now);
                let (left, remedy) = match watch.rule.phase {
                    Phase::Raised => (
                        format!("the VIPs stay announced with metric {METRIC}"),
                        "look for who else should take them, then `director drain` again, \
                         `director drain --force`, or `director undrain`",
                    ),
                    Phase::Withdrawn => (
                        "the VIPs stay withdrawn, but this node is not safe to power off".to_owned(),
                        "look for who does not follow, then `director drain` again, or `director undrain`",
                    ),
                };
                tracing::warn!(why, left, "not drained in time");
                self.drain.end(&Err(format!("not drained in time: {why}; {left}: {remedy}")));
            }
        }
    }

    /// Packets for VIPs and answers that passed since the data plane was loaded.
    fn packets(&self) -> Result<u64, String> {
        self.dataplane.packets().map_err(|error| format!("packet counters: {error}"))
    }

    /// VIPs that we announce, and nobody else with a metric that attracts anything.
    async fn announced_by_nobody_else(&self) -> Result<Vec<String>, String> {
        let status = self.ospf_status().await?;
        let routes = self.ask_routing(routing::Handle::routes).await?;
        let is_vip = |announcement: &Announcement| announcement.purpose.service().is_some();
        let vips = self.announced.iter().filter(|(_, announcement)| is_vip(announcement));
        let told: BTreeSet<IpNet> = vips.map(|(vip, _)| told(vip, status.announced.keys())).collect();
        let interfaces = self.config.ospf.iter().flat_map(|ospf| &ospf.interfaces);
        let several = interfaces.map(|interface| interface.area).collect::<BTreeSet<_>>().len() > 1;
        let elsewhere = |prefix: &IpNet| {
            routes
                .iter()
                .any(|route| route.prefix == *prefix && is_of_others(route.kind, route.cost, several))
        };
        Ok(told.iter().filter(|prefix| !elsewhere(prefix)).map(ToString::to_string).collect())
    }
}

/// Whether a route to a VIP shows that somebody else announces it, with a metric that attracts anything. Where we are in
/// several areas, the summary of an area border router may be of what we announce ourselves in another one.
fn is_of_others(kind: PathKind, cost: u32, several_areas: bool) -> bool {
    cost < METRIC.into() && !(several_areas && kind == PathKind::InterArea)
}

/// What others are told of a VIP: itself, or the aggregate that hides it. A shorter prefix of the node's own may contain
/// either.
fn told<'a>(vip: &IpNet, announced: impl Iterator<Item = &'a IpNet>) -> IpNet {
    let around = announced.filter(|prefix| prefix.contains(vip));
    around.max_by_key(|prefix| prefix.prefix_len()).copied().unwrap_or(*vip)
}

#[cfg(test)]
mod tests;
