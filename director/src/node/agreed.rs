//! Whose services are in force: those that the cluster has agreed on, which the tables carry, and not those of this
//! director's file.
//!
//! The leader's file counts where nobody has tables yet. From then on a change of services is an epoch: of the leader's
//! file when its operator has it read again, or of any director's by `director reload --cluster`. A director whose file
//! says something else serves what is agreed, and shows the difference. Since the agreement is in the tables, which are
//! on disk, a restart goes back to nothing.
//!
//! A file that was changed while its director was down is no different from one that is read again: which file was read
//! last is in `state_dir/services-read`. Only who leads carries it out, and only where the others have the same.

use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use director_proto::definitions::Definitions;
use director_proto::tables::{Digest, Epoch, ServiceTable, TableSet};
use syncd::ProposeError;

use super::{Node, cluster, file, plan};
use crate::config::Config;

/// How another director's file differs from this one's.
pub(super) struct Difference {
    definitions: Arc<Definitions>,
    /// By service and key: there, and here.
    pub(super) lines: Vec<String>,
}

/// What became of tables that were to be proposed.
pub(super) enum Proposed {
    /// They are in force already.
    Same,
    Begun(Epoch),
    /// Not now: another epoch is under way, or most of the others are not heard.
    Later(ProposeError),
    /// Somebody else leads.
    NotLeader,
    Refused(String),
}

/// Whether two configurations have the same services.
pub(super) fn same_services(one: &Config, other: &Config) -> bool {
    one.definitions == other.definitions
        || one.services == other.services
        || one.services_digest() == other.services_digest()
}

/// What the tables say of the services: `None` where they are of a release that did not say it.
fn agreed_on(tables: &TableSet) -> Option<Definitions> {
    let said = |(name, table): (&String, &ServiceTable)| {
        let said = !table.definition.is_empty();
        said.then(|| (name.clone(), Arc::clone(&table.definition)))
    };
    tables.services.iter().map(said).collect()
}

fn read_path(state_dir: &Path) -> PathBuf {
    state_dir.join("services-read")
}

/// Whether the file's services were changed since they were read last; false where nobody has read any.
pub(super) fn is_changed(state_dir: &Path, config: &Config) -> bool {
    match std::fs::read_to_string(read_path(state_dir)) {
        Ok(text) => text.trim() != hex(config.services_digest()),
        Err(_) => {
            remember(state_dir, config);
            false
        }
    }
}

/// Remembers which file was read.
pub(super) fn remember(state_dir: &Path, config: &Config) {
    let path = read_path(state_dir);
    let text = hex(config.services_digest()) + "\n";
    if std::fs::read_to_string(&path).is_ok_and(|present| present == text) {
        return;
    }
    if let Err(error) = file::replace(&path, Some(text.as_bytes())) {
        tracing::warn!(path = %path.display(), %error, "it is not remembered that the file was read");
    }
}

fn hex(digest: Digest) -> String {
    digest.0.iter().map(|byte| format!("{byte:02x}")).collect()
}

impl Node {
    /// By what these tables are served: this director's own sections with the services that are agreed on.
    ///
    /// # Errors
    /// Why it cannot serve them.
    pub(super) fn config_for(&self, tables: &TableSet) -> Result<Arc<Config>, String> {
        let Some(definitions) = agreed_on(tables) else { return Ok(Arc::clone(&self.file)) };
        if *self.config.definitions == definitions && self.unusable.is_none() {
            return Ok(Arc::clone(&self.config));
        }
        let config = self.file.with_definitions(&self.config_path, &Arc::new(definitions))?;
        if let (Some(before), Some(after)) =
            (cluster::routing_config(&self.config), cluster::routing_config(&config))
        {
            before.changes_to(&after).map_err(|error| format!("[ospf] {error}"))?;
        }
        Ok(Arc::new(config))
    }

    /// Serves what the tables in force say from now on.
    pub(super) async fn follow_agreement(&mut self) {
        let Some(tables) = self.tables.clone() else { return };
        let has_definitions = agreed_on(&tables).is_some();
        let prepared = self.prepared.as_ref().filter(|prepared| Some(prepared.version) == self.version);
        let config = match prepared {
            Some(prepared) => Ok(Arc::clone(&prepared.config)),
            None => self.config_for(&tables),
        };
        let config = match config {
            Ok(config) => config,
            Err(reason) => {
                self.unusable =
                    Some(format!("what the cluster has agreed on cannot be served here: {reason}"));
                return;
            }
        };
        self.unusable = None;
        let is_other = config.definitions != self.config.definitions;
        if let Err(error) = self.serve_config(config).await {
            self.unusable = Some(error);
            return;
        }
        if !has_definitions {
            // Nobody has agreed on anything yet: whoever leads says it.
            self.pending = true;
        } else if same_services(&self.file, &self.config) {
            self.pending = false;
            remember(&self.file.node.state_dir, &self.file);
        } else if is_other && self.has_agreed {
            // Somebody has said something later than this file.
            self.pending = false;
            remember(&self.file.node.state_dir, &self.file);
        }
        self.has_agreed |= has_definitions;
        self.say_difference();
    }

    /// Everything beside the kernel that follows from the configuration.
    pub(super) async fn serve_config(&mut self, config: Arc<Config>) -> Result<(), String> {
        if Arc::ptr_eq(&config, &self.config) {
            return Ok(());
        }
        self.health.watch(&config).map_err(|error| error.to_string())?;
        if let (Some(routing), Some(wanted)) = (&self.routing, cluster::routing_config(&config))
            && cluster::routing_config(&self.config).as_ref() != Some(&wanted)
            && let Err(error) = routing.reconfigure(wanted)
        {
            let _ = self.health.watch(&self.config); // as before, which was good
            return Err(format!("[ospf] {error}"));
        }
        self.config = config;
        // What is no longer checked has no vote any more.
        self.publish_health().await;
        if let Some(routing) = &self.routing {
            routing.protect(plan::vips(&self.config));
        }
        Ok(())
    }

    /// How the services in force differ from those of this director's file: nothing while they are the same, or none
    /// are in force.
    pub(super) fn difference(&self) -> Vec<String> {
        if self.tables.is_none() || same_services(&self.file, &self.config) {
            return Vec::new();
        }
        plan::services_differences(&self.config, &self.file)
    }

    /// Says once that this director's file is not what is in force.
    fn say_difference(&mut self) {
        let lines = self.difference();
        if lines == self.said_difference {
            return;
        }
        match lines.is_empty() {
            true => tracing::info!("the services of this director's file are in force"),
            false => tracing::warn!(
                difference = lines.join("; "),
                "this director's file has other services than are in force (in force -> in the file): the cluster's \
                 agreement counts; change the file, or put it in force by `director reload --cluster` here"
            ),
        }
        self.said_difference = lines;
    }

    /// Another director has told what its file says.
    pub(super) fn handle_definitions(&mut self, router_id: Ipv4Addr, definitions: Arc<Definitions>) {
        let difference = self.difference_from(definitions);
        tracing::warn!(
            peer = %router_id,
            difference = difference.lines.join("; "),
            "peer has other services in its file (there -> here); the cluster's agreement counts"
        );
        self.differences.insert(router_id, difference);
    }

    /// This director's file was read again.
    pub(super) fn compare_again(&mut self) {
        for (router_id, Difference { definitions, .. }) in std::mem::take(&mut self.differences) {
            let difference = self.difference_from(definitions);
            self.differences.insert(router_id, difference);
        }
    }

    fn difference_from(&self, definitions: Arc<Definitions>) -> Difference {
        let lines = match self.file.with_definitions(&self.config_path, &definitions) {
            Ok(theirs) => match plan::services_differences(&theirs, &self.file) {
                none if none.is_empty() => vec!["in the order of what is written only".to_owned()],
                lines => lines,
            },
            Err(reason) => vec![format!("its services could not be served here: {reason}")],
        };
        Difference { definitions, lines }
    }

    /// If this director leads, its file is put in force where it was changed, unless another director has a
    /// different one: then a change must not happen as a side effect of somebody's death. Whoever is found dead or live
    /// gives up or gets its slots in any case.
    pub(super) async fn lead(&mut self) {
        self.wish = false;
        if self.leader != Some(self.file.node.router_id) {
            self.differing.clear();
            return;
        }
        let mut again = false;
        if self.pending && self.tables.is_some() {
            let Ok(status) = self.sync.status().await else { return };
            let differing =
                status.peers.iter().filter(|peer| peer.state == syncd::PeerState::Up && !peer.same_config);
            let differing = differing.map(|peer| peer.router_id).collect();
            // Asked every second while a wish waits, and said once.
            for peer in BTreeSet::difference(&differing, &self.differing) {
                tracing::warn!(
                    peer = peer.map(tracing::field::display),
                    "leading with a changed file that another director does not have: the services in force stay as they \
                     are; make the files equal and reload, or put this one in force by `director reload --cluster`"
                );
            }
            self.differing = differing;
            again = !self.differing.is_empty();
            if !again {
                match self.deal_file().await {
                    Proposed::Same => self.pending = false,
                    Proposed::Begun(_) => return,
                    // What the cluster refuses shall not keep it from passing over the dead.
                    Proposed::Later(_) => again = true,
                    Proposed::NotLeader | Proposed::Refused(_) => {}
                }
            }
        }
        let config = Arc::clone(&self.config);
        if let Proposed::Later(_) = self.propose(&config, Arc::clone(&config.definitions), None).await {
            again = true;
        }
        self.wish |= again;
    }

    /// Proposes the services of this director's file.
    pub(super) async fn deal_file(&mut self) -> Proposed {
        let (file, definitions) = (Arc::clone(&self.file), self.file.in_words_of(&self.config));
        self.propose(&file, definitions, None).await
    }

    /// Deals tables for these services, starting from those in force, and proposes what differs.
    pub(super) async fn propose(
        &mut self,
        config: &Config,
        definitions: Arc<Definitions>,
        by: Option<Ipv4Addr>,
    ) -> Proposed {
        let dealt = self.deal(config, &definitions);
        if self.tables.as_ref().is_some_and(|tables| plan::same_effect(&tables.services, &dealt)) {
            return Proposed::Same;
        }
        let mut key = [0; 16];
        if let Err(error) = cluster::random(&mut key) {
            let reason = format!("no random hash key: {error}");
            tracing::error!("{reason}: no tables are dealt");
            return Proposed::Refused(reason);
        }
        let mut cause = plan::cause(self.tables.as_deref(), &dealt);
        if let Some(by) = by {
            cause = format!("{cause} (wished by {by})");
        }
        let said = std::mem::take(&mut self.waits_alone);
        match self.sync.propose(dealt, key, cause).await {
            Ok(epoch) => {
                tracing::info!(%epoch, "tables dealt");
                Proposed::Begun(epoch)
            }
            // Once more, when the one is over or the other has had its time.
            Err(error @ (ProposeError::Busy { .. } | ProposeError::Rejected { .. })) => {
                tracing::debug!(%error, "tables not dealt yet");
                Proposed::Later(error)
            }
            // Once more, when they are heard again.
            Err(error @ ProposeError::Isolated) => {
                self.waits_alone = true;
                if !said {
                    tracing::warn!(%error, "tables not dealt yet");
                }
                Proposed::Later(error)
            }
            Err(error) => {
                tracing::warn!(%error, "tables not dealt");
                match error {
                    ProposeError::NotLeader { .. } => Proposed::NotLeader,
                    error => Proposed::Refused(error.to_string()),
                }
            }
        }
    }

    /// Tables for these services, starting from those in force.
    pub(super) fn deal(&self, config: &Config, definitions: &Definitions) -> BTreeMap<String, ServiceTable> {
        plan::deal(config, definitions, self.tables.as_deref(), &self.health.view)
    }
}
