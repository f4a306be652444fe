//! A fake VICIdial: its two APIs as they answer in reality, with their oddities. The tests do with
//! the calls what a dialler does.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, Instant};

use wiremock::matchers::any;
use wiremock::{Mock, MockServer, Request, Respond, ResponseTemplate};

use crate::log::pass;

pub const USER: &str = "apiuser";
pub const PASSWORD: &str = "canary-7Tq";
/// The in-groups that there are.
const IN_GROUPS: [&str; 3] = ["SALESLINE", "SUPPORT", "DEFAULTINGROUP"];
/// The user is locked after this many wrong logins.
const MAX_WRONG: u32 = 10;
const FIELDS: [(&str, &str); 6] = [
    ("status", "XFER"),
    ("user", "7001"),
    ("vendor_lead_code", "VND-1"),
    ("first_name", "Maria"),
    ("city", "Tampa"),
    ("comments", "first lead"),
];

/// A request without its login.
pub type Asked = HashMap<String, String>;

/// A call as VICIdial's tables show it.
#[derive(Debug, Clone, Default)]
pub struct Entry {
    /// `QUEUE` until VICIdial notices that an agent has it.
    pub status: String,
    /// The campaign, or the in-group.
    pub group: String,
    /// VICIdial still has the customer.
    pub up: bool,
    /// The agent in whose log it is.
    pub user: String,
}

#[derive(Default)]
pub struct World {
    /// The agents that are logged in: their users, and the calls that they have.
    pub agents: Vec<(String, String)>,
    pub calls: HashMap<String, Entry>,
    /// The status of each lead.
    pub leads: HashMap<String, String>,
    /// Every request, with the time at which it arrived.
    pub asked: Vec<(Instant, Asked)>,
    /// The text of the next responses to orders, in place of what is true.
    pub refusals: Vec<&'static str>,
    /// Wrong logins so far.
    pub wrong: u32,
    /// A field of the lead that has a separator in it.
    pub broken_lead: bool,
    /// The status of the remote agents.
    pub remote_agent: Option<String>,
    /// Functions that the API user may not use.
    pub forbidden: Vec<&'static str>,
    /// Functions that this version does not have.
    pub missing: Vec<&'static str>,
    /// The web server answers 500.
    pub down: bool,
    /// Orders that are carried out, and whose response is lost.
    pub lost: u32,
    /// The time that the response to a function takes.
    pub slow: HashMap<&'static str, Duration>,
}

pub struct Vicidial {
    pub server: MockServer,
    pub directory: tempfile::TempDir,
    world: Arc<Mutex<World>>,
}

struct Answers(Arc<Mutex<World>>);

impl Respond for Answers {
    fn respond(&self, request: &Request) -> ResponseTemplate {
        let form = url_decoded(&request.body);
        let mut world = self.0.lock().unwrap();
        if world.down {
            return ResponseTemplate::new(500);
        }
        let good = form.get("pass").is_some_and(|pass| pass == PASSWORD);
        let text = if good && world.wrong < MAX_WRONG {
            world.answer(request.url.path(), &form)
        } else {
            world.wrong += 1;
            // the real one repeats password and query
            let pass = form.get("pass").map(String::as_str).unwrap_or_default();
            let why = if world.wrong > MAX_WRONG { "LOCK" } else { "BAD" };
            format!("ERROR: Invalid Username/Password: |{USER}|{pass}|0|1|{why}|0|api|SELECT")
        };
        if form["function"] == "ra_call_control" && world.lost > 0 {
            world.lost -= 1;
            world.asked.push((Instant::now(), form));
            return ResponseTemplate::new(502);
        }
        let slow = world.slow.get(&*form["function"]).copied().unwrap_or_default();
        world.asked.push((Instant::now(), form));
        // always 200
        ResponseTemplate::new(200).set_body_string(text).set_delay(slow)
    }
}

impl World {
    /// The dialler gives a customer to an agent.
    pub fn begin(&mut self, user: &str, call: &str) {
        match self.agents.iter_mut().find(|(known, _)| known == user) {
            Some(agent) => agent.1 = call.to_owned(),
            None => self.agents.push((user.to_owned(), call.to_owned())),
        }
        let group = if call.starts_with('Y') { "SUPPORT" } else { "AITEST" };
        let (status, user) = ("QUEUE".to_owned(), "VDAD".to_owned());
        let entry = Entry { status, group: group.to_owned(), up: true, user };
        self.calls.insert(call.to_owned(), entry);
    }

    /// The customer is gone, or elsewhere: VICIdial leaves the call with this status.
    pub fn end(&mut self, call: &str, status: &str) {
        self.agents.iter_mut().filter(|agent| agent.1 == call).for_each(|agent| agent.1.clear());
        let entry = self.calls.get_mut(call).expect("a call");
        (entry.up, entry.status) = (false, status.to_owned());
    }

    pub fn status(&self, call: &str) -> &str {
        &self.calls[call].status
    }

    fn answer(&mut self, path: &str, form: &Asked) -> String {
        let value = |name: &str| form.get(name).map(String::as_str).unwrap_or_default();
        let function = value("function");
        if self.missing.contains(&function) {
            return match path {
                "/agc/api.php" => String::new(),
                _ => format!("ERROR: {function} NO FUNCTION SPECIFIED"),
            };
        }
        if self.forbidden.contains(&function) {
            // the real one names the user
            return format!(
                "ERROR: auth USER DOES NOT HAVE PERMISSION TO USE THIS FUNCTION - |{USER}|"
            );
        }
        match (path, function) {
            ("/agc/api.php", "ra_call_control") => self.control_call(form),
            ("/vicidial/non_agent_api.php", "version") => {
                "VERSION: 2.14-202|BUILD: 250829-1155|DATE: x|".to_owned()
            }
            ("/vicidial/non_agent_api.php", "add_dnc_phone") => match value("phone_number") {
                "" => format!("ERROR: add_dnc_phone YOU MUST USE ALL REQUIRED FIELDS - {USER}|||"),
                number => format!("SUCCESS: add_dnc_phone DNC NUMBER HAS BEEN ADDED - {number}"),
            },
            ("/vicidial/non_agent_api.php", "logged_in_agents") => self.list_agents(),
            ("/vicidial/non_agent_api.php", "update_remote_agent") => self.update_agent(form),
            ("/vicidial/non_agent_api.php", "in_group_status") => format!(
                "ingroups|total_calls|calls_waiting|agents_logged_in\n{}|1|0|{}\n",
                value("in_groups"),
                if IN_GROUPS.contains(&value("in_groups")) { 2 } else { 0 }
            ),
            ("/vicidial/non_agent_api.php", _) => self.answer_about_call(form),
            _ => String::new(),
        }
    }

    /// Ends or transfers a call: its tables say so at once, whenever Asterisk does it.
    fn control_call(&mut self, form: &Asked) -> String {
        if let Some(text) = self.refusals.pop() {
            return text.to_owned();
        }
        let (user, call, stage) = (&form["agent_user"], &form["value"], &*form["stage"]);
        if !self.agents.iter().any(|(known, _)| known == user) {
            return format!("ERROR: agent_user is not logged in - {user}");
        }
        if !self.calls.get(call).is_some_and(|entry| entry.up) {
            return format!("ERROR: no active call found - {call}");
        }
        let target = match stage {
            "HANGUP" => "HANGUP",
            "EXTENSIONTRANSFER" => &form["phone_number"],
            "INGROUPTRANSFER" if IN_GROUPS.contains(&&*form["ingroup_choices"]) => "",
            _ => return format!("ERROR: ingroup is not valid - {}", form["ingroup_choices"]),
        };
        // more characters are cut without an error
        let status: String = form.get("status").map_or("RAXFER", |s| s).chars().take(6).collect();
        self.end(call, &status);
        self.leads.insert(lead_of(call), status);
        self.calls.get_mut(call).unwrap().user.clone_from(user);
        let done = if stage == "HANGUP" { "hungup" } else { "transfer" };
        format!("SUCCESS: ra_call_control {done} - {user}|{call}|{target}")
    }

    fn list_agents(&self) -> String {
        if self.agents.is_empty() {
            return format!("ERROR: logged_in_agents NO LOGGED IN AGENTS: {USER}|");
        }
        let names = "user|campaign_id|session_id|status|lead_id|callerid";
        let row = |(user, call): &(String, String)| {
            let lead = lead_of(call);
            let status = if call.is_empty() { "READY" } else { "INCALL" };
            format!("\n{user}|AITEST|8001|{status}|{lead}|{call}")
        };
        format!("{names}{}\n", self.agents.iter().map(row).collect::<String>())
    }

    fn update_agent(&mut self, form: &Asked) -> String {
        let user = &form["agent_user"];
        let status = form.get("status").cloned().unwrap_or_default();
        if user != "7001" {
            return format!(
                "ERROR: update_remote_agent REMOTE AGENT DOES NOT EXIST: {USER}|{user}"
            );
        }
        if status.is_empty() {
            return format!("ERROR: update_remote_agent NO UPDATES DEFINED: |{USER}|{user}");
        }
        if self.remote_agent.replace(status.clone()).as_ref() == Some(&status) {
            // a second line says that nothing was changed
            return format!(
                "NOTICE: update_remote_agent REMOTE AGENT IS ALREADY {status}: |{USER}|{user}\n\
                 ERROR: update_remote_agent NO UPDATES DEFINED: |{USER}|{user}"
            );
        }
        format!("SUCCESS: update_remote_agent REMOTE AGENT HAS BEEN UPDATED - {USER}|{user}|")
    }

    fn answer_about_call(&mut self, form: &Asked) -> String {
        let value = |name: &str| form.get(name).map(String::as_str).unwrap_or_default();
        let call = value("call_id");
        match (value("function"), self.calls.get_mut(call)) {
            ("callid_info", None) => format!("ERROR: callid_info CALL NOT FOUND - {USER}||"),
            ("callid_info", Some(Entry { status, group, user, .. })) => format!(
                // not the order of the documentation
                "call_id|custtime|call_date|phone|call_type|campaign_id|list_id|status|user\n\
                 {call}|0|2026-11-23 14:56:16|7275551234|X|{group}|101|{status}|{user}\n"
            ),
            ("update_log_entry", Some(entry)) if entry.group == value("group") => {
                let was = std::mem::replace(&mut entry.status, value("status").to_owned());
                match was == entry.status {
                    true => format!("ERROR: update_log_entry NO RECORDS UPDATED - {USER}|{call}"),
                    false => {
                        format!("SUCCESS: update_log_entry RECORD HAS BEEN UPDATED - {USER}|{was}")
                    }
                }
            }
            ("update_log_entry", _) => {
                format!("ERROR: update_log_entry NO RECORDS FOUND - {USER}||||")
            }
            _ => self.answer_about_lead(form),
        }
    }

    fn answer_about_lead(&mut self, form: &Asked) -> String {
        let value = |name: &str| form.get(name).map(String::as_str).unwrap_or_default();
        let (function, lead) = (value("function"), value("lead_id"));
        if lead == "0" {
            return format!("ERROR: {function} LEAD NOT FOUND: {USER}|0|");
        }
        let first = |text| if self.broken_lead { "A|B" } else { text };
        let of = |(name, text): &(&str, &'static str)| match *name {
            "first_name" => first(text),
            _ => text,
        };
        match function {
            "update_lead" if value("callback") == "Y" => {
                format!("NOTICE: update_lead SCHEDULED CALLBACK ADDED - {lead}|{USER}")
            }
            "update_lead" => {
                if let Some(status) = form.get("status") {
                    self.leads.insert(lead.to_owned(), status.clone());
                }
                format!("SUCCESS: update_lead LEAD HAS BEEN UPDATED - {USER}|{lead}|1|||")
            }
            "lead_all_info" => {
                let names: Vec<&str> = FIELDS.iter().map(|(name, _)| *name).collect();
                let values: Vec<&str> = FIELDS.iter().map(of).collect();
                format!("{}|lead_id\n{}|{lead}\n", names.join("|"), values.join("|"))
            }
            "lead_field_info" if value("field_name") == "status" => {
                self.leads.get(lead).cloned().unwrap_or_else(|| "XFER".to_owned())
            }
            "lead_field_info" => {
                let field = FIELDS.iter().find(|(name, _)| *name == value("field_name"));
                field.map_or("ERROR: lead_field_info NO FIELD", of).to_owned()
            }
            _ => String::new(),
        }
    }
}

/// The lead of a call, without leading zeros.
fn lead_of(call: &str) -> String {
    call.get(10..).unwrap_or_default().trim_start_matches('0').to_owned()
}

impl Vicidial {
    pub async fn start() -> Vicidial {
        let (server, world) = (MockServer::start().await, Arc::default());
        let answers = Answers(Arc::clone(&world));
        Mock::given(any()).respond_with(answers).mount(&server).await;
        Vicidial { server, world, directory: tempfile::tempdir().unwrap() }
    }

    pub fn world(&self) -> MutexGuard<'_, World> {
        self.world.lock().unwrap()
    }

    /// The tables of the bridge's configuration.
    pub fn config(&self, more: &str) -> String {
        format!(
            "[pbx.main.vicidial]\nurl = \"{}\"\nuser = \"{USER}\"\npassword = \"{PASSWORD}\"\n\
             directory = {:?}\n\
             fields = {{ first_name = \"name\", city = \"city\" }}\n{more}\n\
             [pbx.main.transfer]\ntargets = {{ sales = \"ingroup:SALESLINE\", desk = \"1001\", \
             gone = \"ingroup:NOPE\", usual = \"ingroup:\" }}\n",
            self.server.uri(),
            self.directory.path()
        )
    }

    /// The folder of the calls that are kept.
    pub fn kept(&self) -> std::path::PathBuf {
        self.directory.path().join("main").join("calls")
    }

    /// The number of calls that are kept.
    pub fn kept_calls(&self) -> usize {
        let entries = std::fs::read_dir(self.kept()).into_iter().flatten().flatten();
        entries.filter(|entry| entry.file_name().to_string_lossy().ends_with(".json")).count()
    }

    /// Waits for a request of this function and returns it.
    pub async fn asked(&self, function: &str, nth: usize) -> Asked {
        let mut found = None;
        until(|| {
            let world = self.world();
            let mut of = world.asked.iter().filter(|(_, form)| form["function"] == function);
            found = of.nth(nth).map(|(_, form)| form.clone());
            found.is_some()
        })
        .await;
        found.expect("it was asked")
    }

    pub fn count(&self, function: &str) -> usize {
        let world = self.world();
        world.asked.iter().filter(|(_, form)| form["function"] == function).count()
    }
}

/// Waits until something has happened.
pub async fn until(mut good: impl FnMut() -> bool) {
    let wait = async {
        while !good() {
            pass(Duration::from_millis(10)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(20), wait).await.expect("it happens");
}

/// Reads a form.
fn url_decoded(body: &[u8]) -> Asked {
    let text = String::from_utf8_lossy(body);
    let url = format!("http://form/?{text}");
    let url = reqwest::Url::parse(&url).expect("a form");
    url.query_pairs().map(|(name, value)| (name.into_owned(), value.into_owned())).collect()
}
