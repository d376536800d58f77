//! Configuration files, good and bad, at start and while running.

use std::fs;

use anyhow::{Result, ensure};
use caddy_tests::{
    e2e::eventually,
    redis::RedisServer,
    sidecar::{Sidecar, SidecarOptions},
    world::SOON,
};

use crate::{run, session};

const FAULTY: &str = "listen: {soket: /x}\nworkers: many\nl2: {maxBytes: 64Mx}\nconsistency: {maxStaleness: 0s}\n\
                      keyspaces: [{name: a, match: \"a*\", cache: Sometimes}]\n";

#[test]
fn every_fault_of_a_configuration_is_named_at_once() -> Result<()> {
    let place = tempfile::tempdir()?;
    let file = place.path().join("config.yaml");
    fs::write(&file, FAULTY)?;
    for arguments in [&["check-config"][..], &["--config"]] {
        let output = run(arguments, &file)?;
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        ensure!(!output.status.success(), "{arguments:?} accepts it");
        for fault in ["listen.soket", "workers", "l2.maxBytes", "consistency.maxStaleness", "keyspaces"] {
            ensure!(said.contains(fault), "{arguments:?} does not name {fault}: {said}");
        }
        ensure!(said.contains("write e.g. 64Mi") && !said.contains("panicked"), "{arguments:?} says {said}");
    }
    fs::write(&file, "l2: {maxBytes: 64Mi}\n")?;
    let output = run(&["check-config"], &file)?;
    ensure!(
        output.status.success() && String::from_utf8_lossy(&output.stdout).contains("valid"),
        "a good file is valid"
    );
    let output = run(&["check-config"], &place.path().join("none.yaml"))?;
    ensure!(String::from_utf8_lossy(&output.stderr).contains("cannot read"), "a missing file is said to be missing");
    Ok(())
}

#[test]
fn a_url_of_a_database_that_is_none_is_found_before_the_sidecar_is_started_with_it() -> Result<()> {
    let place = tempfile::tempdir()?;
    let file = place.path().join("config.yaml");
    let url = |port: &str| {
        format!(
            "l3: {{redis: {{endpoints: [\"127.0.0.1:6379\"]}}}}\n\
             stores: [{{name: users, postgres: {{url: \"postgresql://app:secret@db:{port}/x\", load: \"SELECT\"}}}}]\n"
        )
    };
    for (port, is_valid) in [("5432", true), ("x", false)] {
        fs::write(&file, url(port))?;
        let output = run(&["check-config"], &file)?;
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        ensure!(output.status.success() == is_valid, "{port}: {said}");
        ensure!(is_valid || said.contains("'users'") && said.contains("port") && !said.contains("secret"), "{said}");
    }
    Ok(())
}

#[test]
fn unknown_fields_in_the_operators_file_are_told_and_ignored() -> Result<()> {
    let place = tempfile::tempdir()?;
    let file = place.path().join("config.yaml");
    fs::write(&file, "configGeneration: 7\nfuture: {field: 1}\n")?;
    let output = run(&["check-config"], &file)?;
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    ensure!(output.status.success() && said.contains("future") && said.contains("ignored"), "check-config says {said}");
    let sidecar = SidecarOptions::embedded().section("configGeneration: 7\nfuture: {field: 1}").start()?;
    ensure!(sidecar.log().contains("future"), "the log names it: {}", sidecar.log());
    ensure!(sidecar.metric("caddy_config_generation")? == 7, "the generation in force is shown");
    Ok(())
}

#[test]
fn a_new_configuration_is_taken_over_if_it_is_valid_as_a_whole() -> Result<()> {
    let redis = RedisServer::start()?;
    let sidecar = Sidecar::start(&redis)?;
    let mut client = session(&sidecar)?;
    redis.command(&["SET", "private:k", "v"])?;
    client.hold("private:k", "v")?;
    let old = fs::read_to_string(sidecar.config())?;

    sidecar.write_config(&format!("{old}keyspaces: [{{name: private, match: \"private:*\", cache: Never}}]\n"))?;
    eventually("the invalid file is noticed", SOON, || {
        ensure!(sidecar.metric("caddy_config_errors_total")? == 1, "caddy_config_errors_total");
        Ok(())
    })?;
    ensure!(sidecar.log().contains("the old one stays in force"), "the log says so: {}", sidecar.log());
    ensure!(client.why("private:k", "served")? == "yes" || client.ask("GET private:k")? == "v", "nothing has changed");

    fs::write(sidecar.config(), b"\xff\xfe\x00")?;
    eventually("what is no text is noticed, too", SOON, || {
        ensure!(sidecar.metric("caddy_config_errors_total")? == 2, "caddy_config_errors_total");
        Ok(())
    })?;

    sidecar.write_config(&format!("{old}keyspaces: [{{name: private, match: \"private:*\", cache: \"Off\"}}]\n"))?;
    eventually("the valid one is in force", SOON, || {
        ensure!(client.ask("GET private:k")? == "v", "GET");
        let reason = client.why("private:k", "reason")?;
        ensure!(reason.contains("cache: Off"), "CACHE.WHY says {reason}");
        Ok(())
    })?;
    Ok(())
}
