//! Cluster tests.

pub mod requirement;
