//! The errors of the control API.

use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde_json::json;

/// An error, which becomes the response.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problem {
    pub status: StatusCode,
    /// A word for programs.
    pub code: &'static str,
    /// The fault, and the cure.
    pub message: String,
    /// Twilio's number for it, in its form of the error.
    twilio: Option<u32>,
}

impl Problem {
    pub fn new(status: StatusCode, code: &'static str, message: impl Into<String>) -> Problem {
        Problem { status, code, message: message.into(), twilio: None }
    }

    /// An error in Twilio's form. Numbers: <https://www.twilio.com/docs/api/errors>.
    pub fn twilio(status: StatusCode, number: u32, message: impl Into<String>) -> Problem {
        Problem { status, code: "", message: message.into(), twilio: Some(number) }
    }

    /// The same error in Twilio's form: 20003 for missing authentication or permission, 20001 for
    /// a request that is not valid.
    pub fn for_twilio(self) -> Problem {
        let denied = [StatusCode::UNAUTHORIZED, StatusCode::FORBIDDEN].contains(&self.status);
        let number = if denied { 20003 } else { 20001 };
        Problem { status: self.status, code: "", message: self.message, twilio: Some(number) }
    }
}

/// Gives the errors of the router, which have no JSON, the form of all others. `Allow` stays.
pub fn explain(response: Response, for_twilio: bool) -> Response {
    let status = response.status();
    let json =
        response.headers().get(header::CONTENT_TYPE).is_some_and(|t| t == "application/json");
    if json || !status.is_client_error() {
        return response;
    }
    let (code, number, why) = match status {
        StatusCode::NOT_FOUND => ("not_found", 20404, "there is no such path"),
        StatusCode::METHOD_NOT_ALLOWED => {
            ("method_not_allowed", 20004, "the path does not have this method; see Allow")
        }
        _ => ("invalid", 20001, "the path is not UTF-8"),
    };
    let mut explained = match for_twilio {
        true => Problem::twilio(status, number, why),
        false => Problem::new(status, code, why),
    }
    .into_response();
    if let Some(allow) = response.headers().get(header::ALLOW) {
        explained.headers_mut().insert(header::ALLOW, allow.clone());
    }
    explained
}

impl IntoResponse for Problem {
    fn into_response(self) -> Response {
        let body = match self.twilio {
            None => json!({ "error": { "code": self.code, "message": self.message } }),
            Some(number) => json!({
                "code": number,
                "message": self.message,
                "more_info": format!("https://www.twilio.com/docs/errors/{number}"),
                "status": self.status.as_u16(),
            }),
        };
        let kind = [(header::CONTENT_TYPE, "application/json")];
        let mut response = (self.status, kind, body.to_string() + "\n").into_response();
        if self.status == StatusCode::UNAUTHORIZED {
            let scheme =
                if self.twilio.is_some() { "Basic realm=\"Twilio API\"" } else { "Bearer" };
            if let Ok(scheme) = scheme.parse() {
                response.headers_mut().insert(header::WWW_AUTHENTICATE, scheme);
            }
        }
        response
    }
}
