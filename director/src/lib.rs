//! The node.

pub mod dataplane;
pub mod next_hop;
