//! The webhook for the tools of a model (`[ai] tool_webhook`): a POST with the call of a tool. The
//! answer is the tool's output. Owns I/O.

use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde_json::{Map, Value, json};
use tokio::time::timeout;

use crate::call::{ToolRequest, ToolServer};
use crate::outbox::webhook::Webhook;
use crate::stream::dialect::sid;

/// Time limit of a request. The caller waits for it.
const LIMIT: Duration = Duration::from_secs(10);
/// Maximum length of an answer, in bytes.
const MAX_OUTPUT: usize = 64 * 1024;

/// Returns the function by which calls have tools carried out.
pub(super) fn server(webhook: Arc<Webhook>) -> ToolServer {
    Arc::new(move |request| {
        let webhook = webhook.clone();
        Box::pin(async move {
            let id = sid("TC", &format!("{}:{}", request.call_sid, request.tool.id));
            let unix = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
            let asked = body(&request).to_string();
            match timeout(LIMIT, webhook.ask(&id, &asked, unix, MAX_OUTPUT)).await {
                Ok(answer) => answer.map_err(|why| why.to_string()),
                Err(_) => Err(format!("no answer within {LIMIT:?}")),
            }
        })
    })
}

/// Returns the body of the request.
fn body(request: &ToolRequest) -> Value {
    let ToolRequest { call_sid, tool, parameters } = request;
    // a model may write something else than JSON
    let arguments = serde_json::from_str(&tool.arguments);
    let arguments: Value = arguments.unwrap_or_else(|_| tool.arguments.as_str().into());
    let parameters = parameters.iter().map(|(name, value)| (name.clone(), value.as_str().into()));
    let parameters: Map<String, Value> = parameters.collect();
    json!({
        "call_sid": call_sid,
        "id": tool.id,
        "name": tool.name,
        "arguments": arguments,
        "parameters": parameters,
    })
}
