//! What coherence is tested on: a real Redis, and pods, each a sidecar behind a fault proxy of its own.
//!
//! A [`Subject`] is the sidecar under test: as it is, or with one guard dropped. What a scenario finds is a [`Violation`],
//! which is told apart from everything else that can go wrong in a test.

use std::{
    fmt::{self, Display},
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Result, ensure};
use caddy_resp::Value;

use crate::{
    e2e::eventually,
    proxy::{Class, Proxy},
    redis::RedisServer,
    redis_cluster::RedisCluster,
    sidecar::{Sidecar, SidecarOptions},
    wire::Wire,
};

/// How long things that must happen soon may take on a busy machine.
pub const SOON: Duration = Duration::from_secs(20);
/// A bound that outlasts any scenario: what is not served then is not served for another reason.
pub const LONG: Duration = Duration::from_mins(2);
/// How long a reply that must not come yet is waited for.
pub const MOMENT: Duration = Duration::from_millis(250);

/// A promise was seen broken.
#[derive(Debug)]
pub struct Violation(pub String);

impl Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "promise broken: {}", self.0)
    }
}

impl std::error::Error for Violation {}

/// Fails with a [`Violation`] unless it holds.
pub fn must(holds: bool, promise: impl Display) -> Result<()> {
    if holds { Ok(()) } else { Err(Violation(promise.to_string()).into()) }
}

/// A reply as a person would write it: `OK`, `v1`, `(nil)`, `7`, `[a, b]`, `(error) NOTREADY …`; an attribute in front of
/// it as `{stale: true} v1`.
pub fn show(reply: &[u8]) -> String {
    match Value::decode(reply) {
        Ok((Value::Attribute(pairs), length)) => {
            let pairs = pairs.iter().map(|(name, value)| format!("{}: {}", show_value(name), show_value(value)));
            format!("{{{}}} {}", pairs.collect::<Vec<_>>().join(", "), show(&reply[length..]))
        }
        Ok((value, _)) => show_value(&value),
        Err(error) => format!("(undecodable: {error})"),
    }
}

fn show_value(value: &Value<'_>) -> String {
    if let Some(message) = value.as_error() {
        return format!("(error) {}", String::from_utf8_lossy(message));
    }
    if let Some(bytes) = value.as_bytes() {
        return String::from_utf8_lossy(bytes).into_owned();
    }
    if let Some(number) = value.as_integer() {
        return number.to_string();
    }
    match value.as_elements() {
        Some(elements) => format!("[{}]", elements.iter().map(show_value).collect::<Vec<_>>().join(", ")),
        None => match value {
            Value::Null => "(nil)".to_owned(),
            Value::Boolean(truth) => truth.to_string(),
            other => format!("{other:?}"),
        },
    }
}

/// A client that reads replies as text.
#[derive(Debug)]
pub struct Client(pub Wire);

impl Client {
    /// Sends a command and shows its reply.
    pub fn ask(&mut self, command: &str) -> Result<String> {
        Ok(show(&self.0.request(&words(command))?))
    }

    /// Sends a command without waiting.
    pub fn send(&mut self, command: &str) -> Result<()> {
        self.0.send(&words(command))
    }

    /// Sends several commands in one write.
    pub fn send_all(&mut self, commands: &[&str]) -> Result<()> {
        let mut bytes = Vec::new();
        for command in commands {
            caddy_resp::encode::command(&mut bytes, words(command));
        }
        self.0.send_raw(&bytes)
    }

    /// The next reply.
    pub fn reply(&mut self) -> Result<String> {
        Ok(show(&self.0.reply()?))
    }

    /// The next reply if it comes within `time`.
    pub fn reply_within(&mut self, time: Duration) -> Result<Option<String>> {
        Ok(self.0.reply_within(time)?.map(|reply| show(&reply)))
    }

    /// Sends several commands in one write; their replies.
    pub fn pipeline(&mut self, commands: &[&str]) -> Result<Vec<String>> {
        self.send_all(commands)?;
        commands.iter().map(|_| self.reply()).collect()
    }

    /// One field of `CACHE.WHY`; empty if it has none.
    pub fn why(&mut self, key: &str, field: &str) -> Result<String> {
        let reply = self.0.request(&["CACHE.WHY", key])?;
        let (value, _) = Value::decode(&reply)?;
        Ok(value.field(field.as_bytes()).map_or_else(String::new, show_value))
    }
}

/// Words by spaces; a word in single quotes may contain them.
fn words(command: &str) -> Vec<String> {
    command
        .split('\'')
        .enumerate()
        .flat_map(|(index, part)| match index % 2 {
            0 => part.split_whitespace().map(str::to_owned).collect::<Vec<_>>(),
            _ => vec![part.to_owned()],
        })
        .collect()
}

/// The sidecar under test.
#[derive(Clone, Debug, Default)]
pub struct Subject {
    program: Option<PathBuf>,
    dropped: Option<String>,
    /// The ACL SETUSER command of the Redis user that its sidecars are; none: the default user.
    user: Option<Vec<String>>,
    consistency: Option<String>,
}

impl Subject {
    /// The sidecar as it is.
    pub fn good() -> Self {
        Self::default()
    }

    /// A build with the feature `mutations`, without a guard (or with all of them).
    pub fn mutant(program: &Path, dropped: Option<&str>) -> Self {
        Self { program: Some(program.to_owned()), dropped: dropped.map(str::to_owned), ..Self::default() }
    }

    /// With sidecars that log in as the user that this `ACL SETUSER name …` makes; its password is `password`.
    #[must_use]
    pub fn as_user(mut self, rule: &[&str]) -> Self {
        self.user = Some(rule.iter().map(ToString::to_string).collect());
        self
    }

    /// With these fields of `consistency`.
    #[must_use]
    pub fn consistency(mut self, fields: &str) -> Self {
        self.consistency = Some(fields.to_owned());
        self
    }

    /// How to start it in front of a Redis on `socket`.
    pub fn options(&self, socket: &Path) -> SidecarOptions {
        self.set(SidecarOptions::redis(socket))
    }

    /// The same in front of a cluster.
    pub fn cluster_options(&self, cluster: &RedisCluster) -> SidecarOptions {
        self.set(SidecarOptions::l3_redis(&cluster.l3()))
    }

    /// These options, with all that makes the subject.
    pub fn set(&self, mut options: SidecarOptions) -> SidecarOptions {
        if let Some(program) = &self.program {
            options = options.program(program);
        }
        if let Some(user) = &self.user {
            options = options.login(&user[2], "password");
        }
        if let Some(fields) = &self.consistency {
            options = options.consistency(fields);
        }
        match &self.dropped {
            Some(guard) => options.variable("CADDY_DROP_GUARD", guard),
            None => options,
        }
    }
}

/// A sidecar and what stands between it and Redis.
#[derive(Debug)]
pub struct Pod {
    /// The sidecar.
    pub sidecar: Sidecar,
    /// Its connections to Redis.
    pub proxy: Proxy,
}

impl Pod {
    /// Starts one and waits until it can cache.
    pub fn start(redis: &RedisServer, options: impl FnOnce(&Path) -> SidecarOptions) -> Result<Self> {
        let proxy = Proxy::start(redis.socket())?;
        let sidecar = options(proxy.socket()).start()?;
        let pod = Self { sidecar, proxy };
        pod.wait_until_coherent()?;
        Ok(pod)
    }

    /// A new session.
    pub fn connect(&self) -> Result<Client> {
        Ok(Client(self.sidecar.connect()?))
    }

    /// Waits until copies are tracked.
    pub fn wait_until_coherent(&self) -> Result<()> {
        eventually("the sidecar says that it is coherent", SOON, || {
            ensure!(self.sidecar.metric("caddy_coherent")? == 1, "caddy_coherent is 0: {}", self.sidecar.log());
            Ok(())
        })?;
        Ok(())
    }

    /// Cuts the tracked connection and waits until the next one serves.
    pub fn reconnect(&self) -> Result<()> {
        let before = self.proxy.accepted(Class::Tracked);
        self.proxy.cut(Class::Tracked);
        self.proxy.accept_again(Class::Tracked);
        self.proxy.wait_for_connection(Class::Tracked, before)?;
        self.wait_until_coherent()
    }
}

/// A Redis with one pod in front of it, as most scenarios need.
#[derive(Debug)]
pub struct World {
    /// The server behind the proxies.
    pub redis: RedisServer,
    /// The pods.
    pub pods: Vec<Pod>,
}

impl World {
    /// One pod with one worker, whose copies stay current for the whole scenario unless somebody writes.
    pub fn calm(subject: &Subject) -> Result<Self> {
        Self::with(subject, 1, |options| options.max_staleness(LONG).timeout(LONG))
    }

    /// Several pods with the same options.
    pub fn with(subject: &Subject, pods: usize, set: impl Fn(SidecarOptions) -> SidecarOptions) -> Result<Self> {
        Self::on(RedisServer::start()?, subject, pods, set)
    }

    /// The same in front of this server.
    pub fn on(
        redis: RedisServer,
        subject: &Subject,
        pods: usize,
        set: impl Fn(SidecarOptions) -> SidecarOptions,
    ) -> Result<Self> {
        if let Some(user) = &subject.user {
            redis.command(user)?;
        }
        let pods =
            (0..pods).map(|_| Pod::start(&redis, |socket| set(subject.options(socket)))).collect::<Result<_>>()?;
        Ok(Self { redis, pods })
    }

    /// The first pod.
    pub fn pod(&self) -> &Pod {
        &self.pods[0]
    }

    /// A command straight to Redis, as a program without a sidecar sends it.
    pub fn foreign(&self, command: &str) -> Result<String> {
        Ok(show(&self.redis.command(&words(command))?))
    }

    /// Writes a value straight to Redis and lets the first pod have a current copy of it.
    pub fn cached(&self, key: &str, value: &str) -> Result<Client> {
        ensure!(self.foreign(&format!("SET {key} {value}"))? == "OK", "SET straight to Redis");
        let mut client = self.pod().connect()?;
        client.hold(key, value)?;
        Ok(client)
    }
}

impl Client {
    /// Reads a key until a copy of it is served.
    pub fn hold(&mut self, key: &str, value: &str) -> Result<()> {
        let what = format!("a current copy of {key}");
        eventually(what, SOON, || {
            let read = self.ask(&format!("GET {key}"))?;
            ensure!(read == value, "GET {key} answers {read}");
            let served = self.why(key, "served")?;
            ensure!(served == "yes", "CACHE.WHY {key} says: {}", self.why(key, "reason")?);
            Ok(())
        })?;
        Ok(())
    }

    /// Lets everything that was written before reach the copies of this client's sidecar.
    pub fn barrier(&mut self) -> Result<()> {
        let reply = self.ask("EVAL 'return 1' 0")?;
        ensure!(reply == "1", "EVAL answers {reply}");
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn commands_are_split_as_a_shell_would() {
        assert_eq!(words("EVAL 'return redis.call(1)' 0"), ["EVAL", "return redis.call(1)", "0"]);
        assert_eq!(words("GET k"), ["GET", "k"]);
    }

    #[test]
    fn replies_are_shown_as_people_write_them() {
        for (reply, shown) in [
            (&b"+OK\r\n"[..], "OK"),
            (b"$2\r\nv1\r\n", "v1"),
            (b"$-1\r\n", "(nil)"),
            (b"_\r\n", "(nil)"),
            (b":7\r\n", "7"),
            (b"*2\r\n+OK\r\n$-1\r\n", "[OK, (nil)]"),
            (b"-ERR no\r\n", "(error) ERR no"),
            (b"|1\r\n+stale\r\n#t\r\n$2\r\nv1\r\n", "{stale: true} v1"),
        ] {
            assert_eq!(show(reply), shown);
        }
    }
}
