//! The bystanders' callers: phones on a thread of their own, so that neither the fault nor the test
//! holds them up. Owns the thread.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Instant;

use tokio::sync::mpsc;
use trunkless::peer::pattern;
use trunkless::peer::phone::{Heard, Phone, PhoneCommand, PhoneConfig, PhoneEvent};

use super::calls::{Call, hear};
use super::canary::Canary;
use super::judge::{Arrival, Content};

/// Where callers dial from and to.
#[derive(Debug, Clone)]
pub struct Dial {
    pub from: IpAddr,
    pub target: SocketAddr,
    pub extension: String,
}

enum Order {
    Dial(Arc<Call>),
    HangUp,
}

/// The thread of the callers. Dropping this ends it and all its phones.
pub struct Callers {
    orders: mpsc::UnboundedSender<Order>,
}

impl Callers {
    pub fn start(dial: Dial, canary: Arc<Canary>) -> Callers {
        let (orders, queue) = mpsc::unbounded_channel();
        std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
            runtime.expect("a runtime").block_on(serve(dial, canary, queue));
        });
        Callers { orders }
    }

    pub fn dial(&self, call: Arc<Call>) {
        let _ = self.orders.send(Order::Dial(call));
    }

    /// Hangs up all calls.
    pub fn hang_up(&self) {
        let _ = self.orders.send(Order::HangUp);
    }
}

async fn serve(dial: Dial, canary: Arc<Canary>, mut orders: mpsc::UnboundedReceiver<Order>) {
    canary.watch_this_runtime();
    let mut phones = Vec::new();
    while let Some(order) = orders.recv().await {
        match order {
            Order::Dial(call) => phones.push(place(&dial, call).await),
            Order::HangUp => {
                for commands in phones.drain(..) {
                    let _ = commands.send(PhoneCommand::Hangup);
                }
            }
        }
    }
}

/// Places a call and returns the way to end it.
async fn place(dial: &Dial, call: Arc<Call>) -> mpsc::UnboundedSender<PhoneCommand> {
    let mut config = PhoneConfig::new(dial.from, &format!("555{:04}", call.number));
    let speaker = call.clone();
    config.source = Box::new(move |_| {
        let speak = speaker.talks();
        speak
            .then(|| {
                let mut state = speaker.state();
                state.to_ai.sent.push(Instant::now());
                state.to_ai.sent.len() as u32 - 1
            })
            .filter(|_| !speaker.swallows())
            .map(|index| pattern::frame(speaker.number, index))
    });
    let mut phone = Phone::start(config).await.expect("a phone starts");
    let uri = format!("sip:{}@{}", dial.extension, dial.target);
    phone.command(PhoneCommand::Dial { uri, target: dial.target });
    let commands = phone.commands.clone();
    tokio::spawn(async move {
        let mut timeline = Timeline::default();
        while let Some(event) = phone.events.recv().await {
            let mut state = call.state();
            match event {
                PhoneEvent::Answered { .. } => state.answered = true,
                PhoneEvent::Heard(heard) => {
                    state.packets += 1;
                    state.last_packet = Some((heard.at, heard.from));
                    hear(&mut state.to_caller, timeline.arrival(&heard));
                }
                PhoneEvent::Ended(end) => {
                    state.ended = Some(format!("{end:?}"));
                    return;
                }
                _ => {}
            }
        }
    });
    commands
}

/// Turns RTP timestamps, which wrap, into positions.
#[derive(Default)]
struct Timeline {
    /// Timestamp and position of the last packet.
    last: Option<(u32, i64)>,
}

impl Timeline {
    fn arrival(&mut self, heard: &Heard) -> Arrival {
        let position = self.last.map_or(0, |(timestamp, position)| {
            let step = heard.timestamp.wrapping_sub(timestamp).cast_signed();
            position + i64::from(step.div_euclid(160))
        });
        self.last = Some((heard.timestamp, position));
        Arrival { at: heard.at, position, content: Content::of(&heard.samples) }
    }
}
