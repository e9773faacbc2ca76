//! OSPF speaker.

pub mod bfd;
