//! `spec.l3`: the tier that all sidecars share.

use super::password;
use crate::quantity::Period;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// The tier that all sidecars share; exactly one kind.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct L3 {
    /// A Redis (7 or newer) or Valkey that all sidecars reach.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub redis: Option<Redis>,
    /// No server: each pod has its own data. For development and tests.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub embedded: Option<Embedded>,
}

/// The embedded L3 has nothing to set; write `embedded: {}`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Embedded {}

/// A Redis or Valkey.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Redis {
    /// How its nodes form one store. `Standalone`: one server. `Sentinel`: the primary that Sentinels name, followed through
    /// failovers. `Cluster`: a Redis Cluster.
    #[serde(default)]
    pub mode: Mode,
    /// Addresses as `host:port`, seen from the pods: exactly one in mode `Standalone`, those of all Sentinels in mode
    /// `Sentinel`, in mode `Cluster` some nodes (or a Service in front of them) that are asked for the others, in this order.
    #[schemars(length(min = 1, max = 16))]
    #[schemars(inner(
        length(min = 3, max = 270),
        regex(pattern = r"^([A-Za-z0-9._-]+|\[[0-9A-Fa-f:.]+\]):[0-9]{1,5}$")
    ))]
    pub endpoints: Vec<String>,
    /// How to ask the Sentinels; needed in mode `Sentinel`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sentinel: Option<Sentinel>,
    /// User for AUTH; absent means Redis's default user.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 256))]
    pub username: Option<String>,
    /// Secret of this namespace that holds the password. It is mounted into the sidecar only, and read again before each
    /// connect: it may rotate while the server takes both the old and the new one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub auth_secret_ref: Option<SecretKey>,
    /// TLS; absent means plain text. There is no fallback from one to the other.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tls: Option<RedisTls>,
    /// Deadline of a connect with its handshake.
    #[serde(default = "connect_timeout")]
    pub connect_timeout: Period,
    /// Deadline of a command.
    #[serde(default = "timeout")]
    pub timeout: Period,
}

/// How to ask the Sentinels.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Sentinel {
    /// What they call the primary.
    #[schemars(length(min = 1, max = 128), regex(pattern = r"^[-._a-zA-Z0-9]+$"))]
    pub master_name: String,
    /// User for AUTH at the Sentinels; absent means their default user.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 256))]
    pub username: Option<String>,
    /// Secret of this namespace that holds the Sentinels' password. It is mounted into the sidecar only.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub auth_secret_ref: Option<SecretKey>,
    /// Whether TLS, where it is set for Redis, is used towards the Sentinels too: `Same` or `"Off"`.
    #[serde(default)]
    pub tls: SentinelTls,
}

/// TLS towards Sentinels.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum SentinelTls {
    /// As towards Redis.
    #[default]
    Same,
    /// Plain text.
    Off,
}

/// TLS towards a Redis; `tls: {}` trusts the authorities of the sidecar's image. Certificates are read again before each
/// connect, so that they may rotate.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct RedisTls {
    /// Secret of this namespace with the authorities' certificates to trust, in PEM form.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ca_secret_ref: Option<CaKey>,
    /// ConfigMap of this namespace with them, instead of a Secret.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ca_config_map_ref: Option<CaKey>,
    /// Secret of this namespace, of type kubernetes.io/tls, with the certificate that sidecars show to the server. It is
    /// mounted into the sidecar only.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub client_certificate_secret_ref: Option<SecretName>,
    /// Name that the server's certificate must be for, and that is sent as SNI; absent means the endpoint's host.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 253), regex(pattern = r"^[A-Za-z0-9._:-]+$"))]
    pub server_name: Option<String>,
}

/// One key of a Secret or ConfigMap.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct CaKey {
    /// Name of the Secret or ConfigMap.
    #[schemars(length(min = 1, max = 253), regex(pattern = r"^[a-z0-9]([-a-z0-9.]*[a-z0-9])?$"))]
    pub name: String,
    /// Key whose value are certificates in PEM form.
    #[serde(default = "ca_crt")]
    #[schemars(length(min = 1, max = 253), regex(pattern = r"^[-._a-zA-Z0-9]+$"))]
    pub key: String,
}

/// A Secret.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct SecretName {
    /// Name of the Secret.
    #[schemars(length(min = 1, max = 253), regex(pattern = r"^[a-z0-9]([-a-z0-9.]*[a-z0-9])?$"))]
    pub name: String,
}

/// How the nodes of a Redis form one store.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum Mode {
    /// One server.
    #[default]
    Standalone,
    /// A Redis Cluster: its nodes are found, and followed when slots or roles change. Apps see one Redis.
    Cluster,
    /// The primary that Sentinels name.
    Sentinel,
}

/// Login data in a Secret.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct SecretKey {
    /// Name of the Secret.
    #[schemars(length(min = 1, max = 253), regex(pattern = r"^[a-z0-9]([-a-z0-9.]*[a-z0-9])?$"))]
    pub name: String,
    /// Key whose value is the password.
    #[serde(default = "password")]
    #[schemars(length(min = 1, max = 253), regex(pattern = r"^[-._a-zA-Z0-9]+$"))]
    pub key: String,
    /// Key whose value is the user, instead of `username`; for users that rotate with their passwords.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 253), regex(pattern = r"^[-._a-zA-Z0-9]+$"))]
    pub username_key: Option<String>,
}

impl Default for Redis {
    fn default() -> Self {
        Self {
            mode: Mode::default(),
            endpoints: Vec::new(),
            sentinel: None,
            username: None,
            auth_secret_ref: None,
            tls: None,
            connect_timeout: connect_timeout(),
            timeout: timeout(),
        }
    }
}

fn connect_timeout() -> Period {
    "1s".into()
}

fn timeout() -> Period {
    "2s".into()
}

fn ca_crt() -> String {
    "ca.crt".into()
}
