//! Extracts the text parts from the bytes of a mail.
//!
//! `limits` refuses mails that are too large, `prepare` repairs bytes that the MIME parser does not accept, and
//! `message` parses the structure.

mod limits;
mod message;
mod prepare;

pub(crate) use message::{
    Flowed, TextFormat, TextPart, check_structure, html_texts, only_subject, parse_message, shown_parts,
};
