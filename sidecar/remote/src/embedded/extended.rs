//! The 80-bit floating-point numbers of x86 (64 bits of mantissa), which INCRBYFLOAT of a Redis there counts in.
//!
//! Parses as `strtold`, adds, and prints as `%.17Lf` without trailing zeros, each rounded once, to nearest,
//! ties to even. Exact arithmetic on big integers, sized by the text (at most 5 KiB): slow, and right to
//! the last digit.

use std::cmp::Ordering;

use super::big::Big;

/// Mantissas are below 2^64; the exponents of the smallest (denormal) and the largest numbers.
const MIN_EXPONENT: i64 = -16_445;
const MAX_EXPONENT: i64 = 16_320;
/// As Redis's MAX_LONG_DOUBLE_CHARS.
const MAX_TEXT: usize = 5 * 1024;
/// Digits after the point.
const DIGITS: usize = 17;

/// A number that is no NaN.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Extended {
    Infinite,
    /// `mantissa · 2^exponent`
    Finite {
        negative: bool,
        mantissa: u64,
        exponent: i64,
    },
}

impl Extended {
    pub(super) const ZERO: Self = Self::Finite { negative: false, mantissa: 0, exponent: MIN_EXPONENT };

    /// The whole of `text`, as Redis's `string2ld` takes it; no NaN, nothing too large or too near to zero.
    pub(super) fn parse(text: &[u8]) -> Option<Self> {
        if text.len() >= MAX_TEXT {
            return None;
        }
        let (negative, digits) = split_sign(text);
        if digits.eq_ignore_ascii_case(b"inf") || digits.eq_ignore_ascii_case(b"infinity") {
            return Some(Self::Infinite);
        }
        let (numerator, denominator) = match digits {
            [b'0', b'x' | b'X', digits @ ..] => hexadecimal(digits)?,
            digits => decimal(digits)?,
        };
        if numerator.is_zero() {
            return Some(Self::ZERO);
        }
        match round(negative, &numerator, &denominator) {
            Self::Infinite | Self::Finite { mantissa: 0, .. } => None,
            number @ Self::Finite { .. } => Some(number),
        }
    }

    /// `None` where the sum is infinite or no number.
    pub(super) fn add(self, other: Self) -> Option<Self> {
        let (
            Self::Finite { negative: left_negative, mantissa: left, exponent: left_exponent },
            Self::Finite { negative: right_negative, mantissa: right, exponent: right_exponent },
        ) = (self, other)
        else {
            return None;
        };
        let exponent = left_exponent.min(right_exponent);
        let left = Big::from(left).shifted_left(distance(exponent, left_exponent));
        let right = Big::from(right).shifted_left(distance(exponent, right_exponent));
        let (negative, sum) = match (left_negative == right_negative, left.cmp(&right)) {
            (true, _) => (left_negative, left.plus(&right)),
            (false, Ordering::Less) => (right_negative, right.minus(&left)),
            (false, Ordering::Equal) => return Some(Self::ZERO),
            (false, Ordering::Greater) => (left_negative, left.minus(&right)),
        };
        if sum.is_zero() {
            return Some(Self::ZERO);
        }
        let sum = round(
            negative,
            &sum.shifted_left(distance(0, exponent)),
            &Big::from(1).shifted_left(distance(exponent, 0)),
        );
        (sum != Self::Infinite).then_some(sum)
    }

    /// With 17 digits after the point, less the zeros at the end.
    pub(super) fn to_text(self) -> String {
        let Self::Finite { negative, mantissa, exponent } = self else { return "inf".to_owned() };
        let mut scaled = Big::from(mantissa);
        scaled.multiply_by_power_of_ten(DIGITS);
        let scaled = match usize::try_from(exponent) {
            Ok(exponent) => scaled.shifted_left(exponent),
            Err(_) => scaled.divided_by_power_of_two(distance(exponent, 0)),
        };
        let mut text = scaled.to_decimal();
        if text.len() <= DIGITS {
            text.insert_str(0, &"0".repeat(DIGITS + 1 - text.len()));
        }
        text.insert(text.len() - DIGITS, '.');
        let text = text.trim_end_matches('0').trim_end_matches('.');
        if negative && text != "0" { format!("-{text}") } else { text.to_owned() }
    }
}

fn split_sign(text: &[u8]) -> (bool, &[u8]) {
    match text.strip_prefix(b"-") {
        Some(digits) => (true, digits),
        None => (false, text.strip_prefix(b"+").unwrap_or(text)),
    }
}

/// How far `to` is above `from`, or 0.
fn distance(from: i64, to: i64) -> usize {
    usize::try_from(to - from).unwrap_or(0)
}

/// `digits [. digits] [e exponent]` as a fraction.
fn decimal(text: &[u8]) -> Option<(Big, Big)> {
    let exponent_at = text.iter().position(|byte| matches!(byte, b'e' | b'E'));
    let (text, exponent) = split_exponent(text, exponent_at)?;
    let (digits, fraction) = digits_of(text, 10)?;
    let mut numerator = Big::default();
    for digit in &digits {
        numerator.multiply_add(10, *digit);
    }
    let mut denominator = Big::from(1);
    if numerator.is_zero() {
        return Some((numerator, denominator));
    }
    let significant = digits.iter().skip_while(|digit| **digit == 0).count();
    let exponent = exponent.saturating_sub_unsigned(fraction as u64);
    // Certainly too large, or too near to zero: refused here, before powers grow.
    if !(-4_970..=4_940).contains(&exponent.saturating_add_unsigned(significant as u64)) {
        return None;
    }
    let scale = exponent.unsigned_abs() as usize;
    if exponent >= 0 { &mut numerator } else { &mut denominator }.multiply_by_power_of_ten(scale);
    Some((numerator, denominator))
}

/// `digits [. digits] [p exponent]` behind `0x`, the exponent being of two and decimal.
fn hexadecimal(text: &[u8]) -> Option<(Big, Big)> {
    let exponent_at = text.iter().position(|byte| matches!(byte, b'p' | b'P'));
    let (text, exponent) = split_exponent(text, exponent_at)?;
    let (digits, fraction) = digits_of(text, 16)?;
    let mut numerator = Big::default();
    for digit in digits {
        numerator.multiply_add(16, digit);
    }
    if numerator.is_zero() {
        return Some((numerator, Big::from(1)));
    }
    let exponent = exponent.saturating_sub_unsigned(4 * fraction as u64);
    if exponent.unsigned_abs() > 50_000 {
        return None;
    }
    Some((numerator.shifted_left(distance(0, exponent)), Big::from(1).shifted_left(distance(exponent, 0))))
}

/// The text before the exponent, and the exponent, cut to what can matter.
fn split_exponent(text: &[u8], at: Option<usize>) -> Option<(&[u8], i64)> {
    let Some(at) = at else { return Some((text, 0)) };
    let (negative, digits) = split_sign(&text[at + 1..]);
    if digits.is_empty() {
        return None;
    }
    let mut exponent = 0_i64;
    for byte in digits {
        exponent = (exponent * 10 + i64::from(char::from(*byte).to_digit(10)?)).min(1_000_000);
    }
    Some((&text[..at], if negative { -exponent } else { exponent }))
}

/// The digits without their point, and how many stood behind it.
fn digits_of(text: &[u8], radix: u32) -> Option<(Vec<u32>, usize)> {
    let point = text.iter().position(|byte| *byte == b'.');
    let digits: Option<Vec<u32>> = text
        .iter()
        .enumerate()
        .filter(|(at, _)| Some(*at) != point)
        .map(|(_, byte)| char::from(*byte).to_digit(radix))
        .collect();
    let digits = digits.filter(|digits| !digits.is_empty())?;
    Some((digits, point.map_or(0, |point| text.len() - point - 1)))
}

/// The nearest number to a fraction that is not 0.
fn round(negative: bool, numerator: &Big, denominator: &Big) -> Extended {
    let width = |big: &Big| i64::try_from(big.bits()).unwrap_or(i64::MAX);
    // The quotient then has 64 or 65 bits.
    let mut exponent = (width(numerator) - width(denominator) - 64).max(MIN_EXPONENT);
    let divide = |exponent: i64| {
        let numerator = numerator.shifted_left(distance(exponent, 0));
        numerator.divide_short(&denominator.shifted_left(distance(0, exponent)))
    };
    let (mut quotient, mut rest) = divide(exponent);
    if quotient >> 64 != 0 {
        exponent += 1;
        (quotient, rest) = divide(exponent);
    }
    if rest == Ordering::Greater || (rest == Ordering::Equal && quotient % 2 == 1) {
        quotient += 1;
    }
    if quotient >> 64 != 0 {
        quotient >>= 1;
        exponent += 1;
    }
    if exponent > MAX_EXPONENT {
        return Extended::Infinite;
    }
    Extended::Finite { negative, mantissa: quotient as u64, exponent }
}

#[cfg(test)]
mod tests {
    use super::Extended;

    fn sum(left: &str, right: &str) -> Option<String> {
        let parse = |text: &str| Extended::parse(text.as_bytes()).unwrap();
        Some(parse(left).add(parse(right))?.to_text())
    }

    #[test]
    fn sums_are_those_of_redis() {
        for (left, right, expected) in [
            ("0", "0", "0"),
            ("0.1", "0.2", "0.3"),
            ("3.0e3", "0", "3000"),
            ("-1", "1", "0"),
            ("-0.5", "0", "-0.5"),
            ("0", "99999999999999999999", "100000000000000000000"),
            ("1e-20", "0", "0"),
            ("-1e-20", "0", "0"),
            ("0x10", ".5", "16.5"),
            ("0x1.8p1", "0", "3"),
        ] {
            assert_eq!(sum(left, right).as_deref(), Some(expected), "{left} + {right}");
        }
        assert_eq!(sum("inf", "1"), None);
        assert_eq!(sum("1.1e4932", "1.1e4932"), None);
    }

    #[test]
    fn what_is_no_number_is_refused() {
        for text in [
            "",
            "x",
            "nan",
            " 1",
            "1 ",
            "1e",
            "e1",
            "1.2.3",
            "--1",
            "-",
            "1e5000",
            "1e-5000",
            "0x",
            "1e999999999999",
            ".",
        ] {
            assert_eq!(Extended::parse(text.as_bytes()), None, "{text:?}");
        }
        assert!(Extended::parse("0".repeat(5119).as_bytes()).is_some());
        assert!(Extended::parse("0".repeat(5120).as_bytes()).is_none());
        assert_eq!(Extended::parse(b"0e999999999999"), Some(Extended::ZERO));
    }
}
