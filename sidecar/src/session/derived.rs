//! EXISTS, STRLEN, TTL and PTTL: told from the copy that a GET left.

use caddy_engine::{KeyHash, Moment};
use caddy_resp::encode;
use smallvec::SmallVec;

use super::{
    args::Args,
    conversation::{Conversation, Flow, Pending, Stream},
    lookup::{Found, Wanted},
    relaying::effect,
};
use crate::{cache::Cached, commands::Row};

impl Conversation {
    /// From the copy, else over the relay.
    pub(super) fn derived(&mut self, row: &'static Row, args: Args<'_>) -> Flow {
        if !self.is_behind_relay() {
            if args.from(1).any(|key| self.own_read_of(KeyHash::of(key), args).is_some())
                || self.would_hold_observed(args)
            {
                return Flow::Hold;
            }
            let (mut sum, mut observed) = (0, false);
            let (wanted, render) = derivation(row.name);
            let now = self.now;
            let all_hit = args.from(1).all(|key| {
                let render = |value: &Cached, deadline, _| sum += render(value, deadline, now);
                let found = self.look_up(self.name_of_get(key), KeyHash::of(key), wanted, render);
                observed |= matches!(found, Found::Observed);
                matches!(found, Found::Answered(()) | Found::Observed)
            });
            if all_hit && !observed {
                self.reply(|out| encode::integer(out, sum));
                return Flow::Done;
            }
            if observed {
                return self.relay_observed(row, args);
            }
        }
        self.relay(row, args, effect(row, args), Pending::Relayed)
    }

    /// Whether the read is relayed in any case and has to wait for that: it is to be counted once, and so later.
    pub(super) fn would_hold_observed(&self, args: Args<'_>) -> bool {
        let keyspaces = self.worker.shared.keyspaces();
        self.is_under_way_elsewhere(Stream::Relay(self.client.database, self.client.protocol))
            && args.from(1).any(|key| keyspaces.rule(key).observes())
    }

    /// Copies of observed keyspaces are served to nobody, so that nobody can step back to one behind this reply: they stay,
    /// as if they had answered.
    pub(super) fn relay_observed(&mut self, row: &'static Row, args: Args<'_>) -> Flow {
        let mut effect = effect(row, args);
        let shared = self.worker.shared.clone();
        let keyspaces = shared.keyspaces();
        let observed: SmallVec<[KeyHash; 2]> =
            args.from(1).filter(|key| keyspaces.rule(key).observes()).map(KeyHash::of).collect();
        effect.keys.retain(|key| !observed.contains(key));
        self.relay(row, args, effect, Pending::Relayed)
    }
}

type Derivation = fn(&Cached, Moment, Moment) -> i64;

/// How a derived command reads a copy: value, deadline, now.
fn derivation(name: &str) -> (Wanted, Derivation) {
    let millis = |value: &Cached, deadline: Moment, now: Moment| match (value.exists(), deadline) {
        (false, _) => -2,
        (true, Moment::NEVER) => -1,
        (true, deadline) => i64::try_from(deadline.since(now).as_millis()).unwrap_or(i64::MAX),
    };
    match name {
        "exists" => (Wanted::Value, |value, _, _| i64::from(value.exists())),
        "strlen" => (Wanted::Value, |value, _, _| i64::try_from(value.len()).unwrap_or(i64::MAX)),
        "pttl" => (Wanted::Expiry, millis),
        // Rounded to the nearest second, as Redis does.
        _ => (Wanted::Expiry, |value, deadline, now| match (value.exists(), deadline) {
            (false, _) => -2,
            (true, Moment::NEVER) => -1,
            (true, deadline) => i64::try_from((deadline.since(now).as_millis() + 500) / 1000).unwrap_or(i64::MAX),
        }),
    }
}
