//! Calls go to the AI of the first route that applies.

use std::time::{Duration, Instant};

use trunkless::call::ended::Record;

use crate::bridge::{Net, Rig};
use crate::call::Call;
use crate::pbx::Pbx;
use crate::stream::Stream;
use crate::strict::Ai;

/// A rig with the AIs `a` and `b` besides that of `[ai]`.
struct Routed {
    rig: Rig,
    a: Ai,
    b: Ai,
}

impl Routed {
    async fn new(config: &str) -> Routed {
        let net = Net::new();
        let (pbx, ai) = (Pbx::udp(net.pbx()).await, Ai::start(net.ai()).await);
        let (a, b) = (Ai::start(net.host(5)).await, Ai::start(net.host(6)).await);
        let config = format!(
            "[endpoint.a]\nurl = \"ws://{}/media\"\n[endpoint.b]\nurl = \"ws://{}/media\"\n\
             [pbx.main.sip]\nusers = [\"80XX\"]\n{config}",
            a.address, b.address
        );
        Routed { rig: Rig::with(net, pbx, ai, &config).await, a, b }
    }

    /// An INVITE to this user, with these header lines.
    async fn invite(&self, user: &str, headers: &str) -> Call {
        let mut call = self.rig.pbx.call(&self.rig.bridge).await;
        call.target = call.target.replace("sip:ai@", &format!("sip:{user}@"));
        call.headers = headers.to_owned();
        call.invite().await;
        call
    }

    /// A call whose stream reaches this AI.
    async fn call(&self, user: &str, headers: &str, ai: &Ai) -> (Call, Stream) {
        let mut call = self.invite(user, headers).await;
        let stream = ai.stream().await;
        call.answered().await;
        (call, stream)
    }

    /// Ends a call, and returns its record.
    async fn end(&self, mut call: Call, stream: Stream) -> Record {
        call.bye().await;
        stream.stopped().await;
        self.rig.bridge.record().await
    }
}

#[tokio::test]
async fn the_first_route_that_applies_decides() {
    let routed = Routed::new(
        "[[route]]\nname = \"gold\"\nheader.X-Class = \"gold\"\nai = \"a\"\n\
         parameters = { greeting = \"hello\" }\n\
         [[route]]\nname = \"never\"\nto = \"8010\"\ntime = \"00:00-00:01\"\nzone = \"UTC\"\n\
         from = \"1\"\nai = \"a\"\n\
         [[route]]\nname = \"number\"\nto = \"801X\"\nfrom = \"555.\"\nai = \"b\"\n\
         [[route]]\nname = \"always\"\nto = \"8020\"\ntime = \"00:00-24:00\"\nzone = \"UTC\"\n\
         ai = \"a\"\n",
    )
    .await;
    let (call, stream) = routed.call("8010", "X-Class: gold\r\n", &routed.a).await;
    assert_eq!(stream.parameters["greeting"], "hello");
    assert_eq!(routed.end(call, stream).await.route.as_deref(), Some("gold"));
    let (call, stream) = routed.call("8011", "X-Class: silver\r\n", &routed.b).await;
    assert_eq!(stream.parameters["to_number"], "8011");
    assert_eq!(routed.end(call, stream).await.route.as_deref(), Some("number"));
    let (call, stream) = routed.call("8020", "", &routed.a).await;
    assert_eq!(routed.end(call, stream).await.route.as_deref(), Some("always"));
    // the PBX addresses the Contact, and names the called user in To
    let mut call = routed.rig.pbx.call(&routed.rig.bridge).await;
    call.replace = Some(("To: <sip:ai@".to_owned(), "To: <sip:8020@".to_owned()));
    call.invite().await;
    let stream = routed.a.stream().await;
    call.answered().await;
    assert_eq!(stream.parameters["to_number"], "8020");
    assert_eq!(routed.end(call, stream).await.route.as_deref(), Some("always"));
    // no route applies
    let (call, stream) = routed.call("8030", "", &routed.rig.ai).await;
    assert_eq!(routed.end(call, stream).await.route, None);
}

#[tokio::test]
async fn the_next_ai_of_a_route_takes_over_within_300_ms() {
    let limit = Duration::from_millis(300);
    let routed = Routed::new(
        "[[route]]\nname = \"both\"\nai = [{ name = \"a\", weight = 1 }, \
         { name = \"b\", weight = 0 }]\n",
    )
    .await;
    // 503 is tried again only where there is no other AI
    for status in ["503 Service Unavailable", "401 Unauthorized"] {
        let mut call = routed.invite("8010", "").await;
        routed.a.handshake().await.refuse(status).await;
        let refused = Instant::now();
        let opened = routed.b.handshake().await.open().await;
        assert!(refused.elapsed() < limit, "{:?}", refused.elapsed());
        let (stream, _) = tokio::join!(opened.started(), call.answered());
        routed.end(call, stream).await;
    }

    // in mid-call
    let (mut call, stream) = routed.call("8010", "", &routed.a).await;
    call.say(0..10).await;
    stream.hears(9).await;
    let lost = Instant::now();
    stream.reset().await;
    let second = routed.b.handshake().await;
    assert!(lost.elapsed() < limit, "{:?}", lost.elapsed());
    let second = second.open().await.started().await;
    call.say(10..20).await;
    second.hears(19).await;
    let record = routed.end(call, second).await;
    assert_eq!((record.reason.label(), record.dialled.len()), ("caller_hangup", 2));
}

#[tokio::test]
async fn an_ai_without_a_listener_costs_no_time() {
    let routed = Routed::new(
        "[endpoint.gone]\nurl = \"ws://127.0.0.1:9/\"\n\
         [[route]]\nname = \"both\"\nai = [{ name = \"gone\", weight = 1 }, \
         { name = \"b\", weight = 0 }]\n",
    )
    .await;
    // the breaker opens on the way, and then the AI is not tried at all
    for _ in 0..5 {
        let begin = Instant::now();
        let (call, stream) = routed.call("8010", "", &routed.b).await;
        assert!(begin.elapsed() < Duration::from_millis(300), "{:?}", begin.elapsed());
        routed.end(call, stream).await;
    }
}

#[tokio::test]
async fn a_full_route_sends_callers_down_its_own_ladder() {
    let routed = Routed::new(
        "[[route]]\nname = \"small\"\nto = \"8010\"\nai = \"a\"\nlimits = { max = 1 }\n\
         on_ai_failure = [\"ai:b\", \"hangup:busy\"]\n",
    )
    .await;
    let (call, stream) = routed.call("8010", "", &routed.a).await;
    let mut second = routed.invite("8010", "").await;
    assert_eq!(second.refused().await.code(), Some(486));
    let record = routed.rig.bridge.record().await;
    assert_eq!((record.reason.label(), record.route.as_deref()), ("overload", Some("small")));
    // other calls have room
    let (other, default) = routed.call("8011", "", &routed.rig.ai).await;
    routed.end(other, default).await;
    routed.end(call, stream).await;
    let (call, stream) = routed.call("8010", "", &routed.a).await;
    routed.end(call, stream).await;
}

#[tokio::test]
async fn routes_decide_what_is_recorded() {
    let folder = tempfile::tempdir().unwrap();
    let routed = Routed::new(&format!(
        "[recording]\ndirectory = {:?}\nwhen = \"never\"\n\
         [[route]]\nname = \"taped\"\nto = \"8010\"\nrecord = \"always\"\n",
        folder.path()
    ))
    .await;
    for (user, count) in [("8010", 1), ("8011", 0)] {
        let (mut call, stream) = routed.call(user, "", &routed.rig.ai).await;
        call.say(0..10).await;
        stream.hears(9).await;
        let record = routed.end(call, stream).await;
        assert_eq!(record.recordings.len(), count, "{user}");
    }
}

#[tokio::test]
async fn a_reload_changes_the_routes_of_new_calls_only() {
    let route = |ai: &str| {
        format!(
            "[[route]]\nname = \"sales\"\nto = \"8010\"\nai = \"{ai}\"\nlimits = {{ max = 2 }}\n"
        )
    };
    let routed = Routed::new(&route("a")).await;
    let (mut call, stream) = routed.call("8010", "", &routed.a).await;
    let outcome = routed.rig.bridge.reload(&route("b")).await;
    assert_eq!((outcome.ok, &outcome.changed[..]), (true, &["route.sales.ai".to_owned()][..]));
    call.say(0..10).await;
    stream.hears(9).await;
    let (second, new) = routed.call("8010", "", &routed.b).await;
    // the call from before the reload counts towards the limit
    let mut third = routed.invite("8010", "").await;
    assert_eq!(third.refused().await.code(), Some(503));
    assert_eq!(routed.rig.bridge.end().await, "overload");
    routed.end(call, stream).await;
    routed.end(second, new).await;
    let outcome = routed.rig.bridge.reload("route = []").await;
    assert!(outcome.ok, "{outcome:?}");
    let (call, stream) = routed.call("8010", "", &routed.rig.ai).await;
    routed.end(call, stream).await;
}

#[tokio::test]
async fn calls_are_shared_by_weight_and_shown_with_their_route() {
    let routed = Routed::new(
        "[[route]]\nname = \"shared\"\nai = [{ name = \"a\", weight = 1 }, \
         { name = \"b\", weight = 1 }]\n",
    )
    .await;
    let mut counts = [0, 0];
    while counts.contains(&0) {
        let mut call = routed.invite("8010", "").await;
        let (stream, at) = tokio::select! {
            stream = routed.a.stream() => (stream, 0),
            stream = routed.b.stream() => (stream, 1),
        };
        counts[at] += 1;
        call.answered().await;
        routed.end(call, stream).await;
        assert!(counts[0] + counts[1] < 40, "{counts:?}");
    }
}
