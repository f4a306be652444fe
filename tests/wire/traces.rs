//! Traces of calls at a collector, as OTLP over HTTP with protobuf.

use std::time::Duration;

use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceRequest;
use opentelemetry_proto::tonic::common::v1::any_value::Value;
use opentelemetry_proto::tonic::trace::v1::Span;
use prost::Message as _;
use wiremock::matchers::{header, method, path};
use wiremock::{Mock, MockServer, ResponseTemplate};

use crate::bridge::Rig;

/// A token that only the collector may see.
const TOKEN: &str = "secret-of-the-collector";

async fn collector(statuses: &[u16]) -> MockServer {
    let server = MockServer::start().await;
    for status in statuses {
        Mock::given(method("POST"))
            .and(path("/v1/traces"))
            .and(header("content-type", "application/x-protobuf"))
            .and(header("x-token", TOKEN))
            .respond_with(ResponseTemplate::new(*status))
            .up_to_n_times(1)
            .mount(&server)
            .await;
    }
    server
}

fn config(server: &MockServer) -> String {
    let url = server.uri();
    format!("[telemetry]\notlp_endpoint = \"{url}\"\notlp_headers = \"X-Token={TOKEN}\"")
}

/// Waits for this many requests, and returns the spans of each.
async fn spans(server: &MockServer, count: usize) -> Vec<Vec<Span>> {
    let all = async {
        loop {
            let requests = server.received_requests().await.unwrap_or_default();
            if requests.len() >= count {
                return requests;
            }
            tokio::task::yield_now().await;
        }
    };
    let requests = tokio::time::timeout(Duration::from_secs(15), all).await.expect("the requests");
    let read = |body: &[u8]| {
        let request = ExportTraceServiceRequest::decode(body).expect("protobuf");
        let [resource] = &request.resource_spans[..] else { panic!("{request:?}") };
        let attributes = &resource.resource.as_ref().expect("a resource").attributes;
        assert!(attributes.iter().any(|a| a.key == "service.name"), "{attributes:?}");
        resource.scope_spans.iter().flat_map(|scope| scope.spans.clone()).collect()
    };
    requests.iter().map(|request| read(&request.body)).collect()
}

fn text<'a>(span: &'a Span, key: &str) -> &'a str {
    let found = span.attributes.iter().find(|a| a.key == key).and_then(|a| a.value.as_ref());
    match found.and_then(|value| value.value.as_ref()) {
        Some(Value::StringValue(text)) => text,
        other => panic!("{key}: {other:?}"),
    }
}

#[tokio::test]
async fn a_call_is_a_trace_with_its_phases() {
    let server = collector(&[200]).await;
    let rig = Rig::new(&config(&server)).await;
    let (mut call, stream) = rig.call().await;
    call.say(0..30).await;
    stream.hears(29).await;
    stream.listen(1000).await;
    stream.play_frames(0..25).await;
    stream.listen(1500).await;
    call.bye().await;
    stream.stopped().await;
    let record = rig.bridge.record().await;
    // a stop does not wait for the rest of the second in which calls are gathered
    rig.bridge.shutdown().await;
    let spans = spans(&server, 1).await.concat();
    let names: Vec<&str> = spans.iter().map(|span| span.name.as_str()).collect();
    assert_eq!(names, ["call", "set-up", "AI connect", "conversation", "turn"]);
    let [root, set_up, connect, talk, turn] = &spans[..] else { panic!("{spans:?}") };
    let trace: String = root.trace_id.iter().map(|byte| format!("{byte:02x}")).collect();
    assert_eq!(format!("CA{trace}"), stream.call_sid);
    assert!(spans.iter().all(|span| span.trace_id == root.trace_id));
    for (child, parent) in [(set_up, root), (connect, set_up), (talk, root), (turn, talk)] {
        assert_eq!(child.parent_span_id, parent.span_id, "{}", child.name);
        assert!(child.start_time_unix_nano >= parent.start_time_unix_nano, "{}", child.name);
        assert!(child.end_time_unix_nano >= child.start_time_unix_nano, "{}", child.name);
    }
    assert!(root.parent_span_id.is_empty());
    assert_eq!(text(root, "trunkless.call"), record.id);
    assert_eq!(text(root, "trunkless.end_reason"), "caller_hangup");
    assert_eq!(text(root, "trunkless.from"), "*****00");
    let wait = Duration::from_nanos(turn.end_time_unix_nano - turn.start_time_unix_nano);
    assert!(wait.abs_diff(record.turns[0].total()) < Duration::from_millis(2), "{wait:?}");
    assert_eq!(turn.events.len(), 1);
}

#[tokio::test]
async fn a_request_that_fails_is_repeated() {
    let server = collector(&[503, 200]).await;
    let rig = Rig::new(&config(&server)).await;
    let (mut call, stream) = rig.call().await;
    call.bye().await;
    stream.stopped().await;
    assert_eq!(rig.bridge.end().await, "caller_hangup");
    let [first, second] = &spans(&server, 2).await[..] else { panic!("two requests") };
    assert_eq!(first, second);
    assert!(first.len() >= 3, "{first:?}");
}
