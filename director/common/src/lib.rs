//! Vocabulary shared by both sides of the kernel boundary.
//!
//! The XDP program and user space use the very same [`decide`]: what it reads of a packet comes through
//! [`Frame`], what it reads of tables through [`Tables`], so everything here runs (and is fuzzed) in user
//! space. `core` only; nothing here allocates or panics.
//!
//! | module | owns |
//! |---|---|
//! | [`packet`] | bounds-checked access to a frame, and the headers found in it |
//! | [`schedulers`] | which real server a new connection goes to |
//! | [`hash`] | the slot hash: of what a flow's slot is picked |
//! | [`siphash`] | how its secrets follow from the key |
//! | [`slot`] | slots, their packing, and how a hash picks one |
//! | [`pin`] | connections that do not follow their slot |
//! | [`lease`] | full NAT: the local addresses and ports that stand for clients |
//! | [`template`] | persistence: one real server for all connections of a client |
//! | [`tables`] | the structs that live in BPF maps, the maps' names and sizes |
//! | [`verdict`] | every outcome of a packet, its XDP action and its counter |
//! | [`shortcut`] | the same outcome in fewer steps, for the packets there are most of |
//! | [`mod@decide`] | which outcome a packet gets |
//! | [`counters`] | what is counted |
//! | [`capture`] | what is said of a packet that somebody watches |
//! | [`mod@decapsulate`] | the other end of a tunnel: what a real server takes out of it |
#![no_std]
// Not in tests: those must fail loudly.
#![cfg_attr(not(test), deny(clippy::arithmetic_side_effects, clippy::indexing_slicing, clippy::panic))]

pub mod capture;
pub mod counters;
pub mod decapsulate;
pub mod decide;
pub mod hash;
pub mod lease;
pub mod packet;
pub mod pin;
pub mod schedulers;
pub mod shortcut;
pub mod siphash;
pub mod slot;
pub mod tables;
pub mod template;
pub mod verdict;

pub use decide::{Decision, decide};
pub use packet::Frame;
pub use slot::{SLOTS, SMALL_SLOTS, Slot, SlotState};
pub use tables::Tables;
pub use verdict::{Action, DropReason, Forward, PassReason, Verdict};
