//! `lblc` and `lblcr`: what went to a destination goes there again, while its server is not overloaded. For clusters of
//! caches, whose clients ask for many addresses.
//!
//! What is remembered of one destination is here; who remembers it, and for how long, is the caller's.

use super::{Method, Pool, Scan, Server, least};

/// Most servers of one destination that `lblcr` remembers.
pub const MAX_SET: usize = 64;

/// A server is overloaded, to these two, that has more active connections than its weight says, while some other has
/// fewer than half of that.
fn is_overloaded(server: &Server, pool: &(impl Pool + ?Sized)) -> bool {
    let has_room = |at: u32| {
        pool.server(at).is_some_and(|other| u64::from(other.active).wrapping_mul(2) < u64::from(other.weight))
    };
    server.active > server.weight && (0..pool.len()).any(has_room)
}

/// What any server that is available costs least by.
fn lightest(pool: &(impl Pool + ?Sized)) -> Option<u32> {
    Some(least(Method::WeightedLeastConnection, pool, &Scan::default())).filter(|place| *place != u32::MAX)
}

/// The server of one destination (`lblc`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Locality {
    server: Option<u32>,
}

impl Locality {
    /// The server of the next connection to this destination.
    pub fn pick(&mut self, pool: &(impl Pool + ?Sized)) -> Option<u32> {
        if let Some(place) = self.server
            && let Some(server) = pool.server(place)
            && server.weight != 0
            && !is_overloaded(&server, pool)
        {
            return Some(place);
        }
        let place = lightest(pool)?;
        self.server = Some(place);
        Some(place)
    }
}

/// The servers of one destination (`lblcr`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ReplicatedLocality {
    set: [u16; MAX_SET],
    len: usize,
    /// Second in which the set changed last.
    changed: u32,
}

impl Default for ReplicatedLocality {
    fn default() -> Self {
        Self { set: [0; MAX_SET], len: 0, changed: 0 }
    }
}

impl ReplicatedLocality {
    /// The newest first, as IPVS goes through its set.
    fn places(&self) -> impl Iterator<Item = u32> + '_ {
        self.set.iter().take(self.len).rev().map(|place| u32::from(*place))
    }

    /// The one of the lowest (`sign` 1) or the highest (-1) overhead for its weight.
    fn extreme(&self, pool: &(impl Pool + ?Sized), lowest: bool) -> Option<u32> {
        let mut found: Option<(u32, Server)> = None;
        for place in self.places() {
            let Some(server) = pool.server(place) else { continue };
            if server.weight == 0 || (lowest && server.overloaded != 0) {
                continue;
            }
            let wins = found.is_none_or(|(_, best)| {
                let before = best.overhead().wrapping_mul(u64::from(server.weight));
                let here = server.overhead().wrapping_mul(u64::from(best.weight));
                if lowest { before > here } else { before < here }
            });
            if wins {
                found = Some((place, server));
            }
        }
        found.map(|(place, _)| place)
    }

    fn remove(&mut self, place: u32, now: u32) {
        let Some(at) = self.set.iter().take(self.len).position(|known| u32::from(*known) == place) else {
            return;
        };
        if let Some(behind) = self.set.get_mut(at..self.len) {
            behind.rotate_left(1);
            self.len = self.len.saturating_sub(1);
            self.changed = now;
        }
    }

    fn add(&mut self, place: u32, now: u32) {
        if self.places().any(|known| known == place) {
            return;
        }
        if let Some(free) = self.set.get_mut(self.len) {
            *free = place as u16;
            self.len = self.len.wrapping_add(1);
            self.changed = now;
        }
    }

    /// The server of the next connection to this destination, at second `now`. A set that has not changed for `expiry`
    /// seconds (`lblcr_expiration`, a day) loses its most loaded server.
    pub fn pick(&mut self, pool: &(impl Pool + ?Sized), now: u32, expiry: u32) -> Option<u32> {
        let known = self.extreme(pool, true);
        if self.len > 1
            && now.saturating_sub(self.changed) > expiry
            && let Some(heaviest) = self.extreme(pool, false)
        {
            self.remove(heaviest, now);
        }
        if let Some(place) = known
            && let Some(server) = pool.server(place)
            && !is_overloaded(&server, pool)
        {
            return known;
        }
        let place = lightest(pool)?;
        self.add(place, now);
        Some(place)
    }
}
