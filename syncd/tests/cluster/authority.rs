//! A certificate authority for one test.

use std::fs;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use rcgen::{BasicConstraints, Certificate, CertificateParams, DnType, IsCa, Issuer, KeyPair};
use syncd::TlsFiles;
use tempfile::TempDir;

#[derive(Clone)]
pub(crate) struct Authority {
    folder: Arc<TempDir>,
    issuer: Arc<Issuer<'static, KeyPair>>,
    issued: Arc<AtomicU32>,
}

impl Authority {
    pub(crate) fn new() -> Self {
        let folder = tempfile::tempdir().expect("folder");
        let mut params = CertificateParams::new(Vec::new()).expect("no names");
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let key = KeyPair::generate().expect("key");
        // No two have the same name.
        let name = folder.path().display().to_string();
        params.distinguished_name.push(DnType::CommonName, name);
        let certificate: Certificate = params.self_signed(&key).expect("certificate");
        fs::write(folder.path().join("ca.pem"), certificate.pem()).expect("written");
        let issuer = Arc::new(Issuer::new(params, key));
        // Nodes read their files when they start; some do so again after the authority has gone.
        Self { folder: Arc::new(folder), issuer, issued: Arc::default() }
    }

    /// A certificate for addresses and DNS names.
    pub(crate) fn issue(&self, names: &[&str]) -> TlsFiles {
        let names: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
        let params = CertificateParams::new(names).expect("names");
        let key = KeyPair::generate().expect("key");
        let certificate = params.signed_by(&key, &self.issuer).expect("signed");
        let number = self.issued.fetch_add(1, Ordering::Relaxed);
        let write = |name: String, text: String| -> PathBuf {
            let path = self.folder.path().join(name);
            fs::write(&path, text).expect("written");
            path
        };
        TlsFiles {
            ca: self.folder.path().join("ca.pem"),
            certificate: write(format!("{number}.pem"), certificate.pem()),
            key: write(format!("{number}.key"), key.serialize_pem()),
        }
    }
}
