//! Faults of the process: its log is not read or cannot be written, or it gets signals.

use std::io::Write as _;
use std::time::Duration;

use rustix::process::Signal;
use trunkless::peer::phone::PhoneCommand;

use crate::rig::{Bystanders, Rig, Site, pass, until};

const FRAME: Duration = Duration::from_millis(20);
/// The WebSocket library logs each frame that it handles, in several lines.
const TRACE: &str = "[log]\nlevel = \"info,tungstenite=trace\"";

/// Sets up a call whose AI sends this many pings, and ends it.
async fn log_pings(rig: &Rig, count: usize) {
    let (phone, stream) = rig.fault_call().await;
    let sent = rig.attack(move || {
        stream.set_nonblocking(false).expect("a socket option");
        (&stream).write_all(&[0x89, 0].repeat(count)).expect("written");
        stream
    });
    let stream = sent.await;
    pass(Duration::from_millis(500)).await;
    phone.command(PhoneCommand::Hangup);
    drop(stream);
}

/// A log driver that stands still: the pipe is full.
#[tokio::test]
async fn the_log_is_not_read() {
    let fault = async |rig: &Rig| {
        rig.read_log(false);
        log_pings(rig, 600).await;
        // a new call is answered
        let (phone, stream) = rig.fault_call().await;
        phone.command(PhoneCommand::Hangup);
        drop(stream);
        let before = rig.log().len();
        rig.read_log(true);
        let was_full = || rig.log().len() > before + 65_536;
        assert!(until(Duration::from_secs(5), was_full).await, "the pipe was not full");
    };
    // the first time, the queue of the log takes its memory
    Bystanders::new(Site::direct(TRACE)).repeated().during(fault).await;
}

/// The log is a file on a full disk.
#[tokio::test]
async fn the_disk_of_the_log_is_full() {
    const LIMIT: usize = 100_000;
    let fault = async |rig: &Rig| {
        log_pings(rig, 600).await;
        let (phone, stream) = rig.fault_call().await;
        phone.command(PhoneCommand::Hangup);
        drop(stream);
        assert!(rig.log().len() > LIMIT - 1_000, "the limit was not reached: {}", rig.log().len());
    };
    let mut site = Site::direct(TRACE);
    site.log_limit = Some(LIMIT as u64);
    Bystanders::new(site).repeated().during(fault).await;
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

#[tokio::test]
async fn the_program_stands_still_for_twelve_seconds() {
    standstills(1, Duration::from_secs(12), FRAME).await;
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
