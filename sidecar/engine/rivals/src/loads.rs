//! Keys and the orders they are asked for in; the same in every run.

/// A key as the opponents hold it.
pub type Key = Box<[u8]>;

/// Keys of 16 bytes.
pub fn keys(kind: &str, count: usize) -> Vec<Key> {
    (0..count).map(|n| format!("{kind}:{n:011}").into_bytes().into()).collect()
}

/// Xorshift.
struct Random(u64);

impl Random {
    fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1)
    }

    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    fn unit(&mut self) -> f64 {
        (self.next() >> 11) as f64 / (1_u64 << 53) as f64
    }
}

/// So many draws in which every key is equally likely.
pub fn uniform(keys: usize, draws: usize, seed: u64) -> Vec<u32> {
    let mut random = Random::new(seed);
    (0..draws).map(|_| (random.next() % keys as u64) as u32).collect()
}

/// So many draws by Zipf's law with the exponent 0.99.
pub fn zipf(keys: usize, draws: usize, seed: u64) -> Vec<u32> {
    let mut sum = 0.0;
    let sums: Vec<f64> = (1..=keys)
        .map(|rank| {
            sum += (rank as f64).powf(-0.99);
            sum
        })
        .collect();
    let mut random = Random::new(seed);
    (0..draws)
        .map(|_| {
            let at = random.unit() * sum;
            sums.partition_point(|sum| *sum < at).min(keys - 1) as u32
        })
        .collect()
}
