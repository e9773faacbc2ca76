//! The real server's side of direct return: it owns the VIP, and keeps quiet about it.
//!
//! A real server takes packets for the VIP because the VIP is on its loopback interface; it must not answer ARP
//! for it (`arp_ignore`) nor name it in its own questions (`arp_announce`), or the switches would find the VIP
//! at a real server instead of the directors. Where reverse-path filtering is strict it is made loose: the
//! director's packets carry clients' addresses, and may come by another way than answers go.
//!
//! What is right already is left alone, and only what was changed is undone: [`Agent::undo`] restores a setting
//! if it still has the value given here, and removes the addresses that were added here.

mod sysctl;

use std::collections::BTreeSet;
use std::fmt;
use std::future::Future;
use std::io;
use std::net::{IpAddr, Ipv4Addr};
use std::path::PathBuf;

use futures::TryStreamExt as _;
use netlink_packet_route::address::{AddressAttribute, AddressMessage};
use netlink_packet_route::link::LinkFlags;
use rtnetlink::{Handle, LinkUnspec, new_connection};

use sysctl::Setting;

/// The loopback interface's index, the same in every network namespace.
const LOOPBACK: u32 = 1;

/// Why a real server could not be prepared or restored.
#[derive(Debug, thiserror::Error)]
pub enum AgentError {
    /// Not an address direct return works for.
    #[error("{0} cannot be a VIP of a real server: it must be an IPv4 unicast address")]
    Vip(IpAddr),
    /// A kernel setting could not be read or written.
    #[error("cannot access {path} (needs root)")]
    Sysctl {
        /// The file under `/proc/sys`.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// No netlink socket.
    #[error("cannot open a netlink socket")]
    Socket(#[source] io::Error),
    /// An address or the loopback interface could not be changed.
    #[error("cannot {what} (needs root)")]
    Netlink {
        /// What was tried.
        what: String,
        /// Why it failed.
        #[source]
        source: rtnetlink::Error,
    },
}

/// Something that was changed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Change {
    /// A kernel setting.
    Setting {
        /// Its name, as `sysctl` writes it.
        name: String,
        /// The value before.
        before: i32,
        /// The value now.
        after: i32,
    },
    /// The loopback interface was down and is up.
    LoopbackUp,
    /// A VIP was added to the loopback interface.
    Address(Ipv4Addr),
}

impl fmt::Display for Change {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Setting { name, before, after } => write!(f, "{name} = {after} (was {before})"),
            Self::LoopbackUp => write!(f, "interface lo is up (was down)"),
            Self::Address(vip) => write!(f, "{vip}/32 is on interface lo (was not)"),
        }
    }
}

/// A prepared real server. Dropping it leaves everything as it is; [`Self::undo`] restores.
#[derive(Debug)]
pub struct Agent {
    handle: Handle,
    changes: Vec<Change>,
}

impl Agent {
    /// Prepares this network namespace for direct return of these VIPs. If a step fails, those before it are
    /// undone.
    ///
    /// # Errors
    /// [`AgentError`] of the step that failed.
    pub async fn prepare(vips: &[IpAddr]) -> Result<Self, AgentError> {
        let vips = vips.iter().map(|vip| unicast(*vip)).collect::<Result<BTreeSet<_>, _>>()?;
        let (connection, handle, _) = new_connection().map_err(AgentError::Socket)?;
        tokio::spawn(connection);
        let mut agent = Self { handle, changes: Vec::new() };
        match agent.change(&vips).await {
            Ok(()) => Ok(agent),
            Err(error) => {
                agent.undo().await?;
                Err(error)
            }
        }
    }

    /// What was changed, in order. Empty if everything was right already.
    pub fn changes(&self) -> &[Change] {
        &self.changes
    }

    /// Undoes the changes, last first, and returns those undone. A setting that somebody else has changed since
    /// is left alone.
    ///
    /// # Errors
    /// The first [`AgentError`]; the other changes are undone all the same.
    pub async fn undo(mut self) -> Result<Vec<Change>, AgentError> {
        let mut undone = Vec::new();
        let mut failure = None;
        while let Some(change) = self.changes.pop() {
            match self.undo_one(&change).await {
                Ok(true) => undone.push(change),
                Ok(false) => tracing::warn!(%change, "changed by somebody else since; left alone"),
                Err(error) => failure = failure.or(Some(error)),
            }
        }
        failure.map_or(Ok(undone), Err)
    }

    /// Settings first: the kernel must be quiet before it has something to tell.
    async fn change(&mut self, vips: &BTreeSet<Ipv4Addr>) -> Result<(), AgentError> {
        for setting in sysctl::needed()? {
            setting.write(setting.after)?;
            let Setting { name, before, after } = setting;
            self.changes.push(Change::Setting { name, before, after });
        }
        if !self.loopback_is_up().await? {
            self.set_loopback(true).await?;
            self.changes.push(Change::LoopbackUp);
        }
        let present: BTreeSet<IpAddr> = self.addresses().await?.iter().filter_map(address_of).collect();
        for vip in vips.iter().filter(|vip| !present.contains(&IpAddr::V4(**vip))) {
            self.add(*vip).await?;
            self.changes.push(Change::Address(*vip));
        }
        Ok(())
    }

    async fn undo_one(&self, change: &Change) -> Result<bool, AgentError> {
        match change {
            Change::Setting { name, before, after } => {
                let setting = Setting { name: name.clone(), before: *before, after: *after };
                if setting.read()? != *after {
                    return Ok(false);
                }
                setting.write(*before).map(|()| true)
            }
            Change::LoopbackUp => self.set_loopback(false).await.map(|()| true),
            Change::Address(vip) => self.remove(*vip).await,
        }
    }

    async fn loopback_is_up(&self) -> Result<bool, AgentError> {
        let mut links = std::pin::pin!(self.handle.link().get().match_index(LOOPBACK).execute());
        let link = links.try_next().await.map_err(failed("read interface lo".to_owned()))?;
        Ok(link.is_some_and(|link| link.header.flags.contains(LinkFlags::Up)))
    }

    async fn set_loopback(&self, up: bool) -> Result<(), AgentError> {
        let message = LinkUnspec::new_with_index(LOOPBACK);
        let message = if up { message.up() } else { message.down() };
        let state = if up { "up" } else { "down" };
        let request = self.handle.link().set(message.build());
        request.execute().await.map_err(failed(format!("set interface lo {state}")))
    }

    async fn addresses(&self) -> Result<Vec<AddressMessage>, AgentError> {
        let addresses = self.handle.address().get().set_link_index_filter(LOOPBACK).execute();
        addresses.try_collect().await.map_err(failed("list the addresses of interface lo".to_owned()))
    }

    async fn add(&self, vip: Ipv4Addr) -> Result<(), AgentError> {
        let request = self.handle.address().add(LOOPBACK, IpAddr::V4(vip), 32);
        request.execute().await.map_err(failed(format!("add {vip}/32 to interface lo")))
    }

    /// Removes a VIP; `false` if it is gone already.
    async fn remove(&self, vip: Ipv4Addr) -> Result<bool, AgentError> {
        let found =
            self.addresses().await?.into_iter().find(|message| {
                message.header.prefix_len == 32 && address_of(message) == Some(IpAddr::V4(vip))
            });
        let Some(message) = found else { return Ok(false) };
        let request = self.handle.address().del(message);
        request.execute().await.map_err(failed(format!("remove {vip}/32 from interface lo")))?;
        Ok(true)
    }
}

/// Prepares, tells every change to `say`, waits for `stop`, undoes, and tells that too.
///
/// # Errors
/// [`AgentError`] of the first step that failed.
pub async fn run(
    vips: &[IpAddr],
    mut say: impl FnMut(&str),
    stop: impl Future<Output = ()>,
) -> Result<(), AgentError> {
    let agent = Agent::prepare(vips).await?;
    if agent.changes().is_empty() {
        say("ready: nothing had to be changed");
    }
    for change in agent.changes() {
        say(&format!("changed: {change}"));
    }
    stop.await;
    for change in agent.undo().await? {
        say(&format!("undone: {change}"));
    }
    Ok(())
}

fn unicast(vip: IpAddr) -> Result<Ipv4Addr, AgentError> {
    match vip {
        IpAddr::V4(address)
            if !(address.is_unspecified()
                || address.is_multicast()
                || address.is_broadcast()
                || address.is_loopback()) =>
        {
            Ok(address)
        }
        other => Err(AgentError::Vip(other)),
    }
}

fn address_of(message: &AddressMessage) -> Option<IpAddr> {
    message.attributes.iter().find_map(|attribute| match attribute {
        AddressAttribute::Local(address) => Some(*address),
        _ => None,
    })
}

fn failed(what: String) -> impl FnOnce(rtnetlink::Error) -> AgentError {
    move |source| AgentError::Netlink { what, source }
}
