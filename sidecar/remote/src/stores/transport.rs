//! The connections to an HTTP origin, plain or with TLS.
//!
//! Owns the pool and, for TLS, whom to trust and what to show: the files are looked at before each request, as before each
//! connect to Redis, so that they may rotate; a change begins another pool. Sends each request once.

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use http::{Request, Response};
use http_body_util::Full;
use hyper::body::Incoming;
use hyper_rustls::{FixedServerNameResolver, HttpsConnector, HttpsConnectorBuilder};
use hyper_util::{
    client::legacy::{Client, Error, connect::HttpConnector},
    rt::{TokioExecutor, TokioTimer},
};
use parking_lot::Mutex;
use rustls::{ClientConfig, pki_types::ServerName};

use crate::tls::{Tls, TlsError, TlsOptions};

/// See the module.
#[derive(Debug)]
pub(super) enum Transport {
    Plain(Client<HttpConnector, Full<Bytes>>),
    Tls(Box<Secured>),
}

/// With TLS.
#[derive(Debug)]
pub(super) struct Secured {
    tls: Tls,
    name: Option<ServerName<'static>>,
    settings: Settings,
    made: Mutex<Option<Made>>,
}

/// A pool, and what it was made with.
#[derive(Debug)]
struct Made {
    config: Arc<ClientConfig>,
    client: Client<HttpsConnector<HttpConnector>, Full<Bytes>>,
}

/// How connections are made and kept.
#[derive(Debug, Clone, Copy)]
pub(super) struct Settings {
    pub(super) connect_timeout: Duration,
    /// Idle ones.
    pub(super) kept: usize,
}

/// Why there is no response.
#[derive(Debug, thiserror::Error)]
pub(super) enum TransportError {
    #[error(transparent)]
    Tls(#[from] TlsError),
    #[error(transparent)]
    Http(#[from] Error),
}

impl Transport {
    pub(super) fn plain(settings: Settings) -> Self {
        Self::Plain(settings.pool().build(settings.tcp()))
    }

    /// Fails on files that cannot be used now.
    pub(super) fn tls(options: TlsOptions, settings: Settings) -> Result<Self, TlsError> {
        let parsed = |name: String| ServerName::try_from(name.clone()).map_err(|_| TlsError::ServerName { name });
        let name = options.server_name.clone().map(parsed).transpose()?;
        let secured = Secured { tls: Tls::new(options), name, settings, made: Mutex::new(None) };
        secured.client()?;
        Ok(Self::Tls(Box::new(secured)))
    }

    pub(super) async fn send(&self, request: Request<Full<Bytes>>) -> Result<Response<Incoming>, TransportError> {
        match self {
            Self::Plain(client) => Ok(client.request(request).await?),
            Self::Tls(secured) => {
                let client = secured.client()?;
                Ok(client.request(request).await?)
            }
        }
    }
}

impl Secured {
    fn client(&self) -> Result<Client<HttpsConnector<HttpConnector>, Full<Bytes>>, TlsError> {
        let config = self.tls.config()?;
        let mut made = self.made.lock();
        if let Some(made) = made.as_ref().filter(|made| Arc::ptr_eq(&made.config, &config)) {
            return Ok(made.client.clone());
        }
        let mut builder = HttpsConnectorBuilder::new().with_tls_config((*config).clone()).https_only();
        if let Some(name) = &self.name {
            builder = builder.with_server_name_resolver(FixedServerNameResolver::new(name.clone()));
        }
        let client = self.settings.pool().build(builder.enable_http1().wrap_connector(self.settings.tcp()));
        *made = Some(Made { config, client: client.clone() });
        Ok(client)
    }
}

impl Settings {
    fn tcp(self) -> HttpConnector {
        let mut tcp = HttpConnector::new();
        tcp.enforce_http(false);
        tcp.set_nodelay(true);
        tcp.set_connect_timeout(Some(self.connect_timeout));
        tcp
    }

    fn pool(self) -> hyper_util::client::legacy::Builder {
        let mut pool = Client::builder(TokioExecutor::new());
        pool.pool_timer(TokioTimer::new()).pool_max_idle_per_host(self.kept);
        pool
    }
}
