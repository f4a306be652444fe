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
use crate::stream::connect::{Target, TargetError, TargetOptions};
use crate::stream::dialect::{Dialect, Session};
use crate::stream::model;
use crate::tls::TlsError;

type Table = BTreeMap<String, String>;

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
        let session = self.session(&key, dialect, common, own)?;
        let proxy = self.proxy(&key, common, own)?;
        let created = own.create.as_ref().or(common.create.as_ref());
        let url = dialect.url(pick(&own.url, &common.url).as_deref(), &session);
        let has_url = url.is_some();
        let Some(url) = url.or_else(|| created.and_then(CreateTable::as_socket)) else {
            let message = "is missing; set the AI's WebSocket URL, such as \"ws://127.0.0.1:8080\"";
            return Err(self.source.error("ai.url", message));
        };
        let token = self.auth_token(name, common, own)?;
        let merged = |own: &Option<Table>, common: &Option<Table>| {
            let mut all = common.clone().unwrap_or_default();
            all.extend(own.clone().unwrap_or_default());
            all.into_iter().collect::<Vec<(String, String)>>()
        };
        let options = TargetOptions {
            dialect,
            session,
            headers: merged(&own.headers, &common.headers),
            auth_token: token.map(|t| t.expose_secret().to_owned()),
            ca_file: pick(&own.ca_file, &common.ca_file),
            tls_server_name: pick(&own.tls_server_name, &common.tls_server_name),
            proxy: proxy.clone(),
            varies: created.is_some(),
        };
        let target = Target::new(&url, &options).map_err(|error| {
            let (part, own_has) = match &error {
                TargetError::Tls(TlsError::CaFile { .. }) => ("ca_file", own.ca_file.is_some()),
                TargetError::Header(_) => ("headers", own.headers.is_some()),
                TargetError::ServerName(_) => ("tls_server_name", own.tls_server_name.is_some()),
                _ => ("url", own.url.is_some()),
            };
            let part = key(part, own_has);
            self.source.error(&part, error.to_string())
        })?;
        let create = created.map(|table| {
            let key = |rest: &str| key(&format!("create.{rest}"), own.create.is_some());
            self.create(&key, table, proxy, has_url).map(Arc::new)
        });
        let create = create.transpose()?;
        let parameters = merged(&own.parameters, &common.parameters);
        let limit = options.dialect.max_parameter();
        let length = |text: &str| text.chars().count();
        let long = parameters.iter().find(|(n, v)| length(n).max(length(v)) > limit);
        if let Some((long, _)) = long {
            let part = format!("{}.{long}", key("parameters", own.parameters.is_some()));
            let message = format!("is too long; names and values have at most {limit} characters");
            return Err(self.source.error(&part, message));
        }
        let silent = own.silent_timeout.or(common.silent_timeout);
        Ok(AiPlan {
            target,
            create,
            extensions: own.extensions.or(common.extensions).unwrap_or_default(),
            account_sid: pick(&own.account_sid, &common.account_sid),
            parameters,
            x_headers: x_headers(common, own),
            sip_headers: self.sip_headers(name, common, own)?,
            silent_timeout: silent.unwrap_or(Span(Duration::from_secs(15))).0,
            ping: own.ping.or(common.ping).unwrap_or(Span(Duration::from_secs(10))).0,
        })
    }

    fn auth_token(
        &self,
        name: &str,
        common: &Ai,
        own: &Ai,
    ) -> Result<Option<SecretString>, ConfigError> {
        let own_token = [
            &own.auth_token.as_ref().map(|p| p.expose_secret().to_owned()),
            &own.auth_token_env,
            &own.auth_token_file,
        ];
        let common_token = [
            &common.auth_token.as_ref().map(|p| p.expose_secret().to_owned()),
            &common.auth_token_env,
            &common.auth_token_file,
        ];
        match self.secret(&format!("pbx.{name}.ai.auth_token"), own_token)? {
            Some(token) => Ok(Some(token)),
            None => self.secret("ai.auth_token", common_token),
        }
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
        let settings = match (&own.session, &common.session) {
            (Some(Value::Object(own)), Some(Value::Object(common))) => {
                let mut all = common.clone();
                all.extend(own.clone());
                Some(Value::Object(all))
            }
            (own, common) => own.clone().or(common.clone()),
        };
        if settings.as_ref().is_some_and(|settings| !settings.is_object()) {
            let message = "is not a table; write it as [ai.session]";
            return Err(self.source.error(&key("session", own.session.is_some()), message));
        }
        let greeting = own.greeting.clone().or(common.greeting.clone());
        Ok(Session { settings, greeting, tools })
    }
}
