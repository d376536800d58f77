//! What groups of values promise, each as a short story that ends in a [`Violation`](crate::world::Violation) when the promise
//! is broken.
//!
//! `tests/coherence` runs the stories on the sidecar, `tests/mutations.rs` on sidecars that lack a guard.

use anyhow::{Result, ensure};

use crate::{
    proxy::Class,
    world::{LONG, Subject, World, must},
};

/// Keys whose values have tags by rule, and keys that others depend on.
const RULES: &str = "keyspaces: [{name: users, match: \"user:*:*\", tags: [\"user:{1}\"]}, \
                     {name: items, match: \"item:*\", parents: true}]";
/// The generation of the tag `t`.
const TAG: &str = "caddy:default.local:g:t:t";

fn world(subject: &Subject) -> Result<World> {
    World::with(subject, 1, |options| options.max_staleness(LONG).timeout(LONG).workers(2).section(RULES))
}

/// A tag is invalidated, and no session of the sidecar is served a copy that carries it.
pub fn an_invalidated_tag_kills_its_copies(subject: &Subject) -> Result<()> {
    let world = world(subject)?;
    let (mut client, mut other) = (world.pod().connect()?, world.pod().connect()?);
    ensure!(client.ask("CACHE.SET k v0 TAGS 1 t")? == "OK", "CACHE.SET");
    client.hold("k", "v0")?;
    other.hold("k", "v0")?;
    ensure!(client.ask("CACHE.INVALIDATE TAG t")? == "1", "CACHE.INVALIDATE");
    let read = [client.ask("GET k")?, other.ask("GET k")?];
    must(read == ["(nil)", "(nil)"], format!("the tag of k was invalidated, then GET k answered {read:?}"))
}

/// A key that others depend on is written, by itself and within a transaction.
pub fn a_write_of_a_parent_kills_what_depends_on_it(subject: &Subject) -> Result<()> {
    let world = world(subject)?;
    let mut client = world.pod().connect()?;
    for write in [&["SET item:1 v1"][..], &["APPEND item:1 x"], &["MULTI", "INCR other", "SET item:1 v2", "EXEC"]] {
        ensure!(client.ask("CACHE.SET list v0 DEPENDS 1 item:1")? == "OK", "CACHE.SET");
        client.hold("list", "v0")?;
        let answers = client.pipeline(write)?;
        ensure!(answers.iter().all(|answer| !answer.starts_with("(error)")), "{write:?}: {answers:?}");
        let read = client.ask("GET list")?;
        must(read == "(nil)", format!("what list depends on was written by {write:?}, then GET list answered {read}"))?;
    }
    Ok(())
}

/// What a plain write of a keyspace with tags stores carries them.
pub fn a_plain_write_carries_the_tags_of_its_rule(subject: &Subject) -> Result<()> {
    let world = world(subject)?;
    let mut client = world.pod().connect()?;
    ensure!(client.ask("SET user:7:name v0")? == "OK", "SET");
    client.hold("user:7:name", "v0")?;
    let removed = client.ask("CACHE.INVALIDATE TAG user:7")?;
    let read = client.ask("GET user:7:name")?;
    must(read == "(nil)", format!("tag user:7 was invalidated ({removed}), then GET user:7:name answered {read}"))
}

/// A value that is kept as an envelope is not changed as if its bytes were the value.
pub fn an_envelope_is_not_written_into(subject: &Subject) -> Result<()> {
    let world = world(subject)?;
    let mut client = world.pod().connect()?;
    ensure!(client.ask("CACHE.SET k v0 TAGS 1 t")? == "OK", "CACHE.SET");
    let answer = client.ask("APPEND k 1")?;
    let read = client.ask("GET k")?;
    must(
        answer.starts_with("(error) WRONGTYPE") && read == "v0",
        format!("APPEND on a value with a tag answered {answer}, and GET {read}"),
    )
}

/// A failover loses an invalidation that was acknowledged: it is repeated before anything is served.
pub fn a_failover_does_not_bring_a_group_back(subject: &Subject) -> Result<()> {
    let world = world(subject)?;
    let mut client = world.pod().connect()?;
    ensure!(client.ask("CACHE.SET k v0 TAGS 1 t")? == "OK", "CACHE.SET");
    client.hold("k", "v0")?;
    ensure!(world.foreign(&format!("COPY {TAG} saved"))? == "1", "COPY");
    ensure!(client.ask("CACHE.INVALIDATE TAG t")? == "1", "CACHE.INVALIDATE");
    ensure!(client.ask("GET k")? == "(nil)", "GET");
    let proxy = &world.pod().proxy;
    let before = proxy.accepted(Class::Tracked);
    proxy.refuse(Class::Tracked);
    proxy.cut(Class::Tracked);
    ensure!(world.foreign(&format!("RENAME saved {TAG}"))? == "OK", "RENAME");
    proxy.accept_again(Class::Tracked);
    proxy.wait_for_connection(Class::Tracked, before)?;
    world.pod().wait_until_coherent()?;
    let read = client.ask("GET k")?;
    must(read == "(nil)", format!("a failover lost the invalidation of k's tag, then GET k answered {read}"))
}
