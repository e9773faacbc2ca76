//! The node: everything one director does, wired together by the `director` command.

pub mod agent;
pub mod command;
pub mod config;
pub mod control;
pub mod dataplane;
pub mod health;
pub mod metrics;
pub mod next_hop;
pub mod node;
pub mod slots;
