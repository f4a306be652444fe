//! The agents that are logged in at one VICIdial, with the calls that they have. Asked for when a
//! call arrives, and every two seconds while there are calls. Owns I/O.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use tokio::time::sleep;

use crate::vicidial::answer::Row;
use crate::vicidial::api::{Api, ApiError};
use crate::vicidial::call_id::CallId;

/// An answer is good for this long.
pub const FRESH: Duration = Duration::from_secs(2);
/// An answer that arrived after the question of another call is good for that call, too.
const SHARED: Duration = Duration::from_millis(50);
/// VICIdial's limit for the lines of a remote agent.
const MAX_LINES: u64 = 255;

/// The agents, shared by all calls of a PBX.
#[derive(Clone)]
pub struct Agents {
    api: Api,
    /// The first user of the remote agents, if it is configured.
    first: Option<String>,
    known: Arc<Mutex<Known>>,
    /// Held while a question is open, so that calls which arrive at once share the answer.
    asking: Arc<tokio::sync::Mutex<()>>,
}

#[derive(Default)]
struct Known {
    rows: Vec<Row>,
    /// When the last question was asked, whether it was answered or not.
    asked: Option<Instant>,
    /// Why it was not.
    failed: Option<ApiError>,
}

impl Agents {
    pub fn new(api: Api, first: Option<String>) -> Agents {
        Agents { api, first, known: Arc::default(), asking: Arc::default() }
    }

    /// Returns the same agents, for use on another runtime.
    pub fn apart(&self, api: Api) -> Agents {
        Agents { api, ..self.clone() }
    }

    /// Returns the agent that has this call, from an answer that is at most `at_most` old.
    ///
    /// # Errors
    /// Returns the [`ApiError`] if there is no answer.
    pub async fn of(&self, call: &CallId, at_most: Duration) -> Result<Option<Row>, ApiError> {
        self.refresh(at_most).await?;
        let known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        let has = |row: &&Row| row.get("callerid").is_some_and(|id| id == call.as_str());
        Ok(known.rows.iter().find(has).cloned())
    }

    /// Returns the name of an agent under which an order can be given: the one who has the call,
    /// or had it before (`earlier`), or else any, because VICIdial only asks for one that is logged
    /// in. `None` if no agent is. `at_most`: the age up to which an answer is good enough.
    ///
    /// # Errors
    /// Returns the [`ApiError`] if there is no answer.
    pub async fn name_for(
        &self,
        call: &CallId,
        earlier: Option<&str>,
        at_most: Duration,
    ) -> Result<Option<String>, ApiError> {
        self.refresh(at_most).await?;
        let known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        let is = |row: &&Row, name: &str, wanted: &str| row.get(name).is_some_and(|v| v == wanted);
        let own = known.rows.iter().find(|row| is(row, "callerid", call.as_str()));
        let same = known.rows.iter().find(|row| earlier.is_some_and(|e| is(row, "user", e)));
        // rather a remote agent than a human: the call appears in that user's log
        let remote =
            || known.rows.iter().find(|row| row.get("user").is_some_and(|u| self.is_ours(u)));
        let row = own.or(same).or_else(remote).or_else(|| known.rows.first());
        Ok(row.and_then(|row| row.get("user")).cloned())
    }

    /// True if an agent has another call of the same lead, which was dialled again.
    ///
    /// # Errors
    /// Returns the [`ApiError`] if there is no answer.
    pub async fn has_newer(&self, call: &CallId) -> Result<bool, ApiError> {
        self.refresh(Duration::ZERO).await?;
        let known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        let other = |row: &Row| {
            let id = row.get("callerid").and_then(|id| CallId::parse(id));
            id.is_some_and(|id| id.lead_id() == call.lead_id() && id != *call)
        };
        Ok(known.rows.iter().any(other))
    }

    /// The remote agents' users are numbers in a row.
    fn is_ours(&self, user: &str) -> bool {
        let number = |user: &str| user.parse::<u64>().ok();
        let (first, user) = (self.first.as_deref().and_then(number), number(user));
        let distance = first.zip(user).and_then(|(first, user)| user.checked_sub(first));
        distance.is_some_and(|distance| distance < MAX_LINES)
    }

    /// Keeps the answer fresh until `done` is true.
    pub async fn poll(&self, done: impl Fn() -> bool) {
        while !done() {
            // errors are reported by those who need the answer
            let _ = self.refresh(FRESH).await;
            sleep(FRESH).await;
        }
    }

    /// Asks again, unless the last answer is younger than `at_most`.
    async fn refresh(&self, at_most: Duration) -> Result<(), ApiError> {
        let begin = Instant::now();
        let _turn = self.asking.lock().await;
        {
            let known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
            match &known.failed {
                // those who have waited for this answer do not each wait for another one
                Some(why) if known.asked.is_some_and(|asked| asked + SHARED > begin) => {
                    return Err(why.clone());
                }
                None if known.asked.is_some_and(|asked| asked + at_most.max(SHARED) > begin) => {
                    return Ok(());
                }
                _ => {}
            }
        }
        let begin = Instant::now();
        let answer = self.api.agents().await;
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        // an error counts from its end
        known.asked = Some(if answer.is_ok() { begin } else { Instant::now() });
        known.failed = answer.as_ref().err().cloned();
        known.rows = answer?;
        Ok(())
    }
}
