//! The client of one VICIdial's APIs. A request is a POST, and no text of a response leaves this
//! file: errors repeat the password. Owns I/O.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use reqwest::StatusCode;
use secrecy::{ExposeSecret, SecretString};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::timeout;
use tracing::{error, warn};

use crate::dns::HttpLookup;
use crate::outbox::webhook::chain;
use crate::telemetry::counter::counters;
use crate::vicidial::answer::{Answer, Fault, Row, Rows};
use crate::vicidial::call_id::CallId;

/// Time limit of a request. VICIdial answers within some milliseconds; with hashed passwords and a
/// busy database it takes longer.
const LIMIT: Duration = Duration::from_secs(4);
const CONNECT_LIMIT: Duration = Duration::from_secs(2);
/// Connections that are kept for later requests.
const IDLE: usize = 8;
/// Orders that VICIdial carries out at the same time; more of them only wait for each other.
const ORDERS: usize = 4;
/// Questions and changes at the same time. With the orders they are fewer than the ten wrong logins
/// that lock the user, in case the password is changed while trunkless runs.
const QUESTIONS: usize = 4;
/// Fields of one lead that are asked for one by one.
const MAX_FIELDS: usize = 2;
/// An order waits for at most this long for others to be carried out.
const PATIENCE: Duration = Duration::from_secs(5);
/// After a request without an answer, others fail at once for this long, so that callers do not
/// wait for one time limit after another.
const SILENCE: Duration = Duration::from_secs(2);
/// After a refused login, nothing is asked for this long. VICIdial locks a user for 15 minutes.
const LOCKED: Duration = Duration::from_secs(16 * 60);
/// The most bytes of a response.
const MAX_RESPONSE: usize = 4 << 20;
/// A status has at most this many characters; VICIdial cuts off the rest without an error.
pub const MAX_STATUS: usize = 6;

counters! {
    total REQUESTS = "vicidial_requests", "Requests to VICIdial's APIs.";
    total FAILED = "vicidial_requests_failed", "Requests to VICIdial's APIs that failed.";
}

/// The settings of one VICIdial.
#[derive(Clone)]
pub struct ApiSettings {
    /// The PBX's name in the configuration, for the log.
    pub pbx: String,
    /// The web server, such as `http://192.0.2.1`.
    pub url: String,
    pub user: String,
    pub password: SecretString,
    pub tls: Option<rustls::ClientConfig>,
}

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ApiError {
    #[error(transparent)]
    Fault(#[from] Fault),
    /// The text has neither URL nor response.
    #[error("VICIdial cannot be reached: {0}")]
    Http(String),
    #[error("the web server answered {0}; check url")]
    Status(StatusCode),
    #[error("VICIdial does not answer")]
    Silent,
    /// No request is made, because ten wrong logins lock the user.
    #[error("not asked, because the login was refused before; correct it and restart trunkless")]
    Stopped,
}

impl ApiError {
    /// True if the same request may succeed later.
    pub fn may_pass(&self) -> bool {
        match self {
            ApiError::Http(_) | ApiError::Status(_) | ApiError::Silent => true,
            ApiError::Fault(fault) => matches!(fault, Fault::Unreadable),
            ApiError::Stopped => false,
        }
    }

    /// True if VICIdial may have carried out the request: only its response was lost.
    pub fn is_ambiguous(&self) -> bool {
        matches!(self, ApiError::Http(_) | ApiError::Status(_) | ApiError::Fault(Fault::Unreadable))
    }
}

impl Turn {
    /// For an order that does not count.
    pub fn none() -> Turn {
        Turn { _permit: None }
    }
}

/// An order for one call.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum CallOrder {
    HangUp,
    /// To an extension of the dialplan.
    Extension(String),
    /// To an in-group, or to the default one of the campaign.
    InGroup(Option<String>),
}

#[derive(Clone)]
pub struct Api {
    client: reqwest::Client,
    settings: Arc<ApiSettings>,
    orders: Arc<Semaphore>,
    questions: Arc<Semaphore>,
    login: Arc<Login>,
}

/// The state of the login. Until one has succeeded, requests are made one after the other, so
/// that a wrong password is tried only once.
#[derive(Default)]
struct Login {
    succeeded: AtomicBool,
    refused: Mutex<Option<Instant>>,
    first: tokio::sync::Mutex<()>,
    /// When a request last had no answer in time.
    silent: Mutex<Option<Instant>>,
}

/// Counts as one of the orders that VICIdial carries out, until it is dropped.
#[must_use]
pub struct Turn {
    _permit: Option<OwnedSemaphorePermit>,
}

/// The names and values of a request.
type Fields<'a> = [(&'a str, &'a str)];

impl Api {
    #[cfg(test)]
    pub(super) fn is_same(&self, other: &Api) -> bool {
        Arc::ptr_eq(&self.settings, &other.settings)
    }

    /// # Errors
    /// Returns an error if the HTTP client cannot be set up.
    pub fn new(settings: ApiSettings) -> Result<Api, reqwest::Error> {
        let client = Api::client(&settings)?;
        let [orders, questions] = [ORDERS, QUESTIONS].map(|count| Arc::new(Semaphore::new(count)));
        let (settings, login) = (Arc::new(settings), Arc::default());
        Ok(Api { client, settings, orders, questions, login })
    }

    /// Returns the same client with connections of its own, for use on another runtime.
    ///
    /// # Errors
    /// Returns an error if the HTTP client cannot be set up.
    pub fn apart(&self) -> Result<Api, reqwest::Error> {
        Ok(Api { client: Api::client(&self.settings)?, ..self.clone() })
    }

    fn client(settings: &ApiSettings) -> Result<reqwest::Client, reqwest::Error> {
        // reqwest comes without a crypto provider; a second call has no effect
        let _ = rustls::crypto::ring::default_provider().install_default();
        let builder = reqwest::Client::builder()
            .no_proxy()
            .timeout(LIMIT)
            .connect_timeout(CONNECT_LIMIT)
            .pool_max_idle_per_host(IDLE)
            .tcp_nodelay(true)
            .dns_resolver(HttpLookup)
            .redirect(reqwest::redirect::Policy::none())
            .user_agent(concat!("trunkless/", env!("CARGO_PKG_VERSION")));
        let builder = match settings.tls.clone() {
            Some(tls) => builder.tls_backend_preconfigured(tls),
            None => builder.tls_certs_only([]),
        };
        builder.build()
    }

    /// True while nothing is asked, because the login was refused.
    pub fn is_stopped(&self) -> bool {
        is_recent(&self.login.refused, LOCKED)
    }

    /// Ends or transfers a call. `user` is any agent that is logged in; the log of the call gets
    /// its name. The order counts as open until the [`Turn`] is dropped.
    ///
    /// # Errors
    /// Returns the [`ApiError`] if VICIdial has not accepted the order.
    pub async fn order(
        &self,
        call: &CallId,
        user: &str,
        order: &CallOrder,
        status: Option<&str>,
    ) -> Result<Turn, ApiError> {
        // a caller is better served by one order too many than by none
        let permit = timeout(PATIENCE, self.orders.clone().acquire_owned()).await;
        let turn = Turn { _permit: permit.ok().and_then(Result::ok) };
        let mut fields = vec![("function", "ra_call_control"), ("agent_user", user)];
        fields.push(("value", call.as_str()));
        match order {
            CallOrder::HangUp => fields.push(("stage", "HANGUP")),
            CallOrder::Extension(number) => {
                fields.extend([("stage", "EXTENSIONTRANSFER"), ("phone_number", number)]);
            }
            CallOrder::InGroup(name) => {
                let name = name.as_deref().unwrap_or("DEFAULTINGROUP");
                fields.extend([("stage", "INGROUPTRANSFER"), ("ingroup_choices", name)]);
            }
        }
        fields.extend(status.map(|status| ("status", status)));
        self.done(AGENT, &fields).await?;
        Ok(turn)
    }

    /// Changes a lead.
    ///
    /// # Errors
    /// Returns the [`ApiError`] if VICIdial has not accepted it.
    pub async fn update_lead(&self, lead: &str, changes: &Fields<'_>) -> Result<(), ApiError> {
        let fields = [&[("function", "update_lead"), ("lead_id", lead)], changes].concat();
        self.done(NON_AGENT, &fields).await
    }

    /// Corrects the status of a call in the log. `group`: its campaign, or its in-group if it came
    /// in.
    ///
    /// # Errors
    /// Returns the [`ApiError`] if VICIdial has not accepted it.
    pub async fn update_log(
        &self,
        call: &CallId,
        group: &str,
        status: &str,
    ) -> Result<(), ApiError> {
        let fields = [
            ("function", "update_log_entry"),
            ("call_id", call.as_str()),
            ("group", group),
            ("status", status),
        ];
        self.done(NON_AGENT, &fields).await
    }

    /// Puts a number on a list of those never to be called: that of a campaign, or
    /// [`SYSTEM_LIST`].
    ///
    /// # Errors
    /// Returns the [`ApiError`] if VICIdial has not accepted it.
    pub async fn do_not_call(&self, number: &str, list: &str) -> Result<(), ApiError> {
        let fields =
            [("function", "add_dnc_phone"), ("phone_number", number), ("campaign_id", list)];
        self.done(NON_AGENT, &fields).await
    }

    /// Makes the remote agents that begin with this user take calls, or none.
    ///
    /// # Errors
    /// Returns the [`ApiError`]; [`Fault::NoFunction`] before July 2024.
    pub async fn set_active(&self, first_user: &str, active: bool) -> Result<(), ApiError> {
        let status = if active { "ACTIVE" } else { "INACTIVE" };
        let fields =
            [("function", "update_remote_agent"), ("agent_user", first_user), ("status", status)];
        self.done(NON_AGENT, &fields).await
    }

    /// Names a remote agent without a change, to find out whether that is allowed.
    ///
    /// # Errors
    /// Returns the [`ApiError`]; [`Fault::Refused`] because nothing is changed.
    pub async fn touch_agent(&self, first_user: &str) -> Result<(), ApiError> {
        let fields = [("function", "update_remote_agent"), ("agent_user", first_user)];
        self.done(NON_AGENT, &fields).await
    }

    /// Returns the agents that are logged in, with the calls that they have.
    ///
    /// # Errors
    /// Returns the [`ApiError`] if there is no answer.
    pub async fn agents(&self) -> Result<Vec<Row>, ApiError> {
        self.rows(&[("function", AGENTS)]).await
    }

    /// Returns what VICIdial knows of a call: its campaign, status and user.
    ///
    /// # Errors
    /// Returns the [`ApiError`]; [`Fault::NoCall`] if VICIdial does not know it.
    pub async fn call(&self, call: &CallId) -> Result<Row, ApiError> {
        let fields = [("function", "callid_info"), ("call_id", call.as_str()), ("detail", "YES")];
        self.rows(&fields).await?.pop().ok_or(ApiError::Fault(Fault::NoCall))
    }

    /// Returns all fields of a lead. Fields whose values cannot be separated are asked for one by
    /// one, if they are among `wanted`.
    ///
    /// # Errors
    /// Returns the [`ApiError`]; [`Fault::NoLead`] if there is no such lead.
    pub async fn lead(&self, lead: &str, wanted: &[&str]) -> Result<Row, ApiError> {
        let fields = [("function", "lead_all_info"), ("lead_id", lead)];
        match self.ask_rows(&fields).await {
            Ok(rows) => {
                if let Some(row) = rows.whole().next() {
                    return Ok(row);
                }
                if rows.broken() == 0 {
                    return Err(ApiError::Fault(Fault::NoLead));
                }
            }
            // before March 2021
            Err(ApiError::Fault(Fault::NoFunction)) if !wanted.is_empty() => {}
            Err(why) => return Err(why),
        }
        let mut row = Row::new();
        for name in wanted.iter().take(MAX_FIELDS) {
            if let Ok(value) = self.lead_field(lead, name).await {
                row.insert((*name).to_owned(), value);
            }
        }
        if row.len() < wanted.len() {
            let (asked, wanted) = (row.len(), wanted.len());
            warn!(
                lead,
                "VICIdial cannot give the fields of the lead at once: {asked} of {wanted} are known"
            );
        }
        Ok(row)
    }

    /// Returns one field of a lead.
    ///
    /// # Errors
    /// Returns the [`ApiError`] if there is no answer.
    pub async fn lead_field(&self, lead: &str, name: &str) -> Result<String, ApiError> {
        let fields = [("function", "lead_field_info"), ("lead_id", lead), ("field_name", name)];
        let text = self.post(NON_AGENT, &fields).await?;
        Answer::of_value(&text).map_err(|fault| self.failed(fault))
    }

    /// Returns the status of in-groups now.
    ///
    /// # Errors
    /// Returns the [`ApiError`] if there is no answer.
    pub async fn in_group(&self, name: &str) -> Result<Row, ApiError> {
        let fields = [("function", "in_group_status"), ("in_groups", name)];
        self.rows(&fields).await?.pop().ok_or(ApiError::Fault(Fault::NoInGroup))
    }

    /// Returns the version of VICIdial's API.
    ///
    /// # Errors
    /// Returns the [`ApiError`] if there is no answer.
    pub async fn version(&self) -> Result<String, ApiError> {
        let text = self.post(NON_AGENT, &[("function", "version")]).await?;
        let number = text.strip_prefix("VERSION: ").and_then(|rest| rest.split('|').next());
        number.map(|number| number.trim().to_owned()).ok_or_else(|| self.fault_of(&text))
    }

    async fn done(&self, path: &str, fields: &Fields<'_>) -> Result<(), ApiError> {
        let text = self.post(path, fields).await?;
        if path == NON_AGENT && text.trim().is_empty() {
            // only the agent API answers so to a function that it does not have
            return Err(self.failed(Fault::Unreadable));
        }
        match Answer::of_order(&text) {
            Answer::Done | Answer::Nothing | Answer::Rows(_) => Ok(()),
            Answer::Failed(fault) => Err(self.failed(fault)),
        }
    }

    async fn rows(&self, fields: &Fields<'_>) -> Result<Vec<Row>, ApiError> {
        Ok(self.ask_rows(fields).await?.whole().collect())
    }

    async fn ask_rows(&self, fields: &Fields<'_>) -> Result<Rows, ApiError> {
        let fields = [fields, &[("header", "YES"), ("stage", "pipe")]].concat();
        let text = self.post(NON_AGENT, &fields).await?;
        match Answer::of_question(&text) {
            Answer::Rows(rows) => Ok(rows),
            Answer::Done | Answer::Nothing => Ok(Rows::default()),
            Answer::Failed(fault) => Err(self.failed(fault)),
        }
    }

    fn fault_of(&self, text: &str) -> ApiError {
        match Answer::of_order(text) {
            Answer::Failed(fault) => self.failed(fault),
            _ => ApiError::Fault(Fault::Unreadable),
        }
    }

    fn failed(&self, fault: Fault) -> ApiError {
        FAILED.add(1);
        if fault == Fault::Login {
            self.refuse_login();
        }
        ApiError::Fault(fault)
    }

    fn refuse_login(&self) {
        let mut refused = self.login.refused.lock().unwrap_or_else(PoisonError::into_inner);
        if refused.replace(Instant::now()).is_none() {
            error!(
                pbx = self.settings.pbx,
                user = self.settings.user,
                "VICIdial refuses the login of the API user: nothing is asked for 16 minutes, \
                 because ten wrong logins lock the user; correct [pbx.NAME.vicidial] and restart \
                 trunkless"
            );
        }
    }

    /// Sends a request and returns the text of the response.
    async fn post(&self, path: &str, fields: &Fields<'_>) -> Result<String, ApiError> {
        // orders have their own limit, and one list of agents is asked for at a time
        let is_limited = path != AGENT && fields.first() != Some(&("function", AGENTS));
        // these fail only once the semaphore is closed, which it never is
        let _turn = if is_limited { self.questions.acquire().await.ok() } else { None };
        let is_known = || self.login.succeeded.load(Ordering::Relaxed) && !self.was_refused();
        let first = if is_known() { None } else { Some(self.login.first.lock().await) };
        if self.is_stopped() {
            return Err(ApiError::Stopped);
        }
        if is_recent(&self.login.silent, SILENCE) {
            return Err(ApiError::Silent);
        }
        REQUESTS.add(1);
        let text = self.send(path, fields).await.inspect_err(|_| FAILED.add(1))?;
        if first.is_some() {
            self.note_login(&text);
        }
        Ok(text)
    }

    /// True once a login was refused, until one has succeeded after that.
    fn was_refused(&self) -> bool {
        self.login.refused.lock().unwrap_or_else(PoisonError::into_inner).is_some()
    }

    /// Takes the response to a request that was made before any login had succeeded.
    fn note_login(&self, text: &str) {
        match Answer::of_order(text) {
            Answer::Failed(Fault::Login) => self.refuse_login(),
            Answer::Failed(Fault::Unreadable) if !text.contains('|') => {}
            _ => {
                self.login.succeeded.store(true, Ordering::Relaxed);
                *self.login.refused.lock().unwrap_or_else(PoisonError::into_inner) = None;
            }
        }
    }

    async fn send(&self, path: &str, fields: &Fields<'_>) -> Result<String, ApiError> {
        let settings = &self.settings;
        let login = [
            ("source", "trunkless"),
            ("user", settings.user.as_str()),
            ("pass", settings.password.expose_secret()),
        ];
        let url = format!("{}/{path}", settings.url.trim_end_matches('/'));
        let form = [&login, fields].concat();
        let unreachable = |error: reqwest::Error| {
            if error.is_timeout() {
                let mut silent = self.login.silent.lock().unwrap_or_else(PoisonError::into_inner);
                *silent = Some(Instant::now());
            }
            ApiError::Http(chain(&error.without_url()))
        };
        let mut answer = self.client.post(url).form(&form).send().await.map_err(unreachable)?;
        if !answer.status().is_success() {
            return Err(ApiError::Status(answer.status()));
        }
        let mut text = Vec::new();
        while let Some(part) = answer.chunk().await.map_err(unreachable)? {
            text.extend_from_slice(&part);
            if text.len() > MAX_RESPONSE {
                return Err(ApiError::Fault(Fault::Unreadable));
            }
        }
        Ok(String::from_utf8_lossy(&text).into_owned())
    }
}

/// True if the time was noted, and is younger than this.
fn is_recent(noted: &Mutex<Option<Instant>>, age: Duration) -> bool {
    let noted = noted.lock().unwrap_or_else(PoisonError::into_inner);
    noted.is_some_and(|at| at.elapsed() < age)
}

/// The list of numbers that no campaign calls.
pub const SYSTEM_LIST: &str = "SYSTEM_INTERNAL";
const AGENTS: &str = "logged_in_agents";
const AGENT: &str = "agc/api.php";
const NON_AGENT: &str = "vicidial/non_agent_api.php";
