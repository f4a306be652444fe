//! The keys of the file with a digest of each value, so that two states of a configuration can be
//! compared without keeping any secret. Owns file reading.

use std::collections::{BTreeMap, HashMap};
use std::path::Path;

use sha2::{Digest, Sha256};
use toml::{Table, Value};

use crate::config::environment::Variables;
use crate::config::{ENV_PREFIX, Source};

/// Dotted keys, with a digest of the value and of the file that the value names.
pub type Keys = BTreeMap<String, String>;

/// Last parts of keys whose values name files.
const FILES: [&str; 3] = ["announce", "prompt", "rtp_conf"];

/// Reads all keys of the file and of the variables, which override it. The variables of a process
/// do not change, but a file that one names may.
pub fn read(source: &Source, environment: &HashMap<String, String>) -> Keys {
    let mut keys = Keys::new();
    if let Ok(table) = source.text.parse::<Table>() {
        add(&mut keys, "", &table);
    }
    for (name, value) in Variables::new(source, environment).keys {
        let key = name.trim_start_matches(ENV_PREFIX).trim_start_matches('_');
        let key = key.to_lowercase().replace("__", ".");
        let digest = digest(&key, &Value::String(value));
        keys.insert(key, digest);
    }
    keys
}

fn add(keys: &mut Keys, prefix: &str, table: &Table) {
    for (name, value) in table {
        let key = if prefix.is_empty() { name.clone() } else { format!("{prefix}.{name}") };
        match value {
            Value::Table(table) => {
                // a table without keys counts too, such as that of a PBX
                keys.insert(key.clone(), String::new());
                add(keys, &key, table);
            }
            Value::Array(routes) if key == "route" => add_routes(keys, routes),
            value => drop(keys.insert(key.clone(), digest(&key, value))),
        }
    }
}

/// Adds the routes by name, and their order.
fn add_routes(keys: &mut Keys, routes: &[Value]) {
    let name = |route: &Value| route.get("name").and_then(Value::as_str).map(str::to_owned);
    let names: Vec<String> = routes.iter().filter_map(name).collect();
    keys.insert("route".to_owned(), digest("route", &Value::from(names)));
    for route in routes {
        if let (Some(name), Some(table)) = (name(route), route.as_table()) {
            add(keys, &format!("route.{name}"), table);
        }
    }
}

fn digest(key: &str, value: &Value) -> String {
    let mut hash = Sha256::new();
    hash.update(value.to_string());
    let name = key.rsplit('.').next().unwrap_or(key);
    let is_file = name.ends_with("_file") || FILES.contains(&name) || key.starts_with("prompts.");
    let content = value.as_str().filter(|_| is_file).map(Path::new).map(std::fs::read);
    if let Some(Ok(content)) = content {
        hash.update(content);
    }
    hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(text: &str, variables: &[(&str, &str)]) -> Keys {
        let source = Source { name: "test.toml".to_owned(), text: text.to_owned() };
        let variable = |(name, value): &(&str, &str)| ((*name).to_owned(), (*value).to_owned());
        read(&source, &variables.iter().map(variable).collect())
    }

    #[test]
    fn keys_are_dotted_and_hold_no_secret() {
        let text =
            "[ai]\nurl = 'ws://a'\nheaders = { x = '1' }\n[pbx.main.sip]\npassword = 'hush'\n";
        let keys = of(text, &[]);
        let names: Vec<&str> = keys.keys().map(String::as_str).collect();
        let wanted = [
            "ai",
            "ai.headers",
            "ai.headers.x",
            "ai.url",
            "pbx",
            "pbx.main",
            "pbx.main.sip",
            "pbx.main.sip.password",
        ];
        assert_eq!(names, wanted);
        assert!(!format!("{keys:?}").contains("hush"));
        // a comment and the order change nothing, a value does
        assert_eq!(of(&format!("# note\n{text}"), &[]), keys);
        assert_ne!(of(&text.replace("hush", "hash"), &[]), keys);
    }

    #[test]
    fn routes_are_compared_by_name_and_order() {
        let route = |name: &str, to: &str| format!("[[route]]\nname = '{name}'\nto = '{to}'\n");
        let (a, b) = (route("a", "1"), route("b", "2"));
        let keys = of(&format!("{a}{b}"), &[]);
        let names: Vec<&str> = keys.keys().map(String::as_str).collect();
        assert_eq!(names, ["route", "route.a.name", "route.a.to", "route.b.name", "route.b.to"]);
        let changed = |text: String| -> Vec<String> {
            let other = of(&text, &[]);
            keys.iter().filter(|(k, v)| other.get(*k) != Some(v)).map(|(k, _)| k.clone()).collect()
        };
        assert_eq!(changed(format!("{b}{a}")), ["route"]);
        assert_eq!(changed(format!("{a}{}", route("b", "3"))), ["route.b.to"]);
    }

    #[test]
    fn a_key_that_a_variable_sets_does_not_count() {
        let text = "[ai]\nurl = 'ws://a'\n[log]\nlevel = 'info'\n";
        let variables = [("TRUNKLESS_AI__URL", "ws://b"), ("PATH", "/bin")];
        let (keys, other) = (of(text, &variables), of(&text.replace("//a", "//c"), &variables));
        assert_eq!(keys, other);
        assert_ne!(keys, of(text, &[]));
    }

    #[test]
    fn the_content_of_a_file_counts() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let text = format!("[control.tokens.desk]\ntoken_file = {:?}\n", file.path());
        let path = file.path().display().to_string();
        let variables = [("TRUNKLESS_PBX__MAIN__SIP__PASSWORD_FILE", path.as_str())];
        let before = [of(&text, &[]), of("", &variables)];
        std::fs::write(file.path(), "rotated").unwrap();
        assert_ne!(of(&text, &[]), before[0]);
        assert_ne!(of("", &variables), before[1]);
    }
}
