//! What replication is told at its start, and why it may refuse to start.

use std::collections::BTreeSet;
use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use director_proto::definitions::Definitions;
use director_proto::sync::MAX_TEXT;
use director_proto::tables::{Digest, MAX_NAME};

use crate::replica::{self, Isolation};

/// Everything replication needs to know.
#[derive(Clone, Debug)]
pub struct Config {
    /// Name of the cluster, 1 to 255 bytes.
    pub cluster: String,
    /// Identity of this director.
    pub router_id: Ipv4Addr,
    /// Where to listen for peers. Without it, and without `peers`, the director stands alone and opens no socket.
    pub listen: Option<SocketAddr>,
    /// Where the other directors listen.
    pub peers: Vec<SocketAddr>,
    /// Mutual TLS; without it only loopback addresses are used.
    pub tls: Option<TlsFiles>,
    /// Folder for the tables, created if need be; without it a restart of all directors forgets them.
    pub state_dir: Option<PathBuf>,
    /// How long to wait for peers before seeding tables without them (3 s is usual).
    pub grace: Duration,
    /// Interval of heartbeats (200 ms is usual).
    pub heartbeat: Duration,
    /// Silence after which a peer counts as dead (1 s is usual); at least twice the heartbeat.
    pub dead: Duration,
    /// What a director does that has lost most of the others.
    pub isolation: Isolation,
    /// Software version, shown to peers.
    pub version: String,
    /// Digest of the configured services, compared with the peers'.
    pub config_digest: Digest,
    /// The configured services, of which peers are told where theirs differ.
    pub definitions: Arc<Definitions>,
    /// Addresses that stand for clients, by full NAT, and are this director's alone: the others are told.
    pub local_addresses: Vec<IpAddr>,
    /// Speak without TLS on any address. For tests.
    pub allow_plaintext: bool,
}

/// PEM files of mutual TLS. The certificate names the director by its router id (an IP address as alternative
/// name) or all directors of the cluster (`director.CLUSTER` as DNS name); if it restricts its usage, it must
/// allow both server and client authentication.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TlsFiles {
    /// Certificates that may sign the peers' certificates.
    pub ca: PathBuf,
    /// Our certificate, with intermediates after it.
    pub certificate: PathBuf,
    /// Its private key.
    pub key: PathBuf,
}

/// Why replication did not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// A value that cannot work.
    #[error("{field}: {problem}")]
    Config {
        /// Name of the field of [`Config`].
        field: &'static str,
        /// What is wrong with it, and what would be right.
        problem: String,
    },
    /// Replication in the clear beyond this host.
    #[error(
        "{address} is not a loopback address and there is no TLS: set `tls` in [cluster], so that tables are \
         neither read nor changed by others"
    )]
    Plaintext {
        /// The address.
        address: SocketAddr,
    },
    /// The address to listen on is not to be had.
    #[error("cannot listen on {address}: {source}")]
    Listen {
        /// The address.
        address: SocketAddr,
        /// Why.
        source: io::Error,
    },
    /// A file of the TLS set-up is not usable.
    #[error("TLS file {path}: {problem}")]
    TlsFile {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        problem: String,
    },
    /// The files are readable, but do not go together.
    #[error("TLS: {problem}")]
    Tls {
        /// What is wrong.
        problem: String,
    },
    /// The folder for the tables is not usable.
    #[error("state folder {path}: {source}")]
    State {
        /// File or folder.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The operating system gives no random numbers.
    #[error("no random numbers: {0}")]
    Random(getrandom::Error),
}

impl Config {
    /// How long two directors that serve may be apart in the steps of an epoch: for that time a slot goes on pinning after
    /// its window.
    pub fn skew(&self) -> Duration {
        replica::skew(self.heartbeat, self.dead)
    }

    /// Whether the director neither listens nor dials.
    pub(crate) fn is_standalone(&self) -> bool {
        self.listen.is_none() && self.peers.is_empty()
    }

    pub(crate) fn check(&self) -> Result<(), StartError> {
        let wrong = |field, problem: String| Err(StartError::Config { field, problem });
        if !(1..=MAX_NAME).contains(&self.cluster.len()) {
            return wrong("cluster", format!("{} bytes, it must have 1 to {MAX_NAME}", self.cluster.len()));
        }
        if self.version.len() > MAX_TEXT {
            return wrong("version", format!("longer than {MAX_TEXT} bytes"));
        }
        if self.heartbeat < Duration::from_millis(10) {
            return wrong("heartbeat", format!("{:?}, it must be at least 10 ms", self.heartbeat));
        }
        if self.dead < self.heartbeat * 2 {
            let (dead, heartbeat) = (self.dead, self.heartbeat);
            return wrong(
                "dead",
                format!("{dead:?}, it must be at least twice the heartbeat of {heartbeat:?}"),
            );
        }
        let mut seen = BTreeSet::new();
        if let Some(twice) = self.peers.iter().find(|peer| !seen.insert(**peer)) {
            return wrong("peers", format!("{twice} is listed twice"));
        }
        if let Some(own) = self.listen.filter(|listen| self.peers.contains(listen)) {
            return wrong("peers", format!("{own} is our own address; list only the other directors"));
        }
        self.check_plaintext()
    }

    fn check_plaintext(&self) -> Result<(), StartError> {
        if self.tls.is_some() || self.allow_plaintext {
            return Ok(());
        }
        let addresses = self.listen.iter().chain(&self.peers);
        match addresses.copied().find(|address| !address.ip().is_loopback()) {
            Some(address) => Err(StartError::Plaintext { address }),
            None => Ok(()),
        }
    }
}
