//! The node: everything one director does, wired together by the `director` command.

pub mod config;
pub mod slots;
