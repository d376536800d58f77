//! Training a dictionary from what a keyspace stores.
//!
//! Owns the reservoir, which keeps a fixed number of samples however many values pass, each as likely as every other
//! (Vitter, "Random sampling with a reservoir", 1985, algorithm R), and the training itself. A dictionary is judged on
//! samples it was not trained on, and refused when it does not pay. Training takes some 0.2 s of one core and some 12 MiB
//! while it lasts, so it belongs on a thread of its own; the reservoir is cheap enough for the hot path.

use super::dictionary::{Dictionary, DictionaryError};
use super::workspace::{self, Zstd};
use zstd::dict::EncoderDictionary;

/// Fewer samples than this say nothing about a keyspace.
pub const MIN_SAMPLES: usize = 100;
/// One sample in this many is kept from the training to judge its result by.
const HELD_OUT: usize = 5;

/// The bounds of a keyspace's training. The reservoir takes at most `max_samples × max_sample_bytes`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TrainingConfig {
    /// Samples kept. Default 1,024.
    pub max_samples: usize,
    /// A larger value is sampled by so many of its first bytes. Default 2 KiB.
    pub max_sample_bytes: usize,
    /// Bytes of the dictionary. Default 16 KiB.
    pub dictionary_bytes: usize,
    /// A dictionary has to make the samples held out smaller by so much, in percent, than compression without one.
    /// Default 10.
    pub min_gain_percent: u8,
}

impl Default for TrainingConfig {
    fn default() -> Self {
        Self { max_samples: 1024, max_sample_bytes: 2048, dictionary_bytes: 16 * 1024, min_gain_percent: 10 }
    }
}

/// Why there is no new dictionary.
#[derive(Debug, thiserror::Error)]
pub enum TrainingError {
    /// Training was not configured for this keyspace.
    #[error("this keyspace collects no samples: configure training for it")]
    NotConfigured,
    /// Too little was seen.
    #[error(
        "{samples} samples of {MIN_SAMPLES} that training needs: try again when more values were written (those below `min_bytes_with_dictionary` are not sampled)"
    )]
    TooFewSamples {
        /// How many there are.
        samples: usize,
    },
    /// zstd found nothing that repeats.
    #[error("failed to train a dictionary: the samples may have nothing in common; leave compression without one")]
    Train {
        /// zstd's words.
        source: std::io::Error,
    },
    /// zstd refuses what it trained.
    #[error("failed to prepare the trained dictionary")]
    Prepare {
        /// Why.
        #[from]
        source: DictionaryError,
    },
    /// Trained, and of no use.
    #[error("the dictionary makes {original} bytes {with}, without it they are {without}: not worth having")]
    NotWorthwhile {
        /// Bytes of the samples held out.
        original: usize,
        /// Compressed without it.
        without: usize,
        /// Compressed with it.
        with: usize,
    },
}

/// A fair sample of the values that passed, in bounded memory.
#[derive(Debug)]
pub struct Reservoir {
    config: TrainingConfig,
    samples: Vec<Box<[u8]>>,
    seen: u64,
    random: u64,
}

impl Reservoir {
    /// Empty. The same seed and the same values give the same samples.
    pub fn new(config: TrainingConfig, seed: u64) -> Self {
        Self { config, samples: Vec::new(), seen: 0, random: seed }
    }

    /// Keeps `value`, or not. Costs a few nanoseconds when not, which is the rule.
    pub fn offer(&mut self, value: &[u8]) {
        self.seen += 1;
        let place = if self.samples.len() < self.config.max_samples {
            self.samples.len()
        } else {
            let place = self.below(self.seen);
            match usize::try_from(place) {
                Ok(place) if place < self.samples.len() => place,
                _ => return,
            }
        };
        let sample = value.get(..self.config.max_sample_bytes).unwrap_or(value).into();
        match self.samples.get_mut(place) {
            Some(kept) => *kept = sample,
            None if self.config.max_samples > 0 => self.samples.push(sample),
            None => {}
        }
    }

    /// How many samples there are.
    pub fn len(&self) -> usize {
        self.samples.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.samples.is_empty()
    }

    /// The samples, to be trained from elsewhere; the reservoir begins anew.
    pub fn take(&mut self) -> Samples {
        self.seen = 0;
        Samples { config: self.config, samples: std::mem::take(&mut self.samples) }
    }

    /// A number below `bound`: SplitMix64, and the high half of a product.
    fn below(&mut self, bound: u64) -> u64 {
        self.random = self.random.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.random;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^= mixed >> 31;
        ((u128::from(mixed) * u128::from(bound)) >> 64) as u64
    }
}

/// What a reservoir held.
#[derive(Debug)]
pub struct Samples {
    config: TrainingConfig,
    samples: Vec<Box<[u8]>>,
}

/// What came of a training.
#[derive(Debug)]
pub struct Trained {
    /// The dictionary.
    pub dictionary: Dictionary,
    /// Bytes of the samples held out.
    pub original: usize,
    /// Compressed without it, each for itself.
    pub without: usize,
    /// Compressed with it, each for itself.
    pub with: usize,
}

impl Samples {
    /// Trains a dictionary and judges it at `level`. Takes tenths of a second: not for a thread that serves.
    ///
    /// # Errors
    ///
    /// Too few samples, nothing in common, or a dictionary that does not pay.
    pub fn train(self, level: i32) -> Result<Trained, TrainingError> {
        if self.samples.len() < MIN_SAMPLES {
            return Err(TrainingError::TooFewSamples { samples: self.samples.len() });
        }
        // A reservoir that was not yet full holds its samples in the order of arrival: judge by all times alike.
        let (held_out, training): (Vec<_>, Vec<_>) =
            self.samples.iter().enumerate().partition(|(index, _)| index % HELD_OUT == 0);
        let training: Vec<&[u8]> = training.into_iter().map(|(_, sample)| &**sample).collect();
        let content = zstd::dict::from_samples(&training, self.config.dictionary_bytes)
            .map_err(|source| TrainingError::Train { source })?;
        let dictionary = Dictionary::from_training(content)?;

        let level = super::compression::clamp_level(level);
        let encoder = EncoderDictionary::try_copy(dictionary.content(), level)
            .map_err(|source| DictionaryError::Prepare { id: dictionary.id(), source })?;
        let sum = |how| {
            let held_out = held_out.iter().map(|(_, sample)| &***sample);
            held_out.map(|sample: &[u8]| smaller(how, sample)).sum::<usize>()
        };
        let original = held_out.iter().map(|(_, sample)| sample.len()).sum();
        let (without, with) = (sum(Zstd::Level(level)), sum(Zstd::Dictionary(encoder.as_cdict())));
        if with * 100 > without * usize::from(100 - self.config.min_gain_percent.min(100)) {
            return Err(TrainingError::NotWorthwhile { original, without, with });
        }
        Ok(Trained { dictionary, original, without, with })
    }
}

/// Bytes of `sample` compressed, or as it is if that is less.
fn smaller(how: Zstd<'_>, sample: &[u8]) -> usize {
    workspace::with(|workspace| workspace.zstd_compress(how, sample).map_or(sample.len(), <[u8]>::len))
        .min(sample.len())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_value_is_as_likely_to_be_sampled_as_every_other() {
        let config = TrainingConfig { max_samples: 100, ..TrainingConfig::default() };
        let mut early = 0;
        for seed in 0..200 {
            let mut reservoir = Reservoir::new(config, seed);
            for value in 0..1000_u32 {
                reservoir.offer(&value.to_le_bytes());
            }
            let samples = reservoir.take().samples;
            assert_eq!(samples.len(), 100);
            early += samples.iter().filter(|sample| sample[1] == 0).count();
        }
        // 256 of 1,000 values have a zero there: 5,120 of 20,000 samples are expected, sigma is 62.
        assert!((4800..5440).contains(&early), "{early}");
    }

    #[test]
    fn a_reservoir_is_bounded_in_samples_and_bytes() {
        let mut reservoir = Reservoir::new(TrainingConfig { max_samples: 3, ..TrainingConfig::default() }, 7);
        for _ in 0..50 {
            reservoir.offer(&[b'x'; 5000]);
        }
        assert_eq!(reservoir.len(), 3);
        assert!(reservoir.take().samples.iter().all(|sample| sample.len() == 2048));
        assert!(reservoir.is_empty());

        let mut none = Reservoir::new(TrainingConfig { max_samples: 0, ..TrainingConfig::default() }, 7);
        none.offer(b"value");
        assert!(none.is_empty());
    }

    #[test]
    fn noise_and_too_little_give_no_dictionary() {
        let mut reservoir = Reservoir::new(TrainingConfig::default(), 1);
        reservoir.offer(b"alone");
        assert!(matches!(reservoir.take().train(1), Err(TrainingError::TooFewSamples { samples: 1 })));

        let mut noise = Reservoir::new(TrainingConfig::default(), 1);
        for _ in 0..500 {
            let value: Vec<u8> = (0..200).map(|_| noise.below(256) as u8).collect();
            noise.offer(&value);
        }
        let refused = noise.take().train(1);
        assert!(
            matches!(refused, Err(TrainingError::NotWorthwhile { .. } | TrainingError::Train { .. })),
            "{refused:?}"
        );
    }
}
