//! Paths of recordings, from a template with generated names. Nothing received from the network
//! becomes part of a path.
#![deny(clippy::disallowed_methods, clippy::disallowed_types)]

use std::path::PathBuf;
use std::str::FromStr;
use std::time::{Duration, UNIX_EPOCH};

/// Longer ids are cut; the ids that trunkless generates are shorter.
const MAX_ID: usize = 64;
const WORDS: [&str; 7] = ["date", "year", "month", "day", "hour", "pbx", "id"];
/// Folder for recordings in progress, below the recordings' directory.
pub const INCOMPLETE: &str = "incomplete";
/// Folder for the outbox's entries, below the recordings' directory.
pub const OUTBOX: &str = "outbox";

/// A path template such as `{date}/{pbx}/{id}`: folders below the recordings' directory, and the
/// file name without its extension.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Layout(String);

impl Default for Layout {
    fn default() -> Self {
        Layout("{date}/{pbx}/{id}".to_owned())
    }
}

impl FromStr for Layout {
    type Err = String;

    fn from_str(text: &str) -> Result<Layout, String> {
        let words = WORDS.map(|w| format!("{{{w}}}")).join(" ");
        let wrong = |why: &str| {
            Err(format!("\"{text}\": {why}; use folders and a name made of {words} (UTC)"))
        };
        if !text.contains("{id}") {
            return wrong("{id} is missing");
        }
        for folder in text.split('/') {
            if folder.is_empty() || folder.starts_with('.') {
                return wrong("a folder is empty or begins with a dot");
            }
        }
        let first = text.split('/').next().unwrap_or_default();
        if [INCOMPLETE, OUTBOX].contains(&first) {
            return wrong("this folder is reserved for recordings in progress or to be sent");
        }
        let plain = WORDS.iter().fold(text.to_owned(), |t, w| t.replace(&format!("{{{w}}}"), ""));
        let good = |c: char| c.is_ascii_alphanumeric() || "-_./".contains(c);
        match plain.chars().all(good) {
            true if text.len() <= 200 => Ok(Layout(text.to_owned())),
            true => wrong("it is longer than 200 bytes"),
            false => wrong("only letters, digits, -, _ and . are allowed"),
        }
    }
}

impl Layout {
    /// Returns the path of a recording that started at `unix`: relative, without extension.
    pub fn path(&self, unix: Duration, pbx: &str, id: &str) -> PathBuf {
        let at = UNIX_EPOCH.checked_add(unix).unwrap_or(UNIX_EPOCH);
        // 2026-11-24T15:29:25Z; only years after 9999 are longer
        let time = humantime::format_rfc3339_seconds(at).to_string();
        let part = |from: usize, to: usize| time.get(from..to).unwrap_or("0").to_owned();
        let values =
            [part(0, 10), part(0, 4), part(5, 7), part(8, 10), part(11, 13), clean(pbx), clean(id)];
        let words = WORDS.iter().zip(values);
        words.fold(self.0.clone(), |t, (w, value)| t.replace(&format!("{{{w}}}"), &value)).into()
    }
}

/// Replaces everything but letters, digits and dashes with underscores, and cuts long words.
pub fn clean(word: &str) -> String {
    let good = |c: char| if c.is_ascii_alphanumeric() || c == '-' { c } else { '_' };
    let clean: String = word.chars().take(MAX_ID).map(good).collect();
    if clean.is_empty() { "_".to_owned() } else { clean }
}

#[cfg(test)]
mod tests {
    use std::path::Component;

    use super::*;

    const AT: Duration = Duration::from_secs(1_795_534_165);

    #[test]
    fn folders_and_names() {
        let path = |layout: &str| layout.parse::<Layout>().unwrap().path(AT, "main", "17-ab");
        assert_eq!(path("{date}/{pbx}/{id}"), PathBuf::from("2026-11-24/main/17-ab"));
        assert_eq!(path("{year}/{month}/{day}/{hour}-{id}"), PathBuf::from("2026/11/24/15-17-ab"));
        assert_eq!(path("{id}"), PathBuf::from("17-ab"));
        for bad in [
            "",
            "{date}",
            "../{id}",
            "/{id}",
            "a//{id}",
            "{id}/..",
            ".x/{id}",
            "{id}/",
            "a b/{id}",
            "{from_number}/{id}",
            "incomplete/{id}",
            "outbox/{id}",
            "{id}\0",
            "é{id}",
        ] {
            assert!(bad.parse::<Layout>().is_err(), "{bad}");
        }
    }

    #[test]
    fn no_id_leads_out_of_the_directory() {
        let layout = Layout::default();
        let alphabet = ["..", "/", "\0", "a", ".", "\\", "CON", "é", "\n", "-", "%2e", " ", ":"];
        let mut state = 1u64;
        for round in 0..1_000_000u32 {
            let mut id = String::new();
            for _ in 0..round % 7 {
                state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
                id.push_str(alphabet[(state >> 33) as usize % alphabet.len()]);
            }
            let name = clean(&id);
            assert!(name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_'));
            if round % 1000 == 0 {
                let path = layout.path(AT, "../x", &id);
                assert_eq!(path.components().count(), 3, "{path:?}");
                assert!(path.components().all(|c| matches!(c, Component::Normal(_))), "{path:?}");
            }
        }
        assert_eq!(layout.path(AT, "p", &"x".repeat(300)).to_string_lossy().len(), 11 + 2 + 64);
    }
}
