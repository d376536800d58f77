//! Rows for commands that the built-in table lacks, read from a server's `COMMAND`: those of modules and of later versions.
//!
//! What the server tells decides the keys, whether the command may wait, and whether it writes; what it leaves open is
//! taken for the worst. A module's command always goes behind a barrier: modules need not name all the keys they touch.
//! It never changes a built-in row, and never talks to anybody.

use std::collections::HashMap;

use caddy_resp::{Protocol, Value};

use smallvec::SmallVec;

use super::{About, Class, Effect, Pin, Positions, Row, Spread, Strings, lookup, specs::KeySpec};

/// Rows that one process learns at most, all servers and versions together; further commands stay unknown.
const MAX_ROWS: usize = 4096;
/// Longer names are nobody's command.
const MAX_NAME: usize = 128;

/// What a server's `COMMAND` has beyond the built-in table.
///
/// ```
/// use caddy_resp::Value;
/// use caddy_sidecar::commands::{Effect, Interner, Learned};
///
/// let reply = b"*1\r\n*7\r\n$8\r\njson.get\r\n:-2\r\n*2\r\n+readonly\r\n+module\r\n:1\r\n:1\r\n:1\r\n*0\r\n";
/// let (reply, _) = Value::decode(reply)?;
/// let learned = Learned::from_reply(&reply, &mut Interner::default());
/// let row = learned.get(b"JSON.GET", None).unwrap();
/// assert_eq!((row.arity, row.effect), (-2, Effect::KeysUnknown));
/// # Ok::<(), caddy_resp::DecodeError>(())
/// ```
#[derive(Debug, Default)]
pub struct Learned {
    /// By lower-case name; a subcommand's is `container|subcommand`.
    rows: HashMap<Box<[u8]>, &'static Row>,
}

/// Makes rows last as long as the process: each only once, by what the server said of it, and a bounded number of them.
#[derive(Debug, Default)]
pub struct Interner {
    rows: HashMap<Vec<u8>, &'static Row>,
}

impl Learned {
    /// Reads a reply to `COMMAND`.
    pub fn from_reply(reply: &Value<'_>, interner: &mut Interner) -> Self {
        let mut learned = Self::default();
        for command in reply.as_elements().unwrap_or_default() {
            learned.add(command, interner);
        }
        learned
    }

    /// The row of a command that [`lookup`] does not know, or of a subcommand that a container there does not list.
    pub fn get(&self, name: &[u8], subcommand: Option<&[u8]>) -> Option<&'static Row> {
        if self.is_empty() || name.len() + subcommand.map_or(0, <[u8]>::len) > MAX_NAME {
            return None;
        }
        let find = |name: &[u8]| self.rows.get(name.to_ascii_lowercase().as_slice()).copied();
        let full = subcommand.and_then(|subcommand| find(&[name, b"|", subcommand].concat()));
        full.or_else(|| find(name))
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.rows.len()
    }

    /// Whether the table has all that the server has.
    pub fn is_empty(&self) -> bool {
        self.rows.is_empty()
    }

    /// The names, in alphabetical order.
    pub fn names(&self) -> Vec<String> {
        let mut names: Vec<_> = self.rows.keys().map(|name| String::from_utf8_lossy(name).into_owned()).collect();
        names.sort_unstable();
        names
    }

    fn add(&mut self, command: &Value<'_>, interner: &mut Interner) {
        let Some(fields) = command.as_elements() else { return };
        let Some(name) = fields.first().and_then(Value::as_bytes) else { return };
        if !is_built_in(name)
            && name.len() <= MAX_NAME
            && let Some(row) = interner.row(command)
        {
            self.rows.insert(name.to_ascii_lowercase().into(), row);
        }
        for subcommand in fields.get(9).and_then(Value::as_elements).unwrap_or_default() {
            self.add(subcommand, interner);
        }
    }
}

impl Interner {
    fn row(&mut self, command: &Value<'_>) -> Option<&'static Row> {
        let mut said = Vec::new();
        command.encode(Protocol::Resp3, &mut said);
        if let Some(row) = self.rows.get(&said) {
            return Some(row);
        }
        if self.rows.len() >= MAX_ROWS {
            return None;
        }
        let row: &'static Row = Box::leak(Box::new(row(command.as_elements()?)?));
        self.rows.insert(said, row);
        Some(row)
    }
}

fn leak(text: &str) -> &'static str {
    Box::leak(Box::from(text))
}

fn is_built_in(name: &[u8]) -> bool {
    let (container, subcommand) = parts(name);
    let row = lookup(container);
    let lists = |subcommand: &[u8]| row.subcommands.iter().any(|row| row.name.as_bytes() == subcommand);
    // What a command of one row does with its arguments is in that row.
    !row.name.is_empty() && subcommand.is_none_or(|subcommand| row.subcommands.is_empty() || lists(subcommand))
}

/// `container|subcommand`, or a name alone.
fn parts(name: &[u8]) -> (&[u8], Option<&[u8]>) {
    match name.iter().position(|byte| *byte == b'|') {
        Some(bar) => (&name[..bar], Some(&name[bar + 1..])),
        None => (name, None),
    }
}

/// What `[name, arity, flags, first, last, step, categories, tips, key specifications, subcommands]` says.
fn row(fields: &[Value<'_>]) -> Option<Row> {
    let (container, subcommand) = parts(fields.first()?.as_bytes()?);
    let name = std::str::from_utf8(subcommand.unwrap_or(container)).ok()?;
    let arity = fields.get(1)?.as_integer()?.clamp(i8::MIN.into(), i8::MAX.into());
    let flags = fields.get(2)?.as_elements()?;
    let has = |flag: &str| flags.iter().any(|other| other.as_bytes() == Some(flag.as_bytes()));
    let listed = |index: usize| fields.get(index).and_then(Value::as_elements).unwrap_or_default();

    let parsed: SmallVec<[_; 2]> = listed(8).iter().map(|spec| KeySpec::parse(spec, leak)).collect();
    let is_open = parsed.iter().any(|parsed| parsed.spec.is_none() || parsed.incomplete);
    let specs: Vec<KeySpec> = parsed.iter().filter_map(|parsed| parsed.spec).collect();
    let effect = if is_open || specs.is_empty() || has("module") {
        Effect::KeysUnknown
    } else if has("readonly") && !has("write") {
        Effect::ReadsKeys
    } else {
        Effect::WritesKeys
    };
    Some(Row {
        name: leak(name),
        arity: i8::try_from(arity).ok()?,
        keys: if specs.is_empty() { Positions::None } else { Positions::Specs(specs.leak()) },
        class: if has("blocking") { Class::Pinned(Pin::Blocking) } else { Class::Relayed },
        effect,
        spread: Spread::One,
        strings: Strings::Other,
        subcommands: &[],
        since: "",
        about: &About("", ""),
    })
}

#[cfg(test)]
mod tests {
    use super::{
        Effect::{KeysUnknown, ReadsKeys, WritesKeys},
        *,
    };

    /// An element of COMMAND with one key specification.
    fn command(name: &str, flags: &str, specs: &str) -> String {
        let n_flags = flags.split_whitespace().count();
        let flags = flags.split_whitespace().fold(String::new(), |all, flag| all + "+" + flag + "\r\n");
        let n_specs = usize::from(!specs.is_empty());
        format!(
            "*10\r\n${}\r\n{name}\r\n:-2\r\n*{n_flags}\r\n{flags}:1\r\n:1\r\n:1\r\n*0\r\n*0\r\n*{n_specs}\r\n{specs}*0\r\n",
            name.len()
        )
    }

    fn learn(commands: &[String], interner: &mut Interner) -> Learned {
        let reply = format!("*{}\r\n{}", commands.len(), commands.concat());
        Learned::from_reply(&Value::decode(reply.as_bytes()).unwrap().0, interner)
    }

    const FIRST: &str = "%3\r\n+flags\r\n~1\r\n+RW\r\n+begin_search\r\n%2\r\n+type\r\n+index\r\n+spec\r\n%1\r\n+index\r\n:1\r\n\
        +find_keys\r\n%2\r\n+type\r\n+range\r\n+spec\r\n%3\r\n+lastkey\r\n:0\r\n+keystep\r\n:1\r\n+limit\r\n:0\r\n";

    #[test]
    fn what_the_server_says_decides_the_row_and_doubts_the_worst() {
        let open = FIRST.replace("+RW", "+incomplete");
        let learned = learn(
            &[
                command("later.write", "write", FIRST),
                command("later.read", "readonly", FIRST),
                command("later.waits", "write blocking", FIRST),
                command("mod.read", "readonly module", FIRST),
                command("later.open", "readonly", &open),
                command("later.keyless", "readonly", ""),
                command("get", "write", FIRST),
                command("object|novelty", "readonly", FIRST),
                command("object|freq", "write", FIRST),
            ],
            &mut Interner::default(),
        );
        let row = |name: &str| learned.get(name.as_bytes(), None).unwrap();
        let effects =
            ["later.write", "later.read", "mod.read", "later.open", "later.keyless"].map(|name| row(name).effect);
        assert_eq!(effects, [WritesKeys, ReadsKeys, KeysUnknown, KeysUnknown, KeysUnknown]);
        assert_eq!(row("LATER.Waits").class, Class::Pinned(Pin::Blocking));
        assert_eq!(row("mod.read").keys(3, |_| b"x").to_vec(), [1]);
        assert!(learned.get(b"get", None).is_none(), "built-in rows stay");
        let subcommand = learned.get(b"OBJECT", Some(b"Novelty")).unwrap();
        assert_eq!((subcommand.name, subcommand.effect), ("novelty", ReadsKeys));
        assert!(learned.get(b"object", Some(b"freq")).is_none());
    }

    #[test]
    fn rows_are_learned_once_and_not_without_end() {
        let mut interner = Interner::default();
        let first = learn(&[command("mod.a", "module", FIRST)], &mut interner);
        let again = learn(&[command("mod.a", "module", FIRST)], &mut interner);
        assert!(std::ptr::eq(first.get(b"mod.a", None).unwrap(), again.get(b"mod.a", None).unwrap()));
        let many: Vec<String> = (0..MAX_ROWS + 10).map(|n| command(&format!("mod.{n}"), "module", "")).collect();
        assert_eq!(learn(&many, &mut interner).names().len(), MAX_ROWS - 1);
    }
}
