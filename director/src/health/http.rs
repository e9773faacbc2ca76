//! `http` and `https`: a request is answered with an expected status and, where asked for, an expected body.
//!
//! One request per connection, HTTP/1.1. Redirects are not followed: 301 is a status like others.

use std::borrow::Cow;
use std::fmt;
use std::hash::{Hash, Hasher};
use std::net::SocketAddr;
use std::str::FromStr;

use bytes::Bytes;
use http_body_util::{BodyExt, Empty};
use hyper::body::Incoming;
use hyper::client::conn::http1;
use hyper::header::{CONNECTION, HOST, HeaderValue, USER_AGENT};
use hyper::http::uri::{Authority, PathAndQuery};
use hyper::{Request, Response, Uri};
use hyper_util::rt::TokioIo;
use regex::bytes::Regex;
use tokio::io::{AsyncRead, AsyncWrite};

use super::probe::ProbeError;
use super::{CheckError, Tls, tcp};

/// Settings of the kinds `http` and `https`.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Http {
    /// `method`.
    pub method: Method,
    /// `path`, with the query if there is one; begins with `/`.
    pub path: String,
    /// `host`: the Host header, `name` or `name:port`. Absent, the real server's address and port.
    pub host: Option<String>,
    /// `status`: what is accepted.
    pub status: StatusSet,
    /// `body`: what must occur in the body, as it is sent: no content encoding is asked for.
    pub body: Option<Body>,
    /// `max_body`: how many bytes of the body are searched at most. Without `body` none is read.
    pub max_body: usize,
}

/// Method of the request.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Method {
    /// `GET`
    #[default]
    Get,
    /// `HEAD`: no body comes back, so none can be expected.
    Head,
}

/// What must occur in a body.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Body {
    /// `body_contains`: these bytes.
    Contains(String),
    /// `body_matches`: something the regular expression matches.
    Matches(Pattern),
}

/// A compiled regular expression over bytes; equal where the text is.
#[derive(Clone, Debug)]
pub struct Pattern(Regex);

/// Accepted status codes, written as in keepalived: `200`, `200-299`, or several with commas: `200-299, 401`.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct StatusSet(Vec<(u16, u16)>);

impl Default for Http {
    /// `GET /`, any 2xx, 64 KiB of the body at most.
    fn default() -> Self {
        Self {
            method: Method::Get,
            path: "/".to_owned(),
            host: None,
            status: StatusSet::default(),
            body: None,
            max_body: 64 * 1024,
        }
    }
}

impl Http {
    pub(super) fn validate(&self) -> Result<(), CheckError> {
        let value =
            |key, value: &str, problem| Err(CheckError::Value { key, value: value.to_owned(), problem });
        if !self.path.starts_with('/')
            || self.path.contains('#')
            || PathAndQuery::from_str(&self.path).is_err()
        {
            return value(
                "path",
                &self.path,
                "is no path: begin with / and percent-encode what is not ASCII",
            );
        }
        if let Some(host) = &self.host
            && (host.contains('@') || Authority::from_str(host).is_err())
        {
            return value("host", host, "is no host: write name, name:port, or an address");
        }
        match &self.body {
            None => Ok(()),
            Some(_) if self.max_body == 0 => Err(CheckError::Zero { key: "max_body" }),
            Some(_) if self.method == Method::Head => Err(CheckError::Conflict {
                key: "method",
                problem: "HEAD brings no body: use GET, or expect none",
            }),
            Some(_) => Ok(()),
        }
    }

    /// Whether the name that TLS would ask for is one.
    pub(super) fn validate_name(&self, tls: &Tls) -> Result<(), CheckError> {
        let Some(name) = self.host_name().filter(|_| !tls.has_server_name()) else { return Ok(()) };
        Tls::parse_name("host", name).map(drop)
    }

    pub(super) async fn probe(
        &self,
        to: SocketAddr,
        tls: Option<&Tls>,
    ) -> Result<Cow<'static, str>, ProbeError> {
        let stream = tcp::connect(to).await?;
        match tls {
            None => self.exchange(stream, self.request(to, 80)?).await,
            Some(tls) => {
                let request = self.request(to, 443)?;
                let stream = tls.connect(stream, to.ip(), self.host_name(), b"http/1.1").await?;
                self.exchange(stream, request).await
            }
        }
    }

    /// The host without its port and brackets.
    fn host_name(&self) -> Option<&str> {
        let host = self.host.as_deref()?;
        if let Some(literal) = host.strip_prefix('[') {
            return literal.split(']').next();
        }
        host.split(':').next()
    }

    fn request(&self, to: SocketAddr, default_port: u16) -> Result<Request<Empty<Bytes>>, ProbeError> {
        let host = match &self.host {
            Some(host) => host.clone(),
            None if to.port() == default_port && to.is_ipv6() => format!("[{}]", to.ip()),
            None if to.port() == default_port => to.ip().to_string(),
            None => to.to_string(),
        };
        let method = match self.method {
            Method::Get => hyper::Method::GET,
            Method::Head => hyper::Method::HEAD,
        };
        Request::builder()
            .method(method)
            .uri(Uri::from_str(&self.path).map_err(|error| ProbeError::from_chain(&error))?)
            .header(HOST, host)
            .header(USER_AGENT, HeaderValue::from_static("director-health"))
            .header(CONNECTION, HeaderValue::from_static("close"))
            .body(Empty::new())
            .map_err(|error| ProbeError::from_chain(&error))
    }

    async fn exchange<S>(
        &self,
        stream: S,
        request: Request<Empty<Bytes>>,
    ) -> Result<Cow<'static, str>, ProbeError>
    where
        S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let failed = |error: hyper::Error| ProbeError::from_chain(&error);
        let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await.map_err(failed)?;
        // The connection only moves bytes: what becomes of the request is told to whoever waits for it, and a
        // server that closes after its answer must not cut the reading of it short.
        let drive = async {
            let _ = connection.await;
            std::future::pending::<()>().await;
        };
        let ask = async {
            let response = sender.send_request(request).await.map_err(failed)?;
            self.judge(response).await
        };
        tokio::select! {
            result = ask => result,
            () = drive => unreachable!("the connection's end is pending for ever"),
        }
    }

    async fn judge(&self, response: Response<Incoming>) -> Result<Cow<'static, str>, ProbeError> {
        let status = response.status().as_u16();
        if !self.status.contains(status) {
            return Err(ProbeError::answer(format!("status {status}")));
        }
        if let Some(expected) = &self.body {
            let body = self.read(response.into_body()).await?;
            if !expected.occurs_in(&body) {
                let read = body.len();
                return Err(ProbeError::answer(format!("{expected} in {read} bytes of the body")));
            }
        }
        Ok(format!("status {status}").into())
    }

    /// The body, or its first `max_body` bytes.
    async fn read(&self, mut body: Incoming) -> Result<Vec<u8>, ProbeError> {
        let mut read = Vec::new();
        while read.len() < self.max_body {
            let Some(frame) = body.frame().await else { break };
            let Ok(data) = frame.map_err(|error| ProbeError::from_chain(&error))?.into_data() else {
                continue;
            };
            let room = self.max_body.saturating_sub(read.len());
            read.extend_from_slice(data.get(..room).unwrap_or(&data));
        }
        Ok(read)
    }
}

impl Body {
    /// Compiles a `body_matches`.
    pub fn matches(pattern: &str) -> Result<Self, CheckError> {
        let compiled = Regex::new(pattern);
        let compiled = compiled.map_err(|source| CheckError::Pattern { key: "body_matches", source })?;
        Ok(Self::Matches(Pattern(compiled)))
    }

    fn occurs_in(&self, body: &[u8]) -> bool {
        match self {
            Self::Contains(text) if text.is_empty() => true,
            Self::Contains(text) => body.windows(text.len()).any(|window| window == text.as_bytes()),
            Self::Matches(Pattern(pattern)) => pattern.is_match(body),
        }
    }
}

impl fmt::Display for Body {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Contains(text) => write!(f, "no {text:?}"),
            Self::Matches(Pattern(pattern)) => write!(f, "no match of {pattern}"),
        }
    }
}

impl PartialEq for Pattern {
    fn eq(&self, other: &Self) -> bool {
        self.0.as_str() == other.0.as_str()
    }
}

impl Eq for Pattern {}

impl Hash for Pattern {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.0.as_str().hash(state);
    }
}

impl Default for StatusSet {
    /// 200 to 299.
    fn default() -> Self {
        Self(vec![(200, 299)])
    }
}

impl StatusSet {
    /// Whether `status` is accepted.
    pub fn contains(&self, status: u16) -> bool {
        self.0.iter().any(|(first, last)| (*first..=*last).contains(&status))
    }
}

impl FromStr for StatusSet {
    type Err = CheckError;

    fn from_str(text: &str) -> Result<Self, CheckError> {
        let parse = |part: &str| {
            let (first, last) = part.split_once('-').unwrap_or((part, part));
            let range = (first.trim().parse::<u16>().ok()?, last.trim().parse::<u16>().ok()?);
            (100 <= range.0 && range.0 <= range.1 && range.1 <= 599).then_some(range)
        };
        text.split(',').map(parse).collect::<Option<Vec<_>>>().map(Self).ok_or_else(|| CheckError::Value {
            key: "status",
            value: text.to_owned(),
            problem: "is no list of status codes: write 200, 200-299 or 200-299,401, from 100 to 599",
        })
    }
}
