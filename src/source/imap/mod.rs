//! One mailbox on one server, watched for ever.
//!
//! `net` is bytes, `wire` is commands and answers under deadlines, `connect` and `login` let us in
//! (`oauth`: with a token), `fetch` knows how mails are
//! asked for, `sync` holds the cursor rule, `idle` waits, `watch` begins anew whenever something ends; `timing` says
//! how long each of them waits.

mod after;
mod connect;
mod error;
mod fetch;
mod framing;
mod idle;
mod login;
mod mailbox;
mod net;
mod oauth;
mod settings;
mod sync;
mod timing;
mod utf7;
mod watch;
mod wire;

pub use connect::{Credentials, Login, probe};
pub use error::Error;
pub use oauth::{Settings as OAuth2, Tokens};
pub use settings::{After, Settings, Start, Tls};
pub use timing::Timing;
pub use watch::{Account, Batch, Cursors, IsCandidate, Known, LONGEST_PAUSE, Report, watch};
