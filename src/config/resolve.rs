//! From the keys to the settings of each part: fetches secrets, applies defaults and overrides, and
//! refuses contradictions. Owns the reading of secrets and announcements from files.

use std::collections::{BTreeMap, HashMap};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use secrecy::{ExposeSecret, SecretString};

use crate::ari::client::{AriPbx, rtp_conf};
use crate::ari::rtp_range::RtpRange;
use crate::call::departure::Departure;
use crate::call::transfers::TransferRules;
use crate::call::variables::VariableRules;
use crate::call::{AnswerWhen, Prompts};
use crate::config::check::{self, Findings};
use crate::config::plan::{AiPlan, Plan, SipPbx};
use crate::config::schema::{
    Ai, Answer, Mode, OnAiClose, PbxSip, PbxTransfer, Settings, TransportWord,
};
use crate::config::twins::twins;
use crate::config::values::{HostPort, PeerWord};
use crate::config::{ConfigError, ENV_PREFIX, Source, keys, ladder};
use crate::faults::{PLACEHOLDER, RTP_RANGES_OVERLAP};
use crate::record::wav;
use crate::sip::agent::AccountConfig;
use crate::sip::flow::Transport;
use crate::sip::network::Network;
use crate::sip::registration;

/// Asterisk's settings of RTP, unless `rtp_conf` names another file.
const RTP_CONF: &str = "/etc/asterisk/rtp.conf";
/// The longest prebuffer. Callers who hear nothing for longer hang up.
const MAX_PREBUFFER: Duration = Duration::from_secs(2);

/// Reads the secrets and files that the settings name, and makes the checks that serde cannot.
///
/// # Errors
/// Returns [`ConfigError`] with the key that is wrong or missing.
pub fn resolve(
    source: &Source,
    settings: Settings,
    environment: &HashMap<String, String>,
) -> Result<Plan, ConfigError> {
    let mut findings = Findings::default();
    match (resolve_all(source, settings, environment, &mut findings), findings.errors.pop()) {
        (Some(plan), None) => Ok(plan),
        (_, last) => {
            let first = findings.errors.into_iter().next();
            Err(first.or(last).unwrap_or_else(|| source.error("", "cannot be used")))
        }
    }
}

/// Same as [`resolve`], but reports everything that is wrong. There is no plan if a part of it is
/// missing.
pub(super) fn resolve_all(
    source: &Source,
    settings: Settings,
    environment: &HashMap<String, String>,
    findings: &mut Findings,
) -> Option<Plan> {
    let before = (findings.errors.len(), findings.warnings.len());
    let plan = build(source, settings, environment, findings);
    let errors = findings.errors[before.0..].iter_mut();
    errors.chain(&mut findings.warnings[before.1..]).for_each(|found| {
        // if the value comes from a variable, name that instead of a line in the file
        let name = format!("{ENV_PREFIX}_{}", found.key.to_uppercase().replace('.', "__"));
        if environment.contains_key(&name) {
            "the environment".clone_into(&mut found.place);
            found.key = name;
        }
    });
    plan
}

fn build(
    source: &Source,
    settings: Settings,
    environment: &HashMap<String, String>,
    findings: &mut Findings,
) -> Option<Plan> {
    basics(source, &settings, findings);
    let resolver = Resolver { source, environment };
    let (mut sip, mut ari, mut record) = (Vec::new(), Vec::new(), BTreeMap::new());
    let (transfers, variables) = rules(&settings);
    let vicidials = resolver.vicidials(&settings, findings);
    let dials = resolver.dials(&settings, findings);
    for (name, pbx) in &settings.pbx {
        let ai = findings.keep(resolver.ai(&name.0, &settings.ai, &pbx.ai));
        let plan = resolver.record_plan(&name.0, &settings.recording, &pbx.recording);
        if let Some(plan) = findings.keep(plan).flatten() {
            record.insert(name.0.clone(), plan);
        }
        match pbx.mode {
            Mode::Sip => {
                let account = resolver.sip(&name.0, pbx.sip.as_ref(), findings);
                let port_probe = pbx.sip.as_ref().and_then(|sip| sip.port_probe).unwrap_or(true);
                if let (Some(ai), Some((account, hosts))) = (ai, account) {
                    sip.push(SipPbx { account, hosts, port_probe, ai });
                }
            }
            Mode::Ari => {
                resolver.sip_headers_in_ari(&name.0, &settings.ai, &pbx.ai, findings);
                let pbx = resolver.ari(&name.0, pbx.ari.as_ref(), findings);
                ari.extend(pbx.zip(ai));
            }
        }
    }
    no_twins(source, &sip, &ari, findings);
    let prompts = resolver.prompts(&settings, findings);
    let ladders = resolver.ladders(&settings, &prompts, &transfers, findings);
    let mut endpoints = Vec::new();
    for (name, ai) in &settings.endpoint {
        let plan = resolver.ai(&name.0, &Ai::default(), ai);
        endpoints.extend(findings.keep(plan).map(|plan| (name.0.clone(), plan)));
    }
    let routes = resolver.routes(&settings, &prompts, &transfers, findings);
    let (notices, tokens) =
        (resolver.notices(&settings, findings), resolver.tokens(&settings, findings));
    let traces = resolver.traces(&settings, findings);
    let recording = findings.keep(resolver.recording(&settings));
    check::settings(source, &settings, findings);
    let rtp_confs = ari.iter().map(|(pbx, _)| pbx.rtp_conf.clone()).collect();
    asterisk_ports(source, &settings, rtp_confs, findings);
    Some(Plan {
        keys: keys::read(source, environment),
        settings,
        sip,
        ari,
        ladders,
        notices,
        traces,
        endpoints,
        prompts,
        routes,
        tokens,
        transfers,
        dials,
        variables,
        vicidials,
        recording: recording?,
        record,
    })
}

/// Checks values that everything else depends on.
fn basics(source: &Source, settings: &Settings, findings: &mut Findings) {
    findings.keep(level(source, &settings.log.level));
    if settings.pbx.is_empty() {
        let example = "add a table such as [pbx.main] with mode = \"sip\" or \"ari\"";
        findings.error(source.error("pbx", format!("no PBX is configured; {example}")));
    }
    if settings.calls.max == 0 {
        findings.error(source.error("calls.max", "must be at least 1"));
    }
    if settings.media.playout_prebuffer.0 > MAX_PREBUFFER {
        findings.error(source.error("media.playout_prebuffer", "must be at most 2s"));
    }
    if let Some((key, why)) = settings.speech.check() {
        findings.error(source.error(key, why));
    }
    if let Some((key, why)) = settings.speech.is_unheard(&settings.ai) {
        findings.warnings.push(source.error(key, why));
    }
}

/// Returns what orders may do with the calls of each PBX.
fn rules(
    settings: &Settings,
) -> (BTreeMap<String, TransferRules>, BTreeMap<String, VariableRules>) {
    let all = settings.pbx.iter();
    let rules = all.map(|(name, pbx)| {
        let names = pbx.ari.as_ref().and_then(|ari| ari.set_variables.clone());
        let variables = VariableRules(names.unwrap_or_default());
        ((name.0.clone(), transfer_rules(&pbx.transfer)), (name.0.clone(), variables))
    });
    rules.unzip()
}

fn transfer_rules(keys: &PbxTransfer) -> TransferRules {
    let targets = keys.targets.iter().map(|(name, to)| (name.clone(), to.0.clone()));
    TransferRules {
        targets: targets.collect(),
        extensions: keys.extensions.clone().unwrap_or_default(),
        context: keys.context.clone(),
    }
}

/// Returns the account of a trunk, without its ranges of addresses.
fn trunk(name: &str, sip: &PbxSip, transport: Transport) -> AccountConfig {
    AccountConfig {
        name: name.to_owned(),
        users: sip.users.clone().unwrap_or_default(),
        ranges: Vec::new(),
        username: sip.username.clone().unwrap_or_else(|| "trunkless".to_owned()),
        registration: None,
        keepalive: sip.keepalive.map_or(Duration::from_secs(30), |s| s.0),
        transport,
        advertised: sip.advertised,
        media_peers: sip.media_peers.clone().unwrap_or_default(),
        ai_down: sip.when_ai_is_down,
    }
}

/// Checks that each call can be assigned to one PBX.
fn no_twins(source: &Source, sip: &[SipPbx], ari: &[(AriPbx, AiPlan)], findings: &mut Findings) {
    if let Some((first, name, address)) = twins(sip) {
        let message = format!(
            "[pbx.{first}.sip] has the same address {address} and takes calls to the same users, \
             so calls could not be assigned; give one of them other users, or an address or port \
             of its own"
        );
        findings.error(source.error(&format!("pbx.{name}.sip"), message));
    }
    if let Some(name) = twice(ari) {
        let message = "another PBX has the same url and app; give each PBX its own app";
        findings.error(source.error(&format!("pbx.{name}.ari"), message));
    }
}

/// Checks the filter of the log.
fn level(source: &Source, level: &str) -> Result<(), ConfigError> {
    // tracing takes an unknown word for a target, and would then log nothing at all
    if !level.contains('=') && !LEVELS.contains(&level) {
        let message = format!("\"{level}\" is not one of: {}", LEVELS.join(", "));
        return Err(source.error("log.level", message));
    }
    let filter = tracing_subscriber::EnvFilter::try_new(level);
    filter.map(drop).map_err(|why| source.error("log.level", format!("\"{level}\": {why}")))
}

/// Warns if our RTP ports are among those of an Asterisk on this host.
fn asterisk_ports(
    source: &Source,
    settings: &Settings,
    mut files: Vec<Option<PathBuf>>,
    findings: &mut Findings,
) {
    if files.is_empty() {
        files.push(None); // in SIP mode, Asterisk may be on this host as well
    }
    let ours = settings.media.ports;
    for file in files {
        let file = file.unwrap_or_else(|| RTP_CONF.into());
        let range = rtp_conf::read(&file).ok().and_then(|text| RtpRange::parse(&text));
        let overlaps = |range: &RtpRange| ours.first <= range.last && range.first <= ours.last;
        if let Some(RtpRange { first, last }) = range.filter(overlaps) {
            let file = file.display();
            let why = format!("{RTP_RANGES_OVERLAP} {first}-{last} ({file}); move one");
            findings.warnings.push(source.error("media.ports", why));
            return;
        }
    }
}

/// Returns a PBX with the same application as an earlier one, if there is any. The two would keep
/// taking the application from each other.
fn twice(ari: &[(AriPbx, AiPlan)]) -> Option<&str> {
    let same = |a: &AriPbx, b: &AriPbx| a.target.base == b.target.base && a.app == b.app;
    let later = ari.iter().enumerate();
    let mut found = later.filter(|(n, (pbx, _))| ari[..*n].iter().any(|(b, _)| same(pbx, b)));
    found.next().map(|(_, (pbx, _))| pbx.name.as_str())
}

impl Answer {
    pub fn when(self) -> AnswerWhen {
        match self {
            Answer::WhenAiReady => AnswerWhen::AiReady,
            Answer::AtOnce => AnswerWhen::AtOnce,
        }
    }
}

impl OnAiClose {
    /// The way out, if the AI is not dialled again.
    pub fn departure(self) -> Departure {
        match self {
            OnAiClose::Hangup | OnAiClose::Reconnect => Departure::HangUp,
            OnAiClose::Continue => Departure::Continue,
        }
    }
}

const LEVELS: [&str; 6] = ["off", "error", "warn", "info", "debug", "trace"];

/// The hosts and the networks in `peers`.
fn hosts_and_ranges(sip: &PbxSip) -> (Vec<HostPort>, Vec<Network>) {
    let (mut hosts, mut ranges) = (Vec::new(), Vec::new());
    for peer in sip.peers.iter().flatten() {
        match peer {
            PeerWord::Host(host) => hosts.push(host.clone()),
            PeerWord::Range(range) => ranges.push(*range),
        }
    }
    (hosts, ranges)
}

pub(super) struct Resolver<'a> {
    pub(super) source: &'a Source,
    pub(super) environment: &'a HashMap<String, String>,
}

impl Resolver<'_> {
    /// The account of a PBX in SIP mode, and the PBX's hosts.
    fn sip(
        &self,
        name: &str,
        sip: Option<&PbxSip>,
        findings: &mut Findings,
    ) -> Option<(AccountConfig, Vec<HostPort>)> {
        let Some(sip) = sip else {
            let message = format!("mode = \"sip\" needs a table [pbx.{name}.sip]");
            findings.error(self.source.error(&format!("pbx.{name}.sip"), message));
            return None;
        };
        let key = |rest: &str| format!("pbx.{name}.sip.{rest}");
        let missing =
            |rest: &str, why: &str| self.source.error(&key(rest), format!("is missing; {why}"));
        let tcp = sip.transport == Some(TransportWord::Tcp);
        let transport = if tcp { Transport::Tcp } else { Transport::Udp };
        let (peers, ranges) = hosts_and_ranges(sip);
        let base = AccountConfig { ranges, ..trunk(name, sip, transport) };
        if sip.register == Some(false) {
            if peers.is_empty() && base.ranges.is_empty() {
                let why = "with register = false, list the PBX's addresses here";
                findings.error(missing("peers", why));
                return None;
            }
            return Some((base, peers));
        }
        let registrar = sip.registrar.as_ref().ok_or_else(|| {
            missing("registrar", "set the PBX's address, such as \"192.0.2.1:5060\"")
        });
        let username = sip.username.as_ref();
        let username =
            username.ok_or_else(|| missing("username", "set the extension to register as"));
        let (registrar, username) = (findings.keep(registrar), findings.keep(username));
        let password = self.password(
            name,
            "sip",
            [
                &sip.password.as_ref().map(|p| p.expose_secret().to_owned()),
                &sip.password_env,
                &sip.password_file,
            ],
            findings,
        );
        let expires = sip.expires.map_or(Duration::from_secs(120), |s| s.0);
        if expires.as_secs() < 10 {
            findings.error(self.source.error(&key("expires"), "must be at least 10s"));
        }
        let (registrar, username, password) = (registrar?, username?, password?);
        let parameter = if transport == Transport::Tcp { ";transport=tcp" } else { "" };
        let registration = registration::Settings {
            registrar_uri: format!("sip:{registrar}{parameter}"),
            auth_username: sip.auth_username.clone().unwrap_or_else(|| username.clone()),
            password,
            realm: sip.realm.clone(),
            expires_s: expires.as_secs() as u32,
            keepalive: sip.keepalive.map_or(Duration::from_secs(2), |s| s.0),
        };
        let hosts = [vec![registrar.clone()], peers].concat();
        Some((AccountConfig { registration: Some(registration), ..base }, hosts))
    }

    /// The password of a PBX.
    pub(super) fn password(
        &self,
        name: &str,
        mode: &str,
        forms: [&Option<String>; 3],
        findings: &mut Findings,
    ) -> Option<SecretString> {
        let key = format!("pbx.{name}.{mode}.password");
        let Some(password) = findings.keep(self.secret(&key, forms))? else {
            let variable = format!("{ENV_PREFIX}_{}", key.to_uppercase().replace('.', "__"));
            let why = format!("is missing; set {variable}, password_env or password_file");
            findings.error(self.source.error(&key, why));
            return None;
        };
        if password.expose_secret().is_empty() {
            let why = "is empty; set the password of the extension, or of the user in ari.conf";
            findings.error(self.source.error(&key, why));
        }
        if check::is_placeholder(password.expose_secret()) {
            findings.warnings.push(self.source.error(&key, PLACEHOLDER));
        }
        Some(password)
    }

    /// Fetches a secret from at most one of: the value itself, an environment variable, a file.
    pub(super) fn secret(
        &self,
        key: &str,
        [value, variable, file]: [&Option<String>; 3],
    ) -> Result<Option<SecretString>, ConfigError> {
        if [value, variable, file].iter().filter(|o| o.is_some()).count() > 1 {
            let name = key.rsplit('.').next().unwrap_or(key);
            let message = format!("set only one of {name}, {name}_env and {name}_file");
            return Err(self.source.error(key, message));
        }
        if let Some(variable) = variable {
            return match self.environment.get(variable) {
                Some(value) => Ok(Some(value.as_str().into())),
                None => {
                    let message = format!("the environment variable {variable} is not set");
                    Err(self.source.error(&format!("{key}_env"), message))
                }
            };
        }
        if let Some(file) = file {
            let text = std::fs::read_to_string(file).map_err(|why| {
                self.source.error(&format!("{key}_file"), format!("{file} cannot be read: {why}"))
            })?;
            return Ok(Some(text.trim_end_matches(['\r', '\n']).into()));
        }
        Ok(value.as_deref().map(Into::into))
    }

    /// Reads the prompts.
    fn prompts(&self, settings: &Settings, findings: &mut Findings) -> Prompts {
        let read = settings.prompts.iter().filter_map(|(name, path)| {
            let audio = self.audio(&format!("prompts.{name}"), path);
            Some((name.clone(), findings.keep(audio)?))
        });
        let sorry = (ladder::SORRY.to_owned(), Bytes::from_static(ladder::SORRY_AUDIO));
        Arc::new([sorry].into_iter().chain(read).collect())
    }

    /// Reads the first channel of a WAV file, as mu-law.
    pub(super) fn audio(&self, key: &str, path: &str) -> Result<Bytes, ConfigError> {
        let error = |why: String| self.source.error(key, format!("{path}: {why}"));
        let file = std::fs::read(path).map_err(|e| error(e.to_string()))?;
        let channels = wav::read(&file).map_err(|e| error(e.to_string()))?;
        let first = channels.into_iter().next().filter(|c| !c.is_empty());
        Ok(Bytes::from(first.ok_or_else(|| error("the file contains no audio".to_owned()))?))
    }
}
