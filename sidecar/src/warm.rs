//! Reading ahead: values are brought into the tiers before an app asks for them.
//!
//! `CACHE.WARM` names what it wants; a sidecar that starts may take what others of its domain are asked for most
//! ([`start`], [`board`]). Both come down to [`pull`], which reads as a session would: on the tracked connection, under
//! the same tokens and rules, as one flight with whoever asks for the same. What it brings is therefore as good as any
//! copy. Never answers an app, never serves a value, and waits for no longer than the connection does.

mod board;
mod start;

use std::{future::poll_fn, sync::Arc, task::Poll, time::Duration};

use bytes::Bytes;
use caddy_engine::{Currency, KeyHash, Verdict, Wanted};
use caddy_remote::LaneState;
use caddy_resp::Protocol;
use tokio::time::{Instant, sleep};

pub(crate) use start::{Progress, farewell, has_started, run};

use crate::{
    cache::{KeyRef, Waiter},
    fills::read_for,
    heat::HotRead,
    mailbox::{Delivery, Mailbox, Place, ReplyTo},
    probe::probe_if_due,
    shared::{L3, Shared},
};

/// Reads under way at a time: what apps ask for meanwhile waits behind no more than these.
const WINDOW: usize = 32;
/// How long a connection that is being made is waited for.
const CONNECTING: Duration = Duration::from_secs(1);
const LOOK: Duration = Duration::from_millis(5);

/// Reads what has no copy, and waits until that is over, whatever comes of it.
pub(crate) async fn pull(shared: &Arc<Shared>, reads: &[HotRead]) {
    connected(shared, reads).await;
    fetch(shared, reads).await;
    // What came from a store is in L3 now, and in no tier.
    let loads = |read: &&HotRead| shared.keyspaces().source(read.as_ref().key()).is_some();
    let loaded: Vec<HotRead> = reads.iter().filter(loads).cloned().collect();
    fetch(shared, &loaded).await;
}

/// Whether a read would be answered from a copy now.
pub(crate) fn is_cached(shared: &Shared, name: KeyRef<'_>) -> bool {
    let why = shared.cache.why(name.tier_hash(), &name, shared.now());
    why.is_some_and(|why| matches!(why.verdict, Verdict::Valid(_)))
}

async fn fetch(shared: &Arc<Shared>, reads: &[HotRead]) {
    let mailbox = Arc::<Mailbox>::default();
    let mut under_way = 0;
    for (seq, read) in (0..).zip(reads) {
        let name = read.as_ref();
        if is_cached(shared, name) || !shared.keyspaces().may_cache(&[name.key()]) {
            continue;
        }
        let to = ReplyTo { mailbox: mailbox.clone(), place: Place { seq, part: 0 } };
        if ask(shared, read, Waiter { to, protocol: Protocol::Resp3 }) {
            under_way += 1;
        }
        if under_way == WINDOW {
            under_way -= answered(&mailbox).await.min(under_way);
        }
    }
    while under_way > 0 {
        under_way -= answered(&mailbox).await.min(under_way);
    }
}

/// Sends one read. `false`: it cannot be made now.
fn ask(shared: &Arc<Shared>, read: &HotRead, waiter: Waiter) -> bool {
    let name = read.as_ref();
    let L3::Redis(redis) = &shared.l3 else { return false };
    let Some(node) = redis.owner(name.key()) else { return false };
    let Some(tracked) = redis.tracked_or_open(shared, &node, name.database) else { return false };
    if tracked.lane.state() != LaneState::Ready {
        return false;
    }
    let now = shared.now();
    probe_if_due(shared, &node, &tracked, now);
    let key_hash = KeyHash::of(name.key());
    let wanted = Wanted { source: tracked.source, key_hash, hash: name.tier_hash(), key: &name };
    let request = Bytes::from(read.request());
    read_for(shared, &wanted, &request, &tracked.lane, waiter, true, now);
    true
}

/// Waits for answers; how many came.
async fn answered(mailbox: &Mailbox) -> usize {
    poll_fn(|cx| {
        mailbox.register(cx);
        let over = |delivery: &Delivery| matches!(delivery, Delivery::Reply { .. } | Delivery::Bypass { .. });
        match mailbox.take().iter().filter(|delivery| over(delivery)).count() {
            0 => Poll::Pending,
            count => Poll::Ready(count),
        }
    })
    .await
}

/// Opens the tracked connections that reads need, and waits a while for those that are being made, and until their nodes have
/// proved themselves: what a cluster's node is asked before is not kept.
async fn connected(shared: &Arc<Shared>, reads: &[HotRead]) {
    let L3::Redis(redis) = &shared.l3 else { return };
    let is_settled = |read: &HotRead| {
        let name = read.as_ref();
        let Some(node) = redis.owner(name.key()) else { return false };
        let Some(tracked) = redis.tracked_or_open(shared, &node, name.database) else { return false };
        match tracked.lane.state() {
            LaneState::Failed => true,
            LaneState::Ready => {
                let now = shared.now();
                probe_if_due(shared, &node, &tracked, now);
                shared.kernel().currency(tracked.source, now) == Currency::Proven
            }
            LaneState::Idle | LaneState::Connecting => false,
        }
    };
    let deadline = Instant::now() + CONNECTING;
    while !reads.iter().all(is_settled) && Instant::now() < deadline {
        sleep(LOOK).await;
    }
}
