//! `director lsdb`, `routes`, `interfaces` and `events`: what OSPF knows and did.

use std::fmt::Write as _;
use std::net::Ipv4Addr;

use clap::{Args, ValueEnum};
use director_proto::control as wire;

use super::table::render;
use super::{Ask, said};

/// Which version of OSPF; without, both.
#[derive(Args)]
struct Version {
    /// OSPFv2 alone.
    #[arg(short = '4', long, conflicts_with = "ipv6")]
    ipv4: bool,
    /// OSPFv3 alone.
    #[arg(short = '6', long)]
    ipv6: bool,
}

impl Version {
    fn admits(&self, version: u32) -> bool {
        (version == 2 || !self.ipv4) && (version == 3 || !self.ipv6)
    }
}

/// Asks the director.
macro_rules! ask {
    ($ask:expr, $rpc:ident, $request:expr) => {
        $ask.socket.connect().await?.$rpc($request).await.map_err(said)?.into_inner()
    };
}

#[derive(Args)]
pub(super) struct Lsdb {
    #[command(flatten)]
    version: Version,
    /// Only LSAs of this area.
    #[arg(long, value_name = "ID")]
    area: Option<Ipv4Addr>,
    /// Only LSAs of this type, by name (router, network, …) or number.
    #[arg(long = "type", value_name = "TYPE")]
    kind: Option<String>,
    /// Only LSAs of this originator.
    #[arg(long, value_name = "ID")]
    router: Option<Ipv4Addr>,
    /// Only LSAs that this director originates.
    #[arg(long)]
    own: bool,
    /// Also what each LSA says.
    #[arg(long)]
    detail: bool,
    #[command(flatten)]
    ask: Ask,
}

impl Lsdb {
    pub(super) async fn execute(self) -> anyhow::Result<()> {
        let mut lsdb = ask!(self.ask, list_lsas, wire::LsdbRequest { detail: self.detail });
        lsdb.lsas.retain(|lsa| self.admits(lsa));
        self.ask.print(&lsdb, |lsdb| self.show(lsdb))
    }

    fn admits(&self, lsa: &wire::Lsa) -> bool {
        let is_kind = |kind: &String| *kind == lsa.name || number(kind) == Some(lsa.r#type);
        self.version.admits(lsa.version)
            && (lsa.own || !self.own)
            && self.area.is_none_or(|area| lsa.scope == format!("area {area}"))
            && self.router.is_none_or(|router| lsa.router_id == router.to_string())
            && self.kind.as_ref().is_none_or(is_kind)
    }

    fn show(&self, lsdb: &wire::Lsdb) -> String {
        let rows: Vec<[String; 9]> = lsdb.lsas.iter().map(lsa).collect();
        let table =
            render(["scope", "v", "type", "id", "origin", ">age", "sequence", "checksum", ">bytes"], &rows);
        if !self.detail {
            return table;
        }
        let mut lines = table.lines();
        let mut text = format!("{}\n", lines.next().unwrap_or_default());
        for (line, lsa) in lines.zip(&lsdb.lsas) {
            let _ = writeln!(text, "{line}");
            for fact in &lsa.body {
                let _ = writeln!(text, "    {fact}");
            }
        }
        text
    }
}

/// A number as routers write LS types: decimal or hexadecimal.
fn number(text: &str) -> Option<u32> {
    match text.strip_prefix("0x") {
        Some(digits) => u32::from_str_radix(digits, 16).ok(),
        None => text.parse().ok(),
    }
}

fn lsa(lsa: &wire::Lsa) -> [String; 9] {
    [
        lsa.scope.clone(),
        lsa.version.to_string(),
        lsa.name.clone(),
        lsa.id.clone(),
        if lsa.own { format!("{} (own)", lsa.router_id) } else { lsa.router_id.clone() },
        format!("{} s", lsa.age),
        format!("{:#010x}", lsa.sequence),
        format!("{:#06x}", lsa.checksum),
        lsa.length.to_string(),
    ]
}

#[derive(Args)]
pub(super) struct Routes {
    #[command(flatten)]
    version: Version,
    #[command(flatten)]
    ask: Ask,
}

impl Routes {
    pub(super) async fn execute(self) -> anyhow::Result<()> {
        let mut routes = ask!(self.ask, list_routes, wire::RoutesRequest {});
        routes.routes.retain(|route| self.version.admits(route.version));
        self.ask.print(&routes, show_routes)
    }
}

fn show_routes(routes: &wire::Routes) -> String {
    let hop = |hop: &wire::RouteHop| match hop.gateway.as_str() {
        "" => format!("on {}", hop.interface),
        gateway => format!("{gateway} on {}", hop.interface),
    };
    let row = |route: &wire::Route| {
        [
            route.prefix.clone(),
            route.kind.clone(),
            route.metric.to_string(),
            if route.installed { "yes" } else { "no" }.to_owned(),
            route.next_hops.iter().map(hop).collect::<Vec<_>>().join(", "),
            route.reason.clone(),
        ]
    };
    let rows: Vec<[String; 6]> = routes.routes.iter().map(row).collect();
    render(["prefix", "path", ">metric", "installed", "next hops", ""], &rows)
}

#[derive(Args)]
pub(super) struct Interfaces {
    #[command(flatten)]
    version: Version,
    #[command(flatten)]
    ask: Ask,
}

impl Interfaces {
    pub(super) async fn execute(self) -> anyhow::Result<()> {
        let mut interfaces = ask!(self.ask, list_ospf_interfaces, wire::OspfInterfacesRequest {});
        interfaces.interfaces.retain(|interface| self.version.admits(interface.version));
        self.ask.print(&interfaces, |all| {
            all.interfaces.iter().map(show_interface).collect::<Vec<_>>().join("\n")
        })
    }
}

fn show_interface(interface: &wire::OspfInterface) -> String {
    let seconds = |ms: u64| format!("{:.1} s", ms as f64 / 1000.0);
    let or_none = |text: &str| if text.is_empty() { "none".to_owned() } else { text.to_owned() };
    let mut text = format!(
        "{} (#{}), OSPFv{}: {}{}, {} neighbours, {} Full\n",
        interface.name,
        interface.ifindex,
        interface.version,
        interface.state,
        if interface.up { "" } else { " (link down)" },
        interface.neighbors,
        interface.adjacencies,
    );
    let mut line = |name: &str, value: String| {
        let _ = writeln!(text, "  {name:<16}{value}");
    };
    line("network", format!("{}, address {}", interface.network, or_none(&interface.address)));
    line("area", format!("{} ({})", interface.area, interface.area_type));
    let ignored = if interface.mtu_ignore { " (a larger one is accepted)" } else { "" };
    line("cost, MTU", format!("{}, {} bytes{ignored}", interface.cost, interface.mtu));
    if interface.network == "broadcast" {
        let (dr, bdr) = (or_none(&interface.dr), or_none(&interface.bdr));
        line("designated", format!("DR {dr}, BDR {bdr}, our priority {}", interface.priority));
    }
    let timers = (interface.hello_interval, interface.dead_interval, interface.retransmit_interval);
    line("timers", format!("hello {} s, dead {} s, retransmit {} s", timers.0, timers.1, timers.2));
    if let Some(due) = interface.hello_in_ms {
        line("next hello", format!("in {}", seconds(due)));
    }
    if let Some(due) = interface.wait_in_ms {
        line("election", format!("in {}, unless a backup is heard before", seconds(due)));
    }
    let secure = if interface.ttl_security { ", TTL 255 required" } else { "" };
    line("authentication", format!("{}{secure}", interface.authentication));
    line(
        "bfd",
        interface
            .bfd
            .map_or_else(|| "none".to_owned(), |bfd| format!("{} ms x {}", bfd.interval_ms, bfd.multiplier)),
    );
    let refused: Vec<String> =
        interface.refused.iter().map(|count| format!("{} {}", count.name, count.packets)).collect();
    line("refused", or_none(&refused.join(", ")));
    text
}

/// The kinds of events.
#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Kind {
    /// States of neighbours.
    Neighbor,
    /// States of interfaces.
    Interface,
    /// Changes of the databases.
    Lsa,
    /// Calculations of routes.
    Spf,
}

impl Kind {
    const fn name(self) -> &'static str {
        match self {
            Self::Neighbor => "neighbor",
            Self::Interface => "interface",
            Self::Lsa => "lsa",
            Self::Spf => "spf",
        }
    }
}

#[derive(Args)]
pub(super) struct Events {
    #[command(flatten)]
    version: Version,
    /// Only events of this kind; may be given several times.
    #[arg(long = "kind", value_enum, value_delimiter = ',')]
    kinds: Vec<Kind>,
    /// Also LSAs that came anew and say the same as before.
    #[arg(long)]
    all: bool,
    #[command(flatten)]
    ask: Ask,
}

impl Events {
    pub(super) async fn execute(self) -> anyhow::Result<()> {
        let mut events = ask!(self.ask, list_events, wire::EventsRequest {});
        events.events.retain(|event| self.admits(event));
        self.ask.print(&events, show_events)
    }

    fn admits(&self, event: &wire::Event) -> bool {
        self.version.admits(event.version)
            && (self.kinds.is_empty() || self.kinds.iter().any(|kind| kind.name() == event.kind))
            && (self.all || event.changed || event.kind != Kind::Lsa.name())
    }
}

fn show_events(events: &wire::Events) -> String {
    let row = |event: &wire::Event| {
        let more = event.trigger_count.saturating_sub(event.triggers.len() as u64);
        let triggers = match (event.triggers.is_empty(), more) {
            (true, _) => String::new(),
            (false, 0) => format!("; by {}", event.triggers.join(", ")),
            (false, more) => format!("; by {} and {more} more", event.triggers.join(", ")),
        };
        let same = if event.changed { "" } else { " (no change)" };
        [
            format!("{:.3} s ago", event.ago_ms as f64 / 1000.0),
            event.version.to_string(),
            event.kind.clone(),
            event.action.clone(),
            event.subject.clone(),
            format!("{}{same}{triggers}", event.detail),
        ]
    };
    let rows: Vec<[String; 6]> = events.events.iter().map(row).collect();
    render([">when", "v", "kind", "what", "of", ""], &rows)
}

#[cfg(test)]
mod tests;
