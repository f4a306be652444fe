//! Checks at a running VICIdial that its API user may do what trunkless needs, and that its remote
//! agents fit. Every request is one that cannot change anything there.

use crate::vicidial::VicidialSettings;
use crate::vicidial::answer::{Fault, Row};
use crate::vicidial::api::{Api, ApiError, CallOrder, SYSTEM_LIST};
use crate::vicidial::call_id::CallId;

/// The functions that the API user has to be allowed, and what each needs besides.
pub const FUNCTIONS: [(&str, &str); 11] = [
    ("version", ""),
    ("logged_in_agents", "User Level 7 and View Reports 1"),
    ("callid_info", "User Level 7 and View Reports 1"),
    ("lead_all_info", "User Level 7, Modify Leads 1 and View Reports 1"),
    ("lead_field_info", "User Level 7 and Modify Leads 1"),
    ("update_lead", "User Level 8 and Modify Leads 1"),
    ("update_log_entry", "User Level 8 and Modify Leads 1"),
    ("ra_call_control", "Agent API Access 1"),
    ("add_dnc_phone", "User Level 8 and Modify Lists 1"),
    ("update_remote_agent", "User Level 8 and Modify Remote Agents 1"),
    ("in_group_status", "User Level 7 and View Reports 1"),
];

/// A call that no VICIdial has.
const NO_CALL: &str = "V0000000000000000000";
/// A lead that no VICIdial has.
const NO_LEAD: &str = "0";

/// The result of one check.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Finding {
    pub what: String,
    pub verdict: Verdict,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    Good,
    /// Something to look at.
    Warning(String),
    /// The fault, and its remedy.
    Fault(String),
}

impl Finding {
    pub fn new(what: impl Into<String>, verdict: Verdict) -> Finding {
        Finding { what: what.into(), verdict }
    }
}

/// The parts of the configuration that VICIdial has to match.
#[derive(Debug, Clone)]
pub struct Expected {
    /// The most calls at the same time.
    pub max_calls: usize,
    /// The extension that trunkless registers as; `None` in ARI mode.
    pub phone: Option<String>,
}

/// Checks one VICIdial, in an order in which each fault explains those that follow.
pub async fn check(settings: &VicidialSettings, expected: &Expected) -> Vec<Finding> {
    let api = match Api::new(settings.api.clone()) {
        Ok(api) => api,
        Err(why) => return vec![Finding::new("HTTP client", Verdict::Fault(why.to_string()))],
    };
    let mut findings = Vec::new();
    match api.version().await {
        Ok(version) => {
            findings.push(Finding::new(format!("API version {version}"), Verdict::Good));
        }
        Err(why) => {
            let fatal = matches!(
                why,
                ApiError::Http(_) | ApiError::Status(_) | ApiError::Fault(Fault::Login)
            );
            findings.push(Finding::new("version", Verdict::Fault(why.to_string())));
            if fatal {
                return findings;
            }
        }
    }
    findings.extend(functions(&api, settings).await);
    // its fault has been reported
    if let Ok(agents) = api.agents().await {
        findings.extend(lines(settings, expected, &agents));
    }
    findings.extend(in_group(&api, settings).await);
    findings
}

async fn functions(api: &Api, settings: &VicidialSettings) -> Vec<Finding> {
    // it is an id by its form
    let Some(call) = CallId::parse(NO_CALL) else { return Vec::new() };
    let mut findings = Vec::new();
    let mut note = |what: &str, result: Result<(), ApiError>| {
        let verdict = match result.err().filter(is_of_the_user) {
            None => Verdict::Good,
            Some(why) => Verdict::Fault(with_remedy(what, &why)),
        };
        findings.push(Finding::new(what, verdict));
    };
    note("logged_in_agents", api.agents().await.map(drop));
    note("callid_info", api.call(&call).await.map(drop));
    note("lead_all_info", api.lead(NO_LEAD, &[]).await.map(drop));
    note("lead_field_info", api.lead_field(NO_LEAD, "status").await.map(drop));
    note("update_lead", api.update_lead(NO_LEAD, &[]).await);
    note("update_log_entry", api.update_log(&call, "TRUNKLESS", "NONE").await);
    note("ra_call_control", api.order(&call, "none", &CallOrder::HangUp, None).await.map(drop));
    note("add_dnc_phone", api.do_not_call("", SYSTEM_LIST).await);
    if let Some(user) = &settings.remote_agent {
        note("update_remote_agent", api.touch_agent(user).await);
    }
    findings
}

fn with_remedy(function: &str, why: &ApiError) -> String {
    let needs = FUNCTIONS.iter().find(|(name, _)| *name == function).map_or("", |(_, n)| n);
    match why {
        ApiError::Fault(Fault::Permission) if !needs.is_empty() => format!("{why}: {needs}"),
        why => why.to_string(),
    }
}

/// True for the faults that a request for nothing shows. The others mean that it was understood.
fn is_of_the_user(error: &ApiError) -> bool {
    match error {
        ApiError::Fault(fault) => {
            matches!(fault, Fault::Login | Fault::Unreadable) || fault.is_for_an_admin()
        }
        _ => true,
    }
}

/// The lines of the remote agent, which are users with consecutive numbers.
fn lines(settings: &VicidialSettings, expected: &Expected, agents: &[Row]) -> Vec<Finding> {
    let Some(first) = &settings.remote_agent else {
        let why = "remote_agent is not set: VICIdial keeps sending calls while trunkless is down; \
                   set it to the User Start of the remote agent";
        return vec![Finding::new("remote agents", Verdict::Warning(why.to_owned()))];
    };
    let find =
        |user: &str| agents.iter().find(|row| row.get("user").is_some_and(|known| known == user));
    let Some(row) = find(first) else {
        let why = format!(
            "no agent {first} is logged in; set the remote agent ACTIVE (trunkless does when it \
             runs), and check that AST_VDremote_agents.pl runs on the dialler"
        );
        return vec![Finding::new("remote agents", Verdict::Fault(why))];
    };
    let number = first.parse::<u64>().unwrap_or_default();
    // humans may have the next numbers, and other extensions
    let is_line = |n: u64| {
        let other = find(&(number + n).to_string());
        other.is_some_and(|other| other.get("session_id") == row.get("session_id"))
    };
    let count = (1..).take_while(|n| is_line(*n)).count() + 1;
    let max = expected.max_calls;
    let verdict = match count > max {
        true => Verdict::Fault(format!(
            "Number of Lines is {count}, and at most {max} calls are taken at the same time; \
             lower the lines, or raise [calls] max"
        )),
        false => Verdict::Good,
    };
    let mut findings = vec![Finding::new(format!("remote agents: {count} lines"), verdict)];
    let extension = row.get("session_id").map(String::as_str).unwrap_or_default();
    findings.push(external_extension(expected.phone.as_deref(), extension));
    findings
}

/// The extensions of the snippets in `dialplan/vicidial`.
const SNIPPETS: [&str; 3] = ["8010", "8011", "8012"];

/// VICIdial sends the calls there. Customers whom trunkless does not take may reach the voicemail.
fn external_extension(phone: Option<&str>, extension: &str) -> Finding {
    let what = format!("External Extension {extension}");
    let why = match phone {
        Some(phone) if phone == extension => {
            "this is the phone itself: while trunkless does not run, customers go to the phone's \
             Unavailable Dialplan Forward; check that it is a human route or 8300, and not its \
             voicemail"
        }
        _ if SNIPPETS.contains(&extension) => return Finding::new(what, Verdict::Good),
        Some(_) => "this is neither the phone nor an extension of the snippets: do calls arrive?",
        None => "this is not the extension of the snippet, 8010: do calls arrive?",
    };
    Finding::new(what, Verdict::Warning(why.to_owned()))
}

async fn in_group(api: &Api, settings: &VicidialSettings) -> Option<Finding> {
    let name = settings.desk.in_group.as_deref()?;
    let what = format!("in-group {name}");
    Some(match api.in_group(name).await {
        Err(why) => {
            let why = format!("not checked: {}", with_remedy("in_group_status", &why));
            Finding::new(what, Verdict::Warning(why))
        }
        Ok(row) if row.get("agents_logged_in").is_some_and(|count| count == "0") => {
            let why = "no agent is logged in to it, or there is no such in-group: customers whom \
                       the AI does not take would wait there, or be dropped";
            Finding::new(what, Verdict::Warning(why.to_owned()))
        }
        Ok(_) => Finding::new(what, Verdict::Good),
    })
}
