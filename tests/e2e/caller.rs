//! A caller on the other side of the PBX, who sends numbered audio.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use trunkless::peer::pattern;
use trunkless::peer::phone::{Heard, Phone, PhoneCommand, PhoneConfig, PhoneEvent};
use trunkless::sip::agent::CallEnd;
use trunkless::sip::sdp::Codec;

/// Frames of silence before the numbered ones: the PBX needs a moment to join its two legs.
pub const LEAD: u64 = 25;

pub struct Caller {
    phone: Phone,
    /// While false, the caller is silent and the frame numbers do not advance.
    talking: Arc<AtomicBool>,
    pub heard: Vec<Heard>,
    /// The numbers of the numbered frames sent.
    pub sent: Vec<u32>,
    /// When each frame was sent, silence included.
    pub sent_at: Vec<Instant>,
    pub dialled: Instant,
    pub answered: Option<Instant>,
    pub ended: Option<CallEnd>,
}

impl Caller {
    /// Calls `extension` at `pbx` and sends `frames` numbered frames as call number `call`.
    pub async fn dial(
        from: &str,
        pbx: SocketAddr,
        extension: &str,
        call: u32,
        frames: u32,
    ) -> Caller {
        Caller::dial_with(from, pbx, extension, call, frames, vec![Codec::Pcmu]).await
    }

    pub async fn dial_with(
        from: &str,
        pbx: SocketAddr,
        extension: &str,
        call: u32,
        frames: u32,
        codecs: Vec<Codec>,
    ) -> Caller {
        let local: IpAddr = from.parse().expect("an address");
        let mut config = PhoneConfig::new(local, "5551234");
        config.codecs = codecs;
        Caller::start(config, pbx, extension, call, frames, LEAD).await
    }

    /// Calls the bridge directly, with `call` as the caller's number, and talks from the first
    /// packet on.
    pub async fn dial_direct(from: &str, bridge: SocketAddr, call: u32, frames: u32) -> Caller {
        let local: IpAddr = from.parse().expect("an address");
        let config = PhoneConfig::new(local, &call.to_string());
        Caller::start(config, bridge, "ai", call, frames, 0).await
    }

    /// Calls `extension` at `pbx` and plays `voice` after this many frames.
    pub async fn dial_voice(
        from: &str,
        pbx: SocketAddr,
        extension: &str,
        after: u64,
        voice: &'static [[u8; 160]],
    ) -> Caller {
        let mut config = PhoneConfig::new(from.parse().expect("an address"), "5551234");
        config.source = Box::new(move |index| {
            let place = usize::try_from(index.checked_sub(after)?).ok()?;
            voice.get(place).copied()
        });
        Caller::run(config, pbx, extension, Arc::default()).await
    }

    async fn start(
        mut config: PhoneConfig,
        target: SocketAddr,
        extension: &str,
        call: u32,
        frames: u32,
        lead: u64,
    ) -> Caller {
        let talking = Arc::new(AtomicBool::new(true));
        let (on, mut next) = (talking.clone(), 0);
        config.source = Box::new(move |index| {
            let speak = index >= lead && next < frames && on.load(Ordering::Relaxed);
            speak.then(|| {
                next += 1;
                pattern::frame(call, next - 1)
            })
        });
        Caller::run(config, target, extension, talking).await
    }

    async fn run(
        config: PhoneConfig,
        target: SocketAddr,
        extension: &str,
        talking: Arc<AtomicBool>,
    ) -> Caller {
        let phone = Phone::start(config).await.expect("the phone starts");
        let uri = format!("sip:{extension}@{target}");
        phone.command(PhoneCommand::Dial { uri, target });
        let dialled = Instant::now();
        let (heard, sent, sent_at) = Default::default();
        Caller { phone, talking, heard, sent, sent_at, dialled, answered: None, ended: None }
    }

    pub fn command(&self, command: PhoneCommand) {
        self.phone.command(command);
    }

    pub fn talk(&self, on: bool) {
        self.talking.store(on, Ordering::Relaxed);
    }

    /// Processes events until `wanted` is true; returns false if the limit passes first.
    pub async fn until(&mut self, limit: Duration, wanted: impl Fn(&Caller) -> bool) -> bool {
        let deadline = tokio::time::Instant::now() + limit;
        while !wanted(self) {
            match tokio::time::timeout_at(deadline, self.phone.events.recv()).await {
                Ok(Some(event)) => self.take(event),
                _ => return wanted(self),
            }
        }
        true
    }

    pub async fn wait(&mut self, time: Duration) {
        self.until(time, |_| false).await;
    }

    pub async fn answered(&mut self) {
        let answered = self.until(Duration::from_secs(5), |c| c.answered.is_some()).await;
        assert!(answered, "the call was not answered: {:?}", self.ended);
    }

    pub async fn hang_up(&mut self) {
        self.command(PhoneCommand::Hangup);
        assert!(self.until(Duration::from_secs(5), |c| c.ended.is_some()).await, "still up");
    }

    fn take(&mut self, event: PhoneEvent) {
        match event {
            PhoneEvent::Answered { at } => self.answered = Some(at),
            PhoneEvent::Sent { at, samples } => {
                self.sent_at.push(at);
                self.sent.extend(pattern::read(&samples).map(|(_, index)| index));
            }
            PhoneEvent::Heard(heard) => self.heard.push(heard),
            PhoneEvent::Ended(end) => self.ended = Some(end),
            _ => {}
        }
    }

    /// True if the last of `frames` numbered frames of `call` is among the last three heard.
    pub fn heard_last(&self, call: u32, frames: u32) -> bool {
        let lately = self.heard.iter().rev().take(3);
        lately.filter_map(|h| pattern::read(&h.samples)).any(|read| read == (call, frames - 1))
    }

    /// Indices of the numbered frames of `call` that were heard.
    pub fn numbers(&self, call: u32) -> Vec<u32> {
        let read = self.heard.iter().filter_map(|h| pattern::read(&h.samples));
        read.filter(|(c, _)| *c == call).map(|(_, index)| index).collect()
    }
}
