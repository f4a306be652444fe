//! Calls with agents of vendors, in whose place strict servers check each message.

mod deepgram;
mod elevenlabs;
mod gemini;
mod server;
mod ultravox;
