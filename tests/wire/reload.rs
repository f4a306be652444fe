//! Reloads under calls: what new calls get, and what live calls keep.

use std::net::SocketAddr;
use std::time::Duration;

use serde_json::json;
use trunkless::app::reload::Outcome;
use trunkless::sip::message::Message;

use crate::bridge::{Bridge, Net, Rig};
use crate::call::Call;
use crate::control::{READER, TOKEN, bearer, request};
use crate::http::{free, get, status};
use crate::lines::Lines;
use crate::pbx::{Pbx, accept};
use crate::stream::{AGENT, Stream};
use crate::strict::Ai;

/// A call that talks both ways, frame by frame, and must not lose any.
struct Talk {
    call: Call,
    stream: Stream,
    said: u32,
}

impl Talk {
    fn new((call, stream): (Call, Stream)) -> Talk {
        Talk { call, stream, said: 0 }
    }

    /// Both sides say ten more frames, and have heard all so far.
    async fn on(&mut self) {
        let next = self.said..self.said + 10;
        self.said += 10;
        self.stream.play_frames(next.clone()).await;
        self.call.say(next).await;
        let (count, all) = (self.said as usize, Vec::from_iter(0..self.said));
        assert_eq!(self.stream.heard(count).await, all, "to the AI");
        assert_eq!(self.call.media.numbered(AGENT, count).await, all, "to the caller");
    }

    async fn end(mut self) {
        self.on().await;
        self.call.bye().await;
        self.stream.stopped().await;
    }
}

/// Sets up a call of this PBX with this AI.
async fn call(bridge: &Bridge, pbx: &Pbx, ai: &Ai) -> Talk {
    let mut call = pbx.call(bridge).await;
    call.invite().await;
    let stream = ai.stream().await;
    call.answered().await;
    Talk::new((call, stream))
}

fn took_effect(outcome: &Outcome, changed: &[&str]) {
    assert!(outcome.ok, "{outcome:?}");
    assert_eq!(outcome.changed, changed);
    assert!(outcome.needs_restart.is_empty(), "{outcome:?}");
}

#[tokio::test]
async fn the_next_call_gets_the_new_ai_and_live_calls_keep_theirs() {
    let rig = Rig::new("").await;
    let other = Ai::start(rig.net.host(5)).await;
    let mut first = Talk::new(rig.call().await);
    first.on().await;
    let outcome = rig.bridge.reload(&format!("[ai]\nurl = \"ws://{}/media\"", other.address)).await;
    took_effect(&outcome, &["ai.url"]);
    first.on().await;
    let mut second = call(&rig.bridge, &rig.pbx, &other).await;
    second.on().await;
    first.end().await;
    second.end().await;
    // headers too
    let headers = "[ai]\nheaders = { X-Shop = \"7\" }\nparameters = { shop = \"7\" }";
    let outcome = rig.bridge.reload(headers).await;
    took_effect(&outcome, &["ai.headers.X-Shop", "ai.parameters.shop"]);
    let mut third = rig.pbx.call(&rig.bridge).await;
    third.invite().await;
    let handshake = other.handshake().await.allow(&["x-shop"]);
    assert_eq!(handshake.get("X-Shop"), Some("7"));
    handshake.refuse("503 Service Unavailable").await;
    third.refused().await;
    // the registration has not been touched
    assert!(rig.pbx.none_of("REGISTER", Duration::from_millis(100)).await);
}

#[tokio::test]
async fn a_file_with_a_mistake_changes_nothing_and_says_why() {
    let lines = Lines::new();
    let rig = Rig::new("[ai]\nparameters = { shop = \"1\" }").await;
    let mut talk = Talk::new(rig.call().await);
    talk.on().await;
    let good = rig.bridge.text().await;
    for (text, why) in [
        (good.replace("[ai]", "[ai]\nulr = \"x\""), "unknown field `ulr`"),
        (good.replace("[ai]", "[ai"), "test.toml:"),
        (good.replace("keepalive = \"0s\"", "keepalive = \"soon\""), "pbx.main.sip.keepalive"),
        (format!("[calls]\nmax = 0\n{good}"), "calls.max: must be at least 1"),
        (format!("[pbx.b]\nmode = \"sip\"\n{good}"), "needs a table [pbx.b.sip]"),
    ] {
        let outcome = rig.bridge.reload_text(&text).await;
        assert!(!outcome.ok && outcome.changed.is_empty(), "{text}: {outcome:?}");
        let all = outcome.errors.join("\n");
        assert!(all.contains(why) && all.contains("test.toml:"), "{why} is not in {all}");
        let line = lines.until_all(&["ERROR", "the one from before stays", why]).await;
        assert!(line.contains("test.toml:"), "{line}");
    }
    talk.on().await;
    call(&rig.bridge, &rig.pbx, &rig.ai).await.end().await;
    talk.end().await;
    took_effect(&rig.bridge.reload_text(&good).await, &[]);
}

#[tokio::test]
async fn a_part_that_cannot_be_started_refuses_the_whole_file() {
    let rig = Rig::new("").await;
    let taken = std::net::TcpListener::bind((rig.net.bridge(), 0)).unwrap();
    let control = format!(
        "[ai]\nurl = \"ws://127.0.0.1:9\"\n[control]\nlisten = \"{}\"\n\
         [control.tokens.desk]\ntoken = \"{TOKEN}\"",
        taken.local_addr().unwrap()
    );
    let outcome = rig.bridge.reload(&control).await;
    assert!(!outcome.ok && outcome.errors[0].contains("set [control] listen"), "{outcome:?}");
    // calls still go to the AI from before
    call(&rig.bridge, &rig.pbx, &rig.ai).await.end().await;
    drop(taken);
    assert!(rig.bridge.reload("").await.ok);
}

/// Challenges a REGISTER until it comes with this answer to the challenge.
fn with_password(password: &'static str) -> impl FnMut(&Message) -> Option<Message> + Send {
    move |request| {
        if request.method() != Some("REGISTER") {
            return accept(request);
        }
        let given = request.get("Authorization").unwrap_or_default();
        match given.contains(&crate::registration::answer(password, request.uri())) {
            true => accept(request),
            false if given.is_empty() => {
                let challenge = "Digest realm=\"asterisk\", nonce=\"nonce1\"";
                let response = Message::response(request, 401, "Unauthorized", "pbx");
                Some(response.with("WWW-Authenticate", challenge))
            }
            false => Some(Message::response(request, 403, "Forbidden", "pbx")),
        }
    }
}

#[tokio::test]
async fn a_changed_password_registers_again_without_touching_calls() {
    let lines = Lines::new();
    let rig = Rig::new("").await;
    lines.until_count("INFO registered", 1).await;
    let mut talk = Talk::new(rig.call().await);
    rig.pbx.answer_with(with_password("new-secret"));
    let outcome = rig.bridge.reload("[pbx.main.sip]\npassword = \"new-secret\"").await;
    took_effect(&outcome, &["pbx.main.sip.password"]);
    let first = rig.pbx.registered().await;
    assert_ne!(first.get("Expires"), Some("0"), "the registration is not removed");
    let signed = rig.pbx.registered().await;
    assert!(signed.get("Authorization").is_some());
    assert_eq!(signed.call_id(), first.call_id());
    talk.on().await;
    call(&rig.bridge, &rig.pbx, &rig.ai).await.end().await;
    // a wrong one is reported, and the next one is tried at once
    let outcome = rig.bridge.reload("[pbx.main.sip]\npassword = \"wrong\"").await;
    assert!(outcome.ok);
    lines.until_all(&["WARN", "registration refused", "check username and password"]).await;
    talk.on().await;
    let before = lines.with("INFO registered").len();
    assert!(rig.bridge.reload("[pbx.main.sip]\npassword = \"new-secret\"").await.ok);
    lines.until_count("INFO registered", before + 1).await;
    talk.end().await;
}

#[tokio::test]
async fn pbxs_are_added_and_removed_without_touching_the_others() {
    let rig = Rig::new("").await;
    let mut main = Talk::new(rig.call().await);
    let second = Pbx::udp(rig.net.host(5)).await;
    let table = format!(
        "[pbx.second]\nmode = \"sip\"\n[pbx.second.sip]\nregistrar = \"{}\"\n\
         username = \"ai\"\npassword = \"secret\"\nkeepalive = \"0s\"",
        second.address
    );
    let outcome = rig.bridge.reload(&table).await;
    assert_eq!((&outcome.added[..], outcome.changed.len()), (&["second".to_owned()][..], 0));
    second.registered().await;
    let mut added = call(&rig.bridge, &second, &rig.ai).await;
    for talk in [&mut main, &mut added] {
        talk.on().await;
    }
    let outcome = rig.bridge.reload_without("pbx", "second").await;
    assert_eq!(outcome.removed, ["second"]);
    assert_eq!(second.registered().await.get("Expires"), Some("0"));
    // its call continues, and a new one is not taken
    added.on().await;
    let mut late = second.call(&rig.bridge).await;
    late.invite().await;
    assert!(rig.ai.is_left_alone(Duration::from_millis(300)).await);
    added.on().await;
    added.end().await;
    // back again, as before
    assert_eq!(rig.bridge.reload(&table).await.added, ["second"]);
    assert_ne!(second.registered().await.get("Expires"), Some("0"));
    call(&rig.bridge, &second, &rig.ai).await.end().await;
    main.end().await;
    assert!(rig.pbx.none_of("REGISTER", Duration::from_millis(100)).await);
}

#[tokio::test]
async fn a_pbx_that_moves_is_unregistered_at_its_old_place() {
    let rig = Rig::new("").await;
    let mut old = Talk::new(rig.call().await);
    let new = Pbx::udp(rig.net.host(5)).await;
    let outcome =
        rig.bridge.reload(&format!("[pbx.main.sip]\nregistrar = \"{}\"", new.address)).await;
    took_effect(&outcome, &["pbx.main.sip.registrar"]);
    assert_eq!(rig.pbx.registered().await.get("Expires"), Some("0"));
    assert_ne!(new.registered().await.get("Expires"), Some("0"));
    old.on().await;
    call(&rig.bridge, &new, &rig.ai).await.end().await;
    old.end().await;
}

#[tokio::test]
async fn limits_below_the_number_of_calls_end_none() {
    let rig = Rig::new("[calls]\nmax = 3").await;
    let mut talks = Vec::new();
    for _ in 0..3 {
        talks.push(Talk::new(rig.call().await));
    }
    took_effect(&rig.bridge.reload("[calls]\nmax = 1").await, &["calls.max"]);
    for talk in &mut talks {
        talk.on().await;
    }
    let refused = async || {
        let mut late = rig.pbx.call(&rig.bridge).await;
        late.invite().await;
        assert_eq!(late.refused().await.code(), Some(503));
    };
    refused().await;
    for _ in 0..2 {
        talks.pop().expect("a call").end().await;
        rig.bridge.record().await;
    }
    refused().await;
    took_effect(&rig.bridge.reload("[calls]\nmax = 2").await, &["calls.max"]);
    call(&rig.bridge, &rig.pbx, &rig.ai).await.end().await;
    let own = "[calls]\nmax = 50\n[pbx.main.calls]\nmax = 1";
    assert!(rig.bridge.reload(own).await.ok);
    refused().await;
}

#[tokio::test]
async fn recording_begins_and_ends_with_new_calls() {
    let folders = [tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap()];
    let directory = |n: usize| format!("[recording]\ndirectory = {:?}", folders[n].path());
    let rig = Rig::new("").await;
    let recorded = async |talk: Talk| {
        talk.end().await;
        rig.bridge.record().await.recordings.len()
    };
    let before = Talk::new(rig.call().await);
    took_effect(&rig.bridge.reload(&directory(0)).await, &["recording.directory"]);
    let first = Talk::new(rig.call().await);
    assert_eq!(recorded(before).await, 0);
    // another directory waits for a restart: recordings that are not sent yet are in the first one
    let outcome = rig.bridge.reload(&directory(1)).await;
    assert!(outcome.ok, "{outcome:?}");
    assert_eq!(outcome.needs_restart, ["recording.directory"]);
    let second = Talk::new(rig.call().await);
    assert_eq!((recorded(first).await, recorded(second).await), (1, 1));
    let off = "[pbx.main.recording]\nwhen = \"never\"";
    let outcome = rig.bridge.reload(off).await;
    assert_eq!(outcome.changed, ["pbx.main.recording.when"]);
    assert_eq!(outcome.needs_restart, ["recording.directory"], "it is still another one");
    let last = Talk::new(rig.call().await);
    assert_eq!(recorded(last).await, 0);
    rig.bridge.shutdown().await;
    for (folder, expected) in folders.iter().zip([2, 0]) {
        let root = trunkless::folder::Root::new(folder.path().to_owned());
        let mut found = 0;
        trunkless::record::library::walk(&root, &mut |_, _| found += 1).unwrap();
        assert_eq!(found, expected, "{folder:?}");
    }
}

#[tokio::test]
async fn tokens_rotate() {
    let net = Net::new();
    let api = free(net.bridge());
    let (pbx, ai) = (Pbx::udp(net.pbx()).await, Ai::start(net.ai()).await);
    let rig = Rig::with(net, pbx, ai, &format!("[control]\nlisten = \"{api}\"")).await;
    // the first token opens the port
    let desk = |token: &str| format!("[control.tokens.desk]\ntoken = \"{token}\"");
    let outcome = rig.bridge.reload(&desk(TOKEN)).await;
    took_effect(&outcome, &["control.tokens.desk.token"]);
    let list = async |token: &str| request(api, "GET /v1/calls", &bearer(token), "").await;
    assert_eq!(list(TOKEN).await, (200, json!({"calls": []})));
    let mut events = crate::control::listen(api, TOKEN).await;
    took_effect(&rig.bridge.reload(&desk(READER)).await, &["control.tokens.desk.token"]);
    assert_eq!((list(TOKEN).await.0, list(READER).await.0), (401, 200));
    // a reader whose token is gone gets no more events
    crate::control::until_closed(&mut events).await;
    rig.bridge.reload_without("control", "tokens").await;
    assert_eq!(list(READER).await.0, 404);
}

#[tokio::test]
async fn keys_that_need_a_restart_are_named() {
    let lines = Lines::new();
    let rig = Rig::new("").await;
    let http = free(rig.net.bridge());
    let text = format!(
        "[http]\nlisten = \"{http}\"\n[media]\nports = \"30000-30100\"\nreorder_wait = \"60ms\"\n\
         [calls]\nmax = 7\n[log]\njson = true"
    );
    let outcome = rig.bridge.reload(&text).await;
    assert!(outcome.ok);
    assert_eq!(outcome.needs_restart, ["http.listen", "log.json", "media.ports"]);
    let line = lines.until("only after a restart").await;
    assert!(line.contains("WARN") && line.contains("http.listen, log.json, media.ports"), "{line}");
    assert!(lines.with("calls.max").iter().any(|line| line.contains("reloaded")));
    // they are still to be named the next time
    let outcome = rig.bridge.reload("[calls]\nmax = 8").await;
    assert_eq!((outcome.changed.len(), outcome.needs_restart.len()), (1, 3));
    call(&rig.bridge, &rig.pbx, &rig.ai).await.end().await;
}

#[tokio::test]
async fn health_shows_the_pbxs_of_the_present_configuration() {
    let net = Net::new();
    let http = free(net.bridge());
    let (pbx, ai) = (Pbx::udp(net.pbx()).await, Ai::start(net.ai()).await);
    let rig = Rig::with(net, pbx, ai, &format!("[http]\nlisten = \"{http}\"")).await;
    let shown = async || get(http, "/metrics").await.1;
    let has = |text: &str, pbx: &str| text.contains(&format!("pbx_ready{{pbx=\"{pbx}\""));
    assert!(has(&shown().await, "main"));
    let trunk = format!(
        "[pbx.trunk]\nmode = \"sip\"\n[pbx.trunk.sip]\nregister = false\npeers = [\"{}\"]",
        net.host(9)
    );
    assert!(rig.bridge.reload(&trunk).await.ok);
    let text = shown().await;
    assert!(has(&text, "main") && has(&text, "trunk"), "{text}");
    assert!(text.contains("trunkless_config_last_reload_success_timestamp_seconds 1"), "{text}");
    rig.bridge.reload_without("pbx", "trunk").await;
    assert!(!has(&shown().await, "trunk"));
    assert_eq!(status(http, "/readyz").await, 200);
}

/// The AI is unreachable at its old URL, so that its breaker is open.
#[tokio::test]
async fn an_open_breaker_does_not_stay_with_another_url() {
    let rig = Rig::new("").await;
    let gone: SocketAddr = free(rig.net.host(5));
    assert!(rig.bridge.reload(&format!("[ai]\nurl = \"ws://{gone}/\"")).await.ok);
    for _ in 0..4 {
        let mut call = rig.pbx.call(&rig.bridge).await;
        call.invite().await;
        assert_eq!(call.refused().await.code(), Some(503));
    }
    let back = format!("[ai]\nurl = \"ws://{}/media\"", rig.ai.address);
    assert!(rig.bridge.reload(&back).await.ok);
    call(&rig.bridge, &rig.pbx, &rig.ai).await.end().await;
}
