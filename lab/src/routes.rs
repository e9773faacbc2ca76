//! Next hops of one address in a node's kernel table, watched from outside: what a switch really does with packets,
//! whatever its routing daemon believes.

use std::collections::BTreeSet;
use std::fs::File;
use std::net::Ipv4Addr;
use std::os::fd::AsFd as _;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use futures::TryStreamExt as _;
use netlink_packet_route::route::{
    RouteAddress, RouteAttribute, RouteFlags, RouteMessage, RouteNextHop, RouteNextHopFlags,
};
use nix::sched::{CloneFlags, setns};

/// How often the table is read: a dead path is marked in it without any notification, so waiting for one misses it.
const INTERVAL: Duration = Duration::from_millis(10);

/// Gateways of the live next hops.
pub type NextHops = BTreeSet<Ipv4Addr>;

#[derive(Debug, Default)]
struct Shared {
    stop: AtomicBool,
    /// Each change with the moment it was seen; the first entry is the state at the start.
    history: Mutex<Vec<(Instant, NextHops)>>,
    failure: Mutex<Option<String>>,
}

/// A watch on one address in one network namespace, until it is dropped.
#[derive(Debug)]
pub struct RouteWatch {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

impl RouteWatch {
    /// Starts to watch the route to `address` in the network namespace whose file is `namespace`.
    ///
    /// # Errors
    /// When the namespace cannot be opened.
    pub fn start(namespace: &Path, address: Ipv4Addr) -> Result<Self> {
        let file = File::open(namespace).with_context(|| format!("opening {}", namespace.display()))?;
        let shared = Arc::new(Shared::default());
        let inside = Arc::clone(&shared);
        let thread = std::thread::spawn(move || {
            if let Err(error) = watch(&file, address, &inside) {
                *lock(&inside.failure) = Some(format!("{error:#}"));
            }
        });
        Ok(Self { shared, thread: Some(thread) })
    }

    /// The next hops now; none while there is no route.
    ///
    /// # Errors
    /// When the table can no longer be read.
    pub fn now(&self) -> Result<NextHops> {
        if let Some(failure) = lock(&self.shared.failure).as_ref() {
            anyhow::bail!("watching routes: {failure}");
        }
        Ok(lock(&self.shared.history).last().map(|(_, hops)| hops.clone()).unwrap_or_default())
    }

    /// The changes seen after `moment`.
    #[must_use]
    pub fn changes_since(&self, moment: Instant) -> Vec<(Instant, NextHops)> {
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

fn watch(namespace: &File, address: Ipv4Addr, shared: &Shared) -> Result<()> {
    setns(namespace.as_fd(), CloneFlags::CLONE_NEWNET).context("entering the namespace")?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let (connection, handle, _) = rtnetlink::new_connection().context("opening netlink")?;
        tokio::spawn(connection);
        let mut pace = tokio::time::interval(INTERVAL);
        while !shared.stop.load(Ordering::Relaxed) {
            pace.tick().await;
            let request = rtnetlink::RouteMessageBuilder::<Ipv4Addr>::new().build();
            let mut hops = NextHops::new();
            let mut routes = Box::pin(handle.route().get(request).execute());
            while let Some(route) = routes.try_next().await.context("reading the table")? {
                hops.extend(next_hops(&route, address));
            }
            let mut history = lock(&shared.history);
            if history.last().is_none_or(|(_, known)| *known != hops) {
                history.push((Instant::now(), hops));
            }
        }
        Ok(())
    })
}

/// The live gateways of a route, if it is the host route to `address`.
fn next_hops(route: &RouteMessage, address: Ipv4Addr) -> NextHops {
    let to =
        |a: &RouteAttribute| matches!(a, RouteAttribute::Destination(RouteAddress::Inet(d)) if *d == address);
    if route.header.destination_prefix_length != 32 || !route.attributes.iter().any(to) {
        return NextHops::new();
    }
    let dead = route.header.flags.intersects(RouteFlags::Dead | RouteFlags::Linkdown);
    let single = route.attributes.iter().filter_map(gateway).filter(|_| !dead);
    let several = route.attributes.iter().filter_map(|attribute| match attribute {
        RouteAttribute::MultiPath(hops) => Some(hops.iter().filter_map(live_gateway)),
        _ => None,
    });
    single.chain(several.flatten()).collect()
}

fn live_gateway(hop: &RouteNextHop) -> Option<Ipv4Addr> {
    if hop.flags.intersects(RouteNextHopFlags::Dead | RouteNextHopFlags::Linkdown) {
        return None;
    }
    hop.attributes.iter().find_map(gateway)
}

fn gateway(attribute: &RouteAttribute) -> Option<Ipv4Addr> {
    match attribute {
        RouteAttribute::Gateway(RouteAddress::Inet(address)) => Some(*address),
        _ => None,
    }
}
