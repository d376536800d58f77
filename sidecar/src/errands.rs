//! Requests of the sidecar's own to L3, for its tasks: sent over a connection of their own per node and database.
//!
//! They bypass tiers and sessions and mean nothing for copies: what they write is announced by Redis like anybody's write.
//! A request that is not answered fails with [`ErrandError`]; it may have been executed.

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use caddy_remote::{LaneHandle, Loss, Request, cluster::Redirect};
use tokio::sync::oneshot;

use crate::{
    nodes::Node,
    shared::{L3, Shared},
    upstream::Tag,
};

/// So many redirections one command may get, and how long is waited between two of a cluster that has not settled.
const MAX_HOPS: u32 = 16;
const SETTLING: Duration = Duration::from_millis(100);

pub(crate) const ASKING: &[u8] = b"*1\r\n$6\r\nASKING\r\n";

/// See [`Tag::Errand`].
#[derive(Debug)]
pub(crate) struct Errand {
    pub(crate) replies: Vec<Bytes>,
    answer: oneshot::Sender<Result<Vec<Bytes>, Loss>>,
}

/// Why a request of the sidecar's own came to nothing.
#[derive(Debug, Clone, thiserror::Error)]
pub(crate) enum ErrandError {
    /// Which node has the key is not known.
    #[error("the cluster's slot map is not known yet; see whether its nodes answer")]
    NoNode,
    /// It was not sent, or not answered.
    #[error("{0}")]
    Lost(String),
    /// Redis answered with this error.
    #[error("{0}")]
    Refused(String),
}

impl Errand {
    /// It is over.
    pub(crate) fn finish(self, outcome: Result<(), Loss>) {
        // Who does not wait any more is not told.
        let _ = self.answer.send(outcome.map(|()| self.replies));
    }
}

/// Sends commands to a node and waits for their replies; the first error among them is the outcome.
pub(crate) async fn ask(
    shared: &Arc<Shared>,
    node: &Arc<Node>,
    database: u32,
    bytes: Vec<u8>,
    replies: u16,
) -> Result<Vec<Bytes>, ErrandError> {
    let L3::Redis(redis) = &shared.l3 else { return Err(ErrandError::NoNode) };
    ask_on(shared, &redis.errand_lane(shared, node, database), bytes, replies).await
}

/// The same on a given connection.
pub(crate) async fn ask_on(
    shared: &Shared,
    lane: &LaneHandle<Tag>,
    bytes: Vec<u8>,
    replies: u16,
) -> Result<Vec<Bytes>, ErrandError> {
    let (answer, answered) = oneshot::channel();
    let tag = Tag::Errand(Box::new(Errand { replies: Vec::new(), answer }));
    let ending = || ErrandError::Lost("the sidecar is shutting down".to_owned());
    lane.submit(Request { bytes: bytes.into(), replies, tag }).map_err(|_| ending())?;
    let replies = answered.await.map_err(|_| ending())?.map_err(|loss| ErrandError::Lost(loss.to_string()))?;
    match replies.iter().find(|reply| reply.first() == Some(&b'-')) {
        Some(error) => {
            let text = String::from_utf8_lossy(&error[1..]).trim_end().to_owned();
            if ELSEWHERE.iter().any(|kind| text.starts_with(kind)) {
                shared.doubt_slots();
            }
            Err(ErrandError::Refused(text))
        }
        None => Ok(replies),
    }
}

/// What a node of a cluster says that does not have, or cannot say whether it has, a key.
const ELSEWHERE: [&str; 4] = ["MOVED ", "ASK ", "TRYAGAIN", "CLUSTERDOWN"];

/// As [`ask`], for one command, of the node that has `key`; in a cluster also while its slot is on its way.
pub(crate) async fn ask_owner(
    shared: &Arc<Shared>,
    key: &[u8],
    database: u32,
    bytes: Vec<u8>,
) -> Result<Bytes, ErrandError> {
    let L3::Redis(redis) = &shared.l3 else { return Err(ErrandError::NoNode) };
    let (mut at, mut asking, mut outcome) = (redis.owner(key), false, Err(ErrandError::NoNode));
    for _ in 0..MAX_HOPS {
        let Some(node) = at else {
            tokio::time::sleep(SETTLING).await;
            at = redis.owner(key);
            continue;
        };
        let (request, replies) = if asking { ([ASKING, &bytes].concat(), 2) } else { (bytes.clone(), 1) };
        let asked = ask(shared, &node, database, request, replies).await;
        outcome = asked.and_then(|replies| replies.into_iter().next_back().ok_or(ErrandError::NoNode));
        let (Err(ErrandError::Refused(text)), Some(cluster)) = (&outcome, redis.cluster()) else { return outcome };
        if !ELSEWHERE.iter().any(|kind| text.starts_with(kind)) {
            return outcome;
        }
        let redirect = Redirect::parse(format!("-{text}").as_bytes(), &node.target.endpoint);
        asking = matches!(redirect, Some(Redirect::Ask { .. }));
        // Without one it is looked for by the next map.
        at = redirect.and_then(|redirect| cluster.node_at(redirect.to()));
    }
    outcome
}
