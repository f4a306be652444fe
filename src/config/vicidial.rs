//! The `[pbx.NAME.vicidial]` table: its keys become the settings of a VICIdial.

use std::collections::BTreeMap;
use std::time::Duration;

use reqwest::Url;
use rustls::ClientConfig;
use secrecy::{ExposeSecret, SecretString};

use crate::config::check::Findings;
use crate::config::resolve::Resolver;
use crate::config::schema::{Mode, Pbx, PbxSip, PbxVicidial, Settings};
use crate::sip::agent::AiDown;
use crate::tls::{self, TlsError};
use crate::vicidial::VicidialSettings;
use crate::vicidial::api::{ApiSettings, MAX_STATUS};
use crate::vicidial::desk::DeskSettings;
use crate::vicidial::lead::{READABLE, is_custom};
use crate::vicidial::repair::is_undecided;
use crate::vicidial::statuses::Statuses;

/// The stream may wait for the lead's data for at most this long.
const MAX_WAIT: Duration = Duration::from_millis(300);
/// Leaves VICIdial enough of the time for which the phone rings.
const MAX_ANSWER_WAIT: Duration = Duration::from_secs(5);
/// VICIdial logs remote agents out about 40 s after they became inactive, of which 5 s have passed.
const MAX_DRAIN: Duration = Duration::from_secs(35);

impl Resolver<'_> {
    pub(super) fn vicidials(
        &self,
        settings: &Settings,
        findings: &mut Findings,
    ) -> BTreeMap<String, VicidialSettings> {
        let all = settings.pbx.iter();
        let known = all.filter_map(|(name, pbx)| {
            Some((name.0.clone(), self.vicidial(&name.0, pbx, settings, findings)?))
        });
        known.collect()
    }

    fn vicidial(
        &self,
        name: &str,
        pbx: &Pbx,
        settings: &Settings,
        findings: &mut Findings,
    ) -> Option<VicidialSettings> {
        let key = |rest: &str| format!("pbx.{name}.vicidial.{rest}");
        let Some(keys) = &pbx.vicidial else {
            let targets = pbx.transfer.targets.iter().find(|(_, to)| to.0.in_group);
            if let Some((target, _)) = targets {
                let why = format!("is an in-group, which needs a table [pbx.{name}.vicidial]");
                let key = format!("pbx.{name}.transfer.targets.{target}");
                findings.error(self.source.error(&key, why));
            }
            return None;
        };
        let missing =
            |rest: &str, why: &str| self.source.error(&key(rest), format!("is missing; {why}"));
        let url = keys.url.as_ref().ok_or_else(|| {
            missing("url", "set the address of VICIdial's web server, such as \"http://192.0.2.1\"")
        });
        let user = keys.user.as_ref();
        let user = user.ok_or_else(|| missing("user", "set the API user"));
        let (url, user) = (findings.keep(url), findings.keep(user));
        let forms = [
            &keys.password.as_ref().map(|p| p.expose_secret().to_owned()),
            &keys.password_env,
            &keys.password_file,
        ];
        let password = self.password(name, "vicidial", forms, findings);
        let wait_for_lead = keys.wait_for_lead.0;
        if wait_for_lead > MAX_WAIT {
            findings.error(self.source.error(&key("wait_for_lead"), "must be at most 300ms"));
        }
        let kept = |c: char| c.is_ascii_alphanumeric() || "-.+/=_".contains(c);
        let stripped = |password: &SecretString| !password.expose_secret().chars().all(kept);
        if password.as_ref().is_some_and(stripped) {
            let why = "has characters that VICIdial removes from it; use letters, digits, - and _";
            findings.error(self.source.error(&key("password"), why));
        }
        self.vicidial_words(keys, &key, findings);
        self.vicidial_conflicts(name, pbx, settings, findings);
        let statuses = self.statuses(keys, &key("statuses"), findings);
        let (url, user, password) = (url?, user?, password?);
        let tls = self.vicidial_tls(url, keys, &key, findings)?;
        let (url, user) = (url.trim_end_matches('/').to_owned(), user.clone());
        let fields = keys.fields.iter().map(|(field, name)| (field.clone(), name.clone()));
        Some(VicidialSettings {
            api: ApiSettings { pbx: name.to_owned(), url, user, password, tls },
            remote_agent: keys.remote_agent.clone(),
            directory: keys.directory.clone().into(),
            ari: pbx.mode == Mode::Ari,
            desk: DeskSettings {
                wait_for_lead,
                fields: fields.collect(),
                custom_fields: keys.custom_fields.clone(),
                in_group: keys.in_group.clone(),
                statuses,
            },
        })
    }

    /// Returns the TLS settings for a URL; `Some(None)` for one without TLS.
    fn vicidial_tls(
        &self,
        url: &str,
        keys: &PbxVicidial,
        key: &dyn Fn(&str) -> String,
        findings: &mut Findings,
    ) -> Option<Option<ClientConfig>> {
        let plain =
            |url: &Url| url.has_host() && url.username().is_empty() && url.query().is_none();
        let parsed = Url::parse(url).ok().filter(plain);
        let parsed = parsed.filter(|url| !url.path().ends_with(".php"));
        match parsed.as_ref().map(Url::scheme) {
            Some("http") => Some(None),
            Some("https") => {
                let tls = tls::client_config(keys.ca_file.as_deref());
                let failed = |why: TlsError| self.source.error(&key("ca_file"), why.to_string());
                findings.keep(tls.map_err(failed)).map(Some)
            }
            _ => {
                let why = "is not the URL of a web server, such as \"http://192.0.2.1\"";
                findings.error(self.source.error(&key("url"), why));
                None
            }
        }
    }

    /// Checks other tables of the PBX that do not fit a VICIdial.
    fn vicidial_conflicts(
        &self,
        name: &str,
        pbx: &Pbx,
        settings: &Settings,
        findings: &mut Findings,
    ) {
        for (target, to) in &pbx.transfer.targets {
            if to.0.context.is_some() {
                let why = "has a context, which VICIdial cannot be given: it dials the extension \
                           in its own; write the extension, or ingroup:NAME";
                let key = format!("pbx.{name}.transfer.targets.{target}");
                findings.error(self.source.error(&key, why));
            }
        }
        let unregisters = |sip: &PbxSip| sip.when_ai_is_down == AiDown::Unregister;
        if pbx.sip.as_ref().is_some_and(unregisters) {
            let why = "is \"unregister\": VICIdial would send customers to the voicemail of the \
                       phone; remove the key";
            let key = format!("pbx.{name}.sip.when_ai_is_down");
            findings.error(self.source.error(&key, why));
        }
        if settings.calls.answer_wait.0 > MAX_ANSWER_WAIT {
            let why = "is longer than 5s: VICIdial may need 13 s more to take a customer away, and \
                       the phone rings for 25 s";
            findings.warnings.push(self.source.error("calls.answer_wait", why));
        }
        let remote = pbx.vicidial.as_ref().is_some_and(|keys| keys.remote_agent.is_some());
        if remote && settings.calls.drain.0 > MAX_DRAIN {
            let why = "is longer than 35s: after that VICIdial has logged the remote agents out, \
                       and calls that are still up end with a BYE, or under another agent's name";
            findings.warnings.push(self.source.error("calls.drain", why));
        }
    }

    /// Checks the names that VICIdial gets.
    fn vicidial_words(
        &self,
        keys: &PbxVicidial,
        key: &dyn Fn(&str) -> String,
        findings: &mut Findings,
    ) {
        let word = |text: &str| {
            !text.is_empty() && text.chars().all(|c| c.is_ascii_alphanumeric() || "_-".contains(c))
        };
        for (rest, name) in [("in_group", &keys.in_group), ("user", &keys.user)] {
            if name.as_deref().is_some_and(|name| !word(name) || name.len() < 2) {
                let why = "has to be a name of VICIdial's: at least two letters, digits, _ and -";
                findings.error(self.source.error(&key(rest), why));
            }
        }
        if let Some((field, _)) = keys.fields.iter().find(|(_, name)| name.trim().is_empty()) {
            let why = "is empty; give the name of the parameter";
            findings.error(self.source.error(&key(&format!("fields.{field}")), why));
        }
        let digits = |text: &str| !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
        if keys.remote_agent.as_deref().is_some_and(|first| !digits(first)) {
            let why = "has to be the User Start of the remote agent, a number such as \"7001\"";
            findings.error(self.source.error(&key("remote_agent"), why));
        }
        for name in keys.custom_fields.iter().filter(|name| !is_custom(name)) {
            let why = format!("\"{name}\" is not the name of a custom field");
            findings.error(self.source.error(&key("custom_fields"), why));
        }
        for name in keys.fields.keys().filter(|name| !READABLE.contains(&name.as_str())) {
            let why = format!("has no field of the lead; the fields are {}", READABLE.join(", "));
            findings.error(self.source.error(&key(&format!("fields.{name}")), why));
        }
    }

    fn statuses(&self, keys: &PbxVicidial, key: &str, findings: &mut Findings) -> Statuses {
        let mut statuses = Statuses::default();
        let places = [
            ("hangup", &mut statuses.hangup),
            ("caller_left", &mut statuses.caller_left),
            ("no_speech", &mut statuses.no_speech),
            ("machine", &mut statuses.machine),
            ("ai_error", &mut statuses.ai_error),
            ("overload", &mut statuses.overload),
            ("transfer", &mut statuses.transfer),
        ];
        let mut known = Vec::new();
        for (name, place) in places {
            known.push(name);
            let Some(status) = keys.statuses.get(name) else { continue };
            let plain = status.bytes().all(|b| b.is_ascii_alphanumeric() || b"_-".contains(&b));
            if is_undecided(status) && !status.is_empty() {
                let why =
                    format!("\"{status}\" is what VICIdial gives abandoned calls; set another");
                findings.error(self.source.error(&format!("{key}.{name}"), why));
            }
            if status.is_empty() || status.len() > MAX_STATUS || !plain {
                let why =
                    format!("\"{status}\" is not a status of 1 to {MAX_STATUS} letters and digits");
                findings.error(self.source.error(&format!("{key}.{name}"), why));
            }
            place.clone_from(status);
        }
        for name in keys.statuses.keys().filter(|name| !known.contains(&name.as_str())) {
            let why = format!("is unknown; the names are {}", known.join(", "));
            findings.error(self.source.error(&format!("{key}.{name}"), why));
        }
        statuses
    }
}
