//! The app's databases, in the contract's words.

use caddy_contract::{RawBreaker, RawHeader, RawHttpStore, RawPostgresStore, RawStore, RawTls};
use caddy_crds::{
    cluster::{HttpHeader, HttpStore, PostgresStore, RedisTls, Store},
    names,
};

pub(super) fn raw_store(store: &Store) -> RawStore {
    let directory = names::store_dir(&store.name);
    RawStore {
        name: store.name.clone(),
        http: store.http.as_ref().map(|http| raw_http(http, &directory)),
        postgres: store.postgres.as_ref().map(|postgres| raw_postgres(postgres, &directory)),
        max_concurrent: store.max_concurrent.unsigned_abs(),
        max_queued: store.max_queued.unsigned_abs(),
        breaker: RawBreaker { failures: store.breaker.failures.unsigned_abs(), pause: store.breaker.pause.0.clone() },
    }
}

fn raw_http(http: &HttpStore, directory: &str) -> RawHttpStore {
    let header = |(n, header): (usize, &HttpHeader)| RawHeader {
        name: header.name.clone(),
        value: header.value.clone().unwrap_or_default(),
        value_file: match header.secret_ref {
            Some(_) => format!("{directory}/{}", names::header_file(n)),
            None => String::new(),
        },
    };
    RawHttpStore {
        url: http.url.clone(),
        headers: http.headers.iter().enumerate().map(header).collect(),
        timeout: http.timeout.0.clone(),
        retries: http.retries.unsigned_abs(),
        backoff: http.backoff.0.clone(),
        max_value_bytes: http.max_value_bytes.0.clone(),
        tls: http.tls.as_ref().map(|tls| raw_tls(tls, directory)),
    }
}

fn raw_postgres(postgres: &PostgresStore, directory: &str) -> RawPostgresStore {
    RawPostgresStore {
        url: postgres.url.clone(),
        password_file: match postgres.auth_secret_ref {
            Some(_) => format!("{directory}/{}", names::STORE_PASSWORD_FILE),
            None => String::new(),
        },
        tls: postgres.tls.as_ref().map(|tls| raw_tls(tls, directory)),
        load: postgres.load.clone(),
        store: postgres.store.clone().unwrap_or_default(),
        delete: postgres.delete.clone().unwrap_or_default(),
        max_connections: postgres.max_connections.unsigned_abs(),
        timeout: postgres.timeout.0.clone(),
        max_value_bytes: postgres.max_value_bytes.0.clone(),
    }
}

/// The files that the injector mounts.
pub(super) fn raw_tls(tls: &RedisTls, directory: &str) -> RawTls {
    let file = |present: bool, name: &str| if present { format!("{directory}/{name}") } else { String::new() };
    let has_ca = tls.ca_secret_ref.is_some() || tls.ca_config_map_ref.is_some();
    let has_certificate = tls.client_certificate_secret_ref.is_some();
    RawTls {
        ca_file: file(has_ca, names::CA_FILE),
        cert_file: file(has_certificate, names::CERTIFICATE_FILE),
        key_file: file(has_certificate, names::KEY_FILE),
        server_name: tls.server_name.clone().unwrap_or_default(),
    }
}
