//! The `[telemetry]` table: where traces go.

use secrecy::{ExposeSecret as _, SecretString};

use crate::config::ConfigError;
use crate::config::check::Findings;
use crate::config::resolve::Resolver;
use crate::config::schema::Settings;
use crate::tls;
use crate::traces::TracesSettings;

/// Where a collector takes traces.
const PATH: &str = "/v1/traces";

impl Resolver<'_> {
    pub(super) fn traces(
        &self,
        settings: &Settings,
        findings: &mut Findings,
    ) -> Option<TracesSettings> {
        findings.keep(self.collector(settings)).flatten()
    }

    fn collector(&self, settings: &Settings) -> Result<Option<TracesSettings>, ConfigError> {
        let keys = &settings.telemetry;
        let forms = [
            &keys.otlp_headers.as_ref().map(|headers| headers.expose_secret().to_owned()),
            &keys.otlp_headers_env,
            &keys.otlp_headers_file,
        ];
        let headers = self.secret("telemetry.otlp_headers", forms)?;
        let Some(url) = keys.otlp_endpoint.as_deref().filter(|url| !url.is_empty()) else {
            return Ok(None);
        };
        let error = |key: &str, why: &str| self.source.error(&format!("telemetry.{key}"), why);
        if !cfg!(feature = "otel") {
            let why =
                "needs a trunkless with traces; build it with --features otel, or remove this";
            return Err(error("otlp_endpoint", why));
        }
        let parsed = reqwest::Url::parse(url).ok().filter(reqwest::Url::has_host);
        let parsed = parsed.filter(|url| ["http", "https"].contains(&url.scheme()));
        let parsed =
            parsed.ok_or_else(|| error("otlp_endpoint", "must be an http or https URL"))?;
        // the log has the URL
        if parsed.password().is_some() || !parsed.username().is_empty() || parsed.query().is_some()
        {
            let why = "may not contain a user, a password or a query; set otlp_headers instead";
            return Err(error("otlp_endpoint", why));
        }
        let tls = match parsed.scheme() {
            "https" => {
                let tls = tls::client_config(keys.otlp_ca_file.as_deref());
                Some(tls.map_err(|e| error("otlp_ca_file", &e.to_string()))?)
            }
            _ => None,
        };
        let url = url.trim_end_matches('/');
        let endpoint = if url.ends_with(PATH) { url.to_owned() } else { format!("{url}{PATH}") };
        let headers = headers.map(|headers| fields(headers.expose_secret())).unwrap_or_default();
        let headers = headers.ok_or_else(|| {
            let why = "must be name=value, several separated by commas";
            error("otlp_headers", why)
        })?;
        Ok(Some(TracesSettings { endpoint, headers, tls }))
    }
}

/// Reads `name=value,name=value`; `None` if it is anything else.
fn fields(text: &str) -> Option<Vec<(String, SecretString)>> {
    let parts = text.split(',').map(str::trim).filter(|part| !part.is_empty());
    let field = |part: &str| {
        let (name, value) = part.split_once('=')?;
        let name = reqwest::header::HeaderName::try_from(name.trim()).ok()?;
        reqwest::header::HeaderValue::try_from(value.trim()).ok()?;
        Some((name.to_string(), value.trim().into()))
    };
    parts.map(field).collect()
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use super::*;
    use crate::config::{Source, load, resolve::resolve};

    /// Returns the endpoint and the number of header fields, or the error.
    fn check(keys: &str) -> Result<Option<(String, usize)>, String> {
        let text = format!(
            "[ai]\nurl = \"ws://127.0.0.1:9/\"\n[pbx.main]\nmode = \"sip\"\n[pbx.main.sip]\n\
             register = false\npeers = [\"10.0.0.1\"]\n[telemetry]\n{keys}\n"
        );
        let source = Source { name: "trunkless.toml".into(), text };
        let settings = load(&source, &HashMap::new()).expect("valid");
        let plan = resolve(&source, settings, &HashMap::new()).map_err(|e| e.to_string())?;
        Ok(plan.traces.map(|traces| (traces.endpoint, traces.headers.len())))
    }

    #[cfg(not(feature = "otel"))]
    #[test]
    fn without_the_feature_a_collector_is_an_error() {
        let error = check("otlp_endpoint = \"http://127.0.0.1:4318\"").expect_err("no feature");
        assert!(error.contains("build it with --features otel"), "{error}");
        assert_eq!(check("otlp_headers = \"a=b\""), Ok(None));
    }

    #[cfg(feature = "otel")]
    #[test]
    fn a_collector_has_a_url_and_headers() {
        let url = "http://127.0.0.1:4318";
        let full = Ok(Some((format!("{url}/v1/traces"), 2)));
        for tail in ["", "/", "/v1/traces", "/v1/traces/"] {
            let keys = format!("otlp_endpoint = \"{url}{tail}\"\notlp_headers = \"a=b=, X-c = d\"");
            assert_eq!(check(&keys), full, "{tail}");
        }
        assert_eq!(check(""), Ok(None));
        for (keys, part) in [
            ("otlp_endpoint = \"collector:4318\"", "must be an http or https URL"),
            ("otlp_endpoint = \"http://me:secret@c\"", "set otlp_headers instead"),
            ("otlp_endpoint = \"http://c?key=secret\"", "set otlp_headers instead"),
            ("otlp_endpoint = \"http://c\"\notlp_headers = \"secret\"", "must be name=value"),
        ] {
            let error = check(keys).expect_err(keys);
            assert!(error.contains(part) && !error.contains("secret@"), "{error}");
        }
    }

    #[test]
    fn header_fields_are_pairs() {
        assert_eq!(fields("").map(|all| all.len()), Some(0));
        assert!(fields("a").is_none() && fields("a b=c").is_none());
        let all = fields("Authorization=Basic YTpi, x=1").expect("two");
        assert_eq!(all[0].0, "authorization");
        assert_eq!(all[0].1.expose_secret(), "Basic YTpi");
    }
}
