//! A fast reader for small JSON objects: it borrows strings, and builds nothing. It deliberately
//! supports only part of JSON, and returns `None` for the rest, which needs a full parser.
#![deny(clippy::disallowed_methods, clippy::disallowed_types)]

use memchr::memchr;

/// Maximum nesting of objects.
const MAX_DEPTH: usize = 4;

/// A position in a text.
#[derive(Debug)]
pub struct Cursor<'a> {
    /// The text from here on.
    rest: &'a str,
    /// Objects around this position.
    depth: usize,
}

impl<'a> Cursor<'a> {
    /// Reads a text that is a single object. `each` is called with every key, and must consume the
    /// value with [`Cursor::string`], [`Cursor::object`] or [`Cursor::skip`].
    pub fn read(
        text: &'a str,
        each: &mut dyn FnMut(&mut Cursor<'a>, &'a str) -> Option<()>,
    ) -> Option<()> {
        let mut cursor = Cursor { rest: text, depth: 0 };
        cursor.object(each)?;
        cursor.space();
        cursor.rest.is_empty().then_some(())
    }

    /// Returns the next byte. Below 0x80, it is a whole character.
    fn peek(&self) -> Option<u8> {
        self.rest.as_bytes().first().copied()
    }

    fn space(&mut self) {
        while matches!(self.peek(), Some(b' ' | b'\t' | b'\n' | b'\r')) {
            self.rest = &self.rest[1..];
        }
    }

    /// Skips white space and then the ASCII byte `what`; returns `None` if there is another byte.
    fn eat(&mut self, what: u8) -> Option<()> {
        self.space();
        if self.peek() != Some(what) {
            return None;
        }
        self.rest = &self.rest[1..];
        Some(())
    }

    /// Reads an object, with `each` as in [`Cursor::read`].
    pub fn object(
        &mut self,
        each: &mut dyn FnMut(&mut Cursor<'a>, &'a str) -> Option<()>,
    ) -> Option<()> {
        self.eat(b'{')?;
        self.depth += 1;
        if self.depth > MAX_DEPTH {
            return None;
        }
        if self.eat(b'}').is_none() {
            loop {
                let key = self.string()?;
                self.eat(b':')?;
                each(self, key)?;
                if self.eat(b',').is_none() {
                    self.eat(b'}')?;
                    break;
                }
            }
        }
        self.depth -= 1;
        Some(())
    }

    /// Reads a string without escapes.
    pub fn string(&mut self) -> Option<&'a str> {
        self.eat(b'"')?;
        let (text, rest) = self.rest.split_at(memchr(b'"', self.rest.as_bytes())?);
        // without an early exit, so that many bytes are checked per instruction
        if text.bytes().fold(false, |odd, byte| odd | (byte == b'\\') | (byte < b' ')) {
            return None;
        }
        self.rest = &rest[1..];
        Some(text)
    }

    /// Reads a whole number that is not negative.
    pub fn number(&mut self) -> Option<u64> {
        self.space();
        let before = self.rest;
        if before.starts_with(|c: char| c.is_ascii_digit()) {
            self.skip()?;
        }
        before[..before.len() - self.rest.len()].parse().ok()
    }

    /// Skips a value. Arrays, negative numbers, fractions and exponents are not supported.
    pub fn skip(&mut self) -> Option<()> {
        self.space();
        match self.peek()? {
            b'"' => self.string().map(|_| ()),
            b'{' => self.object(&mut |cursor, _| cursor.skip()),
            b'1'..=b'9' => {
                self.rest = self.rest.trim_start_matches(|c: char| c.is_ascii_digit());
                // fractions and exponents are left to the full parser
                (!self.rest.starts_with(['.', 'e', 'E'])).then_some(())
            }
            _ => {
                let literal = ["true", "false", "null", "0"]
                    .iter()
                    .find_map(|literal| self.rest.strip_prefix(literal))?;
                self.rest = literal;
                (!literal.starts_with(['.', 'e', 'E'])).then_some(())
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn keys(text: &str) -> Option<Vec<(&str, &str)>> {
        let mut found = Vec::new();
        Cursor::read(text, &mut |cursor, key| {
            let before = cursor.rest;
            cursor.skip()?;
            found.push((key, before[..before.len() - cursor.rest.len()].trim()));
            Some(())
        })?;
        Some(found)
    }

    #[test]
    fn keys_and_values_are_read() {
        assert_eq!(
            keys(" {\"a\" : \"x\",\n\"b\":{\"c\":{}},\"d\":120, \"e\":null,\"f\":0} "),
            Some(vec![
                ("a", "\"x\""),
                ("b", "{\"c\":{}}"),
                ("d", "120"),
                ("e", "null"),
                ("f", "0")
            ])
        );
        assert_eq!(keys("{}"), Some(vec![]));
    }

    /// Every text that is accepted is valid JSON for a full parser too.
    #[test]
    fn accepted_text_is_valid_json() {
        let pieces =
            ["{", "}", "\"", "a", ":", ",", "1", "0", "true", "\\", " ", "[", "-", ".", "é"];
        let mut state = 7u64;
        let mut taken = 0;
        for _ in 0..300_000 {
            let mut text = String::from("{\"");
            let length = state % 9;
            for _ in 0..length {
                state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
                text.push_str(pieces[(state >> 33) as usize % pieces.len()]);
            }
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(99);
            if keys(&text).is_some() {
                taken += 1;
                assert!(serde_json::from_str::<serde_json::Value>(&text).is_ok(), "{text}");
            }
        }
        assert!(taken > 0);
        for text in [
            "{\"a\":01}",
            "{\"a\":1.5}",
            "{\"a\":truey}",
            "{\"a\":1}x",
            "{\"a\"}",
            "{,}",
            "{\"a\":1,}",
        ] {
            assert_eq!(keys(text), None, "{text}");
        }
        assert_eq!(keys(&"{\"a\":".repeat(100_000)), None);
    }
}
