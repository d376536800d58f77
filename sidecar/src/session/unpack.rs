//! Hits on packed copies.

use caddy_engine::{Entry, Tier, TierHash};

use super::conversation::Conversation;
use crate::{
    cache::{Cached, TierKey},
    stored::Stored,
    tally::Count,
};

impl Conversation {
    /// The reply that a packed copy holds. One that has come as far as L1 is unpacked for good: L1 serves what is ready.
    /// `None`: it is damaged, and gone.
    pub(super) fn unpack(&self, hash: TierHash, entry: &Entry<TierKey, Stored>, tier: Tier) -> Option<Cached> {
        let shared = &self.worker.shared;
        let keyspace = entry.key().keyspace;
        let begun = shared.now();
        let opened = entry.value().open();
        let spent = u64::try_from(shared.now().since(begun).as_nanos()).unwrap_or(u64::MAX);
        shared.tally.add_many(keyspace, Count::UnpackNanos, spent);
        match opened {
            Ok(value) => {
                shared.tally.add(keyspace, Count::Unpacked);
                let value = value.into_owned();
                if tier == Tier::L1 {
                    shared.cache.renew(
                        hash,
                        entry,
                        entry.key().clone(),
                        entry.value().in_form(Stored::Plain(value.clone())),
                    );
                }
                Some(value)
            }
            Err(damaged) => {
                shared.tally.add(keyspace, Count::Damaged);
                if let Some(before) = shared.damaged_copies.due(begun) {
                    tracing::error!(%damaged, before, "a copy is dropped; more of them are counted only");
                }
                shared.cache.remove(hash, &entry.key().as_ref());
                None
            }
        }
    }
}
