//! How a slot changes hands: the rules that every director keeps, each on its own clock, so that a connection meets one
//! real server whichever director its packets come to.
//!
//! Directors take a step of an epoch one after the other, and their clocks differ. Two rules make up for that. Before
//! any director gives a slot away, every one *holds* it: it is moving, from its owner to the same, so that connections
//! are looked up and pinned while all of them go where they went. And when its time as a moving slot is over, it is held
//! once more, by its new owner, since another director may still let it move and needs a pin of whatever begins.
//!
//! | a slot that is | and gets | becomes | for |
//! |---|---|---|---|
//! | settled, pinned | [`hold`](Slot::hold) | moving, from its owner to the same | the epoch, and a margin |
//! | settled, pinned, held | another owner | moving, from the old owner | the window |
//! | settled | another owner, the old one being gone | settled: there is nothing to keep | |
//! | pinned | another owner, the old one being gone | pinned still | |
//! | held | another owner, the old one being gone | held by the new one | the margin |
//! | moving | another owner | moving, from the same previous owner: what began in between has its pin | the rest of its window |
//! | moving | its previous owner back, or any while the previous one is gone | held by it | the margin |
//! | moving | [`close`](Slot::close) | held by its owner | the margin |
//! | held | [`close`](Slot::close) | pinned | until no pin is left that says otherwise |

use super::{Slot, SlotState};

/// A slot after a change.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Changed {
    /// The slot.
    pub slot: Slot,
    /// Its time as a moving slot begins anew.
    pub restarts: bool,
}

impl Slot {
    /// A slot of `owner` whose connections are looked up and pinned, though none goes elsewhere; where nobody owns it,
    /// there is nothing to pin.
    pub const fn held(owner: u16) -> Self {
        match owner {
            Self::NO_POSITION => Self::new(SlotState::Pinned, owner, owner),
            _ => Self::new(SlotState::Moving, owner, owner),
        }
    }

    /// Whether the slot is moving from its owner to the same.
    pub const fn is_held(self) -> bool {
        self.is_moving() && self.raw_previous() == self.raw_current()
    }

    /// PREPARE: the slot once it is certain that it may be given to `owner`, from now on; `None` if it stays as it is.
    /// `is_gone` tells of positions whose server has nothing that could be kept.
    pub fn hold(self, owner: u16, is_gone: impl Fn(u16) -> bool) -> Option<Self> {
        let current = self.raw_current();
        // One that is held already must be until the epoch is over.
        let stays = owner == current || self.state() == Some(SlotState::Moving) && !self.is_held();
        if stays || current == Self::NO_POSITION || is_gone(current) {
            return None;
        }
        Some(Self::held(current))
    }

    /// COMMIT: the slot once it is given to `owner`; `None` if it stays as it is.
    pub fn give(self, owner: u16, is_gone: impl Fn(u16) -> bool) -> Option<Changed> {
        let alive = |position: u16| position != Self::NO_POSITION && !is_gone(position);
        let (current, previous) = (self.raw_current(), self.raw_previous());
        let moving = |previous| Self::new(SlotState::Moving, owner, previous);
        let slot = match self.state() {
            // Held, whoever it is held for.
            Some(SlotState::Moving) if current == previous => match owner {
                _ if owner == current => return None,
                _ if alive(current) => moving(current),
                _ => Self::held(owner),
            },
            Some(SlotState::Moving) if owner == previous || !alive(previous) => Self::held(owner),
            Some(SlotState::Moving) if owner == current => return None,
            Some(SlotState::Moving) => return Some(Changed { slot: moving(previous), restarts: false }),
            Some(_) if owner == current => return None,
            Some(_) if alive(current) => moving(current),
            Some(SlotState::Pinned) => Self::new(SlotState::Pinned, owner, owner),
            Some(SlotState::Settled) | None => Self::settled(owner),
        };
        Some(Changed { slot, restarts: slot.state() == Some(SlotState::Moving) })
    }

    /// The time of a moving slot is over; any other stays as it is.
    pub const fn close(self) -> Self {
        let current = self.raw_current();
        match self.state() {
            Some(SlotState::Moving) if current == self.raw_previous() => {
                Self::new(SlotState::Pinned, current, current)
            }
            Some(SlotState::Moving) => Self::held(current),
            _ => self,
        }
    }

    /// The slot at a director that has missed what another one has done meanwhile, once it has learned how the slot is
    /// there under the same tables: `theirs`, whose positions are this director's. `None` if it stays as it is. A slot that
    /// moves there has moved since when it does there, also where it looks the same.
    ///
    /// What the other one waits for is waited for here. What only this one waits for is not: it has been overtaken, or
    /// is over.
    pub fn follow(self, theirs: Self) -> Option<Changed> {
        let current = self.raw_current();
        let changed = |slot| Some(Changed { slot, restarts: true });
        match (theirs.state(), self.state()) {
            (Some(SlotState::Moving), _) if theirs.raw_previous() == current => changed(Self::held(current)),
            (Some(SlotState::Moving), _) if theirs.is_moving() => {
                changed(Self::new(SlotState::Moving, current, theirs.raw_previous()))
            }
            (_, Some(SlotState::Moving)) if !self.is_held() => changed(Self::held(current)),
            (Some(SlotState::Pinned), Some(SlotState::Settled)) => {
                changed(Self::new(SlotState::Pinned, current, current))
            }
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    extern crate std;
    use proptest::prelude::*;

    use super::*;

    const NOBODY: u16 = Slot::NO_POSITION;

    fn moving(current: u16, previous: u16) -> Slot {
        Slot::new(SlotState::Moving, current, previous)
    }

    fn pinned(owner: u16) -> Slot {
        Slot::new(SlotState::Pinned, owner, owner)
    }

    fn nobody_is_gone(_: u16) -> bool {
        false
    }

    fn given(slot: Slot, owner: u16) -> Option<(Slot, bool)> {
        slot.give(owner, nobody_is_gone).map(|changed| (changed.slot, changed.restarts))
    }

    #[test]
    fn only_slots_that_change_are_held() {
        assert_eq!(Slot::settled(1).hold(2, nobody_is_gone), Some(moving(1, 1)));
        assert_eq!(pinned(1).hold(2, nobody_is_gone), Some(moving(1, 1)));
        assert_eq!(Slot::settled(1).hold(1, nobody_is_gone), None);
        assert_eq!(moving(1, 0).hold(2, nobody_is_gone), None, "it is looked up anyhow");
        assert_eq!(moving(1, 1).hold(2, nobody_is_gone), Some(moving(1, 1)), "for longer");
        assert_eq!(Slot::settled(1).hold(2, |position| position == 1), None, "nothing is to be kept");
        assert_eq!(Slot::EMPTY.hold(2, nobody_is_gone), None);
    }

    #[test]
    fn a_second_change_keeps_the_first_ones_previous_owner_and_time() {
        assert_eq!(given(Slot::settled(1), 2), Some((moving(2, 1), true)));
        assert_eq!(given(moving(1, 1), 2), Some((moving(2, 1), true)), "the window begins with COMMIT");
        assert_eq!(given(moving(2, 1), 3), Some((moving(3, 1), false)));
        assert_eq!(given(moving(3, 1), 1), Some((moving(1, 1), true)), "a previous owner that is back");
        assert_eq!(given(moving(3, 1), 3), None);
        assert_eq!(given(moving(1, 1), 1), None, "rolled back");
    }

    #[test]
    fn who_is_gone_keeps_nothing() {
        let gone = |position: u16| position == 1;
        let after = |slot: Slot, owner| slot.give(owner, gone).map(|changed| changed.slot);
        assert_eq!(after(Slot::settled(1), 2), Some(Slot::settled(2)));
        assert_eq!(after(pinned(1), 2), Some(pinned(2)));
        assert_eq!(after(moving(1, 1), 2), Some(moving(2, 2)));
        assert_eq!(after(moving(2, 1), 3), Some(moving(3, 3)));
        assert_eq!(after(moving(2, 1), 2), Some(moving(2, 2)));
        assert_eq!(after(moving(1, 0), 2), Some(moving(2, 0)), "what was before the dead one is kept");
        assert_eq!(after(moving(2, 1), NOBODY), Some(pinned(NOBODY)));
    }

    #[test]
    fn a_window_ends_with_a_margin() {
        assert_eq!(moving(2, 1).close(), moving(2, 2));
        assert_eq!(moving(2, 2).close(), pinned(2));
        assert_eq!(pinned(2).close(), pinned(2));
        assert_eq!(Slot::settled(2).close(), Slot::settled(2));
        assert_eq!(moving(NOBODY, 1).close(), pinned(NOBODY));
    }

    #[test]
    fn what_another_director_waits_for_is_waited_for() {
        let follow = |ours: Slot, theirs| ours.follow(theirs).map(|changed| changed.slot);
        assert_eq!(follow(Slot::settled(2), moving(2, 1)), Some(moving(2, 1)));
        assert_eq!(follow(Slot::settled(2), moving(2, 2)), Some(moving(2, 2)));
        assert_eq!(follow(moving(2, 1), moving(2, 1)), Some(moving(2, 1)), "for as long as there");
        assert_eq!(follow(moving(2, 1), moving(2, 3)), Some(moving(2, 3)), "it was given on meanwhile");
        assert_eq!(follow(moving(2, 1), Slot::settled(2)), Some(moving(2, 2)), "and that is over");
        assert_eq!(follow(moving(2, 2), Slot::settled(2)), None, "held by an epoch that is under way");
        assert_eq!(follow(Slot::settled(2), pinned(2)), Some(pinned(2)));
        assert_eq!(follow(pinned(2), Slot::settled(2)), None, "it has pins that say otherwise");
        assert_eq!(follow(Slot::settled(2), moving(2, NOBODY)), None);
    }

    fn any_slot() -> impl Strategy<Value = Slot> {
        let position = || prop_oneof![0_u16..4, Just(NOBODY)];
        let state = prop_oneof![Just(SlotState::Settled), Just(SlotState::Moving), Just(SlotState::Pinned)];
        (state, position(), position()).prop_map(|(state, current, previous)| match state {
            SlotState::Moving => moving(current, previous),
            _ => Slot::new(state, current, current),
        })
    }

    proptest! {
        #[test]
        fn a_slot_that_is_given_belongs_to_whom_it_is_given(slot in any_slot(), owner in 0_u16..5, gone: u8) {
            let after = slot.give(owner, |position| gone >> position.min(7) & 1 == 1);
            let after = after.map_or(slot, |changed| changed.slot);
            prop_assert_eq!(after.raw_current(), owner);
        }

        /// Where packets without a pin go does not change by COMMIT, unless to who is gone.
        #[test]
        fn what_began_before_goes_where_it_went(slot in any_slot(), owner in 0_u16..5, gone: u8) {
            let is_gone = |position: u16| gone >> position.min(7) & 1 == 1;
            let takes = |slot: Slot| if slot.is_moving() { slot.raw_previous() } else { slot.raw_current() };
            let before = takes(slot);
            prop_assume!(before != NOBODY && !is_gone(before));
            // Moving from nobody is what no rule makes.
            prop_assume!(slot.state() != Some(SlotState::Moving) || slot.raw_previous() != NOBODY);
            let after = slot.give(owner, is_gone).map_or(slot, |changed| changed.slot);
            prop_assert_eq!(takes(after), before);
        }
    }
}
