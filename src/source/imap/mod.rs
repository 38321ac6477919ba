//! Watches one mailbox of a mail server over IMAP (RFC 3501), with IDLE (RFC 2177) and NOTIFY (RFC 5465).
//!
//! | layer | modules |
//! | --- | --- |
//! | bytes | `transport`: TCP and TLS. `response_buffer`: bytes → responses, with limits |
//! | commands | `connection`: a command and its OK, with a timeout. `throttling`: the pause that a server asks for |
//! | login | `login`: from the settings to a connection that is logged in. `oauth`: access tokens. `probe`: `check --connect` |
//! | mailbox | `mailbox`: finds and selects it. `renumbering`: do UIDs mean the same mails? `fetch`: FETCH items and responses |
//! | state | `reader`: everything known about an open mailbox: `progress`, `arrivals`, `fetch_history`, `after_queue` |
//! | work | `selected`: an open mailbox on its connection. `sync` and `sync_queue`: fetch new mails by the cursor rule |
//! | work | `refetch`: fetches undelivered mails again. `after`: marks or moves notifications. `idle`: waits for new mail |
//! | whole | `watcher`: connects, reads, waits, and starts over after an error. `account`: the watcher's inputs and reports |

mod account;
mod after;
mod after_queue;
mod arrivals;
mod connection;
mod error;
mod fetch;
mod fetch_history;
mod idle;
mod login;
mod mailbox;
mod oauth;
mod probe;
mod progress;
mod reader;
mod refetch;
mod renumbering;
mod response_buffer;
mod selected;
mod settings;
mod sync;
mod sync_queue;
mod throttling;
mod timing;
mod transport;
mod uid_search;
mod utf7;
mod watcher;

pub use account::{Account, Batch, IsCandidate, LoadResumePoint, Quirks, ResumePoint, WatcherReport};
pub use error::Error;
pub use login::{Credentials, Login};
pub use mailbox::FINGERPRINT_UIDS;
pub use oauth::{AccessTokens, OAuthSettings};
pub use probe::probe;
pub use settings::{After, ImapSettings, Start, Tls, is_address, is_host};
pub use throttling::SuggestedPause;
pub use timing::Timing;
pub use watcher::{LONGEST_PAUSE, watch};
