//! What of the user's Secrets and ConfigMaps is mounted into the sidecar, and nowhere else.
//!
//! No subPath: kubelet refreshes such mounts never, and these files may rotate.

use caddy_crds::{
    CacheCluster,
    cluster::{Auth, PasswordKey, Redis, RedisTls, SecretKey, Store},
    names,
};
use serde_json::{Value, json};

use crate::plan::write_behind_volume;

/// Readable by the sidecar's user, which owns none of the files.
const MODE: i32 = 0o444;

/// A volume and where the sidecar sees it.
pub(super) struct Files {
    pub(super) volume: Value,
    pub(super) mount: Value,
}

/// All that the spec names.
pub(super) fn of(cluster: &CacheCluster) -> Vec<Files> {
    let redis = cluster.spec.l3.redis.as_ref().map(of_redis).unwrap_or_default();
    let stores = cluster.spec.stores.iter().filter_map(of_store);
    redis.into_iter().chain(cluster.spec.auth.as_ref().map(users)).chain(stores).chain(logs(cluster)).collect()
}

/// Of the sidecar's own, on the node's disk: what waits for a store has to survive the process.
fn logs(cluster: &CacheCluster) -> Option<Files> {
    let size = write_behind_volume(cluster)?;
    Some(Files {
        volume: json!({"name": names::WRITE_BEHIND_VOLUME, "emptyDir": {"sizeLimit": size.to_string()}}),
        mount: json!({"name": names::WRITE_BEHIND_VOLUME, "mountPath": caddy_contract::WRITE_BEHIND_DIR}),
    })
}

fn of_redis(redis: &Redis) -> Vec<Files> {
    let sentinel = redis.sentinel.as_ref().and_then(|sentinel| sentinel.auth_secret_ref.as_ref());
    let logins = [
        (redis.auth_secret_ref.as_ref(), names::REDIS_AUTH_VOLUME, names::REDIS_AUTH_DIR),
        (sentinel, names::SENTINEL_AUTH_VOLUME, names::SENTINEL_AUTH_DIR),
    ];
    let logins = logins.map(|(secret, volume, directory)| Some(login(secret?, volume, directory)));
    let certificates = redis.tls.as_ref().and_then(certificates);
    logins.into_iter().chain([certificates]).flatten().collect()
}

fn login(secret: &SecretKey, volume: &str, directory: &str) -> Files {
    let keys = [Some(&secret.key), secret.username_key.as_ref()];
    let items: Vec<Value> = keys.into_iter().flatten().map(|key| json!({"key": key, "path": key})).collect();
    Files {
        volume: json!({
            "name": volume,
            "secret": {"secretName": secret.name, "items": items, "defaultMode": MODE},
        }),
        mount: mount(volume, directory),
    }
}

/// From several objects into one directory, which kubelet swaps as a whole: a certificate never meets another's key.
fn certificates(tls: &RedisTls) -> Option<Files> {
    projected(&certificate_sources(tls), names::REDIS_TLS_VOLUME, names::REDIS_TLS_DIR)
}

fn certificate_sources(tls: &RedisTls) -> Vec<Value> {
    let source = |kind: &str, name: &str, items: Value| json!({kind: {"name": name, "items": items}});
    let item = |key: &str, path: &str| json!({"key": key, "path": path});
    let mut sources = Vec::new();
    if let Some(ca) = &tls.ca_secret_ref {
        sources.push(source("secret", &ca.name, json!([item(&ca.key, names::CA_FILE)])));
    }
    if let Some(ca) = &tls.ca_config_map_ref {
        sources.push(source("configMap", &ca.name, json!([item(&ca.key, names::CA_FILE)])));
    }
    if let Some(secret) = &tls.client_certificate_secret_ref {
        let items = [names::CERTIFICATE_FILE, names::KEY_FILE].map(|name| item(name, name));
        sources.push(source("secret", &secret.name, json!(items)));
    }
    sources
}

fn projected(sources: &[Value], volume: &str, directory: &str) -> Option<Files> {
    (!sources.is_empty()).then(|| Files {
        volume: json!({"name": volume, "projected": {"sources": sources, "defaultMode": MODE}}),
        mount: mount(volume, directory),
    })
}

/// What a store is asked with, in a directory of its own.
fn of_store(store: &Store) -> Option<Files> {
    let secret = |secret: &PasswordKey, file: String| json!({"secret": {"name": secret.name, "items": [{"key": secret.key, "path": file}]}});
    let mut sources = Vec::new();
    let mut tls = None;
    if let Some(http) = &store.http {
        let headers = http.headers.iter().enumerate();
        let headers =
            headers.filter_map(|(n, header)| Some(secret(header.secret_ref.as_ref()?, names::header_file(n))));
        sources.extend(headers);
        tls = http.tls.as_ref();
    }
    if let Some(postgres) = &store.postgres {
        let password = postgres.auth_secret_ref.as_ref();
        sources.extend(password.map(|reference| secret(reference, names::STORE_PASSWORD_FILE.to_owned())));
        tls = tls.or(postgres.tls.as_ref());
    }
    sources.extend(tls.into_iter().flat_map(certificate_sources));
    projected(&sources, &names::store_volume(&store.name), &names::store_dir(&store.name))
}

/// The passwords of the socket's users, from several Secrets into one directory: a file is replaced when its Secret is.
fn users(auth: &Auth) -> Files {
    let source =
        |file: String, name: &str, key: &str| json!({"secret": {"name": name, "items": [{"key": key, "path": file}]}});
    let default = auth.secret_ref.iter().map(|secret| (names::auth_file(None), secret));
    let others = auth.users.iter().map(|user| (names::auth_file(Some(&user.name)), &user.secret_ref));
    let sources: Vec<Value> =
        default.chain(others).map(|(file, secret)| source(file, &secret.name, &secret.key)).collect();
    Files {
        volume: json!({"name": names::AUTH_VOLUME, "projected": {"sources": sources, "defaultMode": MODE}}),
        mount: mount(names::AUTH_VOLUME, names::AUTH_DIR),
    }
}

fn mount(volume: &str, directory: &str) -> Value {
    json!({"name": volume, "mountPath": directory, "readOnly": true})
}
