//! The control API of a running bridge. Each response is held against the file.

use std::net::SocketAddr;
use std::sync::Arc;

use serde_json::Value;
use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::TcpStream;

use crate::bridge::{Net, Rig};
use crate::control::exchange;
use crate::log::Log;
use crate::openapi::document::Document;

pub const TOKEN: &str = "a-token-for-the-tests";
/// May not give commands.
pub const READER: &str = "a-token-that-only-reads";
/// May not read.
const WRITER: &str = "a-token-that-only-commands";

pub fn bearer(token: &str) -> String {
    format!("Authorization: Bearer {token}\r\n")
}

/// The parameters in paths: those of one call.
#[derive(Debug, Clone)]
pub struct Names {
    pub id: String,
    pub account: String,
    pub call: String,
    pub recording: String,
}

impl Names {
    pub fn of(call: &Value) -> Names {
        let text = |name: &str| call[name].as_str().expect("a string").to_owned();
        let (id, account, call) = (text("id"), text("account_sid"), text("call_sid"));
        Names { id, account, call, recording: "Twilio.CURRENT".to_owned() }
    }

    /// Names that no call has.
    pub fn unknown() -> Names {
        let [id, account, call] = ["none", "AC0", "CA0"].map(str::to_owned);
        Names { id, account, call, recording: "RE0".to_owned() }
    }

    /// Names that are not UTF-8.
    pub fn unreadable() -> Names {
        let [id, account, call] = [(); 3].map(|()| "%FF".to_owned());
        Names { id, account, call, recording: "%FF".to_owned() }
    }

    fn fill(&self, path: &str) -> String {
        path.replace("{id}", &self.id)
            .replace("{AccountSid}", &self.account)
            .replace("{CallSid}", &self.call)
            .replace("{RecordingSid}", &self.recording)
    }
}

pub struct Api {
    pub rig: Rig,
    pub address: SocketAddr,
    pub document: Document,
    pub recordings: tempfile::TempDir,
}

impl Api {
    pub async fn start() -> Api {
        let net = Net::new();
        let address = crate::http::free(net.bridge());
        let recordings = tempfile::tempdir().unwrap();
        let config = format!(
            "[control]\nlisten = \"{address}\"\nlisten_in = true\n\
             [control.tokens.desk]\ntoken = \"{TOKEN}\"\n\
             scopes = [\"read\", \"control\", \"numbers\", \"recordings\", \"listen\", \
             \"capture\", \"dial\"]\n\
             [control.tokens.wall]\ntoken = \"{READER}\"\nscopes = [\"read\"]\n\
             [control.tokens.bot]\ntoken = \"{WRITER}\"\nscopes = [\"control\"]\n\
             [recording]\ndirectory = {:?}\nwhen = \"on_command\"\n\
             [[route]]\nname = \"all\"\nai = \"default\"\n\
             [pbx.main.transfer]\ntargets = {{ humans = \"1001\" }}\n\
             [pbx.main.dial]\nallow = \"_+49.\"\nfrom = \"_+30.\"\nper_second = 1000\n\
             callback_hosts = [\"127.0.0.1:1\"]\n",
            recordings.path()
        );
        let pbx = crate::pbx::Pbx::udp(net.pbx()).await;
        let ai = crate::strict::Ai::start(net.ai()).await;
        let rig = Rig::with(net, pbx, ai, &config).await;
        Api { rig, address, document: Document::read(), recordings }
    }

    /// Sends a request with these header fields and holds the response against the file.
    async fn send(
        &mut self,
        [method, path, query]: [&str; 3],
        names: &Names,
        headers: &str,
        body: &str,
    ) -> (u16, Value) {
        let operation = self.document.operation(method, path);
        let head = format!("{method} {}{query}", names.fill(path));
        let (status, head, body) = exchange(self.address, &head, headers, body).await;
        let head = head.to_ascii_lowercase();
        assert!(head.contains("connection: close"), "{head}");
        self.document.respond(&operation, status, &head, &body);
        (status, body)
    }

    pub async fn get(&mut self, path: &str, names: &Names) -> (u16, Value) {
        self.send(["GET", path, ""], names, &bearer(TOKEN), "").await
    }

    pub async fn query(&mut self, path: &str, names: &Names, query: &str) -> (u16, Value) {
        self.get_with(path, query, names, "").await
    }

    /// The same with a query, and with further header fields.
    pub async fn get_with(
        &mut self,
        path: &str,
        query: &str,
        names: &Names,
        headers: &str,
    ) -> (u16, Value) {
        let headers = format!("{}{headers}", bearer(TOKEN));
        self.send(["GET", path, query], names, &headers, "").await
    }

    /// Lists calls in Twilio's shape. Each parameter of the file is read, and no other.
    pub async fn filter(&mut self, path: &str, names: &Names) {
        let operation = self.document.at(&self.document.operation("GET", path).at).clone();
        let parameters = operation["parameters"].as_array().expect("parameters").iter();
        let known = parameters.map(|parameter| parameter["name"].as_str().expect("a name"));
        for (name, expected) in known.map(|name| (name, 200)).chain([("StartTime", 400)]) {
            let query = format!("?{name}=0");
            let (status, list) = self.send(["GET", path, &query], names, &bearer(TOKEN), "").await;
            assert_eq!(status, expected, "{query}: {list}");
            let length = list["calls"].as_array().map(Vec::len);
            let all = name.starts_with("Page").then_some(1).or((expected == 200).then_some(0));
            assert_eq!(length, all, "{query}: {list}");
        }
    }

    /// Gives a command. The query may have `wait`.
    pub async fn command(&mut self, names: &Names, query: &str, body: Value) -> (u16, Value) {
        let path = "/v1/calls/{id}/commands";
        self.send(["POST", path, query], names, &bearer(TOKEN), &body.to_string()).await
    }

    /// Posts JSON.
    pub async fn post(&mut self, path: &str, body: &Value) -> (u16, Value) {
        let (names, body) = (Names::unknown(), body.to_string());
        self.send(["POST", path, ""], &names, &bearer(TOKEN), &body).await
    }

    /// Posts a form.
    pub async fn form(&mut self, path: &str, names: &Names, body: &str) -> (u16, Value) {
        self.send(["POST", path, ""], names, &bearer(TOKEN), body).await
    }

    /// The refusals that depend on nothing but the request: its token, its Host and its names.
    pub async fn refuse(&mut self) {
        for operation in self.document.operations() {
            let request = [operation.method, &operation.path, ""];
            let scopes = &self.document.at(&operation.at)["security"].clone();
            let other = match scopes[0]["token"][0].as_str() {
                Some("read") => WRITER,
                _ => READER,
            };
            let host = format!("Host: evil.example\r\n{}", bearer(TOKEN));
            let origin = format!("Origin: http://evil.example\r\n{}", bearer(TOKEN));
            for (headers, expected) in [
                (String::new(), 401),
                (bearer("another-token-than-those"), 401),
                (bearer(other), 403),
                (host, 403),
                (origin, 403),
            ] {
                let (status, body) = self.send(request, &Names::unknown(), &headers, "").await;
                assert_eq!(status, expected, "{request:?} {headers} {body}");
            }
            if operation.method == "POST" {
                let body = "x".repeat((1 << 20) + 1);
                let (status, _) =
                    self.send(request, &Names::unknown(), &bearer(TOKEN), &body).await;
                assert_eq!(status, 413, "{request:?}");
            }
            if operation.path.contains('{') {
                let names = Names::unreadable();
                let (status, _) = self.send(request, &names, &bearer(TOKEN), "").await;
                assert_eq!(status, 400, "{request:?}");
            }
            // an empty list without an error is the answer to an unknown account
            if operation.path.contains("{id}") || operation.path.contains("{CallSid}") {
                let body = "{\"command\":\"hold\"}";
                let names = Names::unknown();
                let (status, _) = self.send(request, &names, &bearer(TOKEN), body).await;
                assert_eq!(status, 404, "{request:?}");
            }
        }
    }

    /// Paths and methods that the file does not have.
    pub async fn refuse_others(&mut self) {
        let operations = self.document.operations();
        for operation in &operations {
            let path = &operation.path;
            let filled = Names::unknown().fill(path);
            let twilio = path.starts_with("/2010-04-01/");
            for method in crate::openapi::document::METHODS {
                if operations.iter().any(|o| o.path == *path && o.method == method) {
                    continue;
                }
                let head = format!("{method} {filled}");
                let (status, head, body) = exchange(self.address, &head, &bearer(TOKEN), "").await;
                assert_eq!(status, 405, "{method} {path}");
                let name = if twilio { "TwilioMethodNotAllowed" } else { "MethodNotAllowed" };
                let response = format!("/components/responses/{name}");
                self.document.respond_at(&response, &head.to_ascii_lowercase(), &body);
            }
        }
        for (path, schema) in [("/v1/call", "Error"), ("/2010-04-01/Calls", "TwilioError")] {
            let (status, _, body) =
                exchange(self.address, &format!("GET {path}"), &bearer(TOKEN), "").await;
            assert_eq!(status, 404, "{path}");
            self.document.check(&Document::schema(schema), &body);
        }
        let head = "HEAD /v1/calls";
        assert_eq!(exchange(self.address, head, &bearer(TOKEN), "").await.0, 200);
    }

    /// Starts a capture, which continues until what is returned is dropped.
    pub async fn capture(&mut self, path: &str, names: &Names) -> TcpStream {
        let operation = self.document.operation("GET", path);
        let mut stream = TcpStream::connect(self.address).await.unwrap();
        let (path, address, bearer) = (names.fill(path), self.address, bearer(TOKEN));
        let text = format!("GET {path} HTTP/1.1\r\nHost: {address}\r\n{bearer}\r\n");
        stream.write_all(text.as_bytes()).await.unwrap();
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            head.push(stream.read_u8().await.unwrap());
        }
        let head = String::from_utf8(head).unwrap().to_ascii_lowercase();
        assert!(head.starts_with("http/1.1 200 "), "{head}");
        self.document.respond(&operation, 200, &head, &Value::Null);
        stream
    }

    /// Opens a stream of events, which continues until it is dropped.
    pub async fn events(&mut self, token: &str) -> Events {
        self.stream("/v1/events", "", token).await
    }

    /// Opens another stream. `id`: that of the path.
    pub async fn stream(&mut self, path: &str, id: &str, token: &str) -> Events {
        let operation = self.document.operation("GET", path);
        let (head, events) = Events::open(self.address, &path.replace("{id}", id), token).await;
        self.document.respond(&operation, 200, &head, &Value::Null);
        events
    }
}

impl Document {
    /// Holds all events so far against the file.
    pub fn check_events(&mut self, path: &str, events: &Events) {
        let at = self.operation("GET", path).at;
        let at = format!("{at}/responses/200/content/text~1event-stream/x-events");
        for (name, data) in events.log.look(std::mem::take) {
            self.check(&format!("{at}/{name}"), &data);
            assert!(data["type"].is_null() || data["type"] == *name, "{name}: {data}");
        }
    }
}

/// A stream of events.
pub struct Events {
    /// Their types and data.
    log: Arc<Log<(String, Value)>>,
    reader: tokio::task::JoinHandle<()>,
}

impl Drop for Events {
    fn drop(&mut self) {
        self.reader.abort();
    }
}

impl Events {
    /// Returns the head of the response, too.
    pub async fn open(address: SocketAddr, path: &str, token: &str) -> (String, Events) {
        let mut stream = TcpStream::connect(address).await.unwrap();
        let text = format!("GET {path} HTTP/1.1\r\nHost: {address}\r\n{}\r\n", bearer(token));
        stream.write_all(text.as_bytes()).await.unwrap();
        let mut lines = BufReader::new(stream).lines();
        let mut head = String::new();
        while let Some(line) = lines.next_line().await.unwrap().filter(|line| !line.is_empty()) {
            head += &(line.to_ascii_lowercase() + "\r\n");
        }
        let log = Arc::new(Log::new());
        let shared = log.clone();
        let reader = tokio::spawn(async move {
            let mut name = String::new();
            // audio is not text
            let mut lines = lines.into_inner().split(b'\n');
            while let Ok(Some(line)) = lines.next_segment().await {
                match String::from_utf8_lossy(&line).trim_end().split_once(": ") {
                    Some(("event", text)) => name = text.to_owned(),
                    Some(("data", text)) => {
                        let data = serde_json::from_str(text).expect("JSON in one line");
                        shared.push((std::mem::take(&mut name), data));
                    }
                    _ => {}
                }
            }
        });
        (head, Events { log, reader })
    }

    /// Waits for an event of this type that `is` accepts, and leaves it in the log.
    pub async fn until(&self, name: &str, is: impl Fn(&Value) -> bool) {
        let found = |(other, data): &(String, Value)| other == name && is(data);
        self.log.wait(name, |all| all.iter().any(found).then_some(())).await;
    }
}
