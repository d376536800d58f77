//! The command line, and what it makes of it: a whole [`Config`], from a file or from a few flags by hand.

use std::{path::PathBuf, time::Duration};

use anyhow::Context as _;
use caddy_contract::{Config, RawConfig, RawL3, RawRedis, RawTls};
use clap::{Args, Parser, Subcommand};

use crate::reload;

/// The coherent near cache that apps talk to with their ordinary Redis client.
#[derive(Debug, Parser)]
#[command(name = "caddy-sidecar", version, args_conflicts_with_subcommands = true)]
pub struct Cli {
    /// What to do; without it: serve.
    #[command(subcommand)]
    pub command: Option<Command>,
    /// How to serve.
    #[command(flatten)]
    pub serve: Serve,
}

/// Commands beside serving.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Ask a running sidecar for a sign of life; fails if there is none. Used by probes.
    Ping {
        /// Its socket [default: $CADDY_SOCKET, or /run/caddy/cache.sock].
        #[arg(long)]
        socket: Option<PathBuf>,
        /// Keep trying for so long, e.g. 30s.
        #[arg(long, value_parser = duration, default_value = "0s")]
        wait: Duration,
        /// Succeed only when it has read ahead as far as warming.startupShare says, or warming.startupDeadline is over; its
        /// admin port may be given [default: 9464].
        #[arg(long, value_name = "PORT", num_args = 0..=1, default_missing_value = "9464")]
        startup: Option<u16>,
    },
    /// Read a configuration file and say all that is wrong with it.
    CheckConfig {
        /// The file.
        file: PathBuf,
    },
}

/// How to serve.
#[derive(Debug, Args)]
pub struct Serve {
    /// The configuration file; it is watched for changes. Without it the flags below apply.
    #[arg(long, conflicts_with_all = ["redis", "tls_ca", "tls_cert", "tls_key", "tls_server_name", "socket", "tcp_port", "admin_port", "workers", "max_staleness"])]
    config: Option<PathBuf>,
    /// The Redis behind the cache: redis://[user:password@]host:port, rediss://… for TLS, unix:///path or host:port.
    /// Without it: embedded.
    #[arg(long)]
    redis: Option<String>,
    /// With rediss://: PEM file of the certificate authorities to trust, instead of the system's.
    #[arg(long, requires = "redis")]
    tls_ca: Option<PathBuf>,
    /// With rediss://: PEM file of the certificate to show to Redis.
    #[arg(long, requires_all = ["redis", "tls_key"])]
    tls_cert: Option<PathBuf>,
    /// With rediss://: PEM file of its key.
    #[arg(long, requires_all = ["redis", "tls_cert"])]
    tls_key: Option<PathBuf>,
    /// With rediss://: the name that the certificate of Redis must be for, instead of the host in the URL.
    #[arg(long, requires = "redis")]
    tls_server_name: Option<String>,
    /// The socket to serve.
    #[arg(long, default_value = "./cache.sock")]
    socket: PathBuf,
    /// Also serve this port on 127.0.0.1.
    #[arg(long)]
    tcp_port: Option<u16>,
    /// Port of health and metrics on 127.0.0.1 [default: 9464, or a free one if that is taken].
    #[arg(long)]
    admin_port: Option<u16>,
    /// Worker threads.
    #[arg(long)]
    workers: Option<u32>,
    /// Bound on how long an overwritten state may be read, e.g. 1s.
    #[arg(long)]
    max_staleness: Option<String>,
    /// After SIGTERM: how long to wait for apps that stay connected (the pod's grace less 3 s).
    #[arg(long, value_parser = duration, default_value = "27s")]
    grace: Duration,
}

/// Everything that serving starts from.
#[derive(Debug)]
pub struct Start {
    /// The whole configuration.
    pub config: Config,
    /// Where it came from, to be watched.
    pub config_path: Option<PathBuf>,
    /// A password given in a URL by hand.
    pub password: Option<String>,
    /// Started by a person, who wants to be told how to go on.
    pub by_hand: bool,
    /// Whether a free admin port does if the configured one is taken.
    pub any_admin_port: bool,
    /// How long a terminating sidecar waits for its apps.
    pub grace: Duration,
}

impl Serve {
    /// Reads the file, or makes a configuration of the flags.
    pub fn start(self) -> anyhow::Result<Start> {
        if let Some(path) = self.config {
            let parsed = read(&path)?;
            reload::log_ignored(&parsed.ignored);
            let config_path = Some(path);
            return Ok(Start {
                config: parsed.config,
                config_path,
                password: None,
                by_hand: false,
                any_admin_port: false,
                grace: self.grace,
            });
        }
        let mut raw = RawConfig::default();
        raw.listen.socket = self.socket.display().to_string();
        raw.listen.tcp_port = self.tcp_port.unwrap_or(0);
        raw.admin.port = self.admin_port.unwrap_or(raw.admin.port);
        raw.workers = self.workers.unwrap_or(raw.workers);
        if let Some(bound) = self.max_staleness {
            raw.consistency.max_staleness = bound;
        }
        let mut password = None;
        if let Some(url) = &self.redis {
            let location = Location::parse(url)?;
            password = location.password;
            let path =
                |path: &Option<PathBuf>| path.as_ref().map_or_else(String::new, |path| path.display().to_string());
            let tls = RawTls {
                ca_file: path(&self.tls_ca),
                cert_file: path(&self.tls_cert),
                key_file: path(&self.tls_key),
                server_name: self.tls_server_name.unwrap_or_default(),
            };
            if !location.tls && tls != RawTls::default() {
                anyhow::bail!("{url:?} asks for plain text, and --tls-… for TLS: write rediss://");
            }
            let redis = RawRedis {
                endpoints: vec![location.endpoint],
                username: location.user.unwrap_or_default(),
                tls: location.tls.then_some(tls),
                ..RawRedis::default()
            };
            raw.l3 = RawL3 { redis: Some(redis), embedded: None };
        }
        let config = raw.parse().map_err(|faults| anyhow::anyhow!("{faults}"))?;
        let any_admin_port = self.admin_port.is_none();
        Ok(Start { config, config_path: None, password, by_hand: true, any_admin_port, grace: self.grace })
    }
}

/// Reads a configuration file; all of its faults are in the error.
pub fn read(path: &std::path::Path) -> anyhow::Result<caddy_contract::Parsed> {
    let text = std::fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))?;
    caddy_contract::parse(&text).map_err(|faults| anyhow::anyhow!("{} is not valid:\n{faults}", path.display()))
}

fn duration(text: &str) -> Result<Duration, String> {
    if text == "0s" {
        return Ok(Duration::ZERO);
    }
    caddy_contract::parse_duration(text).map_err(|error| error.to_string())
}

/// A Redis as people write it.
#[derive(Debug, Default, PartialEq, Eq)]
struct Location {
    endpoint: String,
    user: Option<String>,
    password: Option<String>,
    tls: bool,
}

impl Location {
    fn parse(url: &str) -> anyhow::Result<Self> {
        if let Some(path) = url.strip_prefix("unix:").or_else(|| url.strip_prefix("redis+unix:")) {
            return Ok(Self { endpoint: format!("unix:{path}"), ..Self::default() });
        }
        let secured = url.strip_prefix("rediss://");
        let rest = secured.or_else(|| url.strip_prefix("redis://")).unwrap_or(url);
        if rest.contains("://") {
            anyhow::bail!(
                "{url:?}: write redis://[user:password@]host:port, rediss://… for TLS, unix:///path or host:port"
            );
        }
        let (login, rest) = rest.rsplit_once('@').map_or((None, rest), |(login, rest)| (Some(login), rest));
        let rest = rest.trim_end_matches('/');
        if let Some((_, database)) = rest.split_once('/') {
            anyhow::bail!("{url:?}: the database ({database}) is chosen by each app with SELECT; leave it out");
        }
        let named_port = rest.rsplit_once(':').is_some_and(|(_, port)| port.parse::<u16>().is_ok());
        let endpoint = if named_port { rest.to_owned() } else { format!("{rest}:6379") };
        let (user, password) = match login.map(|login| login.split_once(':').unwrap_or(("", login))) {
            None => (None, None),
            Some((user, password)) => (Some(decode(user)?).filter(|user| !user.is_empty()), Some(decode(password)?)),
        };
        Ok(Self { endpoint, user, password, tls: secured.is_some() })
    }
}

/// Percent-decoding, as passwords in URLs need it.
fn decode(text: &str) -> anyhow::Result<String> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((&first, tail)) = rest.split_first() {
        rest = tail;
        if first != b'%' {
            bytes.push(first);
            continue;
        }
        let hex = tail.get(..2).and_then(|hex| std::str::from_utf8(hex).ok());
        let byte = hex.and_then(|hex| u8::from_str_radix(hex, 16).ok());
        bytes.push(byte.context("a % in user or password must be followed by two hex digits; write %25 for % itself")?);
        rest = &tail[2..];
    }
    String::from_utf8(bytes).context("user and password must be UTF-8")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn location(endpoint: &str, user: Option<&str>, password: Option<&str>) -> Location {
        Location {
            endpoint: endpoint.into(),
            user: user.map(Into::into),
            password: password.map(Into::into),
            tls: false,
        }
    }

    #[test]
    fn redis_urls_are_read_as_people_write_them() {
        for (url, expected) in [
            ("redis://cache:7000", location("cache:7000", None, None)),
            ("redis://cache", location("cache:6379", None, None)),
            ("127.0.0.1:6379", location("127.0.0.1:6379", None, None)),
            ("redis://:s%40cret@cache:1/", location("cache:1", None, Some("s@cret"))),
            ("redis://app:pw@[::1]:6379", location("[::1]:6379", Some("app"), Some("pw"))),
            ("unix:///run/redis.sock", location("unix:///run/redis.sock", None, None)),
        ] {
            assert_eq!(Location::parse(url).unwrap(), expected, "{url}");
        }
        let secured = Location { tls: true, ..location("cache:6379", Some("app"), Some("pw")) };
        assert_eq!(Location::parse("rediss://app:pw@cache").unwrap(), secured);
    }

    #[test]
    fn what_cannot_be_honoured_is_refused() {
        for url in ["redis://cache:6379/3", "rediss://cache:6379/3", "http://cache", "redis://u:%zz@cache:1"] {
            assert!(Location::parse(url).is_err(), "{url}");
        }
    }
}
