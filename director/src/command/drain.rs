//! `director drain`.

use clap::Args;
use director_proto::control as wire;

use super::{Ask, print, said};
use crate::node::drain::FINISHED;

#[derive(Args)]
pub(super) struct Drain {
    /// How long packets may go on to arrive.
    #[arg(long, value_name = "SECONDS", default_value_t = 30,
          value_parser = clap::value_parser!(u32).range(5..=86_400))]
    timeout: u32,
    /// Also withdraw VIPs that nobody else announces, and when packets still arrive after the timeout.
    #[arg(long)]
    force: bool,
    #[command(flatten)]
    ask: Ask,
}

impl Drain {
    /// Prints how it goes until the director says that it is done; with --json only the last message.
    pub(super) async fn execute(self) -> anyhow::Result<()> {
        let mut client = self.ask.socket.connect().await?;
        let request = wire::DrainRequest { timeout_ms: self.timeout * 1000, force: self.force };
        let mut news = client.drain(request).await.map_err(said)?.into_inner();
        while let Some(progress) = news.message().await.map_err(said)? {
            if progress.state == FINISHED {
                return self.ask.print(&progress, show);
            }
            if !self.ask.json {
                print(&show(&progress))?;
            }
        }
        anyhow::bail!("the director ended before it was drained; it goes on when it starts again")
    }
}

fn show(progress: &wire::DrainProgress) -> String {
    let seconds = |ms: u64| format!("{:.1} s", ms as f64 / 1000.0);
    let arrived = match (progress.packets, progress.last_packet_ms) {
        (packets, Some(last)) => format!("{packets} packets passed, the last after {}", seconds(last)),
        (_, None) => "no packet passed".to_owned(),
    };
    let elapsed = seconds(progress.elapsed_ms);
    let state = match progress.state.as_str() {
        FINISHED => "drained; this node can be powered off",
        "drained" => "VIPs withdrawn",
        _ if progress.acknowledged => "metrics raised, the switches know",
        _ => "metrics raised",
    };
    let late = match progress.packets_after_withdrawal {
        Some(late) if late > 0 => format!(", {late} of them after the withdrawal"),
        _ => String::new(),
    };
    format!("{elapsed}: {state}: {arrived}{late}\n")
}
