//! Next hops of addresses in a node's kernel tables, watched from outside: what a switch really does with packets,
//! whatever its routing daemons believe.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::os::fd::AsFd as _;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use futures::TryStreamExt as _;
use netlink_packet_route::link::LinkAttribute;
use netlink_packet_route::route::{
    RouteAddress, RouteAttribute, RouteFlags, RouteHeader, RouteMessage, RouteNextHop, RouteNextHopFlags,
};
use nix::sched::{CloneFlags, setns};
use rtnetlink::RouteMessageBuilder;

/// How often the table is read: a dead path is marked in it without any notification, so waiting for one misses it.
const INTERVAL: Duration = Duration::from_millis(10);

/// Interfaces of an address's live next hops, by name; none while there is no route.
pub type NextHops = BTreeSet<String>;

/// The next hops of each address that is watched.
pub type Routes = BTreeMap<IpAddr, NextHops>;

#[derive(Debug, Default)]
struct Shared {
    stop: AtomicBool,
    /// Each change with the moment it was seen; the first entry is the state at the start.
    history: Mutex<Vec<(Instant, Routes)>>,
    failure: Mutex<Option<String>>,
}

/// A watch on some addresses in one network namespace, until it is dropped.
#[derive(Debug)]
pub struct RouteWatch {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

impl RouteWatch {
    /// Starts to watch the routes to `addresses` in the network namespace whose file is `namespace`.
    ///
    /// # Errors
    /// When the namespace cannot be opened.
    pub fn start(namespace: &Path, addresses: BTreeSet<IpAddr>) -> Result<Self> {
        let file = File::open(namespace).with_context(|| format!("opening {}", namespace.display()))?;
        let shared = Arc::new(Shared::default());
        let inside = Arc::clone(&shared);
        let thread = std::thread::spawn(move || {
            if let Err(error) = watch(&file, &addresses, &inside) {
                *lock(&inside.failure) = Some(format!("{error:#}"));
            }
        });
        Ok(Self { shared, thread: Some(thread) })
    }

    /// The next hops now, an empty set for an address without a route.
    ///
    /// # Errors
    /// When the table can no longer be read.
    pub fn now(&self) -> Result<Routes> {
        if let Some(failure) = lock(&self.shared.failure).as_ref() {
            anyhow::bail!("watching routes: {failure}");
        }
        Ok(lock(&self.shared.history).last().map(|(_, routes)| routes.clone()).unwrap_or_default())
    }

    /// The changes seen after `moment`.
    #[must_use]
    pub fn changes_since(&self, moment: Instant) -> Vec<(Instant, Routes)> {
        lock(&self.shared.history).iter().skip(1).filter(|(at, _)| *at > moment).cloned().collect()
    }
}

impl Drop for RouteWatch {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            // A panic in it has been reported by its own message.
            let _ = thread.join();
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().expect("invariant: no holder of this lock panics")
}

fn watch(namespace: &File, addresses: &BTreeSet<IpAddr>, shared: &Shared) -> Result<()> {
    setns(namespace.as_fd(), CloneFlags::CLONE_NEWNET).context("entering the namespace")?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let (connection, handle, _) = rtnetlink::new_connection().context("opening netlink")?;
        tokio::spawn(connection);
        let names = interfaces(&handle).await?;
        let mut families = Vec::new();
        if addresses.iter().any(IpAddr::is_ipv4) {
            families.push(RouteMessageBuilder::<Ipv4Addr>::new().build());
        }
        if addresses.iter().any(IpAddr::is_ipv6) {
            families.push(RouteMessageBuilder::<Ipv6Addr>::new().build());
        }
        let mut pace = tokio::time::interval(INTERVAL);
        while !shared.stop.load(Ordering::Relaxed) {
            pace.tick().await;
            let mut found: Routes = addresses.iter().map(|address| (*address, NextHops::new())).collect();
            for request in &families {
                let mut routes = Box::pin(handle.route().get(request.clone()).execute());
                while let Some(route) = routes.try_next().await.context("reading the table")? {
                    if let Some(hops) = host(&route).and_then(|address| found.get_mut(&address)) {
                        hops.extend(live(&route).filter_map(|index| names.get(&index).cloned()));
                    }
                }
            }
            let mut history = lock(&shared.history);
            if history.last().is_none_or(|(_, known)| *known != found) {
                history.push((Instant::now(), found));
            }
        }
        Ok(())
    })
}

/// Names of the interfaces by index.
async fn interfaces(handle: &rtnetlink::Handle) -> Result<BTreeMap<u32, String>> {
    let mut links = handle.link().get().execute();
    let mut names = BTreeMap::new();
    while let Some(link) = links.try_next().await.context("reading the interfaces")? {
        let name = link.attributes.iter().find_map(|attribute| match attribute {
            LinkAttribute::IfName(name) => Some(name.clone()),
            _ => None,
        });
        names.extend(name.map(|name| (link.header.index, name)));
    }
    Ok(names)
}

/// The address that a host route in the main table leads to.
fn host(route: &RouteMessage) -> Option<IpAddr> {
    if route.header.table != RouteHeader::RT_TABLE_MAIN {
        return None;
    }
    let to = route.attributes.iter().find_map(|attribute| match attribute {
        RouteAttribute::Destination(RouteAddress::Inet(address)) => Some(IpAddr::V4(*address)),
        RouteAttribute::Destination(RouteAddress::Inet6(address)) => Some(IpAddr::V6(*address)),
        _ => None,
    })?;
    let bits = if to.is_ipv4() { 32 } else { 128 };
    (route.header.destination_prefix_length == bits).then_some(to)
}

/// Indices of the interfaces that a route's live next hops are on.
fn live(route: &RouteMessage) -> impl Iterator<Item = u32> {
    let dead = route.header.flags.intersects(RouteFlags::Dead | RouteFlags::Linkdown);
    route.attributes.iter().flat_map(move |attribute| match attribute {
        RouteAttribute::Oif(index) if !dead => vec![*index],
        RouteAttribute::MultiPath(hops) => hops.iter().filter_map(live_hop).collect(),
        _ => Vec::new(),
    })
}

fn live_hop(hop: &RouteNextHop) -> Option<u32> {
    let dead = hop.flags.intersects(RouteNextHopFlags::Dead | RouteNextHopFlags::Linkdown);
    (!dead).then_some(hop.interface_index)
}
