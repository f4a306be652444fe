//! The kernel's floor: the four system calls for a frame in each direction, without a program
//! around them. No bridge can cost less as long as every packet and every message takes one system
//! call. Owns the sockets and the clock.
//!
//! One thread has both ends, so that no thread has to be woken. Only the bridge's side is measured.

use std::io::{self, Read as _, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::time::Duration;

use rustix::time::{ClockId, clock_gettime};
use serde::Serialize;

const LOCAL: ([u8; 4], u16) = ([127, 0, 0, 1], 0);
/// Bytes of an RTP packet, of a message to the AI, and of one from it.
const PACKET: usize = 172;
const TO_AI: usize = 400;
const FROM_AI: usize = 300;
/// Frames per call and direction in a second.
const FRAMES: f64 = 50.0;
/// Frame pairs measured, altogether …
const PAIRS: usize = 60_000;
/// … but with few calls, only this many per call.
const PAIRS_PER_CALL: usize = 1000;
/// Fewest system calls between two looks at the clock, which costs a system call itself.
const BATCH: usize = 64;

/// The CPU time of each system call, in microseconds.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Floor {
    pub receive_rtp_us: f64,
    pub send_message_us: f64,
    pub receive_message_us: f64,
    pub send_rtp_us: f64,
    /// All four for 50 frames per second and direction, as a percentage of one core.
    pub cpu_percent_per_call: f64,
}

/// The sockets of one call.
struct Call {
    bridge: UdpSocket,
    pbx: UdpSocket,
    bridge_address: SocketAddr,
    pbx_address: SocketAddr,
    /// The bridge's connection to the AI.
    stream: TcpStream,
    ai: TcpStream,
}

impl Call {
    fn new(listener: &TcpListener) -> io::Result<Call> {
        let bridge = UdpSocket::bind(SocketAddr::from(LOCAL))?;
        let pbx = UdpSocket::bind(SocketAddr::from(LOCAL))?;
        let stream = TcpStream::connect(listener.local_addr()?)?;
        let (ai, _) = listener.accept()?;
        stream.set_nodelay(true)?;
        ai.set_nodelay(true)?;
        let (bridge_address, pbx_address) = (bridge.local_addr()?, pbx.local_addr()?);
        Ok(Call { bridge, pbx, bridge_address, pbx_address, stream, ai })
    }
}

/// Returns the CPU time of this thread.
fn cpu_time() -> Duration {
    let now = clock_gettime(ClockId::ThreadCPUTime);
    Duration::new(now.tv_sec.unsigned_abs(), now.tv_nsec as u32)
}

/// Measures with the sockets of this many calls.
///
/// # Errors
/// Returns any I/O error from the sockets, such as too many open files.
pub fn measure(calls: usize) -> io::Result<Floor> {
    measure_pairs(calls, PAIRS.min(calls.max(1) * PAIRS_PER_CALL))
}

fn measure_pairs(calls: usize, pairs: usize) -> io::Result<Floor> {
    let listener = TcpListener::bind(SocketAddr::from(LOCAL))?;
    let calls = (0..calls.max(1)).map(|_| Call::new(&listener)).collect::<io::Result<Vec<_>>>()?;
    // with few calls, each has several frames at a time
    let depth = BATCH.div_ceil(calls.len());
    let rounds = (pairs / (calls.len() * depth)).max(3);
    let mut spent: [Vec<Duration>; 4] = Default::default();
    let mut buffer = [0u8; 2048];
    let each = |what: &mut dyn FnMut(&Call) -> io::Result<()>| -> io::Result<Duration> {
        let begin = cpu_time();
        for _ in 0..depth {
            calls.iter().try_for_each(&mut *what)?;
        }
        Ok(cpu_time() - begin)
    };
    for _ in 0..rounds {
        each(&mut |c| c.pbx.send_to(&[1; PACKET], c.bridge_address).map(drop))?;
        each(&mut |c| (&c.ai).write_all(&[1; FROM_AI]))?;
        spent[0].push(each(&mut |c| c.bridge.recv_from(&mut buffer).map(drop))?);
        spent[1].push(each(&mut |c| (&c.stream).write_all(&[1; TO_AI]))?);
        spent[2].push(each(&mut |c| (&c.stream).read_exact(&mut buffer[..FROM_AI]))?);
        spent[3].push(each(&mut |c| c.bridge.send_to(&[1; PACKET], c.pbx_address).map(drop))?);
        each(&mut |c| c.pbx.recv_from(&mut buffer).map(drop))?;
        each(&mut |c| (&c.ai).read_exact(&mut buffer[..TO_AI]))?;
    }
    let batch = (calls.len() * depth) as f64;
    Ok(floor(spent.map(|times| median(times).as_secs_f64() * 1e6 / batch)))
}

/// Returns the median, which an interruption of a few rounds does not change.
fn median(mut times: Vec<Duration>) -> Duration {
    times.sort_unstable();
    times.get(times.len() / 2).copied().unwrap_or_default()
}

fn floor([receive_rtp_us, send_message_us, receive_message_us, send_rtp_us]: [f64; 4]) -> Floor {
    let sum_us = receive_rtp_us + send_message_us + receive_message_us + send_rtp_us;
    let cpu_percent_per_call = sum_us * FRAMES / 1e6 * 100.0;
    Floor { receive_rtp_us, send_message_us, receive_message_us, send_rtp_us, cpu_percent_per_call }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_floor_is_the_sum_of_four_system_calls() {
        let floor = floor([1.0, 4.0, 1.0, 2.0]);
        assert!((floor.cpu_percent_per_call - 0.04).abs() < 1e-9, "{floor:?}");
        let times = [3, 1, 900, 2, 2].map(Duration::from_millis);
        assert_eq!(median(times.to_vec()), Duration::from_millis(2));
    }

    #[test]
    fn every_system_call_takes_time() {
        let floor = measure_pairs(2, 500).unwrap();
        let times = [floor.receive_rtp_us, floor.send_message_us, floor.receive_message_us];
        assert!(times.iter().all(|us| *us > 0.0) && floor.send_rtp_us > 0.0, "{floor:?}");
    }
}
