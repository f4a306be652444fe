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
const RESERVED: [&str; 47] = [
    "add_to_hopper",
    "callback",
    "callback_comments",
    "callback_datetime",
    "callback_status",
    "callback_type",
    "callback_user",
    "called_count",
    "campaign_id",
    "custom_fields",
    "delete_cf_data",
    "delete_lead",
    "duplicate_check",
    "entry_date",
    "entry_list_id",
    "force_entry_list_id",
    "function",
    "gmt_offset_now",
    "hopper_priority",
    "insert_if_not_found",
    "last_local_call_time",
    "lead_id",
    "list_exists_check",
    "list_id",
    "list_id_field",
    "local_call_time",
    "lookup_state",
    "modify_date",
    "no_update",
    "ns_update",
    "owner",
    "pass",
    "phone_code",
    "phone_number",
    "records",
    "remove_from_hopper",
    "reset_lead",
    "search_location",
    "search_method",
    "source",
    "stage",
    "status",
    "tz_method",
    "update_phone_number",
    "user",
    "user_field",
    "vendor_search_method",
];

/// The fields of a lead that the AI may get.
pub const READABLE: [&str; 32] = [
    "address1",
    "address2",
    "address3",
    "alt_phone",
    "called_count",
    "city",
    "comments",
    "country_code",
    "date_of_birth",
    "email",
    "entry_list_id",
    "first_name",
    "gender",
    "gmt_offset_now",
    "last_local_call_time",
    "last_name",
    "lead_id",
    "list_id",
    "middle_initial",
    "owner",
    "phone_code",
    "phone_number",
    "postal_code",
    "province",
    "rank",
    "security_phrase",
    "source_id",
    "state",
    "status",
    "title",
    "user",
    "vendor_lead_code",
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
        // as after a callback on the agent's page: it becomes CALLBK when the time has come
        LeadChange::Callback { .. } => Some("CBHOLD"),
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
            LeadChange::Callback { at, comments } => {
                let campaign = self.campaign(&agent).await?;
                let changes = [
                    ("callback", "Y"),
                    ("callback_status", "CALLBK"),
                    ("callback_datetime", at),
                    ("callback_comments", comments),
                    ("campaign_id", &campaign),
                    // a remote agent has no page on which a callback of its own would appear
                    ("callback_type", "ANYONE"),
                ];
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
        for name in [
            "user",
            "pass",
            "status",
            "phone_number",
            "delete_cf_data",
            "function",
            "list_id",
            "",
            "a-b",
            "a b",
        ] {
            assert!(!is_custom(name), "{name}");
        }
    }
}
