//! The real server's side: it owns the VIPs and keeps quiet about them, and ends the tunnels that directors use.
//!
//! A real server takes packets for a VIP because the VIP is on its loopback interface; it must not answer ARP
//! for it (`arp_ignore`) nor name it in its own questions (`arp_announce`), or the switches would find the VIP
//! at a real server instead of the directors. In IPv6 that needs no setting: neighbour discovery answers for the
//! addresses of the interface asked on, and for no others. Where reverse-path filtering is strict it is made loose:
//! the director's packets carry clients' addresses, and may come by another way than answers go.
//!
//! With tunnels, the inner packets are taken out by our XDP program or by devices of the kernel behind it
//! ([`Mode`]), and clients are asked for segments that leave room for the tunnel.
//!
//! What is right already is left alone, and only what was changed is undone: [`Agent::undo`] restores a setting
//! if it still has the value given here, and removes what was added here. Changes are recorded before they are made,
//! so that the next run takes over from one that was killed, and [`undo`] can undo what it left.
//!
//! | file | owns |
//! |---|---|
//! | `options` | what the operator asks, checked |
//! | `change`, `state` | what was changed, and its record |
//! | `host`, `sysctl` | addresses, interfaces and settings |
//! | `program` | the XDP program at the end of tunnels |
//! | `devices` | the kernel's own tunnel devices |
//! | `segment` | the largest segment clients are asked for |

mod change;
mod devices;
mod error;
mod host;
mod options;
mod program;
mod segment;
mod state;
mod sysctl;

use std::collections::BTreeSet;
use std::future::Future;
use std::net::IpAddr;
use std::path::Path;
use std::time::Duration;

use futures::{Stream, StreamExt as _};

pub use change::Change;
pub use devices::Device;
pub use error::AgentError;
pub use options::{DEFAULT_GUE_PORT, Mode, Options, Tunnel};
pub use program::TunnelEnd;

use host::{Host, Interface};
use segment::SegmentTable;
use state::State;
use sysctl::Setting;

/// How often addresses, interfaces and routes are looked at again.
const REFRESH: Duration = Duration::from_secs(1);

/// A prepared real server. Dropping it leaves everything as it is; [`Self::undo`] restores.
#[derive(Debug)]
pub struct Agent {
    options: Options,
    host: Host,
    state: State,
    end: Option<End>,
}

/// What the end of tunnels needs while it is at work.
#[derive(Debug)]
struct End {
    program: TunnelEnd,
    table: SegmentTable,
}

impl Agent {
    /// Prepares this network namespace. What an earlier run left is taken over where it is still wanted, else undone.
    /// If a step fails, those before it are undone.
    ///
    /// # Errors
    /// [`AgentError`] of the step that failed.
    pub async fn prepare(options: Options) -> Result<Self, AgentError> {
        options.check()?;
        let state = State::open(&options.folder)?;
        let mut agent = Self { options, host: Host::open()?, state, end: None };
        match agent.change().await {
            Ok(()) => Ok(agent),
            Err(error) => {
                agent.undo().await?;
                Err(error)
            }
        }
    }

    /// What is changed, in order, by this run and those it took over from. Empty if everything was right already.
    pub fn changes(&self) -> &[Change] {
        self.state.changes()
    }

    /// What became of packets so far: `None` without tunnels.
    ///
    /// # Errors
    /// [`AgentError::Program`] if the kernel refuses.
    pub fn counters(
        &self,
    ) -> Result<Option<Vec<(director_common::decapsulate::Reception, u64)>>, AgentError> {
        self.end.as_ref().map(|end| end.program.counters()).transpose()
    }

    /// Follows the machine: addresses that tunnels may end at, interfaces that were made anew, routes.
    ///
    /// # Errors
    /// [`AgentError`] of the first step that fails; it is tried again the next time.
    pub async fn refresh(&mut self) -> Result<(), AgentError> {
        if self.end.is_none() {
            return Ok(());
        }
        let (locals, interfaces) = self.ways().await?;
        self.attach(&interfaces)?;
        let mtu = self.options.mtu.or_else(|| interfaces.iter().map(|interface| interface.mtu).min());
        let [v4, v6] = self.options.segments(mtu.unwrap_or_default(), &locals)?;
        let [any_v4, any_v6] = self.options.families();
        let segments = [any_v4.then_some(v4), any_v6.then_some(v6)];
        if let Some(end) = &mut self.end {
            end.program.set_locals(&locals)?;
            end.table.refresh(&self.host.handle, segments).await?;
        }
        Ok(())
    }

    /// Undoes the changes, last first, and returns those undone. A setting that somebody else has changed since
    /// is left alone.
    ///
    /// # Errors
    /// The first [`AgentError`]; the other changes are undone all the same.
    pub async fn undo(mut self) -> Result<Vec<Change>, AgentError> {
        undo_where(&self.host, &mut self.state, &self.options.folder, |_| true).await
    }

    /// Settings first: the kernel must be quiet before it has something to tell; addresses last, since with them the
    /// service begins.
    async fn change(&mut self) -> Result<(), AgentError> {
        let present = self.host.vips_present(&self.options.vips).await?;
        self.drop_unwanted().await?;
        if !self.options.tunnels.is_empty() {
            self.end_tunnels().await?;
        }
        for setting in sysctl::needed()? {
            let Setting { name, before, after } = setting.clone();
            self.state.record(Change::Setting { name, before, after })?;
            setting.write(after)?;
        }
        if !self.host.loopback_is_up().await? {
            self.state.record(Change::LoopbackUp)?;
            self.host.set_loopback(true).await?;
        }
        for vip in self.options.vips.clone().difference(&present) {
            self.note(Change::Address(*vip))?;
            self.host.add(*vip).await?;
        }
        Ok(())
    }

    /// Undoes what an earlier run left and this one has no use for.
    async fn drop_unwanted(&mut self) -> Result<(), AgentError> {
        let tunnels = !self.options.tunnels.is_empty();
        let (ends, interfaces) = if tunnels { self.ways().await? } else { Default::default() };
        let devices = if self.options.mode == Mode::Xdp {
            Vec::new()
        } else {
            devices::plan(&self.options.tunnels, &ends)
        };
        let vips = &self.options.vips;
        let unwanted = |change: &Change| match change {
            Change::Setting { .. } | Change::LoopbackUp => false,
            Change::Address(vip) => !vips.contains(vip),
            Change::Rule(vip) => !tunnels || !vips.contains(vip),
            Change::Routes => !tunnels,
            Change::Device(device) => !devices.contains(device),
            Change::Program { interface, ifindex } => {
                !interfaces.iter().any(|kept| kept.name == *interface && kept.ifindex == *ifindex)
            }
        };
        undo_where(&self.host, &mut self.state, &self.options.folder, unwanted).await?;
        Ok(())
    }

    /// Puts the program and, if so, the devices in place, and then asks for smaller segments.
    async fn end_tunnels(&mut self) -> Result<(), AgentError> {
        let (locals, _) = self.ways().await?;
        let by_devices = self.make_devices(&locals).await?;
        let mut program = TunnelEnd::load(self.options.settings(by_devices))?;
        program.set_vips(&self.options.vips)?;
        program.set_locals(&locals)?;
        program.add_sources(&self.options.from)?;
        self.end = Some(End { program, table: SegmentTable::default() });
        self.note(Change::Routes)?;
        self.refresh().await?;
        for vip in self.options.vips.clone() {
            if !segment::has_rule(&self.host.handle, vip).await? {
                self.note(Change::Rule(vip))?;
                segment::add_rule(&self.host.handle, vip).await?;
            }
        }
        Ok(())
    }

    /// Makes the kernel's devices if they are asked for, or can be had and are not ruled out; whether they are there.
    async fn make_devices(&mut self, locals: &BTreeSet<IpAddr>) -> Result<bool, AgentError> {
        if self.options.mode == Mode::Xdp {
            return Ok(false);
        }
        for device in devices::plan(&self.options.tunnels, locals) {
            let change = Change::Device(device.clone());
            if self.state.changes().contains(&change) {
                continue;
            }
            self.state.record(change)?;
            match device.make() {
                Ok(()) => {}
                Err(error) if self.options.mode == Mode::Auto => {
                    tracing::info!(reason = %error, "no tunnel devices here: the XDP program ends the tunnels");
                    let devices = |change: &Change| matches!(change, Change::Device(_));
                    undo_where(&self.host, &mut self.state, &self.options.folder, devices).await?;
                    return Ok(false);
                }
                Err(error) => return Err(error),
            }
        }
        Ok(true)
    }

    /// The addresses that tunnels may end at, and the interfaces they come in by.
    async fn ways(&self) -> Result<(BTreeSet<IpAddr>, Vec<Interface>), AgentError> {
        let ends = self.host.tunnel_ends(&self.options.vips).await?;
        let all = self.host.interfaces().await?;
        let mut chosen = Vec::new();
        for name in &self.options.interfaces {
            let found = all.iter().find(|interface| interface.name == *name && interface.is_ethernet);
            chosen.push(found.cloned().ok_or_else(|| AgentError::NoInterface(name.clone()))?);
        }
        if self.options.interfaces.is_empty() {
            let has_end = |interface: &Interface| ends.iter().any(|end| end.ifindex == interface.ifindex);
            chosen =
                all.into_iter().filter(|interface| interface.is_ethernet && has_end(interface)).collect();
        }
        if chosen.is_empty() {
            return Err(AgentError::NoInterfaces);
        }
        Ok((ends.into_iter().map(|end| end.address).collect(), chosen))
    }

    /// Puts the program on each of the interfaces that does not have it from this run.
    fn attach(&mut self, interfaces: &[Interface]) -> Result<(), AgentError> {
        let Some(end) = &mut self.end else { return Ok(()) };
        let folder = program::folder(&self.options.folder)?;
        for Interface { name, ifindex, .. } in interfaces {
            if end.program.is_on(*ifindex) {
                continue;
            }
            let change = Change::Program { interface: name.clone(), ifindex: *ifindex };
            if !self.state.changes().contains(&change) {
                self.state.record(change)?;
            }
            end.program.attach(&folder, name, *ifindex)?;
        }
        Ok(())
    }

    /// Records a change, unless a run before this one has.
    fn note(&mut self, change: Change) -> Result<(), AgentError> {
        if self.state.changes().contains(&change) { Ok(()) } else { self.state.record(change) }
    }
}

/// Undoes the recorded changes that `chosen` says, last first.
async fn undo_where(
    host: &Host,
    state: &mut State,
    folder: &Path,
    chosen: impl Fn(&Change) -> bool,
) -> Result<Vec<Change>, AgentError> {
    let mut undone = Vec::new();
    let mut failure = None;
    let changes: Vec<Change> =
        state.changes().iter().rev().filter(|change| chosen(change)).cloned().collect();
    for change in changes {
        match undo_one(host, folder, &change).await {
            Ok(true) => undone.push(change.clone()),
            Ok(false) => tracing::warn!(%change, "changed by somebody else since; left alone"),
            Err(error) => {
                failure = failure.or(Some(error));
                continue;
            }
        }
        state.forget(&change)?;
    }
    failure.map_or(Ok(undone), Err)
}

/// Undoes one change; `false` if there is nothing to undo any more.
async fn undo_one(host: &Host, folder: &Path, change: &Change) -> Result<bool, AgentError> {
    match change {
        Change::Setting { name, before, after } => {
            let setting = Setting { name: name.clone(), before: *before, after: *after };
            if setting.read()? != *after {
                return Ok(false);
            }
            setting.write(*before).map(|()| true)
        }
        Change::LoopbackUp => host.set_loopback(false).await.map(|()| true),
        Change::Address(vip) => host.remove(*vip).await,
        Change::Rule(vip) => segment::remove_rule(&host.handle, *vip).await,
        Change::Routes => segment::flush(&host.handle).await,
        Change::Device(device) => device.remove(),
        Change::Program { interface, ifindex } => {
            program::detach(&program::folder(folder)?, interface, *ifindex)
        }
    }
}

/// Undoes what a killed agent left in this network namespace, and returns it. `folder` is that of
/// [`Options::folder`].
///
/// # Errors
/// [`AgentError`]; above all [`AgentError::Running`] if the agent is alive.
pub async fn undo(folder: &Path) -> Result<Vec<Change>, AgentError> {
    let mut state = State::open(folder)?;
    undo_where(&Host::open()?, &mut state, folder, |_| true).await
}

/// Prepares, tells every change to `say`, follows the machine until `stop`, undoes, and tells that too. Whenever
/// `report` yields, and at the end, it tells what became of packets.
///
/// # Errors
/// [`AgentError`] of the first step that failed.
pub async fn run(
    options: Options,
    mut say: impl FnMut(&str),
    report: impl Stream<Item = ()>,
    stop: impl Future<Output = ()>,
) -> Result<(), AgentError> {
    let mut agent = Agent::prepare(options).await?;
    if agent.changes().is_empty() {
        say("ready: nothing had to be changed");
    }
    for change in agent.changes() {
        say(&format!("changed: {change}"));
    }
    let (mut report, mut stop) = (std::pin::pin!(report.fuse()), std::pin::pin!(stop));
    let mut ticks = tokio::time::interval(REFRESH);
    loop {
        tokio::select! {
            () = &mut stop => break,
            Some(()) = report.next() => tell(&agent, &mut say)?,
            _ = ticks.tick() => {
                if let Err(error) = agent.refresh().await {
                    tracing::warn!(reason = %error, "cannot follow the machine's interfaces and routes");
                }
            }
        }
    }
    tell(&agent, &mut say)?;
    for change in agent.undo().await? {
        say(&format!("undone: {change}"));
    }
    Ok(())
}

/// Tells what became of packets, if any came.
fn tell(agent: &Agent, say: &mut impl FnMut(&str)) -> Result<(), AgentError> {
    for (reception, packets) in agent.counters()?.unwrap_or_default() {
        if packets != 0 {
            say(&format!("packets {reception}: {packets}"));
        }
    }
    Ok(())
}
