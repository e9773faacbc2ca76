//! `director reload` and `director check`: a file before it counts, and when it does.

use std::fmt::Write as _;
use std::path::PathBuf;

use anyhow::Context as _;
use clap::Args;
use director_proto::control::{ReloadReply, ReloadRequest, ServicePreview};

use super::{Ask, print, said};
use crate::config::Config;
use crate::node::local_notes;

#[derive(Args)]
pub(super) struct Reload {
    /// Only say what would change: services, the share of slots that moves, and connections concerned.
    #[arg(long)]
    dry_run: bool,
    /// Put the services of this director's file in force in the whole cluster, whoever leads: all or nothing. It returns
    /// when they are in force, or fails with the reason and the director that refused.
    #[arg(long)]
    cluster: bool,
    #[command(flatten)]
    ask: Ask,
}

#[derive(Args)]
pub(super) struct Check {
    /// The configuration file.
    #[arg(long, value_name = "FILE")]
    config: PathBuf,
    /// Also ask the director that runs here what would change with this file.
    #[arg(long)]
    preview: bool,
    #[command(flatten)]
    ask: Ask,
}

impl Reload {
    pub(super) async fn execute(self) -> anyhow::Result<()> {
        let Self { dry_run, cluster, ask } = self;
        let mut client = ask.socket.connect().await?;
        let request = ReloadRequest { dry_run, cluster, file: String::new() };
        let reply = client.reload(request).await.map_err(said)?.into_inner();
        ask.print(&reply, show)
    }
}

impl Check {
    pub(super) async fn execute(self) -> anyhow::Result<()> {
        let Self { config: path, preview, ask } = self;
        let config = Config::load(&path)?;
        if !ask.json {
            let reals: usize = config.services.values().map(|service| service.reals.len()).sum();
            let services = config.services.len();
            print(&format!("{}: good: {services} services, {reals} real servers\n", path.display()))?;
            for note in local_notes(&config) {
                print(&format!("warning: {note}\n"))?;
            }
        }
        if !preview {
            return Ok(());
        }
        let path = std::path::absolute(&path).context("the folder of the file")?;
        let file = path.to_str().context("the name of the file is not UTF-8")?.to_owned();
        let mut client = ask.socket.connect().await?;
        let request = ReloadRequest { dry_run: true, cluster: false, file };
        let reply = client.reload(request).await.map_err(said)?.into_inner();
        ask.print(&reply, show)
    }
}

fn show(reply: &ReloadReply) -> String {
    let mut text = String::new();
    let listed: Vec<&String> = reply.services.iter().flat_map(|service| &service.changes).collect();
    for change in reply.changes.iter().filter(|change| !listed.contains(change)) {
        let _ = writeln!(text, "{change}");
    }
    for service in &reply.services {
        preview(&mut text, service);
    }
    if !reply.services.is_empty() {
        let _ = writeln!(text, "of all slots that stay {:.3} % move", reply.slots_moved * 100.0);
    }
    if text.is_empty() {
        text.push_str(if reply.dry_run { "nothing would change\n" } else { "nothing changed\n" });
    } else if reply.dry_run && reply.epoch.is_empty() {
        text.push_str("nothing has been changed yet\n");
    }
    if !reply.epoch.is_empty() {
        let _ = writeln!(text, "epoch {}", reply.epoch);
    }
    for note in &reply.notes {
        let _ = writeln!(text, "{note}");
    }
    text
}

fn preview(text: &mut String, service: &ServicePreview) {
    for change in &service.changes {
        let _ = writeln!(text, "{change}");
    }
    let _ = write!(text, "  service {:?} {}: ", service.name, service.what);
    let _ = write!(text, "{:.3} % of its slots move", service.slots_moved * 100.0);
    if let Some(flows) = service.flows_moving {
        let _ = write!(text, ", {flows} connections here get pinned");
    }
    let _ = writeln!(
        text,
        ", {} are pinned already, {} of them to real servers that leave",
        service.pinned, service.leaving
    );
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_preview_says_what_changes_how_much_and_that_nothing_has_changed() {
        let change = "service \"web\": real server 10.0.2.11 removed".to_owned();
        let service = ServicePreview {
            name: "web".to_owned(),
            what: "changed".to_owned(),
            changes: vec![change.clone()],
            slots_moved: 0.5,
            pinned: 7,
            leaving: 3,
            flows_moving: Some(2),
        };
        let reply = ReloadReply {
            changes: vec!["[ospf] cost".to_owned(), change],
            services: vec![service],
            slots_moved: 0.25,
            dry_run: true,
            ..ReloadReply::default()
        };
        assert_eq!(
            show(&reply),
            "[ospf] cost\nservice \"web\": real server 10.0.2.11 removed\n  service \"web\" changed: 50.000 % of its \
             slots move, 2 connections here get pinned, 7 are pinned already, 3 of them to real servers that leave\nof \
             all slots that stay 25.000 % move\nnothing has been changed yet\n"
        );
        assert_eq!(show(&ReloadReply::default()), "nothing changed\n");
    }
}
