//! Calls out in the shape of Twilio's API.

use serde_json::{Value, json};
use wiremock::matchers::path;
use wiremock::{Mock, MockServer, ResponseTemplate};

use crate::control::{bearer, request};
use crate::dialout::{NUMBER, TOKEN, callback_server, callbacks, place, rig, signed_form};

#[tokio::test]
async fn each_refusal_has_its_status() {
    let server = callback_server().await;
    let host = server.address().to_string();
    let dialout = rig(&format!("callback_hosts = [\"{host}\"]"), "").await;
    let url = format!("http://{host}/status");
    let table = [
        (486, "busy", "busy"),
        (480, "no_answer", "no-answer"),
        (404, "invalid_number", "failed"),
        (603, "rejected", "busy"),
        (302, "dial_failed", "failed"),
        (503, "dial_failed", "failed"),
    ];
    for (count, (code, reason, status)) in table.into_iter().enumerate() {
        let twiml = dialout.twiml("");
        let fields =
            [("To", NUMBER), ("From", "+49301"), ("Twiml", &*twiml), ("StatusCallback", &*url)];
        let (accepted, call) = dialout.form(&fields).await;
        assert_eq!((accepted, &call["status"]), (201, &json!("queued")), "{call}");
        assert_eq!(call["direction"], "outbound-api");
        let opened = dialout.rig.ai.handshake().await.open().await;
        let invite = dialout.rig.pbx.request("INVITE").await;
        let record = dialout.refuses(&invite, code).await;
        assert_eq!((record.reason.label(), record.summary.answered), (reason, false));
        drop(opened);
        let forms = callbacks(&server, count + 1).await;
        assert_eq!(forms[count]["CallStatus"], status, "{code}");
        assert_eq!(forms[count]["SipResponseCode"], code.to_string());
    }
}

#[tokio::test]
async fn twilios_form_is_carried_out_or_refused() {
    let dialout = rig("", "").await;
    let twiml = dialout.twiml("<Parameter name=\"lead\" value=\"7\"/>");
    let base = [("To", NUMBER), ("From", "+49301"), ("Twiml", &*twiml)];
    let with = |more: &[(&'static str, &'static str)]| [base.as_slice(), more].concat();
    for (fields, status, code) in [
        (with(&[("MachineDetection", "on")]), 400, 20001),
        (with(&[("MachineDetection", "Enable"), ("MachineDetectionTimeout", "60")]), 400, 20001),
        (with(&[("MachineDetection", "Enable"), ("AsyncAmd", "yes")]), 400, 20001),
        (with(&[("MachineDetectionSpeechThreshold", "2400")]), 400, 20001),
        (
            with(&[("MachineDetection", "Enable"), ("AsyncAmdStatusCallback", "http://x/")]),
            403,
            21609,
        ),
        (vec![("To", NUMBER), ("Url", "http://x/")], 403, 21609),
        (vec![("To", NUMBER), ("Url", "http://x/"), ("Method", "PUT")], 400, 21205),
        (with(&[("SendDigits", "1")]), 400, 20001),
        (with(&[("Timeout", "601")]), 400, 20001),
        (with(&[("Record", "true")]), 400, 20001),
        (with(&[("RecordingChannels", "mono")]), 400, 20001),
        (with(&[("StatusCallback", "http://x/"), ("StatusCallbackEvent", "odd")]), 400, 20001),
        (with(&[("StatusCallback", "http://x/")]), 403, 21609),
        (vec![("From", "+49301"), ("Twiml", &*twiml)], 400, 21201),
        (vec![("To", "+1900"), ("Twiml", &*twiml)], 403, 21215),
        (vec![("To", "+49 30"), ("Twiml", &*twiml)], 400, 21211),
        (vec![("To", NUMBER), ("From", "+4940"), ("Twiml", &*twiml)], 403, 21210),
        (vec![("To", NUMBER)], 400, 21205),
        (vec![("To", NUMBER), ("Twiml", "<Response><Say>x</Say></Response>")], 400, 12100),
        (
            vec![
                ("To", NUMBER),
                ("Twiml", "<Response><Connect><Stream url=\"ws://evil/\"/></Connect></Response>"),
            ],
            400,
            12100,
        ),
    ] {
        let (answered, problem) = dialout.form(&fields).await;
        assert_eq!((answered, &problem["code"]), (status, &json!(code)), "{fields:?} {problem}");
    }
    // without MachineDetection, its options mean nothing
    let options = [("Timeout", "20"), ("MachineDetectionTimeout", "9"), ("AsyncAmd", "true")];
    let (status, _) = dialout.form(&with(&options)).await;
    assert_eq!(status, 201);
    let opened = dialout.rig.ai.handshake().await.open().await;
    let invite = dialout.rig.pbx.request("INVITE").await;
    let mut call = dialout.answers(&invite).await;
    let stream = opened.started().await;
    assert_eq!(stream.parameters["lead"], "7");
    call.bye().await;
    stream.stopped().await;
}

#[tokio::test]
async fn twiml_may_be_at_a_url() {
    let server = MockServer::start().await;
    let host = server.address().to_string();
    // a call without a document does not count
    let dialout = rig(&format!("callback_hosts = [\"{host}\"]\nper_day = 2"), "").await;
    let good = dialout.twiml("<Parameter name=\"lead\" value=\"7\"/>");
    let respond = |status: u16, body: &str| ResponseTemplate::new(status).set_body_string(body);
    let moved = ResponseTemplate::new(302).insert_header("Location", "/good");
    for (place, response) in [
        ("/good", respond(200, &good)),
        ("/refuses", respond(500, "")),
        ("/moved", moved),
        ("/long", respond(200, &" ".repeat(20_000))),
        ("/say", respond(200, "<Response><Say>x</Say></Response>")),
    ] {
        Mock::given(path(place)).respond_with(response).mount(&server).await;
    }
    let ask = async |place: &str, method: &str| {
        let url = format!("http://{host}{place}");
        dialout.form(&[("To", NUMBER), ("Url", &url), ("Method", method)]).await
    };
    for (place, code, why) in [
        ("/refuses", 11200, "500"),
        ("/moved", 11200, "302"),
        ("/long", 11200, "longer than 16384 bytes"),
        ("/say", 12100, "<Connect>"),
    ] {
        let (status, problem) = ask(place, "POST").await;
        assert_eq!((status, &problem["code"]), (400, &json!(code)), "{place} {problem}");
        assert!(problem["message"].as_str().unwrap().contains(why), "{problem}");
    }
    // a number that is not allowed: the program is not asked
    let asked = server.received_requests().await.unwrap().len();
    let url = format!("http://{host}/good");
    assert_eq!(dialout.form(&[("To", "+1900"), ("Url", &url)]).await.0, 403);
    assert_eq!(server.received_requests().await.unwrap().len(), asked);
    for (count, method) in ["POST", "GET"].into_iter().enumerate() {
        let (status, call) = ask("/good?a=1", method).await;
        assert_eq!(status, 201, "{call}");
        let requests = server.received_requests().await.unwrap();
        let request = &requests[asked + count];
        let form = match method {
            "POST" => signed_form(request),
            _ => request.url.query_pairs().into_owned().collect(),
        };
        assert_eq!(
            (&*form["CallSid"], &*form["CallStatus"]),
            (call["sid"].as_str().unwrap(), "queued")
        );
        assert_eq!(
            (&*form["To"], &*form["From"], &*form["Direction"]),
            (NUMBER, "+49301", "outbound-api")
        );
        let opened = dialout.rig.ai.handshake().await.open().await;
        let invite = dialout.rig.pbx.request("INVITE").await;
        let mut callee = dialout.answers(&invite).await;
        let stream = opened.started().await;
        assert_eq!((&stream.call_sid, &stream.parameters["lead"]), (&form["CallSid"], &json!("7")));
        callee.bye().await;
        stream.stopped().await;
    }
    // beyond the limits, the program is not asked
    assert_eq!(ask("/good", "POST").await.0, 429);
    assert_eq!(server.received_requests().await.unwrap().len(), asked + 2);
}

#[tokio::test]
async fn a_program_is_told_who_has_answered() {
    let server = callback_server().await;
    let host = server.address().to_string();
    let dialout = rig(&format!("callback_hosts = [\"{host}\"]"), "").await;
    let (status, detected) = (format!("http://{host}/status"), format!("http://{host}/amd"));
    let twiml = dialout.twiml("");
    let fields = [
        ("To", NUMBER),
        ("Twiml", &*twiml),
        ("StatusCallback", &*status),
        ("MachineDetection", "DetectMessageEnd"),
        ("MachineDetectionTimeout", "3"),
        ("AsyncAmd", "true"),
        ("AsyncAmdStatusCallback", &*detected),
    ];
    let (created, call) = dialout.form(&fields).await;
    assert_eq!((created, &call["answered_by"]), (201, &Value::Null), "{call}");
    let opened = dialout.rig.ai.handshake().await.open().await;
    let invite = dialout.rig.pbx.request("INVITE").await;
    let mut callee = dialout.answers(&invite).await;
    let stream = opened.started().await;
    // numbered frames are noise, not speech
    callee.say(0..160).await;
    let forms = callbacks(&server, 1).await;
    let of = |name: &str| forms[0][name].clone();
    assert_eq!((of("AnsweredBy"), of("CallSid")), ("unknown".to_owned(), stream.call_sid.clone()));
    let took: u64 = of("MachineDetectionDuration").parse().unwrap();
    assert!((2900..3200).contains(&took), "{took}");
    let account = trunkless::stream::dialect::sid("AC", "main");
    let shown = format!("GET /2010-04-01/Accounts/{account}/Calls/{}.json", stream.call_sid);
    assert_eq!(request(dialout.api, &shown, &bearer(TOKEN), "").await.1["answered_by"], "unknown");
    let (_, list) = request(dialout.api, "GET /v1/calls", &bearer(TOKEN), "").await;
    assert_eq!(list["calls"][0]["answered_by"], "unknown");
    callee.bye().await;
    stream.stopped().await;
    let forms = callbacks(&server, 2).await;
    let last = &forms[1];
    assert_eq!((&*last["CallStatus"], &*last["AnsweredBy"]), ("completed", "unknown"));
    assert_eq!(last["SequenceNumber"], "0");
    assert_eq!(stream.own(), [json!(null); 0], "nothing for the AI");
    for (body, why) in [
        (json!({"to": NUMBER, "machine_detection": "on"}), "start or message_end"),
        (json!({"to": NUMBER, "machine_detection_timeout": 9}), "needs machine detection"),
        (
            json!({"to": NUMBER, "machine_detection": "start", "machine_detection_timeout": 2}),
            "3 to 59",
        ),
    ] {
        let (status, problem) = place(dialout.api, &body).await;
        let message = problem["error"]["message"].as_str().unwrap_or_default();
        assert!(status == 400 && message.contains(why), "{problem}");
    }
}
