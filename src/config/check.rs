//! Values that are valid by themselves, and cannot work: alone, or together with others. Each
//! finding names a key, and what to set instead.
#![deny(clippy::disallowed_methods, clippy::disallowed_types)]

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use crate::config::schema::{Ai, Mode, PbxAri, PbxSip, Settings};
use crate::config::values::{HostPort, PeerWord, PortRange, Span};
use crate::config::{ConfigError, Source};
use crate::sip::agent::AiDown;
use crate::sip::uri::Host;

/// For a limit of zero.
pub(super) const NO_CALLS: &str =
    "is 0, so that no call would be taken; remove the key for no limit";
/// The most calls that one address has RTP ports for.
const MAX_CALLS: usize = 32_000;
const MAX_PLAYOUT_MINUTES: u32 = 1440;
const MAX_BUDGET_MB: usize = 1 << 20;
const MIN_ANSWER_WAIT: Duration = Duration::from_millis(100);
const MIN_KEEP: Duration = Duration::from_secs(3600);
const SIP_PORT: u16 = 5060;

/// The mistakes and doubtful values of a configuration.
#[derive(Debug, Default)]
pub struct Findings {
    /// trunkless does not start.
    pub errors: Vec<ConfigError>,
    /// trunkless starts, but something will not work as it should.
    pub warnings: Vec<ConfigError>,
}

impl Findings {
    /// Adds an error, unless there is one about the same key.
    pub fn error(&mut self, error: ConfigError) {
        if self.errors.iter().all(|known| known.key != error.key) {
            self.errors.push(error);
        }
    }

    /// Returns the value, or adds the error.
    pub fn keep<T>(&mut self, result: Result<T, ConfigError>) -> Option<T> {
        result.map_err(|error| self.error(error)).ok()
    }
}

/// Checks the values of all keys.
pub(super) fn settings(source: &Source, settings: &Settings, findings: &mut Findings) {
    let mut check = Check { source, findings };
    check.calls(settings);
    check.media(settings);
    check.recording(settings);
    check.addresses(settings);
    check.ai("ai", &settings.ai);
    for (name, pbx) in &settings.pbx {
        let name = &name.0;
        check.ai(&format!("pbx.{name}.ai"), &pbx.ai);
        match (pbx.mode, &pbx.sip, &pbx.ari) {
            (Mode::Sip, Some(sip), _) => check.sip(&format!("pbx.{name}.sip"), sip, settings),
            (Mode::Ari, _, Some(ari)) => check.ari(&format!("pbx.{name}.ari"), ari, settings),
            _ => {}
        }
    }
    check.accounts(settings);
}

/// True for the placeholder of the samples.
pub(super) fn is_placeholder(secret: &str) -> bool {
    let plain: String = secret.chars().filter(char::is_ascii_alphanumeric).collect();
    plain.eq_ignore_ascii_case("changeme")
}

struct Check<'a> {
    source: &'a Source,
    findings: &'a mut Findings,
}

impl Check<'_> {
    fn error(&mut self, key: &str, message: impl Into<String>) {
        self.findings.error(self.source.error(key, message));
    }

    fn warn(&mut self, key: &str, message: impl Into<String>) {
        self.findings.warnings.push(self.source.error(key, message));
    }

    /// A duration that is zero for "never" works, but one close to it does not.
    fn not_tiny(&mut self, key: &str, value: Option<Span>, least: Duration, effect: &str) {
        if let Some(Span(value)) = value.filter(|v| !v.0.is_zero() && v.0 < least) {
            self.warn(key, format!("{value:?} is very short: {effect}; set at least {least:?}"));
        }
    }

    fn not_empty(&mut self, table: &str, values: &[(&str, &Option<String>)]) {
        for (key, value) in values {
            if value.as_ref().is_some_and(|value| value.trim().is_empty()) {
                self.error(&format!("{table}.{key}"), "is empty; set a value, or remove the key");
            }
        }
    }

    fn calls(&mut self, settings: &Settings) {
        let calls = &settings.calls;
        if calls.max > MAX_CALLS {
            self.error("calls.max", format!("must be at most {MAX_CALLS}"));
        }
        if calls.per_second == Some(0) {
            self.error("calls.per_second", NO_CALLS);
        }
        for (name, pbx) in &settings.pbx {
            for (key, is_zero) in
                [("max", pbx.calls.max == Some(0)), ("per_second", pbx.calls.per_second == Some(0))]
            {
                if is_zero {
                    self.error(&format!("pbx.{}.calls.{key}", name.0), NO_CALLS);
                }
            }
        }
        if calls.answer_wait.0 < MIN_ANSWER_WAIT {
            let why = "no AI answers that fast, so that every call would be refused";
            self.error("calls.answer_wait", format!("must be at least 100ms: {why}"));
        }
        if !(1..=MAX_PLAYOUT_MINUTES).contains(&calls.playout_minutes) {
            let range = format!("must be from 1 to {MAX_PLAYOUT_MINUTES}");
            self.error("calls.playout_minutes", range);
        }
        if !(1..=MAX_BUDGET_MB).contains(&calls.playout_budget_mb) {
            self.error("calls.playout_budget_mb", format!("must be from 1 to {MAX_BUDGET_MB}"));
        }
        self.not_empty("calls", &[("prompt", &calls.prompt)]);
        let second = Duration::from_secs(1);
        let ends = "calls end at once";
        self.not_tiny("calls.max_duration", Some(calls.max_duration), 10 * second, ends);
        let pauses = "a pause in the PBX's audio ends the call";
        self.not_tiny("calls.media_timeout", Some(calls.media_timeout), 2 * second, pauses);
    }

    fn media(&mut self, settings: &Settings) {
        let media = &settings.media;
        if media.reorder_wait.0 > Duration::from_millis(500) {
            let why = "every lost packet would delay the audio by that much";
            self.error("media.reorder_wait", format!("must be at most 500ms: {why}"));
        }
        let (pairs, max) = (pairs(media.ports), settings.calls.max);
        if pairs < max {
            let cure = "widen the range, or lower [calls] max";
            let why = format!("has ports for {pairs} calls, and [calls] max is {max}; {cure}");
            self.warn("media.ports", why);
        }
        let (port, ports) = (settings.sip.listen.port(), media.ports);
        if (ports.first..=ports.last).contains(&port) {
            self.warn("media.ports", format!("contains the port {port} of [sip] listen; move one"));
        }
    }

    fn recording(&mut self, settings: &Settings) {
        let recording = &settings.recording;
        if recording.keep_gb.is_some_and(|gb| !gb.is_finite() || gb <= 0.0) {
            self.error("recording.keep_gb", "must be more than 0");
        }
        if recording.keep_free_percent > 90 {
            self.error("recording.keep_free_percent", "must be from 0 to 90");
        }
        if !recording.fsync.0.is_zero() && recording.fsync.0 < Duration::from_millis(100) {
            self.error("recording.fsync", "must be at least 100ms, or \"0s\" for never");
        }
        if recording.keep.is_some_and(|keep| keep.0 < MIN_KEEP) {
            self.error("recording.keep", "must be at least 1h: recordings are deleted after that");
        }
        let upload = &recording.upload;
        let keys = [
            ("region", &upload.region),
            ("access_key_id", &upload.access_key_id),
            ("ca_file", &upload.ca_file),
        ];
        self.not_empty("recording.upload", &keys);
        self.not_empty("recording.webhook", &[("ca_file", &recording.webhook.ca_file)]);
        self.not_empty("recording", &[("announce", &recording.announce)]);
    }

    /// The addresses that trunkless listens on, against each other.
    fn addresses(&mut self, settings: &Settings) {
        let sip = settings.sip.listen;
        if sip.ip().is_multicast() {
            self.error("sip.listen", "is a multicast address; set an address of this host");
        }
        let Some(http) = settings.http.listen else { return };
        if http.port() == 0 {
            self.error("http.listen", "has port 0; set the port, such as 8071");
        }
        let sip_is_used = settings.pbx.values().any(|pbx| pbx.mode == Mode::Sip);
        if sip_is_used && http.port() == sip.port() && meet(http.ip(), sip.ip()) {
            self.error("http.listen", "has the port of [sip] listen; change one of them");
        }
    }

    fn ai(&mut self, table: &str, ai: &Ai) {
        let keys = [
            ("ca_file", &ai.ca_file),
            ("tls_server_name", &ai.tls_server_name),
            ("account_sid", &ai.account_sid),
        ];
        self.not_empty(table, &keys);
        let key = format!("{table}.silent_timeout");
        let effect = "an AI that thinks counts as failed";
        self.not_tiny(&key, ai.silent_timeout, Duration::from_secs(1), effect);
        let key = format!("{table}.ping");
        let effect = "pings take up the connection";
        self.not_tiny(&key, ai.ping, Duration::from_secs(1), effect);
    }

    fn sip(&mut self, table: &str, sip: &PbxSip, settings: &Settings) {
        let key = |rest: &str| format!("{table}.{rest}");
        let own = [("auth_username", &sip.auth_username), ("realm", &sip.realm)];
        self.not_empty(table, &own);
        if let Some(username) = &sip.username {
            let odd = |c: char| c.is_whitespace() || c.is_control() || "@:<>\"".contains(c);
            if username.is_empty() {
                self.error(&key("username"), "is empty; set the extension to register as");
            } else if username.contains(odd) {
                let why = "is not a user name; write only the part before the @, without sip:";
                self.error(&key("username"), format!("\"{username}\" {why}"));
            }
        }
        if let Some(registrar) = sip.registrar.as_ref().filter(|_| sip.register != Some(false)) {
            self.remote(&key("registrar"), registrar, settings.sip.listen);
        }
        for peer in sip.peers.iter().flatten() {
            if let PeerWord::Host(peer) = peer {
                self.remote(&key("peers"), peer, settings.sip.listen);
            }
        }
        self.advertised(&key("advertised"), sip.advertised);
        if sip.when_ai_is_down == AiDown::Unregister && sip.register == Some(false) {
            let why = "\"unregister\" needs a registration; use \"refuse_options\"";
            self.error(&key("when_ai_is_down"), why);
        }
        if sip.media_peers.as_ref().is_some_and(Vec::is_empty) {
            let why = "is empty, which allows every address; list some, or remove the key";
            self.warn(&key("media_peers"), why);
        }
        let effect = "the PBX gets a flood of OPTIONS";
        self.not_tiny(&key("keepalive"), sip.keepalive, Duration::from_millis(500), effect);
    }

    fn advertised(&mut self, key: &str, address: Option<IpAddr>) {
        if address.is_some_and(|ip| ip.is_unspecified() || ip.is_multicast()) {
            self.error(key, "is not an address of a host; set the one that the PBX reaches us at");
        }
    }

    /// A host that we send to from `listen`.
    fn remote(&mut self, key: &str, host: &HostPort, listen: SocketAddr) {
        if host.port == Some(0) {
            return self.error(key, format!("\"{host}\" has port 0; set the PBX's SIP port"));
        }
        let Host::Ip(ip) = host.host else { return };
        if ip.is_unspecified() || ip.is_multicast() {
            return self.error(key, format!("\"{host}\" is not an address of a host"));
        }
        let port = host.port.unwrap_or(SIP_PORT);
        if port == listen.port() && meet(ip, listen.ip()) {
            let cure = "set the PBX's address, or another [sip] listen";
            return self.error(key, format!("\"{host}\" is trunkless itself; {cure}"));
        }
        let source = listen.ip();
        if source.is_loopback() && !ip.is_loopback() {
            let why = "cannot be reached from [sip] listen, which is a loopback address";
            return self.error(key, format!("\"{host}\" {why}; set \"0.0.0.0:{}\"", listen.port()));
        }
        let both = source.is_ipv6() && source.is_unspecified();
        if source.is_ipv4() != ip.is_ipv4() && !both {
            let why = "cannot be reached from [sip] listen: one is IPv4, the other IPv6";
            self.error(key, format!("\"{host}\" {why}; set \"[::]:{}\"", listen.port()));
        }
    }

    fn ari(&mut self, table: &str, ari: &PbxAri, settings: &Settings) {
        let keys = [("rtp_conf", &ari.rtp_conf), ("ca_file", &ari.ca_file), ("url", &ari.url)];
        self.not_empty(table, &keys);
        self.advertised(&format!("{table}.advertised"), ari.advertised);
        if ari.max_media == Some(0) {
            self.error(&format!("{table}.max_media"), "must be at least 1");
        }
        if ari.max_media.is_some_and(|most| most > settings.calls.max) {
            let why = "is more than [calls] max, which applies; lower one or raise the other";
            self.warn(&format!("{table}.max_media"), why);
        }
    }

    /// Registrations that would take the extension from each other.
    fn accounts(&mut self, settings: &Settings) {
        let mut known = BTreeMap::new();
        for (name, pbx) in &settings.pbx {
            let Some(sip) = pbx.sip.as_ref().filter(|_| pbx.mode == Mode::Sip) else { continue };
            let (Some(registrar), Some(user)) = (&sip.registrar, &sip.username) else { continue };
            if sip.register == Some(false) {
                continue;
            }
            let account = (registrar.host.to_string(), registrar.port.unwrap_or(SIP_PORT), user);
            if let Some(other) = known.insert(account, &name.0) {
                let why = format!("[pbx.{other}] registers the same extension with the same PBX");
                let key = format!("pbx.{}.sip.username", name.0);
                self.error(&key, format!("{why}; give each its own"));
            }
        }
    }
}

/// The number of even ports that are followed by another.
fn pairs(range: PortRange) -> usize {
    let first = usize::from(range.first) + usize::from(range.first) % 2;
    (usize::from(range.last) + 1).saturating_sub(first) / 2
}

/// True if something sent to `to` reaches a socket at `listen`, as far as addresses show that.
fn meet(to: IpAddr, listen: IpAddr) -> bool {
    to == listen
        || (listen.is_unspecified() && (to.is_loopback() || to.is_unspecified()))
        || (to.is_unspecified() && listen.is_loopback())
}
