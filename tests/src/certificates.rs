//! A certificate authority of a test's own, and files of certificates that it issued.

use std::{
    fs,
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, SystemTime},
};

use anyhow::{Context, Result};
use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair};
use rustls::{
    ServerConfig,
    crypto::ring,
    pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject as _},
};

/// An authority.
#[derive(Debug)]
pub struct Authority {
    certificate: String,
    key: String,
}

/// A certificate and its key, in files.
#[derive(Clone, Debug)]
pub struct Files {
    /// The certificate.
    pub certificate: PathBuf,
    /// Its key.
    pub key: PathBuf,
}

impl Files {
    /// A server that shows it.
    pub fn server(&self) -> Result<Arc<ServerConfig>> {
        let chain = CertificateDer::pem_file_iter(&self.certificate)?.collect::<Result<Vec<_>, _>>()?;
        let key = PrivateKeyDer::from_pem_file(&self.key)?;
        let config = ServerConfig::builder_with_provider(Arc::new(ring::default_provider()))
            .with_safe_default_protocol_versions()?
            .with_no_client_auth()
            .with_single_cert(chain, key)?;
        Ok(Arc::new(config))
    }
}

impl Authority {
    /// A new one.
    pub fn create() -> Result<Self> {
        let key = KeyPair::generate()?;
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.distinguished_name.push(DnType::CommonName, "an authority of a test");
        Ok(Self { certificate: params.self_signed(&key)?.pem(), key: key.serialize_pem() })
    }

    /// Its certificate as `file`, which is replaced as a mounted Secret is: as a whole.
    pub fn write(&self, file: &Path) -> Result<()> {
        replace(file, &self.certificate)
    }

    /// A certificate for these names, in files `<stem>.crt` and `<stem>.key`.
    pub fn issue(&self, stem: &Path, names: &[&str]) -> Result<Files> {
        self.issue_until(stem, names, SystemTime::now() + Duration::from_hours(24))
    }

    /// As [`issue`](Self::issue); one that expired an hour ago.
    pub fn issue_expired(&self, stem: &Path, names: &[&str]) -> Result<Files> {
        self.issue_until(stem, names, SystemTime::now() - Duration::from_hours(1))
    }

    fn issue_until(&self, stem: &Path, names: &[&str], end: SystemTime) -> Result<Files> {
        let names: Vec<String> = names.iter().map(ToString::to_string).collect();
        let mut params = CertificateParams::new(names)?;
        params.not_before = (end - Duration::from_hours(48)).into();
        params.not_after = end.into();
        params.distinguished_name.push(DnType::CommonName, "a certificate of a test");
        let issuer = Issuer::from_ca_cert_pem(&self.certificate, KeyPair::from_pem(&self.key)?)?;
        let key = KeyPair::generate()?;
        let files = Files { certificate: stem.with_extension("crt"), key: stem.with_extension("key") };
        replace(&files.certificate, &params.signed_by(&key, &issuer)?.pem())?;
        replace(&files.key, &key.serialize_pem())?;
        Ok(files)
    }
}

/// Replaces a file as a whole.
pub fn replace(file: &Path, text: &str) -> Result<()> {
    let new = file.with_extension("new");
    fs::write(&new, text).with_context(|| format!("write {}", new.display()))?;
    fs::rename(&new, file).with_context(|| format!("put {} in place", file.display()))
}
