//! The `director` command line: what each subcommand asks the running director, and how it is shown.

mod capture;
mod drain;
mod explain;
mod ospf;
mod pcapng;
mod recording;
mod restart;
mod show;
mod table;

use std::io::Write as _;
use std::path::PathBuf;

use anyhow::Context as _;
use clap::{Args, CommandFactory as _, Parser, Subcommand, ValueEnum};
use director_proto::control as wire;
use tokio::signal::unix::{SignalKind, signal};

use crate::agent;
use crate::config::{Config, Forwarding};
use crate::control::Socket;
use crate::node;

/// A layer-4 load balancer that scales out: one director of a cluster.
#[derive(Parser)]
#[command(name = "director", version, propagate_version = true, max_term_width = 100)]
pub struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Run this node's director in the foreground.
    ///
    /// SIGTERM and SIGINT stop it cleanly: VIPs are withdrawn first, then the programs are removed. SIGHUP
    /// reads the configuration again. Killed without warning, the kernel goes on forwarding, and the next
    /// `director run` takes over what is pinned.
    Run(Run),
    /// Check a configuration file and say what is wrong with it, with line and column.
    Check {
        /// The configuration file.
        #[arg(long, value_name = "FILE")]
        config: PathBuf,
    },
    /// Show what this director is doing.
    Status(Ask),
    /// Show virtual services, their real servers, slots and traffic.
    Services(Ask),
    /// Show OSPF neighbours.
    Neighbors(Ask),
    /// Show OSPF's link state databases.
    Lsdb(ospf::Lsdb),
    /// Show the routes that OSPF learned, whether the kernel has them, and why not.
    Routes(ospf::Routes),
    /// Show OSPF's interfaces: state, timers, authentication, and what was refused there.
    Interfaces(ospf::Interfaces),
    /// Show what happened in OSPF lately: states, LSAs, and calculations of routes with their triggers.
    Events(ospf::Events),
    /// Record what OSPF is told, and replay it.
    #[command(subcommand)]
    Ospf(recording::Ospf),
    /// Show the other directors and whether they hold the same tables.
    Peers(Ask),
    /// Show flows that passed this director (needs `flow_accounting = true`).
    Connections {
        /// At most so many rows, the busiest first; 0 for all.
        #[arg(long, default_value_t = 0)]
        limit: u32,
        #[command(flatten)]
        ask: Ask,
    },
    /// Tell what would become of a packet, and why.
    ///
    /// The director decides about a packet that nobody sent, by the very code and tables that decide about real
    /// ones. Nothing is counted, remembered or sent.
    Explain(explain::Explain),
    /// Write packets that XDP sees to a pcapng file, each with its verdict as comment.
    ///
    /// Packets are written as they came in, before anything in them changes. A capture ends by itself after
    /// --count or --duration, and with Ctrl-C. There can be one at a time.
    Capture(capture::Capture),
    /// Take this director out of service without losing a connection.
    ///
    /// Raises the metric of all its VIPs, so that the switches send their traffic to the other directors, waits until
    /// no packet arrives any more, and withdraws the VIPs. When it returns, the node can be powered off. The director
    /// stays drained over restarts, until `director undrain`.
    Drain(drain::Drain),
    /// Take a drained director back into service.
    Undrain(Ask),
    /// Restart this director's process, or upgrade it, without anybody noticing.
    ///
    /// The data plane stays in the kernel and forwards meanwhile. The OSPF neighbours are told (RFC 3623, RFC 5187), and
    /// keep their adjacencies until the successor is there: the program as it is on disk by then, in the same process. It
    /// is refused, with the reason, where packets would not be forwarded, where a neighbour is not Full or does not
    /// acknowledge, and where one watches this director by BFD. Whether a switch is configured to help cannot be seen from
    /// here: one that is not takes the director for dead after the dead interval.
    Restart(restart::Restart),
    /// Make the running director read its configuration file again.
    Reload(Ask),
    /// Prepare a real server and end the directors' tunnels on it, until interrupted.
    ///
    /// The VIPs go onto the loopback interface, and ARP keeps quiet about them. With --tunnel, packets to a VIP are
    /// taken out of the directors' tunnels, and clients are asked for TCP segments that fit into those. Every change
    /// is printed, and undone when the agent ends. What is right already is left alone. SIGUSR1 prints what became
    /// of packets. Killed without warning, it leaves all in place and working; the next run takes over.
    Agent(Agent),
    /// Print a completion script for a shell.
    Completions {
        /// The shell.
        shell: clap_complete::Shell,
    },
}

#[derive(Args)]
struct Run {
    /// The configuration file.
    #[arg(long, value_name = "FILE")]
    config: PathBuf,
    /// Control socket: `@NAME` for an abstract one, or a path.
    #[arg(long, value_name = "SOCKET", default_value_t)]
    socket: Socket,
    /// How log lines look.
    #[arg(long, value_enum, default_value_t = LogFormat::Human)]
    log_format: LogFormat,
    /// Remove programs and maps of an earlier run instead of taking them over: forwarding is interrupted.
    #[arg(long)]
    fresh: bool,
}

#[derive(Args)]
struct Agent {
    /// A VIP of which this machine is a real server; may be given several times.
    #[arg(long = "vip", value_name = "ADDRESS", required_unless_present = "undo")]
    vips: Vec<std::net::IpAddr>,
    /// A tunnel that directors use: ipip, gre, gue or gue:PORT (6080); may be given several times. Without, direct
    /// return.
    #[arg(long = "tunnel", value_name = "KIND", value_delimiter = ',')]
    tunnels: Vec<agent::Tunnel>,
    /// An interface that tunnels come in by; may be given several times. Default: every Ethernet interface with an
    /// address.
    #[arg(long = "interface", value_name = "NAME", value_delimiter = ',')]
    interfaces: Vec<String>,
    /// A prefix of directors' addresses; may be given several times. Tunnels from elsewhere are dropped. Default:
    /// they may come from anywhere.
    #[arg(long, value_name = "PREFIX", value_delimiter = ',')]
    from: Vec<ipnet::IpNet>,
    /// Who takes packets out of tunnels.
    #[arg(long, value_enum, default_value_t)]
    mode: agent::Mode,
    /// Largest tunnel packet on the way from the directors, in bytes. Default: the MTU of the interfaces.
    #[arg(long, value_name = "BYTES")]
    mtu: Option<u32>,
    /// Undo what an agent that was killed has left, and end.
    #[arg(long, conflicts_with_all = ["vips", "tunnels", "interfaces", "from", "mode", "mtu"])]
    undo: bool,
}

impl Agent {
    async fn execute(self) -> anyhow::Result<()> {
        init_logging(LogFormat::Human);
        let mut options = agent::Options::new(self.vips);
        if self.undo {
            for change in agent::undo(&options.folder).await? {
                println!("undone: {change}");
            }
            return Ok(());
        }
        options.tunnels = self.tunnels.into_iter().collect();
        options.interfaces = self.interfaces;
        options.from = self.from;
        options.mode = self.mode;
        options.mtu = self.mtu;
        let (mut terminate, mut interrupt, ask) = (
            signal(SignalKind::terminate())?,
            signal(SignalKind::interrupt())?,
            signal(SignalKind::user_defined1())?,
        );
        let stop = async {
            tokio::select! {
                _ = terminate.recv() => {}
                _ = interrupt.recv() => {}
            }
        };
        let report = futures::stream::unfold(ask, |mut ask| async { ask.recv().await.map(|()| ((), ask)) });
        Ok(agent::run(options, |line| println!("{line}"), report, stop).await?)
    }
}

#[derive(Args)]
struct Ask {
    /// Print JSON.
    #[arg(long)]
    json: bool,
    /// Control socket of the director: `@NAME` for an abstract one, or a path.
    #[arg(long, value_name = "SOCKET", default_value_t)]
    socket: Socket,
}

#[derive(Clone, Copy, ValueEnum)]
enum LogFormat {
    /// For people.
    Human,
    /// One JSON object a line.
    Json,
}

impl Cli {
    /// Carries the command out.
    pub async fn execute(self) -> anyhow::Result<()> {
        match self.command {
            Command::Run(run) => self::run(run).await,
            Command::Check { config } => check(&config),
            Command::Status(ask) => ask.status().await,
            Command::Services(ask) => ask.services().await,
            Command::Neighbors(ask) => ask.neighbors().await,
            Command::Lsdb(lsdb) => lsdb.execute().await,
            Command::Routes(routes) => routes.execute().await,
            Command::Interfaces(interfaces) => interfaces.execute().await,
            Command::Events(events) => events.execute().await,
            Command::Ospf(ospf) => ospf.execute().await,
            Command::Peers(ask) => ask.peers().await,
            Command::Connections { limit, ask } => ask.connections(limit).await,
            Command::Explain(explain) => explain.execute().await,
            Command::Capture(capture) => capture.execute().await,
            Command::Drain(drain) => drain.execute().await,
            Command::Undrain(ask) => ask.undrain().await,
            Command::Restart(restart) => restart.execute().await,
            Command::Reload(ask) => ask.reload().await,
            Command::Agent(agent) => agent.execute().await,
            Command::Completions { shell } => {
                clap_complete::generate(shell, &mut Self::command(), "director", &mut std::io::stdout());
                Ok(())
            }
        }
    }
}

async fn run(run: Run) -> anyhow::Result<()> {
    let config = Config::load(&run.config)?;
    init_logging(run.log_format);
    node::run(node::Start { config_path: run.config, config, socket: run.socket, fresh: run.fresh }).await
}

fn check(path: &std::path::Path) -> anyhow::Result<()> {
    let config = Config::load(path)?;
    let reals: usize = config.services.values().map(|service| service.reals.len()).sum();
    print(&format!("{}: good: {} services, {reals} real servers\n", path.display(), config.services.len()))?;
    let full = config.services.iter().filter(|(_, service)| service.forwarding == Forwarding::FullNat);
    let full: Vec<&str> = full.map(|(name, _)| name.as_str()).collect();
    if full.is_empty() {
        return Ok(());
    }
    print(&format!(
        "note: connections of {} are this director's alone (forwarding = \"fullnat\"): they are not replicated, and end \
         with it\n",
        full.join(", ")
    ))
}

fn init_logging(format: LogFormat) {
    let filter = tracing_subscriber::EnvFilter::try_from_default_env().unwrap_or_else(|_| "info".into());
    let builder = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr);
    match format {
        LogFormat::Human => builder.with_target(false).init(),
        LogFormat::Json => builder.json().init(),
    }
}

/// Asks one question and shows the answer as a table or as JSON.
macro_rules! question {
    ($name:ident, $rpc:ident, $request:expr) => {
        async fn $name(&self) -> anyhow::Result<()> {
            let mut client = self.socket.connect().await?;
            let answer = client.$rpc($request).await.map_err(said)?.into_inner();
            self.print(&answer, show::$name)
        }
    };
}

impl Ask {
    question!(status, get_status, wire::StatusRequest {});
    question!(services, list_services, wire::ServicesRequest {});
    question!(neighbors, list_neighbors, wire::NeighborsRequest {});
    question!(peers, list_peers, wire::PeersRequest {});
    question!(reload, reload, wire::ReloadRequest {});
    question!(undrain, undrain, wire::UndrainRequest {});

    async fn connections(&self, limit: u32) -> anyhow::Result<()> {
        let mut client = self.socket.connect().await?;
        let answer =
            client.list_connections(wire::ConnectionsRequest { limit }).await.map_err(said)?.into_inner();
        match self.json {
            // The rows themselves: scripts read this one.
            true => print(&format!("{}\n", serde_json::to_string(&answer.connections)?)),
            false => print(&show::connections(&answer)),
        }
    }

    fn print<T: serde::Serialize>(&self, answer: &T, show: impl Fn(&T) -> String) -> anyhow::Result<()> {
        match self.json {
            true => print(&format!("{}\n", serde_json::to_string_pretty(answer)?)),
            false => print(&show(answer)),
        }
    }
}

/// What the director answered instead of a reply.
fn said(status: tonic::Status) -> anyhow::Error {
    anyhow::anyhow!("{}", status.message())
}

/// Writes to standard output; a reader that has gone away is no error.
fn print(text: &str) -> anyhow::Result<()> {
    match std::io::stdout().write_all(text.as_bytes()) {
        Err(error) if error.kind() == std::io::ErrorKind::BrokenPipe => Ok(()),
        other => other.context("standard output"),
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;

    #[test]
    fn the_command_line_is_consistent() {
        super::Cli::command().debug_assert();
    }
}
