//! `CACHE.*`: what the cache knows, for people. Works also while Redis is away.

use std::{sync::Arc, time::Duration};

use caddy_engine::{Currency, Moment, Verdict, Weigh as _, Why};
use caddy_remote::ranges::Access;
use caddy_resp::encode;

use super::{args::Args, conversation::Conversation};
use crate::{
    behind::Behind,
    cache::{KeyRef, Read},
    ranges::ActiveRange,
    shared::{L3, MEMORIES},
    tally::Count,
};

impl Conversation {
    pub(super) fn cache_command(&mut self, name: &str, args: Args<'_>) {
        match name {
            "cache.why" => self.why(args.get(1)),
            "cache.deadletters" => self.dead_letters(args),
            "cache.hot" => self.hot(args),
            "cache.stats" => match args.len() {
                1 => self.stats(),
                2 => self.keyspace_stats(args.get(1)),
                _ => self.reply_error("ERR wrong number of arguments for 'cache.stats' command"),
            },
            _ => {
                self.reply_error(&format!(
                    "ERR unknown command '{}'; CACHE.WHY, CACHE.STATS and CACHE.HOT are known",
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
        let keyspaces = shared.keyspaces();
        let rule = keyspaces.rule(key);
        let has_it =
            |range: &Arc<ActiveRange>| range.has(self.client.database, key) && !range.is_cleared(key, Access::Read);
        let withheld = match (rule.caches(), rule.observes()) {
            _ if shared.ranges.active().iter().any(has_it) => {
                Some("an invalidation by pattern has it: the next GET finds nothing, or what was written since")
            }
            (false, _) => Some("a keyspace rule says cache: Off"),
            (true, true) => Some("a keyspace rule says mode: Observe: L3 answers, copies are only counted"),
            (true, false) => None,
        };
        match (withheld, &why) {
            (Some(reason), _) => fields.extend([("served", "no".into()), ("reason", reason.into())]),
            (None, Some(why)) => fields.extend(verdict(why)),
            (None, None) => {
                let reason = match shared.oversize.bytes(name.tier_hash()) {
                    Some(bytes) => format!(
                        "too large to be kept when it was last read, with {bytes} bytes: limits.maxValueBytes is {}, \
                         l2.maxBytes {}; each GET reads L3",
                        shared.config().limits.max_value_bytes.as_usize(),
                        shared.cache.l2_max_bytes()
                    ),
                    None => "there is no copy; the next GET reads L3".to_owned(),
                };
                fields.extend([("served", "no".into()), ("reason", reason.into())]);
            }
        }
        if let Some(why) = &why {
            describe(why, &mut fields);
            let generations = self.generations_of(&name);
            if !generations.is_empty() {
                fields.push(("generations", generations.into()));
            }
        }
        fields.push(("keyspace", shared.names.all().swap_remove(rule.id.index()).into()));
        let coherence = match (&shared.l3, status.coherent) {
            (L3::Embedded(_), _) => "embedded L3, always current".to_owned(),
            (L3::Redis(redis), true) => redis.coherence().to_owned(),
            (_, false) => format!("nothing is cached: {}", status.reason),
        };
        fields.push(("coherence", coherence.into()));
        self.reply_fields(fields);
    }

    /// What the copy in L2 depends on, and whether each of it is in force.
    fn generations_of(&self, name: &KeyRef<'_>) -> String {
        let shared = &self.worker.shared;
        let Some(entry) = shared.cache.peek(name.tier_hash(), name) else { return String::new() };
        let each = entry.value().dependencies().iter().map(|dependency| {
            let key = dependency.cell().name();
            let state = match dependency.verdict(shared.kernel(), shared.now()) {
                Verdict::Valid(_) => "in force",
                Verdict::Lapsed | Verdict::Flushed => "not proved",
                Verdict::Invalidated | Verdict::Expired => "renewed",
            };
            format!("{} {state}", shared.domain.name(key).unwrap_or(key).escape_ascii())
        });
        each.collect::<Vec<_>>().join(", ")
    }

    /// `CACHE.STATS`: the engine's counters and sizes.
    fn stats(&mut self) {
        let stats = self.worker.shared.cache.stats();
        let duties = self.worker.shared.coordination.duties();
        let (l1_entries, l1_bytes) = self.worker.tiers.borrow().l1_sizes();
        let mut fields: Vec<(&str, Field)> = vec![
            ("l1_entries", l1_entries.into()),
            ("l1_bytes", l1_bytes.into()),
            ("l2_entries", stats.l2_entries.into()),
            ("l2_bytes", stats.l2_bytes.into()),
        ];
        fields.push(("active_patterns", self.worker.shared.ranges.active().len().into()));
        fields.push(("duties_held", Field::Number(i64::from(duties.is_holder()))));
        fields.push(("duties_holder", duties.holder().unwrap_or_default().into()));
        fields.push(("duties_trouble", duties.trouble().unwrap_or_default().into()));
        fields.extend(stats.iter().map(|(counter, count)| (counter.name(), Field::Number(count.cast_signed()))));
        self.reply_fields(fields);
    }

    /// `CACHE.STATS keyspace`: what its reads came to, and what its copies take.
    fn keyspace_stats(&mut self, name: &[u8]) {
        let shared = self.worker.shared.clone();
        let all = shared.keyspace_stats();
        let Some(stats) = all.iter().find(|stats| stats.name.as_bytes() == name) else {
            let known: Vec<&str> = all.iter().map(|stats| stats.name.as_str()).collect();
            return self.reply_error(&format!(
                "ERR no keyspace is named '{}'; there are {} (* is what no rule matches)",
                String::from_utf8_lossy(&name[..name.len().min(64)]),
                known.join(", "),
            ));
        };
        let number = |count: u64| Field::Number(count.cast_signed());
        let mut fields: Vec<(&str, Field)> = vec![("keyspace", stats.name.clone().into())];
        fields.extend(Count::ALL.iter().map(|&count| (count.name(), number(stats.counts.get(count)))));
        let saved = stats.counts.get(Count::PackedFrom).saturating_sub(stats.counts.get(Count::PackedTo));
        fields.push(("compression_ratio", format!("{:.2}", stats.counts.compression_ratio()).into()));
        fields.push(("compression_saved_bytes", number(saved)));
        fields.extend([("l2_entries", stats.size.entries.into()), ("l2_bytes", stats.size.bytes.into())]);
        if let Some(behind) = self.worker.shared.behinds.get(&stats.name) {
            fields.extend(waiting(&behind, self.worker.shared.now()));
        }
        if let Some(filter) =
            shared.keyspaces().filters().iter().find(|filter| shared.names.id(&stats.name) == filter.keyspace)
        {
            let filter = filter.stats(&shared);
            let state = if filter.is_active { "active".to_owned() } else { format!("off: {}", filter.trouble) };
            fields.extend([
                ("filter", state.into()),
                ("filter_keys", filter.keys.into()),
                ("filter_bytes", filter.bytes.into()),
                ("filter_builds", number(filter.builds)),
            ]);
        }
        let samples = stats.with_memory.iter().flatten().map(|estimate| estimate.samples).next().unwrap_or(0);
        for ((memory, _), estimate) in MEMORIES.iter().zip(stats.with_memory) {
            let ratio = estimate.map_or_else(|| "unknown".to_owned(), |known| format!("{:.4}", known.hit_ratio));
            fields.push((memory, ratio.into()));
        }
        fields.push(("sampled_reads", number(samples)));
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

/// What waits for the store of a keyspace that writes behind.
fn waiting(behind: &Behind, now: Moment) -> Vec<(&'static str, Field)> {
    let stats = behind.stats();
    let backlog = stats.backlog;
    let number = |count: u64| Field::Number(count.cast_signed());
    let age = backlog.oldest.map_or(Duration::ZERO, |oldest| now.since(oldest));
    let lost = if behind.is_kept() { 0 } else { backlog.records };
    let replication = behind.streams.as_ref().map_or_else(String::new, |streams| streams.replication());
    vec![
        ("behind_records", backlog.records.into()),
        ("behind_bytes", backlog.bytes.into()),
        ("behind_age_ms", millis(age).into()),
        ("behind_lost_with_the_process", lost.into()),
        ("behind_dead_letters", backlog.dead_letters.into()),
        ("behind_failures_in_a_row", number(backlog.failures.into())),
        ("behind_taken", number(stats.taken)),
        ("behind_stored", number(stats.stored)),
        ("behind_coalesced", number(stats.coalesced)),
        ("behind_flushes", number(stats.flushes)),
        ("behind_failures", number(stats.failures)),
        ("behind_waited", number(stats.waited)),
        ("behind_refused", number(stats.refused)),
        ("behind_unlogged", number(stats.unkept)),
        ("behind_adopted", number(behind.streams.as_ref().map_or(0, |streams| streams.adopted()))),
        ("behind_log_bytes", number(behind.log_stats().map_or(0, |log| log.bytes))),
        ("behind_replication", replication.into()),
        ("behind_last_error", stats.last_error.as_deref().unwrap_or_default().into()),
    ]
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

/// Whether the next GET is answered from the copy.
fn verdict(why: &Why) -> [(&'static str, Field); 2] {
    let (served, reason) = match why.verdict {
        Verdict::Valid(Currency::DueForProbe) => ("yes", "current; the next read also sends a probe"),
        Verdict::Valid(_) => ("yes", "current"),
        Verdict::Lapsed => ("no", "nothing proves it current within consistency.maxStaleness; the next read asks L3"),
        Verdict::Flushed => ("no", "the connection that kept it current was lost since"),
        Verdict::Invalidated => ("no", "it was written or invalidated since"),
        Verdict::Expired => ("no", "it expired"),
    };
    [("served", served.into()), ("reason", reason.into())]
}

fn describe(why: &Why, fields: &mut Vec<(&str, Field)>) {
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
