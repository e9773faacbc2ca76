//! Why a received packet was thrown away: one name per rule, and a counter for each.

use serde::ser::{Serialize, SerializeMap, Serializer};

/// The reason for which a received datagram did not reach a session.
///
/// The rules are those of RFC 5880 section 6.8.6 and RFC 5881 section 5, in the order in which they are applied.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Discard {
    /// RFC 5881 section 5: the TTL or Hop Limit was not 255, so a router may have forwarded the packet.
    #[error("time to live is not 255")]
    TimeToLive,
    /// Fewer octets than the mandatory section has.
    #[error("shorter than 24 octets")]
    Truncated,
    /// The version is not 1.
    #[error("version is not 1")]
    Version,
    /// The Length field is below the minimum for the A bit.
    #[error("length field too small")]
    LengthTooSmall,
    /// The Length field points behind the end of the datagram.
    #[error("length field exceeds the datagram")]
    LengthTooLarge,
    /// Detect Mult is zero.
    #[error("detection multiplier is zero")]
    ZeroMultiplier,
    /// The Multipoint bit is set.
    #[error("multipoint bit is set")]
    Multipoint,
    /// My Discriminator is zero.
    #[error("my discriminator is zero")]
    ZeroMyDiscriminator,
    /// Your Discriminator is zero although the sender says Init or Up.
    #[error("your discriminator is zero in state init or up")]
    ZeroYourDiscriminator,
    /// The A bit is set; this speaker uses no authentication.
    #[error("authentication is not supported")]
    Authentication,
    /// Your Discriminator, or with none the interface and source address, names no session.
    #[error("no such session")]
    NoSession,
}

impl Discard {
    /// Every reason, in the order of the rules.
    pub const ALL: [Self; 11] = [
        Self::TimeToLive,
        Self::Truncated,
        Self::Version,
        Self::LengthTooSmall,
        Self::LengthTooLarge,
        Self::ZeroMultiplier,
        Self::Multipoint,
        Self::ZeroMyDiscriminator,
        Self::ZeroYourDiscriminator,
        Self::Authentication,
        Self::NoSession,
    ];

    /// The name of the reason in status output and metrics.
    pub const fn label(self) -> &'static str {
        match self {
            Self::TimeToLive => "time_to_live",
            Self::Truncated => "truncated",
            Self::Version => "version",
            Self::LengthTooSmall => "length_too_small",
            Self::LengthTooLarge => "length_too_large",
            Self::ZeroMultiplier => "zero_multiplier",
            Self::Multipoint => "multipoint",
            Self::ZeroMyDiscriminator => "zero_my_discriminator",
            Self::ZeroYourDiscriminator => "zero_your_discriminator",
            Self::Authentication => "authentication",
            Self::NoSession => "no_session",
        }
    }
}

/// Discarded packets, counted by reason; serializes as a map from [`Discard::label`] to the count.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Discards([u64; Discard::ALL.len()]);

impl Discards {
    /// Counts one packet.
    pub fn count(&mut self, reason: Discard) {
        self.0[reason as usize] += 1;
    }

    /// Packets discarded for `reason`.
    pub fn get(&self, reason: Discard) -> u64 {
        self.0[reason as usize]
    }
}

impl Serialize for Discards {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(Some(Discard::ALL.len()))?;
        for reason in Discard::ALL {
            map.serialize_entry(reason.label(), &self.get(reason))?;
        }
        map.end()
    }
}

#[cfg(test)]
mod tests {
    use super::{Discard, Discards};

    #[test]
    fn every_reason_has_a_counter_of_its_own() {
        let mut discards = Discards::default();
        for (position, reason) in Discard::ALL.into_iter().enumerate() {
            assert_eq!(reason as usize, position);
            for _ in 0..=position {
                discards.count(reason);
            }
        }
        for (position, reason) in Discard::ALL.into_iter().enumerate() {
            assert_eq!(discards.get(reason), position as u64 + 1);
        }
    }
}
