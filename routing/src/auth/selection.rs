//! Which key counts at a moment (RFC 2328 section D.3). When the last key has expired, the RFC finds it
//! "unacceptable to revert to an unauthenticated condition, and not advisable to disrupt routing": that key
//! goes on as if it had no end, and whoever uses it is told so.

use super::{Key, Window};

/// A key and whether its time is really over, or has not come.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Choice<'a> {
    pub(super) key: &'a Key,
    /// No key is valid: this one is used all the same.
    pub(super) stretched: bool,
}

/// The key to send with at `now`: of the valid ones the youngest, and of equally young ones that with the
/// highest id. None if there are no keys at all.
pub(super) fn to_send(keys: &[Key], now: u64) -> Option<Choice<'_>> {
    let valid = keys.iter().filter(|key| key.send.contains(now));
    let youngest = valid.max_by_key(|key| (key.send.from, key.id));
    let choice = |stretched| move |key| Choice { key, stretched };
    youngest.map(choice(false)).or_else(|| last(keys, now, |key| key.send).map(choice(true)))
}

/// What to do with a packet of some key.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Acceptance<'a> {
    /// Check its digest.
    Key(&'a Key),
    /// Not one of ours.
    Unknown,
    /// Not now.
    Outside(&'a Key),
}

/// Whether packets with key `id` are accepted at `now`.
pub(super) fn to_accept(keys: &[Key], id: u16, now: u64) -> Acceptance<'_> {
    let Some(key) = keys.iter().find(|key| u16::from(key.id) == id) else { return Acceptance::Unknown };
    if key.accept.contains(now) {
        return Acceptance::Key(key);
    }
    let none_valid = !keys.iter().any(|key| key.accept.contains(now));
    let is_last = || last(keys, now, |key| key.accept).is_some_and(|last| last.id == key.id);
    if none_valid && is_last() { Acceptance::Key(key) } else { Acceptance::Outside(key) }
}

/// The key that goes on while none is valid: the one that ended last, or, before any has begun (a clock that
/// is not set yet looks like this), the one that begins first.
fn last(keys: &[Key], now: u64, window: impl Fn(&Key) -> Window) -> Option<&Key> {
    let ended = keys.iter().filter(|key| window(key).is_over(now));
    let coming = keys.iter().filter(|key| !window(key).is_over(now));
    ended
        .max_by_key(|key| (window(key).until, key.id))
        .or_else(|| coming.min_by_key(|key| (window(key).from, key.id)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::auth::{Algorithm, Secret};

    fn key(id: u8, from: impl Into<Option<u64>>, until: impl Into<Option<u64>>) -> Key {
        let window = Window { from: from.into(), until: until.into() };
        let base = Key::new(id, Algorithm::HmacSha256, Secret::new("secret"));
        Key { send: window, accept: window, ..base }
    }

    fn sent(keys: &[Key], now: u64) -> (u8, bool) {
        let choice = to_send(keys, now).expect("there are keys");
        (choice.key.id, choice.stretched)
    }

    #[test]
    fn youngest_valid_key_is_sent_with() {
        let keys = [key(1, None, 200), key(2, 100, None), key(3, 300, None)];
        for (now, expected) in [(0, 1), (99, 1), (100, 2), (299, 2), (300, 3)] {
            assert_eq!(sent(&keys, now), (expected, false), "at {now}");
        }
        let equal = [key(4, 100, None), key(9, 100, None), key(5, 100, None)];
        assert_eq!(sent(&equal, 100), (9, false), "the highest id of equally young ones");
    }

    #[test]
    fn last_key_goes_on_after_its_end() {
        let keys = [key(1, None, 100), key(2, 50, 200)];
        assert_eq!(sent(&keys, 199), (2, false));
        assert_eq!(sent(&keys, 1_000), (2, true));
        assert_eq!(to_accept(&keys, 2, 1_000), Acceptance::Key(&keys[1]));
        assert_eq!(to_accept(&keys, 1, 1_000), Acceptance::Outside(&keys[0]));
    }

    #[test]
    fn first_key_serves_before_its_time_when_there_is_no_other() {
        let keys = [key(1, 500, None), key(2, 400, None)];
        assert_eq!(sent(&keys, 7), (2, true), "the clock may not be set yet");
        assert_eq!(to_accept(&keys, 2, 7), Acceptance::Key(&keys[1]));
        assert_eq!(to_accept(&keys, 1, 7), Acceptance::Outside(&keys[0]));
    }

    #[test]
    fn keys_are_accepted_in_their_window_alone() {
        let keys = [key(1, None, 200), key(2, 100, None)];
        assert_eq!(to_accept(&keys, 1, 199), Acceptance::Key(&keys[0]));
        assert_eq!(to_accept(&keys, 1, 200), Acceptance::Outside(&keys[0]));
        assert_eq!(to_accept(&keys, 2, 99), Acceptance::Outside(&keys[1]));
        assert_eq!(to_accept(&keys, 3, 150), Acceptance::Unknown);
    }

    #[test]
    fn no_keys_no_choice() {
        assert_eq!(to_send(&[], 0), None);
        assert_eq!(to_accept(&[], 1, 0), Acceptance::Unknown);
    }
}
