//! TLS towards real servers, for the kinds that speak it.

use std::hash::{Hash, Hasher};
use std::io;
use std::net::IpAddr;
use std::sync::Arc;

use rustls::client::Resumption;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, ring};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{ClientConfig, DigitallySignedStruct, Error, RootCertStore, SignatureScheme};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use super::CheckError;

/// Settings of TLS. Equal where what was asked for is.
#[derive(Clone, Debug)]
pub struct Tls {
    verify: Verify,
    server_name: Option<String>,
    config: Arc<ClientConfig>,
}

/// Whether the certificate of a real server is verified.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Verify {
    /// Any certificate will do, an expired or self-signed one too: what keepalived and ldirectord do.
    No,
    /// It must be valid now, for the name that is asked for, and signed by one of these.
    Against(Authorities),
}

/// Certificates of authorities.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Authorities(Vec<CertificateDer<'static>>);

impl Authorities {
    /// Those of a PEM file's text, `ca` of the configuration.
    pub fn from_pem(pem: &[u8]) -> Result<Self, CheckError> {
        let read = CertificateDer::pem_slice_iter(pem).collect::<Result<Vec<_>, _>>();
        let certificates = read.map_err(|error| refused(error.to_string()))?;
        if certificates.is_empty() {
            return Err(refused("there is no certificate in it".to_owned()));
        }
        Ok(Self(certificates))
    }

    /// Those this machine trusts.
    pub fn system() -> Result<Self, CheckError> {
        let found = rustls_native_certs::load_native_certs();
        if found.certs.is_empty() {
            let reasons: Vec<String> = found.errors.iter().map(ToString::to_string).collect();
            let reasons = reasons.join("; ");
            return Err(refused(format!(
                "this machine trusts no authority: install some or name a file {reasons}"
            )));
        }
        Ok(Self(found.certs))
    }

    fn store(&self) -> Result<RootCertStore, CheckError> {
        let mut store = RootCertStore::empty();
        let (added, _) = store.add_parsable_certificates(self.0.iter().cloned());
        if added == 0 {
            return Err(refused("none of its certificates can be used as an authority".to_owned()));
        }
        Ok(store)
    }
}

fn refused(problem: String) -> CheckError {
    CheckError::Authorities { key: "ca", problem }
}

impl Tls {
    /// TLS 1.2 or 1.3. `server_name` is what is asked for (SNI) and verified; absent, it is the host of the check, and
    /// where there is none, the real server's address (which no SNI carries).
    pub fn new(verify: Verify, server_name: Option<String>) -> Result<Self, CheckError> {
        if let Some(name) = &server_name {
            Self::parse_name("server_name", name)?;
        }
        let provider = Arc::new(ring::default_provider());
        let builder = ClientConfig::builder_with_provider(provider.clone())
            .with_safe_default_protocol_versions()
            .expect("invariant: ring supports the default versions");
        let mut config = match &verify {
            Verify::No => {
                let anything = Arc::new(AnyCertificate(provider));
                builder.dangerous().with_custom_certificate_verifier(anything).with_no_client_auth()
            }
            Verify::Against(authorities) => {
                builder.with_root_certificates(authorities.store()?).with_no_client_auth()
            }
        };
        // A resumed session would show no certificate, and so not that it has expired.
        config.resumption = Resumption::disabled();
        Ok(Self { verify, server_name, config: Arc::new(config) })
    }

    pub(super) fn has_server_name(&self) -> bool {
        self.server_name.is_some()
    }

    pub(super) fn parse_name(key: &'static str, name: &str) -> Result<ServerName<'static>, CheckError> {
        ServerName::try_from(name.to_owned()).map_err(|_| CheckError::Value {
            key,
            value: name.to_owned(),
            problem: "is neither a host name nor an address",
        })
    }

    /// Shakes hands over `stream` with the server at `address`, offering one application protocol.
    pub(super) async fn connect(
        &self,
        stream: TcpStream,
        address: IpAddr,
        host: Option<&str>,
        protocol: &[u8],
    ) -> io::Result<TlsStream<TcpStream>> {
        let name = match self.server_name.as_deref().or(host) {
            Some(name) => Self::parse_name("server_name", name).map_err(io::Error::other)?,
            None => ServerName::from(address),
        };
        let mut config = (*self.config).clone();
        config.alpn_protocols = vec![protocol.to_vec()];
        TlsConnector::from(Arc::new(config)).connect(name, stream).await
    }
}

impl PartialEq for Tls {
    fn eq(&self, other: &Self) -> bool {
        (&self.verify, &self.server_name) == (&other.verify, &other.server_name)
    }
}

impl Eq for Tls {}

impl Hash for Tls {
    fn hash<H: Hasher>(&self, state: &mut H) {
        (&self.verify, &self.server_name).hash(state);
    }
}

/// Takes any certificate: the check asks whether the service answers, not who it is.
#[derive(Debug)]
struct AnyCertificate(Arc<CryptoProvider>);

impl ServerCertVerifier for AnyCertificate {
    fn verify_server_cert(
        &self,
        _end_entity: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        _now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _certificate: &CertificateDer<'_>,
        _signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn verify_tls13_signature(
        &self,
        _message: &[u8],
        _certificate: &CertificateDer<'_>,
        _signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}
