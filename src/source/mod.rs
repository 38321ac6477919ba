//! The sources of mails: IMAP servers and files.

pub mod files;
pub mod imap;
mod mbox;
