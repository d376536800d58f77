//! The section `l3`.

use serde::{Deserialize, Serialize};

/// The tier that the sidecars of a cluster share: exactly one kind.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct RawL3 {
    /// In this process: each sidecar has its own data.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub embedded: Option<RawEmbedded>,
    /// A Redis or Valkey.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub redis: Option<RawRedis>,
}

/// The embedded L3 has nothing to set.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct RawEmbedded {}

/// A Redis or Valkey.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct RawRedis {
    /// How its nodes form one store.
    pub mode: RedisMode,
    /// `host:port` or `unix:/path`; exactly one in mode `Standalone`, every Sentinel in mode `Sentinel`, in mode `Cluster`
    /// nodes to ask for the others.
    pub endpoints: Vec<String>,
    /// What mode `Sentinel` needs.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub sentinel: Option<RawSentinel>,
    /// User for AUTH; empty means Redis's default user.
    pub username: String,
    /// File that holds the user instead, read on each connect.
    pub username_file: String,
    /// File that holds the password, read on each connect; empty means no AUTH.
    pub password_file: String,
    /// TLS; without it connections are plain text.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tls: Option<RawTls>,
    /// Deadline of a connect with its handshake.
    pub connect_timeout: String,
    /// Deadline of a command.
    pub timeout: String,
}

/// TLS towards a Redis. All files are in PEM form and looked at before each connect.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct RawTls {
    /// Certificates of the authorities that are trusted; empty means the system's.
    pub ca_file: String,
    /// The certificate that is shown to the server, with its chain; empty means none.
    pub cert_file: String,
    /// Its key.
    pub key_file: String,
    /// The name that the server's certificate must be for; empty means the endpoint's host.
    pub server_name: String,
}

/// How to ask the Sentinels.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct RawSentinel {
    /// What they call the primary.
    pub master_name: String,
    /// User for AUTH at the Sentinels; empty means their default user.
    pub username: String,
    /// File that holds that user instead.
    pub username_file: String,
    /// File that holds their password; empty means no AUTH.
    pub password_file: String,
    /// Whether TLS, where it is set for Redis, is used towards the Sentinels too.
    pub tls: SentinelTls,
}

/// TLS towards Sentinels.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum SentinelTls {
    /// As towards Redis.
    #[default]
    Same,
    /// Plain text.
    Off,
}

/// How the nodes of a Redis form one store.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum RedisMode {
    /// One server.
    #[default]
    Standalone,
    /// A Redis Cluster.
    Cluster,
    /// The primary that Sentinels name.
    Sentinel,
}

impl Default for RawRedis {
    fn default() -> Self {
        Self {
            mode: RedisMode::Standalone,
            endpoints: Vec::new(),
            sentinel: None,
            username: String::new(),
            username_file: String::new(),
            password_file: String::new(),
            tls: None,
            connect_timeout: "1s".into(),
            timeout: "2s".into(),
        }
    }
}
