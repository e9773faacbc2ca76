//! Topologies on plain namespaces.
//!
//! [`Lab::up`] writes down what it is about to make ([`state`]), then makes each node's namespaces ([`namespace`]) and
//! file system ([`filesystem`]), the links ([`links`]), and runs the nodes' commands ([`exec`]). Nothing of the runner
//! stays resident. [`Lab::down`] needs only what was written down: it kills whatever is in the nodes' namespaces
//! ([`process`]) and lets the names go, whether or not `up` ever came to its end.

mod exec;
mod filesystem;
mod links;
mod namespace;
mod process;
mod state;

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::process::{Command, Output};
use std::time::Duration;

use anyhow::{Context, Result, bail};

use crate::topology::{Node, Topology};

/// How long processes may take to die.
const KILL_DEADLINE: Duration = Duration::from_secs(5);

/// How to put a lab up.
#[derive(Debug, Clone)]
pub struct Options {
    /// Take a running lab of the same name down first.
    pub reconfigure: bool,
    /// Limit for each `exec` line.
    pub exec_limit: Duration,
}

impl Default for Options {
    fn default() -> Self {
        Self { reconfigure: false, exec_limit: Duration::from_secs(60) }
    }
}

/// A running lab. Dropping it takes it down, unless it was attached to or told to [`keep`](Lab::keep) on.
#[derive(Debug)]
pub struct Lab {
    topology: Topology,
    owned: bool,
}

/// One node as `inspect` shows it.
#[derive(Debug, serde::Serialize)]
pub struct NodeState {
    /// Name in the topology.
    pub name: String,
    /// Name of its network namespace.
    pub namespace: String,
    /// Its definition, resolved.
    #[serde(flatten)]
    pub node: Node,
    /// Its processes: id and command line.
    pub processes: Vec<(i32, String)>,
    /// Its interfaces, as `ip -json address` gives them.
    pub interfaces: serde_json::Value,
}

impl Lab {
    /// Deploys a topology. On failure nothing is left behind.
    ///
    /// # Errors
    /// When a lab of that name is there, or with the node, command and output of what failed.
    pub fn up(topology: &Topology, options: &Options) -> Result<Self> {
        if !nix::unistd::geteuid().is_root() {
            bail!("namespaces need root: run it with sudo");
        }
        let name = &topology.name;
        let lock = state::Lock::take(name)?;
        if state::exists(name) {
            if !options.reconfigure {
                bail!(
                    "lab {name} is there already: `lab down {name}` removes it, `lab up --reconfigure` replaces it"
                );
            }
            take_down(name)?;
        }
        let lab = Self { topology: topology.clone(), owned: true };
        match lab.deploy(options, &lock) {
            Ok(()) => Ok(lab),
            Err(error) => {
                take_down(name).with_context(|| format!("cleaning up after: {error:#}"))?;
                std::mem::forget(lab);
                Err(error)
            }
        }
    }

    fn deploy(&self, options: &Options, lock: &state::Lock) -> Result<()> {
        state::create(&self.topology)?;
        self.on_every_node(|lab, node| {
            lab.namespaces(node).create(node, lock).with_context(|| format!("node {}", node.name))
        })?;
        links::create(&self.topology, lock)?;
        self.on_every_node(|lab, node| exec::run_lines(node, &lab.namespaces(node), options.exec_limit))
    }

    /// Runs `work` for all nodes at once; the first error in file order is returned.
    fn on_every_node(&self, work: impl Fn(&Self, &Node) -> Result<()> + Sync) -> Result<()> {
        std::thread::scope(|scope| {
            let threads: Vec<_> =
                self.topology.nodes.iter().map(|node| scope.spawn(|| work(self, node))).collect();
            let results: Vec<_> = threads
                .into_iter()
                .map(|thread| {
                    thread.join().unwrap_or_else(|_| Err(anyhow::anyhow!("a deploying thread panicked")))
                })
                .collect();
            results.into_iter().collect()
        })
    }

    /// The running lab called `name`; dropping it leaves it running.
    ///
    /// # Errors
    /// When no lab of that name is there.
    pub fn attach(name: &str) -> Result<Self> {
        let running = running();
        let known = if running.is_empty() {
            "no lab is".to_owned()
        } else {
            format!("there: {}", running.join(", "))
        };
        let topology = if running.iter().any(|lab| lab == name) { state::read(name)? } else { None };
        let topology = topology.with_context(|| format!("lab {name} is not running ({known})"))?;
        Ok(Self { topology, owned: false })
    }

    /// What was deployed.
    #[must_use]
    pub fn topology(&self) -> &Topology {
        &self.topology
    }

    /// A command that will run in `node`, for callers who want its streams.
    ///
    /// # Errors
    /// When the lab has no such node.
    pub fn command(&self, node: &str, argv: &[&str]) -> Result<Command> {
        let node = self.node(node)?;
        exec::command(node, &self.namespaces(node), argv, false)
    }

    /// Runs a command in `node` to its end, at most a minute, with no input.
    ///
    /// # Errors
    /// When the node is not there or the command does not start or end; its exit status is in the output.
    pub fn exec(&self, node: &str, argv: &[&str]) -> Result<Output> {
        let definition = self.node(node)?;
        let command = exec::command(definition, &self.namespaces(definition), argv, true)?;
        exec::run(command, Options::default().exec_limit)
            .with_context(|| format!("node {node}: `{}`", argv.join(" ")))
    }

    /// Runs a command in `node` and returns what it printed.
    ///
    /// # Errors
    /// As [`Lab::exec`], and when the command fails.
    pub fn sh(&self, node: &str, script: &str) -> Result<String> {
        let output = self.exec(node, &["sh", "-c", script])?;
        if !output.status.success() {
            let said = String::from_utf8_lossy(&output.stderr);
            bail!("node {node}: `{script}` failed ({}): {}", output.status, said.trim());
        }
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    }

    /// The file of the node's network namespace.
    ///
    /// # Errors
    /// When the lab has no such node.
    pub fn network_namespace(&self, node: &str) -> Result<PathBuf> {
        Ok(self.namespaces(self.node(node)?).net())
    }

    /// The nodes with their processes and interfaces.
    ///
    /// # Errors
    /// When `ip` fails in a node.
    pub fn inspect(&self) -> Result<Vec<NodeState>> {
        self.topology.nodes.iter().map(|node| self.inspect_node(node)).collect()
    }

    fn inspect_node(&self, node: &Node) -> Result<NodeState> {
        let namespaces = self.namespaces(node);
        let inodes = namespaces.inodes().into_iter().collect();
        let addresses = run(Command::new("ip").args(["-json", "-n", &namespaces.name, "address"]))?;
        Ok(NodeState {
            name: node.name.clone(),
            namespace: namespaces.name,
            node: node.clone(),
            processes: process::members(&inodes)
                .into_iter()
                .map(|pid| (pid, process::command_line(pid)))
                .collect(),
            interfaces: serde_json::from_slice(&addresses).context("reading what ip printed")?,
        })
    }

    /// Takes the lab down.
    ///
    /// # Errors
    /// When a process does not die or a mount does not go.
    pub fn down(mut self) -> Result<()> {
        self.owned = false;
        down(&self.topology.name)
    }

    /// Leaves the lab running when this value is dropped.
    pub fn keep(&mut self) {
        self.owned = false;
    }

    fn node(&self, name: &str) -> Result<&Node> {
        self.topology.node(name).with_context(|| {
            let names: Vec<_> = self.topology.nodes.iter().map(|node| node.name.as_str()).collect();
            format!("lab {} has no node {name}; nodes: {}", self.topology.name, names.join(", "))
        })
    }

    fn namespaces(&self, node: &Node) -> namespace::Namespaces {
        state::namespaces(&self.topology, &node.name)
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        if self.owned
            && let Err(error) = down(&self.topology.name)
        {
            tracing::error!("taking lab {} down: {error:#}", self.topology.name);
        }
    }
}

/// Names of the labs that are there, complete or not.
#[must_use]
pub fn running() -> Vec<String> {
    state::list()
}

/// Takes the lab called `name` down, however far its deployment came.
///
/// # Errors
/// When it is not there, a process does not die, or a mount does not go.
pub fn down(name: &str) -> Result<()> {
    let _lock = state::Lock::take(name)?;
    if !state::exists(name) {
        bail!("lab {name} is not running");
    }
    take_down(name)
}

fn take_down(name: &str) -> Result<()> {
    if let Some(topology) = state::read(name)? {
        let nodes: Vec<_> =
            topology.nodes.iter().map(|node| state::namespaces(&topology, &node.name)).collect();
        let inodes: BTreeSet<u64> = nodes.iter().flat_map(namespace::Namespaces::inodes).collect();
        process::kill_members(&inodes, KILL_DEADLINE)?;
        for node in &nodes {
            node.remove()?;
        }
    }
    state::remove(name)
}

/// Runs a short command on the host and returns what it printed.
fn run(command: &mut Command) -> Result<Vec<u8>> {
    let output = command.output().with_context(|| format!("starting {command:?}"))?;
    if !output.status.success() {
        bail!("{command:?}: {}", String::from_utf8_lossy(&output.stderr).trim());
    }
    Ok(output.stdout)
}
