//! The `[pbx.NAME.dial]` tables: who may be called, and the checks that serde cannot make.

use std::collections::BTreeMap;
use std::time::Duration;

use crate::call::placing::DialRules;
use crate::config::check::Findings;
use crate::config::resolve::Resolver;
use crate::config::schema::{Mode, PbxDial, Settings};

/// The longest `max_ring`: Twilio's limit.
const MAX_RING: Duration = Duration::from_secs(600);

impl Resolver<'_> {
    /// Returns the rules of the PBXs through which calls may be placed.
    pub(super) fn dials(
        &self,
        settings: &Settings,
        findings: &mut Findings,
    ) -> BTreeMap<String, DialRules> {
        let mut dials = BTreeMap::new();
        for (name, pbx) in &settings.pbx {
            let (name, dial) = (&name.0, &pbx.dial);
            self.check_dial(name, pbx.mode, dial, findings);
            let allow = dial.allow.clone().unwrap_or_default();
            if allow.is_empty() {
                continue;
            }
            let rules = DialRules {
                allow,
                from: dial.from.clone().unwrap_or_default(),
                caller_id: dial.caller_id.clone(),
                context: dial.context.clone(),
                per_second: dial.per_second,
                per_day: dial.per_day,
                max: dial.max,
                max_ring: dial.max_ring.0,
                callback_hosts: dial.callback_hosts.clone().unwrap_or_default(),
            };
            dials.insert(name.clone(), rules);
        }
        dials
    }

    fn check_dial(&self, name: &str, mode: Mode, dial: &PbxDial, findings: &mut Findings) {
        let key = |rest: &str| format!("pbx.{name}.dial.{rest}");
        let mut error = |rest: &str, why: &str| {
            findings.error(self.source.error(&key(rest), why.to_owned()));
        };
        let allow = dial.allow.as_deref().unwrap_or_default();
        match mode {
            Mode::Ari if !allow.is_empty() && dial.context.is_none() => error(
                "context",
                "is missing; set the context of the dialplan in which numbers are dialled",
            ),
            Mode::Sip if dial.context.is_some() => error(
                "context",
                "is for mode = \"ari\"; in SIP mode, the PBX dials in the context of its extension",
            ),
            _ => {}
        }
        let plain = |c: char| c.is_ascii_alphanumeric() || "_-.".contains(c);
        if dial.context.as_ref().is_some_and(|c| c.is_empty() || !c.chars().all(plain)) {
            error("context", "may have letters, digits and _-. only");
        }
        if dial.per_second == 0 {
            error("per_second", "is 0, so that no call would be placed; set 1 or more");
        }
        if dial.per_day == 0 {
            error("per_day", "is 0, so that no call would be placed; set 1 or more");
        }
        if dial.max == Some(0) {
            error("max", "is 0, so that no call would be placed; remove the key for no limit");
        }
        if dial.max_ring.0.is_zero() || dial.max_ring.0 > MAX_RING {
            error("max_ring", "must be from 1s to 10m");
        }
        let number = |c: char| c.is_ascii_alphanumeric() || "+*#_-.".contains(c);
        if dial.caller_id.as_ref().is_some_and(|id| id.is_empty() || !id.chars().all(number)) {
            error("caller_id", "may have digits, letters and +*#_-. only");
        }
        let host = |host: &String| !host.is_empty() && !host.contains(['/', '@', ' ']);
        if !dial.callback_hosts.iter().flatten().all(host) {
            error("callback_hosts", "are names such as app.example.com, without https://");
        }
        if allow.iter().any(|pattern| pattern.to_string() == "any") {
            let why = "is \"any\": whoever has a token with the scope dial can call every number \
                       that the PBX can, expensive ones too; list patterns such as \"_+4930.\"";
            findings.warnings.push(self.source.error(&key("allow"), why));
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use crate::config::{Source, load, resolve::resolve};

    fn plan(mode: &str, dial: &str) -> Result<usize, String> {
        let text = format!(
            "[ai]\nurl = \"ws://127.0.0.1:9/\"\n[pbx.main]\nmode = \"{mode}\"\n\
             [pbx.main.sip]\nregister = false\npeers = [\"10.0.0.1\"]\n\
             [pbx.main.ari]\nurl = \"http://127.0.0.1:8088\"\nusername = \"t\"\n\
             password = \"0123456789\"\napp = \"t\"\n[pbx.main.dial]\n{dial}\n"
        );
        let source = Source { name: "trunkless.toml".into(), text };
        let settings = load(&source, &HashMap::new()).map_err(|e| e.to_string())?;
        let plan = resolve(&source, settings, &HashMap::new()).map_err(|e| e.to_string())?;
        Ok(plan.dials.len())
    }

    #[test]
    fn nothing_is_dialled_unless_it_is_allowed() {
        assert_eq!(plan("sip", ""), Ok(0));
        assert_eq!(plan("sip", "caller_id = \"+4930\""), Ok(0));
        assert_eq!(plan("sip", "allow = \"_+4930., 1XX\""), Ok(1));
        assert_eq!(plan("ari", "allow = \"1XX\"\ncontext = \"out\""), Ok(1));
        for (mode, dial, why) in [
            ("ari", "allow = \"1XX\"", "dial.context: is missing"),
            ("ari", "allow = \"1XX\"\ncontext = \"a@b\"", "letters, digits"),
            ("sip", "context = \"out\"", "is for mode"),
            ("sip", "per_second = 0", "per_second"),
            ("sip", "per_day = 0", "per_day"),
            ("sip", "max = 0", "dial.max"),
            ("sip", "max_ring = \"11m\"", "10m"),
            ("sip", "caller_id = \"a@b\"", "caller_id"),
            ("sip", "callback_hosts = \"https://x\"", "without https"),
        ] {
            let error = plan(mode, dial).unwrap_err();
            assert!(error.contains(why), "{dial}: {error}");
        }
    }
}
