//! `CACHE.DEADLETTERS keyspace`: the writes that a store refuses, for people; offering them again, or giving them up.

use bytes::Bytes;
use caddy_engine::strategy::behind::{DeadLetter, Write};
use caddy_resp::encode;

use super::{args::Args, conversation::Conversation};

/// What is listed if nothing is said, and at most.
const LISTED: i64 = 100;
const MAX_LISTED: usize = 10_000;

impl Conversation {
    /// `CACHE.DEADLETTERS keyspace [LIST [n] | REPLAY [key…] | DISCARD key…]`
    pub(super) fn dead_letters(&mut self, args: Args<'_>) {
        let shared = self.worker.shared.clone();
        let every = shared.behinds.every();
        let Some(behind) = every.iter().find(|behind| behind.name.as_bytes() == args.get(1)) else {
            let names: Vec<&str> = every.iter().map(|behind| behind.name.as_str()).collect();
            let names =
                if names.is_empty() { "none does".to_owned() } else { format!("these do: {}", names.join(", ")) };
            return self.reply_error(&format!("ERR no keyspace of that name has strategy WriteBehind; {names}"));
        };
        let keys: Vec<Bytes> = (3..args.len()).map(|at| Bytes::copy_from_slice(args.get(at))).collect();
        if args.len() == 2 || (args.is(2, "LIST") && args.len() <= 4) {
            let most = if args.len() == 4 { caddy_resp::parse_i64(args.get(3)) } else { Some(LISTED) };
            let Some(most) = most.and_then(|most| usize::try_from(most).ok()) else {
                return self.reply_error("ERR the number of dead letters to list is no number");
            };
            let letters = behind.writer.dead_letters(most.min(MAX_LISTED));
            self.list(&letters);
        } else if args.is(2, "REPLAY") {
            let replayed = behind.writer.replay((!keys.is_empty()).then_some(&keys[..]));
            self.reply(|out| encode::integer(out, i64::try_from(replayed).unwrap_or(i64::MAX)));
        } else if args.is(2, "DISCARD") && !keys.is_empty() {
            let discarded = behind.writer.discard(Some(&keys));
            tracing::warn!(
                keyspace = behind.name,
                discarded,
                "dead letters were given up: the store will never have them"
            );
            self.reply(|out| encode::integer(out, i64::try_from(discarded).unwrap_or(i64::MAX)));
        } else {
            self.reply_error(
                "ERR syntax error; write CACHE.DEADLETTERS keyspace [LIST [n] | REPLAY [key ...] | DISCARD key ...]",
            );
        }
    }

    fn list(&mut self, letters: &[DeadLetter<Bytes, Bytes>]) {
        let (protocol, now) = (self.client.protocol, self.worker.shared.now());
        self.reply(|out| {
            encode::array_header(out, letters.len());
            for letter in letters {
                let value = letter.record.write.value();
                encode::map_header(out, protocol, 5);
                encode::bulk(out, b"key");
                encode::bulk(out, &letter.record.key);
                encode::bulk(out, b"write");
                encode::bulk(out, if letter.record.write == Write::Delete { b"delete" } else { b"put" });
                encode::bulk(out, b"bytes");
                encode::integer(out, value.map_or(0, |value| i64::try_from(value.len()).unwrap_or(i64::MAX)));
                encode::bulk(out, b"age_ms");
                encode::integer(out, i64::try_from(now.since(letter.since).as_millis()).unwrap_or(i64::MAX));
                encode::bulk(out, b"reason");
                encode::bulk(out, letter.reason.as_bytes());
            }
        });
    }
}
