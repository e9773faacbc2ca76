//! What both are asked.

/// One thing that happens.
#[derive(Clone, Copy, Debug)]
pub(super) enum Step {
    /// A client opens a connection and sends something: the answer is the server it goes to.
    Open(u32),
    /// It sends a FIN.
    Finish(u32),
    /// All that are finished are forgotten.
    Expire,
    /// A server's weight changes.
    Weight(usize, u32),
}

/// A server at the beginning.
#[derive(Clone, Copy, Debug)]
pub(super) struct Given {
    pub(super) weight: u32,
    pub(super) upper: u32,
    pub(super) lower: u32,
}

/// A service, its servers in the order in which they are added, and what happens.
#[derive(Debug)]
pub(super) struct Case {
    pub(super) number: u16,
    pub(super) name: String,
    pub(super) scheduler: &'static str,
    pub(super) flags: &'static str,
    pub(super) servers: Vec<Given>,
    pub(super) steps: Vec<Step>,
    /// Clients go to so many VIPs, each a service of its own.
    pub(super) vips: u32,
}

/// The port of a case's services: each has its own, since connections outlive their service in IPVS.
pub(super) fn port(number: u16) -> u16 {
    2_000 + number
}

/// A client's address and port, spread so that hashes have something to do.
pub(super) fn client(id: u32) -> ([u8; 4], u16) {
    let mixed = id.wrapping_mul(0x9e37_79b1).rotate_left(13);
    let [a, b, ..] = mixed.to_be_bytes();
    ([198, 18 + (id & 1) as u8, a, b], 1_024 + (mixed as u16 & 0x3fff))
}

/// Numbers that look random and are always the same.
pub(super) struct Numbers(pub(super) u64);

impl Numbers {
    pub(super) fn next(&mut self) -> u32 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) as u32
    }

    pub(super) fn below(&mut self, bound: u32) -> u32 {
        self.next() % bound
    }
}

/// Arrivals and departures; `changes` are made on the way.
fn traffic(seed: u64, arrivals: u32, departures: bool, changes: &[(usize, u32)]) -> Vec<Step> {
    let mut numbers = Numbers(seed);
    let (mut steps, mut live) = (Vec::new(), Vec::new());
    let mut changes = changes.iter();
    for id in 0..arrivals {
        steps.push(Step::Open(id));
        live.push(id);
        if departures && numbers.below(5) < 3 {
            let gone = live.swap_remove(numbers.below(live.len() as u32) as usize);
            steps.push(Step::Finish(gone));
        }
        if departures && id % (arrivals / 2) == arrivals / 3 {
            steps.push(Step::Expire);
        }
        if id % 17 == 16
            && let Some((server, weight)) = changes.next()
        {
            steps.push(Step::Weight(*server, *weight));
        }
    }
    steps
}

fn servers(weights: &[u32]) -> Vec<Given> {
    weights.iter().map(|weight| Given { weight: *weight, upper: 0, lower: 0 }).collect()
}

/// Every case, always the same. All of IPVS's schedulers but `twos`, which Debian's kernel is built without.
pub(super) fn cases() -> Vec<Case> {
    const EQUAL: [u32; 5] = [1; 5];
    const WEIGHTS: [u32; 5] = [4, 1, 7, 2, 3];
    const COMMON: [u32; 4] = [20, 0, 60, 40];
    let changes = [(2, 0), (0, 9), (2, 5), (1, 0), (1, 2), (3, 1)];
    let limits = [(5, 0), (4, 2), (0, 0), (12, 3)];
    let limited = |weights: [u32; 4]| {
        let pairs = weights.into_iter().zip(limits);
        pairs.map(|(weight, (upper, lower))| Given { weight, upper, lower }).collect::<Vec<_>>()
    };
    let mut cases = Vec::new();
    let mut add = |scheduler, flags: &'static str, what: &str, servers, steps, vips| {
        let flagged = if flags.is_empty() { String::new() } else { format!("({flags})") };
        let name = format!("{scheduler}{flagged}, {what}");
        let number = cases.len() as u16;
        cases.push(Case { number, name, scheduler, flags, servers, steps, vips });
    };
    for (seed, scheduler) in (1..).zip(["rr", "wrr", "lc", "wlc", "sed", "nq", "fo", "ovf", "lblc", "lblcr"])
    {
        add(scheduler, "", "equal weights", servers(&EQUAL), traffic(seed, 100, true, &[]), 1);
        add(scheduler, "", "weights", servers(&WEIGHTS), traffic(seed + 20, 150, true, &[]), 1);
        add(scheduler, "", "changing weights", servers(&WEIGHTS), traffic(seed + 40, 130, true, &changes), 1);
        let steps = traffic(seed + 60, 120, true, &[(2, 0), (2, 4)]);
        add(scheduler, "", "thresholds and weights", limited([3, 1, 2, 5]), steps, 1);
    }
    add("wrr", "", "a common divisor", servers(&COMMON), traffic(30, 100, false, &[]), 1);
    for (seed, (scheduler, flags)) in (100..).zip([
        ("dh", ""),
        ("sh", ""),
        ("sh", "sh-port"),
        ("sh", "sh-fallback"),
        ("sh", "sh-port,sh-fallback"),
        ("mh", ""),
        ("mh", "mh-port"),
        ("mh", "mh-fallback"),
        ("mh", "mh-port,mh-fallback"),
    ]) {
        let vips = if scheduler == "dh" { 23 } else { 1 };
        add(scheduler, flags, "equal weights", servers(&EQUAL), traffic(seed, 300, false, &[]), vips);
        add(scheduler, flags, "weights", servers(&WEIGHTS), traffic(seed + 20, 300, false, &[]), vips);
        let steps = traffic(seed + 40, 300, false, &changes);
        add(scheduler, flags, "changing weights", servers(&WEIGHTS), steps, vips);
        let steps = traffic(seed + 60, 120, false, &[]);
        add(scheduler, flags, "thresholds", limited([3, 100, 2, 5]), steps, vips);
    }
    cases
}
