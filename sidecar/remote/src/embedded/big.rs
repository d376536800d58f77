//! Unsigned integers of any size: the little of them that [`Extended`](super::extended::Extended) needs.

use std::cmp::Ordering;

/// Little-endian, without zeros at the top.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Big(Vec<u32>);

impl From<u64> for Big {
    fn from(value: u64) -> Self {
        Self(vec![value as u32, (value >> 32) as u32]).trimmed()
    }
}

impl Big {
    pub(super) fn is_zero(&self) -> bool {
        self.0.is_empty()
    }

    /// The position of the highest bit that is set, counted from 1.
    pub(super) fn bits(&self) -> usize {
        self.0.last().map_or(0, |top| self.0.len() * 32 - top.leading_zeros() as usize)
    }

    pub(super) fn cmp(&self, other: &Self) -> Ordering {
        let by_length = self.0.len().cmp(&other.0.len());
        by_length.then_with(|| self.0.iter().rev().cmp(other.0.iter().rev()))
    }

    pub(super) fn multiply_add(&mut self, factor: u32, summand: u32) {
        let mut carry = u64::from(summand);
        for limb in &mut self.0 {
            carry += u64::from(*limb) * u64::from(factor);
            *limb = carry as u32;
            carry >>= 32;
        }
        if carry != 0 {
            self.0.push(carry as u32);
        }
    }

    pub(super) fn multiply_by_power_of_ten(&mut self, power: usize) {
        for _ in 0..power / 9 {
            self.multiply_add(1_000_000_000, 0);
        }
        for _ in 0..power % 9 {
            self.multiply_add(10, 0);
        }
    }

    pub(super) fn shifted_left(&self, bits: usize) -> Self {
        let (limbs, bits) = (bits / 32, bits % 32);
        let mut shifted = vec![0; limbs];
        let mut carry = 0_u64;
        for limb in &self.0 {
            carry |= u64::from(*limb) << bits;
            shifted.push(carry as u32);
            carry >>= 32;
        }
        shifted.push(carry as u32);
        Self(shifted).trimmed()
    }

    pub(super) fn plus(&self, other: &Self) -> Self {
        let mut carry = 0_u64;
        let mut sum: Vec<u32> = (0..self.0.len().max(other.0.len()))
            .map(|at| {
                carry += u64::from(self.limb(at)) + u64::from(other.limb(at));
                let limb = carry as u32;
                carry >>= 32;
                limb
            })
            .collect();
        sum.push(carry as u32);
        Self(sum).trimmed()
    }

    /// The difference to one that is not larger.
    pub(super) fn minus(&self, other: &Self) -> Self {
        let mut borrow = false;
        let difference = (0..self.0.len())
            .map(|at| {
                let (limb, below) = self.limb(at).overflowing_sub(other.limb(at));
                let (limb, again) = limb.overflowing_sub(u32::from(borrow));
                borrow = below || again;
                limb
            })
            .collect();
        Self(difference).trimmed()
    }

    /// The quotient, which has to be below 2^66, and how the remainder compares with half of the divisor.
    pub(super) fn divide_short(&self, divisor: &Self) -> (u128, Ordering) {
        let (mut rest, mut quotient) = (self.clone(), 0_u128);
        for bit in (0..66).rev() {
            let part = divisor.shifted_left(bit);
            if rest.cmp(&part) != Ordering::Less {
                rest = rest.minus(&part);
                quotient |= 1 << bit;
            }
        }
        (quotient, rest.shifted_left(1).cmp(divisor))
    }

    /// To the nearest integer, ties to even.
    pub(super) fn divided_by_power_of_two(&self, power: usize) -> Self {
        let (limbs, bits) = (power / 32, power % 32);
        let kept = (limbs..self.0.len())
            .map(|at| (((u64::from(self.limb(at + 1)) << 32) | u64::from(self.limb(at))) >> bits) as u32)
            .collect();
        let quotient = Self(kept).trimmed();
        let rest = self.minus(&quotient.shifted_left(power));
        let up = match rest.shifted_left(1).cmp(&Self::from(1).shifted_left(power)) {
            Ordering::Less => false,
            Ordering::Equal => quotient.limb(0) % 2 == 1,
            Ordering::Greater => true,
        };
        if up { quotient.plus(&Self::from(1)) } else { quotient }
    }

    pub(super) fn to_decimal(&self) -> String {
        let mut rest = self.clone();
        let mut groups = Vec::new();
        while !rest.is_zero() {
            let mut remainder = 0_u64;
            for limb in rest.0.iter_mut().rev() {
                remainder = remainder << 32 | u64::from(*limb);
                *limb = (remainder / 1_000_000_000) as u32;
                remainder %= 1_000_000_000;
            }
            rest = rest.trimmed();
            groups.push(remainder);
        }
        let Some(top) = groups.pop() else { return "0".to_owned() };
        groups.iter().rev().fold(top.to_string(), |text, group| format!("{text}{group:09}"))
    }

    fn limb(&self, at: usize) -> u32 {
        self.0.get(at).copied().unwrap_or(0)
    }

    fn trimmed(mut self) -> Self {
        while self.0.last() == Some(&0) {
            self.0.pop();
        }
        self
    }
}
