//! Text of unknown encoding in header fields. From, To, Via and Call-ID are echoed as they came
//! (RFC 3261 §8.2.6.2), even if they are not UTF-8.
//!
//! The bytes beyond ASCII of such a line are held as characters of a private range of Unicode, and
//! become the same bytes again when a message is sent.
#![deny(clippy::disallowed_methods, clippy::disallowed_types)]

/// The private characters for the bytes 0x80 to 0xFF are 0xF780 to 0xF7FF.
const PRIVATE: u32 = 0xF700;

/// Returns the byte that a private character stands for.
fn byte_of(c: char) -> Option<u8> {
    let byte = u8::try_from(u32::from(c).checked_sub(PRIVATE)?).ok()?;
    (!byte.is_ascii()).then_some(byte)
}

/// Decodes a line. One with characters of the private range is treated like one that is not UTF-8,
/// so that it is echoed correctly, too.
pub fn decode(line: &[u8]) -> String {
    match std::str::from_utf8(line) {
        Ok(text) if !text.chars().any(|c| byte_of(c).is_some()) => text.to_owned(),
        _ => {
            let private = |b: u8| char::from_u32(PRIVATE + u32::from(b)).unwrap_or('?');
            line.iter().map(|b| if b.is_ascii() { char::from(*b) } else { private(*b) }).collect()
        }
    }
}

/// Appends text that [`decode`] returned, as it came.
pub fn encode(text: &str, out: &mut Vec<u8>) {
    for c in text.chars() {
        match byte_of(c) {
            Some(byte) => out.push(byte),
            None => out.extend_from_slice(c.encode_utf8(&mut [0; 4]).as_bytes()),
        }
    }
}

/// Returns the text for people and programs: what is not UTF-8 is taken for Latin-1.
pub fn readable(text: &str) -> String {
    text.chars().map(|c| byte_of(c).map_or(c, char::from)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_line_is_echoed_as_it_came() {
        let table: [(&[u8], &str); 5] = [
            (b"plain", "plain"),
            ("M\u{fc}ller \u{1f600}".as_bytes(), "M\u{fc}ller \u{1f600}"),
            (b"M\xfcller", "M\u{fc}ller"),
            (b"\xff\x80\xc3", "\u{ff}\u{80}\u{c3}"),
            ("\u{f78a}".as_bytes(), "\u{ef}\u{9e}\u{8a}"),
        ];
        for (line, text) in table {
            let decoded = decode(line);
            let mut out = Vec::new();
            encode(&decoded, &mut out);
            assert_eq!((&*out, &*readable(&decoded)), (line, text));
        }
    }
}
