//! Everything that a first configuration needs, except the conversation with the person: knowledge about mail providers,
//! discovery of a mail server, the text of the configuration, new files, and authorization at an OAuth provider.
//!
//! Nothing here prints or asks.

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
