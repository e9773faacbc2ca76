//! Whether this director may forward: where its tables stand beside the others', and whether it still hears enough of
//! them to know.
//!
//! Bounds, with *dead* for the dead interval and *patience* for two heartbeats:
//!
//! | a director that | does not serve |
//! |---|---|
//! | sees tables in force that it has not even prepared | at once |
//! | sees tables prepared that it has not prepared itself | after *patience*; after *dead* while it is loading those very tables |
//! | was withdrawn when such tables vanished, or the director that had them fell silent | until *dead* after, or until that director has withdrawn (`claims`) |
//! | has ceased to see that others follow a leader that it does not hear | until *dead* after |
//! | has prepared tables that are in force elsewhere, and is not told to follow | after *dead* |
//! | does not hear the leader that others follow | after *dead* + *patience* |
//! | hears no majority of its roster (by [`Isolation::Serve`]: of those of it that it knows to live) | after *dead* + *patience*, and until *patience* after it does again |
//!
//! A director that does not serve begins to when there is nothing of this left. The times after which it ceases to are less
//! than the time for which a leader waits before it goes on without a director that did not answer (`agreement`): one that
//! loads slowly hears of what the others prepare within *dead* of PREPARE, or has lost them, and has another *dead* from
//! then on. The others load no faster, and all of them see each other loading: with *patience* alone they would withdraw
//! all at once whenever the tables are large. The roster are
//! the directors that were there when all was well: one that has been silent for two dead intervals is struck off while a
//! majority remains of which nobody has heard it for as long, so that a cluster can shrink to a single director, one by
//! one. Of two halves the one with the lowest router id goes on; and of two directors each, for to either the death of
//! the other looks like a partition, and
//! the death is far more likely.

use std::net::Ipv4Addr;
use std::time::{Duration, Instant};

use director_proto::tables::Epoch;

use super::{Event, Isolation, Output, Replica, Standing};

/// What keeps a director from serving, since when.
#[derive(Debug, Default)]
pub(super) struct Doubts {
    /// Somebody has prepared what this director has not.
    unprepared: Option<Instant>,
    /// The leader that others followed is not seen any more, and has until then to withdraw.
    lingers_until: Option<Instant>,
    /// Tables prepared here are in force elsewhere.
    uncommitted: Option<Instant>,
    /// Others follow a leader that is not heard here.
    leaderless: Option<Instant>,
    /// Too few of the others are heard.
    isolated: Option<Instant>,
    /// It has been alone: who served meanwhile has until then to withdraw before it.
    alone_until: Option<Instant>,
}

impl Doubts {
    fn deadlines(&self, patience: Duration, dead: Duration) -> impl Iterator<Item = Instant> {
        let soon = [self.unprepared, self.leaderless, self.isolated]
            .map(|since| since.map(|since| since + patience));
        soon.into_iter()
            .chain([self.unprepared.map(|since| since + dead)])
            .chain([self.uncommitted.map(|since| since + dead), self.alone_until, self.lingers_until])
            .flatten()
    }
}

impl Replica {
    /// Whether too few of the directors that were there are heard for this one to know what the others do.
    pub fn is_isolated(&self) -> bool {
        let own = self.settings.router_id;
        let counts = |id: &&Ipv4Addr| match self.settings.isolation {
            Isolation::Withdraw => true,
            // Of whom nobody says that he lives, this director is the survivor.
            Isolation::Serve => self.hears(**id) || self.is_heard_of(**id),
        };
        let others: Vec<Ipv4Addr> = self.roster.iter().filter(counts).copied().collect();
        let (heard, all) = (others.iter().filter(|id| self.hears(**id)).count() + 1, others.len() + 1);
        let lowest = others.first().copied().filter(|first| *first < own);
        let has_lowest = lowest.is_none_or(|lowest| self.hears(lowest));
        let goes_on = heard * 2 > all || heard * 2 == all && (all == 2 || has_lowest);
        !goes_on
    }

    /// Whether a director that is heard here hears another one. One that is silent, and may have died together with that
    /// one, does not say so any more.
    fn is_heard_of(&self, router_id: Ipv4Addr) -> bool {
        let fresh = |heard: Instant| heard + self.patience() >= self.handled;
        self.live().any(|(_, member)| member.hears(router_id) && member.heard().is_some_and(fresh))
    }

    pub(super) fn hears(&self, router_id: Ipv4Addr) -> bool {
        self.members.get(&router_id).is_some_and(|member| member.is_live())
    }

    /// Takes who holds tables onto the roster, and strikes off who has been silent for long.
    pub(super) fn call_the_roll(&mut self, now: Instant) {
        let holders: Vec<Ipv4Addr> =
            self.live().filter(|(_, member)| member.tables().is_some()).map(|(id, _)| id).collect();
        if self.held.is_some() {
            self.roster.extend(holders);
        }
        if self.is_isolated() {
            return;
        }
        // One that another director still hears is cut off from this one, and not gone; and one that it heard until now
        // has as much time to withdraw as one that was heard here.
        let limit = self.settings.dead * 2;
        let heard_of: Vec<Ipv4Addr> =
            self.roster.iter().copied().filter(|id| self.is_heard_of(*id)).collect();
        for id in heard_of {
            if let Some(member) = self.members.get_mut(&id) {
                member.heard_elsewhere(now);
            }
        }
        let members = &self.members;
        self.roster.retain(|id| {
            let silent = members.get(id).filter(|member| !member.is_live());
            silent.is_none_or(|member| member.known_heard().is_some_and(|heard| now < heard + limit))
        });
    }

    /// Notices since when there is something to doubt.
    pub(super) fn doubt(&mut self, now: Instant) {
        self.weigh_claims(now);
        let cover = self.cover();
        let Some(held) = self.version() else {
            self.doubts = Doubts::default();
            return;
        };
        let since = |present: Option<Instant>, holds: bool| holds.then(|| present.unwrap_or(now));
        let prepared =
            self.live().filter_map(|(_, member)| member.prepared()).map(|version| version.epoch).max();
        let unprepared = prepared > cover;
        let uncommitted = self.highest().is_some_and(|highest| highest > held.epoch);
        let own = self.settings.router_id;
        let lost = |leader: Ipv4Addr| leader != own && !self.hears(leader);
        let leaderless = self.live().filter_map(|(_, member)| member.leader()).any(lost);
        let isolated = self.is_isolated();
        let alone_until = match isolated {
            true => Some(now + self.patience()),
            false => self.doubts.alone_until.filter(|until| now < *until),
        };
        let lingers_until = match self.doubts.leaderless.is_some() && !leaderless {
            true => Some(now + self.settings.dead),
            false => self.doubts.lingers_until.filter(|until| now < *until),
        };
        self.doubts = Doubts {
            isolated: since(self.doubts.isolated, isolated),
            alone_until,
            lingers_until,
            unprepared: since(self.doubts.unprepared, unprepared),
            uncommitted: since(self.doubts.uncommitted, uncommitted),
            leaderless: since(self.doubts.leaderless, leaderless),
        };
    }

    /// The highest epoch whose connections are forwarded rightly here: in force, or prepared.
    pub(super) fn cover(&self) -> Option<Epoch> {
        let prepared = self.prepared.iter().filter(|prepared| prepared.loaded);
        prepared
            .map(|prepared| prepared.held.version.epoch)
            .chain(self.version().map(|held| held.epoch))
            .max()
    }

    /// Whether the highest tables that others have prepared are being loaded here.
    fn is_loading(&self) -> bool {
        let theirs = self.live().filter_map(|(_, member)| member.prepared());
        let highest = theirs.max_by_key(|version| version.epoch);
        self.prepared.as_ref().is_some_and(|prepared| {
            !prepared.loaded && !prepared.refused && highest == Some(prepared.held.version)
        })
    }

    /// Whether others follow a leader that is not heard here.
    pub(super) fn is_leaderless(&self) -> bool {
        self.doubts.leaderless.is_some()
    }

    /// Whether this director has lost the others, or has only just found them again.
    pub(super) fn is_alone(&self) -> bool {
        self.doubts.alone_until.is_some()
    }

    fn standing_at(&self, now: Instant) -> Standing {
        let (patience, dead) = (self.patience(), self.settings.dead);
        // A doubt has its time while it may yet prove unfounded; who does not serve anyhow waits for its end.
        let serves = self.standing == Standing::Current;
        let past = |since: Option<Instant>, limit| since.is_some_and(|since| !serves || now >= since + limit);
        let doubts = &self.doubts;
        if self.held.is_none() {
            Standing::Joining
        } else if self.diverged_since.is_some() {
            Standing::Diverged
        } else if past(doubts.isolated, patience) || !serves && self.is_alone() {
            // Those that go on with this one notice a moment later than it does that others have died, and say until then
            // that they hear them.
            Standing::Isolated
        } else if self.highest() > self.cover()
            || past(doubts.unprepared, if self.is_loading() { dead } else { patience })
            || !serves && (doubts.lingers_until.is_some() || self.claims.are_open())
            || past(doubts.uncommitted, dead)
            || past(doubts.leaderless, patience)
        {
            Standing::Behind
        } else {
            Standing::Current
        }
    }

    /// Tells the node where it stands and who leads, when that has changed.
    pub(super) fn announce(&mut self, now: Instant) {
        self.doubt(now);
        let standing = self.standing_at(now);
        let leader = self.leader_among_holders();
        if standing != self.standing {
            self.standing = standing;
            self.outputs.push_back(Output::Event(Event::Standing(standing)));
        }
        if leader != self.leader {
            self.leader = leader;
            self.leader_since = Some(now);
            // Who follows whom is for everybody to know.
            self.next_beat = now;
            self.outputs.push_back(Output::Event(Event::Leader(leader)));
        }
    }

    /// When something that is in doubt becomes certain.
    pub(super) fn standing_deadlines(&self) -> impl Iterator<Item = Instant> + '_ {
        let limit = self.settings.dead * 2;
        let roll = self.roster.iter().filter_map(|id| self.members.get(id));
        let silent = roll.filter(|member| !member.is_live()).filter_map(|member| member.known_heard());
        let doubts = self.doubts.deadlines(self.patience(), self.settings.dead);
        doubts.chain(silent.map(move |heard| heard + limit))
    }
}
