//! Wishes: one director asks the leader to put the services of its own file in force in the whole cluster.
//!
//! A wish is sent again until its outcome is there, to whoever leads by then. The leader fetches what is wished
//! (`definitions`), its node deals tables for it and proposes them; what comes of the epoch is the outcome. A leader that
//! dies in between leaves the wish to the next one, for whom it is either in force already or a wish like any other. So a
//! wish is carried out once, or not at all, or the director that wishes gives it up and looks at what is in force.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;
use std::time::Instant;

use director_proto::sync::{BootId, Message};
use director_proto::tables::{Digest, Version};

use super::agreement::clipped;
use super::{Event, Output, Replica};

/// What has become of a wish: the tables that carry it, in force, or why nothing has changed.
pub type Outcome = Result<Version, String>;

#[derive(Debug, Default)]
pub(super) struct Wishes {
    own: Option<Own>,
    theirs: BTreeMap<Ipv4Addr, Theirs>,
}

/// What this director wishes.
#[derive(Debug)]
struct Own {
    id: u64,
    /// Who was asked, and when to ask again.
    asked: Option<(Ipv4Addr, Instant)>,
}

/// What another director wishes last.
#[derive(Debug)]
struct Theirs {
    boot_id: BootId,
    id: u64,
    stage: Stage,
}

#[derive(Debug)]
enum Stage {
    /// What is wished is being fetched.
    Fetched(Digest),
    /// The node knows.
    Told,
    Over(Outcome),
}

impl Replica {
    /// The node wishes what it has configured in force everywhere, or does not any more.
    pub(super) fn wish(&mut self, id: Option<u64>) {
        self.wishes.own = id.map(|id| Own { id, asked: None });
    }

    /// Asks whoever leads.
    pub(super) fn pursue_wish(&mut self, now: Instant) {
        let (digest, own, again) = (self.config_digest, self.settings.router_id, now + self.patience());
        let (Some(wish), Some(leader)) = (&mut self.wishes.own, self.leader) else { return };
        match wish.asked {
            Some((asked, _)) if asked == leader && asked == own => return,
            Some((asked, again)) if asked == leader && now < again => return,
            _ => {}
        }
        wish.asked = Some((leader, again));
        let id = wish.id;
        let output = match self.definitions_of(own, digest) {
            Some(definitions) if leader == own => Output::Event(Event::Wished { from: own, id, definitions }),
            _ => Output::Send { to: leader, message: Message::Wish { id, digest } },
        };
        self.outputs.push_back(output);
    }

    /// When to ask again.
    pub(super) fn wish_deadline(&self) -> Option<Instant> {
        let (asked, again) = self.wishes.own.as_ref()?.asked?;
        (asked != self.settings.router_id).then_some(again)
    }

    /// Another director wishes something of the leader.
    pub(super) fn handle_wish(&mut self, from: Ipv4Addr, boot_id: BootId, id: u64, digest: Digest) {
        if self.leader != Some(self.settings.router_id) {
            return;
        }
        match self.wishes.theirs.get(&from).filter(|wish| (wish.boot_id, wish.id) == (boot_id, id)) {
            Some(Theirs { stage: Stage::Over(outcome), .. }) => {
                let message = Message::WishOutcome { id, outcome: outcome.clone() };
                self.outputs.push_back(Output::Send { to: from, message });
            }
            Some(Theirs { stage: Stage::Fetched(_) | Stage::Told, .. }) => {}
            None => {
                let stage = Stage::Fetched(digest);
                self.wishes.theirs.insert(from, Theirs { boot_id, id, stage });
            }
        }
        self.take_up_wish(from);
    }

    /// Tells the node of a wish, once it is known what is wished.
    pub(super) fn take_up_wish(&mut self, from: Ipv4Addr) {
        let Some(Theirs { stage: Stage::Fetched(digest), id, .. }) = self.wishes.theirs.get(&from) else {
            return;
        };
        let (digest, id) = (*digest, *id);
        let Some(definitions) = self.definitions_of(from, digest) else { return };
        self.outputs.push_back(Output::Event(Event::Wished { from, id, definitions }));
        if let Some(wish) = self.wishes.theirs.get_mut(&from) {
            wish.stage = Stage::Told;
        }
    }

    /// The leader's node has carried a wish out, or has not.
    pub(super) fn decide_wish(&mut self, from: Ipv4Addr, id: u64, outcome: Outcome) {
        let outcome = outcome.map_err(clipped);
        if from == self.settings.router_id {
            return self.end_wish(from, id, outcome);
        }
        let Some(wish) = self.wishes.theirs.get_mut(&from).filter(|wish| wish.id == id) else { return };
        wish.stage = Stage::Over(outcome.clone());
        self.outputs.push_back(Output::Send { to: from, message: Message::WishOutcome { id, outcome } });
    }

    /// What has become of this director's wish.
    pub(super) fn end_wish(&mut self, from: Ipv4Addr, id: u64, outcome: Outcome) {
        let is_asked = |wish: &mut Own| wish.id == id && wish.asked.is_some_and(|(asked, _)| asked == from);
        if self.wishes.own.take_if(is_asked).is_some() {
            self.outputs.push_back(Output::Event(Event::WishDecided { id, outcome }));
        }
    }
}
