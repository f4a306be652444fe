//! Panics of the program, at the places of `src/call/fault_point.rs`.

use std::time::Duration;

use tokio::time::timeout;
use tokio_tungstenite::accept_async;
use trunkless::folder::Root;
use trunkless::peer::phone::{Phone, PhoneCommand, PhoneEvent};
use trunkless::record::library;

use crate::rig::{Bystanders, Rig, Site, pass, until};

const LIMIT: Duration = Duration::from_secs(3);

/// Each place panics three times, in a call that is being set up.
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

/// A recording panics while it is written, another one while it is moved to its place. A third
/// one is up all the time.
#[tokio::test]
async fn a_panic_of_a_recording_loses_no_other_recording() {
    let directory = tempfile::tempdir().expect("a folder");
    let path = directory.path().display();
    let config = format!(
        "[recording]\ndirectory = \"{path}\"\nkeep_free_percent = 0\n\
         [pbx.main.recording]\nwhen = \"never\"\n[pbx.fault.recording]\nwhen = \"always\"\n"
    );
    let fault = async |rig: &Rig| {
        let other = rig.fault_call().await;
        for (n, place) in ["write", "close"].into_iter().enumerate() {
            let phone = rig.dial_from(&format!("panic-{place}"), Vec::new()).await;
            let accepted = timeout(LIMIT, rig.fault_ai.accept()).await;
            let (socket, _) = accepted.expect("the bridge dials the AI").expect("a connection");
            let stream = accept_async(socket).await;
            pass(Duration::from_secs(1)).await;
            phone.command(PhoneCommand::Hangup);
            let reports = || rig.log().matches("recording given up after a panic").count();
            assert!(until(LIMIT, || reports() > n).await, "{place}:\n{}", rig.log());
            drop(stream);
        }
        other.0.command(PhoneCommand::Hangup);
        let finished = || rig.log().contains("recording finished");
        assert!(until(LIMIT, finished).await, "{}", rig.log());
        assert_eq!(rig.log().matches("unrecorded_ms").count(), 1, "{}", rig.log());
    };
    Bystanders::new(Site::direct(&config)).calls(4).during(fault).await;
    let root = Root::new(directory.path().to_owned());
    let mut states = Vec::new();
    library::walk(&root, &mut |path, _| {
        let sidecar = library::read(&root, path).expect("a sidecar");
        states.push((sidecar.call.from_number, sidecar.state.label()));
    })
    .expect("the folder is read");
    let has = |from: &str, state: &str| states.contains(&(from.to_owned(), state));
    assert!(has("offender", "complete"), "{states:?}");
    // all of its audio was on the disk already
    assert!(has("panic-close", "truncated"), "{states:?}");
}

/// Each place panics while the SIP endpoint handles an INVITE.
#[tokio::test]
async fn a_panic_of_the_sip_endpoint_ends_one_call() {
    let fault = async |rig: &Rig| {
        for place in ["message", "invite", "link"] {
            for _ in 0..3 {
                let headers = vec![("X-Fault".to_owned(), place.to_owned())];
                let mut phone = rig.dial_with(headers).await;
                // a message that is dropped has no response
                let ended = timeout(LIMIT, ended(&mut phone)).await.is_ok();
                assert_eq!(ended, place != "message", "{place}:\n{}", rig.log());
                phone.command(PhoneCommand::Hangup);
            }
        }
        let reports = rig.log().matches("the SIP endpoint panicked").count();
        assert!(reports >= 9 && !rig.log().contains("shutting down"), "{}", rig.log());
        let (phone, stream) = rig.fault_call().await;
        phone.command(PhoneCommand::Hangup);
        drop(stream);
    };
    Bystanders::new(Site::direct("")).during(fault).await;
}

/// Places a call that panics at `place`, and waits for the end that the caller sees.
async fn panic_at(rig: &Rig, place: &str) {
    let mut phone = rig.dial_with(vec![("X-Fault".to_owned(), place.to_owned())]).await;
    let _stream = match timeout(LIMIT, rig.fault_ai.accept()).await {
        // the call may be over before the handshake
        Ok(accepted) => accept_async(accepted.expect("a connection").0).await.ok(),
        // … or before the AI is dialled
        Err(_) if place == "begin" => None,
        Err(_) => panic!("{place}: the bridge does not dial the AI:\n{}", rig.log()),
    };
    if place == "finish" {
        phone.command(PhoneCommand::Hangup);
    }
    let ended = timeout(LIMIT, ended(&mut phone)).await;
    ended.unwrap_or_else(|_| panic!("{place}: the call does not end:\n{}", rig.log()));
}

async fn ended(phone: &mut Phone) {
    while let Some(event) = phone.events.recv().await {
        if let PhoneEvent::Ended(_) = event {
            return;
        }
    }
}
