//! The examples of `docs/invalidation.md`, as they are printed there.

use anyhow::{Context, Result, ensure};
use caddy_tests::{redis::RedisServer, sidecar::SidecarOptions, world::LONG};

use crate::session;

const DOC: &str = include_str!("../../../docs/invalidation.md");

/// The fenced block of a language that an example has, if it has one.
fn block<'a>(example: &'a str, language: &str) -> Option<&'a str> {
    example.split_once(&format!("```{language}\n"))?.1.split_once("```").map(|(block, _)| block)
}

/// An id that is another one each time.
fn is_id(text: &str) -> bool {
    text.len() == 32 && text.bytes().all(|byte| byte.is_ascii_hexdigit())
}

#[test]
fn the_examples_of_the_page_are_answered_as_it_says() -> Result<()> {
    let mut names = Vec::new();
    for example in DOC.split("<!-- example: ").skip(1) {
        let (name, example) = example.split_once(" -->").context("a mark without an end")?;
        let redis = RedisServer::start()?;
        let options = SidecarOptions::redis(redis.socket()).max_staleness(LONG);
        // A block of the next heading belongs to something else.
        let example = example.split("\n#").next().unwrap_or_default();
        let rules = block(example, "yaml");
        let sidecar = rules.into_iter().fold(options, SidecarOptions::section).start()?;
        let mut client = session(&sidecar)?;
        let mut lines = block(example, "console").with_context(|| format!("{name} has no console"))?.lines();
        while let Some(line) = lines.next() {
            let command = line.strip_prefix("> ").with_context(|| format!("{name}: {line:?} is no command"))?;
            let expected = lines.next().with_context(|| format!("{command} has no answer"))?;
            let answer = client.ask(command)?;
            let is_alike = answer == expected || is_id(expected) && is_id(&answer);
            ensure!(is_alike, "{name}, {command}: {answer}, and the page says {expected}");
        }
        names.push(name);
    }
    ensure!(names == ["tags", "cascade", "parents", "rules", "pattern"], "{names:?}");
    Ok(())
}
