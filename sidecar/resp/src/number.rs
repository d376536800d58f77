//! Integers as Redis reads them (`string2ll`): no plus sign, no leading zero, no space, no overflow.

/// Parses a decimal `i64` by Redis's rules, which are stricter than [`str::parse`]: `+1`, `01`, `-0`
/// and ` 1` are no integers.
///
/// ```
/// use caddy_resp::parse_i64;
/// assert_eq!(parse_i64(b"-9223372036854775808"), Some(i64::MIN));
/// assert_eq!(parse_i64(b"01"), None);
/// assert_eq!(parse_i64(b"+1"), None);
/// ```
pub fn parse_i64(text: &[u8]) -> Option<i64> {
    let (negative, digits) = match text {
        [b'-', digits @ ..] => (true, digits),
        digits => (false, digits),
    };
    match digits {
        [b'0'] if !negative => return Some(0),
        [b'1'..=b'9', ..] if digits.len() <= 19 => {}
        _ => return None,
    }
    let mut magnitude: u64 = 0; // 19 digits fit
    for &byte in digits {
        let digit = byte.wrapping_sub(b'0');
        if digit > 9 {
            return None;
        }
        magnitude = magnitude * 10 + u64::from(digit);
    }
    if negative { 0_i64.checked_sub_unsigned(magnitude) } else { i64::try_from(magnitude).ok() }
}

/// Reads `digits "\r" any-byte` at the front of `line`: the value and the length of the whole.
///
/// `None` also for what is merely unusual (a sign, many digits, an incomplete line): the caller then
/// takes its slow path, which tells these apart.
#[inline]
pub(crate) fn short_header(line: &[u8]) -> Option<(u32, usize)> {
    let mut value = digit(*line.first()?)?;
    let mut at = 1;
    loop {
        let byte = *line.get(at)?;
        match digit(byte) {
            Some(next) if value != 0 && at < 9 => value = value * 10 + next,
            None if byte == b'\r' && line.len() > at + 1 => return Some((value, at + 2)),
            _ => return None,
        }
        at += 1;
    }
}

#[inline]
fn digit(byte: u8) -> Option<u32> {
    let digit = byte.wrapping_sub(b'0');
    (digit <= 9).then_some(u32::from(digit))
}

#[cfg(test)]
mod tests {
    use super::{parse_i64, short_header};

    #[test]
    fn integers_are_read_as_redis_reads_them() {
        for (text, value) in [
            ("0", Some(0)),
            ("7", Some(7)),
            ("-1", Some(-1)),
            ("9223372036854775807", Some(i64::MAX)),
            ("-9223372036854775808", Some(i64::MIN)),
            ("9223372036854775808", None),
            ("-9223372036854775809", None),
            ("99999999999999999999", None),
            ("", None),
            ("-", None),
            ("-0", None),
            ("00", None),
            ("+1", None),
            (" 1", None),
            ("1 ", None),
            ("1a", None),
        ] {
            assert_eq!(parse_i64(text.as_bytes()), value, "{text:?}");
        }
    }

    #[test]
    fn the_short_header_leaves_the_unusual_to_the_slow_path() {
        assert_eq!(short_header(b"0\r\n"), Some((0, 3)));
        assert_eq!(short_header(b"512\r\nrest"), Some((512, 5)));
        assert_eq!(short_header(b"999999999\r\n"), Some((999_999_999, 11)));
        for line in [&b""[..], b"1", b"1\r", b"-1\r\n", b"01\r\n", b"1x\r\n", b"1234567890\r\n"] {
            assert_eq!(short_header(line), None, "{line:?}");
        }
    }
}
