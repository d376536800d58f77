//! TLS towards a real Redis: what is accepted, what is refused and how that is told, certificates that change.

use std::{
    path::Path,
    process::{Child, Command, Stdio},
};

use anyhow::{Context as _, Result, ensure};
use caddy_tests::{
    certificates::{Authority, Files},
    e2e::eventually,
    redis::{RedisServer, free_port},
    sidecar::{Sidecar, SidecarOptions, program},
    wire::Wire,
    world::{Client, SOON},
};
use tempfile::TempDir;

use crate::session;

/// A Redis with a TLS port on loopback, whose certificate is for `localhost`, and the authority's files.
struct Secured {
    redis: RedisServer,
    port: u16,
    authority: Authority,
    directory: TempDir,
}

impl Secured {
    fn start() -> Result<Self> {
        Self::start_with(|authority, stem| authority.issue(stem, &["localhost"]), false)
    }

    fn start_with(issue: impl Fn(&Authority, &Path) -> Result<Files>, asks_clients: bool) -> Result<Self> {
        let directory = tempfile::tempdir()?;
        let authority = Authority::create()?;
        let ca = directory.path().join("ca.crt");
        authority.write(&ca)?;
        let files = issue(&authority, &directory.path().join("server"))?;
        let port = free_port()?;
        let path = |path: &Path| path.display().to_string();
        let redis = RedisServer::start_with(&[
            "--tls-port",
            &port.to_string(),
            "--bind",
            "127.0.0.1",
            "--tls-cert-file",
            &path(&files.certificate),
            "--tls-key-file",
            &path(&files.key),
            "--tls-ca-cert-file",
            &path(&ca),
            "--tls-auth-clients",
            if asks_clients { "yes" } else { "no" },
        ])?;
        Ok(Self { redis, port, authority, directory })
    }

    /// A sidecar in front of it with these fields of `tls`.
    fn sidecar(&self, fields: &str) -> Result<Sidecar> {
        let port = self.port;
        SidecarOptions::l3_redis(&format!("endpoints: [\"localhost:{port}\"], tls: {{{fields}}}")).start()
    }

    fn ca(&self) -> String {
        format!("caFile: {}", self.directory.path().join("ca.crt").display())
    }
}

/// The sidecar serves, and what it says of Redis, to apps, people and in its log, contains all of these.
fn is_refused(sidecar: &Sidecar, expected: &[&str]) -> Result<()> {
    let mut client = session(sidecar)?;
    eventually("it is said why there is no connection", SOON, || {
        let why = client.why("k", "coherence")?;
        ensure!(expected.iter().all(|part| why.contains(part)), "CACHE.WHY says {why}");
        Ok(())
    })?;
    let told = client.ask("SET k v")?;
    ensure!(
        told.starts_with("(error) NOTREADY") && expected.iter().all(|part| told.contains(part)),
        "SET k v answers {told}"
    );
    ensure!(expected.iter().all(|part| sidecar.log().contains(part)), "the log says {}", sidecar.log());
    ensure!(sidecar.metric("caddy_coherent")? == 0 && sidecar.metric("caddy_l3_reachable")? == 0, "so do the metrics");
    Ok(())
}

fn works(sidecar: &Sidecar, redis: &RedisServer) -> Result<()> {
    let mut client = session(sidecar)?;
    eventually("it serves", SOON, || {
        let told = client.ask("SET k v0")?;
        ensure!(told == "OK", "SET answers {told}");
        Ok(())
    })?;
    client.hold("k", "v0")?;
    redis.command(&["SET", "k", "v1"])?;
    client.hold("k", "v1")
}

#[test]
fn behind_tls_everything_works_as_without() -> Result<()> {
    let secured = Secured::start()?;
    let sidecar = secured.sidecar(&secured.ca())?;
    works(&sidecar, &secured.redis)?;
    let mut client = session(&sidecar)?;
    // More than any buffer on the way holds, there and back, in both protocols and on a connection of its own.
    for protocol in ["HELLO 2", "HELLO 3"] {
        client.ask(protocol)?;
        let large = "x".repeat(3 << 20);
        ensure!(client.ask(&format!("SET large {large}"))? == "OK", "SET of a large value");
        ensure!(client.ask("GET large")? == large, "GET of a large value");
        let told = client.pipeline(&["MULTI", &format!("SET large {large}"), "GET large", "EXEC"])?;
        ensure!(told[3] == format!("[OK, {large}]"), "EXEC answers {}", told[3].len());
    }
    Ok(())
}

#[test]
fn a_certificate_of_another_authority_is_refused() -> Result<()> {
    let secured = Secured::start()?;
    let other = secured.directory.path().join("other.crt");
    Authority::create()?.write(&other)?;
    let file = other.display().to_string();
    is_refused(&secured.sidecar(&format!("caFile: {file}"))?, &["was not issued by an authority in", &file])?;
    is_refused(&secured.sidecar("")?, &["was not issued by an authority that the system trusts"])
}

#[test]
fn an_expired_certificate_is_refused() -> Result<()> {
    let secured = Secured::start_with(|authority, stem| authority.issue_expired(stem, &["localhost"]), false)?;
    is_refused(&secured.sidecar(&secured.ca())?, &["it has expired"])
}

#[test]
fn a_certificate_for_another_name_is_refused_unless_that_name_is_given() -> Result<()> {
    let secured = Secured::start_with(|authority, stem| authority.issue(stem, &["redis.example"]), false)?;
    let told = ["not for localhost", "redis.example", "serverName"];
    is_refused(&secured.sidecar(&secured.ca())?, &told)?;
    works(&secured.sidecar(&format!("{}, serverName: redis.example", secured.ca()))?, &secured.redis)
}

#[test]
fn a_server_that_wants_a_client_certificate_gets_one_or_says_so() -> Result<()> {
    let secured = Secured::start_with(|authority, stem| authority.issue(stem, &["localhost"]), true)?;
    is_refused(&secured.sidecar(&secured.ca())?, &["wants a client certificate"])?;
    let files = secured.authority.issue(&secured.directory.path().join("client"), &["client"])?;
    let shown = |files: &Files| {
        format!("{}, certFile: {}, keyFile: {}", secured.ca(), files.certificate.display(), files.key.display())
    };
    works(&secured.sidecar(&shown(&files))?, &secured.redis)?;
    let foreign = Authority::create()?.issue(&secured.directory.path().join("foreign"), &["client"])?;
    is_refused(&secured.sidecar(&shown(&foreign))?, &["the server refused us", "trust the issuer"])
}

#[test]
fn files_that_are_missing_or_no_certificates_are_named() -> Result<()> {
    let secured = Secured::start()?;
    let absent = secured.directory.path().join("absent.crt").display().to_string();
    is_refused(&secured.sidecar(&format!("caFile: {absent}"))?, &["cannot read", &absent])?;
    let key = secured.directory.path().join("server.key").display().to_string();
    is_refused(&secured.sidecar(&format!("caFile: {key}"))?, &[&key, "holds no certificate"])
}

#[test]
fn plain_text_and_tls_never_stand_in_for_each_other() -> Result<()> {
    let port = free_port()?.to_string();
    let plain = RedisServer::start_with(&["--port", &port, "--bind", "127.0.0.1"])?;
    let endpoint = format!("endpoints: [\"127.0.0.1:{port}\"]");
    let sidecar = SidecarOptions::l3_redis(&format!("{endpoint}, tls: {{}}")).start()?;
    is_refused(&sidecar, &["does it speak TLS on this port?"])?;
    let stats = String::from_utf8(plain.command(&["INFO", "commandstats"])?)?;
    ensure!(
        !stats.contains("cmdstat_set:") && !stats.contains("cmdstat_hello:"),
        "it was asked in plain text: {stats}"
    );
    let secured = Secured::start()?;
    let endpoint = format!("endpoints: [\"127.0.0.1:{}\"]", secured.port);
    is_refused(&SidecarOptions::l3_redis(&endpoint).start()?, &["does it want TLS"])
}

#[test]
fn a_new_authority_is_used_without_a_restart() -> Result<()> {
    let mut secured = Secured::start()?;
    let sidecar = secured.sidecar(&secured.ca())?;
    works(&sidecar, &secured.redis)?;
    // The server changes first: until the new authority is mounted there is no connection.
    let new = Authority::create()?;
    new.issue(&secured.directory.path().join("server"), &["localhost"])?;
    secured.redis.restart()?;
    is_refused(&sidecar, &["was not issued by"])?;
    new.write(&secured.directory.path().join("ca.crt"))?;
    works(&sidecar, &secured.redis)
}

/// A sidecar that was started by hand; killed when dropped.
struct ByHand(Child);

impl Drop for ByHand {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn rediss_is_tls_by_hand() -> Result<()> {
    let secured = Secured::start()?;
    let socket = secured.directory.path().join("cache.sock");
    let ca = secured.directory.path().join("ca.crt");
    let mut command = Command::new(program()?);
    command.args(["--redis", &format!("rediss://localhost:{}", secured.port), "--admin-port", "0"]);
    command.arg("--tls-ca").arg(ca).arg("--socket").arg(&socket).stdout(Stdio::null()).stderr(Stdio::null());
    let _sidecar = ByHand(command.spawn().context("start the sidecar")?);
    eventually("it serves", SOON, || {
        let mut client = Client(Wire::connect(&socket)?);
        let told = client.ask("SET k v")?;
        ensure!(told == "OK", "SET answers {told}");
        Ok(())
    })?;
    ensure!(secured.redis.command(&["GET", "k"])? == b"$1\r\nv\r\n", "it arrived");
    let refused = Command::new(program()?).args(["--redis", "redis://localhost", "--tls-ca", "x"]).output()?;
    ensure!(
        !refused.status.success() && String::from_utf8_lossy(&refused.stderr).contains("write rediss://"),
        "plain text with TLS flags is refused"
    );
    Ok(())
}
