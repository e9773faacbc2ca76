//! A connection after it is open: greeting, then frames until one side has enough.

use std::time::Duration;

use director_proto::sync::{Frame, Hello, wire};
use prost::Message as _;
use tokio::sync::{mpsc, oneshot};
use tokio::time::timeout;
use tokio_rustls::rustls::pki_types::CertificateDer;
use tonic::{Status, Streaming};

use super::{Kind, NetEvent, Origin, Taken, tls};
use crate::replica::Refusal;

/// Time for a peer to introduce itself.
const GREETING_TIMEOUT: Duration = Duration::from_secs(3);

/// Why a connection ended.
#[derive(Debug, thiserror::Error)]
pub(crate) enum SessionError {
    /// We do not talk with the peer; it is told so.
    #[error("refused: {0}")]
    WeRefuse(#[from] Refusal),
    /// The peer does not talk with us.
    #[error("the peer refuses us: {0}")]
    PeerRefuses(String),
    /// No greeting in time.
    #[error("no greeting within {GREETING_TIMEOUT:?}")]
    NoGreeting,
    /// Something that does not belong there.
    #[error("protocol violation: {0}")]
    Violation(String),
    /// The stream broke.
    #[error("{}", .0.message())]
    Broken(Box<Status>),
    /// The peer closed the stream.
    #[error("closed by the peer")]
    Closed,
    /// The engine has ended or prefers another connection.
    #[error("given up")]
    GivenUp,
}

/// What both roles know of a connection.
pub(crate) struct Session {
    pub(crate) kind: Kind,
    pub(crate) origin: Origin,
    pub(crate) cluster: String,
    /// With TLS, the certificate the peer has proved to own.
    pub(crate) certificate: Option<CertificateDer<'static>>,
    pub(crate) incoming: Streaming<wire::Frame>,
    pub(crate) outgoing: mpsc::Sender<wire::Frame>,
    pub(crate) engine: mpsc::Sender<NetEvent>,
}

impl Session {
    /// Waits for the peer's greeting, has it judged, and answers with `answer` where we did not greet first.
    pub(crate) async fn greet(&mut self, answer: Option<&Hello>) -> Result<Taken, SessionError> {
        let hello = match timeout(GREETING_TIMEOUT, self.next()).await {
            Err(_) => return Err(SessionError::NoGreeting),
            Ok(Err(error)) => return Err(error),
            Ok(Ok((Frame::Hello(hello), _))) => hello,
            Ok(Ok((Frame::Refusal(reason), _))) => return Err(SessionError::PeerRefuses(reason)),
            Ok(Ok(_)) => return Err(SessionError::Violation("not a greeting".to_owned())),
        };
        match self.judge(hello, answer).await {
            Err(SessionError::WeRefuse(refusal)) => {
                self.send(&Frame::Refusal(refusal.to_string())).await;
                Err(refusal.into())
            }
            judged => judged,
        }
    }

    async fn judge(&self, hello: Hello, answer: Option<&Hello>) -> Result<Taken, SessionError> {
        if let Some(certificate) = &self.certificate {
            tls::check_name(certificate, hello.router_id, &self.cluster)?;
        }
        let (reply, verdict) = oneshot::channel();
        let (kind, origin, outgoing) = (self.kind, self.origin, self.outgoing.clone());
        let answer = answer.map(|hello| Box::new(wire::Frame::from(&Frame::Hello(hello.clone()))));
        let greeting = NetEvent::Greeting { hello, kind, origin, answer, outgoing, reply };
        self.engine.send(greeting).await.map_err(|_| SessionError::GivenUp)?;
        Ok(verdict.await.map_err(|_| SessionError::GivenUp)??)
    }

    /// Passes frames to the engine until the connection ends.
    pub(crate) async fn run(mut self, mut taken: Taken) -> SessionError {
        let link = taken.link;
        // The engine writes by a sender of its own: once it lets go, the stream ends.
        let (closed, _) = mpsc::channel(1);
        drop(std::mem::replace(&mut self.outgoing, closed));
        let error = loop {
            let next = tokio::select! {
                _ = &mut taken.given_up => break SessionError::GivenUp,
                next = self.next() => next,
            };
            match next {
                Ok((Frame::Refusal(reason), _)) => break SessionError::PeerRefuses(reason),
                Ok((frame, _)) if !self.kind.carries(&frame) => {
                    break SessionError::Violation(format!("frame of another kind on {:?}", self.kind));
                }
                Ok((frame, size)) => {
                    if self.engine.send(NetEvent::Frame { link, frame, size }).await.is_err() {
                        break SessionError::GivenUp;
                    }
                }
                Err(error) => break error,
            }
        };
        // The engine may have ended before us: then nobody needs to know.
        let _ = self.engine.send(NetEvent::Closed { link }).await;
        error
    }

    /// Reads on until the peer has closed, so that a refusal just sent is not lost with the connection.
    pub(crate) async fn linger(mut self) {
        let (closed, _) = mpsc::channel(1);
        drop(std::mem::replace(&mut self.outgoing, closed));
        let _ = timeout(Duration::from_secs(1), async { while self.next().await.is_ok() {} }).await;
    }

    async fn next(&mut self) -> Result<(Frame, usize), SessionError> {
        let message = self.incoming.message().await.map_err(|status| SessionError::Broken(status.into()))?;
        let message = message.ok_or(SessionError::Closed)?;
        let size = message.encoded_len();
        let frame = Frame::try_from(message).map_err(|error| SessionError::Violation(error.to_string()))?;
        Ok((frame, size))
    }

    async fn send(&self, frame: &Frame) {
        // A peer that is gone needs no answer.
        let _ = self.outgoing.send(frame.into()).await;
    }
}
