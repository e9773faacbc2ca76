//! The node.

pub mod dataplane;
