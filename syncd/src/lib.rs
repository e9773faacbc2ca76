//! Replication.
pub mod replica;
