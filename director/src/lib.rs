//! The node: everything one director does, wired together by the `director` command.

pub mod config;
pub mod control;
pub mod health;
pub mod metrics;
pub mod slots;
