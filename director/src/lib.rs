//! The node.

pub mod agent;
pub mod dataplane;
pub mod next_hop;
