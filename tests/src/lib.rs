//! What tests of the whole share: requirements on the machine, and small networks of namespaces.

pub mod daemons;
pub mod downloads;
pub mod ecmp;
pub mod netns;
pub mod requirement;
pub mod transfers;
