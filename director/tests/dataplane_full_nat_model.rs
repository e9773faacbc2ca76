//! Who has which local address and port when: histories of full NAT on a virtual clock, against a model.

mod dataplane_fixture;

use std::collections::{BTreeSet, HashMap};
use std::net::SocketAddr;

use dataplane_fixture::cases::{INGRESS, V4};
use dataplane_fixture::full_nat::{ANSWERED, LOCALS, MAPPED, PORT, begin, ends, ip, memory, sent, tcp};
use dataplane_fixture::memory::Memory;
use dataplane_fixture::packets::{ACK, FIN, Packet, RST, SYN, SYN_ACK};
use director::dataplane::{Method, Ports, Timeouts};
use director_common::Verdict;
use director_common::pin::PinState;
use director_common::pin::table::Trace;
use director_common::tables::Lease;
use director_common::verdict::DropReason;
use proptest::prelude::*;

/// User space's part in the tables of [`Memory`]: what `dataplane/sweep.rs` and `dataplane/leases.rs` do in the kernel's.
#[derive(Default)]
struct Sweeper {
    vacant: HashMap<(u64, u64), u32>,
}

/// As in `dataplane/leases.rs`.
const LINGER: u32 = 120;

impl Sweeper {
    fn tick(&mut self, memory: &Memory) {
        let (now, timeouts) = (memory.now.get(), Timeouts::default());
        let mut ended = Vec::new();
        for table in [&memory.half_open, &memory.pins] {
            table.borrow_mut().retain(|flow, cell| {
                let stays = !timeouts.is_expired(&cell.load(), flow.protocol == 6, now);
                if !stays {
                    ended.push(*flow);
                }
                stays
            });
        }
        let held: HashMap<(u64, u64), Lease> = {
            let (pins, half_open) = (memory.pins.borrow(), memory.half_open.borrow());
            let leased = memory.leased.borrow();
            let flows = pins.keys().chain(half_open.keys());
            flows.map(|flow| (key(&memory.config.pins.of(flow)), leased[flow])).collect()
        };
        let expired: BTreeSet<(u64, u64)> =
            ended.iter().map(|flow| key(&memory.config.pins.of(flow))).collect();
        memory.leases.borrow_mut().retain(|trace, (pin, owner)| {
            let owner = (owner.first, owner.second);
            if held.get(&owner) == Some(&Lease::unpacked(pin.server())) {
                return true;
            }
            let since = *self.vacant.entry(*trace).or_insert(now);
            let is_over = expired.contains(&owner) || now >= since + LINGER;
            if is_over {
                self.vacant.remove(trace);
            }
            !is_over
        });
        let mut leased = memory.leased.borrow_mut();
        leased.retain(|flow, _| held.contains_key(&key(&memory.config.pins.of(flow))));
    }
}

fn key(trace: &Trace) -> (u64, u64) {
    (trace.first, trace.second)
}

/// One step of a history.
#[derive(Clone, Copy, Debug)]
enum Step {
    /// A client's packet.
    Client { number: u16, flags: u8 },
    /// A client's datagram.
    Datagram { number: u16 },
    /// What the real server sends on the connection of the last request of this client, or of an older one.
    Server { number: usize, flags: u8 },
    /// Time passes.
    Wait { seconds: u32 },
}

fn step() -> impl Strategy<Value = Step> {
    let flags = || prop_oneof![4 => Just(SYN), 6 => Just(ACK), 2 => Just(FIN | ACK), 1 => Just(RST)];
    prop_oneof![
        6 => (0_u16..24, flags()).prop_map(|(number, flags)| Step::Client { number, flags }),
        2 => (0_u16..24).prop_map(|number| Step::Datagram { number }),
        4 => (any::<usize>(), flags()).prop_map(|(number, flags)| {
            Step::Server { number, flags: if flags == SYN { SYN_ACK } else { flags } }
        }),
        2 => prop_oneof![Just(1), Just(5), Just(61), Just(130), Just(1_000)]
            .prop_map(|seconds| Step::Wait { seconds }),
    ]
}

/// What is known of a local end towards a real server: whose it is, and when a packet passed last.
type Ends = HashMap<(u8, SocketAddr, SocketAddr), (u16, u32, bool)>;

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(400) })]

    /// No local address and port is ever two connections' at once, nor another one's before the real server has forgotten
    /// the first; what comes back goes to whoever has it; and what has ended frees what it had.
    #[test]
    fn nobody_ever_gets_what_another_has(steps in prop::collection::vec(step(), 1..250), ports in 4_u16..60) {
        let ports = Ports { first: 3_000, last: 3_000 + ports - 1 };
        let (memory, mut sweeper, mut seen) =
            (memory(Method::RoundRobin, &LOCALS[..1], ports), Sweeper::default(), Ends::new());
        let f = V4;
        for step in steps {
            let now = memory.now.get();
            match step {
                Step::Wait { seconds } => {
                    for _ in 0..2 {
                        memory.now.set(memory.now.get() + seconds.div_ceil(2));
                        sweeper.tick(&memory);
                    }
                }
                Step::Client { .. } | Step::Datagram { .. } => {
                    let (packet, number, protocol, opens) = match step {
                        Step::Client { number, flags } => (tcp(&f, 40_000 + number, flags), number, 6, flags == SYN),
                        Step::Datagram { number } => {
                            (Packet::udp((f.client, 40_000 + number), (f.vip, PORT), b"q").summed(), number, 17, true)
                        }
                        _ => unreachable!(),
                    };
                    let mut out = packet.bytes();
                    match memory.run(INGRESS, &mut out).verdict {
                        Verdict::Transmit => {}
                        Verdict::Drop(DropReason::NoLocalPort) => {
                            prop_assert!(opens, "{:?}", step);
                            continue;
                        }
                        Verdict::Drop(DropReason::NoConnection) => {
                            prop_assert!(!opens, "{:?}", step);
                            continue;
                        }
                        other => return Err(TestCaseError::fail(format!("{other:?} of {step:?}"))),
                    }
                    let (local, real) = ends(&f, &out);
                    if let Some((other, last, _)) = seen.get(&(protocol, local, real)) {
                        // TIME_WAIT of Linux is 60 s, half-open connections are forgotten by then.
                        prop_assert!(*other == number || now > last + 60, "{:?} at {}: {} since {}", step, now, other, last);
                    }
                    seen.insert((protocol, local, real), (number, now, opens && protocol == 6));
                }
                Step::Server { number, flags } => {
                    let mut known: Vec<_> = seen.iter().map(|(ends, whose)| (*ends, *whose)).collect();
                    known.sort_unstable();
                    let Some((ends_of, (whose, ..))) = known.get(number % known.len().max(1)).copied() else { continue };
                    let (protocol, local, real) = ends_of;
                    let (from, to) = (real.ip().to_string(), local.ip().to_string());
                    let packet = match protocol {
                        6 => Packet::tcp((&from, real.port()), (&to, local.port()), flags).summed(),
                        _ => Packet::udp((&from, real.port()), (&to, local.port()), b"a").summed(),
                    };
                    let mut out = packet.bytes();
                    match memory.run(INGRESS, &mut out).verdict {
                        Verdict::Reply(_) => {
                            let client = SocketAddr::new(ip(f.client), 40_000 + whose);
                            prop_assert_eq!(ends(&f, &out), (SocketAddr::new(ip(f.vip), PORT), client));
                            seen.insert(ends_of, (whose, now, false));
                        }
                        Verdict::Pass(_) => prop_assert_eq!(out, packet.bytes()),
                        other => return Err(TestCaseError::fail(format!("{other:?} of {step:?}"))),
                    }
                }
            }
            let leases = memory.leases.borrow().len();
            prop_assert!(leases <= 2 * 2 * usize::from(ports.last - ports.first + 1), "{leases}");
            prop_assert!(memory.loads.borrow().iter().all(|load| load.active < 1 << 32 && load.inactive < 1 << 32));
        }
        // Everything that was begun ends, by time alone, and so is every port free again.
        for _ in 0..4 {
            memory.now.set(memory.now.get() + 1_000);
            sweeper.tick(&memory);
        }
        prop_assert_eq!(memory.leases.borrow().len(), 0);
        prop_assert_eq!(memory.pins.borrow().len() + memory.half_open.borrow().len(), 0);
    }
}

/// RST and FIN of either side shorten a connection's life, and its port is free when that is over; no earlier.
#[test]
fn a_connection_that_has_ended_frees_its_port_when_it_has_had_its_time() {
    for (ending, by_server) in [(FIN | ACK, false), (FIN | ACK, true), (RST, false), (RST, true)] {
        let memory = memory(Method::Slots, &LOCALS[..1], Ports { first: 3_000, last: 3_001 });
        let mut sweeper = Sweeper::default();
        let f = V4;
        let (address, port) = begin(&memory, &f, &tcp(&f, 1, SYN));
        sent(&memory, &tcp(&f, 1, ACK), Verdict::Transmit);
        let answer = |flags| Packet::tcp((f.real, MAPPED), (&address, port), flags).summed();
        if by_server {
            sent(&memory, &answer(ending), ANSWERED);
        } else {
            sent(&memory, &tcp(&f, 1, ending), Verdict::Transmit);
        }
        // What was under way when the client reset it does not bring it back.
        if ending == RST {
            sent(&memory, &answer(ACK), ANSWERED);
        }
        let flow = memory.pins.borrow().keys().next().copied().expect("it goes on");
        let state = memory.pins.borrow()[&flow].load().state();
        assert_eq!(state, if ending == RST { PinState::Reset } else { PinState::Finished });
        assert_eq!(memory.loads.borrow()[0].active, 0);
        for (wait, leases) in [(119, 1), (4, 0)] {
            memory.now.set(memory.now.get() + wait);
            sweeper.tick(&memory);
            assert_eq!(memory.leases.borrow().len(), leases, "after {wait} s more, by {by_server}");
        }
    }
}
