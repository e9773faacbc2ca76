//! The steps of an epoch in this node's kernel: what is loaded beside, what comes into force, what goes back; and how
//! slots stand, which a node that has missed a step learns before it serves.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;
use std::time::Instant;

use anyhow::Context as _;
use director_proto::tables::{TableSet, Version};
use director_proto::windows::Windows;
use syncd::Fed;

use super::{Node, cluster};
use crate::config::Config;
use crate::dataplane::monotonic_seconds;
use crate::next_hop;

/// What the kernel is prepared for.
pub(super) struct Prepared {
    tables: Arc<TableSet>,
    pub(super) version: Version,
    /// What the tables are served by.
    pub(super) config: Arc<Config>,
}

impl Node {
    /// Makes the kernel ready for tables that may come into force:
    /// [`Dataplane::prepare`](crate::dataplane::Dataplane::prepare).
    pub(super) async fn prepare(&mut self, tables: &Arc<TableSet>, version: Version) {
        let result = match self.try_prepare(tables, version).await {
            Ok(prepared) => {
                self.prepared = Some(prepared);
                Ok(())
            }
            Err(error) => {
                self.prepared = None;
                Err(error)
            }
        };
        self.answer_sync(self.sync.loaded(version, result).await);
    }

    async fn try_prepare(&mut self, tables: &Arc<TableSet>, version: Version) -> Result<Prepared, String> {
        let config = self.config_for(tables)?;
        if config.definitions != self.config.definitions {
            self.check_routes(&config).await?;
        }
        let specs = cluster::specs(&config, tables);
        let slots =
            self.dataplane.prepare(&specs).context("data plane").map_err(|error| format!("{error:#}"))?;
        tracing::debug!(epoch = %version.epoch, slots, "connections of slots that will change are looked up");
        Ok(Prepared { tables: Arc::clone(tables), version, config })
    }

    /// Real servers that come need a route here. Those that are there already may have lost theirs: that is no reason against
    /// a change, which may be the remedy.
    async fn check_routes(&self, config: &Config) -> Result<(), String> {
        let known: BTreeSet<IpAddr> = self
            .config
            .services
            .values()
            .flat_map(|service| &service.reals)
            .map(|real| real.address)
            .collect();
        for (name, service) in &config.services {
            let come = service.reals.iter().map(|real| real.address).filter(|real| !known.contains(real));
            let lost = next_hop::without_route(come.collect()).await;
            match lost.map(|lost| lost.first().copied()) {
                Ok(None) => {}
                Ok(Some(real)) => {
                    return Err(format!("service {name:?}: no route from here to real server {real}"));
                }
                Err(error) => tracing::warn!(%error, "routes to new real servers are not known"),
            }
        }
        Ok(())
    }

    /// Puts the tables in force into the kernel, which so far has those that they follow, or has missed some.
    pub(super) async fn feed_and_tell(&mut self, follows: Option<Version>) {
        let Some(version) = self.version else { return };
        let onward = self.fed == Some(version) || follows.is_some() && follows == self.fed;
        // Before anything is announced.
        self.windows_due |= !onward;
        self.feed();
        self.prepared.take_if(|prepared| prepared.version.epoch <= version.epoch);
        self.prepare_again().await;
        let result = match &self.trouble {
            Some(trouble) => Err(trouble.clone()),
            None => {
                self.fed = Some(version);
                Ok(if onward { Fed::Onward } else { Fed::Afresh })
            }
        };
        self.answer_sync(self.sync.applied(version, result).await);
    }

    /// No epoch is under way any more.
    pub(super) fn end_epoch(&mut self) {
        if let Err(error) = self.dataplane.end_epoch() {
            // Nothing that has begun since it did ends before the next one: too long rather than too short.
            tracing::error!(error = format!("{:#}", anyhow::Error::from(error)), "the end of an epoch");
        }
    }

    /// Slots have changed under what is prepared: those that will change are not the same any more.
    /// If they cannot be prepared any more, that says nothing of the tables in force: the epoch is refused.
    async fn prepare_again(&mut self) {
        let Some(Prepared { tables, version, config }) = &self.prepared else { return };
        let (specs, version) = (cluster::specs(config, tables), *version);
        if let Err(error) = self.dataplane.prepare(&specs).context("data plane") {
            self.prepared = None;
            self.answer_sync(self.sync.loaded(version, Err(format!("{error:#}"))).await);
        }
    }

    /// Another director asks how slots stand.
    pub(super) async fn give_windows(&mut self, to: Ipv4Addr, version: Version) {
        if self.serving() && self.fed == Some(version) {
            let windows = self.dataplane.slot_windows(monotonic_seconds());
            self.answer_sync(self.sync.give_windows(to, version, &windows).await);
        }
    }

    /// How slots stand at a director that has missed nothing, if there is one.
    pub(super) async fn take_windows(
        &mut self,
        version: Version,
        windows: Option<&Windows>,
        in_time: Instant,
    ) {
        if self.fed != Some(version) {
            return;
        }
        if windows.is_some() && Instant::now() > in_time {
            return self.answer_sync(self.sync.applied(version, Ok(Fed::Afresh)).await);
        }
        if let Some(windows) = windows {
            match self.try_take_windows(windows) {
                Ok(false) => {}
                Ok(true) => {
                    self.prepare_again().await;
                    self.exchange.rejoin().await;
                }
                Err(error) => {
                    // The next attempt to feed asks again.
                    tracing::error!(error = format!("{error:#}"), "slots as they stand at the others");
                    (self.fed, self.trouble) = (None, Some(format!("{error:#}")));
                }
            }
        }
        self.windows_due = self.fed.is_none();
        self.announce();
    }

    fn try_take_windows(&mut self, windows: &Windows) -> anyhow::Result<bool> {
        let Some(tables) = &self.tables else { return Ok(false) };
        let specs = cluster::specs(&self.config, tables);
        let changed =
            self.dataplane.follow_windows(&specs, windows, monotonic_seconds()).context("windows")?;
        let (reals, leaving) = (cluster::real_addresses(&self.config, tables), self.dataplane.retained());
        self.resolver.watch(reals.union(&leaving).copied());
        Ok(changed)
    }

    /// Replication that has ended is noticed where its events come from.
    pub(super) fn answer_sync(&self, answer: Result<(), syncd::Stopped>) {
        if let Err(error) = answer {
            tracing::error!(%error, "sync service");
        }
    }
}
