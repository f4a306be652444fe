//! Shows VICIdial whether the remote agents can take calls. It does not find out itself: agents
//! without a registered phone stay ready, and their customers reach the phone's voicemail. Owns the
//! clock.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use tokio::sync::Mutex;
use tokio::time::{Instant, sleep, timeout};
use tracing::{info, warn};

use crate::vicidial::answer::Fault;
use crate::vicidial::api::{Api, ApiError};

/// Interval between two looks.
const LOOK: Duration = Duration::from_secs(1);
/// Shorter outages are met call by call. Agents that become inactive are gone for a minute.
const OUTAGE: Duration = Duration::from_secs(30);
/// The pause before a request that failed is made again.
const AGAIN: Duration = Duration::from_secs(10);
/// Calls that VICIdial has dialled still arrive for this long after the agents are inactive.
const STILL_ARRIVING: Duration = Duration::from_secs(5);
/// Time for the last request before the exit.
const LAST: Duration = Duration::from_secs(6);

/// The remote agents of one PBX.
#[derive(Clone)]
pub struct RemoteAgents {
    pub pbx: String,
    pub api: Api,
    /// The first user of the remote agents.
    pub user: String,
    /// True once the program stops, or if this VICIdial has no such function.
    pub stopping: Arc<AtomicBool>,
    /// Held while a request is made, so that an old one does not come after the last one.
    pub turn: Arc<Mutex<()>>,
    /// Why the last request failed.
    pub failed: Arc<Mutex<Option<ApiError>>>,
}

impl RemoteAgents {
    pub fn new(pbx: String, api: Api, user: String) -> RemoteAgents {
        let (stopping, turn, failed) = (Arc::default(), Arc::default(), Arc::default());
        RemoteAgents { pbx, api, user, stopping, turn, failed }
    }

    /// Follows the health of the PBX's calls until the program stops. `is_good`: calls can be taken
    /// now.
    pub async fn follow(self, is_good: impl Fn() -> bool) {
        let (mut shown, mut since) = (None, (Instant::now(), false));
        while !self.stopping.load(Ordering::Relaxed) {
            let good = is_good();
            if good != since.1 {
                since = (Instant::now(), good);
            }
            let due = good || since.0.elapsed() >= OUTAGE;
            if due && shown != Some(good) {
                let result = {
                    let _turn = self.turn.lock().await;
                    match self.stopping.load(Ordering::Relaxed) {
                        true => return,
                        false => self.show(good).await,
                    }
                };
                // without an answer, VICIdial may show one or the other
                shown = result.is_ok().then_some(good);
                match result {
                    Ok(()) => {}
                    Err(ApiError::Fault(Fault::NoFunction)) => {
                        self.stopping.store(true, Ordering::Relaxed);
                        return;
                    }
                    Err(_) => sleep(AGAIN).await,
                }
            }
            sleep(LOOK).await;
        }
    }

    /// Makes the agents inactive before the exit, and waits for the calls that are on their way.
    pub async fn stop(&self) {
        if self.stopping.swap(true, Ordering::Relaxed) {
            return;
        }
        let last = async {
            let _turn = self.turn.lock().await;
            self.show(false).await
        };
        if matches!(timeout(LAST, last).await, Ok(Ok(()))) {
            sleep(STILL_ARRIVING).await;
        }
    }

    async fn show(&self, active: bool) -> Result<(), ApiError> {
        let (pbx, user) = (&self.pbx, &self.user);
        let result = self.api.set_active(user, active).await;
        match &result {
            Ok(()) if active => info!(pbx, user, "VICIdial's remote agents are active"),
            Ok(()) => warn!(pbx, user, "VICIdial's remote agents are inactive: they get no calls"),
            Err(ApiError::Fault(Fault::NoFunction)) => warn!(
                pbx,
                "this VICIdial is older than July 2024 and cannot be shown that calls cannot be \
                 taken; set the Unavailable Dialplan Forward of the phone"
            ),
            Err(why) => {
                // one line for each new reason
                let mut last = self.failed.lock().await;
                if last.as_ref() != Some(why) {
                    warn!(pbx, user, active, %why, "VICIdial's remote agents are unchanged");
                }
                *last = Some(why.clone());
                return result;
            }
        }
        *self.failed.lock().await = None;
        result
    }
}
