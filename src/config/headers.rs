//! `[ai] sip_headers`: the header fields of an INVITE that are passed to the AI.

use crate::config::ConfigError;
use crate::config::check::Findings;
use crate::config::resolve::Resolver;
use crate::config::schema::Ai;
use crate::sip::header::{full_name, is_token};

/// Maximum number of names.
const MAX_NAMES: usize = 32;
/// Header fields with credentials, which must not leave this machine.
const SECRET: [&str; 2] = ["Authorization", "Proxy-Authorization"];

impl Resolver<'_> {
    /// Returns the names for the PBX `name`, from its own table or else from `[ai]`.
    pub(super) fn sip_headers(
        &self,
        name: &str,
        common: &Ai,
        own: &Ai,
    ) -> Result<Vec<String>, ConfigError> {
        let (key, names) = sip_headers(name, common, own);
        let key = key.as_str();
        if names.len() > MAX_NAMES {
            return Err(self.source.error(key, format!("has more than {MAX_NAMES} names")));
        }
        for name in names {
            if !is_token(name) || name == "*" {
                let why = "is not the name of a header field; list them, such as \"Diversion\"";
                return Err(self.source.error(key, format!("{name:?} {why}")));
            }
            if SECRET.iter().any(|secret| secret.eq_ignore_ascii_case(name)) {
                let why = "contains credentials and is never passed on; remove it";
                return Err(self.source.error(key, format!("{name} {why}")));
            }
        }
        Ok(names.iter().map(|name| full_name(name).to_owned()).collect())
    }

    /// Warns that the names have no effect for a PBX in ARI mode, which shows us no INVITE.
    pub(super) fn sip_headers_in_ari(
        &self,
        name: &str,
        common: &Ai,
        own: &Ai,
        findings: &mut Findings,
    ) {
        let (key, names) = sip_headers(name, common, own);
        if names.is_empty() {
            return;
        }
        let why = format!(
            "has no effect in ARI mode; list PJSIP_HEADER(read,NAME) in [pbx.{name}.ari] variables"
        );
        findings.warnings.push(self.source.error(&key, why));
    }
}

/// Returns the key that sets the names, and the names.
fn sip_headers<'a>(name: &str, common: &'a Ai, own: &'a Ai) -> (String, &'a [String]) {
    match (&own.sip_headers, &common.sip_headers) {
        (Some(names), _) => (format!("pbx.{name}.ai.sip_headers"), names),
        (None, Some(names)) => ("ai.sip_headers".to_owned(), names),
        (None, None) => ("ai.sip_headers".to_owned(), &[]),
    }
}

/// Returns the X- headers to pass on; `*` means all of them.
pub(super) fn x_headers(common: &Ai, own: &Ai) -> Vec<String> {
    let names = own.x_headers.as_ref().or(common.x_headers.as_ref());
    names.cloned().unwrap_or_else(|| vec!["*".to_owned()])
}
