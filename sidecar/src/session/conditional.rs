//! `CACHE.SET … TOKEN t`, `… FENCE lock token`: from the request to the task that writes, and its answer.
//!
//! Under a token the value belongs to the groups that `CACHE.GET` named, as they were then: so what was invalidated since
//! is never stored as if it were newer. Whether they still are so is looked at first, to tell the app. The session takes
//! nothing else meanwhile.

use bytes::Bytes;
use caddy_resp::encode;

use super::{
    caching::{Set, listed, named, renewal, renewed},
    conversation::{Conversation, Flow, Pending},
};
use crate::{
    answers::nil,
    conditional::{ConditionalWrite, FillPermit, WriteError},
    effect::Effect,
    generations::{How, Learned, Want, of_parent, of_tag, parent_of},
    guards::{Guard, hold},
    mailbox::{Place, ReplyTo},
    shared::L3,
};

const NO_REDIS: &str = "ERR tokens and fences need a Redis L3: start with --redis URL, or set spec.l3.redis";
const NO_TOKEN: &str = "ERR TOKEN takes what CACHE.GET … WITHMETA gave for this very key";
const RENEWED: &str = "STALE a group that the value belongs to was invalidated since the token was given; nothing was written: \
                       read the key again, and compute the value anew if it is still missing";

impl Conversation {
    pub(super) fn conditional_set(&mut self, set: &Set<'_>) -> Flow {
        if matches!(&self.worker.shared.l3, L3::Embedded(_)) {
            return self.answer_error(NO_REDIS);
        }
        if self.replies.waiting() > 0 {
            return Flow::Hold;
        }
        let shared = self.worker.shared.clone();
        let permit = match set.token.map(|text| FillPermit::parse(set.key, text)) {
            Some(None) => return self.answer_error(NO_TOKEN),
            Some(Some(permit)) => Some(permit),
            None => None,
        };
        let known = match &permit {
            Some(permit) => self.groups_of(permit, set),
            None => self.groups(&shared, set),
        };
        let known = match known {
            Ok(known) => known,
            Err(flow) => return flow,
        };
        // Under a token the groups are those that it remembers.
        let renewal = match &permit {
            Some(permit) => renewal(&shared, set, permit.generations.iter().filter_map(|(name, _)| parent_of(name))),
            None => renewal(&shared, set, set.parents.iter().copied()),
        };
        let own = renewed(&shared, renewal.as_ref());
        let list = match &permit {
            Some(permit) if hold(Guard::GroupsAsTheyWere) => {
                let now: Vec<_> = named(&shared, &known).collect();
                if permit.generations.iter().any(|(name, value)| !now.contains(&(&name[..], *value))) {
                    shared.metrics.stale_writes.inc();
                    return self.answer_error(RENEWED);
                }
                listed(own.chain(permit.generations.iter().map(|(name, value)| (&name[..], *value))))
            }
            _ => listed(own.chain(named(&shared, &known))),
        };
        let list = match list {
            Ok(list) => list,
            Err(text) => return self.answer_error(text),
        };
        let life = set.whole_life();
        shared.extend(self.client.database, known.iter().map(|known| &known.cell), life);
        let is_parent = shared.keyspaces().is_parent(set.key) && hold(Guard::WritesRenewParents);
        let renews = is_parent.then(|| (shared.domain.key(&of_parent(set.key)), renewal));
        let hashes = std::iter::once(set.key).chain(renews.iter().map(|(generation, _)| &generation[..]));
        let effect = Effect { keys: hashes.map(caddy_engine::KeyHash::of).collect(), ..Effect::default() };
        let write = ConditionalWrite {
            database: self.client.database,
            key: Bytes::copy_from_slice(set.key),
            value: set.sealed(&shared, &list),
            life,
            condition: set.condition,
            permit: permit.map(|permit| (permit.lease, permit.state)),
            fence: set.fence.map(|(lock, token)| (Bytes::copy_from_slice(lock), token)),
            renews,
        };
        let place = Place { seq: self.replies.expect(Pending::Locking { waits: false }), part: 0 };
        let (to, protocol) = (ReplyTo { mailbox: self.mailbox.clone(), place }, self.client.protocol);
        self.worker.supervisor.spawn_local("conditional write", async move {
            let outcome = write.run(&shared).await;
            // Whatever the answer is, also a loss: it may have been executed.
            effect.apply(&shared);
            let refused = match &outcome {
                Err(WriteError::Stale(_)) => Some(&shared.metrics.stale_writes),
                Err(WriteError::Fenced(_)) => Some(&shared.metrics.fenced_writes),
                _ => None,
            };
            if let Some(refused) = refused {
                refused.inc();
            }
            let mut out = Vec::new();
            match outcome {
                Ok(true) => encode::ok(&mut out),
                Ok(false) => out.extend_from_slice(nil(protocol)),
                Err(error) => encode::error(&mut out, error.to_string()),
            }
            to.reply(out);
        });
        Flow::Done
    }

    /// What the groups of a permit are now, in L3.
    fn groups_of(&mut self, permit: &FillPermit, set: &Set<'_>) -> Result<Vec<Learned>, Flow> {
        let tags = set.tags.iter().map(|tag| ("tag", tag, of_tag(tag)));
        let parents = set.parents.iter().filter(|parent| **parent != set.key);
        let mut wanted = tags.chain(parents.map(|parent| ("parent", parent, of_parent(parent))));
        let is_missing = |name: &[u8]| !permit.generations.iter().any(|(known, _)| known == name);
        if let Some((what, name, _)) = wanted.find(|(.., name)| is_missing(name)) {
            let text = format!(
                "STALE the token does not know what {what} '{}' was when it was given, so that nothing was written: name it in \
                 CACHE.GET key WITHMETA TAGS n tag… DEPENDS n key…",
                name[..name.len().min(64)].escape_ascii()
            );
            return Err(self.answer_error(&text));
        }
        let domain = &self.worker.shared.domain;
        let wants =
            permit.generations.iter().map(|(name, _)| Want { name: domain.key(name), how: How::Read }).collect();
        self.generations_afresh(wants)
    }
}
