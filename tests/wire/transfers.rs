//! Transfers in SIP mode: REFER, its NOTIFYs, the call to the target, and what may go wrong.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use serde_json::{Value, json};
use trunkless::sip::message::Message;

use crate::bridge::Rig;
use crate::call::{Call, sdp};
use crate::media::{Heard, Media, indices};
use crate::orders::{order, statuses};
use crate::pbx::accept;
use crate::stream::{AGENT, Stream};

/// The PBX's answers to the bridge's next re-INVITEs; later ones are accepted.
type Refusals = Arc<Mutex<Vec<u16>>>;

/// A call that is to be transferred.
struct Scene {
    rig: Rig,
    call: Call,
    stream: Stream,
    /// The bridge's call to the target, once it was made.
    target: Call,
    refusals: Refusals,
}

impl Scene {
    async fn new() -> Scene {
        let rig = Rig::new("[pbx.main.transfer]\ntargets = { humans = \"1001\" }").await;
        let (call, stream) = rig.call().await;
        let target = rig.pbx.call(&rig.bridge).await;
        let refusals = Refusals::default();
        let media = (call.media.address(), target.media.address());
        let codes = refusals.clone();
        rig.pbx.answer_with(move |request| answer(request, media, &codes));
        Scene { rig, call, stream, target, refusals }
    }

    async fn order(&self, id: &str, body: Value) {
        let value = json!({"event": "transfer", "id": id, "transfer": body});
        self.stream.order(&value).await;
    }

    /// Waits until the bridge has called the target.
    async fn consulted(&mut self) {
        let invite = loop {
            let invite = self.rig.pbx.request("INVITE").await;
            if invite.to().is_some_and(|to| to.tag().is_none()) {
                break invite;
            }
        };
        assert!(invite.uri().starts_with("sip:1001@"), "{}", invite.uri());
        self.target.take_answered(&invite, "pbx");
    }

    /// Begins an attended transfer, in which the AI talks to the target.
    async fn consult(&mut self, id: &str) {
        self.order(id, json!({"to": "humans", "type": "attended"})).await;
        self.consulted().await;
        // only then can the transfer be completed, and audio of an earlier one proves nothing
        self.stream.answered(id).await;
        self.stream.play_frames(0..5).await;
        let last = |heard: &Heard| indices(std::slice::from_ref(heard), AGENT) == [4];
        self.target.media.until("the AI", last).await;
    }

    /// Reports the status of the request that the PBX sends because of a REFER.
    async fn notify(&mut self, refer: &Message, status: &str) {
        let id = refer.cseq().unwrap().0;
        let headers = format!(
            "Event: refer;id={id}\r\nSubscription-State: active\r\n\
             Content-Type: message/sipfrag\r\n"
        );
        let body = format!("SIP/2.0 {status}\r\n");
        assert_eq!(self.call.request("NOTIFY", &headers, &body).await.code(), Some(200));
    }
}

fn answer(
    request: &Message,
    (caller, target): (SocketAddr, SocketAddr),
    refusals: &Refusals,
) -> Option<Message> {
    let again = request.to().is_some_and(|to| to.tag().is_some());
    match request.method() {
        Some("INVITE") if again => {
            let mut refusals = refusals.lock().unwrap();
            if !refusals.is_empty() {
                let code = refusals.remove(0);
                return Some(Message::response(request, code, "Not Now", "pbx"));
            }
            let held = String::from_utf8_lossy(&request.body).contains("a=sendonly");
            let direction = if held { "recvonly" } else { "sendrecv" };
            Some(accept(request)?.with_body("application/sdp", sdp(caller, "0 101", direction)))
        }
        Some("INVITE") => {
            let answer = sdp(target, "0 101", "sendrecv");
            let contact = format!("<sip:1001@{}>", target.ip());
            Some(accept(request)?.with("Contact", contact).with_body("application/sdp", answer))
        }
        Some("REFER") => Some(Message::response(request, 202, "Accepted", "pbx")),
        _ => accept(request),
    }
}

#[tokio::test]
async fn a_bye_that_overtakes_the_last_notify_means_success() {
    let mut scene = Scene::new().await;
    scene.order("t", json!({"to": "humans"})).await;
    scene.consulted().await;
    let refer = scene.rig.pbx.request("REFER").await;
    assert!(refer.get("Refer-To").is_some_and(|to| to.contains("Replaces=")), "{refer:?}");
    scene.notify(&refer, "100 Trying").await;
    scene.call.bye().await;
    // a BYE on the target's call could end the pair
    assert!(scene.rig.pbx.none_of("BYE", Duration::from_millis(700)).await);
    assert_eq!(scene.target.hung_up().await, "Q.850;cause=16;text=\"transferred\"");
    let replies = scene.stream.replied("t").await;
    assert_eq!(statuses(&replies), ["accepted", "progress", "done"]);
    scene.stream.until_stop().await;
    assert_eq!(scene.rig.bridge.end().await, "transferred");
}

#[tokio::test]
async fn a_plain_transfer_whose_outcome_is_never_reported_is_done_after_its_timeout() {
    let scene = Scene::new().await;
    scene.order("t", json!({"to": "humans", "onFail": "hangup", "timeout": 1})).await;
    scene.rig.pbx.request("REFER").await;
    // the target may ring all the time
    assert!(scene.rig.pbx.none_of("BYE", Duration::from_millis(10_500)).await);
    let own = scene.stream.own();
    assert!(own.iter().all(|own| own["result"]["status"] != "done"), "{own:?}");
    assert_eq!(statuses(&scene.stream.replied("t").await), ["accepted", "done"]);
    assert_eq!(scene.call.hung_up().await, "Q.850;cause=16;text=\"transferred\"");
    scene.stream.until_stop().await;
    assert_eq!(scene.rig.bridge.end().await, "transferred");
}

#[tokio::test]
async fn the_targets_media_may_move_during_a_consultation() {
    let mut scene = Scene::new().await;
    scene.consult("t").await;
    let moved = Media::open(scene.rig.net.pbx()).await;
    scene.target.reinvite("", &sdp(moved.address(), "0 101", "sendrecv")).await;
    moved.next().await;
    scene.stream.play_frames(10..20).await;
    assert_eq!(moved.numbered(AGENT, 10).await, Vec::from_iter(10..20));
    // keys are the target's, like the audio
    let info = |digit: char| format!("Signal={digit}\r\nDuration=160\r\n");
    let kind = "Content-Type: application/dtmf-relay\r\n";
    scene.call.request("INFO", kind, &info('1')).await;
    scene.target.request("INFO", kind, &info('5')).await;
    scene.stream.pressed("5").await;
    // the caller's media, too, may move meanwhile
    let caller = Media::open(scene.rig.net.pbx()).await;
    scene.call.reinvite("", &sdp(caller.address(), "0 101", "sendrecv")).await;
    scene.target.bye().await;
    assert_eq!(scene.stream.replied("t").await.pop().unwrap()["reason"], "target_hung_up");
    scene.call.request("INFO", kind, &info('2')).await;
    scene.stream.pressed("52").await;
    scene.call.bye().await;
    scene.stream.stopped().await;
}

#[tokio::test]
async fn the_caller_is_taken_off_hold_when_the_pbx_can_take_the_reinvite() {
    let mut scene = Scene::new().await;
    scene.consult("t").await;
    *scene.refusals.lock().unwrap() = vec![491, 503];
    scene.order("c", json!({"action": "cancel"})).await;
    assert_eq!(scene.stream.replied("t").await.pop().unwrap()["reason"], "cancelled");
    let mut offers = 0;
    while offers < 3 {
        let offer = scene.rig.pbx.request("INVITE").await;
        // the one before took the caller on hold
        offers += u32::from(String::from_utf8_lossy(&offer.body).contains("a=sendrecv"));
    }
    assert!(scene.refusals.lock().unwrap().is_empty());
    // an order is answered after the last attempt
    *scene.refusals.lock().unwrap() = vec![500];
    let replies = order(&scene.stream, "h", "hold", json!({})).await;
    assert_eq!(statuses(&replies), ["accepted", "done"]);
    assert!(scene.refusals.lock().unwrap().is_empty());
    scene.call.bye().await;
    scene.stream.stopped().await;
}

#[tokio::test]
async fn a_notify_of_an_earlier_refer_does_not_end_the_next_transfer() {
    let mut scene = Scene::new().await;
    scene.consult("1").await;
    scene.order("c1", json!({"action": "complete"})).await;
    let first = scene.rig.pbx.request("REFER").await;
    scene.notify(&first, "603 Decline").await;
    assert_eq!(scene.stream.replied("1").await.pop().unwrap()["reason"], "refused");

    scene.consult("2").await;
    scene.notify(&first, "503 Service Unavailable").await;
    scene.order("c2", json!({"action": "complete"})).await;
    let second = scene.rig.pbx.request("REFER").await;
    scene.notify(&first, "503 Service Unavailable").await;
    scene.notify(&second, "200 OK").await;
    assert_eq!(scene.stream.replied("2").await.pop().unwrap()["status"], "done");
    scene.stream.until_stop().await;
    assert_eq!(scene.rig.bridge.end().await, "transferred");
}
