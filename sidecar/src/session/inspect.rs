//! `CACHE.*`: what the cache knows, for people. Works also while Redis is away.

use std::time::Duration;

use caddy_engine::{Currency, Verdict, Why};
use caddy_resp::encode;

use super::{args::Args, conversation::Conversation};
use crate::{
    cache::{KeyRef, Read},
    shared::L3,
};

impl Conversation {
    pub(super) fn cache_command(&mut self, name: &str, args: Args<'_>) {
        match name {
            "cache.why" => self.why(args.get(1)),
            "cache.stats" => self.stats(),
            _ => {
                self.reply_error(&format!(
                    "ERR unknown command '{}'; CACHE.WHY and CACHE.STATS are known",
                    args.name()
                ));
            }
        }
    }

    /// `CACHE.WHY key`: whether a GET of the key would be answered here, from which tier, and why or why not.
    fn why(&mut self, key: &[u8]) {
        let shared = self.worker.shared.clone();
        let name = KeyRef { database: self.client.database, read: Read::Get, name: key };
        let why = self.worker.tiers.borrow().why(name.tier_hash(), &name, shared.now());
        let status = shared.status.get();
        let mut fields: Vec<(&str, Field)> = Vec::new();
        match &why {
            Some(why) => describe(why, &mut fields),
            None if !shared.keyspaces().may_cache(&[key]) => {
                fields.push(("served", "no".into()));
                fields.push(("reason", "a keyspace rule says cache: Off".into()));
            }
            None => {
                fields.push(("served", "no".into()));
                fields.push(("reason", "there is no copy; the next GET reads L3".into()));
            }
        }
        let coherence = match (&shared.l3, status.coherent) {
            (L3::Embedded(_), _) => "embedded L3, always current".to_owned(),
            (_, true) => "tracked".to_owned(),
            (_, false) => format!("nothing is cached: {}", status.reason),
        };
        fields.push(("coherence", coherence.into()));
        self.reply_fields(fields);
    }

    /// `CACHE.STATS`: the engine's counters and sizes.
    fn stats(&mut self) {
        let stats = self.worker.shared.cache.stats();
        let (l1_entries, l1_bytes) = self.worker.tiers.borrow().l1_sizes();
        let mut fields: Vec<(&str, Field)> = vec![
            ("l1_entries", l1_entries.into()),
            ("l1_bytes", l1_bytes.into()),
            ("l2_entries", stats.l2_entries.into()),
            ("l2_bytes", stats.l2_bytes.into()),
        ];
        fields.extend(stats.iter().map(|(counter, count)| (counter.name(), Field::Number(count.cast_signed()))));
        self.reply_fields(fields);
    }

    fn reply_fields(&mut self, fields: Vec<(&str, Field)>) {
        let protocol = self.client.protocol;
        self.reply(|out| {
            encode::map_header(out, protocol, fields.len());
            for (name, field) in fields {
                encode::bulk(out, name.as_bytes());
                field.encode(out);
            }
        });
    }
}

enum Field {
    Text(String),
    Number(i64),
}

impl Field {
    fn encode(&self, out: &mut Vec<u8>) {
        match self {
            Self::Text(text) => encode::bulk(out, text.as_bytes()),
            Self::Number(number) => encode::integer(out, *number),
        }
    }
}

impl From<&str> for Field {
    fn from(text: &str) -> Self {
        Self::Text(text.to_owned())
    }
}

impl From<String> for Field {
    fn from(text: String) -> Self {
        Self::Text(text)
    }
}

impl From<usize> for Field {
    fn from(number: usize) -> Self {
        Self::Number(i64::try_from(number).unwrap_or(i64::MAX))
    }
}

fn describe(why: &Why, fields: &mut Vec<(&str, Field)>) {
    let (served, reason) = match why.verdict {
        Verdict::Valid(Currency::DueForProbe) => ("yes", "current; the next read also sends a probe"),
        Verdict::Valid(_) => ("yes", "current"),
        Verdict::Lapsed => ("no", "nothing proves it current within consistency.maxStaleness; the next read asks L3"),
        Verdict::Flushed => ("no", "the connection that kept it current was lost since"),
        Verdict::Invalidated => ("no", "it was written or invalidated since"),
        Verdict::Expired => ("no", "it expired"),
    };
    fields.push(("served", served.into()));
    fields.push(("reason", reason.into()));
    fields.push(("tier", if why.in_l1 { "L1" } else { "L2" }.into()));
    fields.push(("age_ms", millis(why.age).into()));
    fields.push(("ttl_ms", why.remaining.map_or(Field::Number(-1), |ttl| millis(ttl).into())));
    fields.push(("bytes", why.bytes.into()));
    let evidence = &why.evidence;
    fields.push(("stamp", format!("{} at fill, {} now", evidence.stamp.0, evidence.stamp.1).into()));
    fields.push(("flushes", format!("{} at fill, {} now", evidence.flushes.0, evidence.flushes.1).into()));
    let bound = millis(evidence.max_staleness);
    let proven = match evidence.proven_ago {
        Some(ago) => format!("{} ms ago, bound {bound} ms", millis(ago)),
        None => format!("never, bound {bound} ms"),
    };
    fields.push(("proven", proven.into()));
}

fn millis(time: Duration) -> usize {
    usize::try_from(time.as_millis()).unwrap_or(usize::MAX)
}
