//! The certificate authority: created, rotated, and asked for serving certificates. Pure but for key generation.
//!
//! Rotation overlaps: the old authority's certificate stays in the bundle until it expires, and the new authority signs
//! only after the API server was given both (the keeper's order of steps).

use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose,
};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer, pem::PemObject as _};
use std::{
    collections::BTreeMap,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

/// Life of the authority.
pub const AUTHORITY_LIFE: Duration = Duration::from_hours(365 * 24);
/// It is rotated when less than this is left.
pub const AUTHORITY_RENEWAL: Duration = Duration::from_hours(120 * 24);
/// Life of a serving certificate.
pub const SERVING_LIFE: Duration = Duration::from_hours(30 * 24);
/// It is replaced when less than this is left.
pub const SERVING_RENEWAL: Duration = Duration::from_hours(10 * 24);
/// Certificates are valid from a little earlier, for clocks that are behind.
const SKEW: Duration = Duration::from_hours(1);

/// Keys of the Secret.
const CERTIFICATE: &str = "ca.crt";
const KEY: &str = "ca.key";
const PREVIOUS: &str = "previous.crt";

/// Why certificates cannot be read or made.
#[derive(Debug, thiserror::Error)]
pub enum AuthorityError {
    /// A key of the Secret is absent or no text.
    #[error("the Secret has no {0}")]
    Absent(&'static str),
    /// A certificate cannot be read.
    #[error("failed to read the certificate in {key}: {reason}")]
    Read {
        /// Key of the Secret.
        key: &'static str,
        /// Why.
        reason: String,
    },
    /// A key or certificate cannot be made, or the key does not fit.
    #[error("failed to make a certificate")]
    Make(#[from] rcgen::Error),
}

/// The authority that signs, and the one before it while that is still trusted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Authority {
    certificate: String,
    key: String,
    expires: SystemTime,
    previous: Option<(String, SystemTime)>,
}

/// A serving certificate.
#[derive(Debug)]
pub struct Serving {
    /// The certificate; its issuer is in the bundle.
    pub certificate: CertificateDer<'static>,
    /// Its key.
    pub key: PrivateKeyDer<'static>,
    /// When it expires.
    pub expires: SystemTime,
}

impl Authority {
    /// A new authority.
    ///
    /// # Errors
    /// When the system has no randomness.
    pub fn create(now: SystemTime) -> Result<Self, AuthorityError> {
        let key = KeyPair::generate()?;
        let mut params = CertificateParams::default();
        params.distinguished_name = named("CADDY cache webhook CA");
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        let expires = valid(&mut params, now, AUTHORITY_LIFE);
        let certificate = params.self_signed(&key)?.pem();
        Ok(Self { certificate, key: key.serialize_pem(), expires, previous: None })
    }

    /// Reads the Secret's data.
    ///
    /// # Errors
    /// When something is absent, unreadable, or certificate and key do not belong together.
    pub fn from_secret(data: &BTreeMap<String, Vec<u8>>) -> Result<Self, AuthorityError> {
        let text = |key: &'static str| {
            let bytes = data.get(key).ok_or(AuthorityError::Absent(key))?;
            String::from_utf8(bytes.clone()).map_err(|_| AuthorityError::Absent(key))
        };
        let (certificate, key) = (text(CERTIFICATE)?, text(KEY)?);
        let expires = expiry(&certificate, CERTIFICATE)?;
        let pair = KeyPair::from_pem(&key)?;
        if !holds(&certificate, &pair) {
            return Err(AuthorityError::Read { key: CERTIFICATE, reason: "it does not belong to ca.key".to_owned() });
        }
        let previous = match text(PREVIOUS) {
            Ok(previous) => Some((previous.clone(), expiry(&previous, PREVIOUS)?)),
            Err(_) => None,
        };
        Ok(Self { certificate, key, expires, previous })
    }

    /// The Secret's data.
    pub fn to_secret(&self) -> BTreeMap<String, Vec<u8>> {
        let mut data = BTreeMap::from([
            (CERTIFICATE.to_owned(), self.certificate.clone().into_bytes()),
            (KEY.to_owned(), self.key.clone().into_bytes()),
        ]);
        if let Some((previous, _)) = &self.previous {
            data.insert(PREVIOUS.to_owned(), previous.clone().into_bytes());
        }
        data
    }

    /// Whether it is time for [`Self::rotated`].
    pub fn is_due(&self, now: SystemTime) -> bool {
        now + AUTHORITY_RENEWAL > self.expires
    }

    /// A new authority that keeps this one's certificate in the bundle.
    ///
    /// # Errors
    /// When the system has no randomness.
    pub fn rotated(&self, now: SystemTime) -> Result<Self, AuthorityError> {
        let previous = Some((self.certificate.clone(), self.expires));
        Ok(Self { previous, ..Self::create(now)? })
    }

    /// All certificates that the API server is to trust, as PEM.
    pub fn bundle(&self, now: SystemTime) -> String {
        let previous = self.previous.iter().filter(|(_, expires)| *expires > now);
        previous.fold(self.certificate.clone(), |bundle, (certificate, _)| bundle + certificate)
    }

    /// A serving certificate for these names and addresses.
    ///
    /// # Errors
    /// When a name cannot stand in a certificate.
    pub fn issue(&self, hosts: &[String], now: SystemTime) -> Result<Serving, AuthorityError> {
        let mut params = CertificateParams::new(hosts)?;
        params.distinguished_name = named("CADDY cache webhook");
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.use_authority_key_identifier_extension = true;
        let expires = valid(&mut params, now, SERVING_LIFE.min(self.expires.duration_since(now).unwrap_or_default()));
        let issuer = Issuer::from_ca_cert_pem(&self.certificate, KeyPair::from_pem(&self.key)?)?;
        let key = KeyPair::generate()?;
        let certificate = params.signed_by(&key, &issuer)?;
        Ok(Serving {
            certificate: certificate.into(),
            key: PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(key.serialize_der())),
            expires,
        })
    }
}

fn named(common_name: &str) -> DistinguishedName {
    let mut name = DistinguishedName::new();
    name.push(DnType::CommonName, common_name);
    name
}

/// Sets the validity; certificates count whole seconds.
fn valid(params: &mut CertificateParams, now: SystemTime, life: Duration) -> SystemTime {
    let since = now.duration_since(UNIX_EPOCH).unwrap_or_default();
    let expires = UNIX_EPOCH + Duration::from_secs((since + life).as_secs());
    params.not_before = (UNIX_EPOCH + Duration::from_secs(since.saturating_sub(SKEW).as_secs())).into();
    params.not_after = expires.into();
    expires
}

fn der(pem: &str) -> Result<CertificateDer<'static>, String> {
    CertificateDer::from_pem_slice(pem.as_bytes()).map_err(|error| format!("{error:?}"))
}

fn expiry(pem: &str, key: &'static str) -> Result<SystemTime, AuthorityError> {
    let failed = |reason| AuthorityError::Read { key, reason };
    let der = der(pem).map_err(failed)?;
    let (_, certificate) = x509_parser::parse_x509_certificate(&der).map_err(|error| failed(error.to_string()))?;
    let seconds = u64::try_from(certificate.validity().not_after.timestamp()).unwrap_or(0);
    Ok(UNIX_EPOCH + Duration::from_secs(seconds))
}

/// Whether the certificate is of this key.
fn holds(pem: &str, key: &KeyPair) -> bool {
    let Ok(der) = der(pem) else { return false };
    let Ok((_, certificate)) = x509_parser::parse_x509_certificate(&der) else { return false };
    certificate.public_key().subject_public_key.data.as_ref() == key.public_key_raw()
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustls::{
        RootCertStore,
        client::{WebPkiServerVerifier, danger::ServerCertVerifier},
        crypto::ring,
        pki_types::{ServerName, UnixTime},
    };
    use std::sync::Arc;

    const DAY: Duration = Duration::from_hours(24);

    fn start() -> SystemTime {
        UNIX_EPOCH + Duration::from_hours(500_000)
    }

    fn hosts() -> Vec<String> {
        vec!["caddy-operator.caddy.svc".into(), "127.0.0.1".into()]
    }

    /// Whether a client that trusts `bundle` accepts the certificate for `host` at `now`.
    fn accepted(bundle: &str, serving: &Serving, host: &str, now: SystemTime) -> bool {
        let mut roots = RootCertStore::empty();
        for certificate in CertificateDer::pem_slice_iter(bundle.as_bytes()) {
            roots.add(certificate.unwrap()).unwrap();
        }
        let provider = Arc::new(ring::default_provider());
        let verifier = WebPkiServerVerifier::builder_with_provider(Arc::new(roots), provider).build().unwrap();
        let host = ServerName::try_from(host.to_owned()).unwrap();
        let now = UnixTime::since_unix_epoch(now.duration_since(UNIX_EPOCH).unwrap());
        verifier.verify_server_cert(&serving.certificate, &[], &host, &[], now).is_ok()
    }

    #[test]
    fn a_client_that_trusts_the_bundle_accepts_the_certificate_for_its_hosts_only() {
        let authority = Authority::create(start()).unwrap();
        let serving = authority.issue(&hosts(), start()).unwrap();
        let bundle = authority.bundle(start());
        assert!(accepted(&bundle, &serving, "caddy-operator.caddy.svc", start()));
        assert!(accepted(&bundle, &serving, "127.0.0.1", start()));
        assert!(!accepted(&bundle, &serving, "elsewhere.svc", start()));
        assert!(!accepted(&bundle, &serving, "127.0.0.1", start() + SERVING_LIFE + DAY));
    }

    #[test]
    fn the_secret_holds_all_of_it() {
        let authority = Authority::create(start()).unwrap().rotated(start()).unwrap();
        assert_eq!(Authority::from_secret(&authority.to_secret()).unwrap(), authority);
    }

    #[test]
    fn a_damaged_secret_is_told_apart() {
        let good = Authority::create(start()).unwrap().to_secret();
        let other = Authority::create(start()).unwrap().to_secret();
        for (key, value) in [("ca.crt", b"garbage".to_vec()), ("ca.key", vec![]), ("ca.key", other["ca.key"].clone())] {
            let mut damaged = good.clone();
            damaged.insert(key.to_owned(), value);
            assert!(Authority::from_secret(&damaged).is_err(), "{key}");
        }
        assert!(Authority::from_secret(&BTreeMap::new()).is_err());
    }

    #[test]
    fn a_rotation_breaks_neither_old_nor_new_certificates() {
        let old = Authority::create(start()).unwrap();
        let before = old.issue(&hosts(), start()).unwrap();
        assert!(!old.is_due(start() + AUTHORITY_LIFE - AUTHORITY_RENEWAL - DAY));
        let now = start() + AUTHORITY_LIFE - AUTHORITY_RENEWAL + DAY;
        assert!(old.is_due(now));
        let new = old.rotated(now).unwrap();
        let after = new.issue(&hosts(), now).unwrap();
        let still = start() + DAY;
        assert!(accepted(&new.bundle(still), &before, "127.0.0.1", still));
        assert!(accepted(&new.bundle(now), &after, "127.0.0.1", now));
        assert!(!accepted(&old.bundle(now), &after, "127.0.0.1", now), "the overlap proves nothing");
    }

    #[test]
    fn an_expired_authority_leaves_the_bundle() {
        let new = Authority::create(start()).unwrap().rotated(start() + 300 * DAY).unwrap();
        let count = |now| new.bundle(now).matches("BEGIN CERTIFICATE").count();
        assert_eq!((count(start() + 364 * DAY), count(start() + 366 * DAY)), (2, 1));
    }
}
