//! The BFD Control packet (RFC 5880 section 4.1): a view that judges nothing, a value that holds only what was
//! accepted.
//!
//! ```text
//!  0                   1                   2                   3
//!  0 1 2 3 4 5 6 7 8 9 0 1 2 3 4 5 6 7 8 9 0 1 2 3 4 5 6 7 8 9 0 1
//! +-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+
//! |Vers |  Diag   |Sta|P|F|C|A|D|M|  Detect Mult  |    Length     |
//! +-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+
//! |                       My Discriminator                        |
//! |                      Your Discriminator                       |
//! |                    Desired Min TX Interval                    |
//! |                   Required Min RX Interval                    |
//! |                 Required Min Echo RX Interval                 |
//! +-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+
//! ```

use std::fmt;
use std::num::{NonZeroU8, NonZeroU32};

use serde::{Deserialize, Serialize, Serializer};

use super::discard::Discard;

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a test may panic")]
mod tests;

/// Octets of the mandatory section, and of every packet this speaker sends.
pub const LENGTH: usize = 24;

/// The only version there is.
const VERSION: u8 = 1;

/// Octet offsets of the fields.
mod field {
    pub(super) const VERSION_DIAGNOSTIC: usize = 0;
    pub(super) const STATE_FLAGS: usize = 1;
    pub(super) const MULTIPLIER: usize = 2;
    pub(super) const LENGTH: usize = 3;
    pub(super) const MY_DISCRIMINATOR: usize = 4;
    pub(super) const YOUR_DISCRIMINATOR: usize = 8;
    pub(super) const DESIRED_MIN_TX: usize = 12;
    pub(super) const REQUIRED_MIN_RX: usize = 16;
    pub(super) const REQUIRED_MIN_ECHO_RX: usize = 20;
}

/// The bits beside the state.
mod flag {
    pub(super) const POLL: u8 = 0x20;
    pub(super) const FINAL: u8 = 0x10;
    pub(super) const CONTROL_PLANE_INDEPENDENT: u8 = 0x08;
    pub(super) const AUTHENTICATION: u8 = 0x04;
    pub(super) const DEMAND: u8 = 0x02;
    pub(super) const MULTIPOINT: u8 = 0x01;
}

/// The state of a session, two bits on the wire.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum State {
    /// Held down by the operator: says nothing about the path.
    AdminDown = 0,
    /// Not established.
    Down = 1,
    /// The remote system is heard and does not yet hear us, as far as we know.
    Init = 2,
    /// Both systems hear each other.
    Up = 3,
}

impl State {
    /// The state from the low two bits of `bits`.
    pub const fn from_bits(bits: u8) -> Self {
        match bits & 0b11 {
            0 => Self::AdminDown,
            1 => Self::Down,
            2 => Self::Init,
            _ => Self::Up,
        }
    }
}

impl fmt::Display for State {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::AdminDown => "AdminDown",
            Self::Down => "Down",
            Self::Init => "Init",
            Self::Up => "Up",
        })
    }
}

/// Why a system last left its state, five bits on the wire. Serializes as its name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct Diagnostic(u8);

impl Diagnostic {
    /// No reason.
    pub const NONE: Self = Self(0);
    /// No packet came for the detection time.
    pub const DETECTION_TIME_EXPIRED: Self = Self(1);
    /// An Echo packet did not come back.
    pub const ECHO_FAILED: Self = Self(2);
    /// The other system said so.
    pub const NEIGHBOR_SIGNALED_DOWN: Self = Self(3);
    /// The forwarding plane was reset.
    pub const FORWARDING_RESET: Self = Self(4);
    /// The path is known to be down by other means.
    pub const PATH_DOWN: Self = Self(5);
    /// A path behind this one is down.
    pub const CONCATENATED_PATH_DOWN: Self = Self(6);
    /// The operator's will.
    pub const ADMINISTRATIVELY_DOWN: Self = Self(7);
    /// As 6, in the other direction.
    pub const REVERSE_CONCATENATED_PATH_DOWN: Self = Self(8);

    /// The diagnostic from the low five bits of `bits`; 9 to 31 are reserved and kept as they are.
    pub const fn from_bits(bits: u8) -> Self {
        Self(bits & 0b1_1111)
    }

    /// The code, 0 to 31.
    pub const fn code(self) -> u8 {
        self.0
    }
}

impl fmt::Display for Diagnostic {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match *self {
            Self::NONE => "no diagnostic",
            Self::DETECTION_TIME_EXPIRED => "control detection time expired",
            Self::ECHO_FAILED => "echo function failed",
            Self::NEIGHBOR_SIGNALED_DOWN => "neighbor signaled session down",
            Self::FORWARDING_RESET => "forwarding plane reset",
            Self::PATH_DOWN => "path down",
            Self::CONCATENATED_PATH_DOWN => "concatenated path down",
            Self::ADMINISTRATIVELY_DOWN => "administratively down",
            Self::REVERSE_CONCATENATED_PATH_DOWN => "reverse concatenated path down",
            Self(code) => return write!(f, "reserved diagnostic {code}"),
        })
    }
}

impl Serialize for Diagnostic {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

/// Typed access to the octets of a Control packet; judges nothing but that they are there.
#[derive(Debug, Clone, Copy)]
pub struct View<'a>(&'a [u8; LENGTH]);

impl<'a> View<'a> {
    /// Views the start of `datagram`.
    ///
    /// # Errors
    /// [`Discard::Truncated`] with fewer than [`LENGTH`] octets, without which an accessor would have to panic.
    pub fn new(datagram: &'a [u8]) -> Result<Self, Discard> {
        datagram.first_chunk().map(Self).ok_or(Discard::Truncated)
    }

    fn word(self, at: usize) -> u32 {
        u32::from_be_bytes([self.0[at], self.0[at + 1], self.0[at + 2], self.0[at + 3]])
    }

    fn flag(self, mask: u8) -> bool {
        self.0[field::STATE_FLAGS] & mask != 0
    }

    /// Vers.
    pub fn version(self) -> u8 {
        self.0[field::VERSION_DIAGNOSTIC] >> 5
    }

    /// Diag.
    pub fn diagnostic(self) -> Diagnostic {
        Diagnostic::from_bits(self.0[field::VERSION_DIAGNOSTIC])
    }

    /// Sta.
    pub fn state(self) -> State {
        State::from_bits(self.0[field::STATE_FLAGS] >> 6)
    }

    /// Length, in octets, with the authentication section.
    pub fn length(self) -> usize {
        usize::from(self.0[field::LENGTH])
    }
}

/// A Control packet without authentication section. Intervals are in microseconds, as on the wire.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Packet {
    /// Why the sender last left its state.
    pub diagnostic: Diagnostic,
    /// The sender's state.
    pub state: State,
    /// P: the sender asks for a packet with F.
    pub poll: bool,
    /// F: the answer to a packet with P.
    pub final_: bool,
    /// C: the sender's BFD survives the loss of its control plane.
    pub control_plane_independent: bool,
    /// D: the sender wishes demand mode.
    pub demand: bool,
    /// Detect Mult.
    pub multiplier: NonZeroU8,
    /// The sender's discriminator.
    pub my_discriminator: NonZeroU32,
    /// The receiver's discriminator as far as the sender knows it, otherwise 0.
    pub your_discriminator: u32,
    /// The interval at which the sender would like to transmit, in microseconds.
    pub desired_min_tx: u32,
    /// The shortest interval at which the sender can receive, in microseconds; 0: send nothing periodically.
    pub required_min_rx: u32,
    /// The shortest interval of Echo packets the sender can return, in microseconds; 0: none.
    pub required_min_echo_rx: u32,
}

impl Packet {
    /// Reads the payload of a datagram, obeying those rules of RFC 5880 section 6.8.6 that need no session.
    ///
    /// # Errors
    /// The first rule that was broken.
    pub fn parse(datagram: &[u8]) -> Result<Self, Discard> {
        let view = View::new(datagram)?;
        let authenticated = view.flag(flag::AUTHENTICATION);
        //# If the version number is not correct (1), the packet MUST be discarded.
        if view.version() != VERSION {
            return Err(Discard::Version);
        }
        //# If the Length field is less than the minimum correct value (24 if the A bit is clear, or 26 if the A
        //# bit is set), the packet MUST be discarded.
        if view.length() < if authenticated { LENGTH + 2 } else { LENGTH } {
            return Err(Discard::LengthTooSmall);
        }
        //# If the Length field is greater than the payload of the encapsulating protocol, the packet MUST be
        //# discarded.
        if view.length() > datagram.len() {
            return Err(Discard::LengthTooLarge);
        }
        //# If the Detect Mult field is zero, the packet MUST be discarded.
        let multiplier = NonZeroU8::new(view.0[field::MULTIPLIER]).ok_or(Discard::ZeroMultiplier)?;
        //# If the Multipoint (M) bit is nonzero, the packet MUST be discarded.
        if view.flag(flag::MULTIPOINT) {
            return Err(Discard::Multipoint);
        }
        //# If the My Discriminator field is zero, the packet MUST be discarded.
        let my_discriminator =
            NonZeroU32::new(view.word(field::MY_DISCRIMINATOR)).ok_or(Discard::ZeroMyDiscriminator)?;
        let your_discriminator = view.word(field::YOUR_DISCRIMINATOR);
        //# If the Your Discriminator field is zero and the State field is not Down or AdminDown, the packet MUST
        //# be discarded.
        if your_discriminator == 0 && !matches!(view.state(), State::Down | State::AdminDown) {
            return Err(Discard::ZeroYourDiscriminator);
        }
        //# If the A bit is set and no authentication is in use (bfd.AuthType is zero), the packet MUST be
        //# discarded.
        if authenticated {
            return Err(Discard::Authentication);
        }
        Ok(Self {
            diagnostic: view.diagnostic(),
            state: view.state(),
            poll: view.flag(flag::POLL),
            final_: view.flag(flag::FINAL),
            control_plane_independent: view.flag(flag::CONTROL_PLANE_INDEPENDENT),
            demand: view.flag(flag::DEMAND),
            multiplier,
            my_discriminator,
            your_discriminator,
            desired_min_tx: view.word(field::DESIRED_MIN_TX),
            required_min_rx: view.word(field::REQUIRED_MIN_RX),
            required_min_echo_rx: view.word(field::REQUIRED_MIN_ECHO_RX),
        })
    }

    /// Writes the packet; the inverse of [`Packet::parse`].
    pub fn emit(&self) -> [u8; LENGTH] {
        let mut octets = [0; LENGTH];
        octets[field::VERSION_DIAGNOSTIC] = VERSION << 5 | self.diagnostic.code();
        octets[field::STATE_FLAGS] = (self.state as u8) << 6 | self.flags();
        octets[field::MULTIPLIER] = self.multiplier.get();
        octets[field::LENGTH] = LENGTH as u8;
        let words = [
            (field::MY_DISCRIMINATOR, self.my_discriminator.get()),
            (field::YOUR_DISCRIMINATOR, self.your_discriminator),
            (field::DESIRED_MIN_TX, self.desired_min_tx),
            (field::REQUIRED_MIN_RX, self.required_min_rx),
            (field::REQUIRED_MIN_ECHO_RX, self.required_min_echo_rx),
        ];
        for (at, word) in words {
            octets[at..at + 4].copy_from_slice(&word.to_be_bytes());
        }
        octets
    }

    fn flags(&self) -> u8 {
        let bit = |set: bool, mask: u8| if set { mask } else { 0 };
        bit(self.poll, flag::POLL)
            | bit(self.final_, flag::FINAL)
            | bit(self.control_plane_independent, flag::CONTROL_PLANE_INDEPENDENT)
            | bit(self.demand, flag::DEMAND)
    }
}
