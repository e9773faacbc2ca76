//! The thin driver around the speakers: raw sockets, rtnetlink and tokio's clock. It decides nothing.
//!
//! Each version runs on its own, in a task of its own; [`Handle`] is one set of controls for both. So is one BFD
//! speaker (`liveness`), which watches the neighbours of both.

mod kernel_routes;
mod links;
mod liveness;
mod port;
mod run;
mod transport;

use std::{
    collections::{BTreeMap, BTreeSet},
    io,
    sync::Arc,
};

use ipnet::IpNet;
use tokio::{
    sync::{broadcast, mpsc, oneshot},
    task::JoinHandle,
};

use self::liveness::Liveness;
use crate::{
    announce::{AnnounceAs, Announcement},
    auth::{Authentication, KeyError},
    bfd,
    config::{Config, ConfigError, Metric},
    packet::{V2, v3::V3},
    speaker::{Event, MAX_ANNOUNCED, Status, Stop},
};

/// Inputs that may wait; readers of sockets pause when it is full.
const INPUT_QUEUE: usize = 1024;
/// Events that a slow listener may be behind before it misses some.
const EVENT_QUEUE: usize = 1024;

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

enum Command {
    Enable,
    Announce(BTreeMap<IpNet, Announcement>),
    Protect(BTreeSet<IpNet>),
    Authenticate(String, Authentication),
    Status(oneshot::Sender<Status>),
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
    /// Names of the interfaces.
    interfaces: Arc<[String]>,
    liveness: Option<Liveness>,
    events: broadcast::Sender<Event>,
    /// Whether an area takes external prefixes.
    externals: bool,
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
            if announcement.kind == AnnounceAs::External && !self.externals {
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
        if !self.interfaces.iter().any(|known| known == interface) {
            return Err(RekeyError::Interface { name: interface.to_owned() });
        }
        authentication
            .validate(self.v3.is_some())
            .map_err(|error| RekeyError::Key { name: interface.to_owned(), error })?;
        for commands in self.versions() {
            Self::send(commands, Command::Authenticate(interface.to_owned(), authentication.clone()));
        }
        Ok(())
    }

    /// What the speaker knows, of both versions in one view; none once it has stopped.
    pub async fn status(&self) -> Option<Status> {
        let mut merged: Option<Status> = None;
        for commands in self.versions() {
            let (answer, status) = oneshot::channel();
            Self::send(commands, Command::Status(answer));
            if let Ok(status) = status.await {
                merged = Some(match merged {
                    Some(first) => first.merge(status),
                    None => status,
                });
            }
        }
        if let (Some(liveness), Some(status)) = (&self.liveness, &mut merged) {
            status.neighbors = liveness.describe(std::mem::take(&mut status.neighbors)).await;
        }
        merged
    }

    /// News from now on.
    #[must_use]
    pub fn events(&self) -> broadcast::Receiver<Event> {
        self.events.subscribe()
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
        if let Some(liveness) = &self.liveness {
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
    let liveness = if bfd { Some(Liveness::start(&config.interfaces)?) } else { None };
    let mut handle = Handle {
        v2: None,
        v3: None,
        interfaces: config.interfaces.iter().map(|interface| interface.name.clone()).collect(),
        liveness: liveness.clone(),
        events: events.clone(),
        externals: config.interfaces.iter().any(|interface| interface.area_kind.takes_externals()),
    };
    let mut tasks = Vec::new();
    if config.ipv4 {
        let (commands, task) = run::start::<V2>(&config, seed, events.clone(), liveness.clone())?;
        handle.v2 = Some(commands);
        tasks.push(task);
    }
    if config.ipv6 {
        let (commands, task) = run::start::<V3>(&config, seed, events, liveness.clone())?;
        handle.v3 = Some(commands);
        tasks.push(task);
    }
    let all = tokio::spawn(async move {
        for task in tasks {
            if let Err(error) = task.await {
                tracing::error!(%error, "an OSPF speaker failed");
            }
        }
        if let Some(liveness) = liveness {
            liveness.end().await;
        }
    });
    Ok((handle, all))
}
