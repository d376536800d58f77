//! Real clients as they are, on a real sidecar's socket: the programs in `tests/clients`, one for each library.
//!
//! Each prints a line for every step it has checked; after `restart` it waits until the sidecar has been started again
//! and goes on in the way its library comes back. What it said is shown when it fails. A library that cannot be had
//! here (Go's modules) is told, not failed.

#![expect(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "helpers of tests fail as tests do")]

use std::{
    env,
    ffi::OsString,
    fs,
    io::{BufRead, BufReader, Write},
    path::{Path, PathBuf},
    process::{Command, Stdio},
    sync::mpsc::{self, Receiver},
    thread,
    time::Duration,
};

use caddy_tests::{redis::RedisServer, sidecar::Sidecar};

const HOW: &str = "`cargo xtask test --quick` installs the clients";
/// How long one step of a client may take on a busy machine.
const PATIENCE: Duration = Duration::from_mins(1);

const STEPS: &[&str] = &[
    "connected",
    "hit",
    "pipeline",
    "transaction",
    "conflict",
    "pubsub",
    "script",
    "blocking",
    "restart",
    "reconnected",
];

#[test]
fn redis_py() {
    for protocol in ["2", "3"] {
        plays(Command::new(python()).arg(program("redis_py.py")).env("CADDY_RESP", protocol));
    }
}

#[test]
fn redis_py_asyncio() {
    for protocol in ["2", "3"] {
        plays(Command::new(python()).arg(program("redis_py_asyncio.py")).env("CADDY_RESP", protocol));
    }
}

#[test]
fn node_redis() {
    for protocol in ["2", "3"] {
        plays(node("node_redis.mjs").1.env("CADDY_RESP", protocol));
    }
}

#[test]
fn ioredis() {
    plays(&mut node("ioredis.mjs").1);
}

#[test]
fn redis_rs() {
    plays(&mut Command::new(env!("CARGO_BIN_EXE_client-redis-rs")));
}

#[test]
fn redis_rs_multiplexed_on_tokio() {
    plays(Command::new(env!("CARGO_BIN_EXE_client-redis-rs")).env("CADDY_CLIENT", "tokio"));
}

#[test]
fn hiredis() {
    let binary = Path::new(env!("CARGO_TARGET_TMPDIR")).join("client-hiredis");
    let mut gcc = Command::new("gcc");
    gcc.args(["-Wall", "-Wextra", "-Werror", "-O1", "-o"]).arg(&binary).arg(program("hiredis.c")).arg("-lhiredis");
    builds(&mut gcc);
    plays(&mut Command::new(binary));
}

#[test]
fn go_redis() {
    let modules = env::var_os("CADDY_GO_CLIENT").map(PathBuf::from);
    let Some(modules) = modules.filter(|folder| folder.join("go.sum").is_file()) else {
        println!("skipped: no go-redis; {HOW} where Go's module proxy answers");
        return;
    };
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join("client-go-redis");
    fs::create_dir_all(&folder).unwrap();
    for file in [modules.join("go.mod"), modules.join("go.sum"), program("go_redis/main.go")] {
        fs::copy(&file, folder.join(file.file_name().unwrap())).unwrap();
    }
    let binary = folder.join("client");
    let mut go = Command::new("go");
    go.args(["build", "-mod=mod", "-o"]).arg(&binary).arg(".").current_dir(&folder);
    builds(go.env("GOMODCACHE", modules.join("modules")).env("GOPROXY", "off"));
    plays(&mut Command::new(binary));
}

#[test]
fn go_redis_of_debian() {
    const GOPATH: &str = "/usr/share/gocode";
    if !Path::new(GOPATH).join("src/gopkg.in/redis.v5").is_dir() {
        println!("skipped: no go-redis from a package; {HOW} where Debian has one");
        return;
    }
    let binary = Path::new(env!("CARGO_TARGET_TMPDIR")).join("client-go-redis-v5");
    let mut go = Command::new("go");
    go.args(["build", "-o"]).arg(&binary).arg(program("go_redis_v5/main.go"));
    builds(go.env("GOPATH", GOPATH).env("GO111MODULE", "off"));
    plays(&mut Command::new(binary));
}

fn program(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("clients").join(name)
}

fn python() -> OsString {
    env::var_os("CADDY_PYTHON").unwrap_or_else(|| "python3".into())
}

/// Node looks for libraries beside the program, so that is copied beside them.
fn node(name: &str) -> (tempfile::TempDir, Command) {
    let libraries = env::var_os("CADDY_NODE_MODULES").expect(HOW);
    let folder = tempfile::tempdir().unwrap();
    std::os::unix::fs::symlink(libraries, folder.path().join("node_modules")).unwrap();
    let copy = folder.path().join(name);
    fs::copy(program(name), &copy).unwrap();
    let mut node = Command::new("node");
    node.arg(copy);
    (folder, node)
}

fn builds(compiler: &mut Command) {
    let output = compiler.output().unwrap_or_else(|error| panic!("{compiler:?}: {error}; {HOW}"));
    assert!(output.status.success(), "{compiler:?}: {}\n{HOW}", String::from_utf8_lossy(&output.stderr));
}

/// Runs a client beside a sidecar, which it sees restarted; it must get through all steps, and have been served copies.
fn plays(client: &mut Command) {
    let redis = RedisServer::start().unwrap();
    let mut sidecar = Sidecar::start(&redis).unwrap();
    let complaints = tempfile::NamedTempFile::new().unwrap();
    client.env("CADDY_SOCKET", sidecar.socket()).stdin(Stdio::piped()).stdout(Stdio::piped());
    client.stderr(complaints.reopen().unwrap());
    let mut child = client.spawn().unwrap_or_else(|error| panic!("{client:?}: {error}; {HOW}"));
    let lines = lines(child.stdout.take().unwrap());
    let mut said = Vec::new();
    let mut hits = 0;
    while let Ok(line) = lines.recv_timeout(PATIENCE) {
        said.push(line);
        if said.last().is_some_and(|line| line == "restart") {
            hits = sidecar.metric("caddy_hits_total").unwrap();
            sidecar.restart().unwrap();
            // Fails if it did not wait, which its last line tells better.
            let _ = child.stdin.take().unwrap().write_all(b"\n");
        }
    }
    let ended = if said.last().map(String::as_str) == STEPS.last().copied() {
        child.wait().unwrap().success()
    } else {
        // Fails only when it has ended by itself.
        let _ = child.kill();
        child.wait().unwrap();
        false
    };
    let complaints = fs::read_to_string(complaints.path()).unwrap();
    assert!(
        ended && said == STEPS,
        "{client:?} said {said:?} and complained ({HOW}):\n{complaints}\n{}",
        sidecar.log()
    );
    assert!(hits > 0, "{client:?} was served no copy");
}

/// A program's lines, until it closes its output.
fn lines(output: impl std::io::Read + Send + 'static) -> Receiver<String> {
    let (sender, receiver) = mpsc::channel();
    thread::spawn(move || {
        let lines = BufReader::new(output).lines().map_while(Result::ok);
        lines.for_each(|line| drop(sender.send(line)));
    });
    receiver
}
