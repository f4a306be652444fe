//! `trunkless vicidial`: prints what to enter in VICIdial's admin pages, and checks it.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Args, Subcommand};

use crate::cli::call::test_call;
use crate::cli::health::pbx_state;
use crate::cli::{EXIT_CONFIG, block_on, environment};
use crate::config::plan::Plan;
use crate::config::resolve::resolve;
use crate::config::{Source, load};
use crate::doctor::vicidial::expected;
use crate::vicidial::check::{Finding, Verdict, check};
use crate::vicidial::plan::plan as plan_of;

#[derive(Debug, Args)]
pub struct VicidialArguments {
    #[command(subcommand)]
    command: VicidialCommand,
    /// Configuration file.
    #[arg(long, default_value = "trunkless.toml", global = true)]
    config: PathBuf,
}

#[derive(Debug, Subcommand)]
enum VicidialCommand {
    /// Print the values for each of VICIdial's admin pages.
    Plan,
    /// Check the API user, the remote agents and the registration. Changes nothing at VICIdial.
    Check {
        /// In SIP mode, also call our own extension through the PBX, for ten seconds.
        #[arg(long)]
        call: bool,
    },
}

pub fn main(arguments: &VicidialArguments) -> ExitCode {
    let environment = environment();
    let plan = Source::read(&arguments.config).and_then(|source| {
        let settings = load(&source, &environment)?;
        resolve(&source, settings, &environment)
    });
    let plan = match plan {
        Ok(plan) => plan,
        Err(error) => {
            errln!("{error}");
            return ExitCode::from(EXIT_CONFIG);
        }
    };
    if plan.vicidials.is_empty() {
        let file = arguments.config.display();
        errln!("{file}: no PBX has a table [pbx.NAME.vicidial]; add one, with url and user");
        return ExitCode::from(EXIT_CONFIG);
    }
    match arguments.command {
        VicidialCommand::Plan => {
            for (name, vicidial) in &plan.vicidials {
                outln!("{}", plan_of(name, vicidial, &expected(&plan, name)));
            }
            ExitCode::SUCCESS
        }
        VicidialCommand::Check { call } => block_on(check_all(plan, call)),
    }
}

async fn check_all(plan: Plan, call: bool) -> anyhow::Result<ExitCode> {
    let mut good = true;
    for (name, vicidial) in &plan.vicidials {
        outln!("[pbx.{name}.vicidial] {}", vicidial.api.url);
        for finding in check(vicidial, &expected(&plan, name)).await {
            good &= print(&finding);
        }
        good &= print(&registration(&plan, name).await);
        let phone = plan.sip.iter().find(|pbx| pbx.account.name == *name).filter(|_| call);
        if call && phone.is_none() {
            let why = "not made: in ARI mode there is no extension to call from; send a test call";
            print(&Finding::new("test call", Verdict::Warning(why.to_owned())));
        }
        if let Some(phone) = phone
            && let Some(registration) = &phone.account.registration
        {
            let user = &phone.account.username;
            let host = registration.registrar_uri.trim_start_matches("sip:");
            let host = host.split(';').next().unwrap_or(host);
            let password = registration.password.clone();
            let code = test_call(format!("sip:{user}@{host}"), user, password).await?;
            good &= code == ExitCode::SUCCESS;
        }
    }
    Ok(if good { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// Asks the running program.
async fn registration(plan: &Plan, name: &str) -> Finding {
    let what = "trunkless and the PBX";
    let Some(listen) = plan.settings.http.listen else {
        let why = "not checked: set [http] listen, and start trunkless";
        return Finding::new(what, Verdict::Warning(why.to_owned()));
    };
    match pbx_state(listen, name).await {
        None => {
            let why = format!("not checked: trunkless does not answer at {listen}; start it");
            Finding::new(what, Verdict::Warning(why))
        }
        Some((true, state)) => Finding::new(format!("{what}: {state}"), Verdict::Good),
        Some((false, state)) => {
            let why = format!(
                "{state}; 403 or 401: check the Registration Password, which is not the Phone \
                 Password, the port (SIP 5060, PJSIP 5061), and that no other device has this phone"
            );
            Finding::new(what, Verdict::Fault(why))
        }
    }
}

fn print(finding: &Finding) -> bool {
    let what = &finding.what;
    match &finding.verdict {
        Verdict::Good => outln!("  ok     {what}"),
        Verdict::Warning(why) => outln!("  WARN   {what}: {why}"),
        Verdict::Fault(why) => outln!("  FAULT  {what}: {why}"),
    }
    !matches!(finding.verdict, Verdict::Fault(_))
}
