//! The Stasis applications that the dialplan of an Asterisk on this host calls. Owns the reading of
//! files.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use crate::ari::client::rtp_conf;
use crate::doctor::finding::Finding;

/// Default path of the file with Asterisk's RTP range, beside which the dialplan is.
const RTP_CONF: &str = "/etc/asterisk/rtp.conf";
const FILE: &str = "extensions.conf";

/// Compares the applications in the dialplan with the configured one.
pub fn check(step: &str, app: &str, rtp_conf: Option<&Path>) -> Finding {
    let beside = rtp_conf.unwrap_or(Path::new(RTP_CONF));
    let file: PathBuf = beside.parent().unwrap_or(Path::new("/")).join(FILE);
    match rtp_conf::read(&file) {
        Ok(text) => judge(step, app, &file.display().to_string(), &applications(&text)),
        Err(why) => Finding::skipped(
            step,
            format!("the dialplan cannot be read here ({why}); its Stasis() has to name {app}"),
        ),
    }
}

/// The names in `Stasis(name,…)`.
fn applications(text: &str) -> BTreeSet<String> {
    let lower = text.to_ascii_lowercase();
    let calls = lower.match_indices("stasis(").filter(|(at, _)| {
        let before = lower[..*at].chars().next_back();
        !before.is_some_and(|c| c.is_alphanumeric() || c == '_')
    });
    let names = calls.filter_map(|(at, word)| {
        let rest = &text[at + word.len()..];
        let end = rest.find([',', ')', '\n'])?;
        Some(rest[..end].trim().trim_matches('"').to_owned())
    });
    names.filter(|name| !name.is_empty()).collect()
}

fn judge(step: &str, app: &str, file: &str, found: &BTreeSet<String>) -> Finding {
    if found.contains(app) {
        return Finding::ok(step, format!("{file} calls Stasis({app}), if it has been loaded"));
    }
    let listed = found.iter().map(|name| format!("Stasis({name})")).collect::<Vec<_>>().join(", ");
    if found.iter().any(|name| name.contains("${")) {
        return Finding::skipped(
            step,
            format!("{file} calls {listed}, which depends on variables"),
        );
    }
    if found.is_empty() {
        return Finding::warning(
            step,
            format!("{file} calls no Stasis application: no call reaches trunkless"),
            format!("add Stasis({app}) to the dialplan, as in the files of dialplan/"),
        );
    }
    Finding::fault(
        step,
        format!("application mismatch: {file} calls {listed}, but [pbx.NAME.ari] app is \"{app}\""),
        format!("set app to that name, or write Stasis({app}) in the dialplan and reload it"),
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::doctor::finding::State;

    #[test]
    fn applications_are_found_in_the_dialplan() {
        let text = "[ai]\nexten => 1,1,Stasis(trunkless,a,${B})\n same => n,stasis( \"other\" )\n\
                    same => n,NoStasis(x)\nsame => n,Stasis()\nsame => n,Stasis(cut";
        let found: Vec<String> = applications(text).into_iter().collect();
        assert_eq!(found, ["other", "trunkless"]);
    }

    #[test]
    fn another_application_is_a_mismatch() {
        let judge = |names: &[&str]| {
            judge("d", "trunkless", "f", &names.iter().map(|n| (*n).to_owned()).collect())
        };
        assert_eq!(judge(&["x", "trunkless"]).state, State::Ok);
        assert!(judge(&["aibridge"]).what.contains("application mismatch"));
        assert_eq!(judge(&[]).state, State::Warning);
        assert_eq!(judge(&["${APP}"]).state, State::Skipped);
    }
}
