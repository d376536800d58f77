//! Conditional writes: fill tokens, fencing tokens, and what a read tells of a value.

use anyhow::{Result, ensure};
use caddy_tests::{
    e2e::eventually,
    guard_scenarios::{self, RECORD, acquire, meta, quick, token},
    world::{SOON, Subject},
};

macro_rules! scenarios {
    ($($name:ident)*) => {$(
        #[test]
        fn $name() -> Result<()> {
            guard_scenarios::$name(&Subject::good())
        }
    )*};
}

scenarios! {
    a_delete_ends_a_fill
    a_delete_at_the_other_pod_ends_a_fill
    a_lease_of_another_ends_a_fill
    a_foreign_write_ends_a_fill
    an_invalidation_ends_a_fill
    an_old_holder_is_fenced
    an_old_holder_is_fenced_without_a_record
    a_holder_of_another_epoch_is_fenced
    an_invalidation_during_a_load_is_not_undone
}

/// One fills, the others are told to wait; the value carries what the token named.
#[test]
fn a_token_fills_a_key_once() -> Result<()> {
    let world = quick(&Subject::good(), 2)?;
    let (mut one, mut two) = (world.pod().connect()?, world.pods[1].connect()?);
    let permit = token(&mut one, &["page", "TAGS", "2", "news", "sport", "DEPENDS", "1", "item"])?;
    ensure!(meta(&mut two, &["page"], "token")?.is_none(), "somebody has it");
    let reason = meta(&mut two, &["page"], "reason")?.unwrap_or_default();
    ensure!(reason.contains("somebody else"), "{reason}");
    ensure!(one.ask(&format!("CACHE.SET page v PX 60000 STALE 5000 TAGS 1 news TOKEN {permit}"))? == "OK", "it fills");
    ensure!(two.ask("GET page")? == "v", "the other pod reads it");
    let fields = two.ask("CACHE.GET page WITHMETA")?;
    for (field, value) in
        [("value", "v"), ("stale_ms", "5000"), ("tags", "[news, sport]"), ("parents", "[item]"), ("valid", "1")]
    {
        ensure!(fields.contains(&format!("{field}, {value},")), "{field} in {fields}");
    }
    for tier in ["tier, L2", "token, (nil)", "fence, (nil)"] {
        ensure!(fields.contains(tier), "{tier} in {fields}");
    }
    ensure!(two.ask("CACHE.INVALIDATE TAG sport")? == "1" && two.ask("GET page")? == "(nil)", "it belongs to its tags");
    let fields = two.ask("CACHE.GET page WITHMETA")?;
    ensure!(fields.contains("valid, 0") && fields.contains("value, (nil)"), "{fields}");
    Ok(())
}

#[test]
fn every_change_meanwhile_refuses_a_late_fill() -> Result<()> {
    let world = quick(&Subject::good(), 2)?;
    let (mut app, mut other) = (world.pod().connect()?, world.pods[1].connect()?);
    for (change, by) in [
        ("SET k x", 1),
        ("DEL k", 1),
        ("SET k x PX 1", 1),
        ("CACHE.SET k x", 1),
        ("CACHE.INVALIDATE KEY k", 1),
        ("CACHE.INVALIDATE TAG t", 1),
        ("CACHE.INVALIDATE CASCADE p", 1),
        ("CACHE.INVALIDATE KEYSPACE *", 1),
        ("CACHE.INVALIDATE ALL", 1),
        ("CACHE.INVALIDATE PATTERN k*", 1),
        ("EVAL 'return redis.call(\"SET\", KEYS[1], 7)' 1 k", 1),
        ("MULTI;DEL k;EXEC", 1),
        ("FLUSHALL", 1),
        ("FLUSHALL", 2),
        ("DEL caddy:default.local:g:t:t", 2),
        ("DEL caddy:default.local:lease:k", 2),
        ("SET k x", 2),
    ] {
        world.foreign("DEL k caddy:default.local:lease:k")?;
        let permit = token(&mut app, &["k", "TAGS", "1", "t", "DEPENDS", "1", "p"])?;
        for command in change.split(';') {
            let reply = if by == 1 { other.ask(command)? } else { world.foreign(command)? };
            ensure!(!reply.starts_with("(error)"), "{command}: {reply}");
        }
        let before = world.foreign("GET k")?;
        let reply = app.ask(&format!("CACHE.SET k late TOKEN {permit}"))?;
        ensure!(reply.starts_with("(error) STALE"), "behind {change} by {by}: {reply}");
        let after = world.foreign("GET k")?;
        ensure!(after == before || after == "(nil)", "behind {change} by {by}: {before}, then {after}");
    }
    Ok(())
}

/// The sweep leaves nothing of a pattern behind, not even the permission to bring back what it had.
#[test]
fn a_pattern_that_was_swept_has_ended_fills() -> Result<()> {
    let world = quick(&Subject::good(), 1)?;
    let mut app = world.pod().connect()?;
    let (late, other) = (token(&mut app, &["k:1"])?, token(&mut app, &["other"])?);
    let id = app.ask("CACHE.INVALIDATE PATTERN k:*")?;
    ensure!(id.len() == 32, "CACHE.INVALIDATE answers {id}");
    eventually("it is swept", SOON, || {
        ensure!(world.pod().sidecar.metric("caddy_active_patterns")? == 0, "a pattern is in force");
        Ok(())
    })?;
    let reply = app.ask(&format!("CACHE.SET k:1 late TOKEN {late}"))?;
    ensure!(reply.starts_with("(error) STALE"), "behind the pattern: {reply}");
    ensure!(app.ask(&format!("CACHE.SET other v TOKEN {other}"))? == "OK", "others are as before");
    let behind = token(&mut app, &["k:2"])?;
    ensure!(app.ask(&format!("CACHE.SET k:2 v TOKEN {behind}"))? == "OK", "and so are later ones");
    Ok(())
}

/// While a pattern is in force, a fill that began behind it is none of those that it ends.
#[test]
fn a_fill_behind_a_pattern_in_force_stays() -> Result<()> {
    let world = quick(&Subject::good(), 1)?;
    ensure!(world.foreign("SET caddy:default.local:sweeper nobody")? == "OK", "nobody sweeps");
    let mut app = world.pod().connect()?;
    let before = token(&mut app, &["k:1"])?;
    ensure!(app.ask("CACHE.INVALIDATE PATTERN k:*")?.len() == 32, "CACHE.INVALIDATE");
    let behind = token(&mut app, &["k:2"])?;
    let reply = app.ask(&format!("CACHE.SET k:1 late TOKEN {before}"))?;
    ensure!(reply.starts_with("(error) STALE"), "behind the pattern: {reply}");
    let reply = app.ask(&format!("CACHE.SET k:2 v TOKEN {behind}"))?;
    ensure!(reply == "OK" && app.ask("GET k:2")? == "v", "it began behind the pattern: {reply}");
    Ok(())
}

#[test]
fn what_is_no_permission_is_refused_and_told() -> Result<()> {
    let world = quick(&Subject::good(), 1)?;
    let mut app = world.pod().connect()?;
    let permit = token(&mut app, &["k"])?;
    for (command, said) in [
        ("CACHE.SET k v TOKEN nonsense".to_owned(), "ERR TOKEN takes what CACHE.GET"),
        (format!("CACHE.SET other v TOKEN {permit}"), "for this very key"),
        (format!("CACHE.SET k v TAGS 1 new TOKEN {permit}"), "STALE the token does not know what tag 'new' was"),
        (format!("CACHE.SET k v DEPENDS 1 p TOKEN {permit}"), "STALE the token does not know what parent 'p' was"),
        ("CACHE.SET k v FENCE l 7".to_owned(), "ERR FENCE takes a lock and its token"),
        ("CACHE.GET k META".to_owned(), "CACHE.GET takes WITHMETA"),
        ("CACHE.GET k WITHMETA LEASE 0".to_owned(), "LEASE takes milliseconds"),
        ("CACHE.GET k WITHMETA LEASE 3600001".to_owned(), "LIMIT LEASE is at most"),
        ("CACHE.GET k WITHMETA TAGS 1".to_owned(), "TAGS takes how many"),
    ] {
        let reply = app.ask(&command)?;
        ensure!(reply.starts_with("(error)") && reply.contains(said), "{command} answers {reply}");
    }
    // None of that used it up.
    ensure!(app.ask(&format!("CACHE.SET k v XX TOKEN {permit}"))? == "(nil)", "XX of an absent key");
    ensure!(app.ask(&format!("CACHE.SET k v NX TOKEN {permit}"))? == "OK", "it is good still");
    ensure!(world.foreign("LPUSH list x")? == "1", "LPUSH");
    let reply = app.ask("CACHE.GET list WITHMETA")?;
    ensure!(reply.starts_with("(error) WRONGTYPE"), "a list: {reply}");
    Ok(())
}

/// A stale value is offered beside the permission to replace it.
#[test]
fn a_stale_value_is_told_apart_and_replaced() -> Result<()> {
    let world = quick(&Subject::good(), 1)?;
    let mut app = world.pod().connect()?;
    ensure!(app.ask("CACHE.SET k old PX 20 STALE 60000")? == "OK", "SET");
    let (permit, _) = eventually("it is stale", SOON, || token(&mut app, &["k"]))?;
    ensure!(meta(&mut app, &["k"], "stale_value")?.as_deref() == Some("old"), "the old value");
    ensure!(app.ask(&format!("CACHE.SET k new TOKEN {permit}"))? == "OK", "it is replaced");
    ensure!(app.ask("GET k")? == "new", "GET");
    Ok(())
}

#[test]
fn a_fence_is_told_and_greater_ones_pass() -> Result<()> {
    let world = quick(&Subject::good(), 1)?;
    let (mut app, mut other) = (world.pod().connect()?, world.pod().connect()?);
    let first = acquire(&mut app, "l")?;
    ensure!(app.ask(&format!("CACHE.SET k v TAGS 1 t FENCE l {first}"))? == "OK", "SET");
    ensure!(meta(&mut app, &["k"], "fence")?.as_deref() == Some(&first), "the fence is told");
    ensure!(app.ask("GET k")? == "v", "it is an ordinary value");
    ensure!(meta(&mut app, &["k"], "fence")?.as_deref() == Some(&first), "also of a copy");
    let record = world.foreign(&format!("GET {RECORD}k"))?;
    ensure!(record.ends_with(&first), "the record {record}");
    ensure!(app.ask(&format!("LOCK.RELEASE l {first}"))? == "0", "RELEASE");
    let second = acquire(&mut other, "l")?;
    let permit = token(&mut other, &["n"])?;
    ensure!(other.ask(&format!("CACHE.SET n v TOKEN {permit} FENCE l {second}"))? == "OK", "both at once");
    let reply = app.ask(&format!("CACHE.SET n late FENCE l {first}"))?;
    ensure!(reply.starts_with("(error) FENCED") && reply.contains(&second), "{reply}");
    // Two keys of one lock are two records.
    ensure!(app.ask(&format!("CACHE.SET k again FENCE l {first}"))? == "OK", "k has seen nothing greater");
    Ok(())
}
