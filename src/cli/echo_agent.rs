//! `trunkless echo-agent`: the bundled AI stand-in. Owns its listener.

use std::net::SocketAddr;
use std::process::ExitCode;

use clap::Args;
use tokio::net::TcpListener;
use tracing::info;

use crate::cli::{Stop, block_on};
use crate::peer::ai;
use crate::telemetry;

#[derive(Debug, Args)]
pub struct EchoAgentArguments {
    /// Address and port to listen on; point [ai] url at ws://ADDRESS:PORT.
    #[arg(long, default_value = "127.0.0.1:8080")]
    listen: SocketAddr,
}

pub fn main(arguments: &EchoAgentArguments) -> ExitCode {
    block_on(async {
        telemetry::init("info", false).map_err(anyhow::Error::msg)?;
        let listener = TcpListener::bind(arguments.listen).await.map_err(|e| {
            anyhow::anyhow!("cannot listen on {}: {e}; give another --listen", arguments.listen)
        })?;
        let mut stop = Stop::new()?;
        info!(listen = %listener.local_addr()?, "echo agent is listening");
        tokio::select! {
            () = ai::serve(listener, None) => {}
            () = stop.asked() => {}
        }
        Ok(ExitCode::SUCCESS)
    })
}
