//! Inline commands: one line, split by Redis's quoting rules (`sdssplitargs`).

/// The quotes of an inline command do not match, or something follows a closing quote directly.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct UnbalancedQuotes;

/// Splits `line`, calling `end_of_argument` with the length of `unquoted` after each argument, whose
/// bytes were appended to `unquoted`.
pub(crate) fn split(
    line: &[u8],
    unquoted: &mut Vec<u8>,
    mut end_of_argument: impl FnMut(usize),
) -> Result<(), UnbalancedQuotes> {
    let mut rest = line;
    loop {
        rest = skip_spaces(rest);
        if rest.is_empty() {
            return Ok(());
        }
        rest = argument(rest, unquoted)?;
        end_of_argument(unquoted.len());
    }
}

/// One argument, quoted parts included; returns what follows it.
fn argument<'a>(mut rest: &'a [u8], unquoted: &mut Vec<u8>) -> Result<&'a [u8], UnbalancedQuotes> {
    loop {
        match rest {
            // \v and \f separate arguments only in front of one: isspace there, this list here.
            [] | [b' ' | b'\n' | b'\r' | b'\t', ..] => return Ok(rest),
            [b'"', quoted @ ..] => return double_quoted(quoted, unquoted),
            [b'\'', quoted @ ..] => return single_quoted(quoted, unquoted),
            [byte, tail @ ..] => {
                unquoted.push(*byte);
                rest = tail;
            }
        }
    }
}

fn double_quoted<'a>(mut rest: &'a [u8], unquoted: &mut Vec<u8>) -> Result<&'a [u8], UnbalancedQuotes> {
    loop {
        match rest {
            [b'\\', b'x', high, low, tail @ ..] if high.is_ascii_hexdigit() && low.is_ascii_hexdigit() => {
                unquoted.push(hex(*high) << 4 | hex(*low));
                rest = tail;
            }
            [b'\\', escaped, tail @ ..] => {
                unquoted.push(match escaped {
                    b'n' => b'\n',
                    b'r' => b'\r',
                    b't' => b'\t',
                    b'b' => 0x08,
                    b'a' => 0x07,
                    other => *other,
                });
                rest = tail;
            }
            [b'"', tail @ ..] => return closed(tail),
            [] => return Err(UnbalancedQuotes),
            [byte, tail @ ..] => {
                unquoted.push(*byte);
                rest = tail;
            }
        }
    }
}

fn single_quoted<'a>(mut rest: &'a [u8], unquoted: &mut Vec<u8>) -> Result<&'a [u8], UnbalancedQuotes> {
    loop {
        match rest {
            [b'\\', b'\'', tail @ ..] => {
                unquoted.push(b'\'');
                rest = tail;
            }
            [b'\'', tail @ ..] => return closed(tail),
            [] => return Err(UnbalancedQuotes),
            [byte, tail @ ..] => {
                unquoted.push(*byte);
                rest = tail;
            }
        }
    }
}

/// A closing quote ends the argument: a space or nothing must follow.
fn closed(rest: &[u8]) -> Result<&[u8], UnbalancedQuotes> {
    match rest.first() {
        Some(&byte) if !is_space(byte) => Err(UnbalancedQuotes),
        _ => Ok(rest),
    }
}

fn skip_spaces(line: &[u8]) -> &[u8] {
    let spaces = line.iter().take_while(|byte| is_space(**byte)).count();
    &line[spaces..]
}

fn is_space(byte: u8) -> bool {
    matches!(byte, b' ' | b'\t'..=b'\r')
}

fn hex(digit: u8) -> u8 {
    match digit {
        b'0'..=b'9' => digit - b'0',
        _ => (digit | 0x20) - b'a' + 10,
    }
}

#[cfg(test)]
mod tests {
    use super::{UnbalancedQuotes, split};

    fn args(line: &str) -> Result<Vec<Vec<u8>>, UnbalancedQuotes> {
        let (mut bytes, mut ends) = (Vec::new(), vec![0]);
        split(line.as_bytes(), &mut bytes, |end| ends.push(end))?;
        Ok(ends.windows(2).map(|pair| bytes[pair[0]..pair[1]].to_vec()).collect())
    }

    #[test]
    fn quoting_follows_redis() {
        for (line, expected) in [
            ("", &[][..]),
            (" \t ", &[]),
            ("get  key ", &[&b"get"[..], b"key"]),
            (r#"set k "a b\n\x41\q""#, &[b"set", b"k", b"a b\nAq"]),
            (r#"set k "\x4""#, &[b"set", b"k", b"x4"]),
            (r"set k 'it\'s \n'", &[b"set", b"k", br"it's \n"]),
            (r#"foo"bar" x"#, &[b"foobar", b"x"]),
            (r#"set k """#, &[b"set", b"k", b""]),
            ("a\x0bb \x0bc", &[b"a\x0bb", b"c"]),
        ] {
            let expected: Vec<Vec<u8>> = expected.iter().map(|arg| arg.to_vec()).collect();
            assert_eq!(args(line), Ok(expected), "{line:?}");
        }
    }

    #[test]
    fn unbalanced_quotes_are_refused() {
        for line in [r#"get ""#, "get 'k", r#"get "a"b"#, "get 'a'b", r#"get "a\"#] {
            assert_eq!(args(line), Err(UnbalancedQuotes), "{line:?}");
        }
    }
}
