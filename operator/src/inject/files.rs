//! What of the user's Secrets and ConfigMaps is mounted into the sidecar, and nowhere else.
//!
//! No subPath: kubelet refreshes such mounts never, and these files may rotate.

use caddy_crds::{
    CacheCluster,
    cluster::{Redis, RedisTls},
    names,
};
use serde_json::{Value, json};

/// Readable by the sidecar's user, which owns none of the files.
const MODE: i32 = 0o444;

/// A volume and where the sidecar sees it.
pub(super) struct Files {
    pub(super) volume: Value,
    pub(super) mount: Value,
}

/// All that the spec names.
pub(super) fn of(cluster: &CacheCluster) -> Vec<Files> {
    let Some(redis) = &cluster.spec.l3.redis else { return Vec::new() };
    [login(redis), redis.tls.as_ref().and_then(certificates)].into_iter().flatten().collect()
}

fn login(redis: &Redis) -> Option<Files> {
    let secret = redis.auth_secret_ref.as_ref()?;
    let keys = [Some(&secret.key), secret.username_key.as_ref()];
    let items: Vec<Value> = keys.into_iter().flatten().map(|key| json!({"key": key, "path": key})).collect();
    Some(Files {
        volume: json!({
            "name": names::REDIS_AUTH_VOLUME,
            "secret": {"secretName": secret.name, "items": items, "defaultMode": MODE},
        }),
        mount: mount(names::REDIS_AUTH_VOLUME, names::REDIS_AUTH_DIR),
    })
}

/// From several objects into one directory, which kubelet swaps as a whole: a certificate never meets another's key.
fn certificates(tls: &RedisTls) -> Option<Files> {
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
    (!sources.is_empty()).then(|| Files {
        volume: json!({
            "name": names::REDIS_TLS_VOLUME,
            "projected": {"sources": sources, "defaultMode": MODE},
        }),
        mount: mount(names::REDIS_TLS_VOLUME, names::REDIS_TLS_DIR),
    })
}

fn mount(volume: &str, directory: &str) -> Value {
    json!({"name": volume, "mountPath": directory, "readOnly": true})
}
