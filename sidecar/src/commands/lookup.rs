//! Finding a row by name: case-insensitive, without allocation, by a hash index made at compile time.

use super::{Row, table, unknown};

/// What a command that the table lacks is: relayed behind a barrier.
static UNKNOWN: Row = unknown("", -1).since("");

/// Every row, in no particular order; subcommands are within their containers.
pub fn rows() -> impl Iterator<Item = &'static Row> {
    ROWS.iter()
}

/// The row of the command called `name`, in any case; for unknown names one that relays behind a barrier.
///
/// ```
/// use caddy_sidecar::commands::{Class, Effect, lookup};
/// assert_eq!(lookup(b"Get").class, Class::Fill);
/// assert_eq!(lookup(b"JSON.GET").effect, Effect::KeysUnknown);
/// ```
#[inline]
pub fn lookup(name: &[u8]) -> &'static Row {
    let mut slot = hash(name) & MASK;
    loop {
        match INDEX[slot] {
            EMPTY => return &UNKNOWN,
            at => {
                let row = &ROWS[at as usize];
                if row.name.as_bytes().eq_ignore_ascii_case(name) {
                    return row;
                }
            }
        }
        slot = (slot + 1) & MASK;
    }
}

/// The row of a request (the name is argument 0): its subcommand's, if it names one that is listed.
#[inline]
pub fn lookup_request<'a>(n_args: usize, arg: impl Fn(usize) -> &'a [u8]) -> &'static Row {
    if n_args == 0 {
        return &UNKNOWN;
    }
    let row = lookup(arg(0));
    if row.subcommands.is_empty() || n_args < 2 {
        return row;
    }
    let name = arg(1);
    row.subcommands.iter().find(|subcommand| subcommand.name.as_bytes().eq_ignore_ascii_case(name)).unwrap_or(row)
}

/// A row's name as servers tell it, a subcommand's with its container's: `get`, `client|info`.
pub fn full_name(row: &'static Row) -> String {
    match rows().find(|container| container.subcommands.iter().any(|one| std::ptr::eq(one, row))) {
        Some(container) => format!("{}|{}", container.name, row.name),
        None if row.name.is_empty() => "NULL".to_owned(),
        None => row.name.to_owned(),
    }
}

const N_ROWS: usize = table::DATA.len() + table::COLLECTIONS.len() + table::SERVER.len();

static ROWS: [Row; N_ROWS] = {
    let mut rows = [unknown("", -1); N_ROWS];
    let groups = [table::DATA, table::COLLECTIONS, table::SERVER];
    let (mut group, mut at) = (0, 0);
    while group < groups.len() {
        let mut row = 0;
        while row < groups[group].len() {
            rows[at] = groups[group][row];
            row += 1;
            at += 1;
        }
        group += 1;
    }
    rows
};

/// Power of two, some four times the number of rows: most names are found at the first look.
const SLOTS: usize = 1024;
const MASK: usize = SLOTS - 1;
const EMPTY: u16 = u16::MAX;

/// Open addressing with linear probing; a slot holds the row's number.
static INDEX: [u16; SLOTS] = {
    let mut index = [EMPTY; SLOTS];
    let mut at = 0;
    while at < N_ROWS {
        let mut slot = hash(ROWS[at].name.as_bytes()) & MASK;
        while index[slot] != EMPTY {
            slot = (slot + 1) & MASK;
        }
        index[slot] = at as u16;
        at += 1;
    }
    index
};

/// FNV-1a over the name with the case bit set. Longer names than any command's end early: what
/// somebody sends as a name may be a megabyte.
const fn hash(name: &[u8]) -> usize {
    let mut hash: u32 = 0x811c_9dc5;
    let len = if name.len() > 32 { 32 } else { name.len() };
    let mut at = 0;
    while at < len {
        hash = (hash ^ (name[at] | 0x20) as u32).wrapping_mul(0x0100_0193);
        at += 1;
    }
    (hash ^ (hash >> 15)) as usize
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::{lookup, lookup_request, rows};
    use crate::commands::{Class, Effect, Pin};

    fn request(line: &str) -> &'static super::Row {
        let args: Vec<&[u8]> = line.split(' ').map(str::as_bytes).collect();
        lookup_request(args.len(), |index| args[index])
    }

    #[test]
    fn every_row_is_found_by_its_name_in_any_case() {
        let mut names = HashSet::new();
        for row in rows() {
            assert!(names.insert(row.name), "{} is there twice", row.name);
            assert_eq!(row.name, row.name.to_ascii_lowercase());
            assert!(std::ptr::eq(lookup(row.name.as_bytes()), row), "{}", row.name);
            assert!(std::ptr::eq(lookup(row.name.to_ascii_uppercase().as_bytes()), row), "{}", row.name);
            let mut subcommands = HashSet::new();
            assert!(row.subcommands.iter().all(|subcommand| subcommands.insert(subcommand.name)), "{}", row.name);
        }
    }

    #[test]
    fn an_unknown_name_is_relayed_behind_a_barrier() {
        for name in ["", "ge", "gett", "json.get", "g\u{0}t", &"get".repeat(1000)] {
            let row = lookup(name.as_bytes());
            assert_eq!((row.class, row.effect), (Class::Relayed, Effect::KeysUnknown), "{name:?}");
            assert!(row.name.is_empty());
        }
    }

    #[test]
    fn subcommands_have_rows_and_unknown_ones_a_barrier() {
        assert_eq!(request("object encoding k").effect, Effect::ReadsKeys);
        assert_eq!(request("CLIENT Tracking on").class, Class::Pinned(Pin::Tracking));
        assert_eq!(request("CLIENT ID").class, Class::Session);
        assert_eq!(request("object novelty k").effect, Effect::KeysUnknown);
        assert_eq!(request("object").name, "object");
    }

    #[test]
    fn reads_of_streams_are_pinned_when_they_may_wait() {
        let class = |line: &str| {
            let args: Vec<&[u8]> = line.split(' ').map(str::as_bytes).collect();
            let row = lookup_request(args.len(), |index| args[index]);
            (row.class_of(args.len(), |index| args[index]), row.keys(args.len(), |index| args[index]).to_vec())
        };
        let pinned = Class::Pinned(Pin::Blocking);
        assert_eq!(class("XREAD BLOCK 0 STREAMS a b 0 0"), (pinned, vec![4, 5]));
        assert_eq!(class("xread count 5 streams BLOCK 0"), (Class::Relayed, vec![4]));
        assert_eq!(class("XREADGROUP GROUP STREAMS c BLOCK 0 STREAMS a >"), (pinned, vec![7]));
        assert_eq!(class("XREADGROUP GROUP g BLOCK NOACK COUNT 1 STREAMS a >"), (Class::Relayed, vec![8]));
    }
}
