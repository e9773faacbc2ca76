//! Where pins are: a hash table in memory that the kernel's program and user space both read and write.
//!
//! It is ours because the kernel's hashes touch three cache lines and more for a look-up, copy every element that
//! user space adds or reads through a system call, and hash the whole key byte by byte. Here
//!
//! - an entry is 16 bytes, and a bucket of [`WAYS`] entries two neighbouring cache lines: most look-ups touch one;
//! - a connection has two buckets to be in ([`Trace::buckets`]; Azar, Broder, Karlin, Upfal, "Balanced allocations",
//!   SIAM J. Comput. 29, 1999), of which the first is preferred until half of it is full: so the table can be filled to
//!   five eighths with no more than one connection in millions that finds no room, and nothing is ever moved;
//! - an entry names its connection by 46 bits of a hash with secret coefficients, beside the bits that its bucket tells.
//!   That a connection is taken for another is as likely as 8 in 2^46 for a look-up that finds nothing, whatever packets
//!   somebody chooses to send. The connection itself stands in a second array, which only those read who walk through
//!   the table, and which is written when an entry is made.
//!
//! An entry comes and goes by one exchange of its [word](PinCell::word), which is zero where it is free: whoever makes
//! one claims it so, writes the rest, and publishes the word at last.

use super::{Pin, PinCell, STATE_SHIFT};
use crate::hash::spread;
use crate::siphash::{HashKey, siphash};
use crate::tables::{FlowKey, FlowRecord, Plain};

/// Entries of a bucket.
pub const WAYS: usize = 8;
const _: () = assert!(WAYS == 1 << 3);
/// Entries in a connection's first bucket from which on it is put into the emptier one of both: those of a cache line.
pub const HALF: usize = WAYS / 2;

/// [`PinCell::word`] of an entry that the program is about to fill: no server, and still not zero.
pub const CLAIMED: u64 = 1 << STATE_SHIFT;
/// The same of one that user space is about to fill: should its process be killed meanwhile, the next one frees it. (The
/// program always runs to its end.)
pub const CLAIMED_BY_USER: u64 = 2 << STATE_SHIFT;
/// Where the part of a connection's [`Trace`] begins that is in the word.
const MARK_SHIFT: u32 = STATE_SHIFT + 2;
/// That part.
const MARK: u64 = !0 << MARK_SHIFT;

/// Entries that may be the same connection's.
#[derive(Debug, Default)]
#[repr(C, align(128))]
pub struct PinBucket {
    /// Each by its number.
    pub cells: [PinCell; WAYS],
}

const _: () = assert!(size_of::<PinBucket>() == 128);

/// Whose the entries of a bucket are, and their leases.
#[derive(Clone, Copy, Debug, Default)]
#[repr(C)]
pub struct FlowBucket {
    /// Each by its number; what it was last where the entry is free.
    pub flows: [FlowRecord; WAYS],
}

const _: () = assert!(size_of::<FlowBucket>() == 320);
// SAFETY: `repr(C)` of plain elements.
unsafe impl Plain for FlowBucket {}

/// Buckets of a table in which so many connections surely find room: they fill five eighths of it.
pub const fn buckets_for(connections: u32) -> u32 {
    connections.div_ceil(5)
}

/// Connections that a table of so many buckets is for.
pub const fn connections_in(buckets: u32) -> u32 {
    buckets.saturating_mul(5)
}

/// How connections are found: secrets that are drawn when the table is made and nobody else has.
///
/// Two sums over the words of the key, each of which is multilinear: two connections have the same one with a chance of
/// 2^-64 times the largest power of two that divides every difference between their words (Lemire, Kaser, "Strongly
/// universal string hashing is fast", The Computer Journal 57, 2014).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct PinHash {
    begin: [u64; 2],
    /// Coefficients of the words of the source address and then of the destination's.
    words: [[u64; 8]; 2],
    /// Coefficients of the ports and the protocol.
    ports: [u64; 2],
    /// Odd: multiplication by it loses nothing.
    spread: [u64; 2],
}

const _: () = assert!(size_of::<PinHash>() == 176);
// SAFETY: `repr(C)` of 22 u64.
unsafe impl Plain for PinHash {}

impl PinHash {
    /// The secrets that follow from a key: SipHash-2-4 of their numbers.
    pub fn new(key: HashKey) -> Self {
        let secret = |number: u8| siphash::<2, 4, 1>(key, [number]);
        let words = |first: u8| core::array::from_fn(|at| secret(first.wrapping_add(at as u8)));
        Self {
            begin: [secret(0), secret(1)],
            words: [words(2), words(10)],
            ports: [secret(18), secret(19)],
            spread: [secret(20) | 1, secret(21) | 1],
        }
    }

    /// Where a connection may be, and what its entry says.
    #[inline(always)]
    pub fn of(&self, flow: &FlowKey) -> Trace {
        let ([a, b, c, d], [e, f, g, h]) = (flow.source.words(), flow.destination.words());
        let ports = u64::from(flow.protocol) << 32
            | u64::from(flow.source_port) << 16
            | u64::from(flow.destination_port);
        let key = [a, b, c, d, e, f, g, h].map(u64::from);
        let ([begin, begin2], [words, words2]) = (self.begin, &self.words);
        let ([port, port2], [odd, odd2]) = (self.ports, self.spread);
        let sum = |begin: u64, words: &[u64; 8], port: u64| {
            let products = key.iter().zip(words).map(|(word, by)| word.wrapping_mul(*by));
            products.fold(begin.wrapping_add(ports.wrapping_mul(port)), u64::wrapping_add)
        };
        Trace {
            first: spread(sum(begin, words, port), odd),
            second: spread(sum(begin2, words2, port2), odd2),
        }
    }
}

/// What a connection leaves in the table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Trace {
    /// The first bucket, and [`PinCell::tag`].
    pub first: u64,
    /// The second bucket, and the part in the word.
    pub second: u64,
}

impl Trace {
    /// The buckets that it may be in, of so many.
    #[inline(always)]
    pub const fn buckets(&self, count: u32) -> [u32; 2] {
        [scaled(self.first, count), scaled(self.second, count)]
    }

    /// The part that is in the entry's tag.
    #[inline(always)]
    pub const fn tag(&self) -> u32 {
        self.first as u32
    }

    /// The part that is in the entry's word.
    #[inline(always)]
    pub const fn mark(&self) -> u64 {
        self.second << MARK_SHIFT
    }

    /// Whether an entry with this word and tag is this connection's.
    #[inline(always)]
    pub const fn is_of(&self, word: u64, tag: u32) -> bool {
        tag == self.tag() && word & MARK == self.mark() && names_somebody(word)
    }

    /// The word of an entry that holds `pin`.
    #[inline(always)]
    pub const fn word(&self, pin: &Pin) -> u64 {
        pin.word() | self.mark()
    }
}

/// `hash`, by its upper half, as a number below `count`.
#[inline(always)]
const fn scaled(hash: u64, count: u32) -> u32 {
    ((hash >> 32).wrapping_mul(count as u64) >> 32) as u32
}

/// Whether an entry with this word is somebody's: neither free nor claimed.
#[inline(always)]
pub const fn names_somebody(word: u64) -> bool {
    word & !(!0 << STATE_SHIFT) != 0
}

/// `word` without what is there to find it by.
#[inline(always)]
pub(super) const fn unmarked(word: u64) -> u64 {
    word & !MARK
}

/// The word that holds `pin` where `word` is.
#[inline(always)]
pub const fn marked(word: u64, pin: &Pin) -> u64 {
    pin.word() | word & MARK
}

/// The buckets of a table, wherever they are.
pub trait Buckets {
    /// Bucket number `number`; `None` if there are not so many.
    fn bucket(&self, number: u32) -> Option<&PinBucket>;
    /// Makes the word of a cell `new` if it is `old`, at once; false if it is another.
    fn exchange(&self, cell: &PinCell, old: u64, new: u64) -> bool;
}

/// What [`find`] and [`claim`] say where there is no entry.
pub const NOWHERE: u32 = u32::MAX;

/// The number of a connection's entry, in a table of `count` buckets; [`NOWHERE`] if it has none.
#[inline(always)]
pub fn find(table: &impl Buckets, count: u32, trace: &Trace) -> u32 {
    let [first, second] = trace.buckets(count);
    let found = find_in(table, first, trace);
    if found != NOWHERE { found } else { find_in(table, second, trace) }
}

#[inline(always)]
fn find_in(table: &impl Buckets, number: u32, trace: &Trace) -> u32 {
    let Some(bucket) = table.bucket(number) else { return NOWHERE };
    let mut way = 0;
    while let Some(cell) = bucket.cells.get(way) {
        if cell.tag() == trace.tag() && trace.is_of(cell.word(), cell.tag()) {
            return number_of(number, way);
        }
        way = way.wrapping_add(1);
    }
    NOWHERE
}

/// Claims an entry for a connection by `mark`, [`CLAIMED`] or [`CLAIMED_BY_USER`], and says its number; [`NOWHERE`] if
/// it has one, or there is no room. The caller fills it in ([`PinCell::fill`]), and then sets its word.
///
/// Two that claim for one connection in the same moment may both succeed. The one in front is found from then on; the
/// other has its time and goes, by its number.
#[inline(always)]
pub fn claim(table: &impl Buckets, count: u32, trace: &Trace, mark: u64) -> u32 {
    if find(table, count, trace) != NOWHERE {
        return NOWHERE;
    }
    let [first, second] = trace.buckets(count);
    let used = used_in(table, first);
    let number = if used < HALF || used <= used_in(table, second) { first } else { second };
    let Some(bucket) = table.bucket(number) else { return NOWHERE };
    let mut way = 0;
    while let Some(cell) = bucket.cells.get(way) {
        if cell.word() == 0 && table.exchange(cell, 0, mark) {
            return number_of(number, way);
        }
        way = way.wrapping_add(1);
    }
    NOWHERE
}

/// Whether no entry but number `number` is a connection's. Asked after its word was set: so of two that claimed for one
/// connection in the same moment at least one is told of the other, whose word was set before it asked.
#[inline(always)]
pub fn is_alone(table: &impl Buckets, count: u32, trace: &Trace, number: u32) -> bool {
    let [first, second] = trace.buckets(count);
    !is_elsewhere_in(table, first, trace, number) && !is_elsewhere_in(table, second, trace, number)
}

#[inline(always)]
fn is_elsewhere_in(table: &impl Buckets, bucket: u32, trace: &Trace, number: u32) -> bool {
    let Some(found) = table.bucket(bucket) else { return false };
    let mut way = 0;
    while let Some(cell) = found.cells.get(way) {
        let is = cell.tag() == trace.tag() && trace.is_of(cell.word(), cell.tag());
        if is && number_of(bucket, way) != number {
            return true;
        }
        way = way.wrapping_add(1);
    }
    false
}

#[inline(always)]
fn used_in(table: &impl Buckets, number: u32) -> usize {
    let Some(bucket) = table.bucket(number) else { return WAYS };
    let mut used = 0_usize;
    for cell in &bucket.cells {
        used = used.wrapping_add(usize::from(cell.word() != 0));
    }
    used
}

#[inline(always)]
const fn number_of(bucket: u32, way: usize) -> u32 {
    bucket.wrapping_mul(WAYS as u32).wrapping_add(way as u32)
}

/// Bucket and place there of entry number `number`.
#[inline(always)]
pub const fn place_of(number: u32) -> (u32, usize) {
    (number >> 3, number as usize & (WAYS - 1))
}

/// The entry with a number.
#[inline(always)]
pub fn cell(table: &impl Buckets, number: u32) -> Option<&PinCell> {
    let (bucket, way) = place_of(number);
    table.bucket(bucket)?.cells.get(way)
}

/// Gives an entry back that holds what `pin` says and is `trace`'s; false if it is not so any more.
#[inline(always)]
pub fn release(table: &impl Buckets, cell: &PinCell, trace: &Trace, pin: &Pin) -> bool {
    table.exchange(cell, trace.word(pin), 0)
}

#[cfg(test)]
mod tests {
    extern crate std;
    use std::collections::HashSet;
    use std::vec::Vec;

    use proptest::prelude::*;

    use super::*;
    use crate::pin::{PinState, ServerId};
    use crate::tables::Address;

    struct Table(Vec<PinBucket>);

    impl Buckets for Table {
        fn bucket(&self, number: u32) -> Option<&PinBucket> {
            self.0.get(number as usize)
        }
        fn exchange(&self, cell: &PinCell, old: u64, new: u64) -> bool {
            let is = cell.word() == old;
            if is {
                cell.set_word(new);
            }
            is
        }
    }

    impl Table {
        fn new(connections: u32) -> Self {
            Self((0..buckets_for(connections)).map(|_| PinBucket::default()).collect())
        }
        fn count(&self) -> u32 {
            self.0.len() as u32
        }
        fn add(&self, hash: &PinHash, flow: &FlowKey, pin: &Pin) -> bool {
            let trace = hash.of(flow);
            let Some(cell) = cell(self, claim(self, self.count(), &trace, CLAIMED)) else { return false };
            cell.fill(trace.tag(), pin.seen as u32);
            cell.set_word(trace.word(pin));
            true
        }
        fn get(&self, hash: &PinHash, flow: &FlowKey) -> Option<Pin> {
            cell(self, find(self, self.count(), &hash.of(flow))).map(PinCell::load)
        }
        fn remove(&self, hash: &PinHash, flow: &FlowKey) -> bool {
            let trace = hash.of(flow);
            let found = cell(self, find(self, self.count(), &trace));
            found.is_some_and(|cell| release(self, cell, &trace, &cell.load()))
        }
    }

    fn hash(seed: u64) -> PinHash {
        PinHash::new(HashKey { k0: seed, k1: 7 })
    }

    fn flow(number: u32) -> FlowKey {
        FlowKey {
            source: Address::from_ipv4((number / 60_000).wrapping_add(0x0a00_0000).to_be_bytes()),
            destination: Address::from_ipv4([192, 0, 2, 1]),
            source_port: (number % 60_000) as u16 + 1_024,
            destination_port: 80,
            protocol: 6,
            reserved: [0; 3],
        }
    }

    fn pin(number: u32) -> Pin {
        Pin::new(ServerId::new(number as u16 & 0xfff, number | 1), PinState::Open, number)
    }

    /// The promise of [`buckets_for`], for connections as clients make them.
    #[test]
    fn as_many_as_declared_find_room() {
        const MANY: u32 = 200_000;
        for seed in 0..3 {
            let (table, hash) = (Table::new(MANY), hash(seed));
            let refused = (0..MANY).filter(|number| !table.add(&hash, &flow(*number), &pin(*number))).count();
            assert_eq!(refused, 0, "seed {seed}");
            for number in (0..MANY).step_by(7) {
                assert_eq!(table.get(&hash, &flow(number)), Some(pin(number)));
            }
            assert!((MANY..2 * MANY).all(|number| table.get(&hash, &flow(number)).is_none()));
            // Most by the first line of the first bucket: one line touched.
            let at_once = |number: &u32| {
                let trace = hash.of(&flow(*number));
                let (bucket, way) = place_of(find(&table, table.count(), &trace));
                bucket == trace.buckets(table.count())[0] && way < WAYS / 2
            };
            let share = f64::from((0..MANY).filter(at_once).count() as u32) / f64::from(MANY);
            assert!(share > 0.6, "{share}");
        }
    }

    #[test]
    fn a_full_table_refuses_and_keeps_what_it_has() {
        let (table, hash) = (Table::new(40), hash(1));
        let held: Vec<u32> =
            (0..1_000).filter(|number| table.add(&hash, &flow(*number), &pin(*number))).collect();
        assert!((40..=64).contains(&held.len()), "{}", held.len());
        assert!(held.iter().all(|number| table.get(&hash, &flow(*number)) == Some(pin(*number))));
        assert!(!table.add(&hash, &flow(held[0]), &pin(9)), "it has one");
        assert!(table.remove(&hash, &flow(held[0])));
        assert!(!table.remove(&hash, &flow(held[0])));
        assert!(table.add(&hash, &flow(held[0]), &pin(9)));
    }

    #[test]
    fn traces_differ_wherever_connections_do() {
        let hash = hash(5);
        let base = flow(77);
        let mut traces = HashSet::new();
        traces.insert((hash.of(&base).first, hash.of(&base).second));
        let mut changed = Vec::new();
        for bit in 0..128 {
            let flip = |mut address: Address| {
                address.0[bit / 8] ^= 1 << (bit % 8);
                address
            };
            changed.push(FlowKey { source: flip(base.source), ..base });
            changed.push(FlowKey { destination: flip(base.destination), ..base });
        }
        for bit in 0..16 {
            changed.push(FlowKey { source_port: base.source_port ^ 1 << bit, ..base });
            changed.push(FlowKey { destination_port: base.destination_port ^ 1 << bit, ..base });
        }
        (0..8).for_each(|bit| changed.push(FlowKey { protocol: base.protocol ^ 1 << bit, ..base }));
        for flow in &changed {
            let trace = hash.of(flow);
            assert!(traces.insert((trace.first, trace.second)), "{flow:?}");
        }
        let tags: HashSet<_> =
            traces.iter().map(|(first, second)| (*first as u32, *second as u16 & 0x3fff)).collect();
        assert_eq!(tags.len(), traces.len());
    }

    proptest! {
        /// Whatever is done to it, it holds what a map would.
        #[test]
        fn it_is_a_map(steps in prop::collection::vec((0_u32..60, 0_u8..4), 1..400), seed in any::<u64>()) {
            let (table, hash) = (Table::new(200), hash(seed));
            let mut model = std::collections::HashMap::new();
            for (number, step) in steps {
                let key = flow(number);
                match step {
                    0 | 1 => {
                        let added = table.add(&hash, &key, &pin(number));
                        prop_assert_eq!(added, model.insert(number, pin(number)).is_none());
                    }
                    2 => prop_assert_eq!(table.remove(&hash, &key), model.remove(&number).is_some()),
                    _ => prop_assert_eq!(table.get(&hash, &key), model.get(&number).copied()),
                }
            }
        }

        #[test]
        fn a_word_keeps_the_pin_and_the_mark(position in 0_u16..0x7fff, generation in 1_u32.., seed in any::<u64>()) {
            let trace = hash(seed).of(&flow(position.into()));
            let pin = Pin::new(ServerId::new(position, generation), PinState::Reset, 0);
            let word = trace.word(&pin);
            prop_assert_eq!(unmarked(word), pin.word());
            prop_assert!(trace.is_of(word, trace.tag()));
            let next = Pin::new(pin.server(), PinState::Open, 0);
            prop_assert_eq!(marked(word, &next), trace.word(&next));
            prop_assert!(!trace.is_of(CLAIMED | trace.mark(), trace.tag()));
        }
    }
}
