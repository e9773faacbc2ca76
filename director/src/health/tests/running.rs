//! The running checks: what is published, when, and what a change of targets keeps.

use std::net::SocketAddr;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use tokio::net::TcpListener;
use tokio::sync::mpsc;

use super::super::outbox::Outbox;
use super::super::probe::ProbeError;
use super::super::watch::Watch;
use super::super::{
    Check, Health, Http, Observation, Outcome, State, Status, Target, TargetError, TargetId, Tcp,
};
use super::servers::{self, Silent};
use super::{DEADLINE, anywhere};

fn target(service: &str, to: SocketAddr, check: Check) -> Target {
    let (interval, timeout) = (Duration::from_millis(20), Duration::from_secs(5));
    Target { interval, timeout, ..Target::new(service, to.ip(), to.port(), check) }
}

fn tcp(service: &str, to: SocketAddr) -> Target {
    target(service, to, Check::Tcp(Tcp::default()))
}

async fn next(observations: &mut mpsc::Receiver<Observation>) -> Observation {
    tokio::time::timeout(DEADLINE, observations.recv())
        .await
        .expect("an observation in time")
        .expect("an open channel")
}

/// What is published next, in short.
async fn published(observations: &mut mpsc::Receiver<Observation>) -> (String, State, String) {
    let Observation { target, state, reason, .. } = next(observations).await;
    (target.service, state, reason)
}

async fn wait_until(what: &str, condition: impl Fn() -> bool) {
    let begun = Instant::now();
    while !condition() {
        assert!(begun.elapsed() < DEADLINE, "in vain: {what}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

fn up(service: &str) -> (String, State, String) {
    (service.to_owned(), State::Up, "connected".to_owned())
}

fn down(service: &str) -> (String, State, String) {
    (service.to_owned(), State::Down, "connection refused".to_owned())
}

#[tokio::test]
async fn a_server_that_stops_and_returns_is_published_down_and_up() {
    let listener = TcpListener::bind(anywhere()).await.unwrap();
    let to = listener.local_addr().unwrap();
    let (handle, mut observations) = Health::default().spawn(vec![tcp("web", to)]).unwrap();
    assert_eq!(published(&mut observations).await, up("web"));
    drop(listener);
    let begun = Instant::now();
    assert_eq!(published(&mut observations).await, down("web"));
    assert!(begun.elapsed() >= Duration::from_millis(40), "three failures take two intervals");
    let Status { state, failures, last, .. } = handle.status().remove(0);
    assert_eq!((state, last.unwrap().outcome), (State::Down, Outcome::Failed));
    assert!(failures >= 3);
    let _listener = TcpListener::bind(to).await.unwrap();
    assert_eq!(published(&mut observations).await, up("web"));
}

#[tokio::test]
async fn status_reads_as_documented() {
    let to = servers::http().await;
    let (handle, mut observations) =
        Health::default().spawn(vec![target("web", to, Check::Http(Http::default()))]).unwrap();
    next(&mut observations).await;
    let status = serde_json::to_value(handle.status()).unwrap();
    let status = &status[0];
    for (key, value) in [("service", "web"), ("address", "127.0.0.1"), ("check", "http"), ("state", "up")] {
        assert_eq!(status[key], value);
    }
    assert_eq!(status["port"], to.port());
    assert_eq!(status["last"]["outcome"], "passed");
    assert_eq!(status["last"]["reason"], "status 200");
    assert!(status["last"]["latency_ms"].as_f64().unwrap() > 0.0);
}

#[tokio::test]
async fn services_that_ask_the_same_share_one_probe() {
    let server = Silent::default();
    let to = server.start().await;
    let (handle, mut observations) =
        Health::default().spawn(vec![tcp("a", to), tcp("b", to), tcp("c", to)]).unwrap();
    for service in ["a", "b", "c"] {
        assert_eq!(published(&mut observations).await, up(service));
    }
    let probes: Vec<u64> = handle.status().iter().map(|status| status.probes).collect();
    drop(handle);
    let seen = u64::try_from(server.seen.load(Ordering::SeqCst)).unwrap();
    assert_eq!(probes, [probes[0]; 3]);
    assert!(seen < 2 * probes[0], "{seen} connections for {probes:?} probes");
}

#[tokio::test]
async fn a_service_that_joins_learns_at_once_what_is_known() {
    let to = Silent::default().start().await;
    let slow = |service| Target { interval: Duration::from_secs(3600), rise: 1, ..tcp(service, to) };
    let health = Health { spread: Duration::from_millis(1), ..Health::default() };
    let (handle, mut observations) = health.spawn(vec![slow("a")]).unwrap();
    assert_eq!(published(&mut observations).await, up("a"));
    handle.set_targets(vec![slow("a"), slow("b")]).unwrap();
    assert_eq!(published(&mut observations).await, up("b"));
    assert_eq!(handle.status()[1].probes, 1);
}

#[tokio::test]
async fn an_unchanged_target_keeps_its_state_and_its_schedule() {
    let to = Silent::default().start().await;
    let (handle, mut observations) = Health::default().spawn(vec![tcp("a", to)]).unwrap();
    assert_eq!(published(&mut observations).await, up("a"));
    let before = handle.status().remove(0);
    handle.set_targets(vec![tcp("b", to), tcp("a", to)]).unwrap();
    let after = handle.status().remove(0);
    assert!(after.probes >= before.probes && after.observed);
    assert_eq!(published(&mut observations).await, up("b"), "nothing is said again about a");
}

#[tokio::test]
async fn a_changed_check_keeps_the_state_until_it_has_decided() {
    let to = servers::http().await;
    let (handle, mut observations) = Health::default().spawn(vec![tcp("a", to)]).unwrap();
    assert_eq!(published(&mut observations).await, up("a"));
    let failing = Http { path: "/status/503".into(), ..Http::default() };
    handle.set_targets(vec![target("a", to, Check::Http(failing))]).unwrap();
    let status = handle.status().remove(0);
    assert_eq!((status.check, status.state), ("http", State::Up));
    assert_eq!(published(&mut observations).await, ("a".into(), State::Down, "status 503".into()));
}

#[tokio::test]
async fn what_is_assumed_is_published_only_once_it_is_observed() {
    let to = Silent::default().start().await;
    let assumed = Target { initial: State::Up, ..tcp("a", to) };
    let alpha = Target { initial: State::Down, ..tcp("b", to) };
    let (handle, mut observations) = Health::default().spawn(vec![assumed, alpha]).unwrap();
    let states: Vec<_> = handle.status().iter().map(|status| (status.state, status.observed)).collect();
    assert_eq!(states, [(State::Up, false), (State::Down, false)]);
    let mut seen = [published(&mut observations).await, published(&mut observations).await];
    seen.sort();
    assert_eq!(seen, [up("a"), up("b")]);
}

#[tokio::test]
async fn a_target_that_is_gone_is_probed_no_more() {
    let server = Silent::default();
    let to = server.start().await;
    let other = Silent::default();
    let (handle, mut observations) = Health::default().spawn(vec![tcp("a", to)]).unwrap();
    assert_eq!(published(&mut observations).await, up("a"));
    handle.set_targets(vec![tcp("b", other.start().await)]).unwrap();
    assert_eq!(published(&mut observations).await, up("b"));
    assert_eq!(handle.status().len(), 1);
    let seen = server.seen.load(Ordering::SeqCst);
    let count = other.seen.load(Ordering::SeqCst) + 5;
    wait_until("five more probes of the other", || other.seen.load(Ordering::SeqCst) >= count).await;
    // One probe may have been under way, or accepted late.
    assert!(server.seen.load(Ordering::SeqCst) <= seen + 1);
}

#[tokio::test]
async fn without_a_check_a_real_server_is_up_at_once() {
    let nowhere = SocketAddr::from(([192, 0, 2, 1], 0));
    let (_handle, mut observations) =
        Health::default().spawn(vec![target("a", nowhere, Check::None)]).unwrap();
    assert_eq!(published(&mut observations).await, ("a".into(), State::Up, "not checked".into()));
}

#[tokio::test]
async fn a_set_that_cannot_be_checked_changes_nothing() {
    let to = Silent::default().start().await;
    let (handle, mut observations) = Health::default().spawn(vec![tcp("a", to)]).unwrap();
    assert_eq!(published(&mut observations).await, up("a"));
    let twice = handle.set_targets(vec![tcp("b", to), tcp("b", to)]).unwrap_err();
    assert!(matches!(twice, TargetError::Twice(TargetId { service, .. }) if service == "b"));
    let never = Target { rise: 0, ..tcp("b", to) };
    let refused = handle.set_targets(vec![never]).unwrap_err().to_string();
    assert_eq!(refused, format!("health check of {to} of service b: rise must be greater than 0"));
    assert_eq!(handle.status()[0].target.service, "a");
}

#[tokio::test]
async fn no_more_probes_run_at_once_than_allowed() {
    let server = Silent::default();
    let to = server.start().await;
    let targets = (0..100).map(|index| Target {
        // Distinct plans, all to one server, each held until its timeout.
        timeout: Duration::from_millis(50 + index),
        fall: 1,
        ..target(&format!("s{index}"), to, Check::Http(Http::default()))
    });
    let health = Health { concurrency: 4, ..Health::default() };
    let (_handle, mut observations) = health.spawn(targets.collect()).unwrap();
    for _ in 0..30 {
        assert_eq!(next(&mut observations).await.state, State::Down);
    }
    let most = server.most.load(Ordering::SeqCst);
    // The server may see the next connection before the end of the last.
    assert!((2..=8).contains(&most), "{most} connections at once");
}

#[tokio::test]
async fn probes_end_with_the_last_handle() {
    let server = Silent::default();
    let (handle, mut observations) = Health::default().spawn(vec![tcp("a", server.start().await)]).unwrap();
    let clone = handle.clone();
    drop(handle);
    assert_eq!(published(&mut observations).await, up("a"), "a clone keeps them going");
    drop(clone);
    let end = tokio::time::timeout(DEADLINE, observations.recv()).await.expect("an end in time");
    assert_eq!(end, None);
}

#[tokio::test]
async fn a_slow_reader_is_told_the_latest_only() {
    let outbox = std::sync::Arc::new(Outbox::default());
    let about = |host: u8, reason: &str| Observation {
        target: TargetId { service: "a".into(), address: [10, 0, 0, host].into(), port: 80 },
        state: State::Up,
        reason: reason.into(),
        since: Instant::now(),
    };
    for round in 0..1000 {
        outbox.put(about(1, &round.to_string()));
    }
    outbox.put(about(2, "gone"));
    outbox.put(about(3, "stays"));
    outbox.forget(&about(2, "").target);
    let (sender, mut reader) = mpsc::channel(1);
    let forwarder = tokio::spawn(async move { outbox.forward(sender).await });
    assert_eq!(next(&mut reader).await.reason, "999");
    assert_eq!(next(&mut reader).await.reason, "stays");
    forwarder.abort();
}

#[tokio::test]
async fn a_shortage_here_changes_no_state() {
    let to = SocketAddr::from(([192, 0, 2, 1], 80));
    let outbox = Outbox::default();
    let target = Target { fall: 1, ..tcp("a", to) };
    let watch = Watch::new(target.plan().into(), State::Up);
    watch.attach(target.id(), &outbox);
    let begun = tokio::time::Instant::now();
    let shortage = || ProbeError::from(std::io::Error::from_raw_os_error(libc::EMFILE));
    for _ in 0..10 {
        watch.record(Err(shortage()), begun, &outbox);
    }
    let status = watch.status(&target.id());
    assert_eq!((status.state, status.probes, status.unable), (State::Up, 0, 10));
    assert_eq!(status.last.unwrap().outcome, Outcome::Unable);
    watch.record(Err(ProbeError::answer("status 503")), begun, &outbox);
    assert_eq!(watch.status(&target.id()).state, State::Down);
}
