//! The loop around one speaker: commands, packets, links and the clock go in, and what comes out is done.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::{Duration, SystemTime},
};

use tokio::{
    sync::{broadcast, mpsc, oneshot, watch},
    task::JoinHandle,
    time::Instant,
};

use super::{
    Command, INPUT_QUEUE, StartError,
    kernel_routes::{self, Hop, Place, Report, Wanted},
    links::{self, Named},
    liveness::{Liveness, PathDown},
    port::Port,
    transport::{Device, Transport, raw_socket},
};
use crate::{
    Time,
    config::{Config, Places},
    speaker::recording::{Recorder, RecordingEnd},
    speaker::{
        Event, Grace, Input, InterfaceId, Link, Machine, Output, RestartRefused, Route, RouteStatus, Stop,
    },
};

/// After the longest dead interval and this, routes of an earlier run that were not learned again go.
const ADOPTION: Duration = Duration::from_secs(15);
/// The speaker's time of day is at most this old.
const CLOCK_CHECK: Duration = Duration::from_secs(1);
/// Metric that the kernel gives to IPv6 routes of its own interfaces (`IP6_RT_PRIO_ADDRCONF`); to IPv4 ones, 0. A
/// learned
/// route must not come before them: the way to a neighbour on the link is the link.
const CONNECTED_V6: u32 = 256;

/// Starts one version's speaker; its commands, and the task that ends when it has stopped.
///
/// # Errors
/// See [`StartError`].
pub(super) fn start<V: Transport>(
    config: &Config,
    seed: u32,
    events: broadcast::Sender<Event>,
    liveness: Option<Liveness>,
) -> Result<(mpsc::UnboundedSender<Command>, JoinHandle<()>), StartError> {
    let speaker = Machine::<V>::new(config.clone(), seed)?;
    raw_socket::<V>().map_err(StartError::RawSocket)?;
    let (inputs_in, inputs) = mpsc::channel(INPUT_QUEUE);
    let places = Places::new(&config.interfaces);
    let (devices, watched_devices) = watch::channel(devices(&places, config));
    links::watch::<V>(config.router_id, watched_devices, inputs_in.clone()).map_err(StartError::Netlink)?;
    // A socket of its own: the kernel runs one dump per socket at a time.
    let (connection, netlink, _) = rtnetlink::new_connection().map_err(StartError::Netlink)?;
    tokio::spawn(connection);
    let (commands_in, commands) = mpsc::unbounded_channel();
    let (wanted, watched) = watch::channel(Wanted::default());
    let (end_routes, end) = oneshot::channel();
    let (table, protocol) = (config.table, config.protocol);
    let metric = config.kernel_metric.saturating_add(if V::IS_V6 { CONNECTED_V6 } else { 0 });
    let place = Place { family: V::FAMILY, table, protocol, metric };
    let (report, reported) = watch::channel(Report::default());
    let routes = tokio::spawn(kernel_routes::run(place, netlink, watched, report, end));
    let (paths_in, paths) = mpsc::unbounded_channel();
    if let Some(liveness) = &liveness {
        liveness.join(V::IS_V6, paths_in.clone());
    }
    let driver = Driver {
        speaker,
        started: Instant::now(),
        time_of_day_at: None,
        places,
        devices,
        spoken_on: (0..).map(InterfaceId).zip(config.interfaces.iter().map(|i| i.ttl_security)).collect(),
        links: vec![Link::default(); config.interfaces.len()],
        ports: BTreeMap::new(),
        inputs_in,
        events,
        liveness,
        paths_in,
        wanted,
        reported,
        learned: Vec::new(),
        purge_at: None,
        adoption: Some(config.interfaces.iter().map(|i| i.dead()).max().unwrap_or_default() + ADOPTION),
        preparing: None,
        highest: None,
        stopped: false,
        recording: None,
    };
    Ok((commands_in, tokio::spawn(driver.run(commands, paths, inputs, end_routes, routes))))
}

struct Driver<V: Transport> {
    speaker: Machine<V>,
    started: Instant,
    /// When the speaker was last told the time of day.
    time_of_day_at: Option<Instant>,
    places: Places,
    /// The devices that are watched, by id.
    devices: watch::Sender<Vec<Named>>,
    /// The interfaces of the configuration, and whether each has TTL security.
    spoken_on: BTreeMap<InterfaceId, bool>,
    links: Vec<Link<V>>,
    ports: BTreeMap<InterfaceId, Port<V>>,
    inputs_in: mpsc::Sender<Input<V>>,
    events: broadcast::Sender<Event>,
    liveness: Option<Liveness>,
    /// Where it tells of failed paths.
    paths_in: mpsc::UnboundedSender<PathDown>,
    wanted: watch::Sender<Wanted>,
    /// What became of the routes in the kernel.
    reported: watch::Receiver<Report>,
    learned: Vec<Route>,
    /// When routes of an earlier run go that were not learned again.
    purge_at: Option<Instant>,
    /// How long after [`Input::Enable`] that is, until then.
    adoption: Option<Duration>,
    /// Who waits for the outcome of a restart that is being prepared.
    preparing: Option<oneshot::Sender<Result<Grace, RestartRefused>>>,
    /// Where the cryptographic sequence numbers go that are to be kept.
    highest: Option<watch::Sender<Option<u64>>>,
    stopped: bool,
    recording: Option<Recording<V>>,
}

/// A recording under way.
struct Recording<V: Transport> {
    recorder: Recorder<V>,
    lines: mpsc::Sender<String>,
    until: Instant,
}

impl<V: Transport> Driver<V> {
    async fn run(
        mut self,
        mut commands: mpsc::UnboundedReceiver<Command>,
        mut paths: mpsc::UnboundedReceiver<PathDown>,
        mut inputs: mpsc::Receiver<Input<V>>,
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
                    Some(Command::Enable) => self.handle(Input::Enable),
                    Some(Command::Announce(prefixes)) => self.handle(Input::Announce(prefixes)),
                    Some(Command::Protect(prefixes)) => self.handle(Input::Protect(prefixes)),
                    Some(Command::Reconfigure(config)) => self.reconfigure(config),
                    Some(Command::Liveness(liveness)) => {
                        liveness.join(V::IS_V6, self.paths_in.clone());
                        self.liveness = Some(liveness);
                    }
                    Some(Command::Status(answer)) => {
                        self.handle(Input::Timer); // so that ages are of now
                        let _ = answer.send(self.speaker.status()); // nobody waits any more
                    }
                    Some(Command::Lsdb(with_bodies, answer)) => {
                        self.handle(Input::Timer);
                        let _ = answer.send(self.speaker.lsdb(with_bodies)); // likewise
                    }
                    Some(Command::Routes(answer)) => drop(answer.send(self.routes())), // likewise
                    Some(Command::Settled(answer)) => drop(answer.send(self.speaker.is_settled())), // likewise
                    Some(Command::GraceLeft(answer)) => {
                        self.handle(Input::Timer); // so that it is what is left now
                        let _ = answer.send(self.speaker.grace_left()); // likewise
                    }
                    Some(Command::PrepareRestart(period, answer)) => {
                        self.preparing = Some(answer);
                        self.handle(Input::PrepareRestart { period });
                    }
                    Some(Command::CancelRestart) => self.handle(Input::CancelRestart),
                    Some(Command::Resume(grace)) => self.handle(Input::Resume(grace)),
                    Some(Command::KeepNumbers(earlier, highest, answer)) => {
                        self.highest = Some(highest);
                        self.handle(Input::Numbers(earlier));
                        let _ = answer.send(()); // nobody waits any more
                    }
                    Some(Command::Record { span, limit, lines }) => self.record(span, limit, lines),
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
                // Before the packets that wait: those of a neighbour whose path is gone are no news.
                Some(PathDown { interface, peer }) = paths.recv() => {
                    self.handle(Input::PathDown { interface, peer });
                }
                () = sleep_until(self.deadline()) => self.handle(Input::Timer),
                () = sleep_until(self.purge_at) => self.purge(),
                () = sleep_until(self.recording.as_ref().map(|recording| recording.until)) => {
                    self.end_recording(RecordingEnd::Time);
                }
                Some(input) = inputs.recv() => self.handle(input),
            }
        }
        self.end_recording(RecordingEnd::Stopped);
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

    fn handle(&mut self, input: Input<V>) {
        match &input {
            Input::Link { interface, link } => self.adopt_link(*interface, link),
            Input::Enable => {
                let at = self.adoption.take().and_then(|span| Instant::now().checked_add(span));
                self.purge_at = self.purge_at.or(at);
            }
            // Routes of the earlier life stay at least as long as the grace period may last.
            Input::Resume(Grace { period, .. }) => {
                let period = Duration::from_secs((*period).into());
                self.adoption = self.adoption.map(|span| span + period);
            }
            _ => {}
        }
        self.tell_time_of_day();
        self.feed(input);
    }

    /// Hands one input to the speaker and does what comes of it.
    fn feed(&mut self, input: Input<V>) {
        let now = self.now();
        let pending = self.recording.as_ref().map(|at| at.recorder.note(&self.speaker, now, &input));
        self.speaker.handle(now, input);
        let outputs: Vec<_> = std::iter::from_fn(|| self.speaker.poll_output()).collect();
        if let Some((recording, pending)) = self.recording.as_mut().zip(pending) {
            let step = recording.recorder.step(&self.speaker, &pending, &outputs);
            match step.map(|line| recording.lines.try_send(line)) {
                Some(Ok(())) => {}
                Some(Err(error)) => {
                    // Nobody reads any more, or not fast enough: packets do not wait for that.
                    tracing::warn!(version = V::NUMBER, %error, "OSPF recording broken off");
                    self.recording = None;
                }
                None => self.end_recording_at(now, RecordingEnd::Limit),
            }
        }
        for output in outputs {
            self.perform(output);
        }
    }

    /// Begins a recording, in place of one that is under way.
    fn record(&mut self, span: Duration, limit: usize, lines: mpsc::Sender<String>) {
        self.end_recording(RecordingEnd::Time);
        let Some((recorder, head)) = Recorder::begin(&self.speaker, limit) else {
            tracing::warn!(
                version = V::NUMBER,
                limit,
                "OSPF recording: the limit has no room for the databases"
            );
            return;
        };
        if lines.try_send(head).is_ok() {
            self.recording = Some(Recording { recorder, lines, until: Instant::now() + span });
        }
    }

    fn end_recording(&mut self, end: RecordingEnd) {
        self.end_recording_at(self.now(), end);
    }

    fn end_recording_at(&mut self, at: Time, end: RecordingEnd) {
        if let Some(recording) = self.recording.take() {
            // Without it the recording counts as cut off.
            let _ = recording.lines.try_send(self.speaker.end_of_recording(at, end));
        }
    }

    /// The clock may have been set since the last time.
    fn tell_time_of_day(&mut self) {
        if self.time_of_day_at.is_none_or(|at| at.elapsed() >= CLOCK_CHECK) {
            self.time_of_day_at = Some(Instant::now());
            let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
            self.feed(Input::TimeOfDay(now));
        }
    }

    /// Follows another configuration; interfaces may come and go with it.
    fn reconfigure(&mut self, config: Box<Config>) {
        let ids = self.places.admit(&config.interfaces);
        let spoken_on = ids.iter().copied().zip(config.interfaces.iter().map(|i| i.ttl_security)).collect();
        self.links.resize(self.places.names().len(), Link::default());
        let devices = devices(&self.places, &config);
        self.handle(Input::Reconfigure(config)); // takes leave where we go
        let before = std::mem::replace(&mut self.spoken_on, spoken_on);
        self.ports.retain(|id, _| self.spoken_on.contains_key(id));
        for id in ids.into_iter().filter(|id| !before.contains_key(id)) {
            // One that was there before is known already, and not told again.
            if let Some(link) = self.links.get(id.0).cloned() {
                self.handle(Input::Link { interface: id, link });
            }
        }
        self.devices.send_replace(devices);
    }

    /// Opens, closes or reopens the socket of an interface.
    fn adopt_link(&mut self, interface: InterfaceId, link: &Link<V>) {
        let Some(known) = self.links.get_mut(interface.0) else { return };
        let before = std::mem::replace(known, link.clone());
        if link.is_usable() && before.is_continued_by(link) && self.ports.contains_key(&interface) {
            return;
        }
        self.ports.remove(&interface);
        let attached = link.address.as_ref().filter(|_| link.is_usable());
        if let Some((attached, ttl_security)) = attached.zip(self.spoken_on.get(&interface).copied()) {
            let device = Device { index: link.index, ttl_security };
            match Port::open(interface, device, attached, self.inputs_in.clone()) {
                Ok(port) => drop(self.ports.insert(interface, port)),
                Err(error) => tracing::error!(?link, %error, "cannot open the OSPF socket of an interface"),
            }
        }
        self.publish_routes();
    }

    fn perform(&mut self, output: Output<V>) {
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
            Output::Watch(neighbors) => {
                if let Some(liveness) = &self.liveness {
                    liveness.watch(V::IS_V6, neighbors);
                }
            }
            Output::Reserve { highest } => {
                if let Some(kept) = &self.highest {
                    kept.send_replace(Some(highest));
                }
            }
            Output::Event(event) => {
                log(V::NUMBER, &event);
                let _ = self.events.send(event); // nobody may listen
            }
            Output::RestartPrepared(outcome) => {
                if let Some(answer) = self.preparing.take() {
                    let _ = answer.send(outcome); // nobody waits any more
                }
            }
            Output::Stopped => self.stopped = true,
        }
    }

    fn publish_routes(&mut self) {
        let device = |id: InterfaceId| self.links.get(id.0).filter(|link| link.index != 0);
        let hops = |route: &Route| {
            let hop = |hop: &crate::speaker::NextHop| {
                let (link, gateway) = (device(hop.interface)?, hop.gateway?);
                let beyond = |attached| V::is_beyond_prefix(attached, gateway);
                Some(Hop { index: link.index, gateway, onlink: link.address.as_ref().is_some_and(beyond) })
            };
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

    /// The routes with what became of them.
    fn routes(&self) -> Vec<RouteStatus> {
        let mut routes = self.speaker.route_status();
        let report = self.reported.borrow();
        for route in routes.iter_mut().filter(|route| route.reason.is_none()) {
            route.installed = report.installed.contains(&route.prefix);
            route.reason = (!route.installed).then(|| missing(route, &report));
        }
        routes
    }

    fn purge(&mut self) {
        self.purge_at = None;
        self.wanted.send_modify(|wanted| wanted.complete = true);
    }
}

/// What is to be known of every device that there ever was, by interface id.
fn devices(places: &Places, config: &Config) -> Vec<Named> {
    let named = |name: &String| {
        let unnumbered = config.interface(name).is_some_and(|interface| interface.unnumbered);
        Named { name: name.clone(), unnumbered }
    };
    places.names().iter().map(named).collect()
}

/// Why the kernel does not have a route that is meant for it.
fn missing(route: &RouteStatus, report: &Report) -> String {
    if let Some(refused) = report.refused.get(&route.prefix) {
        return refused.clone();
    }
    // Without a gateway it is not for us to install: the kernel knows its links.
    let on_link = !route.next_hops.is_empty() && route.next_hops.iter().all(|hop| hop.gateway.is_none());
    if on_link { "on a link of this director" } else { "not yet in the kernel" }.to_owned()
}

pub(super) async fn sleep_until(at: Option<Instant>) {
    match at {
        Some(at) => tokio::time::sleep_until(at).await,
        None => std::future::pending().await,
    }
}

fn log(version: u8, event: &Event) {
    match event {
        Event::Neighbor { interface, router, address, from, to, event } => {
            tracing::info!(version, interface, %router, %address, ?from, ?to, ?event, "OSPF neighbour");
        }
        Event::Interface { interface, from, to } => {
            tracing::info!(version, interface, ?from, ?to, "OSPF interface");
        }
        Event::Helping { interface, router, seconds } => {
            tracing::info!(version, interface, %router, seconds, "OSPF neighbour restarts gracefully: adjacency kept");
        }
        Event::HelpEnded { interface, router, reason } => {
            tracing::info!(version, interface, %router, %reason, "OSPF neighbour no longer helped");
        }
        Event::Resuming { seconds } => {
            tracing::info!(version, seconds, "OSPF resumes after a graceful restart");
        }
        Event::Resumed { reason } => {
            tracing::info!(version, %reason, "OSPF graceful restart is over");
        }
        Event::Refused { interface, source, reason, detail } => {
            tracing::warn!(version, interface, %source, ?reason, detail, "OSPF packet refused");
        }
        Event::Reminded { interface, router } => {
            tracing::info!(version, interface, %router, "OSPF neighbour says nothing new of the link: Router-LSA reordered");
        }
        Event::SendingKey { interface, key, algorithm, expired: false } => {
            tracing::info!(version, interface, key, algorithm, "OSPF sends with this key");
        }
        Event::SendingKey { interface, key, algorithm, expired: true } => {
            let remedy = "give the interface a key that is valid now";
            tracing::warn!(
                version,
                interface,
                key,
                algorithm,
                remedy,
                "no OSPF key is valid; the last one goes on"
            );
        }
        Event::Originated { lsa, sequence, flushed } => {
            tracing::debug!(version, lsa, sequence, flushed, "OSPF LSA originated");
        }
        Event::Damaged { lsa } => {
            let remedy = "test the memory of this machine, and restart the director";
            tracing::error!(
                version,
                lsa,
                remedy,
                "an LSA has changed in memory: forgotten, and asked for again"
            );
        }
        Event::RouterIdContested { lsa } => {
            let remedy = "change one of the two";
            tracing::error!(version, lsa, remedy, "another router originates LSAs under our router id");
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::{Report, RouteStatus, missing};
    use crate::speaker::{PathKind, RouteHop, Selection};

    fn route(gateways: &[Option<&str>]) -> RouteStatus {
        let hop = |gateway: &Option<&str>| RouteHop {
            interface: "eth1".to_owned(),
            gateway: gateway.map(|text| text.parse().expect("an address")),
        };
        RouteStatus {
            version: 2,
            prefix: "198.51.100.0/24".parse().expect("a prefix"),
            kind: PathKind::IntraArea,
            cost: 10,
            next_hops: gateways.iter().map(hop).collect(),
            selection: Selection::Wanted,
            installed: false,
            reason: None,
        }
    }

    #[test]
    fn a_route_without_a_gateway_is_not_waited_for() {
        let none = Report::default();
        assert_eq!(missing(&route(&[None]), &none), "on a link of this director");
        for gateways in [&[Some("192.0.2.1")][..], &[None, Some("192.0.2.1")], &[]] {
            assert_eq!(missing(&route(gateways), &none), "not yet in the kernel", "{gateways:?}");
        }
        let refused = BTreeMap::from([(route(&[]).prefix, "no room".to_owned())]);
        let report = Report { refused, ..Report::default() };
        assert_eq!(missing(&route(&[Some("192.0.2.1")]), &report), "no room");
    }
}
