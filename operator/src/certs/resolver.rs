//! Gives each TLS handshake the certificate of the moment; a new one is swapped in without closing anything.

use super::authority::Serving;
use arc_swap::ArcSwapOption;
use rustls::{
    ServerConfig,
    crypto::ring,
    server::{ClientHello, ResolvesServerCert},
    sign::CertifiedKey,
};
use std::sync::Arc;

/// The certificate of the moment, if there is one yet.
#[derive(Debug, Default)]
pub struct Resolver {
    current: ArcSwapOption<CertifiedKey>,
}

impl Resolver {
    /// Swaps in a certificate.
    ///
    /// # Errors
    /// When the key is of no kind that rustls signs with.
    pub fn swap(&self, serving: Serving) -> Result<(), rustls::Error> {
        let key = ring::sign::any_supported_type(&serving.key)?;
        self.current.store(Some(Arc::new(CertifiedKey::new(vec![serving.certificate], key))));
        Ok(())
    }

    /// A server's TLS with this resolver.
    ///
    /// # Errors
    /// When the crypto provider knows no protocol version that is asked for.
    pub fn server_config(self: Arc<Self>) -> Result<Arc<ServerConfig>, rustls::Error> {
        let builder = ServerConfig::builder_with_provider(Arc::new(ring::default_provider()));
        let config = builder.with_safe_default_protocol_versions()?.with_no_client_auth().with_cert_resolver(self);
        Ok(Arc::new(config))
    }
}

impl ResolvesServerCert for Resolver {
    fn resolve(&self, _: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        self.current.load_full()
    }
}
