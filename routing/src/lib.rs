//! An OSPF speaker (version 2 for IPv4, version 3 for IPv6) for a host that announces prefixes and is never a way
//! through, with BFD to watch its neighbours.
//!
//! [`speaker`] is the protocol (RFC 2328, RFC 5340) without I/O or clock, [`packet`] its formats, [`driver`] the
//! sockets, the clock and the kernel's routes around it. A daemon needs [`Config`], [`spawn`] and the
//! [`Handle`] it returns. [`bfd`] is divided alike, and runs on a thread of its own; the driver asks it for a session
//! with each neighbour on an interface with a [`BfdConfig`]. It is the only part with unsafe code, to ask the kernel
//! for a real-time schedule.
#![deny(unsafe_code)]

mod announce;
pub mod auth;
#[expect(unsafe_code, reason = "scheduling and memory locking have no safe interface")]
pub mod bfd;
pub mod config;
pub mod driver;
#[cfg(test)]
mod namespace;
pub mod packet;
mod serial;
pub mod speaker;
mod time;

pub use self::{
    announce::{AnnounceAs, Announcement},
    auth::{Algorithm, Authentication, Key, KeyError, Secret, Window},
    config::{
        AreaKind, BfdConfig, ChangeError, Config, ConfigError, ExternalConfig, InterfaceConfig, Metric,
        MetricType, Network,
    },
    driver::{
        AnnounceError, Handle, ReconfigureError, RecordError, RekeyError, RestartError, StartError, spawn,
    },
    speaker::{Event, Grace, NeighborState, Refusal, Status, Stop},
    time::Time,
};
