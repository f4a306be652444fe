//! Answers requests with the statuses and bodies of Asterisk 16 and 22.

use serde_json::{Value, json};

use crate::ari::ask::{Ask, Verb};
use crate::ari::fake::Trouble;
use crate::ari::world::{Bridge, Channel, External, World};
use crate::media::Talker;

type Reply = (u16, Value);

fn error(status: u16, message: &str) -> Reply {
    (status, json!({ "message": message }))
}

const NO_CONTENT: Reply = (204, Value::Null);

impl World {
    /// Carries out a request, or fails in the way `trouble` says.
    pub fn meet(&mut self, ask: &Ask, trouble: Option<Trouble>) -> Reply {
        match trouble {
            None | Some(Trouble::Unanswered | Trouble::Late) => self.carry_out(ask),
            Some(Trouble::Botched(status)) => {
                self.carry_out(ask);
                error(status, "no answer in time")
            }
            Some(Trouble::Lost) => error(500, "never sent"),
            Some(Trouble::Status(status)) => error(status, "trouble"),
            Some(Trouble::Gone(status)) => {
                let gone = if ask.verb == Verb::AddCaller { ask.get("channel") } else { &ask.id };
                match status {
                    404 => {
                        self.hang_up(gone);
                        self.remove_bridge(gone);
                    }
                    _ => self.leave(gone),
                }
                error(status, "gone")
            }
        }
    }

    fn carry_out(&mut self, ask: &Ask) -> Reply {
        match ask.verb {
            Verb::Info => {
                let status = json!({ "startup_time": self.startup });
                let system = self.entity.map(|id| json!({ "version": "22", "entity_id": id }));
                (200, json!({ "status": status, "system": system }))
            }
            Verb::Filter => self.set_filter(ask),
            Verb::Channels => {
                (200, self.channels.iter().map(|(id, channel)| channel.json(id)).collect())
            }
            Verb::Look => match self.channels.get(&ask.id) {
                Some(channel) => (200, channel.json(&ask.id)),
                None => error(404, "Channel not found"),
            },
            Verb::Bridges => {
                let json = |(id, b): (&String, &Bridge)| json!({"id": id, "channels": b.members});
                (200, self.bridges.iter().map(json).collect())
            }
            Verb::Media => self.make_media(ask),
            Verb::Originate => self.originate(ask),
            Verb::Bridge => match self.bridges.contains_key(&ask.id) {
                true => error(409, "Bridge with given id already exists"),
                false => {
                    self.bridges.insert(ask.id.clone(), Bridge::default());
                    (200, json!({ "id": ask.id, "bridge_type": "mixing", "channels": [] }))
                }
            },
            Verb::AddMedia | Verb::AddCaller => self.add(&ask.id, ask.get("channel")),
            Verb::HangUp | Verb::DropMedia => match self.channels.contains_key(&ask.id) {
                true => {
                    self.hang_up(&ask.id);
                    NO_CONTENT
                }
                false => error(404, "Channel not found"),
            },
            Verb::DropBridge => match self.remove_bridge(&ask.id) {
                true => NO_CONTENT,
                false => error(404, "Bridge not found"),
            },
            Verb::Events => error(400, "no WebSocket"),
            _ => self.command(ask),
        }
    }

    /// Carries out requests that need a channel in a Stasis application.
    fn command(&mut self, ask: &Ask) -> Reply {
        let Some(channel) = self.channels.get_mut(&ask.id) else {
            return error(404, "Channel not found");
        };
        if channel.stasis.is_none() {
            return error(409, "Channel not in a Stasis application");
        }
        match ask.verb {
            Verb::Answer => {
                channel.up = true;
                self.tell(&ask.id, "ChannelStateChange", json!({}));
            }
            Verb::Variable => {
                return match channel.variables.get(ask.get("variable")) {
                    Some(value) => (200, json!({ "value": value })),
                    None => error(404, "Provided variable was not found"),
                };
            }
            Verb::SetVariable => {
                channel.variables.insert(ask.get("variable").into(), ask.get("value").into());
            }
            Verb::Continue => {
                self.continued.push(ask.id.clone());
                self.leave(&ask.id);
                if self.sent_back > 0 {
                    self.sent_back -= 1;
                    let channel = self.channels[&ask.id].clone();
                    self.enter(&ask.id, &ask.user, &[], channel);
                }
            }
            _ => {}
        }
        NO_CONTENT
    }

    fn set_filter(&mut self, ask: &Ask) -> Reply {
        let body: Value = serde_json::from_slice(&ask.body).unwrap_or_default();
        let allowed = body["allowed"].as_array().cloned().unwrap_or_default();
        let types = allowed.iter().filter_map(|t| t["type"].as_str()).map(str::to_owned);
        self.filters.insert(ask.id.clone(), types.collect());
        (200, json!({ "name": ask.id }))
    }

    fn make_media(&mut self, ask: &Ask) -> Reply {
        let (id, app) = (&ask.id, ask.get("app"));
        let Ok(host) = ask.get("external_host").parse() else { return error(400, "no host") };
        if self.channels.contains_key(id) {
            return error(409, "Channel with given unique ID already exists");
        }
        if !["ulaw", "alaw"].contains(&ask.get("format")) {
            self.wrong.push(format!("{ask:?}"));
        }
        let media = (self.open_media)();
        let rtp = media.address();
        let mut channel = Channel {
            name: format!("UnicastRTP/{host}-0x7f041c00fc60"),
            number: String::new(),
            exten: "s".into(),
            protocol_id: String::new(),
            external: Some(External { host, media }),
            ..Channel::caller()
        };
        let mut answer = channel.json(id);
        answer["channelvars"] = json!({
            "UNICASTRTP_LOCAL_PORT": rtp.port().to_string(),
            "UNICASTRTP_LOCAL_ADDRESS": rtp.ip().to_string(),
        });
        channel.up = true;
        // without a client for the application, the channel ends at once
        if self.sockets.contains_key(app) {
            channel.stasis = Some((app.to_owned(), Vec::new()));
            self.channels.insert(id.clone(), channel);
            self.tell(id, "ChannelStateChange", json!({}));
            self.tell(id, "StasisStart", json!({ "args": [] }));
        }
        (200, answer)
    }

    /// Makes the channel of a callee, who is being called from now on.
    fn originate(&mut self, ask: &Ask) -> Reply {
        if self.channels.contains_key(&ask.id) {
            return error(409, "Channel with given unique ID already exists");
        }
        let channel = Channel {
            name: format!("{}-00000001;1", ask.get("endpoint")),
            exten: "s".into(),
            originated: Some(ask.get("app").to_owned()),
            ..Channel::caller()
        };
        let answer = channel.json(&ask.id);
        self.channels.insert(ask.id.clone(), channel);
        self.dial(&ask.id, "");
        (200, answer)
    }

    fn add(&mut self, bridge: &str, channel: &str) -> Reply {
        let Some(entered) = self.bridges.get_mut(bridge) else {
            return error(404, "Bridge not found");
        };
        let app = match self.channels.get(channel) {
            None => return error(400, "Channel not found"),
            Some(Channel { stasis: None, .. }) => {
                return error(422, "Channel not in Stasis application");
            }
            Some(Channel { stasis: Some((app, _)), .. }) => app.clone(),
        };
        entered.apps.insert(app);
        self.leave_bridge(channel);
        let members = self.bridges.get_mut(bridge).map(|b| &mut b.members);
        members.into_iter().for_each(|members| members.extend([channel.to_owned()]));
        self.tell(channel, "ChannelEnteredBridge", json!({ "bridge": { "id": bridge } }));
        self.connect_audio(bridge);
        NO_CONTENT
    }

    /// Sends a caller's first packet once caller and external media are both in the bridge.
    fn connect_audio(&mut self, bridge: &str) {
        let Some(Bridge { members, .. }) = self.bridges.get(bridge) else { return };
        let externals = members.iter().filter_map(|id| self.channels.get(id)?.external.as_ref());
        if let ([external], 2) = (&externals.collect::<Vec<_>>()[..], members.len()) {
            let silence = Talker::new(7).packet(&[0xff; 160]);
            // lost if the socket is not ready yet
            let _ = external.media.rtp.try_send_to(&silence, external.host);
        }
    }
}
