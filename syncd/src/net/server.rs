//! The listening side: accepts connections, does the TLS handshake, serves the two streams.

use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::time::{Duration, Instant};

use director_proto::sync::wire::{self, frame::Body, sync_server};
use director_proto::sync::{Hello, MAX_FRAME};
use futures::{Stream, StreamExt as _};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, mpsc};
use tokio::time::timeout;
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::Server;
use tonic::transport::server::Connected;
use tonic::{Request, Response, Status, Streaming};
use tracing::{debug, warn};

use super::session::{Session, SessionError};
use super::tls::Tls;
use super::{Kind, NetEvent, Origin};

/// Handshakes under way at one time; beyond that, connections wait.
const MAX_HANDSHAKES: usize = 64;

/// Time for a handshake.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(3);

/// Pause after a failed accept (out of descriptors, mostly), and at least so long between two warnings.
const PAUSE: Duration = Duration::from_millis(500);

type Frames = Pin<Box<dyn Stream<Item = Result<wire::Frame, Status>> + Send>>;

/// The service behind the listener.
#[derive(Clone)]
pub(crate) struct SyncService {
    pub(crate) hello: Arc<Hello>,
    pub(crate) engine: mpsc::Sender<NetEvent>,
}

impl SyncService {
    /// Answers at once, as a client waits for the response before it sends; the greeting follows in the stream.
    fn open(&self, kind: Kind, request: Request<Streaming<wire::Frame>>) -> Response<Frames> {
        let remote = request.remote_addr();
        let certificate = request.peer_certs().and_then(|chain| chain.first().cloned());
        let (outgoing, frames) = mpsc::channel(kind.queue());
        let session = Session {
            kind,
            origin: Origin::Accepted(remote),
            cluster: self.hello.cluster.clone(),
            certificate,
            incoming: request.into_inner(),
            outgoing,
            engine: self.engine.clone(),
        };
        tokio::spawn(attend(session, Arc::clone(&self.hello)));
        Response::new(Box::pin(ReceiverStream::new(frames).flat_map(refusal_as_status)))
    }
}

#[tonic::async_trait]
impl sync_server::Sync for SyncService {
    type ExchangeStream = Frames;
    type BeatStream = Frames;
    type PinsStream = Frames;

    async fn exchange(&self, request: Request<Streaming<wire::Frame>>) -> Result<Response<Frames>, Status> {
        Ok(self.open(Kind::Exchange, request))
    }

    async fn beat(&self, request: Request<Streaming<wire::Frame>>) -> Result<Response<Frames>, Status> {
        Ok(self.open(Kind::Beat, request))
    }

    async fn pins(&self, request: Request<Streaming<wire::Frame>>) -> Result<Response<Frames>, Status> {
        Ok(self.open(Kind::Pins, request))
    }
}

/// A refusal goes out as a frame and as the status that ends the stream.
fn refusal_as_status(frame: wire::Frame) -> impl Stream<Item = Result<wire::Frame, Status>> {
    let status = match &frame.body {
        Some(Body::Refusal(refusal)) => Some(Err(Status::failed_precondition(refusal.reason.clone()))),
        _ => None,
    };
    futures::stream::iter(std::iter::once(Ok(frame)).chain(status))
}

async fn attend(mut session: Session, hello: Arc<Hello>) {
    let (origin, kind, engine) = (session.origin, session.kind, session.engine.clone());
    let (error, refused) = match session.greet(Some(&hello)).await {
        Ok(taken) => (session.run(taken).await, None),
        Err(error) => (error, Some(session)),
    };
    match error {
        SessionError::WeRefuse(_) | SessionError::PeerRefuses(_) | SessionError::Violation(_) => {
            let _ = engine.send(NetEvent::Refused { origin, reason: error.to_string() }).await;
        }
        error => debug!(?origin, ?kind, %error, "connection ended"),
    }
    if let Some(session) = refused {
        session.linger().await;
    }
}

/// Serves connections of `listener` until dropped.
pub(crate) async fn serve(listener: TcpListener, tls: Option<Tls>, service: SyncService) {
    let result = match tls {
        Some(tls) => {
            let (connections, incoming) = mpsc::channel(16);
            let accept = accept_tls(listener, tls, connections, service.engine.clone());
            let incoming = ReceiverStream::new(incoming);
            tokio::select! { result = run(incoming, service) => result, () = accept => Ok(()) }
        }
        None => {
            let (connections, incoming) = mpsc::channel(16);
            let accept = accept_plain(listener, connections);
            let incoming = ReceiverStream::new(incoming);
            tokio::select! { result = run(incoming, service) => result, () = accept => Ok(()) }
        }
    };
    if let Err(error) = result {
        warn!(%error, "the sync service ended");
    }
}

async fn run<S>(
    incoming: impl Stream<Item = io::Result<S>>,
    service: SyncService,
) -> Result<(), tonic::transport::Error>
where
    S: AsyncRead + AsyncWrite + Connected + Unpin + Send + 'static,
{
    let service = sync_server::SyncServer::new(service).max_decoding_message_size(MAX_FRAME);
    Server::builder()
        .max_concurrent_streams(4)
        .http2_keepalive_interval(Some(Duration::from_secs(1)))
        .http2_keepalive_timeout(Some(Duration::from_secs(3)))
        .add_service(service)
        .serve_with_incoming(incoming)
        .await
}

async fn accept_plain(listener: TcpListener, connections: mpsc::Sender<io::Result<TcpStream>>) {
    while let Some((stream, _)) = accept(&listener).await {
        if connections.send(Ok(stream)).await.is_err() {
            return;
        }
    }
}

async fn accept_tls(
    listener: TcpListener,
    tls: Tls,
    connections: mpsc::Sender<io::Result<tokio_rustls::server::TlsStream<TcpStream>>>,
    engine: mpsc::Sender<NetEvent>,
) {
    let handshakes = Arc::new(Semaphore::new(MAX_HANDSHAKES));
    while let Some((stream, remote)) = accept(&listener).await {
        let Ok(permit) = Arc::clone(&handshakes).acquire_owned().await else { return };
        let (acceptor, connections, engine) = (tls.acceptor().clone(), connections.clone(), engine.clone());
        tokio::spawn(async move {
            let _permit = permit;
            let reason = match timeout(HANDSHAKE_TIMEOUT, acceptor.accept(stream)).await {
                Ok(Ok(stream)) => {
                    let _ = connections.send(Ok(stream)).await;
                    return;
                }
                Ok(Err(error)) => format!("TLS handshake failed: {error}"),
                Err(_) => format!("no TLS handshake within {HANDSHAKE_TIMEOUT:?}"),
            };
            let _ = engine.send(NetEvent::Refused { origin: Origin::Accepted(Some(remote)), reason }).await;
        });
    }
}

/// The next connection; waits out failures, which mostly are a lack of descriptors.
async fn accept(listener: &TcpListener) -> Option<(TcpStream, SocketAddr)> {
    let mut warned: Option<Instant> = None;
    loop {
        match listener.accept().await {
            Ok((stream, remote)) => {
                // Without it heartbeats are late, not wrong.
                let _ = stream.set_nodelay(true);
                return Some((stream, remote));
            }
            Err(error) => {
                if warned.is_none_or(|at| at.elapsed() > PAUSE * 20) {
                    warn!(%error, "cannot accept connections of peers");
                    warned = Some(Instant::now());
                }
                tokio::time::sleep(PAUSE).await;
            }
        }
    }
}
