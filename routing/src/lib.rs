//! An OSPF speaker for a host that announces prefixes and is never a way through.
//!
//! [`speaker`] is the protocol (RFC 2328) without I/O or clock, [`packet`] its formats, [`driver`] the
//! sockets, the clock and the kernel's routes around it. A daemon needs [`Config`], [`spawn`] and the
//! [`Handle`] it returns.
#![forbid(unsafe_code)]

pub mod config;
pub mod driver;
pub mod packet;
pub mod speaker;
mod time;

pub use self::{
    config::{AreaKind, Config, ConfigError, InterfaceConfig, Metric, Network},
    driver::{AnnounceError, Handle, StartError, spawn},
    speaker::{Event, NeighborState, Refusal, Status, Stop},
    time::Time,
};
