//! The thin driver around the [`Speaker`]: raw sockets, rtnetlink and tokio's clock. It decides nothing.

mod kernel_routes;
mod links;
mod port;

use std::{
    collections::{BTreeMap, BTreeSet},
    io,
    time::Duration,
};

use ipnet::Ipv4Net;
use tokio::{
    sync::{broadcast, mpsc, oneshot, watch},
    task::JoinHandle,
    time::Instant,
};

use self::{
    kernel_routes::{Place, Wanted},
    port::Port,
};
use crate::{
    Time,
    config::{Config, ConfigError, Metric},
    speaker::{Event, Input, InterfaceId, Link, MAX_ANNOUNCED, Output, Route, Speaker, Status, Stop},
};

/// Inputs that may wait; readers of sockets pause when it is full.
const INPUT_QUEUE: usize = 1024;
/// Events that a slow listener may be behind before it misses some.
const EVENT_QUEUE: usize = 1024;
/// After the longest dead interval and this, routes of an earlier run that were not learned again go.
const ADOPTION: Duration = Duration::from_secs(15);

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
}

/// Why a set of prefixes is not announced.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum AnnounceError {
    /// More than one Router-LSA can hold.
    #[error(
        "{count} prefixes are more than the {MAX_ANNOUNCED} that fit a Router-LSA; announce a covering prefix"
    )]
    TooMany {
        /// How many.
        count: usize,
    },
    /// A metric that means unreachable.
    #[error("metric 65535 of {prefix} means unreachable; use 65534 at most, or withdraw it")]
    Unreachable {
        /// The prefix.
        prefix: Ipv4Net,
    },
    /// The speaker has stopped.
    #[error("the OSPF speaker has stopped")]
    Stopped,
}

enum Command {
    Input(Input),
    Status(oneshot::Sender<Status>),
    Shutdown(Stop, oneshot::Sender<()>),
}

/// A running speaker's controls. Clones are equal; when the last is dropped the speaker stops as by
/// [`Stop::Flush`].
#[derive(Clone, Debug)]
pub struct Handle {
    commands: mpsc::UnboundedSender<Command>,
    events: broadcast::Sender<Event>,
}

impl Handle {
    /// Starts to speak. Before this nothing is sent: call it once the data plane can take traffic.
    pub fn enable(&self) {
        self.send(Command::Input(Input::Enable));
    }

    /// Announces exactly these prefixes with these metrics, in place of the earlier set. Draining is
    /// announcing with a metric raised above the other directors'.
    ///
    /// # Errors
    /// See [`AnnounceError`]; nothing changes then.
    pub fn announce(&self, prefixes: BTreeMap<Ipv4Net, Metric>) -> Result<(), AnnounceError> {
        if prefixes.len() > MAX_ANNOUNCED {
            return Err(AnnounceError::TooMany { count: prefixes.len() });
        }
        if let Some((prefix, _)) = prefixes.iter().find(|(_, metric)| **metric == Metric::MAX) {
            return Err(AnnounceError::Unreachable { prefix: *prefix });
        }
        let sent = self.send(Command::Input(Input::Announce(prefixes)));
        if sent { Ok(()) } else { Err(AnnounceError::Stopped) }
    }

    /// Never install routes to these prefixes or parts of them, whoever announces them: the VIPs of the
    /// cluster, before and after we announce them ourselves. Replaces the earlier set.
    pub fn protect(&self, prefixes: BTreeSet<Ipv4Net>) {
        self.send(Command::Input(Input::Protect(prefixes)));
    }

    /// What the speaker knows; none once it has stopped.
    pub async fn status(&self) -> Option<Status> {
        let (answer, status) = oneshot::channel();
        self.send(Command::Status(answer));
        status.await.ok()
    }

    /// News from now on.
    #[must_use]
    pub fn events(&self) -> broadcast::Receiver<Event> {
        self.events.subscribe()
    }

    /// Stops; returns when it is done, after two seconds at most.
    pub async fn shutdown(&self, stop: Stop) {
        let (answer, done) = oneshot::channel();
        if self.send(Command::Shutdown(stop, answer)) {
            let _ = done.await; // an error means that it has stopped already
        }
    }

    fn send(&self, command: Command) -> bool {
        self.commands.send(command).is_ok()
    }
}

/// Starts a speaker on the current tokio runtime, in the network namespace of the process. It is silent
/// until [`Handle::enable`]. `seed` should differ between runs, the current time does. The task ends when
/// the speaker has stopped.
///
/// # Errors
/// See [`StartError`].
pub fn spawn(config: Config, seed: u32) -> Result<(Handle, JoinHandle<()>), StartError> {
    let speaker = Speaker::new(config.clone(), seed)?;
    port::raw_socket().map_err(StartError::RawSocket)?;
    let (inputs_in, inputs) = mpsc::channel(INPUT_QUEUE);
    let names = config.interfaces.iter().map(|interface| interface.name.clone()).collect();
    links::watch(names, inputs_in.clone()).map_err(StartError::Netlink)?;
    // A socket of its own: the kernel runs one dump per socket at a time.
    let (connection, netlink, _) = rtnetlink::new_connection().map_err(StartError::Netlink)?;
    tokio::spawn(connection);
    let (commands_in, commands) = mpsc::unbounded_channel();
    let (events, _) = broadcast::channel(EVENT_QUEUE);
    let (wanted, watched) = watch::channel(Wanted::default());
    let (end_routes, end) = oneshot::channel();
    let place = Place { table: config.table, protocol: config.protocol, metric: config.kernel_metric };
    let routes = tokio::spawn(kernel_routes::run(place, netlink, watched, end));
    let driver = Driver {
        speaker,
        started: Instant::now(),
        links: vec![Link::default(); config.interfaces.len()],
        ports: BTreeMap::new(),
        inputs_in,
        events: events.clone(),
        wanted,
        learned: Vec::new(),
        purge_at: None,
        adoption: Some(config.interfaces.iter().map(|i| i.dead()).max().unwrap_or_default() + ADOPTION),
        stopped: false,
    };
    let task = tokio::spawn(driver.run(commands, inputs, end_routes, routes));
    Ok((Handle { commands: commands_in, events }, task))
}

struct Driver {
    speaker: Speaker,
    started: Instant,
    links: Vec<Link>,
    ports: BTreeMap<InterfaceId, Port>,
    inputs_in: mpsc::Sender<Input>,
    events: broadcast::Sender<Event>,
    wanted: watch::Sender<Wanted>,
    learned: Vec<Route>,
    /// When routes of an earlier run go that were not learned again.
    purge_at: Option<Instant>,
    /// How long after [`Input::Enable`] that is, until then.
    adoption: Option<Duration>,
    stopped: bool,
}

impl Driver {
    async fn run(
        mut self,
        mut commands: mpsc::UnboundedReceiver<Command>,
        mut inputs: mpsc::Receiver<Input>,
        end_routes: oneshot::Sender<bool>,
        routes: JoinHandle<()>,
    ) {
        let mut waiting = Vec::new();
        let mut flush = true;
        let mut open = true;
        while !self.stopped {
            tokio::select! {
                biased;
                command = commands.recv(), if open => match command {
                    Some(Command::Input(input)) => self.handle(input),
                    Some(Command::Status(answer)) => {
                        self.handle(Input::Timer); // so that ages are of now
                        let _ = answer.send(self.speaker.status()); // nobody waits any more
                    }
                    Some(Command::Shutdown(stop, answer)) => {
                        flush = stop == Stop::Flush;
                        waiting.push(answer);
                        self.handle(Input::Stop(stop));
                    }
                    None => {
                        open = false;
                        self.handle(Input::Stop(Stop::Flush));
                    }
                },
                () = sleep_until(self.deadline()) => self.handle(Input::Timer),
                () = sleep_until(self.purge_at) => self.purge(),
                Some(input) = inputs.recv() => self.handle(input),
            }
        }
        self.ports.clear();
        let _ = end_routes.send(flush); // the task may have ended with the netlink socket
        if let Err(error) = routes.await {
            tracing::error!(%error, "the route task failed");
        }
        drop(waiting);
    }

    fn now(&self) -> Time {
        Time::from_start(self.started.elapsed())
    }

    fn deadline(&self) -> Option<Instant> {
        self.speaker.next_deadline().map(|at| self.started + at.since_start())
    }

    fn handle(&mut self, input: Input) {
        match &input {
            Input::Link { interface, link } => self.adopt_link(*interface, *link),
            Input::Enable => {
                let at = self.adoption.take().and_then(|span| Instant::now().checked_add(span));
                self.purge_at = self.purge_at.or(at);
            }
            _ => {}
        }
        self.speaker.handle(self.now(), input);
        while let Some(output) = self.speaker.poll_output() {
            self.perform(output);
        }
    }

    /// Opens, closes or reopens the socket of an interface.
    fn adopt_link(&mut self, interface: InterfaceId, link: Link) {
        let Some(known) = self.links.get_mut(interface.0) else { return };
        let before = std::mem::replace(known, link);
        let usable = link.up && link.address.is_some();
        let same = (before.index, before.address) == (link.index, link.address);
        if usable && same && self.ports.contains_key(&interface) {
            return;
        }
        self.ports.remove(&interface);
        if let Some(net) = link.address.filter(|_| usable) {
            match Port::open(interface, link.index, net.addr(), self.inputs_in.clone()) {
                Ok(port) => drop(self.ports.insert(interface, port)),
                Err(error) => tracing::error!(?link, %error, "cannot open the OSPF socket of an interface"),
            }
        }
        self.publish_routes();
    }

    fn perform(&mut self, output: Output) {
        match output {
            Output::Send { interface, destination, payload } => {
                let Some(port) = self.ports.get(&interface) else { return };
                if let Err(error) = port.send(destination, &payload) {
                    tracing::debug!(?interface, %destination, %error, "packet not sent");
                }
            }
            Output::DesignatedGroup { interface, join } => {
                let Some(port) = self.ports.get(&interface) else { return };
                match port.designated_group(join) {
                    Err(error) if join => {
                        tracing::warn!(?interface, %error, "cannot join the group of designated routers");
                    }
                    Ok(()) | Err(_) => {} // a socket reopened since then is in no group to leave
                }
            }
            Output::Routes(routes) => {
                self.learned = routes;
                self.publish_routes();
            }
            Output::Event(event) => {
                log(&event);
                let _ = self.events.send(event); // nobody may listen
            }
            Output::Stopped => self.stopped = true,
        }
    }

    fn publish_routes(&mut self) {
        let device =
            |id: InterfaceId| self.links.get(id.0).map(|link| link.index).filter(|index| *index != 0);
        let hops = |route: &Route| {
            let hop = |hop: &crate::speaker::NextHop| Some((device(hop.interface)?, hop.gateway?));
            (route.prefix, route.next_hops.iter().filter_map(hop).collect::<BTreeSet<_>>())
        };
        let routes: BTreeMap<_, _> =
            self.learned.iter().map(hops).filter(|(_, hops)| !hops.is_empty()).collect();
        self.wanted.send_if_modified(|wanted| {
            let changed = wanted.routes != routes;
            wanted.routes = routes;
            changed
        });
    }

    fn purge(&mut self) {
        self.purge_at = None;
        self.wanted.send_modify(|wanted| wanted.complete = true);
    }
}

async fn sleep_until(at: Option<Instant>) {
    match at {
        Some(at) => tokio::time::sleep_until(at).await,
        None => std::future::pending().await,
    }
}

fn log(event: &Event) {
    match event {
        Event::Neighbor { interface, router, address, from, to, event } => {
            tracing::info!(interface, %router, %address, ?from, ?to, ?event, "OSPF neighbour");
        }
        Event::Interface { interface, from, to } => {
            tracing::info!(interface, ?from, ?to, "OSPF interface");
        }
        Event::Refused { interface, source, reason, detail } => {
            tracing::warn!(interface, %source, ?reason, detail, "OSPF packet refused");
        }
        Event::Originated { lsa, sequence, flushed } => {
            tracing::debug!(lsa, sequence, flushed, "OSPF LSA originated");
        }
        Event::RouterIdContested { lsa } => {
            tracing::error!(lsa, "another router originates LSAs under our router id; change one of the two");
        }
    }
}
