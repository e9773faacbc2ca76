//! Who may speak with this director.
//!
//! A router id belongs to one process. A new boot id under a known router id is a restart when it listens where
//! the old one did or the old one is silent; otherwise two directors carry the same id, and the later one is
//! refused until the first is gone.

use std::net::Ipv4Addr;
use std::time::Instant;

use director_proto::sync::{Hello, PROTOCOL};

use super::{Member, Replica};

/// Most directors remembered, dead ones included.
const MAX_MEMBERS: usize = 256;

/// Why a director is not spoken with. The text goes to both logs, so it names the two sides.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// Another version of the protocol.
    #[error(
        "{from} speaks sync protocol {theirs}, {to} speaks {ours}; run the same release of director on both"
    )]
    Protocol {
        /// Who was refused.
        from: Ipv4Addr,
        /// Its version.
        theirs: u32,
        /// Who refused.
        to: Ipv4Addr,
        /// Its version.
        ours: u32,
    },
    /// Another cluster.
    #[error("{from} is of cluster {theirs:?}, {to} is of cluster {ours:?}; set the same [cluster] name")]
    Cluster {
        /// Who was refused.
        from: Ipv4Addr,
        /// Its cluster.
        theirs: String,
        /// Who refused.
        to: Ipv4Addr,
        /// Its cluster.
        ours: String,
    },
    /// The director speaks with itself.
    #[error("{router_id} was reached by its own address; list only the other directors in [cluster] peers")]
    Itself {
        /// Its router id.
        router_id: Ipv4Addr,
    },
    /// Two directors with one router id.
    #[error(
        "router id {router_id} of the director at {endpoint:?} belongs to another one, at {other:?}; \
         give each director its own [node] router_id"
    )]
    DuplicateRouterId {
        /// The id both have.
        router_id: Ipv4Addr,
        /// Where the refused one listens.
        endpoint: String,
        /// Where the other one listens.
        other: String,
    },
    /// More directors than a cluster may have.
    #[error("more than {MAX_MEMBERS} directors")]
    TooMany,
    /// The certificate is not for the one that presents it.
    #[error("the certificate presented for {router_id} names neither that address nor {name:?}")]
    Certificate {
        /// Router id claimed.
        router_id: Ipv4Addr,
        /// Name of the cluster's directors.
        name: String,
    },
}

impl Replica {
    /// How this director introduces itself.
    pub fn hello(&self) -> Hello {
        Hello {
            protocol: PROTOCOL,
            cluster: self.settings.cluster.clone(),
            router_id: self.settings.router_id,
            boot_id: self.settings.boot_id,
            endpoint: self.settings.endpoint.clone(),
            software: self.settings.software.clone(),
        }
    }

    /// Admits the director that said `hello`, or says why not. Nothing of one that is not admitted counts.
    pub fn admit(&mut self, now: Instant, hello: &Hello) -> Result<(), Refusal> {
        self.bury_the_silent(now);
        self.check_kinship(hello)?;
        let Some(member) = self.members.get_mut(&hello.router_id) else {
            return self.add_member(hello);
        };
        if member.boot_id() == hello.boot_id {
            return Ok(());
        }
        let moved = member.endpoint() != hello.endpoint || hello.endpoint.is_empty();
        if member.is_live() && (moved || member.was_superseded(hello.boot_id)) {
            return Err(Refusal::DuplicateRouterId {
                router_id: hello.router_id,
                endpoint: hello.endpoint.clone(),
                other: member.endpoint().to_owned(),
            });
        }
        member.restarted(hello.boot_id, &hello.endpoint, &hello.software);
        self.health_changed = true;
        self.forget_answer(hello.router_id);
        Ok(())
    }

    /// Protocol first: nothing else of another protocol's greeting can be relied upon.
    fn check_kinship(&self, hello: &Hello) -> Result<(), Refusal> {
        let settings = &self.settings;
        let (from, to) = (hello.router_id, settings.router_id);
        if hello.protocol != PROTOCOL {
            return Err(Refusal::Protocol { from, theirs: hello.protocol, to, ours: PROTOCOL });
        }
        if hello.cluster != settings.cluster {
            let (theirs, ours) = (hello.cluster.clone(), settings.cluster.clone());
            return Err(Refusal::Cluster { from, theirs, to, ours });
        }
        if hello.router_id != settings.router_id {
            return Ok(());
        }
        if hello.boot_id == settings.boot_id {
            return Err(Refusal::Itself { router_id: to });
        }
        Err(Refusal::DuplicateRouterId {
            router_id: to,
            endpoint: hello.endpoint.clone(),
            other: settings.endpoint.clone(),
        })
    }

    fn add_member(&mut self, hello: &Hello) -> Result<(), Refusal> {
        if self.members.len() >= MAX_MEMBERS {
            let dead = self.members().find(|(_, member)| !member.is_live()).map(|(id, _)| id);
            self.members.remove(&dead.ok_or(Refusal::TooMany)?);
        }
        let member = Member::new(hello.boot_id, &hello.endpoint, &hello.software);
        self.members.insert(hello.router_id, member);
        Ok(())
    }
}
