//! Removes secrets from captured packets and messages: credentials, tokens, and by default the keys
//! that callers press. Pure.
//!
//! The length of SIP bodies stays, so that Content-Length is still right.
#![deny(clippy::disallowed_methods, clippy::disallowed_types)]

use std::borrow::Cow;

use serde_json::Value;

use crate::media::rtp::{COMFORT_NOISE, PCMA, PCMU, Packet};

/// Stands in for a secret.
const REMOVED: &str = "removed";
/// Stands in for each character of a secret, where the length has to stay.
const HIDDEN: u8 = b'x';
/// The event of a key press that is left out: no key has this number (RFC 4733 §3.2).
const NO_KEY: u8 = 0xff;
/// Parts of names that stand for secrets, in lower case and without `-` and `_`.
const SECRET_PARTS: [&str; 12] = [
    "token",
    "secret",
    "password",
    "passwd",
    "passphrase",
    "apikey",
    "accesskey",
    "privatekey",
    "credential",
    "authorization",
    "signature",
    "cookie",
];
/// Whole names of secrets.
const SECRET_NAMES: [&str; 10] =
    ["auth", "pwd", "pin", "cvv", "cvc", "jwt", "bearer", "rspauth", "handle", "newhandle"];
/// Names of members whose values are keys.
const KEY_NAMES: [&str; 3] = ["digit", "digits", "dtmf"];
/// The words before the keys that a caller pressed, in a text for a model.
const KEYS_IN_TEXT: &str = "keys pressed: ";
/// Names of members whose values are audio, in all dialects.
const AUDIO_NAMES: [&str; 7] =
    ["payload", "binary", "audio", "delta", "user_audio_chunk", "audio_base_64", "audioContent"];
/// Parameters of a Digest that say who registers where, and nothing that helps to guess a password.
const DIGEST_PARAMETERS: [&str; 4] = ["username", "realm", "uri", "algorithm"];
/// SIP header fields with credentials.
const CREDENTIALS: [&str; 2] = ["authorization", "proxy-authorization"];
/// SIP header fields that only look like secrets.
const CHALLENGES: [&str; 2] = ["www-authenticate", "proxy-authenticate"];

/// Removes secrets from a capture.
#[derive(Debug, Clone, Default)]
pub struct Redactor {
    /// True if pressed keys stay in the capture.
    pub keys: bool,
    /// Further secrets, wherever they appear.
    pub secrets: Vec<String>,
}

/// Returns true if a value of this name is a secret.
pub fn is_secret(name: &str) -> bool {
    let letters = name.chars().filter(|c| !matches!(c, '-' | '_' | ' '));
    let name: String = letters.map(|c| c.to_ascii_lowercase()).collect();
    SECRET_NAMES.contains(&name.as_str()) || SECRET_PARTS.iter().any(|part| name.contains(part))
}

impl Redactor {
    /// Removes the key from an RTP packet, if it has one. Only G.711 and comfort noise are ever
    /// agreed as audio, so everything else may be a key.
    pub fn rtp(&self, data: &mut [u8], is_private: bool) {
        if self.keys && !is_private {
            return;
        }
        let Some(packet) = Packet::parse(data) else { return };
        if [PCMU, PCMA, COMFORT_NOISE].contains(&packet.payload_type) {
            return;
        }
        // the payload begins where it does in the data: it is a part of it
        let start = packet.payload.as_ptr().addr() - data.as_ptr().addr();
        let end = start + packet.payload.len();
        // several events may share a packet, with four bytes each
        match (end - start) % 4 {
            0 => data[start..end].chunks_mut(4).for_each(|event| event[0] = NO_KEY),
            _ => data[start..end].fill(NO_KEY),
        }
    }

    /// Returns a SIP message without its secrets.
    pub fn sip(&self, data: &[u8], is_private: bool) -> Vec<u8> {
        let (head, body) = data.split_at(end_of_head(data));
        let head = String::from_utf8_lossy(head);
        let mut out = String::with_capacity(data.len());
        let mut is_sdp = false;
        let mut lines = head.split_inclusive('\n').peekable();
        while let Some(line) = lines.next() {
            let mut field = line.to_owned();
            while let Some(more) = lines.next_if(|next| next.starts_with([' ', '\t'])) {
                field.push_str(more);
            }
            let name = field.split(':').next().unwrap_or_default().trim().to_ascii_lowercase();
            is_sdp |= ["content-type", "c"].contains(&name.as_str())
                && field.to_ascii_lowercase().contains("application/sdp");
            out.push_str(&self.field(&name, &field));
        }
        let mut out = self.literals(out.into_bytes());
        let hides_keys = !self.keys || is_private;
        let mut body = match (is_sdp, hides_keys && has_keys(&head)) {
            (false, true) => without_keys(body),
            _ => without_media_keys(body),
        };
        body = self.literals(body);
        out.extend_from_slice(&body);
        out
    }

    /// Returns a header field, or the first line, without its secrets.
    fn field(&self, name: &str, field: &str) -> String {
        let end = &field[field.trim_end_matches(['\r', '\n']).len()..];
        let value = field.split_once(':').map(|(_, value)| value.trim()).unwrap_or_default();
        let original = field.split(':').next().unwrap_or_default();
        if CREDENTIALS.contains(&name) {
            return format!("{original}: {}{end}", credentials(value));
        }
        let is_name = !name.contains(' ');
        if is_name && is_secret(name) && !CHALLENGES.contains(&name) {
            return format!("{original}: {REMOVED}{end}");
        }
        if is_name && name.ends_with("authentication-info") {
            return format!("{original}: {REMOVED}{end}");
        }
        without_url_secrets(field).into_owned()
    }

    /// Returns a JSON message without its secrets. Another text is only searched for URLs and known
    /// secrets. `hides_audio`: the audio of the dialect's messages is left out too.
    pub fn json(&self, text: &[u8], is_private: bool) -> Vec<u8> {
        let shown = match serde_json::from_slice::<Value>(text) {
            Ok(mut value) => match self.clean(&mut value, is_private) {
                true => value.to_string().into_bytes(),
                false => text.to_vec(),
            },
            Err(_) => without_url_secrets(&String::from_utf8_lossy(text)).into_owned().into_bytes(),
        };
        self.literals(shown)
    }

    /// Removes secrets from a value. Returns true if there were any.
    fn clean(&self, value: &mut Value, is_private: bool) -> bool {
        let hides_keys = !self.keys || is_private;
        match value {
            Value::Object(members) => {
                let mut changed = false;
                // a variable of the PBX, and its value beside it
                let variable =
                    members.get("variable").and_then(Value::as_str).is_some_and(is_secret);
                if variable && let Some(value) = members.get_mut("value") {
                    changed |= remove(value);
                }
                let kind = members.get("type").and_then(Value::as_str).unwrap_or_default();
                let media = members.get("mimeType").and_then(Value::as_str).unwrap_or_default();
                let has_audio = media.starts_with("audio/");
                let of_tool = hides_keys && kind.contains("function_call_arguments");
                for (name, value) in members {
                    let is_text = value.is_string() || value.is_number();
                    let is_key = KEY_NAMES.contains(&name.as_str()) && is_text && hides_keys;
                    let is_audio =
                        AUDIO_NAMES.contains(&name.as_str()) || has_audio && name == "data";
                    let is_audio = is_private && is_audio && value.is_string();
                    // a part of the arguments of a tool, which may press keys
                    let is_part = of_tool && name == "delta";
                    if is_key || is_audio || is_part {
                        *value = "hidden".into();
                        changed = true;
                    } else if name == "arguments" && value.is_string() {
                        changed |= self.clean_arguments(value, is_private);
                    } else if is_secret(name) {
                        changed |= remove(value);
                    } else {
                        changed |= self.clean(value, is_private);
                    }
                }
                changed
            }
            Value::Array(values) => {
                values.iter_mut().fold(false, |any, value| self.clean(value, is_private) | any)
            }
            Value::String(text) => {
                let mut clean = without_secret_pairs(&without_url_secrets(text)).to_string();
                if hides_keys {
                    clean = without_said_keys(&clean);
                }
                let changed = clean != *text;
                *text = clean;
                changed
            }
            Value::Null | Value::Bool(_) | Value::Number(_) => false,
        }
    }

    /// Cleans the arguments of a tool, which are JSON within a text. Returns true if they changed.
    fn clean_arguments(&self, value: &mut Value, is_private: bool) -> bool {
        let text = value.as_str().unwrap_or_default();
        let Ok(mut inner) = serde_json::from_str::<Value>(text) else {
            return self.clean(value, is_private);
        };
        let changed = self.clean(&mut inner, is_private);
        if changed {
            *value = inner.to_string().into();
        }
        changed
    }

    /// Hides the known secrets in a text, without changing its length.
    fn literals(&self, mut text: Vec<u8>) -> Vec<u8> {
        for secret in self.secrets.iter().map(String::as_bytes).filter(|s| !s.is_empty()) {
            let mut from = 0;
            while let Some(at) = memchr::memmem::find(&text[from..], secret) {
                text[from + at..from + at + secret.len()].fill(HIDDEN);
                from += at + secret.len();
            }
        }
        text
    }
}

/// Returns a text without the keys that it says were pressed.
fn without_said_keys(text: &str) -> String {
    let mut parts = text.split(KEYS_IN_TEXT);
    let mut out = parts.next().unwrap_or_default().to_owned();
    for part in parts {
        out.push_str(KEYS_IN_TEXT);
        out.push_str("hidden");
        out.push_str(
            part.trim_start_matches(|c: char| c.is_ascii_alphanumeric() || "*#".contains(c)),
        );
    }
    out
}

/// Removes every text and number in a value. Returns true if there were any.
fn remove(value: &mut Value) -> bool {
    match value {
        Value::String(_) | Value::Number(_) => {
            *value = REMOVED.into();
            true
        }
        Value::Array(values) => values.iter_mut().fold(false, |any, value| remove(value) | any),
        Value::Object(members) => {
            members.values_mut().fold(false, |any, value| remove(value) | any)
        }
        Value::Null | Value::Bool(_) => false,
    }
}

/// The length of the first line and the header fields, with the empty line after them.
fn end_of_head(data: &[u8]) -> usize {
    let found = |end: &[u8]| memchr::memmem::find(data, end).map(|at| at + end.len());
    let ends = [found(b"\r\n\r\n"), found(b"\n\n")];
    ends.into_iter().flatten().min().unwrap_or(data.len())
}

/// Returns credentials without what could be used or guessed from. Schemes other than Digest are
/// the secret itself.
fn credentials(value: &str) -> String {
    let (scheme, rest) = value.split_once([' ', '\t']).unwrap_or((value, ""));
    if !scheme.eq_ignore_ascii_case("digest") {
        return format!("{scheme} {REMOVED}");
    }
    let kept = rest.split(',').map(str::trim).filter(|parameter| {
        let name = parameter.split('=').next().unwrap_or_default().trim().to_ascii_lowercase();
        DIGEST_PARAMETERS.contains(&name.as_str())
    });
    let mut kept: Vec<&str> = kept.collect();
    kept.push("response=\"removed\"");
    format!("{scheme} {}", kept.join(", "))
}

/// True for a message whose body may contain keys: INFO, and the reports of KPML.
fn has_keys(head: &str) -> bool {
    let first = head.lines().next().unwrap_or_default();
    let lower = head.to_ascii_lowercase();
    first.starts_with("INFO ") || lower.contains("dtmf") || lower.contains("kpml")
}

/// Returns a body without keys: its `Signal`, or else all digits in it.
fn without_keys(body: &[u8]) -> Vec<u8> {
    let mut body = body.to_vec();
    let lower = body.to_ascii_lowercase();
    let signal = memchr::memmem::find(&lower, b"signal=");
    let is_key = |byte: &u8| byte.is_ascii_digit() || matches!(byte, b'*' | b'#' | b'A'..=b'D');
    match signal {
        Some(at) => {
            let value = body[at + 7..].iter_mut().take_while(|byte| !matches!(byte, b'\r' | b'\n'));
            value.filter(|byte| **byte != b' ').for_each(|byte| *byte = HIDDEN);
        }
        None => body.iter_mut().filter(|byte| is_key(byte)).for_each(|byte| *byte = HIDDEN),
    }
    body
}

/// Returns an SDP without the keys of encrypted media.
fn without_media_keys(body: &[u8]) -> Vec<u8> {
    let mut body = body.to_vec();
    for line in body.split_mut(|byte| *byte == b'\n') {
        let is_key = line.starts_with(b"k=") || line.starts_with(b"a=key-mgmt:");
        let from = match line.starts_with(b"a=crypto:") {
            true => memchr::memmem::find(line, b"inline:").map(|at| at + 7),
            false => is_key.then(|| line.iter().position(|b| matches!(b, b'=' | b':'))).flatten(),
        };
        let value = from.and_then(|from| line.get_mut(from + usize::from(is_key)..));
        let value = value.into_iter().flatten().filter(|byte| **byte != b'\r');
        value.for_each(|byte| *byte = HIDDEN);
    }
    body
}

/// Returns a text without the passwords and queries of its URLs, and without bearer tokens. The
/// parameters of SIP URIs stay, but not a password before the host.
fn without_url_secrets(text: &str) -> Cow<'_, str> {
    let lower = text.to_ascii_lowercase();
    let is_suspicious = ["://", "sip:", "sips:", "bearer ", "basic "];
    if !is_suspicious.iter().any(|start| lower.contains(start)) {
        return Cow::Borrowed(text);
    }
    let is_end = |c: char| c.is_whitespace() || matches!(c, '<' | '>' | '"' | '\'' | ',');
    let (mut out, mut after_scheme) = (String::with_capacity(text.len()), false);
    for word in text.split_inclusive(is_end) {
        let bare = word.trim_end_matches(is_end);
        let end = &word[bare.len()..];
        match after_scheme && !bare.is_empty() {
            true => out.push_str(REMOVED),
            false => out.push_str(&url(bare)),
        }
        out.push_str(end);
        let is_scheme = ["bearer", "basic"].iter().any(|s| bare.eq_ignore_ascii_case(s));
        after_scheme = is_scheme || (after_scheme && bare.is_empty());
    }
    match out == text {
        true => Cow::Borrowed(text),
        false => Cow::Owned(out),
    }
}

/// Returns a text without the values of secrets in it that are written as `name=value`, as the
/// arguments of a dialplan application are.
fn without_secret_pairs(text: &str) -> String {
    let parts = text.split_inclusive([',', ';', '&', ' ']);
    let clean = parts.map(|part| match part.split_once('=') {
        Some((name, value)) if is_secret(name) => {
            let end = value.trim_end_matches([',', ';', '&', ' ']).len();
            format!("{name}={REMOVED}{}", &value[end..])
        }
        _ => part.to_owned(),
    });
    clean.collect()
}

/// Returns a word without the secrets of the URL in it.
fn url(word: &str) -> Cow<'_, str> {
    let lower = word.to_ascii_lowercase();
    if let Some(at) = lower.find("://") {
        let (scheme, rest) = word.split_at(at + 3);
        let (rest, query) = rest.split_once('?').map_or((rest, ""), |(rest, _)| (rest, "?removed"));
        let (authority, path) = rest.split_at(rest.find('/').unwrap_or(rest.len()));
        let host = authority.rsplit_once('@').map_or(authority, |(_, host)| host);
        if host.len() == authority.len() && query.is_empty() {
            return Cow::Borrowed(word);
        }
        return Cow::Owned(format!("{scheme}{host}{path}{query}"));
    }
    let sip = ["sips:", "sip:"].iter().find_map(|scheme| Some(lower.find(scheme)? + scheme.len()));
    let Some(start) = sip else { return Cow::Borrowed(word) };
    let rest = &word[start..];
    let Some((user, host)) = rest.split_once('@') else { return Cow::Borrowed(word) };
    match user.split_once(':') {
        Some((user, _)) => Cow::Owned(format!("{}{user}:{REMOVED}@{host}", &word[..start])),
        None => Cow::Borrowed(word),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn redactor() -> Redactor {
        Redactor { keys: false, secrets: vec!["s3cr3t-of-the-ai".to_owned()] }
    }

    fn sip(text: &str) -> String {
        String::from_utf8(redactor().sip(text.as_bytes(), false)).expect("text")
    }

    #[test]
    fn credentials_leave_only_who_registers_where() {
        let message = "INVITE sip:1:canary1@pbx SIP/2.0\r\n\
            Authorization: Digest username=\"ai\", realm=\"pbx\", nonce=\"canary2\",\r\n\
            \tcnonce=\"canary3\", qop=auth, uri=\"sip:pbx\", response=\"canary4\"\r\n\
            proxy-authorization : Basic canary5\r\n\
            X-Api-Key: canary6\r\n\
            Authentication-Info: rspauth=\"canary7\"\r\n\
            Call-Info: <https://u:canary8@crm/x?token=canary9>;purpose=info\r\n\
            X-Note: s3cr3t-of-the-ai and bearer canary10\r\n\
            X-Lead-ID: 42\r\n\
            Contact: <sip:ai@10.0.0.1:5062;ob>\r\n\
            WWW-Authenticate: Digest realm=\"pbx\", nonce=\"n\"\r\n\
            Content-Length: 0\r\n\r\n";
        let clean = sip(message);
        assert!(!clean.contains("canary") && !clean.contains("s3cr3t"), "{clean}");
        for kept in [
            "INVITE sip:1:removed@pbx SIP/2.0\r\n",
            "Authorization: Digest username=\"ai\", realm=\"pbx\", uri=\"sip:pbx\", \
             response=\"removed\"\r\n",
            "\r\nproxy-authorization : Basic removed\r\nX-Api-Key: removed\r\n",
            "Call-Info: <https://crm/x?removed>;purpose=info\r\n",
            "X-Lead-ID: 42\r\nContact: <sip:ai@10.0.0.1:5062;ob>\r\n",
            "WWW-Authenticate: Digest realm=\"pbx\", nonce=\"n\"\r\nContent-Length: 0\r\n\r\n",
        ] {
            assert!(clean.contains(kept), "{kept}\n{clean}");
        }
    }

    #[test]
    fn bodies_keep_their_length() {
        for (head, body, clean) in [
            (
                "INFO sip:a SIP/2.0\r\nContent-Type: application/dtmf-relay",
                "Signal= 7\r\nDuration=160\r\n",
                "Signal= x\r\nDuration=160\r\n",
            ),
            ("INFO sip:a SIP/2.0\r\nContent-Type: application/dtmf", "42#", "xxx"),
            (
                "NOTIFY sip:a SIP/2.0\r\nContent-Type: application/kpml-response+xml",
                "<r digits=\"42\"/>",
                "<r digits=\"xx\"/>",
            ),
            (
                "SIP/2.0 200 OK\r\nc: application/sdp",
                "v=0\r\nk=clear:abc\r\na=crypto:1 AES inline:Zm9v\r\nm=audio 1 RTP/AVP 0\r\n",
                "v=0\r\nk=xxxxxxxxx\r\na=crypto:1 AES inline:xxxx\r\nm=audio 1 RTP/AVP 0\r\n",
            ),
        ] {
            let message = |body: &str| format!("{head}\r\n\r\n{body}");
            assert_eq!(sip(&message(body)), message(clean));
        }
        let info = "INFO sip:a SIP/2.0\r\n\r\nSignal=7\r\n";
        let shown = Redactor { keys: true, secrets: Vec::new() };
        assert_eq!(shown.sip(info.as_bytes(), false), info.as_bytes());
        assert_ne!(shown.sip(info.as_bytes(), true), info.as_bytes());
    }

    #[test]
    fn odd_bytes_are_no_trouble() {
        for data in [&b""[..], b"\n", b"\xff\xfe", b":", b"a:\r\n b", b"\r\n\r\n", b"k=", b"INFO "]
        {
            redactor().sip(data, false);
            redactor().json(data, true);
            redactor().rtp(&mut data.to_vec(), false);
        }
    }

    #[test]
    fn keys_are_taken_out_of_rtp_and_audio_is_not() {
        let header = |payload_type: u8| {
            let mut packet = vec![0x80, payload_type, 0, 1, 0, 0, 0, 160, 1, 2, 3, 4];
            packet.extend_from_slice(&[5, 10, 0, 160]);
            packet
        };
        for (payload_type, keys, first) in
            [(101, false, NO_KEY), (0, false, 5), (8, false, 5), (96, true, 5), (77, false, NO_KEY)]
        {
            let mut packet = header(payload_type);
            Redactor { keys, secrets: Vec::new() }.rtp(&mut packet, false);
            assert_eq!((packet[12], &packet[13..]), (first, &[10, 0, 160][..]), "{payload_type}");
        }
    }

    #[test]
    fn messages_lose_secrets_and_keys_only() {
        let json = |text: &str, is_private: bool| {
            String::from_utf8(redactor().json(text.as_bytes(), is_private)).expect("text")
        };
        let media = r#"{"event":"media","media":{"payload":"AAAA"},"streamSid":"MZ1"}"#;
        assert_eq!(json(media, false), media);
        assert!(!json(media, true).contains("AAAA"));
        let start = r#"{"event":"start","start":{"customParameters":{"crm_token":"canary","lead_id":"42","callback":"wss://u:canary@h/p?t=canary","pins":"7"}}}"#;
        let clean = json(start, false);
        assert!(!clean.contains("canary"), "{clean}");
        assert!(clean.contains(r#""lead_id":"42""#) && clean.contains("wss://h/p?removed"));
        let key = r#"{"event":"dtmf","dtmf":{"digit":"4","track":"inbound_track"}}"#;
        assert!(json(key, false).contains(r#""digit":"hidden","track":"inbound_track""#));
        let nested = r#"{"password":{"value":["canary",1,true]},"digits":"12","x":null}"#;
        let clean = json(nested, false);
        assert_eq!(
            clean,
            r#"{"digits":"hidden","password":{"value":["removed","removed",true]},"x":null}"#
        );
        assert_eq!(
            json("no JSON: Bearer canary wss://h?canary", false),
            "no JSON: Bearer removed wss://h?removed"
        );
        assert!(!json(r#"{"a":"s3cr3t-of-the-ai"}"#, false).contains("s3cr3t"));
        let ari = r#"{"args":["x","crm_token=canary"],"app_data":"ai,x,crm_token=canary,b=c","query":{"value":"canary","variable":"CRM_TOKEN"}}"#;
        let clean = json(ari, false);
        assert!(!clean.contains("canary"), "{clean}");
        assert!(clean.contains(r#""ai,x,crm_token=removed,b=c""#), "{clean}");
    }

    #[test]
    fn keys_and_audio_of_models_are_hidden() {
        let redactor = Redactor::default();
        let shown = |text: &str, is_private| {
            String::from_utf8(redactor.json(text.as_bytes(), is_private)).unwrap()
        };
        for text in [
            r#"{"type":"InjectUserMessage","content":"[keys pressed: 4242#]"}"#,
            r#"{"item":{"content":[{"text":"(keys pressed: 4242#)"}]}}"#,
            r#"{"name":"send_dtmf","arguments":"{\"digits\":\"4242#\"}"}"#,
            r#"{"type":"response.function_call_arguments.delta","delta":"4242#"}"#,
        ] {
            let shown = shown(text, false);
            assert!(shown.contains("hidden") && !shown.contains("4242"), "{shown}");
        }
        for name in AUDIO_NAMES {
            let text = format!(r#"{{"{name}":"AQID"}}"#);
            assert!(shown(&text, false).contains("AQID"), "{name}");
            assert!(!shown(&text, true).contains("AQID"), "{name}");
        }
        let blob = r#"{"inlineData":{"mimeType":"audio/pcm;rate=24000","data":"AQID"}}"#;
        assert!(shown(blob, false).contains("AQID"));
        assert!(!shown(blob, true).contains("AQID"));
        let call = r#"{"functionCalls":[{"name":"send_dtmf","args":{"digits":"4242"}}]}"#;
        assert!(!shown(call, false).contains("4242"));
        // it continues someone's conversation
        let handle = r#"{"sessionResumptionUpdate":{"newHandle":"AQID"},"handle":"AQID"}"#;
        assert!(!shown(handle, false).contains("AQID"));
        let plain = r#"{"arguments":"{\"day\":\"Monday\"}","text":"press a key"}"#;
        assert_eq!(shown(plain, false), plain);
    }
}
