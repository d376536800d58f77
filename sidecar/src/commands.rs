//! The command table: what each Redis command is to this sidecar, as data.
//!
//! One row per command and subcommand of Redis 7 and 8 and of Valkey; dispatch, documentation and
//! tests come from it (a test compares it with `COMMAND` of a running server). It owns names, arity,
//! key positions, the class that decides who answers, and the effect on local copies. It never looks at
//! values and never talks to anybody. A name that it lacks is what the server says of it ([`Learned`]); one that neither
//! knows is relayed behind a barrier, which is right for every command that runs on one connection and answers once.

mod catalogue;
mod categories;
mod keys;
mod learned;
mod lookup;
mod permissions;
mod specs;
mod table;

pub use catalogue::About;
pub(crate) use catalogue::{Question, keys as catalogued_keys};
pub(crate) use keys::trailing_options;
pub use keys::{KeyPositions, Positions};
pub use learned::{Interner, Learned};
pub use lookup::{full_name, lookup, lookup_request, rows};
pub use permissions::{Permissions, categories_of};
pub use specs::KeySpec;

/// Since when there are this product's own commands, beside the versions of servers.
const OURS: &str = "caddy";

/// Who answers a command.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Class {
    /// The sidecar, from what it knows itself, whatever L3's state.
    Local,
    /// The cache; on a miss its fill from L3. GET and MGET share copies; others are kept by their whole request.
    Fill,
    /// As [`Class::Fill`], unless the server can let single fields of a hash expire: their end is announced late, so
    /// these are relayed then.
    FillFields,
    /// The cache, if what it holds for [`Class::Fill`] says enough; else relayed.
    Derived,
    /// L3, over a shared connection, as bytes.
    Relayed,
    /// L3, over a connection of the session's own.
    Pinned(Pin),
    /// As [`Class::Pinned`] if the request has a `BLOCK` option, else relayed; see [`Row::class_of`].
    PinnedIfBlocking,
    /// The session: what the command changes or shows is the state of the app's connection.
    Session,
    /// The sidecar's locks; they live in L3, and the session waits for the answer before it takes anything else.
    Lock,
    /// The sidecar by a request of its own to L3.
    Cache,
    /// Nobody; the text says what to do instead.
    Refused(&'static str),
    /// Nobody: a web browser was led here by somebody else's page. Close without a reply, as Redis does.
    CrossProtocol,
}

/// Why a command needs an upstream connection of its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Pin {
    /// `MULTI` to `EXEC`, and `WATCH`.
    Transaction,
    /// Subscriptions: messages arrive unasked.
    PubSub,
    /// It may wait, and all behind it on a shared connection with it.
    Blocking,
    /// It waits for what this session wrote to reach replicas or disks (`WAIT`).
    Replicas,
    /// The app caches, too: the invalidations are its own.
    Tracking,
    /// It asks about, or ends, what another connection is running (`SCRIPT KILL`): behind that on a shared one Redis would
    /// not read it.
    Interrupt,
    /// It asks about, or changes, the connection that it came on (`READONLY`, `SCRIPT DEBUG`).
    Connection,
}

/// What a command, once answered over another connection than the tracked one, means for local copies.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Effect {
    /// Nothing: it neither reads nor writes keys.
    Harmless,
    /// The reply shows the state of [`Row::keys`], and of no other key.
    ReadsKeys,
    /// It may have changed [`Row::keys`], and no other key.
    WritesKeys,
    /// It read or wrote keys that its arguments do not name: barrier before the reply is handed on.
    KeysUnknown,
    /// It may have changed everything in ways that no push tells: all copies die.
    Flush,
}

/// What a command has to do with the bytes that strings are stored as, which may be an envelope.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Strings {
    /// Nothing, or it shows whole values.
    Other,
    /// It writes whole values, each so many arguments behind its key.
    Writes(usize),
    /// It shows the whole value of its key, and removes that or changes how long it lives.
    Takes,
    /// It shows what it computes from whole values: a part, a length.
    Computes,
    /// It changes, compares or moves the bytes as they are stored: of its keys those from the first place on, up to the second.
    Handles(usize, usize),
}

/// Which nodes of a cluster execute a command.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Spread {
    /// The node of its first key, or any if it has none. Keys of several slots are refused, by Redis.
    One,
    /// The nodes of its keys, for each slot apart.
    Keys(Merge),
    /// Every primary.
    All(Merge),
    /// Every primary, one after the other: the cursor says where it is.
    Cursor,
    /// Those that the session wrote to.
    Written(Merge),
}

/// How the replies of several nodes become the one that an app gets. An error of any of them is the reply, unless it is asked
/// for what one of them does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Merge {
    /// They are the same.
    Same,
    /// Numbers are added.
    Sum,
    /// Arrays are put behind one another.
    Join,
    /// Arrays of truths: true where all are.
    Every,
    /// The values of keys, in the order of the request.
    InOrder,
    /// Numbers, or arrays of them: the least at each place.
    Least,
    /// That of one which ended what it ran; else why it was not ended; else that nothing runs.
    Ended,
    /// That of one which runs a script.
    Running,
}

/// One command, or one subcommand of a container.
#[derive(Debug, Clone, Copy)]
pub struct Row {
    /// Lower case; a subcommand's is its own (`encoding`), without its container's.
    pub name: &'static str,
    /// As in `COMMAND`: the number of arguments with the name(s), or if negative the least number.
    pub arity: i8,
    /// Which arguments are keys.
    pub keys: Positions,
    /// Who answers; [`Row::class_of`] for those that depend on the arguments.
    pub class: Class,
    /// What it means for local copies.
    pub effect: Effect,
    /// Who executes it in a cluster.
    pub spread: Spread,
    /// What it has to do with stored strings.
    pub strings: Strings,
    /// Rows by second argument, if this is a container.
    pub subcommands: &'static [Self],
    /// The first server version that has it, `7.0` for that and all before; `caddy` for our own.
    pub since: &'static str,
    /// What clients are shown of it, if it is our own; servers have theirs.
    pub about: &'static About,
}

impl Row {
    /// Who answers a request with these arguments (the name is argument 0).
    pub fn class_of<'a>(&self, n_args: usize, arg: impl Fn(usize) -> &'a [u8]) -> Class {
        match self.class {
            Class::PinnedIfBlocking => {
                if keys::StreamOptions::of(n_args, &arg).blocks {
                    Class::Pinned(Pin::Blocking)
                } else {
                    Class::Relayed
                }
            }
            class => class,
        }
    }

    /// Whether the server may know better than the table what a request that got this row is: the table lacks it, or it is
    /// a container that the table knows no such subcommand of. What is the session's stays the session's.
    pub fn is_open(&self) -> bool {
        self.class == Class::Relayed && (self.name.is_empty() || !self.subcommands.is_empty())
    }

    /// Which arguments of a request are keys (the name is argument 0); shard channels count as keys.
    ///
    /// Empty when the arguments make no sense: the server then refuses the request.
    pub fn keys<'a>(&self, n_args: usize, arg: impl Fn(usize) -> &'a [u8]) -> KeyPositions {
        self.keys.find(n_args, arg)
    }

    /// Whether it is this product's, and unknown to every server.
    pub fn is_ours(&self) -> bool {
        self.since == OURS
    }

    /// Whether a request with so many arguments (the name included) is long enough, and not too long.
    pub fn accepts(&self, n_args: usize) -> bool {
        let arity = usize::from(self.arity.unsigned_abs());
        if self.arity < 0 { n_args >= arity } else { n_args == arity }
    }
}

// === How the table writes rows ===

const fn row(name: &'static str, arity: i8, keys: Positions, effect: Effect) -> Row {
    Row {
        name,
        arity,
        keys,
        class: Class::Relayed,
        effect,
        spread: Spread::One,
        strings: Strings::Other,
        subcommands: &[],
        since: "7.0",
        about: &About("", ""),
    }
}

/// Relayed; shows the state of its keys.
const fn read(name: &'static str, arity: i8, keys: Positions) -> Row {
    row(name, arity, keys, Effect::ReadsKeys)
}

/// Read through the cache: a function of the one key's value and the arguments alone.
const fn cached(name: &'static str, arity: i8) -> Row {
    read(name, arity, Positions::ONE).class(Class::Fill)
}

/// Relayed; may change its keys.
const fn write(name: &'static str, arity: i8, keys: Positions) -> Row {
    row(name, arity, keys, Effect::WritesKeys)
}

/// Relayed; has to do with keys that its arguments do not name.
const fn unknown(name: &'static str, arity: i8) -> Row {
    row(name, arity, Positions::None, Effect::KeysUnknown)
}

/// Relayed; has nothing to do with keys.
const fn harmless(name: &'static str, arity: i8) -> Row {
    row(name, arity, Positions::None, Effect::Harmless)
}

/// Relayed; all copies die.
const fn flush(name: &'static str, arity: i8) -> Row {
    row(name, arity, Positions::None, Effect::Flush)
}

/// Only its subcommands mean something; one that is not listed is relayed behind a barrier.
const fn container(name: &'static str, arity: i8, subcommands: &'static [Row]) -> Row {
    Row { subcommands, ..unknown(name, arity) }
}

impl Row {
    const fn class(self, class: Class) -> Self {
        Self { class, ..self }
    }

    const fn pinned(self, why: Pin) -> Self {
        self.class(Class::Pinned(why))
    }

    const fn session(self) -> Self {
        self.class(Class::Session)
    }

    const fn effect(self, effect: Effect) -> Self {
        Self { effect, ..self }
    }

    const fn keys_at(self, keys: Positions) -> Self {
        Self { keys, ..self }
    }

    const fn spread(self, spread: Spread) -> Self {
        Self { spread, ..self }
    }

    const fn strings(self, strings: Strings) -> Self {
        Self { strings, ..self }
    }

    const fn since(self, since: &'static str) -> Self {
        Self { since, ..self }
    }

    const fn about(self, about: &'static About) -> Self {
        Self { about, ..self }
    }
}
