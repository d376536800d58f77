//! A short hash tag for every slot, for keys of ours that have to share a slot with a key of the app's.

use std::sync::LazyLock;

use super::slots::{SLOTS, slot_of};

/// The least number whose decimal digits are in the slot, for each slot.
static TAGS: LazyLock<Vec<u32>> = LazyLock::new(|| {
    let mut tags = vec![None; usize::from(SLOTS)];
    let mut missing = tags.len();
    for number in 0.. {
        let tag = &mut tags[usize::from(slot_of(number.to_string().as_bytes()))];
        if tag.is_none() {
            *tag = Some(number);
            missing -= 1;
            if missing == 0 {
                break;
            }
        }
    }
    tags.into_iter().flatten().collect()
});

/// A hash tag (without braces) of the slot.
pub fn tag_of(slot: u16) -> u32 {
    TAGS[usize::from(slot % SLOTS)]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_slot_has_a_tag() {
        assert!((0..SLOTS).all(|slot| slot_of(tag_of(slot).to_string().as_bytes()) == slot));
    }
}
