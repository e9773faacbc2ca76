//! Slots through their states on a virtual clock: real packets through `decide`, the pins they leave, and the sweeps.

mod dataplane_fixture;

use dataplane_fixture::cases::{HERE, INGRESS, KEY, V4};
use dataplane_fixture::memory::{Memory, mapped};
use dataplane_fixture::packets::{ACK, FIN, OUR_MAC, Packet, RST, SYN};
use director::dataplane::window::SlotWindows;
use director::dataplane::{Datagrams, Forwarding, HashInput, Ports, Protocol, RealSpec};
use director::dataplane::{ServiceAddress, ServiceSpec, Timeouts};
use director_common::slot::slot_of_flow;
use director_common::tables::Interface;
use director_common::{Forward, SLOTS, Slot, SlotState};
use proptest::prelude::*;

const SERVERS: u16 = 4;
const NOBODY: u16 = Slot::NO_POSITION;
const ESTABLISHED: u32 = 900;
const FINISHED: u32 = 120;
const OPENING: u32 = 60;
/// How long slots are held after their windows.
const MARGIN: u32 = 6;

/// A service with four real servers, its data plane, and a clock.
struct World {
    memory: Memory,
    windows: SlotWindows,
    timeouts: Timeouts,
    protocol: Protocol,
    alive: [bool; SERVERS as usize],
    generation: u32,
    /// Some connection found no room since the last tick.
    refused: bool,
    /// Flows that the sweep under way has still to look at.
    left: Option<Vec<director_common::tables::FlowKey>>,
}

impl World {
    fn new(protocol: Protocol, owners: &[u16]) -> Self {
        let slots = dealt(owners);
        let spec = ServiceSpec {
            name: "web",
            addresses: vec![ServiceAddress {
                prefix: V4.vip.parse::<std::net::IpAddr>().expect("vip").into(),
                protocol,
                ports: Ports::one(80),
            }],
            hash: HashInput::SourcePort,
            forwarding: Forwarding::DirectReturn,
            reals: (11..)
                .take(SERVERS.into())
                .map(|last| RealSpec::new(format!("10.0.2.{last}").parse().expect("address"), 80))
                .collect(),
            slots: &slots,
            timeouts: Timeouts::default(),
            datagrams: Datagrams::Tracked,
            tracking: None,
        };
        let mut memory = Memory::new(KEY);
        memory.add(&spec, |_| Some(HERE));
        memory.interfaces.insert(INGRESS, Interface { mac: OUR_MAC, flags: Interface::FLAG_NATIVE });
        let windows = SlotWindows::new(slots.iter().map(|owner| Slot::settled(*owner)).collect(), 0);
        let (timeouts, alive, generation) = (spec.timeouts, [true; SERVERS as usize], 100);
        Self { memory, windows, timeouts, protocol, alive, generation, refused: false, left: None }
    }

    fn now(&self) -> u32 {
        self.memory.now.get()
    }

    fn wait(&self, seconds: u32) {
        self.memory.now.set(self.now() + seconds);
    }

    /// Deals the slots to these servers in turn; one that is not alive owns nothing.
    fn deal(&mut self, owners: &[u16]) {
        let alive = self.alive;
        let serves = |position: u16| alive.get(usize::from(position)).copied().unwrap_or(false);
        let owners: Vec<u16> =
            owners.iter().map(|owner| if serves(*owner) { *owner } else { NOBODY }).collect();
        self.windows.change(&dealt(&owners), |position| !serves(position), self.memory.now.get());
        self.write();
    }

    /// A server dies, or comes back as one that nobody knows; its slots go to `owners`.
    fn turn(&mut self, server: u16, alive: bool, owners: &[u16]) {
        self.alive[usize::from(server)] = alive;
        self.generation += 1;
        self.memory.reals[usize::from(server)].generation = if alive { self.generation } else { 0 };
        self.deal(owners);
    }

    fn write(&mut self) {
        self.memory.slots[0] = self.windows.slots().to_vec();
    }

    fn send(&mut self, port: u16, flags: u8) -> Option<u16> {
        let (client, vip) = ((V4.client, port), (V4.vip, 80));
        let packet = match self.protocol {
            Protocol::Tcp if flags & SYN == 0 && flags & DATA == 0 => {
                Packet::tcp(client, vip, flags).with(|p| p.payload.truncate(20))
            }
            Protocol::Tcp => Packet::tcp(client, vip, flags & !DATA),
            Protocol::Udp => Packet::udp(client, vip, b"data"),
        };
        self.run(&packet)
    }

    /// An error of some router about the connection.
    fn complain(&mut self, port: u16) -> Option<u16> {
        let answer = Packet::tcp((V4.vip, 80), (V4.client, port), ACK);
        self.run(&V4.error((3, 1), &V4.shown(&answer, 8)))
    }

    /// The real server that the packet goes to, if it is forwarded.
    fn run(&mut self, packet: &Packet) -> Option<u16> {
        let decision = self.memory.run(INGRESS, &mut packet.bytes());
        let (verdict, forward) = (decision.verdict, decision.forward);
        self.refused |= forward.pin == Forward::PIN_REFUSED;
        verdict.is_forward().then_some(forward.real as u16)
    }

    /// What the data plane does in a tick that looks at so many pins.
    fn tick(&mut self, budget: usize) {
        let now = self.now();
        if std::mem::take(&mut self.refused) {
            self.windows.extend(now);
        }
        let tcp = self.protocol == Protocol::Tcp;
        if self.windows.close(self.timeouts.window(tcp, !tcp), MARGIN, None, now) != (0, 0) {
            self.write();
        }
        let mut left = self.left.take().unwrap_or_else(|| {
            self.windows.begin_pass();
            let mut flows: Vec<_> = self.memory.pins.borrow().keys().copied().collect();
            flows.sort_unstable();
            flows
        });
        for flow in left.split_off(left.len() - budget.min(left.len())) {
            let Some(pin) = self.memory.pins.borrow().get(&flow).map(|cell| cell.load()) else { continue };
            let server = pin.server();
            let is_known = server.is(&self.memory.reals[usize::from(server.position())]);
            let slot = slot_of_flow(
                &self.memory.config.hash,
                flow.source,
                flow.source_port,
                HashInput::SourcePort,
                SLOTS as u32,
            );
            let expired = self.timeouts.is_expired(&pin, tcp, now);
            if !is_known || !self.windows.keep(slot, server.position(), expired) {
                self.memory.pins.borrow_mut().remove(&flow);
            }
        }
        if left.is_empty() {
            if self.windows.end_pass().0 > 0 {
                self.write();
            }
        } else {
            self.left = Some(left);
        }
    }

    /// Windows that have had their time close, and the margins after them; what can settle does.
    fn settle(&mut self) {
        self.left = None;
        self.tick(usize::MAX);
        self.wait(MARGIN + 3);
        self.tick(usize::MAX);
        self.tick(usize::MAX);
    }

    fn pins(&self) -> usize {
        self.memory.pins.borrow().len()
    }

    /// The state of the slot that the connection from this port is in.
    fn state(&self, port: u16) -> SlotState {
        let client = mapped(V4.client.parse().expect("client"));
        let slot = slot_of_flow(&self.memory.config.hash, client, port, HashInput::SourcePort, SLOTS as u32);
        self.windows.slots()[slot as usize].state().expect("state")
    }
}

/// Says that a segment carries data.
const DATA: u8 = 0x80;

fn dealt(owners: &[u16]) -> Vec<u16> {
    (0..SLOTS).map(|slot| owners[slot % owners.len()]).collect()
}

#[test]
fn connections_stay_and_new_ones_go_to_the_new_owner() {
    let mut world = World::new(Protocol::Tcp, &[0]);
    assert_eq!(world.send(1, SYN), Some(0));
    assert_eq!(world.pins(), 0, "nothing is stored in a settled slot");
    world.deal(&[1]);
    assert_eq!((world.send(1, ACK), world.send(2, SYN), world.send(2, ACK)), (Some(0), Some(1), Some(1)));
    world.wait(ESTABLISHED);
    assert_eq!(world.send(1, ACK), Some(0), "just in time");
    world.wait(100);
    world.settle();
    assert_eq!(world.state(1), SlotState::Pinned);
    assert_eq!((world.send(1, ACK), world.send(3, ACK)), (Some(0), Some(1)));
    assert_eq!(world.pins(), 1, "what its slot says needs no pin");
    world.wait(ESTABLISHED + 3);
    world.settle();
    assert_eq!((world.state(1), world.pins()), (SlotState::Settled, 0));
    assert_eq!(world.send(1, ACK), Some(1), "had its time");
}

#[test]
fn two_changes_in_one_window_keep_all_three_generations_of_connections() {
    let mut world = World::new(Protocol::Tcp, &[0]);
    assert_eq!(world.send(1, SYN), Some(0));
    world.deal(&[1]);
    assert_eq!(world.send(2, SYN), Some(1));
    world.wait(500);
    world.deal(&[2]);
    assert_eq!(world.send(3, SYN), Some(2));
    assert_eq!([1, 2, 3].map(|port| world.send(port, ACK)), [Some(0), Some(1), Some(2)]);
    // The first change opened the window, and whoever lives has been heard of since.
    world.wait(ESTABLISHED - 500 + 3);
    world.settle();
    assert_eq!(world.state(1), SlotState::Pinned);
    assert_eq!([1, 2, 3].map(|port| world.send(port, ACK)), [Some(0), Some(1), Some(2)]);
}

#[test]
fn a_slot_that_flaps_back_keeps_what_began_meanwhile() {
    let mut world = World::new(Protocol::Tcp, &[0]);
    assert_eq!(world.send(1, SYN), Some(0));
    world.deal(&[1]);
    assert_eq!(world.send(2, SYN), Some(1));
    world.deal(&[0]);
    assert_eq!(world.state(1), SlotState::Moving, "held: another director may not be as far");
    assert_eq!([1, 2, 3].map(|port| world.send(port, ACK)), [Some(0), Some(1), Some(0)]);
    assert_eq!(world.pins(), 3);
    world.settle();
    assert_eq!((world.state(2), world.pins()), (SlotState::Pinned, 1), "whatever has no pin is the owner's");
    world.wait(30);
    world.deal(&[1]);
    assert_eq!([1, 2, 4].map(|port| world.send(port, ACK)), [Some(0), Some(1), Some(0)]);
}

/// Another director may still put in force what is given up here.
#[test]
fn what_an_epoch_holds_is_held_for_a_margin_from_its_end_on() {
    let mut windows = SlotWindows::new(vec![Slot::settled(0); 2], 0);
    assert_eq!(windows.hold(&[1, 0], |_| false, 100), 1);
    assert_eq!(windows.close(ESTABLISHED, MARGIN, Some(100), 500), (0, 0), "it is under way");
    assert!(windows.prolong(100, 500));
    assert_eq!(windows.close(ESTABLISHED, MARGIN, None, 508), (0, 0));
    assert_eq!(windows.close(ESTABLISHED, MARGIN, None, 509), (0, 1));
    assert!(!windows.prolong(100, 510), "none is held any more");
}

#[test]
fn a_dead_previous_server_is_not_waited_for() {
    let mut world = World::new(Protocol::Tcp, &[0]);
    world.turn(0, false, &[1]);
    assert_eq!((world.state(1), world.send(1, ACK)), (SlotState::Settled, Some(1)));
    // Dead while its slots move: what began meanwhile is kept, what it had is not.
    world.deal(&[2]);
    assert_eq!((world.send(5, SYN), world.send(6, ACK)), (Some(2), Some(1)));
    world.turn(1, false, &[3]);
    assert_eq!(world.state(5), SlotState::Moving, "held");
    assert_eq!((world.send(5, ACK), world.send(6, ACK), world.send(7, SYN)), (Some(2), Some(3), Some(3)));
    // A server that comes back has none of its old connections.
    world.turn(1, true, &[3]);
    assert_eq!(world.send(6, ACK), Some(3));
}

#[test]
fn a_sweep_that_comes_late_by_any_amount_tears_nothing() {
    for late in [0, 5, 3_600, 1_000_000] {
        let mut world = World::new(Protocol::Tcp, &[0]);
        assert_eq!(world.send(1, SYN), Some(0));
        world.deal(&[1]);
        for _ in 0..=late / 600 {
            world.wait(600.min(late.max(1)));
            assert_eq!(world.send(1, ACK), Some(0), "{late}");
        }
        world.settle();
        assert_eq!(world.send(1, ACK), Some(0), "{late}");
        world.settle();
        assert_eq!(world.send(1, ACK), Some(0), "{late}");
    }
}

#[test]
fn where_there_is_no_room_connections_stay_whole_and_established_pins_stay() {
    let mut world = World::new(Protocol::Tcp, &[0]);
    world.memory.pin_capacity = 2;
    world.deal(&[1]);
    assert_eq!([1, 2].map(|port| world.send(port, SYN)), [Some(1), Some(1)]);
    assert!(!world.refused);
    assert_eq!(
        [world.send(3, SYN), world.send(3, ACK)],
        [Some(0), Some(0)],
        "goes where its packets will go"
    );
    assert!(world.refused);
    for _ in 0..10 {
        world.wait(600);
        assert_eq!([1, 2, 3].map(|port| world.send(port, ACK)), [Some(1), Some(1), Some(0)]);
        world.tick(usize::MAX);
        assert_eq!(world.state(1), SlotState::Moving, "as long as there is no room");
    }
    world.memory.pin_capacity = 3;
    assert_eq!(world.send(3, ACK), Some(0));
    world.wait(600);
    assert_eq!([1, 2, 3].map(|port| world.send(port, ACK)), [Some(1), Some(1), Some(0)]);
    world.wait(303);
    world.settle();
    assert_eq!(world.state(3), SlotState::Pinned);
    assert_eq!([1, 2, 3].map(|port| world.send(port, ACK)), [Some(1), Some(1), Some(0)]);
}

#[test]
fn a_strangers_reset_moves_nothing_and_a_clients_end_frees_its_pin_early() {
    let mut world = World::new(Protocol::Tcp, &[0]);
    world.deal(&[1]);
    assert_eq!([1, 2, 3].map(|port| world.send(port, ACK)), [Some(0); 3]);
    assert_eq!((world.send(1, RST), world.send(1, ACK)), (Some(0), Some(0)));
    assert_eq!((world.send(2, FIN | ACK), world.send(2, ACK)), (Some(0), Some(0)));
    world.wait(FINISHED + 3);
    world.tick(usize::MAX);
    assert_eq!(world.pins(), 2, "the one that has ended");
    world.wait(700);
    assert_eq!((world.send(1, ACK), world.send(3, ACK)), (Some(0), Some(0)));
    // What was never more than a SYN goes soon.
    assert_eq!(world.send(4, SYN), Some(1));
    world.wait(OPENING + 3);
    world.tick(usize::MAX);
    assert_eq!(world.pins(), 2);
}

#[test]
fn flows_of_datagrams_stay_for_as_long_as_they_live() {
    let mut world = World::new(Protocol::Udp, &[0]);
    assert_eq!(world.send(1, 0), Some(0));
    world.deal(&[1]);
    world.wait(299);
    assert_eq!(world.send(1, 0), Some(0));
    world.wait(4);
    world.settle();
    assert_eq!((world.send(1, 0), world.send(2, 0)), (Some(0), Some(1)));
    world.wait(303);
    world.settle();
    assert_eq!((world.state(1), world.send(1, 0)), (SlotState::Settled, Some(1)));
}

/// One thing that happens.
#[derive(Clone, Debug)]
enum Event {
    Deal([u16; 4]),
    Dies(u16, [u16; 4]),
    Returns(u16, [u16; 4]),
    Wait(u32),
    Tick(usize),
    Begin(u16),
    Packet(u16, u8),
    Error(u16),
}

fn event() -> impl Strategy<Value = Event> {
    let owners = || prop::array::uniform4(prop_oneof![9 => 0..SERVERS, 1 => Just(NOBODY)]);
    let port = || 1_u16..24;
    let flags = prop_oneof![
        4 => Just(ACK),
        4 => Just(ACK | DATA),
        1 => Just(FIN | ACK),
        1 => Just(RST),
        1 => Just(RST | ACK),
    ];
    let time = prop_oneof![3 => 0_u32..10, 3 => 10_u32..130, 2 => 130_u32..950, 1 => 950_u32..5_000];
    prop_oneof![
        2 => owners().prop_map(Event::Deal),
        1 => (0..SERVERS, owners()).prop_map(|(server, owners)| Event::Dies(server, owners)),
        1 => (0..SERVERS, owners()).prop_map(|(server, owners)| Event::Returns(server, owners)),
        4 => time.prop_map(Event::Wait),
        4 => prop_oneof![1_usize..6, Just(usize::MAX)].prop_map(Event::Tick),
        8 => port().prop_map(Event::Begin),
        16 => (port(), flags).prop_map(|(port, flags)| Event::Packet(port, flags)),
        1 => port().prop_map(Event::Error),
    ]
}

/// A connection as its client sees it.
#[derive(Clone, Copy, Debug)]
struct Connection {
    server: u16,
    generation: u32,
    last: u32,
    /// How long it may be silent.
    patience: u32,
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(96) })]

    #[test]
    fn no_established_connection_ever_changes_its_real_server_while_that_serves(
        events in prop::collection::vec(event(), 1..160),
        capacity in prop_oneof![Just(usize::MAX), 0_usize..8],
    ) {
        let mut world = World::new(Protocol::Tcp, &[0, 1, 2, 3]);
        world.memory.pin_capacity = capacity;
        let mut connections: [Option<Connection>; 24] = [None; 24];
        for event in events {
            let now = world.now();
            let generations: Vec<u32> = world.memory.reals.iter().map(|real| real.generation).collect();
            let lives = |connection: &Connection| {
                generations[usize::from(connection.server)] == connection.generation
                    && now - connection.last <= connection.patience
            };
            match event {
                Event::Deal(owners) => world.deal(&owners),
                Event::Dies(server, owners) if world.alive[usize::from(server)] => {
                    world.turn(server, false, &owners);
                }
                Event::Returns(server, owners) if !world.alive[usize::from(server)] => {
                    world.turn(server, true, &owners);
                }
                Event::Dies(..) | Event::Returns(..) => {}
                Event::Wait(seconds) => world.wait(seconds),
                Event::Tick(budget) => world.tick(budget),
                Event::Begin(port) => {
                    let connection = &mut connections[usize::from(port)];
                    if connection.as_ref().is_some_and(lives) {
                        continue;
                    }
                    *connection = world.send(port, SYN).map(|server| Connection {
                        server,
                        generation: generations[usize::from(server)],
                        last: now,
                        patience: OPENING,
                    });
                }
                Event::Packet(port, flags) => {
                    let Some(connection) = connections[usize::from(port)].as_mut().filter(|c| lives(c)) else {
                        continue;
                    };
                    let went = world.send(port, flags);
                    prop_assert_eq!(went, Some(connection.server), "port {} flags {:#x}", port, flags);
                    connection.last = now;
                    let finished = connection.patience == FINISHED;
                    connection.patience = match flags {
                        _ if flags & (RST | FIN) != 0 => FINISHED,
                        ACK if finished => FINISHED,
                        _ => ESTABLISHED,
                    };
                }
                Event::Error(port) => {
                    let Some(connection) = connections[usize::from(port)].as_ref().filter(|c| lives(c)) else {
                        continue;
                    };
                    prop_assert_eq!(world.complain(port), Some(connection.server));
                }
            }
        }
        // When nothing happens any more, everything settles and nothing is left.
        for _ in 0..3 {
            world.refused = false;
            world.wait(10_000);
            world.settle();
        }
        prop_assert!(!world.windows.is_open());
        prop_assert_eq!(world.pins(), 0);
    }
}
