//! A Redis or Valkey as the L3 of a [`MultiTierCache`](caddy_engine::MultiTierCache), coherent by tracking.
//!
//! Two connections: reads and currency proofs travel on a *tracked* one, whose pushes kill copies inline and whose loss
//! kills all of them; everything else travels on the other. Both are polled by one [`Driver`], the tracked one first.
//! Values are stored as the [`Codec`] writes them; what it cannot read is treated as absent. A server that refuses
//! tracking is not used: requests fail and say why. Standalone servers only: a replica is read, but proves nothing.

mod driver;

use std::marker::PhantomData;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use caddy_engine::codec::Codec;
use caddy_engine::codec::envelope::{Header, SoftExpiry};
use caddy_engine::invalidation::KeyPattern;
use caddy_engine::remote::{
    Claim, Coherence, Fetched, Lifetime, LoadLease, Remote, RemoteError, RemoteFuture, Sending,
};
use caddy_engine::{CacheKey, CacheValue, SourceKind};
use caddy_resp::{Value, encode};
use tokio::sync::oneshot;

pub use driver::Driver;
use driver::{Asked, Outcome, Readers, Tag};

use crate::{LaneHandle, Request, Target, leases as scripts};

/// Stands between the prefix and a key's name in the name of its lease.
const LEASE: &[u8] = b"caddy:lease:";

/// Where in a Redis a cache lives.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct RedisNames {
    /// The database.
    pub database: u32,
    /// What every key begins with. [`clear`](Remote::clear) removes what does, and needs one.
    pub prefix: String,
}

/// A Redis or Valkey as the L3 of a [`MultiTierCache`](caddy_engine::MultiTierCache), coherent by tracking.
///
/// Reads and currency proofs travel on a *tracked* connection, whose pushes kill copies inline and whose loss kills all of
/// them; everything else on another. Values are stored as the [`Codec`] writes them; what it cannot read is treated as
/// absent. A server that refuses tracking is not used: reads fail and say why. Standalone servers only.
///
/// ```no_run
/// use caddy_engine::codec::{BinaryCodec, CodecConfig};
/// use caddy_engine::{MultiTierCache, TierConfig};
/// use caddy_remote::{Endpoint, RedisNames, RedisRemote, Target};
/// use std::{sync::Arc, time::Duration};
///
/// # async fn example(target: Target, spawn: impl Fn(caddy_remote::Driver)) {
/// let codec = BinaryCodec::<String>::new(CodecConfig::default());
/// let names = RedisNames { database: 0, prefix: "users:".into() };
/// let (remote, driver) = RedisRemote::new(target, names, codec);
/// spawn(driver); // onto the runtime: the connections live as long as it is polled
///
/// let cache = MultiTierCache::<String, String>::new(TierConfig::default(), Arc::new(remote));
/// # }
/// ```
pub struct RedisRemote<K, V, C> {
    tracked: LaneHandle<Tag>,
    relay: LaneHandle<Tag>,
    readers: Arc<Readers>,
    prefix: String,
    codec: C,
    of: PhantomData<fn(K) -> V>,
}

impl<K, V, C> std::fmt::Debug for RedisRemote<K, V, C> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("RedisRemote").field("prefix", &self.prefix).finish_non_exhaustive()
    }
}

impl<K: CacheKey, V: CacheValue, C: Codec<V>> RedisRemote<K, V, C> {
    /// A remote, and the future that keeps its connections: poll it as long as the remote is used. It ends when the remote
    /// is dropped.
    pub fn new(target: Target, names: RedisNames, codec: C) -> (Self, Driver) {
        let RedisNames { database, prefix } = names;
        let readers = Arc::new(Readers::new(prefix.clone()));
        let (driver, tracked, relay) = Driver::new(&Arc::new(target), database, &readers);
        (Self { tracked, relay, readers, prefix, codec, of: PhantomData }, driver)
    }

    fn names(&self, key: &K) -> Names {
        key.with_name(|name| {
            let prefix = self.prefix.as_bytes();
            Names { key: [prefix, name].concat(), lease: [prefix, LEASE, name].concat() }
        })
    }

    fn encode(&self, names: &Names, value: &V, stale: Duration) -> Result<Vec<u8>, RemoteError> {
        let soft_expiry = (!stale.is_zero()).then(|| SoftExpiry::at_remaining(stale));
        let encoded = self.codec.encode_with(&names.key, &Header { soft_expiry, ..Header::default() }, value);
        encoded
            .map(caddy_engine::codec::EncodedData::into_bytes)
            .map_err(|error| RemoteError::Encode { reason: error.to_string().into() })
    }

    /// What a stored value is to a reader; `None`: it cannot be read, which is as good as absent.
    fn decode(&self, names: &Names, stored: &[u8], pttl: i64) -> Option<Fetched<V>> {
        let (value, header) = self.codec.decode_with(&names.key, stored).ok()?;
        let stale = header.soft_expiry.map_or(Duration::ZERO, SoftExpiry::remaining);
        let left = match pttl {
            -1 => return Some(Fetched { value, fresh_for: None, stale_for: stale }),
            // It expired, or was removed, between the two replies.
            ..0 => Duration::ZERO,
            0.. => Duration::from_millis(pttl.unsigned_abs()),
        };
        Some(Fetched { value, fresh_for: Some(left.saturating_sub(stale)), stale_for: stale.min(left) })
    }

    /// Sends commands on the connection that is not tracked and waits for the last reply.
    async fn ask(&self, replies: u16, write: impl FnOnce(&mut Vec<u8>)) -> Result<Bytes, RemoteError> {
        let mut bytes = Vec::new();
        write(&mut bytes);
        let (answer, answered) = oneshot::channel();
        submit(&self.relay, bytes, replies, Tag::Ask(Asked { last: None, answer }))?;
        let reply = received(answered).await?;
        refusal(&reply)?;
        Ok(reply)
    }

    /// `commands` within MULTI; their replies.
    async fn transaction(&self, commands: &[&[&[u8]]]) -> Result<Bytes, RemoteError> {
        self.ask(commands.len() as u16 + 2, |out| {
            encode::command(out, [b"MULTI"]);
            for command in commands {
                encode::command(out, command.iter().copied());
            }
            encode::command(out, [b"EXEC"]);
        })
        .await
    }

    async fn delete(&self, names: &Names) -> Result<bool, RemoteError> {
        let reply = self.transaction(&[&[b"DEL", &names.key], &[b"DEL", &names.lease]]).await?;
        Ok(element(&reply, 0) == Some(Value::Integer(1)))
    }

    /// The next keys that begin with the prefix, and where to go on. A walk shows those that are there all the while.
    async fn scan(&self, from: &[u8]) -> Result<(Vec<Vec<u8>>, Option<Vec<u8>>), RemoteError> {
        let pattern = scripts::literal(&self.prefix);
        let scan = [b"SCAN".as_slice(), from, b"MATCH", &pattern, b"COUNT", b"1000"];
        let reply = self.ask(1, |out| encode::command(out, scan)).await?;
        let keys = match element(&reply, 1) {
            Some(Value::Array(keys)) => keys.iter().filter_map(Value::as_bytes).map(<[u8]>::to_vec).collect(),
            _ => Vec::new(),
        };
        let next = element(&reply, 0).and_then(|next| next.as_bytes().map(<[u8]>::to_vec));
        Ok((keys, next.filter(|next| next != b"0")))
    }

    /// The bytes under a key, and its lifetime, by way of the connection that is not tracked.
    async fn look(&self, names: &Names) -> Result<Option<(Bytes, i64)>, RemoteError> {
        let reply = self.transaction(&[&[b"GET", &names.key], &[b"PTTL", &names.key]]).await?;
        let Some(Value::Integer(pttl)) = element(&reply, 1) else { return Ok(None) };
        let stored = element(&reply, 0).and_then(|value| value.as_bytes().map(Bytes::copy_from_slice));
        Ok(stored.map(|stored| (stored, pttl)))
    }
}

/// What a key and its lease are called in Redis.
struct Names {
    key: Vec<u8>,
    lease: Vec<u8>,
}

impl<K: CacheKey, V: CacheValue, C: Codec<V> + Send + Sync> Remote<K, V> for RedisRemote<K, V, C> {
    fn kind(&self) -> SourceKind {
        SourceKind::Tracked
    }

    fn attach(&self, coherence: Coherence) {
        self.readers.attach(coherence);
    }

    fn read<'a>(&'a self, key: &'a K) -> RemoteFuture<'a, Option<Fetched<V>>> {
        Box::pin(async move {
            let names = self.names(key);
            let mut bytes = Vec::new();
            encode::command(&mut bytes, [b"GET".as_slice(), &names.key]);
            encode::command(&mut bytes, [b"PTTL".as_slice(), &names.key]);
            let (answer, answered) = oneshot::channel();
            submit(&self.tracked, bytes, 2, Tag::read(answer))?;
            let (reply, pttl) = received(answered).await?;
            refusal(&reply)?;
            let stored = Value::decode(&reply).ok().and_then(|(value, _)| value.as_bytes());
            Ok(stored.and_then(|stored| self.decode(&names, stored, pttl)))
        })
    }

    fn write<'a>(&'a self, key: &'a K, value: &'a V, lifetime: Lifetime) -> RemoteFuture<'a, ()> {
        Box::pin(async move {
            let names = self.names(key);
            if lifetime.ttl == Some(Duration::ZERO) {
                return self.delete(&names).await.map(drop);
            }
            let stored = self.encode(&names, value, lifetime.stale)?;
            let expiry = expiry(lifetime);
            let mut set: Vec<&[u8]> = vec![b"SET", &names.key, &stored];
            if let Some(expiry) = &expiry {
                set.extend([b"PX".as_slice(), expiry.as_bytes()]);
            }
            self.transaction(&[&set, &[b"DEL", &names.lease]]).await.map(drop)
        })
    }

    fn remove<'a>(&'a self, key: &'a K) -> RemoteFuture<'a, bool> {
        Box::pin(async move { self.delete(&self.names(key)).await })
    }

    fn expire<'a>(&'a self, key: &'a K) -> RemoteFuture<'a, bool> {
        Box::pin(async move {
            let names = self.names(key);
            let Some((stored, pttl)) = self.look(&names).await? else { return self.delete(&names).await };
            let stale = self.decode(&names, &stored, pttl).map_or(Duration::ZERO, |found| found.stale_for);
            if stale.is_zero() {
                return self.delete(&names).await;
            }
            // A write that came between is newer than what this call is about: then nothing is done.
            let millis = millis(stale).to_string();
            self.ask(1, |out| {
                scripts::EXPIRE.write(out, &[&names.key, &names.lease], &[&stored, millis.as_bytes()]);
            })
            .await?;
            Ok(true)
        })
    }

    fn clear(&self) -> RemoteFuture<'_, ()> {
        Box::pin(async move {
            if self.prefix.is_empty() {
                let reason =
                    "without a prefix the cache's keys cannot be told from others: give it one, or use FLUSHDB";
                return Err(RemoteError::Refused { reason: reason.into() });
            }
            let mut cursor = Some(b"0".to_vec());
            while let Some(from) = cursor {
                let (keys, next) = self.scan(&from).await?;
                if !keys.is_empty() {
                    self.ask(1, |out| encode::command(out, unlink(&keys))).await?;
                }
                cursor = next;
            }
            Ok(())
        })
    }

    fn remove_matching<'a>(&'a self, pattern: &'a KeyPattern) -> RemoteFuture<'a, u64> {
        Box::pin(async move {
            let lease = [self.prefix.as_bytes(), LEASE].concat();
            let (mut removed, mut cursor) = (0, Some(b"0".to_vec()));
            while let Some(from) = cursor {
                let (mut keys, next) = self.scan(&from).await?;
                keys.retain(|key| !key.starts_with(&lease) && pattern.matches(&key[self.prefix.len()..]));
                if !keys.is_empty() {
                    // A lease goes in the same step as what was there when it was given.
                    let leases: Vec<_> = keys.iter().map(|key| [&lease, &key[self.prefix.len()..]].concat()).collect();
                    let reply = self.transaction(&[&unlink(&keys), &unlink(&leases)]).await?;
                    if let Some(Value::Integer(count)) = element(&reply, 0) {
                        removed += count.unsigned_abs();
                    }
                }
                cursor = next;
            }
            Ok(removed)
        })
    }

    fn claim<'a>(&'a self, key: &'a K, span: Duration) -> RemoteFuture<'a, Claim> {
        Box::pin(async move {
            let names = self.names(key);
            let id = scripts::unique();
            let millis = millis(span).to_string();
            let reply = self
                .ask(1, |out| {
                    let id = scripts::hex(id);
                    scripts::CLAIM.write(out, &[&names.key, &names.lease], &[id.as_bytes(), millis.as_bytes()]);
                })
                .await?;
            if element(&reply, 0) != Some(Value::Integer(1)) {
                return Ok(Claim::Held);
            }
            let present = element(&reply, 1).and_then(|value| value.as_bytes().map(Bytes::copy_from_slice));
            Ok(Claim::Granted(LoadLease { id, present }))
        })
    }

    fn store<'a>(
        &'a self,
        key: &'a K,
        value: &'a V,
        lifetime: Lifetime,
        lease: &'a LoadLease,
    ) -> RemoteFuture<'a, bool> {
        Box::pin(async move {
            let names = self.names(key);
            let stored = self.encode(&names, value, lifetime.stale)?;
            let id = scripts::hex(lease.id);
            let expiry = expiry(lifetime).unwrap_or_default();
            let (was_there, present): (&[u8], &[u8]) =
                lease.present.as_ref().map_or((b"0", b""), |present| (b"1", present));
            let arguments: [&[u8]; 5] = [id.as_bytes(), was_there, present, &stored, expiry.as_bytes()];
            let reply = self.ask(1, |out| scripts::STORE.write(out, &[&names.key, &names.lease], &arguments)).await?;
            Ok(Value::decode(&reply).is_ok_and(|(value, _)| value == Value::Integer(1)))
        })
    }

    fn release(&self, key: &K, lease: &LoadLease) {
        let mut bytes = Vec::new();
        scripts::RELEASE.write(&mut bytes, &[&self.names(key).lease], &[scripts::hex(lease.id).as_bytes()]);
        // A lease that cannot be given back runs out.
        let _ = submit(&self.relay, bytes, 1, Tag::Forget);
    }

    fn probe(&self, sending: Sending) {
        let mut bytes = Vec::new();
        encode::command(&mut bytes, [b"HELLO"]);
        // An ended lane has no copies left to prove.
        let _ = submit(&self.tracked, bytes, 1, Tag::Probe(sending));
    }
}

fn unlink(keys: &[Vec<u8>]) -> Vec<&[u8]> {
    std::iter::once(b"UNLINK".as_slice()).chain(keys.iter().map(Vec::as_slice)).collect()
}

fn submit(lane: &LaneHandle<Tag>, bytes: Vec<u8>, replies: u16, tag: Tag) -> Result<(), RemoteError> {
    lane.submit(Request { bytes: bytes.into(), replies, tag })
        .map_err(|_| RemoteError::Unreachable { reason: "its driver has ended: it has to be polled".into() })
}

async fn received<T>(answered: oneshot::Receiver<Outcome<T>>) -> Result<T, RemoteError> {
    match answered.await {
        Ok(Ok(answer)) => Ok(answer),
        Ok(Err(loss)) => Err(RemoteError::Unreachable { reason: loss.to_string().into() }),
        Err(_) => Err(RemoteError::Unreachable { reason: "its driver has ended: it has to be polled".into() }),
    }
}

/// An error reply, or one within the replies of a transaction.
fn refusal(reply: &[u8]) -> Result<(), RemoteError> {
    let refused = |error: &[u8]| Err(RemoteError::Refused { reason: String::from_utf8_lossy(error).into() });
    match Value::decode(reply) {
        Ok((Value::Error(error), _)) => refused(error),
        Ok((Value::Array(elements), _)) => elements.iter().try_for_each(|element| match element {
            Value::Error(error) => refused(error),
            _ => Ok(()),
        }),
        Ok(_) => Ok(()),
        Err(_) => refused(b"its reply cannot be read"),
    }
}

fn element(reply: &[u8], index: usize) -> Option<Value<'_>> {
    match Value::decode(reply).ok()?.0 {
        Value::Array(elements) => elements.into_iter().nth(index),
        _ => None,
    }
}

/// The longest expiry that is set; beyond it, about 30 years, nothing expires.
const LONGEST: Duration = Duration::from_secs(1_000_000_000);

/// Milliseconds of a key's whole life in Redis; `None`: it does not expire.
fn expiry(lifetime: Lifetime) -> Option<String> {
    let life = lifetime.ttl?.checked_add(lifetime.stale)?;
    (life < LONGEST).then(|| millis(life).to_string())
}

/// At least 1, which is the least that Redis takes.
fn millis(span: Duration) -> u64 {
    u64::try_from(span.min(LONGEST).as_millis()).unwrap_or(u64::MAX).max(1)
}
