//! The state of the bridge and of what it depends on: `GET /v1/status`, and what the token of a
//! request may do: `GET /v1/session`.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use axum::Extension;
use axum::extract::State;
use axum::http::StatusCode;
use axum::response::Response;
use serde_json::{Value, json};
use tokio::sync::watch;

use crate::control::Control;
use crate::control::calls::json;
use crate::control::doctor::Doctor;
use crate::control::guard::Granted;
use crate::control::problem::Problem;
use crate::control::tokens::Scope;
use crate::record::recorder::Recorder;
use crate::stream::breaker::Breaker;
use crate::telemetry::{PbxStatus, PbxStatuses};

/// The result of one check.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Finding {
    /// The part that was checked.
    pub step: String,
    pub state: FindingState,
    /// The result in words.
    pub what: String,
    /// The cure; empty if nothing is wrong.
    pub remedy: String,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FindingState {
    Ok,
    Failed,
}

impl FindingState {
    fn word(self) -> &'static str {
        match self {
            FindingState::Ok => "ok",
            FindingState::Failed => "failed",
        }
    }
}

impl Finding {
    fn json(&self) -> Value {
        json!({
            "step": self.step,
            "state": self.state.word(),
            "what": self.what,
            "remedy": self.remedy,
        })
    }
}

/// The parts whose state is shown.
#[derive(Clone)]
pub struct Status {
    pub pbxs: PbxStatuses,
    /// `None` while nothing is to be recorded.
    pub recorder: watch::Receiver<Option<Recorder>>,
    /// True once the program is shutting down.
    pub stopping: Arc<AtomicBool>,
    /// The checks of `trunkless doctor`.
    pub doctor: Doctor,
}

impl Default for Status {
    fn default() -> Status {
        Status {
            pbxs: PbxStatuses::default(),
            recorder: watch::channel(None).1,
            stopping: Arc::default(),
            doctor: Doctor::default(),
        }
    }
}

impl Status {
    fn findings(&self, ais: &[(String, Arc<Breaker>)]) -> Vec<Finding> {
        let pbxs: Vec<Finding> = self.pbxs.all().iter().map(|pbx| of_pbx(pbx)).collect();
        let ais = ais.iter().map(|(name, breaker)| of_ai(name, breaker.is_open()));
        let recorder = self.recorder.borrow().clone();
        let recording = recorder.iter().map(|recorder| of_recorder(recorder.trouble()));
        pbxs.into_iter().chain(ais).chain(recording).collect()
    }

    pub fn json(&self, ais: &[(String, Arc<Breaker>)]) -> Value {
        json!({
            "stopping": self.stopping.load(Ordering::Relaxed),
            "findings": self.findings(ais).iter().map(Finding::json).collect::<Vec<_>>(),
        })
    }
}

fn of_pbx(pbx: &PbxStatus) -> Finding {
    let (ready, what) = pbx.get();
    let remedy = match (ready, pbx.mode) {
        (true, _) => "",
        (false, "ari") => "check that Asterisk runs and that [pbx.NAME.ari] is right; see the log",
        (false, _) => "check that the PBX runs and that [pbx.NAME.sip] is right; see the log",
    };
    Finding {
        step: format!("PBX {} ({})", pbx.name, pbx.mode.to_uppercase()),
        state: if ready { FindingState::Ok } else { FindingState::Failed },
        what,
        remedy: remedy.replace("NAME", &pbx.name),
    }
}

fn of_ai(name: &str, down: bool) -> Finding {
    let (state, what, remedy) = match down {
        false => (FindingState::Ok, "takes calls", ""),
        true => (
            FindingState::Failed,
            "gets no calls: it could not be reached, and is tried again every 5 s",
            "check that the AI runs and that its URL is right; the log has the cause",
        ),
    };
    Finding { step: name.to_owned(), state, what: what.to_owned(), remedy: remedy.to_owned() }
}

fn of_recorder(trouble: Option<String>) -> Finding {
    let remedy = match &trouble {
        Some(_) => "check the disk, and the owner and free space of [recording] directory",
        None => "",
    };
    Finding {
        step: "Recording".to_owned(),
        state: if trouble.is_some() { FindingState::Failed } else { FindingState::Ok },
        what: trouble.unwrap_or_else(|| "ready".to_owned()),
        remedy: remedy.to_owned(),
    }
}

pub async fn status(
    State(control): State<Control>,
    Extension(granted): Extension<Granted>,
) -> Result<Response, Problem> {
    granted.require(Scope::Read)?;
    Ok(json(StatusCode::OK, &control.status.json(&control.access.borrow().ais)))
}

/// Shows the token and its scopes.
pub async fn session(
    State(control): State<Control>,
    Extension(granted): Extension<Granted>,
) -> Result<Response, Problem> {
    granted.require(Scope::Read)?;
    let access = control.access.borrow();
    let value = json!({
        "token": granted.name(),
        "scopes": granted.scopes(),
        "listen_in": access.listen_in,
        "recordings": access.recordings.is_some(),
        "version": env!("CARGO_PKG_VERSION"),
    });
    Ok(json(StatusCode::OK, &value))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_wrong_comes_with_a_remedy() {
        let ais = [("AI".to_owned(), Arc::<Breaker>::default())];
        let status = Status::default();
        let pbx = status.pbxs.add("main", "ari");
        let shown = status.json(&ais);
        let of = |n: usize| (&shown["findings"][n]["step"], &shown["findings"][n]["state"]);
        assert_eq!(of(0), (&json!("PBX main (ARI)"), &json!("failed")));
        assert!(
            shown["findings"][0]["remedy"].as_str().is_some_and(|r| r.contains("[pbx.main.ari]"))
        );
        assert_eq!(of(1), (&json!("AI"), &json!("ok")));
        pbx.set(true, "ready");
        assert_eq!(status.json(&ais)["findings"][0]["remedy"], "");
        assert_eq!(of_recorder(Some("the disk is full".to_owned())).what, "the disk is full");
        assert_eq!(of_ai("AI", true).state, FindingState::Failed);
    }
}
