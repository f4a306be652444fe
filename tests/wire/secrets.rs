//! The real program at its highest log level, with secrets that appear in nothing that it writes.

use std::collections::HashMap;
use std::fs::File;
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use md5::{Digest as _, Md5};
use tokio::time::{interval, timeout};
use trunkless::sip::message::Message;
use wiremock::matchers::any;
use wiremock::{Mock, MockServer, Request, Respond, ResponseTemplate};

use crate::ari::fake::Fake;
use crate::ari::rig::APP;
use crate::ari::world::Channel;
use crate::bridge::Net;
use crate::http::{free, get};
use crate::pbx::{Pbx, accept};
use crate::stream::Stream;
use crate::strict::Ai;

const SIP_CANARY: &str = "sip+canary/Zx81=%q";
pub const ARI_CANARY: &str = "ari+canary/Kd27=%q";
const WRONG_CANARY: &str = "wrong+canary/Hv55=%q";
const TOKEN_CANARY: &str = "token+canary/Pw93=%q";
const HEADER_CANARY: &str = "header+canary/Lm64=%q";
const DIALLER_CANARY: &str = "dialler+canary/Bq36=q";
const KEY_CANARY: &str = "key+canary/Tr38=%q";
/// 32 bytes in base64.
const HOOK_CANARY: &str = "aG9vaytjYW5hcnkvOTc1MzEraG9vaytjYW5hcnkvMDE=";
/// Words that user and password are joined to, for basic authentication.
const USERS: [&str; 3] = [APP, "8001", "other"];

/// Every form in which a secret might be written.
fn forms() -> Vec<String> {
    let plain = [
        SIP_CANARY,
        ARI_CANARY,
        WRONG_CANARY,
        TOKEN_CANARY,
        HEADER_CANARY,
        DIALLER_CANARY,
        KEY_CANARY,
        HOOK_CANARY,
    ];
    let encoded = |text: &str| -> String {
        let of = |b: u8| match b.is_ascii_alphanumeric() || b"-._~".contains(&b) {
            true => (b as char).to_string(),
            false => format!("%{b:02X}"),
        };
        text.bytes().map(of).collect()
    };
    let mut all = Vec::new();
    for secret in plain {
        let users = USERS.iter().map(|user| BASE64.encode(format!("{user}:{secret}")));
        all.extend(users.map(|text| text.trim_end_matches('=').to_owned()));
        all.extend([secret.to_owned(), encoded(secret)]);
        all.push(BASE64.encode(secret).trim_end_matches('=').to_owned());
        // the middle of the secret, as part of a longer text
        let (_, rest) = secret.split_once('+').unwrap_or(secret.split_at(4));
        all.push(rest.to_owned());
    }
    let bytes = BASE64.decode(HOOK_CANARY).unwrap();
    all.push(String::from_utf8(bytes).unwrap());
    all
}

/// A store that refuses the first requests, and keeps the others' objects.
#[derive(Clone, Default)]
struct Store {
    objects: Arc<Mutex<HashMap<String, Vec<u8>>>>,
    refused: Arc<AtomicU32>,
}

impl Respond for Store {
    fn respond(&self, request: &Request) -> ResponseTemplate {
        let refusal = |code: u16| {
            let text = "<Error><Code>AccessDenied</Code><Message>no</Message></Error>";
            ResponseTemplate::new(code).set_body_string(text)
        };
        match self.refused.fetch_add(1, Ordering::Relaxed) {
            0 => return refusal(403),
            1 => return refusal(401),
            _ => {}
        }
        let mut objects = self.objects.lock().unwrap();
        let path = request.url.path().to_owned();
        if request.method.as_str() == "PUT" {
            objects.insert(path.clone(), request.body.clone());
        }
        let Some(object) = objects.get(&path) else { return ResponseTemplate::new(404) };
        let hash: String = Md5::digest(object).iter().map(|b| format!("{b:02x}")).collect();
        let response = ResponseTemplate::new(200)
            .insert_header("etag", format!("\"{hash}\"").as_str())
            .insert_header("last-modified", "Tue, 24 Nov 2026 10:00:00 GMT");
        match request.method.as_str() {
            "PUT" => response,
            _ => response.set_body_bytes(object.clone()),
        }
    }
}

/// A server that answers with these statuses in turn, and then with the last of them.
struct Statuses(&'static [u16], AtomicU32);

impl Respond for Statuses {
    fn respond(&self, _: &Request) -> ResponseTemplate {
        let nth = self.1.fetch_add(1, Ordering::Relaxed) as usize;
        ResponseTemplate::new(self.0[nth.min(self.0.len() - 1)])
    }
}

/// A VICIdial that repeats every request in its error, as the real one does.
struct Repeating {
    /// It refuses the login.
    locked: bool,
}

impl Respond for Repeating {
    fn respond(&self, request: &Request) -> ResponseTemplate {
        let form = String::from_utf8_lossy(&request.body);
        let text = match form.contains("function=logged_in_agents") {
            _ if self.locked => format!("ERROR: Invalid Username/Password: |{form}|"),
            true => format!("user|callerid\n7001|{VICI_CALL}\n"),
            false => format!("ERROR: something is not right {form} - {form}|"),
        };
        ResponseTemplate::new(200).set_body_string(text)
    }
}

const VICI_CALL: &str = "V1231456150000402027";

async fn server(respond: impl Respond + 'static) -> MockServer {
    let server = MockServer::start().await;
    Mock::given(any()).respond_with(respond).mount(&server).await;
    server
}

/// Challenges a REGISTER; then accepts or refuses it.
fn registrar(accepts: bool) -> impl FnMut(&Message) -> Option<Message> + Send {
    move |request| match (request.method(), request.get("Authorization")) {
        (Some("REGISTER"), Some(_)) if !accepts => {
            Some(Message::response(request, 403, "Forbidden", "pbx"))
        }
        (Some("REGISTER"), None) => {
            let mut response = Message::response(request, 401, "Unauthorized", "pbx");
            let ask = "Digest realm=\"asterisk\", nonce=\"n1\", qop=\"auth\"";
            response.push("WWW-Authenticate", ask);
            Some(response)
        }
        _ => accept(request),
    }
}

struct Program {
    child: Child,
    log: std::path::PathBuf,
}

impl Drop for Program {
    fn drop(&mut self) {
        let _ = self.child.kill();
    }
}

impl Program {
    fn start(directory: &Path, config: &str) -> Program {
        let (file, log) = (directory.join("trunkless.toml"), directory.join("log"));
        std::fs::write(&file, config).unwrap();
        let output = File::create(&log).unwrap();
        let child = Command::new(env!("CARGO_BIN_EXE_trunkless"))
            .args(["run", "--config"])
            .arg(&file)
            .env_clear()
            .env("RUST_LOG", "trace")
            .stdin(Stdio::null())
            .stdout(output.try_clone().unwrap())
            .stderr(output)
            .spawn()
            .expect("trunkless starts");
        Program { child, log }
    }

    fn log(&self) -> String {
        String::from_utf8_lossy(&std::fs::read(&self.log).unwrap()).into_owned()
    }

    async fn logs(&self, words: &str) {
        let found = timeout(Duration::from_secs(60), until(async || self.log().contains(words)));
        assert!(found.await.is_ok(), "no \"{words}\" in:\n{}", self.log());
    }

    async fn stop(&mut self) -> ExitStatus {
        let id = rustix::process::Pid::from_child(&self.child);
        rustix::process::kill_process(id, rustix::process::Signal::TERM).unwrap();
        until(async || self.child.try_wait().unwrap().is_some()).await;
        self.child.wait().unwrap()
    }
}

/// Looks every 50 ms until this is true.
async fn until(mut is_true: impl AsyncFnMut() -> bool) {
    let mut look = interval(Duration::from_millis(50));
    while !is_true().await {
        look.tick().await;
    }
}

/// Reads every file below a directory, with its name.
fn files(directory: &Path, all: &mut Vec<(String, Vec<u8>)>) {
    for entry in std::fs::read_dir(directory).unwrap() {
        let path = entry.unwrap().path();
        let name = path.display().to_string();
        match path.is_dir() {
            true => files(&path, all),
            false if name.ends_with("trunkless.toml") => {}
            false => all.push((name, std::fs::read(&path).unwrap())),
        }
    }
}

fn find_canaries(name: &str, bytes: &[u8], found: &mut Vec<String>) {
    for form in forms() {
        if let Some(at) = bytes.windows(form.len()).position(|part| part == form.as_bytes()) {
            let around = &bytes[at.saturating_sub(200)..(at + form.len()).min(bytes.len())];
            found.push(format!("{name}: …{}", String::from_utf8_lossy(around)));
        }
    }
}

/// Takes the next stream, which has a header of its own.
async fn opened(ai: &Ai) -> Stream {
    ai.handshake()
        .await
        .allow(&["authorization", "x-twilio-signature"])
        .open()
        .await
        .started()
        .await
}

/// A configuration that contains all canaries, with these addresses.
fn configuration(addresses: &[(&str, String)]) -> String {
    let text = format!(
        "[log]\nlevel = \"trace\"\n[sip]\nlisten = \"<sip>\"\n[http]\nlisten = \"<http>\"\n\
         [calls]\ndrain = \"1s\"\n\
         [ai]\nurl = \"ws://<ai>/media\"\nauth_token = \"{TOKEN_CANARY}\"\n\
         headers = {{ Authorization = \"Bearer {HEADER_CANARY}\" }}\n\
         [recording]\ndirectory = \"<directory>\"\nkeep_free_percent = 0\n\
         [recording.upload]\nurl = \"s3://bucket/calls\"\nendpoint = \"<store>\"\n\
         access_key_id = \"8001\"\nsecret_access_key = \"{KEY_CANARY}\"\ndelete_after = true\n\
         [recording.webhook]\nurl = \"<hook>/crm\"\nsecret = \"whsec_{HOOK_CANARY}\"\n\
         [pbx.main]\nmode = \"sip\"\n[pbx.main.sip]\nregistrar = \"<pbx>\"\nusername = \"ai\"\n\
         password = \"{SIP_CANARY}\"\n\
         [pbx.main.vicidial]\nurl = \"<dialler>\"\nuser = \"api\"\n\
         password = \"{DIALLER_CANARY}\"\ndirectory = \"<directory>\"\n\
         [pbx.asterisk.vicidial]\nurl = \"<locked>\"\nuser = \"api\"\n\
         password = \"{DIALLER_CANARY}\"\ndirectory = \"<directory>\"\n\
         [pbx.refused]\nmode = \"sip\"\n[pbx.refused.sip]\nregistrar = \"<third>\"\n\
         username = \"8001\"\npassword = \"{WRONG_CANARY}\"\n\
         [pbx.tls]\nmode = \"sip\"\nsip = {{ register = false, peers = [\"<second>\"] }}\n\
         ai = {{ url = \"wss://<plain>/media?token={TOKEN_CANARY}\" }}\n\
         [pbx.asterisk]\nmode = \"ari\"\n[pbx.asterisk.ari]\nurl = \"http://<fake>\"\n\
         username = \"{APP}\"\npassword = \"{ARI_CANARY}\"\napp = \"{APP}\"\n\
         rtp_conf = \"/nonexistent\"\n\
         [pbx.wrong]\nmode = \"ari\"\n[pbx.wrong.ari]\nurl = \"<refusing>\"\n\
         username = \"other\"\npassword = \"{WRONG_CANARY}\"\n"
    );
    let fill = |text: String, (name, address): &(&str, String)| {
        text.replace(&format!("<{name}>"), address)
    };
    addresses.iter().fold(text, fill)
}

#[tokio::test]
async fn secrets_appear_in_nothing_that_the_program_writes() {
    let directory = tempfile::tempdir().unwrap();
    let net = Net::new();
    let (pbx, second) = (Pbx::udp(net.pbx()).await, Pbx::udp(net.host(5)).await);
    let third = Pbx::udp(net.host(7)).await;
    pbx.answer_with(registrar(true));
    third.answer_with(registrar(false));
    let (ai, fake) = (Ai::start(net.ai()).await, Fake::start(net.host(6)).await);
    let (store, hook) = (Store::default(), Statuses(&[500, 401, 200], AtomicU32::new(0)));
    let (store, hook) = (server(store).await, server(hook).await);
    let refusing = server(Statuses(&[401, 403], AtomicU32::new(0))).await;
    let [dialler, locked] = [false, true].map(|locked| server(Repeating { locked }));
    let (dialler, locked) = (dialler.await, locked.await);
    let (sip, http) = (free(net.bridge()), free(net.bridge()));
    let config = configuration(&[
        ("sip", sip.to_string()),
        ("http", http.to_string()),
        ("ai", ai.address.to_string()),
        ("directory", directory.path().join("recordings").display().to_string()),
        ("store", store.uri()),
        ("hook", hook.uri()),
        ("pbx", pbx.address.to_string()),
        ("second", second.address.to_string()),
        ("third", third.address.to_string()),
        ("fake", fake.address.to_string()),
        ("refusing", refusing.uri()),
        ("dialler", dialler.uri()),
        ("locked", locked.uri()),
        ("plain", refusing.address().to_string()),
    ]);
    let mut program = Program::start(directory.path(), &config);
    for words in ["registered", "registration refused", "ARI events are open", "401"] {
        program.logs(words).await;
    }
    // refused by the AI, then taken
    let mut call = pbx.call_to(sip).await;
    call.invite().await;
    let refused = timeout(Duration::from_secs(5), ai.next()).await;
    let refused = refused.unwrap_or_else(|_| panic!("no call:\n{}", program.log()));
    let refused = refused.expect("a handshake").allow(&["authorization", "x-twilio-signature"]);
    refused.refuse("401 Unauthorized").await;
    call.refused().await;
    let mut call = pbx.call_to(sip).await;
    call.replace = Some(("Alice".to_owned(), VICI_CALL.to_owned()));
    call.invite().await;
    let stream = opened(&ai).await;
    call.answered().await;
    call.say(0..10).await;
    stream.play_frames(0..10).await;
    let id = format!("vici_call_id={VICI_CALL}");
    fake.world().enter("ai.1", APP, &[&id], Channel::caller());
    let ari = opened(&ai).await;
    fake.until("the caller is connected", |world| world.external_of("ai.1")).await;
    // the server that is dialled with TLS does not speak it
    let mut refused = second.call_to(sip).await;
    refused.invite().await;
    refused.refused().await;
    let pages = pages(http).await;
    call.bye().await;
    stream.stopped().await;
    fake.world().hang_up("ai.1");
    ari.stopped().await;
    program.logs("recording uploaded").await;
    program.logs("VICIdial refuses the login").await;
    program.logs("the status of the call cannot be corrected").await;
    until(async || hook.received_requests().await.unwrap_or_default().len() >= 3).await;
    assert!(program.stop().await.success());
    assert!(program.log().contains("DEBUG"), "the log has all levels");
    assert_no_canaries(directory.path(), pages);
}

async fn pages(http: std::net::SocketAddr) -> [String; 3] {
    let page = async |path: &str| get(http, path).await.1;
    [page("/metrics").await, page("/healthz").await, page("/readyz").await]
}

/// Neither the files of the directory nor the pages contain a secret.
fn assert_no_canaries(directory: &Path, pages: [String; 3]) {
    let mut all = Vec::new();
    files(directory, &mut all);
    all.extend(pages.into_iter().map(|page| ("page".to_owned(), page.into_bytes())));
    let mut found = Vec::new();
    for (name, bytes) in &all {
        find_canaries(name, bytes, &mut found);
    }
    assert!(found.is_empty(), "{}", found.join("\n"));
}

/// Errors in the configuration name the key, and never quote the secret.
#[test]
fn errors_of_the_configuration_contain_no_secret() {
    let directory = tempfile::tempdir().unwrap();
    let password = |value: &str| {
        format!(
            "[ai]\nurl = \"ws://ai\"\n[pbx.main]\nmode = \"sip\"\n[pbx.main.sip]\n\
             registrar = \"192.0.2.1\"\nusername = \"8001\"\npassword = {value}\n"
        )
    };
    let good = password("\"x\"");
    let texts = [
        password(&format!("[\"{SIP_CANARY}\"]")),
        password(&format!("\"{SIP_CANARY}")),
        password(SIP_CANARY),
        format!("{good}passwort = \"{SIP_CANARY}\"\n"),
        format!("{good}password_env = \"{SIP_CANARY}\"\n"),
        format!("{good}[pbx.main.ai]\nurl = \"ws://u:{SIP_CANARY}@ai\"\n"),
        format!("{good}[pbx.main.ai]\nurl = \"ws:/u:{SIP_CANARY}@ai\"\n"),
        format!("{good}[pbx.main.ai]\nheaders = {{ Authorization = \"{SIP_CANARY}\\n\" }}\n"),
        format!("{good}[pbx.main.ai]\nheaders = [\"{SIP_CANARY}\"]\n"),
        format!("{good}[pbx.main.ai]\nauth_token = {{ a = \"{SIP_CANARY}\" }}\n"),
        format!(
            "{good}[recording]\ndirectory = \"/tmp/x\"\n[recording.webhook]\n\
                 url = \"http://c\"\nsecret = \"{SIP_CANARY}\"\n"
        ),
        format!(
            "{good}[recording]\ndirectory = \"/tmp/x\"\n[recording.webhook]\n\
                 url = \"u:{SIP_CANARY}@c\"\n"
        ),
        format!(
            "{good}[recording]\ndirectory = \"/tmp/x\"\n[recording.upload]\n\
                 url = \"s3://b\"\nsecret_access_key = \"{SIP_CANARY}\"\n"
        ),
        format!(
            "{good}[pbx.a]\nmode = \"ari\"\n[pbx.a.ari]\n\
                 url = \"http://u:{SIP_CANARY}@h\"\nusername = \"u\"\npassword = \"x\"\n"
        ),
    ];
    for text in texts {
        let file = directory.path().join("trunkless.toml");
        std::fs::write(&file, &text).unwrap();
        for check in [&["--check"][..], &[]] {
            let mut command = Command::new(env!("CARGO_BIN_EXE_trunkless"));
            command.arg("run").arg("--config").arg(&file).args(check).env_clear();
            let output = command.output().unwrap();
            let said = [&output.stdout[..], &output.stderr[..]].concat();
            let mut found = Vec::new();
            find_canaries("output", &said, &mut found);
            assert_eq!(output.status.code(), Some(2), "{text}\n{}", String::from_utf8_lossy(&said));
            assert!(found.is_empty(), "{text}\n{}", String::from_utf8_lossy(&said));
        }
    }
}
