//! `director restart`.

use clap::Args;
use director_proto::control as wire;

use super::{Ask, said};

#[derive(Args)]
pub(super) struct Restart {
    /// How long the neighbours shall keep their adjacencies for the successor.
    #[arg(long, value_name = "SECONDS", default_value_t = 120,
          value_parser = clap::value_parser!(u32).range(10..=1800))]
    grace: u32,
    /// End the process, for whoever starts the successor, rather than replace it in place.
    #[arg(long)]
    exit: bool,
    #[command(flatten)]
    ask: Ask,
}

impl Restart {
    /// Returns when the neighbours have acknowledged it and the process goes.
    pub(super) async fn execute(self) -> anyhow::Result<()> {
        let mut client = self.ask.socket.connect().await?;
        let request = wire::RestartRequest { grace_seconds: self.grace, exit: self.exit };
        let reply = client.restart(request).await.map_err(said)?.into_inner();
        self.ask.print(&reply, |reply| {
            format!("restarting: {} adjacencies are kept for {} s\n", reply.adjacencies, self.grace)
        })
    }
}
