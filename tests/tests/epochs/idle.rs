//! Connections that say nothing for long, and then want an answer.

use std::fs::File;
use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::os::fd::AsFd as _;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use nix::sched::{CloneFlags, setns};

/// Longest wait for an answer: retransmissions included.
const LIMIT: Duration = Duration::from_secs(20);
/// Connections of one thread.
const SHARE: usize = 50;

/// Connections that are open and idle.
pub(crate) struct Idle {
    streams: Vec<TcpStream>,
}

impl Idle {
    /// Opens so many from the network namespace whose file is `namespace`, and has each answer one request.
    pub(crate) fn open(namespace: &Path, server: SocketAddr, count: usize) -> Result<Self> {
        let file = File::open(namespace)?;
        // A thread of its own: the namespace is the thread's.
        let opened = std::thread::spawn(move || -> Result<Vec<TcpStream>> {
            setns(file.as_fd(), CloneFlags::CLONE_NEWNET).context("entering the namespace")?;
            (0..count).map(|_| open(server)).collect()
        });
        let mut idle = Self { streams: opened.join().expect("invariant: it returns what goes wrong")? };
        let answered = idle.wake();
        ensure!(answered == count, "{answered} of {count} connections work at all");
        Ok(idle)
    }

    /// Sends a request on each at the same time; on how many the whole right answer came.
    pub(crate) fn wake(&mut self) -> usize {
        std::thread::scope(|scope| {
            let shares = self.streams.chunks_mut(SHARE);
            let threads: Vec<_> = shares
                .map(|share| {
                    scope.spawn(move || {
                        // All are awake before the first answer is waited for.
                        let asked: Vec<bool> = share.iter_mut().map(|stream| ask(stream).is_ok()).collect();
                        let answers = share.iter_mut().zip(asked);
                        answers
                            .filter_map(|(stream, asked)| (asked && answer(stream).is_ok()).then_some(()))
                            .count()
                    })
                })
                .collect();
            threads
                .into_iter()
                .map(|thread| thread.join().expect("invariant: it returns what goes wrong"))
                .sum()
        })
    }
}

fn open(server: SocketAddr) -> Result<TcpStream> {
    let stream = TcpStream::connect_timeout(&server, LIMIT)?;
    stream.set_read_timeout(Some(LIMIT))?;
    Ok(stream)
}

fn ask(stream: &mut TcpStream) -> Result<()> {
    Ok(stream.write_all(b"GET /tiny HTTP/1.1\r\nHost: web\r\n\r\n")?)
}

/// Head and 64 bytes.
fn answer(stream: &mut TcpStream) -> Result<()> {
    let (mut got, mut buffer) = (Vec::new(), [0; 1024]);
    loop {
        let read = stream.read(&mut buffer)?;
        ensure!(read > 0, "closed");
        got.extend_from_slice(&buffer[..read]);
        let head = got.windows(4).position(|end| end == b"\r\n\r\n");
        if let Some(head) = head.filter(|head| got.len() >= head + 4 + 64) {
            ensure!(got.starts_with(b"HTTP/1.1 200 ") && got.len() == head + 4 + 64, "another answer");
            return Ok(());
        }
    }
}
