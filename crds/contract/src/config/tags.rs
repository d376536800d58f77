//! Tags that a keyspace's rule gives to values: templates over what the stars of `match` take of a key.
//!
//! Owns their form: text, in which `{1}` stands for what the first `*` takes, `{2}` for the second, and so on. Never looks at
//! keys. A template that names a star which `match` does not have is a fault.

/// Most tags of one keyspace.
pub const TAGS_MAX: usize = 16;
/// Longest template.
pub const TAG_BYTES: usize = 512;

/// One tag, to be filled in for a key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TagTemplate(Vec<Piece>);

#[derive(Clone, Debug, PartialEq, Eq)]
enum Piece {
    Text(String),
    /// By its place, from 0 on.
    Star(usize),
}

impl TagTemplate {
    /// Reads a template for a pattern with so many stars; else what is wrong with it.
    ///
    /// ```
    /// use caddy_contract::TagTemplate;
    /// let tag = TagTemplate::parse("user:{1}", 1)?;
    /// assert_eq!(tag.fill(&[b"7"]), b"user:7");
    /// assert!(TagTemplate::parse("user:{2}", 1).is_err());
    /// # Ok::<(), String>(())
    /// ```
    ///
    /// # Errors
    ///
    /// What to write instead.
    pub fn parse(text: &str, stars: usize) -> Result<Self, String> {
        if text.is_empty() || text.len() > TAG_BYTES {
            return Err(format!("a tag has 1 to {TAG_BYTES} bytes, e.g. user:{{1}}"));
        }
        let mut pieces = Vec::new();
        let mut rest = text;
        while let Some((before, behind)) = rest.split_once('{') {
            let (number, after) = behind.split_once('}').unwrap_or((behind, ""));
            let star = number.parse().ok().filter(|star| (1..=stars).contains(star));
            let Some(star) = star.filter(|_| behind.contains('}')) else {
                return Err(match stars {
                    0 => "match has no *, so that no tag can name one: write the tag without { }".to_owned(),
                    most => format!(
                        "{{{number}}} is none of the stars of match: write {{1}}{} for what a * takes",
                        if most > 1 { format!(" to {{{most}}}") } else { String::new() }
                    ),
                });
            };
            if !before.is_empty() {
                pieces.push(Piece::Text(before.to_owned()));
            }
            pieces.push(Piece::Star(star - 1));
            rest = after;
        }
        if !rest.is_empty() {
            pieces.push(Piece::Text(rest.to_owned()));
        }
        Ok(Self(pieces))
    }

    /// The tag of a key of which the stars take this.
    pub fn fill(&self, taken: &[&[u8]]) -> Vec<u8> {
        let mut tag = Vec::new();
        for piece in &self.0 {
            match piece {
                Piece::Text(text) => tag.extend_from_slice(text.as_bytes()),
                Piece::Star(star) => tag.extend_from_slice(taken.get(*star).copied().unwrap_or_default()),
            }
        }
        tag
    }
}

/// How many stars a Redis glob has; a run of them is one, and those within a class or behind a backslash are none.
pub fn stars(pattern: &str) -> usize {
    let (mut count, mut in_class, mut before) = (0, false, None);
    let mut bytes = pattern.bytes();
    while let Some(byte) = bytes.next() {
        match byte {
            b'\\' => drop(bytes.next()),
            b']' => in_class = false,
            b'[' => in_class = true,
            b'*' if !in_class && before != Some(b'*') => count += 1,
            _ => {}
        }
        before = Some(byte);
    }
    count
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_template_is_filled_in_for_a_key() {
        let filled = |text| TagTemplate::parse(text, 2).unwrap().fill(&[b"1", b"b"]);
        assert_eq!(filled("all"), b"all");
        assert_eq!(filled("{2}:{1}x{1}"), b"b:1x1");
    }

    #[test]
    fn a_bad_template_is_told_what_to_write() {
        for (text, stars, said) in [
            ("", 1, "1 to 512 bytes"),
            ("user:{1}", 0, "match has no *"),
            ("user:{2}", 1, "{2} is none of the stars of match: write {1} for"),
            ("user:{0}", 2, "write {1} to {2}"),
            ("user:{1", 1, "none of the stars"),
            ("user:{}", 1, "none of the stars"),
        ] {
            let error = TagTemplate::parse(text, stars).unwrap_err();
            assert!(error.contains(said), "{text}: {error}");
        }
    }
}
