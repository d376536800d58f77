//! The worked examples of `docs/strategies.md` that write behind, as they are printed there.

use anyhow::{Context, Result, bail, ensure};
use caddy_tests::{
    e2e::eventually,
    postgres::PostgresServer,
    redis::{self, RedisServer},
    sidecar::{Sidecar, SidecarOptions},
    world::{Client, LONG, SOON},
};

const DOC: &str = include_str!("../../../docs/strategies.md");

/// The first fenced block of a language behind the mark of an example.
fn block(example: &str, language: &str) -> Result<&'static str> {
    let mark = format!("<!-- example: {example} -->");
    let (_, rest) = DOC.split_once(&mark).with_context(|| format!("no {mark}"))?;
    let (_, rest) = rest.split_once(&format!("```{language}\n")).with_context(|| format!("no {language}"))?;
    Ok(rest.split_once("```").context("the block has no end")?.0)
}

/// One or two pods, of which the first is talked to until it is gone.
struct Stage<'a> {
    redis: &'a RedisServer,
    postgres: PostgresServer,
    pods: Vec<Sidecar>,
}

impl<'a> Stage<'a> {
    fn open(redis: &'a RedisServer, yaml: &str, pods: usize) -> Result<Self> {
        let postgres = PostgresServer::start()?;
        // The table is that of the first example.
        postgres.execute(block("write-behind", "sql")?)?;
        let section = yaml.replace("postgresql://cache@db.shop:5432/shop", &postgres.url());
        ensure!(section.contains(&postgres.url()), "{section}");
        let start = |_| SidecarOptions::redis(redis.socket()).max_staleness(LONG).section(&section).start();
        Ok(Self { redis, postgres, pods: (0..pods).map(start).collect::<Result<_>>()? })
    }

    fn direct(&mut self, direction: &str) -> Result<()> {
        match direction {
            "the database is down" => self.postgres.stop(),
            "Redis loses what it has" => self.redis.command(&["FLUSHALL"]).map(drop),
            "the database is up" => self.postgres.restart(),
            "the node dies, and the pod with it" => self.pods.remove(0).kill(),
            other => bail!("nobody knows how to play {other:?}"),
        }
    }

    fn play(&mut self, example: &str) -> Result<()> {
        let (mut lines, mut steps, mut app) = (block(example, "console")?.lines(), 0, None);
        while let Some(line) = lines.next() {
            if let Some(direction) = line.strip_prefix("# ") {
                self.direct(direction)?;
                app = None;
                continue;
            }
            let expected = lines.next().with_context(|| format!("{line} has no answer"))?;
            if let Some(sql) = line.strip_prefix("db> ") {
                eventually(sql, SOON, || {
                    let rows = self.postgres.execute(sql)?;
                    ensure!(rows == expected, "{rows}");
                    Ok(())
                })?;
            } else {
                let command = line.strip_prefix("> ").with_context(|| format!("{line:?} is no step"))?;
                let app = app.get_or_insert(Client(self.pods.first().context("no pod is left")?.connect()?));
                let answer = app.ask(command)?;
                ensure!(answer == expected, "{command}: {answer}, the page says {expected}");
            }
            steps += 1;
        }
        ensure!(steps > 3, "the example was not found");
        Ok(())
    }
}

#[test]
fn write_behind_into_postgresql() -> Result<()> {
    let (redis, logs) = (RedisServer::start()?, tempfile::tempdir()?);
    let yaml = block("write-behind", "yaml")?
        .replace("durability: Pod", &format!("durability: Pod, directory: {}", logs.path().display()));
    ensure!(yaml.contains("directory"));
    Stage::open(&redis, &yaml, 1)?.play("write-behind")
}

#[test]
fn writes_that_outlive_their_node() -> Result<()> {
    let (redis, _replica) = RedisServer::start_pair(&redis::program()?)?;
    // Half a minute is not waited for.
    let yaml = block("replicated", "yaml")?.replace("adoptAfter: 30s", "adoptAfter: 1s");
    ensure!(yaml.contains("adoptAfter: 1s"));
    Stage::open(&redis, &yaml, 2)?.play("replicated")
}
