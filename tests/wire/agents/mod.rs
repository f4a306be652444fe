//! Calls with agents of Deepgram and ElevenLabs, in whose place strict servers check each message.

mod deepgram;
mod elevenlabs;
mod server;
