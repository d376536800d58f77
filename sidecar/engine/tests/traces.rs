//! The trace files that `cargo bench -p caddy-engine --bench hit_ratio -- FILE…` reads, one of each format.

#![cfg(not(feature = "shuttle"))]

#[path = "../benches/hit_ratio/traces.rs"]
#[expect(dead_code, reason = "generated traces are the benchmark's")]
mod traces;

use std::io::ErrorKind;
use std::path::PathBuf;

use traces::{Trace, read};

fn file(name: &str, content: impl AsRef<[u8]>) -> PathBuf {
    let path = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join(name);
    std::fs::write(&path, content).expect("a directory for temporary files");
    path
}

/// Keys as numbers in the order of their first reads.
fn pattern(trace: &Trace) -> Vec<usize> {
    let mut seen: Vec<u64> = Vec::new();
    let mut number = |key: &u64| {
        seen.iter().position(|known| known == key).unwrap_or_else(|| {
            seen.push(*key);
            seen.len() - 1
        })
    };
    trace.keys.iter().map(&mut number).collect()
}

#[test]
fn every_format_tells_the_same_reads() {
    let numbers: [u64; 7] = [500, 501, 502, 500, u64::MAX, 501, 500];
    let bytes: Vec<u8> = numbers.iter().flat_map(|key| key.to_le_bytes()).collect();
    let files = [
        file("keys.txt", "user:1\nuser:2\n*\nuser:1\n\nuser:4\r\nuser:2\nuser:1\n"),
        file("blocks.ARC", "500 3 0 1\n500 1 0 2\n18446744073709551614 1 0 3\n501 1 0 4\n500 1 0 5\n"),
        file("blocks.lis", "500\n501\n*\n502\n500\n9\n*\n501\n500\n"),
        file("blocks.lirs", "500\n501\n502\n500\n9\n501\n500\n"),
        file("keys.bin", bytes),
    ];
    for path in files {
        let trace = read(&path).expect("a well-formed file");
        assert_eq!(pattern(&trace), [0, 1, 2, 0, 3, 1, 0], "{}", path.display());
        assert_eq!(trace.sizes, [1, 1, 1], "a cache of no entries would say nothing");
    }
}

#[test]
fn malformed_files_are_refused_with_a_reason() {
    let cases = [
        (file("short.bin", [0; 12]), "12 bytes are not a multiple of eight"),
        (file("words.arc", "1 2 0 1\nfirst 2 0 1\n"), "line 2: no first block and number of blocks"),
        (file("empty.txt", "\n"), "there is no key in it"),
    ];
    for (path, reason) in cases {
        let error = read(&path).err().expect("it is malformed");
        assert_eq!(error.kind(), ErrorKind::InvalidData);
        assert!(error.to_string().contains(reason), "{error}");
    }
}
