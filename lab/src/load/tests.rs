use std::net::SocketAddr;
use std::time::{Duration, Instant};

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};

use super::{Load, Plan, Sample, content};

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
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            tokio::spawn(answer(stream, manner));
        }
    });
    address
}

async fn answer(mut stream: TcpStream, manner: Manner) -> std::io::Result<()> {
    loop {
        let mut request = vec![0; 1024];
        let count = stream.read(&mut request).await?;
        if count == 0 {
            return Ok(());
        }
        let request = String::from_utf8_lossy(&request[..count]).into_owned();
        let from = request
            .split("bytes=")
            .nth(1)
            .and_then(|rest| rest.split('-').next())
            .map(|n| n.parse::<u64>().unwrap());
        let (status, from, length) = from.map_or((200, 0, 64), |from| (206, from, LENGTH - from));
        let mut body = vec![0; usize::try_from(length).unwrap()];
        content::fill(from, &mut body);
        stream
            .write_all(format!("HTTP/1.1 {status} x\r\nContent-Length: {length}\r\n\r\n").as_bytes())
            .await?;
        if status == 200 {
            stream.write_all(&body).await?;
            continue;
        }
        match manner {
            Manner::Good => {}
            Manner::Lying => body[700] ^= 0x40,
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

async fn until(manner: Manner, done: impl Fn(&Sample) -> bool) -> (Load, Sample) {
    let mut plan = Plan::new(serve(manner).await, 5, 50);
    plan.content_bytes = LENGTH;
    plan.read_every = Duration::from_millis(5);
    plan.time_limit = Duration::from_millis(400);
    let load = Load::start(plan);
    let start = Instant::now();
    loop {
        let sample = load.sample();
        if done(&sample) {
            return (load, sample);
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
    assert_eq!((report.total.failures.total(), report.total.wrong_bytes), (0, 0));
    assert_eq!(report.total.requests.failures.total(), 0);
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
    assert_eq!(load.sample().stall_since_mark_ms, 0);
    assert!(load.connections().iter().all(|c| c.longest_stall_ms >= 390));
}

#[tokio::test]
async fn a_refused_connection_is_a_reset() {
    let closed = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
    let load = Load::start(Plan::new(closed, 1, 0));
    let start = Instant::now();
    while load.sample().failures.reset != 1 {
        assert!(start.elapsed() < Duration::from_secs(5), "{:?}", load.sample());
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}
