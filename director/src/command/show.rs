//! Answers of a director as text for people.

use std::fmt::Write as _;

use director_proto::control::{
    Bfd, Connections, Neighbors, Peers, Persistence, RealServer, Services, SlotStates, Status, Traffic,
    UndrainReply, VirtualService,
};

use super::table::render;
use crate::control::real_server_name;

fn dash(text: &str) -> String {
    if text.is_empty() { "-".to_owned() } else { text.to_owned() }
}

fn yes(flag: bool) -> String {
    if flag { "yes" } else { "NO" }.to_owned()
}

/// Bytes with a binary unit, three digits.
fn bytes(count: u64) -> String {
    let mut value = count as f64;
    for unit in ["B", "KiB", "MiB", "GiB"] {
        if value < 1000.0 {
            return if unit == "B" { format!("{count} B") } else { format!("{value:.1} {unit}") };
        }
        value /= 1024.0;
    }
    format!("{value:.1} TiB")
}

pub(super) fn status(status: &Status) -> String {
    let mut text = String::new();
    let mut line = |name: &str, value: String| {
        let _ = writeln!(text, "{name:<12}{value}");
    };
    line(
        "director",
        format!("{} in cluster {} (version {})", status.router_id, status.cluster, status.version),
    );
    line(
        "state",
        if status.reason.is_empty() {
            status.state.clone()
        } else {
            format!("{}: {}", status.state, status.reason)
        },
    );
    line(
        "tables",
        format!(
            "epoch {}, digest {}, leader {}",
            dash(&status.epoch),
            dash(&status.table_digest),
            dash(&status.leader)
        ),
    );
    if !status.file_differs.is_empty() {
        line(
            "file",
            "its services are not those in force (in force -> in the file); change it, or `director reload --cluster`"
                .to_owned(),
        );
        for difference in &status.file_differs {
            line("", difference.clone());
        }
    }
    line("up", format!("{} s", status.uptime_seconds));
    let interfaces: Vec<String> = status
        .interfaces
        .iter()
        .map(|interface| format!("{} ({})", interface.name, interface.xdp_mode))
        .collect();
    line("data plane", format!("{}, XDP on {}", status.data_plane, dash(&interfaces.join(", "))));
    for announcement in &status.announcements {
        let owner = [&announcement.service, &announcement.role].into_iter().find(|name| !name.is_empty());
        let owner = owner.map_or("node", String::as_str);
        line("announces", format!("{} metric {} ({owner})", announcement.prefix, announcement.metric));
    }
    for (title, counts) in [("packets", &status.verdicts), ("ospf refused", &status.ospf_refused)] {
        let rows: Vec<[String; 2]> = counts
            .iter()
            .filter(|count| count.packets > 0)
            .map(|count| [count.name.clone(), count.packets.to_string()])
            .collect();
        if !rows.is_empty() {
            text.push('\n');
            text.push_str(&render([title, ">count"], &rows));
        }
    }
    text
}

fn traffic(traffic: Option<&Traffic>) -> [String; 3] {
    let traffic = traffic.copied().unwrap_or_default();
    [traffic.connections.to_string(), traffic.packets_in.to_string(), bytes(traffic.bytes_in)]
}

/// Shares of the slots that are not settled.
fn slots(slots: Option<&SlotStates>) -> String {
    let Some(slots) = slots else { return "no slots".to_owned() };
    let total = slots.settled + slots.moving + slots.pinned;
    let share = |count: u32| f64::from(count) * 100.0 / f64::from(total.max(1));
    match (slots.moving, slots.pinned) {
        (0, 0) => "all slots settled".to_owned(),
        (moving, pinned) => format!("slots {:.1} % moving, {:.1} % pinned", share(moving), share(pinned)),
    }
}

fn service(service: &VirtualService) -> String {
    let mut text = format!(
        "{}  {}  {} by {}, {}  table {}  {}  {}\n",
        service.name,
        service.addresses.join(", "),
        service.scheduler,
        service.hash,
        service.forwarding,
        dash(&service.table_digest),
        slots(service.slots.as_ref()),
        if service.announced { "announced" } else { "not announced" },
    );
    if let Some(persistence) = &service.persistence {
        let Persistence { timeout_s, prefix_v4, prefix_v6, expire_quiescent } = persistence;
        let quiescent = if *expire_quiescent { ", not with weight 0" } else { "" };
        let _ = writeln!(text, "  persistent {timeout_s} s by /{prefix_v4} and /{prefix_v6}{quiescent}");
    }
    // Whose connections are not tracked has none to count.
    let count =
        |connections: Option<u32>| connections.map_or("-".to_owned(), |connections| connections.to_string());
    let clients = |clients: Option<u64>| clients.map_or("-".to_owned(), |clients| clients.to_string());
    let rows: Vec<[String; 12]> = service
        .reals
        .iter()
        .map(|real| {
            let [connections, packets, size] = traffic(real.traffic.as_ref());
            [
                real_server_name(real),
                match real.state.as_str() {
                    "active" => real.weight.to_string(),
                    state => format!("{} ({state})", real.weight),
                },
                real.slots.to_string(),
                format!("{:.1}", real.ideal_slots),
                count(real.active_connections),
                count(real.inactive_connections),
                clients(real.persistent_clients),
                connections,
                packets,
                size,
                dash(&real.next_hop),
                health(real),
            ]
        })
        .collect();
    let titles = [
        "real server",
        ">weight",
        ">slots",
        ">ideal",
        ">active",
        ">inactive",
        ">clients",
        ">conns",
        ">packets",
        ">bytes",
        "next hop",
        "health",
    ];
    let table = render(titles, &rows);
    for line in table.lines() {
        let _ = writeln!(text, "  {line}");
    }
    text
}

/// How many directors find it live, and what this one's check says where they do not all.
fn health(real: &RealServer) -> String {
    match (real.votes_up, real.votes_up.saturating_add(real.votes_down)) {
        (_, 0) => "-".to_owned(),
        (up, all) if up == all => format!("up {up}/{all}"),
        (up, all) => format!("up {up}/{all}, here: {}", dash(&real.finding)),
    }
}

pub(super) fn services(services: &Services) -> String {
    services.services.iter().map(service).collect::<Vec<_>>().join("\n")
}

pub(super) fn neighbors(neighbors: &Neighbors) -> String {
    let rows: Vec<[String; 9]> = neighbors
        .neighbors
        .iter()
        .map(|neighbor| {
            [
                neighbor.router_id.clone(),
                neighbor.address.clone(),
                neighbor.interface.clone(),
                neighbor.state.clone(),
                dash(&neighbor.role),
                format!("{:.1} s", neighbor.dead_in_ms as f64 / 1000.0),
                format!("{} s", neighbor.in_state_ms / 1000),
                neighbor.bfd.as_ref().map_or_else(|| "-".to_owned(), bfd),
                neighbor.reason.clone(),
            ]
        })
        .collect();
    render(["router id", "address", "interface", "state", "role", ">dead in", ">since", "bfd", ""], &rows)
}

/// The state, and what the operator has to know besides.
fn bfd(bfd: &Bfd) -> String {
    match (&*bfd.state, &*bfd.error) {
        ("Up", _) => format!("Up, {} ms", bfd.detection_ms),
        (state, "") => format!("{state}, peer {}", bfd.remote_state),
        (state, error) => format!("{state}: {error}"),
    }
}

/// How the files of the directors differ.
fn differences(peers: &Peers) -> String {
    let mut text = String::new();
    for peer in peers.peers.iter().filter(|peer| !peer.differences.is_empty()) {
        let _ =
            writeln!(text, "\nthe file of {} differs from this director's (there -> here):", peer.router_id);
        for line in &peer.differences {
            let _ = writeln!(text, "  {line}");
        }
    }
    text
}

pub(super) fn peers(peers: &Peers) -> String {
    let rows: Vec<[String; 13]> = peers
        .peers
        .iter()
        .map(|peer| {
            [
                peer.address.clone(),
                dash(&peer.router_id),
                peer.state.clone(),
                dash(&peer.epoch),
                dash(&peer.phase),
                dash(&peer.table_digest),
                yes(peer.same_tables),
                yes(peer.same_config),
                format!("{} ms", peer.last_heard_ms),
                format!("{} ({} ms)", peer.pin_lag_records, peer.pin_lag_ms),
                format!("{:.0}", peer.bytes_in_per_second),
                format!("{:.0}", peer.bytes_out_per_second),
                peer.refused.clone(),
            ]
        })
        .collect();
    let titles = [
        "address",
        "router id",
        "state",
        "epoch",
        "phase",
        "digest",
        "same tables",
        "same config",
        ">heard",
        ">pin lag",
        ">bytes/s in",
        ">bytes/s out",
        "",
    ];
    format!(
        "epoch {} ({}), digest {}, leader {}\n\n{}",
        dash(&peers.epoch),
        dash(&peers.phase),
        dash(&peers.table_digest),
        dash(&peers.leader),
        render(titles, &rows)
    ) + &differences(peers)
}

pub(super) fn connections(connections: &Connections) -> String {
    let rows: Vec<[String; 11]> = connections
        .connections
        .iter()
        .map(|connection| {
            [
                connection.protocol.clone(),
                connection.source.clone(),
                dash(&connection.destination),
                connection.service.clone(),
                connection.real.clone(),
                dash(&connection.local),
                connection.packets.to_string(),
                bytes(connection.bytes),
                format!("{:.1} s ago", connection.last_seen_ms as f64 / 1000.0),
                dash(&connection.state),
                if connection.state.is_empty() {
                    "-".to_owned()
                } else {
                    format!("{} s", connection.expires_s)
                },
            ]
        })
        .collect();
    let titles = [
        "proto",
        "source",
        "destination",
        "service",
        "real server",
        "as",
        ">packets",
        ">bytes",
        ">last seen",
        "state",
        ">expires",
    ];
    render(titles, &rows)
}

pub(super) fn undrain(reply: &UndrainReply) -> String {
    match reply.was.as_str() {
        "" => "it was in service\n".to_owned(),
        was => format!("in service again (it was {was})\n"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shares_of_slots_are_of_all_slots() {
        let states = |settled, moving, pinned| Some(SlotStates { settled, moving, pinned });
        assert_eq!(slots(states(4_093, 0, 0).as_ref()), "all slots settled");
        assert_eq!(slots(states(3_000, 500, 500).as_ref()), "slots 12.5 % moving, 12.5 % pinned");
        assert_eq!(slots(states(0, 4_093, 0).as_ref()), "slots 100.0 % moving, 0.0 % pinned");
        assert_eq!(slots(None), "no slots");
    }
}
