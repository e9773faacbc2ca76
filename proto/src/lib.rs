//! What travels: the sync protocol between directors and the control protocol on one host.
//!
//! The `.proto` files are in `proto/`; `build.rs` compiles them. This crate is the only place where a
//! message becomes a domain type: the domain types are here too ([`tables`]), the conversions check
//! everything, and nothing outside uses a message as a model.

pub mod definitions;
pub mod health;
pub mod pins;
pub mod sync;
pub mod tables;
pub mod windows;

/// The control protocol, as generated from `proto/control.proto`.
#[expect(
    missing_docs,
    unused_qualifications,
    clippy::allow_attributes_without_reason,
    reason = "generated code; the .proto file is the documentation"
)]
pub mod control {
    tonic::include_proto!("director.control.v1");
}
