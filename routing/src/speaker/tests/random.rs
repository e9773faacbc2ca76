//! Random networks of 2 to 40 speakers: links that lose, duplicate and reorder, that fail with and without a word, and
//! speakers that are killed and come back. When all that is over, the databases are equal, and everybody's routes are those
//! of an oracle that knows the topology and no LSA.
//!
//! Everything follows from one seed. `OSPF_SEED=… cargo test -p routing random` replays a history that failed, and
//! `OSPF_HISTORIES=500` tries more of them than usual.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::Ipv4Addr,
    time::Duration,
};

use ipnet::{IpNet, Ipv4Net, Ipv6Net};

use super::{
    fast, seconds,
    simulator::{Family, Faults, Network as Simulated},
};
use crate::{
    config::{InterfaceConfig, Metric, Network},
    packet::{MAX_LINK_METRIC, V2, v3::V3},
    speaker::{InterfaceId, NextHop},
};

/// Everything is at rest again within this, once nothing happens any more: dead intervals and elections are 4 seconds each.
const REST: Duration = Duration::from_secs(60);

/// Prefixes to announce, by number.
trait Hosts: Family {
    fn host(number: u8) -> Self::Net;
}

impl Hosts for V2 {
    fn host(number: u8) -> Ipv4Net {
        Ipv4Net::new_assert(Ipv4Addr::new(203, 0, 113, number), 32)
    }
}

impl Hosts for V3 {
    fn host(number: u8) -> Ipv6Net {
        format!("2001:db8:ffff::{number:x}/128").parse().expect("a prefix")
    }
}

/// Somebody's end of a segment.
#[derive(Clone, Debug)]
struct Member {
    node: usize,
    cost: u16,
    priority: u8,
}

#[derive(Clone, Debug)]
struct Segment {
    network: Network,
    members: Vec<Member>,
    up: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Vertex {
    /// By the place of its segment.
    Lan(usize),
    Router(usize),
}

type Hops = BTreeSet<NextHop>;
type Routes = BTreeMap<IpNet, (u32, Hops)>;

struct World<V: Hosts> {
    sim: Simulated<V>,
    segments: Vec<Segment>,
    alive: Vec<bool>,
    announced: Vec<Vec<(V::Net, Metric)>>,
}

/// Keeps the best of what is offered, and all that is as good.
fn offer<K: Ord>(best: &mut BTreeMap<K, (u32, Hops)>, key: K, cost: u32, hops: &Hops) {
    let known = best.entry(key).or_insert((u32::MAX, Hops::new()));
    if cost < known.0 {
        *known = (cost, hops.clone());
    } else if cost == known.0 {
        known.1.extend(hops);
    }
}

impl<V: Hosts> World<V> {
    /// A connected network, each node with a way to those before it.
    fn new(seed: u64) -> Self {
        let mut sim = Simulated::<V>::new(seed);
        sim.is_traced = false;
        // Small ones find most, and are readable when they do.
        let most = [6, 12, 40][usize::try_from(sim.draw(3)).expect("small")];
        let count = 2 + sim.draw(most - 1);
        let count = usize::try_from(count).expect("small");
        let mut segments: Vec<Segment> = Vec::new();
        let extra = sim.draw(1 + count as u64);
        let ends = (1..count).map(|node| (node, node)).chain((0..extra).map(|_| (count, count)));
        for (node, below) in ends.collect::<Vec<_>>() {
            let node = if node == count { pick(&mut sim, count) } else { node };
            let other = pick(&mut sim, below);
            join(&mut sim, &mut segments, node, other);
        }
        for segment in &segments {
            let members: Vec<_> = segment
                .members
                .iter()
                .map(|member| {
                    let base = fast(segment.network, member.priority);
                    (member.node, InterfaceConfig { cost: member.cost, ..base })
                })
                .collect();
            sim.segment(&members);
        }
        sim.start();
        let mut world = Self { sim, segments, alive: vec![true; count], announced: vec![Vec::new(); count] };
        for node in 0..count {
            world.announce(node);
        }
        world
    }

    /// Another choice of prefixes, some of which others announce, too.
    fn announce(&mut self, node: usize) {
        let count = self.sim.draw(4);
        let mut prefixes = BTreeMap::new();
        for _ in 0..count {
            let number = u8::try_from(self.sim.draw(12)).expect("small");
            prefixes.insert(number, Metric::try_from(self.sim.draw(30)).expect("small"));
        }
        self.announced[node] = prefixes.into_iter().map(|(n, metric)| (V::host(n), metric)).collect();
        self.sim.announce(node, &self.announced[node]);
    }

    fn restart(&mut self, node: usize) {
        self.alive[node] = true;
        self.sim.restart(node);
        self.sim.announce(node, &self.announced[node]);
    }

    fn set_link(&mut self, segment: usize, up: bool) {
        self.segments[segment].up = up;
        self.sim.set_link(segment, up);
    }

    /// One thing that happens.
    fn disturb(&mut self) {
        let node = pick(&mut self.sim, self.alive.len());
        let segment = pick(&mut self.sim, self.segments.len());
        match self.sim.draw(7) {
            0 => {
                self.alive[node] = false;
                self.sim.kill(node);
            }
            1 | 2 => self.restart(node),
            3 => {
                let up = !self.segments[segment].up;
                self.set_link(segment, up);
            }
            4 => {
                let cut = self.sim.draw(2) == 0;
                self.sim.cut(segment, cut);
            }
            _ => {
                self.announce(node);
            }
        }
    }

    /// Members of a segment that speak on it.
    fn speaking(&self, at: usize) -> impl Iterator<Item = &Member> {
        let segment = &self.segments[at];
        segment.members.iter().filter(|member| segment.up && self.alive[member.node])
    }

    /// Whether adjacencies form on it: on a broadcast network somebody has to be designated router.
    fn joins(&self, at: usize) -> bool {
        let broadcast = self.segments[at].network == Network::Broadcast;
        self.speaking(at).count() >= 2 && (!broadcast || self.speaking(at).any(|member| member.priority > 0))
    }

    fn is_connected(&self) -> bool {
        let Some(first) = self.alive.iter().position(|alive| *alive) else { return false };
        let mut reached = BTreeSet::from([first]);
        loop {
            let joined = (0..self.segments.len()).filter(|at| self.joins(*at)).filter_map(|at| {
                let members: Vec<_> = self.speaking(at).map(|member| member.node).collect();
                members.iter().any(|node| reached.contains(node)).then_some(members)
            });
            let more: BTreeSet<_> = joined.flatten().chain(reached.iter().copied()).collect();
            if more.len() == reached.len() {
                break;
            }
            reached = more;
        }
        reached.len() == self.alive.iter().filter(|alive| **alive).count()
    }

    /// Repairs no more than what parts the living from each other.
    fn repair(&mut self) {
        self.sim.faults = Faults::default();
        for segment in 0..self.segments.len() {
            self.sim.cut(segment, false);
        }
        while !self.is_connected() {
            if let Some(down) = self.segments.iter().position(|segment| !segment.up) {
                self.set_link(down, true);
            } else {
                let dead = self
                    .alive
                    .iter()
                    .position(|alive| !alive)
                    .expect("all links are up, so somebody is dead");
                self.restart(dead);
            }
        }
    }

    /// The number of a node's interface to a segment.
    fn interface(&self, node: usize, segment: usize) -> InterfaceId {
        let attached = |at: &Segment| at.members.iter().any(|member| member.node == node);
        InterfaceId(self.segments[..segment].iter().filter(|at| attached(at)).count())
    }

    /// The address of a node on a segment.
    fn gateway(&self, node: usize, segment: usize) -> std::net::IpAddr {
        let host = self.segments[segment].members.iter().position(|member| member.node == node);
        let host = u8::try_from(host.expect("a member") + 1).expect("few");
        V::address(&V::attached(u8::try_from(segment).expect("few"), host)).into()
    }

    /// Dijkstra over the topology: costs and next hops of routers and broadcast networks. Only the first link costs what its
    /// interface says; all others are links of somebody who is no way through.
    fn shortest_paths(&self, from: usize) -> BTreeMap<Vertex, (u32, Hops)> {
        let (mut open, mut done) = (BTreeMap::new(), BTreeMap::<Vertex, (u32, Hops)>::new());
        let mut next = Some((Vertex::Router(from), (0, Hops::new())));
        while let Some((vertex, (cost, hops))) = next {
            for segment in (0..self.segments.len()).filter(|at| self.joins(*at)) {
                let broadcast = self.segments[segment].network == Network::Broadcast;
                for member in self.speaking(segment) {
                    let gateway = Some(self.gateway(member.node, segment));
                    let resolved = |hop: &NextHop| NextHop { gateway: hop.gateway.or(gateway), ..*hop };
                    let first =
                        |gateway| Hops::from([NextHop { interface: self.interface(from, segment), gateway }]);
                    let leaving = self.speaking(segment).find(|own| Vertex::Router(own.node) == vertex);
                    let link = leaving.map(|own| if own.node == from { own.cost } else { MAX_LINK_METRIC });
                    let (to, cost, hops) = match (vertex, link) {
                        (Vertex::Lan(at), _) if at == segment => {
                            (Vertex::Router(member.node), cost, hops.iter().map(resolved).collect())
                        }
                        (Vertex::Router(node), Some(link)) => {
                            let to =
                                if broadcast { Vertex::Lan(segment) } else { Vertex::Router(member.node) };
                            let gateway = gateway.filter(|_| !broadcast);
                            (
                                to,
                                cost + u32::from(link),
                                if node == from { first(gateway) } else { hops.clone() },
                            )
                        }
                        _ => continue,
                    };
                    if to != vertex && !done.contains_key(&to) {
                        offer(&mut open, to, cost, &hops);
                    }
                }
            }
            done.insert(vertex, (cost, hops));
            // The nearest, and of these the networks first: they have routers at no further cost.
            next = open.iter().map(|(vertex, (cost, _))| (*cost, *vertex)).min().map(|(_, nearest)| {
                let reach = open.remove(&nearest).expect("found just now");
                (nearest, reach)
            });
        }
        done
    }

    fn prefix_of(segment: usize) -> IpNet {
        V::nets(&V::attached(u8::try_from(segment).expect("few"), 1))[0].trunc()
    }

    /// What a node's routes should be: to whatever others have that it has not itself.
    fn expected(&self, node: usize) -> Routes {
        let tree = self.shortest_paths(node);
        let mut routes = Routes::new();
        for (segment, at) in self.segments.iter().enumerate() {
            let prefix = Self::prefix_of(segment);
            if at.network == Network::Broadcast && self.joins(segment) {
                if let Some((cost, hops)) = tree.get(&Vertex::Lan(segment)) {
                    offer(&mut routes, prefix, *cost, hops);
                }
                continue;
            }
            for member in self.speaking(segment) {
                if let Some((cost, hops)) = tree.get(&Vertex::Router(member.node)) {
                    offer(&mut routes, prefix, cost + u32::from(member.cost), hops);
                }
            }
        }
        for (other, announced) in self.announced.iter().enumerate().filter(|(other, _)| self.alive[*other]) {
            for (prefix, metric) in announced {
                if let Some((cost, hops)) = tree.get(&Vertex::Router(other)) {
                    offer(&mut routes, (*prefix).into(), cost + u32::from(*metric), hops);
                }
            }
        }
        let own = |prefix: &IpNet| {
            let attached = (0..self.segments.len()).any(|at| {
                Self::prefix_of(at) == *prefix && self.speaking(at).any(|member| member.node == node)
            });
            attached || self.announced[node].iter().any(|(announced, _)| (*announced).into() == *prefix)
        };
        routes.retain(|prefix, _| !own(prefix));
        routes
    }

    /// What is not as it should be, if anything.
    fn difference(&self) -> Option<String> {
        if !self.sim.databases_agree() {
            return Some(self.disagreement());
        }
        let living = (0..self.alive.len()).filter(|node| self.alive[*node]);
        living.map(|node| (node, self.found(node), self.expected(node))).find_map(
            |(node, found, expected)| {
                (found != expected).then(|| {
                    let differs = |(prefix, _): &(&IpNet, _)| found.get(*prefix) != expected.get(*prefix);
                    let first = expected.iter().chain(&found).find(differs).map(|(prefix, _)| *prefix);
                    let first = first.expect("somewhere");
                    let (found, expected) = (found.get(&first), expected.get(&first));
                    format!("node {node} has {found:?} to {first}, expected {expected:?}")
                })
            },
        )
    }

    /// The LSAs that are not the same everywhere, with who has which instance at which age.
    fn disagreement(&self) -> String {
        let living: Vec<_> = (0..self.alive.len()).filter(|node| self.alive[*node]).collect();
        let mut holders = BTreeMap::<_, Vec<_>>::new();
        for node in &living {
            for lsa in self.sim.status(*node).lsdb.iter().filter(|lsa| !lsa.scope.starts_with("link")) {
                let instance = (lsa.sequence.cast_signed(), lsa.checksum, lsa.age);
                holders.entry((lsa.kind, lsa.id, lsa.router)).or_default().push((*node, instance));
            }
        }
        let differs = |held: &Vec<(usize, (i32, u16, u16))>| {
            let instances: BTreeSet<_> = held.iter().map(|(_, (number, sum, _))| (number, sum)).collect();
            held.len() != living.len() || instances.len() != 1
        };
        holders.retain(|_, held| differs(held));
        let states = |node: &usize| {
            let neighbors = self.sim.status(*node).neighbors.into_iter();
            let state = neighbors.map(|n| (n.router_id, n.state, n.requested, n.unacknowledged));
            format!("\n{node}: {:?}", state.collect::<Vec<_>>())
        };
        let neighbors: String = living.iter().map(states).collect();
        format!("the databases differ: {holders:?}{neighbors}")
    }

    fn found(&self, node: usize) -> Routes {
        let routes = self.sim.routes(node).iter();
        routes.map(|route| (route.prefix, (route.cost, route.next_hops.iter().copied().collect()))).collect()
    }
}

fn pick<V: Family>(sim: &mut Simulated<V>, below: usize) -> usize {
    usize::try_from(sim.draw(below as u64)).expect("small")
}

/// Gives `node` a link to `other`, or a place on a broadcast network of it.
fn join<V: Family>(sim: &mut Simulated<V>, segments: &mut Vec<Segment>, node: usize, other: usize) {
    if node == other {
        return;
    }
    let mut member = |node, eligible: bool| {
        let priority = if eligible { 1 + sim.draw(5) } else { sim.draw(2) };
        let cost = u16::try_from(1 + sim.draw(20)).expect("small");
        Member { node, cost, priority: u8::try_from(priority).expect("small") }
    };
    let (one, eligible) = (member(node, false), member(other, true));
    let on = |segment: &Segment, node| segment.members.iter().any(|member| member.node == node);
    let lan =
        segments.iter_mut().find(|at| at.network == Network::Broadcast && on(at, other) && !on(at, node));
    match (sim.draw(5), lan) {
        (0 | 1, Some(lan)) => lan.members.push(one),
        (0, None) => {
            let (network, members) = (Network::Broadcast, vec![eligible, one]);
            segments.push(Segment { network, members, up: true });
        }
        _ => {
            let (network, members) = (Network::PointToPoint, vec![eligible, one]);
            segments.push(Segment { network, members, up: true });
        }
    }
}

fn history<V: Hosts>(seed: u64) {
    let mut world = World::<V>::new(seed);
    let events = 4 + world.alive.len() / 3;
    world.sim.faults = Faults { loss: 10, duplicate: 10, jitter: Duration::from_millis(40) };
    for _ in 0..events {
        let pause = Duration::from_millis(100 + world.sim.draw(3000));
        world.sim.run(pause);
        world.disturb();
    }
    world.sim.run(seconds(2));
    world.repair();
    let mut difference = None;
    for _ in 0..REST.as_secs() {
        world.sim.run(seconds(1));
        difference = world.difference();
        if difference.is_none() {
            return;
        }
    }
    let (nodes, segments) = (world.alive, world.segments);
    panic!("not at rest after {REST:?}: {}\nalive: {nodes:?}\n{segments:#?}", difference.unwrap_or_default());
}

/// Runs the history that the environment asks for, or so many.
fn histories(count: u64, history: impl Fn(u64) + std::panic::RefUnwindSafe) {
    if let Ok(seed) = std::env::var("OSPF_SEED") {
        return history(seed.parse().expect("OSPF_SEED is a number"));
    }
    let count = std::env::var("OSPF_HISTORIES").map_or(count, |count| count.parse().expect("a number"));
    for seed in 0..count {
        let result = std::panic::catch_unwind(|| history(seed));
        assert!(result.is_ok(), "replay with OSPF_SEED={seed}");
    }
}

#[test]
fn random_networks_come_to_rest_with_equal_databases_and_shortest_paths() {
    histories(20, history::<V2>);
}

#[test]
fn random_networks_of_version_3_come_to_rest_with_equal_databases_and_shortest_paths() {
    histories(20, history::<V3>);
}
