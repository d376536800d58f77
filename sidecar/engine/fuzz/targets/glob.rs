//! Any pattern against any text: the answer is that of Redis's own way of matching, which is slow and simple, and comes in
//! time proportional to pattern and text.

use caddy_engine::glob;

/// The simple way takes exponential time: it is asked about little.
const LITTLE: usize = 24;

pub(crate) fn check(input: &[u8]) {
    let middle = input.iter().position(|&byte| byte == 0).unwrap_or(input.len());
    let (pattern, text) = (&input[..middle], input.get(middle + 1..).unwrap_or_default());
    let answer = glob::matches(pattern, text);
    if pattern.len() <= LITTLE && text.len() <= LITTLE {
        assert_eq!(answer, simply(pattern, text), "{} on {}", pattern.escape_ascii(), text.escape_ascii());
    }
}

/// As `stringmatchlen` goes about it: by trying, from left to right.
fn simply(mut pattern: &[u8], mut text: &[u8]) -> bool {
    while let ([first, rest @ ..], [byte, behind @ ..]) = (pattern, text) {
        match first {
            b'*' => {
                let rest = &pattern[pattern.iter().take_while(|&&byte| byte == b'*').count()..];
                return rest.is_empty() || (0..text.len()).any(|from| simply(rest, &text[from..]));
            }
            b'?' => pattern = rest,
            b'[' => {
                let (is_in, rest) = class(rest, *byte);
                if !is_in {
                    return false;
                }
                pattern = rest;
            }
            b'\\' if !rest.is_empty() => {
                if rest[0] != *byte {
                    return false;
                }
                pattern = &rest[1..];
            }
            literal => {
                if literal != byte {
                    return false;
                }
                pattern = rest;
            }
        }
        text = behind;
        if text.is_empty() {
            pattern = &pattern[pattern.iter().take_while(|&&byte| byte == b'*').count()..];
        }
    }
    pattern.is_empty() && text.is_empty()
}

/// Whether `byte` is in the class that begins here, and what is behind the class. One that does not end goes to the end.
fn class(pattern: &[u8], byte: u8) -> (bool, &[u8]) {
    let (inverted, mut rest) = match pattern {
        [b'^', rest @ ..] => (true, rest),
        rest => (false, rest),
    };
    let mut is_in = false;
    loop {
        match rest {
            [] => return (is_in != inverted, rest),
            [b']', behind @ ..] => return (is_in != inverted, behind),
            [b'\\', escaped, behind @ ..] => {
                is_in |= *escaped == byte;
                rest = behind;
            }
            [from, b'-', to, behind @ ..] => {
                is_in |= (*from.min(to)..=*from.max(to)).contains(&byte);
                rest = behind;
            }
            [one, behind @ ..] => {
                is_in |= *one == byte;
                rest = behind;
            }
        }
    }
}
