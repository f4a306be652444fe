//! Calls out in SIP mode: from the request to the callee's answer, and everything that can go
//! wrong before it.

mod twilio;

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use hmac::{Hmac, KeyInit as _, Mac as _};
use serde_json::{Value, json};
use sha1::Sha1;
use trunkless::call::ended::Record;
use trunkless::sip::message::Message;
use wiremock::matchers::any;
use wiremock::{Mock, MockServer, Request, ResponseTemplate};

use crate::bridge::{Net, Rig};
use crate::call::{CALLER, Call, media_address, sdp};
use crate::control::{bearer, request};
use crate::http::free;
use crate::pbx::{Pbx, accept};
use crate::stream::AGENT;
use crate::strict::{Ai, Handshake};

pub const TOKEN: &str = "a-token-that-may-dial";
const OTHER: &str = "a-token-that-may-not-dial";
const NUMBER: &str = "+4930123456";
const RULES: &str = "allow = \"_+4930., 1XX\"\nfrom = \"_+49309X\"\ncaller_id = \"+49301\"\n\
                     per_second = 100\n";

/// The control API's configuration, with tokens that may and may not dial.
pub fn control(address: SocketAddr) -> String {
    format!(
        "[control]\nlisten = \"{address}\"\n\
         [control.tokens.dialler]\ntoken = \"{TOKEN}\"\n\
         scopes = [\"read\", \"control\", \"numbers\", \"dial\"]\n\
         [control.tokens.desk]\ntoken = \"{OTHER}\"\n"
    )
}

struct Dialout {
    rig: Rig,
    api: SocketAddr,
}

/// A rig whose PBX answers no INVITE by itself.
async fn rig(dial: &str, more: &str) -> Dialout {
    let net = Net::new();
    let api = free(net.bridge());
    let config = format!("{}[pbx.main.dial]\n{RULES}{dial}\n{more}", control(api));
    let (pbx, ai) = (Pbx::udp(net.pbx()).await, Ai::start(net.ai()).await);
    pbx.answer_with(|request| match request.method() {
        Some("INVITE") => None,
        _ => accept(request),
    });
    let dialout = Dialout { rig: Rig::with(net, pbx, ai, &config).await, api };
    dialout.is_ready().await;
    dialout
}

/// Asks for a call.
pub async fn place(api: SocketAddr, body: &Value) -> (u16, Value) {
    request(api, "POST /v1/calls", &bearer(TOKEN), &body.to_string()).await
}

impl Dialout {
    async fn is_ready(&self) {
        let ready = async {
            loop {
                let (_, status) = request(self.api, "GET /v1/status", &bearer(TOKEN), "").await;
                let mut findings = status["findings"].as_array().into_iter().flatten();
                if findings.any(|found| found["step"] == "PBX main (SIP)" && found["state"] == "ok")
                {
                    return;
                }
                tokio::task::yield_now().await;
            }
        };
        tokio::time::timeout(Duration::from_secs(5), ready).await.expect("registered");
    }

    /// Places a call that is accepted, and returns its id and its callSid.
    async fn placed(&self, more: Value) -> (String, String) {
        let mut body = json!({"to": NUMBER});
        body.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        let (status, call) = place(self.api, &body).await;
        assert_eq!(status, 201, "{call}");
        let text = |name: &str| call[name].as_str().unwrap().to_owned();
        (text("id"), text("call_sid"))
    }

    async fn show(&self, id: &str) -> Value {
        request(self.api, &format!("GET /v1/calls/{id}"), &bearer(TOKEN), "").await.1
    }

    /// Places a call, opens its AI, and returns both with the INVITE.
    async fn rings(&self, more: Value) -> (String, crate::strict::Opened, Message) {
        let (id, _) = self.placed(more).await;
        let opened = self.rig.ai.handshake().await.open().await;
        let invite = self.rig.pbx.request("INVITE").await;
        self.respond(&invite, 180, "", "").await;
        (id, opened, invite)
    }

    /// Answers a request of the bridge.
    async fn respond(&self, request: &Message, code: u16, headers: &str, body: &str) {
        let mut response = Message::response(request, code, "Said", "callee");
        response.push("Contact", format!("<sip:callee@{}>", self.rig.pbx.address));
        for line in headers.lines() {
            let (name, value) = line.split_once(": ").unwrap();
            response.push(name, value);
        }
        if !body.is_empty() {
            response = response.with_body("application/sdp", body.to_owned());
        }
        self.rig.pbx.send(&response.to_bytes(), self.rig.bridge.address()).await;
    }

    /// The callee answers.
    async fn answers(&self, invite: &Message) -> Call {
        let mut call = self.rig.pbx.call(&self.rig.bridge).await;
        call.take_answered(invite, "callee");
        self.respond(invite, 200, "", &sdp(call.media.address(), "0 8 101", "sendrecv")).await;
        self.rig.pbx.request("ACK").await;
        call
    }

    /// The callee, or the PBX, refuses.
    async fn refuses(&self, invite: &Message, code: u16) -> Record {
        self.respond(invite, code, "", "").await;
        self.rig.pbx.request("ACK").await;
        self.rig.bridge.record().await
    }

    async fn hang_up(&self, id: &str) {
        let body = json!({"command": "hangup"}).to_string();
        let path = format!("POST /v1/calls/{id}/commands?wait=5");
        assert_eq!(request(self.api, &path, &bearer(TOKEN), &body).await.0, 200);
    }

    /// Sends Twilio's form.
    async fn form(&self, fields: &[(&str, &str)]) -> (u16, Value) {
        let account = trunkless::stream::dialect::sid("AC", "main");
        let head = format!("POST /2010-04-01/Accounts/{account}/Calls.json");
        let pair = STANDARD.encode(format!("{account}:{TOKEN}"));
        let headers = format!(
            "Authorization: Basic {pair}\r\nContent-Type: application/x-www-form-urlencoded\r\n"
        );
        let body = fields.iter().map(|(n, v)| format!("{n}={}", encoded(v)));
        let body = body.collect::<Vec<_>>().join("&");
        request(self.api, &head, &headers, &body).await
    }

    fn twiml(&self, parameters: &str) -> String {
        let url = format!("ws://{}/media", self.rig.ai.address);
        format!(
            "<Response><Connect><Stream url=\"{url}\">{parameters}</Stream></Connect></Response>"
        )
    }
}

fn encoded(text: &str) -> String {
    text.bytes().map(|b| format!("%{b:02X}")).collect()
}

/// The form of a status callback, whose signature is checked.
fn signed_form(request: &Request) -> BTreeMap<String, String> {
    let form: BTreeMap<String, String> =
        form_urlencoded::parse(&request.body).into_owned().collect();
    let mut mac = Hmac::<Sha1>::new_from_slice(TOKEN.as_bytes()).unwrap();
    let (host, url) = (request.headers["host"].to_str().unwrap(), &request.url);
    let query = url.query().map(|query| format!("?{query}")).unwrap_or_default();
    mac.update(format!("http://{host}{}{query}", url.path()).as_bytes());
    form.iter().for_each(|(name, value)| mac.update(format!("{name}{value}").as_bytes()));
    let signature = STANDARD.encode(mac.finalize().into_bytes());
    assert_eq!(request.headers["x-twilio-signature"], signature.as_str());
    form
}

pub async fn callbacks(server: &MockServer, count: usize) -> Vec<BTreeMap<String, String>> {
    let all = async {
        loop {
            let requests = server.received_requests().await.unwrap_or_default();
            if requests.len() >= count {
                return requests.iter().map(signed_form).collect();
            }
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(Duration::from_secs(10), all).await.expect("the callbacks")
}

pub async fn callback_server() -> MockServer {
    let server = MockServer::start().await;
    Mock::given(any()).respond_with(ResponseTemplate::new(204)).mount(&server).await;
    server
}

#[tokio::test]
async fn the_callee_is_called_once_the_ai_is_there_and_hears_it_at_once() {
    let server = callback_server().await;
    let host = server.address();
    let dialout = rig(&format!("callback_hosts = [\"{host}\"]"), "").await;
    let callback = json!({
        "url": format!("http://{host}/status?a=1"),
        "events": ["initiated", "ringing", "answered", "completed"],
    });
    let parameters = json!({"lead": "42"});
    let (id, sid) = dialout
        .placed(json!({"from": "+493091", "status_callback": callback, "parameters": parameters}))
        .await;
    let handshake = dialout.rig.ai.handshake().await;
    assert!(dialout.rig.pbx.next_request("INVITE").is_none(), "the AI is not there yet");
    let shown = dialout.show(&id).await;
    assert_eq!((&shown["direction"], &shown["state"]), (&json!("outbound"), &json!("connecting")));
    let opened = handshake.open().await;
    let invite = dialout.rig.pbx.request("INVITE").await;
    let pbx = dialout.rig.pbx.address;
    assert_eq!(invite.uri(), format!("sip:{NUMBER}@{pbx}"));
    assert_eq!(invite.from().unwrap().uri.split('@').next(), Some("sip:ai"));
    assert!(invite.get("P-Asserted-Identity").unwrap().starts_with("<sip:+493091@"));

    // early media is not for the AI
    let early = dialout.rig.pbx.call(&dialout.rig.bridge).await;
    let ringing = sdp(early.media.address(), "0 8 101", "sendrecv");
    dialout.respond(&invite, 183, "", &ringing).await;
    let mut talker = early.talker;
    early.media.say(media_address(&invite.body), &mut talker, 77, 0..5).await;
    let mut call = dialout.answers(&invite).await;
    let stream = opened.started().await;
    assert_eq!(stream.call_sid, sid);
    let expected = json!({
        "from_number": "+493091", "to_number": NUMBER, "pbx": "main", "direction": "outbound",
        "sip_call_id": invite.call_id(), "lead": "42",
    });
    assert_eq!(stream.parameters, expected);
    stream.play_frames(0..20).await;
    call.say(0..20).await;
    assert_eq!(call.media.numbered(AGENT, 20).await, Vec::from_iter(0..20));
    stream.hears(19).await;
    let heard = stream.frames();
    assert!(!heard.is_empty() && trunkless::peer::pattern::frame(77, 0) != heard[0].1);
    assert_eq!(CALLER, 1);
    call.bye().await;
    stream.stopped().await;
    let record = dialout.rig.bridge.record().await;
    assert_eq!((record.reason.label(), record.summary.answered), ("caller_hangup", true));

    let forms = callbacks(&server, 4).await;
    let of = |name: &str| forms.iter().map(|form| form[name].clone()).collect::<Vec<_>>();
    assert_eq!(of("CallStatus"), ["initiated", "ringing", "in-progress", "completed"]);
    assert_eq!(of("SequenceNumber"), ["0", "1", "2", "3"]);
    assert_eq!(of("CallSid"), [&*sid; 4]);
    assert!(of("To").iter().all(|to| to == NUMBER));
    assert!(forms[3].contains_key("CallDuration"));
}

#[tokio::test]
async fn a_phone_that_is_not_answered_stops_ringing() {
    let dialout = rig("", "").await;
    let (id, _opened, invite) = dialout.rings(json!({"timeout": 1})).await;
    let cancel = dialout.rig.pbx.request("CANCEL").await;
    assert_eq!(cancel.get("Via"), invite.get("Via"));
    dialout.respond(&invite, 487, "", "").await;
    assert_eq!(dialout.rig.bridge.end().await, "no_answer");
    let shown = dialout.show(&id).await;
    assert!(shown["ringing_at"].is_string() && shown["answered_at"].is_null(), "{shown}");
}

#[tokio::test]
async fn a_call_is_cancelled_at_each_stage() {
    let dialout = rig("", "").await;
    // before the AI is there: no callee is called
    let (id, _) = dialout.placed(json!({})).await;
    let handshake = dialout.rig.ai.handshake().await;
    dialout.hang_up(&id).await;
    assert_eq!(dialout.rig.bridge.end().await, "api_hangup");
    drop(handshake);
    assert!(dialout.rig.pbx.next_request("INVITE").is_none());

    // while it rings
    let (id, opened, invite) = dialout.rings(json!({})).await;
    let account = trunkless::stream::dialect::sid("AC", "main");
    let sid = dialout.show(&id).await["call_sid"].as_str().unwrap().to_owned();
    let head = format!("POST /2010-04-01/Accounts/{account}/Calls/{sid}.json");
    let (status, call) = request(dialout.api, &head, &bearer(TOKEN), "Status=canceled").await;
    assert_eq!((status, &call["status"]), (200, &json!("canceled")));
    dialout.rig.pbx.request("CANCEL").await;
    dialout.respond(&invite, 487, "", "").await;
    dialout.rig.pbx.request("ACK").await;
    assert_eq!(dialout.rig.bridge.end().await, "api_hangup");
    drop(opened);

    // the callee answers at that moment
    let (id, opened, invite) = dialout.rings(json!({})).await;
    dialout.hang_up(&id).await;
    dialout.rig.pbx.request("CANCEL").await;
    let call = dialout.answers(&invite).await;
    dialout.rig.pbx.request("BYE").await;
    assert_eq!(dialout.rig.bridge.end().await, "api_hangup");
    drop((opened, call));
}

#[tokio::test]
async fn without_an_ai_no_callee_is_called() {
    let net = Net::new();
    let backup = Ai::start(net.host(5)).await;
    let more = format!(
        "[endpoint.backup]\nurl = \"ws://{}/media\"\n\
         [pbx.main.transfer]\ntargets = {{ humans = \"1001\" }}\n\
         [calls]\nanswer = \"at_once\"\non_ai_failure = \"ai:backup, play:sorry, transfer:humans\"",
        backup.address
    );
    let dialout = rig("", &more).await;
    let refuse = async |handshake: Handshake| handshake.refuse("401 Unauthorized").await;
    // both refuse: no announcement, and no transfer
    dialout.placed(json!({})).await;
    refuse(dialout.rig.ai.handshake().await).await;
    refuse(backup.handshake().await).await;
    assert_eq!(dialout.rig.bridge.end().await, "ai_unreachable");
    assert!(dialout.rig.pbx.next_request("INVITE").is_none());

    // the second takes it
    dialout.placed(json!({})).await;
    refuse(dialout.rig.ai.handshake().await).await;
    let opened = backup.handshake().await.open().await;
    let invite = dialout.rig.pbx.request("INVITE").await;
    let mut call = dialout.answers(&invite).await;
    let stream = opened.started().await;
    call.bye().await;
    stream.stopped().await;
    assert_eq!(dialout.rig.bridge.end().await, "caller_hangup");

    // the AI goes away while it rings, and the second, too
    let (_, opened, _) = dialout.rings(json!({})).await;
    drop(opened);
    refuse(backup.handshake().await).await;
    dialout.rig.pbx.request("CANCEL").await;
    assert_eq!(dialout.rig.bridge.end().await, "ai_closed");
}

#[tokio::test]
async fn challenges_are_answered_with_the_account() {
    let dialout = rig("", "").await;
    dialout.placed(json!({})).await;
    let opened = dialout.rig.ai.handshake().await.open().await;
    let first = dialout.rig.pbx.request("INVITE").await;
    let challenge = "Proxy-Authenticate: Digest realm=\"pbx\", nonce=\"n1\", qop=\"auth\"";
    dialout.respond(&first, 407, challenge, "").await;
    let second = dialout.rig.pbx.request("INVITE").await;
    let signed = second.get("Proxy-Authorization").unwrap();
    assert!(signed.contains("username=\"ai\"") && signed.contains("nc=00000001"), "{signed}");
    assert_eq!(second.call_id(), first.call_id());
    // the first ACK is that of the challenge
    dialout.rig.pbx.request("ACK").await;
    let mut call = dialout.answers(&second).await;
    let stream = opened.started().await;
    call.bye().await;
    stream.stopped().await;
}

#[tokio::test]
async fn only_what_is_allowed_is_dialled_and_not_too_much_of_it() {
    let dialout = rig("per_day = 2\nmax_ring = \"30s\"", "").await;
    let refused = async |body: Value| {
        let (status, answer) = place(dialout.api, &body).await;
        (status, answer["error"]["code"].as_str().unwrap_or_default().to_owned())
    };
    let ring = json!(30);
    for (body, status, code) in [
        (json!({}), 400, "invalid"),
        (json!({"to": NUMBER, "timeout": 0}), 400, "invalid"),
        (json!({"to": NUMBER, "oddity": 1}), 400, "invalid"),
        (json!({"to": NUMBER, "timeout": 31}), 400, "invalid"),
        (json!({"to": "+1900555", "timeout": ring}), 403, "number_not_allowed"),
        (json!({"to": "+4930@evil", "timeout": ring}), 400, "invalid"),
        (json!({"to": NUMBER, "from": "+4940", "timeout": ring}), 403, "caller_id_not_allowed"),
        (json!({"to": NUMBER, "ai": "ws://evil/", "timeout": ring}), 400, "invalid"),
        (json!({"to": NUMBER, "record": true, "timeout": ring}), 400, "invalid"),
        (json!({"to": NUMBER, "pbx": "other", "timeout": ring}), 400, "invalid"),
        (
            json!({"to": NUMBER, "status_callback": {"url": "http://x/"}, "timeout": ring}),
            403,
            "callback_host",
        ),
    ] {
        assert_eq!(refused(body.clone()).await, (status, code.to_owned()), "{body}");
    }
    let body = json!({"to": NUMBER}).to_string();
    let (status, _) = request(dialout.api, "POST /v1/calls", &bearer(OTHER), &body).await;
    assert_eq!(status, 403, "control does not imply dial");
    for _ in 0..2 {
        // without a timeout, it rings for 30 s at most
        dialout.placed(json!({})).await;
    }
    assert_eq!(refused(json!({"to": NUMBER, "timeout": 30})).await, (429, "per_day".to_owned()));
    // a reload changes the rules
    dialout.rig.bridge.reload("[pbx.main.dial]\nper_day = 9\nper_second = 1\nmax = 4").await;
    dialout.placed(json!({"timeout": 30})).await;
    assert_eq!(refused(json!({"to": NUMBER, "timeout": 30})).await, (429, "per_second".to_owned()));
    dialout.rig.bridge.reload("[pbx.main.dial]\nper_second = 100\nmax = 3").await;
    assert_eq!(refused(json!({"to": NUMBER, "timeout": 30})).await, (503, "busy".to_owned()));
    dialout.rig.bridge.reload("[pbx.main.dial]\nallow = \"1XX\"\nmax = 9").await;
    let (status, code) = refused(json!({"to": NUMBER, "timeout": 30})).await;
    assert_eq!((status, code.as_str()), (403, "number_not_allowed"));
    assert!(dialout.rig.pbx.next_request("INVITE").is_none());
}

#[tokio::test]
async fn the_command_line_places_calls() {
    let dialout = rig("", "").await;
    let directory = tempfile::tempdir().unwrap();
    let token = directory.path().join("token");
    std::fs::write(&token, TOKEN).unwrap();
    let url = format!("http://{}", dialout.api);
    let run = async |to: &str| {
        let mut command = std::process::Command::new(env!("CARGO_BIN_EXE_trunkless"));
        command.args(["calls", "dial", to, "--parameter", "lead=42", "--timeout", "9"]);
        command.args(["--machine-detection", "message-end"]);
        command.args(["--url", &url, "--token-file"]).arg(&token);
        tokio::task::spawn_blocking(move || command.output()).await.unwrap().unwrap()
    };
    let output = run(NUMBER).await;
    assert_eq!(output.status.code(), Some(0), "{output:?}");
    let id = String::from_utf8(output.stdout).unwrap().trim().to_owned();
    assert_eq!(dialout.show(&id).await["to_number"], NUMBER);
    let opened = dialout.rig.ai.handshake().await.open().await;
    let invite = dialout.rig.pbx.request("INVITE").await;
    let mut call = dialout.answers(&invite).await;
    let stream = opened.started().await;
    assert_eq!(stream.parameters["lead"], "42");
    call.bye().await;
    stream.stopped().await;
    let refused = run("+1900555").await;
    let error = String::from_utf8(refused.stderr).unwrap();
    assert!(refused.status.code() == Some(1) && error.contains("may not be called"), "{error}");
}
