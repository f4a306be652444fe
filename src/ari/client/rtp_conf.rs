//! Reads rtp.conf with the files that it includes, as Asterisk's `config.c` does. FreePBX's
//! rtp.conf consists of includes only. Owns the reading of files.

use std::fs;
use std::path::{Path, PathBuf};

/// Asterisk's `MAX_INCLUDE_LEVEL`.
const MAX_DEPTH: usize = 10;
/// Maximum number of files, because a file may include itself more than once.
const MAX_FILES: usize = 100;

/// Returns the text of the file, with the text of included files in place of `#include` and
/// `#tryinclude`.
///
/// # Errors
/// Returns the reason if part of the text is unknown: a file cannot be read, or a program writes it
/// (`#exec`).
pub fn read(path: &Path) -> Result<String, String> {
    let folder = path.parent().unwrap_or(Path::new("/"));
    let (text, section, newest) = Default::default();
    let mut whole = Whole { folder, text, section, newest, files: 0 };
    whole.add(path, 0)?;
    Ok(whole.text)
}

struct Whole<'a> {
    /// Names of included files are relative to it, from whatever file.
    folder: &'a Path,
    text: String,
    /// The section at the end of `text`.
    section: String,
    /// The section that began last. An included file begins in it.
    newest: String,
    files: usize,
}

impl Whole<'_> {
    fn add(&mut self, path: &Path, depth: usize) -> Result<(), String> {
        let error = |why: String| format!("{}: {why}", path.display());
        self.files += 1;
        if depth > MAX_DEPTH || self.files > MAX_FILES {
            return Err(error("too many includes".to_owned()));
        }
        let is_file = fs::metadata(path).map_err(|e| error(e.to_string()))?.is_file();
        if !is_file {
            return Err(error("not a file".to_owned()));
        }
        let mut section = self.newest.clone();
        let bytes = fs::read(path).map_err(|e| error(e.to_string()))?;
        for line in without_comments(&String::from_utf8_lossy(&bytes)).lines() {
            let line = line.trim();
            let Some(directive) = line.strip_prefix('#') else {
                if let Some((name, _)) = line.strip_prefix('[').and_then(|l| l.split_once(']')) {
                    name.clone_into(&mut section);
                    name.clone_into(&mut self.section);
                    name.clone_into(&mut self.newest);
                } else if self.section != section {
                    // after an included file, the section before it continues
                    self.text += &format!("[{section}](+)\n");
                    section.clone_into(&mut self.section);
                }
                self.text += line;
                self.text.push('\n');
                continue;
            };
            let (word, name) = directive.split_once([' ', '\t']).unwrap_or((directive, ""));
            let name = name.trim().trim_matches(['"', '<', '>']);
            match word.to_ascii_lowercase().as_str() {
                "include" => self.include(name, depth, true)?,
                "tryinclude" => self.include(name, depth, false)?,
                _ => return Err(error(format!("#{word} is not followed"))),
            }
        }
        Ok(())
    }

    fn include(&mut self, name: &str, depth: usize, required: bool) -> Result<(), String> {
        let found = matching(&self.folder.join(name))?;
        if found.is_empty() && required {
            return Err(format!("{name}: included, but it does not exist"));
        }
        found.iter().try_for_each(|path| self.add(path, depth + 1))
    }
}

/// Removes comments: from `;` to the end of the line, and from `;--` to `--;`.
fn without_comments(text: &str) -> String {
    let mut kept = String::new();
    let mut in_block = false;
    for line in text.lines() {
        let mut rest = line;
        while !rest.is_empty() {
            if in_block {
                let Some((_, after)) = rest.split_once("--;") else { break };
                (in_block, rest) = (false, after);
                continue;
            }
            let (before, comment) = rest.split_once(';').unwrap_or((rest, ""));
            kept += before;
            let opens = comment.strip_prefix("--").filter(|after| !after.starts_with('-'));
            let Some(after) = opens else { break };
            (in_block, rest) = (true, after);
        }
        kept.push('\n');
    }
    kept
}

/// Returns the existing files that a path with `*` and `?` stands for, in alphabetical order.
fn matching(pattern: &Path) -> Result<Vec<PathBuf>, String> {
    let mut found = vec![PathBuf::new()];
    for part in pattern.components() {
        let name = part.as_os_str().to_string_lossy();
        if name.contains(['[', '{']) {
            return Err(format!("{}: brackets in file names are not followed", pattern.display()));
        }
        if !name.contains(['*', '?']) {
            found.iter_mut().for_each(|path| path.push(part));
            continue;
        }
        let mut next = Vec::new();
        for folder in &found {
            let entries = match fs::read_dir(folder) {
                Ok(entries) => entries,
                Err(why) if why.kind() == std::io::ErrorKind::NotFound => continue,
                Err(why) => return Err(format!("{}: {why}", folder.display())),
            };
            for entry in entries {
                let entry = entry.map_err(|why| format!("{}: {why}", folder.display()))?;
                let file = entry.file_name().to_string_lossy().into_owned();
                let hidden = file.starts_with('.') && !name.starts_with('.');
                if !hidden && matches(name.as_bytes(), file.as_bytes()) {
                    next.push(folder.join(file));
                }
            }
        }
        next.sort();
        found = next;
    }
    // a file that exists but cannot be read is an error, not an absent file
    found.retain(|path| !is_absent(path));
    Ok(found)
}

fn is_absent(path: &Path) -> bool {
    fs::symlink_metadata(path).is_err_and(|why| why.kind() == std::io::ErrorKind::NotFound)
}

fn matches(pattern: &[u8], name: &[u8]) -> bool {
    match (pattern.split_first(), name.split_first()) {
        (None, None) => true,
        (Some((b'*', rest)), _) => (0..=name.len()).any(|n| matches(rest, &name[n..])),
        (Some((b'?', rest)), Some((_, tail))) => matches(rest, tail),
        (Some((a, rest)), Some((b, tail))) => a == b && matches(rest, tail),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ari::rtp_range::RtpRange;

    /// Writes the files into a new folder and reads the range of its rtp.conf.
    fn range(files: &[(&str, &str)]) -> Result<RtpRange, String> {
        let folder = tempfile::tempdir().unwrap();
        for (name, text) in files {
            let path = folder.path().join(name);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        }
        let text = read(&folder.path().join("rtp.conf"))?;
        RtpRange::parse(&text).ok_or_else(|| "no valid RTP range".to_owned())
    }

    const SMALL: &str = "rtpstart=11000\nrtpend=11007\n";
    const FOUND: Result<RtpRange, String> = Ok(RtpRange { first: 11_000, last: 11_007 });

    #[test]
    fn includes_are_followed() {
        let freepbx = "[general]\n#include rtp_additional.conf\n#include rtp_custom.conf\n";
        let files =
            [("rtp.conf", freepbx), ("rtp_additional.conf", SMALL), ("rtp_custom.conf", "")];
        assert_eq!(range(&files), FOUND);
        for include in [
            "#include \"a.conf\"",
            "#include <a.conf>",
            "#tryinclude a.conf ; comment",
            "  #INCLUDE\ta.conf",
            "#tryinclude missing.conf\n#include a.conf",
            "#include ?.conf",
            "#include a*",
            "#include sub/b.conf",
            "#include s*/b.conf",
            ";-- #include missing.conf\n#exec x --; #include a.conf",
        ] {
            let main = format!("[general]\n{include}\n");
            let files =
                [("rtp.conf", &*main), ("a.conf", SMALL), ("sub/b.conf", "#include a.conf")];
            assert_eq!(range(&files), FOUND, "{include}");
        }
        let sections = [
            ("rtp.conf", "[general]\n#include other.conf\nrtpend=11007\n"),
            ("other.conf", "rtpstart=11000\n[ice_host_candidates]\nrtpend=30000\n"),
        ];
        assert_eq!(range(&sections), FOUND, "the section continues after the include");
        let split = [("rtp.conf", "#include g\n#include p"), ("g", "[general]"), ("p", SMALL)];
        assert_eq!(range(&split), FOUND, "an included file begins in the newest section");
    }

    #[test]
    fn a_range_that_is_partly_unknown_is_unknown() {
        for text in [
            "[general]\n#include missing.conf\n",
            "[general]\n#include missing*.conf\n",
            "[general]\nrtpstart=11000\nrtpend=11007\n#exec /bin/range\n",
            "[general]\n#include rtp.conf\n",
            "[general]\n#include {a,b}.conf\n",
            "[general]\n#tryinclude .\n",
            "[general]\nrtpstart=11000\nrtpend=11007\nrtpstart=12000\n",
        ] {
            let found = range(&[("rtp.conf", text)]);
            assert!(found.is_err(), "{text}: {found:?}");
        }
    }
}
