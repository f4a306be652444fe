//! Faults of one AI program.

use std::time::{Duration, Instant};

use tokio::time::timeout;
use trunkless::peer::phone::{Phone, PhoneEvent};

use crate::rig::{Bystanders, Rig, Site, until};

async fn ended(phone: &mut Phone) {
    while let Some(event) = phone.events.recv().await {
        if let PhoneEvent::Ended(_) = event {
            return;
        }
    }
    panic!("the phone has stopped");
}

/// The program of one AI hangs: its kernel still accepts and acknowledges what we send.
#[tokio::test]
async fn an_ai_hangs() {
    let fault = async |rig: &Rig| {
        let (mut phone, stream) = rig.fault_call().await;
        let begin = Instant::now();
        let over = timeout(Duration::from_secs(25), ended(&mut phone)).await;
        assert!(over.is_ok(), "the call with the hanging AI does not end");
        let took = begin.elapsed();
        println!("given up after {took:.1?}");
        assert!(took < Duration::from_secs(21), "{took:?}");
        let reported = || rig.log().contains("ai_timeout");
        assert!(until(Duration::from_secs(2), reported).await, "{}", rig.log());
        drop(stream);
    };
    Bystanders::new(Site::direct("")).during(fault).await;
}
