//! Behind real Sentinels: failovers are followed, and a primary that was replaced proves nothing.

use std::{thread, time::Duration};

use anyhow::{Result, ensure};
use caddy_engine::{BootClock, Clock as _};
use caddy_tests::{
    e2e::eventually,
    scenarios,
    sentinel::{FAILOVER, Watched},
    sidecar::Sidecar,
    world::{Client, SOON, Subject},
};

const BOUND: Duration = Duration::from_millis(500);

fn session(sidecar: &Sidecar) -> Result<Client> {
    Ok(Client(sidecar.connect()?))
}

fn writes(client: &mut Client, key: &str, value: &str) -> Result<()> {
    eventually("a write arrives", FAILOVER, || {
        let told = client.ask(&format!("SET {key} {value}"))?;
        ensure!(told == "OK", "SET answers {told}");
        Ok(())
    })?;
    Ok(())
}

#[test]
fn a_failover_is_followed() -> Result<()> {
    let watched = Watched::start()?;
    let sidecar = watched.options("").max_staleness(BOUND).start()?;
    let mut client = session(&sidecar)?;
    writes(&mut client, "k", "v0")?;
    client.hold("k", "v0")?;
    let old = watched.primary()?;
    watched.servers[&old].command(&["WAIT", "2", "5000"])?;
    watched.fail_over()?;
    let new = watched.wait_for_another(old)?;
    // What is written there reaches the copy, and what is written through the sidecar arrives there.
    watched.servers[&new].command(&["SET", "k", "v1"])?;
    eventually("the copy follows the new primary", SOON, || client.hold("k", "v1"))?;
    writes(&mut client, "k", "v2")?;
    ensure!(watched.servers[&new].command(&["GET", "k"])? == b"$2\r\nv2\r\n", "the write arrived there");
    watched.servers[&new].command(&["SET", "k", "v3"])?;
    client.hold("k", "v3")?;
    ensure!(sidecar.metric("caddy_sentinel_switches")? > 0, "it is counted");
    Ok(())
}

/// The sidecar is idle while the primary sleeps and is replaced; when it wakes it still says that it is a primary.
#[test]
fn a_primary_that_slept_through_its_replacement_is_not_believed() -> Result<()> {
    let watched = Watched::start()?;
    let sidecar = watched.options("").max_staleness(BOUND).start()?;
    let mut client = session(&sidecar)?;
    writes(&mut client, "k", "v0")?;
    client.hold("k", "v0")?;
    let old = watched.primary()?;
    watched.servers[&old].command(&["WAIT", "2", "5000"])?;
    watched.servers[&old].sigstop()?;
    let new = watched.wait_for_another(old)?;
    ensure!(watched.servers[&new].command(&["SET", "k", "v1"])? == b"+OK\r\n", "the new primary takes writes");
    let written = BootClock.now();
    thread::sleep(BOUND);
    watched.servers[&old].sigcont()?;
    // Every answer from now on is new or an error; the old primary is made a replica in the meantime.
    let mut answers = 0;
    while BootClock.now().since(written) < Duration::from_secs(8) {
        let told = client.ask("GET k")?;
        ensure!(told == "v1" || told.starts_with("(error) NOTREADY"), "GET k answers {told}");
        answers += usize::from(told == "v1");
    }
    ensure!(answers > 0, "the new value was never read");
    client.hold("k", "v1")?;
    writes(&mut client, "k", "v2")?;
    ensure!(watched.servers[&new].command(&["GET", "k"])? == b"$2\r\nv2\r\n", "the write arrived there");
    Ok(())
}

#[test]
fn without_a_majority_of_the_sentinels_nothing_is_proved() -> Result<()> {
    scenarios::without_a_majority_of_the_sentinels_nothing_is_proved(&Subject::good())
}

#[test]
fn what_the_sentinels_do_not_know_is_named() -> Result<()> {
    let watched = Watched::start_with("requirepass secret")?;
    let sidecar = watched.options("").start()?;
    let mut client = session(&sidecar)?;
    eventually("the login is asked for", SOON, || {
        let told = client.ask("SET k v")?;
        ensure!(told.starts_with("(error) NOTREADY") && told.contains("check username and password"), "{told}");
        Ok(())
    })?;
    let directory = tempfile::tempdir()?;
    let file = directory.path().join("password");
    std::fs::write(&file, "secret\n")?;
    let sidecar = watched.options(&format!(", passwordFile: {}", file.display())).start()?;
    writes(&mut session(&sidecar)?, "k", "v")?;
    Ok(())
}
