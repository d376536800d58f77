//! Telling the other caches of a process, or whoever carries messages to other processes, of invalidations.
//!
//! Bounded, and nobody who publishes waits: a subscriber that falls behind is told how many events it missed, and has to
//! invalidate everything, since it cannot know what they were about.

use std::sync::Arc;

use tokio::sync::broadcast::{Receiver, Sender, channel, error::RecvError};

use super::InvalidationEvent;

/// How many events a subscriber has missed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0} invalidations were missed: this subscriber is too slow; invalidate everything, then go on")]
pub struct Missed(pub u64);

/// Publishes invalidations to any number of subscribers.
///
/// ```
/// use caddy_engine::TierConfig;
/// use caddy_engine::invalidation::{
///     InvalidationEvent, InvalidationMetadata, InvalidationReason, InvalidationSubject, PubSubInvalidator, TagInvalidator,
/// };
///
/// # tokio::runtime::Builder::new_current_thread().enable_time().build()?.block_on(async {
/// let bus = PubSubInvalidator::<String>::new(1024);
/// let mut events = bus.subscribe();
/// let cache = TagInvalidator::<String, u32>::in_process(TierConfig::default());
/// cache.insert("a".into(), 1, &["x"]).await?;
///
/// let subject = InvalidationSubject::Tags(vec!["x".into()]);
/// bus.publish(InvalidationEvent { subject, metadata: InvalidationMetadata::now(InvalidationReason::Call, "here") });
/// match events.next().await {
///     Some(Ok(event)) => cache.apply(&event),
///     Some(Err(_missed)) => cache.invalidate_all(),
///     None => {} // nobody publishes any more
/// }
/// assert_eq!(cache.get("a").await?, None);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// # })?;
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, Debug)]
pub struct PubSubInvalidator<K> {
    sender: Sender<Arc<InvalidationEvent<K>>>,
}

/// One subscriber's place in the stream of events.
#[derive(Debug)]
pub struct Subscription<K> {
    receiver: Receiver<Arc<InvalidationEvent<K>>>,
}

impl<K> PubSubInvalidator<K> {
    /// A subscriber may be behind by `capacity` events, at least one.
    pub fn new(capacity: usize) -> Self {
        Self { sender: channel(capacity.clamp(1, 1 << 20)).0 }
    }

    /// Tells all who have subscribed; how many that were.
    pub fn publish(&self, event: InvalidationEvent<K>) -> usize {
        self.sender.send(Arc::new(event)).unwrap_or(0)
    }

    /// What is published from now on.
    pub fn subscribe(&self) -> Subscription<K> {
        Subscription { receiver: self.sender.subscribe() }
    }
}

impl<K> Subscription<K> {
    /// The next event; an error where some were missed, behind which it goes on. `None`: nobody is left to publish.
    pub async fn next(&mut self) -> Option<Result<Arc<InvalidationEvent<K>>, Missed>> {
        match self.receiver.recv().await {
            Ok(event) => Some(Ok(event)),
            Err(RecvError::Lagged(missed)) => Some(Err(Missed(missed))),
            Err(RecvError::Closed) => None,
        }
    }
}

#[cfg(test)]
#[cfg(not(feature = "shuttle"))]
mod tests {
    use super::*;
    use crate::invalidation::{InvalidationMetadata, InvalidationReason, InvalidationSubject};

    #[test]
    fn a_slow_subscriber_is_told_what_it_missed_and_holds_nobody_up() {
        let bus = PubSubInvalidator::<u32>::new(2);
        let (mut slow, mut quick) = (bus.subscribe(), bus.subscribe());
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        runtime.block_on(async {
            for key in 0..5 {
                let metadata = InvalidationMetadata::now(InvalidationReason::Call, "here");
                let subject = InvalidationSubject::Keys(vec![key]);
                assert_eq!(bus.publish(InvalidationEvent { subject: subject.clone(), metadata }), 2);
                assert_eq!(quick.next().await.unwrap().unwrap().subject, subject);
            }
            assert_eq!(slow.next().await, Some(Err(Missed(3))));
            assert_eq!(slow.next().await.unwrap().unwrap().subject, InvalidationSubject::Keys(vec![3]));
            assert_eq!(slow.next().await.unwrap().unwrap().subject, InvalidationSubject::Keys(vec![4]));
            drop(bus);
            assert_eq!(slow.next().await, None);
        });
    }
}
