//! The HTTP proxy through which an AI is reached (CONNECT, RFC 9110 §9.3.6). Owns I/O.

use std::fmt;
use std::sync::Arc;

use hyper_util::client::proxy::matcher::Matcher;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio_tungstenite::tungstenite::http::Uri;

use crate::stream::head::Head;
use crate::stream::unreachable::ConnectError;

/// Longest head of a proxy's response.
const MAX_HEAD: usize = 8 * 1024;

/// The URL is not printed, because it may contain a password.
#[derive(Debug, thiserror::Error)]
#[error("is not the URL of an HTTP proxy, such as \"http://192.0.2.1:3128\", or \"environment\"")]
pub struct ProxyError;

/// A proxy, and the hosts that are reached without it.
#[derive(Clone)]
pub struct Proxy {
    /// With credentials.
    url: String,
    /// As in `NO_PROXY`.
    except: String,
    matcher: Arc<Matcher>,
}

impl PartialEq for Proxy {
    fn eq(&self, other: &Proxy) -> bool {
        (&self.url, &self.except) == (&other.url, &other.except)
    }
}

impl fmt::Debug for Proxy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Proxy(…)")
    }
}

/// A proxy's address, and the credentials for it.
pub(super) struct Via {
    pub host: String,
    pub port: u16,
    authorization: Option<Vec<u8>>,
}

impl Proxy {
    /// `except`: hosts that are reached without it, as in `NO_PROXY`.
    ///
    /// # Errors
    /// Returns an error if the URL is not that of an HTTP proxy.
    pub fn new(url: &str, except: &str) -> Result<Proxy, ProxyError> {
        let url = url.trim();
        let uri: Uri = url.parse().map_err(|_| ProxyError)?;
        let has_host = uri.host().is_some_and(|host| !host.is_empty());
        if uri.scheme_str() != Some("http") || !has_host || uri.port_u16() == Some(0) {
            return Err(ProxyError);
        }
        let matcher = Arc::new(Matcher::builder().all(url).no(except).build());
        Ok(Proxy { url: url.to_owned(), except: except.to_owned(), matcher })
    }

    /// Returns what may be secret: the password, as written and decoded.
    pub fn secrets(&self) -> Vec<String> {
        let user = self.url.split_once("://").and_then(|(_, rest)| rest.rsplit_once('@'));
        let password = user.and_then(|(user, _)| user.split_once(':'));
        password.map(|(_, password)| password.to_owned()).into_iter().collect()
    }

    /// The same for the HTTP client.
    pub(super) fn for_http(&self) -> reqwest::Result<reqwest::Proxy> {
        let except = reqwest::NoProxy::from_string(&self.except);
        Ok(reqwest::Proxy::all(&self.url)?.no_proxy(except))
    }

    /// Returns the proxy for this host, unless it is reached directly.
    pub(super) fn via(&self, host: &str) -> Option<Via> {
        let host = if host.contains(':') { format!("[{host}]") } else { host.to_owned() };
        let uri: Uri = format!("https://{host}/").parse().ok()?;
        let intercept = self.matcher.intercept(&uri)?;
        let proxy = intercept.uri();
        let name = proxy.host()?.trim_start_matches('[').trim_end_matches(']');
        Some(Via {
            host: name.to_owned(),
            port: proxy.port_u16().unwrap_or(80),
            authorization: intercept.basic_auth().map(|value| value.as_bytes().to_vec()),
        })
    }
}

impl Via {
    pub fn error(&self, why: impl fmt::Display) -> ConnectError {
        ConnectError::Proxy(format!("{}:{}: {why}", self.host, self.port))
    }

    /// Asks the proxy for a connection to `host` and `port`.
    ///
    /// # Errors
    /// Returns the reason if there is none.
    pub async fn tunnel(
        &self,
        mut stream: TcpStream,
        host: &str,
        port: u16,
    ) -> Result<TcpStream, ConnectError> {
        let host = if host.contains(':') { format!("[{host}]") } else { host.to_owned() };
        let mut request =
            format!("CONNECT {host}:{port} HTTP/1.1\r\nHost: {host}:{port}\r\n").into_bytes();
        if let Some(authorization) = &self.authorization {
            request.extend_from_slice(b"Proxy-Authorization: ");
            request.extend_from_slice(authorization);
            request.extend_from_slice(b"\r\n");
        }
        request.extend_from_slice(b"\r\n");
        stream.write_all(&request).await.map_err(|error| self.error(error))?;
        // byte by byte: what follows the head belongs to the AI
        let (mut head, mut state) = (Vec::new(), Head::Before);
        while state != Head::End {
            let byte = stream.read_u8().await;
            head.push(byte.map_err(|_| self.error("the proxy closed the connection"))?);
            state = state.then(head[head.len() - 1]);
            if head.len() > MAX_HEAD {
                return Err(self.error("the response is too long; is this an HTTP proxy?"));
            }
        }
        match status(&head) {
            Some(200..=299) => Ok(stream),
            Some(407) => Err(self.error("status 407: the user or password is missing or wrong")),
            Some(code) => Err(self.error(format!("the proxy answered {code}"))),
            None => Err(self.error("the answer is not HTTP")),
        }
    }
}

fn status(head: &[u8]) -> Option<u16> {
    let line = std::str::from_utf8(head.trim_ascii_start()).ok()?.lines().next()?;
    let mut words = line.split(' ');
    words.next().filter(|version| version.starts_with("HTTP/1."))?;
    words.next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_http_proxies_are_accepted() {
        for bad in ["", "proxy", "https://proxy:1", "socks5://proxy", "http://", "http://p:0"] {
            assert!(Proxy::new(bad, "").is_err(), "{bad}");
        }
        let proxy = Proxy::new("http://me:s%20cret@proxy.test:3128", "").unwrap();
        assert!(!format!("{proxy:?}").contains("cret"));
        assert_eq!(proxy.secrets(), ["s%20cret"]);
        let via = proxy.via("ai.test").unwrap();
        assert_eq!((via.host.as_str(), via.port), ("proxy.test", 3128));
        // base64 of "me:s cret"
        assert_eq!(via.authorization.as_deref(), Some(&b"Basic bWU6cyBjcmV0"[..]));
        assert!(!via.error("x").to_string().contains("cret"));
    }

    #[test]
    fn listed_hosts_are_reached_directly() {
        let proxy =
            Proxy::new("http://[::1]:8080", "localhost, .internal.test,10.0.0.0/8").unwrap();
        for (host, direct) in [
            ("localhost", true),
            ("ai.internal.test", true),
            ("10.1.2.3", true),
            ("ai.test", false),
            ("192.0.2.1", false),
            ("2001:db8::1", false),
        ] {
            assert_eq!(proxy.via(host).is_none(), direct, "{host}");
        }
        assert_eq!(proxy.via("ai.test").unwrap().host, "::1");
    }

    #[test]
    fn the_status_is_read() {
        for (head, code) in [
            ("HTTP/1.1 200 Connection established\r\n\r\n", Some(200)),
            ("HTTP/1.0 407 x\n\n", Some(407)),
            ("SSH-2.0-x\r\n\r\n", None),
            ("HTTP/1.1\r\n\r\n", None),
        ] {
            assert_eq!(status(head.as_bytes()), code, "{head}");
        }
    }
}
