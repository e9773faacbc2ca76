//! OSPF speaker.
