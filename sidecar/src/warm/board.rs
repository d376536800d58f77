//! What sidecars of a domain write down of the reads that are made most: requests, sizes and rates, never values.
//!
//! There are [`BOARDS`] records in L3, plain strings with a life, each written by whichever member comes by when it is no
//! longer new: so their number and size are bounded however many members there are, nobody has to list keys, and in a
//! cluster each is asked of its own node. A record is RESP, bounded on both ways; what is not one is read as nothing.

use bytes::Bytes;
use caddy_resp::{Value, encode};

/// Records of a domain.
pub(super) const BOARDS: u64 = 8;
/// Bytes of one.
const MAX_BYTES: usize = 64 << 10;
/// Reads in one.
const MAX_LINES: usize = 1000;
/// Words of a request.
const MAX_WORDS: usize = 32;
/// What a record begins with; another format has another name.
const FORMAT: &[u8] = b"caddy-hot-1";

/// A read that is made often.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Line {
    pub(super) database: u32,
    /// The request.
    pub(super) words: Vec<Bytes>,
    /// What its copy takes.
    pub(super) bytes: u64,
    /// How often it is made, in a thousand seconds.
    pub(super) rate: u64,
}

/// The key of a record.
pub(super) fn name(domain: &str, board: u64) -> String {
    format!("caddy:{domain}:hot:{}", board % BOARDS)
}

/// The record of the hottest reads that fit.
pub(super) fn encode(lines: &[Line]) -> Vec<u8> {
    let (mut body, mut count) = (Vec::new(), 0);
    for line in lines.iter().filter(|line| line.words.len() <= MAX_WORDS).take(MAX_LINES) {
        let before = body.len();
        encode::array_header(&mut body, 4);
        for number in [u64::from(line.database), line.bytes, line.rate] {
            encode::integer(&mut body, i64::try_from(number).unwrap_or(i64::MAX));
        }
        encode::array_header(&mut body, line.words.len());
        line.words.iter().for_each(|word| encode::bulk(&mut body, word));
        if body.len() > MAX_BYTES - 64 {
            body.truncate(before);
            break;
        }
        count += 1;
    }
    let mut out = Vec::with_capacity(body.len() + 64);
    encode::array_header(&mut out, count + 1);
    encode::bulk(&mut out, FORMAT);
    out.extend_from_slice(&body);
    out
}

/// The reads of a record; none if it is not one.
pub(super) fn decode(record: &[u8]) -> Vec<Line> {
    if record.len() > MAX_BYTES {
        return Vec::new();
    }
    let Ok((value, _)) = Value::decode(record) else { return Vec::new() };
    match value.as_elements() {
        Some([format, lines @ ..]) if format.as_bytes() == Some(FORMAT) => {
            lines.iter().take(MAX_LINES).filter_map(line).collect()
        }
        _ => Vec::new(),
    }
}

fn line(value: &Value<'_>) -> Option<Line> {
    let [database, bytes, rate, words] = value.as_elements()? else { return None };
    let number = |value: &Value<'_>| value.as_integer().and_then(|number| u64::try_from(number).ok());
    let words = words.as_elements().filter(|words| words.len() <= MAX_WORDS)?;
    let words: Option<Vec<Bytes>> = words.iter().map(|word| word.as_bytes().map(Bytes::copy_from_slice)).collect();
    let database = u32::try_from(number(database)?).ok()?;
    Some(Line { database, words: words?, bytes: number(bytes)?, rate: number(rate)? })
}

/// The reads of all records, each once with the sum of its rates, the hottest first.
pub(super) fn merge(records: Vec<Vec<Line>>) -> Vec<Line> {
    let mut all: Vec<Line> = records.into_iter().flatten().collect();
    all.sort_by(|a, b| (a.database, &a.words).cmp(&(b.database, &b.words)));
    all.dedup_by(|next, kept| {
        let same = (next.database, &next.words) == (kept.database, &kept.words);
        if same {
            kept.rate = kept.rate.saturating_add(next.rate);
            kept.bytes = kept.bytes.max(next.bytes);
        }
        same
    });
    all.sort_by_key(|line| std::cmp::Reverse(line.rate));
    all
}

#[cfg(test)]
mod tests {
    use super::*;

    fn get(key: &str, rate: u64) -> Line {
        let words = ["get", key].map(|word| Bytes::copy_from_slice(word.as_bytes())).to_vec();
        Line { database: 0, words, bytes: 100, rate }
    }

    #[test]
    fn what_is_written_is_read_back_and_bounded() {
        let lines = [get("a", 9), Line { database: 3, ..get("b\r\n", 0) }];
        assert_eq!(decode(&encode(&lines)), lines);
        let many: Vec<Line> = (0..5000).map(|n| get(&format!("{n:0200}"), n)).collect();
        let record = encode(&many);
        assert!(record.len() <= MAX_BYTES, "{}", record.len());
        let read = decode(&record);
        assert!(read.len() > 200 && read[..] == many[..read.len()], "{}", read.len());
    }

    #[test]
    fn what_is_no_record_is_read_as_nothing() {
        let record = encode(&[get("a", 1)]);
        for end in 0..record.len() {
            assert_eq!(decode(&record[..end]), [], "{end}");
        }
        let strange: [&[u8]; 6] = [
            b"",
            b"hello",
            b"*1\r\n$1\r\nx\r\n",
            b"*2\r\n$11\r\ncaddy-hot-1\r\n:1\r\n",
            b"*2\r\n$11\r\ncaddy-hot-1\r\n*4\r\n:-1\r\n:1\r\n:1\r\n*0\r\n",
            b"*2\r\n$11\r\ncaddy-hot-1\r\n*4\r\n:1\r\n:1\r\n:1\r\n*1\r\n:7\r\n",
        ];
        for record in strange {
            assert_eq!(decode(record), [], "{}", String::from_utf8_lossy(record));
        }
        assert_eq!(decode(&vec![b'*'; MAX_BYTES + 1]), []);
    }

    #[test]
    fn what_several_read_is_hotter() {
        let merged = merge(vec![vec![get("a", 5), get("b", 4)], vec![get("c", 6), get("b", 3)]]);
        let names: Vec<(&[u8], u64)> = merged.iter().map(|line| (&*line.words[1], line.rate)).collect();
        assert_eq!(names, [(&b"b"[..], 7), (b"c", 6), (b"a", 5)]);
    }
}
