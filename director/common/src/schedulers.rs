//! Schedulers: which real server a new connection goes to, as IPVS defines each (`ip_vs_*` of Linux 6.1).
//!
//! Pure, without allocation and without a clock: the program in the kernel chooses by the same code that the tests
//! hold against IPVS itself (`director/tests/ipvs_oracle`). Two kinds:
//!
//! * those that choose anew for each connection, by a turn or by the servers' load ([`Method`]). What they chose has to
//!   be remembered: their services are *tracked*, every connection has its pin from the first packet on;
//! * those that hash ([`source`], [`destination`], [`maglev`](mod@maglev)): here as IPVS computes them. What a service
//!   of ours does is to deal the slots of its table, so that nothing needs to be remembered.
//!
//! | file | owns |
//! |---|---|
//! | `choose` | the choice for one connection, by what is in the maps |
//! | `least` | lc, wlc, sed, nq, fo, ovf: one scan, the lowest cost wins |
//! | `wheel` | rr and wrr: the order of one whole turn; twos draws from it |
//! | `locality` | lblc, lblcr: servers by destination |
//! | `buckets` | sh, dh |
//! | `maglev` | mh |
//! | `threshold` | when a server is overloaded |

mod buckets;
mod choose;
pub mod least;
mod locality;
pub mod maglev;
#[cfg(test)]
mod tests;
mod threshold;
pub mod wheel;

pub use buckets::{BUCKETS, Buckets, destination, source};
pub use choose::choose;
pub use least::{SCAN_WORDS, Scan, least};
pub use locality::{Locality, MAX_SET, ReplicatedLocality};
pub use threshold::Thresholds;
pub use wheel::{Level, MAX_WHEEL, Wheel, next, two_choices};

/// A scheduler that chooses for each new connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(u8)]
pub enum Method {
    /// `rr`: each in turn.
    RoundRobin = 1,
    /// `wrr`: each in turn, as often as its weight says.
    WeightedRoundRobin = 2,
    /// `lc`: fewest connections.
    LeastConnection = 3,
    /// `wlc`: fewest connections for its weight.
    WeightedLeastConnection = 4,
    /// `sed`: where a connection will be served soonest.
    ShortestExpectedDelay = 5,
    /// `nq`: one that is idle, else as `sed`.
    NeverQueue = 6,
    /// `fo`: the highest weight.
    Failover = 7,
    /// `ovf`: the highest weight that has not as many active connections as that.
    Overflow = 8,
    /// `twos`: the less loaded of two that are drawn.
    TwoChoices = 9,
    /// None of IPVS's, and in nobody's choice: each goes to its slot's owner, as in services that are not tracked.
    Slots = 15,
}

impl Method {
    /// All that IPVS has.
    pub const ALL: [Self; 9] = [
        Self::RoundRobin,
        Self::WeightedRoundRobin,
        Self::LeastConnection,
        Self::WeightedLeastConnection,
        Self::ShortestExpectedDelay,
        Self::NeverQueue,
        Self::Failover,
        Self::Overflow,
        Self::TwoChoices,
    ];

    /// IPVS's name for it, if it has one.
    pub const fn name(self) -> &'static str {
        match self {
            Self::RoundRobin => "rr",
            Self::WeightedRoundRobin => "wrr",
            Self::LeastConnection => "lc",
            Self::WeightedLeastConnection => "wlc",
            Self::ShortestExpectedDelay => "sed",
            Self::NeverQueue => "nq",
            Self::Failover => "fo",
            Self::Overflow => "ovf",
            Self::TwoChoices => "twos",
            Self::Slots => "slots",
        }
    }

    /// The one of that name.
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.iter().copied().find(|method| method.name() == name)
    }

    /// The method of this number, as maps hold it; `wlc`, IPVS's own default, for what is none.
    #[inline(always)]
    pub const fn from_bits(bits: u32) -> Self {
        match bits {
            1 => Self::RoundRobin,
            2 => Self::WeightedRoundRobin,
            3 => Self::LeastConnection,
            5 => Self::ShortestExpectedDelay,
            6 => Self::NeverQueue,
            7 => Self::Failover,
            8 => Self::Overflow,
            9 => Self::TwoChoices,
            15 => Self::Slots,
            _ => Self::WeightedLeastConnection,
        }
    }

    /// Whether it goes by a [`Wheel`].
    #[inline(always)]
    pub const fn turns(self) -> bool {
        matches!(self, Self::RoundRobin | Self::WeightedRoundRobin | Self::TwoChoices)
    }
}

/// A real server as a scheduler sees it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Server {
    /// Its share of new connections relative to the others; 0 takes none (quiesced).
    pub weight: u32,
    /// Connections under way: as IPVS counts, until a FIN or a RST.
    pub active: u32,
    /// Other connections that are remembered.
    pub inactive: u32,
    /// 1 if it has reached its upper threshold, see [`Thresholds`]; else 0.
    pub overloaded: u32,
}

impl Server {
    /// Whether it takes new connections.
    #[inline(always)]
    pub const fn is_available(&self) -> bool {
        self.weight != 0 && self.overloaded == 0
    }

    /// What its connections cost: an active one as much as 256 others (`ip_vs_dest_conn_overhead`).
    #[inline(always)]
    pub const fn overhead(&self) -> u64 {
        ((self.active as u64) << 8).wrapping_add(self.inactive as u64)
    }
}

/// The greatest common divisor of two weights; of one of them and 0, that one.
const fn divisor(a: u32, b: u32) -> u32 {
    let (mut a, mut b) = (a, b);
    while let Some(rest) = a.checked_rem(b) {
        (a, b) = (b, rest);
    }
    a
}

/// The real servers to choose from, in the order in which IPVS would have them: where two are equal, the first wins.
pub trait Pool {
    /// How many there are.
    fn len(&self) -> u32;
    /// The one at `at`, below [`Self::len`]; `None` if it is gone.
    fn server(&self, at: u32) -> Option<Server>;
    /// There is none.
    fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

impl Pool for [Server] {
    fn len(&self) -> u32 {
        <[Server]>::len(self) as u32
    }

    fn server(&self, at: u32) -> Option<Server> {
        self.get(at as usize).copied()
    }
}
