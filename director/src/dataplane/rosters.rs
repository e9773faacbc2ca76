//! Whom tracked services may send new connections to: what the program chooses from, made of a specification.

use std::collections::BTreeMap;
use std::net::IpAddr;

use director_common::schedulers::{Level, MAX_WHEEL, Method, Scan, Server, Wheel, least};
use director_common::tables::{LoadEntry, MAX_CANDIDATES, Roster};

use super::Dataplane;
use super::error::ApplyError;
use super::plan::{Block, Placement};
use super::seats::Seating;
use super::spec::{ServiceSpec, Tracking};

/// The servers of a tracked service in the order in which they are compared: as they are specified, of equal ones the
/// first.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Rota {
    pub(super) method: Option<Method>,
    /// Positions.
    pub(super) positions: Vec<u16>,
    pub(super) weights: Vec<u32>,
    sorry: Option<u16>,
    /// Somebody has an upper threshold, so a turn may find too many overloaded.
    is_limited: bool,
}

impl Rota {
    /// Of all that serve, whatever their weight.
    pub(super) fn new(service: &ServiceSpec<'_>, tracking: &Tracking, seating: &Seating) -> Self {
        let mut rota = Self { method: Some(tracking.method), ..Self::default() };
        for real in service.reals.iter().filter(|real| real.alive) {
            let place = (real.address, real.port);
            let seat = seating.servers.iter().find(|(_, server)| (server.address, server.port) == place);
            let Some((position, _)) = seat else { continue };
            if real.is_sorry {
                rota.sorry = Some(*position);
            } else {
                rota.positions.push(*position);
                rota.weights.push(real.weight);
                rota.is_limited |= real.thresholds.upper != 0;
            }
        }
        rota
    }

    /// Whether one choice cannot look at all servers. A turn need not, unless it finds nobody who is not overloaded.
    pub(super) fn is_long(&self) -> bool {
        self.positions.len() > MAX_CANDIDATES
            && self.method.is_some_and(|method| self.is_limited || !method.turns())
    }

    /// The weights as turns go by them.
    fn turns(&self) -> Vec<u32> {
        let one =
            |weight: &u32| if self.method == Some(Method::RoundRobin) { (*weight).min(1) } else { *weight };
        self.weights.iter().map(one).collect()
    }

    /// The roster, with those of the lowest cost by what `load` knows of a position now, where they cannot be all.
    pub(super) fn roster(&self, load: impl Fn(u16) -> LoadEntry) -> Roster {
        let mut roster = Roster { sorry: self.sorry.map_or(Roster::NOBODY, u32::from), ..Roster::EMPTY };
        let candidates = if self.is_long() { self.cheapest(load) } else { self.positions.clone() };
        for (entry, position) in roster.candidates.iter_mut().zip(candidates) {
            *entry = position;
            roster.count += 1;
        }
        let mut places = [0; MAX_WHEEL];
        roster.length = Wheel::new(&self.turns()).fill(&mut places);
        for (entry, place) in roster.wheel.iter_mut().zip(&places[..roster.length as usize]) {
            *entry = self.positions[usize::from(*place)];
        }
        roster
    }

    /// The [`MAX_CANDIDATES`] that would be chosen if each got one connection, in the order of the list.
    fn cheapest(&self, load: impl Fn(u16) -> LoadEntry) -> Vec<u16> {
        let method = self.method.unwrap_or(Method::WeightedLeastConnection);
        let mut left: Vec<(usize, Server)> =
            self.positions.iter().map(|position| load(*position).server()).enumerate().collect();
        let scan = Scan::default();
        left.retain(|(_, server)| least(method, &[*server][..], &scan) == 0);
        // Of two that cost the same each wins where it comes first.
        left.sort_by(|a, b| {
            let wins = |first: &Server, second: &Server| least(method, &[*first, *second][..], &scan) == 0;
            wins(&b.1, &a.1).cmp(&wins(&a.1, &b.1)).then(a.0.cmp(&b.0))
        });
        left.truncate(MAX_CANDIDATES);
        left.sort_by_key(|(place, _)| *place);
        left.into_iter().map(|(place, _)| self.positions[place]).collect()
    }

    /// Where the cursor goes on after `old`, whose cursor was at `cursor` and began at `begun`: as in IPVS, `rr` goes on
    /// behind whom it chose last, `wrr` at the level that it was on.
    pub(super) fn resume(&self, old: &Self, cursor: u64, begun: u64) -> u64 {
        let (before, after) = (old.turns(), self.turns());
        let length = Wheel::new(&before).entries().count() as u64;
        if self.method != old.method || length == 0 {
            return 0;
        }
        let at = if cursor == begun { cursor } else { cursor - 1 } % length;
        let Some((place, level)) = Wheel::new(&before).entries().nth(at as usize) else { return 0 };
        match self.method {
            Some(Method::WeightedRoundRobin) => {
                let wheel = Wheel::new(&after);
                wheel.begin(wheel.adopt(Level(level.0)))
            }
            Some(Method::RoundRobin) => {
                let last = old.positions[usize::from(place)];
                let behind = self.positions.iter().position(|position| *position == last);
                let next =
                    Wheel::new(&after).entries().position(|(place, _)| Some(usize::from(place)) > behind);
                next.unwrap_or(0) as u64
            }
            _ => 0,
        }
    }
}

/// A rota, and the cursor at which it began.
#[derive(Debug, Default)]
pub(super) struct Turn {
    pub(super) rota: Option<Rota>,
    pub(super) begun: u64,
}

impl Dataplane {
    /// Puts what a tracked service chooses by in place, before any key says that it is tracked.
    pub(super) fn write_roster(
        &mut self,
        service: &ServiceSpec<'_>,
        seating: &Seating,
        index: u32,
        block: Block,
    ) -> Result<Turn, ApplyError> {
        let Some(tracking) = &service.tracking else { return Ok(Turn::default()) };
        let old = self.plan.services.get(service.name);
        let rota = Rota::new(service, tracking, seating);
        if let Some(old) = old.filter(|old| old.block != block) {
            for position in seating.servers.keys().filter(|position| old.servers.contains_key(position)) {
                let load = self.maps.loads.get(old.block.base + u32::from(*position));
                self.maps.loads.set(block.base + u32::from(*position), load);
            }
        }
        for real in service.reals.iter().filter(|real| real.alive) {
            let place = (real.address, real.port);
            let seat = seating.servers.iter().find(|(_, server)| (server.address, server.port) == place);
            if let Some((position, _)) = seat {
                self.maps.loads.configure(block.base + u32::from(*position), real.weight, real.thresholds);
            }
        }
        let (known, begun) = old.map_or((None, 0), |old| (old.rota.as_ref(), old.begun));
        if known == Some(&rota) && old.is_some_and(|old| old.block == block) {
            return Ok(Turn { rota: Some(rota), begun });
        }
        let cursor = match known {
            // Of an earlier process: that is where it was.
            Some(known) if known.method.is_none() => None,
            Some(known) => Some(rota.resume(known, self.maps.cursors.get(&index, 0)?, begun)),
            None => Some(0),
        };
        let roster = rota.roster(|position| self.maps.loads.get(block.base + u32::from(position)));
        self.maps.set_roster(index, roster, cursor)?;
        Ok(Turn { rota: Some(rota), begun: cursor.unwrap_or(begun) })
    }

    /// What is left to do when every key says whether the service is tracked. `was_tracked` is `None` for a service that
    /// is new.
    pub(super) fn end_roster(
        &mut self,
        service: &ServiceSpec<'_>,
        index: u32,
        was_tracked: Option<bool>,
        moved: bool,
    ) -> Result<(), ApplyError> {
        let is_tracked = service.tracking.is_some();
        if is_counted_anew(was_tracked, is_tracked, moved) {
            self.recount();
        }
        if was_tracked == Some(true) && !is_tracked {
            self.sweep.demand();
            return Ok(self.maps.remove_roster(index)?);
        }
        Ok(())
    }

    /// Chooses anew the candidates of services with more servers than one choice can look at. To be called often: every
    /// 20 ms or so.
    ///
    /// # Errors
    /// [`ApplyError::Map`] if the kernel refuses.
    pub fn refresh_candidates(&mut self) -> Result<(), ApplyError> {
        let long = |placement: &&Placement| placement.rota.as_ref().is_some_and(Rota::is_long);
        for placement in self.plan.services.values().filter(long) {
            let Some(rota) = &placement.rota else { continue };
            let base = placement.block.base;
            let roster = rota.roster(|position| self.maps.loads.get(base + u32::from(position)));
            self.maps.set_roster(placement.index, roster, None)?;
        }
        Ok(())
    }

    /// Active and inactive connections of every real server of tracked services, by service, address and port.
    pub fn loads(&self) -> BTreeMap<(String, IpAddr, u16), (u32, u32)> {
        let mut loads = BTreeMap::new();
        for (name, placement) in self.plan.services.iter().filter(|(_, placement)| placement.is_tracked()) {
            for (position, server) in &placement.servers {
                let load = self.maps.loads.get(placement.block.base + u32::from(*position)).server();
                loads.insert((name.clone(), server.address, server.port), (load.active, load.inactive));
            }
        }
        loads
    }
}

/// Whether the counts of a service's connections may be wrong, which takes a look at every connection to mend. Those of
/// a service that is new begin at zero.
fn is_counted_anew(was_tracked: Option<bool>, is_tracked: bool, moved: bool) -> bool {
    match was_tracked {
        None => false,
        Some(false) => is_tracked,
        // Somebody may have been counted where the servers were before.
        Some(true) => is_tracked && moved,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rota(method: Method, weights: &[u32]) -> Rota {
        let positions = (0..weights.len() as u16).collect();
        Rota { method: Some(method), positions, weights: weights.to_vec(), ..Rota::default() }
    }

    #[test]
    fn turns_go_on_where_they_were() {
        let (rr, wrr) = (Method::RoundRobin, Method::WeightedRoundRobin);
        let three = rota(rr, &[1, 1, 1]);
        assert_eq!(rota(rr, &[1, 1, 1, 1]).resume(&three, 2, 0), 2, "behind the second");
        assert_eq!(rota(rr, &[1, 0, 1]).resume(&three, 2, 0), 1, "the third");
        assert_eq!(rota(rr, &[1, 1, 1]).resume(&three, 3, 0), 0);
        assert_eq!(rota(wrr, &[3, 1]).resume(&rota(wrr, &[3, 2]), 2, 0), 1, "the second level");
        assert_eq!(rota(wrr, &[3, 1]).resume(&three, 2, 0), 0, "another method");
    }

    #[test]
    fn only_what_was_there_before_is_counted_anew() {
        // A new service has a new block, too.
        assert!(!is_counted_anew(None, true, true));
        assert!(is_counted_anew(Some(false), true, false) && is_counted_anew(Some(true), true, true));
        assert!(!is_counted_anew(Some(true), true, false) && !is_counted_anew(Some(true), false, true));
    }

    #[test]
    fn candidates_of_many_are_the_cheapest() {
        let many = rota(Method::WeightedLeastConnection, &[1; 200]);
        // Those at the end have fewest connections, one of them has enough.
        let load = |position: u16| LoadEntry {
            active: u64::from(200 - position),
            weight: 1,
            overloaded: u32::from(position == 199),
            ..LoadEntry::default()
        };
        let roster = many.roster(load);
        assert_eq!(roster.candidates[..], (135..199).collect::<Vec<u16>>()[..]);
        assert_eq!(roster.count as usize, MAX_CANDIDATES);
        // A turn needs them only where somebody can be overloaded.
        let mut turning = rota(Method::RoundRobin, &[1; 200]);
        assert_eq!(turning.roster(load).candidates[..3], [0, 1, 2]);
        turning.is_limited = true;
        assert_eq!(turning.roster(load).candidates, roster.candidates);
        let few = rota(Method::WeightedLeastConnection, &[1, 0, 2]).roster(load);
        assert_eq!((few.count, &few.candidates[..3]), (3, &[0, 1, 2][..]));
    }
}
