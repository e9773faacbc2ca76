//! What other directors had in force or prepared that this one lacked, remembered beyond their silence.
//!
//! The rule: a director that does not serve stays withdrawn until each director that it last saw with an epoch that it
//! lacked is heard again without one, or has been silent for the time in which any director cut off from the majority
//! withdraws, or until this director comes to hold or to have prepared that very epoch.
//!
//! No misroute can follow from the silence of a source, because while the source may still forward by its epoch this
//! director either knows the epoch's tables or does not forward: nothing that happens meanwhile counts, not even a higher
//! epoch of another leader, which begins at other tables and says nothing of the connections under this one. And after
//! that time the source does not forward unless it hears a majority, of which this director, if it is not isolated itself,
//! hears one too: that one tells what is in force, or that it follows a leader not heard here (`standing`). This holds
//! where links fail both ways; two directors, and those that [`Isolation::Serve`](super::Isolation::Serve), do not withdraw
//! from each other, as is said there.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;
use std::time::{Duration, Instant};

use director_proto::tables::Epoch;

use super::Replica;

/// An epoch that another director was seen with.
#[derive(Clone, Copy, Debug)]
struct Claim {
    epoch: Epoch,
    /// When that was last known.
    seen: Instant,
    /// Until when it counts, unless it is seen again.
    until: Instant,
}

/// The epochs that were lacking here, by the directors seen with them.
#[derive(Debug, Default)]
pub(super) struct Claims {
    open: BTreeMap<Ipv4Addr, Claim>,
    /// What was covered here when that was last looked at.
    cover: Option<Epoch>,
}

impl Claims {
    /// Whether somebody may forward by tables unknown here.
    pub(super) fn are_open(&self) -> bool {
        !self.open.is_empty()
    }

    pub(super) fn deadlines(&self) -> impl Iterator<Item = Instant> + '_ {
        self.open.values().map(|claim| claim.until)
    }
}

impl Replica {
    /// Notices what others have that is lacking here, and forgets what does not count any more.
    pub(super) fn weigh_claims(&mut self, now: Instant) {
        let (own, dead) = (self.settings.router_id, self.settings.dead);
        let cover = self.cover();
        let mut claims = std::mem::take(&mut self.claims);
        let seen = |epoch| Claim { epoch, seen: now, until: now + dead };
        // Of those that have prepared what is rolled back here somebody may have put it in force.
        let rolled_back = claims.cover.filter(|_| claims.cover > cover);
        claims.open.extend(rolled_back.map(|epoch| (own, seen(epoch))));
        claims.cover = cover;
        for (router_id, member) in self.live() {
            let has = member.tables().into_iter().chain(member.prepared()).map(|version| version.epoch).max();
            // What was above that, and has vanished, has its time first.
            let above = claims.open.get(&router_id).is_some_and(|claim| Some(claim.epoch) > has);
            claims.open.extend(has.filter(|_| !above && has > cover).map(|epoch| (router_id, seen(epoch))));
        }
        claims.open.retain(|router_id, claim| {
            let live = *router_id == own || self.hears(*router_id);
            // One that is heard says itself what it has now; what it has ceased to have others may have put in force.
            let known = self.has(claim.epoch) || live && cover >= Some(claim.epoch);
            claim.until = claim.seen + if live { dead } else { self.withdrawal_time() };
            !known && now < claim.until
        });
        self.claims = claims;
    }

    /// Whether the tables of an epoch are in force or prepared here.
    fn has(&self, epoch: Epoch) -> bool {
        let prepared = self.prepared.iter().filter(|prepared| prepared.loaded);
        let mut held = prepared.map(|prepared| prepared.held.version).chain(self.version());
        held.any(|version| version.epoch == epoch)
    }

    /// How long after it was last heard a director may still forward by what it had: it misses the others within a dead
    /// interval, and then withdraws in less than any leader waits before it goes on without it.
    fn withdrawal_time(&self) -> Duration {
        self.settings.dead + self.settings.prepare_time()
    }
}
