//! The answers from which everything is written, and how each is read from what a person types.
#![deny(clippy::disallowed_methods, clippy::disallowed_types)]

use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::str::FromStr;

use crate::sip::uri::{Host, parse_host_port};

/// The name of the PBX in the configuration.
pub const PBX: &str = "main";
/// Longest name of an extension, a user or a context; Asterisk's own limit is 79.
const MAX_WORD: usize = 40;
/// The port of Asterisk's HTTP server.
pub const ARI_PORT: u16 = 8088;

/// The software around Asterisk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Flavour {
    Asterisk,
    FreePbx,
    Vicidial,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    Sip,
    Ari,
}

/// Asterisk's channel driver for SIP.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Driver {
    ChanSip,
    Pjsip,
}

macro_rules! words {
    ($kind:ident: $($word:literal => $variant:ident),*) => {
        impl $kind {
            pub const WORDS: &[&str] = &[$($word),*];

            pub fn word(self) -> &'static str {
                match self {
                    $($kind::$variant => $word,)*
                }
            }
        }

        impl FromStr for $kind {
            type Err = String;

            fn from_str(text: &str) -> Result<$kind, String> {
                match text.to_ascii_lowercase().as_str() {
                    $($word => Ok($kind::$variant),)*
                    _ => Err(format!("\"{text}\" is not one of: {}", $kind::WORDS.join(", "))),
                }
            }
        }
    };
}

words!(Flavour: "asterisk" => Asterisk, "freepbx" => FreePbx, "vicidial" => Vicidial);
words!(Mode: "sip" => Sip, "ari" => Ari);
words!(Driver: "pjsip" => Pjsip, "chan_sip" => ChanSip);

/// The PBX's name or address, with a port if one was given.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Address {
    pub host: Host,
    pub port: Option<u16>,
}

impl FromStr for Address {
    type Err = String;

    fn from_str(text: &str) -> Result<Address, String> {
        match parse_host_port(text) {
            Some((_, Some(0))) => Err(format!("\"{text}\" has port 0")),
            Some((host, port)) => Ok(Address { host, port }),
            None => Err(format!(
                "\"{text}\" is not a host; write a name or an address, with a port if needed, as \
                 in 192.0.2.10:5060 (IPv6 in brackets)"
            )),
        }
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.host)?;
        self.port.map_or(Ok(()), |port| write!(f, ":{port}"))
    }
}

/// Where callers go when there is no AI for them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Humans {
    /// A place in the dialplan: `context,extension,priority`.
    Place(String),
    /// Phones that ring: `PJSIP/1001&PJSIP/1002`.
    Phones(String),
    /// An in-group of VICIdial.
    InGroup(String),
}

impl Humans {
    /// Reads the answer for Asterisk and FreePBX. On FreePBX a number is one that phones dial.
    ///
    /// # Errors
    /// Returns the reason, and how to write it.
    pub fn parse(text: &str, flavour: Flavour) -> Result<Humans, String> {
        let wrong = || match flavour {
            Flavour::FreePbx => format!(
                "\"{text}\" is not a destination; write a number that a phone may dial (1001), or \
                 context,extension,priority, as in ext-queues,600,1"
            ),
            _ => format!(
                "\"{text}\" is not a destination; write phones (PJSIP/1001&PJSIP/1002), or \
                 context,extension,priority, as in queues,600,1"
            ),
        };
        if flavour == Flavour::Vicidial {
            return in_group(text).map(Humans::InGroup);
        }
        let parts: Vec<&str> = text.split(',').map(str::trim).collect();
        let good = |part: &str, more: &str| {
            let allowed = |c: char| c.is_ascii_alphanumeric() || more.contains(c);
            !part.is_empty() && part.len() <= MAX_WORD && part.chars().all(allowed)
        };
        match parts[..] {
            [context, extension, priority]
                if good(context, "_-") && good(extension, "_-*#+") && good(priority, "_-") =>
            {
                Ok(Humans::Place(parts.join(",")))
            }
            [number] if flavour == Flavour::FreePbx && good(number, "*#+") => {
                Ok(Humans::Place(format!("from-internal,{number},1")))
            }
            [phones]
                if phones.split('&').all(|phone| {
                    let (tech, name) = phone.split_once('/').unwrap_or_default();
                    good(tech, "_") && good(name, "_-.@")
                }) =>
            {
                Ok(Humans::Phones(phones.to_owned()))
            }
            _ => Err(wrong()),
        }
    }
}

/// Reads the name of an in-group.
fn in_group(text: &str) -> Result<String, String> {
    let good = |c: char| c.is_ascii_alphanumeric() || "_-".contains(c);
    if (2..=20).contains(&text.len()) && text.chars().all(good) {
        return Ok(text.to_owned());
    }
    Err(format!("\"{text}\" is not an in-group; write its id: 2 to 20 letters, digits, _ and -"))
}

/// Reads the number that reaches the AI.
///
/// # Errors
/// Returns the reason.
pub fn extension(text: &str) -> Result<String, String> {
    let good = |c: char| c.is_ascii_alphanumeric() || "*#".contains(c);
    if !text.is_empty() && text.len() <= 20 && text.chars().all(good) {
        return Ok(text.to_owned());
    }
    Err(format!("\"{text}\" is not an extension; write up to 20 digits, such as 8010"))
}

/// Reads a user of the PBX: an extension to register as, an ARI user, VICIdial's API user, or a
/// context of the dialplan.
///
/// # Errors
/// Returns the reason.
pub fn name(text: &str) -> Result<String, String> {
    let good = |c: char| c.is_ascii_alphanumeric() || "_-".contains(c);
    let reserved = ["general", "global", "globals", "system"].contains(&text);
    if !text.is_empty() && text.len() <= MAX_WORD && text.chars().all(good) && !reserved {
        return Ok(text.to_owned());
    }
    let rule = "use letters, digits, _ and -, and none of Asterisk's own names such as general";
    Err(format!("\"{text}\" is not a usable name; {rule}"))
}

/// Reads the AI's URL.
///
/// # Errors
/// Returns the reason.
pub fn ai_url(text: &str) -> Result<String, String> {
    let rest = text.strip_prefix("ws://").or_else(|| text.strip_prefix("wss://"));
    let plain = text.chars().all(|c| c.is_ascii_graphic() && !"\"\\`'".contains(c));
    let host = rest.and_then(|rest| rest.split(['/', '?']).next());
    match host.filter(|host| plain && !host.contains('@')).and_then(parse_host_port) {
        Some(_) => Ok(text.to_owned()),
        None => Err(format!(
            "\"{text}\" is not the URL of a WebSocket; write ws://HOST:PORT/PATH or wss://…"
        )),
    }
}

/// The host and port of a valid AI URL.
pub fn ai_target(url: &str) -> Option<(Host, u16)> {
    let (scheme, rest) = url.split_once("://")?;
    let (host, port) = parse_host_port(rest.split(['/', '?']).next()?)?;
    Some((host, port.unwrap_or(if scheme == "wss" { 443 } else { 80 })))
}

/// Reads the URL of an HTTP server: Asterisk's, or VICIdial's.
///
/// # Errors
/// Returns the reason.
pub fn http_url(text: &str) -> Result<String, String> {
    let rest = text.strip_prefix("http://").or_else(|| text.strip_prefix("https://"));
    let plain = text.chars().all(|c| c.is_ascii_graphic() && !"\"\\`'?#".contains(c));
    let host = rest.and_then(|rest| rest.split('/').next());
    match host.filter(|host| plain && !host.contains('@')).and_then(parse_host_port) {
        Some(_) => Ok(text.trim_end_matches('/').to_owned()),
        None => Err(format!(
            "\"{text}\" is not the URL of a web server; write http://HOST or https://…"
        )),
    }
}

/// Reads *User Start* of the remote agent.
///
/// # Errors
/// Returns the reason.
pub fn remote_agent(text: &str) -> Result<String, String> {
    match !text.is_empty() && text.len() <= 20 && text.bytes().all(|b| b.is_ascii_digit()) {
        true => Ok(text.to_owned()),
        false => Err(format!("\"{text}\" is not a User Start; write a number such as 7001")),
    }
}

/// Reads the most calls at once.
///
/// # Errors
/// Returns the reason.
pub fn calls(text: &str) -> Result<usize, String> {
    match text.parse() {
        Ok(calls @ 1..=32_000) => Ok(calls),
        _ => Err(format!("\"{text}\" is not a number of calls from 1 to 32000")),
    }
}

/// The answers about VICIdial's API.
#[derive(Debug, Clone)]
pub struct Vicidial {
    pub url: String,
    pub user: String,
    pub remote_agent: String,
}

/// Everything that the files are made of.
#[derive(Debug, Clone)]
pub struct Answers {
    pub flavour: Flavour,
    pub mode: Mode,
    pub driver: Driver,
    /// In SIP mode the registrar; in ARI mode Asterisk's HTTP server.
    pub pbx: Address,
    /// The extension to register as, or the ARI user.
    pub username: String,
    /// The number that reaches the AI.
    pub extension: String,
    pub humans: Humans,
    /// The context of the phones that may dial the AI, on plain Asterisk.
    pub phones: Option<String>,
    pub ai_url: String,
    pub app: String,
    pub calls: usize,
    pub listen: SocketAddr,
    /// The ports for RTP.
    pub ports: (u16, u16),
    pub http: SocketAddr,
    /// The PBX takes SIP over TCP only.
    pub tcp: bool,
    /// Our address as the PBX sees it, if it is not the one of the route.
    pub advertised: Option<IpAddr>,
    /// The PBX's address, if it is an address of this host.
    pub same_host: Option<IpAddr>,
    /// The PBX's RTP range can be read here.
    pub rtp_known: bool,
    pub vicidial: Option<Vicidial>,
    /// The folder of the configuration, as an absolute path.
    pub directory: PathBuf,
    /// Asterisk's folder on the PBX.
    pub asterisk: PathBuf,
}

impl Answers {
    /// The address of Asterisk's HTTP server, in ARI mode.
    pub fn ari_url(&self) -> String {
        format!("http://{}:{}", self.pbx.host, self.pbx.port.unwrap_or(ARI_PORT))
    }

    /// The path of a file of the configuration's folder.
    pub fn path(&self, name: &str) -> String {
        self.directory.join(name).display().to_string()
    }
}

/// The passwords that go into the files.
#[derive(Clone)]
pub struct Secrets {
    /// Of the extension, or of the ARI user.
    pub pbx: String,
    /// Of VICIdial's API user.
    pub vicidial: Option<String>,
}

/// The names of the files with the secrets.
pub const PBX_PASSWORD: &str = "pbx.password";
pub const VICIDIAL_PASSWORD: &str = "vicidial.password";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn destinations_are_read() {
        let place = |text: &str| Ok(Humans::Place(text.to_owned()));
        let (asterisk, freepbx) = (Flavour::Asterisk, Flavour::FreePbx);
        assert_eq!(Humans::parse("queues, 600,1", asterisk), place("queues,600,1"));
        assert_eq!(Humans::parse("600", freepbx), place("from-internal,600,1"));
        let phones = Humans::Phones("PJSIP/1001&SIP/bob".to_owned());
        assert_eq!(Humans::parse("PJSIP/1001&SIP/bob", asterisk), Ok(phones));
        let group = Humans::InGroup("SALESLINE".to_owned());
        assert_eq!(Humans::parse("SALESLINE", Flavour::Vicidial), Ok(group));
        for bad in ["", "600", "a,b", "a,b,1)", "PJSIP/", "PJSIP/1&", "/1", "x;y,1,1", "PJSIP/1,30"]
        {
            assert!(Humans::parse(bad, asterisk).is_err(), "{bad}");
        }
        for bad in ["", "S", "SALES LINE", "A*B"] {
            assert!(Humans::parse(bad, Flavour::Vicidial).is_err(), "{bad}");
        }
    }

    #[test]
    fn other_answers_are_read() {
        for good in ["ws://127.0.0.1:8080", "wss://ai.example.com/media?x=1", "ws://[::1]:9/"] {
            assert!(ai_url(good).is_ok(), "{good}");
        }
        for bad in
            ["", "127.0.0.1:8080", "http://x", "ws://", "ws://u:p@x", "ws://x/\"", "ws://a b"]
        {
            assert!(ai_url(bad).is_err(), "{bad}");
        }
        assert_eq!(http_url("http://192.0.2.1/"), Ok("http://192.0.2.1".to_owned()));
        assert!(http_url("ftp://x").is_err() && http_url("http://x?y").is_err());
        assert!(extension("8010").is_ok() && extension("_8X").is_err() && extension("").is_err());
        assert!(name("ai").is_ok() && name("general").is_err() && name("a b").is_err());
        assert!(calls("0").is_err() && calls("200") == Ok(200) && calls("x").is_err());
        assert!("192.0.2.1:0".parse::<Address>().is_err() && "x y".parse::<Address>().is_err());
        assert_eq!("[::1]:5060".parse::<Address>().unwrap().to_string(), "[::1]:5060");
    }
}
