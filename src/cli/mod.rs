//! The command line, with one file for each command. Only this room prints for a person.
//!
//! Data goes to standard output, messages to standard error. Exit codes: 0 success, 1 failure, 2 wrong usage or
//! configuration.

mod args;
mod authorize;
mod check;
mod confirm;
mod deliveries;
mod events;
mod import;
mod init;
mod inquire;
mod mails;
mod maintain;
mod output;
mod packaging;
mod parse;
mod reparse;
mod run;
mod session;
mod standby;
mod status;
mod terminal;

use std::ops::ControlFlow;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::Parser;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;

use args::{Arguments, Command, DeliveriesCommand, MailsCommand, SessionCommand, StandbyCommand};
use standby::ActiveHost;

use crate::app;
use crate::catch_panic;
use crate::config::{self, Config};
use crate::db::{self, Store};
use crate::source::files::{self, FileMail};
use crate::source::imap;

/// The exit code of a failure.
const FAILED: u8 = 1;
/// The exit code of wrong usage or configuration.
const WRONG: u8 = 2;

/// The environment variable with the path of the configuration. An empty value counts as unset.
const VARIABLE: &str = "RESMIC_MAILHOOK_CONFIG";
/// The most mails from files that are examined and committed in one batch.
const BATCH: usize = 64;

/// Runs the program. For wrong usage, clap ends the process with the exit code 2.
#[must_use]
pub fn main() -> ExitCode {
    let arguments = Arguments::parse();
    catch_panic::report_location_only(|place| output::message(&format!("internal error at {place}; please report it")));
    let ended = runtime(&arguments.command).and_then(|runtime| {
        let ended = runtime.block_on(dispatch(arguments));
        // A thread may wait for the system's resolver. The exit does not wait for that thread.
        runtime.shutdown_background();
        ended
    });
    match ended {
        Ok(code) => code,
        Err(error) if output::is_closed_pipe(&error) => ExitCode::SUCCESS,
        Err(error) => {
            output::message(&format!("error: {}", output::with_causes(&error)));
            ExitCode::from(if is_wrong(&error) { WRONG } else { FAILED })
        }
    }
}

/// Wrong usage that clap cannot detect.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
struct UsageError(String);

/// Whether the cause of an error is the command line or the configuration.
fn is_wrong(error: &anyhow::Error) -> bool {
    let is_value = matches!(error.downcast_ref(), Some(db::Error::Value(_)));
    is_value || error.is::<config::Error>() || error.is::<UsageError>()
}

/// `run` and `import` examine many mails, so they use all cores. All other commands use one thread.
fn runtime(command: &Command) -> anyhow::Result<tokio::runtime::Runtime> {
    let mut builder = match command {
        Command::Run { .. } | Command::Import { .. } => tokio::runtime::Builder::new_multi_thread(),
        _ => tokio::runtime::Builder::new_current_thread(),
    };
    Ok(builder.enable_all().build()?)
}

async fn dispatch(arguments: Arguments) -> anyhow::Result<ExitCode> {
    let Arguments { config: path, command } = arguments;
    match command {
        Command::Completions { shell } => return packaging::completions(shell).map(|()| ExitCode::SUCCESS),
        Command::Man { out } => return packaging::man(out.as_deref()).map(|()| ExitCode::SUCCESS),
        _ => {}
    }
    let path = path.or_else(|| std::env::var_os(VARIABLE).filter(|name| !name.is_empty()).map(PathBuf::from));
    if let Command::Init(arguments) = &command {
        return init::run(path.as_deref(), arguments).await.map(|()| ExitCode::SUCCESS);
    }
    let config = match Config::find(path.as_deref()) {
        // `parse` also runs without a configuration, and then uses the defaults.
        Err(config::Error::None) if matches!(command, Command::Parse { .. }) => Config::default(),
        found => found?,
    };
    if let Command::Run { fresh } = command {
        return run::run(config, fresh).await.map(|()| ExitCode::SUCCESS);
    }
    let active = match database_use(&command) {
        DatabaseUse::Writes => ActiveHost::find(&config).await?,
        DatabaseUse::Reads => {
            standby::ensure_migrated(&config)?;
            standby::check_reading(&config, matches!(command, Command::Backup { .. })).await?;
            ActiveHost::unchecked(&config)
        }
        DatabaseUse::Other => ActiveHost::unchecked(&config),
    };
    let ended = execute(&config, command, &active).await;
    // A closed pipe becomes the exit code 0, too.
    if ended.as_ref().map_or_else(output::is_closed_pipe, |_| true) {
        active.ensure_still_active()?;
    }
    ended
}

async fn execute(config: &Config, command: Command, active: &ActiveHost<'_>) -> anyhow::Result<ExitCode> {
    let done = |()| ExitCode::SUCCESS;
    match command {
        Command::Check { connect } => check::run(config, connect).await,
        Command::Parse { json, explain, trust, account, files } => {
            parse::run(config, parse::ParseOptions { json, explain, trust }, account.as_deref(), &files).await
        }
        Command::Import { account, json, paths } => import::run(config, active, account.as_deref(), json, &paths).await,
        Command::Events { filter, follow, json } => events::list(config, &filter, follow, json).await.map(done),
        Command::Show { event_id, json } => events::show(config, &event_id, json).map(done),
        Command::Confirm { event_id, vouch: true, json, .. } => confirm::vouch(config, &event_id, json).await.map(done),
        Command::Confirm { event_id, explain, json, .. } => {
            confirm::look_at_event(config, &event_id, explain, json).await.map(done)
        }
        Command::Mails { outcome, limit, json, command: None } => mails::list(config, outcome, limit, json).map(done),
        Command::Mails { command: Some(MailsCommand::Raw { id }), .. } => mails::raw(config, id).map(done),
        Command::Mails { command: Some(MailsCommand::Release { id }), .. } => mails::release(config, id).await,
        Command::Deliveries { state, limit, json, command: None } => {
            deliveries::list(config, state, limit, json).map(done)
        }
        Command::Deliveries { command: Some(DeliveriesCommand::Retry { ids, dead }), .. } => {
            deliveries::retry(config, ids, dead).await.map(done)
        }
        Command::Deliveries { command: Some(DeliveriesCommand::Verify { target, since, refill }), .. } => {
            deliveries::verify(config, target.as_deref(), since, refill).await
        }
        Command::Session { command: SessionCommand::Add(new) } => session::add(config, new).await.map(done),
        Command::Session { command: SessionCommand::List { limit, json } } => {
            session::list(config, limit, json).map(done)
        }
        Command::Session { command: SessionCommand::Assign { event_id, session_id } } => {
            session::assign(config, &event_id, &session_id).await.map(done)
        }
        Command::Session { command: SessionCommand::Check { session_id, json } } => {
            inquire::check(config, &session_id, json).await
        }
        Command::Reconcile { json } => inquire::reconcile(config, active, json).await,
        Command::Address { order_ref } => session::address(config, &order_ref).await.map(done),
        Command::Status { json } => status::run(config, json),
        Command::Standby { command: StandbyCommand::Release } => standby::release(config).await.map(done),
        Command::Backup { file } => maintain::backup(config, &file).map(done),
        Command::Prune { older_than, quarantined } => maintain::prune(config, older_than, quarantined).await.map(done),
        // `dispatch` has executed these commands.
        Command::Run { .. } | Command::Completions { .. } | Command::Man { .. } | Command::Init(_) => {
            Ok(ExitCode::SUCCESS)
        }
        Command::Authorize { account } => authorize::run(config, &account).await.map(done),
        Command::Reparse { outcome, json } => reparse::run(config, active, outcome, json).await.map(done),
    }
}

/// How a command uses the database.
enum DatabaseUse {
    /// The command writes the database. With `[standby]`, only the active host may run a command that writes the database. After
    /// the command, the host must still be active.
    Writes,
    Reads,
    /// The command does not open the database, or checks by itself whether it may open the database.
    Other,
}

fn database_use(command: &Command) -> DatabaseUse {
    match command {
        Command::Import { .. }
        | Command::Confirm { .. }
        | Command::Mails { command: Some(MailsCommand::Release { .. }), .. }
        | Command::Deliveries { command: Some(_), .. }
        | Command::Session {
            command: SessionCommand::Add(_) | SessionCommand::Assign { .. } | SessionCommand::Check { .. },
        }
        | Command::Reconcile { .. }
        | Command::Prune { .. }
        | Command::Reparse { .. } => DatabaseUse::Writes,
        Command::Events { .. }
        | Command::Show { .. }
        | Command::Mails { command: None | Some(MailsCommand::Raw { .. }), .. }
        | Command::Deliveries { command: None, .. }
        | Command::Session { command: SessionCommand::List { .. } }
        | Command::Backup { .. } => DatabaseUse::Reads,
        Command::Run { .. }
        | Command::Init(_)
        | Command::Authorize { .. }
        | Command::Check { .. }
        | Command::Parse { .. }
        | Command::Address { .. }
        | Command::Status { .. }
        | Command::Standby { .. }
        | Command::Completions { .. }
        | Command::Man { .. } => DatabaseUse::Other,
    }
}

/// Opens the database, does the work, and waits until the database is closed. SQLite then moves the changes from the `-wal` file
/// into the database file, if no other program has the database open. After that, a copy of this one file is complete.
async fn with_store<T>(config: &Config, work: impl AsyncFnOnce(&Store) -> db::Result<T>) -> db::Result<T> {
    let store = Store::open(app::store_settings(config))?;
    let done = work(&store).await;
    store.close().await;
    done
}

/// Reads mails from files in a separate task. The channel holds up to [`BATCH`] mails. The task ends after the last file.
fn read_files(paths: &[PathBuf], max_size: u64) -> (mpsc::Receiver<Result<FileMail, files::Error>>, JoinHandle<()>) {
    let paths = paths.to_vec();
    let (sender, mails) = mpsc::channel(BATCH);
    let reading = tokio::task::spawn_blocking(move || {
        // The channel is closed if the receiver has failed. The receiver reports its failure.
        let mut send = |mail| match sender.blocking_send(mail) {
            Ok(()) => ControlFlow::Continue(()),
            Err(_) => ControlFlow::Break(()),
        };
        for path in &paths {
            if files::read_mails(path, max_size, &mut send).is_break() {
                break;
            }
        }
    });
    (mails, reading)
}

/// Returns the account with this name, or the first account if no name is given.
fn account<'a>(config: &'a Config, name: Option<&str>) -> anyhow::Result<&'a imap::ImapSettings> {
    let found = match name {
        Some(name) => config.accounts.iter().find(|a| a.name == name),
        None => config.accounts.first(),
    };
    found.ok_or_else(|| match name {
        Some(name) => UsageError(format!("the configuration has no account named {name:?}")).into(),
        None => config.wrong("account", "expected at least one [[account]]").into(),
    })
}
