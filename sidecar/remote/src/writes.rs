//! Writes of keys that have a store, as Redis does them in one step: the command, what it means for the fill leases of its
//! keys and, where a write has to survive its sidecar, a record of it in a stream.
//!
//! A command that depends on what was there ([`Needs`]) is executed only if Redis has that; else nothing happens, and the answer
//! says so ([`is_missing`]).
//!
//! Owns the scripts, sent whole with each call, and the names of the streams; sends nothing. A stream holds at most one
//! record per key, the newest, whoever wrote it: beside it a hash names that record for each key, and a newer write
//! removes the older record in its own step. So whoever takes a dead sidecar's records over, finds none that somebody has
//! overwritten. The streams' consumer group says whose a record is: it is given to its writer's consumer when it is added,
//! and taken over by giving it to another, which only one of many can. It is not read with `XREADGROUP >`: that would hand
//! records of one key to several.

use caddy_resp::{Value, encode};

use crate::cluster;

/// Of the first `n` keys each has to be there if `need` is "there", and may not begin with `magic`; what is no string is there.
macro_rules! look {
    () => {
        "if need ~= '' then for i = 1, n do local there = redis.pcall('GET', KEYS[i]) \
         if (need == 'there' and not there) or (magic ~= '' and type(there) == 'string' \
         and string.sub(there, 1, #magic) == magic) then return {'missing'} end end end "
    };
}

/// `KEYS`: n keys, their leases, then the stream and the hash of newest records, if there is to be a record. `ARGV`: n, an
/// id to take the leases with or nothing to end them, its milliseconds, the writer's consumer, which answers say that it was
/// written, what is needed, what nothing may begin with, for each key where among the command's words its value stands (0:
/// it is deleted, -1: it is what Redis has then), the command. Answers the ids of the records and what the command answered.
const WRITE: &str = concat!(
    "local n = tonumber(ARGV[1]) local need, magic = ARGV[6], ARGV[7] ",
    look!(),
    "local stream, newest = KEYS[2 * n + 1], KEYS[2 * n + 2] \
    if stream and redis.call('XLEN', stream) == 0 then redis.pcall('XGROUP', 'CREATE', stream, 'store', '0', 'MKSTREAM') end \
    if ARGV[2] ~= '' then for i = n + 1, 2 * n do redis.call('SET', KEYS[i], ARGV[2], 'PX', ARGV[3]) end end \
    local reply = redis.pcall(unpack(ARGV, n + 8)) \
    if type(reply) == 'table' and reply.err then return reply end \
    if ARGV[2] == '' then redis.call('DEL', unpack(KEYS, n + 1, 2 * n)) end \
    local when = ARGV[5] if when == 'value' then reply = redis.call('GET', KEYS[1]) end \
    local done = when == 'done' or when == 'value' or (when == 'ok' and type(reply) == 'table' and reply.ok == 'OK') \
    or (when == 'one' and reply == 1) or (when == 'absent' and not reply) or (when == 'present' and reply) \
    local ids = {} if stream and done then for i = 1, n do local at, id = tonumber(ARGV[7 + i]) \
    if at == 0 then id = redis.call('XADD', stream, '*', 'k', KEYS[i]) \
    else id = redis.call('XADD', stream, '*', 'k', KEYS[i], 'v', at < 0 and reply or ARGV[n + 8 + at]) end \
    redis.call('XCLAIM', stream, 'store', ARGV[4], 0, id, 'FORCE', 'JUSTID', 'LASTID', id) \
    local old = redis.call('HGET', newest, KEYS[i]) \
    if old then redis.call('XACK', stream, 'store', old) redis.call('XDEL', stream, old) end \
    redis.call('HSET', newest, KEYS[i], id) ids[i] = id end end \
    return {ids, reply}"
);

/// `KEYS`: n keys, then their leases, if they are to be taken or ended. `ARGV`: n, what is needed, what nothing may begin with,
/// an id to take the leases with or nothing to end them, its milliseconds, the command. Answers what the command answered.
const GUARDED: &str = concat!(
    "local n = tonumber(ARGV[1]) local need, magic = ARGV[2], ARGV[3] ",
    look!(),
    "if ARGV[4] ~= '' then for i = n + 1, #KEYS do redis.call('SET', KEYS[i], ARGV[4], 'PX', ARGV[5]) end end \
    local reply = redis.pcall(unpack(ARGV, 6)) \
    if type(reply) == 'table' and reply.err then return reply end \
    if ARGV[4] == '' and #KEYS > n then redis.call('DEL', unpack(KEYS, n + 1)) end \
    return reply"
);

/// What a script answers that has found less than its command needs.
const MISSING: &[u8] = b"*1\r\n$7\r\nmissing\r\n";

/// `KEYS`: the stream, the hash. `ARGV`: ids of records that the store has, each with its key. A stream without records
/// goes.
const SETTLE: &str = "for i = 1, #ARGV, 2 do redis.pcall('XACK', KEYS[1], 'store', ARGV[i]) redis.call('XDEL', KEYS[1], ARGV[i]) \
    if redis.call('HGET', KEYS[2], ARGV[i + 1]) == ARGV[i] then redis.call('HDEL', KEYS[2], ARGV[i + 1]) end end \
    if redis.call('XLEN', KEYS[1]) == 0 then redis.call('DEL', KEYS[1], KEYS[2]) end return 1";

/// `KEYS`: the stream. `ARGV`: whose records, whose they are to be, behind which id, how many. Answers the last id and the
/// records; nothing: there are no more.
const TAKE: &str = "local found = redis.pcall('XPENDING', KEYS[1], 'store', ARGV[3], '+', ARGV[4], ARGV[1]) \
    if found.err or #found == 0 then \
    if ARGV[1] ~= ARGV[2] then redis.pcall('XGROUP', 'DELCONSUMER', KEYS[1], 'store', ARGV[1]) end return {} end \
    local ids = {} for i = 1, #found do ids[i] = found[i][1] end \
    return {ids[#ids], redis.call('XCLAIM', KEYS[1], 'store', ARGV[2], 0, unpack(ids))}";

/// Records of one call of [`take`].
pub const TAKEN: usize = 500;

/// What a command needs of the strings that are there; by default nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Needs {
    /// All its keys are there.
    pub presence: bool,
    /// None of them begins with this.
    pub no_magic: Option<[u8; 2]>,
}

impl Needs {
    /// Whether it is executed whatever is there.
    pub fn is_nothing(&self) -> bool {
        *self == Self::default()
    }

    fn words(&self) -> [&[u8]; 2] {
        let need: &[u8] = match self {
            Self { presence: true, .. } => b"there",
            Self { no_magic: Some(_), .. } => b"plain",
            _ => b"",
        };
        [need, self.no_magic.as_ref().map_or(b"", |magic| magic)]
    }
}

/// Whether a script's answer says that its command was not executed, for want of what it [needs](Needs).
pub fn is_missing(reply: &[u8]) -> bool {
    reply == MISSING
}

/// Appends the call that executes `command`, if what it needs is there. `leases` are those of all its keys, or none; a
/// deletion takes them (see [`Step::tombstone`]), other commands end them.
pub fn guarded(
    out: &mut Vec<u8>,
    needs: Needs,
    keys: &[&[u8]],
    leases: &[Vec<u8>],
    tombstone: Option<(&str, &str)>,
    command: &[&[u8]],
) {
    let (n, count) = (keys.len().to_string(), (keys.len() + leases.len()).to_string());
    let (id, millis) = tombstone.unwrap_or(("", ""));
    let mut words: Vec<&[u8]> = vec![b"EVAL", GUARDED.as_bytes(), count.as_bytes()];
    words.extend(keys);
    words.extend(leases.iter().map(Vec::as_slice));
    words.push(n.as_bytes());
    words.extend(needs.words());
    words.extend([id.as_bytes(), millis.as_bytes()]);
    words.extend(command);
    encode::command(out, words);
}

/// A write and what belongs to it.
#[derive(Debug)]
pub struct Step<'a> {
    /// The keys that it writes, in a cluster of one slot.
    pub keys: Vec<&'a [u8]>,
    /// Their fill leases.
    pub leases: &'a [Vec<u8>],
    /// A deletion takes the leases, under this id for so many milliseconds; other writes end them.
    pub tombstone: Option<(&'a str, &'a str)>,
    /// Where it is recorded, and as whose.
    pub record: Option<(&'a StreamNames, &'a str)>,
    /// Which answers say that it was written.
    pub when: &'a str,
    /// What it needs of what is there.
    pub needs: Needs,
    /// For each key where its value stands.
    pub values: Vec<ValueAt>,
    /// The command's words.
    pub command: Vec<&'a [u8]>,
}

/// Where the value stands that a command writes under a key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ValueAt {
    /// It is this word of the command.
    Word(usize),
    /// It is what Redis has when the command is done.
    Result,
    /// There is none: the key is deleted.
    Nowhere,
}

/// The keys of a keyspace's stream, or in a cluster of its stream for one slot.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct StreamNames {
    /// The stream.
    pub stream: Vec<u8>,
    /// Which record is the newest of each key.
    pub newest: Vec<u8>,
}

impl StreamNames {
    /// In a domain; `slot` in a cluster.
    pub fn new(domain: &str, keyspace: &str, slot: Option<u16>) -> Self {
        let tag = slot.map_or_else(String::new, |slot| format!("{{{}}}:", cluster::tag_of(slot)));
        let name = |kind: &str| format!("caddy:{domain}:{tag}{kind}:{keyspace}").into_bytes();
        Self { stream: name("wb"), newest: name("wb-newest") }
    }
}

impl Step<'_> {
    /// Appends the call.
    pub fn write(&self, out: &mut Vec<u8>) {
        let n = self.keys.len().to_string();
        let values = self.values.iter().map(|at| match at {
            ValueAt::Word(index) => index.to_string(),
            ValueAt::Result => "-1".to_owned(),
            ValueAt::Nowhere => "0".to_owned(),
        });
        let values: Vec<String> = values.collect();
        let count = (2 * self.keys.len() + if self.record.is_some() { 2 } else { 0 }).to_string();
        let (id, millis) = self.tombstone.unwrap_or(("", ""));
        let mut words: Vec<&[u8]> = vec![b"EVAL", WRITE.as_bytes(), count.as_bytes()];
        words.extend(&self.keys);
        words.extend(self.leases.iter().map(Vec::as_slice));
        let mut consumer = "";
        if let Some((names, writer)) = self.record {
            words.extend([&names.stream[..], &names.newest]);
            consumer = writer;
        }
        words.extend([n.as_bytes(), id.as_bytes(), millis.as_bytes(), consumer.as_bytes(), self.when.as_bytes()]);
        words.extend(self.needs.words());
        words.extend(values.iter().map(String::as_bytes));
        words.extend(&self.command);
        encode::command(out, words);
    }
}

/// What a [`Step`] came to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Stepped<'a> {
    /// The ids of the records, one per key; none: nothing was written, or is recorded.
    pub ids: Vec<String>,
    /// What the command answered, as it came.
    pub reply: &'a [u8],
}

/// Reads the reply to a [`Step`] that is no error.
pub fn stepped(reply: &[u8]) -> Option<Stepped<'_>> {
    let rest = reply.strip_prefix(b"*2\r\n")?;
    let (ids, length) = Value::decode(rest).ok()?;
    let text = |id: &Value<'_>| Some(std::str::from_utf8(id.as_bytes()?).ok()?.to_owned());
    let ids = ids.as_elements()?.iter().map(text).collect::<Option<_>>()?;
    Some(Stepped { ids, reply: &rest[length..] })
}

/// Appends the call that removes records, each with its key.
pub fn settle<'a>(out: &mut Vec<u8>, names: &StreamNames, records: impl Iterator<Item = (&'a str, &'a [u8])>) {
    let mut words: Vec<&[u8]> = vec![b"EVAL", SETTLE.as_bytes(), b"2", &names.stream, &names.newest];
    for (id, key) in records {
        words.extend([id.as_bytes(), key]);
    }
    encode::command(out, words);
}

/// Appends the call by which `to` takes records of `from` that stand behind `after`, at most [`TAKEN`].
pub fn take(out: &mut Vec<u8>, names: &StreamNames, from: &str, to: &str, after: Option<&str>) {
    let start = after.map_or_else(|| "-".to_owned(), |id| format!("({id}"));
    let count = TAKEN.to_string();
    let words: [&[u8]; 8] = [
        b"EVAL",
        TAKE.as_bytes(),
        b"1",
        &names.stream,
        from.as_bytes(),
        to.as_bytes(),
        start.as_bytes(),
        count.as_bytes(),
    ];
    encode::command(out, words);
}

/// Records that were taken.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Taken {
    /// What to look behind for more; `None`: there are no more.
    pub last: Option<String>,
    /// Id, key and value of each, in the order in which they were written; without a value the key was deleted.
    pub records: Vec<(String, Vec<u8>, Option<Vec<u8>>)>,
}

/// Reads the reply to [`take`]; `None`: it is none.
pub fn taken(reply: &[u8]) -> Option<Taken> {
    let (value, _) = Value::decode(reply).ok()?;
    let text = |value: &Value<'_>| Some(std::str::from_utf8(value.as_bytes()?).ok()?.to_owned());
    let [last, entries] = value.as_elements()? else {
        return value.as_elements()?.is_empty().then(Taken::default);
    };
    let mut taken = Taken { last: Some(text(last)?), records: Vec::new() };
    for entry in entries.as_elements()? {
        // What was removed from the stream meanwhile.
        let Some([id, fields]) = entry.as_elements() else { continue };
        let field = |name: &[u8]| {
            let fields = fields.as_elements()?;
            let at = fields.chunks_exact(2).find(|pair| pair[0].as_bytes() == Some(name))?;
            at[1].as_bytes().map(<[u8]>::to_vec)
        };
        if let Some(key) = field(b"k") {
            taken.records.push((text(id)?, key, field(b"v")));
        }
    }
    Some(taken)
}
