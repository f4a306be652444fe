//! Faults of the process: its log is not read or cannot be written, or it gets signals.

use std::net::{IpAddr, SocketAddr, UdpSocket};

use rustix::process::Signal;
use trunkless::peer::phone::PhoneCommand;

use crate::rig::{Bystanders, Rig, Site};

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
    let fault = async |rig: &Rig| signals.iter().for_each(|signal| rig.signal(*signal));
    Bystanders::new(Site::direct("")).during(fault).await;
}
