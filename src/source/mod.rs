//! Where mails come from: a mail server that tells of each new one, or files.

pub mod files;
pub mod imap;
mod mbox;
