//! Servers that behave as a test asks.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use bytes::Bytes;
use http_body_util::Full;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Request, Response, body::Incoming};
use hyper_util::rt::TokioIo;
use rustls::ServerConfig;
use rustls::crypto::ring;
use rustls::pki_types::PrivateKeyDer;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::TlsAcceptor;

use super::anywhere;

/// Accepts connections on loopback and hands each to `serve`, in a task of its own.
pub(super) async fn serve<F, W>(serve: F) -> SocketAddr
where
    F: Fn(TcpStream) -> W + Send + 'static,
    W: Future<Output = ()> + Send + 'static,
{
    let listener = TcpListener::bind(anywhere()).await.expect("a port on loopback");
    let address = listener.local_addr().expect("its address");
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            tokio::spawn(serve(stream));
        }
    });
    address
}

/// A server that says nothing, counts the connections it has seen and how many there were at most at once.
#[derive(Clone, Debug, Default)]
pub(super) struct Silent {
    pub(super) seen: Arc<AtomicUsize>,
    open: Arc<AtomicUsize>,
    pub(super) most: Arc<AtomicUsize>,
}

impl Silent {
    pub(super) async fn start(&self) -> SocketAddr {
        let counts = self.clone();
        serve(move |mut stream| {
            let counts = counts.clone();
            async move {
                counts.seen.fetch_add(1, Ordering::SeqCst);
                let open = counts.open.fetch_add(1, Ordering::SeqCst) + 1;
                counts.most.fetch_max(open, Ordering::SeqCst);
                let _ = tokio::io::copy(&mut stream, &mut tokio::io::sink()).await;
                counts.open.fetch_sub(1, Ordering::SeqCst);
            }
        })
        .await
    }
}

/// What the HTTP server answers: `/status/N` with status N, `/host` with the Host header it got, `/long` with
/// 100,000 letters and then `end`, anything else with method and path.
async fn answer(request: Request<Incoming>) -> Result<Response<Full<Bytes>>, Infallible> {
    let path = request.uri().path_and_query().map(ToString::to_string).unwrap_or_default();
    let host =
        request.headers().get("host").map(|host| String::from_utf8_lossy(host.as_bytes()).into_owned());
    let status = path.strip_prefix("/status/").and_then(|code| code.parse().ok()).unwrap_or(200);
    let body = match path.as_str() {
        "/host" => host.unwrap_or_default(),
        "/long" => "x".repeat(100_000) + "end",
        _ => format!("{} {path}", request.method()),
    };
    let response = Response::builder().status(status).body(Full::new(body.into()));
    Ok(response.expect("a valid status"))
}

async fn serve_http<S: AsyncRead + AsyncWrite + Unpin + Send + 'static>(stream: S) {
    // Probes close as they please.
    let _ = http1::Builder::new().serve_connection(TokioIo::new(stream), service_fn(answer)).await;
}

pub(super) async fn http() -> SocketAddr {
    serve(serve_http).await
}

/// An HTTPS server with a certificate of its own for `name`. Returns the certificate as PEM.
pub(super) async fn https(name: &str) -> (SocketAddr, String) {
    let certified = rcgen::generate_simple_self_signed([name.to_owned()]).expect("a certificate");
    let key = PrivateKeyDer::try_from(certified.signing_key.serialize_der()).expect("its key");
    let config = ServerConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_safe_default_protocol_versions()
        .expect("protocol versions")
        .with_no_client_auth()
        .with_single_cert(vec![certified.cert.der().clone()], key)
        .expect("a server's configuration");
    let acceptor = TlsAcceptor::from(Arc::new(config));
    let address = serve(move |stream| {
        let acceptor = acceptor.clone();
        async move {
            if let Ok(stream) = acceptor.accept(stream).await {
                serve_http(stream).await;
            }
        }
    })
    .await;
    (address, certified.cert.pem())
}
