//! A network in one process: speakers, segments between them, a clock, and faults drawn from a seed.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{Ipv4Addr, Ipv6Addr},
    time::Duration,
};

use ipnet::{IpNet, Ipv4Net, Ipv6Net};

use crate::{
    Time,
    announce::Announcement,
    config::{Config, ExternalConfig, InterfaceConfig, Metric},
    packet::{
        self, V2,
        v3::{self, V3},
        wire::Version,
    },
    speaker::recording::{Recorder, RecordingEnd},
    speaker::{
        Attached6, Event, Grace, Input, InterfaceId, Link, Machine, NeighborState, Output, Protocol,
        RestartRefused, Route, Scope, Status, Stop, Watched,
    },
};

/// A network of OSPFv2 speakers.
pub(super) type Simulator = Network<V2>;
/// A network of OSPFv3 speakers.
pub(super) type Simulator6 = Network<V3>;

/// What the simulator needs to know of a version.
pub(super) trait Family: Protocol {
    /// Prefixes that are announced.
    type Net: Copy + Into<IpNet>;
    /// LS type of a Router-LSA.
    const ROUTER: Self::Kind;

    /// Addresses of a member of a segment.
    fn attached(segment: u8, host: u8) -> Self::Attached;

    /// Whether a packet to `destination` reaches somebody else than its address.
    fn is_multicast(destination: Self::Address) -> bool;
}

impl Family for V2 {
    type Net = Ipv4Net;
    const ROUTER: u8 = packet::ROUTER;

    fn attached(segment: u8, host: u8) -> Ipv4Net {
        Ipv4Net::new_assert(Ipv4Addr::new(10, 0, segment, host), 24)
    }

    fn is_multicast(destination: Ipv4Addr) -> bool {
        destination.is_multicast()
    }
}

impl Family for V3 {
    type Net = Ipv6Net;
    const ROUTER: v3::LsType = v3::ROUTER;

    fn attached(segment: u8, host: u8) -> Attached6 {
        let prefix = Ipv6Net::new_assert(Ipv6Addr::new(0x2001, 0xdb8, segment.into(), 0, 0, 0, 0, 0), 64);
        let link_local = Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, segment.into(), host.into());
        let address = Ipv6Addr::from(u128::from(prefix.addr()) | u128::from(host));
        Attached6 { link_local, prefixes: [prefix].into(), addresses: [address].into() }
    }

    fn is_multicast(destination: Ipv6Addr) -> bool {
        destination.is_multicast()
    }
}

/// The time of day at which a simulation starts: 2027-01-15 08:00:00 UTC.
pub(super) const START: Duration = Duration::from_secs(1_800_000_000);

/// Router id of a node.
pub(super) fn id(node: usize) -> Ipv4Addr {
    Ipv4Addr::new(10, 255, 0, u8::try_from(node + 1).expect("few nodes"))
}

/// What happens to packets on the way, in percent.
#[derive(Clone, Copy, Default)]
pub(super) struct Faults {
    pub(super) loss: u64,
    pub(super) duplicate: u64,
    /// Added to the delay of each packet, at most; more than the gap between packets reorders them.
    pub(super) jitter: Duration,
}

struct Node<V: Protocol> {
    router: Ipv4Addr,
    interfaces: Vec<(InterfaceConfig, Link<V>)>,
    speaker: Option<Machine<V>>,
    born: Duration,
    /// When the speaker wants to be asked again.
    deadline: Option<Duration>,
    routes: Vec<Route>,
    watched: BTreeSet<Watched>,
    events: Vec<Event>,
    stopped: bool,
    prepared: Option<Result<Grace, RestartRefused>>,
    /// What it asked to keep of its sequence numbers, over its lives.
    reserved: Option<u64>,
    /// What was recorded, and the recorder unless it has ended.
    recording: Option<(Option<Recorder<V>>, String)>,
    runs: u32,
}

struct Delivery<V: Protocol> {
    node: usize,
    interface: InterfaceId,
    source: V::Address,
    destination: V::Address,
    payload: Vec<u8>,
}

/// A packet on its way, whoever it reaches.
#[derive(Debug)]
pub(super) struct Sent<V: Protocol> {
    pub(super) at: Duration,
    pub(super) node: usize,
    pub(super) interface: InterfaceId,
    pub(super) destination: V::Address,
    pub(super) payload: Vec<u8>,
}

/// Source, destination and payload of a packet.
pub(super) type Heard<V> = (<V as Version>::Address, <V as Version>::Address, Vec<u8>);

/// The network.
pub(super) struct Network<V: Family> {
    nodes: Vec<Node<V>>,
    segments: Vec<Vec<(usize, InterfaceId)>>,
    down: BTreeSet<usize>,
    /// Segments that lose every packet, which nobody is told.
    cut: BTreeSet<usize>,
    queue: BTreeMap<(Duration, u64), Delivery<V>>,
    now: Duration,
    sent: u64,
    random: u64,
    trace: Vec<String>,
    /// Whether outputs are written down for [`Network::trace`].
    pub(super) is_traced: bool,
    /// What node 0 sends, where somebody wants to see it.
    pub(super) said: Option<Vec<Vec<u8>>>,
    /// Everything that anybody sends, lost or not, where somebody wants to see it.
    pub(super) wire: Option<Vec<Sent<V>>>,
    /// Deliveries to node 0, where somebody wants to see them: source, destination, payload.
    pub(super) tap: Option<Vec<Heard<V>>>,
    /// What time of day nodes that start believe it was when the simulation began.
    pub(super) time_of_day: Duration,
    /// Whether nodes have a place for their sequence numbers that outlives them.
    pub(super) keeps_numbers: bool,
    /// Bytes of the largest packet that was sent.
    pub(super) largest: usize,
    pub(super) faults: Faults,
    /// Of all nodes that start from now on.
    pub(super) external: ExternalConfig,
    pub(super) aggregates: Vec<IpNet>,
}

impl<V: Family> Network<V> {
    pub(super) fn new(seed: u64) -> Self {
        Self {
            nodes: Vec::new(),
            segments: Vec::new(),
            down: BTreeSet::new(),
            cut: BTreeSet::new(),
            queue: BTreeMap::new(),
            now: Duration::ZERO,
            sent: 0,
            random: seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1,
            trace: Vec::new(),
            is_traced: true,
            said: None,
            wire: None,
            tap: None,
            time_of_day: START,
            keeps_numbers: false,
            largest: 0,
            faults: Faults::default(),
            external: ExternalConfig::default(),
            aggregates: Vec::new(),
        }
    }

    /// A number below another one.
    pub(super) fn draw(&mut self, below: u64) -> u64 {
        self.random ^= self.random << 13;
        self.random ^= self.random >> 7;
        self.random ^= self.random << 17;
        self.random % below.max(1)
    }

    /// Connects nodes; each gets one more interface.
    pub(super) fn segment(&mut self, members: &[(usize, InterfaceConfig)]) {
        let number = u8::try_from(self.segments.len()).expect("few segments");
        let mut segment = Vec::new();
        for (at, (node, config)) in members.iter().enumerate() {
            while self.nodes.len() <= *node {
                let router = id(self.nodes.len());
                self.nodes.push(Node {
                    router,
                    interfaces: Vec::new(),
                    speaker: None,
                    born: Duration::ZERO,
                    deadline: None,
                    routes: Vec::new(),
                    watched: BTreeSet::new(),
                    events: Vec::new(),
                    stopped: false,
                    prepared: None,
                    reserved: None,
                    recording: None,
                    runs: 0,
                });
            }
            let interface = self.nodes[*node].interfaces.len();
            let host = u8::try_from(at + 1).expect("few members");
            let index = u32::try_from(interface + 1).expect("few interfaces");
            let link = Link { up: true, index, mtu: 1500, address: Some(V::attached(number, host)) };
            let config = InterfaceConfig { name: format!("eth{interface}"), ..config.clone() };
            self.nodes[*node].interfaces.push((config, link));
            segment.push((*node, InterfaceId(interface)));
        }
        self.segments.push(segment);
    }

    pub(super) fn rename(&mut self, node: usize, router: Ipv4Addr) {
        self.nodes[node].router = router;
    }

    /// (Re)starts every node.
    pub(super) fn start(&mut self) {
        for node in 0..self.nodes.len() {
            self.restart(node);
        }
    }

    pub(super) fn restart(&mut self, at: usize) {
        self.restart_with(at, None);
    }

    /// Restarts a node, gracefully if it has what its earlier life left it.
    pub(super) fn restart_with(&mut self, at: usize, grace: Option<Grace>) {
        let now = self.now;
        let node = &mut self.nodes[at];
        let interfaces = node.interfaces.iter().map(|(config, _)| config.clone()).collect();
        node.runs += 1;
        let seed = node.runs * 1000;
        let (external, aggregates) = (self.external, self.aggregates.clone());
        let config = Config { external, aggregates, ..Config::new(node.router, interfaces) };
        node.speaker = Some(Machine::new(config, seed).expect("valid"));
        node.born = now;
        (node.stopped, node.prepared) = (false, None);
        node.routes.clear();
        let links: Vec<_> = node.interfaces.iter().map(|(_, link)| link.clone()).collect();
        self.input(at, Input::TimeOfDay(self.time_of_day + now));
        if self.keeps_numbers {
            let earlier = self.nodes[at].reserved;
            self.input(at, Input::Numbers(earlier));
        }
        if let Some(grace) = grace {
            self.input(at, Input::Resume(grace));
        }
        self.input(at, Input::Enable);
        for (interface, link) in links.into_iter().enumerate() {
            self.input(at, Input::Link { interface: InterfaceId(interface), link });
        }
    }

    pub(super) fn kill(&mut self, node: usize) {
        (self.nodes[node].speaker, self.nodes[node].deadline) = (None, None);
    }

    pub(super) fn stop(&mut self, node: usize, stop: Stop) {
        self.input(node, Input::Stop(stop));
    }

    pub(super) fn announce(&mut self, node: usize, prefixes: &[(V::Net, Metric)]) {
        let stubs: Vec<_> =
            prefixes.iter().map(|(net, metric)| (*net, Announcement::stub(*metric))).collect();
        self.announce_as(node, &stubs);
    }

    pub(super) fn announce_as(&mut self, node: usize, prefixes: &[(V::Net, Announcement)]) {
        let prefixes = prefixes.iter().map(|(net, announcement)| ((*net).into(), *announcement));
        self.input(node, Input::Announce(prefixes.collect()));
    }

    /// The speaker of a living node.
    pub(super) fn machine(&mut self, node: usize) -> &mut Machine<V> {
        self.nodes[node].speaker.as_mut().expect("alive")
    }

    /// Takes a segment down or up, as all its members see.
    pub(super) fn set_link(&mut self, segment: usize, up: bool) {
        if up {
            self.down.remove(&segment)
        } else {
            self.down.insert(segment)
        };
        for (node, interface) in self.segments[segment].clone() {
            self.nodes[node].interfaces[interface.0].1.up = up;
            let link = self.nodes[node].interfaces[interface.0].1.clone();
            self.input(node, Input::Link { interface, link });
        }
    }

    /// Makes a segment lose every packet, or none again.
    pub(super) fn cut(&mut self, segment: usize, cut: bool) {
        if cut {
            self.cut.insert(segment)
        } else {
            self.cut.remove(&segment)
        };
    }

    /// What came of a restart that was prepared.
    pub(super) fn prepared(&self, node: usize) -> Option<&Result<Grace, RestartRefused>> {
        self.nodes[node].prepared.as_ref()
    }

    pub(super) fn mtu(&mut self, node: usize, interface: usize, mtu: u16) {
        self.nodes[node].interfaces[interface].1.mtu = mtu;
        let link = self.nodes[node].interfaces[interface].1.clone();
        self.input(node, Input::Link { interface: InterfaceId(interface), link });
    }

    /// Changes what a node's link looks like.
    pub(super) fn change_link(&mut self, node: usize, at: usize, change: impl FnOnce(&mut Link<V>)) {
        change(&mut self.nodes[node].interfaces[at].1);
        let link = self.nodes[node].interfaces[at].1.clone();
        self.input(node, Input::Link { interface: InterfaceId(at), link });
    }

    /// The body of a backbone area's LSA as a node holds it.
    pub(super) fn body_of(&self, node: usize, kind: V::Kind, router: Ipv4Addr) -> Vec<u8> {
        self.body_in(node, Ipv4Addr::UNSPECIFIED, kind, router)
    }

    /// The same of any area's.
    pub(super) fn body_in(&self, node: usize, area: Ipv4Addr, kind: V::Kind, router: Ipv4Addr) -> Vec<u8> {
        let speaker = self.nodes[node].speaker.as_ref().expect("alive");
        let mut held = speaker.living(Scope::Area(area));
        let (_, lsa) = held.find(|(key, _)| key.kind == kind && key.router == router).expect("held");
        lsa.body().to_vec()
    }

    /// Begins to record what a node is told.
    pub(super) fn record(&mut self, at: usize) {
        self.record_up_to(at, usize::MAX);
    }

    /// The same, into so many bytes.
    pub(super) fn record_up_to(&mut self, at: usize, limit: usize) {
        let node = &mut self.nodes[at];
        let begun = node.speaker.as_ref().and_then(|speaker| Recorder::begin(speaker, limit));
        node.recording = begun.map(|(recorder, head)| (Some(recorder), head));
    }

    /// The recording, which ends if it has not.
    pub(super) fn recorded(&mut self, at: usize) -> String {
        let now = self.now;
        let node = &mut self.nodes[at];
        let (recorder, lines) = node.recording.take().expect("begun");
        let at = Time::from_start(now - node.born);
        if recorder.is_none() {
            return lines;
        }
        lines + &node.speaker.as_ref().expect("alive").end_of_recording(at, RecordingEnd::Time)
    }

    pub(super) fn input(&mut self, at: usize, input: Input<V>) {
        let now = self.now;
        let node = &mut self.nodes[at];
        let Some(speaker) = &mut node.speaker else { return };
        let time = Time::from_start(now - node.born);
        let recorder = node.recording.as_ref().and_then(|(recorder, _)| recorder.as_ref());
        let pending = recorder.map(|recorder| recorder.note(speaker, time, &input));
        speaker.handle(time, input);
        let outputs: Vec<_> = std::iter::from_fn(|| speaker.poll_output()).collect();
        node.deadline = speaker.next_deadline().map(|deadline| node.born + deadline.since_start());
        if let Some(((recorder, lines), pending)) = node.recording.as_mut().zip(pending) {
            let line = recorder.as_mut().and_then(|recorder| recorder.step(speaker, &pending, &outputs));
            lines.push_str(&line.unwrap_or_else(|| {
                *recorder = None;
                speaker.end_of_recording(time, RecordingEnd::Limit)
            }));
        }
        for output in outputs {
            if self.is_traced {
                self.trace.push(format!("{now:?} {at} {output:?}"));
            }
            match output {
                Output::Send { interface, destination, payload } => {
                    self.transmit(at, interface, destination, &payload);
                }
                Output::Routes(routes) => self.nodes[at].routes = routes,
                Output::Event(event) => self.nodes[at].events.push(event),
                Output::RestartPrepared(outcome) => self.nodes[at].prepared = Some(outcome),
                Output::Stopped => self.nodes[at].stopped = true,
                Output::Watch(watched) => self.nodes[at].watched = watched,
                Output::Reserve { highest } => self.nodes[at].reserved = Some(highest),
                Output::DesignatedGroup { .. } => {}
            }
        }
    }

    fn transmit(&mut self, from: usize, interface: InterfaceId, destination: V::Address, payload: &[u8]) {
        if let Some(said) = self.said.as_mut().filter(|_| from == 0) {
            said.push(payload.to_vec());
        }
        if let Some(wire) = &mut self.wire {
            let payload = payload.to_vec();
            wire.push(Sent { at: self.now, node: from, interface, destination, payload });
        }
        let on = |members: &Vec<(usize, InterfaceId)>| members.contains(&(from, interface));
        let Some(segment) =
            self.segments.iter().position(on).filter(|at| !self.down.contains(at) && !self.cut.contains(at))
        else {
            return;
        };
        self.largest = self.largest.max(payload.len());
        let source = self.address_of(from, interface.0);
        for (node, interface) in self.segments[segment].clone() {
            let own = self.address_of(node, interface.0);
            if node == from || !(V::is_multicast(destination) || destination == own) {
                continue;
            }
            let copies = if self.draw(100) < self.faults.duplicate { 2 } else { 1 };
            for _ in 0..copies {
                if self.draw(100) < self.faults.loss {
                    continue;
                }
                let jitter = u64::try_from(self.faults.jitter.as_micros()).expect("short");
                let delay = Duration::from_micros(200 + self.draw(jitter));
                self.sent += 1;
                let payload = payload.to_vec();
                let delivery = Delivery { node, interface, source, destination, payload };
                self.queue.insert((self.now + delay, self.sent), delivery);
            }
        }
    }

    /// The next thing that happens, not after `limit`; false if there is none.
    fn step(&mut self, limit: Duration) -> bool {
        let timer = |(at, node): (usize, &Node<V>)| Some((node.deadline?, at));
        let timer = self.nodes.iter().enumerate().filter_map(timer).min();
        let packet = self.queue.first_key_value().map(|((at, _), _)| *at);
        let next = timer.map(|(at, _)| at).into_iter().chain(packet).min();
        let Some(next) = next.filter(|next| *next <= limit) else {
            self.now = limit;
            return false;
        };
        self.now = self.now.max(next);
        if packet == Some(next) {
            let (_, delivery) = self.queue.pop_first().expect("not empty");
            let Delivery { node, interface, source, destination, payload } = delivery;
            if let Some(tap) = self.tap.as_mut().filter(|_| node == 0) {
                tap.push((source, destination, payload.clone()));
            }
            self.input(node, Input::Packet { interface, source, destination, payload });
        } else if let Some((_, node)) = timer {
            self.input(node, Input::Timer);
        }
        true
    }

    pub(super) fn run(&mut self, span: Duration) {
        let limit = self.now + span;
        while self.step(limit) {}
    }

    /// Runs until `holds`, which must be within `span`.
    #[track_caller]
    pub(super) fn until(&mut self, span: Duration, holds: impl Fn(&Self) -> bool) {
        let limit = self.now + span;
        while !holds(self) {
            assert!(self.step(limit), "not within {span:?}; {}", self.describe());
        }
    }

    fn describe(&self) -> String {
        let line = |(at, node): (usize, &Node<V>)| match &node.speaker {
            None => format!("\n{at}: dead"),
            Some(speaker) => {
                let status = speaker.status();
                let neighbors: Vec<_> = status
                    .neighbors
                    .iter()
                    .map(|n| (n.router_id, n.state, n.requested, n.unacknowledged))
                    .collect();
                let lsdb: Vec<_> =
                    status.lsdb.iter().map(|l| (l.kind, l.id, l.sequence as i32, l.age)).collect();
                format!("\n{at}: {neighbors:?}\n   {lsdb:?}\n   {:?} {:?}", node.routes, status.counters)
            }
        };
        self.nodes.iter().enumerate().map(line).collect()
    }

    pub(super) fn trace(self) -> Vec<String> {
        self.trace
    }

    pub(super) fn status(&self, node: usize) -> Status {
        self.nodes[node].speaker.as_ref().expect("alive").status()
    }

    pub(super) fn events(&self, node: usize) -> &[Event] {
        &self.nodes[node].events
    }

    pub(super) fn watched(&self, node: usize) -> &BTreeSet<Watched> {
        &self.nodes[node].watched
    }

    pub(super) fn has_stopped(&self, node: usize) -> bool {
        self.nodes[node].stopped
    }

    fn address_of(&self, node: usize, interface: usize) -> V::Address {
        V::address(self.nodes[node].interfaces[interface].1.address.as_ref().expect("has one"))
    }

    /// How others name a node as designated router of its first network.
    pub(super) fn address(&self, node: usize) -> Ipv4Addr {
        V::identity(self.nodes[node].router, self.address_of(node, 0))
    }

    pub(super) fn designated(&self, node: usize) -> Ipv4Addr {
        self.status(node).interfaces[0].dr
    }

    /// Full neighbours of a node.
    pub(super) fn full(&self, node: usize) -> usize {
        self.status(node).neighbors.iter().filter(|n| n.state == NeighborState::Full).count()
    }

    /// Whether this many directions are full in the whole network.
    pub(super) fn all_full(&self, count: usize) -> bool {
        (0..self.nodes.len()).map(|node| self.full(node)).sum::<usize>() == count
    }

    pub(super) fn neighbor_state(&self, node: usize, neighbor: usize) -> Option<NeighborState> {
        let neighbors = self.status(node).neighbors;
        neighbors.iter().find(|n| n.router_id == id(neighbor)).map(|n| n.state)
    }

    /// The same of what is flooded beyond a link.
    pub(super) fn databases_agree(&self) -> bool {
        let view = |node: &Node<V>| {
            let lsdb = node.speaker.as_ref()?.status().lsdb;
            let shared = lsdb.into_iter().filter(|lsa| !lsa.scope.starts_with("link"));
            Some(shared.map(|l| (l.kind, l.id, l.router, l.sequence, l.checksum)).collect::<Vec<_>>())
        };
        let views: BTreeSet<_> = self.nodes.iter().filter_map(view).collect();
        views.len() == 1
    }

    /// Whether all living nodes hold the same instances.
    pub(super) fn databases_equal(&self) -> bool {
        let view = |node: &Node<V>| {
            let speaker = node.speaker.as_ref()?;
            let lsdb = speaker.status().lsdb;
            let instance = |l: &crate::speaker::LsaStatus| (l.kind, l.id, l.router, l.sequence, l.checksum);
            Some(lsdb.iter().map(instance).collect::<Vec<_>>())
        };
        let views: BTreeSet<_> = self.nodes.iter().filter_map(view).collect();
        views.len() == 1
    }

    pub(super) fn lsa_count(&self, node: usize, kind: V::Kind) -> usize {
        let kind: u16 = kind.into();
        self.status(node).lsdb.iter().filter(|l| l.kind == kind).count()
    }

    /// Sequence number of a Router-LSA as a node holds it.
    pub(super) fn sequence(&self, node: usize, router: Ipv4Addr) -> Option<u32> {
        let (lsdb, kind) = (self.status(node).lsdb, V::ROUTER.into());
        lsdb.iter().find(|l| l.kind == kind && l.router == router).map(|l| l.sequence)
    }

    /// What a node last handed out for its kernel.
    pub(super) fn routes(&self, node: usize) -> &[Route] {
        &self.nodes[node].routes
    }

    pub(super) fn hops(&self, node: usize, prefix: V::Net) -> usize {
        let prefix = prefix.into();
        let route = self.nodes[node].routes.iter().find(|route| route.prefix == prefix);
        route.map_or(0, |route| route.next_hops.len())
    }

    pub(super) fn cost(&self, node: usize, prefix: V::Net) -> Option<u32> {
        let prefix = prefix.into();
        self.nodes[node].routes.iter().find(|route| route.prefix == prefix).map(|route| route.cost)
    }
}
