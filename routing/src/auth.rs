//! Authentication of packets: null, simple password and keyed digest of OSPFv2 (RFC 2328 appendix D,
//! RFC 5709), and the trailer of OSPFv3 (RFC 7166).
//!
//! It sits between the protocol and the wire. [`Guard`] is the one place that a packet passes on its way out
//! and on its way in: speakers build and handle packets as if there were no authentication, and are told by
//! a [`Proof`] what the packet proved. Like the speaker, a guard has no clock: the time of day comes with
//! every call.
//!
//! `key` is what the operator configures, `selection` which key counts when, `digest` the algorithms, `v2`
//! and `v3` where each version puts the result, and `sequence` the numbers that make a replay visible.

mod calendar;
mod digest;
mod guard;
mod key;
mod selection;
mod sequence;
#[cfg(test)]
mod tests;
mod v2;
mod v3;
mod wire;

pub use self::{
    calendar::{days_since_epoch, rfc_3339},
    guard::SendingKey,
    key::{Algorithm, Authentication, Key, KeyError, Secret, Window},
    sequence::Number,
    wire::{Authenticated, Claim},
};
pub(crate) use self::{
    guard::{Guard, Refused},
    sequence::{Heard, Numbers, Proof},
};
