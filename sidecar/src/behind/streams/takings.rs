//! Taking records of a stream: this pod's own from before, or another's.
//!
//! Owns the way of what was taken into the queue, before any write that Redis answers later. What is in there already is not
//! taken twice.

use std::{collections::HashSet, sync::Arc};

use bytes::Bytes;
use caddy_engine::strategy::behind::Write;
use caddy_remote::{
    Loss,
    writes::{self, StreamNames},
};
use tokio::sync::oneshot;

use super::{Entry, text};
use crate::behind::Behind;

/// Records that are taken, on their way.
#[derive(Debug)]
pub(crate) struct Taking {
    pub(super) behind: Arc<Behind>,
    pub(super) names: Arc<StreamNames>,
    pub(super) answer: oneshot::Sender<Result<(Option<String>, usize), String>>,
    pub(crate) reply: Option<Bytes>,
}

impl Taking {
    /// Redis has answered, or never will. What was taken is in the queue before any write that is answered later.
    pub(crate) fn finish(self, outcome: Result<(), Loss>) {
        let Self { behind, names, answer, reply } = self;
        let done = match (outcome, reply.as_deref().and_then(writes::taken)) {
            (Err(loss), _) => Err(loss.to_string()),
            (Ok(()), None) => Err(format!("the stream cannot be read: {}", text(reply.as_deref()))),
            (Ok(()), Some(taken)) => Ok((taken.last.clone(), behind.adopt(&names, taken))),
        };
        // Who does not wait any more is not told.
        let _ = answer.send(done);
    }
}

impl Behind {
    /// Puts records into the queue, but those that are in it; how many.
    fn adopt(&self, names: &Arc<StreamNames>, taken: writes::Taken) -> usize {
        let Some(streams) = &self.streams else { return 0 };
        let known: HashSet<String> = {
            let state = streams.state.lock();
            let all = state.records.values().chain(state.settled.values().flatten());
            all.filter(|place| place.names == *names).map(|place| place.id.clone()).collect()
        };
        let new = taken.records.into_iter().filter(|(id, ..)| !known.contains(id));
        let (mut ids, mut writes) = (Vec::new(), Vec::new());
        for (id, key, value) in new {
            ids.push(id);
            writes.push((Bytes::from(key), value.map_or(Write::Delete, |value| Write::Put(value.into()))));
        }
        let count = ids.len();
        self.writer.take_over(writes, |records| {
            let mut state = streams.state.lock();
            for (id, record) in ids.into_iter().zip(records) {
                state.records.insert(record.seq, Entry { names: names.clone(), id, key: record.key });
            }
        });
        count
    }
}
