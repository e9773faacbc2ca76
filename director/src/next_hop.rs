//! Ways to real servers: which interface, which link address, and that the kernel keeps knowing.
//!
//! The XDP program looks up no routes and no neighbours of real servers; this module does it for it, over rtnetlink.
//! (The way back to a client, which packets take by NAT, it asks the kernel for: there are too many to know them.) A way is
//! what a route look-up says (interface, gateway) together with the gateway's neighbour entry. Events of links,
//! routes and neighbours are only hints to look again, and every [`LOOK_AGAIN`] it looks without one: an event
//! lost (ENOBUFS) costs that time at most.
//!
//! The kernel forgets a neighbour it does not use, and does not see the program use one. So the entries are
//! marked as used (`NTF_USE`), which makes the kernel probe a stale one. A real server loses its way only when
//! the kernel says FAILED, the route is gone or the link is down; while an entry is merely absent or being
//! resolved the last known way stays.

mod kernel;
mod resolve;

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::net::IpAddr;
use std::time::Duration;

use futures::StreamExt as _;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;

use crate::dataplane::NextHop;
use kernel::Kernel;
use resolve::{Ways, resolve};

/// How often the kernel is asked even without an event, and stale or missing neighbours are marked as used.
pub const LOOK_AGAIN: Duration = Duration::from_secs(1);

/// A way that changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Change {
    /// The real server.
    pub address: IpAddr,
    /// The way to it now; `None` if there is none.
    pub next_hop: Option<NextHop>,
}

/// Why the resolver does not run.
#[derive(Debug, thiserror::Error)]
#[error("cannot open a netlink socket")]
pub struct ResolverError(#[source] io::Error);

/// A task that finds the ways to a set of addresses and watches them. It ends when this is dropped.
#[derive(Debug)]
pub struct Resolver {
    wanted: watch::Sender<BTreeSet<IpAddr>>,
    task: JoinHandle<()>,
}

impl Resolver {
    /// Starts the task in the current tokio runtime and the current thread's network namespace. Changes come out
    /// of the returned channel: first those of `known` (ways already in force, as after a restart) that are not
    /// so any more, then whatever happens.
    ///
    /// # Errors
    /// [`ResolverError`] if there is no netlink socket to be had.
    pub fn start(
        known: impl IntoIterator<Item = (IpAddr, NextHop)>,
    ) -> Result<(Self, mpsc::UnboundedReceiver<Change>), ResolverError> {
        let kernel = Kernel::open().map_err(ResolverError)?;
        let (wanted, addresses) = watch::channel(BTreeSet::new());
        let (changes, receiver) = mpsc::unbounded_channel();
        let known = known.into_iter().map(|(address, way)| (address, Some(way))).collect();
        let task = tokio::spawn(run(kernel, addresses, Watcher { known, changes }));
        Ok((Self { wanted, task }, receiver))
    }

    /// Sets the real servers whose ways are wanted. For each new one a [`Change`] comes once its way is known;
    /// one that is not wanted any more is forgotten without a word.
    pub fn watch(&self, addresses: impl IntoIterator<Item = IpAddr>) {
        self.wanted.send_replace(addresses.into_iter().collect());
    }
}

/// Those of some addresses to which the kernel has no route now.
///
/// # Errors
/// The kernel does not answer.
pub async fn without_route(addresses: BTreeSet<IpAddr>) -> io::Result<Vec<IpAddr>> {
    if addresses.is_empty() {
        return Ok(Vec::new());
    }
    kernel::without_route(addresses).await
}

impl Drop for Resolver {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// What has been reported, and to whom.
struct Watcher {
    known: BTreeMap<IpAddr, Option<NextHop>>,
    changes: mpsc::UnboundedSender<Change>,
}

async fn run(mut kernel: Kernel, mut wanted: watch::Receiver<BTreeSet<IpAddr>>, mut watcher: Watcher) {
    let mut timer = tokio::time::interval(LOOK_AGAIN);
    timer.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        let ticked = tokio::select! {
            changed = wanted.changed() => {
                if changed.is_err() {
                    return;
                }
                true
            }
            event = kernel.events.next() => {
                if event.is_none() {
                    tracing::error!("the netlink event socket is closed: changes are seen a second late");
                    timer.tick().await;
                }
                // A burst is one reason to look, not many.
                while kernel.events.try_recv().is_ok() {}
                false
            }
            _ = timer.tick() => true,
        };
        let addresses = wanted.borrow_and_update().clone();
        watcher.look(&mut kernel, &addresses, ticked).await;
    }
}

impl Watcher {
    /// Looks at the kernel, reports what changed and, if `touch`, has doubtful neighbours probed.
    async fn look(&mut self, kernel: &mut Kernel, addresses: &BTreeSet<IpAddr>, touch: bool) {
        self.known.retain(|address, _| addresses.contains(address));
        if addresses.is_empty() {
            return;
        }
        let ways = match kernel.ways(addresses).await {
            Ok(ways) => ways,
            Err(error) => {
                tracing::warn!(%error, "cannot read routes and neighbours; keeping the ways known so far");
                return;
            }
        };
        for address in addresses {
            self.report(*address, &ways);
        }
        if touch {
            for (ifindex, gateway) in ways.doubtful() {
                if let Err(error) = kernel.touch(ifindex, gateway).await {
                    tracing::debug!(%gateway, ifindex, %error, "cannot have a neighbour probed");
                }
            }
        }
    }

    fn report(&mut self, address: IpAddr, ways: &Ways) {
        let before = self.known.get(&address).copied();
        let next_hop = resolve(address, ways, before.flatten());
        if before == Some(next_hop) {
            return;
        }
        self.known.insert(address, next_hop);
        if let Some(ifindex) = next_hop.map(|way| way.ifindex)
            && ways.links.get(&ifindex).is_some_and(|link| link.generic_only)
        {
            tracing::warn!(
                real = %address,
                ifindex,
                "the way is by a VLAN, bridge or the like, to which only xdp_mode = \"generic\" can redirect: give \
                 the interface below it the address, or use that mode"
            );
        }
        // Nobody listens: then nobody is told.
        let _ = self.changes.send(Change { address, next_hop });
    }
}
