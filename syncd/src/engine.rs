//! The task that owns the replica: takes commands of the node, events of the network and deadlines, one at a
//! time, and carries out what the replica wants. It waits for nobody but its inputs.

use std::collections::{BTreeMap, VecDeque};
use std::future::pending;
use std::io::ErrorKind;
use std::net::Ipv4Addr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use director_proto::definitions::Definitions;
use director_proto::health::{Health, RealId};
use director_proto::sync::{BootId, Frame};
use director_proto::tables::{Digest, Epoch, ServiceTable, Version};
use director_proto::windows::Windows;
use tokio::net::TcpListener;
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinSet;
use tokio::time::sleep_until;
use tracing::{debug, info, warn};

use crate::certificates::{Certificates, Reloaded};
use crate::config::{Config, StartError};
use crate::net::dialer::Dialer;
use crate::net::server::{self, SyncService};
use crate::net::tls::Tls;
use crate::net::{Kind, NetEvent};
use crate::replica::{Event, Fed, Input, Outcome, Output, ProposeError, Replica, Settings, Standing};
use crate::status::Status;
use crate::store::{self, Writer};

use links::Links;

mod links;
mod pins;

pub use pins::PinPort;

/// Events that wait for the node; older ones give way when it does not listen.
const EVENT_QUEUE: usize = 256;

/// Events of the network that wait for the engine; then connections are read no further.
const NET_QUEUE: usize = 256;

/// Commands that wait for the engine.
const COMMAND_QUEUE: usize = 16;

/// Replication has ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("replication has stopped")]
pub struct Stopped;

enum Command {
    Propose {
        services: BTreeMap<String, ServiceTable>,
        hash_key_if_new: [u8; 16],
        cause: String,
        reply: oneshot::Sender<Result<Epoch, ProposeError>>,
    },
    Loaded(Version, Result<(), String>),
    Applied(Version, Result<Fed, String>),
    Windows(Ipv4Addr, Version, Bytes),
    Configured(Digest, Arc<Definitions>),
    Wish(Option<u64>),
    WishDecided(Ipv4Addr, u64, Outcome),
    Observe(BTreeMap<RealId, Health>),
    Status(oneshot::Sender<Status>),
    Shutdown(oneshot::Sender<()>),
}

/// The node's grip on replication, which ends when the last one is dropped.
#[derive(Clone, Debug)]
pub struct Handle {
    commands: mpsc::Sender<Command>,
    port: pins::Lent,
    certificates: Option<Certificates>,
}

impl Handle {
    /// Begins to put tables for `services` in force in the whole cluster. Only the leader's (or the seeder's) count;
    /// services equal to those in force, or under way, keep their epoch. `hash_key_if_new` becomes the key of the slot hash
    /// if the cluster has no tables yet: take it from the operating system's random source. `cause` is what the logs of all
    /// directors say about it.
    ///
    /// # Errors
    /// [`ProposeError`]. What becomes of the epoch is told by events.
    pub async fn propose(
        &self,
        services: BTreeMap<String, ServiceTable>,
        hash_key_if_new: [u8; 16],
        cause: String,
    ) -> Result<Epoch, ProposeError> {
        // Hashing thousands of new tables takes its time; the engine's heartbeats must not wait for it.
        let hashed = tokio::task::spawn_blocking(move || {
            for table in services.values() {
                // Kept with the slots.
                let _ = table.slots.digest();
            }
            services
        });
        let services = hashed.await.map_err(|_| ProposeError::Stopped)?;
        let (reply, answer) = oneshot::channel();
        let command = Command::Propose { services, hash_key_if_new, cause, reply };
        self.commands.send(command).await.map_err(|_| ProposeError::Stopped)?;
        answer.await.map_err(|_| ProposeError::Stopped)?
    }

    /// The answer to [`Event::Prepare`]: the tables are loaded beside those in force, or why they cannot be.
    ///
    /// # Errors
    /// [`Stopped`] if replication has ended.
    pub async fn loaded(&self, version: Version, result: Result<(), String>) -> Result<(), Stopped> {
        self.commands.send(Command::Loaded(version, result)).await.map_err(|_| Stopped)
    }

    /// The answer to [`Event::TablesInForce`]: the kernel forwards by them, or why it could not be made to. After
    /// [`Fed::Afresh`] the node does not serve until [`Event::Windows`] has come.
    ///
    /// # Errors
    /// [`Stopped`] if replication has ended.
    pub async fn applied(&self, version: Version, result: Result<Fed, String>) -> Result<(), Stopped> {
        self.commands.send(Command::Applied(version, result)).await.map_err(|_| Stopped)
    }

    /// The answer to [`Event::WindowsWanted`]: how slots stand in the kernel under these tables.
    ///
    /// # Errors
    /// [`Stopped`] if replication has ended.
    pub async fn give_windows(
        &self,
        to: Ipv4Addr,
        version: Version,
        windows: &Windows,
    ) -> Result<(), Stopped> {
        self.commands.send(Command::Windows(to, version, windows.encode())).await.map_err(|_| Stopped)
    }

    /// The services configured on this node have changed.
    ///
    /// # Errors
    /// [`Stopped`] if replication has ended.
    pub async fn configure(&self, digest: Digest, definitions: Arc<Definitions>) -> Result<(), Stopped> {
        self.commands.send(Command::Configured(digest, definitions)).await.map_err(|_| Stopped)
    }

    /// Asks the leader to put what is configured on this node in force in the whole cluster, under a number of the node's
    /// own: [`Event::WishDecided`] has the outcome. `None` gives the wish up; what has been begun goes on.
    ///
    /// # Errors
    /// [`Stopped`] if replication has ended.
    pub async fn wish(&self, id: Option<u64>) -> Result<(), Stopped> {
        self.commands.send(Command::Wish(id)).await.map_err(|_| Stopped)
    }

    /// The answer to [`Event::Wished`].
    ///
    /// # Errors
    /// [`Stopped`] if replication has ended.
    pub async fn decide_wish(&self, from: Ipv4Addr, id: u64, outcome: Outcome) -> Result<(), Stopped> {
        self.commands.send(Command::WishDecided(from, id, outcome)).await.map_err(|_| Stopped)
    }

    /// What this node's health checks say, all of it. What is not in it, or unknown, has no vote.
    pub async fn observe(&self, observed: BTreeMap<RealId, Health>) -> Result<(), Stopped> {
        self.commands.send(Command::Observe(observed)).await.map_err(|_| Stopped)
    }

    /// The way by which the node exchanges pins with the other directors: `None` if somebody has it.
    pub fn pin_port(&self) -> Option<PinPort> {
        self.port.take()
    }

    /// Reads the certificates again, and uses them for new connections; those that are up go on. The files are also looked
    /// at every few seconds.
    ///
    /// # Errors
    /// What is wrong with them, and in which file: then those from before stay in use.
    pub fn reload_certificates(&self) -> Result<Reloaded, StartError> {
        let Some(certificates) = &self.certificates else { return Ok(Reloaded::NoTls) };
        Ok(if certificates.reload()? { Reloaded::Changed } else { Reloaded::Unchanged })
    }

    /// What there is to see.
    pub async fn status(&self) -> Result<Status, Stopped> {
        let (reply, answer) = oneshot::channel();
        self.commands.send(Command::Status(reply)).await.map_err(|_| Stopped)?;
        answer.await.map_err(|_| Stopped)
    }

    /// Ends replication; returns when the connections are closed and the tables are on disk.
    pub async fn shutdown(&self) {
        let (reply, ended) = oneshot::channel();
        if self.commands.send(Command::Shutdown(reply)).await.is_ok() {
            // The engine may end without an answer; ended it has.
            let _ = ended.await;
        }
    }
}

/// Starts replication. The events must be read; `Event`s missed by a slow reader are the oldest.
pub async fn spawn(config: Config) -> Result<(Handle, mpsc::Receiver<Event>), StartError> {
    config.check()?;
    let certificates = config.tls.as_ref();
    let certificates =
        certificates.map(|files| Certificates::load(files, config.router_id, &config.cluster)).transpose()?;
    let saved = config.state_dir.as_deref().map(store::load).transpose()?.flatten();
    let listener = match config.listen {
        Some(address) => {
            Some(listen(address).await.map_err(|source| StartError::Listen { address, source })?)
        }
        None => None,
    };
    let boot_id = BootId(getrandom::u64().map_err(StartError::Random)?);
    let settings = settings(&config, boot_id, listener.as_ref());
    let now = Instant::now();
    let mut replica = Replica::new(now, settings, config.config_digest, saved);
    let definitions = Arc::clone(&config.definitions);
    replica.handle(now, Input::Configured { digest: config.config_digest, definitions });
    let (net, from_net) = mpsc::channel(NET_QUEUE);
    let tls = certificates.as_ref().map(|certificates| certificates.tls().clone());
    let mut tasks = connect(&config, &replica, tls, listener, &net);
    if let Some(certificates) = certificates.clone() {
        tasks.spawn(certificates.watch());
    }
    let (commands, from_node) = mpsc::channel(COMMAND_QUEUE);
    let (to_node, events) = mpsc::channel(EVENT_QUEUE);
    let (port, pins) = pins::Exchange::new(&replica, &config);
    let engine = Engine {
        replica,
        pins,
        links: Links::new(config.peers.clone()),
        writer: config.state_dir.map(Writer::spawn),
        to_node,
        waiting: VecDeque::new(),
        _net: net,
        _tasks: tasks,
    };
    tokio::spawn(engine.run(from_node, from_net));
    Ok((Handle { commands, port, certificates }, events))
}

/// How long another may have the address before that is an error.
const ADDRESS_IN_USE: Duration = Duration::from_secs(3);

/// Listens, and waits some seconds for the address while another has it: the kernel closes what a killed process had
/// open some time after the kill.
///
/// # Errors
/// What the system says; that the address is in use only after the wait.
pub async fn listen(address: std::net::SocketAddr) -> std::io::Result<TcpListener> {
    let deadline = Instant::now() + ADDRESS_IN_USE;
    loop {
        match TcpListener::bind(address).await {
            Err(error) if error.kind() == ErrorKind::AddrInUse && Instant::now() < deadline => {
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
            other => return other,
        }
    }
}

fn settings(config: &Config, boot_id: BootId, listener: Option<&TcpListener>) -> Settings {
    let endpoint = listener.and_then(|listener| listener.local_addr().ok());
    Settings {
        cluster: config.cluster.clone(),
        router_id: config.router_id,
        boot_id,
        endpoint: endpoint.map(|endpoint| endpoint.to_string()).unwrap_or_default(),
        software: config.version.clone(),
        expected_peers: config.peers.len(),
        // Nobody can answer a director that stands alone: there is nothing to wait for.
        grace: if config.is_standalone() { Duration::ZERO } else { config.grace },
        heartbeat: config.heartbeat,
        dead: config.dead,
        isolation: config.isolation,
    }
}

fn connect(
    config: &Config,
    replica: &Replica,
    tls: Option<Tls>,
    listener: Option<TcpListener>,
    net: &mpsc::Sender<NetEvent>,
) -> JoinSet<()> {
    let hello = Arc::new(replica.hello());
    let mut tasks = JoinSet::new();
    for (peer, &address) in config.peers.iter().enumerate() {
        for kind in [Kind::Exchange, Kind::Beat, Kind::Pins] {
            let (tls, hello, engine) = (tls.clone(), Arc::clone(&hello), net.clone());
            tasks.spawn(Dialer { peer, address, kind, tls, hello, engine }.run());
        }
    }
    if let Some(listener) = listener {
        let service = SyncService { hello, engine: net.clone() };
        tasks.spawn(server::serve(listener, tls, service));
    }
    tasks
}

struct Engine {
    replica: Replica,
    pins: pins::Exchange,
    links: Links,
    writer: Option<Writer>,
    to_node: mpsc::Sender<Event>,
    waiting: VecDeque<Event>,
    /// Keeps the receiving end open in a director without connections.
    _net: mpsc::Sender<NetEvent>,
    /// Dialers and listener, which end with the engine.
    _tasks: JoinSet<()>,
}

impl Engine {
    async fn run(mut self, mut commands: mpsc::Receiver<Command>, mut net: mpsc::Receiver<NetEvent>) {
        let to_node = self.to_node.clone();
        let mut ended = None;
        self.replica.handle(Instant::now(), Input::Tick);
        loop {
            self.carry_out();
            self.exchange_pins();
            let deadline = self.pins.deadline(self.replica.next_deadline());
            tokio::select! {
                () = sleep_until(deadline.into()) => self.replica.handle(Instant::now(), Input::Tick),
                () = self.pins.ready() => {}
                event = net.recv() => match event {
                    Some(event) => self.handle_net(event),
                    None => break,
                },
                command = commands.recv() => match command {
                    None => break,
                    Some(Command::Shutdown(reply)) => {
                        ended = Some(reply);
                        break;
                    }
                    Some(command) => self.handle_command(command),
                },
                permit = permit(&to_node, self.waiting.is_empty()) => {
                    if let Some(event) = self.waiting.pop_front() {
                        permit.send(event);
                    }
                }
            }
        }
        self.finish().await;
        if let Some(reply) = ended {
            // Whoever asked may have stopped waiting.
            let _ = reply.send(());
        }
    }

    async fn finish(mut self) {
        self.carry_out();
        drop(self.links);
        self._tasks.shutdown().await;
        if let Some(writer) = self.writer {
            writer.finish().await;
        }
    }

    fn handle_command(&mut self, command: Command) {
        let now = Instant::now();
        match command {
            Command::Propose { services, hash_key_if_new, cause, reply } => {
                let result = self.replica.propose(now, services, hash_key_if_new, cause);
                // Whoever proposed may have stopped waiting: the tables count all the same.
                let _ = reply.send(result);
            }
            Command::Loaded(version, result) => self.replica.handle(now, Input::Loaded { version, result }),
            Command::Applied(version, result) => self.replica.handle(now, Input::Applied { version, result }),
            Command::Windows(to, version, windows) => {
                self.replica.handle(now, Input::Windows { to, version, windows });
            }
            Command::Configured(digest, definitions) => {
                self.replica.handle(now, Input::Configured { digest, definitions });
            }
            Command::Wish(id) => self.replica.handle(now, Input::Wish(id)),
            Command::WishDecided(from, id, outcome) => {
                self.replica.handle(now, Input::WishDecided { from, id, outcome });
            }
            Command::Observe(observed) => self.replica.handle(now, Input::Observed(observed)),
            Command::Status(reply) => {
                let _ = reply.send(self.links.status(now, &self.replica, &self.pins.machine));
            }
            Command::Shutdown(_) => {}
        }
    }

    fn handle_net(&mut self, event: NetEvent) {
        let now = Instant::now();
        match event {
            NetEvent::Greeting { hello, kind, origin, answer, outgoing, reply } => {
                let admitted = self.replica.admit(now, &hello);
                if admitted.is_ok() && kind == Kind::Pins {
                    self.pins.machine.handle_link(hello.router_id, hello.boot_id);
                }
                let taken = admitted.map(|()| self.links.take(&hello, kind, origin, answer, outgoing));
                // A session that has ended meanwhile says so by its closed link.
                let _ = reply.send(taken);
            }
            NetEvent::Frame { link, frame, size } => self.handle_frame(now, link, frame, size),
            NetEvent::Closed { link } => self.links.remove(link),
            NetEvent::Refused { origin, reason } => self.links.refused(now, origin, reason),
            NetEvent::Unreachable { peer, reason } => self.links.unreachable(peer, reason),
        }
        self.replica.handle(now, Input::Refused(self.links.is_refused()));
    }

    fn handle_frame(&mut self, now: Instant, link: u64, frame: Frame, size: usize) {
        let Some((from, boot_id)) = self.links.received(link, size) else { return };
        match frame {
            Frame::Report(report, sent_at) => {
                if sent_at != 0 {
                    self.links.send_on(link, &Frame::Echo(sent_at));
                }
                self.replica.handle(now, Input::Report { from, boot_id, report });
            }
            Frame::Echo(sent_at) => self.links.measured(now, from, sent_at),
            Frame::Message(message) => self.replica.handle(now, Input::Message { from, boot_id, message }),
            Frame::Pins(message) => self.pins.machine.handle_message(now, from, boot_id, message),
            // Sessions keep these to themselves.
            Frame::Hello(_) | Frame::Refusal(_) => {}
        }
    }

    fn carry_out(&mut self) {
        while let Some(output) = self.replica.poll_output() {
            match output {
                Output::Beat(report) => self.links.beat(Instant::now(), &report),
                Output::Send { to, message } => self.links.send(to, message),
                Output::Store(saved) => {
                    if let Some(writer) = &self.writer {
                        writer.save(saved);
                    }
                }
                Output::Event(event) => self.tell(event),
            }
        }
    }

    fn tell(&mut self, event: Event) {
        match &event {
            Event::Prepare { .. }
            | Event::TablesInForce { .. }
            | Event::Finished { .. }
            | Event::Windows { .. }
            | Event::NeedTables { .. }
            | Event::Leader(_)
            | Event::PeerUp { .. }
            | Event::TablesAgree { .. }
            | Event::Wished { .. }
            | Event::WishDecided { outcome: Ok(_), .. }
            | Event::Standing(Standing::Current)
            | Event::Configuration { same: true, .. } => info!("{event}"),
            Event::Health(_) | Event::WindowsWanted { .. } | Event::Definitions { .. } => debug!("{event}"),
            _ => warn!("{event}"),
        }
        // Of what is said again and again, the node needs the latest only.
        self.waiting.retain(|older| !supersedes(&event, older));
        if self.waiting.len() >= EVENT_QUEUE {
            self.waiting.pop_front();
        }
        self.waiting.push_back(event);
    }
}

fn supersedes(event: &Event, older: &Event) -> bool {
    matches!(
        (event, older),
        (
            Event::TablesInForce { .. },
            // Not what was rolled back: the node ends an epoch by that, and by nothing that follows.
            Event::TablesInForce { .. } | Event::NeedTables { .. } | Event::Prepare { .. }
        ) | (
            Event::Prepare { .. } | Event::RolledBack { .. },
            Event::Prepare { .. } | Event::RolledBack { .. }
        ) | (Event::Leader(_), Event::Leader(_))
            | (Event::Health(_), Event::Health(_))
    ) || matches!(
        (event, older),
        // That it was cut off a node must know, though it is so no more.
        (Event::Standing(newer), Event::Standing(older)) if newer == older || *older != Standing::Isolated
    )
}

/// Room for an event; never, while there is none to send or nobody to read.
async fn permit(to_node: &mpsc::Sender<Event>, idle: bool) -> mpsc::Permit<'_, Event> {
    if idle {
        return pending().await;
    }
    match to_node.reserve().await {
        Ok(permit) => permit,
        Err(_) => pending().await,
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::net::Ipv4Addr;

    use director_proto::tables::{Epoch, TableSet};

    use super::*;

    #[test]
    fn what_ends_an_epoch_reaches_the_node() {
        let epoch = Epoch { number: 7, leader: Ipv4Addr::LOCALHOST };
        let tables = Arc::new(TableSet { epoch, hash_key: [0; 16], services: BTreeMap::new() });
        let version = tables.version();
        let in_force = Event::TablesInForce {
            tables: Arc::clone(&tables),
            version,
            follows: None,
            in_time: Instant::now(),
            cause: String::new(),
        };
        let prepare = Event::Prepare { tables, version, cause: String::new() };
        let finished = Event::Finished { version };
        let rolled_back = Event::RolledBack { version, reason: String::new() };
        for newer in [&in_force, &prepare, &rolled_back, &finished] {
            assert!(!supersedes(newer, &finished), "{newer}");
        }
        assert!(!supersedes(&in_force, &rolled_back), "the epoch before is not ended by tables in force");
        assert!(supersedes(&prepare, &rolled_back), "PREPARE ends the epoch before");
        assert!(supersedes(&rolled_back, &prepare));
    }

    #[test]
    fn that_it_was_cut_off_reaches_the_node() {
        let [isolated, behind, current] =
            [Standing::Isolated, Standing::Behind, Standing::Current].map(Event::Standing);
        assert!(!supersedes(&current, &isolated) && !supersedes(&behind, &isolated));
        assert!(supersedes(&isolated, &isolated) && supersedes(&current, &behind));
    }
}
