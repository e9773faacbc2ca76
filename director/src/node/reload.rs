//! `director reload`: this director's file anew; what would come of it; and the services of the file for the whole cluster.
//!
//! The sections that are this director's own come into force here and at once. Its services are the cluster's to agree
//! on (`agreed`): the leader proposes those of its file, any director those of its own by a wish, which the leader
//! carries out by an epoch, all or nothing.

use std::net::Ipv4Addr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use director_proto::control as wire;
use director_proto::definitions::Definitions;
use director_proto::tables::{Epoch, Version};
use syncd::Outcome;
use tokio::sync::oneshot;

use super::agreed::{Proposed, remember, same_services};
use super::{Node, plan};
use crate::config::Config;

/// How long a director waits for what becomes of its wish.
const WISH_LIMIT: Duration = Duration::from_secs(30);

/// How long the leader tries to carry a wish out.
const GRANT_LIMIT: Duration = Duration::from_secs(25);

/// Where the answer to a reload goes.
pub(super) type Reply = oneshot::Sender<Result<wire::ReloadReply, String>>;

/// What this director wants in force everywhere.
pub(super) struct Wish {
    id: u64,
    until: Instant,
    /// What is answered if it comes into force.
    answer: wire::ReloadReply,
    reply: Reply,
}

/// What some director wants of this one, which leads.
pub(super) struct Wished {
    from: Ipv4Addr,
    id: u64,
    definitions: Arc<Definitions>,
    /// The epoch that carries it, once that has begun.
    epoch: Option<Epoch>,
    /// That has come into force here.
    in_force: bool,
    until: Instant,
}

impl Node {
    /// Reads the configuration again; all or nothing.
    pub(super) async fn reload(&mut self) -> Result<wire::ReloadReply, String> {
        let file = Arc::new(Config::load(&self.config_path).map_err(|error| error.to_string())?);
        let mut changes = plan::differences(&self.file, &file)?;
        changes.extend(self.reload_certificates().await?);
        let is_changed = !same_services(&self.file, &file);
        if *self.file != *file {
            self.take_file(file).await?;
        }
        let mut notes = Vec::new();
        let mut epoch = None;
        if is_changed {
            self.pending = !same_services(&self.file, &self.config);
            // Said by the operator to the leader itself: carried out whatever the others' files say.
            if self.pending && self.leader == Some(self.file.node.router_id) {
                match self.deal_file().await {
                    Proposed::Same => {}
                    Proposed::Begun(begun) => epoch = Some(begun),
                    Proposed::Later(error) => {
                        self.wish = true;
                        notes.push(format!("its services are proposed again later: {error}"));
                    }
                    Proposed::NotLeader => {}
                    Proposed::Refused(reason) => {
                        notes.push(format!("its services are not in force: {reason}"))
                    }
                }
            }
        }
        if epoch.is_none() {
            notes.extend(self.remedy());
        }
        self.feed();
        self.ask_for_passed_over().await;
        let epoch = epoch.map(|epoch| epoch.to_string()).unwrap_or_default();
        Ok(wire::ReloadReply { changes, notes, epoch, ..wire::ReloadReply::default() })
    }

    /// Reads the certificates again, a line if others are in use now.
    async fn reload_certificates(&self) -> Result<Option<String>, String> {
        let sync = self.sync.clone();
        let reloaded = tokio::task::spawn_blocking(move || sync.reload_certificates()).await;
        match reloaded.map_err(|error| error.to_string())? {
            Ok(syncd::Reloaded::Changed) => {
                Ok(Some("[cluster] tls: certificates reloaded, for new connections".to_owned()))
            }
            Ok(syncd::Reloaded::NoTls | syncd::Reloaded::Unchanged) => Ok(None),
            Err(error) => Err(format!("[cluster] tls: {error}; the certificates from before stay in use")),
        }
    }

    /// What the operator can do where the file's services are not in force.
    fn remedy(&self) -> Option<String> {
        let lines = self.difference();
        (!lines.is_empty()).then(|| {
            format!(
                "the services in force are not those of this file ({} differences, in force -> in the file: {}); `director \
                 reload --cluster` here puts the file's in force in the whole cluster",
                lines.len(),
                lines.join("; ")
            )
        })
    }

    /// Another file, whose own sections come into force at once.
    async fn take_file(&mut self, file: Arc<Config>) -> Result<(), String> {
        let config = match self.has_agreed {
            true => {
                let agreed = file.with_definitions(&self.config_path, &self.config.definitions);
                Arc::new(agreed.map_err(|reason| {
                    format!("the services in force could not be served by this file: {reason}")
                })?)
            }
            false => Arc::clone(&file),
        };
        self.serve_config(config).await?;
        self.file = file;
        self.compare_again();
        self.sync
            .configure(self.file.services_digest(), Arc::clone(&self.file.definitions))
            .await
            .map_err(|error| error.to_string())
    }

    /// What a reload of the file would change, without changing it.
    pub(super) fn preview(&self, path: &str) -> Result<wire::ReloadReply, String> {
        let path = if path.is_empty() { self.config_path.clone() } else { PathBuf::from(path) };
        let file = Config::load(&path).map_err(|error| error.to_string())?;
        let changes = plan::differences(&self.file, &file)?;
        Ok(wire::ReloadReply { changes, ..self.preview_of(&file) })
    }

    /// Reads the file, and asks for its services in force in the whole cluster. The answer comes when it is known what
    /// has become of that.
    pub(super) async fn reload_cluster(&mut self, reply: Reply) {
        let begun = self.begin_wish().await;
        let answer = match begun {
            Ok(answer) => answer,
            Err(error) => return super::reply_with(reply, Err(error)),
        };
        let Some(answer) = answer else {
            let notes = vec!["the services of this file are in force already".to_owned()];
            return super::reply_with(reply, Ok(wire::ReloadReply { notes, ..wire::ReloadReply::default() }));
        };
        self.last_wish += 1;
        let (id, until) = (self.last_wish, Instant::now() + WISH_LIMIT);
        self.own_wish = Some(Wish { id, until, answer, reply });
        self.answer_sync(self.sync.wish(Some(id)).await);
    }

    /// What is answered once the services of the file are in force; `None` if they are already.
    async fn begin_wish(&mut self) -> Result<Option<wire::ReloadReply>, String> {
        if self.own_wish.is_some() {
            return Err("another `director reload --cluster` is under way here".to_owned());
        }
        if self.tables.is_none() {
            return Err(
                "this director has not joined the cluster yet: wait until `director status` shows tables"
                    .to_owned(),
            );
        }
        let file = Arc::new(Config::load(&self.config_path).map_err(|error| error.to_string())?);
        let mut changes = plan::differences(&self.file, &file)?;
        changes.extend(self.reload_certificates().await?);
        if *self.file != *file {
            self.take_file(file).await?;
            self.feed();
        }
        // One attempt, whatever comes of it: the operator is told.
        self.pending = false;
        remember(&self.file.node.state_dir, &self.file);
        let preview = self.preview_of(&self.file);
        let is_same = same_services(&self.file, &self.config);
        Ok((!is_same).then_some(wire::ReloadReply { changes, dry_run: false, ..preview }))
    }

    /// What has become of this director's wish.
    pub(super) fn end_wish(&mut self, id: u64, outcome: Outcome) {
        let Some(Wish { mut answer, reply, .. }) = self.own_wish.take_if(|wish| wish.id == id) else {
            return;
        };
        let answer = outcome.map(|version| {
            answer.epoch = version.epoch.to_string();
            answer
        });
        super::reply_with(reply, answer.map_err(|reason| format!("nothing has changed: {reason}")));
    }

    /// Wishes whose time is over.
    pub(super) async fn end_late_wishes(&mut self) {
        let now = Instant::now();
        if let Some(wish) = self.own_wish.take_if(|wish| now >= wish.until) {
            self.answer_sync(self.sync.wish(None).await);
            let answer = match same_services(&self.file, &self.config) {
                true => Ok(wish.answer),
                false => Err(format!(
                    "it is not known after {} s what became of it: look at `director peers` on this director and the \
                     leader",
                    WISH_LIMIT.as_secs()
                )),
            };
            super::reply_with(wish.reply, answer);
        }
        let late: Vec<_> = self.wished.extract_if(.., |wished| now >= wished.until).collect();
        for wished in late {
            let reason = format!("not decided within {} s", GRANT_LIMIT.as_secs());
            self.decide(&wished, Err(reason)).await;
        }
    }

    /// A director wants its services in force everywhere.
    pub(super) async fn handle_wish(&mut self, from: Ipv4Addr, id: u64, definitions: Arc<Definitions>) {
        self.wished.retain(|wished| wished.from != from);
        let until = Instant::now() + GRANT_LIMIT;
        self.wished.push(Wished { from, id, definitions, epoch: None, in_force: false, until });
        self.grant_wishes().await;
    }

    /// Begins what is wished, as soon as nothing else is under way.
    pub(super) async fn grant_wishes(&mut self) {
        let waiting: Vec<_> = self.wished.extract_if(.., |wished| wished.epoch.is_none()).collect();
        for mut wished in waiting {
            match self.grant(&wished).await {
                Err(reason) => self.decide(&wished, Err(reason)).await,
                Ok(Proposed::Same) => {
                    if let Some(version) = self.version {
                        self.decide(&wished, Ok(version)).await;
                    }
                }
                Ok(Proposed::Begun(epoch)) => {
                    wished.epoch = Some(epoch);
                    self.wished.push(wished);
                }
                Ok(Proposed::Later(syncd::ProposeError::Busy { .. })) => self.wished.push(wished),
                // The next leader is asked.
                Ok(Proposed::NotLeader) => {}
                Ok(Proposed::Later(error)) => self.decide(&wished, Err(error.to_string())).await,
                Ok(Proposed::Refused(reason)) => self.decide(&wished, Err(reason)).await,
            }
        }
    }

    async fn grant(&mut self, wished: &Wished) -> Result<Proposed, String> {
        let own = self.file.node.router_id;
        let config = self.file.with_definitions(&self.config_path, &wished.definitions);
        let config = config.map_err(|reason| format!("{own}: {reason}"))?;
        let definitions = config.in_words_of(&self.config);
        Ok(self.propose(&config, definitions, Some(wished.from)).await)
    }

    /// Tables are in force here, which may carry a wish.
    pub(super) fn note_wished(&mut self, epoch: Epoch) {
        self.wished.iter_mut().for_each(|wished| wished.in_force |= wished.epoch == Some(epoch));
    }

    /// An epoch is over, which may carry a wish.
    pub(super) async fn end_wished(&mut self, epoch: Epoch, outcome: Result<Version, String>) {
        let ended: Vec<_> = self.wished.extract_if(.., |wished| wished.epoch == Some(epoch)).collect();
        for wished in ended {
            let outcome = match outcome.clone() {
                Ok(_) if !wished.in_force => Err(format!("other tables have overtaken epoch {epoch}")),
                outcome => outcome,
            };
            self.decide(&wished, outcome).await;
        }
        self.grant_wishes().await;
    }

    async fn decide(&self, wished: &Wished, outcome: Outcome) {
        self.answer_sync(self.sync.decide_wish(wished.from, wished.id, outcome).await);
    }
}
