//! BFD.
pub mod discard;
pub mod packet;
pub mod parameters;
pub mod session;
pub mod transition;
