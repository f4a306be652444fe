//! `[pbx.NAME.ari]`: the keys become settings of the ARI client.

use std::path::PathBuf;
use std::sync::Arc;

use secrecy::ExposeSecret;

use crate::ari::client::AriPbx;
use crate::ari::client::rest::Target;
use crate::config::ConfigError;
use crate::config::check::Findings;
use crate::config::resolve::Resolver;
use crate::config::schema::{MediaFormat, PbxAri};
use crate::media::g711::Law;
use crate::sip::uri::parse_host_port;
use crate::tls;

/// Asterisk's default ports, for a URL that names none.
const PORT: u16 = 8088;
const TLS_PORT: u16 = 8089;
const APP: &str = "trunkless";

/// The parts of an ARI URL.
#[derive(Debug, PartialEq, Eq)]
struct Base {
    /// The normalised URL, without the `/ari` at its end.
    text: String,
    host: String,
    port: u16,
    secure: bool,
}

impl Base {
    /// Parses `http[s]://host[:port][/prefix]`. A trailing `/ari` is dropped.
    fn parse(url: &str) -> Option<Base> {
        let (secure, rest) = match url.strip_prefix("https://") {
            Some(rest) => (true, rest),
            None => (false, url.strip_prefix("http://")?),
        };
        let (authority, path) = rest.split_once('/').unwrap_or((rest, ""));
        let (host, port) = parse_host_port(authority)?;
        let path = path.trim_end_matches('/');
        let path = if path == "ari" { "" } else { path.strip_suffix("/ari").unwrap_or(path) };
        let odd = |c: char| c.is_whitespace() || c.is_control() || "?#@".contains(c);
        if path.contains(odd) || port == Some(0) {
            return None;
        }
        let port = port.unwrap_or(if secure { TLS_PORT } else { PORT });
        let scheme = if secure { "https" } else { "http" };
        let slash = if path.is_empty() { "" } else { "/" };
        let text = format!("{scheme}://{host}:{port}{slash}{path}");
        let host = host.to_string().trim_matches(['[', ']']).to_owned();
        Some(Base { text, host, port, secure })
    }
}

impl Resolver<'_> {
    /// The address of Asterisk's HTTP server.
    fn base(&self, key: &str, ari: &PbxAri) -> Result<Base, ConfigError> {
        let url = ari.url.clone().unwrap_or_else(|| format!("http://127.0.0.1:{PORT}"));
        let why = "is not a URL of Asterisk's HTTP server, such as \"http://127.0.0.1:8088\"";
        Base::parse(&url).ok_or_else(|| match url.contains('@') {
            true => {
                let why = format!("{why}; remove the user and password from it");
                self.source.error(key, why)
            }
            false => self.source.error(key, format!("\"{url}\" {why}")),
        })
    }

    pub(super) fn ari(
        &self,
        name: &str,
        ari: Option<&PbxAri>,
        findings: &mut Findings,
    ) -> Option<AriPbx> {
        let key = |rest: &str| format!("pbx.{name}.ari.{rest}");
        let Some(ari) = ari else {
            let message = format!("mode = \"ari\" needs a table [pbx.{name}.ari]");
            findings.error(self.source.error(&format!("pbx.{name}.ari"), message));
            return None;
        };
        let base = findings.keep(self.base(&key("url"), ari));
        let mut wrong = |rest: &str, why: String| {
            findings.error(self.source.error(&key(rest), why));
        };
        let username = ari.username.clone().filter(|u| !u.is_empty());
        if username.is_none() {
            wrong("username", "is missing; set it to a user of ari.conf".to_owned());
        } else if username.as_ref().is_some_and(|user| user.contains(':')) {
            wrong("username", "must not contain a colon".to_owned());
        }
        let app = ari.app.clone().unwrap_or_else(|| APP.to_owned());
        let good = |b: u8| b.is_ascii_alphanumeric() || b"_-.".contains(&b);
        if app.is_empty() || app.len() > 64 || !app.bytes().all(good) {
            let why = "is not a valid Stasis application name; use up to 64 letters, digits, _ - .";
            wrong("app", format!("\"{app}\" {why}"));
        }
        let variables = ari.variables.clone().unwrap_or_default();
        if let Some(bad) = variables.iter().find(|v| v.is_empty() || v.contains(char::is_control)) {
            wrong("variables", format!("{bad:?} is not a valid channel variable name"));
        }
        let password = self.password(
            name,
            "ari",
            [
                &ari.password.as_ref().map(|p| p.expose_secret().to_owned()),
                &ari.password_env,
                &ari.password_file,
            ],
            findings,
        );
        let base = base?;
        let tls = match base.secure {
            false => None,
            true => {
                let tls = tls::client_config(ari.ca_file.as_deref());
                let tls = tls.map_err(|e| self.source.error(&key("ca_file"), e.to_string()));
                Some(Arc::new(findings.keep(tls)?))
            }
        };
        let (username, password) = (username?, password?);
        Some(AriPbx {
            name: name.to_owned(),
            target: Target {
                base: base.text,
                host: base.host,
                port: base.port,
                username,
                password,
                tls,
            },
            app,
            law: if ari.format == Some(MediaFormat::Alaw) { Law::A } else { Law::Mu },
            max_media: ari.max_media,
            rtp_conf: ari.rtp_conf.as_deref().map(PathBuf::from),
            advertised: ari.advertised,
            variables,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn urls() {
        let base = |url: &str| Base::parse(url).map(|b| b.text);
        let same =
            |url: &str, wanted: &str| assert_eq!(base(url).as_deref(), Some(wanted), "{url}");
        same("http://127.0.0.1:8088", "http://127.0.0.1:8088");
        same("http://pbx/", "http://pbx:8088");
        same("https://pbx/ari", "https://pbx:8089");
        same("http://pbx:80/asterisk/ari/", "http://pbx:80/asterisk");
        same("http://pbx/safari", "http://pbx:8088/safari");
        same("http://[2001:db8::1]:9", "http://[2001:db8::1]:9");
        assert_eq!(Base::parse("http://[::1]").unwrap().host, "::1");
        for bad in ["127.0.0.1:8088", "ws://pbx", "http://", "http://u:p@pbx", "http://pbx:0", ""] {
            assert_eq!(base(bad), None, "{bad}");
        }
    }
}
