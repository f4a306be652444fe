//! The kernel's cost of a frame in each direction, without a bridge around it: one thread has both
//! ends, so that no thread has to be woken. A bridge cannot cost less as long as every packet and
//! every message takes one system call.

use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::time::{Duration, Instant};

const LOCAL: ([u8; 4], u16) = ([127, 0, 0, 1], 0);
/// Bytes of an RTP packet, of a message to the AI, and of one from it.
const PACKET: usize = 172;
const TO_AI: usize = 400;
const FROM_AI: usize = 300;

/// The sockets of one call.
struct Call {
    bridge: UdpSocket,
    pbx: UdpSocket,
    /// Address of `pbx`.
    address: SocketAddr,
    /// The bridge's connection to the AI.
    stream: TcpStream,
    ai: TcpStream,
}

fn call(listener: &TcpListener) -> std::io::Result<Call> {
    let bridge = UdpSocket::bind(SocketAddr::from(LOCAL))?;
    let pbx = UdpSocket::bind(SocketAddr::from(LOCAL))?;
    let stream = TcpStream::connect(listener.local_addr()?)?;
    let (ai, _) = listener.accept()?;
    stream.set_nodelay(true)?;
    ai.set_nodelay(true)?;
    Ok(Call { address: pbx.local_addr()?, bridge, pbx, stream, ai })
}

/// Prints the time each step takes with this many calls.
pub fn print(calls: usize) -> std::io::Result<()> {
    let listener = TcpListener::bind(SocketAddr::from(LOCAL))?;
    let mut calls = (0..calls).map(|_| call(&listener)).collect::<std::io::Result<Vec<_>>>()?;
    let rounds = (200_000 / calls.len()).max(1);
    let mut spent = [Duration::ZERO; 4];
    let mut buffer = [0u8; 2048];
    for _ in 0..rounds {
        let mut step = |n: usize, what: &mut dyn FnMut(&mut Call) -> std::io::Result<()>| {
            let begin = Instant::now();
            calls.iter_mut().try_for_each(what)?;
            spent[n] += begin.elapsed();
            std::io::Result::Ok(())
        };
        step(0, &mut |c| c.bridge.send_to(&[1; PACKET], c.address).map(|_| ()))?;
        step(1, &mut |c| c.pbx.recv_from(&mut buffer).map(|_| ()))?;
        step(2, &mut |c| c.stream.write_all(&[1; TO_AI]))?;
        step(3, &mut |c| c.ai.read(&mut buffer).map(|_| ()))?;
        // the AI answers, so that TCP acknowledgements travel as in real calls
        for call in &mut calls {
            call.ai.write_all(&[1; FROM_AI])?;
            call.stream.read_exact(&mut buffer[..FROM_AI])?;
        }
    }
    let count = (rounds * calls.len()) as f64;
    let each = spent.map(|time| time.as_secs_f64() * 1e6 / count);
    let sum: f64 = each.iter().sum();
    println!(
        "UDP send {:.2}, receive {:.2}, TCP send {:.2}, receive {:.2} us: {:.3} % of a core/call",
        each[0],
        each[1],
        each[2],
        each[3],
        sum * 50.0 / 10_000.0
    );
    Ok(())
}
