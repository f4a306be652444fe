//! docs/openapi.yaml against the running control API. Each documented response, each member and
//! each word of it must come from the server, and the server may send nothing else.

mod agreement;
mod api;
mod document;

use std::sync::Arc;
use std::sync::atomic::{AtomicU16, Ordering};

use serde_json::{Value, json};
use tokio::sync::{Notify, watch};
use trunkless::call::live::{EventKind, LiveCall};
use trunkless::call::placing::Placer;
use trunkless::call::switchboard::Switchboard;
use trunkless::control::events::Events as Sender;
use trunkless::control::status::Status;
use trunkless::control::tokens::{Access, Scope, Token};
use trunkless::control::{Control, bind};
use trunkless::doctor::finding::{Finding, Report};
use trunkless::sip::message::Message;

use crate::bridge::Net;
use crate::call::{Call, sdp};
use crate::control::exchange;
use crate::openapi::api::{Api, Events, Names, READER, TOKEN, bearer};
use crate::openapi::document::Document;
use crate::pbx::accept;
use crate::stream::Stream;

const CALLS: &str = "/v1/calls";
const CALL: &str = "/v1/calls/{id}";
const CAPTURE: &str = "/v1/calls/{id}/capture";
const CAPTURE_NEXT: &str = "/v1/calls/next/capture";
const LISTEN: &str = "/v1/calls/{id}/listen";
const LIVE: &str = "/v1/live";
const ENDED: &str = "/v1/ended";
const AUDIO: &str = "/v1/recordings/{id}/audio";
const TWILIO_CALLS: &str = "/2010-04-01/Accounts/{AccountSid}/Calls.json";
const TWILIO_CALL: &str = "/2010-04-01/Accounts/{AccountSid}/Calls/{CallSid}.json";
const START: &str = "/2010-04-01/Accounts/{AccountSid}/Calls/{CallSid}/Recordings.json";
const RECORDING: &str =
    "/2010-04-01/Accounts/{AccountSid}/Calls/{CallSid}/Recordings/{RecordingSid}.json";

/// Has the checks of doctor run, by an API whose checks take as long as the test wants.
async fn run_doctor(document: &mut Document) {
    let token =
        Token { name: "desk".to_owned(), secret: TOKEN.into(), scopes: vec![Scope::Control] };
    let access = Access { tokens: vec![token], ..Access::default() };
    let (_keep, access) = watch::channel(access);
    let status = Status::default();
    let doctor = status.doctor.clone();
    let control =
        Control::new(Switchboard::default(), Placer::default(), Sender::default(), access, status);
    let address = crate::http::free(Net::new().bridge());
    let server = bind(address, "[control] listen", control.routes()).await.unwrap();
    let server = tokio::spawn(server);
    let operation = document.operation("POST", "/v1/doctor");
    let run = async || exchange(address, "POST /v1/doctor", &bearer(TOKEN), "").await;
    let mut check = |(status, head, body): (u16, String, Value)| {
        document.respond(&operation, status, &head.to_ascii_lowercase(), &body);
        (status, body)
    };
    assert_eq!(check(run().await).0, 404);
    let (begun, may_end) = (Arc::new(Notify::new()), Arc::new(Notify::new()));
    let (begins, ends) = (begun.clone(), may_end.clone());
    doctor.set(Box::new(move || {
        let (begins, ends) = (begins.clone(), ends.clone());
        Box::pin(async move {
            begins.notify_one();
            ends.notified().await;
            let findings = vec![
                Finding::fault("ai", "it is not there", "start it"),
                Finding::warning("clock", "it is odd", "set it"),
                Finding::ok("ports", "they are free"),
                Finding::skipped("running", "nothing runs"),
            ];
            Report { findings }.value()
        })
    }));
    let second = async {
        begun.notified().await;
        let second = run().await;
        may_end.notify_one();
        second
    };
    let (first, second) = tokio::join!(run(), second);
    assert_eq!(check(second).0, 409);
    let (status, body) = check(first);
    assert_eq!((status, &body["findings"][0]["state"]), (200, &json!("fault")), "{body}");
    server.abort();
}

#[tokio::test]
async fn each_described_response_is_sent_and_no_other() {
    let mut api = Api::start().await;
    api.refuse().await;
    api.refuse_others().await;
    let events = api.events(TOKEN).await;
    let live = api.stream(LIVE, "", TOKEN).await;
    listen_in(&mut api, &live).await;
    talk(&mut api, &events).await;
    end_before_the_answer(&mut api).await;
    end_by_a_transfer(&mut api, &events).await;
    end_by_the_ai(&mut api).await;
    dial_out(&mut api, &events).await;
    fill_up(&mut api).await;
    live.until("live", |data| data["ended"] != json!([])).await;
    api.document.check_events(LIVE, &live);
    show_ended(&mut api).await;
    show_recordings(&mut api).await;
    api.document.check_events("/v1/events", &events);
    fall_behind(&mut api.document).await;
    run_doctor(&mut api.document).await;
    api.document.was_all_seen();
}

/// The only live call, in both shapes.
async fn shown(api: &mut Api, state: &str, status: &str) -> Names {
    let (_, list) = api.get(CALLS, &Names::unknown()).await;
    let call = &list["calls"][0];
    assert_eq!(call["state"], state);
    let names = Names::of(call);
    for name in [&names.id, &names.call] {
        let (_, one) = api.get(CALL, &Names { id: name.clone(), ..names.clone() }).await;
        assert_eq!(one["id"], call["id"]);
    }
    let (_, list) = api.get(TWILIO_CALLS, &names).await;
    assert_eq!(list["calls"][0]["status"], status);
    let (_, one) = api.get(TWILIO_CALL, &names).await;
    assert_eq!(one, list["calls"][0]);
    names
}

/// The same call after its end.
async fn shown_ended(api: &mut Api, names: &Names, status: &str) {
    api.rig.bridge.record().await;
    assert_eq!(api.get(CALL, names).await.1["state"], "ended");
    assert_eq!(api.get(TWILIO_CALL, names).await.1["status"], status);
}

/// A call that lives through most of what can be done with it.
async fn talk(api: &mut Api, events: &Events) {
    // the status of the target of a transfer
    let target = Arc::new(AtomicU16::new(180));
    let (call, stream) = api.rig.call().await;
    answer_as_a_pbx(api, &call, target.clone());
    let names = shown(api, "talking", "in-progress").await;
    api.filter(TWILIO_CALLS, &names).await;
    stream.play_frames(0..10).await;
    give_commands(api, &names).await;
    redirect_wrongly(api, &names).await;
    record(api, &names, &stream).await;

    let transfer = json!({"command": "transfer", "to": "humans", "type": "attended", "id": 7});
    let (status, reply) = api.command(&names, "?wait=1", transfer.clone()).await;
    assert_eq!((status, &reply["status"]), (202, &json!("progress")), "{reply}");
    let mut cancel = json!({"command": "transfer", "action": "cancel"});
    assert_eq!(api.command(&names, "?wait=5", cancel.clone()).await.0, 200);
    target.store(200, Ordering::Relaxed);
    assert_eq!(api.command(&names, "", transfer).await.0, 202);
    events.until("call.command", |data| data["data"]["command"]["state"] == "answered").await;
    cancel["id"] = json!("c");
    let (status, reply) = api.command(&names, "", cancel).await;
    assert_eq!((status, &reply["status"]), (202, &json!("accepted")), "{reply}");
    let cancelled = json!({"id": "c", "command": "transfer", "status": "done", "by": "http:desk"});
    events.until("call.command", |data| data["data"]["command"] == cancelled).await;

    capture(api, &names).await;
    fill_the_queue(api, &names).await;
    assert_eq!(api.command(&names, "", json!({"command": "hangup"})).await.0, 200);
    call.hung_up().await;
    shown_ended(api, &names, "completed").await;
    assert_eq!(api.command(&names, "", json!({"command": "hold"})).await.0, 409);
    assert_eq!(api.get(CAPTURE, &names).await.0, 409);
    for (body, expected) in
        [("Status=completed", 200), ("Status=canceled", 400), ("Twiml=%3CResponse%2F%3E", 400)]
    {
        assert_eq!(api.form(TWILIO_CALL, &names, body).await.0, expected, "{body}");
    }
}

/// Captures the call, and as many of the next ones as can be at once.
async fn capture(api: &mut Api, names: &Names) {
    let mut captures = vec![api.capture(CAPTURE, names).await];
    assert_eq!(api.get(CAPTURE, names).await.1["error"]["code"], "captured");
    while captures.len() < 4 {
        captures.push(api.capture(CAPTURE_NEXT, names).await);
    }
    assert_eq!(api.get(CAPTURE_NEXT, names).await.0, 503);
    assert_eq!(api.get(CAPTURE, names).await.0, 503);
    for (query, expected) in [("?pbx=nain", 404), ("?seconds=0", 400)] {
        assert_eq!(api.query(CAPTURE_NEXT, names, query).await.0, expected);
    }
}

/// Opens as many commands as a call may have.
async fn fill_the_queue(api: &mut Api, names: &Names) {
    let pauses = json!({"command": "sendDigits", "digits": "w".repeat(120)});
    for _ in 0..128 {
        assert_eq!(api.command(names, "", pauses.clone()).await.0, 202);
    }
    assert_eq!(api.command(names, "", pauses).await.0, 429);
}

/// Answers the calls to a target with `target`, and everything else with a 200.
fn answer_as_a_pbx(api: &Api, call: &Call, target: Arc<AtomicU16>) {
    let address = call.media.address();
    api.rig.pbx.answer_with(move |request| match request.method() {
        Some("INVITE") if request.uri().contains("1001@") => match target.load(Ordering::Relaxed) {
            200 => with_sdp(request, sdp(address, "0 101", "sendrecv"), address),
            code => Some(Message::response(request, code, "Ringing", "pbx")),
        },
        Some("INVITE") => {
            let held = String::from_utf8_lossy(&request.body).contains("a=sendonly");
            let direction = if held { "recvonly" } else { "sendrecv" };
            with_sdp(request, sdp(address, "0 101", direction), address)
        }
        _ => accept(request),
    });
}

fn with_sdp(request: &Message, sdp: String, address: std::net::SocketAddr) -> Option<Message> {
    let contact = format!("<sip:pbx@{}>", address.ip());
    Some(accept(request)?.with("Contact", contact).with_body("application/sdp", sdp))
}

async fn give_commands(api: &mut Api, names: &Names) {
    let data = json!({"amount": 7});
    for (query, body, expected, reason) in [
        ("", json!({"command": "mute", "id": "m"}), 200, ""),
        ("?wait=0", json!({"command": "sendDigits", "digits": "1"}), 202, ""),
        ("", json!({"command": "disposition", "status": "SALE", "data": data}), 200, ""),
        ("", json!({"command": "transfer", "to": "1"}), 403, "not_allowed"),
        ("", json!({"command": "setVariables", "variables": {"a": 1}}), 409, "unsupported"),
        ("?wait=5", json!({"command": "play", "prompt": "none"}), 409, "no_such_prompt"),
        ("?wait=5", json!({"command": "hold"}), 200, ""),
        ("", json!({"command": "sendDigits", "digits": "1"}), 409, "wrong_state"),
        ("", json!({"command": "play", "prompt": "sorry"}), 409, "wrong_state"),
    ] {
        let (status, reply) = api.command(names, query, body.clone()).await;
        assert_eq!(status, expected, "{body} {reply}");
        assert_eq!(reply["reason"].as_str().unwrap_or_default(), reason, "{body} {reply}");
    }
    shown(api, "held", "in-progress").await;
    assert_eq!(api.command(names, "?wait=5", json!({"command": "unhold"})).await.0, 200);
}

/// Redirects that are refused.
async fn redirect_wrongly(api: &mut Api, names: &Names) {
    let dial = "Twiml=%3CResponse%3E%3CDial%3E1%3C%2FDial%3E%3C%2FResponse%3E";
    for (body, code) in [
        ("Status=busy", 20001),
        ("Status=canceled", 21220),
        ("", 20001),
        ("Twiml=%3CSay%2F%3E", 12100),
        (dial, 21215),
    ] {
        let (_, answer) = api.form(TWILIO_CALL, names, body).await;
        assert_eq!(answer["code"], code, "{body}");
    }
}

async fn record(api: &mut Api, names: &Names, stream: &Stream) {
    assert_eq!(api.form(START, names, "").await.0, 201);
    stream.mark("recorded").await;
    stream.marked("recorded").await;
    let (status, again) = api.form(START, names, "").await;
    assert_eq!((status, &again["code"]), (400, &json!(21220)));
    let mut recording = names.clone();
    for (status, expected) in
        [("paused", 200), ("in-progress", 200), ("stopped", 200), ("stopped", 400), ("gone", 400)]
    {
        let (code, answer) = api.form(RECORDING, &recording, &format!("Status={status}")).await;
        assert_eq!(code, expected, "{status} {answer}");
        if let Some(sid) = answer["sid"].as_str() {
            recording.recording = sid.to_owned();
        }
    }
}

/// A call to be placed, in both shapes, and the account.
fn new_call(api: &Api) -> (Value, String, Names) {
    let url = format!("ws://{}/media", api.rig.ai.address);
    let twiml = format!("<Response><Connect><Stream url=\"{url}\"/></Connect></Response>");
    let encoded: String = twiml.bytes().map(|b| format!("%{b:02X}")).collect();
    let form = format!("To=%2B491&From=%2B301&Twiml={encoded}");
    let body = json!({"to": "+491", "from": "+301"});
    let names =
        Names { account: trunkless::stream::dialect::sid("AC", "main"), ..Names::unknown() };
    (body, form, names)
}

/// A callee who says nothing.
async fn find_out_who_answers(api: &mut Api, events: &Events) {
    let (mut body, _, names) = new_call(api);
    (body["machine_detection"], body["machine_detection_timeout"]) = (json!("start"), json!(3));
    let media = crate::media::Media::open(api.rig.pbx.address.ip()).await;
    let address = media.address();
    api.rig.pbx.answer_with(move |request| match request.method() {
        Some("INVITE") => with_sdp(request, sdp(address, "0", "sendrecv"), address),
        _ => accept(request),
    });
    let (status, call) = api.post(CALLS, &body).await;
    assert_eq!(status, 201, "{call}");
    let opened = api.rig.ai.handshake().await.open().await;
    let sid = call["call_sid"].clone();
    events.until("call.answered_by", |data| data["data"]["call"]["call_sid"] == sid).await;
    let names = Names { id: call["id"].as_str().expect("an id").to_owned(), ..names };
    assert_eq!(api.get(CALL, &names).await.1["answered_by"], "unknown");
    let names = Names::of(&call);
    assert_eq!(api.get(TWILIO_CALL, &names).await.1["answered_by"], "unknown");
    let hangup = json!({"command": "hangup"});
    assert_eq!(api.command(&names, "", hangup).await.0, 200);
    api.rig.bridge.record().await;
    drop(opened);
}

/// Calls that are refused for what they are.
async fn dial_wrongly(api: &mut Api) {
    let (_, form, names) = new_call(api);
    let callback =
        |url: &str| json!({"to": "+491", "from": "+301", "status_callback": {"url": url}});
    for (body, status, code) in [
        (json!({}), 400, "invalid"),
        (json!({"to": "+501", "from": "+301"}), 403, "number_not_allowed"),
        (json!({"to": "+491", "from": "+401"}), 403, "caller_id_not_allowed"),
        (callback("http://a.example/"), 403, "callback_host"),
    ] {
        let (answered, answer) = api.post(CALLS, &body).await;
        assert_eq!((answered, &answer["error"]["code"]), (status, &json!(code)), "{body}");
    }
    for (form, code) in [
        ("From=%2B301".to_owned(), 21201),
        (form.replace("%2B491", "a%20b"), 21211),
        (form.replace("From=%2B301&", ""), 21213),
        ("To=%2B491&From=%2B301".to_owned(), 21205),
        // no server is there
        ("To=%2B491&From=%2B301&Url=http%3A%2F%2F127.0.0.1%3A1%2F".to_owned(), 11200),
        ("To=%2B491&Twiml=x".to_owned(), 12100),
        (format!("{form}&SendDigits=1"), 20001),
        (form.replace("%2B491", "%2B501"), 21215),
        (form.replace("%2B301", "%2B401"), 21210),
        (format!("{form}&StatusCallback=http%3A%2F%2Fa.example%2F"), 21609),
    ] {
        let (_, answer) = api.form(TWILIO_CALLS, &names, &form).await;
        assert_eq!(answer["code"], code, "{form}");
    }
    assert_eq!(api.form(TWILIO_CALLS, &Names::unknown(), &form).await.0, 404);
}

/// Calls that are placed, and those that are refused because of a limit.
async fn dial_out(api: &mut Api, events: &Events) {
    dial_wrongly(api).await;
    find_out_who_answers(api, events).await;
    // those of earlier calls
    while api.rig.pbx.next_request("INVITE").is_some() {}
    let (body, form, names) = new_call(api);
    api.rig.pbx.answer_with(|request| match request.method() {
        Some("INVITE") => Some(Message::response(request, 180, "Ringing", "pbx")),
        _ => accept(request),
    });
    let refuse = async |api: &Api, code: u16| {
        let invite = api.rig.pbx.request("INVITE").await;
        let refusal = Message::response(&invite, code, "Refused", "pbx");
        api.rig.pbx.send(&refusal.to_bytes(), api.rig.bridge.address()).await;
    };
    for (code, status) in [(486, "busy"), (480, "no-answer")] {
        let (created, call) = api.form(TWILIO_CALLS, &names, &form).await;
        assert_eq!((created, &call["status"]), (201, &json!("queued")), "{call}");
        let sid = call["sid"].as_str().expect("a sid").to_owned();
        let opened = api.rig.ai.handshake().await.open().await;
        let (_, shown) = api.get(CALL, &Names { id: sid.clone(), ..names.clone() }).await;
        let placed = Names::of(&shown);
        events.until("call.ringing", |data| data["data"]["call"]["call_sid"] == *sid).await;
        refuse(api, code).await;
        shown_ended(api, &placed, status).await;
        drop(opened);
    }
    // the limits
    let (created, call) = api.post(CALLS, &body).await;
    assert_eq!((created, &call["direction"]), (201, &json!("outbound")), "{call}");
    let limit = async |api: &mut Api, rules: &str, code: &str| {
        api.rig.bridge.reload(&format!("[pbx.main.dial]\n{rules}")).await;
        // with one call per second, the first may be placed
        for _ in 0..9 {
            let (status, answer) = api.post(CALLS, &body).await;
            if status != 201 {
                assert_eq!(answer["error"]["code"], code, "{answer}");
                return api.form(TWILIO_CALLS, &names, &form).await.0;
            }
        }
        panic!("no call was refused");
    };
    assert_eq!(limit(api, "per_second = 1", "per_second").await, 429);
    assert_eq!(limit(api, "per_second = 1000\nper_day = 1", "per_day").await, 429);
    assert_eq!(limit(api, "per_day = 100\nmax = 1", "busy").await, 503);
    let (_, list) = api.get(CALLS, &names).await;
    for call in list["calls"].as_array().expect("calls") {
        let hangup = json!({"command": "hangup"});
        assert_eq!(api.command(&Names::of(call), "", hangup).await.0, 200);
        api.rig.bridge.record().await;
        drop(api.rig.ai.handshake().await);
    }
    api.rig.pbx.answer_with(accept);
}

/// Calls that end while the AI is dialled: the caller gives up, or a program refuses it.
async fn end_before_the_answer(api: &mut Api) {
    for (by, status) in [("caller", "canceled"), ("command", "failed"), ("form", "failed")] {
        let mut call = api.rig.pbx.call(&api.rig.bridge).await;
        call.invite().await;
        let _handshake = api.rig.ai.handshake().await;
        let names = shown(api, "connecting", "ringing").await;
        match by {
            "caller" => call.cancel().await,
            "form" => {
                let (status, one) = api.form(TWILIO_CALL, &names, "Status=canceled").await;
                assert_eq!((status, &one["status"]), (200, &json!("canceled")), "{one}");
            }
            _ => {
                let hangup = json!({"command": "hangup", "cause": "busy"});
                assert_eq!(api.command(&names, "", hangup).await.0, 200);
            }
        }
        call.refused().await;
        shown_ended(api, &names, status).await;
    }
}

async fn end_by_a_transfer(api: &mut Api, events: &Events) {
    let (mut call, _stream) = api.rig.call().await;
    let names = shown(api, "talking", "in-progress").await;
    let transfer = json!({"command": "transfer", "to": "humans", "onFail": "hangup"});
    assert_eq!(api.command(&names, "", transfer).await.0, 202);
    api.rig.pbx.request("REFER").await;
    let headers = "Event: refer\r\nSubscription-State: terminated;reason=noresource\r\n\
                   Content-Type: message/sipfrag\r\n";
    call.request("NOTIFY", headers, "SIP/2.0 200 OK").await;
    events.until("call.transferred", |_| true).await;
    shown_ended(api, &names, "completed").await;
}

async fn end_by_the_ai(api: &mut Api) {
    let (call, stream) = api.rig.call().await;
    let names = shown(api, "talking", "in-progress").await;
    stream.close(1000).await;
    call.hung_up().await;
    shown_ended(api, &names, "completed").await;
}

/// Listens to a call, with as many others as may.
async fn listen_in(api: &mut Api, live: &Events) {
    let (mut call, stream) = api.rig.call().await;
    let names = shown(api, "talking", "in-progress").await;
    assert_eq!(api.get(LISTEN, &Names::unknown()).await.0, 404);
    let mut open = Vec::new();
    while open.len() < 4 {
        open.push(api.stream(LISTEN, &names.id, TOKEN).await);
    }
    assert_eq!(api.get(LISTEN, &names).await.0, 503);
    let heard = |data: &Value| data["figures"][&names.id]["listeners"] == 4;
    live.until("live", heard).await;
    drop(open);
    call.bye().await;
    stream.stopped().await;
    shown_ended(api, &names, "completed").await;
    live.until("live", |data| data["gone"] == json!([names.id])).await;
    assert_eq!(api.get(LISTEN, &names).await.0, 409);
    assert_eq!(api.get("/v1/session", &names).await.1["token"], "desk");
    let (_, status) = api.get("/v1/status", &names).await;
    assert_eq!(status["findings"][0]["state"], "ok", "{status}");
}

/// Lists the calls that have ended.
async fn show_ended(api: &mut Api) {
    let (_, list) = api.get(ENDED, &Names::unknown()).await;
    let calls = list["calls"].as_array().expect("calls");
    assert!(calls.len() > 3, "{list}");
    let (_, one) = api.get_with(ENDED, "?limit=1", &Names::unknown(), "").await;
    assert_eq!(one["calls"], json!([calls[0]]));
    assert_eq!(api.get_with(ENDED, "?limit=0", &Names::unknown(), "").await.0, 400);
}

/// Shows recordings, of which one is damaged.
async fn show_recordings(api: &mut Api) {
    let (_, list) = api.get(ENDED, &Names::unknown()).await;
    let calls = list["calls"].as_array().expect("calls").iter();
    let id = calls.filter_map(|call| call["summary"]["recordings"][0].as_str()).next();
    let named = |id: &str| Names { id: id.to_owned(), ..Names::unknown() };
    let names = named(id.expect("a recording"));
    for path in ["/v1/recordings/{id}", AUDIO] {
        assert_eq!(api.get(path, &Names::unknown()).await.0, 404);
        std::fs::write(api.recordings.path().join("damaged.json"), "{").unwrap();
        assert_eq!(api.get(path, &named("damaged")).await.0, 500);
        assert_eq!(api.get(path, &names).await.0, 200);
    }
    for (range, expected) in [("bytes=0-57", 206), ("bytes=999999999-", 416)] {
        let range = format!("Range: {range}\r\n");
        assert_eq!(api.get_with(AUDIO, "", &names, &range).await.0, expected, "{range}");
    }
}

/// Fills the places of a token for streams of events; one is in use already. Those of other tokens
/// and the places for commands that wait stay free.
async fn fill_up(api: &mut Api) {
    let mut open = Vec::new();
    while open.len() < 15 {
        open.push(api.events(TOKEN).await);
    }
    assert_eq!(api.get("/v1/events", &Names::unknown()).await.0, 503);
    let mut others = Vec::new();
    while others.len() < 15 {
        others.push(api.stream(LIVE, "", TOKEN).await);
    }
    assert_eq!(api.get(LIVE, &Names::unknown()).await.0, 503);
    open.push(api.events(READER).await);
    let hold = json!({"command": "hold"});
    assert_eq!(api.command(&Names::unknown(), "?wait=1", hold).await.0, 404);
}

/// Sends events faster than a reader takes them: this test and the server are one thread.
async fn fall_behind(document: &mut Document) {
    let token = Token {
        name: "desk".to_owned(),
        secret: TOKEN.into(),
        scopes: vec![Scope::Read, Scope::Control],
    };
    let sender = Sender::default();
    let access = Access { tokens: vec![token], ..Access::default() };
    let (_keep, access) = watch::channel(access);
    let control = Control::new(
        Switchboard::default(),
        Placer::default(),
        sender.clone(),
        access,
        Status::default(),
    );
    let address = crate::http::free(Net::new().bridge());
    let server = bind(address, "[control] listen", control.routes()).await.unwrap();
    let server = tokio::spawn(server);
    let (_, events) = Events::open(address, "/v1/events", TOKEN).await;
    let ids = ["1".to_owned(), format!("CA{:032x}", 1), format!("AC{:032x}", 1)];
    let parties = ["1", "", "2"].map(str::to_owned);
    let call = LiveCall::new(ids, "main".into(), parties, "3".to_owned());
    for _ in 0..2000 {
        sender.send(&call, &EventKind::Started);
    }
    events.until("missed", |data| data["missed"] == 976).await;
    document.check_events("/v1/events", &events);
    server.abort();
}
