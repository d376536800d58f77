//! The real sidecar of a test's own, as a child process on a Unix socket.
//!
//! Owns the process, its directory and its end: dropped ⇒ killed and gone. Never uses a fixed port or path. Fails by errors
//! that show what the sidecar said.

use std::{
    env, fs,
    io::{Read as _, Write as _},
    net::{SocketAddr, TcpStream},
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Stdio},
    sync::OnceLock,
    thread,
    time::Duration,
};

use anyhow::{Context, Result, bail, ensure};
use rustix::process::{Pid, Signal, kill_process};
use tempfile::TempDir;

use crate::{redis::RedisServer, wire::Wire};

/// Names the program in place of what cargo builds.
pub const PROGRAM_VARIABLE: &str = "CADDY_SIDECAR_BIN";

/// How often a starting sidecar is asked, every 10 ms.
const ATTEMPTS: usize = 2000;
const POLL: Duration = Duration::from_millis(10);

/// How a sidecar is started: which program, and its configuration file.
#[derive(Clone, Debug)]
pub struct SidecarOptions {
    program: Option<PathBuf>,
    environment: Vec<(String, String)>,
    arguments: Vec<String>,
    l3: String,
    timeout: Option<Duration>,
    login: Option<(String, String)>,
    workers: u32,
    max_staleness: Duration,
    consistency: String,
    sections: Vec<String>,
    open_files: Option<u32>,
}

impl SidecarOptions {
    /// In front of a Redis (or a proxy) on the Unix socket at `path`.
    pub fn redis(path: &Path) -> Self {
        Self::over(format!("endpoints: [\"unix:{}\"]", path.display()))
    }

    /// In front of what these fields of `l3.redis` name, as in a YAML flow mapping: `endpoints: ["localhost:6379"]`.
    pub fn l3_redis(fields: &str) -> Self {
        Self::over(fields.to_owned())
    }

    /// With its own data.
    pub fn embedded() -> Self {
        Self::over(String::new())
    }

    fn over(l3: String) -> Self {
        Self {
            program: None,
            environment: Vec::new(),
            arguments: Vec::new(),
            l3,
            timeout: None,
            login: None,
            workers: 1,
            max_staleness: Duration::from_secs(1),
            consistency: String::new(),
            sections: Vec::new(),
            open_files: None,
        }
    }

    /// Another program than the one that is tested by default.
    #[must_use]
    pub fn program(mut self, program: &Path) -> Self {
        self.program = Some(program.to_owned());
        self
    }

    /// A variable of its environment.
    #[must_use]
    pub fn variable(mut self, name: &str, value: &str) -> Self {
        self.environment.push((name.to_owned(), value.to_owned()));
        self
    }

    /// A further argument on its command line.
    #[must_use]
    pub fn argument(mut self, argument: &str) -> Self {
        self.arguments.push(argument.to_owned());
        self
    }

    /// `workers`.
    #[must_use]
    pub fn workers(mut self, workers: u32) -> Self {
        self.workers = workers;
        self
    }

    /// `consistency.maxStaleness`.
    #[must_use]
    pub fn max_staleness(mut self, bound: Duration) -> Self {
        self.max_staleness = bound;
        self
    }

    /// Further fields of `consistency`, as in a YAML flow mapping: `onUncertain: Fail`.
    #[must_use]
    pub fn consistency(mut self, fields: &str) -> Self {
        self.consistency = format!("{}, {fields}", self.consistency);
        self
    }

    /// `l3.redis.timeout`: how long Redis may leave a command unanswered.
    #[must_use]
    pub fn timeout(mut self, timeout: Duration) -> Self {
        self.timeout = Some(timeout);
        self
    }

    /// User and password for Redis.
    #[must_use]
    pub fn login(mut self, user: &str, password: &str) -> Self {
        self.login = Some((user.to_owned(), password.to_owned()));
        self
    }

    /// A further top-level section of the file: `limits: {maxConnections: 3}`.
    #[must_use]
    pub fn section(mut self, text: &str) -> Self {
        self.sections.push(text.to_owned());
        self
    }

    /// Its limit on open files.
    #[must_use]
    pub fn open_files(mut self, limit: u32) -> Self {
        self.open_files = Some(limit);
        self
    }

    /// Starts it and waits until it answers.
    pub fn start(self) -> Result<Sidecar> {
        let directory = tempfile::Builder::new().prefix("caddy-sidecar").tempdir().context("make a directory")?;
        let program = self.program.clone().map_or_else(program, Ok)?;
        let mut sidecar = Sidecar { child: None, program, options: self, admin: None, directory };
        sidecar.write_config(&sidecar.options.text(sidecar.directory.path())?)?;
        sidecar.restart()?;
        Ok(sidecar)
    }

    fn text(&self, directory: &Path) -> Result<String> {
        let mut redis = self.l3.clone();
        if let Some(timeout) = self.timeout {
            redis = format!("{redis}, timeout: {}ms", timeout.as_millis());
        }
        if let Some((user, password)) = &self.login {
            let file = directory.join("password");
            fs::write(&file, password).context("write the password file")?;
            redis = format!("{redis}, username: \"{user}\", passwordFile: \"{}\"", file.display());
        }
        let l3 = if redis.is_empty() { "embedded: {}".to_owned() } else { format!("redis: {{{redis}}}") };
        let mut text = format!(
            "listen: {{socket: {}}}\nadmin: {{port: 0}}\nworkers: {}\nl3: {{{l3}}}\nconsistency: {{maxStaleness: {}ms{}}}\n",
            directory.join("cache.sock").display(),
            self.workers,
            self.max_staleness.as_millis(),
            self.consistency,
        );
        for section in &self.sections {
            text.push_str(section);
            text.push('\n');
        }
        Ok(text)
    }
}

/// A running sidecar, or one that has ended and can be started again.
#[derive(Debug)]
pub struct Sidecar {
    child: Option<Child>,
    program: PathBuf,
    options: SidecarOptions,
    admin: Option<SocketAddr>,
    directory: TempDir,
}

impl Sidecar {
    /// One in front of `redis`, with defaults for everything else.
    pub fn start(redis: &RedisServer) -> Result<Self> {
        SidecarOptions::redis(redis.socket()).start()
    }

    /// Starts it again on the same socket with the same file.
    pub fn restart(&mut self) -> Result<()> {
        self.kill()?;
        let log = fs::File::create(self.log_path()).context("create the sidecar's log")?;
        let mut command = match self.options.open_files {
            Some(limit) => {
                let mut shell = Command::new("sh");
                shell.args(["-c", &format!("ulimit -n {limit}; exec \"$0\" \"$@\"")]).arg(&self.program);
                shell
            }
            None => Command::new(&self.program),
        };
        command.arg("--config").arg(self.config()).args(&self.options.arguments);
        command.env("NO_COLOR", "1").envs(self.options.environment.iter().cloned());
        command.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log);
        self.admin = None;
        self.child = Some(command.spawn().with_context(|| format!("start {}", self.program.display()))?);
        for _ in 0..ATTEMPTS {
            self.admin = self.log().lines().find_map(admin_address);
            let pong = self.connect().and_then(|mut wire| wire.request(&["PING"]));
            if self.admin.is_some() && pong.is_ok_and(|reply| reply == b"+PONG\r\n" || reply.starts_with(b"-NOAUTH")) {
                return Ok(());
            }
            if let Some(status) = self.exited()? {
                bail!("the sidecar ended with {status}; it said:\n{}", self.log());
            }
            thread::sleep(POLL);
        }
        bail!("the sidecar does not answer; it said:\n{}", self.log())
    }

    /// Where clients connect.
    pub fn socket(&self) -> PathBuf {
        self.directory.path().join("cache.sock")
    }

    /// A variable of its environment from its next start on.
    pub fn set_variable(&mut self, name: &str, value: &str) {
        self.options.environment.retain(|(other, _)| other != name);
        self.options.environment.push((name.to_owned(), value.to_owned()));
    }

    /// Its configuration file.
    pub fn config(&self) -> PathBuf {
        self.directory.path().join("config.yaml")
    }

    /// Replaces the configuration file, as a mounted ConfigMap is replaced: as a whole.
    pub fn write_config(&self, text: &str) -> Result<()> {
        let new = self.directory.path().join("config.new");
        fs::write(&new, text).with_context(|| format!("write {}", new.display()))?;
        fs::rename(&new, self.config()).context("put the new configuration in place")
    }

    /// All that it has said since its start.
    pub fn log(&self) -> String {
        fs::read_to_string(self.log_path()).unwrap_or_default()
    }

    fn log_path(&self) -> PathBuf {
        self.directory.path().join("log")
    }

    /// A new connection to it.
    pub fn connect(&self) -> Result<Wire> {
        Wire::connect(&self.socket())
    }

    /// Its OpenMetrics text of this moment.
    pub fn metrics(&self) -> Result<String> {
        self.http("/metrics")
    }

    /// The value of one metric, all labels together.
    pub fn metric(&self, name: &str) -> Result<u64> {
        let text = self.metrics()?;
        let samples = text.lines().filter_map(|line| line.strip_prefix(name)?.strip_prefix([' ', '{']));
        let values: Vec<u64> = samples.filter_map(|sample| sample.rsplit(['}', ' ']).next()?.parse().ok()).collect();
        ensure!(!values.is_empty(), "there is no metric {name} in:\n{text}");
        Ok(values.into_iter().sum())
    }

    /// A page of its admin port.
    pub fn http(&self, path: &str) -> Result<String> {
        let admin = self.admin.context("the sidecar names no admin address")?;
        let mut stream = TcpStream::connect(admin).context("connect to the admin port")?;
        stream.set_read_timeout(Some(Duration::from_secs(5)))?;
        write!(stream, "GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")?;
        let mut text = String::new();
        stream.read_to_string(&mut text).context("read the page")?;
        ensure!(text.starts_with("HTTP/1.1 200"), "{path} answers {}", text.lines().next().unwrap_or_default());
        Ok(text)
    }

    /// Asks it to end as the kubelet does.
    pub fn terminate(&self) -> Result<()> {
        self.signal(Signal::TERM)
    }

    /// Suspends it, as a paused or starved machine does.
    pub fn suspend(&self) -> Result<()> {
        self.signal(Signal::STOP)
    }

    /// Lets it go on.
    pub fn resume(&self) -> Result<()> {
        self.signal(Signal::CONT)
    }

    /// Ends it at once; its socket file stays, as after a crash.
    pub fn kill(&mut self) -> Result<()> {
        if let Some(mut child) = self.child.take() {
            child.kill().context("kill the sidecar")?;
            child.wait().context("wait for the sidecar's end")?;
        }
        Ok(())
    }

    /// How it ended, if it has.
    pub fn exited(&mut self) -> Result<Option<ExitStatus>> {
        let status = self.child.as_mut().map(Child::try_wait).transpose().context("ask for the sidecar's end")?;
        Ok(status.flatten())
    }

    /// Memory that it has now, bytes.
    pub fn resident(&self) -> Result<u64> {
        let child = self.child.as_ref().context("the sidecar does not run")?;
        let status = fs::read_to_string(format!("/proc/{}/status", child.id())).context("read the sidecar's memory")?;
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).context("no VmRSS")?;
        Ok(line.trim().trim_end_matches(" kB").parse::<u64>().context("VmRSS")? << 10)
    }

    fn signal(&self, signal: Signal) -> Result<()> {
        let child = self.child.as_ref().context("the sidecar does not run")?;
        let pid = i32::try_from(child.id()).ok().and_then(Pid::from_raw).context("no such process id")?;
        kill_process(pid, signal).with_context(|| format!("signal the sidecar {pid:?}"))
    }
}

impl Drop for Sidecar {
    fn drop(&mut self) {
        // Fails only when it has ended by itself.
        let _ = self.kill();
    }
}

/// The address in the line that the sidecar logs when it serves.
fn admin_address(line: &str) -> Option<SocketAddr> {
    line.split_whitespace().find_map(|word| word.strip_prefix("admin=")?.parse().ok())
}

/// The sidecar to test: what [`PROGRAM_VARIABLE`] names, else what cargo builds now.
pub fn program() -> Result<PathBuf> {
    static BUILT: OnceLock<Result<PathBuf, String>> = OnceLock::new();
    if let Some(path) = env::var_os(PROGRAM_VARIABLE) {
        return Ok(path.into());
    }
    let built = BUILT.get_or_init(|| build().map_err(|error| format!("{error:#}")));
    built.clone().map_err(anyhow::Error::msg)
}

fn build() -> Result<PathBuf> {
    let mut build = Command::new(env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    build.args(["build", "--quiet", "-p", "caddy-sidecar", "--message-format=json"]).stderr(Stdio::inherit());
    let output = build.output().context("start cargo build -p caddy-sidecar")?;
    ensure!(output.status.success(), "cargo build -p caddy-sidecar ended with {}", output.status);
    let messages = String::from_utf8_lossy(&output.stdout);
    let found = messages.rmatch_indices("\"executable\":\"").next();
    let path = found.and_then(|(at, start)| messages[at + start.len()..].split('"').next());
    path.map(PathBuf::from).context("cargo build -p caddy-sidecar names no executable")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_admin_address_is_read_from_the_log() {
        let line =
            "2026-01-01T00:00:00Z  INFO serving socket=/x tcp_port=None admin=127.0.0.1:4711 l3=\"unix:/r\" workers=2";
        assert_eq!(admin_address(line), Some(SocketAddr::from(([127, 0, 0, 1], 4711))));
        assert_eq!(admin_address("terminating sessions=1"), None);
    }
}
