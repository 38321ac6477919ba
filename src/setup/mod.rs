//! The parts of `init` and `authorize` without the dialogue: the table of mail providers, the discovery of a mail server, the
//! text of the configuration, new files, and the authorization at an OAuth provider.
//!
//! This room does not print, and does not ask the person.

mod discovery;
mod draft;
mod files;
pub mod oauth;
mod provider;
mod random;

pub use discovery::{Discovered, MailServer, discover};
pub use draft::{Draft, LoginDraft, OrderMethod, ProviderApp, SecretPlace};
pub use files::{NewFiles, Replacement};
pub use provider::{Provider, SignIn};
pub use random::random_hex;
