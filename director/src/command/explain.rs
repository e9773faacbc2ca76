//! `director explain`.

use std::fmt::Write as _;

use clap::{Args, ValueEnum};
use director_proto::control as wire;

use super::{Ask, said};

/// What is asked.
#[derive(Args)]
pub(super) struct Explain {
    /// Whom it comes from, address and port: a client, or a real server that answers by NAT.
    #[arg(long, value_name = "ADDRESS:PORT")]
    src: std::net::SocketAddr,
    /// Whom it goes to, address and port: a VIP, or the client of a real server.
    #[arg(long, value_name = "ADDRESS:PORT")]
    dst: std::net::SocketAddr,
    /// Transport protocol.
    #[arg(long, value_enum, default_value_t = Proto::Tcp)]
    proto: Proto,
    /// A TCP packet that begins a connection (this is the default).
    #[arg(long, conflicts_with = "ack")]
    syn: bool,
    /// A TCP packet of a connection that exists.
    #[arg(long)]
    ack: bool,
    /// Interface it comes in by; by default the first with the program on it.
    #[arg(long, value_name = "NAME")]
    interface: Option<String>,
    /// Length of the IP packet in bytes; by default it has headers only.
    #[arg(long, value_name = "BYTES", default_value_t = 0, hide_default_value = true)]
    length: u16,
    #[command(flatten)]
    ask: Ask,
}

#[derive(Clone, Copy, ValueEnum)]
enum Proto {
    /// TCP.
    Tcp,
    /// UDP.
    Udp,
}

impl Explain {
    /// Asks, and prints the answer.
    pub(super) async fn execute(self) -> anyhow::Result<()> {
        let tcp = matches!(self.proto, Proto::Tcp);
        if !tcp && (self.syn || self.ack) {
            anyhow::bail!("--syn and --ack are flags of TCP: leave them out, or use --proto tcp");
        }
        let request = wire::ExplainRequest {
            source: self.src.to_string(),
            destination: self.dst.to_string(),
            protocol: if tcp { "tcp" } else { "udp" }.to_owned(),
            ack: self.ack,
            interface: self.interface.unwrap_or_default(),
            length: self.length.into(),
        };
        let mut client = self.ask.socket.connect().await?;
        let answer = client.explain(request).await.map_err(said)?.into_inner();
        self.ask.print(&answer, show)
    }
}

/// The answer as text.
fn show(answer: &wire::Explanation) -> String {
    let mut text = String::new();
    let mut line = |name: &str, value: &str| {
        let _ = writeln!(text, "{name:<13}{value}");
    };
    line("packet", &answer.packet);
    line("comes in by", &answer.interface);
    line("verdict", &answer.verdict);
    line("", &answer.meaning);
    if answer.mtu != 0 {
        line("", &format!("The largest packet that fits has {} bytes.", answer.mtu));
    }
    if let Some(service) = &answer.service {
        line("service", &format!("{} (matched by {})", service.name, service.key));
        if !service.hash.is_empty() {
            line("hash", &format!("{} of {}", service.hash, service.hash_input));
        }
    }
    let server = |real: Option<&wire::ExplainedReal>| {
        real.map_or("none".to_owned(), |real| format!("{} (position {})", real.address, real.position))
    };
    if let Some(slot) = &answer.slot {
        line("slot", &format!("{}, {}", slot.number, slot.state));
        line("  current", &server(slot.current.as_ref()));
        if slot.state != "settled" {
            line("  previous", &server(slot.previous.as_ref()));
        }
    }
    if answer.service.is_some() {
        line("real server", &server(answer.real.as_ref()));
    }
    if !answer.translated.is_empty() {
        line("NAT", &answer.translated);
    }
    if let Some(way) = &answer.way {
        line("next hop", &format!("{} on {} (from {})", way.destination_mac, way.interface, way.source_mac));
        if !way.tunnel.is_empty() {
            line(
                "tunnel",
                &format!("{} from {} to {}", way.tunnel, way.tunnel_source, way.tunnel_destination),
            );
        }
    }
    text.push_str("\nlook-ups\n");
    for lookup in &answer.lookups {
        let found = if lookup.found.is_empty() { "nothing" } else { &lookup.found };
        let space = if lookup.key.is_empty() { "" } else { " " };
        let _ = writeln!(text, "  {}{space}{}: {found}", lookup.table, lookup.key);
    }
    text
}
