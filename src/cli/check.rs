//! `check`: is the configuration right, and with `--connect`, does everything that it names answer?

use std::process::ExitCode;

use super::output::{say, unheard};
use crate::config::Config;
use crate::source::imap;
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
    let chains = app::chains(config).await?;
    if config.trust.accepts_unproven() {
        say("warning: [trust] accept has \"none\": mails are believed without proof; fit for a laboratory only");
    }
    line("the configuration is right")?;
    if !connect {
        return Ok(ExitCode::SUCCESS);
    }
    if config.accounts.iter().any(|account| account.oauth2.is_some()) {
        // That a refresh token was replaced and cannot be kept would go unheard.
        let (log, format) = (telemetry::LogLevel::Warn, Some(telemetry::LogFormat::Plain));
        let _logging = telemetry::start(&telemetry::TelemetrySettings { log, format, metrics: None });
    }
    let mut all_well = true;
    for (account, login) in config.accounts.iter().zip(&logins) {
        let found = imap::probe(account, login).await.unwrap_or_else(|error| vec![Err(error.to_string())]);
        all_well &= tell(&format!("account {}", account.name), found)?;
    }
    let resolver = trust::dns::Resolver::new(&config.dns)?;
    for domain in &config.trust.from {
        all_well &= tell(&format!("domain {domain}"), each(trust::dns::check_domain(&resolver, domain).await))?;
    }
    for target in &targets {
        all_well &= tell(&format!("callback {}", target.name()), each(forward::probe(target).await))?;
    }
    for chain in &chains {
        all_well &= tell(&format!("chain {}", chain.chain.name), confirm::probe(chain).await)?;
    }
    Ok(if all_well { ExitCode::SUCCESS } else { ExitCode::from(super::FAILED) })
}

/// A line that need not be heard: the exit code says how it went.
fn line(text: &str) -> anyhow::Result<()> {
    unheard(super::output::line(text))
}

/// What was found, line by line, or the one thing that is wrong.
fn each(found: Result<Vec<String>, String>) -> Vec<Result<String, String>> {
    found.map_or_else(|error| vec![Err(error)], |lines| lines.into_iter().map(Ok).collect())
}

/// Prints what was found; false if there was a failure.
fn tell(what: &str, found: Vec<Result<String, String>>) -> anyhow::Result<bool> {
    let mut all_well = true;
    for found in found {
        match found {
            Ok(words) => line(&format!("{what}: {words}"))?,
            Err(error) => {
                all_well = false;
                line(&format!("{what}: FAILED: {error}"))?;
            }
        }
    }
    Ok(all_well)
}
