//! `grpc`: the standard health service, `grpc.health.v1.Health/Check`, says `SERVING`.

use std::borrow::Cow;
use std::net::SocketAddr;
use std::sync::Mutex;

use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite};
use tonic::transport::{Channel, Endpoint, Uri};
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_check_response::ServingStatus;
use tonic_health::pb::health_client::HealthClient;

use super::probe::ProbeError;
use super::{Tls, tcp};

/// Settings of the kind `grpc`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct Grpc {
    /// `service`: the name asked for; empty asks for the server as a whole.
    pub service: String,
    /// TLS, with HTTP/2 by ALPN; absent, plain text.
    pub tls: Option<Tls>,
}

impl Grpc {
    pub(super) async fn probe(&self, to: SocketAddr) -> Result<Cow<'static, str>, ProbeError> {
        // Connected here and not by tonic, so that a refusal or a shortage is told as with every other kind.
        let stream = tcp::connect(to).await?;
        let channel = match &self.tls {
            None => channel(to, "http", stream).await?,
            Some(tls) => channel(to, "https", tls.connect(stream, to.ip(), None, b"h2").await?).await?,
        };
        let request = HealthCheckRequest { service: self.service.clone() };
        let response = HealthClient::new(channel).check(request).await.map_err(|status| {
            ProbeError::answer(format!("grpc status {:?}: {}", status.code(), status.message()))
        })?;
        match response.into_inner().status() {
            ServingStatus::Serving => Ok("SERVING".into()),
            status => Err(ProbeError::answer(status.as_str_name())),
        }
    }
}

/// A channel over `stream` alone.
async fn channel<S>(to: SocketAddr, scheme: &str, stream: S) -> Result<Channel, ProbeError>
where
    S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
{
    let origin: Uri = format!("{scheme}://{to}").parse().map_err(|error| ProbeError::from_chain(&error))?;
    // The scheme of the endpoint is plain in either case: TLS, if any, is in the stream already.
    let endpoint =
        Endpoint::from_shared(format!("http://{to}")).map_err(|error| ProbeError::from_chain(&error))?;
    let once = Mutex::new(Some(TokioIo::new(stream)));
    let connector = tower::service_fn(move |_: Uri| {
        let stream = once.lock().ok().and_then(|mut stream| stream.take());
        async move { stream.ok_or_else(|| std::io::Error::from(std::io::ErrorKind::NotConnected)) }
    });
    let connected = endpoint.origin(origin).connect_with_connector(connector).await;
    connected.map_err(|error| ProbeError::from_chain(&error))
}
