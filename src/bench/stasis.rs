//! A simulated Asterisk Stasis (pure): callers in an application, external media channels, bridges.
//! Requests come in as method, path and query; events go out as JSON text.
//!
//! The formats are those of Asterisk's `rest-api/api-docs/{events,channels,bridges}.json`. Channels
//! in the same bridge hear each other: once a caller shares a bridge with a media channel, the
//! caller's audio goes through that channel's socket.
#![deny(clippy::disallowed_methods, clippy::disallowed_types)]

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::net::SocketAddr;

use serde_json::{Value, json};

use crate::bench::signalling::{Audio, Change};

/// Status and body.
pub type Reply = (u16, Value);
pub type Query = BTreeMap<String, String>;

const DONE: Reply = (204, Value::Null);

fn error(status: u16, message: &str) -> Reply {
    (status, json!({ "message": message }))
}

#[derive(Debug, Default)]
struct Caller {
    /// True once answered.
    up: bool,
    /// True once the caller left the application or hung up.
    gone: bool,
    /// Bridge and media channel of the caller; set when the bridge first holds both.
    talks: Option<(String, String)>,
    /// The socket of the media channel; set when that channel is deleted.
    line: Option<usize>,
}

/// An external media channel.
#[derive(Debug)]
struct Media {
    /// The RTP socket of this channel.
    line: usize,
    /// Address of that socket.
    rtp: SocketAddr,
    /// The bridge's side of the audio.
    audio: Audio,
}

#[derive(Debug, Default)]
pub struct Stasis {
    /// The application subscribed to events.
    app: Option<String>,
    /// Number of subscriptions so far.
    opened: u32,
    /// Callers by their number.
    callers: BTreeMap<u32, Caller>,
    /// Media channels by their id.
    media: BTreeMap<String, Media>,
    /// Channels in each bridge, by the bridge's id.
    bridges: BTreeMap<String, BTreeSet<String>>,
    /// RTP sockets without a media channel.
    free: Vec<(usize, SocketAddr)>,
    /// Events for the application that have not been sent yet, in order.
    pub events: VecDeque<String>,
    /// Changes to calls that the callers' thread has not seen yet, in order.
    pub changes: VecDeque<Change>,
}

fn caller_id(number: u32) -> String {
    format!("bench.{number}")
}

fn number_of(id: &str) -> Option<u32> {
    id.strip_prefix("bench.")?.parse().ok()
}

impl Stasis {
    /// Subscribes `app` to events. Returns the number of this subscription, for [`Stasis::close`].
    pub fn open(&mut self, app: &str) -> u32 {
        self.app = Some(app.to_owned());
        self.events.clear();
        self.opened += 1;
        self.opened
    }

    /// Ends subscription number `opened`, unless a newer one has replaced it.
    pub fn close(&mut self, opened: u32) {
        self.app = self.app.take().filter(|_| self.opened != opened);
    }

    pub fn is_open(&self) -> bool {
        self.app.is_some()
    }

    /// Lets a caller enter the application. `line` is one more socket for a media channel.
    pub fn enter(&mut self, number: u32, line: usize, rtp: SocketAddr) {
        self.free.push((line, rtp));
        self.callers.insert(number, Caller::default());
        self.emit_for("StasisStart", &caller_id(number), json!({ "args": [] }));
    }

    pub fn hang_up(&mut self, number: u32) {
        self.emit_for("ChannelHangupRequest", &caller_id(number), json!({ "cause": 16 }));
        self.leave(number);
        self.report_ended();
    }

    /// Handles a request. `path` holds the segments below `/ari`.
    pub fn ask(&mut self, method: &str, path: &[&str], query: &Query) -> Reply {
        let get = |name: &str| query.get(name).map_or("", String::as_str);
        let reply = match (method, path) {
            ("GET", ["asterisk", "info"]) => {
                (200, json!({ "status": { "startup_time": "2026-11-23T14:55:32.678+0000" } }))
            }
            ("PUT", ["applications", app, "eventFilter"]) => (200, json!({ "name": app })),
            ("GET", ["channels"]) => (200, self.channels()),
            ("GET", ["bridges"]) => {
                let json = |(id, members)| json!({ "id": id, "channels": members });
                (200, self.bridges.iter().map(json).collect())
            }
            ("POST", ["channels", "externalMedia"]) => self.make_media(query),
            ("POST", ["bridges"]) => self.make_bridge(get("bridgeId")),
            ("POST", ["bridges", id, "addChannel"]) => self.add(id, get("channel")),
            ("DELETE", ["bridges", id]) => self.drop_bridge(id),
            ("GET", ["channels", id, "variable"]) if self.has(id) => {
                error(404, "Provided variable was not found")
            }
            ("GET", ["channels", id]) if self.has(id) => (200, self.channel(id)),
            ("DELETE", ["channels", id]) if self.has(id) => self.drop_channel(id),
            ("POST", ["channels", id, verb]) if self.has(id) => self.command(id, verb),
            (_, ["channels", ..]) => error(404, "Channel not found"),
            _ => error(404, "Resource not found"),
        };
        self.report_ended();
        reply
    }

    fn has(&self, id: &str) -> bool {
        let caller = number_of(id).and_then(|number| self.callers.get(&number));
        self.media.contains_key(id) || caller.is_some_and(|caller| !caller.gone)
    }

    fn command(&mut self, id: &str, verb: &str) -> Reply {
        let number = number_of(id);
        match (verb, number) {
            ("answer", Some(number)) => {
                self.callers.entry(number).and_modify(|caller| caller.up = true);
            }
            ("continue", Some(number)) => self.leave(number),
            ("variable" | "ring", _) => {}
            _ => return error(404, "Resource not found"),
        }
        DONE
    }

    fn make_media(&mut self, query: &Query) -> Reply {
        let get = |name: &str| query.get(name).map_or("", String::as_str);
        let id = get("channelId").to_owned();
        let payload_type = match get("format") {
            "ulaw" => 0,
            "alaw" => 8,
            _ => return error(422, "Provided format was not found"),
        };
        let Ok(host) = get("external_host").parse() else { return error(400, "bad host") };
        if self.media.contains_key(&id) {
            return error(409, "Channel with given unique ID already exists");
        }
        let Some((line, rtp)) = self.free.pop() else { return error(500, "no free RTP socket") };
        let audio = Audio { rtp: host, payload_type };
        self.media.insert(id.clone(), Media { line, rtp, audio });
        self.emit_for("StasisStart", &id, json!({ "args": [] }));
        (200, self.channel(&id))
    }

    fn make_bridge(&mut self, id: &str) -> Reply {
        if self.bridges.contains_key(id) {
            return error(409, "Bridge with given id already exists");
        }
        self.bridges.insert(id.to_owned(), BTreeSet::new());
        (200, json!({ "id": id, "bridge_type": "mixing", "channels": [] }))
    }

    fn add(&mut self, bridge: &str, channels: &str) -> Reply {
        let channels: Vec<&str> = channels.split(',').collect();
        if !channels.iter().all(|id| self.has(id)) {
            return error(400, "Channel not found");
        }
        let Some(members) = self.bridges.get_mut(bridge) else {
            return error(404, "Bridge not found");
        };
        members.extend(channels.iter().map(|id| (*id).to_owned()));
        let media = members.iter().find(|id| self.media.contains_key(*id)).cloned();
        let number = members.iter().find_map(|id| number_of(id));
        let caller = number.and_then(|number| self.callers.get_mut(&number));
        let caller = caller.filter(|caller| caller.talks.is_none());
        if let (Some(number), Some(caller), Some(media)) = (number, caller, media) {
            let Media { line, audio, .. } = self.media[&media];
            caller.talks = Some((bridge.to_owned(), media));
            self.changes.push_back(Change::Answered { number, line: Some(line), audio });
        }
        DONE
    }

    fn drop_bridge(&mut self, id: &str) -> Reply {
        if self.bridges.remove(id).is_none() {
            return error(404, "Bridge not found");
        }
        self.emit("BridgeDestroyed", json!({ "bridge": { "id": id, "channels": [] } }));
        DONE
    }

    fn drop_channel(&mut self, id: &str) -> Reply {
        match number_of(id) {
            Some(number) => self.leave(number),
            None => {
                self.emit_for("StasisEnd", id, json!({}));
                self.emit_for("ChannelDestroyed", id, json!({ "cause": 16 }));
                if let Some(media) = self.media.remove(id) {
                    let of =
                        |caller: &&mut Caller| caller.talks.as_ref().is_some_and(|t| t.1 == id);
                    match self.callers.values_mut().find(of) {
                        Some(caller) => caller.line = Some(media.line),
                        None => self.free.push((media.line, media.rtp)),
                    }
                }
            }
        }
        self.bridges.values_mut().for_each(|members| {
            members.remove(id);
        });
        DONE
    }

    fn leave(&mut self, number: u32) {
        let id = caller_id(number);
        self.emit_for("StasisEnd", &id, json!({}));
        self.callers.entry(number).and_modify(|caller| caller.gone = true);
        self.bridges.values_mut().for_each(|members| {
            members.remove(&id);
        });
    }

    /// Reports the end of every caller who is gone and whose bridge and media channel are deleted,
    /// together with the socket that becomes free.
    fn report_ended(&mut self) {
        let is_over = |caller: &Caller| {
            let talks = caller.talks.as_ref();
            caller.gone
                && talks.is_none_or(|(bridge, media)| {
                    !self.bridges.contains_key(bridge) && !self.media.contains_key(media)
                })
        };
        let over = self.callers.iter().filter(|(_, caller)| is_over(caller));
        let over: Vec<u32> = over.map(|(number, _)| *number).collect();
        for number in over {
            // the media channel of a caller who never talked is unknown: any free socket will do
            let never = self.callers[&number].talks.is_none();
            let free = if never { self.free.pop().map(|(line, _)| line) } else { None };
            let Some(line) = self.callers[&number].line.or(free) else { continue };
            self.callers.remove(&number);
            self.changes.push_back(Change::Ended { number, line: Some(line), code: 0 });
        }
    }

    fn channels(&self) -> Value {
        let here = self.callers.iter().filter(|(_, caller)| !caller.gone);
        let callers = here.map(|(number, _)| self.channel(&caller_id(*number)));
        callers.chain(self.media.keys().map(|id| self.channel(id))).collect()
    }

    fn channel(&self, id: &str) -> Value {
        let app = self.app.as_deref().unwrap_or_default();
        let number = number_of(id).map_or(String::new(), |number| number.to_string());
        let (name, state, app_name, app_data) = match number_of(id) {
            Some(number) => {
                let up = self.callers.get(&number).is_some_and(|caller| caller.up);
                let state = if up { "Up" } else { "Ring" };
                (format!("PJSIP/bench-{number:08x}"), state, "Stasis", app)
            }
            None => (format!("UnicastRTP/{id}"), "Up", "AppDial2", "(Outgoing Line)"),
        };
        let mut channel = json!({
            "id": id, "name": name, "state": state, "protocol_id": format!("{id}@bench"),
            "caller": { "name": "", "number": number },
            "connected": { "name": "", "number": "" }, "accountcode": "",
            "dialplan": { "context": "bench", "exten": "8010", "priority": 2,
                "app_name": app_name, "app_data": app_data },
            "creationtime": "2026-11-23T14:55:32.678+0000", "language": "en",
        });
        if let Some(media) = self.media.get(id) {
            channel["channelvars"] = json!({
                "UNICASTRTP_LOCAL_PORT": media.rtp.port().to_string(),
                "UNICASTRTP_LOCAL_ADDRESS": media.rtp.ip().to_string(),
            });
        }
        channel
    }

    /// Emits an event about a channel, if the channel exists.
    fn emit_for(&mut self, kind: &str, id: &str, mut event: Value) {
        if self.has(id) {
            event["channel"] = self.channel(id);
            self.emit(kind, event);
        }
    }

    fn emit(&mut self, kind: &str, mut event: Value) {
        let Some(app) = &self.app else { return };
        event["type"] = kind.into();
        event["application"] = app.as_str().into();
        event["timestamp"] = "2026-11-23T14:55:32.678+0000".into();
        self.events.push_back(event.to_string());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(port: u16) -> SocketAddr {
        SocketAddr::new([127, 0, 0, 1].into(), port)
    }

    fn query(pairs: &[(&str, &str)]) -> Query {
        pairs.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect()
    }

    fn media(stasis: &mut Stasis, id: &str, host: &str) -> Reply {
        let pairs = [("channelId", id), ("external_host", host), ("format", "ulaw")];
        stasis.ask("POST", &["channels", "externalMedia"], &query(&pairs))
    }

    fn join(stasis: &mut Stasis, bridge: &str, channel: &str) {
        let reply =
            stasis.ask("POST", &["bridges", bridge, "addChannel"], &query(&[("channel", channel)]));
        assert_eq!(reply, DONE);
    }

    fn talk(stasis: &mut Stasis, number: u32, media: &str) {
        let bridge = format!("b{number}");
        stasis.ask("POST", &["bridges"], &query(&[("bridgeId", &bridge)]));
        join(stasis, &bridge, media);
        join(stasis, &bridge, &caller_id(number));
    }

    #[test]
    fn a_call_gets_the_socket_of_its_media_channel() {
        let mut stasis = Stasis::default();
        stasis.open("bench");
        stasis.enter(1, 0, at(4000));
        stasis.enter(2, 1, at(4002));
        // the first request gets any socket
        let (status, answer) = media(&mut stasis, "m1", "127.0.0.2:10000");
        assert_eq!(
            (status, &answer["channelvars"]["UNICASTRTP_LOCAL_PORT"]),
            (200, &json!("4002"))
        );
        media(&mut stasis, "m2", "127.0.0.2:10002");
        assert_eq!(media(&mut stasis, "m3", "127.0.0.2:10004").0, 500);
        talk(&mut stasis, 1, "m1");
        let audio = Audio { rtp: "127.0.0.2:10000".parse().unwrap(), payload_type: 0 };
        let changes = stasis.changes.pop_front();
        assert_eq!(changes, Some(Change::Answered { number: 1, line: Some(1), audio }));
        stasis.hang_up(1);
        assert_eq!(stasis.changes.pop_front(), None, "its media channel and bridge still exist");
        assert_eq!(stasis.ask("DELETE", &["channels", "m1"], &Query::new()), DONE);
        assert_eq!(stasis.ask("DELETE", &["bridges", "b1"], &Query::new()), DONE);
        let changes = stasis.changes.pop_front();
        assert_eq!(changes, Some(Change::Ended { number: 1, line: Some(1), code: 0 }));
    }

    /// The socket that the caller was dialled with may carry another call's audio.
    #[test]
    fn a_caller_who_never_talked_releases_any_free_socket() {
        let mut stasis = Stasis::default();
        stasis.open("bench");
        stasis.enter(1, 0, at(4000));
        stasis.enter(2, 1, at(4002));
        media(&mut stasis, "m2", "127.0.0.2:10000");
        media(&mut stasis, "m1", "127.0.0.2:10002");
        assert_eq!(stasis.ask("POST", &["channels", "bench.1", "continue"], &Query::new()), DONE);
        assert_eq!(stasis.changes.pop_front(), None);
        stasis.ask("DELETE", &["channels", "m1"], &Query::new());
        let changes = stasis.changes.pop_front();
        assert_eq!(changes, Some(Change::Ended { number: 1, line: Some(0), code: 0 }));
        talk(&mut stasis, 2, "m2");
        assert!(matches!(stasis.changes.pop_front(), Some(Change::Answered { line: Some(1), .. })));
    }

    #[test]
    fn events_cover_callers_and_media_channels() {
        let mut stasis = Stasis::default();
        stasis.enter(1, 0, at(4000));
        assert!(stasis.events.is_empty(), "no subscription");
        stasis.open("bench");
        media(&mut stasis, "m", "127.0.0.2:10000");
        stasis.hang_up(1);
        let kinds: Vec<String> = stasis.events.drain(..).collect();
        let kind = |text: &String| serde_json::from_str::<Value>(text).unwrap()["type"].clone();
        let kinds: Vec<Value> = kinds.iter().map(kind).collect();
        assert_eq!(kinds, ["StasisStart", "ChannelHangupRequest", "StasisEnd"]);
        assert_eq!(stasis.ask("GET", &["channels", "bench.1"], &Query::new()).0, 404);
        assert_eq!(stasis.channels().as_array().map(Vec::len), Some(1));
    }
}
