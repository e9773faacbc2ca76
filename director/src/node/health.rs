//! This node's health checks: what is checked, what they say, and what the cluster makes of it.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use director_proto::health::{Health, RealId};
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use syncd::HealthView;
use tokio::sync::mpsc;

use super::Node;
use crate::config::Config;
use crate::health::{self, Observation, State, Status, Target, TargetError};

/// The running checks.
pub(super) struct Checks {
    handle: health::Handle,
    observations: mpsc::Receiver<Observation>,
    /// What decided each target's state last, in words.
    findings: BTreeMap<RealId, String>,
    /// What all live directors say, as last merged.
    pub(super) view: Arc<HealthView>,
}

impl Checks {
    /// Starts the checks of the configured services. Probes need file descriptors: the soft limit is raised as far as
    /// the hard one allows.
    pub(super) fn start(config: &Config) -> Result<Self, TargetError> {
        raise_descriptor_limit();
        // Different on each node, so that the nodes do not probe a real server all at once.
        let jitter = config.node.router_id.to_bits().into();
        let checks = health::Health { jitter, ..health::Health::default() };
        let (handle, observations) = checks.spawn(targets(config))?;
        Ok(Self { handle, observations, findings: BTreeMap::new(), view: Arc::default() })
    }

    /// Checks the services of `config` from now on; what stays as it was keeps its state.
    pub(super) fn watch(&mut self, config: &Config) -> Result<(), TargetError> {
        let targets = targets(config);
        let ids: BTreeSet<_> = targets.iter().map(Target::id).collect();
        self.handle.set_targets(targets)?;
        self.findings.retain(|RealId { service, address, port }, _| {
            ids.contains(&health::TargetId { service: service.clone(), address: *address, port: *port })
        });
        Ok(())
    }

    fn note(&mut self, observation: Observation) {
        let Observation { target, state, reason, .. } = observation;
        match state {
            State::Up => tracing::info!(%target, reason, "real server is up for this director"),
            State::Down | State::Unknown => {
                tracing::warn!(%target, reason, "real server is down for this director");
            }
        }
        let health::TargetId { service, address, port } = target;
        self.findings.insert(RealId { service, address, port }, reason);
    }

    /// Waits until some target's state has changed. `None` never comes while the checks run.
    pub(super) async fn changed(&mut self) -> Option<()> {
        let first = self.observations.recv().await?;
        self.note(first);
        // Those that came with it are published with it.
        while let Ok(more) = self.observations.try_recv() {
            self.note(more);
        }
        Some(())
    }

    /// What the check of a real server came to last, in words.
    pub(super) fn finding(&self, real: &RealId) -> Option<String> {
        self.findings.get(real).cloned()
    }
}

impl Node {
    /// Tells the other directors what this one's checks say.
    pub(super) async fn publish_health(&mut self) {
        let observed: BTreeMap<RealId, Health> =
            self.health.handle.status().into_iter().filter_map(vote).collect();
        if let Err(error) = self.sync.observe(observed).await {
            tracing::error!(%error, "health is not published");
        }
    }
}

/// A target's vote: none while its state is only assumed.
fn vote(status: Status) -> Option<(RealId, Health)> {
    let health = match status.state {
        State::Up => Health::Up,
        State::Down => Health::Down,
        State::Unknown => return None,
    };
    let health::TargetId { service, address, port } = status.target;
    status.observed.then_some((RealId { service, address, port }, health))
}

fn targets(config: &Config) -> Vec<Target> {
    let checked =
        config.services.iter().filter_map(|(name, service)| Some((name, service.health.as_ref()?, service)));
    checked
        .flat_map(|(name, check, service)| {
            service.reals.iter().map(move |real| check.target(name, real.address, real.port))
        })
        .collect()
}

fn raise_descriptor_limit() {
    let raised = getrlimit(Resource::RLIMIT_NOFILE)
        .and_then(|(_, hard)| setrlimit(Resource::RLIMIT_NOFILE, hard, hard));
    if let Err(error) = raised {
        tracing::warn!(%error, "the limit of open files stays as it is: health checks may run short of sockets");
    }
}
