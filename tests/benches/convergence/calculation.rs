//! The calculation of routes in a large domain, in this process: the pure core gets the domain by packets, as from a
//! neighbour.

use std::{
    net::Ipv4Addr,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use routing::{
    Config, InterfaceConfig, Network, Time,
    packet::{Body, LinkKind, Lsa, LsaKey, OPTION_E, Packet, ROUTER, RouterBody, RouterLink, V2},
    speaker::{Input, InterfaceId, Link, Machine, Output},
};

const ROUTERS: u32 = 1000;
const PREFIXES: u32 = 10;
const LINK: InterfaceId = InterfaceId(0);
/// LSAs in one packet.
const BATCH: usize = 8;

/// What it took.
pub(crate) struct Calculation {
    /// Each one's time, sorted.
    pub(crate) spans: Vec<Duration>,
    /// Memory for the database and the routes, in bytes, as the process grew.
    pub(crate) memory: u64,
    /// Routes that came out.
    pub(crate) routes: usize,
}

/// Two machines on one link and a clock that is ours.
struct Pair {
    machines: [Machine<V2>; 2],
    now: Time,
    routes: usize,
    /// The longest that the first machine was busy at once.
    longest: Duration,
}

fn id(machine: usize) -> Ipv4Addr {
    Ipv4Addr::from(0x0aff_0001 + u32::try_from(machine).unwrap_or_default())
}

fn address(machine: usize) -> Ipv4Addr {
    Ipv4Addr::from(0x0a09_0001 + u32::try_from(machine).unwrap_or_default())
}

impl Pair {
    fn new() -> Result<Self> {
        let machine = |at: usize| -> Result<Machine<V2>> {
            let interface = InterfaceConfig::new("eth0", Network::PointToPoint);
            let mut machine = Machine::new(Config::new(id(at), vec![interface]), 7)?;
            let address = format!("{}/30", address(at)).parse().context("an address")?;
            let link = Link { up: true, index: 1, mtu: 1500, address: Some(address) };
            machine.handle(Time::ZERO, Input::Link { interface: LINK, link });
            machine.handle(Time::ZERO, Input::Enable);
            Ok(machine)
        };
        Ok(Self { machines: [machine(0)?, machine(1)?], now: Time::ZERO, routes: 0, longest: Duration::ZERO })
    }

    fn handle(&mut self, at: usize, input: Input<V2>) {
        let start = Instant::now();
        self.machines[at].handle(self.now, input);
        if at == 0 {
            self.longest = self.longest.max(start.elapsed());
        }
    }

    /// Carries packets until nobody has anything to say.
    fn exchange(&mut self) {
        loop {
            let mut quiet = true;
            for at in 0..2 {
                while let Some(output) = self.machines[at].poll_output() {
                    quiet = false;
                    match output {
                        Output::Send { destination, payload, .. } => {
                            let input = packet(at, destination, payload.to_vec());
                            self.handle(1 - at, input);
                        }
                        Output::Routes(routes) if at == 0 => self.routes = routes.len(),
                        _ => {}
                    }
                }
            }
            if quiet {
                return;
            }
        }
    }

    /// Lets time go by.
    fn run(&mut self, span: Duration) {
        let end = self.now + span;
        loop {
            self.exchange();
            let due = |machine: &Machine<V2>| machine.next_deadline();
            let next = self.machines.iter().filter_map(due).min().filter(|next| *next <= end);
            let Some(next) = next else { break };
            self.now = self.now.max(next);
            for at in 0..2 {
                if self.machines[at].next_deadline().is_some_and(|due| due <= self.now) {
                    self.handle(at, Input::Timer);
                }
            }
        }
        self.now = end;
    }

    /// The first machine hears LSAs from the second one, which never held them.
    fn tell(&mut self, lsas: Vec<Lsa>) {
        let update = Packet { router: id(1), area: Ipv4Addr::UNSPECIFIED, body: Body::Update(lsas) };
        self.handle(0, packet(1, address(0), update.emit().to_vec()));
        self.exchange();
    }
}

fn packet(from: usize, destination: Ipv4Addr, payload: Vec<u8>) -> Input<V2> {
    Input::Packet { interface: LINK, source: address(from), destination, payload }
}

fn router(number: u32) -> Ipv4Addr {
    Ipv4Addr::from(0x0a64_0000 + number)
}

fn to(other: Ipv4Addr, metric: u16) -> RouterLink {
    RouterLink { kind: LinkKind::PointToPoint, id: other, data: Ipv4Addr::UNSPECIFIED, metric }
}

fn lsa(originator: Ipv4Addr, sequence: i32, links: Vec<RouterLink>) -> Result<Lsa> {
    let key = LsaKey { kind: ROUTER, id: originator, router: originator };
    Ok(Lsa::build(key, OPTION_E, sequence, &RouterBody { flags: 0, links }.emit())?)
}

/// One of a grid of rows of ten, linked to its neighbours, with ten prefixes; the first is linked to the neighbour.
fn grid_router(number: u32, sequence: i32, metric: u16) -> Result<Lsa> {
    let across = [(!number.is_multiple_of(10), number.wrapping_sub(1)), (number % 10 < 9, number + 1)];
    let along = [(number >= 10, number.wrapping_sub(10)), (number + 10 < ROUTERS, number + 10)];
    let others = across.into_iter().chain(along).filter(|(there, _)| *there);
    let links = others.map(|(_, other)| to(router(other), metric));
    let stub = |n: u32| RouterLink {
        kind: LinkKind::Stub,
        id: Ipv4Addr::from(0x1400_0000 + ((number * PREFIXES + n) << 8)),
        data: Ipv4Addr::new(255, 255, 255, 0),
        metric: 1,
    };
    let door = (number == 0).then(|| to(id(1), 10));
    lsa(router(number), sequence, links.chain((0..PREFIXES).map(stub)).chain(door).collect())
}

/// Bytes of memory that this process has in use.
fn resident() -> Result<u64> {
    let status = std::fs::read_to_string("/proc/self/status").context("/proc/self/status")?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).context("VmRSS")?;
    let kilobytes: u64 = line.trim().trim_end_matches(" kB").parse().context("VmRSS in kB")?;
    Ok(kilobytes * 1024)
}

/// Has the domain calculated `runs` times, each time because the cost of some links has changed.
///
/// # Errors
/// The two machines do not become adjacent, or not all routes come out.
pub(crate) fn measure(runs: usize) -> Result<Calculation> {
    let mut pair = Pair::new()?;
    pair.run(Duration::from_secs(15));
    let full = |machine: &Machine<V2>| {
        machine.status().neighbors.iter().any(|one| one.state == routing::NeighborState::Full)
    };
    ensure!(pair.machines.iter().all(full), "not adjacent: {:?}", pair.machines[0].status());
    let before = resident()?;
    // The neighbour's own LSA with one link more than it has, in an instance that it never made.
    let neighbour = lsa(id(1), 0x1000, vec![to(id(0), 10), to(router(0), 10)])?;
    let mut lsas = vec![neighbour];
    for number in 0..ROUTERS {
        lsas.push(grid_router(number, 1, 10)?);
    }
    for batch in lsas.chunks(BATCH) {
        pair.tell(batch.to_vec());
    }
    drop(lsas);
    pair.run(Duration::from_secs(20));
    let memory = resident()?.saturating_sub(before);
    let mut spans = Vec::new();
    for run in 0..runs {
        let change = i32::try_from(run)? + 2;
        pair.longest = Duration::ZERO;
        pair.tell(vec![grid_router(555, change, if run % 2 == 0 { 20 } else { 10 })?]);
        pair.run(Duration::from_secs(20));
        spans.push(pair.longest);
    }
    let routes = pair.routes;
    ensure!(routes >= usize::try_from(ROUTERS * PREFIXES)?, "{routes} routes");
    let newest = pair.machines[0].status().spf_events;
    let full = newest.iter().rev().take(runs).filter(|event| event.extent == routing::speaker::Extent::Full);
    ensure!(full.count() == runs, "not every change had all calculated: {newest:?}");
    spans.sort_unstable();
    Ok(Calculation { spans, memory, routes })
}
