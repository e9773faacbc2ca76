//! A cluster of replicas on a virtual clock, over a network that loses, delays, reorders, corrupts and parts, with nodes
//! that are slow to load tables or refuse to, and with clients (`traffic`).
//!
//! Two sorts of histories are tried. Those that `end_in_agreement` may do anything to a cluster, lost disks and links that
//! work one way included, and must end well. Those that `misroute_nothing` leave it disks and symmetric links, and are
//! checked at every moment: each director's epochs only rise, an epoch has one content, a director that serves has at
//! least prepared what any other forwards by, or given it up less than a margin ago, no packet of a connection meets another real server than its own, and
//! no epoch is under way for longer than the stated bound.
//!
//! Everything follows from one seed. `SYNCD_SEED=… cargo test -p syncd histories` replays a history that failed,
//! `SYNCD_HISTORIES=5000` tries more of them than usual.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;
use std::time::{Duration, Instant};

use director_proto::definitions::Definitions;
use director_proto::health::{Health, RealId};
use director_proto::sync::{BootId, Hello, Message, Phase, Prepare, Report};
use director_proto::tables::{Digest, Epoch, SMALL_SLOTS, ServiceTable, TableReal, Version};

use super::*;
use traffic::{Clients, Kernel};

mod traffic;
mod wishes;

/// Time for the switches to follow a director that withdraws.
const WITHDRAWAL: Duration = Duration::from_millis(200);

/// Between two looks at the whole cluster.
const LOOK: Duration = Duration::from_millis(50);

/// SplitMix64: short, and the same everywhere.
pub(super) struct Random(u64);

impl Random {
    pub(super) fn new(seed: u64) -> Self {
        Self(seed)
    }

    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    pub(super) fn below(&mut self, bound: u64) -> u64 {
        self.next() % bound
    }

    fn chance(&mut self, percent: u64) -> bool {
        self.below(100) < percent
    }
}

#[derive(Clone)]
enum Payload {
    Report(Report),
    Message(Message),
}

struct Parcel {
    from: usize,
    hello: Hello,
    to: usize,
    payload: Payload,
}

/// One director: what survives a crash, and what does not.
pub(super) struct Node {
    pub(super) replica: Option<Replica>,
    pub(super) disk: Option<Saved>,
    pub(super) events: Vec<Event>,
    pub(super) sent: Vec<(Ipv4Addr, Message)>,
    boots: u64,
    last_epoch: Option<Epoch>,
    /// Tables the node was asked for and has not proposed yet.
    wanted: bool,
    /// What its health checks say.
    pub(super) observed: BTreeMap<RealId, Health>,
    /// Nothing is loaded or put in force before this.
    pub(super) stuck_until: Option<Instant>,
    /// Loads nothing, or puts nothing in force.
    pub(super) refuses: Refuses,
    /// What it has to load or put in force, and when that is done.
    work: Vec<(Instant, Event)>,
    kernel: Kernel,
    /// What the kernel forwards by.
    fed: Option<Version>,
    /// What the kernel is prepared for.
    loaded: Option<(Arc<TableSet>, Version)>,
    /// What it was prepared for and has given up, and when: the slots concerned are held for a margin from then on.
    given_up: Vec<(Epoch, Instant)>,
    /// What others want of it as the leader, each with the epoch that carries it.
    wished: Vec<(Ipv4Addr, u64, Arc<Definitions>, Option<Epoch>)>,
    /// What it wants itself, and what has become of it.
    pub(super) wish: Option<(u64, u64)>,
    pub(super) outcomes: Vec<Outcome>,
    /// When the epoch under way was prepared.
    under_way: Option<Instant>,
    /// It has not learned yet how slots stand.
    windows_due: bool,
    /// Until when the switches bring it packets, once it does not serve any more.
    reached_until: Option<Instant>,
    /// Since when an epoch is under way that it leads.
    leading_since: Option<(Arc<Prepare>, Instant)>,
}

/// What a node's data plane does not do.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum Refuses {
    #[default]
    Nothing,
    ToLoad,
    ToApply,
}

/// How bad the network is, in percent.
#[derive(Clone, Copy, Default)]
pub(super) struct Weather {
    pub(super) loss: u64,
    pub(super) corruption: u64,
    pub(super) longest_delay_ms: u64,
}

pub(super) struct Cluster {
    began: Instant,
    pub(super) now: Instant,
    pub(super) nodes: Vec<Node>,
    pub(super) weather: Weather,
    /// Pairs that cannot reach each other.
    pub(super) cut: BTreeSet<(usize, usize)>,
    /// Pairs between which only heartbeats pass.
    pub(super) stalled: BTreeSet<(usize, usize)>,
    random: Random,
    in_flight: BTreeMap<(Instant, u64), Parcel>,
    sequence: u64,
    /// Contents decided under each epoch; two would be a violation.
    decided: BTreeMap<Epoch, Digest>,
    /// What the definitions say in tables that were in force somewhere.
    in_force: BTreeMap<Digest, Definitions>,
    wishes: u64,
    pub(super) disks_may_fail: bool,
    pub(super) isolation: Isolation,
    /// Directors that know nothing of each other serve, or have served.
    is_split: bool,
    /// How the slots stood when they were last printed.
    traced: String,
    /// Clients, where they are looked after, and when to look next.
    clients: Option<(Clients, Instant)>,
}

pub(super) fn id(node: usize) -> Ipv4Addr {
    Ipv4Addr::new(10, 255, 0, u8::try_from(node + 1).expect("few nodes"))
}

/// How an operator would write a service.
fn definition(salt: u64) -> Arc<str> {
    format!("salt = {salt}").into()
}

/// A service whose table is a function of `salt`.
pub(super) fn services(salt: u64) -> BTreeMap<String, ServiceTable> {
    let real =
        |index| TableReal { address: IpAddr::from([10, 0, 2, index]), port: 80, weight: 1, dead: false };
    let whole = salt;
    let salt = usize::try_from(salt % 1_000_003).expect("small");
    // A few slots differ between two salts, so that changes travel as deltas.
    let mut slots: Vec<u16> = (0..SMALL_SLOTS).map(|slot| (slot % 4) as u16).collect();
    for step in 0..100 {
        slots[(salt * 31 + step * 7) % SMALL_SLOTS] = (salt % 4) as u16;
    }
    for (place, slot) in slots.iter_mut().take(traffic::SLOTS).enumerate() {
        *slot = (salt >> (2 * place) & 3) as u16;
    }
    let table = ServiceTable {
        scheduler: "mh".into(),
        reals: (11..15).map(real).collect(),
        slots: slots.into(),
        definition: definition(whole),
    };
    BTreeMap::from([("web".to_owned(), table)])
}

/// One of the real servers that checks are made of.
pub(super) fn real(number: u64) -> RealId {
    let host = u8::try_from(11 + number).expect("few real servers");
    RealId { service: "web".into(), address: IpAddr::from([10, 0, 2, host]), port: 80 }
}

impl Cluster {
    pub(super) fn new(seed: u64, size: usize) -> Self {
        let now = Instant::now();
        let node = || Node {
            replica: None,
            disk: None,
            events: Vec::new(),
            sent: Vec::new(),
            boots: 0,
            last_epoch: None,
            wanted: false,
            observed: BTreeMap::new(),
            stuck_until: None,
            refuses: Refuses::Nothing,
            work: Vec::new(),
            kernel: Kernel::new(now),
            fed: None,
            loaded: None,
            given_up: Vec::new(),
            wished: Vec::new(),
            wish: None,
            outcomes: Vec::new(),
            under_way: None,
            windows_due: false,
            reached_until: None,
            leading_since: None,
        };
        Self {
            began: now,
            now,
            nodes: (0..size).map(|_| node()).collect(),
            weather: Weather { longest_delay_ms: 5, ..Weather::default() },
            cut: BTreeSet::new(),
            stalled: BTreeSet::new(),
            random: Random::new(seed),
            in_flight: BTreeMap::new(),
            sequence: 0,
            decided: BTreeMap::new(),
            in_force: BTreeMap::new(),
            wishes: 0,
            disks_may_fail: false,
            isolation: Isolation::Withdraw,
            is_split: false,
            traced: String::new(),
            clients: None,
        }
    }

    pub(super) fn start(&mut self, index: usize) {
        let (size, isolation) = (self.nodes.len(), self.isolation);
        let node = &mut self.nodes[index];
        node.boots += 1;
        node.last_epoch = None;
        node.wanted = false;
        node.observed.clear();
        node.events.clear();
        node.work.clear();
        node.wished.clear();
        node.wish = None;
        node.fed = None;
        node.windows_due = false;
        node.loaded = None;
        node.given_up.clear();
        node.reached_until = None;
        node.leading_since = None;
        node.stuck_until = None;
        node.refuses = Refuses::Nothing;
        let settings = Settings {
            cluster: "edge".into(),
            router_id: id(index),
            boot_id: BootId(node.boots * 1000 + index as u64),
            endpoint: format!("{}:7000", id(index)),
            software: "test".into(),
            expected_peers: size - 1,
            grace: Duration::from_secs(3),
            heartbeat: Duration::from_millis(200),
            dead: Duration::from_secs(1),
            isolation,
        };
        node.replica = Some(Replica::new(self.now, settings, Digest([0; 32]), node.disk.clone()));
        self.with(index, |replica, now| replica.handle(now, Input::Tick));
    }

    pub(super) fn start_all(&mut self) {
        (0..self.nodes.len()).for_each(|index| self.start(index));
    }

    pub(super) fn crash(&mut self, index: usize) {
        self.nodes[index].replica = None;
        self.nodes[index].work.clear();
    }

    pub(super) fn replica(&self, index: usize) -> &Replica {
        self.nodes[index].replica.as_ref().expect("running")
    }

    /// Parts the nodes of `side` from the rest.
    pub(super) fn part(&mut self, side: &[usize]) {
        for one in 0..self.nodes.len() {
            for other in 0..self.nodes.len() {
                if side.contains(&one) != side.contains(&other) {
                    self.cut.insert((one, other));
                }
            }
        }
    }

    /// Lets `action` work on a replica and carries out what comes of it.
    pub(super) fn with<T>(&mut self, index: usize, action: impl FnOnce(&mut Replica, Instant) -> T) -> T {
        let mut replica = self.nodes[index].replica.take().expect("running");
        let result = action(&mut replica, self.now);
        assert!(replica.next_deadline() > self.now, "node {index} would spin");
        let hello = replica.hello();
        while let Some(output) = replica.poll_output() {
            self.carry_out(index, &hello, output);
        }
        let standing = replica.standing();
        assert_eq!(standing == Standing::Joining, replica.version().is_none(), "node {index}: {standing}");
        self.nodes[index].replica = Some(replica);
        result
    }

    fn carry_out(&mut self, index: usize, hello: &Hello, output: Output) {
        match output {
            Output::Beat(report) => {
                for to in (0..self.nodes.len()).filter(|to| *to != index) {
                    self.post(index, hello, to, Payload::Report(report.clone()));
                }
            }
            Output::Send { to, message } => {
                self.nodes[index].sent.push((to, message.clone()));
                let to = (0..self.nodes.len()).find(|node| id(*node) == to).expect("a known node");
                self.post(index, hello, to, Payload::Message(message));
            }
            Output::Store(saved) => self.nodes[index].disk = Some(saved),
            Output::Event(event) => self.note(index, event),
        }
    }

    fn note(&mut self, index: usize, event: Event) {
        if std::env::var_os("SYNCD_SEED").is_some() {
            println!("{:>9.3} {index}: {event}", (self.now - self.began).as_secs_f64());
        }
        let node = &mut self.nodes[index];
        match &event {
            Event::NeedTables { previous: None } => node.wanted = true,
            Event::Prepare { .. }
            | Event::RolledBack { .. }
            | Event::Windows { .. }
            | Event::WindowsWanted { .. } => self.give_work(index, event.clone()),
            Event::TablesInForce { tables, .. } => {
                let epoch = tables.epoch;
                assert!(node.last_epoch.is_none_or(|last| last < epoch), "node {index} went back to {epoch}");
                node.last_epoch = Some(epoch);
                let digest = tables.digest();
                let first = *self.decided.entry(epoch).or_insert(digest);
                assert!(first == digest || self.disks_may_fail, "epoch {epoch} names two contents");
                let definitions = tables.services.iter();
                let definitions =
                    definitions.map(|(name, table)| (name.clone(), Arc::clone(&table.definition)));
                self.in_force.insert(digest, definitions.collect());
                self.give_work(index, event.clone());
            }
            Event::Wished { from, id, definitions } => {
                node.wished.retain(|(other, ..)| other != from);
                node.wished.push((*from, *id, Arc::clone(definitions), None));
            }
            Event::WishDecided { id, outcome } => {
                let (own, salt) = node.wish.take().expect("a wish");
                assert_eq!(own, *id, "node {index}: the outcome of another wish");
                if let Ok(version) = outcome {
                    let definitions = self.in_force.get(&version.digest);
                    let carried = definitions.and_then(|definitions| definitions.get("web"));
                    assert_eq!(
                        carried,
                        Some(&definition(salt)),
                        "node {index}: {version} carries something else"
                    );
                }
                node.outcomes.push(outcome.clone());
            }
            _ => {}
        }
        self.nodes[index].events.push(event);
    }

    /// The node has something to do in its kernel, after what it has to do already.
    fn give_work(&mut self, index: usize, event: Event) {
        let pause = Duration::from_millis(1 + self.random.below(self.weather.longest_delay_ms.clamp(1, 40)));
        let node = &mut self.nodes[index];
        let begin =
            node.work.last().map_or(self.now, |(at, _)| *at).max(node.stuck_until.unwrap_or(self.now));
        node.work.push((begin + pause, event));
    }

    /// The node does what it has to do next.
    fn do_work(&mut self, index: usize) {
        let (_, event) = self.nodes[index].work.remove(0);
        let refuses = self.nodes[index].refuses;
        let answer = |what: Refuses| match refuses == what {
            true => Err("no room".to_owned()),
            false => Ok(()),
        };
        match event {
            Event::Prepare { tables, version, .. } => {
                let result = answer(Refuses::ToLoad);
                if result.is_ok() {
                    let node = &mut self.nodes[index];
                    if let Some(since) = node.under_way.replace(self.now) {
                        node.kernel.end_epoch(since, self.now);
                    }
                    node.kernel.prepare(&tables, self.now);
                    let replaced = node.loaded.replace((tables, version));
                    node.given_up.extend(replaced.map(|(_, version)| (version.epoch, self.now)));
                }
                self.with(index, |replica, now| replica.handle(now, Input::Loaded { version, result }));
            }
            Event::RolledBack { .. } if refuses != Refuses::ToApply => {
                let held = self.replica(index).tables().cloned().zip(self.replica(index).version());
                if let Some((tables, version)) = held {
                    let node = &mut self.nodes[index];
                    let rolled_back = node.loaded.take();
                    node.given_up.extend(rolled_back.map(|(_, version)| (version.epoch, self.now)));
                    self.feed(index, &tables, version, None);
                }
            }
            Event::TablesInForce { version, .. } if refuses == Refuses::ToApply => {
                let result = Err("no room".to_owned());
                self.with(index, |replica, now| replica.handle(now, Input::Applied { version, result }));
            }
            Event::TablesInForce { tables, version, follows, in_time, .. } => {
                let follows = follows.filter(|_| self.now <= in_time);
                self.feed(index, &tables, version, follows);
            }
            Event::WindowsWanted { to, version } => {
                let node = &self.nodes[index];
                if node.fed == Some(version) && !node.windows_due {
                    let windows = node.kernel.windows(self.now).encode();
                    self.with(index, |replica, now| {
                        replica.handle(now, Input::Windows { to, version, windows });
                    });
                }
            }
            Event::Windows { version, windows: Some(_), in_time }
                if self.nodes[index].fed == Some(version) && self.now > in_time =>
            {
                let result = Ok(Fed::Afresh);
                self.with(index, |replica, now| replica.handle(now, Input::Applied { version, result }));
            }
            Event::Windows { version, windows, .. } if self.nodes[index].fed == Some(version) => {
                let node = &mut self.nodes[index];
                node.windows_due = false;
                if let Some(windows) = windows {
                    node.kernel.follow(&windows, self.now);
                    if let Some((tables, _)) = &node.loaded {
                        node.kernel.prepare(tables, self.now);
                    }
                }
            }
            _ => {}
        }
    }

    /// Puts tables into the kernel, as the node does.
    fn feed(&mut self, index: usize, tables: &TableSet, version: Version, follows: Option<Version>) {
        let node = &mut self.nodes[index];
        let onward = node.fed == Some(version) || follows.is_some() && follows == node.fed;
        node.kernel.apply(tables, self.now);
        node.fed = Some(version);
        node.windows_due |= !onward;
        node.loaded.take_if(|(_, loaded)| loaded.epoch <= version.epoch);
        if let Some((tables, _)) = &node.loaded {
            node.kernel.prepare(tables, self.now);
        }
        let result = Ok(if onward { Fed::Onward } else { Fed::Afresh });
        self.with(index, |replica, now| replica.handle(now, Input::Applied { version, result }));
    }

    fn post(&mut self, from: usize, hello: &Hello, to: usize, mut payload: Payload) {
        let stalled = matches!(payload, Payload::Message(_)) && self.stalled.contains(&(from, to));
        if stalled || self.random.chance(self.weather.loss) {
            return;
        }
        if self.random.chance(self.weather.corruption) {
            corrupt(&mut payload, &mut self.random);
        }
        let delay = Duration::from_millis(1 + self.random.below(self.weather.longest_delay_ms.max(1)));
        self.sequence += 1;
        let parcel = Parcel { from, hello: hello.clone(), to, payload };
        self.in_flight.insert((self.now + delay, self.sequence), parcel);
    }

    fn deliver(&mut self, parcel: Parcel) {
        let Parcel { from, hello, to, payload } = parcel;
        if self.cut.contains(&(from, to)) || self.nodes[to].replica.is_none() {
            return;
        }
        self.with(to, |replica, now| {
            let (from, boot_id) = (hello.router_id, hello.boot_id);
            let known = replica.members().any(|(id, member)| id == from && member.boot_id() == boot_id);
            if !known && replica.admit(now, &hello).is_err() {
                return replica.handle(now, Input::Tick);
            }
            let input = match payload {
                Payload::Report(report) => Input::Report { from, boot_id, report },
                Payload::Message(message) => Input::Message { from, boot_id, message },
            };
            replica.handle(now, input);
        });
    }

    /// Runs until nothing is due before `end`.
    pub(super) fn run_for(&mut self, duration: Duration) {
        let end = self.now + duration;
        while self.step(end) {}
        self.now = end;
    }

    /// Runs until `condition` holds; fails after `limit`.
    pub(super) fn run_until(&mut self, limit: Duration, what: &str, condition: impl Fn(&Self) -> bool) {
        let end = self.now + limit;
        while !condition(self) {
            assert!(self.step(end), "not within {limit:?}: {what}\n{}", self.describe());
        }
    }

    fn step(&mut self, end: Instant) -> bool {
        self.propose_where_wanted();
        let deadline = |node: &Node| node.replica.as_ref().map(Replica::next_deadline);
        let due = (0..self.nodes.len()).filter_map(|node| Some((deadline(&self.nodes[node])?, node))).min();
        let work =
            (0..self.nodes.len()).filter_map(|node| Some((self.nodes[node].work.first()?.0, node))).min();
        let others = self.in_flight.keys().next().map(|key| key.0).into_iter().chain(due.map(|due| due.0));
        let soonest = others.chain([end]).min().expect("the end");
        if let Some((at, node)) = work.filter(|(at, _)| *at <= soonest) {
            self.now = at.max(self.now);
            self.do_work(node);
            return true;
        }
        if let Some(at) = self.clients.as_ref().map(|(_, at)| *at).filter(|at| *at <= soonest) {
            self.now = at.max(self.now);
            self.look();
            return true;
        }
        let arrival = self.in_flight.keys().next().copied();
        match (due, arrival) {
            (due, Some(key)) if due.is_none_or(|(at, _)| key.0 <= at) && key.0 <= end => {
                self.now = key.0;
                let parcel = self.in_flight.remove(&key).expect("just seen");
                self.deliver(parcel);
                true
            }
            (Some((at, node)), _) if at <= end => {
                self.now = at;
                self.with(node, |replica, now| replica.handle(now, Input::Tick));
                true
            }
            _ => false,
        }
    }

    fn propose_where_wanted(&mut self) {
        self.grant_wishes();
        for index in 0..self.nodes.len() {
            if std::mem::take(&mut self.nodes[index].wanted) && self.nodes[index].replica.is_some() {
                let (salt, key) = (self.random.next(), [index as u8; 16]);
                let result = self
                    .with(index, |replica, now| replica.propose(now, services(salt), key, "asked".into()));
                assert!(!matches!(result, Err(ProposeError::Tables(_))), "{result:?}");
            }
        }
    }

    pub(super) fn agrees(&self) -> bool {
        let mut running = self.nodes.iter().filter_map(|node| node.replica.as_ref());
        let Some(first) = running.next() else { return true };
        let same = |replica: &Replica| {
            replica.version() == first.version()
                && replica.leader() == first.leader()
                && replica.phase() == Phase::Settled
                && replica.standing() == Standing::Current
        };
        same(first) && running.all(same)
    }

    /// Whether every running director forwards by the tables of `epoch`, and knows that all do.
    pub(super) fn forwards_by(&self, epoch: Epoch) -> bool {
        let fed = |node: &Node| node.fed.is_some_and(|version| version.epoch == epoch);
        let settled = |replica: &Replica| replica.phase() == Phase::Settled;
        let mut running = self.nodes.iter().filter(|node| node.replica.is_some());
        self.agrees() && running.all(|node| fed(node) && node.replica.as_ref().is_some_and(settled))
    }

    pub(super) fn describe(&self) -> String {
        let line = |(index, node): (usize, &Node)| match &node.replica {
            None => format!("{index}: down\n"),
            Some(replica) => format!(
                "{index}: {} {:?} {} {:?} leader {:?} fed {:?} roster {:?} doubts {:?} {:?} round {:?}\n",
                replica.standing(),
                replica.version().map(|version| version.to_string()),
                replica.phase(),
                replica.prepared().map(|version| version.to_string()),
                replica.leader(),
                node.fed.map(|version| version.to_string()),
                replica.roster,
                replica.doubts,
                replica.claims,
                replica.round.as_ref().map(Round::epoch),
            ),
        };
        self.nodes.iter().enumerate().map(line).collect()
    }

    /// A node's health checks say this from now on.
    pub(super) fn observe(&mut self, index: usize, real: RealId, health: Health) {
        self.nodes[index].observed.insert(real, health);
        let observed = self.nodes[index].observed.clone();
        self.with(index, |replica, now| replica.handle(now, Input::Observed(observed)));
    }

    /// What the running nodes' checks say together: the oracle for what each of them should know.
    pub(super) fn votes(&self) -> HealthView {
        let mut view = HealthView::new();
        for node in self.nodes.iter().filter(|node| node.replica.is_some()) {
            for (real, health) in &node.observed {
                let votes = match health {
                    Health::Up => &mut view.entry(real.clone()).or_default().up,
                    Health::Down => &mut view.entry(real.clone()).or_default().down,
                    Health::Unknown => continue,
                };
                *votes += 1;
            }
        }
        view
    }

    /// Something that happens to a cluster.
    fn disturb(&mut self) {
        let size = self.nodes.len() as u64;
        let index = usize::try_from(self.random.below(size)).expect("small");
        let running = self.nodes[index].replica.is_some();
        match self.random.below(14) {
            0 | 1 if running => self.crash(index),
            0..=2 if !running => {
                if self.disks_may_fail && self.random.chance(30) {
                    self.nodes[index].disk = None;
                }
                self.start(index);
            }
            3 => {
                let bits = self.random.next();
                let side: Vec<usize> = (0..self.nodes.len()).filter(|node| bits >> node & 1 == 1).collect();
                self.part(&side);
            }
            4 => {
                self.cut.clear();
                self.stalled.clear();
            }
            5 => {
                let other = usize::try_from(self.random.below(size)).expect("small");
                let pairs = if self.random.chance(50) { &mut self.cut } else { &mut self.stalled };
                pairs.insert((index, other));
            }
            6..10 if running => {
                let health = [Health::Up, Health::Down, Health::Unknown][self.random.below(3) as usize];
                let real = real(self.random.below(5));
                self.observe(index, real, health);
            }
            10 if running => {
                let salt = self.random.next();
                self.wish(index, salt);
            }
            _ if running => {
                let salt = self.random.next();
                let _ = self
                    .with(index, |replica, now| replica.propose(now, services(salt), [0; 16], "wish".into()));
            }
            _ => {}
        }
    }

    /// Something that happens to a cluster with good disks and links that fail both ways; most of all, changes.
    fn disturb_gently(&mut self) {
        let size = self.nodes.len() as u64;
        let index = usize::try_from(self.random.below(size)).expect("small");
        let other = usize::try_from(self.random.below(size)).expect("small");
        let running = self.nodes[index].replica.is_some();
        let what = self.random.below(16);
        if std::env::var_os("SYNCD_SEED").is_some() {
            println!(
                "{:>9.3} disturbance {what} of {index} and {other}",
                (self.now - self.began).as_secs_f64()
            );
        }
        match what {
            0 if running => self.crash(index),
            // Alone in a partition it would go by what is on its disk, as the documentation says.
            0 | 1 if !running && self.cut.is_empty() => self.start(index),
            2 => {
                let bits = self.random.next();
                let side: Vec<usize> = (0..self.nodes.len()).filter(|node| bits >> node & 1 == 1).collect();
                self.part(&side);
            }
            3 => self.cut.extend([(index, other), (other, index)]),
            4 => self.stalled.extend([(index, other), (other, index)]),
            5 | 6 => {
                self.cut.clear();
                self.stalled.clear();
            }
            7 => {
                self.nodes[index].stuck_until =
                    Some(self.now + Duration::from_millis(self.random.below(8000)))
            }
            8 => {
                self.nodes[index].refuses = [Refuses::ToLoad, Refuses::ToApply][self.random.below(2) as usize]
            }
            10 if running => {
                let salt = self.random.next();
                self.wish(index, salt);
            }
            9 => self.nodes.iter_mut().for_each(|node| node.refuses = Refuses::Nothing),
            _ => {
                let salt = self.random.next();
                for node in (0..self.nodes.len())
                    .filter(|node| self.nodes[*node].replica.is_some())
                    .collect::<Vec<_>>()
                {
                    let _ = self.with(node, |replica, now| {
                        replica.propose(now, services(salt), [0; 16], "wish".into())
                    });
                }
            }
        }
    }

    /// All is well from now on.
    fn heal(&mut self) {
        self.cut.clear();
        self.stalled.clear();
        self.weather = Weather { longest_delay_ms: 5, ..Weather::default() };
        for index in 0..self.nodes.len() {
            self.nodes[index].refuses = Refuses::Nothing;
            self.nodes[index].stuck_until = None;
            if self.nodes[index].replica.is_none() {
                self.start(index);
            }
        }
    }

    /// Directors that packets come to.
    fn reached(&mut self) -> Vec<usize> {
        for node in &mut self.nodes {
            let serves = node.replica.as_ref().is_some_and(|replica| {
                replica.standing() == Standing::Current && node.fed == replica.version() && !node.windows_due
            });
            let until = node.reached_until.filter(|until| node.replica.is_some() && *until > self.now);
            node.reached_until = if serves { Some(self.now + WITHDRAWAL) } else { until };
        }
        (0..self.nodes.len()).filter(|node| self.nodes[*node].reached_until.is_some()).collect()
    }

    /// What could not be put into a kernel is tried again.
    fn try_again(&mut self) {
        for index in 0..self.nodes.len() {
            let node = &self.nodes[index];
            let Some(replica) = &node.replica else { continue };
            let held = replica.tables().cloned().zip(replica.version());
            let Some((tables, version)) = held.filter(|(_, version)| node.fed != Some(*version)) else {
                continue;
            };
            if node.work.is_empty() && node.refuses != Refuses::ToApply {
                let (follows, in_time, cause) = (None, self.now, "once more".to_owned());
                self.give_work(index, Event::TablesInForce { tables, version, follows, in_time, cause });
            }
        }
    }

    /// Checks what must hold at every moment, and lets clients talk.
    fn look(&mut self) {
        let Some((mut clients, _)) = self.clients.take() else { return };
        let now = self.now;
        self.try_again();
        for (index, node) in self.nodes.iter_mut().enumerate() {
            if let Some(replica) = &node.replica {
                clients.settle(index, &mut node.kernel, now);
                if replica.phase() == Phase::Settled
                    && let Some(since) = node.under_way.take()
                {
                    node.kernel.end_epoch(since, now);
                }
                node.kernel.age(replica.settings().skew(), node.under_way, now);
            }
        }
        let reached = self.reached();
        self.trace(&reached);
        self.check_bounds();
        // Sides that know nothing of each other, as two halves of a pair or directors restarted in a partition, both go on,
        // as the documentation says. What comes of it ends when they have found to each other.
        let knows = |one: usize, other: usize| {
            let (replica, other) = (self.replica(one), id(other));
            let is_live = replica.live().any(|(id, _)| id == other);
            replica.roster.contains(&other) && (replica.roster.len() > 1 || is_live)
        };
        let holds = |node: &usize| {
            let standing = self.nodes[*node].replica.as_ref().map(Replica::standing);
            standing.is_some_and(|standing| !matches!(standing, Standing::Joining | Standing::Isolated))
        };
        let holders: Vec<usize> = (0..self.nodes.len()).filter(holds).collect();
        let alone = |node: usize| self.replica(node).roster.len() <= 1;
        let strange = |one: usize, other: usize| match (knows(one, other), knows(other, one)) {
            (true, true) => false,
            (false, false) => true,
            _ => alone(one) && alone(other),
        };
        let strangers = |one: &usize| holders.iter().any(|other| one != other && strange(*one, *other));
        let apart = |node: &usize| self.replica(*node).version() != self.replica(holders[0]).version();
        let fed_apart = |node: &usize| self.nodes[*node].fed != self.nodes[reached[0]].fed;
        if reached.is_empty() || holders.iter().any(strangers) {
            self.is_split = true;
        } else if !holders.iter().any(apart) && !reached.iter().any(fed_apart) {
            self.is_split = false;
        }
        if self.is_split {
            clients.lose_all();
        } else {
            self.check_cover(&reached);
            for id in clients.ids(now) {
                let director = reached[self.random.below(reached.len() as u64) as usize];
                let sent = clients.send(id, director, &self.nodes[director].kernel, now);
                if let Err(astray) = sent {
                    panic!("{astray}\n{}", self.describe());
                }
            }
            let director = reached[self.random.below(reached.len() as u64) as usize];
            let slot = self.random.below(traffic::SLOTS as u64) as usize;
            clients.open(director, &self.nodes[director].kernel, slot, now);
        }
        self.clients = Some((clients, now + LOOK));
    }

    /// Where a history is replayed: how the slots stand, whenever that has changed.
    fn trace(&mut self, reached: &[usize]) {
        if std::env::var_os("SYNCD_SEED").is_none() {
            return;
        }
        let kernels: Vec<String> = self.nodes.iter().map(|node| node.kernel.to_string()).collect();
        let slots = format!("reached {reached:?}, slots {}", kernels.join(" | "));
        if slots != self.traced {
            println!("{:>9.3} {slots}", (self.now - self.began).as_secs_f64());
            self.traced = slots;
        }
    }

    /// Whoever serves has at least prepared what any other one forwards by, or given it up less than a margin ago.
    fn check_cover(&self, reached: &[usize]) {
        let epoch = |node: &usize| self.nodes[*node].fed.map(|version| version.epoch);
        let highest = reached.iter().filter_map(epoch).max();
        for node in reached {
            let prepared = self.nodes[*node].loaded.as_ref().map(|(_, version)| version.epoch);
            let margin = self.nodes[*node].replica.as_ref().map(|replica| replica.settings().skew());
            let is_held = |(_, at): &&(Epoch, Instant)| margin.is_some_and(|margin| self.now < *at + margin);
            let given_up = self.nodes[*node].given_up.iter().filter(is_held).map(|(epoch, _)| *epoch).max();
            assert!(
                epoch(node).max(prepared).max(given_up) >= highest,
                "director {node} serves with {:?} and {prepared:?} beside {highest:?}
{}",
                epoch(node),
                self.describe()
            );
        }
    }

    /// No epoch is under way for longer than PREPARE and COMMIT may last.
    fn check_bounds(&mut self) {
        for node in &mut self.nodes {
            let Some(replica) = &node.replica else { continue };
            let Some(round) = &replica.round else {
                node.leading_since = None;
                continue;
            };
            // One that was left to another leader and is resumed begins anew.
            let known = node.leading_since.take().filter(|(message, _)| Arc::ptr_eq(message, &round.message));
            let (_, since) =
                *node.leading_since.insert(known.unwrap_or((Arc::clone(&round.message), self.now)));
            let epoch = round.epoch();
            let bound = replica.settings().prepare_time() + replica.settings().commit_time() + LOOK;
            assert!(self.now <= since + bound, "epoch {epoch} is under way for more than {bound:?}");
        }
    }
}

/// Flips a bit that a decoder mostly does not notice: most of the bytes are slots.
fn corrupt(payload: &mut Payload, random: &mut Random) {
    match payload {
        Payload::Message(Message::Prepare(prepare)) => {
            let delta = &mut Arc::make_mut(prepare).delta;
            for patch in delta.iter_mut().flat_map(|delta| delta.patched.values_mut()) {
                patch.slots.iter_mut().take(1).for_each(|slot| slot.1 ^= 1);
            }
        }
        Payload::Message(Message::Chunk(chunk)) => {
            let mut data = chunk.data.to_vec();
            let at = usize::try_from(random.below(data.len() as u64)).expect("an index");
            data[at] ^= 1;
            chunk.data = data.into();
        }
        _ => {}
    }
}

fn history(seed: u64) {
    let mut random = Random::new(!seed);
    let size = 2 + usize::try_from(random.below(5)).expect("small");
    let mut cluster = Cluster::new(seed, size);
    cluster.disks_may_fail = seed.is_multiple_of(4);
    cluster.weather = Weather {
        loss: random.below(30),
        corruption: random.below(10),
        longest_delay_ms: 1 + random.below(300),
    };
    for index in 0..size {
        if random.chance(70) {
            cluster.start(index);
        }
    }
    for _ in 0..20 {
        cluster.run_for(Duration::from_millis(random.below(1500)));
        cluster.disturb();
    }
    cluster.heal();
    let is_decided = |cluster: &Cluster| cluster.nodes.iter().all(|node| node.wish.is_none());
    cluster.run_until(Duration::from_secs(15), "agreement after healing", |cluster| {
        cluster.agrees() && is_decided(cluster)
    });
    // Agreement lasts: nothing keeps changing once the network is well.
    let version = cluster.replica(0).version();
    cluster.run_for(Duration::from_secs(5));
    assert!(cluster.agrees() && cluster.replica(0).version() == version, "{}", cluster.describe());
    let votes = cluster.votes();
    for index in 0..size {
        assert_eq!(**cluster.replica(index).health(), votes, "what node {index} knows of health");
    }
}

/// A history whose every moment is checked.
fn watched_history(seed: u64) -> u64 {
    let mut random = Random::new(!seed);
    let size = 2 + usize::try_from(random.below(4)).expect("small");
    let mut cluster = Cluster::new(seed, size);
    cluster.start_all();
    cluster.run_until(Duration::from_secs(5), "agreement", Cluster::agrees);
    cluster.run_for(Duration::from_secs(1));
    cluster.clients = Some((Clients::default(), cluster.now));
    cluster.weather = Weather {
        loss: random.below(25),
        corruption: random.below(5),
        longest_delay_ms: 1 + random.below(200),
    };
    for _ in 0..25 {
        cluster.run_for(Duration::from_millis(random.below(1800)));
        cluster.disturb_gently();
    }
    cluster.heal();
    cluster.run_until(Duration::from_secs(30), "agreement after healing", Cluster::agrees);
    cluster.run_for(Duration::from_secs(5));
    assert!(cluster.agrees(), "{}", cluster.describe());
    cluster.clients.map_or(0, |(clients, _)| clients.packets)
}

/// Runs the history that was asked for, or many.
fn many(count: u64, history: impl Fn(u64) + std::panic::RefUnwindSafe) {
    if let Ok(seed) = std::env::var("SYNCD_SEED") {
        return history(seed.parse().expect("SYNCD_SEED is a number"));
    }
    let count = std::env::var("SYNCD_HISTORIES").map_or(count, |count| count.parse().expect("a number"));
    for seed in 0..count {
        let result = std::panic::catch_unwind(|| history(seed));
        assert!(result.is_ok(), "replay with SYNCD_SEED={seed}");
    }
}

#[test]
fn histories_of_crashes_partitions_and_loss_end_in_agreement() {
    many(800, history);
}

#[test]
fn histories_of_changes_misroute_nothing() {
    let packets = std::sync::atomic::AtomicU64::new(0);
    let one = std::env::var("SYNCD_SEED").is_ok();
    many(500, |seed| {
        packets.fetch_add(watched_history(seed), std::sync::atomic::Ordering::Relaxed);
    });
    assert!(one || packets.into_inner() > 1000, "clients had something to say");
}
