//! `[ai] proxy`: the AI is reached through an HTTP proxy.

use std::net::SocketAddr;

use serde_json::json;
use tokio::io::{AsyncWriteExt as _, copy_bidirectional};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;

use crate::bridge::{Net, Rig};
use crate::pbx::Pbx;
use crate::strict::{Ai, read_head};

/// A proxy that wants a password. It answers CONNECT, and any other request with `body`.
async fn proxy(net: Net, body: String) -> (SocketAddr, mpsc::UnboundedReceiver<String>) {
    let listener = TcpListener::bind((net.host(5), 0)).await.unwrap();
    let address = listener.local_addr().unwrap();
    let (heads, seen) = mpsc::unbounded_channel();
    tokio::spawn(async move {
        while let Ok((client, _)) = listener.accept().await {
            tokio::spawn(serve(client, body.clone(), heads.clone()));
        }
    });
    (address, seen)
}

async fn serve(mut client: TcpStream, body: String, heads: mpsc::UnboundedSender<String>) {
    let Some(head) = read_head(&mut client).await else { return };
    let _ = heads.send(head.clone());
    let first = head.lines().next().unwrap_or_default().to_owned();
    // base64 of "me:secret"
    if !head.to_lowercase().contains("proxy-authorization: basic bwu6c2vjcmv0") {
        let _ = client.write_all(b"HTTP/1.1 407 Who are you\r\nContent-Length: 0\r\n\r\n").await;
        return;
    }
    let Some(to) = first.strip_prefix("CONNECT ").and_then(|rest| rest.split(' ').next()) else {
        let head = "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nConnection: close\r\n";
        let text = format!("{head}Content-Length: {}\r\n\r\n{body}", body.len());
        let _ = client.write_all(text.as_bytes()).await;
        return;
    };
    let Ok(mut server) = TcpStream::connect(to).await else {
        let _ = client.write_all(b"HTTP/1.1 502 Bad Gateway\r\n\r\n").await;
        return;
    };
    let _ = client.write_all(b"HTTP/1.1 200 Connection established\r\n\r\n").await;
    let _ = copy_bidirectional(&mut client, &mut server).await;
}

async fn rig(net: Net, config: &str) -> Rig {
    let (pbx, ai) = (Pbx::udp(net.pbx()).await, Ai::start(net.ai()).await);
    Rig::with(net, pbx, ai, config).await
}

#[tokio::test]
async fn the_stream_goes_through_the_proxy() {
    let net = Net::new();
    let (proxy, mut heads) = proxy(net, String::new()).await;
    let rig = rig(net, &format!("[ai]\nproxy = \"http://me:secret@{proxy}\"\n")).await;
    let (mut call, stream) = rig.call().await;
    let head = heads.recv().await.unwrap();
    assert!(head.starts_with(&format!("CONNECT {} HTTP/1.1\r\n", rig.ai.address)), "{head}");
    call.say(0..10).await;
    stream.hears(9).await;
    call.bye().await;
    stream.stopped().await;
    assert_eq!(rig.bridge.end().await, "caller_hangup");
}

#[tokio::test]
async fn a_proxy_that_refuses_is_an_ai_that_cannot_be_reached() {
    for (user, target, why) in [
        ("me:wrong@", None, "status 407"),
        ("me:secret@", Some("ws://127.0.0.1:9/"), "answered 502"),
    ] {
        let net = Net::new();
        let (proxy, _heads) = proxy(net, String::new()).await;
        let url = target.map(|url| format!("url = \"{url}\"\n")).unwrap_or_default();
        let rig = rig(net, &format!("[ai]\n{url}proxy = \"http://{user}{proxy}\"\n")).await;
        let mut call = rig.pbx.call(&rig.bridge).await;
        call.invite().await;
        assert_eq!(call.refused().await.code(), Some(503));
        let record = rig.bridge.record().await;
        let text = record.ai_end.unwrap_or_default();
        assert!(text.contains(why) && !text.contains("wrong@"), "{text}");
        assert_eq!(record.dialled[0].failure, Some("proxy"));
    }
    // there is no proxy
    let net = Net::new();
    let rig = rig(net, &format!("[ai]\nproxy = \"http://{}:9\"\n", net.host(5))).await;
    let mut call = rig.pbx.call(&rig.bridge).await;
    call.invite().await;
    assert_eq!(call.refused().await.code(), Some(503));
    assert_eq!(rig.bridge.record().await.dialled[0].failure, Some("proxy"));
}

#[tokio::test]
async fn the_request_before_the_socket_goes_through_it_as_well() {
    let net = Net::new();
    let ai = Ai::start(net.host(6)).await;
    let body = json!({"url": format!("ws://{}/media", ai.address)}).to_string();
    let (proxy, mut heads) = proxy(net, body).await;
    let config = format!(
        "[ai]\nproxy = \"http://me:secret@{proxy}\"\n\
         [ai.create]\nurl = \"http://create.invalid/call\"\nallow_hosts = [\"ws://{}\"]\n",
        ai.address
    );
    let rig = rig(net, &config).await;
    let mut call = rig.pbx.call(&rig.bridge).await;
    call.invite().await;
    let stream = ai.stream().await;
    call.answered().await;
    let head = heads.recv().await.unwrap();
    assert!(head.starts_with("POST http://create.invalid/call HTTP/1.1\r\n"), "{head}");
    assert!(heads.recv().await.unwrap().starts_with("CONNECT "));
    call.bye().await;
    stream.stopped().await;
}
