//! `check`: validates the configuration. With `--connect`, the command also connects to everything that the configuration names.

use std::process::ExitCode;

use super::output::{ignore_closed_pipe, message};
use crate::config::Config;
use crate::source::imap;
use crate::standby::restore_problem;
use crate::telemetry::NodeRequests;
use crate::{app, confirm, forward, telemetry, tls, trust};

pub(super) async fn run(config: &Config, connect: bool) -> anyhow::Result<ExitCode> {
    if config.accounts.is_empty() {
        return Err(config.wrong("account", "expected at least one [[account]]").into());
    }
    let (mut logins, mut clients) = (Vec::new(), tls::TlsClients::default());
    for (n, account) in config.accounts.iter().enumerate() {
        logins.push(app::login(config, n, account, &mut clients).await?);
        app::rules(config, account).await?;
    }
    let targets = app::forward_targets(config).await?;
    let chains = app::chains(config, &NodeRequests::default()).await?;
    let resmic = app::resmic_client(config).await?;
    let lease = match &config.standby {
        Some(standby) => {
            standby.host().map_err(|(key, problem)| config.wrong(&format!("standby.{key}"), problem))?;
            Some(app::lease_place(config, standby).await?)
        }
        None => None,
    };
    // The configuration is often checked before the program is installed, so a missing program does not make it invalid.
    let restore = config.standby.as_ref().and_then(|standby| standby.restore.as_ref());
    let restore_problem = restore.and_then(|restore| restore_problem(&restore.command));
    if let Some(problem) = &restore_problem {
        message(&format!(
            "warning: [standby] restore: {problem}; without it, this host cannot take over from another host"
        ));
    }
    if config.trust.accepts_unproven() {
        message("warning: [trust] accept has \"none\": mails are trusted without proof; use it for tests only");
    }
    line("the configuration is valid")?;
    if !connect {
        return Ok(ExitCode::SUCCESS);
    }
    if config.accounts.iter().any(|account| account.oauth2.is_some()) {
        // If a login cannot store a new refresh token, only the log reports this error. So the log is printed.
        let (log, format) = (telemetry::LogLevel::Warn, Some(telemetry::LogFormat::Plain));
        let _logging = telemetry::start(&telemetry::TelemetrySettings { log, format, metrics: None });
    }
    let mut all_ok = true;
    for (account, login) in config.accounts.iter().zip(&logins) {
        let found = imap::probe(account, login).await.unwrap_or_else(|error| vec![Err(error.to_string())]);
        all_ok &= print_results(&format!("account {}", account.name), found)?;
    }
    let resolver = trust::dns::Resolver::new(&config.dns)?;
    for domain in &config.trust.from {
        all_ok &= print_results(&format!("domain {domain}"), trust::dns::check_domain(&resolver, domain).await)?;
    }
    for target in &targets {
        all_ok &= print_results(&format!("target {}", target.name()), forward::probe(target).await)?;
    }
    for chain in &chains {
        all_ok &= print_results(&format!("chain {}", chain.chain.name), confirm::probe(chain).await)?;
    }
    if let Some(client) = &resmic {
        let found = client.check_key().await.map(|()| vec![format!("{} accepts the key", client.host())]);
        all_ok &= print_results("resmic", each_line(found.map_err(|error| error.to_string())))?;
    }
    if let Some(place) = lease {
        let found = crate::standby::check_bucket(place).await;
        let restore_problem = restore_problem.map(|problem| Err(format!("restore: {problem}")));
        all_ok &= print_results("standby", found.into_iter().chain(restore_problem).collect())?;
    }
    Ok(if all_ok { ExitCode::SUCCESS } else { ExitCode::from(super::FAILED) })
}

/// Prints a line. A closed pipe is ignored, because the exit code shows the result.
fn line(text: &str) -> anyhow::Result<()> {
    ignore_closed_pipe(super::output::line(text))
}

/// Returns one result for each line of `found`, or the error of `found` as the only result.
fn each_line(found: Result<Vec<String>, String>) -> Vec<Result<String, String>> {
    found.map_or_else(|error| vec![Err(error)], |lines| lines.into_iter().map(Ok).collect())
}

/// Prints the results of one check, such as the check of an account or of a target. Returns false if one result is an error.
fn print_results(name: &str, results: Vec<Result<String, String>>) -> anyhow::Result<bool> {
    let mut all_ok = true;
    for result in results {
        match result {
            Ok(text) => line(&format!("{name}: {text}"))?,
            Err(error) => {
                all_ok = false;
                line(&format!("{name}: FAILED: {error}"))?;
            }
        }
    }
    Ok(all_ok)
}
