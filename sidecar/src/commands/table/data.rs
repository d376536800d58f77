//! Keys of any type, strings, bits, scripts' keys, and transactions over them.

use crate::commands::{
    Class, Effect, Merge, Pin, Positions, Row, Spread, Strings, cached, flush, harmless, read, unknown, write,
};

const SWAPDB: &str = "no server tells caches of it, and those of other pods would go on with what was swapped away; use FLUSHDB, or keys with another prefix";

/// How many of the keys there are.
const SUM_OF_KEYS: Spread = Spread::Keys(Merge::Sum);

/// It handles the stored bytes of its first key.
const THE_KEY: Strings = Strings::Handles(0, 1);

pub(in crate::commands) const DATA: &[Row] = &[
    // Strings
    read("get", 2, Positions::ONE).class(Class::Fill),
    read("mget", -2, Positions::ALL).class(Class::Fill).spread(Spread::Keys(Merge::InOrder)),
    read("strlen", 2, Positions::ONE).class(Class::Derived).strings(Strings::Computes),
    write("set", -3, Positions::ONE).strings(Strings::Writes(1)),
    write("setex", 4, Positions::ONE).strings(Strings::Writes(2)),
    write("psetex", 4, Positions::ONE).strings(Strings::Writes(2)),
    write("setnx", 3, Positions::ONE).strings(Strings::Writes(1)),
    write("getset", 3, Positions::ONE).strings(Strings::Writes(1)),
    write("getdel", 2, Positions::ONE).strings(Strings::Takes),
    write("getex", -2, Positions::ONE).strings(Strings::Takes),
    write("mset", -3, Positions::PAIRS).strings(Strings::Writes(1)),
    write("msetnx", -3, Positions::PAIRS).strings(Strings::Writes(1)),
    write("msetex", -4, Positions::Counted { count: 1, step: 2 }).since("8.4").strings(Strings::Writes(1)),
    write("append", 3, Positions::ONE).strings(THE_KEY),
    write("incr", 2, Positions::ONE).strings(THE_KEY),
    write("decr", 2, Positions::ONE).strings(THE_KEY),
    write("incrby", 3, Positions::ONE).strings(THE_KEY),
    write("decrby", 3, Positions::ONE).strings(THE_KEY),
    write("incrbyfloat", 3, Positions::ONE).strings(THE_KEY),
    write("setrange", 4, Positions::ONE).strings(THE_KEY),
    cached("getrange", 4).strings(Strings::Computes),
    cached("substr", 4).strings(Strings::Computes),
    read("lcs", -3, Positions::TWO).strings(Strings::Computes),
    read("digest", 2, Positions::ONE).since("8.4").strings(THE_KEY),
    write("delex", -2, Positions::ONE).since("8.4").strings(THE_KEY),
    write("delifeq", 3, Positions::ONE).since("valkey 9.0").strings(THE_KEY),
    // Bits
    cached("getbit", 3).strings(THE_KEY),
    cached("bitcount", -2).strings(THE_KEY),
    cached("bitpos", -3).strings(THE_KEY),
    read("bitfield_ro", -2, Positions::ONE).strings(THE_KEY),
    write("setbit", 4, Positions::ONE).strings(THE_KEY),
    write("bitfield", -2, Positions::ONE).strings(THE_KEY),
    write("bitop", -4, Positions::Range { first: 2, last: -1, step: 1 }).strings(Strings::Handles(1, usize::MAX)),
    // HyperLogLog; counting may rewrite the cached count within the value.
    write("pfadd", -2, Positions::ONE),
    write("pfcount", -2, Positions::ALL),
    write("pfmerge", -2, Positions::ALL),
    write("pfdebug", 3, Positions::SECOND),
    harmless("pfselftest", 1),
    // Keys of any type
    read("exists", -2, Positions::ALL).class(Class::Derived).spread(SUM_OF_KEYS),
    read("ttl", 2, Positions::ONE).class(Class::Derived),
    read("pttl", 2, Positions::ONE).class(Class::Derived),
    read("expiretime", 2, Positions::ONE),
    read("pexpiretime", 2, Positions::ONE),
    read("type", 2, Positions::ONE),
    read("touch", -2, Positions::ALL).spread(SUM_OF_KEYS),
    read("dump", 2, Positions::ONE),
    write("del", -2, Positions::ALL).spread(SUM_OF_KEYS),
    write("unlink", -2, Positions::ALL).spread(SUM_OF_KEYS),
    write("expire", -3, Positions::ONE),
    write("pexpire", -3, Positions::ONE),
    write("expireat", -3, Positions::ONE),
    write("pexpireat", -3, Positions::ONE),
    write("persist", 2, Positions::ONE),
    write("rename", 3, Positions::TWO).strings(THE_KEY),
    write("renamenx", 3, Positions::TWO).strings(THE_KEY),
    write("copy", -3, Positions::TWO).strings(THE_KEY),
    // The key's stamp counts in every database.
    write("move", 3, Positions::ONE),
    write("restore", -4, Positions::ONE),
    write("restore-asking", -4, Positions::ONE),
    write("migrate", -6, Positions::Migrate),
    // BY and GET read keys that only patterns name; the barrier covers STORE's destination, too.
    unknown("sort", -2).keys_at(Positions::Sort),
    unknown("sort_ro", -2).keys_at(Positions::ONE),
    // Their replies show which keys there are.
    unknown("keys", 2).spread(Spread::All(Merge::Join)),
    unknown("scan", -2).spread(Spread::Cursor),
    // Its cursor names a slot as a key does.
    unknown("clusterscan", -2).keys_at(Positions::ONE).since("valkey 9.1"),
    unknown("randomkey", 1),
    unknown("dbsize", 1).spread(Spread::All(Merge::Sum)),
    // For these a null is pushed; for SWAPDB nothing is.
    flush("flushall", -1).spread(Spread::All(Merge::Same)),
    flush("flushdb", -1).spread(Spread::All(Merge::Same)),
    flush("sflush", -3).since("8.0"),
    flush("swapdb", 3).class(Class::Refused(SWAPDB)),
    // Scripts name keys, and may use others.
    unknown("eval", -3).keys_at(Positions::COUNTED_SECOND),
    unknown("evalsha", -3).keys_at(Positions::COUNTED_SECOND),
    unknown("eval_ro", -3).keys_at(Positions::COUNTED_SECOND),
    unknown("evalsha_ro", -3).keys_at(Positions::COUNTED_SECOND),
    unknown("fcall", -3).keys_at(Positions::COUNTED_SECOND),
    unknown("fcall_ro", -3).keys_at(Positions::COUNTED_SECOND),
    // Transactions
    harmless("multi", 1).pinned(Pin::Transaction),
    unknown("exec", 1).pinned(Pin::Transaction),
    harmless("discard", 1).pinned(Pin::Transaction),
    read("watch", -2, Positions::ALL).effect(Effect::Harmless).pinned(Pin::Transaction),
    harmless("unwatch", 1).pinned(Pin::Transaction),
];
