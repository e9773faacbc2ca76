//! Pins: connections whose real server cannot be derived from their slot any more, or not yet.
//!
//! A slot whose owner changes is *moving* for one idle timeout. Whatever belongs to it is looked up in the pins
//! meanwhile: what has no pin and begins a connection goes to the new owner, anything else to the previous one, and
//! either is pinned there. So when the time is up, every connection that is still alive has its pin, and the slot
//! needs none for those of its owner: it is *pinned* while pins to others are alive, and then *settled*.
//!
//! A pin names a real server by [`ServerId`], which no other server ever has: a pin to one that is gone is void.

pub mod table;

use core::cell::Cell;

use crate::tables::{Plain, RealEntry, Tables};

/// One real server of one service: its position there, and the generation of the entry at that position, which is
/// another for every server that ever has one. Zero is nobody.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ServerId(u64);

impl ServerId {
    /// The server at `position` whose entry has this generation.
    #[inline(always)]
    pub const fn new(position: u16, generation: u32) -> Self {
        Self(((generation as u64) << 16) | position as u64)
    }

    /// Its position within the service.
    #[inline(always)]
    pub const fn position(self) -> u16 {
        self.0 as u16
    }

    /// [`RealEntry::generation`] of its entry; 0 if this is nobody.
    #[inline(always)]
    pub const fn generation(self) -> u32 {
        (self.0 >> 16) as u32
    }

    /// Whether `entry`, at this position, is this server.
    #[inline(always)]
    pub const fn is(self, entry: &RealEntry) -> bool {
        entry.generation == self.generation() && entry.generation != 0
    }
}

/// What a connection was last seen to do: it decides how long its pin outlives the last packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum PinState {
    /// Begun, and nothing but that was seen.
    Opening = 0,
    /// Under way.
    Open = 1,
    /// The client sent a FIN.
    Finished = 2,
    /// The client sent a RST.
    Reset = 3,
}

/// What a packet says about its connection: bits, so that nothing branches on them where no pin is.
pub mod signal {
    /// It begins the connection: TCP SYN without ACK, FIN or RST, or QUIC Initial.
    pub const OPENS: u16 = 1;
    /// TCP FIN.
    pub const FIN: u16 = 2;
    /// TCP RST.
    pub const RST: u16 = 4;
    /// It carries data.
    pub const DATA: u16 = 8;
}

impl PinState {
    /// Seconds for which a connection is kept that was begun and not heard of again, as IPVS does after a SYN.
    pub const OPENING_TIMEOUT: u32 = 60;

    /// The state of a connection of which a packet with these [`signal`]s is the first.
    #[inline(always)]
    pub const fn first(signals: u16) -> Self {
        if signals & signal::FIN != 0 {
            Self::Finished
        } else if signals & signal::OPENS != 0 {
            Self::Opening
        } else {
            Self::Open
        }
    }

    /// The state after a packet with these [`signal`]s.
    ///
    /// Nobody here can tell whether a FIN or a RST is the client's or somebody else's. So neither ends a pin, but
    /// only shortens its life, and whatever says that the connection goes on takes that back: behind a RST any
    /// segment, behind a FIN one with data (acknowledgements go on after it by right).
    #[inline(always)]
    pub const fn after(self, signals: u16) -> Self {
        if signals & signal::RST != 0 {
            return Self::Reset;
        }
        if signals & signal::FIN != 0 {
            return Self::Finished;
        }
        if signals & signal::OPENS != 0 {
            // Sent again.
            return self;
        }
        match self {
            Self::Finished if signals & signal::DATA == 0 => Self::Finished,
            _ => Self::Open,
        }
    }

    /// The state after a packet of the real server with these [`signal`]s, where those pass here.
    ///
    /// As [`Self::after`]; but what was under way when the client reset the connection does not bring it back.
    #[inline(always)]
    pub const fn after_reply(self, signals: u16) -> Self {
        match self {
            Self::Reset => Self::Reset,
            _ => self.after(signals),
        }
    }

    /// Whether IPVS counts a TCP connection in this state among the active ones. Flows of datagrams are all inactive.
    #[inline(always)]
    pub const fn is_active(self) -> bool {
        matches!(self, Self::Opening | Self::Open)
    }

    /// A packet that begins a connection begins another one, with the ports of one that has ended.
    #[inline(always)]
    pub const fn is_closing(self) -> bool {
        matches!(self, Self::Finished | Self::Reset)
    }

    const fn from_bits(bits: u64) -> Self {
        match bits & 3 {
            0 => Self::Opening,
            1 => Self::Open,
            2 => Self::Finished,
            _ => Self::Reset,
        }
    }
}

/// A pin as a value: what [`PinCell`] holds at one moment.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Pin {
    /// [`ServerId`] in the low 48 bits, [`PinState`] in the two above.
    word: u64,
    /// Second of the last packet, of [`Tables::now`].
    pub seen: u64,
}

/// Where the state begins in [`Pin`]'s word.
const STATE_SHIFT: u32 = 48;
/// The server's part of that word.
const SERVER_MASK: u64 = (1 << STATE_SHIFT) - 1;

impl Pin {
    /// A connection of `server`, seen at second `seen`.
    #[inline(always)]
    pub const fn new(server: ServerId, state: PinState, seen: u32) -> Self {
        Self { word: server.0 | ((state as u64) << STATE_SHIFT), seen: seen as u64 }
    }

    /// The real server.
    #[inline(always)]
    pub const fn server(&self) -> ServerId {
        ServerId(self.word & SERVER_MASK)
    }

    /// Server and state as one word.
    #[inline(always)]
    pub const fn word(&self) -> u64 {
        self.word
    }

    /// The pin of which these were [`Self::word`] and `seen`.
    #[inline(always)]
    pub const fn from_words(word: u64, seen: u64) -> Self {
        Self { word, seen }
    }

    /// What the connection was last seen to do.
    #[inline(always)]
    pub const fn state(&self) -> PinState {
        PinState::from_bits(self.word >> STATE_SHIFT)
    }
}

/// A pin where it lives: an entry of a [table]. In the kernel processors change it under each other's eyes: server and
/// state are one aligned word, so that neither is ever seen without the other. (Atomics would say it better: the
/// compiler has none for BPF before the fourth version of its instructions.)
#[derive(Debug, Default)]
#[repr(C)]
pub struct PinCell {
    /// As in [`Pin`], and above it a part of the connection's trace; 0 if the entry is free.
    word: Cell<u64>,
    /// Second of the last packet.
    seen: Cell<u32>,
    /// The rest of the trace.
    tag: Cell<u32>,
}

const _: () = assert!(size_of::<PinCell>() == 16);

/// The value of a word, read once: the compiler may neither split nor repeat it.
#[inline(always)]
pub(crate) fn read<T: Copy>(word: &Cell<T>) -> T {
    // SAFETY: a pointer to a live, aligned word.
    unsafe { word.as_ptr().read_volatile() }
}

#[inline(always)]
pub(crate) fn write<T>(word: &Cell<T>, value: T) {
    // SAFETY: as in `read`; a cell may be written through a shared reference.
    unsafe { word.as_ptr().write_volatile(value) };
}

impl PinCell {
    /// A cell of its own, for tables in user space.
    pub const fn new(pin: Pin) -> Self {
        Self { word: Cell::new(pin.word), seen: Cell::new(pin.seen as u32), tag: Cell::new(0) }
    }

    /// What it holds now.
    #[inline(always)]
    pub fn load(&self) -> Pin {
        Pin { word: table::unmarked(read(&self.word)), seen: u64::from(read(&self.seen)) }
    }

    /// Its word as it is.
    #[inline(always)]
    pub fn word(&self) -> u64 {
        read(&self.word)
    }

    /// Its tag.
    #[inline(always)]
    pub fn tag(&self) -> u32 {
        read(&self.tag)
    }

    /// Where the word is, for whoever can exchange it at once.
    #[inline(always)]
    pub fn word_ptr(&self) -> *mut u64 {
        self.word.as_ptr()
    }

    /// Fills in an entry that the caller has claimed, but for the word, which makes it the connection's.
    #[inline(always)]
    pub fn fill(&self, tag: u32, seen: u32) {
        write(&self.tag, tag);
        write(&self.seen, seen);
    }

    /// Makes a word another that nobody else changes.
    #[inline(always)]
    pub fn set_word(&self, word: u64) {
        write(&self.word, word);
    }

    /// [`Tables::exchange`] of a cell that nobody else changes.
    pub fn exchange(&self, old: &Pin, next: &Pin) -> bool {
        let word = self.word();
        let is = table::unmarked(word) == old.word;
        if is {
            self.set_word(table::marked(word, next));
        }
        is
    }

    /// Notes a packet of the connection, that came in second `now`: `pin` is what [`Self::load`] gave for it.
    /// Writes only what differs, at most once a second for most connections, since the cache line that it is in is
    /// in the way of other processors then.
    #[inline(always)]
    pub fn note(&self, pin: &Pin, signals: u16, now: u32, tables: &impl Tables) {
        let next = Pin::new(pin.server(), pin.state().after(signals), now);
        self.replace(pin, &next, tables);
    }

    /// Notes that a packet came in second `now`.
    #[inline(always)]
    pub fn touch(&self, pin: &Pin, now: u32) {
        if pin.seen != u64::from(now) {
            write(&self.seen, now);
        }
    }

    /// Makes the pin another, of which `pin` is what [`Self::load`] gave for it, unless another processor has just done
    /// so.
    #[inline(always)]
    pub fn replace(&self, pin: &Pin, next: &Pin, tables: &impl Tables) {
        if pin.word == next.word || tables.exchange(self, pin, next) {
            self.touch(pin, next.seen as u32);
        }
    }
}

/// What a QUIC connection id leads to a real server by.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(C)]
pub struct QuicKey {
    /// The service's index.
    pub service: u32,
    /// The server id in the connection id, first byte highest.
    pub id: u32,
}

const _: () = assert!(size_of::<QuicKey>() == 8);
// SAFETY: `repr(C)` of two u32.
unsafe impl Plain for QuicKey {}

/// The real server that a QUIC server id stands for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct QuicEntry {
    /// Position within the service.
    pub position: u32,
    /// [`RealEntry::generation`] of the entry there.
    pub generation: u32,
}

const _: () = assert!(size_of::<QuicEntry>() == 8);
// SAFETY: `repr(C)` of two u32.
unsafe impl Plain for QuicEntry {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pin_holds_its_parts() {
        for state in [PinState::Opening, PinState::Open, PinState::Finished, PinState::Reset] {
            for (position, generation) in [(0, 1), (0x7ffe, u32::MAX), (5, 0x8000_0001)] {
                let server = ServerId::new(position, generation);
                let pin = PinCell::new(Pin::new(server, state, 7)).load();
                assert_eq!((pin.server(), pin.state(), pin.seen), (server, state, 7));
                assert_eq!((server.position(), server.generation()), (position, generation));
            }
        }
    }

    #[test]
    fn an_entry_without_generation_is_nobody() {
        assert!(!ServerId::default().is(&RealEntry::default()));
        assert!(ServerId::new(3, 9).is(&RealEntry { generation: 9, ..RealEntry::default() }));
    }

    #[test]
    fn a_connection_that_goes_on_takes_back_what_a_stranger_said() {
        use signal::{DATA, FIN, OPENS, RST};
        let walk =
            |signals: &[u16]| signals[1..].iter().fold(PinState::first(signals[0]), |s, n| s.after(*n));
        assert_eq!(walk(&[OPENS]), PinState::Opening);
        assert_eq!(walk(&[OPENS, OPENS]), PinState::Opening);
        assert_eq!(walk(&[OPENS, 0]), PinState::Open);
        assert_eq!(walk(&[0, RST]), PinState::Reset);
        assert_eq!(walk(&[0, RST, 0]), PinState::Open);
        assert_eq!(walk(&[0, FIN, 0]), PinState::Finished, "an acknowledgement");
        assert_eq!(walk(&[0, FIN | DATA, DATA]), PinState::Open);
        assert_eq!(walk(&[0, FIN, RST, FIN]), PinState::Finished);
        assert!(!walk(&[0, RST, DATA, OPENS]).is_closing());
    }
}
