//! In which keyspaces fill tokens were given out: who writes a key there ends its fill lease.
//!
//! That a key was deleted does not show where it was absent before; so the sidecar that deletes has to end the lease, and
//! has to know that there may be one. The index says so, which every sidecar follows, and which is trusted no longer than
//! a copy: the first token of a keyspace is given out when its announcement has stood there for `maxStaleness`. What was
//! once announced is believed for ever here, also if the index is lost; and who cannot tell ends leases. A write that is
//! under way, unanswered, while the first announcement is made may miss that.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use arc_swap::ArcSwap;
use caddy_engine::Moment;
use caddy_remote::ranges as wire;
use tokio::sync::oneshot;

use super::{Ranges, unique};
use crate::{
    errands,
    guards::{Guard, hold},
    keyspaces::{Id, Names},
    shared::Shared,
};

/// For how long a request may wait for the first token of a keyspace.
const PATIENCE: Duration = Duration::from_secs(2);

/// See the module.
#[derive(Default)]
pub(super) struct Tokens {
    /// The index could be read once. Where it never can be, no token is given out.
    is_told: AtomicBool,
    /// All keyspaces that were ever announced.
    ever: ArcSwap<Vec<Id>>,
    /// Those that the index announces, and since when that is known here.
    now: ArcSwap<Vec<(Id, Moment)>>,
}

/// Why no token can be given out.
#[derive(Debug, thiserror::Error)]
pub(crate) enum TokenError {
    /// Others do not know yet that there are some.
    #[error("the first token of this keyspace can be given in {} ms", .0.as_millis())]
    TooEarly(Duration),
    /// It could not be announced, or read.
    #[error("{0}")]
    Unannounced(String),
}

impl TokenError {
    /// After which there may be one.
    pub(crate) fn wait(&self) -> Duration {
        match self {
            Self::TooEarly(left) => *left,
            Self::Unannounced(_) => Duration::ZERO,
        }
    }
}

impl Tokens {
    /// What an index says that was read until `now`.
    pub(super) fn are_in(&self, keyspaces: &[String], names: &Names, now: Moment) {
        self.is_told.store(true, Ordering::Relaxed);
        let before = self.now.load();
        if keyspaces.is_empty() && before.is_empty() {
            return;
        }
        let since = |id: Id| before.iter().find(|(known, _)| *known == id).map_or(now, |(_, since)| *since);
        let all: Vec<_> = keyspaces.iter().map(|name| names.id(name)).map(|id| (id, since(id))).collect();
        let mut ever = self.ever.load().to_vec();
        ever.extend(all.iter().map(|(id, _)| *id).filter(|id| !self.ever.load().contains(id)));
        self.ever.store(Arc::new(ever));
        self.now.store(Arc::new(all));
    }

    fn since(&self, keyspace: Id) -> Option<Moment> {
        self.now.load().iter().find(|(id, _)| *id == keyspace).map(|(_, since)| *since)
    }
}

impl Ranges {
    /// Whether tokens were ever given out, as far as is known.
    pub(crate) fn knows_tokens(&self) -> bool {
        !self.tokens.ever.load().is_empty()
    }

    /// Whether fill leases may have been given out in no keyspace at all; what most writes ask.
    pub(crate) fn is_without_tokens(&self, shared: &Shared, now: Moment) -> bool {
        !self.knows_tokens() && (self.is_quiet(now) || !self.is_out_of_date(shared, now))
    }

    /// Whether a fill token may have been given out for a key of this keyspace.
    pub(crate) fn may_have_tokens(&self, shared: &Shared, keyspace: Id, now: Moment) -> bool {
        self.tokens.ever.load().contains(&keyspace) || self.is_out_of_date(shared, now)
    }

    /// What was known once is too old.
    fn is_out_of_date(&self, shared: &Shared, now: Moment) -> bool {
        self.tokens.is_told.load(Ordering::Relaxed) && !self.is_fresh(shared, now)
    }

    /// Whether every sidecar knows of tokens in a keyspace.
    pub(crate) fn announces_tokens(&self, shared: &Shared, keyspace: Id) -> bool {
        let (bound, now) = (shared.kernel().max_staleness(), shared.now());
        let is_old = self.tokens.since(keyspace).is_some_and(|since| since + bound <= now);
        is_old && self.is_fresh(shared, now) || !hold(Guard::TokensAnnounced)
    }

    /// Sees to it that every sidecar knows of tokens in a keyspace, before one is given out.
    pub(crate) async fn announce_tokens(&self, shared: &Arc<Shared>, keyspace: Id) -> Result<(), TokenError> {
        if !hold(Guard::TokensAnnounced) {
            return Ok(());
        }
        let bound = shared.kernel().max_staleness();
        if self.tokens.since(keyspace).is_none() || !self.is_fresh(shared, shared.now()) {
            let lost = |error: String| TokenError::Unannounced(error);
            let bytes = wire::announce_tokens(&self.names, &unique(), &shared.names.name(keyspace));
            let asked = errands::ask_owner(shared, &self.names.index, 0, bytes).await;
            asked.map_err(|error| lost(error.to_string()))?;
            let (then, looked) = oneshot::channel();
            self.look(shared, Some(then));
            looked.await.unwrap_or_else(|_| Err("the sidecar is shutting down".to_owned())).map_err(lost)?;
        }
        let since = self.tokens.since(keyspace);
        let since = since.ok_or_else(|| TokenError::Unannounced("the announcement was lost; try again".to_owned()))?;
        match (since + bound).since(shared.now()) {
            left if left > PATIENCE => Err(TokenError::TooEarly(left)),
            left => {
                tokio::time::sleep(left).await;
                Ok(())
            }
        }
    }
}
