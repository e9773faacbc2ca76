//! Our answers to a case, by the library that the program in the kernel uses.

use std::collections::BTreeMap;

use director_common::schedulers::wheel::turn;
use director_common::schedulers::{
    Buckets, Level, Locality, MAX_WHEEL, Method, ReplicatedLocality, Scan, Server, Thresholds, Wheel,
    destination, least, maglev, source,
};
use director_common::tables::Address;

use super::Answers;
use super::cases::{Case, Step, client};

/// A service at work.
struct Service<'a> {
    case: &'a Case,
    /// By number.
    servers: Vec<Server>,
    /// Last weights above 0.
    last_weights: Vec<u32>,
    wheel: Vec<u16>,
    cursor: u64,
    /// Where `wrr` stands, and whom `rr` chose last.
    level: Level,
    last: Option<usize>,
    buckets: Buckets,
    table: Box<maglev::Table>,
    locality: Locality,
    replicated: ReplicatedLocality,
}

impl<'a> Service<'a> {
    fn new(case: &'a Case) -> Self {
        let mut service = Self {
            case,
            servers: Vec::new(),
            last_weights: Vec::new(),
            wheel: Vec::new(),
            cursor: 0,
            level: Level::default(),
            last: None,
            buckets: [u16::MAX; _],
            table: Box::new([u16::MAX; _]),
            locality: Locality::default(),
            replicated: ReplicatedLocality::default(),
        };
        for given in &case.servers {
            service.servers.push(Server { weight: given.weight, ..Server::default() });
            service.last_weights.push(given.weight);
            service.change();
        }
        service
    }

    /// IPVS puts a new server in front of the others.
    fn place(&self, number: usize) -> usize {
        self.servers.len() - 1 - number
    }

    fn pool(&self) -> Vec<Server> {
        self.servers.iter().rev().copied().collect()
    }

    /// What every change of the servers brings about.
    fn change(&mut self) {
        let pool = self.pool();
        let turns = self.case.scheduler == "rr";
        let weights: Vec<u32> =
            pool.iter().map(|server| if turns { server.weight.min(1) } else { server.weight }).collect();
        let wheel = Wheel::new(&weights);
        self.wheel = vec![0; MAX_WHEEL];
        let length = wheel.fill(&mut self.wheel) as usize;
        self.wheel.truncate(length);
        if turns {
            let behind = self.last.map(|last| self.place(last));
            let next =
                self.wheel.iter().position(|place| behind.is_some_and(|last| usize::from(*place) > last));
            self.cursor = next.unwrap_or(0) as u64;
        } else {
            self.level = wheel.adopt(self.level);
            self.cursor = wheel.begin(self.level);
        }
        self.buckets = match self.case.scheduler {
            "dh" => destination::deal(pool.len() as u16),
            _ => source::deal(&pool[..]),
        };
        if self.case.scheduler == "mh" {
            let member = |number: usize| maglev::Member {
                address: Address::from_ipv4([10, 0, 2, 11 + number as u8]),
                port: super::cases::port(self.case.number),
                weight: self.last_weights[number],
            };
            let members: Vec<_> = (0..self.servers.len()).rev().map(member).collect();
            let mut walks = vec![maglev::Walk::default(); members.len()];
            maglev::deal(&members, &mut walks, &mut self.table);
        }
    }

    fn pick(&mut self, vip: u32, id: u32) -> Option<usize> {
        let pool = &self.pool()[..];
        let has = |flag: &str| self.case.flags.contains(flag);
        let (from, port) = client(id);
        let source_address = Address::from_ipv4(from);
        let port_of = |flag: &str| if has(flag) { port } else { 0 };
        let place = match (self.case.scheduler, Method::from_name(self.case.scheduler)) {
            ("rr" | "wrr", _) => {
                let place = turn(&self.wheel, &mut self.cursor, pool);
                if place != u32::MAX && self.case.scheduler == "wrr" {
                    let weights: Vec<u32> = pool.iter().map(|server| server.weight).collect();
                    let at = (self.cursor - 1) % self.wheel.len() as u64;
                    self.level = Wheel::new(&weights).entries().nth(at as usize).expect("on the wheel").1;
                }
                Some(place)
            }
            (_, Some(method)) => Some(least(method, pool, &Scan::default())),
            ("lblc", _) => self.locality.pick(pool),
            ("lblcr", _) => self.replicated.pick(pool, 0, 86_400),
            ("dh", _) => {
                destination::pick(&self.buckets, &Address::from_ipv4([203, 0, 113, 10 + vip as u8]), pool)
            }
            ("sh", _) => {
                source::pick(&self.buckets, &source_address, port_of("sh-port"), has("sh-fallback"), pool)
            }
            ("mh", _) => {
                maglev::pick(&self.table, &source_address, port_of("mh-port"), has("mh-fallback"), pool)
            }
            (other, _) => panic!("no scheduler {other}"),
        };
        let number = place.filter(|place| *place != u32::MAX).map(|place| self.place(place as usize))?;
        self.last = Some(number);
        Some(number)
    }

    fn thresholds(&self, number: usize) -> Thresholds {
        let given = &self.case.servers[number];
        Thresholds { upper: given.upper, lower: given.lower }
    }

    fn arrive(&mut self, number: usize) {
        let thresholds = self.thresholds(number);
        let server = &mut self.servers[number];
        server.active += 1;
        let total = u64::from(server.active + server.inactive);
        server.overloaded = thresholds.after_arrival(server.overloaded != 0, total).into();
    }

    fn depart(&mut self, number: usize) {
        let thresholds = self.thresholds(number);
        let server = &mut self.servers[number];
        server.inactive -= 1;
        let total = u64::from(server.active + server.inactive);
        server.overloaded = thresholds.after_departure(server.overloaded != 0, total).into();
    }
}

/// Plays a case.
pub(super) fn replay(case: &Case) -> Answers {
    let mut services: Vec<Service<'_>> = (0..case.vips).map(|_| Service::new(case)).collect();
    let (mut answers, mut open, mut finished) = (Answers::new(), BTreeMap::new(), Vec::new());
    for step in &case.steps {
        match *step {
            Step::Open(id) => {
                let vip = id % case.vips;
                let service = &mut services[vip as usize];
                let answer = service.pick(vip, id);
                if let Some(number) = answer {
                    service.arrive(number);
                    open.insert(id, number);
                }
                answers.push(answer);
            }
            Step::Finish(id) => {
                if let Some(number) = open.remove(&id) {
                    let vip = (id % case.vips) as usize;
                    services[vip].servers[number].active -= 1;
                    services[vip].servers[number].inactive += 1;
                    finished.push((vip, number));
                }
            }
            Step::Expire => finished.drain(..).for_each(|(vip, number)| services[vip].depart(number)),
            Step::Weight(number, weight) => {
                for service in &mut services {
                    let before = service.thresholds(number);
                    let server = &mut service.servers[number];
                    server.weight = weight;
                    server.overloaded = before.after_change(&before, server.overloaded != 0).into();
                    if weight != 0 {
                        service.last_weights[number] = weight;
                    }
                    service.change();
                }
            }
        }
    }
    answers
}
