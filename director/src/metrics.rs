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
    TcpListener::bind(address)
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

/// One exposition under construction.
#[derive(Default)]
struct Exposition(String);

impl Exposition {
    fn metric(&mut self, name: &str, kind: &str, help: &str) {
        let _ = writeln!(self.0, "# HELP {name} {help}\n# TYPE {name} {kind}");
    }

    fn sample(&mut self, name: &str, labels: &[(&str, &str)], value: impl fmt::Display) {
        self.0.push_str(name);
        for (index, (label, text)) in labels.iter().enumerate() {
            let escaped = text.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n");
            let _ = write!(self.0, "{}{label}=\"{escaped}\"", if index == 0 { '{' } else { ',' });
        }
        let _ = writeln!(self.0, "{} {value}", if labels.is_empty() { "" } else { "}" });
    }
}

/// Renders what the control socket would answer.
pub fn render(status: &Status, services: &Services, neighbors: &Neighbors, peers: &Peers) -> String {
    let mut text = Exposition::default();
    node(&mut text, status);
    cluster(&mut text, status, peers);
    routing(&mut text, status, neighbors);
    forwarding(&mut text, services);
    text.0
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
    text.metric("director_peer_up", "gauge", "1 while the peer's heartbeats arrive.");
    text.metric("director_peer_same_tables", "gauge", "1 while the peer holds the same tables.");
    text.metric("director_peer_same_config", "gauge", "1 while the peer has the same services.");
    text.metric("director_peer_unacknowledged", "gauge", "Messages the peer has not acknowledged.");
    for peer in &peers.peers {
        let labels = [("address", &*peer.address), ("router_id", &*peer.router_id)];
        text.sample("director_peer_up", &labels, u8::from(peer.state == "up"));
        text.sample("director_peer_same_tables", &labels, u8::from(peer.same_tables));
        text.sample("director_peer_same_config", &labels, u8::from(peer.same_config));
        text.sample("director_peer_unacknowledged", &labels, peer.unacknowledged);
    }
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
    text.metric("director_real_slots", "gauge", "Slots the real server holds.");
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
            text.sample("director_real_slots", &labels, real.slots);
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
    use director_proto::control::{Count, Neighbors, Peers, RealServer, Services, Status, VirtualService};

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
}
