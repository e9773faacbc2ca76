//! `udp`: a datagram is not refused, or is answered as expected.

use std::borrow::Cow;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};

use tokio::net::UdpSocket;

use super::CheckError;
use super::probe::ProbeError;

/// Settings of the kind `udp`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct Udp {
    /// `payload`: what is sent; may be empty.
    pub payload: Vec<u8>,
    /// `expect`: what must come back.
    pub reply: Reply,
}

/// What must come back within the timeout.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub enum Reply {
    /// Nothing: silence until the timeout passes, as in keepalived; only a refusal (ICMP port unreachable) fails. The
    /// probe then takes the whole timeout.
    #[default]
    NotRequired,
    /// A datagram, whatever it holds.
    Any,
    /// A datagram in which these bytes occur.
    Contains(Vec<u8>),
}

impl Udp {
    /// Whether silence until the timeout is as good as an answer.
    pub(super) fn silence_passes(&self) -> bool {
        self.reply == Reply::NotRequired
    }

    pub(super) fn validate(&self) -> Result<(), CheckError> {
        match &self.reply {
            Reply::Contains(bytes) if bytes.is_empty() => Err(CheckError::Conflict {
                key: "expect",
                problem: "is empty: leave it out where no answer is required",
            }),
            _ => Ok(()),
        }
    }

    pub(super) async fn probe(&self, to: SocketAddr) -> Result<Cow<'static, str>, ProbeError> {
        let socket = connect(to).await?;
        socket.send(&self.payload).await?;
        let mut buffer = vec![0; usize::from(u16::MAX)];
        let length = socket.recv(&mut buffer).await?;
        let reply = buffer.get(..length).unwrap_or_default();
        match &self.reply {
            Reply::NotRequired | Reply::Any => Ok(format!("answered {length} bytes").into()),
            Reply::Contains(bytes) if reply.windows(bytes.len()).any(|window| window == bytes) => {
                Ok(format!("answered {length} bytes").into())
            }
            Reply::Contains(_) => {
                Err(ProbeError::answer(format!("what is expected is not in the {length} bytes answered")))
            }
        }
    }
}

/// A socket of its own that takes datagrams, and refusals, from `to` alone.
pub(super) async fn connect(to: SocketAddr) -> std::io::Result<UdpSocket> {
    let any: SocketAddr = match to {
        SocketAddr::V4(_) => (Ipv4Addr::UNSPECIFIED, 0).into(),
        SocketAddr::V6(_) => (Ipv6Addr::UNSPECIFIED, 0).into(),
    };
    let socket = UdpSocket::bind(any).await?;
    socket.connect(to).await?;
    Ok(socket)
}
