//! The configuration of L3 in the words of `caddy-remote`: addresses, logins, TLS, Sentinels, how writes are learned.

use std::{path::PathBuf, sync::Arc};

use caddy_contract::{Coherence, Consistency, Redis, RedisMode, SentinelTls};
use caddy_remote::{Credential, Endpoint, Login, Mode, SentinelWatch, Sentinels, Target, Tls, TlsOptions, Tracking};
use tokio::runtime::Handle;

/// What to connect to, and the Sentinels that know where it is. Of a cluster: the first seed. Timers run on the runtime of
/// the caller.
pub(crate) fn target(
    redis: &Redis,
    consistency: &Consistency,
    password: Option<&String>,
) -> (Target, Option<SentinelWatch>) {
    let tls = redis.tls.as_ref().map(|tls| {
        Arc::new(Tls::new(TlsOptions {
            ca_file: tls.ca_file.clone(),
            client_certificate: tls.client_certificate.clone(),
            server_name: tls.server_name.clone(),
        }))
    });
    let mut endpoints = redis.endpoints.iter().map(endpoint);
    // The contract refuses a Redis without an endpoint.
    let first = endpoints.next().unwrap_or_else(|| Endpoint::Unix("/".into()));
    let target = Target {
        tracking: match consistency.coherence {
            Coherence::Tracking => Tracking::Keys,
            Coherence::Broadcast => Tracking::Broadcast(consistency.broadcast_prefixes.clone()),
            Coherence::Ttl => Tracking::Nothing,
        },
        login: Login {
            username: credential(redis.username.as_ref(), redis.username_file.as_ref()),
            password: credential(password, redis.password_file.as_ref()),
        },
        mode: if redis.mode == RedisMode::Cluster { Mode::Cluster } else { Mode::Standalone },
        tls: tls.clone(),
        connect_timeout: redis.connect_timeout,
        response_timeout: redis.timeout,
        timers: Handle::try_current().ok(),
        ..Target::new(first.clone())
    };
    let (RedisMode::Sentinel, Some(sentinel)) = (redis.mode, &redis.sentinel) else { return (target, None) };
    let seat = |endpoint| Target {
        mode: Mode::Sentinel,
        tracking: Tracking::Nothing,
        login: Login {
            username: credential(sentinel.username.as_ref(), sentinel.username_file.as_ref()),
            password: credential(None, sentinel.password_file.as_ref()),
        },
        tls: tls.clone().filter(|_| sentinel.tls == SentinelTls::Same),
        connect_timeout: redis.connect_timeout,
        // Who is asked for the primary must answer while a connect waits for it.
        response_timeout: redis.connect_timeout,
        timers: target.timers.clone(),
        ..Target::new(endpoint)
    };
    let seats = std::iter::once(first).chain(endpoints).map(seat).collect();
    let (sentinels, watch) = Sentinels::new(seats, sentinel.master_name.clone());
    (Target { sentinels: Some(sentinels), ..target }, Some(watch))
}

/// An address.
pub(crate) fn endpoint(endpoint: &caddy_contract::Endpoint) -> Endpoint {
    match endpoint {
        caddy_contract::Endpoint::Tcp { host, port } => Endpoint::Tcp { host: host.clone(), port: *port },
        caddy_contract::Endpoint::Unix(path) => Endpoint::Unix(path.clone()),
    }
}

fn credential(inline: Option<&String>, file: Option<&PathBuf>) -> Option<Credential> {
    inline.cloned().map(Credential::Inline).or_else(|| file.cloned().map(Credential::File))
}
