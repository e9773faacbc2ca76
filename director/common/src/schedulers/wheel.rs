//! Turns: `rr` and `wrr` as the order of one whole turn, which is made when the servers change and followed by a cursor.
//!
//! IPVS finds the next server of `wrr` by walking its list with a falling level: on each level those whose weight is
//! no lower have their turn, and the level falls by the weights' greatest common divisor. That has a period, in which
//! every server comes as often as its weight (divided by that divisor) says: the wheel. A server that is not available
//! is passed over, which leaves the order of the others as it was, in IPVS as here.

use super::{Pool, Server, divisor};

/// Entries of a wheel. A turn that is longer (weights without a common divisor that add up to more) is made of the
/// weights scaled down to it: servers too light for an entry have one each, the others share the rest by their weights.
pub const MAX_WHEEL: usize = 4_096;
/// Entries that are passed over for one connection, at most.
const MAX_SKIP: u32 = 64;

/// The level at which `wrr` stands: the weight a server must have to be served now.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Level(pub u32);

/// Makes the order of one turn.
#[derive(Clone, Copy, Debug)]
pub struct Wheel<'a> {
    weights: &'a [u32],
    divisor: u32,
    highest: u32,
    /// Weights are multiplied by this, and divided by `whole`. Those that this leaves nothing have 1.
    scale: u64,
    whole: u64,
    is_exact: bool,
}

impl<'a> Wheel<'a> {
    /// The wheel of servers with these weights; 0 has no part in it. For `rr` give 1 instead of every other weight.
    pub fn new(weights: &'a [u32]) -> Self {
        let mut divisor_of_all = 0;
        let mut sum = 0_u64;
        for weight in weights {
            divisor_of_all = divisor(divisor_of_all, *weight);
            sum = sum.wrapping_add(u64::from(*weight));
        }
        let entries = sum.checked_div(u64::from(divisor_of_all)).unwrap_or(0);
        let is_exact = entries <= MAX_WHEEL as u64;
        let (scale, whole) = if is_exact { (1, 1) } else { shares(weights, sum) };
        let divisor = if is_exact { divisor_of_all.max(1) } else { 1 };
        let mut wheel = Self { weights, divisor, highest: 0, scale, whole, is_exact };
        wheel.highest = weights.iter().map(|weight| wheel.scaled(*weight)).max().unwrap_or(0);
        wheel
    }

    /// The turn is that of the weights as they are.
    pub const fn is_exact(&self) -> bool {
        self.is_exact
    }

    fn scaled(&self, weight: u32) -> u32 {
        if self.is_exact() || weight == 0 {
            return weight;
        }
        let scaled = u64::from(weight).wrapping_mul(self.scale).checked_div(self.whole).unwrap_or(0);
        (scaled as u32).max(1)
    }

    /// The level of every turn's beginning.
    pub const fn top(&self) -> Level {
        Level(self.highest.saturating_sub(self.divisor.saturating_sub(1)))
    }

    /// The level that IPVS goes on from when its servers have changed to these, from `level` among others.
    pub fn adopt(&self, level: Level) -> Level {
        if level.0 == 0 || level.0 > self.top().0 {
            return self.top();
        }
        match self.divisor {
            1 => level,
            divisor => Level(
                level
                    .0
                    .checked_div(divisor)
                    .map_or(level.0, |times| times.wrapping_mul(divisor).wrapping_add(1)),
            ),
        }
    }

    /// Every entry of the turn, in order: the server's place among the weights, and the level it is on.
    pub fn entries(self) -> impl Iterator<Item = (u16, Level)> + 'a {
        let levels = core::iter::successors(Some(self.top().0), move |level| {
            level.checked_sub(self.divisor).filter(|level| *level > 0)
        });
        levels.filter(|level| *level > 0).flat_map(move |level| {
            let places = (0_u16..).zip(self.weights);
            places
                .filter(move |(_, weight)| self.scaled(**weight) >= level)
                .map(move |(place, _)| (place, Level(level)))
        })
    }

    /// Writes the order to `order` and returns its length.
    pub fn fill(self, order: &mut [u16]) -> u32 {
        let mut length = 0_u32;
        for ((place, _), entry) in self.entries().zip(order) {
            *entry = place;
            length = length.wrapping_add(1);
        }
        length
    }

    /// The cursor at which `level` begins.
    pub fn begin(self, level: Level) -> u64 {
        self.entries().take_while(|(_, at)| at.0 > level.0).count() as u64
    }
}

/// The entries that servers with these weights, which add up to `sum`, have by their weights, and the weights of those
/// that do. Who has less than one by that has one nevertheless, and no part in it: then others may have too little, too.
fn shares(weights: &[u32], sum: u64) -> (u64, u64) {
    let (mut scale, mut whole) = (MAX_WHEEL as u64, sum);
    loop {
        let (mut left, mut heavy) = (MAX_WHEEL as u64, 0_u64);
        for weight in weights.iter().map(|weight| u64::from(*weight)).filter(|weight| *weight != 0) {
            if weight.wrapping_mul(scale) < whole {
                left = left.saturating_sub(1);
            } else {
                heavy = heavy.wrapping_add(weight);
            }
        }
        // Of more servers than entries all may be too light.
        if heavy == whole || heavy == 0 {
            return (left, heavy);
        }
        (scale, whole) = (left, heavy);
    }
}

/// What a cursor on a wheel of `length` entries points at.
#[inline(always)]
const fn on(cursor: u64, length: u32) -> u32 {
    match cursor.checked_rem(length as u64) {
        Some(at) => at as u32,
        None => 0,
    }
}

/// The next server of a turn: from `cursor` on, the first entry whose server is available. `entry` reads the wheel of
/// `length` entries, `server` what is known of a server. Returns the server's place (`u32::MAX` if there is none, or
/// too many had to be passed over) and the entries passed over.
#[inline(always)]
pub fn next(
    length: u32,
    cursor: u64,
    entry: impl Fn(u32) -> u32,
    server: impl Fn(u32) -> Option<Server>,
) -> (u32, u32) {
    let mut skipped = 0_u32;
    if length == 0 {
        return (u32::MAX, 0);
    }
    // No other bound: the kernel's verifier would follow what each step tells of `length` to the end by itself.
    while skipped < MAX_SKIP {
        let place = entry(on(cursor.wrapping_add(u64::from(skipped)), length));
        if let Some(server) = server(place)
            && server.is_available()
        {
            return (place, skipped);
        }
        skipped = skipped.wrapping_add(1);
    }
    (u32::MAX, skipped)
}

/// Of two servers drawn by their weights the one with the lower overhead for its weight, the first if they are equal
/// (`twos`). `draws` are random; drawing an entry of the wheel is drawing by weight.
#[inline(always)]
pub fn two_choices(
    length: u32,
    draws: [u32; 2],
    entry: impl Fn(u32) -> u32,
    server: impl Fn(u32) -> Option<Server>,
) -> u32 {
    let [first, second] = draws;
    let (first, _) = next(length, u64::from(first), &entry, &server);
    let (second, _) = next(length, u64::from(second), &entry, &server);
    let (Some(one), Some(other)) = (server(first), server(second)) else { return first };
    let (cost, dearer) = (other.overhead(), one.overhead());
    if dearer.wrapping_mul(u64::from(other.weight)) > cost.wrapping_mul(u64::from(one.weight)) {
        second
    } else {
        first
    }
}

/// The next server of `pool` by a wheel in memory, whose cursor is moved behind it.
pub fn turn(order: &[u16], cursor: &mut u64, pool: &(impl Pool + ?Sized)) -> u32 {
    let entry = |at: u32| order.get(at as usize).map_or(u32::MAX, |place| u32::from(*place));
    let (place, skipped) = next(order.len() as u32, *cursor, entry, |place| pool.server(place));
    if place != u32::MAX {
        *cursor = cursor.wrapping_add(u64::from(skipped)).wrapping_add(1);
    }
    place
}
