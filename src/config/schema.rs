//! The keys of the configuration file, with their defaults. Each field is a key of that name, and
//! each variant of an enum is a word that the key may be set to.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use secrecy::SecretString;
use serde::Deserialize;

use crate::call::admission::CallLimits;
use crate::call::variables::VariableName;
use crate::config::create::CreateTable;
use crate::config::recording::{PbxRecording, Recording};
use crate::config::routes::RouteTable;
use crate::config::speech::SpeechTable;
use crate::config::values::{
    HostPort, PbxName, PeerWord, PortRange, RungWord, Span, TargetWord, parsed_words, words,
};
use crate::control::tokens::Scope;
use crate::media;
use crate::sip::agent::AiDown;
use crate::sip::network::Network;
use crate::stream::dialect::{Dialect, Extensions};
use crate::user_pattern::UserPattern;

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Settings {
    pub log: Log,
    pub telemetry: TelemetryTable,
    pub sip: Sip,
    pub media: Media,
    pub speech: SpeechTable,
    pub ai: Ai,
    pub calls: Calls,
    pub recording: Recording,
    /// WAV files that commands may play, by name.
    pub prompts: BTreeMap<String, String>,
    pub http: Http,
    pub control: ControlTable,
    pub webhook: EventWebhook,
    pub reload: Reload,
    /// Further AIs, for `on_ai_failure`.
    pub endpoint: BTreeMap<PbxName, Ai>,
    pub pbx: BTreeMap<PbxName, Pbx>,
    /// Which settings apply to which calls, in their order.
    pub route: Vec<RouteTable>,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Log {
    /// off, error, warn, info, debug, trace, or a filter such as `trunkless::sip=debug`.
    pub level: String,
    pub json: bool,
}

/// The measurements of calls.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct TelemetryTable {
    /// Measure how long callers wait for the AI's answers.
    pub turn_latency: bool,
    /// The collector that gets a trace of each call.
    pub otlp_endpoint: Option<String>,
    /// Header fields of the requests to it: `name=value,name=value`.
    pub otlp_headers: Option<SecretString>,
    pub otlp_headers_env: Option<String>,
    pub otlp_headers_file: Option<String>,
    pub otlp_ca_file: Option<String>,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Sip {
    /// Address of one socket per transport, shared by all PBXs.
    pub listen: SocketAddr,
    /// Maximum number of calls whose answer the PBX has not acknowledged; by default, half of
    /// `[calls] max`, but at least 10.
    pub max_unacknowledged: Option<usize>,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Media {
    pub ports: PortRange,
    pub reorder_wait: Span,
    pub late_audio: LateAudio,
    /// How long the first frame of a talkspurt to the caller waits for more.
    pub playout_prebuffer: Span,
    /// Send RTP to where it comes from.
    pub symmetric: bool,
}

/// The handling of caller audio that arrives after its time was filled with silence.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LateAudio {
    /// It is kept if it is no more than about a second late.
    Keep,
    /// It is dropped if it is more than 100 ms late.
    Drop,
}

impl Settings {
    /// Maximum number of calls whose answer the PBX has not acknowledged.
    pub fn max_unacknowledged(&self) -> usize {
        self.sip.max_unacknowledged.unwrap_or_else(|| (self.calls.max / 2).max(10))
    }
}

impl Media {
    pub fn settings(&self) -> media::Settings {
        let max_lead = match self.late_audio {
            LateAudio::Keep => Duration::from_secs(1),
            LateAudio::Drop => Duration::from_millis(100),
        };
        media::Settings {
            reorder_wait: self.reorder_wait.0,
            max_lead,
            prebuffer: self.playout_prebuffer.0,
            symmetric: self.symmetric,
        }
    }
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Ai {
    pub url: Option<String>,
    pub dialect: Option<Dialect>,
    /// The sample rate of linear audio, in Hz, in dialects that have a choice.
    pub sample_rate: Option<u32>,
    /// The WebSocket subprotocol that is requested.
    pub subprotocol: Option<String>,
    /// When our own messages are exchanged with the AI.
    pub extensions: Option<Extensions>,
    pub headers: Option<BTreeMap<String, String>>,
    pub auth_token: Option<SecretString>,
    pub auth_token_env: Option<String>,
    pub auth_token_file: Option<String>,
    pub ca_file: Option<String>,
    pub tls_server_name: Option<String>,
    /// The HTTP proxy through which the AI is reached: its URL, or `environment`.
    pub proxy: Option<SecretString>,
    /// A request before the socket.
    pub create: Option<CreateTable>,
    pub account_sid: Option<String>,
    pub parameters: Option<BTreeMap<String, String>>,
    /// X- headers of the INVITE that become parameters; `*` means all.
    #[serde(deserialize_with = "words")]
    pub x_headers: Option<Vec<String>>,
    /// Further header fields of the INVITE that become parameters.
    #[serde(deserialize_with = "words")]
    pub sip_headers: Option<Vec<String>>,
    /// The session of a model, passed to it as it is.
    pub session: Option<serde_json::Map<String, serde_json::Value>>,
    /// The first words of a model.
    pub greeting: Option<String>,
    /// The tools for call control that a model is offered.
    #[serde(deserialize_with = "words")]
    pub tools: Option<Vec<String>>,
    /// Calls a model's other tools.
    pub tool_webhook: Option<String>,
    pub tool_webhook_secret: Option<SecretString>,
    pub tool_webhook_secret_env: Option<String>,
    pub tool_webhook_secret_file: Option<String>,
    pub silent_timeout: Option<Span>,
    /// Quiet time after which the AI is sent a ping.
    pub ping: Option<Span>,
    /// Connections that are kept open for the next calls.
    pub prewarm: Option<usize>,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Calls {
    pub max: usize,
    /// New calls per second; `None` = no limit.
    pub per_second: Option<u32>,
    pub answer: Answer,
    pub answer_wait: Span,
    pub ringing: bool,
    pub on_ai_close: OnAiClose,
    pub drain_on_close: Span,
    /// The steps to try, in order, when the AI fails.
    #[serde(deserialize_with = "parsed_words")]
    pub on_ai_failure: Option<Vec<RungWord>>,
    /// WAV file to play to the caller when the AI fails during a call; then
    /// `on_ai_failure` applies.
    pub prompt: Option<String>,
    pub max_duration: Span,
    pub media_timeout: Span,
    /// Calls may continue for this long after SIGTERM.
    pub drain: Span,
    /// Limit of the audio that the AI may queue for one call.
    pub playout_minutes: u32,
    /// The same limit for all calls together.
    pub playout_budget_mb: usize,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Answer {
    WhenAiReady,
    AtOnce,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OnAiClose {
    Hangup,
    /// The caller continues in the dialplan (ARI). In SIP mode, the call is ended.
    Continue,
    /// The AI is dialled again.
    Reconnect,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Http {
    /// Address of `/healthz`, `/readyz` and `/metrics`; without it, they are not served.
    pub listen: Option<SocketAddr>,
}

/// How a changed file is noticed, besides SIGHUP and `trunkless reload`.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Reload {
    /// Reload when the configuration file changes.
    pub watch: bool,
}

/// The webhook for the events of calls.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct EventWebhook {
    pub url: Option<String>,
    /// Base64, optionally after `whsec_`.
    pub secret: Option<SecretString>,
    pub secret_env: Option<String>,
    pub secret_file: Option<String>,
    pub ca_file: Option<String>,
    /// Directory for the events that have not been sent.
    pub directory: String,
}

impl Default for EventWebhook {
    fn default() -> Self {
        EventWebhook {
            url: None,
            secret: None,
            secret_env: None,
            secret_file: None,
            ca_file: None,
            directory: "/var/lib/trunkless/events".to_owned(),
        }
    }
}

#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct ControlTable {
    /// Address of the control API. It is not served without a token.
    pub listen: SocketAddr,
    /// Names that the Host of a request may have, besides addresses and `localhost`.
    #[serde(deserialize_with = "words")]
    pub hosts: Option<Vec<String>>,
    /// Let tokens with the scope `listen` listen to live calls.
    pub listen_in: bool,
    /// The tokens, by name.
    pub tokens: BTreeMap<String, ControlToken>,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct ControlToken {
    pub token: Option<SecretString>,
    pub token_env: Option<String>,
    pub token_file: Option<String>,
    #[serde(deserialize_with = "parsed_words")]
    pub scopes: Option<Vec<Scope>>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    Sip,
    Ari,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Pbx {
    pub mode: Mode,
    pub sip: Option<PbxSip>,
    /// Ignored unless `mode = "ari"`.
    pub ari: Option<PbxAri>,
    #[serde(default)]
    pub ai: Ai,
    #[serde(default)]
    pub recording: PbxRecording,
    #[serde(default)]
    pub transfer: PbxTransfer,
    #[serde(default)]
    pub calls: PbxCalls,
    #[serde(default)]
    pub dial: PbxDial,
    pub vicidial: Option<PbxVicidial>,
}

/// The VICIdial whose calls these are.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct PbxVicidial {
    /// Its web server.
    pub url: Option<String>,
    /// The API user.
    pub user: Option<String>,
    pub password: Option<SecretString>,
    pub password_env: Option<String>,
    pub password_file: Option<String>,
    pub ca_file: Option<String>,
    /// The AI's stream waits for the lead's data for this long.
    pub wait_for_lead: Span,
    /// Fields of the lead, and the names of the parameters that they become.
    pub fields: BTreeMap<String, String>,
    /// Fields of its own in a list, which the AI may change besides the usual ones.
    pub custom_fields: Vec<String>,
    /// The in-group of humans; by default that of the campaign.
    pub in_group: Option<String>,
    /// The first user of the remote agents, if they become inactive while no calls can be taken.
    pub remote_agent: Option<String>,
    /// Calls are kept here until VICIdial has their status.
    pub directory: String,
    /// The statuses of calls to which the AI has given none.
    pub statuses: BTreeMap<String, String>,
}

/// The limits of one PBX's calls.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct PbxCalls {
    pub max: Option<usize>,
    /// New calls per second.
    pub per_second: Option<u32>,
}

impl PbxCalls {
    pub fn limits(&self) -> CallLimits {
        CallLimits { max: self.max, per_second: self.per_second }
    }
}

/// The calls that are placed through one PBX; by default none.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct PbxDial {
    /// Patterns of numbers that may be called.
    #[serde(deserialize_with = "parsed_words")]
    pub allow: Option<Vec<UserPattern>>,
    /// Patterns of numbers that may be shown to callees.
    #[serde(deserialize_with = "parsed_words")]
    pub from: Option<Vec<UserPattern>>,
    /// The number that is shown unless the request names another.
    pub caller_id: Option<String>,
    /// The context in which numbers are dialled (ARI mode).
    pub context: Option<String>,
    pub per_second: u32,
    pub per_day: u32,
    /// Calls at the same time.
    pub max: Option<usize>,
    /// The longest time that a phone may ring.
    pub max_ring: Span,
    /// Hosts that may get status callbacks.
    #[serde(deserialize_with = "words")]
    pub callback_hosts: Option<Vec<String>>,
}

/// Where the calls of one PBX may be transferred to; by default nowhere.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct PbxTransfer {
    /// Targets by name: `context,exten,priority`, or only an extension.
    pub targets: BTreeMap<String, TargetWord>,
    /// Patterns of extensions that may be dialled.
    #[serde(deserialize_with = "parsed_words")]
    pub extensions: Option<Vec<UserPattern>>,
    /// The context of extensions (ARI mode).
    pub context: Option<String>,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct PbxSip {
    pub registrar: Option<HostPort>,
    pub username: Option<String>,
    pub auth_username: Option<String>,
    pub realm: Option<String>,
    pub password: Option<SecretString>,
    pub password_env: Option<String>,
    pub password_file: Option<String>,
    pub transport: Option<TransportWord>,
    pub expires: Option<Span>,
    pub keepalive: Option<Span>,
    pub port_probe: Option<bool>,
    pub advertised: Option<IpAddr>,
    #[serde(deserialize_with = "parsed_words")]
    pub media_peers: Option<Vec<Network>>,
    pub register: Option<bool>,
    #[serde(deserialize_with = "parsed_words")]
    pub peers: Option<Vec<PeerWord>>,
    /// Users that calls may be addressed to, besides `username`.
    #[serde(deserialize_with = "parsed_words")]
    pub users: Option<Vec<UserPattern>>,
    pub when_ai_is_down: AiDown,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct PbxAri {
    /// Asterisk's HTTP server: `http://192.0.2.1:8088`, or https.
    pub url: Option<String>,
    pub username: Option<String>,
    pub password: Option<SecretString>,
    pub password_env: Option<String>,
    pub password_file: Option<String>,
    /// The Stasis application's name.
    pub app: Option<String>,
    pub format: Option<MediaFormat>,
    /// Maximum number of external media channels at the same time.
    pub max_media: Option<usize>,
    pub rtp_conf: Option<String>,
    pub advertised: Option<IpAddr>,
    /// Channel variables that become parameters.
    #[serde(deserialize_with = "words")]
    pub variables: Option<Vec<String>>,
    /// Channel variables that orders may set; by default none.
    #[serde(deserialize_with = "parsed_words")]
    pub set_variables: Option<Vec<VariableName>>,
    pub ca_file: Option<String>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MediaFormat {
    Ulaw,
    Alaw,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TransportWord {
    Udp,
    Tcp,
}

impl Default for PbxDial {
    fn default() -> Self {
        PbxDial {
            allow: None,
            from: None,
            caller_id: None,
            context: None,
            per_second: 1,
            per_day: 500,
            max: None,
            max_ring: Span(Duration::from_secs(120)),
            callback_hosts: None,
        }
    }
}

impl Default for PbxVicidial {
    fn default() -> Self {
        PbxVicidial {
            url: None,
            user: None,
            password: None,
            password_env: None,
            password_file: None,
            ca_file: None,
            wait_for_lead: Span(Duration::ZERO),
            fields: BTreeMap::new(),
            custom_fields: Vec::new(),
            in_group: None,
            remote_agent: None,
            directory: "/var/lib/trunkless/vicidial".to_owned(),
            statuses: BTreeMap::new(),
        }
    }
}

impl Default for TelemetryTable {
    fn default() -> Self {
        TelemetryTable {
            turn_latency: true,
            otlp_endpoint: None,
            otlp_headers: None,
            otlp_headers_env: None,
            otlp_headers_file: None,
            otlp_ca_file: None,
        }
    }
}

impl Default for Log {
    fn default() -> Self {
        Log { level: "info".to_owned(), json: false }
    }
}

impl Default for Sip {
    fn default() -> Self {
        Sip { listen: SocketAddr::from(([0, 0, 0, 0], 5070)), max_unacknowledged: None }
    }
}

impl Default for ControlTable {
    fn default() -> Self {
        let listen = SocketAddr::from(([127, 0, 0, 1], 8072));
        ControlTable { listen, hosts: None, listen_in: false, tokens: BTreeMap::new() }
    }
}

impl Default for Media {
    fn default() -> Self {
        Media {
            ports: PortRange { first: 20002, last: 32767 },
            reorder_wait: Span(Duration::from_millis(40)),
            late_audio: LateAudio::Keep,
            playout_prebuffer: Span(Duration::ZERO),
            symmetric: false,
        }
    }
}

impl Default for Calls {
    fn default() -> Self {
        Calls {
            max: 200,
            per_second: None,
            answer: Answer::WhenAiReady,
            answer_wait: Span(Duration::from_secs(2)),
            ringing: false,
            on_ai_close: OnAiClose::Hangup,
            drain_on_close: Span(Duration::ZERO),
            on_ai_failure: None,
            prompt: None,
            max_duration: Span(Duration::from_secs(4 * 3600)),
            media_timeout: Span(Duration::from_secs(30)),
            drain: Span(Duration::from_secs(30)),
            playout_minutes: 10,
            playout_budget_mb: 512,
        }
    }
}
