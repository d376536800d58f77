//! The worked examples of `docs/strategies.md`, as they are printed there.

use anyhow::{Context, Result, bail, ensure};
use caddy_tests::{
    e2e::eventually,
    origin::Origin,
    redis::RedisServer,
    sidecar::SidecarOptions,
    world::{Client, LONG, SOON},
};
use tokio::runtime::Runtime;

const DOC: &str = include_str!("../../../docs/strategies.md");

/// The first fenced block of a language behind the mark of an example.
fn block<'a>(example: &str, language: &str) -> Result<&'a str> {
    let mark = format!("<!-- example: {example} -->");
    let (_, rest) = DOC.split_once(&mark).with_context(|| format!("no {mark}"))?;
    let (_, rest) = rest.split_once(&format!("```{language}\n")).with_context(|| format!("no {language}"))?;
    Ok(rest.split_once("```").context("the block has no end")?.0)
}

fn play(example: &str) -> Result<()> {
    let runtime = Runtime::new()?;
    let origin = runtime.block_on(Origin::start())?;
    origin.cache_control(None);
    let redis = RedisServer::start()?;
    // Where the origin is, and five minutes are not waited for.
    let yaml = block(example, "yaml")?.replace("http://127.0.0.1:8080", &origin.url());
    let yaml = if yaml.contains("staleIfError") { yaml.replace("ttl: 5m", "ttl: 50ms") } else { yaml };
    let sidecar = SidecarOptions::redis(redis.socket()).max_staleness(LONG).section(&yaml).start()?;
    eventually("copies are tracked", SOON, || {
        ensure!(sidecar.metric("caddy_coherent")? == 1);
        Ok(())
    })?;
    let mut client = Client(sidecar.connect()?);
    let mut lines = block(example, "console")?.lines();
    let mut steps = 0;
    while let Some(line) = lines.next() {
        if let Some(direction) = line.strip_prefix("# ") {
            direct(&origin, direction)?;
            continue;
        }
        let command = line.strip_prefix("> ").with_context(|| format!("{line:?} is neither command nor direction"))?;
        let expected = lines.next().with_context(|| format!("{command} has no answer"))?;
        eventually(command, SOON, || {
            let answer = client.ask(command)?;
            ensure!(answer.starts_with(expected), "{command}: {answer}, the page says {expected}");
            Ok(())
        })?;
        steps += 1;
    }
    ensure!(steps > 3, "the example was not found");
    Ok(())
}

/// What the page says of the database.
fn direct(origin: &Origin, direction: &str) -> Result<()> {
    if let Some((_, told)) = direction.split_once("has ") {
        let (value, path) = told.rsplit_once(" at ").context("has <value> at <path>")?;
        origin.recover();
        origin.set(path, value);
    } else if direction == "five minutes pass, and the database is down" {
        origin.fail_with(|_| Some(503));
    } else if direction == "the database was asked twice" {
        ensure!(origin.requests() == 2, "it was asked {} times", origin.requests());
    } else {
        bail!("unknown direction {direction:?}");
    }
    Ok(())
}

#[test]
fn read_through_over_http() -> Result<()> {
    play("read-through")
}

#[test]
fn stale_if_error_through_an_outage() -> Result<()> {
    play("outage")
}
