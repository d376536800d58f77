//! The fuzz targets on a stable toolchain: what is known to be good, damaged at random, and plain noise.
//!
//! A few seconds of the same inputs every time; `CADDY_SOAK_SECONDS=600 cargo test --release -p caddy-engine --test fuzz`
//! goes on from a new seed for so long in each target. A failure prints the input; keep it in `REGRESSIONS`. With a nightly
//! toolchain `fuzz/` runs the same targets with coverage feedback.

#![expect(clippy::unwrap_used, clippy::panic, reason = "helpers of tests fail as tests do")]

#[path = "../fuzz/targets/envelope.rs"]
mod envelope;
#[path = "../fuzz/targets/glob.rs"]
mod glob;
#[path = "../fuzz/targets/values.rs"]
mod values;

use std::panic::catch_unwind;
use std::path::Path;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use proptest::prelude::RngExt;
use proptest::test_runner::{RngAlgorithm, TestRng};

const INPUTS: usize = 20_000;
const LONGEST: usize = 512;

/// Damages a good input, or makes noise.
fn input(rng: &mut TestRng, corpus: &[Vec<u8>]) -> Vec<u8> {
    let mut input = match rng.random_range(0..4) {
        0 => (0..rng.random_range(0..64)).map(|_| rng.random()).collect(),
        _ => corpus[rng.random_range(0..corpus.len())].clone(),
    };
    for _ in 0..rng.random_range(0..6) {
        let at = rng.random_range(0..=input.len());
        match rng.random_range(0..6) {
            0 => input.insert(at, rng.random()),
            1 => input.truncate(at),
            2 => {
                let other = &corpus[rng.random_range(0..corpus.len())];
                input.truncate(at);
                input.extend_from_slice(&other[rng.random_range(0..=other.len())..]);
            }
            _ if at == input.len() => {}
            3 => input[at] ^= 1 << rng.random_range(0..8),
            // Limits of lengths and varints, and what patterns are made of.
            4 => input[at] = *b"\x00\x7f\x80\xff*?[]^-\\a".get(rng.random_range(0..12)).unwrap(),
            _ => drop(input.remove(at)),
        }
    }
    input.truncate(LONGEST);
    input
}

fn fuzz(corpus: &[Vec<u8>], check: fn(&[u8])) {
    let soak = std::env::var("CADDY_SOAK_SECONDS").ok().map(|seconds| Duration::from_secs(seconds.parse().unwrap()));
    let started = SystemTime::now();
    let mut seed = [7; 32];
    if soak.is_some() {
        seed[..16].copy_from_slice(&started.duration_since(UNIX_EPOCH).unwrap().as_nanos().to_le_bytes());
    }
    let mut rng = TestRng::from_seed(RngAlgorithm::ChaCha, &seed);
    let try_one = |input: &[u8]| {
        catch_unwind(|| check(input)).unwrap_or_else(|_| panic!("this input fails: b\"{}\"", input.escape_ascii()));
    };
    for input in corpus {
        try_one(input);
    }
    loop {
        for _ in 0..INPUTS {
            try_one(&input(&mut rng, corpus));
        }
        if soak.is_none_or(|span| started.elapsed().unwrap() >= span) {
            return;
        }
    }
}

/// Every golden file of a directory, read by `read`.
fn golden(directory: &str, read: impl Fn(Vec<u8>) -> Vec<u8>) -> Vec<Vec<u8>> {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("golden").join(directory);
    let files = std::fs::read_dir(directory).unwrap();
    let mut corpus: Vec<_> = files.map(|file| read(std::fs::read(file.unwrap().path()).unwrap())).collect();
    corpus.sort();
    assert!(corpus.len() > 3, "the golden files are the corpus");
    corpus
}

fn from_hex(text: Vec<u8>) -> Vec<u8> {
    let digits: Vec<u8> = text.into_iter().filter(u8::is_ascii_hexdigit).collect();
    digits.chunks(2).map(|pair| u8::from_str_radix(std::str::from_utf8(pair).unwrap(), 16).unwrap()).collect()
}

#[test]
fn envelopes() {
    let good = golden("envelope", from_hex);
    assert!(good.iter().all(|envelope| envelope.starts_with(&caddy_engine::codec::envelope::MAGIC)));
    fuzz(&good, envelope::check);
}

#[test]
fn stored_values() {
    let kinds = 0_u8..4;
    let payloads = golden("values", |stored| stored[stored.len().min(16)..].to_vec());
    let with_head = |kind: u8| payloads.iter().map(move |payload| [&[kind, 200, 0, 0], payload.as_slice()].concat());
    fuzz(&kinds.flat_map(with_head).collect::<Vec<_>>(), values::check);
}

#[test]
fn patterns() {
    let corpus = [
        b"user:*:name\0user:1:name".as_slice(),
        b"h[^a-d]llo\\*\0hello*",
        b"[a-\0-",
        b"[\0[",
        b"[]a]\0a]",
        b"**?*\0ab",
        b"a\\\0a\\",
        b"*a*b*c*d*e\0aabbccddeeaabbccdde",
        b"\0",
    ];
    fuzz(&corpus.map(<[u8]>::to_vec), glob::check);
}
