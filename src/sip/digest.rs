//! Digest authentication (RFC 7616, RFC 8760; RFC 2069 for challenges without qop, which chan_sip
//! sends).
#![deny(clippy::disallowed_methods, clippy::disallowed_types)]

use md5::Md5;
use sha2::{Digest, Sha256, Sha512_256};

use crate::sip::header::{quote, split_outside, unquote};

/// Hash algorithms, in ascending order of strength.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Algorithm {
    Md5,
    Sha256,
    Sha512_256,
}

impl Algorithm {
    fn parse(text: &str) -> Option<Algorithm> {
        match text.to_ascii_uppercase().as_str() {
            "MD5" => Some(Algorithm::Md5),
            "SHA-256" => Some(Algorithm::Sha256),
            "SHA-512-256" => Some(Algorithm::Sha512_256),
            _ => None,
        }
    }

    pub fn name(self) -> &'static str {
        match self {
            Algorithm::Md5 => "MD5",
            Algorithm::Sha256 => "SHA-256",
            Algorithm::Sha512_256 => "SHA-512-256",
        }
    }

    fn hash(self, text: &str) -> String {
        fn hex(bytes: &[u8]) -> String {
            bytes.iter().map(|b| format!("{b:02x}")).collect()
        }
        match self {
            Algorithm::Md5 => hex(&Md5::digest(text)),
            Algorithm::Sha256 => hex(&Sha256::digest(text)),
            Algorithm::Sha512_256 => hex(&Sha512_256::digest(text)),
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Qop {
    /// The challenge has no qop; the response is computed as in RFC 2069.
    Absent,
    Auth,
    AuthInt,
}

/// A challenge from a 401 or 407 that we can answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Challenge {
    pub realm: String,
    pub nonce: String,
    pub opaque: Option<String>,
    pub algorithm: Algorithm,
    pub qop: Qop,
    pub stale: bool,
}

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ChallengeError {
    #[error("no challenge with a supported algorithm (MD5, SHA-256, SHA-512-256) and qop")]
    Unsupported,
    #[error("the challenge is for realm \"{0}\", not the configured realm")]
    WrongRealm(String),
}

impl Challenge {
    /// Parses a `WWW-Authenticate` or `Proxy-Authenticate` value. Returns `None` for a challenge
    /// that we cannot answer.
    pub fn parse(value: &str) -> Option<Challenge> {
        let fields = parse_fields(value)?;
        let get = |name: &str| fields.iter().find(|(n, _)| n == name).map(|(_, v)| v.as_str());
        let qop = match get("qop") {
            None => Qop::Absent,
            Some(offered) => {
                let has = |q: &str| offered.split(',').any(|o| o.trim().eq_ignore_ascii_case(q));
                if has("auth") {
                    Qop::Auth
                } else if has("auth-int") {
                    Qop::AuthInt
                } else {
                    return None;
                }
            }
        };
        Some(Challenge {
            realm: get("realm")?.to_owned(),
            nonce: get("nonce")?.to_owned(),
            opaque: get("opaque").map(str::to_owned),
            algorithm: Algorithm::parse(get("algorithm").unwrap_or("MD5"))?,
            qop,
            stale: get("stale").is_some_and(|s| s.eq_ignore_ascii_case("true")),
        })
    }
}

/// Parses `Digest a="b", c=d` into lower-case names and unquoted values. Returns `None` for any
/// other scheme.
pub fn parse_fields(value: &str) -> Option<Vec<(String, String)>> {
    let (scheme, rest) = value.trim().split_once([' ', '\t'])?;
    if !scheme.eq_ignore_ascii_case("Digest") {
        return None;
    }
    let pairs = split_outside(rest, ',')?.into_iter().filter(|p| !p.is_empty());
    let pairs = pairs.filter_map(|pair| {
        let (name, value) = pair.split_once('=')?;
        Some((name.trim().to_ascii_lowercase(), unquote(value.trim())))
    });
    Some(pairs.collect())
}

/// User name and password for the response to a challenge.
#[derive(Clone, Copy)]
pub struct Credentials<'a> {
    pub username: &'a str,
    pub password: &'a str,
}

/// The parts of a request that the digest covers.
#[derive(Debug, Clone, Copy)]
pub struct Signed<'a> {
    pub method: &'a str,
    pub uri: &'a str,
    pub body: &'a str,
}

/// A challenge that we are answering, with a count of the uses of its nonce.
#[derive(Debug, Clone)]
pub struct Session {
    pub challenge: Challenge,
    /// Number of uses of the nonce so far; sent as `nc`.
    nonce_count: u32,
}

impl Session {
    pub fn new(challenge: Challenge) -> Session {
        Session { challenge, nonce_count: 0 }
    }

    /// Returns the `Authorization` value for a request. Each call counts as one use of the nonce.
    pub fn authorize(&mut self, signed: Signed<'_>, who: Credentials<'_>, cnonce: &str) -> String {
        self.nonce_count += 1;
        let challenge = &self.challenge;
        let nc = format!("{:08x}", self.nonce_count);
        let response = response(challenge, signed, who, &nc, cnonce);
        let mut out = format!(
            "Digest username={}, realm={}, nonce={}, uri={}, response=\"{response}\", algorithm={}",
            quote(who.username),
            quote(&challenge.realm),
            quote(&challenge.nonce),
            quote(signed.uri),
            challenge.algorithm.name(),
        );
        match challenge.qop {
            Qop::Absent => {}
            Qop::Auth => out += &format!(", qop=auth, nc={nc}, cnonce=\"{cnonce}\""),
            Qop::AuthInt => out += &format!(", qop=auth-int, nc={nc}, cnonce=\"{cnonce}\""),
        }
        if let Some(opaque) = &challenge.opaque {
            out += &format!(", opaque={}", quote(opaque));
        }
        out
    }
}

/// Computes the `response` parameter (RFC 7616 §3.4.1).
fn response(
    challenge: &Challenge,
    signed: Signed<'_>,
    who: Credentials<'_>,
    nc: &str,
    cnonce: &str,
) -> String {
    let hash = |text: String| challenge.algorithm.hash(&text);
    let ha1 = hash(format!("{}:{}:{}", who.username, challenge.realm, who.password));
    let Signed { method, uri, body } = signed;
    let nonce = &challenge.nonce;
    match challenge.qop {
        Qop::Absent => hash(format!("{ha1}:{nonce}:{}", hash(format!("{method}:{uri}")))),
        Qop::Auth => {
            let ha2 = hash(format!("{method}:{uri}"));
            hash(format!("{ha1}:{nonce}:{nc}:{cnonce}:auth:{ha2}"))
        }
        Qop::AuthInt => {
            let ha2 = hash(format!("{method}:{uri}:{}", hash(body.to_owned())));
            hash(format!("{ha1}:{nonce}:{nc}:{cnonce}:auth-int:{ha2}"))
        }
    }
}

/// The registrar's check: true if the `Authorization` value answers `challenge` with this password.
pub fn verify(
    challenge: &Challenge,
    authorization: &str,
    signed: Signed<'_>,
    who: Credentials<'_>,
) -> bool {
    let Some(fields) = parse_fields(authorization) else { return false };
    let get = |name: &str| {
        fields.iter().find(|(n, _)| n == name).map(|(_, v)| v.as_str()).unwrap_or_default()
    };
    get("username") == who.username
        && get("nonce") == challenge.nonce
        && get("realm") == challenge.realm
        && get("uri") == signed.uri
        && get("response") == response(challenge, signed, who, get("nc"), get("cnonce"))
}

#[cfg(test)]
mod tests {
    use super::*;

    const MUFASA: Credentials<'static> =
        Credentials { username: "Mufasa", password: "Circle of Life" };
    const GET: Signed<'static> = Signed { method: "GET", uri: "/dir/index.html", body: "" };

    /// RFC 7616 §3.9.1, with both algorithms.
    #[test]
    fn rfc7616_vectors() {
        let cnonce = "f2/wE4q74E6zIJEtWaHKaf5wv/H5QzzpXusqGemxURZJ";
        let text = r#"Digest realm="http-auth@example.org", qop="auth, auth-int", algorithm=ALG,
            nonce="7ypf/xlj9XXwfDPEoM4URrv/xwf94BcCAzFZH4GiTo0v", opaque="FQhe""#;
        let table = [
            ("MD5", "8ca523f5e9506fed4657c9700eebdbec"),
            ("SHA-256", "753927fa0e85d155564e2e272a28d1802ca10daf4496794697cf8db5856cb6c1"),
        ];
        for (algorithm, expected) in table {
            let challenge = Challenge::parse(&text.replace("ALG", algorithm)).unwrap();
            let mut session = Session::new(challenge.clone());
            let value = session.authorize(GET, MUFASA, cnonce);
            assert!(value.contains(&format!("response=\"{expected}\"")), "{value}");
            assert!(value.contains("nc=00000001") && value.contains("opaque=\"FQhe\""));
            assert!(verify(&challenge, &value, GET, MUFASA));
            let wrong = Credentials { password: "x", ..MUFASA };
            assert!(!verify(&challenge, &value, GET, wrong));
        }
    }

    /// An exchange that a real chan_sip accepted.
    #[test]
    fn answers_a_chan_sip_challenge_without_qop() {
        let challenge =
            Challenge::parse(r#"Digest algorithm=MD5, realm="asterisk", nonce="32a8239f""#)
                .unwrap();
        assert_eq!(challenge.qop, Qop::Absent);
        let signed = Signed { method: "REGISTER", uri: "sip:127.0.0.2", body: "" };
        let who = Credentials { username: "cc100", password: "test" };
        let value = Session::new(challenge).authorize(signed, who, "unused");
        assert!(value.contains("response=\"54e7a9ea7909b02a0776b287e5fb3ded\""), "{value}");
        assert!(!value.contains("qop") && !value.contains("cnonce"));
    }

    #[test]
    fn uses_of_the_nonce_are_counted() {
        let challenge = Challenge::parse("Digest realm=\"a\", nonce=\"1\", qop=auth").unwrap();
        let mut session = Session::new(challenge);
        session.authorize(GET, MUFASA, "c");
        assert!(session.authorize(GET, MUFASA, "c").contains("nc=00000002"));
    }
}
