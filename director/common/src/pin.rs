//! Pins: connections whose real server cannot be derived from their slot any more, or not yet.
//!
//! A slot whose owner changes is *moving* for one idle timeout. Whatever belongs to it is looked up in the pins
//! meanwhile: what has no pin and begins a connection goes to the new owner, anything else to the previous one, and
//! either is pinned there. So when the time is up, every connection that is still alive has its pin, and the slot
//! needs none for those of its owner: it is *pinned* while pins to others are alive, and then *settled*.
//!
//! A pin names a real server by [`ServerId`], which no other server ever has: a pin to one that is gone is void.

use core::cell::Cell;

use crate::tables::{Plain, RealEntry};

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
    /// It begins the connection: TCP SYN without ACK, or QUIC Initial.
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
#[repr(C)]
pub struct Pin {
    /// [`ServerId`] in the low 48 bits, [`PinState`] above.
    word: u64,
    /// Second of the last packet, of [`Tables::now`](crate::Tables::now).
    pub seen: u64,
}

const _: () = assert!(size_of::<Pin>() == 16);
// SAFETY: `repr(C)` of two u64.
unsafe impl Plain for Pin {}

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

    /// What the connection was last seen to do.
    #[inline(always)]
    pub const fn state(&self) -> PinState {
        PinState::from_bits(self.word >> STATE_SHIFT)
    }
}

/// A pin where it lives. In the kernel processors change it under each other's eyes: server and state are one aligned
/// word, so that neither is ever seen without the other. (Atomics would say it better: the compiler has none for BPF
/// before the fourth version of its instructions.)
#[derive(Debug, Default)]
#[repr(C)]
pub struct PinCell {
    word: Cell<u64>,
    seen: Cell<u64>,
}

/// The value of a word, read once: the compiler may neither split nor repeat it.
#[inline(always)]
pub(crate) fn read(word: &Cell<u64>) -> u64 {
    // SAFETY: a pointer to a live, aligned word.
    unsafe { word.as_ptr().read_volatile() }
}

/// Makes a word another, if it is.
#[inline(always)]
pub(crate) fn write(word: &Cell<u64>, old: u64, new: u64) {
    if old != new {
        // SAFETY: as in `read`; a cell may be written through a shared reference.
        unsafe { word.as_ptr().write_volatile(new) };
    }
}

const _: () = assert!(size_of::<PinCell>() == size_of::<Pin>());

impl PinCell {
    /// A cell of its own, for tables in user space.
    pub const fn new(pin: Pin) -> Self {
        Self { word: Cell::new(pin.word), seen: Cell::new(pin.seen) }
    }

    /// What it holds now.
    #[inline(always)]
    pub fn load(&self) -> Pin {
        Pin { word: read(&self.word), seen: read(&self.seen) }
    }

    /// Notes a packet of the connection, that came in second `now`: `pin` is what [`Self::load`] gave for it.
    /// Writes only what differs, at most once a second for most connections, since the cache line that it is in is
    /// in the way of other processors then.
    #[inline(always)]
    pub fn note(&self, pin: &Pin, signals: u16, now: u32) {
        let next = Pin::new(pin.server(), pin.state().after(signals), now);
        self.replace(pin, &next);
    }

    /// Where server and state are, for whoever can exchange them at once.
    #[inline(always)]
    pub fn word(&self) -> *mut u64 {
        self.word.as_ptr()
    }

    /// The pin that has this word, and was seen when this one was.
    #[inline(always)]
    pub fn with_word(&self, word: u64) -> Pin {
        Pin { word, seen: read(&self.seen) }
    }

    /// Notes that a packet came in second `now`.
    #[inline(always)]
    pub fn touch(&self, pin: &Pin, now: u32) {
        write(&self.seen, pin.seen, u64::from(now));
    }

    /// Makes the pin another, of which `pin` is what [`Self::load`] gave for it.
    #[inline(always)]
    pub fn replace(&self, pin: &Pin, next: &Pin) {
        write(&self.word, pin.word, next.word);
        write(&self.seen, pin.seen, next.seen);
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
