//! The directory of recordings, and the systems that recordings and events are sent to. Owns the
//! reading of the disk, and requests that store nothing.

use std::time::Duration;

use tokio::time::timeout;

use crate::config::plan::Plan;
use crate::config::recording::{RecordingPlan, try_paths};
use crate::doctor::finding::Finding;
use crate::outbox::webhook::{Webhook, WebhookError};
use crate::record::disk;
use crate::record::upload::Uploader;

/// Time limit for an answer of another system.
const LIMIT: Duration = Duration::from_secs(5);

pub async fn check(plan: &Plan) -> Vec<Finding> {
    let mut findings = Vec::new();
    if let Some(recording) = &plan.recording {
        findings.push(directory(recording));
        if let Some(upload) = &recording.upload {
            let asked = async {
                match Uploader::new(upload) {
                    Ok(uploader) => uploader.probe().await.map_err(|why| why.to_string()),
                    Err(why) => Err(why.to_string()),
                }
            };
            let asked = timeout(LIMIT, asked).await;
            let asked = asked.unwrap_or_else(|_| Err("no answer within 5 s".to_owned()));
            findings.push(match asked {
                Ok(()) => Finding::ok("recording.upload", format!("{} answers", upload.url)),
                Err(why) => Finding::fault(
                    "recording.upload",
                    format!("{} cannot be used: {why}", upload.url),
                    "check url, endpoint, keys and bucket, or create the folder",
                ),
            });
        }
        if let Some(hook) = &recording.webhook {
            findings.push(webhook("recording.webhook", hook).await);
        }
    }
    if let Some(notices) = &plan.notices {
        findings.push(webhook("webhook", &notices.webhook).await);
    }
    findings
}

fn directory(recording: &RecordingPlan) -> Finding {
    let step = "recording.directory";
    let path = recording.settings.directory.display();
    if let (Some(why), _) = try_paths(recording) {
        let (what, remedy) = why.rsplit_once("; ").unwrap_or((&why, "create it"));
        return Finding::fault(step, format!("calls cannot be recorded: {what}"), remedy);
    }
    let floor = recording.settings.keep_free_percent;
    let free = disk::root(&recording.settings).free_percent();
    match free {
        Some(free) if free < floor => Finding::fault(
            step,
            format!(
                "only {free:.1} % of the disk of {path} is free, and keep_free_percent is {floor}"
            ),
            "delete recordings, set keep or keep_gb, or lower keep_free_percent",
        ),
        Some(free) => Finding::ok(step, format!("{path} can be written, {free:.0} % is free")),
        None => Finding::ok(step, format!("{path} can be created")),
    }
}

/// Checks that a webhook's server answers. Nothing is posted.
async fn webhook(step: &str, hook: &Webhook) -> Finding {
    let asked = timeout(LIMIT, hook.probe()).await;
    let asked =
        asked.unwrap_or_else(|_| Err(WebhookError::Http("no answer within 5 s".to_owned())));
    match asked {
        Ok(status) if status.is_server_error() || status == 404 => Finding::warning(
            step,
            format!("the webhook's server answers HEAD with {status}"),
            "check the path in url, and look at the server's log",
        ),
        Ok(status) => Finding::ok(step, format!("the server answers (HEAD: {status})")),
        Err(why) => Finding::fault(
            step,
            format!("the webhook's server: {why}"),
            "check url, ca_file and the server",
        ),
    }
}
