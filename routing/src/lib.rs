//! An OSPFv2 speaker for a host that announces prefixes and is never a way through.
#![forbid(unsafe_code)]

pub mod config;
pub mod packet;
pub mod speaker;
mod time;

pub use self::time::Time;
