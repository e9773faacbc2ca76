//! The dialling side: one task per configured peer and kind of connection, which keeps the connection up.

use std::error::Error;
use std::hash::{DefaultHasher, Hash as _, Hasher as _};
use std::io;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use director_proto::sync::wire::{self, sync_client::SyncClient};
use director_proto::sync::{Frame, Hello, MAX_FRAME};
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio::sync::mpsc;
use tokio::time::{sleep, timeout};
use tokio_rustls::rustls::pki_types::{CertificateDer, ServerName};
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::{Channel, Endpoint};
use tonic::{Request, Streaming};
use tower::service_fn;
use tracing::debug;

use super::session::{Session, SessionError};
use super::tls::{self, Tls};
use super::{Kind, NetEvent, Origin};

/// Time to open a connection, and for the response to the call.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(1);

/// Pause after the first failure; doubles up to [`LONGEST_PAUSE`].
const SHORTEST_PAUSE: Duration = Duration::from_millis(50);

/// Longest pause before another attempt.
const LONGEST_PAUSE: Duration = Duration::from_secs(2);

/// Pause after a refusal: somebody has to change something first.
const REFUSED_PAUSE: Duration = Duration::from_secs(5);

type BoxError = Box<dyn Error + Send + Sync>;

/// What it takes to keep one connection to one peer.
#[derive(Clone)]
pub(crate) struct Dialer {
    /// Index in the configured peers.
    pub(crate) peer: usize,
    pub(crate) address: SocketAddr,
    pub(crate) kind: Kind,
    pub(crate) tls: Option<Tls>,
    pub(crate) hello: Arc<Hello>,
    pub(crate) engine: mpsc::Sender<NetEvent>,
}

/// How an attempt ended.
enum Ended {
    /// After it had been up.
    Worked,
    /// Before that.
    Unreachable(String),
    /// One of the two does not talk with the other.
    Refused(String),
}

impl Dialer {
    /// Connects, and again whenever the connection ends; never returns while the engine lives.
    pub(crate) async fn run(self) {
        let mut attempt: u32 = 0;
        while !self.engine.is_closed() {
            let (event, pause) = match self.connect().await {
                Ended::Worked => {
                    attempt = 0;
                    (None, SHORTEST_PAUSE)
                }
                Ended::Unreachable(reason) => {
                    attempt = attempt.saturating_add(1);
                    (Some(NetEvent::Unreachable { peer: self.peer, reason }), backoff(attempt))
                }
                Ended::Refused(reason) => {
                    let origin = Origin::Dialled(self.peer);
                    (Some(NetEvent::Refused { origin, reason }), REFUSED_PAUSE)
                }
            };
            if let Some(event) = event {
                let _ = self.engine.send(event).await;
            }
            sleep(self.jitter(pause, attempt)).await;
        }
    }

    async fn connect(&self) -> Ended {
        let (outgoing, incoming, certificate) = match self.open().await {
            Ok(opened) => opened,
            Err(error) if tls::is_certificate_error(&*error) => return Ended::Refused(chain(&*error)),
            Err(error) => return Ended::Unreachable(chain(&*error)),
        };
        let mut session = Session {
            kind: self.kind,
            origin: Origin::Dialled(self.peer),
            cluster: self.hello.cluster.clone(),
            certificate,
            incoming,
            outgoing,
            engine: self.engine.clone(),
        };
        let error = match session.greet(None).await {
            Ok(taken) => session.run(taken).await,
            Err(error @ SessionError::WeRefuse(_)) => {
                session.linger().await;
                error
            }
            Err(SessionError::Broken(status)) if tls::is_certificate_error(&*status) => {
                return Ended::Refused(chain(&*status));
            }
            Err(SessionError::Broken(status)) => return Ended::Unreachable(chain(&*status)),
            Err(error @ (SessionError::NoGreeting | SessionError::Closed)) => {
                return Ended::Unreachable(error.to_string());
            }
            Err(error) => error,
        };
        match error {
            SessionError::WeRefuse(_) | SessionError::PeerRefuses(_) | SessionError::Violation(_) => {
                Ended::Refused(error.to_string())
            }
            error => {
                debug!(address = %self.address, kind = ?self.kind, %error, "connection ended");
                Ended::Worked
            }
        }
    }

    /// Opens the connection and the stream on it, with our greeting as its first frame.
    async fn open(&self) -> Result<Opened, BoxError> {
        let stream = timeout(CONNECT_TIMEOUT, TcpStream::connect(self.address)).await??;
        stream.set_nodelay(true)?;
        let (channel, certificate) = match &self.tls {
            None => (self.channel(stream).await?, None),
            Some(tls) => {
                let name = ServerName::from(self.address.ip());
                let stream = timeout(CONNECT_TIMEOUT, tls.connector().connect(name, stream)).await??;
                let chain = stream.get_ref().1.peer_certificates();
                let certificate =
                    chain.and_then(|chain| chain.first()).cloned().map(CertificateDer::into_owned);
                (self.channel(stream).await?, certificate)
            }
        };
        let mut client = SyncClient::new(channel).max_decoding_message_size(MAX_FRAME);
        let (outgoing, frames) = mpsc::channel(self.kind.queue());
        outgoing.send(wire::Frame::from(&Frame::Hello((*self.hello).clone()))).await?;
        let request = Request::new(ReceiverStream::new(frames));
        let call = async {
            match self.kind {
                Kind::Exchange => client.exchange(request).await,
                Kind::Beat => client.beat(request).await,
                Kind::Pins => client.pins(request).await,
            }
        };
        let incoming = timeout(CONNECT_TIMEOUT, call).await??.into_inner();
        Ok((outgoing, incoming, certificate))
    }

    /// An HTTP/2 connection over `stream` and nothing else: to open another one is up to [`Self::run`].
    async fn channel<S>(&self, stream: S) -> Result<Channel, tonic::transport::Error>
    where
        S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
    {
        let stream = Mutex::new(Some(stream));
        let connector = service_fn(move |_| {
            let stream = stream.lock().ok().and_then(|mut stream| stream.take());
            async { stream.map(TokioIo::new).ok_or_else(|| io::Error::other("the connection has ended")) }
        });
        Endpoint::from_shared(format!("http://{}", self.address))?
            .connect_timeout(CONNECT_TIMEOUT)
            .http2_keep_alive_interval(Duration::from_secs(1))
            .keep_alive_timeout(Duration::from_secs(3))
            .keep_alive_while_idle(true)
            .connect_with_connector(connector)
            .await
    }

    /// Between half and all of `pause`, different for every director, so that not all dial at once.
    fn jitter(&self, pause: Duration, attempt: u32) -> Duration {
        let mut hash = DefaultHasher::new();
        (self.hello.boot_id, self.peer, self.kind as u8, attempt).hash(&mut hash);
        let percent = 50 + u32::try_from(hash.finish() % 51).unwrap_or(0);
        pause * percent / 100
    }
}

type Opened = (mpsc::Sender<wire::Frame>, Streaming<wire::Frame>, Option<CertificateDer<'static>>);

fn backoff(attempt: u32) -> Duration {
    SHORTEST_PAUSE.saturating_mul(1 << attempt.min(10)).min(LONGEST_PAUSE)
}

/// An error with what caused it: the outermost text alone ("transport error") says nothing.
fn chain(error: &(dyn Error + 'static)) -> String {
    let mut text = match error.downcast_ref::<tonic::Status>() {
        Some(status) => status.message().to_owned(),
        None => error.to_string(),
    };
    let mut next = error.source();
    while let Some(error) = next {
        let cause = error.to_string();
        if !text.contains(&cause) {
            text = format!("{text}: {cause}");
        }
        next = error.source();
    }
    text
}
