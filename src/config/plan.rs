//! The whole configuration, checked and complete: the settings of each part of the program.
#![deny(clippy::disallowed_methods, clippy::disallowed_types)]

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use crate::ari::client::AriPbx;
use crate::call::ladder::Rung;
use crate::call::placing::DialRules;
use crate::call::transfers::TransferRules;
use crate::call::variables::VariableRules;
use crate::call::{Prompts, RecordPlan};
use crate::config::keys::Keys;
use crate::config::recording::RecordingPlan;
use crate::config::routes::RoutePlan;
use crate::config::schema::Settings;
use crate::config::values::HostPort;
use crate::control::tokens::Token;
use crate::notices::NoticesSettings;
use crate::outbox::webhook::Webhook;
use crate::sip::agent::AccountConfig;
use crate::stream::connect::Target;
use crate::stream::create::Create;
use crate::stream::dialect::Extensions;
use crate::traces::TracesSettings;
use crate::vicidial::VicidialSettings;

/// The settings of one PBX in SIP mode.
pub struct SipPbx {
    pub account: AccountConfig,
    /// The registrar and further peers, or the peers of a trunk.
    pub hosts: Vec<HostPort>,
    /// Probe the registrar's UDP port.
    pub port_probe: bool,
    pub ai: AiPlan,
}

/// The AI settings for one PBX's calls.
#[derive(Clone)]
pub struct AiPlan {
    pub target: Target,
    /// The request before the socket.
    pub create: Option<Arc<Create>>,
    pub extensions: Extensions,
    /// By default, made of the name of the call's PBX.
    pub account_sid: Option<String>,
    pub parameters: Vec<(String, String)>,
    pub x_headers: Vec<String>,
    pub sip_headers: Vec<String>,
    pub silent_timeout: Duration,
    pub ping: Duration,
    /// Connections that are kept open for the next calls.
    pub prewarm: usize,
    /// Calls the tools of a model's user.
    pub tool_webhook: Option<Arc<Webhook>>,
}

impl AiPlan {
    /// True if the same AI is reached in the same way, with the same credentials.
    pub fn is_same(&self, other: &AiPlan) -> bool {
        let created = match (&self.create, &other.create) {
            (Some(create), Some(other)) => create.is_same(other),
            (None, None) => true,
            _ => false,
        };
        created && self.target.is_same(&other.target)
    }
}

/// The whole configuration, checked.
pub struct Plan {
    pub settings: Settings,
    pub sip: Vec<SipPbx>,
    pub ari: Vec<(AriPbx, AiPlan)>,
    pub prompts: Prompts,
    /// Where callers may be transferred to, by PBX name.
    pub transfers: BTreeMap<String, TransferRules>,
    /// The numbers that may be called, by PBX name. No calls are placed through a PBX that is not
    /// listed.
    pub dials: BTreeMap<String, DialRules>,
    /// Channel variables that may be set, by PBX name.
    pub variables: BTreeMap<String, VariableRules>,
    /// The steps to try when the AI fails, by PBX name.
    pub ladders: BTreeMap<String, Vec<Rung>>,
    /// The routes, in their order.
    pub routes: Vec<RoutePlan>,
    /// The VICIdials, by PBX name.
    pub vicidials: BTreeMap<String, VicidialSettings>,
    /// The further AIs, by name.
    pub endpoints: Vec<(String, AiPlan)>,
    /// The webhook for the events of calls.
    pub notices: Option<NoticesSettings>,
    /// Where traces of calls go.
    pub traces: Option<TracesSettings>,
    /// The tokens of the control API; none if it is not served.
    pub tokens: Vec<Token>,
    pub recording: Option<RecordingPlan>,
    /// Recording settings by PBX name. The calls of a PBX that is not listed are not recorded.
    pub record: BTreeMap<String, RecordPlan>,
    /// A digest of the value of each key, for the comparison at a reload.
    pub keys: Keys,
}
