//! Runs the bridge in this process, started from configuration text, with real sockets on loopback:
//! a scripted PBX (`pbx`, `call`, `media`; for ARI: `ari`) on one side, a strict Twilio server
//! (`strict`, `stream`, `checker`) on the other. Each test has its own addresses and is named after
//! the behaviour it checks.

mod bridge;
mod call;
#[allow(dead_code, reason = "the bystanders use the rest")]
#[path = "../bystanders/rig/canary.rs"]
mod canary;
mod checker;
mod lines;
mod log;
mod media;
mod pbx;
mod stream;
mod strict;
mod tls;
mod vicidial;
mod wav;

mod acknowledged;
mod agents;
mod answer;
mod ari;
mod audio;
mod capture;
mod capture_cli;
mod closed_stdout;
mod configuration;
mod control;
mod control_bounds;
mod control_cli;
mod create;
mod demo;
mod dialects;
mod dialout;
mod doctor;
mod dtmf;
mod ends;
mod failures;
mod frames;
mod framing;
mod garbage;
mod gating;
mod handshake;
mod hold;
mod http;
mod init;
mod ladder;
mod late;
mod lifecycle;
mod limits;
mod liveness;
mod marks;
mod missing;
mod network;
mod openai;
mod openapi;
mod orders;
#[path = "../fixtures/overlay.rs"]
mod overlay;
mod page;
mod phone;
mod prewarm;
mod proxy;
mod recording;
mod refused;
mod registration;
mod reload;
mod reload_program;
mod routing;
mod secrets;
mod signalling;
#[cfg(feature = "otel")]
mod traces;
mod transfers;
mod turns;
mod twilio;
mod webhook;
