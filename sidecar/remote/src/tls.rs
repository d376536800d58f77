//! TLS towards a Redis: which certificates are trusted, which one is shown, what went wrong in words that help.
//!
//! Owns the rustls configuration. The files are looked at before every connect and read again when they changed, so
//! that a rotated Secret is used by the next connection; live ones are left alone. Never falls back to plain text,
//! never skips a check of the server's certificate. Fails by a [`TlsError`] that names the file or the check.

use std::{
    fs, io,
    path::{Path, PathBuf},
    sync::{Arc, OnceLock},
};

use parking_lot::Mutex;
use rustls::{
    AlertDescription, CertificateError, ClientConfig, RootCertStore,
    crypto::ring,
    pki_types::{CertificateDer, PrivateKeyDer, ServerName, pem::PemObject as _},
};
use tokio::net::TcpStream;
use tokio_rustls::{TlsConnector, client::TlsStream};

use crate::files::Version;

/// What TLS is set up from.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct TlsOptions {
    /// PEM file with the certificates of the authorities that are trusted, instead of the system's.
    pub ca_file: Option<PathBuf>,
    /// PEM files of a certificate to show, with its chain, and of its key.
    pub client_certificate: Option<(PathBuf, PathBuf)>,
    /// The name that the server's certificate must be for, instead of the endpoint's host.
    pub server_name: Option<String>,
}

/// TLS for the connections to one server; shared by all of them.
#[derive(Debug)]
pub struct Tls {
    options: TlsOptions,
    made: Mutex<Option<Made>>,
}

/// A configuration and the files it was made of.
#[derive(Debug)]
struct Made {
    files: Vec<Version>,
    config: Arc<ClientConfig>,
}

/// Why TLS could not be set up. Messages are for the person who has to mend it.
#[derive(Debug, Clone, thiserror::Error)]
pub enum TlsError {
    /// A file could not be read.
    #[error("cannot read {path}: {reason}")]
    ReadFile {
        /// The file.
        path: PathBuf,
        /// What the system said.
        reason: String,
    },
    /// A file holds no PEM of the kind that is wanted, or a broken one.
    #[error("{path} holds no {wanted} in PEM form{reason}")]
    ParseFile {
        /// The file.
        path: PathBuf,
        /// What it should hold.
        wanted: &'static str,
        /// What is wrong with it, if more is known.
        reason: String,
    },
    /// No CA was named and the system has none.
    #[error(
        "the system trusts no certificate authority ({reason}); name one (tls.caFile, or a Secret or ConfigMap with it)"
    )]
    SystemRoots {
        /// What was tried.
        reason: String,
    },
    /// Certificate and key do not belong together, or are of an unknown kind.
    #[error("the client certificate cannot be used: {reason}")]
    ClientCertificate {
        /// Why.
        reason: String,
    },
    /// No host name and no address.
    #[error("{name:?} is no name that a certificate can be for; set serverName")]
    ServerName {
        /// The name.
        name: String,
    },
    /// The server's certificate failed a check.
    #[error("the server's certificate is not accepted: {reason}")]
    ServerCertificate {
        /// Which one, and what to do.
        reason: String,
    },
    /// The server ended the handshake.
    #[error("the server refused us: {reason}")]
    Refused {
        /// Its alert, and what to do.
        reason: String,
    },
    /// The bytes that came are no TLS.
    #[error("what answers there does not speak TLS; is this the server's TLS port?")]
    NotTls,
    /// Anything else.
    #[error("the handshake failed: {reason}")]
    Handshake {
        /// What rustls or the system said.
        reason: String,
    },
}

impl TlsError {
    /// The connection broke; nobody has to change anything.
    pub(crate) fn is_passing(&self) -> bool {
        matches!(self, Self::Handshake { .. })
    }
}

impl Tls {
    /// Reads nothing yet.
    pub fn new(options: TlsOptions) -> Self {
        Self { options, made: Mutex::new(None) }
    }

    /// A TLS connection over one that is established; `host` is the endpoint's.
    pub(crate) async fn connect(&self, host: &str, stream: TcpStream) -> Result<TlsStream<TcpStream>, TlsError> {
        let name = self.name_for(host);
        let server =
            ServerName::try_from(name.to_owned()).map_err(|_| TlsError::ServerName { name: name.to_owned() })?;
        let connector = TlsConnector::from(self.config()?);
        connector.connect(server, stream).await.map_err(|error| self.explain(&error, name))
    }

    /// The name that the server's certificate must be for; `host` is the endpoint's.
    pub(crate) fn name_for<'a>(&'a self, host: &'a str) -> &'a str {
        self.options.server_name.as_deref().unwrap_or(host)
    }

    /// Whether a certificate is shown to the server.
    pub(crate) fn shows_certificate(&self) -> bool {
        self.options.client_certificate.is_some()
    }

    /// What an error of a connection says, if it is TLS that failed.
    pub(crate) fn explain_late(&self, error: &io::Error) -> Option<TlsError> {
        let failed = error.get_ref().and_then(|source| source.downcast_ref::<rustls::Error>()).is_some();
        failed.then(|| self.explain(error, self.options.server_name.as_deref().unwrap_or("the endpoint's host")))
    }

    fn explain(&self, error: &io::Error, name: &str) -> TlsError {
        let Some(source) = error.get_ref().and_then(|source| source.downcast_ref::<rustls::Error>()) else {
            return TlsError::Handshake { reason: error.to_string() };
        };
        match source {
            rustls::Error::InvalidCertificate(check) => {
                TlsError::ServerCertificate { reason: self.explain_check(check, name) }
            }
            rustls::Error::AlertReceived(alert) => TlsError::Refused { reason: self.explain_alert(*alert) },
            rustls::Error::InvalidMessage(_) => TlsError::NotTls,
            other => TlsError::Handshake { reason: other.to_string() },
        }
    }

    fn explain_check(&self, check: &CertificateError, name: &str) -> String {
        let trusted = || match &self.options.ca_file {
            Some(path) => format!("an authority in {}", path.display()),
            None => "an authority that the system trusts; name its own (l3.redis.tls)".to_owned(),
        };
        match check {
            // Authorities of one name and another key differ in the signature only.
            CertificateError::UnknownIssuer | CertificateError::BadSignature => {
                format!("it was not issued by {}", trusted())
            }
            CertificateError::Expired | CertificateError::ExpiredContext { .. } => {
                "it has expired; renew it".to_owned()
            }
            CertificateError::NotValidYet | CertificateError::NotValidYetContext { .. } => {
                "it is not valid yet; see the clocks of both hosts".to_owned()
            }
            CertificateError::NotValidForName => {
                format!("it is not for {name}; set l3.redis.tls.serverName to a name that it is for")
            }
            CertificateError::NotValidForNameContext { presented, .. } => {
                let presented = presented.join(", ");
                format!("it is for {presented}, not for {name}; set l3.redis.tls.serverName to a name that it is for")
            }
            other => format!("{other:?}"),
        }
    }

    fn explain_alert(&self, alert: AlertDescription) -> String {
        if self.shows_certificate() {
            return format!(
                "alert {alert:?}; does it trust the issuer of our client certificate, and is that in date?"
            );
        }
        match alert {
            AlertDescription::CertificateRequired | AlertDescription::HandshakeFailure => {
                format!("alert {alert:?}: it wants a client certificate (l3.redis.tls)")
            }
            other => format!("alert {other:?}"),
        }
    }

    /// The configuration made of the files as they are now.
    pub(crate) fn config(&self) -> Result<Arc<ClientConfig>, TlsError> {
        let files = self
            .files()
            .map(|path| Version::of(path).map_err(|error| unreadable(path, &error)))
            .collect::<Result<Vec<_>, _>>()?;
        let mut made = self.made.lock();
        if let Some(made) = made.as_ref().filter(|made| made.files == files) {
            return Ok(made.config.clone());
        }
        let config = Arc::new(self.make()?);
        *made = Some(Made { files, config: config.clone() });
        Ok(config)
    }

    /// The files that it is made of.
    pub(crate) fn files(&self) -> impl Iterator<Item = &Path> + Clone {
        let client = self.options.client_certificate.iter().flat_map(|(certificate, key)| [certificate, key]);
        self.options.ca_file.iter().chain(client).map(PathBuf::as_path)
    }

    fn make(&self) -> Result<ClientConfig, TlsError> {
        let roots = match &self.options.ca_file {
            Some(path) => Arc::new(named_roots(path)?),
            None => system_roots()?,
        };
        let failed = |error: rustls::Error| TlsError::ClientCertificate { reason: error.to_string() };
        // Named here: nothing depends on which provider the process chose as its default.
        let builder = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
            .with_safe_default_protocol_versions()
            .map_err(failed)?
            .with_root_certificates(roots);
        let Some((certificate, key)) = &self.options.client_certificate else {
            return Ok(builder.with_no_client_auth());
        };
        let chain = certificates(certificate)?;
        let text = read(key)?;
        let key = PrivateKeyDer::from_pem_slice(&text).map_err(|error| TlsError::ParseFile {
            path: key.clone(),
            wanted: "private key",
            reason: format!(" ({error})"),
        })?;
        builder.with_client_auth_cert(chain, key).map_err(failed)
    }
}

fn read(path: &Path) -> Result<Vec<u8>, TlsError> {
    fs::read(path).map_err(|error| unreadable(path, &error))
}

fn unreadable(path: &Path, error: &io::Error) -> TlsError {
    TlsError::ReadFile { path: path.to_owned(), reason: error.to_string() }
}

fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    let broken = |reason| TlsError::ParseFile { path: path.to_owned(), wanted: "certificate", reason };
    let text = read(path)?;
    let found = CertificateDer::pem_slice_iter(&text)
        .collect::<Result<Vec<_>, _>>()
        .map_err(|error| broken(format!(" ({error})")))?;
    if found.is_empty() { Err(broken(String::new())) } else { Ok(found) }
}

fn named_roots(path: &Path) -> Result<RootCertStore, TlsError> {
    let mut roots = RootCertStore::empty();
    for certificate in certificates(path)? {
        roots.add(certificate).map_err(|error| TlsError::ParseFile {
            path: path.to_owned(),
            wanted: "certificate of an authority",
            reason: format!(" ({error})"),
        })?;
    }
    Ok(roots)
}

/// Read once: a container's set changes with its image only.
fn system_roots() -> Result<Arc<RootCertStore>, TlsError> {
    static ROOTS: OnceLock<Result<Arc<RootCertStore>, TlsError>> = OnceLock::new();
    let load = || {
        let found = rustls_native_certs::load_native_certs();
        let mut roots = RootCertStore::empty();
        roots.add_parsable_certificates(found.certs);
        if roots.is_empty() {
            let errors: Vec<String> = found.errors.iter().map(ToString::to_string).collect();
            return Err(TlsError::SystemRoots { reason: errors.join("; ") });
        }
        Ok(Arc::new(roots))
    };
    ROOTS.get_or_init(load).clone()
}
