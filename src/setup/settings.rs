//! The text of trunkless.toml: the commented sample of the source tree with the answers in it, so
//! that a new configuration lists every key.
#![deny(clippy::disallowed_methods, clippy::disallowed_types)]

use std::path::Path;

use crate::setup::answers::{Answers, Humans, Mode, PBX, PBX_PASSWORD, VICIDIAL_PASSWORD};

const SAMPLE: &str = include_str!("../../trunkless.toml");
pub const NAME: &str = "trunkless.toml";
/// Asterisk's usual folder, in which trunkless looks for rtp.conf by itself.
pub const ASTERISK: &str = "/etc/asterisk";
/// The values of the sample, which are the program's defaults.
pub const LISTEN: &str = "0.0.0.0:5070";
pub const PORTS: (u16, u16) = (20_002, 32_767);
pub const CALLS: usize = 200;
const HEAD: &str = "# Written by `trunkless init`; edit it as you like. After a change:\n\
                    #   trunkless run --config FILE --check\n#\n";

/// Returns the configuration.
///
/// # Errors
/// Returns the table and key that the sample lacks; a test checks that it lacks none.
pub fn toml(answers: &Answers) -> Result<String, String> {
    let mut file = Text { lines: SAMPLE.lines().map(str::to_owned).collect() };
    file.set("ai", "url", &quoted(&answers.ai_url))?;
    file.set(&format!("pbx.{PBX}"), "mode", &quoted(answers.mode.word()))?;
    let (sip, ari) = (format!("pbx.{PBX}.sip"), format!("pbx.{PBX}.ari"));
    let password = quoted(&answers.path(PBX_PASSWORD));
    let (kept, other) = match answers.mode {
        Mode::Sip => (&sip, &ari),
        Mode::Ari => (&ari, &sip),
    };
    file.remove(other)?;
    file.set(kept, "username", &quoted(&answers.username))?;
    let line = format!("password_file = {password}");
    file.replace_note(kept, "password comes from", &line)?;
    if let Some(advertised) = answers.advertised {
        file.set(kept, "advertised", &quoted(&advertised.to_string()))?;
    }
    match answers.mode {
        Mode::Sip => {
            file.set(kept, "registrar", &quoted(&answers.pbx.to_string()))?;
            if answers.tcp {
                file.set(kept, "transport", "\"tcp\"")?;
            }
        }
        Mode::Ari => {
            file.set(kept, "url", &quoted(&answers.ari_url()))?;
            file.set(kept, "app", &quoted(&answers.app))?;
            if !answers.rtp_known {
                file.set(kept, "max_media", &answers.calls.min(CALLS).to_string())?;
            } else if answers.asterisk != Path::new(ASTERISK) {
                let path = answers.asterisk.join("rtp.conf").display().to_string();
                file.set(kept, "rtp_conf", &quoted(&path))?;
            }
        }
    }
    shared(&mut file, answers)?;
    if let Some(vicidial) = &answers.vicidial {
        let table = format!("pbx.{PBX}.vicidial");
        file.open(&table)?;
        file.set(&table, "url", &quoted(&vicidial.url))?;
        let user = format!("{}\npassword_file = {}", quoted(&vicidial.user), {
            quoted(&answers.path(VICIDIAL_PASSWORD))
        });
        file.set_alone(&table, "user", &user)?;
        if let Humans::InGroup(group) = &answers.humans {
            file.set(&table, "in_group", &quoted(group))?;
        }
        file.set(&table, "remote_agent", &quoted(&vicidial.remote_agent))?;
    }
    Ok(format!("{HEAD}{}\n", file.lines.join("\n")))
}

/// The tables that all PBXs share.
fn shared(file: &mut Text, answers: &Answers) -> Result<(), String> {
    let listen = answers.listen.to_string();
    if listen != LISTEN {
        file.set("sip", "listen", &quoted(&listen))?;
    }
    if answers.ports != PORTS {
        let (first, last) = answers.ports;
        file.set("media", "ports", &quoted(&format!("{first}-{last}")))?;
    }
    if answers.calls != CALLS {
        file.set("calls", "max", &answers.calls.to_string())?;
    }
    file.set("http", "listen", &quoted(&answers.http.to_string()))
}

fn quoted(text: &str) -> String {
    toml::Value::from(text).to_string()
}

/// The lines of the file.
struct Text {
    lines: Vec<String>,
}

/// The name of the table that begins on this line, also if it is commented out.
fn header(line: &str) -> Option<&str> {
    let rest = line.strip_prefix("# ").unwrap_or(line).strip_prefix('[')?;
    rest.split_once(']').map(|(name, _)| name)
}

impl Text {
    /// The lines of a table, its header included.
    fn table(&self, name: &str) -> Result<std::ops::Range<usize>, String> {
        let found = self.lines.iter().position(|line| header(line) == Some(name));
        let first = found.ok_or_else(|| format!("the sample has no table [{name}]"))?;
        let ends = |line: &String| header(line).is_some() || line.starts_with("# ----");
        let rest = &self.lines[first + 1..];
        let last = rest.iter().position(ends).map_or(self.lines.len(), |n| first + 1 + n);
        Ok(first..last)
    }

    fn line(&mut self, table: &str, begin: &str) -> Result<&mut String, String> {
        let range = self.table(table)?;
        let mut lines = self.lines[range].iter_mut();
        let is_it = |line: &str| line.strip_prefix("# ").unwrap_or(line).starts_with(begin);
        let found = lines.find(|line| is_it(line));
        found.ok_or_else(|| format!("the sample has no \"{begin}\" in [{table}]"))
    }

    /// Sets a key, whether it was commented out or not. The comment behind it stays.
    fn set(&mut self, table: &str, key: &str, value: &str) -> Result<(), String> {
        let line = self.line(table, &format!("{key} = "))?;
        let rest = line.strip_prefix("# ").unwrap_or(line);
        let comment = rest.split_once(" # ").map(|(_, comment)| comment.to_owned());
        let new = format!("{key} = {value}");
        *line = comment.map_or(new.clone(), |comment| format!("{new:<36} # {comment}"));
        Ok(())
    }

    /// Sets a key, without the comment behind it.
    fn set_alone(&mut self, table: &str, key: &str, value: &str) -> Result<(), String> {
        *self.line(table, &format!("{key} = "))? = format!("{key} = {value}");
        Ok(())
    }

    /// Replaces a comment that has a line of its own.
    fn replace_note(&mut self, table: &str, begin: &str, new: &str) -> Result<(), String> {
        new.clone_into(self.line(table, begin)?);
        Ok(())
    }

    /// Takes the comment sign from the header of a table.
    fn open(&mut self, table: &str) -> Result<(), String> {
        let first = self.table(table)?.start;
        let line = &mut self.lines[first];
        *line = line.strip_prefix("# ").unwrap_or(line).to_owned();
        Ok(())
    }

    fn remove(&mut self, table: &str) -> Result<(), String> {
        let range = self.table(table)?;
        self.lines.drain(range);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LINES: &str = "[a]\nx = 1      # one\n# y = 2   # two\n# z comes from there\n\n\
                         # [b]       # more\n# u = \"v\"\n\n# ---- c\n[c]\n";

    #[test]
    fn keys_are_set_in_their_table() {
        let mut text = Text { lines: LINES.lines().map(str::to_owned).collect() };
        text.set("a", "x", "5").unwrap();
        text.set("a", "y", "6").unwrap();
        text.replace_note("a", "z comes", "z = 7").unwrap();
        text.open("b").unwrap();
        text.set("b", "u", "\"w\"").unwrap();
        assert!(text.set("b", "x", "1").is_err() && text.set("d", "x", "1").is_err());
        let table: toml::Table = text.lines.join("\n").parse().unwrap();
        let expected = "c = {}\na = { x = 5, y = 6, z = 7 }\nb = { u = \"w\" }";
        assert_eq!(table, expected.parse::<toml::Table>().unwrap());
        assert!(text.lines[1].ends_with(" # one") && text.lines[2].ends_with(" # two"));
        text.remove("a").unwrap();
        assert_eq!(text.lines[0], "[b]       # more");
    }

    #[test]
    fn the_defaults_are_those_of_the_sample() {
        let mut text = Text { lines: SAMPLE.lines().map(str::to_owned).collect() };
        let (first, last) = PORTS;
        for (table, key, value) in [
            ("sip", "listen", quoted(LISTEN)),
            ("media", "ports", quoted(&format!("{first}-{last}"))),
            ("calls", "max", CALLS.to_string()),
        ] {
            let line = text.line(table, &format!("{key} = ")).unwrap();
            assert!(line.starts_with(&format!("# {key} = {value} ")), "{line}");
        }
    }
}
