//! Just enough HTTP/1.1 to fetch content at a pace that the caller sets. An HTTP library would read ahead, and how long
//! a byte took to come is what is measured here.

use std::ops::Range;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

use super::Failure;

/// Longest response head accepted, bytes.
const MAX_HEAD: usize = 4096;

/// The header by which a real server says which one it is.
const SERVED_BY: &str = "x-served-by";

/// What a response's head says.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Head {
    pub(super) status: u16,
    pub(super) length: u64,
    /// The real server that answered, if it said so.
    pub(super) served_by: Option<String>,
    /// Bytes of the body that came with the head.
    pub(super) body: Vec<u8>,
}

/// Sends a request; `piece` asks for these bytes of the content only.
pub(super) async fn send(
    stream: &mut TcpStream,
    path: &str,
    piece: Option<Range<u64>>,
    close: bool,
) -> Result<(), Failure> {
    let bytes =
        |piece: Range<u64>| format!("Range: bytes={}-{}\r\n", piece.start, piece.end.saturating_sub(1));
    let range = piece.map(bytes).unwrap_or_default();
    let connection = if close { "close" } else { "keep-alive" };
    let request = format!("GET {path} HTTP/1.1\r\nHost: lab\r\n{range}Connection: {connection}\r\n\r\n");
    stream.write_all(request.as_bytes()).await.map_err(|error| Failure::of(&error))
}

/// Reads a response's head.
pub(super) async fn receive_head(stream: &mut TcpStream) -> Result<Head, Failure> {
    let mut bytes = Vec::with_capacity(512);
    loop {
        let mut piece = [0_u8; 512];
        let count = stream.read(&mut piece).await.map_err(|error| Failure::of(&error))?;
        if count == 0 {
            return Err(Failure::Closed);
        }
        bytes.extend_from_slice(&piece[..count]);
        if let Some(end) = bytes.windows(4).position(|four| four == b"\r\n\r\n") {
            let body = bytes.split_off(end + 4);
            return parse_head(&bytes, body).ok_or(Failure::Wrong);
        }
        if bytes.len() > MAX_HEAD {
            return Err(Failure::Wrong);
        }
    }
}

fn parse_head(bytes: &[u8], body: Vec<u8>) -> Option<Head> {
    let text = std::str::from_utf8(bytes).ok()?;
    let mut lines = text.split("\r\n");
    let status = lines.next()?.strip_prefix("HTTP/1.1 ")?.get(..3)?.parse().ok()?;
    let headers: Vec<_> = lines.filter_map(|line| line.split_once(':')).collect();
    let header = |wanted: &str| {
        headers.iter().find(|(name, _)| name.eq_ignore_ascii_case(wanted)).map(|(_, value)| value.trim())
    };
    let length = header("content-length")?.parse().ok()?;
    Some(Head { status, length, served_by: header(SERVED_BY).map(str::to_owned), body })
}

#[cfg(test)]
mod tests {
    use super::parse_head;

    #[test]
    fn heads_without_status_or_length_are_wrong() {
        let head = |text: &str| parse_head(text.as_bytes(), Vec::new());
        let good = head("HTTP/1.1 206 Partial Content\r\ncontent-LENGTH: 12\r\n\r\n").unwrap();
        assert_eq!((good.status, good.length, good.served_by), (206, 12, None));
        let named = head("HTTP/1.1 200 OK\r\nX-Served-By: real1\r\nContent-Length: 0\r\n\r\n").unwrap();
        assert_eq!(named.served_by.as_deref(), Some("real1"));
        for bad in [
            "",
            "HTTP/1.1",
            "HTTP/1.1 2\r\n",
            "HTTP/1.1 200 OK\r\n\r\n",
            "ICY 200 OK\r\nContent-Length: 1\r\n",
        ] {
            assert_eq!(head(bad), None, "{bad}");
        }
    }
}
