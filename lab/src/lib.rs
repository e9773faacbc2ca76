//! Topologies on namespaces.
