//! The `customParameters` of a call: their names, which are the same for every source, and their
//! bounds.
//!
//! Data from the PBX has names in lower case with underscores: a header field `X-Lead-ID`, an
//! argument `Lead-ID=…` and a channel variable `LEAD_ID` all become `lead_id`. Nothing of it can
//! replace the names that only we give a value.
#![deny(clippy::disallowed_methods, clippy::disallowed_types)]

use std::collections::BTreeMap;

use crate::call::admission::clip;

/// Maximum length of a value from the dialplan, in characters. Longer ones are cut. It is what the
/// Twilio dialect allows.
const MAX_VALUE: usize = 499;

/// The parameters by which a dialler knows a call. They are kept with its record, so that a
/// recording can be matched to its lead.
const RECORDED: [&str; 6] =
    ["vici_call_id", "lead_id", "user", "campaign", "call_type", "uniqueid"];

/// The parameters that the PBX adds to a call's own, in order. Of several with the same name, the
/// first counts.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct Added(Vec<(String, String)>);

impl Added {
    /// Adds a detail that the source knows, with its final name. An empty one is left out.
    pub fn detail(&mut self, name: &str, value: &str) {
        if !value.is_empty() {
            self.0.push((name.to_owned(), clip(value)));
        }
    }

    /// Adds what the call's owner knows, with its final name.
    pub fn known(&mut self, name: &str, value: &str) {
        if !value.is_empty() {
            self.0.push((name.to_owned(), cut(value)));
        }
    }

    /// Adds a detail in place of one with the same name.
    pub fn replace(&mut self, name: &str, value: &str) {
        self.0.retain(|(known, _)| known != name);
        self.detail(name, value);
    }

    /// Adds data from the dialplan under its common name, and under the name as given, which was
    /// the only one before and is deprecated. Empty values are left out.
    pub fn dialplan(&mut self, given: &str, value: &str) {
        self.named(given, value);
        if !value.is_empty() && common_name(given) != given {
            self.0.push((clip(given), cut(value)));
        }
    }

    /// Adds data under its common name only.
    pub fn named(&mut self, given: &str, value: &str) {
        let name = common_name(given);
        if !value.is_empty() && !name.is_empty() {
            self.0.push((name, cut(value)));
        }
    }

    pub fn entries(&self) -> &[(String, String)] {
        &self.0
    }
}

/// Returns the parameters that are kept with the record of a call.
pub fn recorded(parameters: &[(String, String)]) -> BTreeMap<String, String> {
    let mut recorded = BTreeMap::new();
    for (name, value) in parameters.iter().filter(|(name, _)| RECORDED.contains(&&**name)) {
        recorded.entry(name.clone()).or_insert_with(|| value.clone());
    }
    recorded
}

/// Returns all parameters of a call. `ours`: those that nothing can replace; empty ones are left
/// out. `configured`: those of the configuration, which replace the PBX's.
pub fn all(
    ours: &[(&str, &str)],
    added: &Added,
    configured: &[(String, String)],
) -> Vec<(String, String)> {
    let reserved = |name: &str| ours.iter().any(|(n, _)| *n == name);
    let filled = ours.iter().filter(|(_, value)| !value.is_empty());
    let mut all: Vec<(String, String)> =
        filled.map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
    let from_pbx = all.len();
    for (name, value) in &added.0 {
        let known = configured.iter().chain(&all[from_pbx..]).any(|(n, _)| n == name);
        if !known && !reserved(name) {
            all.push((name.clone(), value.clone()));
        }
    }
    all.extend(configured.iter().filter(|(name, _)| !reserved(name)).cloned());
    all
}

/// Parameters that nothing can replace.
const OURS: [&str; 5] = ["from_number", "from_name", "to_number", "pbx", "sip_call_id"];

/// Adds further parameters, which replace those of the same names that are not ours.
pub fn add(all: &mut Vec<(String, String)>, more: Vec<(String, String)>) {
    for (name, value) in more.into_iter().filter(|(name, _)| !OURS.contains(&name.as_str())) {
        match all.iter_mut().find(|(known, _)| *known == name) {
            Some(known) => known.1 = value,
            None => all.push((name, value)),
        }
    }
}

/// Returns the common name of data from the PBX: without `X-`, in lower case, with underscores.
/// `PJSIP_HEADER(read,Diversion)` and `SIP_HEADER(Diversion)`, which read a header field of the
/// caller's INVITE, are named after the field.
pub fn common_name(given: &str) -> String {
    let field = ["PJSIP_HEADER(read,", "SIP_HEADER("].iter();
    let field = field.filter_map(|f| given.strip_prefix(f)?.split([',', ')']).next()).next();
    let plain = field.unwrap_or(given).trim();
    let is_x = plain.get(..2).is_some_and(|p| p.eq_ignore_ascii_case("X-"));
    let plain = if is_x { &plain[2..] } else { plain };
    let words = plain.split(|c: char| !c.is_alphanumeric()).filter(|word| !word.is_empty());
    clip(&words.map(str::to_lowercase).collect::<Vec<_>>().join("_"))
}

fn cut(value: &str) -> String {
    value.chars().take(MAX_VALUE).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_common_to_all_sources() {
        let table = [
            ("X-Lead-ID", "lead_id"),
            ("x-VICI-Call-ID", "vici_call_id"),
            ("X-AMD_Status", "amd_status"),
            ("lead_id", "lead_id"),
            ("CAMPCUST", "campcust"),
            ("CALLERID(pres)", "callerid_pres"),
            ("PJSIP_HEADER(read,History-Info)", "history_info"),
            ("PJSIP_HEADER(read,X-Lead-ID,1)", "lead_id"),
            ("SIP_HEADER(Diversion)", "diversion"),
            ("User-to-User", "user_to_user"),
            ("X--a..b-", "a_b"),
            ("X-Größe", "größe"),
            ("ÄÖ", "äö"),
            ("X-", ""),
            ("X", "x"),
            ("--", ""),
        ];
        for (given, name) in table {
            assert_eq!(common_name(given), name, "{given}");
        }
    }

    #[test]
    fn nothing_replaces_our_own_names_or_the_configured_ones() {
        let mut added = Added::default();
        for name in ["From-Number", "from_name", "X-From-Name", "X-PBX", "X-Campaign", "X-A-B"] {
            added.dialplan(name, "theirs");
        }
        added.dialplan("X-A_B", "second");
        added.dialplan("X-A-B", "third");
        added.dialplan("X-Empty", "");
        let ours = [("from_number", "1"), ("from_name", ""), ("pbx", "main")];
        let configured = [("campaign", "c"), ("pbx", "no")].map(|(n, v)| (n.into(), v.into()));
        let all = all(&ours, &added, &configured);
        let text: Vec<String> = all.iter().map(|(n, v)| format!("{n}:{v}")).collect();
        let expected = [
            "from_number:1",
            "pbx:main",
            "From-Number:theirs",
            "X-From-Name:theirs",
            "X-PBX:theirs",
            "X-Campaign:theirs",
            "a_b:theirs",
            "X-A-B:theirs",
            "X-A_B:second",
            "campaign:c",
        ];
        assert_eq!(text, expected);
    }

    #[test]
    fn further_parameters_replace_all_but_our_own() {
        let pairs = |all: &[(&str, &str)]| -> Vec<(String, String)> {
            all.iter().map(|(name, value)| ((*name).into(), (*value).into())).collect()
        };
        let mut all = pairs(&[("pbx", "main"), ("lang", "de")]);
        add(&mut all, pairs(&[("pbx", "x"), ("lang", "en"), ("name", "Eve")]));
        assert_eq!(all, pairs(&[("pbx", "main"), ("lang", "en"), ("name", "Eve")]));
    }

    #[test]
    fn lengths_are_bounded_in_characters() {
        let mut added = Added::default();
        let (name, value) = ("é".repeat(700), "ж".repeat(700));
        added.dialplan(&format!("X-{name}"), &value);
        added.detail("exten", &value);
        let lengths: Vec<(usize, usize)> =
            added.0.iter().map(|(n, v)| (n.chars().count(), v.chars().count())).collect();
        assert_eq!(lengths, [(256, 499), (256, 499), (5, 256)]);
    }
}
