//! What a command writes, from its arguments and from what L3 answered. Pure.

use bytes::Bytes;
use caddy_engine::strategy::behind::Write;
use caddy_remote::writes::{Needs, ValueAt};
use caddy_resp::Value;
use smallvec::{SmallVec, smallvec};

use crate::session::args::Args;

/// What a command in a keyspace with a store to write to is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Wanted {
    /// It writes values that are known.
    Writes(StoreWrite),
    /// It concerns L3's copy alone: how long it lives.
    Nothing,
    /// What it writes cannot be stored; what to do instead.
    Refused(&'static str),
}

/// Most commands write one key.
pub(crate) type Writes = SmallVec<[(Bytes, Write<Bytes>); 1]>;

/// What is written, if L3's answer says so.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct StoreWrite {
    when: When,
    pub(crate) writes: Writes,
}

/// Which answers say that it was written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum When {
    /// Every one that is no error.
    Done,
    /// The same, and it shows what was there before.
    Shown,
    /// `OK`.
    Ok,
    /// The same, if its condition held.
    OkIf,
    /// 1.
    One,
    /// SET with GET and NX: there was nothing before.
    WasAbsent,
    /// SET with GET and XX: there was something.
    WasPresent,
    /// Every one that is no error, and it is the value.
    Value,
}

/// What to do instead of a command that reads and changes within Redis.
const NO_VALUE: &str = "what it leaves under the key is known to Redis only and could not be stored; write whole values (SET, GETSET, MSET) or delete keys";
const NO_CONDITION: &str = "its condition would be checked in Redis only, before the value is stored there; use LOCK.ACQUIRE, or strategy WriteBehind";
const BAD_OPTION: &str = "this option is not known here; use NX, XX, GET, KEEPTTL, EX, PX, EXAT or PXAT";

impl Wanted {
    /// What the command `name`, as in the command table, wants.
    pub(crate) fn of(name: &str, args: Args<'_>) -> Self {
        let key = |at: usize| Bytes::copy_from_slice(args.get(at));
        let put = |at: usize, value: usize| put(args.get(at), args.get(value));
        let one = |when, write| Self::Writes(StoreWrite { when, writes: smallvec![write] });
        match name {
            "set" => match set_option(args) {
                Some(when) => one(when, put(1, 2)),
                None => Self::Refused(BAD_OPTION),
            },
            "setex" | "psetex" => one(When::Ok, put(1, 3)),
            "setnx" => one(When::One, put(1, 2)),
            "getset" => one(When::Shown, put(1, 2)),
            "getdel" => one(When::Shown, (key(1), Write::Delete)),
            // What is absent in L3 may be present in the store.
            "del" | "unlink" => {
                let writes = (1..args.len()).map(|at| (key(at), Write::Delete)).collect();
                Self::Writes(StoreWrite { when: When::Done, writes })
            }
            "mset" | "msetnx" if args.len() % 2 == 1 => {
                let when = if name == "mset" { When::Ok } else { When::One };
                let writes = (1..args.len()).step_by(2).map(|at| put(at, at + 1)).collect();
                Self::Writes(StoreWrite { when, writes })
            }
            "incr" | "decr" | "incrby" | "decrby" | "incrbyfloat" => {
                one(When::Value, (key(1), Write::Put(Bytes::new())))
            }
            "expire" | "pexpire" | "expireat" | "pexpireat" | "persist" | "getex" => Self::Nothing,
            _ => Self::Refused(NO_VALUE),
        }
    }

    /// The same for a keyspace whose store is written before L3: nothing may depend on what L3 answers.
    pub(crate) fn before_l3(self) -> Self {
        match self {
            Self::Writes(write) => match write.when {
                When::Done | When::Shown | When::Ok => Self::Writes(write),
                When::OkIf | When::One | When::WasAbsent | When::WasPresent => Self::Refused(NO_CONDITION),
                When::Value => Self::Refused("its result is not known before Redis has it; use strategy WriteBehind"),
            },
            other => other,
        }
    }
}

/// A value for a key, both in one piece of memory: they come and go together.
fn put(key: &[u8], value: &[u8]) -> (Bytes, Write<Bytes>) {
    let mut key = Bytes::from([key, value].concat());
    let value = key.split_off(key.len() - value.len());
    (key, Write::Put(value))
}

/// When a SET has written, by its options; `None`: there is one that is not known.
fn set_option(args: Args<'_>) -> Option<When> {
    let (mut get, mut nx, mut xx) = (false, false, false);
    let mut at = 3;
    while at < args.len() {
        let is = |word: &str| args.is(at, word);
        if is("GET") {
            get = true;
        } else if is("NX") {
            nx = true;
        } else if is("XX") {
            xx = true;
        } else if ["EX", "PX", "EXAT", "PXAT"].into_iter().any(is) {
            at += 1;
        } else if !is("KEEPTTL") {
            return None;
        }
        at += 1;
    }
    Some(match (get, nx, xx) {
        (true, true, _) => When::WasAbsent,
        (true, _, true) => When::WasPresent,
        (true, ..) => When::Shown,
        (false, false, false) => When::Ok,
        (false, ..) => When::OkIf,
    })
}

impl StoreWrite {
    /// What is to be stored, now that L3 has answered.
    pub(crate) fn applied(self, reply: &[u8]) -> Writes {
        if reply == b"+OK\r\n" && matches!(self.when, When::Ok | When::OkIf) {
            return self.writes;
        }
        let Ok((value, _)) = Value::decode(reply) else { return Writes::new() };
        let is_written = match self.when {
            _ if value.as_error().is_some() => false,
            When::Done | When::Shown | When::Value => true,
            When::Ok | When::OkIf => value.as_bytes() == Some(b"OK"),
            When::One => value.as_integer() == Some(1),
            When::WasAbsent => value.as_bytes().is_none(),
            When::WasPresent => value.as_bytes().is_some(),
        };
        if !is_written {
            return Writes::new();
        }
        if self.when != When::Value {
            return self.writes;
        }
        let number = value.as_integer().map(|number| Bytes::from(number.to_string()));
        let text = number.or_else(|| value.as_bytes().map(Bytes::copy_from_slice));
        let Some(text) = text else { return Writes::new() };
        self.writes.into_iter().map(|(key, _)| (key, Write::Put(text.clone()))).collect()
    }

    /// As [`When`], for [`Step`](caddy_remote::writes::Step).
    pub(crate) fn condition(&self) -> &'static str {
        match self.when {
            When::Done | When::Shown => "done",
            When::Ok | When::OkIf => "ok",
            When::One => "one",
            When::WasAbsent => "absent",
            When::WasPresent => "present",
            When::Value => "value",
        }
    }

    /// Where the values of the writes stand among the words of the command `name`.
    pub(crate) fn values(&self, name: &str) -> Vec<ValueAt> {
        let at = |(place, (_, write)): (usize, &(Bytes, Write<Bytes>))| match (write, name) {
            (Write::Delete, _) => ValueAt::Nowhere,
            _ if self.when == When::Value => ValueAt::Result,
            (_, "setex" | "psetex") => ValueAt::Word(3),
            (_, "mset" | "msetnx") => ValueAt::Word(2 * place + 2),
            _ => ValueAt::Word(2),
        };
        self.writes.iter().enumerate().map(at).collect()
    }

    /// The writes at these places alone.
    pub(crate) fn part(&self, places: &[usize]) -> Self {
        Self { when: self.when, writes: places.iter().filter_map(|place| self.writes.get(*place).cloned()).collect() }
    }

    /// Bytes of the longest value.
    pub(crate) fn longest(&self) -> usize {
        self.writes.iter().filter_map(|(_, write)| write.value()).map(Bytes::len).max().unwrap_or(0)
    }

    /// Of what it writes.
    pub(crate) fn keys(&self) -> SmallVec<[&[u8]; 1]> {
        self.writes.iter().map(|(key, _)| &key[..]).collect()
    }

    /// Whether it answers what was there before.
    pub(crate) fn returns_old(&self) -> bool {
        matches!(self.when, When::Shown | When::WasAbsent | When::WasPresent)
    }

    /// Whether what it does or answers depends on what was there: what is absent in L3 has to be loaded first.
    pub(crate) fn looks_back(&self) -> bool {
        !matches!(self.when, When::Done | When::Ok)
    }

    /// What L3 has to have for that; `no_magic`: what envelopes begin with, where there may be some.
    pub(crate) fn needs(&self, no_magic: Option<[u8; 2]>) -> Needs {
        Needs { presence: self.looks_back(), no_magic: no_magic.filter(|_| self.computes()) }
    }

    /// Whether Redis computes what is written from what it has.
    pub(crate) fn computes(&self) -> bool {
        self.when == When::Value
    }

    /// Whether all that is written are deletions, as of one command they all are or none.
    pub(crate) fn deletes(&self) -> bool {
        self.writes.iter().any(|(_, write)| *write == Write::Delete)
    }
}
