//! Redis's glob patterns, byte for byte as its `stringmatchlen` has them: `*`, `?`, `[a-z]`, `[^a]`, `\`.
//!
//! Works on bytes, in place, without allocation, in time proportional to pattern × text at worst. Cannot
//! fail: every byte string is a pattern, also one with an open bracket.

/// Redis gives up on patterns with more groups of stars than this.
const MAX_STARS: usize = 1000;

/// A pattern, as `KEYS`, `PSUBSCRIBE` and the rules of keyspaces take it.
///
/// ```
/// use caddy_engine::glob::Glob;
/// assert!(Glob::new(b"user:*:name").matches(b"user:1:name"));
/// assert!(!Glob::new(b"user:?").matches(b"user:12"));
/// assert!(Glob::new(br"h[^a-d]llo\*").matches(b"hello*"));
/// ```
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Glob {
    pattern: Box<[u8]>,
    /// How many bytes every match begins with: most texts fail on these.
    literal: usize,
}

impl Glob {
    /// Takes any pattern.
    pub fn new(pattern: &[u8]) -> Self {
        let literal = pattern.iter().take_while(|byte| !matches!(byte, b'*' | b'?' | b'[' | b'\\')).count();
        Self { pattern: pattern.into(), literal }
    }

    /// Whether it matches everything, as `KEYS *` understands it: also the empty text.
    pub fn is_everything(&self) -> bool {
        *self.pattern == *b"*"
    }

    /// Whether it matches the whole of `text`.
    pub fn matches(&self, text: &[u8]) -> bool {
        if self.is_everything() {
            return true;
        }
        text.starts_with(&self.pattern[..self.literal]) && matches(&self.pattern, text)
    }

    /// What the stars take of `text` if it matches; each but the last one as little as it can. A run of stars is one.
    ///
    /// ```
    /// use caddy_engine::glob::Glob;
    /// let glob = Glob::new(b"user:*:name:*");
    /// assert_eq!(glob.captures(b"user:1:name:a:b"), Some(vec![b"1".as_slice(), b"a:b"]));
    /// assert_eq!(glob.captures(b"user:1"), None);
    /// ```
    pub fn captures<'t>(&self, text: &'t [u8]) -> Option<Vec<&'t [u8]>> {
        if self.is_everything() {
            return Some(vec![text]);
        }
        if !text.starts_with(&self.pattern[..self.literal]) {
            return None;
        }
        // What is left of the text where a star begins, and where it ends.
        let mut taken: Vec<(&[u8], &[u8])> = Vec::new();
        let does = walk(&self.pattern, text, |star| match star {
            Star::Begins(rest) => taken.push((rest, rest)),
            Star::EndsAt(rest) => {
                if let Some((_, end)) = taken.last_mut() {
                    *end = rest;
                }
            }
        });
        // Stars behind the end of the text are not looked at.
        let missing = stars(&self.pattern).saturating_sub(taken.len());
        taken.extend(std::iter::repeat_n((&text[text.len()..], &text[text.len()..]), missing));
        does.then(|| taken.into_iter().map(|(begin, end)| &begin[..begin.len() - end.len()]).collect())
    }

    /// The pattern's text.
    pub fn pattern(&self) -> &[u8] {
        &self.pattern
    }
}

/// How many runs of stars a pattern has: as many as [`Glob::captures`] finds.
pub fn stars(mut pattern: &[u8]) -> usize {
    let mut count = 0;
    while let [first, rest @ ..] = pattern {
        pattern = match first {
            b'*' => {
                count += 1;
                skip_stars(rest)
            }
            b'[' => class(rest, 0).1,
            b'\\' => rest.get(1..).unwrap_or_default(),
            _ => rest,
        };
    }
    count
}

/// What happens to the star that was met last.
enum Star<'t> {
    /// It is met, with this text left.
    Begins(&'t [u8]),
    /// It takes all up to this text.
    EndsAt(&'t [u8]),
}

/// Whether `pattern` matches the whole of `text`, as `stringmatchlen` (case-sensitive) says.
///
/// Like that, and unlike [`Glob`], it says no of the empty text to a pattern of stars.
pub fn matches(pattern: &[u8], text: &[u8]) -> bool {
    walk(pattern, text, |_| {})
}

#[inline]
fn walk<'t>(pattern: &[u8], text: &'t [u8], mut note: impl FnMut(Star<'t>)) -> bool {
    let (mut pattern, mut text) = (pattern, text);
    // Behind the last star, and the text from which it was tried last. An earlier star need not be tried
    // again: whatever it could take, the last one can take as well.
    let mut retry: Option<(&[u8], &'t [u8])> = None;
    let mut stars = 0;
    loop {
        if pattern.is_empty() && text.is_empty() {
            return true;
        }
        let advanced = match (pattern, text) {
            ([] | [_, ..], []) | ([], _) => None,
            ([b'*', rest @ ..], _) => {
                let rest = skip_stars(rest);
                stars += 1;
                note(Star::Begins(text));
                if rest.is_empty() {
                    note(Star::EndsAt(&text[text.len()..]));
                    return true;
                }
                if stars > MAX_STARS {
                    return false;
                }
                retry = Some((rest, text));
                Some((rest, text))
            }
            ([_, ..], [byte, behind @ ..]) => {
                one(pattern, *byte).map(|rest| (if behind.is_empty() { skip_stars(rest) } else { rest }, behind))
            }
        };
        match (advanced, retry) {
            (Some(next), _) => (pattern, text) = next,
            // The star takes one byte more.
            (None, Some((rest, [_, behind @ ..]))) if !behind.is_empty() => {
                note(Star::EndsAt(behind));
                retry = Some((rest, behind));
                (pattern, text) = (rest, behind);
            }
            (None, _) => return false,
        }
    }
}

fn skip_stars(pattern: &[u8]) -> &[u8] {
    let stars = pattern.iter().take_while(|byte| **byte == b'*').count();
    &pattern[stars..]
}

/// Matches `byte` against the first element of a pattern that is no star; what is behind that element.
fn one(pattern: &[u8], byte: u8) -> Option<&[u8]> {
    match pattern {
        [b'?', rest @ ..] => Some(rest),
        [b'[', rest @ ..] => {
            let (has, rest) = class(rest, byte);
            has.then_some(rest)
        }
        [b'\\', literal, rest @ ..] | [literal, rest @ ..] => (*literal == byte).then_some(rest),
        [] => None,
    }
}

/// Whether a class has `byte`, and what is behind it; an open class ends with the pattern.
fn class(class: &[u8], byte: u8) -> (bool, &[u8]) {
    let (negated, mut class) = match class {
        [b'^', rest @ ..] => (true, rest),
        rest => (false, rest),
    };
    let mut found = false;
    let rest = loop {
        match class {
            [b'\\', literal, rest @ ..] => {
                found |= *literal == byte;
                class = rest;
            }
            [b']', rest @ ..] => break rest,
            [] => break class,
            [from, b'-', to, rest @ ..] => {
                found |= (*from.min(to)..=*from.max(to)).contains(&byte);
                class = rest;
            }
            [literal, rest @ ..] => {
                found |= *literal == byte;
                class = rest;
            }
        }
    };
    (found != negated, rest)
}

#[cfg(test)]
mod tests {
    use super::{Glob, matches, stars};

    #[test]
    fn patterns_match_as_in_redis() {
        for (pattern, text, expected) in [
            ("h?llo", "hello", true),
            ("h*llo", "hllo", true),
            ("h*llo", "heeeello", true),
            ("h[ae]llo", "hillo", false),
            ("h[^e]llo", "hello", false),
            ("h[a-b]llo", "hbllo", true),
            ("h[b-a]llo", "hbllo", true),
            ("[a", "a", true),
            ("[a-", "-", true),
            ("[]", "]", false),
            ("[^]x", "x", false),
            ("[^]x", "ax", true),
            (r"[\]]", "]", true),
            (r"\*", "*", true),
            (r"\*", "a", false),
            (r"a\", r"a\", true),
            ("*a*b*c", "xaxbxc", true),
            ("*a*b*c", "xaxbx", false),
            ("a**", "a", true),
            ("**", "", false),
            ("", "", true),
            ("", "a", false),
            ("a", "", false),
            ("*?", "a", true),
            ("?*?", "a", false),
        ] {
            assert_eq!(matches(pattern.as_bytes(), text.as_bytes()), expected, "{pattern:?} on {text:?}");
            assert_eq!(Glob::new(pattern.as_bytes()).matches(text.as_bytes()), expected, "{pattern:?} on {text:?}");
        }
        assert!(Glob::new(b"*").matches(b""));
    }

    #[test]
    fn an_abusive_pattern_costs_little_and_too_many_stars_match_nothing() {
        let text = vec![b'a'; 20_000];
        assert!(!matches(b"*a*a*a*a*a*a*a*a*a*a*b", &text));
        let with_stars = |stars: usize| [&b"*a".repeat(stars - 1)[..], b"*a"].concat();
        assert!(matches(&with_stars(1000), &text));
        assert!(!matches(&with_stars(1001), &text));
    }

    #[test]
    fn stars_take_as_little_as_they_can_but_the_last_one() {
        for (pattern, text, expected) in [
            ("user:*", "user:1", Some("1")),
            ("user:*", "user:", Some("")),
            ("*", "", Some("")),
            ("*:*", "a:b:c", Some("a|b:c")),
            ("*:x:*", "a:b:x:c", Some("a:b|c")),
            ("a**b*", "a12b", Some("12|")),
            ("a*b", "aXbYb", Some("XbY")),
            ("a*[*]*", "a1*2", Some("1|2")),
            (r"a\**", "a*1", Some("1")),
            ("a?b", "a1b", Some("")),
            ("a*b", "ac", None),
        ] {
            let taken = Glob::new(pattern.as_bytes()).captures(text.as_bytes());
            let text_of = |taken: &[&[u8]]| String::from_utf8(taken.join(&b'|')).unwrap();
            assert_eq!(taken.as_ref().map(|taken| text_of(taken)).as_deref(), expected, "{pattern} on {text}");
            if let Some(taken) = taken {
                assert_eq!(taken.len(), stars(pattern.as_bytes()), "{pattern}");
            }
        }
    }
}
