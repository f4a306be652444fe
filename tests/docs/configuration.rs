//! docs/configuration.md against the configuration's schema: keys, types and defaults.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use toml::{Table, Value};
use trunkless::app::difference::AT_START;
use trunkless::config::plan::Plan;
use trunkless::config::resolve::resolve;
use trunkless::config::schema::Settings;
use trunkless::config::{ConfigError, Source, load};

use crate::{page, report, root, spans};

const PAGE: &str = "docs/configuration.md";
/// Both modes with everything they require, and nothing else.
const MINIMAL: &str = r#"
[ai]
url = "ws://127.0.0.1:8080"
[pbx.main]
mode = "sip"
[pbx.main.sip]
registrar = "192.0.2.1"
username = "8001"
password = "x"
[pbx.main.ari]
username = "trunkless"
password = "x"
[pbx.main.vicidial]
url = "http://192.0.2.1"
user = "api"
password = "x"
"#;
/// In no table.
const UNKNOWN: &str = "no_such_key";
const NONE: &str = "–";
/// Types of the page: a value that such a key accepts, and one that it refuses.
const TYPES: &[(&str, &str, &str)] = &[
    ("string", "\"{id}\"", "3"),
    ("boolean", "true", "\"yes\""),
    ("integer", "3", "2.5"),
    ("number", "2.5", "\"x\""),
    ("duration", "\"3s\"", "\"x\""),
    ("address", "\"192.0.2.9\"", "\"192.0.2.9:1\""),
    ("socket", "\"127.0.0.1:5\"", "\"127.0.0.1\""),
    ("host", "\"pbx.example.com:5080\"", "\"192.0.2.1:x\""),
    ("ports", "\"30000-30010\"", "\"30000\""),
    ("table", "{ a = \"b\" }", "3"),
    ("list of strings", "[\"{id}\"]", "3"),
    ("list of networks", "[\"10.0.0.0/8\"]", "[\"x\"]"),
    ("list of variables", "[\"lead_*\"]", "[\"DB(x)\"]"),
    ("list of steps", "[\"continue\"]", "[\"x\"]"),
    ("list of scopes", "[\"read\"]", "[\"x\"]"),
    ("list of socket hosts", "[\"*.example.com\"]", "[\"https://x\"]"),
    ("list of times", "[\"Mon-Fri 09:00-17:00\"]", "[\"x\"]"),
    ("time zone", "\"Europe/Berlin\"", "\"x\""),
    ("name", "\"sales\"", "\"a b\""),
    ("list of hosts", "[\"pbx:5060\"]", "[\"192.0.2.1:x\"]"),
];
/// Defaults that neither the schema nor `resolve` holds, and the file that does.
const ELSEWHERE: &[(&str, &str)] = &[
    ("ai.dialect", "src/stream/dialect.rs"),
    ("ai.sample_rate", "src/stream/dialect.rs"),
    ("pbx.main.ari.rtp_conf", "src/ari/client/rtp_capacity.rs"),
];

/// One row of the page.
struct Documented {
    place: String,
    /// `pbx.main.sip.expires`.
    key: String,
    kind: String,
    default: String,
    meaning: String,
}

fn documented() -> Vec<Documented> {
    let page = page(PAGE);
    let rows = page.rows("key").into_iter().map(|row| {
        let table = row.heading.trim_matches('`').trim_matches(['[', ']']).replace("NAME", "main");
        let [name, kind, default, meaning] = &row.cells[..] else { panic!("{}", row.place) };
        Documented {
            key: format!("{table}.{}", spans(name).first().expect("a key in backticks")),
            place: row.place,
            kind: kind.clone(),
            default: default.clone(),
            meaning: meaning.clone(),
        }
    });
    rows.collect()
}

fn parsed(table: &Table) -> Result<Settings, ConfigError> {
    let source = Source { name: "test".to_owned(), text: table.to_string() };
    load(&source, &HashMap::new())
}

fn minimal() -> Table {
    MINIMAL.parse().expect("TOML")
}

/// [`MINIMAL`] with one value more, or another one.
fn with(key: &str, value: Value) -> Table {
    let mut all = minimal();
    let (path, name) = key.rsplit_once('.').unwrap_or(("", key));
    let mut table = &mut all;
    for part in path.split('.').filter(|part| !part.is_empty()) {
        if part == "route" {
            let route = Table::from_iter([("name".to_owned(), Value::from("x"))]);
            let routes = table.entry(part).or_insert_with(|| vec![Value::Table(route)].into());
            table = routes[0].as_table_mut().expect("a route");
            continue;
        }
        let inner = table.entry(part).or_insert_with(|| Value::Table(Table::new()));
        if !inner.is_table() {
            *inner = Value::Table(Table::new());
        }
        table = inner.as_table_mut().expect("a table");
    }
    table.insert(name.to_owned(), value);
    all
}

fn value(text: &str) -> Value {
    let table = format!("v = {text}").parse::<Table>();
    table.unwrap_or_else(|e| panic!("{text}: {e}")).remove("v").expect("v")
}

/// The keys of a table as the parser lists them; `None` for a key that is not a table of keys.
fn keys_of(table: &str) -> Option<Vec<String>> {
    let unknown = if table.is_empty() { UNKNOWN.to_owned() } else { format!("{table}.{UNKNOWN}") };
    let message = parsed(&with(&unknown, Value::Boolean(true))).err()?.message;
    let list = message.strip_prefix(&format!("unknown field `{UNKNOWN}`"))?;
    Some(spans(list).into_iter().map(str::to_owned).collect())
}

/// Every key of the schema, with `main` as the PBX's name.
fn schema(table: &str, found: &mut BTreeSet<String>) {
    for key in keys_of(table).expect("a table") {
        let key = if table.is_empty() { key } else { format!("{table}.{key}") };
        let key = match key.as_str() {
            "pbx" | "control.tokens" => format!("{key}.main"),
            // tables with names of the user's own, and in [endpoint.NAME] the keys of [ai]
            "prompts" | "endpoint" => continue,
            _ => key,
        };
        match keys_of(&key).filter(|_| key != "route.ai") {
            Some(_) => schema(&key, found),
            None => drop(found.insert(key)),
        }
    }
}

#[test]
fn every_key_is_documented_and_no_other() {
    let mut wanted = BTreeSet::new();
    schema("", &mut wanted);
    assert!(wanted.contains("calls.max") && wanted.contains("recording.upload.url"));
    // the page refers to [ai] for these
    let own = |keys: &BTreeSet<String>, table: &str| {
        let names = keys.iter().filter_map(|key| key.strip_prefix(table));
        names.map(str::to_owned).collect::<Vec<_>>()
    };
    assert_eq!(own(&wanted, "pbx.main.ai."), own(&wanted, "ai."));
    for table in ["pbx.NAME.ai", "endpoint.NAME", "prompts"] {
        assert!(page(PAGE).text.contains(&format!("\n## `[{table}]`\n")), "{table}");
    }
    wanted.retain(|key| !key.starts_with("pbx.main.ai."));
    let found: BTreeSet<String> = documented().into_iter().map(|d| d.key).collect();
    let missing = wanted.difference(&found).map(|key| format!("missing: {key}"));
    let unknown = found.difference(&wanted).map(|key| format!("does not exist: {key}"));
    report(PAGE, &missing.chain(unknown).collect::<Vec<_>>());
    assert_eq!(documented().len(), found.len(), "a key is listed twice");
}

#[test]
fn keys_that_need_a_restart_are_those_of_the_program() {
    let page = page(PAGE);
    let rows = page.rows("needs a restart");
    let cells = rows.iter().map(|row| row.cells[0].clone()).collect::<Vec<_>>();
    let listed: BTreeSet<&str> = cells.iter().flat_map(|cell| spans(cell)).collect();
    let named: Vec<String> = AT_START.iter().map(|key| key.replace('*', "NAME")).collect();
    assert_eq!(listed, named.iter().map(String::as_str).collect());
}

/// The words of a key that takes one of several, as the parser lists them.
fn words_of(key: &str) -> Vec<String> {
    let message = parsed(&with(key, Value::from("no such word"))).map_err(|e| e.message);
    let message = message.err().unwrap_or_default();
    let list = message.split_once("is not one of: ").map_or("", |(_, list)| list);
    list.split(", ").filter(|w| !w.is_empty()).map(str::to_owned).collect()
}

#[test]
fn types() {
    let mut found = Vec::new();
    for Documented { place, key, kind, meaning, .. } in documented() {
        if kind == "word" {
            let words = words_of(&key);
            let unnamed = words.iter().find(|word| !spans(&meaning).contains(&word.as_str()));
            if words.is_empty() || unnamed.is_some() {
                found.push(format!("{place}: {key}: the words are {words:?}"));
            }
            continue;
        }
        let Some((_, good, bad)) = TYPES.iter().find(|(name, ..)| *name == kind) else {
            found.push(format!("{place}: {key}: {kind} is not a type"));
            continue;
        };
        if let Err(error) = parsed(&with(&key, value(good))) {
            found.push(format!("{place}: {key} is not a {kind}: {error}"));
        }
        if parsed(&with(&key, value(bad))).is_ok() {
            found.push(format!("{place}: {key} is not a {kind}: it accepts {bad}"));
        }
    }
    report(PAGE, &found);
}

fn plan(mut table: Table, mode: &str) -> Result<Plan, ConfigError> {
    table["pbx"]["main"]["mode"] = Value::from(mode);
    let source = Source { name: "test".to_owned(), text: table.to_string() };
    let environment = HashMap::new();
    resolve(&source, load(&source, &environment)?, &environment)
}

/// The values that `resolve` fills in where the schema has none.
fn filled_in(table: &Table) -> BTreeMap<&'static str, String> {
    let mut all = plan(table.clone(), "sip").expect("a plan");
    let sip = all.sip.remove(0);
    let (ari, _) = plan(table.clone(), "ari").expect("a plan").ari.remove(0);
    let registration = sip.account.registration.as_ref();
    BTreeMap::from([
        ("calls.on_ai_failure", format!("{:?}", all.ladders)),
        ("ai.extensions", format!("{:?}", sip.ai.extensions)),
        ("ai.x_headers", format!("{:?}", sip.ai.x_headers)),
        ("ai.sip_headers", format!("{:?}", sip.ai.sip_headers)),
        ("ai.silent_timeout", format!("{:?}", sip.ai.silent_timeout)),
        ("ai.prewarm", sip.ai.prewarm.to_string()),
        ("ai.ping", format!("{:?}", sip.ai.ping)),
        ("pbx.main.sip.transport", format!("{:?}", sip.account.transport)),
        ("pbx.main.sip.register", registration.is_some().to_string()),
        ("pbx.main.sip.expires", format!("{:?}", registration.map(|r| r.expires_s))),
        ("pbx.main.sip.keepalive", format!("{:?}", registration.map(|r| r.keepalive))),
        ("pbx.main.sip.port_probe", sip.port_probe.to_string()),
        ("pbx.main.ari.url", ari.target.base),
        ("pbx.main.ari.app", ari.app),
        ("pbx.main.ari.format", format!("{:?}", ari.law)),
    ])
}

/// The settings as `key: value`, read off their pretty `Debug` text.
fn settings(table: &Table) -> BTreeMap<String, String> {
    let text = format!("{:#?}", parsed(table).expect("settings"));
    let (mut path, mut found): (Vec<&str>, _) = (Vec::new(), BTreeMap::<String, String>::new());
    for line in text.lines() {
        let words = line.trim_start();
        let depth = (line.len() - words.len()) / 4;
        let (name, rest) = words.split_once(": ").unwrap_or(("", words));
        path.resize(depth, "");
        path.push(if name == ")" { "main" } else { name });
        let key =
            path.iter().filter(|part| !part.is_empty()).copied().collect::<Vec<_>>().join(".");
        *found.entry(key).or_default() += rest;
    }
    found
}

fn why_not_default(documented: &Documented) -> Option<String> {
    let Documented { key, default, .. } = documented;
    let base = minimal();
    let filled_in_base = filled_in(&base);
    if default == NONE {
        let unset = match settings(&base).get(key) {
            Some(value) => ["None,", "{},"].contains(&value.as_str()),
            // there is no such table unless the user writes one
            None => {
                ["control.tokens.main.", "route.", "ai.create."].iter().any(|t| key.starts_with(t))
            }
        };
        let good = unset && !filled_in_base.contains_key(key.as_str());
        return (!good).then(|| "it has a default".to_owned());
    }
    let [literal] = spans(default)[..] else {
        return Some(format!("\"{default}\" is neither {NONE}, required nor a value in backticks"));
    };
    if let Some((_, file)) = ELSEWHERE.iter().find(|(name, _)| name == key) {
        let text = std::fs::read_to_string(root().join(file)).expect(file);
        return (!text.contains(literal)).then(|| format!("{literal} is not in {file}"));
    }
    let set = with(key, value(literal));
    let same = match filled_in_base.get(key.as_str()) {
        // register = false needs peers, or it is not a plan
        Some(was) => plan(set.clone(), "sip").is_ok() && filled_in(&set)[key.as_str()] == *was,
        None => settings(&set) == settings(&base),
    };
    (!same).then(|| format!("{literal} is not the default"))
}

#[test]
fn defaults() {
    let mut found = Vec::new();
    for documented in documented() {
        let Documented { place, key, default, .. } = &documented;
        let why = if key == "route.name" {
            parsed(&format!("{MINIMAL}[[route]]").parse().expect("TOML"))
                .is_ok()
                .then(|| "it is not required".to_owned())
        } else if default == "required" {
            let mode = if key.contains(".ari.") { "ari" } else { "sip" };
            let (table, name) = key.rsplit_once('.').expect("a table");
            let mut all = minimal();
            let inner = table
                .split('.')
                .try_fold(&mut all, |all, part| all.get_mut(part).and_then(Value::as_table_mut));
            inner.expect("a table").remove(name);
            let error = match name {
                "mode" => parsed(&all).err(),
                _ => plan(all, mode).err(),
            };
            let named = error.is_some_and(|e| format!("{}{}", e.key, e.message).contains(name));
            (!named).then(|| "it is not required".to_owned())
        } else {
            why_not_default(&documented)
        };
        found.extend(why.map(|why| format!("{place}: {key}: {why}")));
    }
    report(PAGE, &found);
}
