//! Prometheus text format (version 0.0.4) over HTTP: what the control socket shows, for dashboards.
//!
//! Names are `director_*`; the totals that LVS users chart as `node_ipvs_*` are there under those names too.

use std::convert::Infallible;
use std::fmt::{self, Write as _};
use std::future::Future;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use director_proto::control::{Neighbors, Peers, Services, Status, Traffic};
use http_body_util::Full;
use hyper::body::{Bytes, Incoming};
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::TcpListener;
use tokio::sync::Semaphore;

use crate::control::real_server_name;

/// Longest that one scrape may take, headers included.
const PATIENCE: Duration = Duration::from_secs(10);

/// Serves `GET /metrics` until the listener fails for good. At most 16 scrapes at once; others wait.
pub async fn serve<F, Fut>(listener: TcpListener, scrape: F)
where
    F: Fn() -> Fut + Clone + Send + Sync + 'static,
    Fut: Future<Output = String> + Send + 'static,
{
    let places = Arc::new(Semaphore::new(16));
    loop {
        let Ok(place) = Arc::clone(&places).acquire_owned().await else { return };
        let stream = match listener.accept().await {
            Ok((stream, _)) => stream,
            Err(error) => {
                tracing::warn!(%error, "metrics listener");
                tokio::time::sleep(Duration::from_millis(100)).await;
                continue;
            }
        };
        let scrape = scrape.clone();
        tokio::spawn(async move {
            let service = service_fn(move |request| {
                let scrape = scrape.clone();
                async move { Ok::<_, Infallible>(answer(request, scrape).await) }
            });
            let connection = hyper::server::conn::http1::Builder::new()
                .timer(TokioTimer::new())
                .header_read_timeout(PATIENCE)
                .keep_alive(false)
                .serve_connection(TokioIo::new(stream), service);
            if let Ok(Err(error)) = tokio::time::timeout(PATIENCE, connection).await {
                tracing::debug!(%error, "metrics connection");
            }
            drop(place);
        });
    }
}

/// Binds the metrics address, with an error that names it.
pub async fn bind(address: SocketAddr) -> anyhow::Result<TcpListener> {
    syncd::listen(address)
        .await
        .map_err(|error| anyhow::anyhow!("cannot listen on [metrics] {address}: {error}"))
}

async fn answer<F, Fut>(request: Request<Incoming>, scrape: F) -> Response<Full<Bytes>>
where
    F: Fn() -> Fut,
    Fut: Future<Output = String>,
{
    let (status, text) = match (request.method(), request.uri().path()) {
        (&Method::GET, "/metrics") => (StatusCode::OK, scrape().await),
        (_, "/metrics") => (StatusCode::METHOD_NOT_ALLOWED, "only GET\n".to_owned()),
        _ => (StatusCode::NOT_FOUND, "metrics are at /metrics\n".to_owned()),
    };
    let mut response = Response::new(Full::new(Bytes::from(text)));
    *response.status_mut() = status;
    response.headers_mut().insert(
        hyper::header::CONTENT_TYPE,
        hyper::header::HeaderValue::from_static("text/plain; version=0.0.4; charset=utf-8"),
    );
    response
}

/// One exposition under construction: families in the order they were declared, each with its samples in one
/// group, as the format demands.
#[derive(Default)]
struct Exposition(Vec<Family>);

/// One metric: its name, and its text.
struct Family {
    name: String,
    text: String,
}

impl Exposition {
    fn metric(&mut self, name: &str, kind: &str, help: &str) {
        let text = format!("# HELP {name} {help}\n# TYPE {name} {kind}\n");
        self.0.push(Family { name: name.to_owned(), text });
    }

    fn sample(&mut self, name: &str, labels: &[(&str, &str)], value: impl fmt::Display) {
        let declared = self.0.iter_mut().find(|family| family.name == name);
        let family = declared.expect("invariant: every metric is declared before its samples");
        let text = &mut family.text;
        text.push_str(name);
        for (index, (label, value)) in labels.iter().enumerate() {
            let escaped = value.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n");
            let _ = write!(text, "{}{label}=\"{escaped}\"", if index == 0 { '{' } else { ',' });
        }
        let _ = writeln!(text, "{} {value}", if labels.is_empty() { "" } else { "}" });
    }
}

impl fmt::Display for Exposition {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|family| f.write_str(&family.text))
    }
}

/// Renders what the control socket would answer.
pub fn render(status: &Status, services: &Services, neighbors: &Neighbors, peers: &Peers) -> String {
    let mut text = Exposition::default();
    node(&mut text, status);
    cluster(&mut text, status, peers);
    routing(&mut text, status, neighbors);
    forwarding(&mut text, services);
    text.to_string()
}

fn node(text: &mut Exposition, status: &Status) {
    text.metric("director_info", "gauge", "This director.");
    let labels =
        [("version", &*status.version), ("router_id", &*status.router_id), ("cluster", &*status.cluster)];
    text.sample("director_info", &labels, 1);
    text.metric("director_serving", "gauge", "1 while VIPs are announced by current tables.");
    text.sample("director_serving", &[], u8::from(status.state == "serving"));
    text.metric("director_packets_total", "counter", "Packets seen by XDP, by what became of them.");
    for count in &status.verdicts {
        text.sample("director_packets_total", &[("verdict", &count.name)], count.packets);
    }
}

fn cluster(text: &mut Exposition, status: &Status, peers: &Peers) {
    text.metric("director_table_epoch", "gauge", "Number of the table epoch in force.");
    let number = status.epoch.split('@').next().and_then(|number| number.parse::<u64>().ok()).unwrap_or(0);
    let labels = [("digest", &*status.table_digest), ("leader", &*status.leader)];
    text.sample("director_table_epoch", &labels, number);
    let help = "Differences between the services in force and those of this director's file.";
    text.metric("director_file_differences", "gauge", help);
    text.sample("director_file_differences", &[], status.file_differs.len());
    let help = "Differences between the services of the peer's file and those of this director's.";
    text.metric("director_peer_file_differences", "gauge", help);
    text.metric("director_peer_up", "gauge", "1 while the peer's heartbeats arrive.");
    text.metric("director_peer_same_tables", "gauge", "1 while the peer holds the same tables.");
    text.metric("director_peer_same_config", "gauge", "1 while the peer has the same services.");
    text.metric("director_peer_unacknowledged", "gauge", "Messages the peer has not acknowledged.");
    text.metric(
        "director_peer_bytes_total",
        "counter",
        "Bytes exchanged with the peer, without framing and TLS.",
    );
    text.metric("director_peer_pin_lag_records", "gauge", "Connections the peer is still to be told of.");
    text.metric("director_peer_pin_lag_seconds", "gauge", "How long the oldest of them has waited.");
    text.metric(
        "director_peer_pin_records_total",
        "counter",
        "Records of connections exchanged with the peer.",
    );
    text.metric(
        "director_peer_pin_snapshots_total",
        "counter",
        "Snapshots of connections begun for the peer.",
    );
    text.metric("director_peer_pins_whole", "gauge", "1 when all the peer's connections are known here.");
    text.metric(
        "director_peer_pin_batches_refused_total",
        "counter",
        "Batches of the peer that were thrown away.",
    );
    text.metric(
        "director_peer_pin_silenced_total",
        "counter",
        "Times the peer was not heard, for what it sent.",
    );
    for peer in &peers.peers {
        let labels = [("address", &*peer.address), ("router_id", &*peer.router_id)];
        text.sample("director_peer_up", &labels, u8::from(peer.state == "up"));
        text.sample("director_peer_same_tables", &labels, u8::from(peer.same_tables));
        text.sample("director_peer_same_config", &labels, u8::from(peer.same_config));
        text.sample("director_peer_file_differences", &labels, peer.differences.len());
        text.sample("director_peer_unacknowledged", &labels, peer.unacknowledged);
        text.sample("director_peer_bytes_total", &with(&labels, "in"), peer.bytes_in);
        text.sample("director_peer_bytes_total", &with(&labels, "out"), peer.bytes_out);
        text.sample("director_peer_pin_lag_records", &labels, peer.pin_lag_records);
        text.sample("director_peer_pin_lag_seconds", &labels, peer.pin_lag_ms as f64 / 1000.0);
        text.sample("director_peer_pin_records_total", &with(&labels, "in"), peer.pin_records_in);
        text.sample("director_peer_pin_records_total", &with(&labels, "out"), peer.pin_records_out);
        text.sample("director_peer_pin_snapshots_total", &labels, peer.pin_snapshots_out);
        text.sample("director_peer_pins_whole", &labels, u8::from(peer.pins_whole));
        text.sample("director_peer_pin_batches_refused_total", &labels, peer.pin_batches_refused);
        text.sample("director_peer_pin_silenced_total", &labels, peer.pin_silenced);
    }
    let pins = peers.pins.unwrap_or_default();
    text.metric("director_pin_replicas", "gauge", "Connections of other directors in the kernel.");
    text.sample("director_pin_replicas", &[], pins.replicas);
    text.metric(
        "director_pins_received_total",
        "counter",
        "Records of other directors, by what became of them.",
    );
    for (outcome, count) in [
        ("added", pins.added),
        ("removed", pins.removed),
        ("redundant", pins.redundant),
        ("unknown-service", pins.unknown_services),
        ("unknown-server", pins.unknown_servers),
        ("no-room", pins.refused),
        ("conflict", pins.conflicts),
    ] {
        text.sample("director_pins_received_total", &[("outcome", outcome)], count);
    }
}

/// A peer's labels with a direction behind them.
fn with<'a>(labels: &[(&'a str, &'a str); 2], direction: &'a str) -> [(&'a str, &'a str); 3] {
    [labels[0], labels[1], ("direction", direction)]
}

fn routing(text: &mut Exposition, status: &Status, neighbors: &Neighbors) {
    text.metric("director_ospf_neighbor_full", "gauge", "1 while the adjacency is Full.");
    for neighbor in &neighbors.neighbors {
        let labels = [("router_id", &*neighbor.router_id), ("interface", &*neighbor.interface)];
        text.sample(
            "director_ospf_neighbor_full",
            &labels,
            u8::from(neighbor.state.eq_ignore_ascii_case("full")),
        );
    }
    text.metric("director_bfd_up", "gauge", "1 while the BFD session with a neighbour is Up.");
    for neighbor in &neighbors.neighbors {
        let Some(bfd) = &neighbor.bfd else { continue };
        let labels = [("address", &*neighbor.address), ("interface", &*neighbor.interface)];
        text.sample("director_bfd_up", &labels, u8::from(bfd.state == "Up"));
    }
    text.metric("director_ospf_refused_total", "counter", "OSPF packets refused, by reason.");
    for count in &status.ospf_refused {
        text.sample("director_ospf_refused_total", &[("reason", &count.name)], count.packets);
    }
}

fn forwarding(text: &mut Exposition, services: &Services) {
    text.metric("director_service_announced", "gauge", "1 while the service's VIP is announced.");
    text.metric("director_service_packets_total", "counter", "Packets of the service, by direction.");
    text.metric("director_service_bytes_total", "counter", "Bytes of the service, by direction.");
    text.metric(
        "director_service_connections_total",
        "counter",
        "TCP connection attempts of the service that were forwarded.",
    );
    text.metric(
        "director_service_dropped_packets_total",
        "counter",
        "Packets of the service that were not forwarded.",
    );
    text.metric("director_service_slots", "gauge", "Slots of the service in the kernel, by state.");
    text.metric("director_real_slots", "gauge", "Slots the real server holds.");
    text.metric("director_real_slots_ideal", "gauge", "Slots that the weights ask for.");
    text.metric(
        "director_real_packets_total",
        "counter",
        "Packets to and from the real server, by direction.",
    );
    text.metric("director_real_bytes_total", "counter", "Bytes to and from the real server, by direction.");
    text.metric(
        "director_real_connections_total",
        "counter",
        "TCP connection attempts sent to the real server.",
    );
    text.metric(
        "director_service_info",
        "gauge",
        "The service: family of its VIPs, and how packets are forwarded.",
    );
    text.metric("director_real_weight", "gauge", "Weight of the real server; 0 while it is drained.");
    text.metric("director_real_draining", "gauge", "1 while the real server takes no new flows.");
    text.metric("director_real_reachable", "gauge", "1 while there is a way to the real server.");
    text.metric("director_real_votes", "gauge", "Live directors whose checks find the real server so.");
    let mut sum = Traffic::default();
    for service in &services.services {
        let name = ("service", &*service.name);
        let labels = [
            name,
            ("vip", &*service.vip),
            ("family", &*service.family),
            ("forwarding", &*service.forwarding),
            ("scheduler", &*service.scheduler),
        ];
        text.sample("director_service_info", &labels, 1);
        text.sample("director_service_announced", &[name], u8::from(service.announced));
        let traffic = service.traffic.unwrap_or_default();
        both_ways(text, "director_service", &[name], &traffic);
        text.sample("director_service_connections_total", &[name], traffic.connections);
        text.sample("director_service_dropped_packets_total", &[name], traffic.dropped);
        if let Some(slots) = service.slots {
            for (state, count) in
                [("settled", slots.settled), ("moving", slots.moving), ("pinned", slots.pinned)]
            {
                text.sample("director_service_slots", &[name, ("state", state)], count);
            }
        }
        sum.connections += traffic.connections;
        sum.packets_in += traffic.packets_in;
        sum.packets_out += traffic.packets_out;
        sum.bytes_in += traffic.bytes_in;
        sum.bytes_out += traffic.bytes_out;
        for real in &service.reals {
            let address = real_server_name(real);
            let labels = [name, ("real", &*address)];
            text.sample("director_real_weight", &labels, real.weight);
            text.sample("director_real_draining", &labels, u8::from(real.state != "active"));
            text.sample("director_real_reachable", &labels, u8::from(!real.next_hop.is_empty()));
            let traffic = real.traffic.unwrap_or_default();
            for (health, votes) in [("up", real.votes_up), ("down", real.votes_down)] {
                let labels = [name, ("real", &*address), ("health", health)];
                text.sample("director_real_votes", &labels, votes);
            }
            text.sample("director_real_slots", &labels, real.slots);
            text.sample("director_real_slots_ideal", &labels, real.ideal_slots);
            text.sample("director_real_connections_total", &labels, traffic.connections);
            both_ways(text, "director_real", &labels, &traffic);
        }
    }
    for (name, value) in [
        ("node_ipvs_connections_total", sum.connections),
        ("node_ipvs_incoming_packets_total", sum.packets_in),
        ("node_ipvs_incoming_bytes_total", sum.bytes_in),
        ("node_ipvs_outgoing_packets_total", sum.packets_out),
        ("node_ipvs_outgoing_bytes_total", sum.bytes_out),
    ] {
        text.metric(name, "counter", "As the node exporter's IPVS collector counts it.");
        text.sample(name, &[], value);
    }
}

fn both_ways(text: &mut Exposition, prefix: &str, labels: &[(&str, &str)], traffic: &Traffic) {
    for (unit, inwards, outwards) in
        [("packets", traffic.packets_in, traffic.packets_out), ("bytes", traffic.bytes_in, traffic.bytes_out)]
    {
        for (direction, value) in [("in", inwards), ("out", outwards)] {
            let labels = [labels, &[("direction", direction)]].concat();
            text.sample(&format!("{prefix}_{unit}_total"), &labels, value);
        }
    }
}

#[cfg(test)]
mod tests {
    use director_common::verdict::Outcome;
    use director_proto::control::{
        Count, Neighbor, Neighbors, Peer, Peers, RealServer, Services, SlotStates, Status, Traffic,
        VirtualService,
    };

    #[test]
    fn label_values_are_escaped_and_every_line_is_a_sample_or_a_comment() {
        let status = Status {
            router_id: "10.255.0.1".to_owned(),
            cluster: "a\"b\\c\nd".to_owned(),
            epoch: "7@10.255.0.1".to_owned(),
            verdicts: vec![Count { name: "forward".to_owned(), packets: 3 }],
            ..Status::default()
        };
        let text = super::render(&status, &Services::default(), &Neighbors::default(), &Peers::default());
        assert!(text.contains("cluster=\"a\\\"b\\\\c\\nd\"} 1\n"), "{text}");
        assert!(text.contains("director_packets_total{verdict=\"forward\"} 3\n"), "{text}");
        assert!(text.contains("\ndirector_serving 0\n"), "{text}");
        assert!(text.contains("director_table_epoch{digest=\"\",leader=\"\"} 7\n"), "{text}");
    }

    #[test]
    fn a_service_says_its_family_and_forwarding_and_who_is_drained() {
        let real = RealServer {
            address: "2001:db8:2::11".to_owned(),
            port: 80,
            state: "draining".to_owned(),
            ..RealServer::default()
        };
        let service = VirtualService {
            name: "web".to_owned(),
            vip: "203.0.113.10".to_owned(),
            family: "IPv4".to_owned(),
            forwarding: "tunnel gre".to_owned(),
            scheduler: "mh".to_owned(),
            reals: vec![real],
            ..VirtualService::default()
        };
        let services = Services { services: vec![service] };
        let text = super::render(&Status::default(), &services, &Neighbors::default(), &Peers::default());
        for line in [
            "director_service_info{service=\"web\",vip=\"203.0.113.10\",family=\"IPv4\",forwarding=\"tunnel gre\",\
             scheduler=\"mh\"} 1\n",
            "director_real_draining{service=\"web\",real=\"[2001:db8:2::11]:80\"} 1\n",
            "director_real_weight{service=\"web\",real=\"[2001:db8:2::11]:80\"} 0\n",
            "director_real_reachable{service=\"web\",real=\"[2001:db8:2::11]:80\"} 0\n",
        ] {
            assert!(text.contains(line), "no {line} in {text}");
        }
    }

    /// Two of everything, so that a metric's samples could be apart.
    fn busy() -> String {
        let real = |address: &str| RealServer {
            address: address.to_owned(),
            port: 80,
            weight: 3,
            slots: 32_768,
            ideal_slots: 32_768.5,
            next_hop: "02:00:00:00:00:01 on eth1".to_owned(),
            traffic: Some(Traffic { packets_in: 11, bytes_in: 12, connections: 13, ..Traffic::default() }),
            state: "active".to_owned(),
            ..RealServer::default()
        };
        let service = |name: &str| VirtualService {
            name: name.to_owned(),
            traffic: Some(Traffic { packets_in: 21, connections: 22, dropped: 23, ..Traffic::default() }),
            reals: vec![real("10.0.2.11"), real("10.0.2.12")],
            slots: Some(SlotStates { settled: 65_000, moving: 500, pinned: 37 }),
            ..VirtualService::default()
        };
        let verdicts = Outcome::all().map(|(_, outcome)| Count { name: outcome.to_string(), packets: 1 });
        let status = Status { verdicts: verdicts.collect(), ..Status::default() };
        let peer = |id: &str| Peer { router_id: id.to_owned(), ..Peer::default() };
        let neighbor = |id: &str| Neighbor { router_id: id.to_owned(), ..Neighbor::default() };
        super::render(
            &status,
            &Services { services: vec![service("a"), service("b")] },
            &Neighbors { neighbors: vec![neighbor("1"), neighbor("2")] },
            &Peers { peers: vec![peer("1"), peer("2")], ..Peers::default() },
        )
    }

    #[test]
    fn every_counter_there_is_has_a_sample() {
        let text = busy();
        for (_, outcome) in Outcome::all() {
            assert!(
                text.contains(&format!("director_packets_total{{verdict=\"{outcome}\"}} 1\n")),
                "{outcome}"
            );
        }
        for sample in [
            "director_service_packets_total{service=\"b\",direction=\"in\"} 21",
            "director_service_connections_total{service=\"b\"} 22",
            "director_service_dropped_packets_total{service=\"b\"} 23",
            "director_service_slots{service=\"b\",state=\"moving\"} 500",
            "director_service_slots{service=\"b\",state=\"pinned\"} 37",
            "director_real_packets_total{service=\"b\",real=\"10.0.2.12:80\",direction=\"in\"} 11",
            "director_real_bytes_total{service=\"b\",real=\"10.0.2.12:80\",direction=\"in\"} 12",
            "director_real_connections_total{service=\"b\",real=\"10.0.2.12:80\"} 13",
            "director_real_slots_ideal{service=\"b\",real=\"10.0.2.12:80\"} 32768.5",
            "director_real_weight{service=\"b\",real=\"10.0.2.12:80\"} 3",
            "director_real_reachable{service=\"b\",real=\"10.0.2.12:80\"} 1",
        ] {
            assert!(text.contains(&format!("\n{sample}\n")), "{sample}: {text}");
        }
    }

    #[test]
    fn samples_of_one_metric_stand_together_below_their_declaration_and_none_twice() {
        let text = busy();
        let mut current = "";
        let mut declared = std::collections::BTreeSet::new();
        let mut samples = std::collections::BTreeSet::new();
        for line in text.lines() {
            if let Some(rest) = line.strip_prefix("# HELP ") {
                current = rest.split(' ').next().expect("name");
                assert!(declared.insert(current), "{current} is declared twice");
            } else if !line.starts_with('#') {
                let name = line.split(['{', ' ']).next().expect("name");
                assert_eq!(name, current, "{line}");
                assert!(samples.insert(line.rsplit_once(' ').expect("value").0), "{line}: twice");
            }
        }
    }
}
