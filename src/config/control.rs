//! The `[control]` table: its tokens, and the checks that serde cannot make.

use secrecy::ExposeSecret;

use crate::config::check::Findings;
use crate::config::resolve::Resolver;
use crate::config::schema::Settings;
use crate::control::tokens::{Scope, Token};
use crate::notices::NoticesSettings;

/// The shortest token, in characters. Shorter ones can be guessed.
const MIN_TOKEN: usize = 16;

impl Resolver<'_> {
    pub(super) fn notices(
        &self,
        settings: &Settings,
        findings: &mut Findings,
    ) -> Option<NoticesSettings> {
        let keys = &settings.webhook;
        let secret = [
            &keys.secret.as_ref().map(|secret| secret.expose_secret().to_owned()),
            &keys.secret_env,
            &keys.secret_file,
        ];
        let webhook = self.a_webhook("webhook", &keys.url, secret, keys.ca_file.as_deref());
        let webhook = findings.keep(webhook).flatten()?;
        Some(NoticesSettings { webhook, directory: keys.directory.clone().into() })
    }

    pub(super) fn tokens(&self, settings: &Settings, findings: &mut Findings) -> Vec<Token> {
        let control = &settings.control;
        let mut tokens = Vec::new();
        for (name, table) in &control.tokens {
            let key = format!("control.tokens.{name}.token");
            let forms = [
                &table.token.as_ref().map(|token| token.expose_secret().to_owned()),
                &table.token_env,
                &table.token_file,
            ];
            let Some(secret) = findings.keep(self.secret(&key, forms)) else { continue };
            let Some(secret) = secret else {
                let why = "is missing; set token_env, token_file or token";
                findings.error(self.source.error(&key, why));
                continue;
            };
            if secret.expose_secret().chars().count() < MIN_TOKEN {
                let why = format!(
                    "is shorter than {MIN_TOKEN} characters; openssl rand -hex 24 prints a good one"
                );
                findings.error(self.source.error(&key, why));
            }
            let same = |other: &&Token| other.secret.expose_secret() == secret.expose_secret();
            if let Some(Token { name: other, .. }) = tokens.iter().find(same) {
                let why = format!("is the same as that of {other}; each name needs its own");
                findings.error(self.source.error(&key, why));
            }
            let scopes = table.scopes.clone().unwrap_or_else(|| Scope::DEFAULT.to_vec());
            tokens.push(Token { name: name.clone(), secret, scopes });
        }
        let listen = control.listen;
        if !tokens.is_empty() && !listen.ip().is_loopback() {
            let why = "the control API is reachable from other hosts, without encryption; use a \
                       loopback address, and a reverse proxy with TLS in front of it";
            findings.warnings.push(self.source.error("control.listen", why));
        }
        tokens
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use crate::config::{Source, load, resolve::resolve};

    #[test]
    fn two_tokens_with_the_same_secret_are_an_error() {
        let check = |second: &str| {
            let text = format!(
                "[ai]\nurl = \"ws://127.0.0.1:9/\"\n[pbx.main]\nmode = \"sip\"\n\
                 [pbx.main.sip]\nregister = false\npeers = [\"10.0.0.1\"]\n\
                 [control.tokens.desk]\ntoken = \"0123456789abcdef\"\n\
                 [control.tokens.wall]\ntoken = \"{second}\"\n"
            );
            let source = Source { name: "trunkless.toml".into(), text };
            let settings = load(&source, &HashMap::new()).expect("valid");
            resolve(&source, settings, &HashMap::new()).map(|plan| plan.tokens.len())
        };
        assert_eq!(check("0123456789abcdeF").ok(), Some(2));
        let error = check("0123456789abcdef").expect_err("the same").to_string();
        assert!(error.contains("wall.token: is the same as that of desk"), "{error}");
        assert!(!error.contains("0123456789"), "{error}");
    }
}
