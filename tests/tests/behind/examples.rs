//! The worked example of `docs/strategies.md`: write-behind into PostgreSQL, as it is printed there.

use anyhow::{Context, Result, ensure};
use caddy_tests::{
    e2e::eventually,
    postgres::PostgresServer,
    redis::RedisServer,
    sidecar::SidecarOptions,
    world::{Client, LONG, SOON},
};

const DOC: &str = include_str!("../../../docs/strategies.md");

/// The first fenced block of a language behind the mark of the example.
fn block(language: &str) -> Result<&'static str> {
    let (_, rest) = DOC.split_once("<!-- example: write-behind -->").context("the example is gone")?;
    let (_, rest) = rest.split_once(&format!("```{language}\n")).with_context(|| format!("no {language}"))?;
    Ok(rest.split_once("```").context("the block has no end")?.0)
}

#[test]
fn write_behind_into_postgresql() -> Result<()> {
    let (redis, postgres) = (RedisServer::start()?, PostgresServer::start()?);
    postgres.execute(block("sql")?)?;
    let logs = tempfile::tempdir()?;
    let yaml = block("yaml")?
        .replace("postgresql://cache@db.shop:5432/shop", &postgres.url())
        .replace("durability: Pod", &format!("durability: Pod, directory: {}", logs.path().display()));
    ensure!(yaml.contains(&postgres.url()) && yaml.contains("directory"));
    let sidecar = SidecarOptions::redis(redis.socket()).max_staleness(LONG).section(&yaml).start()?;
    let mut app = Client(sidecar.connect()?);
    let mut lines = block("console")?.lines();
    let mut steps = 0;
    while let Some(line) = lines.next() {
        let expected = lines.next().with_context(|| format!("{line} has no answer"))?;
        if let Some(sql) = line.strip_prefix("db> ") {
            eventually(sql, SOON, || {
                let rows = postgres.execute(sql)?;
                ensure!(rows == expected, "{rows}");
                Ok(())
            })?;
        } else {
            let command = line.strip_prefix("> ").with_context(|| format!("{line:?} is no step"))?;
            let answer = app.ask(command)?;
            ensure!(answer == expected, "{command}: {answer}, the page says {expected}");
        }
        steps += 1;
    }
    ensure!(steps > 4, "the example was not found");
    Ok(())
}
