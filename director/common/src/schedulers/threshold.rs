//! When a server has enough: `ipvsadm --u-threshold`, `--l-threshold`.

/// The thresholds of a server, in connections, active and inactive together. 0 is none.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Thresholds {
    /// With so many it takes no new ones.
    pub upper: u32,
    /// With fewer it takes new ones again; if 0, with fewer than three quarters of `upper`.
    pub lower: u32,
}

impl Thresholds {
    /// Whether a server is overloaded that has one connection more now, `total` of them.
    #[inline(always)]
    pub const fn after_arrival(&self, overloaded: bool, total: u64) -> bool {
        overloaded || (self.upper != 0 && total >= self.upper as u64)
    }

    /// Whether a server is still overloaded that has one connection less now, `total` of them.
    #[inline(always)]
    pub const fn after_departure(&self, overloaded: bool, total: u64) -> bool {
        if self.lower != 0 {
            overloaded && total >= self.lower as u64
        } else {
            overloaded && self.upper != 0 && total.wrapping_mul(4) >= (self.upper as u64).wrapping_mul(3)
        }
    }

    /// Whether a server is still overloaded whose thresholds were `self` and are `new`. Only a higher upper one (or
    /// none) takes the mark away at once.
    pub const fn after_change(&self, new: &Self, overloaded: bool) -> bool {
        overloaded && new.upper != 0 && new.upper <= self.upper
    }
}
