//! LCS: the longest common subsequence of two strings, by the table that everybody uses (Wagner and Fischer, 1974), walked
//! back as Redis walks it, so that of several longest ones the same is found.
//!
//! The table is bounded: beyond [`MAX_CELLS`] the command is refused, since it would hold up everybody.

use caddy_resp::encode;

use super::{
    Call,
    arguments::{Fault, count, integer, is},
};

const MAX_CELLS: usize = 1 << 22;

/// What is answered.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
enum Wanted {
    #[default]
    Text,
    Length,
    Matches,
}

#[derive(Debug, Default)]
struct Options {
    wanted: Wanted,
    shortest: usize,
    with_lengths: bool,
}

/// Where a run of bytes begins in the one string and in the other, and how long it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Match {
    a: usize,
    b: usize,
    length: usize,
}

impl Options {
    fn parse(args: &[&[u8]]) -> Result<Self, Fault> {
        let mut options = Self::default();
        let (mut idx, mut len) = (false, false);
        let mut rest = args.iter();
        while let Some(option) = rest.next() {
            if is(option, "IDX") {
                idx = true;
            } else if is(option, "LEN") {
                len = true;
            } else if is(option, "WITHMATCHLEN") {
                options.with_lengths = true;
            } else if is(option, "MINMATCHLEN")
                && let Some(number) = rest.next()
            {
                options.shortest = usize::try_from(integer(number)?).unwrap_or(0);
            } else {
                return Err(Fault::Syntax);
            }
        }
        options.wanted = match (idx, len) {
            (true, true) => return Err(Fault::LengthAndMatches),
            (true, false) => Wanted::Matches,
            (false, true) => Wanted::Length,
            (false, false) => Wanted::Text,
        };
        Ok(options)
    }
}

pub(super) fn lcs(call: &mut Call<'_>) -> Result<(), Fault> {
    let options = Options::parse(&call.args[3..])?;
    let database = &call.databases[call.database];
    let value = |at: usize| database.value(call.args[at]).unwrap_or_default();
    let (a, b) = (value(1), value(2));
    let table = Table::new(a, b)?;
    let length = table.at(a.len(), b.len());
    match options.wanted {
        Wanted::Length => encode::integer(call.out, i64::from(length)),
        Wanted::Text => encode::bulk(call.out, &table.walk(a, b).0),
        Wanted::Matches => {
            let (_, mut matches) = table.walk(a, b);
            matches.retain(|found| found.length >= options.shortest);
            encode::map_header(call.out, call.protocol, 2);
            encode::bulk(call.out, b"matches");
            encode::array_header(call.out, matches.len());
            for Match { a, b, length } in matches {
                encode::array_header(call.out, 2 + usize::from(options.with_lengths));
                for from in [a, b] {
                    encode::array_header(call.out, 2);
                    encode::integer(call.out, count(from));
                    encode::integer(call.out, count(from + length - 1));
                }
                if options.with_lengths {
                    encode::integer(call.out, count(length));
                }
            }
            encode::bulk(call.out, b"len");
            encode::integer(call.out, i64::from(length));
        }
    }
    Ok(())
}

/// The lengths for all pairs of prefixes.
struct Table {
    cells: Vec<u32>,
    width: usize,
}

impl Table {
    fn new(a: &[u8], b: &[u8]) -> Result<Self, Fault> {
        let width = b.len() + 1;
        let cells = (a.len() + 1).checked_mul(width).filter(|cells| *cells <= MAX_CELLS).ok_or(Fault::TooLongForLcs)?;
        let mut table = Self { cells: vec![0; cells], width };
        for (i, from_a) in a.iter().enumerate() {
            for (j, from_b) in b.iter().enumerate() {
                let cell =
                    if from_a == from_b { table.at(i, j) + 1 } else { table.at(i, j + 1).max(table.at(i + 1, j)) };
                table.cells[(i + 1) * width + j + 1] = cell;
            }
        }
        Ok(table)
    }

    fn at(&self, i: usize, j: usize) -> u32 {
        self.cells[i * self.width + j]
    }

    /// The subsequence, and its runs from the last to the first.
    fn walk(&self, a: &[u8], b: &[u8]) -> (Vec<u8>, Vec<Match>) {
        let (mut i, mut j) = (a.len(), b.len());
        let (mut text, mut matches) = (Vec::new(), Vec::<Match>::new());
        let mut is_running = false;
        while i > 0 && j > 0 {
            if a[i - 1] == b[j - 1] {
                (i, j) = (i - 1, j - 1);
                text.push(a[i]);
                match matches.last_mut().filter(|_| is_running) {
                    Some(run) => *run = Match { a: i, b: j, length: run.length + 1 },
                    None => matches.push(Match { a: i, b: j, length: 1 }),
                }
                is_running = true;
            } else {
                is_running = false;
                if self.at(i - 1, j) > self.at(i, j - 1) { i -= 1 } else { j -= 1 }
            }
        }
        text.reverse();
        (text, matches)
    }
}
