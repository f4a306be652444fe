//! Many calls at the same time, with VICIdial down for a part of it.

use std::time::Duration;

use tokio::time::Instant;

use crate::bridge::Rig;
use crate::call::Call;
use crate::log::pass;
use crate::stream::Stream;
use crate::vicidial::fake::{Vicidial, until};
use crate::vicidial::{dial, order};

/// `CALLS=200 OUTAGE=30` makes it longer.
fn variable(name: &str, default: u64) -> u64 {
    std::env::var(name).ok().and_then(|text| text.parse().ok()).unwrap_or(default)
}

/// Each call ends in the outage or outside it, by the AI or by the customer, with its own status:
/// every status arrives once.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_status_arrives_once() {
    let (count, outage) = (variable("CALLS", 50), Duration::from_secs(variable("OUTAGE", 8)));
    let vicidial = Vicidial::start().await;
    // the callers say nothing for all of the outage
    let rig = Rig::new(&vicidial.config("[calls]\nmedia_timeout = \"0s\"")).await;
    let id = |nth: u64| format!("V123145615{:010}", 500_000 + nth);
    let mut calls: Vec<(u64, Call, Stream)> = Vec::new();
    for nth in 0..count {
        vicidial.world().begin(&format!("{}", 7001 + nth), &id(nth));
        let mut call = dial(&rig, &id(nth)).await;
        let stream = rig.ai.stream().await;
        call.answered().await;
        let status = serde_json::json!({"status": format!("S{nth}")});
        assert_eq!(order(&stream, "disposition", status).await["status"], "done");
        calls.push((nth, call, stream));
    }
    let burners = burn();
    let begin = Instant::now();
    vicidial.world().down = true;
    // in the outage the customers hang up
    let later = calls.split_off(calls.len() / 2);
    for (nth, mut call, _stream) in calls {
        vicidial.world().end(&id(nth), "XFER");
        call.bye().await;
    }
    pass(outage.saturating_sub(begin.elapsed())).await;
    vicidial.world().down = false;
    // and after it the AI does
    for (_, _, stream) in &later {
        stream.close(1000).await;
    }
    for (nth, mut call, _stream) in later {
        until(|| !vicidial.world().calls[&id(nth)].up).await;
        call.bye().await;
    }
    let all = |vicidial: &Vicidial| {
        let world = vicidial.world();
        (0..count).all(|nth| world.status(&id(nth)) == format!("S{nth}"))
    };
    until(|| all(&vicidial)).await;
    until(|| vicidial.kept_calls() == 0).await;
    drop(burners);
    assert!(rig.pbx.none_of("BYE", Duration::ZERO).await, "no call was ended by us");
    let world = vicidial.world();
    for nth in 0..count {
        let (id, status) = (id(nth), format!("S{nth}"));
        let is = |form: &&crate::vicidial::fake::Asked, key: &str, function: &str| {
            form["function"] == function && form.get(key) == Some(&id)
        };
        let forms = || world.asked.iter().map(|(_, form)| form);
        let orders = forms().filter(|form| is(form, "value", "ra_call_control"));
        let repairs = forms().filter(|form| is(form, "call_id", "update_log_entry"));
        let lead = (500_000 + nth).to_string();
        assert_eq!(world.leads[&lead], status);
        let accepted = usize::from(nth >= count / 2);
        assert!(orders.count() >= accepted, "{id}");
        assert_eq!(repairs.count(), 1 - accepted, "{id}");
    }
}

/// Keeps both cores busy until it is dropped.
fn burn() -> Vec<Burner> {
    (0..2).map(|_| Burner::start()).collect()
}

struct Burner(std::sync::Arc<std::sync::atomic::AtomicBool>);

impl Burner {
    fn start() -> Burner {
        let stop = std::sync::Arc::new(std::sync::atomic::AtomicBool::new(false));
        let stopped = stop.clone();
        std::thread::spawn(move || {
            while !stopped.load(std::sync::atomic::Ordering::Relaxed) {
                std::hint::spin_loop();
            }
        });
        Burner(stop)
    }
}

impl Drop for Burner {
    fn drop(&mut self) {
        self.0.store(true, std::sync::atomic::Ordering::Relaxed);
    }
}
