//! `CACHE.HOT` and `CACHE.WARM`: what is read most, and reading ahead.
//!
//! A user with limits is shown, and may warm, what that user may read, and no more.

use caddy_resp::encode;

use super::{
    args::Args,
    conversation::{Conversation, Flow, Pending},
};
use crate::{
    cache::{KeyRef, Read},
    heat::HotRead,
    mailbox::ReplyTo,
    shared::L3,
    warm,
};

/// What `CACHE.HOT` shows unless it is told how many.
const SHOWN: usize = 20;
/// Keys of one `CACHE.WARM`.
const MAX_KEYS: usize = 1000;
const NEEDS_REDIS: &str = "ERR 'CACHE.WARM' needs a Redis L3: start with --redis URL, or set spec.l3.redis";

impl Conversation {
    /// `CACHE.HOT [n]`: the reads that are made most, the hottest first.
    pub(super) fn hot(&mut self, args: Args<'_>) {
        let wanted = match args.len() {
            1 => Some(SHOWN),
            2 => caddy_resp::parse_i64(args.get(1)).and_then(|n| usize::try_from(n).ok()).filter(|n| *n > 0),
            _ => return self.reply_error("ERR wrong number of arguments for 'cache.hot' command"),
        };
        let Some(wanted) = wanted else {
            return self.reply_error("ERR CACHE.HOT takes how many to show, 1 or more");
        };
        let shared = self.worker.shared.clone();
        let (protocol, names, keyspaces) = (self.client.protocol, shared.names.all(), shared.keyspaces());
        let all = shared.heat.hottest(usize::MAX, self.now);
        let may_see = |hot: &&crate::heat::Heated| self.denial_of(&hot.name.as_ref().words()).is_none();
        let shown: Vec<_> = all.iter().filter(may_see).take(wanted).collect();
        self.reply(|out| {
            encode::array_header(out, shown.len());
            for hot in shown {
                let name = hot.name.as_ref();
                let words = name.words();
                let keyspace = names.get(keyspaces.rule(name.key()).id.index());
                let bytes = shared.cache.peek(name.tier_hash(), &name).map_or(0, |entry| entry.bytes());
                encode::map_header(out, protocol, 7);
                encode::bulk(out, b"key");
                encode::bulk(out, name.key());
                encode::bulk(out, b"read");
                encode::array_header(out, words.len());
                words.iter().for_each(|word| encode::bulk(out, word));
                let texts = [
                    ("keyspace", keyspace.cloned().unwrap_or_default()),
                    ("reads_per_second", format!("{:.2}", hot.per_second)),
                    ("at_least", format!("{:.2}", hot.at_least)),
                ];
                for (field, text) in texts {
                    encode::bulk(out, field.as_bytes());
                    encode::bulk(out, text.as_bytes());
                }
                for (field, number) in
                    [("database", i64::from(name.database)), ("bytes", i64::try_from(bytes).unwrap_or(i64::MAX))]
                {
                    encode::bulk(out, field.as_bytes());
                    encode::integer(out, number);
                }
            }
        });
    }

    /// `CACHE.WARM key…`: reads these keys into the tiers; answers how many of them have a copy then.
    pub(super) fn warm(&mut self, args: Args<'_>) -> Flow {
        // What the session wrote before is read, and what it reads behind finds the copies.
        if self.replies.waiting() > 0 {
            return Flow::Hold;
        }
        let refusal = match &self.worker.shared.l3 {
            L3::Embedded(_) => Some(NEEDS_REDIS.to_owned()),
            L3::Redis(_) if args.len() > MAX_KEYS + 1 => {
                Some(format!("LIMIT CACHE.WARM takes {MAX_KEYS} keys at most, not {}; send several", args.len() - 1))
            }
            // The keys were looked at already.
            L3::Redis(_) => self.denial_of(&[b"GET", args.get(1)]),
        };
        if let Some(refusal) = refusal {
            self.reply_error(&refusal);
            return Flow::Done;
        }
        let database = self.client.database;
        let read = |name| HotRead::new(KeyRef { database, read: Read::Get, name });
        let reads: Vec<HotRead> = args.from(1).map(read).collect();
        let to = ReplyTo { mailbox: self.mailbox.clone(), place: self.expect(Pending::Locking { waits: false }) };
        let shared = self.worker.shared.clone();
        self.worker.supervisor.spawn_local("warming", async move {
            warm::pull(&shared, &reads).await;
            let cached = reads.iter().filter(|read| warm::is_cached(&shared, read.as_ref())).count();
            let mut out = Vec::new();
            encode::integer(&mut out, i64::try_from(cached).unwrap_or(i64::MAX));
            to.reply(out);
        });
        Flow::Done
    }
}
