//! `[ai.create]`, the request before the AI's socket, and `[ai] proxy`.

use std::collections::BTreeMap;

use secrecy::ExposeSecret;
use serde::Deserialize;
use serde_json::{Map, Value};

use crate::config::ConfigError;
use crate::config::resolve::Resolver;
use crate::config::schema::Ai;
use crate::config::values::parsed_words;
use crate::stream::connect::TargetOptions;
use crate::stream::create::{AllowedHost, Create, CreateError, CreateOptions};
use crate::stream::dialect::Dialect;
use crate::stream::proxy::Proxy;
use crate::tls::client_config;

/// The proxy is that of the environment.
const ENVIRONMENT: &str = "environment";

/// A request before the socket.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct CreateTable {
    pub url: Option<String>,
    pub method: Option<String>,
    pub headers: Option<BTreeMap<String, String>>,
    /// Sent as JSON, with placeholders such as `{from_number}`.
    pub body: Option<Map<String, Value>>,
    /// Where the answer has the URL.
    pub url_field: Option<String>,
    /// Hosts that the URL may lead to.
    #[serde(deserialize_with = "parsed_words")]
    pub allow_hosts: Option<Vec<AllowedHost>>,
    pub ca_file: Option<String>,
}

impl CreateTable {
    /// Completes the table, or makes one, where calls are created by the vendor's API. Requests to
    /// other servers stay as they are. `token`: the user's key.
    fn completed(
        table: Option<&CreateTable>,
        dialect: Dialect,
        token: Option<&str>,
    ) -> Option<CreateTable> {
        let Some(usual) = dialect.creation() else { return table.cloned() };
        let url = table.and_then(|table| table.url.as_ref());
        if url.is_some_and(|url| !url.starts_with(usual.api)) {
            return table.cloned();
        }
        let mut table = table.cloned().unwrap_or_default();
        table.url.get_or_insert_with(|| usual.url.to_owned());
        table.url_field.get_or_insert_with(|| usual.url_field.to_owned());
        let hosts = || usual.allow_hosts.iter().filter_map(|host| host.parse().ok()).collect();
        table.allow_hosts.get_or_insert_with(hosts);
        let headers = table.headers.get_or_insert_default();
        let is_key = |name: &String| name.eq_ignore_ascii_case(usual.key);
        if let Some(token) = token.filter(|_| !headers.keys().any(is_key)) {
            headers.insert(usual.key.to_owned(), token.to_owned());
        }
        Some(table)
    }

    /// Returns what is wrong if a request to the vendor's API has no key.
    fn missing_key(&self, dialect: Dialect) -> Option<&'static str> {
        let usual = dialect.creation()?;
        self.url.as_ref().filter(|url| url.starts_with(usual.api))?;
        let mut names = self.headers.iter().flat_map(BTreeMap::keys);
        let has_key = names.any(|name| name.eq_ignore_ascii_case(usual.key));
        (!has_key).then_some("is missing; set the key of the vendor's API")
    }

    /// The server as the URL of a WebSocket, which stands for an AI without a URL of its own in the
    /// log.
    pub(super) fn as_socket(&self) -> Option<String> {
        let url = self.url.as_ref()?.split('?').next()?;
        let socket =
            |(scheme, to): (&str, &str)| url.strip_prefix(scheme).map(|r| format!("{to}{r}"));
        [("https://", "wss://"), ("http://", "ws://")].into_iter().find_map(socket)
    }
}

impl Resolver<'_> {
    /// Returns the table of the request before the socket: the user's, or the vendor's usual one.
    pub(super) fn created(
        &self,
        table: Option<&CreateTable>,
        dialect: Dialect,
        token: Option<&str>,
        has_url: bool,
    ) -> Result<Option<CreateTable>, ConfigError> {
        if has_url && table.is_none() {
            return Ok(None);
        }
        let table = CreateTable::completed(table, dialect, token);
        match table.as_ref().and_then(|table| table.missing_key(dialect)) {
            Some(missing) => Err(self.source.error("ai.auth_token", missing)),
            None => Ok(table),
        }
    }

    /// `key`: names one of its keys. `ai`: the AI itself, which may have a URL.
    pub(super) fn create(
        &self,
        key: &dyn Fn(&str) -> String,
        table: &CreateTable,
        proxy: Option<Proxy>,
        ai: &TargetOptions,
        has_url: bool,
    ) -> Result<Create, ConfigError> {
        let error = |part: &str, why: String| self.source.error(&key(part), why);
        let Some(url) = &table.url else {
            let why = "is missing; set the address of the server that names the AI's URL";
            return Err(error("url", why.to_owned()));
        };
        let allow_hosts = table.allow_hosts.clone().unwrap_or_default();
        if allow_hosts.is_empty() && (table.url_field.is_some() || !has_url) {
            let why = "is missing; list the hosts that the URL may have, such as \"*.example.com\"";
            return Err(error("allow_hosts", why.to_owned()));
        }
        let options = CreateOptions {
            method: table.method.clone().unwrap_or_else(|| "POST".to_owned()),
            url: url.clone(),
            headers: table.headers.clone().unwrap_or_default().into_iter().collect(),
            body: table.body.clone().map(Value::Object),
            url_field: table.url_field.clone(),
            allow_hosts,
            proxy,
            has_default_url: has_url,
            dialect: ai.dialect,
            session: ai.session.clone(),
        };
        let tls = client_config(table.ca_file.as_deref());
        let tls = tls.map_err(|why| error("ca_file", why.to_string()))?;
        Create::new(options, tls).map_err(|why| {
            let part = match &why {
                CreateError::Method => "method",
                CreateError::Header(_) => "headers",
                CreateError::Url | CreateError::Setup(_) => "url",
            };
            error(part, why.to_string())
        })
    }

    pub(super) fn proxy(
        &self,
        key: &dyn Fn(&str, bool) -> String,
        common: &Ai,
        own: &Ai,
    ) -> Result<Option<Proxy>, ConfigError> {
        let Some(word) = own.proxy.as_ref().or(common.proxy.as_ref()) else { return Ok(None) };
        let error = |why: String| self.source.error(&key("proxy", own.proxy.is_some()), why);
        let variable = |names: [&str; 2]| {
            let mut set = names.iter().filter_map(|name| self.environment.get(*name));
            set.find(|value| !value.is_empty()).cloned()
        };
        let except = || variable(["no_proxy", "NO_PROXY"]).unwrap_or_default();
        let proxy = match word.expose_secret() {
            // it takes the proxy of [ai] away from one PBX
            "none" => return Ok(None),
            ENVIRONMENT => match variable(["https_proxy", "HTTPS_PROXY"]) {
                None => return Ok(None),
                Some(url) => Proxy::new(&url, &except())
                    .map_err(|why| format!("the variable HTTPS_PROXY {why}")),
            },
            url => Proxy::new(url, "").map_err(|why| why.to_string()),
        };
        proxy.map(Some).map_err(error)
    }
}
