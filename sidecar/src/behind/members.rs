//! Signs of life of sidecars that record writes in streams, and what becomes of the streams of one that gives none.
//!
//! Every such sidecar notes in L3 that it is there, and for which keyspaces. Whoever has the cluster's duties looks whether
//! all others are; from one that was silent for `adoptAfter` it takes the records over, each by one step of Redis that only
//! one can do, and stores them as its own. A sidecar that was merely slow goes on: what it stores then is the same again.

use std::{
    collections::{HashMap, HashSet},
    sync::Arc,
    time::Duration,
};

use caddy_engine::Moment;
use caddy_resp::Value;

use super::{
    Behind,
    streams::{ask, slots_key},
};
use crate::shared::Shared;

/// Looks, and signs of life, in `adoptAfter`.
const BEATS: u32 = 6;
/// How long the slots of a sidecar that was silent are kept, should it come back: it does not note them again by itself.
const KEEP_SECONDS: &[u8] = b"604800";

/// See the module. Never done.
pub(crate) async fn watch(shared: Arc<Shared>) {
    let mut watch = Watch { silent: HashMap::new(), strangers: HashSet::new(), was_told: false };
    loop {
        let with_streams = watched(&shared);
        let Some(span) = with_streams.iter().map(|behind| behind.adopt_after()).min() else {
            shared.behinds.begun_streams.notified().await;
            continue;
        };
        if let Err(reason) = watch.beat(&shared, &with_streams, span).await {
            tracing::debug!(reason, "a sign of life could not be given");
        }
        tokio::time::sleep(span / BEATS).await;
    }
}

/// Says that this sidecar ends. What it leaves is another's at once.
pub(super) async fn leave(shared: &Arc<Shared>) {
    let all = watched(shared);
    let Some(first) = all.first().and_then(|behind| behind.streams.as_ref()) else { return };
    let (domain, me) = (shared.config().cluster.domain.clone(), first.member().to_owned());
    let alive = alive_key(&domain, &me);
    let mut said = ask(shared, &alive, &[b"DEL", &alive]).await.map(drop);
    if all.iter().all(|behind| behind.stats().backlog.records == 0) {
        let members = members_key(&domain);
        said = said.and(ask(shared, &members, &[b"HDEL", &members, me.as_bytes()]).await.map(drop));
        for behind in all.iter().filter(|_| shared.in_cluster()) {
            let slots = slots_key(&domain, &behind.name, &me);
            said = said.and(ask(shared, &slots, &[b"DEL", &slots]).await.map(drop));
        }
    }
    if let Err(reason) = said {
        tracing::info!(reason, "that this sidecar ends could not be noted in Redis; others see it by its silence");
    }
}

fn watched(shared: &Shared) -> Vec<Arc<Behind>> {
    shared.behinds.every().into_iter().filter(|behind| behind.streams.is_some()).collect()
}

struct Watch {
    /// Since when nothing is heard of which member.
    silent: HashMap<String, Moment>,
    /// Whose writes have no store, told once.
    strangers: HashSet<(String, String)>,
    /// What was noted under this sidecar's own name by an earlier process was looked at.
    was_told: bool,
}

impl Watch {
    async fn beat(&mut self, shared: &Arc<Shared>, all: &[Arc<Behind>], span: Duration) -> Result<(), String> {
        let Some(me) = all.iter().find_map(|behind| behind.streams.as_ref()).map(|streams| streams.member().to_owned())
        else {
            return Ok(());
        };
        let domain = shared.config().cluster.domain.clone();
        let (alive, members) = (alive_key(&domain, &me), members_key(&domain));
        let millis = (span / 2).as_millis().to_string();
        ask(shared, &alive, &[b"SET", &alive, b"1", b"PX", millis.as_bytes()]).await?;
        if !self.was_told {
            let before = ask(shared, &members, &[b"HGET", &members, me.as_bytes()]).await?;
            let noted = Value::decode(&before).ok().and_then(|(value, _)| value.as_bytes().map(<[u8]>::to_vec));
            for (keyspace, store) in parse(&noted.unwrap_or_default()) {
                if !all.iter().any(|behind| behind.name == keyspace) {
                    self.adopt(shared, &me, &keyspace, &store).await?;
                }
            }
            self.was_told = true;
        }
        let noted: Vec<String> = all.iter().map(|behind| format!("{}={}", behind.name, behind.store)).collect();
        let reply = ask(shared, &members, &[b"HSET", &members, me.as_bytes(), noted.join(",").as_bytes()]).await?;
        if shared.in_cluster() && &reply[..] == b":1\r\n" {
            // Somebody held this sidecar for dead.
            for behind in all {
                note_slots(shared, behind, &domain, &me).await?;
            }
        }
        if shared.coordination.duties().is_holder() {
            self.look(shared, &domain, &me, span).await?;
        }
        Ok(())
    }

    async fn look(&mut self, shared: &Arc<Shared>, domain: &str, me: &str, span: Duration) -> Result<(), String> {
        let members = members_key(domain);
        let reply = ask(shared, &members, &[b"HGETALL", &members]).await?;
        let (value, _) = Value::decode(&reply).map_err(|error| error.to_string())?;
        let text = |value: &Value<'_>| value.as_bytes().map(|bytes| String::from_utf8_lossy(bytes).into_owned());
        let others: Vec<(String, Vec<u8>)> = match &value {
            Value::Map(pairs) => {
                pairs.iter().filter_map(|(name, kept)| Some((text(name)?, kept.as_bytes()?.to_vec()))).collect()
            }
            other => {
                let pairs = other.as_elements().unwrap_or_default().chunks_exact(2);
                pairs.filter_map(|pair| Some((text(&pair[0])?, pair[1].as_bytes()?.to_vec()))).collect()
            }
        };
        self.silent.retain(|member, _| others.iter().any(|(other, _)| other == member));
        for (member, keyspaces) in others.into_iter().filter(|(member, _)| member != me) {
            let alive = alive_key(domain, &member);
            if &ask(shared, &alive, &[b"EXISTS", &alive]).await?[..] == b":1\r\n" {
                self.silent.remove(&member);
                continue;
            }
            let since = *self.silent.entry(member.clone()).or_insert_with(|| shared.now());
            // Its last sign was good for half of the time.
            if shared.now().since(since) < span / 2 {
                continue;
            }
            if let Err(reason) = self.take_over(shared, domain, &member, &keyspaces).await {
                tracing::debug!(member, reason, "what a sidecar left in Redis could not be taken over yet");
            }
        }
        Ok(())
    }

    async fn take_over(
        &mut self,
        shared: &Arc<Shared>,
        domain: &str,
        member: &str,
        keyspaces: &[u8],
    ) -> Result<(), String> {
        for (keyspace, store) in parse(keyspaces) {
            self.adopt(shared, member, &keyspace, &store).await?;
            if shared.in_cluster() {
                let slots = slots_key(domain, &keyspace, member);
                ask(shared, &slots, &[b"EXPIRE", &slots, KEEP_SECONDS]).await?;
            }
        }
        let members = members_key(domain);
        ask(shared, &members, &[b"HDEL", &members, member.as_bytes()]).await?;
        self.silent.remove(member);
        Ok(())
    }

    async fn adopt(&mut self, shared: &Arc<Shared>, member: &str, keyspace: &str, store: &str) -> Result<(), String> {
        let own = shared.behinds.get(keyspace).filter(|behind| behind.streams.is_some());
        let goes_with_it = own.is_none();
        let behind = own.or_else(|| shared.behinds.begin_for_records(keyspace, shared.loading.stores().get(store)));
        let Some(behind) = behind else {
            if self.strangers.insert((member.to_owned(), keyspace.to_owned())) {
                tracing::error!(
                    keyspace,
                    store,
                    member,
                    "a sidecar left writes in Redis for a store that is not configured any more; they stay there"
                );
            }
            return Err(format!("there is no store '{store}'"));
        };
        let Some(streams) = &behind.streams else { return Ok(()) };
        let adopted = streams.adopt(shared, &behind, member).await;
        if goes_with_it {
            behind.leave();
        }
        let records = adopted?;
        tracing::info!(keyspace, member, records, "writes that a sidecar left in Redis are stored by this one");
        Ok(())
    }
}

/// Notes again which slots of a cluster this sidecar writes to.
async fn note_slots(shared: &Arc<Shared>, behind: &Behind, domain: &str, me: &str) -> Result<(), String> {
    let Some(streams) = &behind.streams else { return Ok(()) };
    let slots: Vec<String> = streams.slots().iter().map(u16::to_string).collect();
    if slots.is_empty() {
        return Ok(());
    }
    let name = slots_key(domain, &behind.name, me);
    let mut command: Vec<&[u8]> = vec![b"SADD", &name];
    command.extend(slots.iter().map(String::as_bytes));
    ask(shared, &name, &command).await?;
    ask(shared, &name, &[b"PERSIST", &name]).await.map(drop)
}

/// `keyspace=store,…`
fn parse(noted: &[u8]) -> Vec<(String, String)> {
    let text = String::from_utf8_lossy(noted);
    let pair = |part: &str| part.split_once('=').map(|(keyspace, store)| (keyspace.to_owned(), store.to_owned()));
    text.split(',').filter_map(pair).collect()
}

fn members_key(domain: &str) -> Vec<u8> {
    format!("caddy:{domain}:wb-members").into_bytes()
}

fn alive_key(domain: &str, member: &str) -> Vec<u8> {
    format!("caddy:{domain}:wb-alive:{member}").into_bytes()
}
