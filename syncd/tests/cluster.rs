//! Real directors in one process, over real sockets on loopback, with and without TLS.

mod cluster {
    pub(crate) mod authority;
    pub(crate) mod node;
}

use std::net::Ipv4Addr;
use std::sync::Arc;
use std::time::Duration;

use cluster::authority::Authority;
use cluster::node::{Node, eventually, free_addresses, services};
use director_proto::sync::wire::sync_client::SyncClient;
use director_proto::sync::wire::{self, frame::Body};
use director_proto::sync::{BootId, Frame, Hello, PROTOCOL};
use director_proto::tables::Digest;
use syncd::{Event, PeerState, ProposeError, Reloaded, Standing, StartError, Status, TlsFiles};
use tokio_stream::wrappers::ReceiverStream;
use tonic::Code;

fn id(index: u8) -> Ipv4Addr {
    Ipv4Addr::new(10, 255, 0, index)
}

fn all_current(statuses: &[Status]) -> bool {
    let same = |status: &Status| {
        status.standing == Standing::Current
            && status.digest == statuses[0].digest
            && status.peers.iter().all(|peer| peer.state == PeerState::Up && peer.same_tables)
    };
    statuses.iter().all(same)
}

async fn trio(authority: &Authority) -> Vec<Node> {
    let addresses = free_addresses(3);
    let mut nodes = Vec::new();
    for index in 0..3u8 {
        let tls = authority.issue(&[&id(index + 1).to_string()]);
        nodes.push(
            Node::start(id(index + 1), usize::from(index), &addresses, |config| config.tls = Some(tls)).await,
        );
    }
    agree(&nodes).await;
    nodes
}

async fn agree(nodes: &[Node]) {
    eventually("all directors current with the same tables", async || {
        let mut statuses = Vec::new();
        for node in nodes {
            statuses.push(node.status().await);
        }
        if all_current(&statuses) { Ok(()) } else { Err(format!("{statuses:#?}")) }
    })
    .await;
}

async fn state_of_peer(node: &Node, wanted: PeerState, reason: &str) {
    eventually(&format!("a peer {wanted:?} because of {reason:?}"), async || {
        let status = node.status().await;
        let fits = status.peers.iter().any(|peer| {
            peer.state == wanted && peer.refused.as_ref().is_some_and(|refused| refused.contains(reason))
        });
        if fits { Ok(()) } else { Err(format!("{status:#?}")) }
    })
    .await;
}

#[tokio::test]
async fn three_directors_with_tls_agree_and_follow_a_change() {
    let authority = Authority::new();
    let nodes = trio(&authority).await;
    let epoch = nodes[0]
        .handle
        .propose(services(3), [0; 16], "a test".into())
        .await
        .expect("the lowest router id leads");
    eventually("the change in force everywhere", async || {
        for node in &nodes {
            let status = node.status().await;
            if status.epoch != Some(epoch) {
                return Err(format!("{status:#?}"));
            }
        }
        Ok(())
    })
    .await;
    agree(&nodes).await;
    let refused = nodes[2].handle.propose(services(4), [0; 16], "a test".into()).await;
    assert_eq!(refused, Err(ProposeError::NotLeader { leader: id(1) }));
    let status = nodes[0].status().await;
    assert!(status.peers.iter().all(|peer| peer.rtt_ms.is_some_and(|rtt| rtt < 1000.0)), "{status:#?}");
    assert!(status.peers.iter().all(|peer| peer.bytes_in > 0 && peer.bytes_out > 0), "{status:#?}");
}

#[tokio::test]
async fn a_restarted_director_gets_the_tables_by_snapshot() {
    let authority = Authority::new();
    let mut nodes = trio(&authority).await;
    let before = nodes[1].status().await;
    let last = nodes.pop().expect("three");
    let last = last.restart().await;
    nodes.push(last);
    agree(&nodes).await;
    let after = nodes[2].status().await;
    assert_eq!(after.digest, before.digest);
    // Not from disk (it has none), not dealt anew: the bytes came over the wire.
    assert!(after.peers.iter().map(|peer| peer.bytes_in).sum::<u64>() > 131_074, "{after:#?}");
    let events = nodes[2].events();
    let in_force = events.iter().position(|event| matches!(event, Event::TablesInForce { .. }));
    let current = events.iter().position(|event| matches!(event, Event::Standing(Standing::Current)));
    assert!(in_force.is_some() && in_force < current, "{events:?}");
    assert!(!events.iter().any(|event| matches!(event, Event::NeedTables { .. })), "{events:?}");
}

#[tokio::test]
async fn tables_survive_a_restart_of_the_whole_cluster() {
    let folder = tempfile::tempdir().expect("folder");
    let addresses = free_addresses(2);
    let start = async |index: u8| {
        let state = folder.path().join(index.to_string());
        let config = |config: &mut syncd::Config| config.state_dir = Some(state);
        Node::start(id(index + 1), usize::from(index), &addresses, config).await
    };
    let nodes = [start(0).await, start(1).await];
    agree(&nodes).await;
    let epoch = nodes[0].handle.propose(services(9), [0; 16], "a test".into()).await.expect("leader");
    eventually("the change in force", async || match nodes[1].status().await {
        status if status.epoch == Some(epoch) => Ok(()),
        status => Err(format!("{status:#?}")),
    })
    .await;
    agree(&nodes).await;
    let before = nodes[0].status().await;
    for node in nodes {
        node.stop().await;
    }
    let nodes = [start(0).await, start(1).await];
    agree(&nodes).await;
    let after = nodes[1].status().await;
    assert_eq!((after.epoch, after.digest), (before.epoch, before.digest));
    assert_ne!(after.boot_id, before.boot_id);
}

#[tokio::test]
async fn a_director_alone_needs_no_socket_and_no_grace_time() {
    let grace = |config: &mut syncd::Config| {
        config.listen = None;
        config.grace = Duration::from_secs(3600);
    };
    let node = Node::start(id(1), 0, &free_addresses(1), grace).await;
    agree(std::slice::from_ref(&node)).await;
    assert_eq!(node.status().await.leader, Some(id(1)));
}

#[tokio::test]
async fn another_cluster_name_is_refused_on_both_sides() {
    let addresses = free_addresses(2);
    let edge = Node::start(id(1), 0, &addresses, |_| {}).await;
    let core = Node::start(id(2), 1, &addresses, |config| config.cluster = "core".into()).await;
    state_of_peer(&edge, PeerState::Refused, r#"cluster "core""#).await;
    state_of_peer(&core, PeerState::Refused, r#"cluster "edge""#).await;
    assert!(!edge.status().await.refused.is_empty(), "the caller is remembered too");
}

#[tokio::test]
async fn a_duplicate_router_id_is_refused_on_both_sides() {
    let addresses = free_addresses(2);
    let one = Node::start(id(1), 0, &addresses, |_| {}).await;
    let other = Node::start(id(1), 1, &addresses, |_| {}).await;
    for node in [&one, &other] {
        state_of_peer(node, PeerState::Refused, "router id 10.255.0.1").await;
    }
}

#[tokio::test]
async fn a_third_director_with_a_living_ones_router_id_is_refused() {
    let addresses = free_addresses(3);
    let one = Node::start(id(1), 0, &addresses[..2], |_| {}).await;
    let two = Node::start(id(2), 1, &addresses[..2], |_| {}).await;
    agree(&[one.clone(), two.clone()]).await;
    let impostor = Node::start(id(2), 2, &addresses, |config| config.peers = vec![addresses[0]]).await;
    state_of_peer(&impostor, PeerState::Refused, "belongs to another one").await;
    let status = one.status().await;
    assert!(
        status.refused.iter().any(|refused| refused.reason.contains("belongs to another one")),
        "{status:#?}"
    );
    agree(&[one, two]).await;
    assert_eq!(impostor.status().await.peers[0].epoch, None, "it learns nothing");
}

#[tokio::test]
async fn another_authority_is_refused_on_both_sides() {
    let addresses = free_addresses(2);
    let start = async |index: u8, authority: &Authority| {
        let tls = authority.issue(&[&id(index + 1).to_string()]);
        Node::start(id(index + 1), usize::from(index), &addresses, |config| config.tls = Some(tls)).await
    };
    let (ours, theirs) = (Authority::new(), Authority::new());
    let one = start(0, &ours).await;
    let other = start(1, &theirs).await;
    for node in [&one, &other] {
        state_of_peer(node, PeerState::Refused, "certificate").await;
        let status = node.status().await;
        assert!(
            status.refused.iter().any(|refused| refused.reason.contains("TLS handshake failed")),
            "{status:#?}"
        );
        assert_eq!(status.peers[0].router_id, None);
    }
}

#[tokio::test]
async fn a_certificate_of_another_director_is_refused_on_both_sides() {
    let addresses = free_addresses(2);
    let authority = Authority::new();
    let good = authority.issue(&["10.255.0.1"]);
    let bad = authority.issue(&["10.255.0.9", "director.core"]);
    let one = Node::start(id(1), 0, &addresses, |config| config.tls = Some(good)).await;
    let other = Node::start(id(2), 1, &addresses, |config| config.tls = Some(bad)).await;
    for node in [&one, &other] {
        state_of_peer(node, PeerState::Refused, "the certificate presented for 10.255.0.2").await;
    }
}

#[tokio::test]
async fn a_certificate_for_all_directors_of_the_cluster_is_enough() {
    let addresses = free_addresses(2);
    let authority = Authority::new();
    let shared = authority.issue(&["director.edge"]);
    let one = Node::start(id(1), 0, &addresses, |config| config.tls = Some(shared.clone())).await;
    let other = Node::start(id(2), 1, &addresses, |config| config.tls = Some(shared)).await;
    agree(&[one, other]).await;
}

#[tokio::test]
async fn another_protocol_version_is_refused_with_a_message_and_a_status() {
    let addresses = free_addresses(1);
    let node = Node::start(id(1), 0, &addresses, |_| {}).await;
    let mut client = SyncClient::connect(format!("http://{}", addresses[0])).await.expect("reachable");
    let hello = Hello {
        protocol: PROTOCOL + 1,
        cluster: "edge".into(),
        router_id: id(2),
        boot_id: BootId(1),
        endpoint: String::new(),
        software: "9.9.9".into(),
    };
    let (sender, frames) = tokio::sync::mpsc::channel(4);
    sender.send(wire::Frame::from(&Frame::Hello(hello))).await.expect("room");
    let mut answers = client.exchange(ReceiverStream::new(frames)).await.expect("a response").into_inner();
    let first = answers.message().await.expect("a frame").expect("a frame");
    let Some(Body::Refusal(refusal)) = first.body else { panic!("{first:?}") };
    let expected = format!("10.255.0.2 speaks sync protocol {}", PROTOCOL + 1);
    assert!(refusal.reason.starts_with(&expected), "{}", refusal.reason);
    let status = answers.message().await.expect_err("a status");
    assert_eq!((status.code(), status.message()), (Code::FailedPrecondition, refusal.reason.as_str()));
    drop(sender);
    eventually("the refusal is remembered", async || {
        let status = node.status().await;
        let known = status.refused.iter().any(|refused| refused.reason.contains(&refusal.reason));
        if known { Ok(()) } else { Err(format!("{status:#?}")) }
    })
    .await;
}

#[tokio::test]
async fn rubbish_on_a_stream_ends_it_and_harms_nothing() {
    let addresses = free_addresses(1);
    let node = Node::start(id(1), 0, &addresses, |_| {}).await;
    let mut client = SyncClient::connect(format!("http://{}", addresses[0])).await.expect("reachable");
    let (sender, frames) = tokio::sync::mpsc::channel(4);
    let body = Some(Body::Acknowledge(wire::Version { number: 0, leader: 0, digest: vec![1].into() }));
    sender.send(wire::Frame { body }).await.expect("room");
    let mut answers = client.exchange(ReceiverStream::new(frames)).await.expect("a response").into_inner();
    assert!(answers.message().await.is_ok_and(|frame| frame.is_none()), "closed without an answer");
    eventually("the violation is remembered", async || {
        let status = node.status().await;
        let known = status.refused.iter().any(|refused| refused.reason.contains("protocol violation"));
        if known { Ok(()) } else { Err(format!("{status:#?}")) }
    })
    .await;
}

#[tokio::test]
async fn a_configuration_that_differs_shows_at_both() {
    let addresses = free_addresses(2);
    let one = Node::start(id(1), 0, &addresses, |_| {}).await;
    let other = Node::start(id(2), 1, &addresses, |config| config.config_digest = Digest([1; 32])).await;
    agree(&[one.clone(), other.clone()]).await;
    assert!(!one.status().await.peers[0].same_config && !other.status().await.peers[0].same_config);
    one.handle.configure(Digest([1; 32]), Arc::default()).await.expect("running");
    eventually("equal again", async || {
        let (one, other) = (one.status().await, other.status().await);
        let same = one.peers[0].same_config && other.peers[0].same_config;
        if same { Ok(()) } else { Err(format!("{one:#?} {other:#?}")) }
    })
    .await;
}

#[tokio::test]
async fn beyond_loopback_there_is_no_replication_without_tls() {
    let addresses = free_addresses(1);
    let mut config = cluster::node::config(id(1), 0, &addresses);
    config.listen = Some("192.0.2.1:7000".parse().expect("address"));
    let error = syncd::spawn(config).await.expect_err("refused");
    assert!(matches!(error, StartError::Plaintext { .. }), "{error}");
    assert!(error.to_string().contains("set `tls` in [cluster]"), "{error}");
}

#[tokio::test]
async fn an_address_in_use_is_named() {
    let addresses = free_addresses(1);
    let _first = Node::start(id(1), 0, &addresses, |_| {}).await;
    let error = syncd::spawn(cluster::node::config(id(2), 0, &addresses)).await.expect_err("in use");
    assert!(error.to_string().starts_with(&format!("cannot listen on {}", addresses[0])), "{error}");
}

#[tokio::test]
async fn a_missing_certificate_is_named() {
    let addresses = free_addresses(1);
    let mut config = cluster::node::config(id(1), 0, &addresses);
    let authority = Authority::new();
    let mut tls = authority.issue(&["10.255.0.1"]);
    tls.key = "/nowhere/node.key".into();
    config.tls = Some(tls);
    let error = syncd::spawn(config).await.expect_err("no key");
    assert!(error.to_string().starts_with("TLS file /nowhere/node.key: "), "{error}");
}

/// Number of connections that a director has opened or taken: a lost one is replaced by another.
async fn connections(node: &Node) -> usize {
    let peers = node.events();
    peers.iter().filter(|event| matches!(event, Event::PeerUp { .. } | Event::PeerDown { .. })).count()
}

fn replace(files: &TlsFiles, by: &TlsFiles) {
    std::fs::copy(&by.key, &files.key).expect("written");
    std::fs::copy(&by.certificate, &files.certificate).expect("written");
}

#[tokio::test]
async fn certificates_are_replaced_while_streams_go_on_and_count_for_new_ones() {
    let addresses = free_addresses(2);
    let (old, new) = (Authority::new(), Authority::new());
    // Both authorities count while one takes the place of the other.
    let both = |files: TlsFiles| {
        let text = |files: &TlsFiles| std::fs::read_to_string(&files.ca).expect("readable");
        let ca = files.key.with_extension("both");
        std::fs::write(&ca, text(&files) + &text(&new.issue(&["unused"]))).expect("written");
        TlsFiles { ca, ..files }
    };
    let files = [both(old.issue(&["10.255.0.1"])), both(old.issue(&["10.255.0.2"]))];
    let start = async |index: u8| {
        let tls = files[usize::from(index)].clone();
        Node::start(id(index + 1), usize::from(index), &addresses, |config| config.tls = Some(tls)).await
    };
    let (one, other) = (start(0).await, start(1).await);
    agree(&[one.clone(), other.clone()]).await;
    assert_eq!(one.handle.reload_certificates().expect("as they were"), Reloaded::Unchanged);
    let (before, events) = (one.status().await.peers[0].messages_in, connections(&one).await);
    for (node, files) in [(&one, &files[0]), (&other, &files[1])] {
        replace(files, &new.issue(&["director.edge"]));
        // The files are looked at, too: either of the two comes first.
        let reloaded = node.handle.reload_certificates().expect("both authorities vouch for it");
        assert_ne!(reloaded, Reloaded::NoTls);
    }
    eventually("heartbeats go on", async || {
        let now = one.status().await.peers[0].messages_in;
        if now > before + 30 { Ok(()) } else { Err(format!("{now} messages, {before} before")) }
    })
    .await;
    assert_eq!(connections(&one).await, events, "streams were interrupted");
    assert_eq!(one.status().await.peers[0].refused, None);
    // What is opened from now on is judged by the new files alone, at the end that was not restarted.
    std::fs::copy(new.issue(&["unused"]).ca, &files[0].ca).expect("written");
    assert_eq!(one.handle.reload_certificates().expect("good"), Reloaded::Changed);
    let other = other.restart().await;
    agree(&[one.clone(), other.clone()]).await;
    replace(&files[1], &old.issue(&["10.255.0.2"]));
    let other = other.restart().await;
    eventually("the old authority does not count any more", async || {
        let status = one.status().await;
        let refused = status.refused.iter().any(|refused| refused.reason.contains("UnknownIssuer"));
        if refused { Ok(()) } else { Err(format!("{status:#?}")) }
    })
    .await;
    assert_ne!(other.status().await.peers[0].state, PeerState::Up);
}

#[tokio::test]
async fn a_certificate_that_will_not_do_is_refused_with_its_place_and_the_old_one_stays() {
    let addresses = free_addresses(2);
    let (authority, stranger) = (Authority::new(), Authority::new());
    let files = [authority.issue(&["10.255.0.1"]), authority.issue(&["10.255.0.2"])];
    let start = async |index: u8| {
        let tls = files[usize::from(index)].clone();
        Node::start(id(index + 1), usize::from(index), &addresses, |config| config.tls = Some(tls)).await
    };
    let (one, other) = (start(0).await, start(1).await);
    agree(&[one.clone(), other.clone()]).await;
    let (own, good) = (&files[0], authority.issue(&["10.255.0.1"]));
    let refused = |what: &str| {
        let error = one.handle.reload_certificates().expect_err(what).to_string();
        let place = own.certificate.display().to_string();
        assert!(error.contains(what), "{error}");
        (error, place)
    };
    replace(own, &stranger.issue(&["10.255.0.1"]));
    let (error, place) = refused("do not vouch for it");
    assert!(error.contains(&place) && error.contains(&own.ca.display().to_string()), "{error}");
    replace(own, &authority.issue(&["10.255.0.7"]));
    let (error, place) = refused("names neither that address");
    assert!(error.contains(&place), "{error}");
    std::fs::copy(&good.certificate, &own.certificate).expect("written");
    refused("TLS: ");
    std::fs::write(&own.certificate, "nothing").expect("written");
    let (error, place) = refused("TLS file ");
    assert!(error.contains(&place), "{error}");
    // A new connection still goes by the first ones.
    let other = other.restart().await;
    agree(&[one.clone(), other]).await;
    replace(own, &good);
    one.handle.reload_certificates().expect("good again");
}

#[tokio::test]
async fn certificates_that_change_on_disk_are_used_without_being_told() {
    let addresses = free_addresses(2);
    let (old, new) = (Authority::new(), Authority::new());
    let (one, other) = (old.issue(&["10.255.0.1"]), old.issue(&["10.255.0.2"]));
    let running = Node::start(id(1), 0, &addresses, |config| config.tls = Some(one.clone())).await;
    let next = new.issue(&["10.255.0.1"]);
    std::fs::copy(&next.ca, &one.ca).expect("written");
    replace(&one, &next);
    // Its CA file is the old authority's, which is the new one's by now.
    replace(&other, &new.issue(&["10.255.0.2"]));
    let started = Node::start(id(2), 1, &addresses, |config| config.tls = Some(other)).await;
    agree(&[running, started]).await;
}
