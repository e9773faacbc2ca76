//! The control socket: gRPC over a Unix socket, for root on the same host.
//!
//! By default the socket is abstract (`@director`): there is one per network namespace, no file is left
//! behind, and a second director in the same namespace fails to start instead of stealing it.

use std::fmt;
use std::io;
use std::os::linux::net::SocketAddrExt as _;
use std::os::unix::net::{SocketAddr, UnixListener as StdUnixListener, UnixStream as StdUnixStream};
use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use director_proto::control::control_client::ControlClient;
use director_proto::control::{RealServer, StatusRequest};
use hyper_util::rt::TokioIo;
use tokio::net::{UnixListener, UnixStream};
use tokio::time::Instant;
use tonic::transport::{Channel, Endpoint};

/// How long a director that was killed may hold its control socket.
const ENDING: Duration = Duration::from_secs(10);
/// Whoever lives answers within this time.
const ANSWER: Duration = Duration::from_secs(1);
/// Between two attempts to get the socket.
const RETRY: Duration = Duration::from_millis(50);

/// A real server's address and port as text; brackets keep IPv6 apart from its port (RFC 5952, section 6).
pub(crate) fn real_server_name(real: &RealServer) -> String {
    match real.address.contains(':') {
        true => format!("[{}]:{}", real.address, real.port),
        false => format!("{}:{}", real.address, real.port),
    }
}

/// Where the control socket is: `@NAME` is abstract, anything else a path.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Socket {
    /// A name in the abstract namespace of the network namespace.
    Abstract(String),
    /// A file.
    Path(PathBuf),
}

impl Default for Socket {
    fn default() -> Self {
        Self::Abstract("director".to_owned())
    }
}

impl FromStr for Socket {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text.strip_prefix('@') {
            Some("") => Err("an abstract socket needs a name after '@'".to_owned()),
            Some(name) if name.len() > 100 => {
                Err("an abstract socket's name has at most 100 bytes".to_owned())
            }
            Some(name) => Ok(Self::Abstract(name.to_owned())),
            None if text.is_empty() => Err("the socket's name is empty".to_owned()),
            None => Ok(Self::Path(text.into())),
        }
    }
}

impl fmt::Display for Socket {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Abstract(name) => write!(f, "@{name}"),
            Self::Path(path) => path.display().fmt(f),
        }
    }
}

/// Why the control socket cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ControlError {
    /// The address is taken.
    #[error(
        "another director runs here: the control socket {0} is in use; stop it, or give --socket another name"
    )]
    InUse(Socket),
    /// Nobody listens.
    #[error(
        "no director runs here (control socket {0}); start one with `director run`, or enter its network namespace"
    )]
    NoDirector(Socket),
    /// Anything else.
    #[error("control socket {socket}")]
    Io {
        /// The socket.
        socket: Socket,
        /// What the system said.
        source: io::Error,
    },
    /// The connection came to be but gRPC did not.
    #[error("control socket {socket}")]
    Transport {
        /// The socket.
        socket: Socket,
        /// What tonic said.
        source: tonic::transport::Error,
    },
}

impl Socket {
    fn address(&self) -> io::Result<SocketAddr> {
        match self {
            Self::Abstract(name) => SocketAddr::from_abstract_name(name),
            Self::Path(path) => SocketAddr::from_pathname(path),
        }
    }

    /// Listens. A socket file that nobody serves any more is replaced.
    pub fn listen(&self) -> Result<UnixListener, ControlError> {
        let wrap = |source| ControlError::Io { socket: self.clone(), source };
        let address = self.address().map_err(wrap)?;
        let listener = match StdUnixListener::bind_addr(&address) {
            Err(error) if error.kind() == io::ErrorKind::AddrInUse => match self {
                Self::Path(path) if StdUnixStream::connect(path).is_err() => {
                    std::fs::remove_file(path).map_err(wrap)?;
                    StdUnixListener::bind_addr(&address).map_err(wrap)?
                }
                _ => return Err(ControlError::InUse(self.clone())),
            },
            other => other.map_err(wrap)?,
        };
        listener.set_nonblocking(true).map_err(wrap)?;
        UnixListener::from_std(listener).map_err(wrap)
    }

    /// Listens as soon as a director that is ending has let go of the socket: the kernel closes what a killed process
    /// had open some time after the kill. One that lives answers, and is not waited for.
    ///
    /// # Errors
    /// [`ControlError::InUse`] when another director answers, or holds on for [`ENDING`].
    pub async fn take(&self) -> Result<UnixListener, ControlError> {
        let deadline = Instant::now() + ENDING;
        loop {
            match self.listen() {
                Err(ControlError::InUse(_)) if Instant::now() < deadline && !self.is_answered().await => {
                    tokio::time::sleep(RETRY).await;
                }
                other => return other,
            }
        }
    }

    async fn is_answered(&self) -> bool {
        let ask = async { self.connect().await.ok()?.get_status(StatusRequest {}).await.ok() };
        matches!(tokio::time::timeout(ANSWER, ask).await, Ok(Some(_)))
    }

    /// Connects to the director that listens.
    pub async fn connect(&self) -> Result<ControlClient<Channel>, ControlError> {
        // A first connection tells "nobody there" from anything gRPC may say later.
        self.stream().map_err(|source| match source.kind() {
            io::ErrorKind::ConnectionRefused | io::ErrorKind::NotFound => {
                ControlError::NoDirector(self.clone())
            }
            _ => ControlError::Io { socket: self.clone(), source },
        })?;
        let socket = self.clone();
        let connector = tower::service_fn(move |_| {
            let socket = socket.clone();
            async move { Ok::<_, io::Error>(TokioIo::new(UnixStream::from_std(socket.stream()?)?)) }
        });
        let channel = Endpoint::from_static("http://director.invalid")
            .connect_with_connector(connector)
            .await
            .map_err(|source| ControlError::Transport { socket: self.clone(), source })?;
        Ok(ControlClient::new(channel).max_decoding_message_size(256 << 20))
    }

    fn stream(&self) -> io::Result<StdUnixStream> {
        let stream = StdUnixStream::connect_addr(&self.address()?)?;
        stream.set_nonblocking(true)?;
        Ok(stream)
    }
}

/// Connections from root; others are closed and logged.
pub fn from_root(listener: UnixListener) -> impl futures::Stream<Item = io::Result<UnixStream>> {
    futures::stream::unfold(listener, |listener| async {
        loop {
            match listener.accept().await {
                Ok((stream, _)) => match stream.peer_cred() {
                    Ok(peer) if peer.uid() == 0 => return Some((Ok(stream), listener)),
                    Ok(peer) => tracing::warn!(uid = peer.uid(), "control connection refused: root only"),
                    Err(error) => tracing::warn!(%error, "control connection refused: no credentials"),
                },
                Err(error) => {
                    tracing::warn!(%error, "control socket");
                    tokio::time::sleep(Duration::from_millis(100)).await;
                }
            }
        }
    })
}

#[cfg(test)]
mod tests {
    use super::{ControlError, Socket};

    fn unique(name: &str) -> Socket {
        Socket::Abstract(format!("director-test-{name}-{}", std::process::id()))
    }

    #[tokio::test]
    async fn a_second_director_is_told_of_the_first() {
        let socket = unique("second");
        let _first = socket.listen().expect("free");
        assert!(matches!(socket.listen(), Err(ControlError::InUse(_))));
    }

    #[tokio::test]
    async fn a_director_that_ends_is_waited_for() {
        let socket = unique("ending");
        let first = socket.listen().expect("free"); // accepts nobody, as a killed one
        let (taken, ()) = tokio::join!(socket.take(), async {
            tokio::time::sleep(super::RETRY).await;
            drop(first);
        });
        assert!(taken.is_ok());
    }

    #[tokio::test]
    async fn nobody_there_is_said_so() {
        assert!(matches!(unique("nobody").connect().await, Err(ControlError::NoDirector(_))));
    }

    #[tokio::test]
    async fn a_socket_file_left_behind_is_replaced() {
        let folder = tempfile::tempdir().expect("temporary folder");
        let socket = Socket::Path(folder.path().join("control"));
        drop(socket.listen().expect("free"));
        let _second = socket.listen().expect("left behind by the first");
        assert!(matches!(socket.listen(), Err(ControlError::InUse(_))));
    }
}
