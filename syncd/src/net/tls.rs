//! Mutual TLS: who may connect, and whether a certificate is the one of the director that presents it.
//!
//! The chain to the cluster's CA is checked in the handshake, both ways. The name is checked when the peer has
//! said who it is: the dialler knows an address, not a router id.

use std::net::{IpAddr, Ipv4Addr};
use std::path::Path;
use std::sync::{Arc, PoisonError, RwLock};

use tokio_rustls::rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use tokio_rustls::rustls::client::{verify_server_cert_signed_by_trust_anchor, verify_server_name};
use tokio_rustls::rustls::crypto::{self, CryptoProvider};
use tokio_rustls::rustls::pki_types::pem::PemObject;
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use tokio_rustls::rustls::server::{ParsedCertificate, WebPkiClientVerifier};
use tokio_rustls::rustls::{
    self, ClientConfig, DigitallySignedStruct, RootCertStore, ServerConfig, SignatureScheme,
};
use tokio_rustls::{TlsAcceptor, TlsConnector};

use crate::config::{StartError, TlsFiles};
use crate::replica::Refusal;

/// Protocol name of HTTP/2 in the handshake.
const ALPN: &[u8] = b"h2";

/// Both roles of this director in a handshake. Connections that are up keep what they began with.
#[derive(Clone)]
pub(crate) struct Tls(Arc<RwLock<Ends>>);

#[derive(Clone)]
struct Ends {
    acceptor: TlsAcceptor,
    connector: TlsConnector,
}

impl Tls {
    /// Reads the files and checks that they go together.
    pub(crate) fn load(files: &TlsFiles) -> Result<Self, StartError> {
        Ok(Self(Arc::new(RwLock::new(Ends::load(files)?))))
    }

    /// Reads the files again; new connections go by them from now on. A new certificate must do for this director, or else
    /// it would lose all others one by one.
    ///
    /// # Errors
    /// What is wrong, and in which file. All stays as it is.
    pub(crate) fn reload(
        &self,
        files: &TlsFiles,
        router_id: Ipv4Addr,
        cluster: &str,
    ) -> Result<(), StartError> {
        let ends = Ends::load(files)?;
        check_own(files, router_id, cluster)?;
        *self.0.write().unwrap_or_else(PoisonError::into_inner) = ends;
        Ok(())
    }

    /// For connections that come in.
    pub(crate) fn acceptor(&self) -> TlsAcceptor {
        self.0.read().unwrap_or_else(PoisonError::into_inner).acceptor.clone()
    }

    /// For connections that go out.
    pub(crate) fn connector(&self) -> TlsConnector {
        self.0.read().unwrap_or_else(PoisonError::into_inner).connector.clone()
    }
}

/// Whether the certificate is signed by the authorities of this director, valid now, and in its name.
fn check_own(files: &TlsFiles, router_id: Ipv4Addr, cluster: &str) -> Result<(), StartError> {
    let (roots, chain) = (roots(&files.ca)?, certificates(&files.certificate)?);
    let Some((own, intermediates)) = chain.split_first() else { return Ok(()) };
    let unusable = |problem: &dyn std::fmt::Display| unusable(&files.certificate, problem);
    let certificate = ParsedCertificate::try_from(own).map_err(|error| unusable(&error))?;
    let algorithms = crypto::ring::default_provider().signature_verification_algorithms.all;
    verify_server_cert_signed_by_trust_anchor(
        &certificate,
        &roots,
        intermediates,
        UnixTime::now(),
        algorithms,
    )
    .map_err(|error| {
        unusable(&format!("the authorities in {} do not vouch for it: {error}", files.ca.display()))
    })?;
    check_name(own, router_id, cluster).map_err(|refusal| unusable(&refusal))
}

impl Ends {
    fn load(files: &TlsFiles) -> Result<Self, StartError> {
        let roots = Arc::new(roots(&files.ca)?);
        let chain = certificates(&files.certificate)?;
        let key = PrivateKeyDer::from_pem_file(&files.key).map_err(|error| unusable(&files.key, &error))?;
        let provider = Arc::new(crypto::ring::default_provider());
        Ok(Self {
            acceptor: Arc::new(server(&provider, &roots, chain.clone(), key.clone_key())?).into(),
            connector: Arc::new(client(&provider, &roots, chain, key)?).into(),
        })
    }
}

fn unusable(path: &Path, problem: &dyn std::fmt::Display) -> StartError {
    StartError::TlsFile { path: path.to_owned(), problem: problem.to_string() }
}

fn unfit(problem: impl std::fmt::Display) -> StartError {
    StartError::Tls { problem: problem.to_string() }
}

fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, StartError> {
    let certificates: Vec<_> = CertificateDer::pem_file_iter(path)
        .and_then(Iterator::collect)
        .map_err(|error| unusable(path, &error))?;
    if certificates.is_empty() {
        return Err(unusable(path, &"no certificate in it"));
    }
    Ok(certificates)
}

fn roots(path: &Path) -> Result<RootCertStore, StartError> {
    let mut roots = RootCertStore::empty();
    for certificate in certificates(path)? {
        roots.add(certificate).map_err(|error| unusable(path, &error))?;
    }
    Ok(roots)
}

fn server(
    provider: &Arc<CryptoProvider>,
    roots: &Arc<RootCertStore>,
    chain: Vec<CertificateDer<'static>>,
    key: PrivateKeyDer<'static>,
) -> Result<ServerConfig, StartError> {
    let verifier = WebPkiClientVerifier::builder_with_provider(Arc::clone(roots), Arc::clone(provider));
    let mut config = ServerConfig::builder_with_provider(Arc::clone(provider))
        .with_safe_default_protocol_versions()
        .map_err(unfit)?
        .with_client_cert_verifier(verifier.build().map_err(unfit)?)
        .with_single_cert(chain, key)
        .map_err(unfit)?;
    config.alpn_protocols = vec![ALPN.to_vec()];
    Ok(config)
}

fn client(
    provider: &Arc<CryptoProvider>,
    roots: &Arc<RootCertStore>,
    chain: Vec<CertificateDer<'static>>,
    key: PrivateKeyDer<'static>,
) -> Result<ClientConfig, StartError> {
    let verifier = Arc::new(ClusterVerifier { roots: Arc::clone(roots), provider: Arc::clone(provider) });
    let mut config = ClientConfig::builder_with_provider(Arc::clone(provider))
        .with_safe_default_protocol_versions()
        .map_err(unfit)?
        .dangerous()
        .with_custom_certificate_verifier(verifier)
        .with_client_auth_cert(chain, key)
        .map_err(unfit)?;
    config.alpn_protocols = vec![ALPN.to_vec()];
    Ok(config)
}

/// Accepts what the cluster's CA has signed, under any name: [`check_name`] follows.
#[derive(Debug)]
struct ClusterVerifier {
    roots: Arc<RootCertStore>,
    provider: Arc<CryptoProvider>,
}

impl ServerCertVerifier for ClusterVerifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        let certificate = ParsedCertificate::try_from(end_entity)?;
        let algorithms = self.provider.signature_verification_algorithms.all;
        verify_server_cert_signed_by_trust_anchor(&certificate, &self.roots, intermediates, now, algorithms)?;
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        crypto::verify_tls12_signature(message, certificate, signature, algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        crypto::verify_tls13_signature(message, certificate, signature, algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}

/// Whether the certificate belongs to the director that claims `router_id`, or to any director of `cluster`.
pub(crate) fn check_name(
    certificate: &CertificateDer<'_>,
    router_id: Ipv4Addr,
    cluster: &str,
) -> Result<(), Refusal> {
    let name = format!("director.{cluster}");
    let address = ServerName::from(IpAddr::V4(router_id));
    let is_named = ParsedCertificate::try_from(certificate).is_ok_and(|certificate| {
        let shared = ServerName::try_from(name.as_str()).ok();
        [Some(address), shared]
            .into_iter()
            .flatten()
            .any(|name| verify_server_name(&certificate, &name).is_ok())
    });
    if is_named { Ok(()) } else { Err(Refusal::Certificate { router_id, name }) }
}

/// Whether a connection failed because one side does not accept the other's certificate.
pub(crate) fn is_certificate_error(error: &(dyn std::error::Error + 'static)) -> bool {
    let mut next = Some(error);
    while let Some(error) = next {
        // An I/O error hides the one inside from `source`.
        let inner = error.downcast_ref::<std::io::Error>().and_then(|error| error.get_ref());
        let found = inner.and_then(|inner| inner.downcast_ref::<rustls::Error>());
        if let Some(error) = found.or(error.downcast_ref()) {
            return matches!(
                error,
                rustls::Error::InvalidCertificate(_)
                    | rustls::Error::NoCertificatesPresented
                    | rustls::Error::AlertReceived(_)
            );
        }
        next = error.source();
    }
    false
}
