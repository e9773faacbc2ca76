//! `tcp`: the real server accepts a connection.

use std::borrow::Cow;
use std::io;
use std::net::SocketAddr;

use tokio::net::{TcpSocket, TcpStream};

use super::probe::ProbeError;

/// Settings of the kind `tcp`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct Tcp {
    /// `reset`: end the connection by RST (`SO_LINGER` 0) rather than by FIN. It leaves no socket in TIME_WAIT on the
    /// director, which matters with thousands of real servers; some servers log each reset, so it is off by default.
    pub reset: bool,
}

impl Tcp {
    pub(super) async fn probe(&self, to: SocketAddr) -> Result<Cow<'static, str>, ProbeError> {
        let stream = connect(to).await?;
        if self.reset {
            stream.set_zero_linger()?;
        }
        Ok("connected".into())
    }
}

/// A connection to `to`, without delay for small writes.
pub(super) async fn connect(to: SocketAddr) -> io::Result<TcpStream> {
    let socket = match to {
        SocketAddr::V4(_) => TcpSocket::new_v4()?,
        SocketAddr::V6(_) => TcpSocket::new_v6()?,
    };
    socket.set_nodelay(true)?;
    socket.connect(to).await
}
