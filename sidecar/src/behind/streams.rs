//! Durability `Replicated`: what was acknowledged is in a stream of L3 and on its replicas, until the store has it.
//!
//! Owns what is known of one keyspace's records there: which the queue's writes are in ([`Ledger`]), who waits until replicas
//! have theirs ([`Round`]), what the store has and is to be removed, and what was taken over ([`Taking`]). A record is made
//! by the script of the write itself (see [`caddy_remote::writes`]). Rounds and takings travel behind the writes on the
//! one connection that they have to a node: a round that a lost connection came between proves nothing, and what is taken is
//! older than any write answered later. Fails as a full disk does: what replicas do not have is acknowledged by the store.

mod rounds;
mod takings;

use std::{
    collections::{HashMap, HashSet},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use caddy_engine::{
    crash,
    strategy::behind::{Done, Ledger, Record},
};
use caddy_remote::{
    Request,
    writes::{self, StreamNames},
};
use caddy_resp::encode;
use parking_lot::Mutex;
use tokio::sync::{Notify, oneshot};

pub(crate) use rounds::Round;
pub(crate) use takings::Taking;

use super::{Behind, storing::Via};
use crate::{
    errands,
    nodes::{Node, NodeId},
    shared::{L3, Shared},
    upstream::Tag,
};

/// Keys that have a store are in this database.
const DATABASE: u32 = 0;
/// How long replicas that failed last time are waited for.
const SHORT: Duration = Duration::from_millis(10);
/// Records that one call removes.
const SETTLED: usize = 250;
/// After Redis did not remove records.
const PAUSE: Duration = Duration::from_secs(1);

/// Whose streams there are.
#[derive(Debug, Clone)]
pub(super) struct Place {
    pub(super) domain: String,
    /// Who this sidecar is, also when it is started anew in its pod.
    pub(super) member: Arc<str>,
    pub(super) in_cluster: bool,
    /// How long Redis may leave a command unanswered.
    pub(super) timeout: Duration,
}

/// See the module.
pub(crate) struct Streams {
    place: Place,
    keyspace: String,
    replicas: u32,
    patience: Duration,
    state: Mutex<State>,
    /// What was left there by an earlier process is in the queue.
    is_read: AtomicBool,
    was_read: Notify,
    /// The store has records.
    work: Notify,
    /// All that the store has was removed.
    relief: Notify,
    adopted: AtomicU64,
    /// Why replicas do not have what is written; empty while they do, or nothing was.
    trouble: Mutex<String>,
}

#[derive(Default)]
struct State {
    names: HashMap<Option<u16>, Arc<StreamNames>>,
    records: HashMap<u64, Entry>,
    /// What the store has, by stream.
    settled: HashMap<Arc<StreamNames>, Vec<Entry>>,
    removing: bool,
    rounds: HashMap<NodeId, Rounds>,
    /// Slots of which others know that there may be records.
    slots: HashSet<u16>,
}

/// Where a record is.
#[derive(Clone)]
struct Entry {
    names: Arc<StreamNames>,
    id: String,
    key: Bytes,
}

/// Who waits for replicas of a node, by the connection that the write came over.
#[derive(Default)]
struct Rounds {
    waiting: Vec<(u64, Done)>,
    is_under_way: bool,
    has_failed: bool,
}

impl std::fmt::Debug for Streams {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Streams").field("keyspace", &self.keyspace).finish_non_exhaustive()
    }
}

impl Streams {
    pub(super) fn new(place: &Place, keyspace: &str, settings: &caddy_contract::Behind) -> Self {
        Self {
            place: place.clone(),
            keyspace: keyspace.to_owned(),
            replicas: settings.replicas,
            patience: settings.max_wait.min(place.timeout / 2),
            state: Mutex::default(),
            is_read: AtomicBool::new(false),
            was_read: Notify::new(),
            work: Notify::new(),
            relief: Notify::new(),
            adopted: AtomicU64::new(0),
            trouble: Mutex::default(),
        }
    }

    /// As whose its records are.
    pub(crate) fn member(&self) -> &str {
        &self.place.member
    }

    /// Its stream, or in a cluster that of a slot.
    pub(crate) fn names(&self, slot: Option<u16>) -> Arc<StreamNames> {
        let mut state = self.state.lock();
        let made = || Arc::new(StreamNames::new(&self.place.domain, &self.keyspace, slot));
        state.names.entry(slot).or_insert_with(made).clone()
    }

    /// Records that were another sidecar's.
    pub(crate) fn adopted(&self) -> u64 {
        self.adopted.load(Ordering::Relaxed)
    }

    // === writing ===

    /// Whether a write to a slot may go now; else [`prepare`](Self::prepare) it.
    pub(super) fn takes(&self, slot: u16) -> bool {
        self.is_read.load(Ordering::Acquire) && (!self.place.in_cluster || self.state.lock().slots.contains(&slot))
    }

    /// Waits until what was left is in the queue, and sees to it that whoever comes after this process looks at the slot.
    pub(super) async fn prepare(&self, shared: &Arc<Shared>, slot: u16) -> Result<(), String> {
        let read = async {
            loop {
                let was_read = self.was_read.notified();
                if self.is_read.load(Ordering::Acquire) {
                    return;
                }
                was_read.await;
            }
        };
        if tokio::time::timeout(self.place.timeout, read).await.is_err() {
            return Err("what an earlier process left for the store could not be read from Redis yet".to_owned());
        }
        if self.takes(slot) {
            return Ok(());
        }
        let name = slots_key(&self.place.domain, &self.keyspace, &self.place.member);
        ask(shared, &name, &[b"SADD", &name, slot.to_string().as_bytes()]).await?;
        self.state.lock().slots.insert(slot);
        Ok(())
    }

    /// Redis has recorded writes under these ids; `done` runs when its replicas have them. Gives back what it will not run,
    /// because no replicas are wanted.
    pub(super) fn recorded(
        self: &Arc<Self>,
        shared: &Arc<Shared>,
        via: &Via<'_>,
        names: &Arc<StreamNames>,
        ids: Vec<String>,
        records: &[Record<Bytes, Bytes>],
        done: Done,
    ) -> Option<Done> {
        let mut state = self.state.lock();
        for (id, record) in ids.into_iter().zip(records) {
            let place = Entry { names: names.clone(), id, key: record.key.clone() };
            state.records.insert(record.seq, place);
        }
        if self.replicas == 0 {
            return Some(done);
        }
        let rounds = state.rounds.entry(via.node.id).or_default();
        rounds.waiting.push((via.connection, done));
        if !rounds.is_under_way {
            self.begin_round(shared, via.node, rounds);
        }
        None
    }

    fn begin_round(self: &Arc<Self>, shared: &Arc<Shared>, node: &Arc<Node>, rounds: &mut Rounds) {
        let L3::Redis(redis) = &shared.l3 else { return };
        let patience = if rounds.has_failed { SHORT.min(self.patience) } else { self.patience };
        let (replicas, millis) = (self.replicas.to_string(), patience.as_millis().max(1).to_string());
        crash::point("before-wait");
        let mut bytes = Vec::new();
        encode::command(&mut bytes, ["WAIT", &replicas, &millis]);
        let round = Round { streams: self.clone(), waiting: std::mem::take(&mut rounds.waiting), reply: None };
        let request = Request { bytes: bytes.into(), replies: 1, tag: Tag::Round(Box::new(round)) };
        // Without a connection the sidecar is ending.
        rounds.is_under_way = redis.writer(shared, node, DATABASE).is_some_and(|lane| lane.submit(request).is_ok());
    }

    // === what the store has ===

    /// Removes what the store has. Never done.
    pub(super) async fn remove(&self, shared: &Arc<Shared>) {
        loop {
            self.work.notified().await;
            while let Some((names, batch)) = self.to_be_removed() {
                crash::point("before-removed");
                let mut bytes = Vec::new();
                writes::settle(&mut bytes, &names, batch.iter().map(|entry| (entry.id.as_str(), &entry.key[..])));
                if let Err(error) = errands::ask_owner(shared, &names.stream, DATABASE, bytes).await {
                    tracing::debug!(keyspace = self.keyspace, %error, "records that the store has are still in Redis");
                    self.state.lock().settled.entry(names).or_default().extend(batch);
                    tokio::time::sleep(PAUSE).await;
                }
                crash::point("removed");
            }
            self.relief.notify_waiters();
        }
    }

    /// Records of one stream that the store has; without any, nothing is being removed.
    fn to_be_removed(&self) -> Option<(Arc<StreamNames>, Vec<Entry>)> {
        let mut state = self.state.lock();
        let names = state.settled.keys().next().cloned();
        state.removing = names.is_some();
        let names = names?;
        let all = state.settled.get_mut(&names)?;
        let batch = all.split_off(all.len().saturating_sub(SETTLED));
        if all.is_empty() {
            state.settled.remove(&names);
        }
        Some((names, batch))
    }

    /// Waits until all that the store has was removed.
    pub(super) async fn removed(&self) {
        loop {
            let relief = self.relief.notified();
            let mut relief = std::pin::pin!(relief);
            relief.as_mut().enable();
            if self.is_tidy() {
                return;
            }
            self.work.notify_one();
            relief.await;
        }
    }

    fn is_tidy(&self) -> bool {
        let state = self.state.lock();
        state.settled.is_empty() && !state.removing
    }

    // === what was left ===

    /// Reads what an earlier process of this pod has left. Nothing is written before.
    pub(super) async fn recover(&self, shared: &Arc<Shared>, behind: &Arc<Behind>) -> Result<usize, String> {
        let me = self.place.member.clone();
        let slots = self.slots_of(shared, &me).await?;
        let mut found = 0;
        for slot in &slots {
            found += self.take(shared, behind, *slot, &me).await?;
        }
        self.state.lock().slots.extend(slots.into_iter().flatten());
        self.is_read.store(true, Ordering::Release);
        self.was_read.notify_waiters();
        Ok(found)
    }

    /// Takes over what another sidecar has left; how many records.
    pub(super) async fn adopt(&self, shared: &Arc<Shared>, behind: &Arc<Behind>, from: &str) -> Result<usize, String> {
        let mut found = 0;
        for slot in self.slots_of(shared, from).await? {
            if !shared.coordination.duties().is_holder() {
                return Err("the duties went to another sidecar".to_owned());
            }
            if let Some(slot) = slot {
                self.prepare(shared, slot).await?;
            }
            found += self.take(shared, behind, slot, from).await?;
        }
        self.adopted.fetch_add(found as u64, Ordering::Relaxed);
        Ok(found)
    }

    /// In a cluster the slots where a sidecar may have left something.
    async fn slots_of(&self, shared: &Arc<Shared>, member: &str) -> Result<Vec<Option<u16>>, String> {
        if !self.place.in_cluster {
            return Ok(vec![None]);
        }
        let name = slots_key(&self.place.domain, &self.keyspace, member);
        let reply = ask(shared, &name, &[b"SMEMBERS", &name]).await?;
        let (value, _) = caddy_resp::Value::decode(&reply).map_err(|error| error.to_string())?;
        let number = |value: &caddy_resp::Value<'_>| std::str::from_utf8(value.as_bytes()?).ok()?.parse().ok();
        Ok(value.as_elements().unwrap_or_default().iter().filter_map(number).map(Some).collect())
    }

    async fn take(
        &self,
        shared: &Arc<Shared>,
        behind: &Arc<Behind>,
        slot: Option<u16>,
        from: &str,
    ) -> Result<usize, String> {
        let L3::Redis(redis) = &shared.l3 else { return Ok(0) };
        let names = self.names(slot);
        let (mut after, mut found): (Option<String>, usize) = (None, 0);
        loop {
            let unknown = || "which node has the stream is not known yet".to_owned();
            let node = redis.owner(&names.stream).ok_or_else(unknown)?;
            let lane = redis.writer(shared, &node, DATABASE).ok_or_else(unknown)?;
            let mut bytes = Vec::new();
            writes::take(&mut bytes, &names, from, &self.place.member, after.as_deref());
            let (answer, answered) = oneshot::channel();
            let taking = Taking { behind: behind.clone(), names: names.clone(), answer, reply: None };
            let request = Request { bytes: bytes.into(), replies: 1, tag: Tag::Taking(Box::new(taking)) };
            let ending = "the sidecar is shutting down";
            lane.submit(request).map_err(|_| ending)?;
            let (last, count) = answered.await.map_err(|_| ending)??;
            found += count;
            match last {
                Some(last) => after = Some(last),
                None => return Ok(found),
            }
        }
    }

    /// The slots of a cluster where this sidecar may leave something.
    pub(super) fn slots(&self) -> Vec<u16> {
        self.state.lock().slots.iter().copied().collect()
    }
}

impl Ledger for Streams {
    fn settled(&self, seqs: &[u64]) {
        let mut state = self.state.lock();
        let State { records, settled, .. } = &mut *state;
        for entry in seqs.iter().filter_map(|seq| records.remove(seq)) {
            settled.entry(entry.names.clone()).or_default().push(entry);
        }
        drop(state);
        self.work.notify_one();
    }

    fn replaced(&self, pairs: &[(u64, u64)]) {
        // The newer records have removed these from the stream.
        let mut state = self.state.lock();
        for (seq, _) in pairs {
            state.records.remove(seq);
        }
    }

    fn name(&self, seq: u64) -> String {
        let state = self.state.lock();
        let name = |place: &Entry| format!("{}-{}", String::from_utf8_lossy(&place.names.stream), place.id);
        state.records.get(&seq).map(name).unwrap_or_default()
    }
}

/// Where the slots are noted that a sidecar writes to in a cluster.
pub(super) fn slots_key(domain: &str, keyspace: &str, member: &str) -> Vec<u8> {
    format!("caddy:{domain}:wb-slots:{keyspace}:{member}").into_bytes()
}

/// Asks the node that has `key`.
pub(super) async fn ask(shared: &Arc<Shared>, key: &[u8], command: &[&[u8]]) -> Result<Bytes, String> {
    let mut bytes = Vec::new();
    encode::command(&mut bytes, command.to_vec());
    errands::ask_owner(shared, key, DATABASE, bytes).await.map_err(|error| error.to_string())
}

fn text(reply: Option<&[u8]>) -> String {
    String::from_utf8_lossy(reply.unwrap_or_default()).trim_end().to_owned()
}
