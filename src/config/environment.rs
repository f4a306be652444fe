//! The `TRUNKLESS_…` variables: which of them are keys, and which belong to others.
#![deny(clippy::disallowed_methods, clippy::disallowed_types)]

use std::collections::HashMap;

use crate::config::{ConfigError, ENV_PREFIX, Source, line_of};

/// The first parts of all keys.
const TABLES: [&str; 9] =
    ["LOG", "SIP", "MEDIA", "AI", "CALLS", "RECORDING", "HTTP", "PBX", "RELOAD"];
/// The address of `[http] listen` that applies if neither the file nor a variable sets it. The image
/// has it, for its health check.
const HTTP_DEFAULT: &str = "TRUNKLESS_HTTP_DEFAULT";
const HTTP_LISTEN: &str = "TRUNKLESS_HTTP__LISTEN";
/// Names that our compose files use.
const COMPOSE: [&str; 3] = ["TRUNKLESS_IMAGE", "TRUNKLESS_LAB_IMAGE", "TRUNKLESS_PROFILE"];

/// The variables, sorted by their use.
#[derive(Debug, Default)]
pub struct Variables {
    /// Those that set keys.
    pub keys: HashMap<String, String>,
    /// Those that must be misspelt keys.
    pub misspelt: Vec<ConfigError>,
    /// Those that look like ours, and are ignored.
    pub ignored: Vec<ConfigError>,
}

impl Variables {
    /// Sorts the variables that begin with the prefix.
    pub fn new(source: &Source, environment: &HashMap<String, String>) -> Variables {
        let mut found = Variables::default();
        let prefix = format!("{ENV_PREFIX}_");
        let mut names: Vec<&String> = environment.keys().collect();
        names.sort_unstable();
        for name in names {
            let Some(rest) = name.strip_prefix(&prefix) else { continue };
            if rest.contains("__") {
                found.keys.insert(name.clone(), environment[name].clone());
            } else if !is_others(name, rest, &environment[name]) {
                found.add_unknown(name, rest);
            }
        }
        let default = environment.get(HTTP_DEFAULT).filter(|default| !default.is_empty());
        let is_set = found.keys.contains_key(HTTP_LISTEN) || is_in_file(source, "http.listen");
        if let Some(default) = default.filter(|_| !is_set) {
            found.keys.insert(HTTP_LISTEN.to_owned(), default.clone());
        }
        found
    }

    fn add_unknown(&mut self, name: &str, rest: &str) {
        let table = rest.split('_').next().unwrap_or_default();
        let problem = |message: String| ConfigError {
            place: "the environment".to_owned(),
            key: name.to_owned(),
            message,
        };
        if TABLES.contains(&table) {
            let key = rest.strip_prefix(table).unwrap_or_default().trim_start_matches('_');
            let wanted = format!("{ENV_PREFIX}_{table}__{key}");
            let why = format!("is not a key: two underscores separate its parts, as in {wanted}");
            self.misspelt.push(problem(why));
        } else {
            let why = "is not a key, and ignored; rename it if it is not meant for trunkless";
            self.ignored.push(problem(why.to_owned()));
        }
    }

    /// The variables that override a key of the file, with the line of that key.
    pub fn overrides(&self, source: &Source) -> Vec<String> {
        let mut found: Vec<String> = self
            .keys
            .keys()
            .filter_map(|name| {
                let key = key_of(name);
                let line = is_in_file(source, &key).then(|| line_of(&source.text, &key))??;
                Some(format!("{name} overrides {}:{line}", source.name))
            })
            .collect();
        found.sort_unstable();
        found
    }
}

/// True for a variable of our compose files, and for those that Kubernetes and Docker set for
/// services whose names begin with ours, such as `trunkless` and `trunkless-sip`.
fn is_others(name: &str, rest: &str, value: &str) -> bool {
    let parts = format!("_{rest}");
    let of_service = ["_SERVICE_HOST", "_SERVICE_PORT"];
    let service = rest.starts_with("ENV_") || of_service.iter().any(|part| parts.contains(part));
    // PORT_8071_TCP, but not a key such as port_probe
    let mut ports = parts.split("_PORT_").skip(1);
    let service = service || ports.any(|port| port.starts_with(|c: char| c.is_ascii_digit()));
    let address = parts.ends_with("_PORT") && value.contains("://");
    COMPOSE.contains(&name) || name == HTTP_DEFAULT || service || address || rest == "NAME"
}

/// `TRUNKLESS_CALLS__MAX` is `calls.max`.
fn key_of(name: &str) -> String {
    let rest = name.strip_prefix(ENV_PREFIX).unwrap_or(name).trim_start_matches('_');
    rest.to_lowercase().replace("__", ".")
}

fn is_in_file(source: &Source, key: &str) -> bool {
    let table = toml::Value::Table(source.text.parse().unwrap_or_default());
    let mut value = Some(&table);
    for part in key.split('.') {
        value = value.and_then(|value| value.get(part));
    }
    value.is_some()
}
