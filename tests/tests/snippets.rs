//! The README's examples, word for word: each language's real Redis client against a real sidecar and a real Redis.

#![expect(clippy::unwrap_used, clippy::expect_used, reason = "a test stops at the first surprise")]

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use caddy_tests::{redis::RedisServer, sidecar::Sidecar};
use redis::Commands;

const HOW: &str = "`cargo xtask test --quick` installs the clients";

fn repository(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..").join(path)
}

/// Runs an app beside a sidecar; what it prints must be the value twice, and Redis must have it afterwards.
fn runs_beside_a_sidecar(mut app: Command) {
    let redis = RedisServer::start().unwrap();
    let sidecar = Sidecar::start(&redis).unwrap();
    let output = app.env("CADDY_SOCKET", sidecar.socket()).output().expect(HOW);
    let (out, err) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{}: {err}", output.status);
    assert_eq!(out, "Ada\nAda\n", "{err}");
    let mut direct = redis::Client::open(redis.url()).unwrap().get_connection().unwrap();
    assert_eq!(direct.get::<_, String>("user:1").unwrap(), "Ada");
}

#[test]
fn the_python_snippet_runs() {
    let mut app = Command::new(std::env::var_os("CADDY_PYTHON").unwrap_or_else(|| "python3".into()));
    app.arg(repository("docs/snippets/python/app.py"));
    runs_beside_a_sidecar(app);
}

#[test]
fn the_node_snippet_runs() {
    let libraries = std::env::var_os("CADDY_NODE_MODULES").expect(HOW);
    // Node looks for libraries beside the app.
    let folder = tempfile::tempdir().unwrap();
    std::os::unix::fs::symlink(libraries, folder.path().join("node_modules")).unwrap();
    let copy = folder.path().join("app.mjs");
    fs::copy(repository("docs/snippets/node/app.mjs"), &copy).unwrap();
    let mut app = Command::new("node");
    app.arg(copy);
    runs_beside_a_sidecar(app);
}

#[test]
fn the_rust_snippet_runs() {
    runs_beside_a_sidecar(Command::new(env!("CARGO_BIN_EXE_snippet-rust")));
}

#[test]
fn the_readme_shows_the_snippets_that_were_run() {
    let readme = fs::read_to_string(repository("README.md")).unwrap();
    for snippet in ["python/app.py", "node/app.mjs", "rust/main.rs"] {
        let text = fs::read_to_string(repository("docs/snippets").join(snippet)).unwrap();
        // A file's own doc comment says what it is; in the README the heading does.
        let shown = text.lines().filter(|line| !line.starts_with("//!")).collect::<Vec<_>>().join("\n");
        assert!(readme.contains(shown.trim()), "README.md does not show docs/snippets/{snippet} word for word");
    }
}
