//! A view of the PBX that bypasses the bridge: its REST interface, and another program's
//! application.

use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::time::{Duration, Instant};

use base64::Engine as _;
use serde_json::Value;
use tokio::net::TcpStream as TcpSocket;

use crate::asterisk::Asterisk;

/// Another program's user and password.
pub const FOREIGN: &str = "foreign:foreignsecret";

/// Sends a request below `/ari` and returns status and body.
pub fn ask(asterisk: &Asterisk, method: &str, path: &str) -> (u16, Value) {
    let at = asterisk.http_addr();
    let mut socket = TcpStream::connect(at).expect("a connection");
    let login = base64::engine::general_purpose::STANDARD.encode(FOREIGN);
    let request = format!(
        "{method} /ari/{path} HTTP/1.1\r\nHost: {at}\r\nAuthorization: Basic {login}\r\n\
         Connection: close\r\nContent-Length: 0\r\n\r\n"
    );
    socket.write_all(request.as_bytes()).expect("it is written");
    let mut answer = String::new();
    socket.read_to_string(&mut answer).expect("an answer");
    let (head, body) = answer.split_once("\r\n\r\n").expect("head and body");
    let status = head.split(' ').nth(1).and_then(|s| s.parse().ok()).expect("a status");
    // a chunked body has chunk sizes around the JSON
    let json = body.find(['[', '{']).zip(body.rfind([']', '}'])).map(|(a, b)| &body[a..=b]);
    (status, json.and_then(|j| serde_json::from_str(j).ok()).unwrap_or(Value::Null))
}

fn ids(list: &Value) -> Vec<String> {
    let list = list.as_array().expect("a list").iter();
    list.map(|o| o["id"].as_str().expect("an id").to_owned()).collect()
}

pub fn bridges(asterisk: &Asterisk) -> Vec<String> {
    ids(&ask(asterisk, "GET", "bridges").1)
}

pub fn channels(asterisk: &Asterisk) -> Vec<String> {
    ids(&ask(asterisk, "GET", "channels").1)
}

/// The ids of the bridge's own objects.
pub fn ours(ids: &[String]) -> Vec<&String> {
    ids.iter().filter(|id| id.starts_with("trunkless-")).collect()
}

/// Opens an application's events socket and does not read the events.
pub async fn subscribe(
    asterisk: &Asterisk,
    app: &str,
) -> tokio_tungstenite::WebSocketStream<tokio_tungstenite::MaybeTlsStream<TcpSocket>> {
    let at = asterisk.http_addr();
    let url = format!("ws://{at}/ari/events?app={app}&api_key={FOREIGN}");
    let (events, _) = tokio_tungstenite::connect_async(url).await.expect("a WebSocket");
    let begin = Instant::now();
    while ask(asterisk, "GET", &format!("applications/{app}")).0 != 200 {
        assert!(begin.elapsed() < Duration::from_secs(2), "{app} does not exist");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    events
}
