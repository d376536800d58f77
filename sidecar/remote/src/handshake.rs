//! Getting in: connect, TLS, HELLO, AUTH, SELECT, TRACKING, in one pipelined write, and what the server said of itself.
//!
//! TRACKING is the first command after HELLO/AUTH/SELECT, so that nothing can be read on a tracked connection that is
//! not tracked. A server that refuses it fails the handshake: there is no silent fallback to untracked reads.

use std::{fmt, io, sync::Arc};

use bytes::{Bytes, BytesMut};
use caddy_resp::{FrameKind, Protocol, ReplyScanner, Value, encode};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::{Endpoint, Mode, Setup, Target, TlsError, Tracking, Verdict, stream::Stream, target::Answers};

/// What a server is to its peers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// It takes writes; what it answers is the truth.
    Primary,
    /// It follows another server and may lag behind it.
    Replica,
    /// Neither `master` nor `replica` nor `slave`, or not told.
    Unknown,
}

/// What a server told of itself in its HELLO reply.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ServerInfo {
    /// `redis` or `valkey`.
    pub server: String,
    /// Its version, e.g. `7.0.15`.
    pub version: String,
    /// `standalone`, `sentinel` or `cluster`.
    pub mode: String,
    /// Its role when asked.
    pub role: Role,
}

impl ServerInfo {
    /// Reads a reply to HELLO; `None` if it is not one.
    pub fn from_hello(reply: &Value<'_>) -> Option<Self> {
        let text = |name: &[u8]| {
            let value = reply.field(name)?.as_bytes()?;
            Some(String::from_utf8_lossy(value).into_owned())
        };
        let role = match text(b"role").as_deref() {
            Some("master" | "primary") => Role::Primary,
            Some("slave" | "replica") => Role::Replica,
            _ => Role::Unknown,
        };
        Some(Self {
            server: text(b"server")?,
            version: text(b"version")?,
            mode: text(b"mode").unwrap_or_default(),
            role,
        })
    }
}

impl ServerInfo {
    /// Whether single fields of a hash can expire there: Redis since 7.4, Valkey since 9.
    pub fn expires_fields(&self) -> bool {
        if self.server == "valkey" { self.is_at_least(9, 0) } else { self.is_at_least(7, 4) }
    }

    /// Whether its version, by its own numbering, is this or later; a version that cannot be read is.
    pub fn is_at_least(&self, major: u32, minor: u32) -> bool {
        let mut numbers = self.version.split('.').map(|number| number.parse::<u32>().unwrap_or(u32::MAX));
        (numbers.next().unwrap_or(u32::MAX), numbers.next().unwrap_or(0)) >= (major, minor)
    }
}

impl fmt::Display for ServerInfo {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.server, self.version)
    }
}

/// Why a connection did not come up. Messages are for the person who has to mend it.
#[derive(Debug, Clone, thiserror::Error)]
pub enum ConnectError {
    /// The TCP or Unix connection was refused or the name did not resolve.
    #[error("cannot reach Redis at {endpoint}: {source}; is it running, and is the address right?")]
    Connect {
        /// Where to.
        endpoint: String,
        /// What the system said.
        source: Arc<io::Error>,
    },
    /// Nothing came back in time.
    #[error("Redis at {endpoint} did not answer within {timeout_ms} ms{hint}; see whether Redis answers")]
    TimedOut {
        /// Where to.
        endpoint: String,
        /// The bound that passed, milliseconds.
        timeout_ms: u128,
        /// What else may be the cause.
        hint: &'static str,
    },
    /// TLS did not come about. There is no fallback to plain text.
    #[error("no TLS with Redis at {endpoint}: {source}")]
    Tls {
        /// Where to.
        endpoint: String,
        /// The step that failed.
        source: TlsError,
    },
    /// The file of the user name or the password could not be read.
    #[error("cannot read the Redis user or password from {path}: {source}")]
    ReadCredential {
        /// The file.
        path: String,
        /// What the system said.
        source: Arc<io::Error>,
    },
    /// The connection broke, or what came back was not RESP.
    #[error("the handshake with Redis at {endpoint} broke off: {reason}; is it running, and is the address right?")]
    Broken {
        /// Where to.
        endpoint: String,
        /// How.
        reason: String,
    },
    /// The server refused user or password, or asks for one.
    #[error("Redis at {endpoint} refused the login: {message}; check username and password")]
    Login {
        /// Where to.
        endpoint: String,
        /// The server's own error.
        message: String,
    },
    /// The server ended the connection before it looked at it: too many clients, or protected mode.
    #[error("Redis at {endpoint} turned the connection away: {message}")]
    TurnedAway {
        /// Where to.
        endpoint: String,
        /// The server's own error.
        message: String,
    },
    /// HELLO 3 is unknown to the server.
    #[error("Redis at {endpoint} does not speak RESP3 ({message}); Redis 7 or Valkey is needed")]
    TooOld {
        /// Where to.
        endpoint: String,
        /// The server's own error.
        message: String,
    },
    /// The database does not exist or may not be selected.
    #[error("{message}")]
    Select {
        /// The server's own error, without its dash.
        message: String,
    },
    /// CLIENT TRACKING was refused: nothing can be cached coherently.
    #[error(
        "Redis at {endpoint} refused CLIENT TRACKING: {message}; nothing is cached. Allow the user +client|tracking, or set consistency.coherence: Ttl where the server cannot"
    )]
    TrackingRefused {
        /// Where to.
        endpoint: String,
        /// The server's own error.
        message: String,
    },
    /// The server is not what the configuration says.
    #[error(
        "Redis at {endpoint} runs in {mode} mode and should run in mode {wanted}; nothing is cached. Name another server, or another l3.redis.mode"
    )]
    OtherMode {
        /// Where to.
        endpoint: String,
        /// `standalone`, `cluster` or `sentinel`.
        mode: String,
        /// What it should be.
        wanted: Mode,
    },
    /// No Sentinel could say who the primary is.
    #[error("no Sentinel says who the primary {name:?} is: {reason}; see l3.redis.endpoints and the Sentinels")]
    NoSentinel {
        /// What they call it.
        name: String,
        /// Why not.
        reason: String,
    },
    /// A Sentinel answered that it watches no such primary.
    #[error("the Sentinel at {endpoint} watches no primary {name:?}: {reason}; see l3.redis.sentinel.masterName")]
    NoSuchPrimary {
        /// Where to.
        endpoint: String,
        /// What was asked for.
        name: String,
        /// Its own error.
        reason: String,
    },
    /// The server that the Sentinels name says that it is a replica: a failover is under way.
    #[error("Sentinel names Redis at {endpoint} as the primary, which says it is a replica; is a failover under way?")]
    NotYetPrimary {
        /// Where to.
        endpoint: String,
    },
    /// The server is a replica: what it holds may be older than what its primary acknowledged.
    #[error("Redis at {endpoint} is a replica; nothing is cached from it. Point the endpoint at the primary")]
    NotPrimary {
        /// Where to.
        endpoint: String,
    },
}

impl ConnectError {
    /// The server answered, but not as we need it; trying again soon will not help much.
    pub fn is_refusal(&self) -> bool {
        match self {
            Self::Connect { .. }
            | Self::TimedOut { .. }
            | Self::Broken { .. }
            | Self::TurnedAway { .. }
            | Self::NoSentinel { .. }
            | Self::NotYetPrimary { .. } => false,
            Self::Tls { source, .. } => !source.is_passing(),
            _ => true,
        }
    }
}

/// A connection that is logged in, on its database, and tracked if asked for.
pub(crate) struct Link {
    pub(crate) stream: Stream,
    pub(crate) unread: BytesMut,
    pub(crate) server: Option<ServerInfo>,
    /// See [`Sentinels::version`](crate::Sentinels::version).
    pub(crate) version: u64,
}

pub(crate) async fn connect(target: Arc<Target>, setup: Setup) -> Result<Link, ConnectError> {
    let Some(sentinels) = &target.sentinels else { return establish_in_time(&target, setup).await };
    let Verdict { primary, version, .. } = sentinels.discover(&target).await?;
    let found = target.at(primary);
    let link = establish_in_time(&found, setup).await?;
    match &link.server {
        Some(server) if server.role == Role::Replica => {
            Err(ConnectError::NotYetPrimary { endpoint: found.endpoint.to_string() })
        }
        _ => Ok(Link { version, ..link }),
    }
}

async fn establish_in_time(target: &Target, setup: Setup) -> Result<Link, ConnectError> {
    let timeout = target.connect_timeout;
    let outcome = tokio::time::timeout(timeout, establish(target, setup)).await;
    outcome.unwrap_or_else(|_| {
        // A server that does not speak TLS waits for the end of a line.
        let hint = if target.tls.is_some() { "; does it speak TLS on this port?" } else { "" };
        Err(ConnectError::TimedOut { endpoint: target.endpoint.to_string(), timeout_ms: timeout.as_millis(), hint })
    })
}

/// The commands of a handshake, in the order in which they are sent and answered.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Step {
    Hello,
    Auth,
    /// HELLO without arguments, which changes nothing: who answers, and whether it takes commands from us.
    Look,
    Select,
    Tracking,
}

async fn establish(target: &Target, setup: Setup) -> Result<Link, ConnectError> {
    let answers = target.login.read()?;
    match log_in(target, setup, answers.as_ref()).await {
        // Rotated while we were on the way: the file that is mounted now may be the one that opens.
        Err(ConnectError::Login { .. }) if target.login.read()? != answers => {
            log_in(target, setup, target.login.read()?.as_ref()).await
        }
        outcome => outcome,
    }
}

async fn log_in(target: &Target, setup: Setup, answers: Option<&Answers>) -> Result<Link, ConnectError> {
    let endpoint = || target.endpoint.to_string();
    let mut stream = Stream::connect(&target.endpoint, target.tls.as_deref()).await?;
    let broken = |error: Unreadable| unanswered(target, &error);

    let (request, steps) = requests(&target.tracking, setup, answers);
    let sent = stream.write_all(&request).await;

    let mut unread = BytesMut::new();
    let mut server = None;
    for step in steps {
        // A server that hangs up says why before it does: what it said counts for more than that it did not listen.
        let frame = match (read_reply(&mut stream, &mut unread).await, &sent) {
            (Ok(frame), _) => frame,
            (Err(Unreadable::Io(_) | Unreadable::Closed), Err(error)) => {
                return Err(broken(Unreadable::Io(io::Error::new(error.kind(), error.to_string()))));
            }
            (Err(error), _) => return Err(broken(error)),
        };
        let (value, _) = Value::decode(&frame).map_err(|error| broken(Unreadable::NotResp(error.to_string())))?;
        if let Some(message) = value.as_error() {
            // Servers without HELLO are good enough for relays.
            if step == Step::Look && !message.starts_with(b"NOAUTH") {
                continue;
            }
            return Err(refused(step, endpoint(), String::from_utf8_lossy(message).into_owned()));
        }
        if matches!(step, Step::Hello | Step::Look) {
            server = ServerInfo::from_hello(&value);
        }
    }
    if setup.tracked
        && let Some(server) = &server
    {
        if !server.mode.eq_ignore_ascii_case(&target.mode.to_string()) {
            return Err(ConnectError::OtherMode {
                endpoint: endpoint(),
                mode: server.mode.clone(),
                wanted: target.mode,
            });
        }
        // In a cluster roles change hands, and the probe asks for them; Sentinels are asked again.
        if server.role == Role::Replica && target.mode == Mode::Standalone && target.sentinels.is_none() {
            return Err(ConnectError::NotPrimary { endpoint: endpoint() });
        }
    }
    Ok(Link { stream, unread, server, version: 0 })
}

/// Why no reply could be read.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Unreadable {
    #[error(transparent)]
    Io(io::Error),
    #[error("the server closed the connection")]
    Closed,
    #[error("{0}")]
    NotResp(String),
}

/// What became of a handshake to which no answer came.
fn unanswered(target: &Target, error: &Unreadable) -> ConnectError {
    let endpoint = target.endpoint.to_string();
    // In TLS 1.3 a server judges our certificate after its side of the handshake is done.
    if let (Some(tls), Unreadable::Io(error)) = (&target.tls, error)
        && let Some(source) = tls.explain_late(error)
    {
        return ConnectError::Tls { endpoint, source };
    }
    let mut reason = error.to_string();
    match &target.tls {
        None if matches!(target.endpoint, Endpoint::Tcp { .. }) => {
            reason.push_str("; does it want TLS (l3.redis.tls, rediss://)?");
        }
        Some(tls) if !tls.shows_certificate() => reason.push_str("; does it want a client certificate (l3.redis.tls)?"),
        _ => {}
    }
    ConnectError::Broken { endpoint, reason }
}

fn requests(tracking: &Tracking, setup: Setup, answers: Option<&Answers>) -> (Vec<u8>, Vec<Step>) {
    let mut out = Vec::with_capacity(160);
    let mut steps = Vec::with_capacity(4);
    match setup.protocol {
        Protocol::Resp3 => {
            let mut args = vec!["HELLO", "3"];
            if let Some(Answers { username, password }) = answers {
                args.extend(["AUTH", username, password]);
            }
            args.extend(["SETNAME", setup.client_name()]);
            encode::command(&mut out, args);
            steps.push(Step::Hello);
        }
        // A relay of a RESP2 app stays on the protocol that the app speaks, so that replies pass through as bytes.
        Protocol::Resp2 => {
            if let Some(Answers { username, password }) = answers {
                encode::command(&mut out, ["AUTH", username, password]);
                steps.push(Step::Auth);
            }
            encode::command(&mut out, ["HELLO"]);
            steps.push(Step::Look);
        }
    }
    if setup.database != 0 {
        encode::command(&mut out, ["SELECT", &setup.database.to_string()]);
        steps.push(Step::Select);
    }
    if setup.tracked {
        let mut args = vec!["CLIENT", "TRACKING", "ON"];
        match tracking {
            Tracking::Nothing => return (out, steps),
            Tracking::Keys => {}
            Tracking::Broadcast(prefixes) => {
                args.push("BCAST");
                args.extend(prefixes.iter().flat_map(|prefix| ["PREFIX", prefix]));
            }
        }
        encode::command(&mut out, args);
        steps.push(Step::Tracking);
    }
    (out, steps)
}

fn refused(step: Step, endpoint: String, message: String) -> ConnectError {
    let is_login = ["NOAUTH", "WRONGPASS", "NOPERM", "ERR AUTH", "ERR invalid password", "ERR Client sent AUTH"]
        .iter()
        .any(|prefix| message.starts_with(prefix));
    let is_turned_away = ["ERR max number of clients", "DENIED"].iter().any(|prefix| message.starts_with(prefix));
    match step {
        _ if is_turned_away => ConnectError::TurnedAway { endpoint, message },
        Step::Tracking => ConnectError::TrackingRefused { endpoint, message },
        _ if message.starts_with("LOADING") || message.starts_with("MASTERDOWN") => {
            ConnectError::Broken { endpoint, reason: message }
        }
        _ if is_login => ConnectError::Login { endpoint, message },
        Step::Auth => ConnectError::Login { endpoint, message },
        Step::Hello | Step::Look => ConnectError::TooOld { endpoint, message },
        Step::Select => ConnectError::Select { message },
    }
}

pub(crate) async fn read_reply(stream: &mut Stream, unread: &mut BytesMut) -> Result<Bytes, Unreadable> {
    let mut scanner = ReplyScanner::default();
    loop {
        if let Some(frame) = scanner.scan(unread).map_err(|error| Unreadable::NotResp(error.to_string()))? {
            let bytes = unread.split_to(frame.len).freeze();
            if frame.kind == FrameKind::Push {
                continue;
            }
            return Ok(bytes);
        }
        if stream.read_buf(unread).await.map_err(Unreadable::Io)? == 0 {
            return Err(Unreadable::Closed);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_server_that_is_full_is_not_called_too_old_and_asked_again_soon() {
        let refused = |message: &str| refused(Step::Hello, "redis:6379".into(), message.into());
        let full = refused("ERR max number of clients reached");
        assert!(matches!(full, ConnectError::TurnedAway { .. }) && !full.is_refusal(), "{full}");
        let old = refused("ERR unknown command `HELLO`");
        assert!(matches!(old, ConnectError::TooOld { .. }) && old.is_refusal(), "{old}");
    }
}
