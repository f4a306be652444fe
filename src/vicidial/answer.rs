//! Reads the responses of VICIdial's APIs. They are text with the status 200, whatever happened.
//!
//! ```text
//! SUCCESS: ra_call_control hungup - 7001|V1231456150000402027|HANGUP
//! NOTICE: update_remote_agent REMOTE AGENT IS ALREADY ACTIVE: |bridge|7001
//! ERROR: no active call found - V1231502400000402027
//! user|campaign_id|session_id|status|lead_id|callerid
//! 7001|AITEST|8001|INCALL|402027|V1231456150000402027
//! ```
//!
//! An error may repeat the request with its password, so no text of a response is kept here: only
//! its meaning, and the values of rows.
#![deny(clippy::disallowed_methods, clippy::disallowed_types)]

use std::collections::HashMap;

/// The meaning of a response.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Answer {
    /// It was done, or was so already.
    Done,
    /// Rows of values.
    Rows(Rows),
    /// There is nothing of that kind.
    Nothing,
    Failed(Fault),
}

/// Why a request failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, thiserror::Error)]
pub enum Fault {
    #[error("wrong user or password, or the user is locked for 15 minutes after ten wrong ones")]
    Login,
    #[error(
        "the API user may not do this: add the function to its Allowed API Functions, and check \
         its level and permissions"
    )]
    Permission,
    #[error("the API user lacks Agent API Access 1, or is not active")]
    NoAccess,
    #[error("the API is off: set Agent API Active 1 in Admin > System Settings")]
    ApiOff,
    #[error("VICIdial does not allow this host's address: add it to its IP lists")]
    Address,
    #[error("the function does not exist in this version of VICIdial")]
    NoFunction,
    #[error("no agent of this name is logged in")]
    NotLoggedIn,
    #[error("VICIdial has no such call any more")]
    NoCall,
    #[error("the call has no entry in VICIdial's log")]
    NoLogEntry,
    #[error("no such lead")]
    NoLead,
    #[error("no such in-group, or it is not active")]
    NoInGroup,
    #[error("no such remote agent: `remote_agent` has to be its User Start")]
    NoRemoteAgent,
    #[error("not a number that can be dialled")]
    NoNumber,
    #[error("VICIdial refused it")]
    Refused,
    #[error("not a response of VICIdial")]
    Unreadable,
}

impl Fault {
    /// True for a fault that lasts until an admin of VICIdial corrects it.
    pub fn is_for_an_admin(self) -> bool {
        matches!(
            self,
            Fault::Permission
                | Fault::NoAccess
                | Fault::ApiOff
                | Fault::Address
                | Fault::NoFunction
                | Fault::NoRemoteAgent
        )
    }
}

/// Rows with the names of their columns.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Rows {
    names: Vec<String>,
    rows: Vec<Vec<String>>,
}

/// One row by name.
pub type Row = HashMap<String, String>;

impl Answer {
    /// Reads the response to an order.
    pub fn of_order(text: &str) -> Answer {
        let first = text.lines().map(str::trim).find(|line| !line.is_empty());
        match first {
            None => Answer::Failed(Fault::NoFunction),
            Some(line) if line.starts_with("SUCCESS") => Answer::Done,
            Some(line) if is_refusal(line) => Answer::Failed(Fault::Refused),
            // a second line may have an error: that there was nothing to change
            Some(line) if line.starts_with("NOTICE") => Answer::Done,
            Some(line) if line.starts_with("ERROR") => Answer::failed(line),
            Some(_) => Answer::Failed(Fault::Unreadable),
        }
    }

    /// Reads the response to a question for one value, which may be empty.
    pub fn of_value(text: &str) -> Result<String, Fault> {
        let text = text.trim();
        match Answer::failed(text) {
            Answer::Failed(fault) if text.starts_with("ERROR") => Err(fault),
            _ => Ok(text.to_owned()),
        }
    }

    /// Reads the response to a question with `header=YES`.
    pub fn of_question(text: &str) -> Answer {
        let mut lines = text.lines().map(str::trim).filter(|line| !line.is_empty());
        let Some(first) = lines.next() else { return Answer::Failed(Fault::NoFunction) };
        if first.starts_with("ERROR") || first.starts_with("NOTICE") {
            return Answer::failed(first);
        }
        if !first.contains('|') || first.starts_with("SUCCESS") {
            return Answer::Failed(Fault::Unreadable);
        }
        let split = |line: &str| line.split('|').map(|value| value.trim().to_owned()).collect();
        Answer::Rows(Rows { names: split(first), rows: lines.map(split).collect() })
    }

    /// Reads an error: `ERROR: ` and its reason, and then what was asked, after ` - ` or `: `.
    fn failed(line: &str) -> Answer {
        let reason = line.trim_start_matches("ERROR").trim_start_matches([':', ' ']);
        let reason = reason.split(" - ").next().unwrap_or_default();
        let reason = reason.split(": ").next().unwrap_or_default().to_ascii_uppercase();
        let has = |text: &str| reason.contains(text);
        Answer::Failed(match () {
            () if has("NO LOGGED IN AGENTS") || has("NO RECORDINGS") => return Answer::Nothing,
            // it is so already
            () if has("ALREADY EXISTS") || has("NO RECORDS UPDATED") => return Answer::Done,
            // the password is right, as one of the values says
            () if has("INVALID USERNAME") && line.contains("|GOOD|") => Fault::NoAccess,
            () if has("API NOT ACTIVE") => Fault::ApiOff,
            () if has("IP ADDRESS IS NOT ALLOWED") => Fault::Address,
            () if has("INVALID USERNAME") || has("TOO MANY") || has("LOGIN INCORRECT") => {
                Fault::Login
            }
            () if has("PERMISSION") => Fault::Permission,
            () if has("LEAD NOT FOUND") => Fault::NoLead,
            () if has("NOT LOGGED IN") || has("NO USER FOUND") => Fault::NotLoggedIn,
            () if has("NO ACTIVE CALL") || has("CALL NOT FOUND") => Fault::NoCall,
            () if has("LOG NOT FOUND") || has("NO RECORDS FOUND") => Fault::NoLogEntry,
            () if has("GROUP NOT FOUND") => Fault::NoLogEntry,
            () if has("INGROUP IS NOT VALID") => Fault::NoInGroup,
            () if has("REMOTE AGENT DOES NOT EXIST") => Fault::NoRemoteAgent,
            () if has("PHONE_NUMBER IS NOT VALID") => Fault::NoNumber,
            () if has("NO FUNCTION") || has("FUNCTION DOES NOT EXIST") => Fault::NoFunction,
            () => Fault::Refused,
        })
    }
}

/// True for a notice that only a part was done.
fn is_refusal(line: &str) -> bool {
    let line = line.to_ascii_uppercase();
    line.starts_with("NOTICE") && (line.contains("NOT ADDED") || line.contains("NOT UPDATED"))
}

impl Rows {
    /// The rows with as many values as there are columns. The others have a separator in a value,
    /// so that no value of them can be trusted.
    pub fn whole(&self) -> impl Iterator<Item = Row> + '_ {
        let whole = self.rows.iter().filter(|row| row.len() == self.names.len());
        whole.map(|row| self.names.iter().cloned().zip(row.iter().cloned()).collect())
    }

    /// Number of rows whose values cannot be separated.
    pub fn broken(&self) -> usize {
        self.rows.iter().filter(|row| row.len() != self.names.len()).count()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn orders_are_done_or_failed() {
        for (text, expected) in [
            ("SUCCESS: ra_call_control hungup - 7001|V1231456150000402027|HANGUP", Answer::Done),
            ("SUCCESS: ra_call_control transfer - 7001|V1231504580000402027|", Answer::Done),
            ("NOTICE: update_lead SCHEDULED CALLBACK ADDED - 402027|AITEST|x", Answer::Done),
            (
                "NOTICE: update_remote_agent REMOTE AGENT IS ALREADY ACTIVE: |b|7001\n\
                 ERROR: update_remote_agent NO UPDATES DEFINED: |b|7001",
                Answer::Done,
            ),
            (
                "ERROR: Invalid Username/Password: |b|wrong|0|1|BAD|0|api|SELECT count(*)",
                Answer::Failed(Fault::Login),
            ),
            (
                "ERROR: auth USER DOES NOT HAVE PERMISSION TO USE THIS FUNCTION - V1|b|x|ADMIN",
                Answer::Failed(Fault::Permission),
            ),
            ("ERROR: agent_user is not logged in - 7001", Answer::Failed(Fault::NotLoggedIn)),
            ("ERROR: no active call found - V123", Answer::Failed(Fault::NoCall)),
            ("ERROR: ingroup is not valid - NOPE", Answer::Failed(Fault::NoInGroup)),
            ("ERROR: phone_number is not valid - ", Answer::Failed(Fault::NoNumber)),
            ("ERROR: stage is not valid - BOGUS", Answer::Failed(Fault::Refused)),
            // what was asked does not count
            (
                "ERROR: ra_call_control not valid - V1|PERMISSION|INGROUPTRANSFER",
                Answer::Failed(Fault::Refused),
            ),
            ("ERROR: no user found - 6666", Answer::Failed(Fault::NotLoggedIn)),
            (
                "ERROR: Invalid Username/Password: |b|right|1|0|GOOD|0|api|SELECT",
                Answer::Failed(Fault::NoAccess),
            ),
            ("ERROR: System API NOT ACTIVE", Answer::Failed(Fault::ApiOff)),
            ("ERROR: Your IP Address is not allowed: x", Answer::Failed(Fault::Address)),
            (
                "NOTICE: update_lead SCHEDULED CALLBACK NOT ADDED, CAMPAIGN NOT VALID - 402027|X",
                Answer::Failed(Fault::Refused),
            ),
            ("ERROR: add_dnc_phone DNC NUMBER ALREADY EXISTS - 6666|7275551212", Answer::Done),
            ("ERROR: update_log_entry NO RECORDS UPDATED - 6666|T|M1|SALEX|SALEX|1", Answer::Done),
            (
                "ERROR: update_log_entry NO RECORDS FOUND - 6666||||",
                Answer::Failed(Fault::NoLogEntry),
            ),
            (
                "ERROR: update_remote_agent REMOTE AGENT DOES NOT EXIST: 6666|78789",
                Answer::Failed(Fault::NoRemoteAgent),
            ),
            ("", Answer::Failed(Fault::NoFunction)),
            ("<html>502 Bad Gateway</html>", Answer::Failed(Fault::Unreadable)),
        ] {
            assert_eq!(Answer::of_order(text), expected, "{text}");
        }
    }

    #[test]
    fn rows_are_read_by_the_names_of_their_columns() {
        let text = "user|campaign_id|callerid\n7001|AITEST|V1\n7002|A|B|V2\n7003||\n";
        let Answer::Rows(rows) = Answer::of_question(text) else { panic!("no rows") };
        let whole: Vec<Row> = rows.whole().collect();
        assert_eq!(whole.len(), 2);
        assert_eq!((&*whole[0]["user"], &*whole[0]["callerid"]), ("7001", "V1"));
        assert_eq!(&*whole[1]["campaign_id"], "");
        assert_eq!(rows.broken(), 1);
        for (text, expected) in [
            ("ERROR: logged_in_agents NO LOGGED IN AGENTS: b|", Answer::Nothing),
            ("ERROR: lead_all_info LEAD NOT FOUND: b|1|", Answer::Failed(Fault::NoLead)),
            ("ERROR: callid_info CALL NOT FOUND - 6666||", Answer::Failed(Fault::NoCall)),
            ("ERROR: callid_info CALL LOG NOT FOUND - 6666||", Answer::Failed(Fault::NoLogEntry)),
            ("Maria", Answer::Failed(Fault::Unreadable)),
            ("", Answer::Failed(Fault::NoFunction)),
        ] {
            assert_eq!(Answer::of_question(text), expected, "{text}");
        }
    }

    #[test]
    fn single_values_may_be_anything() {
        for (text, expected) in [
            ("Maria", Ok("Maria")),
            ("A|B - C: D", Ok("A|B - C: D")),
            ("", Ok("")),
            ("ERROR: lead_field_info LEAD NOT FOUND: b|1|", Err(Fault::NoLead)),
        ] {
            assert_eq!(Answer::of_value(text), expected.map(str::to_owned), "{text}");
        }
    }
}
