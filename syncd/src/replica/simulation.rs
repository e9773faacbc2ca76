//! A cluster of replicas on a virtual clock, over a network that loses, delays, reorders, corrupts and parts.
//!
//! Everything follows from one seed. `SYNCD_SEED=… cargo test -p syncd histories` replays a history that failed,
//! `SYNCD_HISTORIES=5000` tries more of them than usual.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;
use std::time::{Duration, Instant};

use director_proto::health::{Health, RealId};
use director_proto::sync::{BootId, Hello, Message, Report};
use director_proto::tables::{Digest, Epoch, SLOTS, ServiceTable, TableReal};

use super::*;

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
}

/// How bad the network is, in percent.
#[derive(Clone, Copy, Default)]
pub(super) struct Weather {
    pub(super) loss: u64,
    pub(super) corruption: u64,
    pub(super) longest_delay_ms: u64,
}

pub(super) struct Cluster {
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
    pub(super) disks_may_fail: bool,
}

pub(super) fn id(node: usize) -> Ipv4Addr {
    Ipv4Addr::new(10, 255, 0, u8::try_from(node + 1).expect("few nodes"))
}

/// A service whose table is a function of `salt`.
pub(super) fn services(salt: u64) -> BTreeMap<String, ServiceTable> {
    let real =
        |index| TableReal { address: IpAddr::from([10, 0, 2, index]), port: 80, weight: 1, dead: false };
    let salt = usize::try_from(salt % 1_000_003).expect("small");
    // A few slots differ between two salts, so that changes travel as deltas.
    let mut slots: Vec<u16> = (0..SLOTS).map(|slot| (slot % 4) as u16).collect();
    for step in 0..100 {
        slots[(salt * 31 + step * 7) % SLOTS] = (salt % 4) as u16;
    }
    let table =
        ServiceTable { scheduler: "mh".into(), reals: (11..15).map(real).collect(), slots: slots.into() };
    BTreeMap::from([("web".to_owned(), table)])
}

/// One of the real servers that checks are made of.
pub(super) fn real(number: u64) -> RealId {
    let host = u8::try_from(11 + number).expect("few real servers");
    RealId { service: "web".into(), address: IpAddr::from([10, 0, 2, host]), port: 80 }
}

impl Cluster {
    pub(super) fn new(seed: u64, size: usize) -> Self {
        let node = || Node {
            replica: None,
            disk: None,
            events: Vec::new(),
            sent: Vec::new(),
            boots: 0,
            last_epoch: None,
            wanted: false,
            observed: BTreeMap::new(),
        };
        Self {
            now: Instant::now(),
            nodes: (0..size).map(|_| node()).collect(),
            weather: Weather { longest_delay_ms: 5, ..Weather::default() },
            cut: BTreeSet::new(),
            stalled: BTreeSet::new(),
            random: Random::new(seed),
            in_flight: BTreeMap::new(),
            sequence: 0,
            decided: BTreeMap::new(),
            disks_may_fail: false,
        }
    }

    pub(super) fn start(&mut self, index: usize) {
        let size = self.nodes.len();
        let node = &mut self.nodes[index];
        node.boots += 1;
        node.last_epoch = None;
        node.wanted = false;
        node.observed.clear();
        node.events.clear();
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
        };
        node.replica = Some(Replica::new(self.now, settings, Digest([0; 32]), node.disk.clone()));
        self.with(index, |replica, now| replica.handle(now, Input::Tick));
    }

    pub(super) fn start_all(&mut self) {
        (0..self.nodes.len()).for_each(|index| self.start(index));
    }

    pub(super) fn crash(&mut self, index: usize) {
        self.nodes[index].replica = None;
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
        let node = &mut self.nodes[index];
        match &event {
            Event::NeedTables { previous: None } => node.wanted = true,
            Event::TablesInForce(tables) => {
                let epoch = tables.epoch;
                assert!(node.last_epoch.is_none_or(|last| last < epoch), "node {index} went back to {epoch}");
                node.last_epoch = Some(epoch);
                let digest = tables.digest();
                let first = *self.decided.entry(epoch).or_insert(digest);
                assert!(first == digest || self.disks_may_fail, "epoch {epoch} names two contents");
            }
            _ => {}
        }
        node.events.push(event);
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
        for index in 0..self.nodes.len() {
            if std::mem::take(&mut self.nodes[index].wanted) && self.nodes[index].replica.is_some() {
                let (salt, key) = (self.random.next(), [index as u8; 16]);
                let result = self.with(index, |replica, now| replica.propose(now, services(salt), key));
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
                && replica.standing() == Standing::Current
        };
        same(first) && running.all(same)
    }

    pub(super) fn describe(&self) -> String {
        let line = |(index, node): (usize, &Node)| match &node.replica {
            None => format!("{index}: down\n"),
            Some(replica) => format!(
                "{index}: {} {:?} leader {:?}\n",
                replica.standing(),
                replica.version().map(|version| version.to_string()),
                replica.leader()
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
            _ if running => {
                let salt = self.random.next();
                let _ = self.with(index, |replica, now| replica.propose(now, services(salt), [0; 16]));
            }
            _ => {}
        }
    }
}

/// Flips a bit that a decoder mostly does not notice: most of the bytes are slots.
fn corrupt(payload: &mut Payload, random: &mut Random) {
    match payload {
        Payload::Message(Message::Delta(delta)) => {
            for patch in Arc::make_mut(delta).patched.values_mut() {
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
    cluster.cut.clear();
    cluster.stalled.clear();
    cluster.weather = Weather { longest_delay_ms: 5, ..Weather::default() };
    for index in 0..size {
        if cluster.nodes[index].replica.is_none() {
            cluster.start(index);
        }
    }
    cluster.run_until(Duration::from_secs(15), "agreement after healing", Cluster::agrees);
    // Agreement lasts: nothing keeps changing once the network is well.
    let version = cluster.replica(0).version();
    cluster.run_for(Duration::from_secs(5));
    assert!(cluster.agrees() && cluster.replica(0).version() == version, "{}", cluster.describe());
    let votes = cluster.votes();
    for index in 0..size {
        assert_eq!(**cluster.replica(index).health(), votes, "what node {index} knows of health");
    }
}

#[test]
fn histories_of_crashes_partitions_and_loss_end_in_agreement() {
    if let Ok(seed) = std::env::var("SYNCD_SEED") {
        return history(seed.parse().expect("SYNCD_SEED is a number"));
    }
    let count = std::env::var("SYNCD_HISTORIES").map_or(200, |count| count.parse().expect("a number"));
    for seed in 0..count {
        let result = std::panic::catch_unwind(|| history(seed));
        assert!(result.is_ok(), "replay with SYNCD_SEED={seed}");
    }
}
