//! What a client asks in a random run, and what the reply shows of the registers.

use caddy_resp::{Value, encode};

use super::{BUSY, Terrain};
use crate::{history::Op, random::Random};

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
}

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
            95.. if terrain.is_one_server => Self::Barrier,
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
        })
    }
}

/// A register's value: absent is 0, also as the empty string that GETRANGE and LCS have for it.
fn version(value: &Value<'_>) -> Option<u64> {
    match value {
        Value::Null | Value::Bulk(b"") => Some(0),
        other => u64::try_from(other.as_integer()?).ok(),
    }
}
