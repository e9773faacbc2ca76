//! What is checked, and how two targets turn out to be one probe.

use std::collections::hash_map::DefaultHasher;
use std::fmt;
use std::hash::{Hash, Hasher};
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use serde::Serialize;
use thiserror::Error;

use super::{Check, CheckError, State};

/// Names one real server of one service.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
pub struct TargetId {
    /// Name of the service.
    pub service: String,
    /// Address of the real server.
    pub address: IpAddr,
    /// Port of the real server; 0 where the service takes all ports.
    pub port: u16,
}

impl fmt::Display for TargetId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} of service {}", SocketAddr::new(self.address, self.port), self.service)
    }
}

/// One real server of one service and how it is to be checked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Target {
    /// Name of the service.
    pub service: String,
    /// Address of the real server, and of the probes.
    pub address: IpAddr,
    /// Port of the real server; 0 where the service takes all ports.
    pub port: u16,
    /// Port of the probes, where it is another one.
    pub check_port: Option<u16>,
    /// Kind of check and its settings.
    pub check: Check,
    /// Time from the start of one probe to the start of the next.
    pub interval: Duration,
    /// The most one probe may take.
    pub timeout: Duration,
    /// Successes in a row that make it up; at least 1.
    pub rise: u32,
    /// Failures in a row that make it down; at least 1.
    pub fall: u32,
    /// What is assumed until results decide: `Up` is keepalived's default, `Down` its alpha mode.
    pub initial: State,
}

/// Why targets were not accepted.
#[derive(Debug, Error)]
pub enum TargetError {
    /// A target's check cannot be used.
    #[error("health check of {target}: {source}")]
    Check {
        /// The target.
        target: TargetId,
        /// What is wrong, with the key to blame.
        source: CheckError,
    },
    /// One real server of one service was given twice.
    #[error("{0} is given twice")]
    Twice(TargetId),
}

/// A probe and its schedule. Targets with equal plans share one.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct Plan {
    pub(super) to: SocketAddr,
    pub(super) check: Check,
    pub(super) interval: Duration,
    pub(super) timeout: Duration,
    pub(super) rise: u32,
    pub(super) fall: u32,
    pub(super) initial: State,
}

impl Target {
    /// A target with the usual schedule: every second, 800 ms at most, rise 2, fall 3, nothing assumed.
    pub fn new(service: impl Into<String>, address: IpAddr, port: u16, check: Check) -> Self {
        Self {
            service: service.into(),
            address,
            port,
            check_port: None,
            check,
            interval: Duration::from_secs(1),
            timeout: Duration::from_millis(800),
            rise: 2,
            fall: 3,
            initial: State::Unknown,
        }
    }

    /// What names it.
    pub fn id(&self) -> TargetId {
        TargetId { service: self.service.clone(), address: self.address, port: self.port }
    }

    /// Refuses what could not be probed as written.
    pub fn validate(&self) -> Result<(), CheckError> {
        let zero = [
            ("interval_ms", self.interval.is_zero()),
            ("timeout_ms", self.timeout.is_zero()),
            ("rise", self.rise == 0),
            ("fall", self.fall == 0),
            ("check_port", self.check_port == Some(0)),
        ];
        if let Some((key, _)) = zero.into_iter().find(|(_, zero)| *zero) {
            return Err(CheckError::Zero { key });
        }
        if self.check.needs_port() && self.check_port.unwrap_or(self.port) == 0 {
            return Err(CheckError::NoPort { check: self.check.name() });
        }
        self.check.validate()
    }

    pub(super) fn plan(&self) -> Plan {
        Plan {
            to: SocketAddr::new(self.address, self.check_port.unwrap_or(self.port)),
            check: self.check.clone(),
            interval: self.interval,
            timeout: self.timeout,
            rise: self.rise,
            fall: self.fall,
            initial: self.initial,
        }
    }
}

impl Plan {
    /// When the first probe is made, counted from the start: a fixed point of the interval (of its first
    /// `limit`) for each address, port and kind, so that thousands of real servers are not probed at once. Nodes with
    /// different `jitter` choose different points, so that they do not probe one real server together.
    pub(super) fn first_delay(&self, jitter: u64, limit: Duration) -> Duration {
        let mut hasher = DefaultHasher::new();
        (jitter, self.to, self.check.name()).hash(&mut hasher);
        let fraction = (hasher.finish() >> 32) as u32;
        let span = self.interval.min(limit);
        // Below 2^32 / 2^32, so below `span`; seconds as f64 are exact enough for any interval.
        span.mul_f64(f64::from(fraction) / (f64::from(u32::MAX) + 1.0))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::health::Tcp;

    fn target(host: u32, check: Check) -> Target {
        Target::new("web", IpAddr::V4((0x0a00_0000 + host).into()), 80, check)
    }

    #[test]
    fn first_probes_are_spread_evenly_and_always_alike() {
        let limit = Duration::from_secs(60);
        let mut tenths = [0_u32; 10];
        for host in 0..4096 {
            let plan = target(host, Check::Tcp(Tcp::default())).plan();
            let delay = plan.first_delay(7, limit);
            assert_eq!(delay, plan.first_delay(7, limit));
            assert!(delay < plan.interval);
            tenths[(delay.as_millis() / 100) as usize] += 1;
        }
        assert!(tenths.iter().all(|count| (300..520).contains(count)), "{tenths:?}");
    }

    #[test]
    fn nodes_do_not_probe_one_real_server_together() {
        let plan = target(1, Check::Tcp(Tcp::default())).plan();
        let limit = Duration::from_secs(60);
        assert_ne!(plan.first_delay(1, limit), plan.first_delay(2, limit));
        assert!(plan.first_delay(1, Duration::from_millis(10)) < Duration::from_millis(10));
    }

    #[test]
    fn what_cannot_be_probed_is_refused_by_its_key() {
        let key = |change: &dyn Fn(&mut Target)| {
            let mut target = target(1, Check::Tcp(Tcp::default()));
            change(&mut target);
            target.validate().map_err(|error| error.key())
        };
        assert_eq!(key(&|_| ()), Ok(()));
        assert_eq!(key(&|target| target.interval = Duration::ZERO), Err("interval_ms"));
        assert_eq!(key(&|target| target.timeout = Duration::ZERO), Err("timeout_ms"));
        assert_eq!(key(&|target| target.rise = 0), Err("rise"));
        assert_eq!(key(&|target| target.fall = 0), Err("fall"));
        assert_eq!(key(&|target| target.port = 0), Err("check_port"));
        let all_ports = |target: &mut Target| (target.port, target.check_port) = (0, Some(80));
        assert_eq!(key(&all_ports), Ok(()));
        let ping = |target: &mut Target| (target.port, target.check) = (0, Check::Ping);
        assert_eq!(key(&ping), Ok(()));
    }
}
