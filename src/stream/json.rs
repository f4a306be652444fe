//! A quick look at small JSON objects: strings are borrowed, nothing is built. It understands less
//! than JSON on purpose, and says so by `None`: whoever asks has a real parser for the rest.
#![deny(clippy::disallowed_methods, clippy::disallowed_types)]

use memchr::memchr;

/// Objects within objects.
const MAX_DEPTH: usize = 4;

/// A place in a text.
#[derive(Debug)]
pub struct Cursor<'a> {
    rest: &'a str,
    depth: usize,
}

impl<'a> Cursor<'a> {
    /// Reads a text that is one object. `each` is given every key of it and takes its value, by
    /// [`Cursor::string`], [`Cursor::object`] or [`Cursor::skip`].
    pub fn read(
        text: &'a str,
        each: &mut dyn FnMut(&mut Cursor<'a>, &'a str) -> Option<()>,
    ) -> Option<()> {
        let mut cursor = Cursor { rest: text, depth: 0 };
        cursor.object(each)?;
        cursor.space();
        cursor.rest.is_empty().then_some(())
    }

    /// The next byte, which is of a character of one byte when it is less than 0x80.
    fn peek(&self) -> Option<u8> {
        self.rest.as_bytes().first().copied()
    }

    fn space(&mut self) {
        while matches!(self.peek(), Some(b' ' | b'\t' | b'\n' | b'\r')) {
            self.rest = &self.rest[1..];
        }
    }

    /// `what`: of ASCII.
    fn eat(&mut self, what: u8) -> Option<()> {
        self.space();
        if self.peek() != Some(what) {
            return None;
        }
        self.rest = &self.rest[1..];
        Some(())
    }

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

    /// A string without escapes.
    pub fn string(&mut self) -> Option<&'a str> {
        self.eat(b'"')?;
        let (text, rest) = self.rest.split_at(memchr(b'"', self.rest.as_bytes())?);
        // without an early end, so that many bytes are looked at in one instruction
        if text.bytes().fold(false, |odd, byte| odd | (byte == b'\\') | (byte < b' ')) {
            return None;
        }
        self.rest = &rest[1..];
        Some(text)
    }

    /// Any value but a list, a negative number and one with a fraction.
    pub fn skip(&mut self) -> Option<()> {
        self.space();
        match self.peek()? {
            b'"' => self.string().map(|_| ()),
            b'{' => self.object(&mut |cursor, _| cursor.skip()),
            b'1'..=b'9' => {
                self.rest = self.rest.trim_start_matches(|c: char| c.is_ascii_digit());
                // what a number goes on with is not for here
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
    fn keys_and_values() {
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

    /// Whatever it takes is JSON for the real parser too.
    #[test]
    fn what_is_taken_is_json() {
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
