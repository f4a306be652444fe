//! The difference that a reload makes: two configurations, compared key by key (pure).
#![deny(clippy::disallowed_methods, clippy::disallowed_types)]

use std::collections::BTreeSet;

use crate::config::keys::Keys;

/// Keys that take effect only at the start; `*` stands for any name. docs/configuration.md marks
/// them.
pub const AT_START: &[&str] = &[
    "log.json",
    "telemetry.otlp_endpoint",
    "telemetry.otlp_headers",
    "telemetry.otlp_headers_env",
    "telemetry.otlp_headers_file",
    "telemetry.otlp_ca_file",
    "sip.listen",
    "media.ports",
    "http.listen",
    "control.listen",
    "recording.directory",
    "recording.require_mount",
    "pbx.*.ari.format",
    "pbx.*.vicidial.url",
    "pbx.*.vicidial.user",
    "pbx.*.vicidial.password",
    "pbx.*.vicidial.password_env",
    "pbx.*.vicidial.password_file",
    "pbx.*.vicidial.ca_file",
    "pbx.*.vicidial.remote_agent",
    "pbx.*.vicidial.directory",
];

/// The keys that two configurations do not have in common.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Difference {
    /// Keys with another value, without those of PBXs that were added or removed.
    pub changed: Vec<String>,
    /// PBXs by name.
    pub added: Vec<String>,
    pub removed: Vec<String>,
}

impl Difference {
    pub fn new(before: &Keys, after: &Keys) -> Difference {
        let (old, new) = (pbxs(before), pbxs(after));
        let names = |a: &BTreeSet<&str>, b: &BTreeSet<&str>| -> Vec<String> {
            a.difference(b).map(|name| (*name).to_owned()).collect()
        };
        let stays = |key: &str| match pbx_of(key) {
            Some(pbx) => old.contains(pbx) && new.contains(pbx),
            None => true,
        };
        let keys: BTreeSet<&String> = before.keys().chain(after.keys()).collect();
        // tables have no value of their own
        let is_value = |key: &&&String| {
            let digest = before.get(**key).or_else(|| after.get(**key));
            digest.is_some_and(|digest| !digest.is_empty())
        };
        let changed = keys.iter().filter(|key| before.get(**key) != after.get(**key));
        let changed = changed.filter(is_value).filter(|key| stays(key));
        Difference {
            changed: changed.map(|key| (*key).clone()).collect(),
            added: names(&new, &old),
            removed: names(&old, &new),
        }
    }

    pub fn is_empty(&self) -> bool {
        self.changed.is_empty() && self.added.is_empty() && self.removed.is_empty()
    }

    /// True if a key below one of these tables, or one of these keys, has changed.
    pub fn touches(&self, tables: &[&str]) -> bool {
        let below = |key: &str, table: &&str| {
            key.strip_prefix(*table).is_some_and(|rest| rest.is_empty() || rest.starts_with('.'))
        };
        self.changed.iter().any(|key| tables.iter().any(|table| below(key, table)))
    }
}

/// The keys that need a restart before they have the values of `wanted`. `in_effect` has the values
/// that the running parts have been started with.
pub fn need_restart(in_effect: &Keys, wanted: &Keys) -> Vec<String> {
    let keys: BTreeSet<&String> = in_effect.keys().chain(wanted.keys()).collect();
    let differs = |key: &&&String| in_effect.get(**key) != wanted.get(**key);
    // a part that is left out does not run any more
    let is_wanted = |key: &&&String| part_of(key).is_none_or(|part| wanted.contains_key(&part));
    let keys = keys.iter().filter(|key| is_at_start(key)).filter(differs).filter(is_wanted);
    keys.map(|key| (*key).clone()).collect()
}

/// The values that the running parts have been started with, after a reload that has started the
/// sources of these PBXs. A VICIdial is started once, and never ends.
pub fn now_in_effect(before: &Keys, wanted: &Keys, started: &[String]) -> Keys {
    let is_new = |key: &str| match (pbx_of(key), part_of(key)) {
        (Some(_), Some(part)) if is_vicidial(key) => !before.contains_key(&part),
        (Some(pbx), _) => started.iter().any(|name| name == pbx),
        (None, _) => false,
    };
    let kept = before.iter().filter(|(key, _)| !is_new(key));
    let new = wanted.iter().filter(|(key, _)| is_new(key));
    kept.chain(new).map(|(key, digest)| (key.clone(), digest.clone())).collect()
}

/// True if the key takes effect only at the start.
fn is_at_start(key: &str) -> bool {
    let parts: Vec<&str> = key.split('.').collect();
    AT_START.iter().any(|pattern| {
        let pattern: Vec<&str> = pattern.split('.').collect();
        let same = |(a, b): (&&str, &&str)| *a == "*" || a == b;
        pattern.len() == parts.len() && pattern.iter().zip(&parts).all(same)
    })
}

fn is_vicidial(key: &str) -> bool {
    let mut parts = key.split('.');
    parts.next() == Some("pbx") && parts.nth(1) == Some("vicidial")
}

/// The table of the part that a key belongs to, if parts of that kind come and go.
fn part_of(key: &str) -> Option<String> {
    let pbx = pbx_of(key)?;
    Some(if is_vicidial(key) { format!("pbx.{pbx}.vicidial") } else { format!("pbx.{pbx}") })
}

fn pbx_of(key: &str) -> Option<&str> {
    key.strip_prefix("pbx.")?.split('.').next()
}

fn pbxs(keys: &Keys) -> BTreeSet<&str> {
    keys.keys().filter_map(|key| pbx_of(key)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn keys(all: &[(&str, &str)]) -> Keys {
        all.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect()
    }

    const BEFORE: &[(&str, &str)] = &[
        ("ai", ""),
        ("ai.url", "1"),
        ("log.level", "1"),
        ("pbx", ""),
        ("pbx.a", ""),
        ("pbx.a.sip.password", "1"),
        ("pbx.b", ""),
        ("pbx.b.mode", "1"),
        ("sip.listen", "1"),
    ];

    fn after(changes: &[(&str, Option<&str>)]) -> Keys {
        let mut keys = keys(BEFORE);
        for (key, value) in changes {
            match value {
                Some(value) => drop(keys.insert((*key).to_owned(), (*value).to_owned())),
                None => drop(keys.remove(*key)),
            }
        }
        keys
    }

    #[test]
    fn changed_keys_and_pbxs_are_found() {
        type Change<'a> = &'a [(&'a str, Option<&'a str>)];
        type Names<'a> = &'a [&'a str];
        type Row<'a> = (Change<'a>, Names<'a>, Names<'a>, Names<'a>);
        let table: &[Row<'_>] = &[
            (&[], &[], &[], &[]),
            (&[("ai.url", Some("2"))], &["ai.url"], &[], &[]),
            (&[("ai.url", None), ("ai.ping", Some("1"))], &["ai.ping", "ai.url"], &[], &[]),
            (&[("pbx.a.sip.password", Some("2"))], &["pbx.a.sip.password"], &[], &[]),
            (&[("pbx.c", Some("")), ("pbx.c.mode", Some("1"))], &[], &["c"], &[]),
            (&[("pbx.b", None), ("pbx.b.mode", None)], &[], &[], &["b"]),
            (
                &[("pbx.b", None), ("pbx.b.mode", None), ("pbx.bb.mode", Some("1"))],
                &[],
                &["bb"],
                &["b"],
            ),
            (&[("recording", Some(""))], &[], &[], &[]),
        ];
        for (changes, changed, added, removed) in table {
            let found = Difference::new(&keys(BEFORE), &after(changes));
            let owned = |all: &[&str]| all.iter().map(|s| (*s).to_owned()).collect::<Vec<_>>();
            let wanted = Difference {
                changed: owned(changed),
                added: owned(added),
                removed: owned(removed),
            };
            assert_eq!(found, wanted, "{changes:?}");
            assert_eq!(found.is_empty(), wanted == Difference::default());
        }
    }

    #[test]
    fn tables_are_found_by_whole_names() {
        let changes = [("pbx.a.ari.ca_file", Some("2")), ("recording.keep", Some("1"))];
        let found = Difference::new(&keys(BEFORE), &after(&changes));
        assert!(found.touches(&["recording"]) && found.touches(&["pbx.a.ari.ca_file"]));
        assert!(!found.touches(&["record", "pbx.a.ar", "pbx.b", "log"]));
    }

    #[test]
    fn keys_that_need_a_restart_are_named() {
        let need = |before: &[(&str, &str)], after: &[(&str, &str)]| {
            need_restart(&keys(before), &keys(after))
        };
        assert_eq!(need(&[("sip.listen", "1")], &[("sip.listen", "2")]), ["sip.listen"]);
        assert_eq!(need(&[], &[("log.json", "1")]), ["log.json"]);
        assert_eq!(need(&[("media.ports", "1")], &[]), ["media.ports"]);
        assert!(need(&[("log.level", "1")], &[("log.level", "2")]).is_empty());
        let format = |value| [("pbx.x", ""), ("pbx.x.ari.format", value)];
        assert_eq!(need(&format("1"), &format("2")), ["pbx.x.ari.format"]);
        // not a key of that name in another table
        assert!(need(&[], &[("pbx.x.sip.listen", "1"), ("endpoint.sip.listen", "1")]).is_empty());
    }

    #[test]
    fn a_part_that_a_reload_starts_needs_no_restart() {
        let before = keys(&[
            ("pbx.a", ""),
            ("pbx.a.ari.format", "1"),
            ("pbx.a.vicidial", ""),
            ("pbx.a.vicidial.url", "1"),
            ("sip.listen", "1"),
        ]);
        let wanted = keys(&[
            ("pbx.b", ""),
            ("pbx.b.ari.format", "2"),
            ("pbx.b.vicidial", ""),
            ("pbx.b.vicidial.url", "2"),
            ("sip.listen", "2"),
        ]);
        let now = now_in_effect(&before, &wanted, &["b".to_owned()]);
        assert_eq!(need_restart(&now, &wanted), ["sip.listen"]);
        // back again, the format is new, but the VICIdial never left
        let again = keys(&[
            ("pbx.a", ""),
            ("pbx.a.ari.format", "3"),
            ("pbx.a.vicidial", ""),
            ("pbx.a.vicidial.url", "3"),
            ("sip.listen", "1"),
        ]);
        let now = now_in_effect(&now, &again, &["a".to_owned()]);
        assert_eq!(need_restart(&now, &again), ["pbx.a.vicidial.url"]);
    }
}
