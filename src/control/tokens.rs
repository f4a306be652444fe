//! The tokens of the control API: who may read, and who may give commands.

use secrecy::{ExposeSecret, SecretString};
use sha2::{Digest, Sha256};
use subtle::ConstantTimeEq;

/// A permission of a token.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Scope {
    /// To see calls and their events.
    Read,
    /// To give commands to calls.
    Control,
}

impl Scope {
    /// The word in the configuration.
    pub fn name(self) -> &'static str {
        match self {
            Scope::Read => "read",
            Scope::Control => "control",
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

/// The clients that may use the control API. A reload may change them.
#[derive(Debug, Default)]
pub struct Access {
    pub tokens: Vec<Token>,
    /// Names that a Host may have, besides addresses.
    pub hosts: Vec<String>,
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
