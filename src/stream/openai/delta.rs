//! A piece of the model's audio, read without building a JSON tree.
#![deny(clippy::disallowed_methods, clippy::disallowed_types)]

use crate::stream::json::Cursor;

/// The event with a piece of the model's audio.
pub(super) const DELTA: &str = "response.output_audio.delta";

/// A piece of audio.
pub(super) struct Delta<'a> {
    pub response_id: &'a str,
    pub item_id: &'a str,
    pub content_index: u64,
    /// Base64.
    pub payload: &'a str,
}

impl<'a> Delta<'a> {
    /// Reads a piece of audio as the API writes it: the type first, and no escapes. `None` only
    /// means that the event needs the full parser.
    pub fn read(text: &'a str) -> Option<Delta<'a>> {
        let (mut is_audio, mut content_index) = (false, 0);
        let (mut response_id, mut item_id, mut payload) = (None, None, None);
        let once =
            |place: &mut Option<&'a str>, value| place.replace(value).is_none().then_some(());
        Cursor::read(text, &mut |cursor, key| {
            match key {
                "type" => is_audio = cursor.string()? == DELTA,
                "response_id" => once(&mut response_id, cursor.string()?)?,
                "item_id" => once(&mut item_id, cursor.string()?)?,
                "content_index" => content_index = cursor.number()?,
                "delta" => once(&mut payload, cursor.string()?)?,
                _ => cursor.skip()?,
            }
            is_audio.then_some(())
        })?;
        let (response_id, item_id, payload) = (response_id?, item_id?, payload?);
        Some(Delta { response_id, item_id, content_index, payload })
    }
}
