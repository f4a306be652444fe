//! The state of an Asterisk with Stasis applications: channels, bridges, and which channel is in
//! which application; also its events, as sent by versions 16 and 22.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use tokio::sync::mpsc::UnboundedSender;
use tokio_tungstenite::tungstenite::Message;

use crate::ari::ask::is_object_of;
use crate::media::{Media, Talker};

/// A seeded generator. A failing seed repeats what the fake does, but not what the kernel does.
pub struct Random(u64);

impl Random {
    pub fn new(seed: u64) -> Random {
        println!("seed {seed}");
        Random(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }

    pub fn below(&mut self, limit: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % limit.max(1)
    }

    /// Returns a separate generator for a concurrent task.
    pub fn fork(&mut self) -> Random {
        Random(self.below(u64::MAX) | 1)
    }
}

/// Maximum delays in milliseconds of requests, answers and events.
#[derive(Debug, Clone, Copy, Default)]
pub struct Pace {
    pub request: u64,
    pub answer: u64,
    pub event: u64,
}

/// Something to send on an events socket.
pub enum Item {
    /// A message, due at this time.
    Message(Instant, Message),
    /// A close frame.
    Close,
    /// A reset of the connection.
    Reset,
}

/// The events socket of one application.
pub struct Socket {
    /// Number of the connection, so that the end of an old one does not remove its successor.
    pub number: u64,
    pub items: UnboundedSender<Item>,
    /// When the last event is due; the next one follows it.
    last: Instant,
}

#[derive(Clone)]
pub struct External {
    /// The bridge's RTP address.
    pub host: SocketAddr,
    /// The channel's own RTP sockets.
    pub media: Arc<Media>,
}

#[derive(Clone)]
pub struct Channel {
    pub name: String,
    pub up: bool,
    /// The Stasis application the channel is in, with its arguments.
    pub stasis: Option<(String, Vec<String>)>,
    pub number: String,
    pub exten: String,
    pub protocol_id: String,
    pub variables: BTreeMap<String, String>,
    pub external: Option<External>,
    /// The application that had the channel called.
    pub originated: Option<String>,
}

impl External {
    /// Returns a talker that continues after the first packet, which the fake itself has sent.
    pub fn talker() -> Talker {
        let mut talker = Talker::new(7);
        talker.packet(&[0xff; 160]);
        talker
    }
}

impl Channel {
    /// A caller who has not entered an application yet.
    pub fn caller() -> Channel {
        Channel {
            name: "PJSIP/carrier-0000000a".into(),
            up: false,
            stasis: None,
            number: "5550100".into(),
            exten: "8010".into(),
            protocol_id: "3b3d57ca7af36a43@carrier".into(),
            variables: BTreeMap::new(),
            external: None,
            originated: None,
        }
    }

    pub fn is_in(&self, app: &str) -> bool {
        self.stasis.as_ref().is_some_and(|(name, _)| name == app)
    }

    pub fn json(&self, id: &str) -> Value {
        let (app_name, app_data) = match (&self.stasis, &self.external) {
            (Some((app, args)), _) => {
                ("Stasis", [vec![app.clone()], args.clone()].concat().join(","))
            }
            (None, Some(_)) => ("AppDial2", "(Outgoing Line)".to_owned()),
            (None, None) => ("Queue", "sales".to_owned()),
        };
        let state = match (self.up, &self.external) {
            (true, _) => "Up",
            (false, Some(_)) => "Down",
            (false, None) => "Ring",
        };
        json!({
            "id": id, "name": self.name, "state": state, "protocol_id": self.protocol_id,
            "caller": {"name": "", "number": self.number},
            "connected": {"name": "", "number": ""}, "accountcode": "",
            "dialplan": {"context": "from-carrier", "exten": self.exten, "priority": 2,
                "app_name": app_name, "app_data": app_data},
            "creationtime": "2026-11-23T14:55:32.678+0000", "language": "en",
        })
    }
}

#[derive(Default)]
pub struct Bridge {
    pub members: BTreeSet<String>,
    /// Applications that had a channel in the bridge; they get its BridgeDestroyed.
    pub apps: BTreeSet<String>,
}

pub struct World {
    pub channels: BTreeMap<String, Channel>,
    pub bridges: BTreeMap<String, Bridge>,
    /// The events socket of each application.
    pub sockets: HashMap<String, Socket>,
    /// The event types each application has asked for.
    pub filters: HashMap<String, Vec<String>>,
    /// The number of callers announced to each application.
    pub told: BTreeMap<String, usize>,
    /// Callers that a client has sent back to the dialplan, in this order.
    pub continued: Vec<String>,
    /// The dialplan sends this many of them straight into the application again.
    pub sent_back: usize,
    /// Asterisk's entity id, if it reports one.
    pub entity: Option<&'static str>,
    /// The time Asterisk started.
    pub startup: &'static str,
    /// Requests that Asterisk would reject, or that our clients must not make.
    pub wrong: Vec<String>,
    pub random: Random,
    pub pace: Pace,
    /// Before and after each request, a caller of the same application hangs up with this
    /// probability, in thousandths.
    pub hang_ups: u64,
    /// Opens the RTP sockets of an external media channel.
    pub open_media: Box<dyn Fn() -> Arc<Media> + Send>,
}

impl World {
    pub fn new(random: Random, open_media: Box<dyn Fn() -> Arc<Media> + Send>) -> World {
        World {
            channels: BTreeMap::new(),
            bridges: BTreeMap::new(),
            sockets: HashMap::new(),
            filters: HashMap::new(),
            told: BTreeMap::new(),
            continued: Vec::new(),
            sent_back: 0,
            entity: None,
            startup: "2026-11-23T14:55:32.678+0000",
            wrong: Vec::new(),
            random,
            pace: Pace::default(),
            hang_ups: 0,
            open_media,
        }
    }

    pub fn delay(&mut self, longest: u64) -> Duration {
        match longest {
            0 => Duration::ZERO,
            longest => Duration::from_micros(self.random.below(1000 * longest)),
        }
    }

    pub fn connect(&mut self, app: &str, number: u64, items: UnboundedSender<Item>) {
        self.emit(app, "ApplicationReplaced", json!({}));
        // the old socket stays open but receives nothing more
        self.sockets.insert(app.to_owned(), Socket { number, items, last: Instant::now() });
    }

    /// Sends an event to an application, if its filter allows it. Returns false if the application
    /// has no socket.
    pub fn emit(&mut self, app: &str, kind: &str, mut event: Value) -> bool {
        let delay = self.delay(self.pace.event);
        let Some(socket) = self.sockets.get_mut(app) else { return false };
        let wanted = self.filters.get(app).is_none_or(|f| f.iter().any(|t| t == kind));
        if !wanted && kind != "ApplicationReplaced" {
            return true;
        }
        event["type"] = kind.into();
        event["application"] = app.into();
        event["asterisk_id"] = "02:00:7f:00:00:02".into();
        event["timestamp"] = "2026-11-23T14:55:32.678+0000".into();
        socket.last = socket.last.max(Instant::now() + delay);
        let message = Message::Text(event.to_string().into());
        socket.items.send(Item::Message(socket.last, message)).is_ok()
    }

    /// Sends an event about a channel to the application the channel is in.
    pub fn tell(&mut self, id: &str, kind: &str, mut event: Value) -> bool {
        let Some(channel) = self.channels.get(id) else { return false };
        let Some((app, _)) = channel.stasis.clone() else { return false };
        event["channel"] = channel.json(id);
        self.emit(&app, kind, event)
    }

    /// The dialplan executes `Stasis(app,args)`. Without a client for the application, it continues
    /// at once.
    pub fn enter(&mut self, id: &str, app: &str, args: &[&str], mut channel: Channel) {
        let args: Vec<String> = args.iter().map(|a| (*a).to_owned()).collect();
        if self.sockets.contains_key(app) {
            channel.stasis = Some((app.to_owned(), args.clone()));
            *self.told.entry(app.to_owned()).or_default() += 1;
        }
        self.channels.insert(id.to_owned(), channel);
        self.tell(id, "StasisStart", json!({ "args": args }));
    }

    pub fn leave_bridge(&mut self, id: &str) {
        self.bridges.values_mut().for_each(|bridge| {
            bridge.members.remove(id);
        });
    }

    /// Ends a channel, whichever side hangs up.
    pub fn hang_up(&mut self, id: &str) {
        self.tell(id, "ChannelHangupRequest", json!({ "cause": 16 }));
        self.leave_bridge(id);
        self.tell(id, "StasisEnd", json!({}));
        let Some(mut channel) = self.channels.remove(id) else { return };
        // an application stays subscribed for life to a channel that it created
        let created = channel.originated.clone();
        let media = channel.stasis.take().filter(|_| channel.external.is_some());
        if let Some(app) = created.or(media.map(|(app, _)| app)) {
            let event = json!({ "channel": channel.json(id), "cause": 16 });
            self.emit(&app, "ChannelDestroyed", event);
        }
    }

    /// Reports the state of the call to a callee.
    pub fn dial(&mut self, id: &str, status: &str) {
        let Some(channel) = self.channels.get(id) else { return };
        let Some(app) = channel.originated.clone() else { return };
        let event = json!({ "peer": channel.json(id), "dialstatus": status, "dialstring": "" });
        self.emit(&app, "Dial", event);
    }

    /// The callee answers: the channel enters the application.
    pub fn callee_answers(&mut self, id: &str) {
        self.dial(id, "ANSWER");
        let Some(mut channel) = self.channels.get(id).cloned() else { return };
        channel.up = true;
        let app = channel.originated.clone().expect("a callee");
        self.enter(id, &app, &["outgoing"], channel);
    }

    /// The call to the callee fails.
    pub fn callee_fails(&mut self, id: &str, status: &str, cause: u16) {
        self.dial(id, status);
        let Some(channel) = self.channels.remove(id) else { return };
        let app = channel.originated.clone().expect("a callee");
        let event = json!({ "channel": channel.json(id), "cause": cause, "cause_txt": "" });
        self.emit(&app, "ChannelDestroyed", event);
    }

    /// Takes a channel out of its application; it continues in the dialplan.
    pub fn leave(&mut self, id: &str) {
        self.leave_bridge(id);
        self.tell(id, "StasisEnd", json!({}));
        if let Some(channel) = self.channels.get_mut(id) {
            channel.stasis = None;
        }
    }

    pub fn remove_bridge(&mut self, id: &str) -> bool {
        let Some(bridge) = self.bridges.remove(id) else { return false };
        for app in bridge.apps {
            self.emit(&app, "BridgeDestroyed", json!({ "bridge": { "id": id, "channels": [] } }));
        }
        true
    }

    /// Callers who are in this application.
    pub fn callers(&self, app: &str) -> Vec<String> {
        let here = self.channels.iter().filter(|(_, c)| c.is_in(app) && c.external.is_none());
        here.map(|(id, _)| id.clone()).collect()
    }

    /// Channels and bridges that are left of this application's calls, callers included.
    pub fn left(&self, app: &str) -> Vec<String> {
        let objects = self.channels.keys().chain(self.bridges.keys());
        let objects = objects.filter(|id| is_object_of(app, id)).cloned();
        objects.chain(self.callers(app)).collect()
    }

    pub fn bridge_of(&self, caller: &str) -> Option<String> {
        let mut bridges = self.bridges.iter();
        bridges.find(|(_, b)| b.members.contains(caller)).map(|(id, _)| id.clone())
    }

    /// The external media channel in this caller's bridge.
    pub fn media_of(&self, caller: &str) -> Option<String> {
        let members = &self.bridges[&self.bridge_of(caller)?].members;
        members.iter().find(|id| self.channels[*id].external.is_some()).cloned()
    }

    pub fn external_of(&self, caller: &str) -> Option<External> {
        self.channels[&self.media_of(caller)?].external.clone()
    }

    pub fn maybe_hang_up(&mut self, app: &str) {
        if self.random.below(1000) < self.hang_ups {
            let callers = self.callers(app);
            let at = self.random.below(callers.len() as u64) as usize;
            callers.get(at).into_iter().for_each(|id| self.hang_up(id));
        }
    }
}
