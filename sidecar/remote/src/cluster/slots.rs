//! Slots of keys, the map from slots to primaries, and redirections.

use std::ops::RangeInclusive;

use caddy_resp::Value;

use crate::Endpoint;

/// How many slots a cluster has.
pub const SLOTS: u16 = 16_384;

/// The slot of a key: CRC16 of its hash tag, or of all of it.
///
/// ```
/// use caddy_remote::cluster::slot_of;
/// assert_eq!(slot_of(b"123456789"), 0x31c3);
/// assert_eq!(slot_of(b"{user1000}.following"), slot_of(b"{user1000}.followers"));
/// ```
pub fn slot_of(key: &[u8]) -> u16 {
    crc16(hash_tag(key)) % SLOTS
}

/// What stands between the first `{` and the next `}`, if that is anything; else the whole key.
fn hash_tag(key: &[u8]) -> &[u8] {
    let Some(open) = key.iter().position(|byte| *byte == b'{') else { return key };
    let behind = &key[open + 1..];
    match behind.iter().position(|byte| *byte == b'}') {
        Some(length) if length > 0 => &behind[..length],
        _ => key,
    }
}

/// CRC-16/XMODEM, as the cluster specification has it.
fn crc16(bytes: &[u8]) -> u16 {
    bytes.iter().fold(0, |crc, byte| (crc << 8) ^ TABLE[usize::from((crc >> 8) as u8 ^ byte)])
}

static TABLE: [u16; 256] = {
    let mut table = [0; 256];
    let mut byte = 0;
    while byte < 256 {
        let mut crc = (byte as u16) << 8;
        let mut bit = 0;
        while bit < 8 {
            crc = if crc & 0x8000 == 0 { crc << 1 } else { (crc << 1) ^ 0x1021 };
            bit += 1;
        }
        table[byte] = crc;
        byte += 1;
    }
    table
};

/// One primary and its slots.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Shard {
    /// Where the primary is, as it announces itself.
    pub primary: Endpoint,
    /// Its slots, in order; not empty.
    pub slots: Vec<RangeInclusive<u16>>,
}

/// Which primary owns which slots, as one node sees it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SlotMap {
    /// The primaries, ordered by their first slots.
    pub shards: Vec<Shard>,
}

/// A reply to `CLUSTER SLOTS` that says nothing.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SlotMapError {
    /// An error of the server.
    #[error("CLUSTER SLOTS was answered by {0}")]
    Refused(String),
    /// It has another form than the specification says.
    #[error("the reply to CLUSTER SLOTS cannot be understood")]
    Malformed,
    /// No slot is assigned to anybody.
    #[error("no slot is assigned to any node; create the cluster first (redis-cli --cluster create)")]
    Empty,
}

impl SlotMap {
    /// Reads a reply to `CLUSTER SLOTS`. A primary that announces no host is where the reply came from, at `asked`.
    pub fn parse(reply: &Value<'_>, asked: &Endpoint) -> Result<Self, SlotMapError> {
        if let Some(message) = reply.as_error() {
            return Err(SlotMapError::Refused(String::from_utf8_lossy(message).into_owned()));
        }
        let mut shards: Vec<Shard> = Vec::new();
        for element in reply.as_elements().ok_or(SlotMapError::Malformed)? {
            let (range, primary) = entry(element, asked).ok_or(SlotMapError::Malformed)?;
            match shards.iter_mut().find(|shard| shard.primary == primary) {
                Some(shard) => shard.slots.push(range),
                None => shards.push(Shard { primary, slots: vec![range] }),
            }
        }
        if shards.is_empty() {
            return Err(SlotMapError::Empty);
        }
        for shard in &mut shards {
            shard.slots.sort_by_key(|range| *range.start());
        }
        shards.sort_by_key(|shard| shard.slots.first().map(|range| *range.start()));
        Ok(Self { shards })
    }
}

/// `[first, last, [host, port, id, …], replicas…]`
fn entry(element: &Value<'_>, asked: &Endpoint) -> Option<(RangeInclusive<u16>, Endpoint)> {
    let [first, last, primary, ..] = element.as_elements()? else { return None };
    let slot =
        |value: &Value<'_>| value.as_integer().and_then(|slot| u16::try_from(slot).ok()).filter(|slot| *slot < SLOTS);
    let (first, last) = (slot(first)?, slot(last)?);
    let [host, port, ..] = primary.as_elements()? else { return None };
    let port = u16::try_from(port.as_integer()?).ok()?;
    let host = host.as_bytes().map(|host| String::from_utf8_lossy(host).into_owned());
    (first <= last).then(|| (first..=last, announced(host.as_deref().unwrap_or_default(), port, asked)))
}

/// The address that a node announces; without a host (or with `?`, as an unknown host name is announced), the one that
/// answered.
fn announced(host: &str, port: u16, asked: &Endpoint) -> Endpoint {
    let host = match (host, asked) {
        ("" | "?", Endpoint::Tcp { host, .. }) => host.clone(),
        ("" | "?", Endpoint::Unix(_)) => "127.0.0.1".to_owned(),
        (host, _) => host.to_owned(),
    };
    Endpoint::Tcp { host, port }
}

/// Where a node says a request has to go.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Redirect {
    /// The slot is another node's.
    Moved {
        /// The slot.
        slot: u16,
        /// Its owner.
        to: Endpoint,
    },
    /// The slot is on its way, and the key is not, or no longer, here: this one request goes to the new owner, behind
    /// `ASKING`.
    Ask {
        /// The new owner.
        to: Endpoint,
    },
}

impl Redirect {
    /// Reads an error reply that came from `asked`; `None` if it is no redirection.
    ///
    /// ```
    /// use caddy_remote::{Endpoint, cluster::Redirect};
    /// let asked = Endpoint::Tcp { host: "10.0.0.1".into(), port: 7000 };
    /// let moved = Redirect::parse(b"-MOVED 3999 10.0.0.2:7001\r\n", &asked);
    /// assert_eq!(moved, Some(Redirect::Moved { slot: 3999, to: Endpoint::Tcp { host: "10.0.0.2".into(), port: 7001 } }));
    /// ```
    pub fn parse(error: &[u8], asked: &Endpoint) -> Option<Self> {
        let text = std::str::from_utf8(error).ok()?.strip_prefix('-')?.trim_end();
        let mut words = text.split(' ');
        let kind = words.next().filter(|kind| matches!(*kind, "MOVED" | "ASK"))?;
        let slot = words.next()?.parse().ok().filter(|slot| *slot < SLOTS)?;
        let (host, port) = words.next()?.rsplit_once(':')?;
        let to = announced(host.trim_matches(['[', ']']), port.parse().ok()?, asked);
        Some(if kind == "MOVED" { Self::Moved { slot, to } } else { Self::Ask { to } })
    }

    /// Where to.
    pub fn to(&self) -> &Endpoint {
        match self {
            Self::Moved { to, .. } | Self::Ask { to } => to,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tcp(host: &str, port: u16) -> Endpoint {
        Endpoint::Tcp { host: host.into(), port }
    }

    #[test]
    fn only_a_tag_that_says_something_counts() {
        for (key, same) in [
            (&b"foo{}{bar}"[..], &b"foo{}{bar}"[..]),
            (b"foo{{bar}}zap", b"{bar"),
            (b"foo{bar}{zap}", b"bar"),
            (b"foo{bar", b"foo{bar"),
            (b"{a}", b"a"),
        ] {
            assert_eq!(hash_tag(key), same);
        }
        // As a server says it: CLUSTER KEYSLOT somekey, foo{hash_tag}, bar{hash_tag}.
        assert_eq!([slot_of(b"somekey"), slot_of(b"foo{hash_tag}"), slot_of(b"bar{hash_tag}")], [11058, 2515, 2515]);
    }

    #[test]
    fn a_map_is_read_with_the_addresses_that_nodes_announce() {
        let reply = b"*3\r\n\
            *4\r\n:10923\r\n:16383\r\n*4\r\n$0\r\n\r\n:7002\r\n$1\r\nc\r\n*0\r\n*3\r\n$9\r\n127.0.0.1\r\n:7005\r\n$1\r\nf\r\n\
            *3\r\n:5461\r\n:10922\r\n*4\r\n$7\r\nredis-1\r\n:7001\r\n$1\r\nb\r\n*2\r\n$2\r\nip\r\n$8\r\n10.0.0.9\r\n\
            *3\r\n:0\r\n:5460\r\n*3\r\n_\r\n:7000\r\n$1\r\na\r\n";
        let (value, _) = Value::decode(reply).unwrap();
        let map = SlotMap::parse(&value, &tcp("seed", 6379)).unwrap();
        let shard = |primary, slots| Shard { primary, slots: vec![slots] };
        assert_eq!(
            map.shards,
            [
                shard(tcp("seed", 7000), 0..=5460),
                shard(tcp("redis-1", 7001), 5461..=10922),
                shard(tcp("seed", 7002), 10923..=16383)
            ]
        );
    }

    #[test]
    fn what_is_no_map_is_told_apart() {
        let parse = |reply: &[u8]| SlotMap::parse(&Value::decode(reply).unwrap().0, &tcp("seed", 1)).unwrap_err();
        assert_eq!(parse(b"*0\r\n"), SlotMapError::Empty);
        assert!(parse(b"-NOPERM no\r\n").to_string().contains("NOPERM no"));
        for malformed in [&b"+OK\r\n"[..], b"*1\r\n*2\r\n:0\r\n:1\r\n", b"*1\r\n*3\r\n:5\r\n:99999\r\n*0\r\n"] {
            assert_eq!(parse(malformed), SlotMapError::Malformed);
        }
    }

    #[test]
    fn redirections_are_read_and_other_errors_are_not() {
        let asked = tcp("10.0.0.1", 7000);
        let parse = |error: &str| Redirect::parse(error.as_bytes(), &asked);
        assert_eq!(parse("-ASK 5 ::1:7001\r\n"), Some(Redirect::Ask { to: tcp("::1", 7001) }));
        assert_eq!(parse("-MOVED 5 :7001\r\n"), Some(Redirect::Moved { slot: 5, to: tcp("10.0.0.1", 7001) }));
        assert_eq!(parse("-MOVED 5 ?:7001\r\n").unwrap().to(), &tcp("10.0.0.1", 7001));
        for error in
            ["-MOVED\r\n", "-MOVED 5\r\n", "-MOVED 16384 a:1\r\n", "-MOVED 5 a:b\r\n", "-ERR MOVED 5 a:1\r\n", "$1\r\n"]
        {
            assert_eq!(parse(error), None, "{error}");
        }
    }
}
