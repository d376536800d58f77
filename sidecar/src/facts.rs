//! What a running server can be asked of all that the promises rest on: how it evicts, how many keys it remembers the
//! readers of, and whether our user may do what no server announces.
//!
//! Each fact is told in the log when it is first known and when it changes, as a warning with what to do if it endangers
//! something, by `INFO`, and by a metric for alerts. A server that does not answer (its ACL may forbid the question)
//! leaves a fact `unknown`, which is no reason to refuse anything.

use std::sync::{
    Arc,
    atomic::{AtomicBool, Ordering},
};

use arc_swap::ArcSwap;
use caddy_resp::Value;

/// A table for fewer keys is soon full of what several sidecars read; the servers' own default is a million.
const SMALL_TABLE: u64 = 100_000;
const UNLIMITED: &str = "unlimited";
const ALLOWED: &str = "allowed";
const DENIED: &str = "denied";

/// See the module. Each is empty while it is not known.
#[derive(Debug, Default)]
pub(crate) struct Facts {
    /// `maxmemory-policy`, `none` without a `maxmemory`.
    eviction: ArcSwap<String>,
    /// `tracking-table-max-keys`, or `unlimited`.
    tracking_table: ArcSwap<String>,
    /// Whether the user may SWAPDB: `allowed` or `denied`.
    swapdb: ArcSwap<String>,
    /// The user may not even ask who it is: it is not asked again, since servers log what they refuse.
    is_silent: AtomicBool,
}

/// Whether a fact is as the promises want it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Standing {
    /// The server said so.
    Confirmed,
    /// The server said that it is not: the log says what that endangers.
    Endangers,
    /// The server did not say, or not yet.
    Unknown,
}

impl Standing {
    pub(crate) const ALL: [Self; 3] = [Self::Confirmed, Self::Endangers, Self::Unknown];

    /// In the label `state`.
    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::Confirmed => "confirmed",
            Self::Endangers => "endangers",
            Self::Unknown => "unknown",
        }
    }

    fn of(told: &str, is_wanted: impl FnOnce(&str) -> bool) -> Self {
        match told {
            "" => Self::Unknown,
            told if is_wanted(told) => Self::Confirmed,
            _ => Self::Endangers,
        }
    }
}

impl Facts {
    /// How each fact stands, by the name that `INFO` has for it.
    pub(crate) fn standings(&self) -> [(&'static str, Standing); 3] {
        [
            ("eviction", Standing::of(&self.eviction.load(), keeps_keys)),
            ("tracking_table", Standing::of(&self.tracking_table.load(), is_large)),
            ("swapdb", Standing::of(&self.swapdb.load(), |told| told == DENIED)),
        ]
    }

    /// Whether it may evict any key, as far as is known.
    pub(crate) fn evicts_any(&self) -> bool {
        self.eviction.load().starts_with("allkeys")
    }

    /// What the server does when its memory is full.
    pub(crate) fn eviction(&self) -> String {
        told(&self.eviction)
    }

    /// Of how many keys it remembers who has read them.
    pub(crate) fn tracking_table(&self) -> String {
        told(&self.tracking_table)
    }

    /// Whether our user may SWAPDB.
    pub(crate) fn swapdb(&self) -> String {
        told(&self.swapdb)
    }

    /// Whether to ask what our user may do.
    pub(crate) fn may_ask(&self) -> bool {
        !self.is_silent.load(Ordering::Relaxed)
    }

    /// A reply to `ACL WHOAMI`.
    pub(crate) fn user_is(&self, reply: &[u8]) {
        if reply.starts_with(b"-NOPERM") {
            self.is_silent.store(true, Ordering::Relaxed);
            tracing::info!(
                "the Redis user of this sidecar may not ask what it may do; with +acl|whoami and +acl|dryrun it is warned \
                 if it may SWAPDB"
            );
        }
    }

    /// A reply to `INFO memory`: what depends on keys that stay is warned of a server that evicts.
    pub(crate) fn memory_is(&self, info: &[u8]) {
        let Some(policy) = eviction(info).filter(|policy| is_news(&self.eviction, policy)) else { return };
        if keeps_keys(policy) {
            tracing::info!(policy, "the server keeps its keys");
        } else {
            tracing::warn!(
                policy,
                "the server evicts keys when its memory is full (maxmemory-policy): copies follow, but locks may be \
                 lost before their lease is over; use noeviction where that matters"
            );
        }
    }

    /// A reply to `CONFIG GET tracking-table-max-keys`: beyond it the server forgets readers, and tells them that their
    /// keys were written.
    pub(crate) fn tracking_table_is(&self, reply: &[u8]) {
        let Some(most) = table_limit(reply) else { return };
        let shown = if most == 0 { UNLIMITED.to_owned() } else { most.to_string() };
        if is_news(&self.tracking_table, &shown) && !is_large(&shown) {
            tracing::warn!(
                most,
                "the server remembers the readers of few keys (tracking-table-max-keys): copies of others die early; \
                 set it to as many keys as all sidecars together hold, or 0"
            );
        }
    }

    /// A reply to `ACL DRYRUN … SWAPDB`. In a cluster nobody can.
    pub(crate) fn swapdb_is(&self, reply: &[u8], is_cluster: bool) {
        let Some(allowed) = may_swap(reply) else { return };
        let allowed = allowed && !is_cluster;
        if is_news(&self.swapdb, if allowed { ALLOWED } else { DENIED }) && allowed {
            tracing::warn!(
                "the Redis user of this sidecar may SWAPDB, which no server announces: called by a script, or past the \
                 sidecars, it leaves old copies; take it away from it and from the apps' users: ACL SETUSER <user> -swapdb"
            );
        }
    }
}

/// Whether a server of this policy evicts nothing.
fn keeps_keys(policy: &str) -> bool {
    matches!(policy, "none" | "noeviction")
}

/// Whether a table for so many keys is one for the readers of several sidecars.
fn is_large(most: &str) -> bool {
    most == UNLIMITED || most.parse().is_ok_and(|most: u64| most >= SMALL_TABLE)
}

fn told(fact: &ArcSwap<String>) -> String {
    let known = fact.load();
    if known.is_empty() { "unknown".to_owned() } else { known.to_string() }
}

/// Notes what was told, if that is new.
fn is_news(fact: &ArcSwap<String>, told: &str) -> bool {
    let is_new = **fact.load() != told;
    if is_new {
        fact.store(Arc::new(told.to_owned()));
    }
    is_new
}

/// The policy in a reply to `INFO memory`; `None` if it is refused or says nothing of it.
fn eviction(info: &[u8]) -> Option<&str> {
    let text = std::str::from_utf8(info).ok()?;
    let field = |name: &str| text.lines().find_map(|line| line.trim_end().strip_prefix(name));
    if field("maxmemory:")? == "0" { Some("none") } else { field("maxmemory_policy:") }
}

fn table_limit(reply: &[u8]) -> Option<u64> {
    let (value, _) = Value::decode(reply).ok()?;
    std::str::from_utf8(value.field(b"tracking-table-max-keys")?.as_bytes()?).ok()?.parse().ok()
}

/// `None`: we may not ask, or the server cannot be asked.
fn may_swap(reply: &[u8]) -> Option<bool> {
    match Value::decode(reply).ok()?.0 {
        Value::Simple(b"OK") => Some(true),
        // In words: "User … has no permissions to run the 'swapdb' command".
        Value::Bulk(_) | Value::Simple(_) | Value::Verbatim { .. } => Some(false),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn how_a_server_evicts_is_read_from_info() {
        let info =
            |max: &str| format!("=60\r\ntxt:# Memory\r\nmaxmemory:{max}\r\nmaxmemory_policy:allkeys-lru\r\n\r\n");
        assert_eq!(eviction(info("100").as_bytes()), Some("allkeys-lru"));
        assert_eq!(eviction(info("0").as_bytes()), Some("none"));
        assert_eq!(eviction(b"-NOPERM no\r\n"), None);
        let facts = Facts::default();
        assert_eq!(facts.eviction(), "unknown");
        facts.memory_is(info("100").as_bytes());
        facts.memory_is(b"-NOPERM no\r\n");
        assert_eq!(facts.eviction(), "allkeys-lru");
    }

    #[test]
    fn what_is_refused_or_not_understood_stays_unknown() {
        let facts = Facts::default();
        for reply in [&b"-NOPERM no\r\n"[..], b"*0\r\n", b"_\r\n", b"%1\r\n$5\r\nother\r\n$1\r\n1\r\n"] {
            facts.tracking_table_is(reply);
            facts.swapdb_is(reply, false);
        }
        assert_eq!((facts.tracking_table(), facts.swapdb()), ("unknown".to_owned(), "unknown".to_owned()));
        facts.tracking_table_is(b"%1\r\n$23\r\ntracking-table-max-keys\r\n$1\r\n0\r\n");
        facts.swapdb_is(b"+OK\r\n", true);
        assert_eq!((facts.tracking_table(), facts.swapdb()), ("unlimited".to_owned(), "denied".to_owned()));
        facts.swapdb_is(b"+OK\r\n", false);
        assert_eq!(facts.swapdb(), "allowed");
        facts.swapdb_is(b"$12\r\nno, not this\r\n", false);
        assert_eq!(facts.swapdb(), "denied");
    }

    #[test]
    fn what_was_not_told_is_not_taken_for_confirmed() {
        let facts = Facts::default();
        let standings = || facts.standings().map(|(_, standing)| standing);
        assert_eq!(standings(), [Standing::Unknown; 3]);
        facts.memory_is(b"maxmemory:9\r\nmaxmemory_policy:volatile-ttl\r\n");
        facts.tracking_table_is(b"%1\r\n$23\r\ntracking-table-max-keys\r\n$5\r\n99999\r\n");
        facts.swapdb_is(b"+OK\r\n", false);
        assert_eq!(standings(), [Standing::Endangers; 3]);
        facts.memory_is(b"maxmemory:9\r\nmaxmemory_policy:noeviction\r\n");
        facts.tracking_table_is(b"%1\r\n$23\r\ntracking-table-max-keys\r\n$6\r\n100000\r\n");
        facts.swapdb_is(b"+OK\r\n", true);
        assert_eq!(standings(), [Standing::Confirmed; 3]);
    }
}
