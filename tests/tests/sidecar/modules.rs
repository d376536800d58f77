//! Commands that the built-in table lacks: what the server says of them in `COMMAND` is what the sidecar goes by.

use std::{path::PathBuf, process::Command, sync::OnceLock, time::Duration};

use anyhow::{Context as _, Result, ensure};
use caddy_tests::{e2e::eventually, redis::RedisServer, sidecar::Sidecar, world::SOON};

use crate::session;

/// The module in `tests/modules`, compiled.
fn module() -> Result<PathBuf> {
    static BUILT: OnceLock<Result<PathBuf, String>> = OnceLock::new();
    let built = BUILT.get_or_init(|| build().map_err(|error| format!("{error:#}")));
    built.clone().map_err(anyhow::Error::msg)
}

fn build() -> Result<PathBuf> {
    let library = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join("probe.so");
    let source = concat!(env!("CARGO_MANIFEST_DIR"), "/modules/probe.c");
    let mut gcc = Command::new("gcc");
    gcc.args(["-Wall", "-Wextra", "-Werror", "-O1", "-shared", "-fPIC", "-o"]).arg(&library).arg(source);
    let output = gcc.output().context("start gcc; `cargo xtask test --quick` installs it")?;
    ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    Ok(library)
}

fn with_module() -> Result<(RedisServer, Sidecar)> {
    let library = module()?;
    let redis = RedisServer::start_with(&["--loadmodule", &library.to_string_lossy()])?;
    let sidecar = Sidecar::start(&redis)?;
    eventually("the server's commands are known", SOON, || {
        ensure!(sidecar.metric("caddy_server_commands")? >= 3, "they are not:\n{}", sidecar.log());
        Ok(())
    })?;
    Ok((redis, sidecar))
}

#[test]
fn a_modules_writes_are_seen_by_the_next_read_whether_it_names_its_keys_or_not() -> Result<()> {
    let (_redis, sidecar) = with_module()?;
    ensure!(sidecar.log().contains("probe.set"), "the log names what the table lacks:\n{}", sidecar.log());
    let (mut reader, mut writer) = (session(&sidecar)?, session(&sidecar)?);
    writer.ask("SET k 0")?;
    for round in 1..=200 {
        ensure!(reader.ask("GET k")?.parse::<u32>()? < round, "it was held before");
        let command =
            if round % 2 == 0 { format!("PROBE.SET note k {round}") } else { format!("probe.hidden k {round}") };
        ensure!(writer.ask(&command)? == "OK", "{command}");
        // Another session's copy, which the write has to kill before it is answered.
        ensure!(reader.ask("GET k")? == round.to_string(), "round {round}: a stale copy");
    }
    Ok(())
}

#[test]
fn a_modules_command_that_may_wait_holds_up_nobody_else() -> Result<()> {
    let (_redis, sidecar) = with_module()?;
    let (mut waits, mut other) = (session(&sidecar)?, session(&sidecar)?);
    waits.0.send(&["PROBE.WAIT"])?;
    ensure!(waits.0.reply_within(Duration::from_millis(200))?.is_none(), "it waits");
    for number in 1..=20 {
        // Relayed: over the connection that PROBE.WAIT would have gone over, had it not been known to wait.
        ensure!(other.ask("INCR n")? == number.to_string(), "INCR");
    }
    ensure!(
        waits.0.reply_within(Duration::ZERO.max(Duration::from_millis(1)))?.is_none(),
        "it was INCR that was quick"
    );
    ensure!(waits.0.reply()? == b"+WAITED\r\n", "and it is answered in the end");
    Ok(())
}

#[test]
fn a_server_that_lists_no_commands_is_served_all_the_same() -> Result<()> {
    let redis = RedisServer::start()?;
    redis.command(&["ACL", "SETUSER", "app", "on", ">secret", "~*", "&*", "+@all", "-command"])?;
    let sidecar = caddy_tests::sidecar::SidecarOptions::redis(redis.socket()).login("app", "secret").start()?;
    let mut client = session(&sidecar)?;
    ensure!(client.ask("SET k v")? == "OK", "SET");
    client.hold("k", "v")?;
    eventually("the log says what is missing", SOON, || {
        ensure!(sidecar.log().contains("does not list its commands"), "it does not:\n{}", sidecar.log());
        Ok(())
    })?;
    ensure!(sidecar.metric("caddy_server_commands")? == 0, "nothing was learned");
    Ok(())
}
