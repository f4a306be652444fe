//! The values to enter in VICIdial's admin pages, for one configuration.
#![deny(clippy::disallowed_methods, clippy::disallowed_types)]

use std::fmt::Write as _;

use crate::vicidial::VicidialSettings;
use crate::vicidial::check::{Expected, FUNCTIONS};

/// VICIdial's limit for the lines of a remote agent.
const MAX_LINES: usize = 255;
const FIRST_USER: &str = "7001";

/// Returns the plan for a PBX of this name.
pub fn plan(name: &str, settings: &VicidialSettings, expected: &Expected) -> String {
    let lines = expected.max_calls.min(MAX_LINES);
    let first = settings.remote_agent.as_deref().unwrap_or(FIRST_USER);
    let last = match first.parse::<u64>() {
        Ok(number) => (number + lines as u64 - 1).to_string(),
        Err(_) => first.to_owned(),
    };
    let group = settings.desk.in_group.as_deref();
    let mut text = String::new();
    let mut page = |title: &str, values: &[String]| {
        let _ = writeln!(text, "{title}");
        values.iter().for_each(|value| {
            let _ = writeln!(text, "    {value}");
        });
    };
    page(&format!("VICIdial for [pbx.{name}], {}", settings.api.url), &[]);
    page(
        "Admin > Users",
        &[format!("{lines} users with consecutive ids, {first} to {last}; User Level 1")],
    );
    page(&format!("Admin > Users > {} (the API user)", settings.api.user), &api_user());
    page("Admin > System Settings", &["Agent API Active 1".to_owned()]);
    match &expected.phone {
        Some(phone) => page("Admin > Phones", &phone_values(name, phone)),
        None => page(
            "Admin > Servers > Custom Dialplan Entry",
            &[
                "dialplan/vicidial/custom_dialplan_ari.conf, with your in-group".to_owned(),
                "The admin who pastes it needs Modify Custom Dialplans 1: without it, the page"
                    .to_owned(),
                "says SERVER MODIFIED and stores nothing".to_owned(),
            ],
        ),
    }
    let extension = expected.phone.as_deref().unwrap_or("8010");
    let status = match settings.remote_agent {
        Some(_) => "Status INACTIVE: trunkless makes it ACTIVE once it can take calls",
        None => "Status ACTIVE, once trunkless runs; set remote_agent, and it does so itself",
    };
    page(
        "Admin > Remote Agents",
        &[
            format!("User Start {first}, Number of Lines {lines}, On-Hook Agent N"),
            "Server, campaign and in-groups: those whose calls the AI gets".to_owned(),
            status.to_owned(),
            format!("External Extension {extension}{}", snippet(expected.phone.is_some())),
        ],
    );
    page(
        "Admin > Campaigns",
        &[
            "Routing Extension 8368 (8369 first looks for machines, for up to 5 s)".to_owned(),
            "Allow Inbound and Blended Y, if in-groups are used".to_owned(),
            match group {
                Some(_) => "Default Transfer Group: any".to_owned(),
                None => "Default Transfer Group: the in-group of your humans".to_owned(),
            },
        ],
    );
    let group = group.unwrap_or("the Default Transfer Group of the campaign");
    page("Admin > In-Groups", &[format!("{group} exists, and is open whenever you dial")]);
    page("Admin > System Statuses", &[settings.desk.statuses.all().join(" ")]);
    page("Admin > Servers", &[format!("Max VICIDIAL Trunks at least {}", 2 * lines)]);
    page("Then, with the same --config: trunkless vicidial check", &[]);
    text
}

fn api_user() -> Vec<String> {
    let names: Vec<&str> = FUNCTIONS.iter().map(|(name, _)| *name).collect();
    let mut values = vec![
        "User Level 8, Agent API Access 1, API Only User 1, Modify Leads 1, Modify Lists 1,"
            .to_owned(),
        "View Reports 1, Modify Remote Agents 1".to_owned(),
        "Password: letters, digits, - and _ only".to_owned(),
        "Allowed API Functions:".to_owned(),
    ];
    values.extend(names.chunks(5).map(|names| format!("    {}", names.join(" "))));
    values
}

fn phone_values(name: &str, phone: &str) -> Vec<String> {
    let of = [
        format!("Extension and Dialplan Number {phone}, Context default, codec ulaw"),
        format!("Registration Password: that of [pbx.{name}.sip]; it is not the Phone Password"),
        "Client Protocol SIP: registrar HOST:5060 (chan_sip)".to_owned(),
        "Client Protocol PJSIP: registrar HOST:5061".to_owned(),
        "Phone Ring Timeout 25: an order on an unanswered call can take 13 s".to_owned(),
        "Unavailable Dialplan Forward: a human route, or 8300 (hang up); never voicemail"
            .to_owned(),
    ];
    of.to_vec()
}

/// The extension of the snippet instead of the phone's.
fn snippet(phone: bool) -> &'static str {
    match phone {
        true => {
            "; or 8011 (SIP), 8012 (PJSIP) with the\n    snippet of dialplan/vicidial, which takes \
             customers to humans if trunkless is not\n    running. The admin who pastes it needs \
             Modify Custom Dialplans 1"
        }
        false => "",
    }
}
