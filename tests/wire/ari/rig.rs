//! The bridge in ARI mode between a fake PBX and the strict AI.

use std::net::{IpAddr, SocketAddr};
use std::ops::Range;
use std::sync::Arc;

use serde_json::json;

use crate::ari::ask::Verb;
use crate::ari::fake::Fake;
use crate::ari::world::{Channel, External};
use crate::bridge::{Bridge, Net};
use crate::call::CALLER;
use crate::media::Talker;
use crate::stream::Stream;
use crate::strict::Ai;

/// The application's name in tests with only one.
pub const APP: &str = "ai";

/// The configuration for the application `app`; the bridge's sockets are at `ip`.
pub fn plain(ip: IpAddr, app: &str, pbx: SocketAddr, ai: SocketAddr) -> String {
    format!(
        "[ai]\nurl = \"ws://{ai}/media\"\n\
         [sip]\nlisten = \"{}\"\n\
         [calls]\nanswer_wait = \"500ms\"\n\
         [pbx.main]\nmode = \"ari\"\n\
         [pbx.main.ari]\nurl = \"http://{pbx}\"\nusername = \"{app}\"\npassword = \"secret\"\n\
         app = \"{app}\"\nrtp_conf = \"/nonexistent/rtp.conf\"\n",
        SocketAddr::new(ip, 0)
    )
}

/// A fake PBX, an AI and the bridge between them.
pub struct Rig {
    pub fake: Arc<Fake>,
    pub ai: Ai,
    pub bridge: Bridge,
}

impl Rig {
    pub async fn new(config: &str) -> Rig {
        let net = Net::new();
        let fake = Fake::start(net.pbx()).await;
        Rig::with(net, fake, config).await
    }

    /// Returns once the bridge takes calls.
    pub async fn with(net: Net, fake: Fake, config: &str) -> Rig {
        let ai = Ai::start(net.ai()).await;
        let plain = plain(net.bridge(), APP, fake.address, ai.address);
        let bridge = Bridge::launch(&plain, config).await;
        // the requests made once the events socket is open
        for verb in [Verb::Filter, Verb::Channels, Verb::Bridges] {
            fake.asked(verb, "", 1).await;
        }
        Rig { fake: Arc::new(fake), ai, bridge }
    }

    /// A caller enters the application.
    pub fn enter(&self, id: &str) {
        self.fake.world().enter(id, APP, &[], Channel::caller());
    }

    /// Sets up a call and leaves the PBX's last answer time to arrive.
    pub async fn call(&self, id: &str) -> (Caller, Stream) {
        let (caller, stream) = self.new_call(id).await;
        stream.listen(60).await;
        (caller, stream)
    }

    /// Sets up a call; its first packet has just arrived.
    pub async fn new_call(&self, id: &str) -> (Caller, Stream) {
        self.enter(id);
        let stream = self.ai.stream().await;
        (self.caller(id).await, stream)
    }

    /// Waits until the caller is connected.
    pub async fn caller(&self, id: &str) -> Caller {
        let external = self.fake.until("the caller is connected", |w| w.external_of(id)).await;
        Caller { fake: self.fake.clone(), id: id.to_owned(), external, talker: External::talker() }
    }
}

/// A caller in a bridge with external media.
pub struct Caller {
    fake: Arc<Fake>,
    id: String,
    pub external: External,
    talker: Talker,
}

impl Caller {
    /// Sends frames `frames` of numbered audio to the bridge.
    pub async fn say(&mut self, frames: Range<u32>) {
        let External { media, host } = self.external.clone();
        media.say(host, &mut self.talker, CALLER, frames).await;
    }

    pub fn press(&self, digit: &str) {
        let event = json!({ "digit": digit, "duration_ms": 120 });
        self.fake.world().tell(&self.id, "ChannelDtmfReceived", event);
    }

    pub fn hold(&self, on: bool) {
        let kind = if on { "ChannelHold" } else { "ChannelUnhold" };
        self.fake.world().tell(&self.id, kind, json!({ "musicclass": "default" }));
    }

    pub fn hang_up(&self) {
        self.fake.world().hang_up(&self.id);
    }

    /// Waits until nothing of the application's calls is left, and checks that this caller
    /// continues in the dialplan.
    pub async fn continued(&self) {
        self.fake.is_clean(APP).await;
        assert_eq!(self.fake.world().continued, [self.id.as_str()]);
    }
}
