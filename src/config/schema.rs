//! The keys of the configuration file, with their defaults. Each field is a key of that name, and
//! each variant of an enum is a word that the key may be set to.

use std::collections::BTreeMap;
use std::fmt;
use std::marker::PhantomData;
use std::net::{IpAddr, SocketAddr};
use std::str::FromStr;
use std::time::Duration;

use secrecy::SecretString;
use serde::de::{self, Deserializer, SeqAccess, Visitor};
use serde::{Deserialize, Serialize};

use crate::config::recording::{Age, FormatWord, LayoutWord, PbxRecording, Recording, WhenWord};
use crate::sip::network::Network;
use crate::sip::uri::{Host, parse_host_port};

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Settings {
    pub log: Log,
    pub sip: Sip,
    pub media: Media,
    pub ai: Ai,
    pub calls: Calls,
    pub recording: Recording,
    pub http: Http,
    pub pbx: BTreeMap<PbxName, Pbx>,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Log {
    /// off, error, warn, info, debug, trace, or a filter such as `trunkless::sip=debug`.
    pub level: String,
    pub json: bool,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Sip {
    /// Address of one socket per transport, shared by all PBXs.
    pub listen: SocketAddr,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Media {
    pub ports: PortRange,
    pub reorder_wait: Span,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Ai {
    pub url: Option<String>,
    pub dialect: Option<Dialect>,
    pub headers: Option<BTreeMap<String, String>>,
    pub auth_token: Option<SecretString>,
    pub auth_token_env: Option<String>,
    pub auth_token_file: Option<String>,
    pub ca_file: Option<String>,
    pub tls_server_name: Option<String>,
    pub account_sid: Option<String>,
    pub parameters: Option<BTreeMap<String, String>>,
    /// X- headers of the INVITE that become parameters; `*` means all.
    #[serde(deserialize_with = "words")]
    pub x_headers: Option<Vec<String>>,
    pub silent_timeout: Option<Span>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Dialect {
    Twilio,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Calls {
    pub max: usize,
    pub answer: Answer,
    pub answer_wait: Span,
    pub ringing: bool,
    pub on_ai_close: OnAi,
    pub drain_on_close: Span,
    pub on_ai_failure: OnAi,
    /// WAV file to play to the caller when the AI fails during a call; then
    /// `on_ai_failure` applies.
    pub prompt: Option<String>,
    pub max_duration: Span,
    pub media_timeout: Span,
    /// Calls may continue for this long after SIGTERM.
    pub drain: Span,
    /// Limit of the audio that the AI may queue for one call.
    pub playout_minutes: u32,
    /// The same limit for all calls together.
    pub playout_budget_mb: usize,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Answer {
    WhenAiReady,
    AtOnce,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OnAi {
    Hangup,
    /// The caller continues in the dialplan (ARI). In SIP mode, the call is ended.
    Continue,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Http {
    /// Address of `/healthz`, `/readyz` and `/metrics`; without it, they are not served.
    pub listen: Option<SocketAddr>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    Sip,
    Ari,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Pbx {
    pub mode: Mode,
    pub sip: Option<PbxSip>,
    /// Ignored unless `mode = "ari"`.
    pub ari: Option<PbxAri>,
    #[serde(default)]
    pub ai: Ai,
    #[serde(default)]
    pub recording: PbxRecording,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct PbxSip {
    pub registrar: Option<HostPort>,
    pub username: Option<String>,
    pub auth_username: Option<String>,
    pub realm: Option<String>,
    pub password: Option<SecretString>,
    pub password_env: Option<String>,
    pub password_file: Option<String>,
    pub transport: Option<TransportWord>,
    pub expires: Option<Span>,
    pub keepalive: Option<Span>,
    pub advertised: Option<IpAddr>,
    #[serde(deserialize_with = "parsed_words")]
    pub media_peers: Option<Vec<Network>>,
    pub register: Option<bool>,
    #[serde(deserialize_with = "parsed_words")]
    pub peers: Option<Vec<HostPort>>,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct PbxAri {
    /// Asterisk's HTTP server: `http://192.0.2.1:8088`, or https.
    pub url: Option<String>,
    pub username: Option<String>,
    pub password: Option<SecretString>,
    pub password_env: Option<String>,
    pub password_file: Option<String>,
    /// The Stasis application's name.
    pub app: Option<String>,
    pub format: Option<MediaFormat>,
    /// Maximum number of external media channels at the same time.
    pub max_media: Option<usize>,
    pub rtp_conf: Option<String>,
    pub advertised: Option<IpAddr>,
    /// Channel variables that become parameters.
    #[serde(deserialize_with = "words")]
    pub variables: Option<Vec<String>>,
    pub ca_file: Option<String>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MediaFormat {
    Ulaw,
    Alaw,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TransportWord {
    Udp,
    Tcp,
}

impl Default for Log {
    fn default() -> Self {
        Log { level: "info".to_owned(), json: false }
    }
}

impl Default for Sip {
    fn default() -> Self {
        Sip { listen: SocketAddr::from(([0, 0, 0, 0], 5070)) }
    }
}

impl Default for Media {
    fn default() -> Self {
        Media {
            ports: PortRange { first: 20002, last: 32767 },
            reorder_wait: Span(Duration::from_millis(40)),
        }
    }
}

impl Default for Calls {
    fn default() -> Self {
        Calls {
            max: 200,
            answer: Answer::WhenAiReady,
            answer_wait: Span(Duration::from_secs(2)),
            ringing: false,
            on_ai_close: OnAi::Hangup,
            drain_on_close: Span(Duration::ZERO),
            on_ai_failure: OnAi::Continue,
            prompt: None,
            max_duration: Span(Duration::from_secs(4 * 3600)),
            media_timeout: Span(Duration::from_secs(30)),
            drain: Span(Duration::from_secs(30)),
            playout_minutes: 10,
            playout_budget_mb: 512,
        }
    }
}

/// `[a-z0-9_]+`, but not `__`, which separates the parts of an environment variable's name.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct PbxName(pub String);

impl FromStr for PbxName {
    type Err = String;

    fn from_str(text: &str) -> Result<PbxName, String> {
        let good = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'_';
        if text.is_empty() || !text.bytes().all(good) || text.contains("__") {
            let rule = "use lower-case letters, digits and single underscores";
            return Err(format!("\"{text}\" is not a valid PBX name; {rule}"));
        }
        Ok(PbxName(text.to_owned()))
    }
}

/// `20002-32767`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PortRange {
    pub first: u16,
    pub last: u16,
}

impl FromStr for PortRange {
    type Err = String;

    fn from_str(text: &str) -> Result<PortRange, String> {
        let parts = text.split_once('-').and_then(|(first, last)| {
            Some((first.trim().parse::<u16>().ok()?, last.trim().parse::<u16>().ok()?))
        });
        match parts {
            Some((first, last)) if first >= 1024 && last > first + first % 2 => {
                Ok(PortRange { first, last })
            }
            _ => Err(format!(
                "\"{text}\" is not a valid port range; write two numbers from 1024 to 65535, \
                 as in \"20002-32767\""
            )),
        }
    }
}

/// A duration: `40ms`, `2s`, `4h`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Span(pub Duration);

impl FromStr for Span {
    type Err = String;

    fn from_str(text: &str) -> Result<Span, String> {
        let day = Duration::from_secs(86_400);
        match humantime::parse_duration(text) {
            Ok(duration) if duration <= 7 * day => Ok(Span(duration)),
            Ok(_) => Err(format!("\"{text}\" is too long; write at most \"7d\"")),
            Err(why) => {
                Err(format!("\"{text}\" is not a duration ({why}); write \"40ms\" or \"4h\""))
            }
        }
    }
}

/// `pbx.example.com`, `192.0.2.1:5060`, `[2001:db8::1]:5060`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HostPort {
    pub host: Host,
    pub port: Option<u16>,
}

impl FromStr for HostPort {
    type Err = String;

    fn from_str(text: &str) -> Result<HostPort, String> {
        match parse_host_port(text) {
            Some((host, port)) => Ok(HostPort { host, port }),
            None => Err(format!(
                "\"{text}\" is not a valid host; write a name or address, with a port if it is \
                 not 5060 (IPv6 in brackets)"
            )),
        }
    }
}

impl fmt::Display for HostPort {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.host)?;
        self.port.map_or(Ok(()), |port| write!(f, ":{port}"))
    }
}

macro_rules! from_string {
    ($($kind:ty),*) => {$(
        impl<'de> Deserialize<'de> for $kind {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                String::deserialize(deserializer)?.parse().map_err(de::Error::custom)
            }
        }
    )*};
}

/// Reads enums from words. The error for an unknown word lists the known ones.
macro_rules! words_of {
    ($kind:ident: $($word:literal => $variant:ident),*) => {
        impl FromStr for $kind {
            type Err = String;

            fn from_str(text: &str) -> Result<$kind, String> {
                match text {
                    $($word => Ok($kind::$variant),)*
                    _ => Err(format!("\"{text}\" is not one of: {}", [$($word),*].join(", "))),
                }
            }
        }

        from_string!($kind);
    };
}

words_of!(Dialect: "twilio" => Twilio);
words_of!(Answer: "when_ai_ready" => WhenAiReady, "at_once" => AtOnce);
words_of!(OnAi: "hangup" => Hangup, "continue" => Continue);
words_of!(MediaFormat: "ulaw" => Ulaw, "alaw" => Alaw);
words_of!(Mode: "sip" => Sip, "ari" => Ari);
words_of!(TransportWord: "udp" => Udp, "tcp" => Tcp);
words_of!(FormatWord: "g711" => G711, "ulaw" => Ulaw, "alaw" => Alaw, "pcm16" => Pcm16);
words_of!(WhenWord: "always" => Always, "on_command" => OnCommand, "never" => Never);
from_string!(PbxName, PortRange, Span, HostPort, Network, Age, LayoutWord);

impl Serialize for PbxName {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&self.0)
    }
}

/// Reads a list, which is an array in the file and a comma-separated string in a variable.
fn parsed_words<'de, D, T>(deserializer: D) -> Result<Option<Vec<T>>, D::Error>
where
    D: Deserializer<'de>,
    T: FromStr<Err = String>,
{
    struct Words<T>(PhantomData<T>);
    impl<'de, T: FromStr<Err = String>> Visitor<'de> for Words<T> {
        type Value = Vec<T>;

        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("a list of strings")
        }

        fn visit_str<E: de::Error>(self, text: &str) -> Result<Vec<T>, E> {
            let words = text.split(',').map(str::trim).filter(|w| !w.is_empty());
            words.map(|w| w.parse().map_err(E::custom)).collect()
        }

        fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Vec<T>, A::Error> {
            let mut words = Vec::new();
            while let Some(word) = list.next_element::<String>()? {
                words.push(word.parse().map_err(de::Error::custom)?);
            }
            Ok(words)
        }
    }
    deserializer.deserialize_any(Words(PhantomData)).map(Some)
}

struct Word(String);

impl FromStr for Word {
    type Err = String;

    fn from_str(text: &str) -> Result<Word, String> {
        Ok(Word(text.to_owned()))
    }
}

fn words<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Vec<String>>, D::Error> {
    let words: Option<Vec<Word>> = parsed_words(deserializer)?;
    Ok(words.map(|list| list.into_iter().map(|w| w.0).collect()))
}
