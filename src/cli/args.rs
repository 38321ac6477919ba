//! What may be typed.

use std::path::PathBuf;

use clap::builder::{PossibleValuesParser, TypedValueParser};
use clap::{Args, Parser, Subcommand};

use crate::model::{DeliveryState, Outcome, Status};
use crate::source::imap::Tls;

const EXIT_CODES: &str = "Exit codes: 0 done, 1 it did not work (status: something needs a person), 2 wrong usage or \
    configuration.";

/// Turns Resmic Pro's payment mails into the gateway's webhook events.
#[derive(Debug, Parser)]
#[command(name = "resmic-mailhook", version, about, max_term_width = 100, after_help = EXIT_CODES)]
pub(super) struct Arguments {
    /// The configuration; by default $RESMIC_MAILHOOK_CONFIG, ./config.toml or /etc/resmic-mailhook/config.toml, the
    /// first there is
    #[arg(long, value_name = "FILE", global = true)]
    pub(super) config: Option<PathBuf>,
    #[command(subcommand)]
    pub(super) command: Command,
}

#[derive(Debug, Subcommand)]
pub(super) enum Command {
    /// Watch the mailboxes, in the foreground, until SIGTERM or SIGINT
    Run,
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
        /// Also log in to each account, open each mailbox, resolve DNS, reach each callback and ask each node; no event is sent
        #[arg(long)]
        connect: bool,
    },
    /// Read mails and print what they say; no database
    Parse {
        /// Print JSON Lines
        #[arg(long)]
        json: bool,
        /// Show where each value came from
        #[arg(long)]
        explain: bool,
        /// Also judge whether they may be believed (asks DNS)
        #[arg(long)]
        trust: bool,
        /// Read them as this account's mails [default: the first]
        #[arg(long, value_name = "NAME")]
        account: Option<String>,
        /// .eml, .emlx or mbox files; - for standard input
        #[arg(required = true, value_name = "FILE")]
        files: Vec<PathBuf>,
    },
    /// Take mails from files into the database, judged as if they had come by IMAP
    Import {
        /// The account whose mails they are [default: the first]
        #[arg(long, value_name = "NAME")]
        account: Option<String>,
        /// Print JSON Lines, one object a mail
        #[arg(long)]
        json: bool,
        /// .eml and .emlx files, folders of them, mbox files, Maildirs; - for standard input
        #[arg(required = true, value_name = "PATH")]
        paths: Vec<PathBuf>,
    },
    /// What happened: the events, oldest first
    Events {
        #[command(flatten)]
        filter: EventFilter,
        /// Go on printing as events come
        #[arg(long)]
        follow: bool,
        /// Print JSON Lines
        #[arg(long)]
        json: bool,
    },
    /// One event, with its mails and deliveries
    Show {
        /// The event
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
        /// Deliver it by your decision, whatever the chain says; nodes are not asked
        #[arg(long, conflicts_with = "explain")]
        vouch: bool,
    },
    /// The mails that were judged
    #[command(args_conflicts_with_subcommands = true)]
    Mails {
        /// Only those with this outcome
        #[arg(long, value_parser = one_of(Outcome::ALL, Outcome::as_str))]
        outcome: Option<Outcome>,
        /// Print JSON Lines
        #[arg(long)]
        json: bool,
        #[command(subcommand)]
        command: Option<MailsCommand>,
    },
    /// The outbox: events on their way to callbacks
    #[command(args_conflicts_with_subcommands = true)]
    Deliveries {
        /// Only those in this state
        #[arg(long, value_parser = one_of(DeliveryState::ALL, DeliveryState::as_str))]
        state: Option<DeliveryState>,
        /// Print JSON Lines
        #[arg(long)]
        json: bool,
        #[command(subcommand)]
        command: Option<DeliveriesCommand>,
    },
    /// Which session is for which order
    Session {
        #[command(subcommand)]
        command: SessionCommand,
    },
    /// Print the signed address to give Resmic as webhook_url for an order
    Address {
        /// Your own name for what is to be paid
        order_ref: String,
    },
    /// Is it working, and what should I do? Exits with 1 when something needs a person
    Status {
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
    /// Write a consistent copy of the database, while the daemon runs; overwrites nothing
    Backup {
        /// The copy
        file: PathBuf,
    },
    /// Drop the bytes of old mails and what else nobody needs; events and what recognises a replay stay
    Prune {
        /// How old: 90d, 48h
        #[arg(long, value_name = "D")]
        older_than: crate::units::HumanDuration,
        /// Also the bytes of mails in quarantine, which can then not be released any more
        #[arg(long)]
        quarantined: bool,
    },
    /// Print completions for a shell
    Completions {
        /// The shell
        shell: clap_complete::Shell,
    },
    /// Print the manual page, in roff; with --out, one for each command
    Man {
        /// Write the pages into this folder
        #[arg(long, value_name = "FOLDER")]
        out: Option<PathBuf>,
    },
    /// Run stored mails through today's rules again; an event that was delivered never changes
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
    /// A DNS server to ask, as in [dns] servers; may be repeated [default: the system's]
    #[arg(long, value_name = "ADDRESS")]
    pub(super) dns: Vec<String>,
    /// Do not try the login
    #[arg(long)]
    pub(super) no_login: bool,
    /// Ask nothing; a missing answer is an error that names its flag
    #[arg(long)]
    pub(super) yes: bool,
}

/// One of the words that the parser lets through.
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
    /// Only events stored since then: 2025-03-05, 2025-03-05T03:36:00Z, or 2h for two hours ago
    #[arg(long, value_name = "T", value_parser = since)]
    pub(super) since: Option<jiff::Timestamp>,
}

#[derive(Debug, Subcommand)]
pub(super) enum MailsCommand {
    /// Vouch for a quarantined mail: it becomes an event, with trust "operator"
    Release {
        /// The mail
        id: i64,
    },
    /// Print a mail as it came, byte for byte
    Raw {
        /// The mail
        id: i64,
    },
}

#[derive(Debug, Subcommand)]
pub(super) enum SessionCommand {
    /// Register a session, with what is known of it
    Add(NewSession),
    /// The registered sessions, oldest first
    List {
        /// Print JSON Lines
        #[arg(long)]
        json: bool,
    },
    /// Say which session an event belongs to; lets its deliveries go
    Assign {
        /// The event
        event_id: String,
        /// The session
        session_id: String,
    },
}

#[derive(Debug, Args)]
pub(super) struct NewSession {
    /// What Resmic returned when the session was created
    pub(super) session_id: String,
    /// Your own name for what is paid
    #[arg(long, value_name = "REF")]
    pub(super) order: Option<String>,
    /// US dollars
    #[arg(long, value_name = "A")]
    pub(super) amount: Option<String>,
    /// The chain that was asked for
    #[arg(long, value_name = "B")]
    pub(super) blockchain: Option<String>,
    /// The token that was asked for
    #[arg(long, value_name = "T")]
    pub(super) token: Option<String>,
}

#[derive(Debug, Subcommand)]
pub(super) enum DeliveriesCommand {
    /// Try again now; the time until they are given up begins anew
    Retry {
        /// The deliveries
        #[arg(value_name = "ID", required_unless_present = "dead", conflicts_with = "dead")]
        ids: Vec<i64>,
        /// All that were given up
        #[arg(long)]
        dead: bool,
    },
}

/// One of these words, which the help, the manual and the completions name then.
fn one_of<T>(all: &'static [T], word: fn(T) -> &'static str) -> impl TypedValueParser<Value = T>
where
    T: std::str::FromStr<Err = String> + Copy + Send + Sync + 'static,
{
    PossibleValuesParser::new(all.iter().map(|value| word(*value))).try_map(|text| text.parse::<T>())
}

/// A date, a moment, or a duration back from now.
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
        .map_err(|_| "expected a date (2025-03-05), a moment (2025-03-05T03:36:00Z) or a duration (2h)".to_owned())?;
    jiff::Timestamp::now().checked_sub(ago.0).map_err(|e| format!("{e}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_moment_is_taken_whole_and_in_utc_if_it_says_no_zone() {
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
