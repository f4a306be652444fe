//! The values of keys, as they are written in the file and in variables, and how they are parsed.
#![deny(clippy::disallowed_methods, clippy::disallowed_types)]

use std::fmt;
use std::marker::PhantomData;
use std::str::FromStr;
use std::time::Duration;

use serde::de::{self, Deserializer, SeqAccess, Visitor};
use serde::{Deserialize, Serialize};

use crate::command::{Cause, Destination};
use crate::config::recording::{Age, FormatWord, LayoutWord, WhenWord};
use crate::config::schema::{Answer, LateAudio, MediaFormat, Mode, OnAiClose, TransportWord};
use crate::control::tokens::Scope;
use crate::sip::agent::AiDown;
use crate::sip::network::Network;
use crate::sip::uri::{Host, parse_host_port};
use crate::stream::dialect::{Dialect, Extensions};

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

/// An entry of `peers`: a host, or a range such as `10.0.0.0/24`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PeerWord {
    Host(HostPort),
    Range(Network),
}

impl FromStr for PeerWord {
    type Err = String;

    fn from_str(text: &str) -> Result<PeerWord, String> {
        match text.contains('/') {
            true => text.parse().map(PeerWord::Range),
            false => text.parse().map(PeerWord::Host),
        }
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

/// A rung of `on_ai_failure`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum RungWord {
    /// The name of a table `[endpoint.NAME]`.
    Ai(String),
    /// The name of a prompt.
    Play(String),
    /// A target of `[pbx.NAME.transfer]`.
    Transfer(String),
    Continue,
    Hangup(Option<Cause>),
}

impl FromStr for RungWord {
    type Err = String;

    fn from_str(text: &str) -> Result<RungWord, String> {
        let (word, rest) = match text.split_once(':') {
            Some((word, rest)) => (word, Some(rest.trim())),
            None => (text, None),
        };
        let cause = |rest: &str| Cause::ALL.into_iter().find(|cause| cause.name() == rest);
        let rung = match (word.trim(), rest) {
            ("ai", Some(name)) if !name.is_empty() => Some(RungWord::Ai(name.to_owned())),
            ("play", Some(name)) if !name.is_empty() => Some(RungWord::Play(name.to_owned())),
            ("transfer", Some(to)) if !to.is_empty() => Some(RungWord::Transfer(to.to_owned())),
            ("continue", None) => Some(RungWord::Continue),
            ("hangup", None) => Some(RungWord::Hangup(None)),
            ("hangup", Some(rest)) => cause(rest).map(|cause| RungWord::Hangup(Some(cause))),
            _ => None,
        };
        rung.ok_or_else(|| {
            let causes = Cause::ALL.map(Cause::name).join(", ");
            format!(
                "\"{text}\" is not one of: ai:NAME, play:PROMPT, transfer:TARGET, continue, \
                 hangup, hangup:CAUSE ({causes})"
            )
        })
    }
}

/// The target of a transfer, as in the dialplan: `context,exten,priority`, `context,exten`, or an
/// extension.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TargetWord(pub Destination);

impl FromStr for TargetWord {
    type Err = String;

    fn from_str(text: &str) -> Result<TargetWord, String> {
        if let Some(name) = text.strip_prefix("ingroup:") {
            let good = name.chars().all(|c| c.is_ascii_alphanumeric() || "_-".contains(c));
            let exten = name.to_owned();
            let to = Destination { context: None, exten, priority: 1, in_group: true };
            let why = "write ingroup:NAME, or ingroup: for the default one";
            let why = || format!("\"{text}\" is not an in-group: {why}");
            return good.then_some(TargetWord(to)).ok_or_else(why);
        }
        let parts: Vec<&str> = text.split(',').map(str::trim).collect();
        let good = |part: &&str| {
            !part.is_empty()
                && part.chars().all(|c| c.is_ascii_alphanumeric() || "+*#_-.".contains(c))
        };
        let priority = parts.get(2).map_or(Ok(1), |part| part.parse::<u32>());
        match (&parts[..], priority) {
            ([exten], _) if good(exten) => {
                let (context, exten) = (None, (*exten).to_owned());
                Ok(TargetWord(Destination { context, exten, priority: 1, in_group: false }))
            }
            ([context, exten] | [context, exten, _], Ok(priority @ 1..))
                if good(context) && good(exten) =>
            {
                let (context, exten) = (Some((*context).to_owned()), (*exten).to_owned());
                Ok(TargetWord(Destination { context, exten, priority, in_group: false }))
            }
            _ => Err(format!(
                "\"{text}\" is not a target: write an extension such as \"1001\", or \
                 \"context,exten,priority\" such as \"queues,sales,1\""
            )),
        }
    }
}

words_of!(Extensions: "on_use" => OnUse, "always" => Always, "off" => Off);
words_of!(Answer: "when_ai_ready" => WhenAiReady, "at_once" => AtOnce);
words_of!(OnAiClose: "hangup" => Hangup, "continue" => Continue, "reconnect" => Reconnect);
words_of!(Scope: "read" => Read, "control" => Control, "numbers" => Numbers,
    "recordings" => Recordings, "listen" => Listen, "capture" => Capture,
    "dial" => Dial);
words_of!(LateAudio: "keep" => Keep, "drop" => Drop);
words_of!(MediaFormat: "ulaw" => Ulaw, "alaw" => Alaw);
words_of!(Mode: "sip" => Sip, "ari" => Ari);
words_of!(TransportWord: "udp" => Udp, "tcp" => Tcp);
words_of!(AiDown: "stay" => Stay, "refuse_options" => RefuseOptions, "unregister" => Unregister);
words_of!(FormatWord: "g711" => G711, "ulaw" => Ulaw, "alaw" => Alaw, "pcm16" => Pcm16);
words_of!(WhenWord: "always" => Always, "on_command" => OnCommand, "never" => Never);
from_string!(
    Dialect, PbxName, PortRange, Span, HostPort, Network, Age, LayoutWord, TargetWord, RungWord
);

impl Serialize for PbxName {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&self.0)
    }
}

/// Reads a list, which is an array in the file and a comma-separated string in a variable.
pub(super) fn parsed_words<'de, D, T>(deserializer: D) -> Result<Option<Vec<T>>, D::Error>
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

pub(super) fn words<'de, D: Deserializer<'de>>(
    deserializer: D,
) -> Result<Option<Vec<String>>, D::Error> {
    let words: Option<Vec<Word>> = parsed_words(deserializer)?;
    Ok(words.map(|list| list.into_iter().map(|w| w.0).collect()))
}
