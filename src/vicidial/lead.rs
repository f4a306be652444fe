//! Changes of a lead that the AI asks for. Owns I/O.

use crate::command::LeadChange;
use crate::vicidial::agents::FRESH;
use crate::vicidial::answer::{Fault, Row};
use crate::vicidial::api::{ApiError, SYSTEM_LIST};
use crate::vicidial::call_id::CallKind;
use crate::vicidial::lookup::Lookup;

/// The fields that the AI may change in every lead. The others of `update_lead` move, delete or
/// dial leads, or are the login.
const FIELDS: [&str; 21] = [
    "vendor_lead_code",
    "source_id",
    "title",
    "first_name",
    "middle_initial",
    "last_name",
    "address1",
    "address2",
    "address3",
    "city",
    "state",
    "province",
    "postal_code",
    "country_code",
    "gender",
    "date_of_birth",
    "alt_phone",
    "email",
    "security_phrase",
    "comments",
    "rank",
];
/// The parameters of the API itself, and those of `update_lead` that do more than change a value.
/// They are not fields, even if a list calls one so.
const RESERVED: [&str; 26] = [
    "add_to_hopper",
    "callback",
    "callback_comments",
    "callback_datetime",
    "callback_status",
    "callback_type",
    "callback_user",
    "campaign_id",
    "custom_fields",
    "delete_lead",
    "duplicate_check",
    "force_entry_list_id",
    "function",
    "hopper_priority",
    "insert_if_not_found",
    "lead_id",
    "list_id",
    "list_id_field",
    "no_update",
    "pass",
    "records",
    "remove_from_hopper",
    "reset_lead",
    "search_method",
    "source",
    "user",
];

/// Why a lead was not changed.
#[derive(Debug)]
pub enum ChangeError {
    /// A field is not among those that the AI may change.
    NotAllowed,
    Api(ApiError),
}

impl From<ApiError> for ChangeError {
    fn from(error: ApiError) -> ChangeError {
        ChangeError::Api(error)
    }
}

/// The status of a call after such a change, unless the AI gives another.
pub fn status_after(change: &LeadChange) -> Option<&'static str> {
    match change {
        LeadChange::Callback { .. } => Some("CALLBK"),
        LeadChange::DoNotCall { .. } => Some("DNC"),
        LeadChange::Update(_) => None,
    }
}

/// True if a list may have a field of its own with this name.
pub fn is_custom(name: &str) -> bool {
    let plain = |c: char| c.is_ascii_alphanumeric() || c == '_';
    !name.is_empty() && name.chars().all(plain) && !RESERVED.contains(&name)
}

impl Lookup {
    /// Changes the lead of the call. `number`: the customer's.
    pub(super) async fn change_lead(
        &self,
        number: &str,
        change: &LeadChange,
    ) -> Result<(), ChangeError> {
        let lead = self.call.lead_id();
        if let LeadChange::Update(fields) = change {
            let custom = &self.settings.custom_fields;
            let is_custom = |name: &str| custom.iter().any(|known| known == name);
            let mut changes: Vec<(&str, &str)> =
                fields.iter().map(|(name, value)| (&**name, &**value)).collect();
            if !changes.iter().all(|(name, _)| FIELDS.contains(name) || is_custom(name)) {
                return Err(ChangeError::NotAllowed);
            }
            if changes.iter().any(|(name, _)| is_custom(name)) {
                changes.push(("custom_fields", "Y"));
            }
            return Ok(self.api.update_lead(lead, &changes).await?);
        }
        let agent = self.agents.of(&self.call, FRESH).await?.unwrap_or_default();
        match change {
            LeadChange::Callback { at, comments, same_agent } => {
                let mut changes = vec![
                    ("callback", "Y"),
                    ("callback_status", "CALLBK"),
                    ("callback_datetime", at),
                    ("callback_comments", comments),
                ];
                let campaign = self.campaign(&agent).await?;
                changes.push(("campaign_id", &campaign));
                let user = agent.get("user").filter(|_| *same_agent);
                changes.push(("callback_type", if user.is_some() { "USERONLY" } else { "ANYONE" }));
                changes.extend(user.map(|user| ("callback_user", user.as_str())));
                Ok(self.api.update_lead(lead, &changes).await?)
            }
            LeadChange::DoNotCall { everywhere: true } => {
                Ok(self.api.do_not_call(number, SYSTEM_LIST).await?)
            }
            LeadChange::DoNotCall { everywhere: false } => {
                let campaign = self.campaign(&agent).await?;
                Ok(self.api.do_not_call(number, &campaign).await?)
            }
            LeadChange::Update(_) => Ok(()),
        }
    }

    /// The campaign of the agent who has the call, or of a call that was dialled. `agent`: their
    /// row, which may be empty.
    async fn campaign(&self, agent: &Row) -> Result<String, ApiError> {
        if let Some(campaign) = agent.get("campaign_id").filter(|campaign| !campaign.is_empty()) {
            return Ok(campaign.clone());
        }
        let none = ApiError::Fault(Fault::NotLoggedIn);
        if self.call.kind() == CallKind::Inbound {
            return Err(none);
        }
        self.api.call(&self.call).await?.remove("campaign_id").ok_or(none)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_are_not_parameters_of_the_api() {
        assert!(FIELDS.iter().all(|name| !RESERVED.contains(name)));
        assert!(is_custom("favorite_color"));
        for name in ["user", "pass", "function", "list_id", "", "a-b", "a b"] {
            assert!(!is_custom(name), "{name}");
        }
    }
}
