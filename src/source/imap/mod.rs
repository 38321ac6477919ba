//! One mailbox on one server, watched for ever.
//!
//! `net` is bytes, `answers` are those that came, until they are whole (`usual`: as most of them are written; `lenient`: as
//! some servers write them and imap-proto rejects them), `connection` is commands and answers under deadlines, `connect` and
//! `login` let us in (`oauth`: with a token; `refusal`: why not), `account` is what a watcher is told and says, `mailbox`
//! finds and opens one, `fetch` knows how mails are asked for (`history`: and remembers FETCHes that failed), `opened` is an
//! open mailbox, `sync` holds the cursor rule, `again` fetches mails again that were not delivered, `after` puts away what is stored, `idle` waits (`interrupt`: and asks for what is new meanwhile), `watch` begins anew
//! whenever something ends; `timing` says how long each of them waits. A file imports only from those before it.

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
mod timing;
mod transport;
mod utf7;
mod watcher;

pub use account::{Account, Batch, IsCandidate, LoadResumePoint, Quirks, ResumePoint, WatcherReport};
pub use error::Error;
pub use login::{Credentials, Login};
pub use mailbox::FINGERPRINT_UIDS;
pub use oauth::{AccessTokens, OAuthSettings};
pub use probe::probe;
pub use settings::{After, ImapSettings, Start, Tls, is_address, is_host};
pub use timing::Timing;
pub use watcher::{LONGEST_PAUSE, watch};
