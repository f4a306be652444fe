//! The PBX's RTP: a pair of sockets that collects incoming packets and sends numbered audio every
//! 20 ms.

use std::cell::Cell;
use std::net::{IpAddr, SocketAddr};
use std::ops::Range;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, LazyLock};
use std::time::{Duration, Instant};

use tokio::net::UdpSocket;
use tokio::time::{interval, timeout};
use trunkless::media::frame::{SILENCE, Samples};
use trunkless::media::g711;
use trunkless::peer::pattern;

use crate::canary::{Canary, Stall, overlap};
use crate::log::Log;

/// A sender later than this does not catch up but continues from now and sets the marker, like a
/// PBX whose clock stood still.
const LATE: Duration = Duration::from_millis(50);

/// Packets this far apart are an interruption, unless the host took the time away. Less than this
/// may pass while another test of this process uses the CPU.
const APART: Duration = Duration::from_millis(100);

/// Measures the time that the host takes away from the tests of this process.
static CANARY: LazyLock<Canary> = LazyLock::new(Canary::start);

thread_local! {
    /// True once this test's runtime is watched, on which all its tasks run.
    static WATCHED: Cell<bool> = const { Cell::new(false) };
}

/// A received RTP packet.
#[derive(Debug, Clone, PartialEq)]
pub struct Heard {
    pub at: Instant,
    pub from: SocketAddr,
    pub marker: bool,
    pub payload_type: u8,
    pub sequence: u16,
    pub timestamp: u32,
    pub ssrc: u32,
    pub payload: Vec<u8>,
    /// See [`Media::linear`].
    pub linear: bool,
}

impl Heard {
    /// The call and index of a numbered frame.
    pub fn number(&self) -> Option<(u32, u32)> {
        match self.linear {
            true => read_linear(&self.samples()),
            false => pattern::read(&self.samples()),
        }
    }

    /// The payload as mu-law.
    pub fn samples(&self) -> Vec<u8> {
        let mut samples = self.payload.clone();
        if self.payload_type == 8 {
            g711::a_to_mu(&mut samples);
        }
        samples
    }

    pub fn is_silence(&self) -> bool {
        // no mu-law sample has exactly the level of A-law silence
        let silence = if self.payload_type == 8 { 0xd5 } else { SILENCE };
        self.payload.iter().all(|s| *s == silence)
    }
}

pub struct Media {
    pub rtp: Arc<UdpSocket>,
    /// Kept open so that RTCP finds a socket.
    _rtcp: Option<UdpSocket>,
    pub heard: Arc<Log<Heard>>,
    /// True if the audio was linear on its way, see [`read_linear`].
    pub linear: Arc<AtomicBool>,
    reader: tokio::task::JoinHandle<()>,
}

impl Drop for Media {
    fn drop(&mut self) {
        self.reader.abort();
    }
}

impl Media {
    pub async fn open(ip: IpAddr) -> Media {
        Media::bind(ip)
    }

    /// Like [`Media::open`], but usable outside a task: the caller has entered a runtime.
    pub fn bind(ip: IpAddr) -> Media {
        let bind = |port: u16| {
            let socket = std::net::UdpSocket::bind((ip, port))?;
            socket.set_nonblocking(true)?;
            UdpSocket::from_std(socket)
        };
        let rtp = Arc::new(bind(0).unwrap());
        let next = rtp.local_addr().unwrap().port().wrapping_add(1);
        let rtcp = bind(next).ok();
        if !WATCHED.replace(true) {
            CANARY.watch_this_runtime();
        }
        let heard = Arc::new(Log::new());
        let linear = Arc::new(AtomicBool::new(false));
        let reader = tokio::spawn(collect(rtp.clone(), heard.clone(), linear.clone()));
        Media { rtp, _rtcp: rtcp, heard, linear, reader }
    }

    pub fn address(&self) -> SocketAddr {
        self.rtp.local_addr().unwrap()
    }

    pub async fn send(&self, to: SocketAddr, packet: &[u8]) {
        self.rtp.send_to(packet, to).await.unwrap();
    }

    /// Sends frames `frames` of call `number`, one every 20 ms.
    pub async fn say(&self, to: SocketAddr, talker: &mut Talker, number: u32, frames: Range<u32>) {
        let mut ticks = interval(Duration::from_millis(20));
        // this may follow a pause in which the timestamps stood still
        talker.marker = true;
        for index in frames {
            let due = ticks.tick().await;
            if due.elapsed() > LATE {
                ticks.reset();
                talker.marker = true;
            }
            self.send(to, &talker.packet(&pattern::frame(number, index))).await;
        }
    }

    /// All packets so far.
    pub fn packets(&self) -> Vec<Heard> {
        self.heard.look(|heard| heard.clone())
    }

    /// Returns the first packet that satisfies `good`, waiting for it if necessary.
    pub async fn until(&self, what: &str, good: impl Fn(&Heard) -> bool) -> Heard {
        self.heard.wait(what, |heard| heard.iter().find(|h| good(h)).cloned()).await
    }

    /// Waits for the next packet; earlier ones do not count.
    pub async fn next(&self) -> Heard {
        let before = self.heard.look(|heard| heard.len());
        self.heard.wait("one more RTP packet", |heard| heard.get(before).cloned()).await
    }

    /// True if no packet arrives within `time`.
    pub async fn is_quiet(&self, time: Duration) -> bool {
        timeout(time, self.next()).await.is_err()
    }

    /// Waits for `count` frames other than silence and returns the numbers of all so far, in order
    /// of arrival. Panics at a frame that differs by even one byte from those of call `number`.
    pub async fn numbered(&self, number: u32, count: usize) -> Vec<u32> {
        let what = format!("{count} frames of audio in RTP");
        self.heard
            .wait(&what, |heard| {
                let indices = indices(heard, number);
                (indices.len() >= count).then_some(indices)
            })
            .await
    }
}

/// The call and index of a frame that was linear on its way. Of mu-law's two zeros, one is left.
pub fn read_linear(samples: &[u8]) -> Option<(u32, u32)> {
    let word = |at: usize| Some(u32::from_be_bytes(*samples.get(at..)?.first_chunk()?));
    let (call, index) = (word(4)?, word(8)?);
    let sent = pattern::frame(call, index).map(|s| if s == 0x7f { SILENCE } else { s });
    (samples == sent).then_some((call, index))
}

/// The numbers of all frames other than silence; panics at a frame not from call `number`.
pub fn indices(heard: &[Heard], number: u32) -> Vec<u32> {
    let audio = heard.iter().filter(|h| !h.is_silence());
    audio
        .map(|h| match h.number() {
            Some((call, index)) if call == number => index,
            other => panic!("frame {other:?} instead of one of call {number}: {h:?}"),
        })
        .collect()
}

/// Asserts that sequence numbers, timestamps and arrivals have no gaps. Timestamps may jump by as
/// many frames, and packets may be apart by as much time, as the host took away meanwhile.
pub fn assert_continuous(heard: &[Heard]) {
    if let Some(why) = interruption(heard, &CANARY.stalls()) {
        panic!("{why} ({} packets)", heard.len());
    }
}

/// Returns how much time the host took away from this process between two moments.
pub fn taken(from: Instant, to: Instant) -> Duration {
    overlap(&CANARY.stalls(), from, to)
}

/// Returns the first interruption.
fn interruption(heard: &[Heard], stalls: &[Stall]) -> Option<String> {
    heard.windows(2).find_map(|pair| {
        let [a, b] = pair else { return None };
        let (step, apart) = (b.timestamp.wrapping_sub(a.timestamp), b.at.duration_since(a.at));
        let taken = overlap(stalls, a.at, b.at);
        let frames = 1 + taken.as_millis().div_ceil(20) as u32;
        if b.ssrc != a.ssrc {
            Some(format!("SSRC {} follows {}", b.ssrc, a.ssrc))
        } else if b.sequence != a.sequence.wrapping_add(1) {
            Some(format!("sequence number {} follows {}", b.sequence, a.sequence))
        } else if step == 0 || step % 160 != 0 || step > 160 * frames {
            Some(format!("timestamps step by {step}, {taken:?} without the host"))
        } else if apart > APART + taken {
            Some(format!("no packet for {apart:?}, {taken:?} without the host"))
        } else {
            None
        }
    })
}

#[test]
fn a_standstill_is_an_interruption() {
    let begin = Instant::now();
    let packet = |n: u32| Heard {
        at: begin + Duration::from_millis(20) * n,
        from: ([127, 0, 0, 1], 9).into(),
        marker: false,
        payload_type: 0,
        sequence: 65_530u16.wrapping_add(n as u16),
        timestamp: 160 * n,
        ssrc: 1,
        payload: Vec::new(),
        linear: false,
    };
    let good: Vec<Heard> = (0..200).map(packet).collect();
    assert_eq!(interruption(&good, &[]), None);
    let found = |heard: &[Heard], stalls: &[Stall]| interruption(heard, stalls).unwrap_or_default();
    // two seconds of standstill, after which the sender continues where it was, or jumps ahead
    let mut late = good.clone();
    late[100..].iter_mut().for_each(|h| h.at += Duration::from_secs(2));
    assert!(found(&late, &[]).contains("no packet for 2.02s"), "{}", found(&late, &[]));
    let mut ahead = late.clone();
    ahead[100..].iter_mut().for_each(|h| h.timestamp += 100 * 160);
    assert!(found(&ahead, &[]).contains("timestamps step by 16160"));
    let host = [late[99].at..late[99].at + Duration::from_secs(2)];
    assert_eq!((found(&late, &host), found(&ahead, &host)), (String::new(), String::new()));
    let mut lost = good.clone();
    lost.remove(50);
    assert!(found(&lost, &[]).contains("sequence number 45 follows 43"), "{}", found(&lost, &[]));
    let mut other = good;
    other[50].ssrc = 2;
    assert!(found(&other, &[]).contains("SSRC 2 follows 1"));
}

async fn collect(socket: Arc<UdpSocket>, heard: Arc<Log<Heard>>, linear: Arc<AtomicBool>) {
    let mut buffer = [0u8; 2048];
    while let Ok((n, from)) = socket.recv_from(&mut buffer).await {
        let at = Instant::now();
        let data = &buffer[..n];
        assert!(n >= 12 && data[0] == 0x80, "not plain RTP of version 2: {data:02x?}");
        let long = |at: usize| u32::from_be_bytes(data[at..at + 4].try_into().unwrap());
        heard.push(Heard {
            at,
            from,
            marker: data[1] & 0x80 != 0,
            payload_type: data[1] & 0x7f,
            sequence: u16::from_be_bytes([data[2], data[3]]),
            timestamp: long(4),
            ssrc: long(8),
            payload: data[12..].to_vec(),
            linear: linear.load(Ordering::Relaxed),
        });
    }
}

/// Writes the packets of one RTP stream.
#[derive(Debug, Clone)]
pub struct Talker {
    pub ssrc: u32,
    pub sequence: u16,
    pub timestamp: u32,
    pub payload_type: u8,
    /// Sets the marker bit of the next packet.
    pub marker: bool,
}

impl Talker {
    pub fn new(ssrc: u32) -> Talker {
        // both wrap within the first frames
        let (sequence, timestamp) = (u16::MAX - 5, u32::MAX - 1000);
        Talker { ssrc, sequence, timestamp, payload_type: 0, marker: true }
    }

    pub fn packet(&mut self, frame: &Samples) -> Vec<u8> {
        let mut payload = *frame;
        if self.payload_type == 8 {
            g711::mu_to_a(&mut payload);
        }
        let packet = self.write(self.payload_type, &payload);
        self.timestamp = self.timestamp.wrapping_add(160);
        packet
    }

    /// Writes a packet with the current timestamp and does not advance it.
    pub fn write(&mut self, payload_type: u8, payload: &[u8]) -> Vec<u8> {
        let marker = if std::mem::take(&mut self.marker) { 0x80 } else { 0 };
        let mut out = vec![0x80, payload_type | marker];
        out.extend_from_slice(&self.sequence.to_be_bytes());
        out.extend_from_slice(&self.timestamp.to_be_bytes());
        out.extend_from_slice(&self.ssrc.to_be_bytes());
        out.extend_from_slice(payload);
        self.sequence = self.sequence.wrapping_add(1);
        out
    }

    /// The packets of a 100 ms key press (RFC 4733): four during the press, then the end packet
    /// three times.
    pub fn press(&mut self, event: u8) -> Vec<Vec<u8>> {
        self.marker = true;
        let steps = [(160, 0x0a), (320, 0x0a), (480, 0x0a), (640, 0x0a)];
        let ends = [(800u16, 0x8a); 3];
        let packets = steps.into_iter().chain(ends).map(|(duration, flags)| {
            let [high, low] = duration.to_be_bytes();
            self.write(101, &[event, flags, high, low])
        });
        let packets = packets.collect();
        self.timestamp = self.timestamp.wrapping_add(800);
        packets
    }
}
