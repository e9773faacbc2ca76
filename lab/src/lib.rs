//! Network labs on one machine: containerlab topologies, deployed on plain namespaces where there is no container
//! engine; a load generator that notices every lost, late or wrong byte; and the demo that puts both together.
//!
//! - [`topology`] reads the file; pure.
//! - [`deploy`] makes it real and removes it again; [`graph`] draws it.
//! - [`load`] holds connections through a service and checks what comes.
//! - [`routes`] watches a switch's kernel tables.
//! - [`demo`] runs all of these against a cluster that loses directors and changes its real servers.

#![cfg_attr(test, allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test"))]

pub mod demo;
pub mod deploy;
pub mod graph;
pub mod load;
pub mod routes;
pub mod topology;

pub use topology::{Topology, TopologyError};
