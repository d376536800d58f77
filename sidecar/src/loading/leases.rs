//! Fill leases in L3: asking for one, storing under it, giving it back.
//!
//! Travels on connections of its own, one per server and database, and so owes what every connection beside the tracked
//! one owes: the caller bumps the key's stamp before anything read or stored here reaches an app. Fails with `None`,
//! which says that nobody knows; what is loaded then is answered and not stored.

use std::{cell::RefCell, collections::HashMap, sync::Arc, time::Duration};

use bytes::Bytes;
use caddy_remote::{
    ConnectError, Handler, LaneHandle, Loss, Request, ServerInfo, Setup,
    cluster::Redirect,
    lane,
    leases::{self, CLAIM, END, READ, RELEASE, REMOVE, STORE},
};
use caddy_resp::{Protocol, Value};
use tokio::sync::oneshot;

use crate::{
    nodes::NodeId,
    seldom::Seldom,
    shared::{L3, Shared},
    supervisor::Supervisor,
};

/// What L3 says to one who wants to load a key.
#[derive(Debug)]
pub(super) struct Claimed {
    /// The right to store; `None`: somebody else has it.
    pub(super) lease: Option<Lease>,
    /// What is stored.
    pub(super) present: Option<Bytes>,
    /// Its PTTL.
    pub(super) pttl: i64,
}

/// The right to store what is loaded for one key.
#[derive(Debug)]
pub(super) struct Lease {
    id: u128,
    /// What was stored when it was given.
    present: Option<Bytes>,
}

impl Lease {
    /// Whether something was stored when it was given.
    pub(super) fn has_value(&self) -> bool {
        self.present.is_some()
    }
}

/// What became of what was to be stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Fate {
    Done,
    /// Something came between; the key has another value now.
    Overtaken,
    /// Something came between; the key is absent now.
    Removed,
}

/// A reply that somebody waits for.
struct Ask(oneshot::Sender<Bytes>, Option<Bytes>);

struct Answers(Arc<Shared>);

impl Handler for Answers {
    type Tag = Option<Ask>;

    fn reply(&mut self, tag: &mut Option<Ask>, _: u16, frame: Bytes) {
        if let Some(ask) = tag {
            ask.1 = Some(frame);
        }
    }

    fn finish(&mut self, tag: Option<Ask>, outcome: Result<(), Loss>) {
        if let (Some(Ask(answer, Some(reply))), Ok(())) = (tag, outcome) {
            // Who does not wait any more is not told.
            let _ = answer.send(reply);
        }
    }

    fn push(&mut self, _: Bytes) {}

    fn connected(&mut self, _: Option<&ServerInfo>) {}

    fn lost(&mut self, _: &str) {
        self.0.doubt_slots();
    }

    fn refused(&mut self, _: &Arc<ConnectError>) {
        self.0.doubt_slots();
    }
}

/// By server and database.
type Lanes = HashMap<(NodeId, u32), LaneHandle<Option<Ask>>>;

/// See the module.
pub(super) struct Leases {
    shared: Arc<Shared>,
    supervisor: Supervisor,
    domain: String,
    lanes: RefCell<Lanes>,
    refused: Seldom,
}

impl Leases {
    pub(super) fn new(shared: Arc<Shared>, supervisor: Supervisor) -> Self {
        let domain = shared.config().cluster.domain.clone();
        Self { shared, supervisor, domain, lanes: RefCell::default(), refused: Seldom::default() }
    }

    /// Asks for the right to load, for `span` at most.
    pub(super) async fn claim(&self, database: u32, key: &[u8], span: Duration) -> Option<Claimed> {
        let id = leases::unique();
        let millis = u64::try_from(span.as_millis()).unwrap_or(u64::MAX).max(1).to_string();
        let reply = self
            .ask(database, key, |out, keys| CLAIM.write(out, keys, &[leases::hex(id).as_bytes(), millis.as_bytes()]))
            .await?;
        let value = self.understood(&reply)?;
        let [given, present, pttl] = value.as_elements()? else { return None };
        let present = present.as_bytes().map(Bytes::copy_from_slice);
        let lease = (given.as_integer()? == 1).then(|| Lease { id, present: present.clone() });
        Some(Claimed { lease, present, pttl: pttl.as_integer()? })
    }

    /// Stores `value`, to live for `life` (`None`: for ever), if nothing came between.
    pub(super) async fn store(
        &self,
        database: u32,
        key: &[u8],
        lease: &Lease,
        value: &[u8],
        life: Option<Duration>,
    ) -> Option<Fate> {
        let id = leases::hex(lease.id);
        let (was_there, present): (&[u8], &[u8]) =
            lease.present.as_ref().map_or((b"0", b""), |present| (b"1", present));
        let life = life.map_or_else(String::new, |life| life.as_millis().max(1).to_string());
        let arguments = [id.as_bytes(), was_there, present, value, life.as_bytes()];
        let reply = self.ask(database, key, |out, keys| STORE.write(out, keys, &arguments)).await?;
        self.fate(&reply)
    }

    /// Removes what was there when the lease was given, if nothing came between.
    pub(super) async fn remove(&self, database: u32, key: &[u8], lease: &Lease) -> Option<Fate> {
        let id = leases::hex(lease.id);
        let present = lease.present.as_deref()?;
        let reply = self.ask(database, key, |out, keys| REMOVE.write(out, keys, &[id.as_bytes(), present])).await?;
        self.fate(&reply)
    }

    /// Gives a lease back and reads what is there.
    pub(super) async fn end(&self, database: u32, key: &[u8], lease: &Lease) -> Option<Option<Bytes>> {
        let id = leases::hex(lease.id);
        let reply = self.ask(database, key, |out, keys| END.write(out, keys, &[id.as_bytes()])).await?;
        Some(self.understood(&reply)?.as_bytes().map(Bytes::copy_from_slice))
    }

    /// What is there, and its PTTL.
    pub(super) async fn read(&self, database: u32, key: &[u8]) -> Option<(Option<Bytes>, i64)> {
        let reply = self.ask(database, key, |out, keys| READ.write(out, keys, &[])).await?;
        let value = self.understood(&reply)?;
        let [present, pttl] = value.as_elements()? else { return None };
        Some((present.as_bytes().map(Bytes::copy_from_slice), pttl.as_integer()?))
    }

    /// Gives a lease back; one that cannot be given back runs out.
    pub(super) fn release(&self, database: u32, key: &[u8], lease: &Lease) {
        let mut bytes = Vec::new();
        let name = leases::name(&self.domain, key, self.is_cluster());
        RELEASE.write(&mut bytes, &[&name], &[leases::hex(lease.id).as_bytes()]);
        if let Some(lane) = self.lane(database, key) {
            let _ = lane.submit(Request { bytes: bytes.into(), replies: 1, tag: None });
        }
    }

    fn fate(&self, reply: &[u8]) -> Option<Fate> {
        match self.understood(reply)?.as_integer()? {
            1 => Some(Fate::Done),
            0 => Some(Fate::Overtaken),
            _ => Some(Fate::Removed),
        }
    }

    /// A reply that is no error; of an error, what it says of the slot map is noted.
    fn understood<'a>(&self, reply: &'a [u8]) -> Option<Value<'a>> {
        match Value::decode(reply).ok()?.0 {
            Value::Error(error) => {
                if Redirect::parse(reply, &caddy_remote::Endpoint::Unix("/".into())).is_some() {
                    self.shared.doubt_slots();
                } else if let Some(before) = self.refused.due(self.shared.now()) {
                    tracing::warn!(
                        error = %String::from_utf8_lossy(error),
                        before,
                        "Redis refuses fill leases: what is loaded is answered and not stored (does its user have +eval?)"
                    );
                }
                None
            }
            value => Some(value),
        }
    }

    async fn ask(&self, database: u32, key: &[u8], write: impl FnOnce(&mut Vec<u8>, &[&[u8]])) -> Option<Bytes> {
        let lane = self.lane(database, key)?;
        let name = leases::name(&self.domain, key, self.is_cluster());
        let mut bytes = Vec::new();
        write(&mut bytes, &[key, &name]);
        let (answer, answered) = oneshot::channel();
        lane.submit(Request { bytes: bytes.into(), replies: 1, tag: Some(Ask(answer, None)) }).ok()?;
        answered.await.ok()
    }

    fn is_cluster(&self) -> bool {
        matches!(&self.shared.l3, L3::Redis(redis) if redis.cluster().is_some())
    }

    fn lane(&self, database: u32, key: &[u8]) -> Option<LaneHandle<Option<Ask>>> {
        let L3::Redis(redis) = &self.shared.l3 else { return None };
        let node = redis.owner(key)?;
        let mut lanes = self.lanes.borrow_mut();
        if let Some(lane) = lanes.get(&(node.id, database)) {
            return Some(lane.clone());
        }
        // Seldom enough to look for those to nodes that have left.
        let nodes = redis.nodes();
        lanes.retain(|(id, _), _| nodes.iter().any(|node| node.id == *id));
        let setup = Setup { protocol: Protocol::Resp3, database, tracked: false, timed: true };
        let (handle, mut lane) = lane(node.target.clone(), setup, Answers(self.shared.clone()));
        self.supervisor.spawn_local("fill leases", async move { std::future::poll_fn(|cx| lane.poll(cx)).await });
        lanes.insert((node.id, database), handle.clone());
        Some(handle)
    }
}
