//! Whether enough real servers of a service are live for its VIP to be announced. Pure.

/// How many live real servers a service needs.
///
/// The unit is the caller's: the number of live real servers, or the sum of their weights (as keepalived has it).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Quorum {
    /// The least that suffices. 0 means always announced.
    pub needed: u32,
    /// Distance that must be passed beyond `needed` in either direction before the answer changes. With 7 and 2,
    /// a service comes up at 9 and is lost below 5.
    pub hysteresis: u32,
}

impl Default for Quorum {
    /// One live real server, no hysteresis.
    fn default() -> Self {
        Self { needed: 1, hysteresis: 0 }
    }
}

impl Quorum {
    /// Whether the service has its quorum with `live`, given whether it `had` it before (`false` at the start).
    ///
    /// `available` is what all real servers together would give: a service whose hysteresis asks for more than
    /// there is comes up when everything is live, instead of never.
    #[must_use]
    pub fn holds(self, had: bool, live: u32, available: u32) -> bool {
        if self.needed == 0 {
            return true;
        }
        if had {
            // At least 1: a service without any live real server has no quorum, however wide the hysteresis.
            return live >= self.needed.saturating_sub(self.hysteresis).max(1);
        }
        let enough = self.needed.saturating_add(self.hysteresis).min(available).max(self.needed);
        live >= enough
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn default_is_lost_with_the_last_real_server() {
        let quorum = Quorum::default();
        assert!(quorum.holds(false, 1, 3));
        assert!(quorum.holds(true, 1, 3));
        assert!(!quorum.holds(true, 0, 3));
    }

    #[test]
    fn hysteresis_as_in_the_keepalived_sample() {
        let quorum = Quorum { needed: 7, hysteresis: 2 };
        assert!(!quorum.holds(false, 8, 12));
        assert!(quorum.holds(false, 9, 12));
        assert!(quorum.holds(true, 5, 12));
        assert!(!quorum.holds(true, 4, 12));
    }

    #[test]
    fn all_live_is_enough_where_the_hysteresis_asks_for_more_than_exists() {
        let quorum = Quorum { needed: 2, hysteresis: 2 };
        assert!(!quorum.holds(false, 2, 3));
        assert!(quorum.holds(false, 3, 3));
        assert!(!quorum.holds(true, 0, 3));
    }

    #[test]
    fn a_quorum_above_what_exists_is_never_met() {
        assert!(!Quorum { needed: 3, hysteresis: 0 }.holds(false, 2, 2));
    }
}
