//! Panics of the program, at the places of `src/call/fault_point.rs`.

use std::time::Duration;

use tokio::time::timeout;
use tokio_tungstenite::accept_async;
use trunkless::peer::phone::{PhoneCommand, PhoneEvent};

use crate::rig::{Bystanders, Rig, Site, until};

const LIMIT: Duration = Duration::from_secs(3);

/// Each place panics in a call that is being set up, several times, so that every worker has it.
#[tokio::test]
async fn a_panic_ends_one_call_and_no_worker() {
    let fault = async |rig: &Rig| {
        let mut panics = 0;
        for place in ["begin", "handle", "watch", "finish"] {
            for _ in 0..3 {
                panic_at(rig, place).await;
                panics += 1;
            }
        }
        let reports = || rig.log().matches("a worker thread panicked").count();
        assert!(until(LIMIT, || reports() >= panics).await, "{} of {panics}", reports());
        let (phone, stream) = rig.fault_call().await;
        phone.command(PhoneCommand::Hangup);
        drop(stream);
    };
    Bystanders::new(Site::direct("")).during(fault).await;
}

/// Places a call that panics at `place`, and waits for the end that the caller sees.
async fn panic_at(rig: &Rig, place: &str) {
    let mut phone = rig.dial_with(vec![("X-Fault".to_owned(), place.to_owned())]).await;
    let accepted = timeout(LIMIT, rig.fault_ai.accept()).await;
    let (socket, _) = accepted.expect("the bridge dials the AI").expect("a connection");
    // the call may be over before the handshake
    let _stream = accept_async(socket).await;
    if place == "finish" {
        phone.command(PhoneCommand::Hangup);
    }
    let ended = async {
        while let Some(event) = phone.events.recv().await {
            if let PhoneEvent::Ended(_) = event {
                return;
            }
        }
    };
    let ended = timeout(LIMIT, ended).await;
    ended.unwrap_or_else(|_| panic!("{place}: the call does not end:\n{}", rig.log()));
}
