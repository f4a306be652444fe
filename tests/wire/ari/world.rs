//! What an Asterisk with Stasis applications holds: channels, bridges, who is in which application;
//! and the events that it tells, which are those of versions 16 and 22.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use tokio::sync::mpsc::UnboundedSender;
use tokio_tungstenite::tungstenite::Message;

use crate::ari::ask::is_object_of;
use crate::media::{Media, Talker};

/// Seeded: a failing seed repeats what the fake does, though not what the kernel does.
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

    /// A generator of its own for something that goes on beside the rest.
    pub fn fork(&mut self) -> Random {
        Random(self.below(u64::MAX) | 1)
    }
}

/// The longest delays, in milliseconds: of a request, of its answer, of an event.
#[derive(Debug, Clone, Copy, Default)]
pub struct Pace {
    pub request: u64,
    pub answer: u64,
    pub event: u64,
}

/// What goes out on an events socket.
pub enum Item {
    Message(Instant, Message),
    /// A close frame.
    Close,
    /// The connection is reset.
    Reset,
}

/// The events socket of one application.
pub struct Socket {
    /// Of the connection, so that an old one's end does not take the new one away.
    pub number: u64,
    pub items: UnboundedSender<Item>,
    /// Each event goes out after the one before it.
    last: Instant,
}

#[derive(Clone)]
pub struct External {
    /// Where it sends RTP.
    pub host: SocketAddr,
    pub media: Arc<Media>,
}

#[derive(Clone)]
pub struct Channel {
    pub name: String,
    pub up: bool,
    /// The Stasis application that it is in, with its arguments.
    pub stasis: Option<(String, Vec<String>)>,
    pub number: String,
    pub exten: String,
    pub protocol_id: String,
    pub variables: BTreeMap<String, String>,
    pub external: Option<External>,
}

impl External {
    /// Goes on where the first packet has been sent already.
    pub fn talker() -> Talker {
        let mut talker = Talker::new(7);
        talker.packet(&[0xff; 160]);
        talker
    }
}

impl Channel {
    /// A caller who has not got anywhere yet.
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
    /// Applications that have had a channel in it, and hear of its end.
    pub apps: BTreeSet<String>,
}

pub struct World {
    pub channels: BTreeMap<String, Channel>,
    pub bridges: BTreeMap<String, Bridge>,
    pub sockets: HashMap<String, Socket>,
    pub filters: HashMap<String, Vec<String>>,
    /// Callers who were told of, by application.
    pub told: BTreeMap<String, usize>,
    /// Callers whom a client has sent on, in this order.
    pub continued: Vec<String>,
    /// So many of them come back at once.
    pub sent_back: usize,
    pub startup: &'static str,
    /// What Asterisk would not stand, or no client of ours may do.
    pub wrong: Vec<String>,
    pub random: Random,
    pub pace: Pace,
    /// Of 1000 requests so many meet a caller of the same application who hangs up just now.
    pub hang_ups: u64,
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
        // the old socket stays open, and nothing follows on it
        self.sockets.insert(app.to_owned(), Socket { number, items, last: Instant::now() });
    }

    /// An event of this application, if it has a socket; false when nobody will hear of it.
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

    /// An event about a channel, for the application that it is in.
    pub fn tell(&mut self, id: &str, kind: &str, mut event: Value) -> bool {
        let Some(channel) = self.channels.get(id) else { return false };
        let Some((app, _)) = channel.stasis.clone() else { return false };
        event["channel"] = channel.json(id);
        self.emit(&app, kind, event)
    }

    /// The dialplan comes to `Stasis(app,args)`; without a client of that name it goes on at once.
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

    /// The channel's end, whoever wants it.
    pub fn hang_up(&mut self, id: &str) {
        self.tell(id, "ChannelHangupRequest", json!({ "cause": 16 }));
        self.leave_bridge(id);
        self.tell(id, "StasisEnd", json!({}));
        let Some(mut channel) = self.channels.remove(id) else { return };
        // its subscription is for the channel's life where the application has made it
        if let (Some((app, _)), Some(_)) = (channel.stasis.take(), &channel.external) {
            let event = json!({ "channel": channel.json(id), "cause": 16 });
            self.emit(&app, "ChannelDestroyed", event);
        }
    }

    /// Out of the application, on in the dialplan.
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

    /// What is left of this application's calls.
    pub fn left(&self, app: &str) -> Vec<String> {
        let objects = self.channels.keys().chain(self.bridges.keys());
        let objects = objects.filter(|id| is_object_of(app, id)).cloned();
        objects.chain(self.callers(app)).collect()
    }

    pub fn bridge_of(&self, caller: &str) -> Option<String> {
        let mut bridges = self.bridges.iter();
        bridges.find(|(_, b)| b.members.contains(caller)).map(|(id, _)| id.clone())
    }

    /// The external media channel that this caller talks to.
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
