//! The scripts, the names of their keys, and how a call is written.

use bytes::Bytes;
use caddy_resp::encode;

/// One script. The order is that of [`SOURCES`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Script {
    Acquire,
    Release,
    Cancel,
    Expel,
    Status,
    Renew,
    Epoch,
    Beat,
    Duty,
}

/// How many there are.
pub(super) const SCRIPTS: usize = 9;

macro_rules! parts {
    ($($file:literal),*) => {
        concat!($(include_str!(concat!("scripts/", $file)), "\n"),*)
    };
}

/// What Redis is given.
pub(super) const SOURCES: [&str; SCRIPTS] = [
    parts!("number.lua", "head.lua", "acquire.lua", "common.lua", "acquire_rest.lua"),
    parts!("number.lua", "head.lua", "release.lua", "common.lua", "release_rest.lua"),
    parts!("number.lua", "head.lua", "common.lua", "cancel.lua"),
    parts!("number.lua", "head.lua", "common.lua", "expel.lua"),
    parts!("number.lua", "head.lua", "common.lua", "status.lua"),
    parts!("number.lua", "renew.lua"),
    parts!("number.lua", "epoch.lua"),
    include_str!("scripts/beat.lua"),
    include_str!("scripts/duty.lua"),
];

/// How the keys of a domain's locks are called. The braces put them all into one slot.
#[derive(Debug)]
pub(super) struct Keys {
    prefix: String,
}

impl Keys {
    pub(super) fn new(domain: &str) -> Self {
        Self { prefix: format!("caddy:{{{domain}}}:locks") }
    }

    fn named(&self, kind: &str) -> Bytes {
        format!("{}:{kind}", self.prefix).into()
    }

    /// What all scripts declare first: the epoch, and the locks that are neither shared nor waited for.
    pub(super) fn all(&self) -> Bytes {
        Bytes::copy_from_slice(self.prefix.as_bytes())
    }

    pub(super) fn live(&self) -> Bytes {
        self.named("live")
    }

    pub(super) fn contended(&self) -> Bytes {
        self.named("contended")
    }

    pub(super) fn duty(&self) -> Bytes {
        self.named("duty")
    }

    /// Where a client is told of its turns.
    pub(super) fn channel(&self, client: &str) -> Bytes {
        self.named(&format!("wake:{client}"))
    }

    /// How all of these begin.
    pub(super) fn channels(&self) -> Bytes {
        self.named("wake:")
    }

    /// What the scripts about one lock declare, in the order of `head.lua`.
    pub(super) fn of(&self, name: &[u8]) -> Strings {
        let all = self.prefix.as_bytes();
        let keys = Strings::default().with(&[all]).with(&[all, b":h:", name]).with(&[all, b":z:", name]);
        keys.with(&[all, b":q:", name]).with(&[all, b":live"]).with(&[all, b":contended"])
    }

    /// Of which type they have to be.
    pub(super) fn parts_of(&self, name: &[u8]) -> [Part; 5] {
        let own = |kind_of_key: &str, kind| {
            let key = [self.prefix.as_bytes(), kind_of_key.as_bytes(), name].concat().into();
            Part { key, kind, is_of_all: false }
        };
        [
            own(":h:", "hash"),
            own(":z:", "zset"),
            own(":q:", "zset"),
            Part { key: self.live(), kind: "zset", is_of_all: true },
            Part { key: self.contended(), kind: "set", is_of_all: true },
        ]
    }

    /// What the script that renews declares.
    pub(super) fn of_renewals<'a>(&self, names: impl Iterator<Item = &'a Bytes>) -> Strings {
        let all = self.prefix.as_bytes();
        let declared = Strings::default().with(&[all]);
        names.fold(declared, |keys, name| keys.with(&[all, b":h:", name]).with(&[all, b":z:", name]))
    }
}

/// One key that scripts about a lock use.
#[derive(Debug)]
pub(super) struct Part {
    pub(super) key: Bytes,
    /// Its type, as Redis names it.
    pub(super) kind: &'static str,
    /// All locks have it, beside the one hash whose loss is a new epoch.
    pub(super) is_of_all: bool,
}

/// Keys or arguments of a call, as they go out: a lock is taken and let go without a copy of each.
#[derive(Debug, Default)]
pub(super) struct Strings {
    count: usize,
    encoded: Vec<u8>,
}

impl Strings {
    /// One more, made of these parts.
    pub(super) fn with(mut self, parts: &[&[u8]]) -> Self {
        self.count += 1;
        if self.encoded.capacity() == 0 {
            self.encoded.reserve(256);
        }
        encode::bulk_header(&mut self.encoded, parts.iter().map(|part| part.len()).sum());
        for part in parts {
            self.encoded.extend_from_slice(part);
        }
        self.encoded.extend_from_slice(b"\r\n");
        self
    }
}

/// The arguments of a call, the epoch in front.
#[derive(Debug)]
pub(super) struct Arguments {
    has_epoch: bool,
    args: Strings,
}

impl Default for Arguments {
    fn default() -> Self {
        Self { has_epoch: true, args: Strings::default() }
    }
}

impl Arguments {
    pub(super) fn without_epoch() -> Self {
        Self { has_epoch: false, args: Strings::default() }
    }

    pub(super) fn with(self, arg: impl AsRef<[u8]>) -> Self {
        Self { args: self.args.with(&[arg.as_ref()]), ..self }
    }

    pub(super) fn request(&self, sha: &str, keys: &Strings, epoch: u64) -> Vec<u8> {
        let mut out = Vec::with_capacity(128 + keys.encoded.len() + self.args.encoded.len());
        encode::array_header(&mut out, 3 + keys.count + usize::from(self.has_epoch) + self.args.count);
        encode::bulk(&mut out, b"EVALSHA");
        encode::bulk(&mut out, sha.as_bytes());
        encode::bulk(&mut out, keys.count.to_string().as_bytes());
        out.extend_from_slice(&keys.encoded);
        if self.has_epoch {
            encode::bulk(&mut out, epoch.to_string().as_bytes());
        }
        out.extend_from_slice(&self.args.encoded);
        out
    }
}
