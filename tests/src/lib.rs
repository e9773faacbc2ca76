//! Cluster tests.

pub mod netns;
