//! A test of RTP in ARI mode, without a call: two external media channels in a bridge. A tone that
//! is sent to one has to come back from the other. Owns sockets and a clock.

use std::collections::HashSet;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use futures_util::future::join_all;
use tokio::net::UdpSocket;
use tokio::time::{Instant, MissedTickBehavior, interval, timeout, timeout_at};

use crate::ari::client::link::Link;
use crate::ari::event::{self, Event};
use crate::ari::request::{NORMAL, Outcome as Answer, RestRequest};
use crate::doctor::finding::Finding;
use crate::doctor::tone::{is_tone, tone};
use crate::faults;
use crate::media::frame::FRAME_TIME;
use crate::media::g711::{self, Law};
use crate::media::rtp::Packet;
use crate::media::sender::Sender;
use crate::sip::endpoint::resolve::local_ip;
use crate::sip::random::Random;

/// Time limit for creating everything.
const SET_UP: Duration = Duration::from_secs(4);
/// Time limit for the channels to enter our application.
const ENTER: Duration = Duration::from_millis(1500);
/// How long the tone is waited for, and any audio at all.
const AUDIO: Duration = Duration::from_millis(1200);
/// This many frames with our tone prove that it came back.
const FRAMES: usize = 10;
/// Time limit for removing what was created.
const REMOVE: Duration = Duration::from_secs(3);
/// A test takes no longer than this.
pub const LONGEST: Duration = Duration::from_secs(10);
/// A sound that every Asterisk can make.
const SOUND: &str = "tone:dial";

/// The test to make.
pub struct Test<'a> {
    /// Our application, and the end of the names of our objects.
    pub app: &'a str,
    pub token: &'a str,
    /// The address of the RTP sockets.
    pub bound: IpAddr,
    pub advertised: Option<IpAddr>,
    pub ports: (u16, u16),
    pub law: Law,
}

/// The course of the test.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Outcome {
    /// Why it could not be made.
    pub failed: Option<String>,
    /// The PBX refused a command.
    pub refused: Option<String>,
    /// Where the PBX has to send, and where we send.
    pub our_rtp: Option<SocketAddr>,
    pub pbx_rtp: Option<SocketAddr>,
    pub from: Option<SocketAddr>,
    /// Frames with our tone.
    pub echoed: usize,
    /// Packets with a sound that the PBX made by itself.
    pub packets: usize,
}

/// Returns the random end of names, so that two tests do not meet.
pub fn token() -> String {
    let mut key = [0u8; 32];
    // without randomness, the process id has to do
    if getrandom::fill(&mut key).is_err() {
        key[..4].copy_from_slice(&std::process::id().to_be_bytes());
    }
    Random::new(key).token()
}

/// One external media channel, and our end of it.
struct End {
    id: String,
    socket: UdpSocket,
    /// Where the PBX receives.
    pbx: SocketAddr,
    sender: Sender,
}

/// Makes the test, and removes what it created.
pub async fn run(test: &Test<'_>, link: &mut Link) -> Outcome {
    let mut outcome = Outcome::default();
    let ids = ["m1", "m2"].map(|part| format!("trunkless-doctor-{part}-{}", test.token));
    let bridge = format!("trunkless-doctor-b-{}", test.token);
    let connected = timeout(SET_UP, connect(test, link, &ids, &bridge, &mut outcome)).await;
    match connected.unwrap_or_else(|_| Err(Stop::Refused("the PBX answers too slowly".to_owned())))
    {
        Err(Stop::Failed(why)) => outcome.failed = Some(why),
        Err(Stop::Refused(why)) => outcome.refused = Some(why),
        Ok(mut ends) => listen(test, link, &mut ends, &mut outcome).await,
    }
    let rest = link.rest.clone();
    let channels = ids.map(|channel| RestRequest::HangUp { channel, reason: NORMAL });
    let bridge = RestRequest::DeleteBridge { id: bridge };
    let requests = channels.iter().chain([&bridge]);
    let _ = timeout(REMOVE, join_all(requests.map(|request| rest.run(request)))).await;
    outcome
}

/// Why the test ended early.
enum Stop {
    Failed(String),
    Refused(String),
}

impl From<io::Error> for Stop {
    fn from(error: io::Error) -> Stop {
        Stop::Failed(error.to_string())
    }
}

fn accepted(request: &RestRequest, answer: Answer) -> Result<Answer, Stop> {
    match answer.is_success() {
        true => Ok(answer),
        false => Err(Stop::Refused(format!("{} {}", request.name(), answer.text()))),
    }
}

async fn connect(
    test: &Test<'_>,
    link: &mut Link,
    ids: &[String; 2],
    bridge: &str,
    outcome: &mut Outcome,
) -> Result<[End; 2], Stop> {
    let mut ends = Vec::new();
    let ip = local_ip(SocketAddr::new(link.pbx, 9), test.bound)?;
    for (n, id) in ids.iter().enumerate() {
        let socket = bind(ip, test.ports).await?;
        let ours = SocketAddr::new(test.advertised.unwrap_or(ip), socket.local_addr()?.port());
        let request = RestRequest::ExternalMedia {
            id: id.clone(),
            app: test.app.to_owned(),
            host: ours,
            format: if test.law == Law::A { "alaw" } else { "ulaw" },
        };
        let answer = accepted(&request, link.rest.run(&request).await)?;
        let pbx = answer.media_address(link.pbx);
        let pbx = pbx.ok_or_else(|| Stop::Failed("the PBX names no RTP port".to_owned()))?;
        (outcome.our_rtp, outcome.pbx_rtp) = (Some(ours), Some(pbx));
        let sender = Sender::new(0x7472_0000 + n as u32, 1, 0);
        ends.push(End { id: id.clone(), socket, pbx, sender });
    }
    entered(link, test.app, ids).await?;
    let create = RestRequest::CreateBridge { id: bridge.to_owned() };
    accepted(&create, link.rest.run(&create).await)?;
    for channel in ids.clone() {
        let add = RestRequest::AddChannel { bridge: bridge.to_owned(), channel };
        accepted(&add, link.rest.run(&add).await)?;
    }
    ends.try_into().map_err(|_| Stop::Failed("internal error".to_owned()))
}

async fn bind(ip: IpAddr, (first, last): (u16, u16)) -> Result<UdpSocket, Stop> {
    // from the end, because a running trunkless begins at the other one
    for port in (first..=last).rev().filter(|port| port % 2 == 0) {
        if let Ok(socket) = UdpSocket::bind((ip, port)).await {
            return Ok(socket);
        }
    }
    Err(Stop::Failed(format!("no UDP port from {first} to {last} is free at {ip}")))
}

/// Waits until both channels are in our application; before that, they cannot enter a bridge.
async fn entered(link: &mut Link, app: &str, ids: &[String; 2]) -> Result<(), Stop> {
    let end = Instant::now() + ENTER;
    let mut missing: HashSet<&String> = ids.iter().collect();
    while !missing.is_empty() {
        let text = match timeout_at(end, link.next()).await {
            Ok(Ok(text)) => text,
            Ok(Err(why)) => return Err(Stop::Failed(format!("ARI events lost: {why}"))),
            Err(_) => {
                return Err(Stop::Refused(
                    "external media channels do not enter the application".to_owned(),
                ));
            }
        };
        if let Ok(Event::StasisStart { channel, .. }) = event::parse(&text, app) {
            missing.remove(&channel.id);
        }
    }
    Ok(())
}

/// Sends the tone to one channel and counts what the other sends. If it sends nothing, the PBX
/// makes a sound itself, which shows the direction that is blocked.
async fn listen(test: &Test<'_>, link: &Link, ends: &mut [End; 2], outcome: &mut Outcome) {
    let mut index = 0;
    exchange(test, ends, &mut index, outcome, |outcome| outcome.echoed >= FRAMES).await;
    if outcome.packets > 0 {
        return;
    }
    let play = RestRequest::Play { channel: ends[1].id.clone(), media: SOUND.to_owned() };
    link.rest.run(&play).await;
    exchange(test, ends, &mut index, outcome, |outcome| outcome.packets >= FRAMES).await;
}

async fn exchange(
    test: &Test<'_>,
    ends: &mut [End; 2],
    index: &mut u64,
    outcome: &mut Outcome,
    done: impl Fn(&Outcome) -> bool,
) {
    let end = Instant::now() + AUDIO;
    let mut ticks = interval(FRAME_TIME);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut buffer = [0u8; 2048];
    let payload_type = if test.law == Law::A { 8 } else { 0 };
    while Instant::now() < end && !done(outcome) {
        tokio::select! {
            _ = ticks.tick() => {
                for (n, one) in ends.iter_mut().enumerate() {
                    let mut samples = tone(*index);
                    if n == 1 {
                        samples.fill(crate::media::frame::SILENCE);
                    }
                    if test.law == Law::A {
                        g711::mu_to_a(&mut samples);
                    }
                    let packet = one.sender.audio(payload_type, *index, &samples, *index == 0);
                    let _ = one.socket.try_send_to(&packet, one.pbx);
                }
                *index += 1;
            }
            received = ends[1].socket.recv_from(&mut buffer) => {
                let Ok((n, from)) = received else { continue };
                let Some(packet) = Packet::parse(&buffer[..n]) else { continue };
                let mut samples = packet.payload.to_vec();
                if packet.payload_type == 8 {
                    g711::a_to_mu(&mut samples);
                }
                outcome.packets += 1;
                outcome.from.get_or_insert(from);
                outcome.echoed += usize::from(is_tone(&samples));
            }
        }
    }
}

/// Judges the test.
pub fn judge(step: &str, outcome: &Outcome) -> Finding {
    if let Some(why) = &outcome.failed {
        return Finding::fault(step, format!("RTP not tested: {why}"), "check [media] ports");
    }
    if let Some(why) = &outcome.refused {
        return Finding::fault(
            step,
            format!("external media cannot be created: {why}"),
            "load res_ari_channels, res_rtp_asterisk and chan_rtp on the PBX, and look at its log",
        );
    }
    let address = |of: Option<SocketAddr>| of.map_or("?".to_owned(), |of| of.to_string());
    let (ours, theirs) = (address(outcome.our_rtp), address(outcome.pbx_rtp));
    if outcome.echoed >= FRAMES {
        return Finding::ok(step, format!("audio flows both ways ({ours} and {theirs})"));
    }
    match outcome.packets {
        0 => Finding::fault(
            step,
            format!("no RTP from the PBX: firewall? It has to send to {ours} by UDP"),
            "open the UDP ports of [media] ports towards this host; if the PBX cannot reach that \
             address, set advertised",
        ),
        _ => Finding::fault(
            step,
            format!("the PBX hears nothing: {}", faults::RTP_NOT_HEARD)
                .replace("our_rtp", &ours)
                .replace("pbx_rtp", &theirs),
            "open UDP from here to the PBX's RTP range (rtpstart to rtpend in rtp.conf)",
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::doctor::finding::State;

    #[test]
    fn each_direction_has_its_own_fault() {
        let our_rtp = Some(SocketAddr::from(([10, 0, 0, 5], 20_002)));
        let silent = Outcome { our_rtp, ..Outcome::default() };
        assert!(judge("m", &silent).what.contains("no RTP from the PBX"));
        let unheard = Outcome { packets: 40, ..silent.clone() };
        assert!(judge("m", &unheard).what.contains("it heard no RTP from us"));
        let good = Outcome { packets: 40, echoed: 30, ..silent };
        assert_eq!(judge("m", &good).state, State::Ok);
        let refused = Outcome { refused: Some("externalMedia answered 500".into()), ..good };
        assert!(judge("m", &refused).what.contains("external media cannot be created"));
    }
}
