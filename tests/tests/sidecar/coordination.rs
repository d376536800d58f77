//! What a sidecar owes to the API server: nothing that its apps would notice.

use std::{fs, net::TcpListener, time::Duration};

use anyhow::{Context as _, Result, ensure};
use caddy_tests::{
    e2e::eventually, lease_server::LeaseServer, redis::RedisServer, sidecar::SidecarOptions, world::SOON,
};

use crate::session;

/// Options of a sidecar in a pod whose API server is at that port of this machine.
fn in_a_pod(redis: &RedisServer, port: u16, identity: &tempfile::TempDir) -> SidecarOptions {
    SidecarOptions::redis(redis.socket())
        .section(&format!("kubernetes: {{identityDir: {}, members: 1}}", identity.path().display()))
        .variable("KUBERNETES_SERVICE_HOST", "127.0.0.1")
        .variable("KUBERNETES_SERVICE_PORT", &port.to_string())
        .variable("CADDY_POD_NAME", "web-1")
        .variable("CADDY_POD_UID", "0b5c")
}

fn serves(sidecar: &caddy_tests::sidecar::Sidecar, value: &str) -> Result<()> {
    let mut client = session(sidecar)?;
    ensure!(client.ask(&format!("SET k {value}"))? == "OK", "a write");
    for _ in 0..3 {
        ensure!(client.ask("GET k")? == value, "a read");
    }
    Ok(())
}

#[test]
fn without_an_api_server_apps_are_served_and_nobody_claims_duties() -> Result<()> {
    let redis = RedisServer::start()?;
    let identity = tempfile::tempdir()?;
    fs::write(identity.path().join("token"), "a token")?;
    fs::write(identity.path().join("ca.crt"), "")?;
    // Taken, so that nobody else listens there, and never accepted from: connections hang.
    let silent = TcpListener::bind("127.0.0.1:0")?;
    let mut sidecar = in_a_pod(&redis, silent.local_addr()?.port(), &identity).start()?;
    eventually("it asks the API server", SOON, || {
        serves(&sidecar, "asking")?;
        let asked = sidecar.metric("caddy_kubernetes_writes_total")?;
        ensure!(asked > 0, "it asked {asked} times");
        Ok(())
    })?;
    serves(&sidecar, "waiting")?;
    let info = session(&sidecar)?.ask("INFO")?;
    ensure!(info.contains("caddy_duties_held:0") && info.contains("caddy_coherent:1"), "{info}");
    sidecar.terminate()?;
    let (status, _) = eventually("it ends", SOON, || sidecar.exited()?.context("it runs"))?;
    ensure!(status.success(), "it ended with {status}");
    Ok(())
}

#[test]
fn before_its_token_comes_a_sidecar_asks_nothing() -> Result<()> {
    let redis = RedisServer::start()?;
    let identity = tempfile::tempdir()?;
    let silent = TcpListener::bind("127.0.0.1:0")?;
    let sidecar = in_a_pod(&redis, silent.local_addr()?.port(), &identity).start()?;
    serves(&sidecar, "tokenless")?;
    ensure!(sidecar.metric("caddy_kubernetes_writes_total")? == 0, "it asked without a token");
    fs::write(identity.path().join("ca.crt"), "")?;
    fs::write(identity.path().join("token"), "a token")?;
    eventually("it asks when the token is there", SOON, || {
        ensure!(sidecar.metric("caddy_kubernetes_writes_total")? > 0, "not yet");
        Ok(())
    })?;
    Ok(())
}

#[test]
fn outside_of_kubernetes_a_sidecar_does_its_own_duties() -> Result<()> {
    let sidecar = SidecarOptions::embedded().start()?;
    ensure!(sidecar.metric("caddy_duties_held")? == 1, "it leaves them to others");
    Ok(())
}

/// Nothing is handed over by a process that is killed: its time has to be over first. What members report is told besides.
#[test]
fn a_holder_of_the_duties_that_is_killed_is_followed_by_another() -> Result<()> {
    let (api, redis) = (LeaseServer::start()?, RedisServer::start()?);
    let mut sidecars = Vec::new();
    for name in ["web-1", "web-2"] {
        sidecars.push(api.pod(SidecarOptions::redis(redis.socket()), name).start()?);
    }
    let (holder, _) = eventually("one does the duties", SOON, || {
        let held: Vec<u64> =
            sidecars.iter().map(|sidecar| sidecar.metric("caddy_duties_held")).collect::<Result<_>>()?;
        held.iter().position(|held| *held == 1).context("nobody does")
    })?;
    let reply = session(&sidecars[holder])?.ask("LOCK.ACQUIRE l")?;
    let epoch = reply.trim_start_matches(['[', '0']).split('-').next().context("a token")?.to_owned();
    eventually("the epoch is reported", SOON, || {
        let lease = api.lease(&format!("caddy-member-web-{}", holder + 1)).context("no Lease")?;
        let report = lease["metadata"]["annotations"]["cache.caddy.dev/report"].as_str().unwrap_or_default().to_owned();
        ensure!(report.contains(&format!("\"lockEpoch\":{epoch},\"epochByMirror\":false")), "{report}, {reply}");
        Ok(())
    })?;
    sidecars.swap_remove(holder).kill()?;
    eventually("the other one does them", Duration::from_secs(90), || {
        ensure!(sidecars[0].metric("caddy_duties_held")? == 1, "not yet");
        Ok(())
    })?;
    Ok(())
}
