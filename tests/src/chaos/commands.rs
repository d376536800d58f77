//! What a client asks in a random run, and what the reply shows of the registers.

use caddy_resp::{Value, encode};

use super::{BUSY, Terrain};
use crate::{
    history::{GroupOp, Op},
    random::Random,
};

/// One command of a pipeline.
#[derive(Clone, Debug)]
pub(super) enum Command {
    /// A read that may be answered from a copy.
    Get(String),
    /// Two of them at one moment; in a cluster mostly of two slots.
    Mget(String, String),
    /// The same state as another command reads it.
    Getrange(String),
    /// A read that is always relayed: what the key has in common with itself.
    Lcs(String),
    /// A write.
    Incr(String),
    /// A write that nobody can see in the command.
    Script(String),
    /// A read and a write on a connection of the session's own.
    Transaction(String, String),
    /// Lets the sidecar catch up.
    Barrier,
    /// A value, which is nobody else's, with a tag.
    SetPage { page: usize, value: u64, tag: usize },
    /// A read of one.
    GetPage(usize),
    /// An invalidation of all that carry a tag.
    InvalidateTag(usize),
}

/// Values that carry a tag each, and how many tags there are.
const PAGES: usize = 6;
const TAGS: usize = 2;

/// The key of a write.
pub(super) fn written(terrain: &Terrain, random: &mut Random) -> String {
    let all = terrain.keys.len();
    let key = match random.below(100) {
        0 => all - 1,
        1..10 => random.below(all - 1),
        _ => random.below(BUSY),
    };
    terrain.keys[key].clone()
}

impl Command {
    pub(super) fn draw(terrain: &Terrain, random: &mut Random) -> Self {
        match random.below(125) {
            100..110 => return Self::GetPage(random.below(PAGES)),
            110..120 => {
                let (page, tag) = (random.below(PAGES), random.below(TAGS));
                return Self::SetPage { page, value: random.next_u64() >> 2, tag };
            }
            120.. => return Self::InvalidateTag(random.below(TAGS)),
            _ => {}
        }
        let mut any = || terrain.keys[random.below(terrain.keys.len() - 1)].clone();
        let (key, other) = (any(), any());
        let written = written(terrain, random);
        match random.below(100) {
            60..68 => Self::Mget(key, other),
            68..71 => Self::Getrange(key),
            71..74 => Self::Lcs(key),
            74..86 => Self::Incr(written),
            86..90 if terrain.is_one_server => Self::Script(written),
            90..95 if terrain.is_one_server => Self::Transaction(key, written),
            90..95 => Self::Transaction(written.clone(), written),
            95.. if terrain.is_one_server && !terrain.may_split => Self::Barrier,
            // Most of them.
            _ => Self::Get(key),
        }
    }

    /// Appends the request; tells how many replies it has.
    pub(super) fn encode(&self, out: &mut Vec<u8>) -> usize {
        match self {
            Self::Get(key) => encode::command(out, ["GET", key]),
            Self::Mget(key, other) => encode::command(out, ["MGET", key, other]),
            Self::Getrange(key) => encode::command(out, ["GETRANGE", key, "0", "-1"]),
            Self::Lcs(key) => encode::command(out, ["LCS", key, key]),
            Self::Incr(key) => encode::command(out, ["INCR", key]),
            Self::Script(key) => encode::command(out, ["EVAL", "return redis.call('INCR', ARGV[1])", "0", key]),
            Self::Barrier => encode::command(out, ["EVAL", "return 1", "0"]),
            Self::SetPage { page, value, tag } => {
                let (key, value, tag) = (format!("page:{page}"), value.to_string(), format!("tag{tag}"));
                encode::command(out, ["CACHE.SET", &key, &value, "TAGS", "1", &tag]);
            }
            Self::GetPage(page) => encode::command(out, ["GET", &format!("page:{page}")]),
            Self::InvalidateTag(tag) => encode::command(out, ["CACHE.INVALIDATE", "TAG", &format!("tag{tag}")]),
            Self::Transaction(read, written) => {
                encode::command(out, ["MULTI"]);
                encode::command(out, ["GET", read]);
                encode::command(out, ["INCR", written]);
                encode::command(out, ["EXEC"]);
                return 4;
            }
        }
        1
    }

    /// What the last of its replies shows; `None`: an error.
    pub(super) fn observed(&self, reply: &[u8]) -> Option<Vec<(String, Op)>> {
        let (first, length) = Value::decode(reply).ok()?;
        if let Value::Attribute(_) = first {
            if let Self::GetPage(_) = self {
                return Some(Vec::new());
            }
            let version = version(&Value::decode(&reply[length..]).ok()?.0)?;
            let (Self::Get(key) | Self::Getrange(key)) = self else { return None };
            return Some(vec![(key.clone(), Op::StaleRead(version))]);
        }
        let elements = || first.as_elements().filter(|elements| elements.len() == 2);
        Some(match self {
            Self::Get(key) | Self::Getrange(key) | Self::Lcs(key) => vec![(key.clone(), Op::Read(version(&first)?))],
            Self::Incr(key) | Self::Script(key) => vec![(key.clone(), Op::Write(version(&first)?))],
            Self::Mget(key, other) => {
                let values = elements()?;
                vec![(key.clone(), Op::Read(version(&values[0])?)), (other.clone(), Op::Read(version(&values[1])?))]
            }
            Self::Transaction(read, written) => {
                let values = elements()?;
                vec![(read.clone(), Op::Read(version(&values[0])?)), (written.clone(), Op::Write(version(&values[1])?))]
            }
            Self::Barrier => {
                version(&first)?;
                Vec::new()
            }
            Self::SetPage { .. } | Self::GetPage(_) | Self::InvalidateTag(_) => Vec::new(),
        })
    }

    /// What a reply shows of groups in a database; `None`: nothing, or it is marked stale.
    pub(super) fn observed_of_groups(&self, reply: &[u8], database: usize) -> Option<GroupOp> {
        let value = Value::decode(reply).ok()?.0;
        let key = |page: &usize| format!("page:{page} in database {database}");
        let tag = |tag: &usize| format!("tag{tag} in database {database}");
        match self {
            Self::SetPage { page, value: set, tag: of } => {
                value.as_bytes().filter(|said| *said == b"OK")?;
                Some(GroupOp::Set { key: key(page), value: *set, tag: tag(of) })
            }
            Self::GetPage(page) => Some(GroupOp::Read { key: key(page), value: version(&value).filter(|v| *v > 0)? }),
            Self::InvalidateTag(of) => value.as_integer().map(|_| GroupOp::Invalidated(tag(of))),
            _ => None,
        }
    }
}

/// A register's value: absent is 0, also as the empty string that GETRANGE and LCS have for it.
fn version(value: &Value<'_>) -> Option<u64> {
    match value {
        Value::Null | Value::Bulk(b"") => Some(0),
        other => u64::try_from(other.as_integer()?).ok(),
    }
}
