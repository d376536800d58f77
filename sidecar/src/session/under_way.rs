//! The keys that a session's own unanswered reads on the tracked connection name.
//!
//! Asked once for every read, so an index: a pipeline of thousands of misses would otherwise be walked for each of them.
//! Empty whenever nothing of that kind is under way; never looks at replies.

use std::collections::HashMap;

use bytes::Bytes;
use caddy_engine::KeyHash;

/// A read of this session that is under way on the tracked connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum OwnRead {
    /// The same request: in the newest flight of its kind, or one before it.
    Same,
    /// Another: flights that can be joined may precede it.
    Other,
}

/// See the module.
#[derive(Debug, Default)]
pub(super) struct ReadsUnderWay {
    keys: HashMap<KeyHash, Reads>,
}

/// The unanswered reads of one key.
#[derive(Debug)]
struct Reads {
    count: usize,
    /// What all of them ask; `None` if they differ, or ask of several keys.
    request: Option<Bytes>,
}

impl ReadsUnderWay {
    /// A read of one key goes out.
    pub(super) fn add(&mut self, key: KeyHash, request: &Bytes) {
        let reads = self.keys.entry(key).or_insert_with(|| Reads { count: 0, request: Some(request.clone()) });
        reads.count += 1;
        if reads.request.as_ref() != Some(request) {
            reads.request = None;
        }
    }

    /// A read of several keys goes out.
    pub(super) fn add_many(&mut self, keys: &[KeyHash]) {
        for key in keys {
            let reads = self.keys.entry(*key).or_insert(Reads { count: 0, request: None });
            reads.count += 1;
            reads.request = None;
        }
    }

    /// One read of these keys is answered, or goes another way.
    pub(super) fn remove(&mut self, keys: &[KeyHash]) {
        for key in keys {
            if let Some(reads) = self.keys.get_mut(key) {
                reads.count -= 1;
                if reads.count == 0 {
                    self.keys.remove(key);
                }
            }
        }
        // An idle session keeps none.
        if self.keys.is_empty() && self.keys.capacity() > 0 {
            self.keys = HashMap::new();
        }
    }

    /// What is under way for the key, seen from a request that is `same` as another or not.
    pub(super) fn of(&self, key: KeyHash, same: impl FnOnce(&[u8]) -> bool) -> Option<OwnRead> {
        let reads = self.keys.get(&key)?;
        let is_same = reads.request.as_ref().is_some_and(|request| same(request));
        Some(if is_same { OwnRead::Same } else { OwnRead::Other })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_is_under_way_until_its_last_read_is_answered() {
        let (a, b) = (KeyHash::of(b"a"), KeyHash::of(b"b"));
        let (get, strlen) = (Bytes::from_static(b"GET a"), Bytes::from_static(b"GETRANGE a 0 1"));
        let mut reads = ReadsUnderWay::default();
        let of = |reads: &ReadsUnderWay, key| reads.of(key, |request| request == b"GET a");
        reads.add(a, &get);
        reads.add(a, &get);
        assert_eq!((of(&reads, a), of(&reads, b)), (Some(OwnRead::Same), None));
        assert_eq!(reads.of(a, |request| request == strlen), Some(OwnRead::Other));
        reads.add(a, &strlen);
        reads.add_many(&[a, b, b]);
        assert_eq!((of(&reads, a), of(&reads, b)), (Some(OwnRead::Other), Some(OwnRead::Other)));
        reads.remove(&[a, b, b]);
        assert_eq!((of(&reads, a), of(&reads, b)), (Some(OwnRead::Other), None));
        (0..3).for_each(|_| reads.remove(&[a]));
        assert_eq!(of(&reads, a), None);
        reads.remove(&[a]);
        reads.add(a, &get);
        assert_eq!(of(&reads, a), Some(OwnRead::Same));
    }
}
