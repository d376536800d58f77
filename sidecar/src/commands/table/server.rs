//! Connections, pub/sub, scripts as such, and the server itself.

use crate::commands::{
    About, Class, Effect, Merge, OURS, Pin, Positions, Row, Spread, container, flush, harmless, read, unknown, write,
};

const MONITOR: &str = "MONITOR would show what one sidecar relays, not what Redis executes: run it on Redis directly";
const CONNECTIONS: &str =
    "it is about connections, and those to Redis are shared by apps and sidecars; send it to Redis directly";
const REPLICATION: &str = "a replica has to connect to Redis directly, not to its cache";

/// The state of the app's connection.
const fn session(name: &'static str, arity: i8) -> Row {
    harmless(name, arity).session()
}

/// Locks are no keys of the app's.
const fn lock(name: &'static str, arity: i8) -> Row {
    harmless(name, arity).class(Class::Lock).since(OURS)
}

/// What `CACHE.INVALIDATE` takes.
const INVALIDATE: &[Row] = &[
    caching(write("key", -3, Positions::UpToOptions)).about(&About(
        "key [key ...] [MODE REMOVE|EXPIRE] [REASON text]",
        "Removes keys, or makes them stale, for everybody",
    )),
    caching(write("cascade", -3, Positions::UpToOptions)).about(&About(
        "key [key ...] [MODE REMOVE|EXPIRE] [REASON text]",
        "Invalidates keys and all that depends on them",
    )),
    caching(write("tag", -3, Positions::None)).about(&About(
        "tag [tag ...] [MODE REMOVE|EXPIRE] [REASON text]",
        "Invalidates all that carries one of the tags",
    )),
    caching(write("keyspace", -3, Positions::None))
        .about(&About("name [MODE REMOVE|EXPIRE] [REASON text]", "Invalidates a keyspace")),
    caching(write("all", -2, Positions::None)).about(&About(
        "[MODE REMOVE|EXPIRE] [REASON text]",
        "Invalidates everything that the sidecars of this domain wrote",
    )),
    caching(unknown("pattern", -3))
        .about(&About("glob [MODE REMOVE] [REASON text]", "Removes all keys that match a glob")),
    caching(unknown("regex", -3)).about(&About(
        "expression [expression ...] [MODE REMOVE] [REASON text]",
        "Removes all keys that match a regular expression",
    )),
];

/// What Redis has no command for.
const fn caching(row: Row) -> Row {
    row.class(Class::Cache).since(OURS)
}

const fn pubsub(name: &'static str, arity: i8) -> Row {
    harmless(name, arity).pinned(Pin::PubSub)
}

pub(in crate::commands) const SERVER: &[Row] = &[
    // Answered here
    harmless("ping", -1).class(Class::Local),
    harmless("echo", 2).class(Class::Local),
    read("cache.why", 2, Positions::ONE)
        .effect(Effect::Harmless)
        .class(Class::Local)
        .since(OURS)
        .about(&About("key", "Says whether the next GET is answered from a copy, and why or why not")),
    harmless("cache.stats", -1).class(Class::Local).since(OURS).about(&About(
        "[keyspace]",
        "Says what the tiers hold and have done, or what became of the reads of a keyspace",
    )),
    harmless("cache.hot", -1)
        .class(Class::Local)
        .since(OURS)
        .about(&About("[count]", "Lists the reads that are made most in this sidecar")),
    harmless("cache.deadletters", -2).class(Class::Local).since(OURS).about(&About(
        "keyspace [REPLAY [key ...]|DISCARD key ...]",
        "Lists the writes that a store refuses, offers them again, or gives them up",
    )),
    caching(container("cache.invalidate", -2, INVALIDATE))
        .about(&About("", "Invalidates keys, groups of them, or what matches a pattern, for everybody")),
    caching(harmless("cache.invalidations", 1)).about(&About("", "Lists the patterns that Redis is still swept for")),
    caching(write("cache.set", -3, Positions::ONE)).about(&About(
        "key value [PX ms] [STALE ms] [TAGS n tag ...] [DEPENDS n key ...] [TOKEN t] [FENCE lock token] [NX|XX]",
        "Writes a value with what it depends on, also under a fill token or a fence",
    )),
    caching(read("cache.get", -2, Positions::ONE)).about(&About(
        "key [WITHMETA [LEASE ms] [TAGS n tag ...] [DEPENDS n key ...]]",
        "Reads a value, or what is known of it, and if it is missing a token to fill it",
    )),
    caching(read("cache.touch", 2, Positions::ONE)).about(&About("key", "As TOUCH")),
    caching(read("cache.warm", -2, Positions::ALL).effect(Effect::Harmless))
        .about(&About("key [key ...]", "Reads keys into the tiers, as GET would")),
    lock("lock.acquire", -2).about(&About(
        "name [SHARED|EXCLUSIVE] [OWNER id] [LEASE ms] [WAIT ms] [BACKEND redis|lease]",
        "Takes a lock, and answers its fencing token",
    )),
    lock("lock.renew", -3)
        .about(&About("name token [LEASE ms] [OWNER id] [BACKEND redis|lease]", "Prolongs the lease of a lock")),
    lock("lock.release", -3).about(&About("name token [OWNER id] [BACKEND redis|lease]", "Gives a lock back")),
    lock("lock.info", -2).about(&About("name [BACKEND redis|lease]", "Says who holds a lock, and who waits for it")),
    lock("lock.list", -1).about(&About("[pattern]", "Lists the locks in use")),
    lock("lock.graph", 1).about(&About("", "Says who waits for whom")),
    // The app's connection
    session("auth", -2),
    session("hello", -1),
    session("quit", -1),
    session("reset", 1),
    session("select", 2),
    session("info", -1),
    Row { class: Class::Session, effect: Effect::Harmless, ..container("client", -2, CLIENT) },
    harmless("asking", 1).pinned(Pin::Connection),
    harmless("readonly", 1).pinned(Pin::Connection),
    harmless("readwrite", 1).pinned(Pin::Connection),
    harmless("wait", 3).pinned(Pin::Replicas).spread(Spread::Written(Merge::Least)),
    harmless("waitaof", 4).pinned(Pin::Replicas).spread(Spread::Written(Merge::Least)).since("7.2"),
    // Pub/sub; shard channels are routed as keys are.
    pubsub("subscribe", -2),
    pubsub("unsubscribe", -1),
    pubsub("psubscribe", -2),
    pubsub("punsubscribe", -1),
    pubsub("ssubscribe", -2).keys_at(Positions::ALL),
    pubsub("sunsubscribe", -1).keys_at(Positions::ALL),
    harmless("publish", 3),
    harmless("spublish", 3).keys_at(Positions::ONE),
    container(
        "pubsub",
        -2,
        &[
            harmless("channels", -2),
            harmless("help", 2),
            harmless("numpat", 2),
            harmless("numsub", -2),
            harmless("shardchannels", -2),
            harmless("shardnumsub", -2),
        ],
    ),
    // Scripts as such
    container(
        "script",
        -2,
        &[
            // 7.0 says 3.
            harmless("debug", -3).pinned(Pin::Connection),
            harmless("exists", -3).spread(Spread::All(Merge::Every)),
            harmless("flush", -2).spread(Spread::All(Merge::Same)),
            harmless("help", 2),
            harmless("kill", 2).pinned(Pin::Interrupt).spread(Spread::All(Merge::Ended)),
            harmless("load", 3).spread(Spread::All(Merge::Same)),
            harmless("show", 3).since("valkey 8.0"),
        ],
    ),
    container(
        "function",
        -2,
        &[
            harmless("delete", 3).spread(Spread::All(Merge::Same)),
            harmless("dump", 2),
            harmless("flush", -2).spread(Spread::All(Merge::Same)),
            harmless("help", 2),
            harmless("kill", 2).pinned(Pin::Interrupt).spread(Spread::All(Merge::Ended)),
            harmless("list", -2),
            harmless("load", -3).spread(Spread::All(Merge::Same)),
            harmless("restore", -3).spread(Spread::All(Merge::Same)),
            harmless("stats", 2).pinned(Pin::Interrupt).spread(Spread::All(Merge::Running)),
        ],
    ),
    // About keys
    container(
        "object",
        -2,
        &[
            read("encoding", 3, Positions::SECOND),
            read("freq", 3, Positions::SECOND),
            read("idletime", 3, Positions::SECOND),
            read("refcount", 3, Positions::SECOND),
            harmless("help", 2),
        ],
    ),
    container(
        "memory",
        -2,
        &[
            read("usage", -3, Positions::SECOND),
            harmless("doctor", 2),
            harmless("help", 2),
            harmless("malloc-stats", 2),
            harmless("purge", 2),
            harmless("stats", 2),
        ],
    ),
    container("cluster", -2, CLUSTER),
    // About the server
    Row {
        class: Class::Session,
        effect: Effect::Harmless,
        ..container(
            "command",
            -1,
            &[
                session("count", 2),
                session("docs", -2),
                session("getkeys", -3),
                session("getkeysandflags", -3),
                harmless("help", 2),
                session("info", -2),
                session("list", -2),
            ],
        )
    },
    container(
        "config",
        -2,
        &[
            harmless("get", -3),
            harmless("help", 2),
            harmless("resetstat", 2).spread(Spread::All(Merge::Same)),
            harmless("rewrite", 2),
            harmless("set", -4).spread(Spread::All(Merge::Same)),
        ],
    ),
    container(
        "acl",
        -2,
        &[
            harmless("cat", -2),
            harmless("deluser", -3),
            harmless("dryrun", -4),
            harmless("genpass", -2),
            harmless("getuser", 3),
            harmless("help", 2),
            harmless("list", 2),
            harmless("load", 2),
            harmless("log", -2),
            harmless("save", 2),
            harmless("setuser", -3),
            harmless("users", 2),
            // Of the Redis user that sidecar and app share.
            harmless("whoami", 2),
        ],
    ),
    container(
        "latency",
        -2,
        &[
            harmless("doctor", 2),
            harmless("graph", 3),
            harmless("help", 2),
            harmless("histogram", -2),
            harmless("history", 3),
            harmless("latest", 2),
            harmless("reset", -2),
        ],
    ),
    container("slowlog", -2, &[harmless("get", -2), harmless("help", 2), harmless("len", 2), harmless("reset", 2)]),
    Row {
        since: "valkey 8.1",
        ..container(
            "commandlog",
            -2,
            &[
                harmless("get", 4).since("valkey 8.1"),
                harmless("help", 2).since("valkey 8.1"),
                harmless("len", 3).since("valkey 8.1"),
                harmless("reset", 3).since("valkey 8.1"),
            ],
        )
    },
    // What a module brings may know no pushes.
    container(
        "module",
        -2,
        &[harmless("help", 2), harmless("list", 2), unknown("load", -3), unknown("loadex", -3), unknown("unload", 3)],
    ),
    harmless("time", 1),
    harmless("lolwut", -1),
    harmless("role", 1),
    harmless("lastsave", 1),
    harmless("save", 1),
    harmless("bgsave", -1),
    harmless("bgrewriteaof", 1),
    harmless("shutdown", -1),
    // Afterwards another history may be served here.
    flush("failover", -1),
    flush("replicaof", 3),
    flush("slaveof", 3),
    // May reload, flush or fill the data behind all pushes.
    flush("debug", -2),
    // Not for a connection that others share, or that is a cache's
    harmless("monitor", 1).class(Class::Refused(MONITOR)),
    harmless("sync", 1).class(Class::Refused(REPLICATION)),
    harmless("psync", -3).class(Class::Refused(REPLICATION)),
    harmless("replconf", -1).class(Class::Refused(REPLICATION)),
    // The first words of an HTTP request that carries a body
    harmless("post", -1).class(Class::CrossProtocol).since(""),
    harmless("host:", -1).class(Class::CrossProtocol).since(""),
];

const CLIENT: &[Row] = &[
    harmless("caching", 3).pinned(Pin::Tracking),
    harmless("tracking", -3).pinned(Pin::Tracking),
    session("trackinginfo", 2),
    session("getredir", 2),
    session("getname", 2),
    session("setname", 3),
    session("setinfo", 4).since("7.2"),
    session("capa", -3).since("valkey 8.0"),
    session("id", 2),
    session("info", 2),
    harmless("kill", -3).class(Class::Refused(CONNECTIONS)),
    session("list", -2),
    harmless("unblock", -3).class(Class::Refused(CONNECTIONS)),
    session("reply", 3),
    session("no-evict", 3),
    session("no-touch", 3).since("7.2"),
    session("help", 2),
    harmless("pause", -3).class(Class::Refused(CONNECTIONS)),
    harmless("unpause", 2).class(Class::Refused(CONNECTIONS)),
    harmless("import-source", 3).pinned(Pin::Connection).since("valkey 8.1"),
];

const CLUSTER: &[Row] = &[
    // Slots or roles change hands.
    flush("addslots", -3),
    flush("addslotsrange", -4),
    flush("delslots", -3),
    flush("delslotsrange", -4),
    flush("failover", -2),
    flush("flushslot", -3).since("valkey 9.0"),
    flush("flushslots", 2),
    flush("forget", 3),
    flush("meet", -4),
    // 7.0 says 3; since Valkey 9 there is NO ONE.
    flush("replicate", -3),
    flush("reset", -2),
    flush("setslot", -4),
    flush("migration", -4).since("8.4"),
    harmless("syncslots", -3).class(Class::Refused(REPLICATION)).since("valkey 9.0"),
    flush("migrateslots", -4).since("valkey 9.0"),
    flush("cancelslotmigrations", 2).since("valkey 9.0"),
    harmless("getslotmigrations", 2).since("valkey 9.0"),
    // They show which keys there are.
    unknown("countkeysinslot", 3),
    unknown("getkeysinslot", 4),
    harmless("bumpepoch", 2),
    harmless("count-failure-reports", 3),
    harmless("help", 2),
    harmless("info", 2),
    harmless("keyslot", 3),
    harmless("links", 2),
    harmless("myid", 2),
    harmless("myshardid", 2).since("7.2"),
    harmless("nodes", 2),
    harmless("replicas", 3),
    harmless("saveconfig", 2),
    harmless("set-config-epoch", 3),
    harmless("shards", 2),
    harmless("slaves", 3),
    harmless("slot-stats", -4).since("8.2"),
    harmless("slots", 2),
];
