//! The thin driver around the speakers: raw sockets, rtnetlink and tokio's clock. It decides nothing.
//!
//! Each version runs on its own, in a task of its own; [`Handle`] is one set of controls for both. So is one BFD
//! speaker (`liveness`), which watches the neighbours of both.

mod kernel_routes;
mod links;
mod liveness;
mod numbers;
mod port;
mod run;
mod transport;

use std::{
    collections::{BTreeMap, BTreeSet},
    io,
    net::Ipv4Addr,
    path::Path,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use ipnet::IpNet;
use tokio::{
    sync::{broadcast, mpsc, oneshot, watch},
    task::JoinHandle,
};

use self::liveness::Liveness;
use crate::{
    announce::{AnnounceAs, Announcement},
    auth::{Authentication, KeyError},
    bfd,
    config::{ChangeError, Config, ConfigError, InterfaceConfig, Metric, Network, Places},
    packet::{V2, v3::V3},
    speaker::{Event, Grace, LsaDetail, MAX_ANNOUNCED, RestartRefused, RouteStatus, Status, Stop},
};

/// Inputs that may wait; readers of sockets pause when it is full.
const INPUT_QUEUE: usize = 1024;
/// Events that a slow listener may be behind before it misses some.
const EVENT_QUEUE: usize = 1024;
/// Lines of a recording that a slow reader may be behind before it is broken off.
const RECORDED_LINES: usize = 4096;

/// Why the speaker cannot start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The configuration cannot work.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// Raw sockets are refused.
    #[error("cannot open a raw OSPF socket (CAP_NET_RAW is needed): {0}")]
    RawSocket(#[source] io::Error),
    /// The kernel's routing socket is refused.
    #[error("cannot open a netlink socket: {0}")]
    Netlink(#[source] io::Error),
    /// The BFD thread cannot run.
    #[error("cannot start BFD: {0}")]
    Bfd(#[from] bfd::StartError),
}

/// Why a set of prefixes is not announced.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum AnnounceError {
    /// More of one family than are allowed.
    #[error(
        "{count} prefixes are more than the {MAX_ANNOUNCED} allowed in one family; announce a covering prefix"
    )]
    TooMany {
        /// How many.
        count: usize,
    },
    /// A metric that means unreachable.
    #[error("metric 65535 of {prefix} means unreachable; use 65534 at most, or withdraw it")]
    Unreachable {
        /// The prefix.
        prefix: IpNet,
    },
    /// A prefix of a family that is not spoken for.
    #[error("{prefix} is of a family that OSPF is not configured for; switch ipv4 or ipv6 on")]
    NotSpoken {
        /// The prefix.
        prefix: IpNet,
    },
    /// An external prefix where no area takes any.
    #[error("{prefix} cannot be announced as external: all areas are stub areas; announce it as a stub link")]
    StubAreas {
        /// The prefix.
        prefix: IpNet,
    },
    /// The speaker has stopped.
    #[error("the OSPF speaker has stopped")]
    Stopped,
}

/// Why an interface does not authenticate differently.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RekeyError {
    /// OSPF has no interface of this name.
    #[error("no OSPF interface is called {name:?}")]
    Interface {
        /// The name.
        name: String,
    },
    /// The authentication cannot work.
    #[error("interface {name}: {error}")]
    Key {
        /// The interface.
        name: String,
        /// Why.
        error: KeyError,
    },
}

/// Why another configuration is not followed.
#[derive(Debug, thiserror::Error)]
pub enum ReconfigureError {
    /// It cannot work.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// A setting that needs another process.
    #[error(transparent)]
    Change(#[from] ChangeError),
    /// It asks for BFD, which cannot run.
    #[error("cannot start BFD: {0}")]
    Bfd(#[from] bfd::StartError),
    /// The speaker has stopped.
    #[error("the OSPF speaker has stopped")]
    Stopped,
}

/// Why the speaker does not restart gracefully. It goes on as if nobody had asked.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RestartError {
    /// A grace period that cannot be.
    #[error("a grace period of {seconds} s: it must be {MIN_GRACE} to {MAX_GRACE} s")]
    Period {
        /// What was asked for, in seconds.
        seconds: u32,
    },
    /// A neighbour watches us by BFD, which would see the process end.
    #[error(
        "{router} on {interface} watches us by BFD, which ends with this process, and with it the adjacency; restart \
         without grace, or take BFD off at the switch first"
    )]
    Bfd {
        /// Name of the interface.
        interface: String,
        /// Router id of the neighbour.
        router: Ipv4Addr,
    },
    /// A neighbour does not help.
    #[error(transparent)]
    Refused(#[from] RestartRefused),
    /// The speaker has stopped.
    #[error("the OSPF speaker has stopped")]
    Stopped,
}

/// Why nothing is recorded.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RecordError {
    /// Somebody records already.
    #[error("another recording of OSPF is under way: end it first, or wait until its time is over")]
    UnderWay,
}

/// The shortest grace period, in seconds: a process needs some to come back.
const MIN_GRACE: u32 = 10;
/// The longest (RFC 3623 section 2.1: not above LSRefreshTime).
const MAX_GRACE: u32 = 1800;

enum Command {
    Enable,
    Announce(BTreeMap<IpNet, Announcement>),
    Protect(BTreeSet<IpNet>),
    Reconfigure(Box<Config>),
    /// BFD is there from now on.
    Liveness(Liveness),
    Status(oneshot::Sender<Status>),
    /// With what the LSAs say, or without.
    Lsdb(bool, oneshot::Sender<Vec<LsaDetail>>),
    Routes(oneshot::Sender<Vec<RouteStatus>>),
    Settled(oneshot::Sender<bool>),
    GraceLeft(oneshot::Sender<Option<Duration>>),
    PrepareRestart(u32, oneshot::Sender<Result<Grace, RestartRefused>>),
    CancelRestart,
    Resume(Grace),
    /// What an earlier life left of its sequence numbers, and where what is to be kept goes.
    KeepNumbers(Option<u64>, watch::Sender<Option<u64>>, oneshot::Sender<()>),
    Record {
        span: Duration,
        limit: usize,
        lines: mpsc::Sender<String>,
    },
    Shutdown(Stop, oneshot::Sender<()>),
}

/// Where one version's speaker takes commands.
type Commands = mpsc::UnboundedSender<Command>;

/// A running speaker's controls, of one version or of both. Clones are equal; when the last is dropped the
/// speaker stops as by [`Stop::Flush`].
#[derive(Clone, Debug)]
pub struct Handle {
    v2: Option<Commands>,
    v3: Option<Commands>,
    shared: Arc<Mutex<Shared>>,
    events: broadcast::Sender<Event>,
}

/// What changes with the configuration.
#[derive(Debug)]
struct Shared {
    config: Config,
    places: Places,
    liveness: Option<Liveness>,
    /// Where the lines of a recording go, as long as one is under way.
    recording: Option<mpsc::WeakSender<String>>,
}

impl Shared {
    /// The interfaces by their ids; one that is not spoken on any more has its name and no BFD.
    fn by_id(&self) -> Vec<InterfaceConfig> {
        let interface = |name: &String| {
            let known = self.config.interface(name).cloned();
            known.unwrap_or_else(|| InterfaceConfig::new(name.clone(), Network::PointToPoint))
        };
        self.places.names().iter().map(interface).collect()
    }
}

impl Handle {
    /// Starts to speak. Before this nothing is sent: call it once the data plane can take traffic.
    pub fn enable(&self) {
        for commands in self.versions() {
            Self::send(commands, Command::Enable);
        }
    }

    /// Announces exactly these prefixes with these metrics, in place of the earlier set: IPv4 prefixes by
    /// version 2, IPv6 prefixes by version 3, each as a stub link (a bare metric) or as an external route, in
    /// every area that takes it. [`Config::aggregates`] are announced in place of what lies in them. Draining is
    /// announcing with a metric raised above the other directors'.
    ///
    /// # Errors
    /// See [`AnnounceError`]; nothing changes then.
    pub fn announce<N: Into<IpNet>, A: Into<Announcement>>(
        &self,
        prefixes: BTreeMap<N, A>,
    ) -> Result<(), AnnounceError> {
        let (mut v4, mut v6) = (BTreeMap::new(), BTreeMap::new());
        let takes = |interface: &InterfaceConfig| interface.area_kind.takes_externals();
        let externals = self.shared().config.interfaces.iter().any(takes);
        for (prefix, announcement) in prefixes {
            let (prefix, announcement) = (prefix.into(), announcement.into());
            let (family, speaker) = match prefix {
                IpNet::V4(_) => (&mut v4, &self.v2),
                IpNet::V6(_) => (&mut v6, &self.v3),
            };
            if announcement.metric == Metric::MAX {
                return Err(AnnounceError::Unreachable { prefix });
            }
            if speaker.is_none() {
                return Err(AnnounceError::NotSpoken { prefix });
            }
            if announcement.kind == AnnounceAs::External && !externals {
                return Err(AnnounceError::StubAreas { prefix });
            }
            family.insert(prefix, announcement);
        }
        for prefixes in [&v4, &v6] {
            if prefixes.len() > MAX_ANNOUNCED {
                return Err(AnnounceError::TooMany { count: prefixes.len() });
            }
        }
        let send = |commands: &Option<Commands>, prefixes| {
            commands.as_ref().is_none_or(|commands| Self::send(commands, Command::Announce(prefixes)))
        };
        // Both, whatever becomes of the first.
        let sent = [send(&self.v2, v4), send(&self.v3, v6)];
        if sent.contains(&false) { Err(AnnounceError::Stopped) } else { Ok(()) }
    }

    /// Never install routes to these prefixes or parts of them, whoever announces them: the VIPs of the
    /// cluster, before and after we announce them ourselves. Replaces the earlier set.
    pub fn protect<N: Into<IpNet>>(&self, prefixes: BTreeSet<N>) {
        let prefixes: BTreeSet<IpNet> = prefixes.into_iter().map(Into::into).collect();
        for commands in self.versions() {
            Self::send(commands, Command::Protect(prefixes.clone()));
        }
    }

    /// Authenticates differently on an interface from now on. Adjacencies stay, if the neighbours follow
    /// within the dead interval, or knew the new key before.
    ///
    /// # Errors
    /// The authentication cannot work; nothing changes then. [`RekeyError::Interface`] if there is none of
    /// this name.
    pub fn authenticate(&self, interface: &str, authentication: Authentication) -> Result<(), RekeyError> {
        let mut shared = self.shared();
        let known = shared.config.interfaces.iter_mut().find(|known| known.name == interface);
        let Some(known) = known else { return Err(RekeyError::Interface { name: interface.to_owned() }) };
        authentication
            .validate(self.v3.is_some())
            .map_err(|error| RekeyError::Key { name: interface.to_owned(), error })?;
        known.authentication = authentication;
        for commands in self.versions() {
            Self::send(commands, Command::Reconfigure(Box::new(shared.config.clone())));
        }
        Ok(())
    }

    /// Follows another configuration without losing an adjacency by itself: costs, timers, priorities, BFD, keys,
    /// imports, aggregates and what externals have in common; interfaces come and go, and the others are not touched. Where the neighbours must agree (timers, keys), an
    /// adjacency lives on if they follow within the dead interval. Returns what changed, one line each.
    ///
    /// # Errors
    /// See [`ReconfigureError`]; nothing changes then.
    pub fn reconfigure(&self, next: Config) -> Result<Vec<String>, ReconfigureError> {
        next.validate()?;
        let mut shared = self.shared();
        let changes = shared.config.changes_to(&next)?;
        if changes.is_empty() {
            return Ok(changes);
        }
        let needs_bfd = next.interfaces.iter().any(|interface| interface.bfd.is_some());
        let before = std::mem::replace(&mut shared.config, next);
        let config = &shared.config;
        let mut places = shared.places.clone();
        places.admit(&config.interfaces);
        shared.places = places;
        match &shared.liveness {
            Some(liveness) => liveness.configure(shared.by_id()),
            None if needs_bfd => {
                let liveness = match Liveness::start(shared.by_id()) {
                    Ok(liveness) => liveness,
                    Err(error) => {
                        shared.config = before; // a place more does no harm
                        return Err(error.into());
                    }
                };
                for commands in self.versions() {
                    Self::send(commands, Command::Liveness(liveness.clone()));
                }
                shared.liveness = Some(liveness);
            }
            None => {}
        }
        let send = |commands| Self::send(commands, Command::Reconfigure(Box::new(shared.config.clone())));
        // Both, whatever becomes of the first.
        let sent: Vec<bool> = self.versions().map(send).collect();
        if sent.contains(&false) { Err(ReconfigureError::Stopped) } else { Ok(changes) }
    }

    fn shared(&self) -> MutexGuard<'_, Shared> {
        self.shared.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn liveness(&self) -> Option<Liveness> {
        self.shared().liveness.clone()
    }

    /// What the speaker knows, of both versions in one view; none once it has stopped.
    pub async fn status(&self) -> Option<Status> {
        let mut merged = self.ask(Command::Status).await.into_iter().reduce(Status::merge);
        if let (Some(liveness), Some(status)) = (self.liveness(), &mut merged) {
            status.neighbors = liveness.describe(std::mem::take(&mut status.neighbors)).await;
        }
        merged
    }

    /// The databases of both versions, with what the LSAs say if `with_bodies`; empty once the speaker has stopped.
    pub async fn lsdb(&self, with_bodies: bool) -> Vec<LsaDetail> {
        self.ask(|answer| Command::Lsdb(with_bodies, answer)).await.into_iter().flatten().collect()
    }

    /// Every route that is known, with what became of it in the kernel; empty once the speaker has stopped.
    pub async fn routes(&self) -> Vec<RouteStatus> {
        self.ask(Command::Routes).await.into_iter().flatten().collect()
    }

    /// Whether all that was announced so far is known to the neighbours: our LSAs say it, and everybody who is to
    /// acknowledge them has. With nobody to tell, it is.
    pub async fn is_settled(&self) -> bool {
        self.ask(Command::Settled).await.into_iter().all(|settled| settled)
    }

    /// The answers of the versions that have not stopped.
    async fn ask<T>(&self, command: impl Fn(oneshot::Sender<T>) -> Command) -> Vec<T> {
        let mut answers = Vec::new();
        for commands in self.versions() {
            let (sender, answer) = oneshot::channel();
            Self::send(commands, command(sender));
            answers.extend(answer.await); // an error means that it has stopped
        }
        answers
    }

    /// News from now on.
    #[must_use]
    pub fn events(&self) -> broadcast::Receiver<Event> {
        self.events.subscribe()
    }

    /// Tells the neighbours that this process restarts and is back within `seconds` (RFC 3623, RFC 5187), and waits
    /// until all have acknowledged it, 3 s at most. What comes back is for [`Handle::resume`] in the next process, to be
    /// kept where it outlives this one; the way to go is then [`Handle::shutdown`] with [`Stop::Keep`]. The caller
    /// answers for the data plane, which must go on without the process.
    ///
    /// That a neighbour acknowledges does not say that it is configured to help; one that is not ends the adjacency
    /// after its dead interval, as after a crash.
    ///
    /// # Errors
    /// See [`RestartError`]; the neighbours are told that nothing comes of it.
    pub async fn prepare_restart(&self, seconds: u32) -> Result<Vec<Grace>, RestartError> {
        if !(MIN_GRACE..=MAX_GRACE).contains(&seconds) {
            return Err(RestartError::Period { seconds });
        }
        let status = self.status().await.ok_or(RestartError::Stopped)?;
        let is_up = |neighbor: &crate::speaker::NeighborStatus| {
            neighbor.bfd.as_ref().is_some_and(|bfd| bfd.state == bfd::State::Up)
        };
        if let Some(watching) = status.neighbors.into_iter().find(is_up) {
            return Err(RestartError::Bfd { interface: watching.interface, router: watching.router_id });
        }
        let ask = |commands| {
            let (answer, outcome) = oneshot::channel();
            Self::send(commands, Command::PrepareRestart(seconds, answer));
            outcome
        };
        let asked: Vec<_> = self.versions().map(ask).collect(); // both at once
        let mut graces = Vec::new();
        for outcome in asked {
            match outcome.await.map_err(|_| RestartError::Stopped).and_then(|outcome| Ok(outcome?)) {
                Ok(grace) => graces.push(grace),
                Err(error) => {
                    self.cancel_restart();
                    return Err(error);
                }
            }
        }
        Ok(graces)
    }

    /// Goes on as if no restart had been prepared.
    pub fn cancel_restart(&self) {
        for commands in self.versions() {
            Self::send(commands, Command::CancelRestart);
        }
    }

    /// Says that this process is the successor of the one that [`Handle::prepare_restart`] left these from. Before
    /// [`Handle::enable`]; what is out of date is of no effect.
    pub fn resume(&self, graces: &[Grace]) {
        for (version, commands) in [(2, &self.v2), (3, &self.v3)] {
            let grace = graces.iter().find(|grace| grace.version == version);
            if let Some((commands, grace)) = commands.as_ref().zip(grace) {
                Self::send(commands, Command::Resume(grace.clone()));
            }
        }
    }

    /// Keeps the cryptographic sequence numbers of both versions in files of a folder, so that the next process begins
    /// above them, whatever its clock says (RFC 2328 section D.4.3, RFC 7166 section 4.1). Before [`Handle::enable`];
    /// without it, and where the files cannot be read or written, which is logged, numbers go by the clock.
    pub async fn keep_numbers(&self, folder: &Path) {
        for (version, commands) in [(2, &self.v2), (3, &self.v3)] {
            let Some(commands) = commands else { continue };
            let file = numbers::file_of(folder, version);
            let path = file.clone();
            let earlier = tokio::task::spawn_blocking(move || numbers::read(&path)).await.unwrap_or_default();
            let (highest, kept) = watch::channel(None);
            let (answer, done) = oneshot::channel();
            Self::send(commands, Command::KeepNumbers(earlier, highest, answer));
            if done.await.is_ok() {
                numbers::keep(file, kept).await;
            }
        }
    }

    /// How long the neighbours still wait for a restart that is under way, in the version where it is longest; none where
    /// no restart was resumed, it is over, or the speaker has stopped.
    pub async fn grace_left(&self) -> Option<Duration> {
        self.ask(Command::GraceLeft).await.into_iter().flatten().max()
    }

    /// Records every input from now on, for so long and so many bytes at most (`limit`, of both versions together); the
    /// lines come out of the returned end, see [`crate::speaker::recording`]. It ends early when that is dropped or not
    /// read.
    ///
    /// # Errors
    /// [`RecordError::UnderWay`] while the lines of another one are still read.
    pub fn record(&self, span: Duration, limit: usize) -> Result<mpsc::Receiver<String>, RecordError> {
        let (lines, recording) = mpsc::channel(RECORDED_LINES);
        {
            let mut shared = self.shared();
            let before = shared.recording.as_ref().and_then(mpsc::WeakSender::upgrade);
            if before.is_some_and(|before| !before.is_closed()) {
                return Err(RecordError::UnderWay);
            }
            shared.recording = Some(lines.downgrade());
        }
        let limit = limit / self.versions().count().max(1);
        for commands in self.versions() {
            Self::send(commands, Command::Record { span, limit, lines: lines.clone() });
        }
        Ok(recording)
    }

    /// Stops, then takes leave of the BFD peers; returns when it is done, after two and a half seconds at most.
    pub async fn shutdown(&self, stop: Stop) {
        let ask = |commands| {
            let (answer, done) = oneshot::channel();
            Self::send(commands, Command::Shutdown(stop, answer)).then_some(done)
        };
        let stopping: Vec<_> = self.versions().filter_map(ask).collect(); // both at once
        for done in stopping {
            let _ = done.await; // an error means that it has stopped already
        }
        if let Some(liveness) = self.liveness() {
            liveness.end().await;
        }
    }

    fn versions(&self) -> impl Iterator<Item = &Commands> {
        self.v2.iter().chain(&self.v3)
    }

    fn send(commands: &Commands, command: Command) -> bool {
        commands.send(command).is_ok()
    }
}

/// Starts a speaker on the current tokio runtime, in the network namespace of the process: of version 2, of
/// version 3, or of both, as the configuration says. It is silent until [`Handle::enable`]. `seed` should
/// differ between runs, the current time does. The task ends when the speaker has stopped.
///
/// # Errors
/// See [`StartError`].
pub fn spawn(config: Config, seed: u32) -> Result<(Handle, JoinHandle<()>), StartError> {
    let (events, _) = broadcast::channel(EVENT_QUEUE);
    config.validate()?;
    let bfd = config.interfaces.iter().any(|interface| interface.bfd.is_some());
    let liveness = if bfd { Some(Liveness::start(config.interfaces.clone())?) } else { None };
    let mut handle = Handle {
        v2: None,
        v3: None,
        shared: Arc::new(Mutex::new(Shared {
            places: Places::new(&config.interfaces),
            config: config.clone(),
            liveness: liveness.clone(),
            recording: None,
        })),
        events: events.clone(),
    };
    let mut tasks = Vec::new();
    if config.ipv4 {
        let (commands, task) = run::start::<V2>(&config, seed, events.clone(), liveness.clone())?;
        handle.v2 = Some(commands);
        tasks.push(task);
    }
    if config.ipv6 {
        let (commands, task) = run::start::<V3>(&config, seed, events, liveness)?;
        handle.v3 = Some(commands);
        tasks.push(task);
    }
    let shared = Arc::clone(&handle.shared);
    let all = tokio::spawn(async move {
        for task in tasks {
            if let Err(error) = task.await {
                tracing::error!(%error, "an OSPF speaker failed");
            }
        }
        let liveness = shared.lock().unwrap_or_else(PoisonError::into_inner).liveness.clone();
        if let Some(liveness) = liveness {
            liveness.end().await;
        }
    });
    Ok((handle, all))
}
