//! Network labs on one machine: containerlab topologies, deployed on plain namespaces where there is no container
//! engine; a load generator that notices every lost, late or wrong byte; and the demo that puts both together.
//!
//! - [`topology`] reads the file; pure.
//! - [`deploy`] makes it real and removes it again.

pub mod demo;
pub mod deploy;
pub mod graph;
pub mod load;
pub mod routes;
pub mod topology;

pub use topology::{Topology, TopologyError};
