//! Beginning and end.

use std::{
    fs,
    net::{Ipv4Addr, TcpListener},
    os::unix::net::UnixListener,
    path::Path,
    thread,
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};
use caddy_engine::{BootClock, Clock as _};
use caddy_tests::{
    e2e::eventually,
    redis::RedisServer,
    sidecar::{Sidecar, SidecarOptions},
    world::SOON,
};

use crate::{run, session};

#[test]
fn a_terminated_sidecar_serves_until_its_apps_are_gone() -> Result<()> {
    let redis = RedisServer::start()?;
    let mut sidecar = Sidecar::start(&redis)?;
    let mut client = session(&sidecar)?;
    sidecar.terminate()?;
    thread::sleep(Duration::from_millis(1500));
    ensure!(client.ask("SET k v")? == "OK", "an app that stays is served");
    ensure!(session(&sidecar)?.ask("GET k")? == "v", "one that comes late, too");
    ensure!(sidecar.exited()?.is_none(), "it has not ended");
    drop(client);
    let (status, _) = eventually("it ends when the last app has gone", SOON, || sidecar.exited()?.context("it runs"))?;
    ensure!(status.success(), "it ended with {status}");
    ensure!(!sidecar.socket().exists(), "its socket is gone");
    Ok(())
}

#[test]
fn a_terminated_sidecar_ends_when_its_grace_is_over() -> Result<()> {
    let mut sidecar = SidecarOptions::embedded().argument("--grace").argument("1500ms").start()?;
    let mut client = session(&sidecar)?;
    let asked = BootClock.now();
    sidecar.terminate()?;
    let (status, _) = eventually("it ends although an app stays", SOON, || sidecar.exited()?.context("it runs"))?;
    let after = BootClock.now().since(asked);
    ensure!(status.success() && after >= Duration::from_millis(1500), "it ended with {status} after {after:?}");
    ensure!(client.0.is_closed()?, "the app is told by the end of its connection");
    ensure!(client.ask("PING").is_err(), "nobody answers");
    Ok(())
}

#[test]
fn a_socket_left_by_a_crash_is_replaced_and_anything_else_is_not() -> Result<()> {
    let mut sidecar = SidecarOptions::embedded().start()?;
    sidecar.kill()?;
    ensure!(sidecar.socket().exists(), "a killed sidecar leaves its socket");
    sidecar.restart()?;
    ensure!(session(&sidecar)?.ask("PING")? == "PONG", "the next one replaces it");

    let serve = |socket: &Path| -> Result<String> {
        let file = socket.with_extension("yaml");
        fs::write(&file, format!("listen: {{socket: {}}}\nadmin: {{port: 0}}\n", socket.display()))?;
        let output = run(&["--config"], &file)?;
        ensure!(!output.status.success(), "it serves {}", socket.display());
        Ok(String::from_utf8_lossy(&output.stderr).into_owned())
    };
    let place = tempfile::tempdir()?;
    let used = place.path().join("used.sock");
    let _listener = UnixListener::bind(&used)?;
    let said = serve(&used)?;
    ensure!(said.contains("in use by another process") && said.contains("--socket"), "it says {said}");
    let file = place.path().join("file.sock");
    fs::write(&file, "precious")?;
    let said = serve(&file)?;
    ensure!(said.contains("is not a socket") && fs::read_to_string(&file)? == "precious", "it says {said}");
    let nowhere = place.path().join("none").join("x.sock");
    fs::create_dir(place.path().join("none"))?;
    let config = place.path().join("nowhere.yaml");
    fs::write(&config, format!("listen: {{socket: {}/more/x.sock}}\nadmin: {{port: 0}}\n", nowhere.display()))?;
    let output = run(&["--config"], &config)?;
    let said = String::from_utf8_lossy(&output.stderr);
    ensure!(said.contains("cannot listen on"), "a missing directory is named");
    ensure!(said.matches("os error").count() == 1, "and why it does not do is said once: {said}");
    Ok(())
}

#[test]
fn an_admin_port_that_was_asked_for_is_not_replaced_by_another() -> Result<()> {
    let taken = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
    let port = taken.local_addr()?.port().to_string();
    let place = tempfile::tempdir()?;
    let output = run(&["--admin-port", &port, "--socket"], &place.path().join("x.sock"))?;
    let said = String::from_utf8_lossy(&output.stderr);
    ensure!(!output.status.success(), "it serves on another port: {said}");
    ensure!(said.contains(&port) && said.contains("--admin-port"), "it says {said}");
    ensure!(!said.contains('\u{1b}'), "colours are for terminals: {said:?}");
    Ok(())
}

#[test]
fn ping_tells_a_living_sidecar_from_a_dead_one() -> Result<()> {
    let mut sidecar = SidecarOptions::embedded().start()?;
    let ping = |socket: &Path| run(&["ping", "--socket"], socket);
    ensure!(ping(&sidecar.socket())?.status.success(), "it answers");
    sidecar.suspend()?;
    ensure!(!ping(&sidecar.socket())?.status.success(), "a hanging one does not");
    sidecar.resume()?;
    sidecar.kill()?;
    let output = ping(&sidecar.socket())?;
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    ensure!(!output.status.success() && said.contains("no sidecar answers"), "a dead one does not: {said}");
    Ok(())
}
