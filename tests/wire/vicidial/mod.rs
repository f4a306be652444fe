//! Calls of a VICIdial: what the AI learns of them, how they end, and what is kept of them.

mod check;
mod commands;
mod ending;
mod fake;
mod health;
mod keeping;
mod knowing;
mod load;

use std::sync::atomic::{AtomicU32, Ordering};

use serde_json::{Value, json};

use crate::bridge::Rig;
use crate::call::Call;
use crate::stream::Stream;
use fake::Vicidial;

const CALL: &str = "V1231456150000402027";
const LEAD: &str = "402027";

/// A bridge whose PBX belongs to this VICIdial, which has given the call [`CALL`] to agent 7001.
async fn rig(vicidial: &Vicidial, more: &str) -> Rig {
    vicidial.world().begin("7001", CALL);
    Rig::new(&vicidial.config(more)).await
}

/// Dials as VICIdial does: the caller's name is its id of the call.
async fn dial(rig: &Rig, id: &str) -> Call {
    let mut call = rig.pbx.call(&rig.bridge).await;
    call.replace = Some(("Alice".to_owned(), id.to_owned()));
    call.invite().await;
    call
}

async fn talk(rig: &Rig) -> (Call, Stream) {
    let mut call = dial(rig, CALL).await;
    let stream = rig.ai.stream().await;
    call.answered().await;
    (call, stream)
}

/// Gives an order and returns the last reply.
async fn order(stream: &Stream, event: &str, body: Value) -> Value {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    let id = NEXT.fetch_add(1, Ordering::Relaxed).to_string();
    let message = json!({"event": event, "streamSid": stream.sid, "id": id, event: body});
    stream.order(&message).await;
    stream.replied(&id).await.pop().expect("a reply")
}
