//! A small Asterisk for ARI: as much as doctor asks for, with a fault to choose.

use std::collections::{BTreeSet, HashMap};
use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Mutex};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use serde_json::{Value, json};
use tokio::io::AsyncWriteExt as _;
use tokio::net::{TcpListener, TcpStream, UdpSocket};
use tokio::sync::mpsc;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::protocol::Role;

use crate::bridge::Net;
use crate::strict::{field, read_head, switching};

/// The fault of this Asterisk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Trouble {
    None,
    /// Every request gets this status.
    Status(u16),
    /// The ARI user is read-only.
    ReadOnly,
    /// It is this version.
    Version(&'static str),
    /// External media channels are refused.
    NoMedia,
    /// It receives no RTP.
    DropsOurs,
    /// Nothing that it sends arrives.
    DropsTheirs,
}

/// An external media channel.
struct Channel {
    host: SocketAddr,
    socket: Arc<UdpSocket>,
}

#[derive(Default)]
struct World {
    channels: HashMap<String, Channel>,
    bridges: BTreeSet<String>,
    events: Option<mpsc::UnboundedSender<String>>,
    /// Applications with an events socket.
    applications: Vec<String>,
}

pub struct Asterisk {
    pub address: SocketAddr,
    world: Arc<Mutex<World>>,
    task: tokio::task::JoinHandle<()>,
}

impl Drop for Asterisk {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Asterisk {
    pub async fn start(net: Net, trouble: Trouble) -> Asterisk {
        let listener = TcpListener::bind((net.pbx(), 0)).await.unwrap();
        let address = listener.local_addr().unwrap();
        let world: Arc<Mutex<World>> = Arc::default();
        let shared = world.clone();
        let task = tokio::spawn(async move {
            while let Ok((tcp, _)) = listener.accept().await {
                tokio::spawn(serve(tcp, net.pbx(), trouble, shared.clone()));
            }
        });
        Asterisk { address, world, task }
    }

    /// True if doctor removed what it created.
    pub fn is_clean(&self) -> bool {
        let world = self.world.lock().unwrap();
        world.channels.is_empty() && world.bridges.is_empty()
    }
}

async fn serve(mut tcp: TcpStream, ip: IpAddr, trouble: Trouble, world: Arc<Mutex<World>>) {
    while let Some(head) = read_head(&mut tcp).await {
        let mut words = head.split(' ');
        let (method, uri) = (words.next().unwrap().to_owned(), words.next().unwrap().to_owned());
        let expected = format!("Basic {}", BASE64.encode("ai:secret"));
        let known = field(&head, "Authorization").is_some_and(|given| given == expected);
        let status = match trouble {
            Trouble::Status(status) => status,
            _ if !known => 401,
            Trouble::ReadOnly if method != "GET" => 403,
            _ => 200,
        };
        if status == 200 && uri.starts_with("/ari/events") {
            tcp.write_all(switching(&head).as_bytes()).await.unwrap();
            return events(tcp, &uri, world).await;
        }
        let (status, body) = match status {
            200 => answer(&method, &uri, ip, trouble, &world).await,
            other => (other, json!({ "message": "No" })),
        };
        let body = body.to_string();
        let text = format!(
            "HTTP/1.1 {status} X\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n\
             {body}",
            body.len()
        );
        if tcp.write_all(text.as_bytes()).await.is_err() {
            return;
        }
    }
}

/// Sends the events of an application until the client leaves.
async fn events(tcp: TcpStream, uri: &str, world: Arc<Mutex<World>>) {
    use futures_util::{SinkExt as _, StreamExt as _};
    let app = query(uri, "app").unwrap_or_default();
    let (sender, mut waiting) = mpsc::unbounded_channel::<String>();
    {
        let mut world = world.lock().unwrap();
        world.events = Some(sender);
        world.applications.push(app.clone());
    }
    let mut socket = WebSocketStream::from_raw_socket(tcp, Role::Server, None).await;
    loop {
        tokio::select! {
            message = socket.next() => match message {
                Some(Ok(message)) if !message.is_close() => {}
                _ => break,
            },
            Some(text) = waiting.recv() => drop(socket.send(Message::text(text)).await),
        }
    }
    world.lock().unwrap().applications.retain(|name| *name != app);
}

fn query(uri: &str, name: &str) -> Option<String> {
    let pairs = uri.split_once('?')?.1.split('&');
    let value = pairs.filter_map(|pair| pair.split_once('=')).find(|(key, _)| *key == name)?.1;
    Some(value.replace("%3A", ":"))
}

async fn answer(
    method: &str,
    uri: &str,
    ip: IpAddr,
    trouble: Trouble,
    world: &Arc<Mutex<World>>,
) -> (u16, Value) {
    let path = uri.split('?').next().unwrap().strip_prefix("/ari/").unwrap();
    let parts: Vec<&str> = path.split('/').collect();
    match (method, parts.as_slice()) {
        ("GET", ["asterisk", "info"]) => {
            let version = if let Trouble::Version(text) = trouble { text } else { "22.10.1" };
            let system = json!({ "version": version, "entity_id": format!("{ip}") });
            (200, json!({ "system": system, "status": { "startup_time": "now" } }))
        }
        ("GET", ["applications"]) => {
            let names = world.lock().unwrap().applications.clone();
            (200, names.into_iter().map(|name| json!({ "name": name })).collect())
        }
        ("GET", ["channels"]) => (200, json!([])),
        ("POST", ["channels", "externalMedia"]) if trouble == Trouble::NoMedia => {
            (500, json!({ "message": "Allocation failed" }))
        }
        ("POST", ["channels", "externalMedia"]) => external_media(uri, ip, trouble, world).await,
        ("POST", ["channels", id, "play"]) => {
            let world = world.lock().unwrap();
            if trouble != Trouble::DropsTheirs {
                let Channel { host, socket } = &world.channels[*id];
                let (host, socket) = (*host, socket.clone());
                tokio::spawn(async move {
                    let packet = [[0x80, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 1].as_slice(), &[0x55; 160]];
                    for _ in 0..20 {
                        let _ = socket.send_to(&packet.concat(), host).await;
                    }
                });
            }
            (201, json!({}))
        }
        ("POST", ["bridges"]) => {
            world.lock().unwrap().bridges.insert(query(uri, "bridgeId").unwrap());
            (200, json!({}))
        }
        ("POST", ["bridges", _, "addChannel"]) => (204, Value::Null),
        ("DELETE", ["bridges", id]) => {
            world.lock().unwrap().bridges.remove(*id);
            (204, Value::Null)
        }
        ("DELETE", ["channels", id]) => {
            world.lock().unwrap().channels.remove(*id);
            (204, Value::Null)
        }
        _ => panic!("doctor asks for {method} {uri}"),
    }
}

async fn external_media(
    uri: &str,
    ip: IpAddr,
    trouble: Trouble,
    world: &Arc<Mutex<World>>,
) -> (u16, Value) {
    let (id, app) = (query(uri, "channelId").unwrap(), query(uri, "app").unwrap());
    assert!(id.starts_with("trunkless-doctor-"), "{id}");
    let host: SocketAddr = query(uri, "external_host").unwrap().parse().unwrap();
    let socket = Arc::new(UdpSocket::bind((ip, 0)).await.unwrap());
    let port = socket.local_addr().unwrap().port();
    let (shared, own, receiving) = (world.clone(), id.clone(), socket.clone());
    // audio from one channel goes to the other
    tokio::spawn(async move {
        let mut buffer = [0u8; 2048];
        while let Ok((n, _)) = receiving.recv_from(&mut buffer).await {
            let others: Vec<(SocketAddr, Arc<UdpSocket>)> = {
                let world = shared.lock().unwrap();
                let others = world.channels.iter().filter(|(id, _)| **id != own);
                others.map(|(_, other)| (other.host, other.socket.clone())).collect()
            };
            let drops = matches!(trouble, Trouble::DropsOurs | Trouble::DropsTheirs);
            for (host, socket) in others.into_iter().filter(|_| !drops) {
                let _ = socket.send_to(&buffer[..n], host).await;
            }
        }
    });
    let mut world = world.lock().unwrap();
    world.channels.insert(id.clone(), Channel { host, socket });
    let vars = json!({
        "UNICASTRTP_LOCAL_PORT": port.to_string(),
        "UNICASTRTP_LOCAL_ADDRESS": ip.to_string(),
    });
    let channel = json!({ "id": id, "name": "UnicastRTP/x", "state": "Up", "channelvars": vars });
    let start = json!({
        "type": "StasisStart", "application": app, "args": [], "channel": channel,
    });
    let events = world.events.as_ref().expect("an events socket");
    events.send(start.to_string()).unwrap();
    (200, channel)
}
