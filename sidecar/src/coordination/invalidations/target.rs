//! The cache as an object invalidates it: in Redis, for all sidecars, each step told as an event. Never keeps anything
//! itself, so that whoever has the duties next goes on; fails with what Redis said.

use std::sync::Arc;

use bytes::Bytes;
use caddy_engine::invalidation::{InvalidationReason, InvalidationSubject, KeyPattern};
use caddy_remote::ranges::{self as wire, MARKER};

use super::Target;
use crate::{
    errands::{self, ErrandError},
    events,
    generations::{Mode, of_keyspace, of_parent, of_tag},
    ranges::{self, EnterError},
    shared::{L3, Shared},
};

/// See the module.
pub(super) struct Cache(Arc<Shared>);

impl Cache {
    pub(super) fn new(shared: Arc<Shared>) -> Self {
        Self(shared)
    }

    async fn ask(&self, key: &[u8], command: Vec<u8>) -> Result<Bytes, String> {
        errands::ask_owner(&self.0, key, 0, command).await.map_err(|error: ErrandError| error.to_string())
    }

    /// A key, and in the same step what a write of it ends: the fill lease, so that nothing is stored which is computed from
    /// before, and where others depend on the key its generation.
    async fn remove_one(&self, key: &[u8]) -> Result<u64, String> {
        const SCRIPT: &str = "redis.call('DEL', unpack(KEYS, 2)) return redis.call('UNLINK', KEYS[1])";
        let shared = &self.0;
        let (lease, generation) = (shared.lease_of(key), shared.domain.key(&of_parent(key)));
        let renewed = Some(generation).filter(|_| shared.keyspaces().is_parent(key));
        let mut keys: Vec<&[u8]> = vec![key, &lease];
        keys.extend(renewed.as_deref());
        let count = keys.len().to_string();
        let head: [&[u8]; 3] = [b"EVAL", SCRIPT.as_bytes(), count.as_bytes()];
        let reply = self.ask(key, wire::command(&[&head, &keys[..]].concat())).await?;
        shared.domain.remember(shared.now(), 0, renewed.into_iter(), Mode::Remove);
        Ok(crate::answers::integer(&reply).map_or(0, i64::unsigned_abs))
    }

    /// What any Redis client may do to invalidate what carries a generation.
    async fn renew(&self, name: &[u8]) -> Result<(), String> {
        let generation = self.0.domain.key(name);
        self.ask(&generation, wire::command(&[b"DEL", &generation])).await?;
        self.0.domain.remember(self.0.now(), 0, std::iter::once(generation), Mode::Remove);
        Ok(())
    }
}

impl Target for Cache {
    fn refusal(&self) -> Option<&'static str> {
        match &self.0.l3 {
            L3::Embedded(_) => Some(
                "the CacheCluster's L3 is embedded: each pod has its own data, and nobody can invalidate it for all",
            ),
            L3::Redis(_) => None,
        }
    }

    async fn remove(&self, keys: &[String], note: &str) -> Result<u64, String> {
        let mut removed = 0;
        for key in keys {
            removed += self.remove_one(key.as_bytes()).await?;
        }
        let subject = InvalidationSubject::Keys(keys.iter().cloned().map(Bytes::from).collect());
        events::tell(&self.0, subject, InvalidationReason::Object, note.to_owned(), None, Some(removed));
        Ok(removed)
    }

    async fn untag(&self, tags: &[String], note: &str) -> Result<(), String> {
        for tag in tags {
            self.renew(&of_tag(tag.as_bytes())).await?;
        }
        let subject = InvalidationSubject::Tags(tags.to_vec());
        events::tell(&self.0, subject, InvalidationReason::Object, note.to_owned(), None, None);
        Ok(())
    }

    async fn clear(&self, keyspaces: &[String], note: &str) -> Result<(), String> {
        for name in keyspaces {
            self.renew(&of_keyspace(name)).await?;
        }
        let subject = InvalidationSubject::Keyspaces(keyspaces.to_vec());
        events::tell(&self.0, subject, InvalidationReason::Object, note.to_owned(), None, None);
        Ok(())
    }

    fn keyspaces(&self) -> Vec<String> {
        self.0.names.all()
    }

    async fn enter(&self, id: String, pattern: KeyPattern, note: &str) -> Result<(), EnterError> {
        ranges::enter_as(&self.0, id.clone(), pattern.clone(), 0, note.to_owned()).await?;
        if pattern.text() != MARKER {
            let subject = events::subject_of(&pattern);
            events::tell(&self.0, subject, InvalidationReason::Object, note.to_owned(), Some(&id), None);
        }
        Ok(())
    }

    async fn acknowledged(&self, marker: &str) -> Result<u32, String> {
        let key = self.0.ranges.names.acknowledgements(marker);
        let reply = self.ask(&key, wire::command(&[b"SCARD", &key])).await?;
        Ok(crate::answers::integer(&reply).and_then(|count| u32::try_from(count).ok()).unwrap_or(0))
    }

    async fn swept(&self, id: &str) -> Result<(bool, u64), String> {
        let progress = ranges::read_progress(&self.0, id).await.map_err(|error| error.to_string())?;
        Ok((progress.done, progress.removed))
    }

    async fn end_marker(&self, marker: &str) -> Result<(), String> {
        let names = &self.0.ranges.names;
        self.ask(&names.index, wire::finish(names, marker)).await.map(drop)
    }

    fn markers(&self) -> Vec<String> {
        let active = self.0.ranges.active();
        active.iter().map(|range| &range.record).filter(|record| record.is_marker()).map(|r| r.id.clone()).collect()
    }
}
