//! An epoch whose tokens are out is not gone past by who saw it agreed on and not in Redis yet, however the two interleave.

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use caddy_engine::locks::{Answer, Ask, LockBackend, LockMode, Owner, Ticket};
use caddy_remote::{
    Endpoint, Target,
    locks::{Agreed, Agreement, EpochAuthority, RedisLocks},
};
use caddy_tests::redis::RedisServer;
use parking_lot::Mutex;
use tokio::sync::Semaphore;

/// A number with a version, and who has to wait for whom.
#[derive(Default)]
struct Record {
    agreed: Mutex<(u64, u64)>,
    /// The first one has agreed on an epoch that it has not written.
    first_raised: Event,
    /// The second one is about to raise: what it goes by was read.
    second_raises: Event,
    /// The first one has its lock.
    first_has: Event,
}

struct Event(Semaphore);

impl Default for Event {
    fn default() -> Self {
        Self(Semaphore::new(0))
    }
}

impl Event {
    fn happens(&self) {
        self.0.add_permits(1000);
    }

    async fn wait(&self) {
        drop(self.0.acquire().await);
    }
}

/// One party's way to it.
struct Party {
    record: Arc<Record>,
    is_first: bool,
}

impl Party {
    fn swap(&self, seen: &Agreed, epoch: u64) -> bool {
        let mut agreed = self.record.agreed.lock();
        let is_same = agreed.1.to_string() == seen.version;
        if is_same {
            *agreed = (epoch, agreed.1 + 1);
        }
        is_same
    }
}

impl EpochAuthority for Party {
    fn greatest(&self) -> Agreement<'_, Agreed> {
        let (epoch, version) = *self.record.agreed.lock();
        Box::pin(std::future::ready(Ok(Agreed { epoch, version: version.to_string() })))
    }

    /// The first one's answer comes when the second one has seen nothing in Redis; the second one's request arrives when
    /// the first one has its lock.
    fn raise<'a>(&'a self, seen: &'a Agreed, epoch: u64) -> Agreement<'a, bool> {
        Box::pin(async move {
            if !self.is_first {
                self.record.second_raises.happens();
                self.record.first_has.wait().await;
            }
            let raised = self.swap(seen, epoch);
            if self.is_first {
                self.record.first_raised.happens();
                self.record.second_raises.wait().await;
            }
            Ok(raised)
        })
    }

    fn begin<'a>(&'a self, seen: &'a Agreed) -> Agreement<'a, bool> {
        Box::pin(std::future::ready(Ok(self.swap(seen, seen.epoch))))
    }

    fn spread(&self) -> Duration {
        Duration::ZERO
    }

    fn name(&self) -> &'static str {
        "the record"
    }
}

fn locks(redis: &RedisServer, record: &Arc<Record>, client: &str, is_first: bool) -> Arc<RedisLocks> {
    let party = Party { record: record.clone(), is_first };
    let locks = RedisLocks::new("settled", client, Some(Arc::new(party)));
    let target = Target::new(Endpoint::Unix(redis.socket().to_owned()));
    tokio::task::spawn_local(locks.connect(Arc::new(target)));
    locks
}

fn ask(client: &str) -> Ask<Bytes> {
    Ask {
        name: "l".into(),
        owner: Owner::new(client),
        mode: LockMode::Exclusive,
        ticket: Ticket { client: client.into(), number: 1 },
        lease: Duration::from_hours(1),
        waits: false,
    }
}

#[test]
fn an_epoch_whose_tokens_are_out_is_not_gone_past_by_who_came_to_it_early() {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    tokio::task::LocalSet::new().block_on(&runtime, async {
        let (redis, record) = (RedisServer::start().unwrap(), Arc::new(Record::default()));
        let (first, second) = (locks(&redis, &record, "a", true), locks(&redis, &record, "b", false));
        let waiting = {
            let record = record.clone();
            tokio::task::spawn_local(async move {
                record.first_raised.wait().await;
                second.acquire(&ask("b")).await
            })
        };
        let had = first.acquire(&ask("a")).await.unwrap();
        assert!(matches!(had, Answer::Granted(_)), "{had:?}");
        record.first_has.happens();
        let refused = waiting.await.unwrap().unwrap();
        assert_eq!(refused, Answer::NotFree, "the first one's lock is void, though nothing was lost");
    });
}
