//! Pins between two real engines, over TLS on loopback.

#[expect(dead_code, reason = "the other suite uses all of it")]
mod cluster {
    pub(crate) mod authority;
    pub(crate) mod node;
}

use std::collections::BTreeMap;
use std::net::Ipv4Addr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use cluster::authority::Authority;
use cluster::node::{Node, eventually, free_addresses};
use director_common::pin::PinState;
use director_common::tables::{Address, FlowKey};
use director_proto::pins::{Begin, Server};
use syncd::PinPort;
use syncd::pins::{Applied, LocalPin, PinInput};
use tokio::time::timeout;

/// A chunk of a walk, as the node sends it.
const CHUNK: usize = 16_384;

fn id(index: u8) -> Ipv4Addr {
    Ipv4Addr::new(10, 255, 0, index)
}

fn pins(count: u32) -> Vec<LocalPin> {
    let servers: Vec<_> = (0..10)
        .map(|last| Arc::new(Server { service: "web".into(), address: [10, 0, 2, last].into(), port: 80 }))
        .collect();
    let pin = |number: u32| LocalPin {
        flow: FlowKey {
            source: Address::from_ipv4((0x0a00_0000 + number).to_be_bytes()),
            destination: Address::from_ipv4([203, 0, 113, 10]),
            source_port: 40_000,
            destination_port: 80,
            protocol: 6,
            ..FlowKey::default()
        },
        server: Arc::clone(&servers[number as usize % servers.len()]),
        state: PinState::Open,
        remaining: 900,
        local: None,
        age: 0,
    };
    (0..count).map(pin).collect()
}

async fn walk(port: &PinPort, pins: &[LocalPin]) {
    for chunk in pins.chunks(CHUNK) {
        port.send(PinInput::Met(chunk.to_vec())).await.expect("running");
    }
    port.send(PinInput::WalkEnded).await.expect("running");
}

/// Takes deliveries as a node does, until a snapshot or the number of pins is whole.
async fn take(port: &mut PinPort, held: &mut BTreeMap<FlowKey, Arc<Server>>, count: usize) {
    while held.len() != count {
        let delivery =
            timeout(Duration::from_secs(60), port.delivery()).await.expect("in time").expect("running");
        if delivery.begins == Some(Begin::Snapshot) {
            held.clear();
        }
        held.extend(
            delivery.pins.iter().map(|pin| (pin.flow, Arc::clone(&delivery.servers[pin.server as usize]))),
        );
        delivery.removed.iter().for_each(|flow| drop(held.remove(flow)));
        let applied =
            Applied { receipt: delivery.receipt, ends_snapshot: delivery.ends_snapshot, strangers: 0 };
        port.send(PinInput::Applied(applied)).await.expect("running");
    }
}

/// Takes a snapshot that has nothing in it.
async fn answer_snapshot(port: &mut PinPort) {
    let mut ends_snapshot = false;
    while !ends_snapshot {
        let delivery =
            timeout(Duration::from_secs(60), port.delivery()).await.expect("in time").expect("running");
        assert!(delivery.pins.is_empty());
        ends_snapshot = delivery.ends_snapshot;
        let applied = Applied { receipt: delivery.receipt, ends_snapshot, strangers: 0 };
        port.send(PinInput::Applied(applied)).await.expect("running");
    }
}

async fn pair() -> (Node, Node, Authority) {
    let authority = Authority::new();
    let addresses = free_addresses(2);
    let tls = [1, 2].map(|index| authority.issue(&[&id(index).to_string()]));
    let [first, second] = tls;
    let one = Node::start(id(1), 0, &addresses, |config| config.tls = Some(first)).await;
    let two = Node::start(id(2), 1, &addresses, |config| config.tls = Some(second)).await;
    (one, two, authority)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn pins_changes_and_ends_reach_the_other_director_and_a_joiner_gets_a_million() {
    // Its files are read again at the restart.
    let (one, two, _authority) = pair().await;
    let (mut out, mut port) = (one.handle.pin_port().expect("ours"), two.handle.pin_port().expect("ours"));
    assert!(one.handle.pin_port().is_none(), "one node only");
    let mut all = pins(2_000);
    walk(&out, &all[..1_000]).await;
    walk(&port, &[]).await;
    let mut held = BTreeMap::new();
    take(&mut port, &mut held, 1_000).await;
    walk(&out, &all).await;
    take(&mut port, &mut held, 2_000).await;
    assert!(all.iter().all(|pin| held[&pin.flow] == pin.server));
    // Two walks that do not meet a pin end it.
    all.truncate(500);
    for _ in 0..3 {
        walk(&out, &all).await;
    }
    take(&mut port, &mut held, 500).await;
    answer_snapshot(&mut out).await;
    eventually("no lag, and both whole", async || {
        let (first, second) = (one.status().await, two.status().await);
        let lag = first.peers[0].pins.lag_records;
        if lag == 0 && first.pins_whole && second.pins_whole {
            Ok(())
        } else {
            Err(format!("{first:#?} {second:#?}"))
        }
    })
    .await;

    let all = pins(1_000_000);
    walk(&out, &all).await;
    take(&mut port, &mut held, all.len()).await;
    drop(port);
    let before = one.status().await.peers[0].bytes_out;
    let two = two.restart().await;
    let mut port = two.handle.pin_port().expect("ours");
    let begin = Instant::now();
    walk(&port, &[]).await;
    let mut held = BTreeMap::new();
    take(&mut port, &mut held, all.len()).await;
    let (taken, status) = (begin.elapsed(), one.status().await);
    let bytes = status.peers[0].bytes_out - before;
    println!("snapshot of {} pins over TLS: {taken:?}, {:.2} bytes a pin", all.len(), bytes as f64 / 1e6);
    assert!(bytes < 16_000_000, "{bytes}");
    one.stop().await;
    two.stop().await;
}
