//! The whole configuration, checked and complete: the settings of each part of the program.
#![deny(clippy::disallowed_methods, clippy::disallowed_types)]

use std::collections::BTreeMap;
use std::time::Duration;

use bytes::Bytes;

use crate::ari::client::AriPbx;
use crate::call::RecordPlan;
use crate::config::recording::RecordingPlan;
use crate::config::schema::Settings;
use crate::config::values::HostPort;
use crate::sip::agent::AccountConfig;
use crate::stream::connect::Target;

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
    pub account_sid: String,
    pub parameters: Vec<(String, String)>,
    pub x_headers: Vec<String>,
    pub sip_headers: Vec<String>,
    pub silent_timeout: Duration,
    pub ping: Duration,
}

/// The whole configuration, checked.
pub struct Plan {
    pub settings: Settings,
    pub sip: Vec<SipPbx>,
    pub ari: Vec<(AriPbx, AiPlan)>,
    pub prompt: Option<Bytes>,
    pub recording: Option<RecordingPlan>,
    /// Recording settings by PBX name. The calls of a PBX that is not listed are not recorded.
    pub record: BTreeMap<String, RecordPlan>,
}
