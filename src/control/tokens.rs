//! The tokens of the control API: who may read, give commands and capture calls.

use std::sync::Arc;

use secrecy::{ExposeSecret, SecretString};
use sha2::{Digest, Sha256};
use subtle::ConstantTimeEq;

use crate::control::recordings::Recordings;
use crate::stream::breaker::Breaker;

/// A permission of a token.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Scope {
    /// To see calls and their events.
    Read,
    /// To give commands to calls.
    Control,
    /// To see phone numbers in full.
    Numbers,
    /// To hear finished recordings.
    Recordings,
    /// To listen to live calls.
    Listen,
    /// To capture calls, with what is said in them.
    Capture,
    /// To place calls.
    Dial,
}

impl Scope {
    /// The scopes of a token for which none are configured. Recordings and live audio are not among
    /// them: whoever may hear callers is named. Nor are calls out, which cost money.
    pub const DEFAULT: [Scope; 3] = [Scope::Read, Scope::Control, Scope::Numbers];

    /// The word in the configuration.
    pub fn name(self) -> &'static str {
        match self {
            Scope::Read => "read",
            Scope::Control => "control",
            Scope::Numbers => "numbers",
            Scope::Recordings => "recordings",
            Scope::Listen => "listen",
            Scope::Capture => "capture",
            Scope::Dial => "dial",
        }
    }
}

/// One token of the configuration.
#[derive(Debug, Clone)]
pub struct Token {
    /// Its name, for the log and the records of calls.
    pub name: String,
    pub secret: SecretString,
    pub scopes: Vec<Scope>,
}

impl Token {
    pub fn allows(&self, scope: Scope) -> bool {
        self.scopes.contains(&scope)
    }
}

/// The users of the control API, and what it can show. A reload may change it.
#[derive(Default)]
pub struct Access {
    pub tokens: Vec<Token>,
    /// Names that a Host may have, besides addresses.
    pub hosts: Vec<String>,
    /// Secrets that no capture may contain. Those of live calls may be from before a reload.
    pub secrets: Vec<String>,
    /// True if live calls may be listened to.
    pub listen_in: bool,
    /// The finished recordings; `None` if nothing is to be recorded.
    pub recordings: Option<Recordings>,
    /// The AIs, by what they are called.
    pub ais: Vec<(String, Arc<Breaker>)>,
}

/// Returns the token with this text. Takes the same time for each text of the same length.
pub fn find<'a>(tokens: &'a [Token], text: &str) -> Option<&'a Token> {
    let given = Sha256::digest(text);
    let mut found = None;
    for token in tokens {
        let wanted = Sha256::digest(token.secret.expose_secret());
        if bool::from(given.as_slice().ct_eq(wanted.as_slice())) {
            found = Some(token);
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_is_found_by_its_whole_text() {
        let token = |name: &str, text: &str, scopes: &[Scope]| Token {
            name: name.to_owned(),
            secret: text.into(),
            scopes: scopes.to_vec(),
        };
        let tokens =
            [token("desk", "abc", &[Scope::Read]), token("bot", "abcd", &[Scope::Control])];
        assert_eq!(find(&tokens, "abcd").map(|t| t.name.as_str()), Some("bot"));
        assert_eq!(find(&tokens, "abc").map(|t| t.name.as_str()), Some("desk"));
        assert!(find(&tokens, "abc").is_some_and(|t| !t.allows(Scope::Control)));
        for wrong in ["", "ab", "abcde", "ABC"] {
            assert!(find(&tokens, wrong).is_none(), "{wrong}");
        }
    }
}
