//! The bounds of the control API: what one client uses up leaves room for the others.

use serde_json::{Map, json};
use tokio::io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::TcpStream;

use crate::control::{READER, TOKEN, bearer, command, request, rig};

#[tokio::test]
async fn the_largest_commands_arrive_and_larger_ones_are_answered() {
    let (rig, api) = rig("").await;
    let (mut call, stream) = rig.call().await;
    let value = "\u{1}".repeat(1000) + &"x".repeat(3000);
    let variables: Map<_, _> = (0..64).map(|n| (format!("V{n}"), json!(value))).collect();
    let set = json!({"command": "setVariables", "variables": variables});
    assert!(set.to_string().len() > 500_000);
    let (status, failed) = command(api, &stream.call_sid, set).await;
    assert_eq!((status, &failed["reason"]), (409, &json!("unsupported")), "{failed}");
    let long = json!({"command": "hangup", "id": "x".repeat(3 << 20)});
    let (status, refused) = command(api, &stream.call_sid, long).await;
    assert_eq!((status, &refused["error"]["code"]), (413, &json!("too_large")));
    let path = format!("{}/Calls/{}.json", stream.account_sid, stream.call_sid);
    let head = format!("POST /2010-04-01/Accounts/{path}");
    // every character of the longest document is escaped
    for (length, status, code) in [(16 * 1024, 400, 12100), (1_000_000, 413, 20001)] {
        let body = "Twiml=".to_owned() + &"%20".repeat(length);
        let (answered, refused) = request(api, &head, &bearer(TOKEN), &body).await;
        assert_eq!((answered, &refused["code"]), (status, &json!(code)));
    }
    call.bye().await;
    stream.stopped().await;
}

/// A token that may only read opens as many streams of events as it can.
#[tokio::test]
async fn readers_of_events_do_not_block_commands() {
    let (rig, api) = rig("").await;
    let (mut call, stream) = rig.call().await;
    let mut readers = Vec::new();
    loop {
        let mut reader = BufReader::new(TcpStream::connect(api).await.unwrap());
        let text = format!("GET /v1/events HTTP/1.1\r\nHost: {api}\r\n{}\r\n", bearer(READER));
        reader.write_all(text.as_bytes()).await.unwrap();
        let mut line = String::new();
        reader.read_line(&mut line).await.unwrap();
        if !line.contains("200") {
            assert!(line.contains("503"), "{line}");
            break;
        }
        readers.push(reader);
    }
    assert_eq!(readers.len(), 16);
    let mute = json!({"command": "mute", "side": "caller"});
    let (status, done) = command(api, &stream.call_sid, mute).await;
    assert_eq!((status, &done["status"]), (200, &json!("done")), "{done}");
    call.bye().await;
    stream.stopped().await;
}
