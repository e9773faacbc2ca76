//! The node: everything one director does, wired together by the `director` command.

pub mod config;
pub mod control;
pub mod dataplane;
pub mod metrics;
pub mod slots;
