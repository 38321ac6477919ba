//! One file for each command: the only rooms that print for a person.
//!
//! Data goes to standard output, talk to standard error. Exit codes: 0 done, 1 it did not work, 2 wrong usage or
//! configuration.

mod args;
mod authorize;
mod check;
mod confirm;
mod deliveries;
mod events;
mod import;
mod init;
mod mails;
mod maintain;
mod output;
mod packaging;
mod parse;
mod reparse;
mod run;
mod session;
mod status;
mod terminal;

use std::ops::ControlFlow;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::Parser;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;

use args::{Arguments, Command, DeliveriesCommand, MailsCommand, SessionCommand};

use crate::app;
use crate::catch_panic;
use crate::config::{self, Config};
use crate::db::{self, Store};
use crate::source::files::{self, FileMail};
use crate::source::imap;

/// It did not work.
const FAILED: u8 = 1;
/// Wrong usage or configuration.
const WRONG: u8 = 2;

/// Names the configuration, unless it is empty.
const VARIABLE: &str = "RESMIC_MAILHOOK_CONFIG";
/// How many mails from files are examined and committed together.
const BATCH: usize = 64;

/// Runs the program; clap answers wrong usage with 2 by itself.
#[must_use]
pub fn main() -> ExitCode {
    let arguments = Arguments::parse();
    catch_panic::report_location_only(|place| {
        output::say(&format!("a fault of the program at {place}: please report it"))
    });
    let ended = runtime(&arguments.command).and_then(|runtime| {
        let ended = runtime.block_on(dispatch(arguments));
        // The system's resolver may be in the midst of a question that nobody answers: the end does not wait for it.
        runtime.shutdown_background();
        ended
    });
    match ended {
        Ok(code) => code,
        Err(error) if output::is_closed_pipe(&error) => ExitCode::SUCCESS,
        Err(error) => {
            output::say(&format!("error: {}", output::whole(&error)));
            ExitCode::from(if is_wrong(&error) { WRONG } else { FAILED })
        }
    }
}

/// What was typed is wrong, which clap could not know.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
struct Usage(String);

/// Whether somebody has to type or write something else.
fn is_wrong(error: &anyhow::Error) -> bool {
    let value = matches!(error.downcast_ref(), Some(db::Error::Value(_)));
    value || error.is::<config::Error>() || error.is::<Usage>()
}

/// Commands that examine many mails use all cores; for looking something up one thread is enough.
fn runtime(command: &Command) -> anyhow::Result<tokio::runtime::Runtime> {
    let mut builder = match command {
        Command::Run | Command::Import { .. } => tokio::runtime::Builder::new_multi_thread(),
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
    // Reading a mail needs no configuration: without one the defaults hold.
    let path = path.or_else(|| std::env::var_os(VARIABLE).filter(|name| !name.is_empty()).map(PathBuf::from));
    if let Command::Init(arguments) = &command {
        return init::run(path.as_deref(), arguments).await.map(|()| ExitCode::SUCCESS);
    }
    let config = match Config::find(path.as_deref()) {
        Err(config::Error::None) if matches!(command, Command::Parse { .. }) => Config::default(),
        found => found?,
    };
    let done = |()| ExitCode::SUCCESS;
    match command {
        Command::Run => run::run(config).await.map(done),
        Command::Check { connect } => check::run(&config, connect).await,
        Command::Parse { json, explain, trust, account, files } => {
            parse::run(&config, parse::How { json, explain, trust }, account.as_deref(), &files).await
        }
        Command::Import { account, json, paths } => import::run(&config, account.as_deref(), json, &paths).await,
        Command::Events { filter, follow, json } => events::list(&config, &filter, follow, json).await.map(done),
        Command::Show { event_id, json } => events::show(&config, &event_id, json).map(done),
        Command::Confirm { event_id, vouch: true, json, .. } => {
            confirm::vouch(&config, &event_id, json).await.map(done)
        }
        Command::Confirm { event_id, explain, json, .. } => {
            confirm::look(&config, &event_id, explain, json).await.map(done)
        }
        Command::Mails { outcome, json, command: None } => mails::list(&config, outcome, json).map(done),
        Command::Mails { command: Some(MailsCommand::Raw { id }), .. } => mails::raw(&config, id).map(done),
        Command::Mails { command: Some(MailsCommand::Release { id }), .. } => mails::release(&config, id).await,
        Command::Deliveries { state, json, command: None } => deliveries::list(&config, state, json).map(done),
        Command::Deliveries { command: Some(DeliveriesCommand::Retry { ids, dead }), .. } => {
            deliveries::retry(&config, ids, dead).await.map(done)
        }
        Command::Session { command: SessionCommand::Add(new) } => session::add(&config, new).await.map(done),
        Command::Session { command: SessionCommand::List { json } } => session::list(&config, json).map(done),
        Command::Session { command: SessionCommand::Assign { event_id, session_id } } => {
            session::assign(&config, &event_id, &session_id).await.map(done)
        }
        Command::Address { order_ref } => session::address(&config, &order_ref).await.map(done),
        Command::Status { json } => status::run(&config, json),
        Command::Backup { file } => maintain::backup(&config, &file).map(done),
        Command::Prune { older_than, quarantined } => maintain::prune(&config, older_than, quarantined).await.map(done),
        // Answered above.
        Command::Completions { .. } | Command::Man { .. } | Command::Init(_) => Ok(ExitCode::SUCCESS),
        Command::Authorize { account } => authorize::run(&config, &account).await.map(done),
        Command::Reparse { outcome, json } => reparse::run(&config, outcome, json).await.map(done),
    }
}

/// Does something that writes, and waits until the database is closed: what a process leaves open stays in the `-wal`
/// until the next one comes, and whoever copies the one file has not got it.
async fn writing<T>(config: &Config, work: impl AsyncFnOnce(&Store) -> db::Result<T>) -> db::Result<T> {
    let store = Store::open(app::store_settings(config))?;
    let done = work(&store).await;
    store.close().await;
    done
}

/// Reads files beside the work on their mails, of which no more than `BATCH` wait; the task ends when all are read.
fn read_files(paths: &[PathBuf], max_size: u64) -> (mpsc::Receiver<Result<FileMail, files::Error>>, JoinHandle<()>) {
    let (paths, (found, mails)) = (paths.to_vec(), mpsc::channel(BATCH));
    let reading = tokio::task::spawn_blocking(move || {
        // If nobody takes it, the other side has failed and says so.
        let mut hand_over = |mail| match found.blocking_send(mail) {
            Ok(()) => ControlFlow::Continue(()),
            Err(_) => ControlFlow::Break(()),
        };
        let _ = paths.iter().try_for_each(|path| files::read_mails(path, max_size, &mut hand_over));
    });
    (mails, reading)
}

/// The account of that name; without one, the first.
fn account<'a>(config: &'a Config, name: Option<&str>) -> anyhow::Result<&'a imap::Settings> {
    let found = match name {
        Some(name) => config.accounts.iter().find(|a| a.name == name),
        None => config.accounts.first(),
    };
    found.ok_or_else(|| match name {
        Some(name) => Usage(format!("no account is named {name:?} in the configuration")).into(),
        None => config.wrong("account", "expected at least one [[account]]").into(),
    })
}
