//! What can go wrong, one enum per operation.

use std::io;
use std::path::PathBuf;

use aya::EbpfError;
use aya::maps::MapError;
use aya::programs::ProgramError;

use super::spec::SpecError;

/// Why the data plane could not be opened.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// The folder of pins cannot be used.
    #[error("cannot use {path} as the folder of pins: {what}")]
    PinFolder {
        /// The folder.
        path: PathBuf,
        /// What was tried.
        what: &'static str,
        /// Why it failed.
        #[source]
        source: io::Error,
    },
    /// What is pinned was made by another version of the program.
    #[error(
        "{path} holds maps of another layout ({found}; this version has {expected}): stop forwarding there and \
         start anew with --fresh, or run the version that made them"
    )]
    Layout {
        /// The folder, or the map in it.
        path: PathBuf,
        /// What was found.
        found: String,
        /// What this version makes.
        expected: String,
    },
    /// There are no numbers for that many local addresses.
    #[error(
        "no number is free for local address {address}: connections still have ports of too many that were configured \
         before; start anew with --fresh, or wait for them"
    )]
    Locals {
        /// The address.
        address: std::net::IpAddr,
    },
    /// The operating system gives no random numbers.
    #[error("no random numbers: {0}")]
    Secret(getrandom::Error),
    /// The kernel refused the object.
    #[error("the kernel refused the maps or the object of the data plane")]
    Load(#[source] EbpfError),
    /// The object is not what this file expects.
    #[error("the object of the data plane is incomplete: {0}")]
    Object(&'static str),
    /// The kernel refused the program.
    #[error("the kernel refused the XDP program")]
    Program(#[source] ProgramError),
    /// A map could not be read or written.
    #[error("cannot access a map of the data plane")]
    Map(#[from] MapError),
}

/// Why a specification could not be applied.
#[derive(Debug, thiserror::Error)]
pub enum ApplyError {
    /// The specification contradicts itself. Nothing was changed.
    #[error(transparent)]
    Spec(#[from] SpecError),
    /// No room is left. Services before this one may have been changed.
    #[error("no room for service '{service}': all {limit} {what} are taken")]
    Full {
        /// The service that does not fit.
        service: String,
        /// What is exhausted.
        what: &'static str,
        /// How many there are.
        limit: usize,
    },
    /// The kernel refused a change.
    #[error("cannot change a map of the data plane")]
    Map(#[source] MapError),
}

impl From<MapError> for ApplyError {
    fn from(error: MapError) -> Self {
        Self::Map(error)
    }
}

/// Why the program could not be put on an interface.
#[derive(Debug, thiserror::Error)]
pub enum AttachError {
    /// No such interface in this network namespace.
    #[error("there is no interface '{0}' in this network namespace")]
    NoInterface(String),
    /// The interface has no Ethernet address.
    #[error("interface '{0}' has no Ethernet address, so packets to it cannot be told from others")]
    NoAddress(String),
    /// The kernel or the driver refused.
    #[error(
        "cannot attach to interface '{interface}' in {mode} mode (another XDP program on it, a driver without \
         XDP, or a large MTU are the usual causes)"
    )]
    Refused {
        /// The interface.
        interface: String,
        /// The mode that was tried.
        mode: &'static str,
        /// What the kernel said.
        #[source]
        source: ProgramError,
    },
    /// The attachment could not be pinned.
    #[error("cannot pin the attachment to interface '{interface}'")]
    Pin {
        /// The interface.
        interface: String,
        /// What failed.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// The interface's address could not be told to the program.
    #[error("cannot access a map of the data plane")]
    Map(#[from] MapError),
    /// The interfaces could not be listed.
    #[error("cannot list the interfaces of this network namespace")]
    List(#[source] io::Error),
}

/// Why the data plane could not be removed.
#[derive(Debug, thiserror::Error)]
#[error("cannot remove the pins")]
pub struct DetachError(#[source] pub OpenError);

/// Why counters could not be read.
#[derive(Debug, thiserror::Error)]
#[error("cannot read a map of the data plane")]
pub struct ReadError(#[from] pub MapError);
