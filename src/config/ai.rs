//! The AI of one PBX, or one of `[endpoint.NAME]`: `[pbx.NAME.ai]` combined with `[ai]`.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use secrecy::{ExposeSecret, SecretString};
use serde_json::Value;

use crate::config::ConfigError;
use crate::config::create::CreateTable;
use crate::config::headers::x_headers;
use crate::config::plan::AiPlan;
use crate::config::resolve::Resolver;
use crate::config::schema::Ai;
use crate::config::values::Span;
use crate::outbox::webhook::{Webhook, WebhookError};
use crate::stream::connect::{Target, TargetError, TargetOptions};
use crate::stream::dialect::{CALL_RATE, Dialect, Extensions, MAX_PARAMETER, Session};
use crate::stream::model;
use crate::tls::{TlsError, client_config};

/// The most connections that are kept open for one AI.
const MAX_PREWARM: usize = 100;

type Table = BTreeMap<String, String>;

/// The common settings for a PBX with this dialect, if they are those of another vendor: its URL,
/// credentials and session stay with it.
fn without_vendor(common: &Ai, dialect: Dialect) -> Option<Ai> {
    let other = common.dialect.unwrap_or_default();
    let is_vendor = other.has_session() || dialect.has_session();
    (other != dialect && is_vendor).then(|| Ai {
        url: None,
        headers: None,
        auth_token: None,
        auth_token_env: None,
        auth_token_file: None,
        session: None,
        greeting: None,
        tools: None,
        tool_webhook: None,
        create: None,
        ..common.clone()
    })
}

/// The key that an error is about, and whether the PBX has it in its own table.
fn part_of(error: &TargetError, own: &Ai) -> (&'static str, bool) {
    match error {
        TargetError::Tls(TlsError::CaFile { .. }) => ("ca_file", own.ca_file.is_some()),
        TargetError::Header(_) => ("headers", own.headers.is_some()),
        TargetError::Subprotocol(_) => ("subprotocol", own.subprotocol.is_some()),
        TargetError::ServerName(_) => ("tls_server_name", own.tls_server_name.is_some()),
        _ => ("url", own.url.is_some()),
    }
}

impl Resolver<'_> {
    /// Combines `[pbx.NAME.ai]` with `[ai]`: the PBX's own keys take precedence, and tables are
    /// merged.
    pub(super) fn ai(&self, name: &str, common: &Ai, own: &Ai) -> Result<AiPlan, ConfigError> {
        let key = |rest: &str, own_has: bool| match own_has {
            true => format!("pbx.{name}.ai.{rest}"),
            false => format!("ai.{rest}"),
        };
        let pick = |own: &Option<String>, common: &Option<String>| own.clone().or(common.clone());
        let dialect = own.dialect.or(common.dialect).unwrap_or_default();
        let apart = without_vendor(common, dialect);
        let common = apart.as_ref().unwrap_or(common);
        let session = self.session(&key, dialect, common, own)?;
        let token = self.token(name, dialect, common, own)?;
        let proxy = self.proxy(&key, common, own)?;
        let url = dialect.url(pick(&own.url, &common.url).as_deref(), &session);
        let created = own.create.as_ref().or(common.create.as_ref());
        let has_url = url.is_some();
        let created = self.created(created, dialect, token.as_deref(), has_url)?;
        let Some(url) = url.or_else(|| created.as_ref().and_then(CreateTable::as_socket)) else {
            let (missing, message) = dialect.missing();
            return Err(self.source.error(missing, message));
        };
        let merged = |own: &Option<Table>, common: &Option<Table>| {
            let mut all = common.clone().unwrap_or_default();
            all.extend(own.clone().unwrap_or_default());
            all.into_iter().collect::<Vec<(String, String)>>()
        };
        let options = TargetOptions {
            dialect,
            session,
            subprotocol: pick(&own.subprotocol, &common.subprotocol),
            headers: merged(&own.headers, &common.headers),
            auth_token: token,
            ca_file: pick(&own.ca_file, &common.ca_file),
            tls_server_name: pick(&own.tls_server_name, &common.tls_server_name),
            proxy: proxy.clone(),
            varies: created.is_some(),
        };
        let target = Target::new(&url, &options).map_err(|error| {
            let (part, own_has) = part_of(&error, own);
            self.source.error(&key(part, own_has), error.to_string())
        })?;
        let create = created.as_ref().map(|table| {
            let key = |rest: &str| key(&format!("create.{rest}"), own.create.is_some());
            self.create(&key, table, proxy, &options, has_url).map(Arc::new)
        });
        let parameters = merged(&own.parameters, &common.parameters);
        self.check_parameters(&key("parameters", own.parameters.is_some()), &parameters)?;
        // a model without a greeting is silent until spoken to
        let waits = dialect.waits_without_greeting() && options.session.greeting.is_none();
        let silent = own.silent_timeout.or(common.silent_timeout);
        let usual = Duration::from_secs(if waits { 0 } else { 15 });
        Ok(AiPlan {
            target,
            create: create.transpose()?,
            extensions: own.extensions.or(common.extensions).unwrap_or_default(),
            account_sid: pick(&own.account_sid, &common.account_sid),
            parameters,
            x_headers: x_headers(common, own),
            sip_headers: self.sip_headers(name, common, own)?,
            silent_timeout: silent.unwrap_or(Span(usual)).0,
            ping: own.ping.or(common.ping).map_or(dialect.usual_ping(), |ping| ping.0),
            tool_webhook: self.tool_webhook(name, &key, common, own)?,
            prewarm: self.prewarm(&key, dialect, created.is_some(), common, own)?,
        })
    }

    fn check_parameters(&self, key: &str, all: &[(String, String)]) -> Result<(), ConfigError> {
        let length = |text: &str| text.chars().count();
        let is_long = |(n, v): &&(String, String)| length(n).max(length(v)) > MAX_PARAMETER;
        let Some((long, _)) = all.iter().find(is_long) else { return Ok(()) };
        let message =
            format!("is too long; names and values have at most {MAX_PARAMETER} characters");
        Err(self.source.error(&format!("{key}.{long}"), message))
    }

    /// Returns a secret of a PBX's own table, or else the common one: value, variable and file.
    fn own_or_common(
        &self,
        name: &str,
        key: &str,
        own: &[Option<String>; 3],
        common: &[Option<String>; 3],
    ) -> Result<Option<SecretString>, ConfigError> {
        match self.secret(&format!("pbx.{name}.ai.{key}"), own.each_ref())? {
            Some(secret) => Ok(Some(secret)),
            None => self.secret(&format!("ai.{key}"), common.each_ref()),
        }
    }

    /// Returns the webhook for the tools of a model.
    fn tool_webhook(
        &self,
        name: &str,
        key: &dyn Fn(&str, bool) -> String,
        common: &Ai,
        own: &Ai,
    ) -> Result<Option<Arc<Webhook>>, ConfigError> {
        let Some(url) = own.tool_webhook.as_ref().or(common.tool_webhook.as_ref()) else {
            return Ok(None);
        };
        let forms = |of: &Ai| -> [Option<String>; 3] {
            let secret = of.tool_webhook_secret.as_ref().map(|s| s.expose_secret().to_owned());
            let (variable, file) = (&of.tool_webhook_secret_env, &of.tool_webhook_secret_file);
            [secret, variable.clone(), file.clone()]
        };
        let (own_forms, common_forms) = (forms(own), forms(common));
        let secret = self.own_or_common(name, "tool_webhook_secret", &own_forms, &common_forms)?;
        let url_key = key("tool_webhook", own.tool_webhook.is_some());
        let tls = match url.starts_with("https://") {
            false => None,
            true => {
                Some(client_config(None).map_err(|e| self.source.error(&url_key, e.to_string()))?)
            }
        };
        let webhook = Webhook::new(url, secret.as_ref(), tls).map_err(|why| match why {
            WebhookError::Secret => {
                let own_has = own_forms.iter().any(Option::is_some);
                self.source.error(&key("tool_webhook_secret", own_has), why.to_string())
            }
            _ => self.source.error(&url_key, why.to_string()),
        })?;
        Ok(Some(Arc::new(webhook)))
    }

    /// Returns the token for the handshake.
    fn token(
        &self,
        name: &str,
        dialect: Dialect,
        common: &Ai,
        own: &Ai,
    ) -> Result<Option<String>, ConfigError> {
        let forms = |of: &Ai| -> [Option<String>; 3] {
            let value = of.auth_token.as_ref().map(|secret| secret.expose_secret().to_owned());
            [value, of.auth_token_env.clone(), of.auth_token_file.clone()]
        };
        let own_forms = forms(own);
        let token = self.own_or_common(name, "auth_token", &own_forms, &forms(common))?;
        // a token for another dialect may be in [ai]
        let own_has = own_forms.iter().any(Option::is_some);
        if token.is_some() && !dialect.has_token() && (own_has || own.dialect.is_none()) {
            let message = "has no effect in this dialect; set Authorization in headers instead";
            let part = if own_has { format!("pbx.{name}.ai") } else { "ai".to_owned() };
            return Err(self.source.error(&format!("{part}.auth_token"), message));
        }
        Ok(token.map(|token| token.expose_secret().to_owned()))
    }

    /// Returns the session of a model.
    fn session(
        &self,
        key: &dyn Fn(&str, bool) -> String,
        dialect: Dialect,
        common: &Ai,
        own: &Ai,
    ) -> Result<Session, ConfigError> {
        let given = [
            ("session", own.session.is_some(), common.session.is_some()),
            ("greeting", own.greeting.is_some(), common.greeting.is_some()),
            ("tools", own.tools.is_some(), common.tools.is_some()),
            ("tool_webhook", own.tool_webhook.is_some(), common.tool_webhook.is_some()),
        ];
        if !dialect.has_session()
            && let Some((name, own_has, _)) = given.into_iter().find(|(_, own, all)| *own || *all)
        {
            let message = "applies only to the dialect of a model; set dialect, or remove it";
            return Err(self.source.error(&key(name, own_has), message));
        }
        let tools = own.tools.clone().or(common.tools.clone());
        let unknown = tools.iter().flatten().find(|name| !model::TOOLS.contains(&name.as_str()));
        if let Some(name) = unknown {
            let message = format!("\"{name}\" is not one of: {}", model::TOOLS.join(", "));
            return Err(self.source.error(&key("tools", own.tools.is_some()), message));
        }
        let mut settings = common.session.clone();
        if let Some(own) = &own.session {
            settings.get_or_insert_default().extend(own.clone());
        }
        let settings = settings.map(Value::Object);
        // without our own messages, a model has no commands either
        let off = own.extensions.or(common.extensions) == Some(Extensions::Off);
        let tools = tools.or_else(|| off.then(Vec::new));
        let greeting = own.greeting.clone().or(common.greeting.clone());
        let sample_rate = self.sample_rate(key, dialect, common, own)?;
        let session = Session { settings, greeting, tools, sample_rate };
        dialect.check(&session).map_err(|(part, why)| {
            let key = key("session", own.session.is_some());
            self.source.error(&format!("{key}.{part}"), why)
        })?;
        Ok(session)
    }

    /// Returns how many connections are kept open.
    fn prewarm(
        &self,
        key: &dyn Fn(&str, bool) -> String,
        dialect: Dialect,
        is_created: bool,
        common: &Ai,
        own: &Ai,
    ) -> Result<usize, ConfigError> {
        // a number for another AI may be in [ai]
        let own_has = own.prewarm.is_some();
        let refused = if is_created {
            Some("cannot be used with [ai.create], whose request comes before each connection")
        } else if !dialect.connects_early() {
            Some("cannot be used in this dialect, where the vendor charges for each connection")
        } else {
            None
        };
        let size = own.prewarm.or(common.prewarm).unwrap_or_default();
        let error = |message: String| Err(self.source.error(&key("prewarm", own_has), message));
        match refused {
            Some(why) if size > 0 && (own_has || own.dialect.is_none() && own.create.is_none()) => {
                error(format!("{why}; remove it"))
            }
            Some(_) => Ok(0),
            None if size > MAX_PREWARM => {
                error(format!("{size} is too much; at most {MAX_PREWARM} connections"))
            }
            None => Ok(size),
        }
    }

    /// Returns the sample rate of linear audio, if one is set.
    fn sample_rate(
        &self,
        key: &dyn Fn(&str, bool) -> String,
        dialect: Dialect,
        common: &Ai,
        own: &Ai,
    ) -> Result<Option<u32>, ConfigError> {
        let known = dialect.sample_rates();
        // a rate for another dialect may be in [ai]
        let common_rate = common.sample_rate;
        let common_rate = common_rate.filter(|rate| own.dialect.is_none() || known.contains(rate));
        let Some(rate) = own.sample_rate.or(common_rate) else { return Ok(None) };
        if known.contains(&rate) {
            return Ok(Some(rate));
        }
        if rate == CALL_RATE {
            return Ok(None);
        }
        let words: Vec<String> = known.iter().map(u32::to_string).collect();
        let message = match known {
            [] => "cannot be set in this dialect, which has 8000 only; remove it".to_owned(),
            _ => format!("{rate} is not one of: {}", words.join(", ")),
        };
        Err(self.source.error(&key("sample_rate", own.sample_rate.is_some()), message))
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use crate::config::{Source, load, resolve::resolve};

    /// The connections kept open for the AI of `[pbx.main]`, and for `[endpoint.other]`.
    fn kept(ai: &str, other: &str) -> Result<[usize; 2], String> {
        let text = format!(
            "[ai]\nurl = \"ws://127.0.0.1:9/\"\n{ai}\n[endpoint.other]\n{other}\n[pbx.main]\n\
             mode = \"sip\"\n[pbx.main.sip]\nregister = false\npeers = [\"10.0.0.1\"]\n"
        );
        let source = Source { name: "trunkless.toml".into(), text };
        let settings = load(&source, &HashMap::new()).map_err(|e| e.to_string())?;
        let plan = resolve(&source, settings, &HashMap::new()).map_err(|e| e.to_string())?;
        Ok([plan.sip[0].ai.prewarm, plan.endpoints[0].1.prewarm])
    }

    #[test]
    fn connections_are_kept_open_only_where_that_is_possible() {
        let url = "url = \"ws://127.0.0.1:8/\"";
        let agent = "dialect = \"elevenlabs\"\nsession = { agent_id = \"agent_1\" }";
        let create = "create = { url = \"https://a.example/\", allow_hosts = [\"b.example\"] }";
        assert_eq!(kept("", url), Ok([0, 0]));
        assert_eq!(kept("prewarm = 3", &format!("{url}\nprewarm = 100")), Ok([3, 100]));
        // the number of [ai] is for another AI
        assert_eq!(kept("prewarm = 3", agent), Ok([3, 0]));
        assert_eq!(kept("prewarm = 3", create), Ok([3, 0]));
        for (ai, other, why) in [
            (
                "prewarm = 101".to_owned(),
                url.to_owned(),
                "ai.prewarm: 101 is too much; at most 100",
            ),
            (String::new(), format!("{agent}\nprewarm = 1"), "charges for each connection; remove"),
            (format!("{create}\nprewarm = 1"), url.to_owned(), "ai.prewarm: cannot be used with"),
        ] {
            let error = kept(&ai, &other).unwrap_err();
            assert!(error.contains(why), "{error}");
        }
    }
}
