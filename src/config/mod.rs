//! Configuration: one TOML file, overridden by `TRUNKLESS_…` variables. Owns file reading.
//!
//! The file is first parsed on its own, because only the TOML parser reports line numbers. Then the
//! crate `config` merges the file and the environment. [`schema`] defines the keys,
//! [`values`] parses their values; [`check`] finds values that cannot work; [`resolve`] builds the
//! [`plan`], the settings of each part of the program.

mod ai;
mod ari;
pub mod check;
mod control;
pub mod create;
mod dial;
mod environment;
mod headers;
pub mod keys;
mod ladder;
pub mod plan;
pub mod recording;
pub mod resolve;
pub mod routes;
pub mod schema;
mod speech;
mod telemetry;
mod twins;
pub mod values;
pub mod vicidial;

use std::collections::HashMap;
use std::fmt;
use std::path::Path;

use config::{Config, Environment, File, FileFormat};

use check::Findings;
use environment::Variables;
use plan::Plan;
use schema::Settings;

/// The most mistakes of the file that are reported at once.
const MAX_ERRORS: usize = 50;

/// Prefix of the environment variables.
pub const ENV_PREFIX: &str = "TRUNKLESS";

/// A configuration error: the place, the key, and what to do about it. It is printed once, and the
/// exit code is 2.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ConfigError {
    /// `trunkless.toml:12` or `the environment`.
    pub place: String,
    /// `pbx.main.sip.expires` or `TRUNKLESS_PBX__MAIN__SIP__EXPIRES`.
    pub key: String,
    pub message: String,
}

impl fmt::Display for ConfigError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: ", self.place)?;
        if !self.key.is_empty() {
            write!(f, "{}: ", self.key)?;
        }
        f.write_str(&self.message)
    }
}

impl std::error::Error for ConfigError {}

/// The file's name and text, from which errors get their line numbers.
#[derive(Debug, Clone)]
pub struct Source {
    pub name: String,
    pub text: String,
}

impl Source {
    /// Reads the file.
    ///
    /// # Errors
    /// Returns [`ConfigError`] if the file cannot be read.
    pub fn read(path: &Path) -> Result<Source, ConfigError> {
        let name = path.display().to_string();
        let text = std::fs::read_to_string(path).map_err(|why| ConfigError {
            place: name.clone(),
            key: String::new(),
            message: format!("cannot be read: {why}; name another file with --config"),
        })?;
        Ok(Source { name, text })
    }

    /// Makes an error about the key at byte offset `at`.
    fn error_at(&self, at: usize, message: String) -> ConfigError {
        let before = &self.text[..at.min(self.text.len())];
        let line = before.matches('\n').count() + 1;
        let place = format!("{}:{line}", self.name);
        let key = key_at(&self.text, line);
        let secret = ["password", "auth_token", "secret", "secret_access_key", "proxy"]
            .iter()
            .any(|s| key.ends_with(s));
        // the parser's message would print the secret
        let message = if secret { "must be a string in quotes".to_owned() } else { message };
        ConfigError { place, key, message }
    }

    /// Makes an error about a dotted key, with the line of that key or else of its innermost table.
    pub fn error(&self, key: &str, message: impl Into<String>) -> ConfigError {
        let line = line_of(&self.text, key);
        let place = line.map_or(self.name.clone(), |line| format!("{}:{line}", self.name));
        ConfigError { place, key: key.to_owned(), message: message.into() }
    }
}

/// Parses the file and merges the environment into it.
///
/// # Errors
/// Returns [`ConfigError`] with the file, line and key, or with the variable.
pub fn load(
    source: &Source,
    environment: &HashMap<String, String>,
) -> Result<Settings, ConfigError> {
    let mut findings = Findings::default();
    match (load_all(source, environment, &mut findings), findings.errors.into_iter().next()) {
        (Some(settings), None) => Ok(settings),
        (_, error) => Err(error.unwrap_or_else(|| source.error("", "cannot be read"))),
    }
}

/// Reads everything and reports all that is wrong. There is no plan if there is an error.
pub fn inspect(source: &Source, environment: &HashMap<String, String>) -> (Option<Plan>, Report) {
    let mut findings = Findings::default();
    let variables = Variables::new(source, environment);
    findings.warnings.extend(variables.ignored.iter().cloned());
    let settings = load_all(source, environment, &mut findings);
    let resolved = |settings| resolve::resolve_all(source, settings, environment, &mut findings);
    let plan = settings.and_then(resolved).filter(|_| findings.errors.is_empty());
    (plan, Report { findings, overrides: variables.overrides(source) })
}

/// The result of [`inspect`].
pub struct Report {
    pub findings: Findings,
    /// The variables that override a key of the file.
    pub overrides: Vec<String>,
}

/// Parses the file and merges the environment into it. A value with an error is left out; there are
/// no settings if that is not possible.
fn load_all(
    source: &Source,
    environment: &HashMap<String, String>,
    findings: &mut Findings,
) -> Option<Settings> {
    let (from_file, text) = parse_file(source, findings)?;
    let variables = Variables::new(source, environment);
    variables.misspelt.into_iter().for_each(|error| findings.error(error));
    let mut ours = variables.keys;
    if ours.is_empty() {
        return Some(from_file);
    }
    let readable = Source { name: source.name.clone(), text };
    while let Err(error) = merge(&readable, &ours) {
        let error = blame(&readable, &ours, error);
        let known = ours.remove(&error.key).is_some();
        findings.error(error);
        if !known || ours.is_empty() {
            return Some(from_file);
        }
    }
    merge(&readable, &ours).ok()
}

/// Parses the file. Tables and keys with an error are left out of the text that is returned.
fn parse_file(source: &Source, findings: &mut Findings) -> Option<(Settings, String)> {
    let mut text = source.text.clone();
    for _ in 0..MAX_ERRORS {
        let error: toml::de::Error = match toml::from_str(&text) {
            Ok(settings) => return Some((settings, text)),
            Err(error) => error,
        };
        let span = error.span().unwrap_or_default();
        let found = source.error_at(span.start, error.message().trim().to_owned());
        if findings.errors.contains(&found) {
            return None;
        }
        findings.errors.push(found);
        // after an error of syntax, the rest cannot be understood
        text.parse::<toml::Table>().ok()?;
        text = without(&text, span)?;
        text.parse::<toml::Table>().ok()?;
    }
    None
}

/// The text with spaces in place of the lines at `span`, or of the whole table if its header is
/// there. Everything else stays in its place.
fn without(text: &str, span: std::ops::Range<usize>) -> Option<String> {
    let start = text.get(..span.start)?.rfind('\n').map_or(0, |at| at + 1);
    let line_end = |from: usize| text[from..].find('\n').map_or(text.len(), |at| from + at);
    let end = match text[start..].trim_start().starts_with('[') {
        true => text[start..].find("\n[").map_or(text.len(), |at| start + at),
        false => line_end(span.end.max(start)),
    };
    let blank = |byte| if byte == b'\n' { '\n' } else { ' ' };
    let blank: String = text.get(start..end)?.bytes().map(blank).collect();
    Some(format!("{}{blank}{}", &text[..start], &text[end..]))
}

fn merge(source: &Source, environment: &HashMap<String, String>) -> Result<Settings, String> {
    let variables = Environment::with_prefix(ENV_PREFIX)
        .prefix_separator("_")
        .separator("__")
        .source(Some(environment.clone().into_iter().collect()));
    Config::builder()
        .add_source(File::from_str(&source.text, FileFormat::Toml))
        .add_source(variables)
        .build()
        .and_then(Config::try_deserialize)
        .map_err(|e| e.to_string())
}

/// Finds the variable that makes the merge fail. The file alone has been parsed without error.
fn blame(source: &Source, environment: &HashMap<String, String>, error: String) -> ConfigError {
    let mut names: Vec<&String> = environment.keys().collect();
    names.sort();
    for name in names {
        let alone = HashMap::from([(name.clone(), environment[name].clone())]);
        if let Err(message) = merge(source, &alone) {
            let message = match message.split("missing configuration field \"pbx.").nth(1) {
                Some(rest) => {
                    let pbx = rest.split('.').next().unwrap_or("");
                    format!("table [pbx.{pbx}] does not exist in {}; add it", source.name)
                }
                None => message,
            };
            return ConfigError { place: "the environment".into(), key: name.clone(), message };
        }
    }
    ConfigError {
        place: "the environment".into(), key: format!("{ENV_PREFIX}_…"), message: error
    }
}

/// Returns the dotted key on a line: the nearest table header above it, and the name on the line.
fn key_at(text: &str, line: usize) -> String {
    let table = text.lines().take(line).filter_map(table_name).last().unwrap_or_default();
    let current = text.lines().nth(line - 1).unwrap_or_default();
    match current.split_once('=') {
        Some((name, _)) if table_name(current).is_none() => {
            let name = name.trim();
            if table.is_empty() { name.to_owned() } else { format!("{table}.{name}") }
        }
        _ => table,
    }
}

fn table_name(line: &str) -> Option<String> {
    let inner = line.trim().strip_prefix('[')?.split(']').next()?;
    Some(inner.trim_start_matches('[').trim().to_owned())
}

/// Returns the line of a dotted key, or else of its innermost table in the file.
fn line_of(text: &str, key: &str) -> Option<usize> {
    let lines = || text.lines().enumerate().map(|(i, l)| (i + 1, l));
    let exact = lines()
        .find(|(n, l)| l.contains('=') && !l.trim().starts_with('#') && key_at(text, *n) == key);
    let mut table = key;
    let table_line = || {
        while let Some((parent, _)) = table.rsplit_once('.') {
            table = parent;
            if let Some(found) = lines().find(|(_, l)| table_name(l).as_deref() == Some(table)) {
                return Some(found);
            }
        }
        None
    };
    exact.or_else(table_line).map(|(n, _)| n)
}

#[cfg(test)]
mod tests;
