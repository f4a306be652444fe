//! An AI that answers half a second after the caller has stopped speaking.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use futures_util::{SinkExt as _, StreamExt as _};
use serde_json::{Value, json};
use tokio::net::{TcpListener, TcpStream};
use tokio_tungstenite::accept_async;
use tokio_tungstenite::tungstenite::Message;
use trunkless::media::frame::level_dbfs;

/// Frames of silence before the answer.
const PAUSE: u32 = 25;

pub async fn serve(listener: TcpListener) {
    while let Ok((stream, _)) = listener.accept().await {
        tokio::spawn(talk(stream));
    }
}

async fn talk(stream: TcpStream) {
    let Ok(mut socket) = accept_async(stream).await else { return };
    let (mut spoken, mut quiet) = (0, 0);
    while let Some(Ok(message)) = socket.next().await {
        let Message::Text(text) = message else { continue };
        let message: Value = serde_json::from_str(&text).unwrap_or_default();
        let Some(payload) = message["media"]["payload"].as_str() else { continue };
        let loud = level_dbfs(&BASE64.decode(payload).unwrap_or_default()) > -40.0;
        (spoken, quiet) = if loud { (spoken + 1, 0) } else { (spoken, quiet + 1) };
        if spoken > 10 && quiet == PAUSE {
            spoken = 0;
            // a second of a tone, as loud as speech
            let tone: Vec<u8> = (0..8000).map(|n| [0x90, 0x10][n / 8 % 2]).collect();
            let media = json!({ "payload": BASE64.encode(tone) });
            let answer =
                json!({"event": "media", "streamSid": message["streamSid"], "media": media});
            if socket.send(Message::Text(answer.to_string().into())).await.is_err() {
                return;
            }
        }
    }
}
