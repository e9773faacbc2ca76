use std::net::SocketAddr;
use std::time::{Duration, Instant};

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};

use super::{Book, Load, Plan, Sample, Target, content};

/// How a test server treats its downloads.
#[derive(Clone, Copy)]
enum Manner {
    Good,
    /// One byte differs.
    Lying,
    /// RST after the first kilobyte.
    Resetting,
    /// Closes after the first kilobyte.
    Closing,
    /// Says nothing more after the first kilobyte.
    Silent,
}

const LENGTH: u64 = 20_000;

async fn serve(manner: Manner) -> SocketAddr {
    serve_at("127.0.0.1:0", "real1", manner).await
}

/// A server that calls itself `name`.
async fn serve_at(at: &str, name: &'static str, manner: Manner) -> SocketAddr {
    let listener = TcpListener::bind(at).await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            tokio::spawn(answer(stream, name, manner));
        }
    });
    address
}

async fn answer(mut stream: TcpStream, name: &str, manner: Manner) -> std::io::Result<()> {
    loop {
        let mut request = vec![0; 1024];
        let count = stream.read(&mut request).await?;
        if count == 0 {
            return Ok(());
        }
        let request = String::from_utf8_lossy(&request[..count]).into_owned();
        let range = request.split("bytes=").nth(1).and_then(|rest| rest.lines().next());
        let range = range.map(|range| range.split_once('-').unwrap());
        let number = |text: &str| text.parse::<u64>().unwrap();
        let (status, from, length) =
            range.map_or((200, 0, 64), |(from, to)| (206, number(from), number(to) + 1 - number(from)));
        let mut body = vec![0; usize::try_from(length).unwrap()];
        content::fill(from, &mut body);
        stream
            .write_all(
                format!("HTTP/1.1 {status} x\r\nX-Served-By: {name}\r\nContent-Length: {length}\r\n\r\n")
                    .as_bytes(),
            )
            .await?;
        if status == 200 {
            stream.write_all(&body).await?;
            continue;
        }
        match manner {
            Manner::Good => {}
            Manner::Lying => body.iter_mut().skip(700).take(1).for_each(|byte| *byte ^= 0x40),
            Manner::Resetting | Manner::Closing | Manner::Silent => body.truncate(1024),
        }
        stream.write_all(&body).await?;
        match manner {
            Manner::Good | Manner::Lying => {}
            Manner::Resetting => return socket2::SockRef::from(&stream).set_linger(Some(Duration::ZERO)),
            Manner::Closing => return Ok(()),
            Manner::Silent => std::future::pending().await,
        }
    }
}

fn target(address: SocketAddr, connections: usize, rate: u32) -> Target {
    Target { name: address.to_string(), address, connections, rate }
}

async fn until(manner: Manner, done: impl Fn(&Book) -> bool) -> (Load, Book) {
    let (load, sample) =
        until_all(vec![target(serve(manner).await, 5, 50)], |sample| done(&sample.services[0])).await;
    (load, sample.services[0].clone())
}

async fn until_all(targets: Vec<Target>, done: impl Fn(&Sample) -> bool) -> (Load, Sample) {
    let mut plan = Plan::new(targets);
    plan.piece_bytes = 3000;
    plan.content_bytes = LENGTH;
    plan.read_every = Duration::from_millis(5);
    plan.time_limit = Duration::from_millis(400);
    let load = Load::start(plan);
    let sample = wait(&load, done).await;
    (load, sample)
}

async fn wait(load: &Load, done: impl Fn(&Sample) -> bool) -> Sample {
    let start = Instant::now();
    loop {
        let sample = load.sample();
        if done(&sample) {
            return sample;
        }
        assert!(start.elapsed() < Duration::from_secs(20), "not reached: {sample:?}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

#[tokio::test]
async fn good_servers_leave_no_complaint() {
    let (load, _) =
        until(Manner::Good, |s| s.alive == 5 && s.bytes > 5 * LENGTH && s.requests.succeeded > 10).await;
    let report = load.stop().await;
    assert!(report.total.clean(), "{report:?}");
    let mut sources: Vec<_> = report.connections.iter().map(|c| c.source.unwrap()).collect();
    sources.sort();
    sources.dedup();
    assert_eq!(sources.len(), 5);
}

#[tokio::test]
async fn wrong_bytes_are_counted_and_do_not_end_a_download() {
    let (_, sample) = until(Manner::Lying, |s| s.bytes >= 5 * 800 && s.wrong_bytes >= 5).await;
    assert_eq!(sample.failures.total(), 0);
}

#[tokio::test]
async fn resets_closings_and_silence_are_told_apart() {
    let (_, sample) = until(Manner::Resetting, |s| s.failures.total() == 5).await;
    assert_eq!(sample.failures.reset, 5, "{sample:?}");
    let (_, sample) = until(Manner::Closing, |s| s.failures.total() == 5).await;
    assert_eq!(sample.failures.closed, 5, "{sample:?}");
    let (load, sample) = until(Manner::Silent, |s| s.failures.total() == 5).await;
    assert_eq!(sample.failures.timed_out, 5, "{sample:?}");
    assert!(sample.stall_since_mark_ms >= 390, "{sample:?}");
    load.mark();
    assert_eq!(load.sample().services[0].stall_since_mark_ms, 0);
    assert!(load.connections().iter().all(|c| c.longest_stall_ms >= 390));
}

#[tokio::test]
async fn a_refused_connection_is_a_reset() {
    let closed = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
    until_all(vec![target(closed, 1, 0)], |s| s.services[0].failures.reset == 1).await;
}

#[tokio::test]
async fn each_service_of_either_family_has_its_own_account() {
    let good = serve_at("[::1]:0", "real6", Manner::Good).await;
    let bad = serve_at("127.0.0.1:0", "real4", Manner::Resetting).await;
    let (_, sample) = until_all(vec![target(good, 3, 50), target(bad, 4, 0)], |s| {
        s.services[0].alive == 3 && s.services[0].requests.succeeded > 5 && s.services[1].failures.reset == 4
    })
    .await;
    let [six, four] = &sample.services[..] else { panic!("{sample:?}") };
    assert_eq!((six.resets(), six.losses(), six.service.as_str()), (0, 0, good.to_string().as_str()));
    assert_eq!((four.resets(), four.requests.started), (4, 0));
    assert_eq!((six.reals["real6"].held, six.reals.len()), (3, 1), "{six:?}");
    assert!(six.reals["real6"].opened > 8, "{six:?}");
    assert_eq!((four.reals["real4"].held, four.reals["real4"].opened), (0, 4), "{four:?}");
    assert!(!sample.clean() && sample.real("real6").held == 3);
}

#[tokio::test]
async fn a_retired_download_ends_well_and_begins_anew_elsewhere() {
    let (load, _) = until(Manner::Good, |s| s.alive == 5).await;
    let before: Vec<_> = load.connections().iter().map(|c| c.source).collect();
    assert_eq!(load.retire("another", Duration::ZERO), 0);
    assert_eq!(load.retire("real1", Duration::from_millis(50)), 5);
    let renewed = |s: &Sample| s.services[0].alive == 5 && load.connections().iter().all(|c| c.renewed == 1);
    let sample = wait(&load, renewed).await;
    assert!(sample.clean(), "{sample:?}");
    assert!(load.connections().iter().zip(before).all(|(c, before)| c.source != before), "new connections");
    assert!(sample.real("real1").opened >= 10, "{sample:?}");
}
