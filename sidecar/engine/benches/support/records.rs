//! Generated records for the compression suite and the tests of the codec: JSON as services cache it.
//!
//! Every field that would differ in earnest differs here (ids, times, amounts, hashes); nothing is padded to compress
//! well. Two seeds give records that share their shape and their vocabulary, and no content.

use std::fmt::Write as _;

const FIRST: &[&str] = &[
    "ada", "alan", "barbara", "bjarne", "brian", "carol", "claude", "dennis", "donald", "edsger", "fran", "grace",
    "guido", "hedy", "ivan", "jean", "john", "karen", "ken", "leslie", "linus", "lotfi", "margaret", "marta",
    "niklaus", "ole", "peter", "radia", "rob", "sophie", "tim", "yukihiro",
];
const LAST: &[&str] = &[
    "allen", "bartik", "berners", "cerf", "dahl", "dijkstra", "estrin", "floyd", "goldberg", "hamilton", "hoare",
    "hopper", "iverson", "jones", "keller", "knuth", "lamport", "liskov", "lovelace", "mccarthy", "naur", "perlis",
    "perlman", "ritchie", "shannon", "spark", "tarjan", "thompson", "turing", "wilson", "wirth", "zadeh",
];
const WORDS: &[&str] = &[
    "alloy", "amber", "basic", "bottle", "brass", "cable", "carbon", "ceramic", "classic", "cotton", "desk", "fabric",
    "filter", "garden", "glass", "granite", "handle", "kettle", "lamp", "leather", "linen", "marble", "matte", "mini",
    "notebook", "oak", "panel", "paper", "pocket", "rubber", "shelf", "silver", "spare", "steel", "stool", "table",
    "travel", "walnut", "winter", "wool",
];
const PLANS: &[&str] = &["free", "pro", "team", "enterprise"];
const CITIES: &[&str] =
    &["Berlin", "Bologna", "Bruges", "Cork", "Gdansk", "Lyon", "Malmo", "Porto", "Turku", "Utrecht"];

/// A small deterministic generator of numbers (SplitMix64) and records.
pub(crate) struct Records(u64);

impl Records {
    pub(crate) fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x2545_f491_4f6c_dd1d))
    }

    fn number(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    fn below(&mut self, bound: u64) -> u64 {
        self.number() % bound
    }

    fn pick(&mut self, of: &[&'static str]) -> &'static str {
        of[self.below(of.len() as u64) as usize]
    }

    /// Bytes that nothing compresses.
    pub(crate) fn noise(&mut self, bytes: usize) -> Vec<u8> {
        (0..bytes).map(|_| self.number() as u8).collect()
    }

    /// A session of about 100 bytes.
    pub(crate) fn session(&mut self) -> Vec<u8> {
        let (id, first, last) = (self.below(100_000_000), self.pick(FIRST), self.pick(LAST));
        let (plan, seen, score) = (self.pick(PLANS), 1_760_000_000 + self.below(5_000_000), self.below(10_000));
        let admin = self.below(20) == 0;
        format!(
            r#"{{"id":{id},"user":"{first}.{last}","plan":"{plan}","seen":{seen},"score":0.{score:04},"admin":{admin}}}"#
        )
        .into_bytes()
    }

    /// Orders in an array, until it has at least `bytes`; one order is about 1 KiB.
    pub(crate) fn orders(&mut self, bytes: usize) -> Vec<u8> {
        let mut text = String::new();
        while text.len() < bytes {
            text.push(if text.is_empty() { '[' } else { ',' });
            self.order(&mut text);
        }
        text.push(']');
        text.into_bytes()
    }

    /// One order of about 1 KiB.
    fn order(&mut self, text: &mut String) {
        let (first, last) = (self.pick(FIRST), self.pick(LAST));
        let _ = write!(
            text,
            r#"{{"order_id":"{:016x}","created_at":"2026-{:02}-{:02}T{:02}:{:02}:{:02}Z","status":"{}","#,
            self.number(),
            1 + self.below(12),
            1 + self.below(28),
            self.below(24),
            self.below(60),
            self.below(60),
            ["pending", "paid", "shipped", "returned"][self.below(4) as usize],
        );
        let _ = write!(
            text,
            r#""customer":{{"id":{},"name":"{first} {last}","email":"{first}.{last}{}@example.com","vip":{}}},"#,
            self.below(10_000_000),
            self.below(1000),
            self.below(10) == 0,
        );
        let _ = write!(
            text,
            r#""address":{{"street":"{} street {}","city":"{}","zip":"{:05}"}},"lines":["#,
            self.pick(WORDS),
            1 + self.below(200),
            self.pick(CITIES),
            self.below(100_000),
        );
        let lines = 5 + self.below(4);
        for line in 0..lines {
            let comma = if line == 0 { "" } else { "," };
            let _ = write!(
                text,
                r#"{comma}{{"sku":"{:08X}","title":"{} {} {}","quantity":{},"price_cents":{},"tax":{}}}"#,
                self.number() as u32,
                self.pick(WORDS),
                self.pick(WORDS),
                self.pick(WORDS),
                1 + self.below(9),
                100 + self.below(50_000),
                [0, 7, 19, 21][self.below(4) as usize],
            );
        }
        let _ = write!(
            text,
            r#"],"total_cents":{},"currency":"EUR","checksum":"{:016x}{:016x}"}}"#,
            1000 + self.below(1_000_000),
            self.number(),
            self.number(),
        );
    }

    /// One order as bytes.
    pub(crate) fn one_order(&mut self) -> Vec<u8> {
        let mut text = String::new();
        self.order(&mut text);
        text.into_bytes()
    }
}
