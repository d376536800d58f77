//! A real PostgreSQL of a test's own, as a child process on a Unix socket and a loopback port.
//!
//! Owns the process, its data and its end: dropped ⇒ killed and gone. As root it runs as the package's own user, since
//! PostgreSQL refuses root. Fails by errors that name the missing package or show the server's log.

use std::{
    fs,
    io::ErrorKind,
    os::unix::{
        fs::{PermissionsExt, chown},
        process::CommandExt,
    },
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    thread,
    time::Duration,
};

use anyhow::{Context, Result, bail, ensure};
use rustix::process::{Pid, Signal, getuid, kill_process};
use tempfile::TempDir;

use crate::{certificates::Files, redis::free_port};

/// Where Debian puts the programs of each version.
const VERSIONS: &str = "/usr/lib/postgresql";
const USER: &str = "postgres";
const START: Duration = Duration::from_secs(30);
/// As nice as can be.
const NICE: &str = "19";
const POLL: Duration = Duration::from_millis(20);

/// A running (or stopped) server.
#[derive(Debug)]
pub struct PostgresServer {
    child: Option<Child>,
    programs: PathBuf,
    user: Option<(u32, u32)>,
    port: u16,
    directory: TempDir,
    /// As it is shipped: what is committed is on the disk.
    is_durable: bool,
    /// It gets what other processes leave of the processors.
    is_in_the_background: bool,
}

impl PostgresServer {
    /// A new, empty one, that does not wait for its disk.
    pub fn start() -> Result<Self> {
        Self::start_as(false, false)
    }

    /// A new, empty one, that does.
    pub fn start_durable() -> Result<Self> {
        Self::start_as(true, false)
    }

    /// The same that takes of the processors what others leave, so that it is not in their way: as if it
    /// were on another machine. Its connections have to be [told](Self::stay_in_the_background) so.
    pub fn start_durable_in_the_background() -> Result<Self> {
        Self::start_as(true, true)
    }

    /// Says so to the processes of the connections that there are by now. Each of them is a session of its own, and what Linux
    /// groups by session (`sched_autogroup`) shares the processors evenly, however nice its processes are.
    pub fn stay_in_the_background(&self) -> Result<()> {
        let Some(parent) = self.child.as_ref().map(Child::id) else { return Ok(()) };
        let children = fs::read_to_string(format!("/proc/{parent}/task/{parent}/children")).unwrap_or_default();
        // Ours is left alone: one that has just begun may be in it.
        let name = |path: &Path| Some(fs::read_to_string(path).ok()?.split_whitespace().next()?.to_owned());
        let ours = name(Path::new("/proc/self/autogroup"));
        for process in children.split_whitespace() {
            let group = PathBuf::from(format!("/proc/{process}/autogroup"));
            if name(&group) == ours {
                continue;
            }
            // Without groups nice is enough. Who is not root may say it ten times a second.
            while let Err(error) = fs::write(&group, NICE) {
                match error.kind() {
                    ErrorKind::WouldBlock => thread::sleep(POLL),
                    _ if !group.exists() => break,
                    _ => return Err(error).with_context(|| format!("write {}", group.display())),
                }
            }
        }
        Ok(())
    }

    fn start_as(is_durable: bool, is_in_the_background: bool) -> Result<Self> {
        let programs = programs()?;
        let directory = tempfile::Builder::new().prefix("caddy-postgres").tempdir().context("make a directory")?;
        let user = if getuid().is_root() { Some(user(USER)?) } else { None };
        if let Some((uid, gid)) = user {
            chown(directory.path(), Some(uid), Some(gid)).context("give the directory to the server's user")?;
        }
        let port = free_port()?;
        let mut server = Self { child: None, programs, user, port, directory, is_durable, is_in_the_background };
        let data = server.data();
        let made = server
            .command("initdb")
            .args(["--auth=trust", "--encoding=UTF8", "--no-locale", "--no-sync", "--username=caddy", "--pgdata"])
            .arg(&data)
            .output()
            .context("start initdb")?;
        ensure!(made.status.success(), "initdb: {}", String::from_utf8_lossy(&made.stderr));
        server.restart()?;
        Ok(server)
    }

    /// Where to connect to it.
    pub fn url(&self) -> String {
        format!("postgresql://caddy@127.0.0.1:{}/postgres", self.port)
    }

    /// Where its Unix socket is, behind another directory if there is one.
    pub fn socket_url(&self, before: Option<&Path>, parameters: &str) -> String {
        let hosts = before.map_or_else(String::new, |before| format!("host={}&", before.display()));
        let (port, directory) = (self.port, self.directory.path().display());
        format!("postgresql://caddy@/postgres?{hosts}host={directory}&port={port}{parameters}")
    }

    /// The same for another role.
    pub fn url_of(&self, role: &str) -> String {
        self.url().replace("caddy@", &format!("{role}@"))
    }

    /// From now on every role but the tests' own needs its password.
    pub fn require_passwords(&mut self) -> Result<()> {
        let rules = "host all caddy 127.0.0.1/32 trust\nhost all all 127.0.0.1/32 scram-sha-256\n";
        fs::write(self.data().join("pg_hba.conf"), rules).context("write the rules of who may log in")?;
        self.restart()
    }

    /// From now on every role but the tests' own needs TLS, and is shown this certificate.
    pub fn require_tls(&mut self, files: &Files) -> Result<()> {
        let data = self.data();
        for (from, to) in [(&files.certificate, "server.crt"), (&files.key, "server.key")] {
            let to = data.join(to);
            fs::copy(from, &to).context("copy the certificate")?;
            fs::set_permissions(&to, fs::Permissions::from_mode(0o600))?;
            if let Some((uid, gid)) = self.user {
                chown(&to, Some(uid), Some(gid)).context("give it to the server's user")?;
            }
        }
        fs::write(data.join("postgresql.auto.conf"), "ssl = on\n").context("turn TLS on")?;
        fs::write(data.join("pg_hba.conf"), "host all caddy 127.0.0.1/32 trust\nhostssl all all 127.0.0.1/32 trust\n")
            .context("write who may log in")?;
        self.restart()
    }

    /// Starts it again with the data it had.
    pub fn restart(&mut self) -> Result<()> {
        self.stop()?;
        let log = fs::File::create(self.log()).context("create the server's log")?;
        let (data, sockets) = (self.data(), self.directory.path().to_owned());
        let fsync = if self.is_durable { "fsync=on" } else { "fsync=off" };
        let child = self
            .command("postgres")
            .arg("-D")
            .arg(data)
            .arg("-k")
            .arg(sockets)
            .args(["-p", &self.port.to_string(), "-c", "listen_addresses=127.0.0.1", "-c", fsync])
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            .spawn()
            .context("start postgres")?;
        self.child = Some(child);
        let mut waited = Duration::ZERO;
        while self.execute("SELECT 1").is_err() {
            let exited = self.child.as_mut().map(Child::try_wait).transpose()?.flatten();
            if exited.is_some() || waited > START {
                bail!("postgres did not start: {}", fs::read_to_string(self.log()).unwrap_or_default());
            }
            thread::sleep(POLL);
            waited += POLL;
        }
        Ok(())
    }

    /// Ends it at once (`immediate` shutdown); its data stays.
    pub fn stop(&mut self) -> Result<()> {
        if let Some(mut child) = self.child.take() {
            if let Some(pid) = i32::try_from(child.id()).ok().and_then(Pid::from_raw) {
                // It may have ended by itself.
                let _ = kill_process(pid, Signal::QUIT);
            }
            child.wait()?;
        }
        Ok(())
    }

    /// Runs SQL by the server's own client; gives back what it prints, unaligned.
    pub fn execute(&self, sql: &str) -> Result<String> {
        let output = self
            .command("psql")
            .args(["--no-psqlrc", "--quiet", "--tuples-only", "--no-align", "--set=ON_ERROR_STOP=1", "--command", sql])
            .arg(self.url())
            .output()
            .context("start psql")?;
        ensure!(output.status.success(), "psql: {}", String::from_utf8_lossy(&output.stderr));
        Ok(String::from_utf8_lossy(&output.stdout).trim_end().to_owned())
    }

    fn command(&self, program: &str) -> Command {
        let program = self.programs.join(program);
        // nice becomes the program: the process id stays.
        let mut command = Command::new(if self.is_in_the_background { Path::new("nice") } else { &program });
        if self.is_in_the_background {
            command.args(["-n", NICE]).arg(&program);
        }
        command.current_dir(self.directory.path());
        if let Some((uid, gid)) = self.user {
            command.uid(uid).gid(gid);
        }
        command
    }

    fn data(&self) -> PathBuf {
        self.directory.path().join("data")
    }

    fn log(&self) -> PathBuf {
        self.directory.path().join("server.log")
    }
}

impl Drop for PostgresServer {
    fn drop(&mut self) {
        // The directory goes in any case.
        let _ = self.stop();
    }
}

/// The programs of the newest version that is installed.
fn programs() -> Result<PathBuf> {
    let missing = || format!("no PostgreSQL in {VERSIONS}: install the package `postgresql`");
    let mut versions: Vec<(u32, PathBuf)> = fs::read_dir(VERSIONS)
        .with_context(missing)?
        .filter_map(|entry| {
            let entry = entry.ok()?;
            Some((entry.file_name().to_str()?.parse().ok()?, entry.path().join("bin")))
        })
        .filter(|(_, programs)| Path::new(programs).join("initdb").exists())
        .collect();
    versions.sort_unstable();
    Ok(versions.pop().with_context(missing)?.1)
}

/// A user's and its group's number.
fn user(name: &str) -> Result<(u32, u32)> {
    let users = fs::read_to_string("/etc/passwd").context("read the list of users")?;
    let line = users.lines().find(|line| line.split(':').next() == Some(name));
    let line = line.with_context(|| format!("there is no user {name}: install the package `postgresql`"))?;
    let mut numbers = line.split(':').skip(2).map(str::parse);
    match (numbers.next(), numbers.next()) {
        (Some(Ok(uid)), Some(Ok(gid))) => Ok((uid, gid)),
        _ => bail!("the line of {name} in the list of users is not understood"),
    }
}
