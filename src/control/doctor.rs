//! `POST /v1/doctor`: runs the checks of `trunkless doctor` in this process, for the page. One run
//! at a time. Owns tasks.

use std::pin::Pin;
use std::sync::{Arc, OnceLock};

use axum::Extension;
use axum::extract::State;
use axum::http::StatusCode;
use axum::response::Response;
use serde_json::{Value, json};
use tokio::sync::Mutex;
use tracing::info;

use crate::command::Sender;
use crate::control::Control;
use crate::control::calls::json;
use crate::control::connections::{Lasting, Purpose};
use crate::control::guard::Granted;
use crate::control::problem::Problem;
use crate::control::tokens::Scope;

/// Runs all checks, and returns their findings, as `trunkless doctor --json` prints them.
pub type Checkup = Box<dyn Fn() -> Pin<Box<dyn Future<Output = Value> + Send>> + Send + Sync>;

/// The checks, once the program knows its configuration file. Clones share them.
#[derive(Clone, Default)]
pub struct Doctor(Arc<Inner>);

#[derive(Default)]
struct Inner {
    checkup: OnceLock<Checkup>,
    /// Held while the checks run.
    running: Arc<Mutex<()>>,
}

impl Doctor {
    /// Sets the checks. Later ones are ignored.
    pub fn set(&self, checkup: Checkup) {
        let _ = self.0.checkup.set(checkup);
    }
}

pub async fn doctor(
    State(control): State<Control>,
    Extension(granted): Extension<Granted>,
    Extension(lasting): Extension<Lasting>,
) -> Result<Response, Problem> {
    granted.require(Scope::Control)?;
    let Some(checkup) = control.status.doctor.0.checkup.get() else {
        let why = "trunkless runs without a configuration file";
        return Err(Problem::new(StatusCode::NOT_FOUND, "not_found", why));
    };
    let Ok(running) = control.status.doctor.0.running.clone().try_lock_owned() else {
        let why = "the checks are running already; wait for their end";
        return Err(Problem::new(StatusCode::CONFLICT, "busy", why));
    };
    // never refused: there is one at a time
    let _ = lasting.keep(Purpose::Doctor, granted.name());
    let by = Sender::Http(granted.name().to_owned());
    let checks = checkup();
    // they are carried to their end even if the client goes away: what they created on the PBX is
    // removed last
    let checks = tokio::spawn(async move {
        let _running = running;
        checks.await
    });
    let report = checks.await.unwrap_or_default();
    let count = |name: &str| report[name].as_u64().unwrap_or_default();
    info!(%by, faults = count("faults"), warnings = count("warnings"), "doctor ended");
    Ok(json(StatusCode::OK, &json!({ "findings": report["findings"] })))
}
