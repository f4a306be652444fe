//! Faults of the process: its log is not read or cannot be written, or it gets signals.

use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::time::Duration;

use rustix::process::Signal;
use trunkless::peer::phone::PhoneCommand;

use crate::rig::{Bystanders, Rig, Site, pass};

const FRAME: Duration = Duration::from_millis(20);
const TRACE: &str = "[log]\nlevel = \"trace\"";

/// Sends requests that are logged, more than a pipe holds.
fn log_a_lot(bridge: SocketAddr, from: IpAddr) {
    let socket = UdpSocket::bind((from, 0)).expect("a socket");
    for n in 0..600 {
        let request = format!(
            "OPTIONS sip:ai@{bridge} SIP/2.0\r\nVia: SIP/2.0/UDP {from};branch=z9hG4bK{n}\r\n\
             From: <sip:a@{from}>;tag={n}\r\nTo: <sip:ai@{bridge}>\r\nCall-ID: {n}\r\n\
             CSeq: 1 OPTIONS\r\nMax-Forwards: 70\r\nContent-Length: 0\r\n\r\n"
        );
        let _ = socket.send_to(request.as_bytes(), bridge);
    }
}

/// A log driver that stands still: the pipe is full, and lines are dropped.
#[tokio::test]
async fn the_log_is_not_read() {
    let fault = async |rig: &Rig| {
        rig.read_log(false);
        let (bridge, from) = (rig.bridge(), rig.offender());
        rig.attack(move || log_a_lot(bridge, from)).await;
        // a new call is answered
        let (phone, stream) = rig.fault_call().await;
        phone.command(PhoneCommand::Hangup);
        drop(stream);
        rig.read_log(true);
    };
    Bystanders::new(Site::direct(TRACE)).during(fault).await;
}

/// The log is a file on a full disk.
#[tokio::test]
async fn the_disk_of_the_log_is_full() {
    let fault = async |rig: &Rig| {
        let (bridge, from) = (rig.bridge(), rig.offender());
        rig.attack(move || log_a_lot(bridge, from)).await;
        let (phone, stream) = rig.fault_call().await;
        phone.command(PhoneCommand::Hangup);
        drop(stream);
        assert!(rig.log().len() <= 300_000, "the limit has no effect");
    };
    let mut site = Site::direct(TRACE);
    site.log_limit = Some(300_000);
    Bystanders::new(site).during(fault).await;
}

#[tokio::test]
async fn signals_that_end_other_programs() {
    let signals = [
        Signal::HUP,
        Signal::USR1,
        Signal::USR2,
        Signal::ALARM,
        Signal::IO,
        Signal::VTALARM,
        Signal::PROF,
        Signal::POWER,
        Signal::XCPU,
        Signal::XFSZ,
        Signal::PIPE,
    ];
    let fault = async |rig: &Rig| {
        signals.iter().for_each(|signal| rig.signal(*signal));
        for number in ["STKFLT", "TRAP", "34", "37", "50", "64"] {
            let kill = ["-s", number, &rig.id().to_string()];
            let killed = std::process::Command::new("kill").args(kill).status();
            assert!(killed.expect("kill runs").success(), "{number}");
        }
    };
    Bystanders::new(Site::direct("")).during(fault).await;
}

/// The host stops the program for two seconds, as a virtual machine that is moved does. Audio of
/// that time may be lost, which is counted, but then the calls are in real time again.
#[tokio::test]
async fn the_program_stands_still_for_two_seconds() {
    let log = standstills(1, Duration::from_secs(2), FRAME).await;
    let counts = log.split("ai_left_out=").skip(1);
    let digits = |rest: &str| rest.chars().take_while(char::is_ascii_digit).collect::<String>();
    let counted: u32 = counts.map(|rest| digits(rest).parse::<u32>().expect("a number")).sum();
    assert!(counted > 20 * 50, "{counted} frames of the AIs were left out");
}

/// A container whose share of the CPU is used up stands still again and again.
#[tokio::test]
async fn the_program_stands_still_again_and_again() {
    standstills(4, Duration::from_millis(950), Duration::from_millis(300)).await;
}

/// Stops the program `count` times for `time`, with a `pause` after each. The calls must be in real
/// time again 3 s later. Returns the log.
async fn standstills(count: u32, time: Duration, pause: Duration) -> String {
    let fault = async |rig: &Rig| {
        for _ in 0..count {
            rig.signal(Signal::STOP);
            pass(time).await;
            rig.signal(Signal::CONT);
            pass(pause).await;
        }
    };
    let calls = Bystanders::new(Site::direct("")).recovering_within(Duration::from_secs(3));
    let report = calls.verdict(fault).await.unwrap_or_else(|faults| panic!("{faults}"));
    println!("{report}");
    report.log
}
