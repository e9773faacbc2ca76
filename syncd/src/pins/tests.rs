//! Directors on a virtual clock, over connections that break and lose what was on them.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, LazyLock};

use director_common::pin::PinState;
use director_common::tables::{Address, Endpoint, FlowKey, Lease};
use director_proto::pins::{Batch, Begin, Local, MAX_UNACKNOWLEDGED, Record, Server, Subscription, Target};

use super::*;

const LIFE: u32 = 900;

fn id(index: usize) -> Ipv4Addr {
    Ipv4Addr::new(10, 255, 0, index as u8 + 1)
}

fn flow(number: u32) -> FlowKey {
    let mut source = Address::from_ipv4((number | 0x0a00_0000).to_be_bytes());
    if number.is_multiple_of(3) {
        source = Address([number as u8; 16]);
        source.0[1..5].copy_from_slice(&number.to_be_bytes());
    }
    FlowKey {
        source,
        destination: Address::from_ipv4([203, 0, 113, (number % 7) as u8]),
        source_port: number as u16,
        destination_port: 80,
        protocol: 6,
        ..FlowKey::default()
    }
}

/// A director's own local addresses.
fn owned(router_id: Ipv4Addr) -> Vec<Address> {
    let [.., last] = router_id.octets();
    vec![Address::from_ipv4([10, 8, 0, last]), Address([last; 16])]
}

/// What stands for the client in every other connection; of addresses there are more than directors, as others' connections
/// go on at one.
fn local(flow: &FlowKey) -> Option<Endpoint> {
    let number = flow.source_port % 400;
    let address = Address::from_ipv4([10, 8, (number >> 8) as u8, number as u8]);
    number.is_multiple_of(2).then_some(Endpoint { address, port: flow.source_port | 1, reserved: 0 })
}

/// Seconds since that was taken.
fn age(flow: &FlowKey, now: Instant) -> u32 {
    static BEGIN: LazyLock<Instant> = LazyLock::new(Instant::now);
    local(flow).map_or(0, |end| 100 * u32::from(end.port % 50) + (now - *BEGIN).as_secs() as u32)
}

fn server(last: u8) -> Arc<Server> {
    Arc::new(Server { service: "web".into(), address: [10, 0, 2, last].into(), port: 80 })
}

/// What a director's data plane holds of another one's pins, as the node puts it there.
#[derive(Default)]
struct Held {
    pins: BTreeMap<FlowKey, (Arc<Server>, Instant)>,
    named: BTreeSet<FlowKey>,
    /// For how long its address and port were a connection's when it was told.
    ages: BTreeMap<FlowKey, u32>,
}

struct Director {
    machine: Pins,
    boot: BootId,
    /// Our own pins and their ends.
    own: BTreeMap<FlowKey, (Arc<Server>, Instant)>,
    held: BTreeMap<Ipv4Addr, Held>,
}

impl Director {
    fn new(now: Instant, index: usize, boot: u64) -> Self {
        let boot = BootId(boot);
        let machine = Pins::new(now, id(index), boot).with_locals(owned(id(index)));
        Self { machine, boot, own: BTreeMap::new(), held: BTreeMap::new() }
    }

    /// One walk through the data plane.
    fn walk(&mut self, now: Instant) {
        self.own.retain(|_, (_, until)| *until > now);
        let pin = |(flow, (server, until)): (&FlowKey, &(Arc<Server>, Instant))| LocalPin {
            flow: *flow,
            server: Arc::clone(server),
            state: PinState::Open,
            remaining: (*until - now).as_secs() as u32,
            local: local(flow),
            age: age(flow, now),
        };
        let pins = self.own.iter().map(pin).collect();
        self.machine.handle_node(now, PinInput::Met(pins), |_| true);
        self.machine.handle_node(now, PinInput::WalkEnded, |_| true);
    }

    fn apply(&mut self, now: Instant) {
        while let Some(delivery) = self.machine.poll_delivery() {
            let Delivery { receipt, begins, ends_snapshot, locals, servers, pins, removed } = delivery;
            assert_eq!(locals, begins.map(|_| owned(receipt.from)));
            let held = self.held.entry(receipt.from).or_default();
            if begins == Some(Begin::Snapshot) {
                held.named.clear();
            }
            for pin in pins {
                assert_eq!(pin.local, local(&pin.flow));
                held.ages.insert(pin.flow, pin.age);
                let until = now + Duration::from_secs(pin.remaining.into());
                held.pins.insert(pin.flow, (Arc::clone(&servers[pin.server as usize]), until));
                held.named.insert(pin.flow);
            }
            removed.iter().for_each(|flow| drop(held.pins.remove(flow)));
            if ends_snapshot {
                let Held { pins, named, .. } = held;
                pins.retain(|flow, _| named.contains(flow));
            }
            let applied = Applied { receipt, ends_snapshot, strangers: 0 };
            self.machine.handle_node(now, PinInput::Applied(applied), |_| true);
        }
    }
}

/// xorshift: the histories are the same on every machine.
struct Random(u64);

impl Random {
    fn below(&mut self, limit: u32) -> u32 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 20) as u32 % limit
    }
}

struct World {
    now: Instant,
    directors: Vec<Director>,
    /// What is on each connection, by its ends.
    wires: BTreeMap<(usize, usize), VecDeque<PinMessage>>,
    boots: u64,
}

impl World {
    fn new(count: usize) -> Self {
        let now = Instant::now();
        let directors = (0..count).map(|index| Director::new(now, index, index as u64 + 1)).collect();
        let mut world = Self { now, directors, wires: BTreeMap::new(), boots: 100 };
        world.reconnect_all();
        world
    }

    fn reconnect_all(&mut self) {
        for one in 0..self.directors.len() {
            for other in 0..one {
                self.reconnect(one, other);
            }
        }
    }

    /// The connections between two break: what is on them is lost.
    fn reconnect(&mut self, one: usize, other: usize) {
        for (from, to) in [(one, other), (other, one)] {
            self.wires.insert((from, to), VecDeque::new());
            let boot = self.directors[to].boot;
            self.directors[from].machine.handle_link(id(to), boot);
        }
    }

    /// A director's process is started anew; what its kernel holds stays.
    fn restart(&mut self, index: usize) {
        self.boots += 1;
        let fresh = Director::new(self.now, index, self.boots);
        let old = std::mem::replace(&mut self.directors[index], fresh);
        (self.directors[index].own, self.directors[index].held) = (old.own, old.held);
        for other in (0..self.directors.len()).filter(|other| *other != index) {
            self.reconnect(index, other);
            let came = PinInput::Came { router_id: id(index), boot_id: BootId(self.boots) };
            self.directors[other].machine.handle_node(self.now, came, |_| true);
        }
    }

    fn pass(&mut self, duration: Duration) {
        self.now += duration;
        let boots: Vec<_> = self.directors.iter().enumerate().map(|(at, one)| (id(at), one.boot)).collect();
        for (index, director) in self.directors.iter_mut().enumerate() {
            let others = boots.iter().copied().filter(|(other, _)| *other != id(index));
            director.machine.handle_members(self.now, others, Some([3; 16]));
            director.walk(self.now);
        }
    }

    /// Carries messages until nothing is left, or `most` were.
    fn carry(&mut self, most: usize) -> usize {
        let mut carried = 0;
        loop {
            let before = carried;
            for from in 0..self.directors.len() {
                while let Some((to, message)) = self.directors[from].machine.poll_message(self.now) {
                    let to = usize::from(to.octets()[3]) - 1;
                    self.wires.entry((from, to)).or_default().push_back(message);
                }
            }
            let wires: Vec<_> = self.wires.keys().copied().collect();
            for (from, to) in wires {
                let Some(message) = self.wires.get_mut(&(from, to)).and_then(VecDeque::pop_front) else {
                    continue;
                };
                let (boot, now) = (self.directors[from].boot, self.now);
                self.directors[to].machine.handle_message(now, id(from), boot, message);
                self.directors[to].apply(now);
                carried += 1;
                if carried >= most {
                    return carried;
                }
            }
            if carried == before {
                return carried;
            }
        }
    }

    fn check(&self, seed: u64) {
        for (from, owner) in self.directors.iter().enumerate() {
            for (to, director) in self.directors.iter().enumerate().filter(|(to, _)| *to != from) {
                let empty = Held::default();
                let held = &director.held.get(&id(from)).unwrap_or(&empty).pins;
                let live: BTreeMap<_, _> = held.iter().filter(|(_, (_, until))| *until > self.now).collect();
                let slack = Duration::from_secs(u64::from(LIFE / 10) + 2);
                for (flow, (server, until)) in owner.own.iter().filter(|(_, pin)| pin.1 > self.now + slack) {
                    let found = live
                        .get(flow)
                        .unwrap_or_else(|| panic!("seed {seed}: {to} lacks {flow:?} of {from}"));
                    assert_eq!(found.0.address, server.address, "seed {seed}");
                    let error = if found.1 > *until { found.1 - *until } else { *until - found.1 };
                    assert!(error <= slack, "seed {seed}: wrong by {error:?}");
                }
                for flow in live.keys() {
                    assert!(owner.own.contains_key(*flow), "seed {seed}: {to} has {flow:?}, {from} has not");
                }
            }
        }
    }
}

fn history(seed: u64) {
    let mut random = Random(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1);
    let mut world = World::new(3);
    for _ in 0..120 {
        let at = random.below(3) as usize;
        match random.below(12) {
            0..=5 => {
                for _ in 0..random.below(300) {
                    let until = world.now + Duration::from_secs((LIFE - random.below(LIFE / 2)).into());
                    let flow = flow(random.below(2_000));
                    let own = &mut world.directors[at].own;
                    // Another packet makes a life longer, never shorter.
                    let until = own.get(&flow).map_or(until, |pin| pin.1.max(until));
                    own.insert(flow, (server(random.below(5) as u8), until));
                }
            }
            6 | 7 => {
                let keep = random.below(4);
                let mut number = 0;
                world.directors[at].own.retain(|_, _| {
                    number += 1;
                    number % 4 != keep
                });
            }
            8 | 9 => world.reconnect(at, (at + 1) % 3),
            10 => world.restart(at),
            _ => world.pass(Duration::from_secs(random.below(100).into())),
        }
        world.pass(Duration::from_millis(50));
        world.carry(random.below(30) as usize + 1);
    }
    for _ in 0..20 {
        world.pass(Duration::from_secs(1));
        world.carry(usize::MAX);
    }
    world.check(seed);
    assert!(world.directors.iter().all(|director| director.machine.is_whole()));
    for (index, director) in world.directors.iter().enumerate() {
        for other in (0..3).filter(|other| *other != index) {
            let status = director.machine.status(world.now, id(other)).expect("a peer");
            assert_eq!(
                (status.lag_records, status.lag_ms, status.silenced),
                (0, 0, 0),
                "seed {seed}: {status:?}, there {:?}",
                world.directors[other].machine.status(world.now, id(index))
            );
        }
    }
}

#[test]
fn whatever_breaks_every_director_ends_with_everybodys_pins() {
    let seeds = std::env::var("SEED").ok().and_then(|seed| seed.parse().ok()).map(|seed| seed..seed + 1);
    for seed in seeds.unwrap_or(1..60) {
        history(seed);
    }
}

#[test]
fn a_connection_in_use_costs_a_record_for_a_tenth_of_its_life_and_none_if_it_is_idle() {
    let mut world = World::new(2);
    for second in 0..900 {
        if second % 3 == 0 {
            world.directors[0].own.insert(flow(1), (server(1), world.now + Duration::from_secs(LIFE.into())));
        }
        if second == 0 {
            world.directors[0].own.insert(flow(2), (server(1), world.now + Duration::from_secs(LIFE.into())));
        }
        world.pass(Duration::from_secs(1));
        world.carry(usize::MAX);
    }
    let status = world.directors[0].machine.status(world.now, id(1)).expect("a peer");
    assert!((9..=13).contains(&status.records_out), "{status:?}");
    // What ends by its time ends everywhere without a word.
    let before = status.records_out;
    world.pass(Duration::from_secs(LIFE.into()));
    world.pass(Duration::from_secs(1));
    world.carry(usize::MAX);
    assert_eq!(world.directors[0].machine.status(world.now, id(1)).expect("a peer").records_out, before);
}

#[test]
fn for_how_long_a_connection_has_its_port_is_the_same_everywhere() {
    let mut world = World::new(2);
    for _ in 0..4 {
        for number in 0..100 {
            let until = world.now + Duration::from_secs(LIFE.into());
            world.directors[0].own.insert(flow(number), (server(1), until));
        }
        world.pass(Duration::from_millis(150_700));
        world.carry(usize::MAX);
        let held = &world.directors[1].held[&id(0)];
        for number in 0..100 {
            let (told, is) = (held.ages[&flow(number)], age(&flow(number), world.now));
            assert!(told.abs_diff(is) <= 2, "{number}: {told} s, {is} s");
        }
    }
}

#[test]
fn a_queue_that_overflows_is_a_snapshot_and_nothing_grows_without_bound() {
    let mut world = World::new(2);
    world.pass(Duration::from_secs(1));
    world.carry(usize::MAX);
    let until = world.now + Duration::from_secs(LIFE.into());
    for number in 0..300_000 {
        world.directors[0].own.insert(flow(number), (server(1), until));
    }
    let pins = world.directors[0].own.len() as u64;
    world.pass(Duration::from_secs(1));
    let status = world.directors[0].machine.status(world.now, id(1)).expect("a peer");
    assert!(status.lag_records <= 1 << 18, "{status:?}");
    world.carry(usize::MAX);
    let status = world.directors[0].machine.status(world.now, id(1)).expect("a peer");
    assert_eq!((status.lag_records, status.snapshots_out), (0, 2), "{status:?}");
    assert_eq!(status.records_out, pins);
    world.check(0);
}

#[test]
fn a_joiner_may_serve_only_when_it_has_everybodys_pins() {
    let mut world = World::new(3);
    for number in 0..20_000 {
        let until = world.now + Duration::from_secs(LIFE.into());
        world.directors[0].own.insert(flow(number), (server(1), until));
    }
    world.pass(Duration::from_secs(1));
    world.carry(usize::MAX);
    world.restart(2);
    world.directors[2].held.clear();
    world.pass(Duration::from_millis(10));
    let mut steps = 0;
    while !world.directors[2].machine.is_whole() {
        steps += 1;
        assert!(steps < 1_000);
        assert!(world.carry(1) == 1, "nothing is under way, and it is not whole");
        world.pass(Duration::ZERO);
    }
    assert!(steps > 4, "{steps}");
    world.check(0);
}

/// A director that is there again at once, and may have lost everything, is not whole before what its last run has left to
/// another one has been met there.
#[test]
fn who_is_there_again_at_once_is_told_of_what_it_has_left() {
    let now = Instant::now();
    let mut machine = Pins::new(now, id(0), BootId(1));
    let walk = |machine: &mut Pins, number: u32| {
        let (flow, state) = (flow(number), PinState::Open);
        let (server, local) = (server(1), local(&flow));
        let pin = LocalPin { flow, server, state, remaining: LIFE, local, age: 0 };
        machine.handle_node(now, PinInput::Met(vec![pin]), |_| true);
        machine.handle_node(now, PinInput::WalkEnded, |_| true);
    };
    (0..5).for_each(|_| walk(&mut machine, 1));
    let told = |machine: &mut Pins, boot: u64| {
        machine.handle_members(now, [(id(1), BootId(boot))], Some([0; 16]));
        let batches =
            std::iter::from_fn(|| machine.poll_message(now)).filter_map(|(_, message)| match message {
                PinMessage::Batch(batch) => Some((batch.records.len(), batch.ends_snapshot)),
                _ => None,
            });
        batches.fold((0, false), |(sum, ended), (records, ends)| (sum + records, ended | ends))
    };
    let all = Subscription { boot_id: BootId(0), position: Position::default() };
    let subscribe = |machine: &mut Pins, boot: u64| {
        machine.handle_message(now, id(1), BootId(boot), PinMessage::Subscribe(all));
    };
    told(&mut machine, 2);
    subscribe(&mut machine, 2);
    assert_eq!(told(&mut machine, 2), (1, true), "what was never here has left nothing");
    let node = |machine: &mut Pins, input: PinInput| machine.handle_node(now, input, |_| true);
    let came = |boot: u64| PinInput::Came { router_id: id(1), boot_id: BootId(boot) };
    told(&mut machine, 3);
    subscribe(&mut machine, 3);
    assert_eq!(told(&mut machine, 3), (1, false));
    (0..4).for_each(|_| walk(&mut machine, 1));
    assert_eq!(told(&mut machine, 3), (0, false), "the node may not have taken it over yet");
    node(&mut machine, came(2));
    node(&mut machine, came(3));
    walk(&mut machine, 1);
    assert_eq!(told(&mut machine, 3), (0, false), "it may have begun before");
    walk(&mut machine, 2);
    assert_eq!(told(&mut machine, 3), (1, true));
    // After a while there is nothing to wait for.
    machine.handle_members(now, [], Some([0; 16]));
    node(&mut machine, PinInput::Left { router_id: id(1) });
    (0..2).for_each(|_| walk(&mut machine, 2));
    told(&mut machine, 4);
    subscribe(&mut machine, 4);
    assert!(!told(&mut machine, 4).1);
    node(&mut machine, came(4));
    assert!(told(&mut machine, 4).1);
}

#[test]
fn directors_that_are_not_heard_yet_are_given_time() {
    let now = Instant::now();
    let joined = || {
        let mut machine = Pins::new(now, id(0), BootId(1)).expecting(1);
        machine.handle_members(now, [], Some([0; 16]));
        assert!(!machine.is_whole(), "one is configured, and may be about to be heard");
        assert_eq!(machine.next_deadline(), Some(now + HEARING));
        machine
    };
    let mut machine = joined();
    machine.handle_members(now + HEARING, [], Some([0; 16]));
    assert!(machine.is_whole(), "nobody came");
    let mut machine = joined();
    let late = now + HEARING - Duration::from_millis(1);
    machine.handle_members(late, [(id(1), BootId(2))], Some([0; 16]));
    machine.handle_members(now + HEARING, [(id(1), BootId(2))], Some([0; 16]));
    assert!(!machine.is_whole(), "one has come, and has not sent its pins");
}

#[test]
fn a_director_that_never_sends_its_pins_does_not_keep_another_from_serving_for_ever() {
    let now = Instant::now();
    let mut machine = Pins::new(now, id(0), BootId(1));
    machine.handle_members(now, [(id(1), BootId(2))], None);
    machine.handle_members(now + BARRIER * 3, [(id(1), BootId(2))], Some([0; 16]));
    machine.handle_members(now + BARRIER * 4 - Duration::from_millis(1), [(id(1), BootId(2))], Some([0; 16]));
    assert!(!machine.is_whole());
    machine.handle_members(now + BARRIER * 4, [(id(1), BootId(2))], Some([0; 16]));
    assert!(machine.is_whole());
}

/// A machine, and what a peer that sends these batches brings about.
fn hear(batches: impl IntoIterator<Item = Batch>, apply: bool, strangers: u32) -> (Pins, Instant) {
    let now = Instant::now();
    let mut machine = Pins::new(now, id(0), BootId(1));
    machine.handle_members(now, [(id(1), BootId(2))], Some([0; 16]));
    machine.handle_link(id(1), BootId(2));
    for batch in batches {
        machine.handle_message(now, id(1), BootId(2), PinMessage::Batch(Box::new(batch)));
        while let Some(delivery) = machine.poll_delivery().filter(|_| apply) {
            let Delivery { receipt, ends_snapshot, .. } = delivery;
            machine.handle_node(
                now,
                PinInput::Applied(Applied { receipt, ends_snapshot, strangers }),
                |_| true,
            );
        }
    }
    (machine, now)
}

fn numbered(session: u64, sequence: u64) -> Batch {
    let begins = (sequence == 1).then_some(Begin::Snapshot);
    Batch { position: Position { session, sequence }, begins, ..Batch::default() }
}

#[test]
fn liars_are_not_heard_for_a_while_and_then_start_anew() {
    let undefined = Record {
        client: Address::from_ipv4([1, 2, 3, 4]),
        port: 1,
        target: 9,
        server: 9,
        state: PinState::Open,
        remaining: 1,
        lease: Lease::NONE,
        age: 0,
    };
    let address = Address::from_ipv4([10, 0, 2, 1]);
    let unleased = Batch {
        targets: vec![(9, Target { protocol: 6, address, port: 80 })],
        servers: vec![(9, Server { service: "web".into(), address: [10, 0, 2, 1].into(), port: 80 })],
        records: vec![Record { lease: Lease { number: 3, port: 9 }, ..undefined }],
        ..numbered(1, 1)
    };
    let address = |number: u8| Address::from_ipv4([10, 0, 9, number]);
    let local = |number: u8| (number, Local { address: address(number), is_own: true });
    let greedy = Batch { locals: (1..=33).map(local).collect(), ..numbered(1, 1) };
    let cases: [(&str, Vec<Batch>, bool, u32); 6] = [
        ("more local addresses than there can be", vec![greedy], true, 0),
        ("undefined", vec![Batch { records: vec![undefined], ..numbered(1, 1) }], true, 0),
        ("no such local address", vec![unleased], true, 0),
        ("flood", (1..=MAX_UNACKNOWLEDGED as u64 + 1_100).map(|at| numbered(1, at)).collect(), false, 0),
        ("jumps", (1..1_100).map(|at| numbered(1, at * 2)).collect(), true, 0),
        ("strangers", (1..100).map(|at| numbered(1, at)).collect(), true, 4_000),
    ];
    for (name, batches, applies, strangers) in cases {
        let (mut machine, now) = hear(batches, applies, strangers);
        let status = machine.status(now, id(1)).expect("a peer");
        assert_eq!(status.silenced, 1, "{name}: {status:?}");
        assert!(machine.poll_delivery().is_none(), "{name}");
        machine.handle_message(now, id(1), BootId(2), PinMessage::Batch(Box::new(numbered(9, 1))));
        assert!(machine.poll_delivery().is_none(), "{name}: heard at once");
        while let Some((_, message)) = machine.poll_message(now) {
            assert!(!matches!(message, PinMessage::Subscribe(_)), "{name}: asked at once");
        }
        let later = now + Duration::from_secs(61);
        let asked =
            std::iter::from_fn(|| machine.poll_message(later)).find_map(|(_, message)| match message {
                PinMessage::Subscribe(subscription) => Some(subscription),
                _ => None,
            });
        assert_eq!(asked, Some(Subscription { boot_id: BootId(0), position: Position::default() }), "{name}");
        machine.handle_message(later, id(1), BootId(2), PinMessage::Batch(Box::new(numbered(10, 1))));
        assert!(machine.poll_delivery().is_some(), "{name}");
    }
}

#[test]
fn strangers_are_forgiven_while_the_tables_differ_and_an_odd_jump_always_is() {
    let now = Instant::now();
    let (mut machine, _) = hear([numbered(1, 1), numbered(1, 3)], true, 0);
    for sequence in 2..100 {
        machine.handle_message(now, id(1), BootId(2), PinMessage::Batch(Box::new(numbered(1, sequence))));
        let Some(Delivery { receipt, ends_snapshot, .. }) = machine.poll_delivery() else {
            panic!("not taken")
        };
        let applied = Applied { receipt, ends_snapshot, strangers: 4_000 };
        machine.handle_node(now, PinInput::Applied(applied), |_| false);
    }
    let status = machine.status(now, id(1)).expect("a peer");
    assert_eq!((status.silenced, status.refused), (0, 1));
}

#[test]
fn who_acknowledges_what_it_was_not_sent_is_not_heard() {
    let (mut machine, now) = hear([], true, 0);
    let position = Position { session: 7, sequence: 1 };
    machine.handle_message(now, id(1), BootId(2), PinMessage::Acknowledge(position));
    assert_eq!(machine.status(now, id(1)).expect("a peer").silenced, 1);
}

#[test]
fn who_asks_for_everything_again_and_again_is_not_answered() {
    let (mut machine, now) = hear([], true, 0);
    let all = Subscription { boot_id: BootId(0), position: Position::default() };
    for _ in 0..130 {
        machine.handle_message(now, id(1), BootId(2), PinMessage::Subscribe(all));
    }
    let status = machine.status(now, id(1)).expect("a peer");
    assert_eq!(status.snapshots_out, 120);
    assert!(status.silenced > 0);
}
