//! One director at work: starts the parts in the right order, and keeps each in step with the others.
//!
//! A single loop owns all state. Everything that happens comes to it as an event: tables from the cluster,
//! next hops from the resolver, questions from the control socket, signals. The order of a start matters
//! (DESIGN "Life of a director"):
//!
//! 1. the control socket, which also keeps a second director out of this network namespace;
//! 2. the data plane: loaded, or adopted from the last run, which has been forwarding all the while;
//! 3. the sync service, which brings the cluster's tables;
//! 4. tables into the kernel, programs onto the interfaces;
//! 5. only then OSPF, with the VIPs that can be served.
//!
//! A clean stop goes the other way: VIPs are withdrawn and LSAs flushed while packets are still forwarded.

mod agreed;
mod answers;
mod cluster;
pub(crate) mod drain;
mod epoch;
mod explain;
mod file;
mod forwarding;
mod health;
mod locals;
mod ospf;
mod plan;
mod preview;
mod recording;
mod reload;
mod replication;
mod restart;
mod views;
mod watch;

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::Context as _;
use director_proto::control::control_server::ControlServer;
use director_proto::tables::{TableSet, Version};
use ipnet::IpNet;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::{mpsc, oneshot};
use tokio::time::MissedTickBehavior;

use crate::config::Config;
use crate::control::{Socket, from_root};
use crate::dataplane::{Adoption, Dataplane, monotonic_seconds};
use crate::next_hop::{self, Resolver};
use answers::{Asker, Question};
pub(crate) use forwarding::local_notes;
pub(crate) use ospf::lsdb_message as lsdb;
use plan::Announcement;
pub(crate) use views::neighbors;

/// What `director run` was told.
pub struct Start {
    /// Where the configuration came from; read again on reload.
    pub config_path: PathBuf,
    /// The configuration.
    pub config: Config,
    /// The control socket.
    pub socket: Socket,
    /// Whether to discard what an earlier run left in the kernel.
    pub fresh: bool,
}

/// Runs the director until it is told to stop.
///
/// # Errors
/// Whatever keeps it from starting; once it serves, trouble is logged and shown, not fatal.
pub async fn run(start: Start) -> anyhow::Result<()> {
    let listener = start.socket.take().await?;
    let metrics = match start.config.metrics {
        Some(address) => Some(crate::metrics::bind(address).await?),
        None => None,
    };
    let (questions_in, questions) = mpsc::channel(64);
    let (end_control, end) = oneshot::channel();
    let asker = Asker(questions_in);
    let control = tonic::transport::Server::builder()
        .add_service(ControlServer::new(asker.clone()).max_encoding_message_size(256 << 20))
        .serve_with_incoming_shutdown(from_root(listener), async move {
            let _ = end.await; // or the other end is gone
        });
    let control = tokio::spawn(async move {
        if let Err(error) = control.await {
            tracing::error!(%error, "control socket");
        }
    });
    if let Some(listener) = metrics {
        tokio::spawn(crate::metrics::serve(listener, move || asker.clone().metrics()));
    }
    match Node::start(start).await?.serve(questions).await? {
        Ending::Stopped => Ok(()),
        Ending::Restart(successor) => {
            let _ = end_control.send(()); // it may have ended
            // Whoever asked for it shall have the answer.
            let _ = tokio::time::timeout(PATIENCE, control).await;
            successor.map_or(Ok(()), restart::become_successor)
        }
    }
}

/// How a director ends.
enum Ending {
    /// For good.
    Stopped,
    /// For a successor, which is what this process becomes unless somebody else starts it.
    Restart(Option<std::process::Command>),
}

/// All state of a running director.
struct Node {
    config_path: PathBuf,
    /// What this director's file says.
    file: Arc<Config>,
    /// What is in force here: this director's own sections, and the services that the cluster has agreed on.
    config: Arc<Config>,
    /// Whether the cluster has agreed on services, as far as this process knows.
    has_agreed: bool,
    /// Services of the file are still to be proposed, once this director leads.
    pending: bool,
    /// Why what is agreed on cannot be served here.
    unusable: Option<String>,
    /// What has been said of the difference between the two.
    said_difference: Vec<String>,
    /// How the files of other directors differ.
    differences: BTreeMap<Ipv4Addr, agreed::Difference>,
    /// What this director wants in force everywhere.
    own_wish: Option<reload::Wish>,
    last_wish: u64,
    /// What others want of this one as the leader.
    wished: Vec<reload::Wished>,
    started: Instant,
    dataplane: Dataplane,
    adoption: Adoption,
    /// Whether the programs are on the interfaces.
    attached: bool,
    resolver: Resolver,
    ways: mpsc::UnboundedReceiver<next_hop::Change>,
    sync: syncd::Handle,
    sync_events: mpsc::Receiver<syncd::Event>,
    exchange: replication::Exchange,
    seclusion: replication::Seclusion,
    health: health::Checks,
    standing: syncd::Standing,
    leader: Option<Ipv4Addr>,
    tables: Option<Arc<TableSet>>,
    routing: Option<routing::Handle>,
    /// Whether OSPF has been let loose.
    routing_enabled: bool,
    /// Whether OSPF has not resumed yet from what a predecessor left.
    resuming: bool,
    announced: BTreeMap<IpNet, Announcement>,
    /// Local addresses of other directors that this one takes over if need be.
    other_locals: BTreeSet<IpAddr>,
    /// Own ones that another director has as well.
    contested: BTreeMap<Ipv4Addr, BTreeSet<IpAddr>>,
    /// Whether leases are taken: what others know of this director's own is known here. Of a process that has just begun,
    /// `None`.
    leases_allowed: Option<bool>,
    /// Whether an operator took this director out of service.
    drain: drain::Drain,
    /// Services that have their quorum.
    quorate: BTreeSet<String>,
    /// Version of the tables.
    version: Option<Version>,
    /// What the kernel forwards by.
    fed: Option<Version>,
    /// What the kernel is prepared for.
    prepared: Option<epoch::Prepared>,
    /// It is not known yet how slots stand at the others.
    windows_due: bool,
    /// Tables were wanted that could not be proposed, or were refused: they are again.
    wish: bool,
    /// That they wait until the others are heard again has been said.
    waits_alone: bool,
    /// Directors with other services of which it has been said that nothing is changed because of them.
    differing: BTreeSet<Option<Ipv4Addr>>,
    /// Why the node does not serve, if it should but cannot.
    trouble: Option<String>,
    /// Whoever watches packets.
    watcher: Option<watch::Watcher>,
    /// A restart was asked for and prepared.
    ending: Option<Ending>,
}

impl Node {
    async fn start(start: Start) -> anyhow::Result<Self> {
        let Start { config_path, config, fresh, .. } = start;
        let config = Arc::new(config);
        let pending = agreed::is_changed(&config.node.state_dir, &config);
        let drain = drain::Drain::load(&config.node.state_dir)?;
        let (dataplane, adoption) = Dataplane::open(&cluster::dataplane_options(&config, fresh))?;
        match &adoption {
            Adoption::Fresh => tracing::info!("data plane loaded"),
            Adoption::Adopted { services, interfaces } => {
                tracing::info!(?services, ?interfaces, "data plane of an earlier run taken over");
            }
        }
        let (resolver, ways) = Resolver::start(dataplane.next_hops()).context("next hops")?;
        let (sync, sync_events) =
            syncd::spawn(cluster::sync_config(&config)).await.context("sync service")?;
        let port = sync.pin_port().context("sync service: its pins are somebody else's")?;
        let exchange = replication::Exchange::new(port);
        let health = health::Checks::start(&config).context("health checks")?;
        let graces = restart::left_by_predecessor(&config.node.state_dir);
        let routing = match cluster::routing_config(&config) {
            Some(wanted) => {
                let (routing, _task) = routing::spawn(wanted, cluster::seed()).context("OSPF")?;
                routing.protect(plan::vips(&config));
                routing.keep_numbers(&config.node.state_dir).await;
                routing.resume(&graces);
                Some(routing)
            }
            None => None,
        };
        Ok(Self {
            config_path,
            file: Arc::clone(&config),
            config,
            has_agreed: false,
            pending,
            unusable: None,
            said_difference: Vec::new(),
            differences: BTreeMap::new(),
            own_wish: None,
            // Not those of an earlier run: the leader may remember them.
            last_wish: u64::from(cluster::seed()) << 16,
            wished: Vec::new(),
            started: Instant::now(),
            dataplane,
            adoption,
            attached: false,
            resolver,
            ways,
            sync,
            sync_events,
            exchange,
            seclusion: replication::Seclusion::default(),
            health,
            standing: syncd::Standing::Joining,
            leader: None,
            tables: None,
            routing,
            routing_enabled: false,
            resuming: !graces.is_empty(),
            announced: BTreeMap::new(),
            other_locals: BTreeSet::new(),
            contested: BTreeMap::new(),
            leases_allowed: None,
            drain,
            quorate: BTreeSet::new(),
            version: None,
            fed: None,
            prepared: None,
            windows_due: false,
            wish: false,
            waits_alone: false,
            differing: BTreeSet::new(),
            trouble: None,
            watcher: None,
            ending: None,
        })
    }

    async fn serve(mut self, mut questions: mpsc::Receiver<Question>) -> anyhow::Result<Ending> {
        let mut terminate = signal(SignalKind::terminate())?;
        let mut interrupt = signal(SignalKind::interrupt())?;
        let mut hangup = signal(SignalKind::hangup())?;
        let mut second = tokio::time::interval(Duration::from_secs(1));
        second.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                event = self.sync_events.recv() => match event {
                    Some(event) => self.handle_sync(event).await,
                    None => anyhow::bail!("the sync service has ended"),
                },
                change = self.ways.recv() => match change {
                    Some(change) => self.handle_way(change),
                    None => anyhow::bail!("the next-hop resolver has ended"),
                },
                due = replication::due(&mut self.exchange, self.attached) => self.exchange_pins(due).await?,
                Some(()) = self.health.changed() => self.publish_health().await,
                _ = second.tick() => {
                    self.tick().await;
                    self.forget_when_resumed().await;
                    if self.wish {
                        self.lead().await;
                    }
                }
                () = watch::due(&mut self.watcher) => self.read_capture(),
                () = drain::due(self.drain.look_at()) => self.advance_drain().await,
                Some(question) = questions.recv() => {
                    self.answer(question).await;
                    if let Some(ending) = self.ending.take() {
                        self.leave().await;
                        return Ok(ending);
                    }
                }
                _ = hangup.recv() => match self.reload().await {
                    Ok(reply) => {
                        tracing::info!(changes = ?reply.changes, notes = ?reply.notes, "configuration reloaded");
                    }
                    Err(error) => tracing::error!("configuration not reloaded: {error}"),
                },
                _ = terminate.recv() => break,
                _ = interrupt.recv() => break,
            }
        }
        self.stop().await
    }

    /// Withdraws while packets are still forwarded, then takes the programs away.
    async fn stop(self) -> anyhow::Result<Ending> {
        tracing::info!("stopping: VIPs are withdrawn");
        let mut waited_for = None;
        if let Some(routing) = &self.routing {
            // No answer in time is as good as none: the flush has its own limit.
            waited_for = tokio::time::timeout(PATIENCE, routing.grace_left()).await.unwrap_or_default();
            routing.shutdown(routing::Stop::Flush).await;
        }
        self.sync.shutdown().await;
        restart::forget(&self.config.node.state_dir);
        match waited_for {
            None => self.dataplane.detach()?,
            // Who was not reached yet sends packets here until then.
            Some(left) => tracing::warn!(
                seconds = left.as_secs(),
                "stopped in the middle of a graceful restart: neighbours that could not be told wait for so long and \
                 send packets here, so the data plane stays in the kernel and forwards; to remove it, start the \
                 director and stop it when it serves"
            ),
        }
        tracing::info!("stopped");
        Ok(Ending::Stopped)
    }

    fn handle_way(&mut self, change: next_hop::Change) {
        let next_hop::Change { address, next_hop } = change;
        match &next_hop {
            Some(hop) => tracing::info!(real = %address, way = views::way(*hop), "real server reachable"),
            None if self.dataplane.next_hop(address).is_some() => {
                tracing::warn!(real = %address, "real server unreachable: no route, or its neighbour does not answer");
            }
            None => tracing::info!(real = %address, "looking for the real server"),
        }
        if let Err(error) = self.dataplane.set_next_hop(address, next_hop) {
            tracing::error!(real = %address, %error, "next hop");
        }
        self.announce();
    }

    async fn handle_sync(&mut self, event: syncd::Event) {
        // Each event is in the log already.
        match event {
            syncd::Event::NeedTables { previous: None } => {
                self.deal_file().await;
            }
            syncd::Event::NeedTables { previous: Some(_) } => self.lead().await,
            syncd::Event::Leader(leader) => {
                self.leader = leader;
                self.lead().await;
            }
            syncd::Event::Prepare { tables, version, .. } => self.prepare(&tables, version).await,
            syncd::Event::RolledBack { version, reason } => {
                self.prepared = None;
                self.end_epoch();
                self.wish = true;
                self.feed_and_tell(None).await;
                self.end_wished(version.epoch, Err(reason)).await;
            }
            syncd::Event::WindowsWanted { to, version } => self.give_windows(to, version).await,
            syncd::Event::Windows { version, windows, in_time } => {
                self.take_windows(version, windows.as_deref(), in_time).await;
            }
            syncd::Event::TablesInForce { tables, version, follows, in_time, cause } => {
                self.handle_tables(tables, version, &cause).await;
                self.feed_and_tell(follows.filter(|_| Instant::now() <= in_time)).await;
                self.ask_for_passed_over().await;
                // A wish that was overtaken by these tables is still a wish.
                self.lead().await;
            }
            syncd::Event::Finished { version } => {
                // The next one may be prepared already, which has ended this one.
                if self.prepared.as_ref().is_none_or(|prepared| prepared.version.epoch <= version.epoch) {
                    self.end_epoch();
                }
                self.end_wished(version.epoch, Ok(version)).await;
                self.lead().await;
            }
            syncd::Event::NotInForce { version, reason } => {
                self.wish = true;
                self.end_wished(version.epoch, Err(reason)).await;
            }
            syncd::Event::Definitions { router_id, definitions } => {
                self.handle_definitions(router_id, definitions);
            }
            syncd::Event::Configuration { router_id, same: true } => {
                self.differences.remove(&router_id);
            }
            syncd::Event::Wished { from, id, definitions } => self.handle_wish(from, id, definitions).await,
            syncd::Event::WishDecided { id, outcome } => self.end_wish(id, outcome),
            syncd::Event::Health(view) => {
                self.health.view = view;
                self.lead().await;
            }
            syncd::Event::Standing(standing) => self.stand(standing).await,
            syncd::Event::PeerDown { router_id } => self.lose_peer(router_id).await,
            syncd::Event::PeerUp { router_id, boot_id } => self.meet_peer(router_id, boot_id).await,
            // Shown by `director peers`.
            syncd::Event::PassedOver { .. }
            | syncd::Event::Configuration { same: false, .. }
            | syncd::Event::TablesDiffer { .. }
            | syncd::Event::TablesAgree { .. }
            | syncd::Event::TransferFailed { .. } => {}
        }
    }

    /// Other tables are in force.
    async fn handle_tables(&mut self, tables: Arc<TableSet>, version: Version, cause: &str) {
        let before = self.tables.replace(Arc::clone(&tables));
        let moved = before.as_deref().map_or(0.0, |before| plan::share_moved(before, &tables));
        let moved = format!("{:.3} %", moved * 100.0);
        tracing::info!(epoch = %version.epoch, digest = %version.digest, cause, moved, "epoch");
        self.version = Some(version);
        self.note_wished(version.epoch);
        self.follow_agreement().await;
    }

    /// Makes the kernel equal to configuration and tables, then lets packets and routing loose.
    fn feed(&mut self) {
        let before = self.trouble.take();
        self.trouble = self.try_feed().err().map(|error| format!("{error:#}"));
        // Tried again every second, and said once.
        if let Some(trouble) = self.trouble.as_ref().filter(|trouble| before.as_ref() != Some(trouble)) {
            tracing::error!(trouble, "data plane");
        }
        self.announce();
    }

    fn try_feed(&mut self) -> anyhow::Result<()> {
        let Some(tables) = &self.tables else { return Ok(()) };
        if let Some(unusable) = &self.unusable {
            anyhow::bail!("{unusable}");
        }
        self.dataplane.set_hash_key(tables.hash_key).context("hash key")?;
        let report = self.dataplane.apply(&cluster::specs(&self.config, tables)).context("services")?;
        tracing::debug!(?report, "services applied");
        if !report.is_unchanged() {
            forwarding::warn_if_lacking(&self.config);
        }
        let (reals, leaving) = (cluster::real_addresses(&self.config, tables), self.dataplane.retained());
        self.resolver.watch(reals.union(&leaving).copied());
        if !self.attached {
            for interface in self.dataplane.attach().context("XDP")? {
                tracing::info!(interface = interface.name, mode = ?interface.mode, "XDP attached");
            }
            self.attached = true;
        }
        Ok(())
    }

    /// What time does to the connections of slots that change.
    async fn tick(&mut self) {
        self.end_late_wishes().await;
        self.grant_wishes().await;
        if self.trouble.is_some() {
            if self.unusable.is_some() {
                self.follow_agreement().await;
            }
            self.feed_and_tell(None).await;
        }
        // Nothing is over as long as not all is known.
        if self.windows_due || !self.exchange.is_whole() {
            return;
        }
        match self.dataplane.tick(monotonic_seconds()) {
            Ok(report) => {
                for service in &report.refused {
                    tracing::warn!(
                        service,
                        "no room to pin connections: their slots stay as they are for longer"
                    );
                }
                if report.closed + report.settled + report.released.len() > 0 {
                    tracing::info!(?report, "slots");
                }
            }
            Err(error) => tracing::error!(%error, "connections' pins"),
        }
        self.follow_locals();
    }

    /// Announces what can be served now, and lets OSPF loose once the first tables are at work.
    fn announce(&mut self) {
        let serving = self.serving();
        let dataplane = &self.dataplane;
        self.quorate = plan::quorate(&self.config, self.tables.as_deref(), &self.quorate);
        let mut wanted = plan::announcements(
            &self.config,
            self.tables.as_deref(),
            &self.quorate,
            |real: IpAddr| dataplane.next_hop(real).is_some(),
            serving,
        );
        plan::announce_locals(&mut wanted, &self.config, &self.other_locals, serving);
        if let (Some(phase), Some(ospf)) = (self.drain.phase(), &self.config.ospf) {
            phase.apply(&mut wanted, &ospf.aggregates);
        }
        self.tell_routing(wanted);
        if let Some(routing) = self.routing.as_ref().filter(|_| serving && !self.routing_enabled) {
            routing.enable();
            self.routing_enabled = true;
        }
    }

    /// Gives OSPF the whole set of prefixes, where it differs from the last. Where OSPFv3 is not spoken, IPv6 VIPs are
    /// forwarded, and their routes are the operator's to set.
    fn tell_routing(&mut self, mut wanted: BTreeMap<IpNet, Announcement>) {
        let Some(routing) = &self.routing else { return };
        if !self.config.ospf.as_ref().is_some_and(|ospf| ospf.ipv6) {
            wanted.retain(|prefix, _| matches!(prefix, IpNet::V4(_)));
        }
        if wanted == self.announced {
            return;
        }
        for (prefix, announcement) in &wanted {
            if self.announced.get(prefix) != Some(announcement) {
                tracing::info!(%prefix, metric = announcement.metric, "announced");
            }
        }
        for prefix in self.announced.keys().filter(|prefix| !wanted.contains_key(prefix)) {
            tracing::info!(%prefix, "withdrawn");
        }
        let prefixes: BTreeMap<IpNet, routing::Announcement> =
            wanted.iter().map(|(prefix, announcement)| (*prefix, announcement.into())).collect();
        match routing.announce(prefixes) {
            Ok(()) => self.announced = wanted,
            Err(error) => tracing::error!(%error, "announcements unchanged"),
        }
    }

    /// Whether tables are current and in the kernel, and the other directors' connections are known.
    fn serving(&self) -> bool {
        self.attached
            && self.trouble.is_none()
            && self.standing == syncd::Standing::Current
            && !self.windows_due
            && self.exchange.is_whole()
    }

    async fn answer(&mut self, question: Question) {
        // A client that has gone away needs no answer.
        match question {
            Question::Status(reply) => reply_with(reply, self.status().await),
            Question::Services(reply) => reply_with(reply, self.services()),
            Question::Neighbors(reply) => reply_with(reply, self.neighbors().await),
            Question::Lsdb(request, reply) => reply_with(reply, self.lsdb(request).await),
            Question::Routes(reply) => reply_with(reply, self.routes().await),
            Question::OspfInterfaces(reply) => reply_with(reply, self.ospf_interfaces().await),
            Question::Events(reply) => reply_with(reply, self.events().await),
            Question::Peers(reply) => reply_with(reply, self.peers().await),
            Question::Connections(limit, reply) => reply_with(reply, self.connections(limit)),
            Question::Reload(request, reply) => match (request.dry_run, request.cluster) {
                (true, _) => reply_with(reply, self.preview(&request.file)),
                (false, true) => self.reload_cluster(reply).await,
                (false, false) => reply_with(reply, self.reload().await),
            },
            Question::Drain(request, reply) => reply_with(reply, self.start_drain(request).await),
            Question::Undrain(reply) => reply_with(reply, self.undrain()),
            Question::Restart(request, reply) => reply_with(reply, self.restart(&request).await),
            Question::RecordOspf(request, reply) => reply_with(reply, self.record_ospf(&request).await),
            Question::Explain(request, reply) => reply_with(reply, self.explain(&request)),
            Question::Capture(request, reply) => reply_with(reply, self.start_capture(request)),
        }
    }
}

fn reply_with<T>(reply: oneshot::Sender<T>, answer: T) {
    let _: Result<(), T> = reply.send(answer);
}

/// How long a part may take to answer a question.
const PATIENCE: Duration = Duration::from_secs(2);
