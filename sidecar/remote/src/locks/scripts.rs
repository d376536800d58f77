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
    parts!("head.lua", "acquire.lua", "common.lua", "acquire_rest.lua"),
    parts!("head.lua", "release.lua", "common.lua", "release_rest.lua"),
    parts!("head.lua", "common.lua", "cancel.lua"),
    parts!("head.lua", "common.lua", "expel.lua"),
    parts!("head.lua", "common.lua", "status.lua"),
    include_str!("scripts/renew.lua"),
    include_str!("scripts/epoch.lua"),
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

    fn of_lock(&self, kind: &str, name: &[u8]) -> Bytes {
        [self.prefix.as_bytes(), kind.as_bytes(), name].concat().into()
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

    /// What the scripts about one lock declare, in the order of `head.lua`.
    pub(super) fn of(&self, name: &[u8]) -> [Bytes; 6] {
        let lock = |kind| self.of_lock(kind, name);
        [self.all(), lock(":h:"), lock(":z:"), lock(":q:"), self.live(), self.contended()]
    }
}

/// The arguments of a call, the epoch in front.
#[derive(Debug)]
pub(super) struct Arguments {
    has_epoch: bool,
    args: Vec<String>,
}

impl Default for Arguments {
    fn default() -> Self {
        Self { has_epoch: true, args: Vec::new() }
    }
}

impl Arguments {
    pub(super) fn without_epoch() -> Self {
        Self { has_epoch: false, args: Vec::new() }
    }

    pub(super) fn with(mut self, arg: impl Into<String>) -> Self {
        self.args.push(arg.into());
        self
    }

    pub(super) fn request(&self, sha: &str, keys: &[Bytes], epoch: &str) -> Vec<u8> {
        let mut out = Vec::with_capacity(512);
        encode::array_header(&mut out, 3 + keys.len() + usize::from(self.has_epoch) + self.args.len());
        encode::bulk(&mut out, b"EVALSHA");
        encode::bulk(&mut out, sha.as_bytes());
        encode::bulk(&mut out, keys.len().to_string().as_bytes());
        for key in keys {
            encode::bulk(&mut out, key);
        }
        if self.has_epoch {
            encode::bulk(&mut out, epoch.as_bytes());
        }
        for arg in &self.args {
            encode::bulk(&mut out, arg.as_bytes());
        }
        out
    }
}
