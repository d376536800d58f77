//! The compression suite: size × algorithm × level × dictionary → ratio and speed of the whole way, envelope included.
//!
//! `cargo bench -p caddy-engine --bench compression [-- ROUNDS]`. All cases take turns in every round, and each figure
//! is the median of the rounds, in CPU time of the thread, so that a slow second of the machine hits all alike and what
//! else it does counts little. Dictionaries are trained on records of one seed and measured on those of another.

use std::collections::HashMap;
use std::convert::Infallible;
use std::hint::black_box;
use std::pin::pin;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};

use caddy_engine::codec::training::TrainingConfig;
use caddy_engine::codec::{
    CodecConfig, CompressionAlgorithm, Dictionaries, DictionaryId, DictionaryStore, Header, KeyspaceCodec,
};
use parking_lot::Mutex;
use rustix::time::{ClockId, clock_gettime};

#[path = "support/records.rs"]
mod records;
use records::Records;

/// Values per shape, and how long one turn of a case lasts at least.
const VALUES: usize = 200;
const TURN_NANOS: u64 = 2_000_000;

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Shape {
    Session,
    Order,
    Orders(usize),
    Noise(usize),
}

impl Shape {
    fn name(self) -> String {
        match self {
            Self::Session => "json ~100 B".into(),
            Self::Order => "json ~1 KiB".into(),
            Self::Orders(bytes) => format!("json {} KiB", bytes / 1024),
            Self::Noise(bytes) => format!("noise {} KiB", bytes / 1024),
        }
    }

    fn values(self, seed: u64) -> Vec<Vec<u8>> {
        let mut records = Records::new(seed);
        let count = if matches!(self, Self::Session | Self::Order) { VALUES } else { VALUES / 10 };
        (0..count)
            .map(|_| match self {
                Self::Session => records.session(),
                Self::Order => records.one_order(),
                Self::Orders(bytes) => {
                    let mut value = records.orders(bytes);
                    value.truncate(bytes);
                    value
                }
                Self::Noise(bytes) => records.noise(bytes),
            })
            .collect()
    }

    /// What a keyspace of such values is trained on.
    fn training(self, seed: u64) -> Vec<Vec<u8>> {
        let mut records = Records::new(seed);
        (0..4000).map(|_| if self == Self::Session { records.session() } else { records.one_order() }).collect()
    }
}

struct Case {
    shape: Shape,
    method: &'static str,
    codec: KeyspaceCodec,
    values: Arc<Vec<Vec<u8>>>,
    stored: Vec<Vec<u8>>,
    encode: Vec<f64>,
    decode: Vec<f64>,
}

const METHODS: &[(&str, CompressionAlgorithm, bool)] = &[
    ("none", CompressionAlgorithm::None, false),
    ("lz4", CompressionAlgorithm::Lz4, false),
    ("zstd -1", CompressionAlgorithm::Zstd { level: -1 }, false),
    ("zstd 1", CompressionAlgorithm::Zstd { level: 1 }, false),
    ("zstd 3", CompressionAlgorithm::Zstd { level: 3 }, false),
    ("zstd 9", CompressionAlgorithm::Zstd { level: 9 }, false),
    ("zstd 1 + dictionary", CompressionAlgorithm::Zstd { level: 1 }, true),
    ("zstd 3 + dictionary", CompressionAlgorithm::Zstd { level: 3 }, true),
];

fn main() {
    let rounds = std::env::args().skip(1).find_map(|argument| argument.parse().ok()).unwrap_or(15_usize).max(1);
    let shapes = [
        Shape::Session,
        Shape::Order,
        Shape::Orders(4 << 10),
        Shape::Orders(16 << 10),
        Shape::Orders(64 << 10),
        Shape::Noise(1 << 10),
        Shape::Noise(16 << 10),
    ];
    let mut cases: Vec<Case> = shapes
        .into_iter()
        .flat_map(|shape| {
            let values = Arc::new(shape.values(2));
            METHODS.iter().map(move |&(method, algorithm, trained)| {
                // No threshold: the table is to show what each threshold would save.
                let config = CodecConfig { algorithm, min_bytes: 0, ..CodecConfig::default() };
                let codec = codec(config, trained.then(|| shape.training(1)));
                let stored = values.iter().map(|value| codec.seal(b"key", &Header::default(), value).into_bytes());
                let stored = stored.collect();
                Case { shape, method, codec, values: values.clone(), stored, encode: vec![], decode: vec![] }
            })
        })
        .collect();

    for _ in 0..rounds {
        for case in &mut cases {
            let encode = turn(&case.values, |value| {
                black_box(case.codec.seal(b"key", &Header::default(), value));
            });
            let decode = turn(&case.stored, |stored| {
                black_box(case.codec.open(b"key", stored).is_ok());
            });
            case.encode.push(encode);
            case.decode.push(decode);
        }
    }
    report(&mut cases, rounds);
}

fn report(cases: &mut [Case], rounds: usize) {
    println!("medians of {rounds} interleaved rounds; sizes are means; ratio of payloads, stored with the envelope\n");
    println!(
        "{:<12} {:<20} {:>7} {:>7} {:>7} {:>10} {:>10} {:>9} {:>9}",
        "values", "method", "bytes", "ratio", "stored", "encode ns", "decode ns", "enc MB/s", "dec MB/s"
    );
    let mut encode_16k = HashMap::new();
    for case in cases {
        let (encode, decode) = (median(&mut case.encode), median(&mut case.decode));
        let stats = case.codec.stats();
        let mean = case.values.iter().map(Vec::len).sum::<usize>() as f64 / case.values.len() as f64;
        let stored = case.stored.iter().map(Vec::len).sum::<usize>() as f64 / case.stored.len() as f64;
        println!(
            "{:<12} {:<20} {mean:>7.0} {:>7.2} {:>7.2} {encode:>10.0} {decode:>10.0} {:>9.0} {:>9.0}",
            case.shape.name(),
            case.method,
            stats.compression_ratio(),
            mean / stored,
            mean * 1e3 / encode,
            mean * 1e3 / decode,
        );
        encode_16k.insert((case.shape.name(), case.method), encode);
    }
    println!("\nan incompressible value of 16 KiB costs, of what JSON of that size costs (bound: 0.15):");
    for (method, algorithm, _) in METHODS {
        let cost = |shape: &str| encode_16k.get(&(shape.to_owned(), *method)).copied().unwrap_or(f64::NAN);
        if *algorithm != CompressionAlgorithm::None {
            println!("{method:<20} {:.3}", cost("noise 16 KiB") / cost("json 16 KiB"));
        }
    }
}

/// Nanoseconds per value, over as many passes as fill a turn.
fn turn(values: &[Vec<u8>], mut work: impl FnMut(&[u8])) -> f64 {
    let begun = cpu_nanos();
    let mut done = 0;
    loop {
        for value in values {
            work(black_box(value));
        }
        done += values.len();
        let spent = cpu_nanos() - begun;
        if spent >= TURN_NANOS {
            return spent as f64 / done as f64;
        }
    }
}

/// CPU time of this thread.
fn cpu_nanos() -> u64 {
    let time = clock_gettime(ClockId::ThreadCPUTime);
    u64::try_from(time.tv_sec * 1_000_000_000 + time.tv_nsec).unwrap_or(0)
}

fn median(samples: &mut [f64]) -> f64 {
    samples.sort_by(f64::total_cmp);
    samples[samples.len() / 2]
}

/// With a dictionary that was trained on `training` and is stored, as it would be in L3.
fn codec(config: CodecConfig, training: Option<Vec<Vec<u8>>>) -> KeyspaceCodec {
    let dictionaries = Arc::new(Dictionaries::default());
    let codec = KeyspaceCodec::new(config, dictionaries.clone());
    if let Some(training) = training {
        let trainer = KeyspaceCodec::with_training(config, dictionaries.clone(), TrainingConfig::default(), 7);
        for value in &training {
            let _ = trainer.compress(value);
        }
        let begun = cpu_nanos();
        let dictionary = trainer.train().expect("records have much in common");
        let (bytes, spent) = (dictionary.content().len(), (cpu_nanos() - begun) / 1_000_000);
        println!("trained a dictionary of {bytes} bytes in {spent} ms");
        let store = MemoryStore::default();
        let mut publishing = pin!(dictionaries.publish(&store));
        let mut context = Context::from_waker(Waker::noop());
        assert!(matches!(publishing.as_mut().poll(&mut context), Poll::Ready(Ok(1))), "this store never waits");
        codec.adopt(dictionary).expect("a fresh dictionary is sound");
    }
    codec
}

#[derive(Default)]
struct MemoryStore(Mutex<HashMap<DictionaryId, Vec<u8>>>);

impl DictionaryStore for MemoryStore {
    type Error = Infallible;

    async fn store(&self, id: DictionaryId, content: &[u8]) -> Result<(), Infallible> {
        self.0.lock().insert(id, content.to_vec());
        Ok(())
    }

    async fn load(&self, id: DictionaryId) -> Result<Option<Vec<u8>>, Infallible> {
        Ok(self.0.lock().get(&id).cloned())
    }
}
