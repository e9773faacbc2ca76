//! OSPF speaker.
pub mod packet;
