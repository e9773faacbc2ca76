//! The kinds of check. Each kind is a file of its own with its settings and its probe; this is the list of them.
//!
//! A further kind needs a file beside `tcp.rs`, a variant of [`Check`] and the arms the compiler then
//! asks for.

use std::borrow::Cow;
use std::net::SocketAddr;
use std::time::Duration;

use thiserror::Error;

use super::probe::ProbeError;
use super::{Dns, Exec, Grpc, Http, Smtp, Tcp, Tls, Udp, ping};

/// How a real server is checked. `check = "…"` of the configuration names the variant, the other keys of
/// `[service.health]` are the fields of its settings.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Check {
    /// `none`: taken as live without a look.
    None,
    /// `tcp`: a connection can be opened.
    Tcp(Tcp),
    /// `http`: a request is answered as expected.
    Http(Http),
    /// `https`: the same over TLS.
    Https(Http, Tls),
    /// `dns`: a query is answered, over UDP.
    Dns(Dns),
    /// `smtp`: greeting, `EHLO` and `QUIT` are accepted.
    Smtp(Smtp),
    /// `udp`: a datagram is not refused, or is answered as expected.
    Udp(Udp),
    /// `ping`: ICMP or ICMPv6 echo.
    Ping,
    /// `exec`: a program of the operator's exits with 0.
    Exec(Exec),
    /// `grpc`: `grpc.health.v1.Health/Check` says `SERVING`.
    Grpc(Grpc),
}

/// Why a check cannot be used as it stands.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum CheckError {
    /// A number that must not be 0 is.
    #[error("{key} must be greater than 0")]
    Zero {
        /// Key of the configuration.
        key: &'static str,
    },
    /// A kind that goes to a port was given none.
    #[error("a service for all ports needs a check_port for its {check} check")]
    NoPort {
        /// Kind of the check.
        check: &'static str,
    },
    /// A value that the check's protocol does not admit.
    #[error("{key} {value:?} {problem}")]
    Value {
        /// Key of the configuration.
        key: &'static str,
        /// The value as given.
        value: String,
        /// What is wrong with it and what to write instead.
        problem: &'static str,
    },
    /// Two settings that exclude each other.
    #[error("{key} {problem}")]
    Conflict {
        /// Key of the configuration.
        key: &'static str,
        /// What excludes it.
        problem: &'static str,
    },
    /// A regular expression that does not compile.
    #[error("{key} is not a regular expression: {source}")]
    Pattern {
        /// Key of the configuration.
        key: &'static str,
        /// The compiler's words.
        source: regex::Error,
    },
    /// Authorities that cannot be read or used.
    #[error("{key}: {problem}")]
    Authorities {
        /// Key of the configuration.
        key: &'static str,
        /// What is wrong with them.
        problem: String,
    },
}

impl CheckError {
    /// The key of `[service.health]` that is to blame.
    pub fn key(&self) -> &'static str {
        match self {
            Self::NoPort { .. } => "check_port",
            Self::Zero { key }
            | Self::Value { key, .. }
            | Self::Conflict { key, .. }
            | Self::Pattern { key, .. }
            | Self::Authorities { key, .. } => key,
        }
    }
}

impl Check {
    /// Name of the kind in the configuration, in status and in metrics.
    pub fn name(&self) -> &'static str {
        match self {
            Self::None => "none",
            Self::Tcp(_) => "tcp",
            Self::Http(_) => "http",
            Self::Https(..) => "https",
            Self::Dns(_) => "dns",
            Self::Smtp(_) => "smtp",
            Self::Udp(_) => "udp",
            Self::Ping => "ping",
            Self::Exec(_) => "exec",
            Self::Grpc(_) => "grpc",
        }
    }

    /// Refuses settings that could only ever fail, with the key to blame.
    pub fn validate(&self) -> Result<(), CheckError> {
        match self {
            Self::None | Self::Tcp(_) | Self::Ping | Self::Grpc(_) => Ok(()),
            Self::Http(http) => http.validate(),
            Self::Https(http, tls) => http.validate().and_then(|()| http.validate_name(tls)),
            Self::Dns(dns) => dns.validate(),
            Self::Smtp(smtp) => smtp.validate(),
            Self::Udp(udp) => udp.validate(),
            Self::Exec(exec) => exec.validate(),
        }
    }

    /// Whether the probe goes to a port of the real server.
    pub fn needs_port(&self) -> bool {
        !matches!(self, Self::None | Self::Ping | Self::Exec(_))
    }

    /// Probes once; never longer than `timeout`.
    pub(super) async fn probe(
        &self,
        to: SocketAddr,
        timeout: Duration,
    ) -> Result<Cow<'static, str>, ProbeError> {
        match tokio::time::timeout(timeout, self.attempt(to)).await {
            Ok(result) => result,
            Err(_) if matches!(self, Self::Udp(udp) if udp.silence_passes()) => Ok("not refused".into()),
            Err(_) => Err(ProbeError::Timeout(timeout)),
        }
    }

    async fn attempt(&self, to: SocketAddr) -> Result<Cow<'static, str>, ProbeError> {
        match self {
            Self::None => Ok("not checked".into()),
            Self::Tcp(tcp) => tcp.probe(to).await,
            Self::Http(http) => http.probe(to, None).await,
            Self::Https(http, tls) => http.probe(to, Some(tls)).await,
            Self::Dns(dns) => dns.probe(to).await,
            Self::Smtp(smtp) => smtp.probe(to).await,
            Self::Udp(udp) => udp.probe(to).await,
            Self::Ping => ping::probe(to.ip()).await,
            Self::Exec(exec) => exec.probe(to).await,
            Self::Grpc(grpc) => grpc.probe(to).await,
        }
    }
}
