//! The command line: commands, options and their help.

use std::path::PathBuf;

use clap::builder::{PossibleValuesParser, TypedValueParser};
use clap::{Args, Parser, Subcommand};

use crate::model::{DeliveryState, Outcome, Status};
use crate::source::imap::Tls;

const EXIT_CODES: &str = "Exit codes: 0 success; 1 failure, or `status` found something that needs attention; 2 wrong usage \
    or configuration.";

/// Turns Resmic Pro's payment mails into the gateway's webhook events
#[derive(Debug, Parser)]
#[command(name = "resmic-mailhook", version, about, max_term_width = 100, after_help = EXIT_CODES)]
pub(super) struct Arguments {
    /// The configuration file. The default is the file that $RESMIC_MAILHOOK_CONFIG names, or else the first of ./config.toml
    /// and /etc/resmic-mailhook/config.toml that exists
    #[arg(long, value_name = "FILE", global = true)]
    pub(super) config: Option<PathBuf>,
    #[command(subcommand)]
    pub(super) command: Command,
}

#[derive(Debug, Subcommand)]
pub(super) enum Command {
    /// Run the daemon in the foreground until SIGTERM or SIGINT
    Run {
        /// With `[standby]`: at the first takeover, open the database as it is, also if it is empty or older than that of the
        /// last active host; the restore command runs only if there is no database
        #[arg(long)]
        fresh: bool,
    },
    /// Write a first configuration and its secrets, in /etc/resmic-mailhook unless --config names a file elsewhere: asks on
    /// a terminal, or takes flags; overwrites nothing
    Init(Box<InitArguments>),
    /// Get a refresh token for an account with OAuth, in a browser on any machine
    Authorize {
        /// The account's name in the configuration
        account: String,
    },
    /// Validate the configuration
    Check {
        /// Also log in to each account, open each mailbox, query DNS, connect to each handler and ask each node; no event is sent
        #[arg(long)]
        connect: bool,
    },
    /// Parse mails and print the payments that they report; uses no database
    Parse {
        /// Print JSON Lines
        #[arg(long)]
        json: bool,
        /// Show the place in the mail from which each value was read
        #[arg(long)]
        explain: bool,
        /// Also authenticate the mails; queries DNS
        #[arg(long)]
        trust: bool,
        /// The account whose settings apply [default: the first]
        #[arg(long, value_name = "NAME")]
        account: Option<String>,
        /// .eml, .emlx or mbox files; - for standard input
        #[arg(required = true, value_name = "FILE")]
        files: Vec<PathBuf>,
    },
    /// Store mails from files in the database, examined like mails from IMAP
    Import {
        /// The account that received the mails [default: the first]
        #[arg(long, value_name = "NAME")]
        account: Option<String>,
        /// Print JSON Lines, one object for each mail
        #[arg(long)]
        json: bool,
        /// .eml, .emlx and mbox files, folders of .eml and .emlx files, Maildirs; - for standard input
        #[arg(required = true, value_name = "PATH")]
        paths: Vec<PathBuf>,
    },
    /// List the events, oldest first
    Events {
        #[command(flatten)]
        filter: EventFilter,
        /// Keep running and print new events
        #[arg(long)]
        follow: bool,
        /// Print JSON Lines
        #[arg(long)]
        json: bool,
    },
    /// Show an event with its mails and deliveries
    Show {
        /// The event's id
        event_id: String,
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
    /// Look an event up at the nodes of its chain now, or vouch for it
    Confirm {
        /// The event
        event_id: String,
        /// Show what each node answers
        #[arg(long)]
        explain: bool,
        /// Print JSON
        #[arg(long)]
        json: bool,
        /// Deliver it by your decision, whatever the chain and Resmic say. It sends no request
        #[arg(long, conflicts_with = "explain")]
        vouch: bool,
    },
    /// List the stored mails; `mails release` and `mails raw` work on one mail
    #[command(args_conflicts_with_subcommands = true)]
    Mails {
        /// Only mails with this outcome
        #[arg(long, value_parser = one_of(Outcome::ALL, Outcome::as_str))]
        outcome: Option<Outcome>,
        /// Only the newest N [default: 50 on a terminal, all with --json, to a file or a pipe]
        #[arg(long, value_name = "N")]
        limit: Option<u32>,
        /// Print JSON Lines
        #[arg(long)]
        json: bool,
        #[command(subcommand)]
        command: Option<MailsCommand>,
    },
    /// List the deliveries; `deliveries retry` makes them due, `deliveries verify` compares streams with the database
    #[command(args_conflicts_with_subcommands = true)]
    Deliveries {
        /// Only deliveries in this state
        #[arg(long, value_parser = one_of(DeliveryState::ALL, DeliveryState::as_str))]
        state: Option<DeliveryState>,
        /// Only the newest N [default: 50 on a terminal, all with --json, to a file or a pipe]
        #[arg(long, value_name = "N")]
        limit: Option<u32>,
        /// Print JSON Lines
        #[arg(long)]
        json: bool,
        #[command(subcommand)]
        command: Option<DeliveriesCommand>,
    },
    /// Register and list sessions, and assign events to them
    Session {
        #[command(subcommand)]
        command: SessionCommand,
    },
    /// Ask Resmic now about all registered sessions without a completed or failed event; needs `[resmic]`
    Reconcile {
        /// Print JSON Lines
        #[arg(long)]
        json: bool,
    },
    /// Print the signed address to give Resmic as webhook_url for an order
    Address {
        /// Your name for the thing that is paid
        order_ref: String,
    },
    /// Show the health and what to do; exits with 1 if something needs attention
    Status {
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
    /// Hand the lease of `[standby]` over
    Standby {
        #[command(subcommand)]
        command: StandbyCommand,
    },
    /// Copy the database to a new file, also while the daemon runs
    Backup {
        /// The new file, which must not exist
        file: PathBuf,
    },
    /// Delete the bytes of old mails, ignored mails and attempts; events stay, and a replayed mail is still recognised
    Prune {
        /// The minimum age, for example 90d or 48h
        #[arg(long, value_name = "D")]
        older_than: crate::units::HumanDuration,
        /// Also delete the bytes of quarantined mails, which can then no longer be released
        #[arg(long)]
        quarantined: bool,
    },
    /// Print shell completions
    Completions {
        /// The shell
        shell: clap_complete::Shell,
    },
    /// Print the manual page in roff; with --out, write one page for each command
    Man {
        /// Write the pages into this folder
        #[arg(long, value_name = "FOLDER")]
        out: Option<PathBuf>,
    },
    /// Examine stored mails again with the current rules; a delivered event never changes
    Reparse {
        /// Only mails with this outcome
        #[arg(long, value_parser = one_of(Outcome::ALL, Outcome::as_str))]
        outcome: Option<Outcome>,
        /// Print JSON Lines
        #[arg(long)]
        json: bool,
    },
}

#[derive(Debug, Args)]
pub(super) struct InitArguments {
    /// The mail address that Resmic sends to
    #[arg(long, value_name = "ADDRESS")]
    pub(super) email: Option<String>,
    /// The IMAP server [default: found by the address's domain, MX, SRV, or a usual name]
    #[arg(long, value_name = "H")]
    pub(super) host: Option<String>,
    /// Its port [default: 993, or 143 without implicit TLS]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..))]
    pub(super) port: Option<u16>,
    /// How the connection is protected [default: implicit]
    #[arg(long, value_name = "HOW", value_parser = PossibleValuesParser::new(["implicit", "starttls", "none"]).map(tls))]
    pub(super) tls: Option<Tls>,
    /// Certificates to trust in addition to the system's, PEM
    #[arg(long, value_name = "FILE")]
    pub(super) ca_file: Option<PathBuf>,
    /// The login name [default: the address]
    #[arg(long, value_name = "NAME")]
    pub(super) user: Option<String>,
    /// A file with the password; - for standard input
    #[arg(long, value_name = "FILE")]
    pub(super) password_file: Option<PathBuf>,
    /// Log in with OAuth at Google; at Microsoft there is no other way
    #[arg(long)]
    pub(super) oauth: bool,
    /// With OAuth: the id of your application
    #[arg(long, value_name = "ID")]
    pub(super) client_id: Option<String>,
    /// With OAuth at Google: a file with the secret of your application; - for standard input
    #[arg(long, value_name = "FILE")]
    pub(super) client_secret_file: Option<PathBuf>,
    /// With OAuth at Microsoft: the directory (tenant) [default: the address's domain]
    #[arg(long, value_name = "ID")]
    pub(super) tenant: Option<String>,
    /// The account's name in the configuration
    #[arg(long, value_name = "NAME", default_value = "shop")]
    pub(super) account: String,
    /// The mailbox receives only Resmic's mails
    #[arg(long)]
    pub(super) dedicated: bool,
    /// The URL of your handler, to which events are posted
    #[arg(long, value_name = "URL", conflicts_with = "no_forward")]
    pub(super) forward: Option<String>,
    /// There is no handler; events stay in the database
    #[arg(long)]
    pub(super) no_forward: bool,
    /// A file with the handler's key for X-Signature; - for standard input
    #[arg(long, value_name = "FILE", conflicts_with = "generate_webhook_secret")]
    pub(super) webhook_secret_file: Option<PathBuf>,
    /// Generate the handler's key for X-Signature
    #[arg(long)]
    pub(super) generate_webhook_secret: bool,
    /// How payments find their orders: by signed address, by a registered session with the same amount, or in your handler
    #[arg(long, value_name = "WAY", value_parser = ["address", "match", "send"])]
    pub(super) orders: Option<String>,
    /// A DNS server to ask, as in `[dns] servers`; may be repeated [default: the system's]
    #[arg(long, value_name = "ADDRESS")]
    pub(super) dns: Vec<String>,
    /// Do not try the login
    #[arg(long)]
    pub(super) no_login: bool,
    /// Ask nothing; a missing answer is an error that names its flag
    #[arg(long)]
    pub(super) yes: bool,
}

/// Converts one of the three values of `--tls`.
fn tls(word: String) -> Tls {
    match word.as_str() {
        "starttls" => Tls::Starttls,
        "none" => Tls::None,
        _ => Tls::Implicit,
    }
}

#[derive(Debug, Args)]
pub(super) struct EventFilter {
    /// Only events of this session
    #[arg(long, value_name = "S")]
    pub(super) session: Option<String>,
    /// Only events of this transaction
    #[arg(long, value_name = "H")]
    pub(super) tx: Option<String>,
    /// Only events with this status
    #[arg(long, value_name = "S", value_parser = one_of(Status::ALL, Status::as_str))]
    pub(super) status: Option<Status>,
    /// Only events stored since this time: 2025-03-05, 2025-03-05T03:36:00Z, or 2h for two hours ago
    #[arg(long, value_name = "T", value_parser = since)]
    pub(super) since: Option<jiff::Timestamp>,
    /// Only the newest N [default: 50 on a terminal, all with --json, to a file or a pipe]
    #[arg(long, value_name = "N")]
    pub(super) limit: Option<u32>,
}

#[derive(Debug, Subcommand)]
pub(super) enum MailsCommand {
    /// Accept a quarantined mail as genuine: it becomes an event with trust "operator"
    Release {
        /// The mail's id
        id: i64,
    },
    /// Print the bytes of a mail
    Raw {
        /// The mail's id
        id: i64,
    },
}

#[derive(Debug, Subcommand)]
pub(super) enum SessionCommand {
    /// Ask Resmic now how a session ended; needs `[resmic]`
    Check {
        /// The session's id
        session_id: String,
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
    /// Register a session
    Add(NewSession),
    /// List the registered sessions, oldest first
    List {
        /// Only the newest N [default: 50 on a terminal, all with --json, to a file or a pipe]
        #[arg(long, value_name = "N")]
        limit: Option<u32>,
        /// Print JSON Lines
        #[arg(long)]
        json: bool,
    },
    /// Assign an event to a session and release its deliveries
    Assign {
        /// The event's id
        event_id: String,
        /// The session's id
        session_id: String,
    },
}

#[derive(Debug, Subcommand)]
pub(super) enum StandbyCommand {
    /// Ask the active daemon of this host to stop and release the lease, and wait until another host has it
    Release,
}

#[derive(Debug, Args)]
pub(super) struct NewSession {
    /// The session_id that Resmic returned when you created the session
    pub(super) session_id: String,
    /// Your name for the thing that is paid
    #[arg(long, value_name = "REF")]
    pub(super) order: Option<String>,
    /// The amount in US dollars
    #[arg(long, value_name = "A")]
    pub(super) amount: Option<String>,
    /// The requested blockchain
    #[arg(long, value_name = "B")]
    pub(super) blockchain: Option<String>,
    /// The requested token
    #[arg(long, value_name = "T")]
    pub(super) token: Option<String>,
}

#[derive(Debug, Subcommand)]
pub(super) enum DeliveriesCommand {
    /// Make deliveries due now; give_up_after counts from now
    Retry {
        /// The deliveries' ids
        #[arg(value_name = "ID", required_unless_present = "dead", conflicts_with = "dead")]
        ids: Vec<i64>,
        /// All dead deliveries
        #[arg(long)]
        dead: bool,
    },
    /// Compare the streams with the database: does each stream still have what it has acknowledged?
    Verify {
        /// Only this `[[forward]]`; it has the key nats
        #[arg(long, value_name = "T")]
        target: Option<String>,
        /// Only events delivered since then: 30d for thirty days ago, 2025-03-05, 2025-03-05T03:36:00Z
        #[arg(long, value_name = "D", value_parser = since)]
        since: Option<jiff::Timestamp>,
        /// Publish again what the stream has lost
        #[arg(long)]
        refill: bool,
    },
}

/// Parses one of the words of an enum. Help, manual page and completions list these words.
fn one_of<T>(all: &'static [T], word: fn(T) -> &'static str) -> impl TypedValueParser<Value = T>
where
    T: std::str::FromStr<Err = String> + Copy + Send + Sync + 'static,
{
    PossibleValuesParser::new(all.iter().map(|value| word(*value))).try_map(|text| text.parse::<T>())
}

/// Parses a date, a time, or a duration before now.
fn since(text: &str) -> Result<jiff::Timestamp, String> {
    if let Ok(at) = text.parse() {
        return Ok(at);
    }
    // As in the database, a time without a zone is in UTC.
    if let Ok(at) = text.parse::<jiff::civil::DateTime>() {
        return format!("{at}Z").parse().map_err(|e| format!("{e}"));
    }
    let ago = text
        .parse::<crate::units::HumanDuration>()
        .map_err(|_| "expected a date (2025-03-05), a time (2025-03-05T03:36:00Z) or a duration (2h)".to_owned())?;
    jiff::Timestamp::now().checked_sub(ago.0).map_err(|e| format!("{e}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn since_without_a_zone_is_utc() {
        for (text, moment) in [
            ("2025-03-05", "2025-03-05T00:00:00Z"),
            ("2025-03-05T15:04:05", "2025-03-05T15:04:05Z"),
            ("2025-03-05 15:04", "2025-03-05T15:04:00Z"),
            ("2025-03-05T15:04:05.678Z", "2025-03-05T15:04:05.678Z"),
            ("2025-03-05T15:04:05+02:00", "2025-03-05T13:04:05Z"),
        ] {
            assert_eq!(since(text), Ok(moment.parse().unwrap()), "{text}");
        }
        for wrong in ["", "yesterday", "2025-02-30", "2025-03-05T25:00", "2"] {
            assert!(since(wrong).is_err(), "{wrong}");
        }
    }
}
