//! What conditional writes promise, each as a short story that ends in a [`Violation`](crate::world::Violation) when the
//! promise is broken: an app that was slow stores nothing over what is newer, and a holder of yesterday nothing at all.
//!
//! `tests/sidecar` plays the stories with the sidecar, `tests/mutations.rs` with sidecars that lack a guard.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use caddy_resp::Value;

use crate::{
    load_scenarios::Loaded,
    world::{Client, LONG, Subject, World, must},
};

/// How stale these sidecars may be: so long the first token of a keyspace is waited for.
const BOUND: Duration = Duration::from_millis(200);
/// The key of a lock's fence record.
pub const RECORD: &str = "caddy:default.local:fence:";

/// Sidecars whose first tokens come soon.
pub fn quick(subject: &Subject, pods: usize) -> Result<World> {
    World::with(subject, pods, |options| options.max_staleness(BOUND).timeout(LONG))
}

/// A field of `CACHE.GET … WITHMETA`.
pub fn meta(client: &mut Client, request: &[&str], field: &str) -> Result<Option<String>> {
    let words = [&["CACHE.GET", request[0], "WITHMETA"], &request[1..]].concat();
    let reply = client.0.request(&words)?;
    let (value, _) = Value::decode(&reply)?;
    ensure!(value.as_error().is_none(), "{words:?} answers {value:?}");
    let field = value.field(field.as_bytes()).with_context(|| format!("{value:?} has no {field}"))?;
    Ok(field.as_bytes().map(|text| String::from_utf8_lossy(text).into_owned()))
}

/// The token to fill a key: what follows the key in the request may name tags and parents.
pub fn token(client: &mut Client, request: &[&str]) -> Result<String> {
    let token = meta(client, request, "token")?;
    token.with_context(|| format!("CACHE.GET {request:?} gave no token"))
}

/// Takes a lock; its token.
pub fn acquire(client: &mut Client, lock: &str) -> Result<String> {
    let reply = client.ask(&format!("LOCK.ACQUIRE {lock}"))?;
    let token = reply.trim_start_matches('[').split(',').next().unwrap_or_default().to_owned();
    ensure!(token.len() == 41, "LOCK.ACQUIRE answers {reply}");
    Ok(token)
}

/// A late fill is refused, and what it would have stored is nowhere.
fn must_be_stale(world: &World, client: &mut Client, set: &str, key: &str, what: &str) -> Result<()> {
    let before = world.foreign(&format!("GET {key}"))?;
    let reply = client.ask(set)?;
    let after = world.foreign(&format!("GET {key}"))?;
    must(
        reply.starts_with("(error) STALE") && after == before,
        format!("a token, then {what}, then {set} answered {reply}, and {key} went from {before} to {after}"),
    )
}

/// An absent key is deleted: that leaves no trace but the lease that is gone.
pub fn a_delete_ends_a_fill(subject: &Subject) -> Result<()> {
    let world = quick(subject, 1)?;
    let (mut app, mut other) = (world.pod().connect()?, world.pod().connect()?);
    let token = token(&mut app, &["k"])?;
    ensure!(other.ask("DEL k")? == "0", "DEL");
    must_be_stale(&world, &mut app, &format!("CACHE.SET k late TOKEN {token}"), "k", "DEL k")
}

/// The same at another pod, which has never given out a token itself.
pub fn a_delete_at_the_other_pod_ends_a_fill(subject: &Subject) -> Result<()> {
    let world = quick(subject, 2)?;
    let (mut app, mut other) = (world.pod().connect()?, world.pods[1].connect()?);
    // It knows what there was a moment ago.
    other.hold("elsewhere", "v").or_else(|_| {
        world.foreign("SET elsewhere v")?;
        other.hold("elsewhere", "v")
    })?;
    let token = token(&mut app, &["k"])?;
    ensure!(other.ask("GET elsewhere")? == "v" && other.ask("DEL k")? == "0", "DEL");
    must_be_stale(&world, &mut app, &format!("CACHE.SET k late TOKEN {token}"), "k", "DEL k at the other pod")
}

/// Somebody else has filled the key under a token of his own, and deleted what he filled.
pub fn a_lease_of_another_ends_a_fill(subject: &Subject) -> Result<()> {
    let world = quick(subject, 1)?;
    let (mut app, mut other) = (world.pod().connect()?, world.pod().connect()?);
    let first = token(&mut app, &["k"])?;
    ensure!(world.foreign("DEL caddy:default.local:lease:k")? == "1", "the lease is evicted");
    let second = token(&mut other, &["k"])?;
    must_be_stale(
        &world,
        &mut app,
        &format!("CACHE.SET k late TOKEN {first}"),
        "k",
        "the lease was evicted and given anew",
    )?;
    ensure!(other.ask(&format!("CACHE.SET k v TOKEN {second}"))? == "OK", "who has the lease fills");
    must_be_stale(&world, &mut app, &format!("CACHE.SET k late TOKEN {first}"), "k", "it was filled by another")?;
    must_be_stale(&world, &mut other, &format!("CACHE.SET k again TOKEN {second}"), "k", "it was used")
}

/// Who knows nothing of leases writes the key.
pub fn a_foreign_write_ends_a_fill(subject: &Subject) -> Result<()> {
    let world = quick(subject, 1)?;
    let mut app = world.pod().connect()?;
    let token = token(&mut app, &["k"])?;
    ensure!(world.foreign("SET k newer")? == "OK", "SET");
    must_be_stale(&world, &mut app, &format!("CACHE.SET k late TOKEN {token}"), "k", "a foreign SET k")
}

/// A tag that the value belongs to is invalidated by a plain DEL.
pub fn an_invalidation_ends_a_fill(subject: &Subject) -> Result<()> {
    let world = quick(subject, 1)?;
    let mut app = world.pod().connect()?;
    let token = token(&mut app, &["k", "TAGS", "1", "news"])?;
    ensure!(world.foreign("DEL caddy:default.local:g:t:news")? == "1", "DEL of the tag");
    must_be_stale(&world, &mut app, &format!("CACHE.SET k late TOKEN {token}"), "k", "the end of its tag")
}

/// A later holder has written the key, and let go.
pub fn an_old_holder_is_fenced(subject: &Subject) -> Result<()> {
    let world = quick(subject, 2)?;
    let (mut old, mut new) = (world.pod().connect()?, world.pods[1].connect()?);
    let first = acquire(&mut old, "l")?;
    ensure!(old.ask(&format!("CACHE.SET k v1 FENCE l {first}"))? == "OK", "the holder writes");
    ensure!(old.ask(&format!("LOCK.RELEASE l {first}"))? == "0", "RELEASE");
    let second = acquire(&mut new, "l")?;
    ensure!(new.ask(&format!("CACHE.SET k v2 FENCE l {second}"))? == "OK", "the next holder writes");
    must_be_fenced(&mut old, "k", &first, "the next holder wrote")?;
    ensure!(new.ask("DEL k")? == "1", "DEL");
    must_be_fenced(&mut old, "k", &first, "it was deleted")?;
    ensure!(new.ask(&format!("CACHE.SET k v3 FENCE l {second}"))? == "OK", "the same holder writes twice");
    let read = new.ask("GET k")?;
    must(read == "v3", format!("k is {read}"))
}

fn must_be_fenced(client: &mut Client, key: &str, token: &str, what: &str) -> Result<()> {
    let reply = client.ask(&format!("CACHE.SET {key} late FENCE l {token}"))?;
    must(reply.starts_with("(error) FENCED"), format!("{what}, then an old holder's CACHE.SET {key} answered {reply}"))
}

/// What the key has seen is evicted: only who holds the lock may write then.
pub fn an_old_holder_is_fenced_without_a_record(subject: &Subject) -> Result<()> {
    let world = quick(subject, 1)?;
    let (mut old, mut new) = (world.pod().connect()?, world.pod().connect()?);
    let first = acquire(&mut old, "l")?;
    ensure!(old.ask(&format!("LOCK.RELEASE l {first}"))? == "0", "RELEASE");
    let second = acquire(&mut new, "l")?;
    ensure!(new.ask(&format!("CACHE.SET k v2 FENCE l {second}"))? == "OK", "the holder writes");
    ensure!(world.foreign(&format!("DEL k {RECORD}k"))? == "2", "both are evicted");
    must_be_fenced(&mut old, "k", &first, "what the key has seen was evicted")?;
    ensure!(new.ask(&format!("CACHE.SET k v3 FENCE l {second}"))? == "OK", "the holder goes on");
    ensure!(world.foreign("FLUSHALL")? == "OK", "FLUSHALL");
    must_be_fenced(&mut old, "k", &first, "FLUSHALL")?;
    must_be_fenced(&mut new, "k", &second, "FLUSHALL, which voids all locks")
}

/// The locks' data is lost, the key's is not: a new epoch, and tokens of the one before are void.
pub fn a_holder_of_another_epoch_is_fenced(subject: &Subject) -> Result<()> {
    let world = quick(subject, 1)?;
    let mut old = world.pod().connect()?;
    let first = acquire(&mut old, "l")?;
    ensure!(old.ask(&format!("CACHE.SET k v1 FENCE l {first}"))? == "OK", "the holder writes");
    ensure!(world.foreign("DEL caddy:{default.local}:locks")? == "1", "the mirror is evicted");
    must_be_fenced(&mut old, "k", &first, "the locks were lost")
}

/// A keyspace is cleared while a value of it is on the way: it may not come back.
pub fn an_invalidation_during_a_load_is_not_undone(subject: &Subject) -> Result<()> {
    let loaded = Loaded::start(subject, 1, ", ttl: 1h, staleIfError: 1h", "")?;
    loaded.origin.set("/user%3A1", "before");
    let (mut reader, mut other) = (loaded.client()?, loaded.client()?);
    loaded.ask_late(&mut reader, "user:1")?;
    loaded.origin.set("/user%3A1", "after");
    let cleared = other.ask("CACHE.INVALIDATE KEYSPACE users")?;
    ensure!(cleared == "1", "CACHE.INVALIDATE KEYSPACE answers {cleared}");
    loaded.origin.release("/user%3A1");
    ensure!(reader.reply()? == "before", "who asked before the invalidation may be answered so");
    ensure!(meta(&mut other, &["user:2"], "token")?.is_none(), "a store fills this keyspace, not an app");
    let read = other.ask("GET user:1")?;
    must(read == "after", format!("the keyspace was cleared, then GET user:1 answered {read}"))
}
