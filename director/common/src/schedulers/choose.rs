//! The choice for one new connection, by what is in the maps.

use super::{Method, Pool, Scan, Server, least, next, two_choices};
use crate::tables::Roster;

/// The candidates of a roster, with what `load` knows of each by position.
struct Candidates<'a, F> {
    roster: &'a Roster,
    load: F,
}

impl<F: Fn(u32) -> Option<Server>> Pool for Candidates<'_, F> {
    #[inline(always)]
    fn len(&self) -> u32 {
        self.roster.count
    }

    #[inline(always)]
    fn server(&self, at: u32) -> Option<Server> {
        (self.load)(self.roster.candidate(at))
    }
}

/// The position of the server that `method` chooses from `roster`, or [`Roster::NOBODY`]; and by how much the service's
/// `cursor` moves on: if nobody was found on a part of the wheel, by that, so that the next choice looks further. `load` knows a server's load by its position; `draws` are random numbers,
/// `scan` is room.
#[inline(always)]
pub fn choose(
    method: Method,
    roster: &Roster,
    cursor: u64,
    draws: [u32; 2],
    scan: &Scan,
    load: impl Fn(u32) -> Option<Server>,
) -> (u32, u32) {
    let (mut position, mut moves) = (Roster::NOBODY, 0);
    // A turn that had to pass over too many ends with the server of the lowest cost.
    if matches!(method, Method::TwoChoices) {
        position = two_choices(roster.length, draws, |at| roster.on_wheel(at), &load);
    } else if method.turns() {
        let (place, skipped) = next(roster.length, cursor, |at| roster.on_wheel(at), &load);
        position = place;
        if place != Roster::NOBODY {
            moves = skipped.wrapping_add(1);
        } else if skipped < roster.length {
            moves = skipped;
        }
    }
    if position == Roster::NOBODY {
        let place = least(method, &Candidates { roster, load: &load }, scan);
        if place != u32::MAX {
            position = roster.candidate(place);
        }
    }
    if position == Roster::NOBODY { (roster.sorry, moves) } else { (position, moves) }
}
