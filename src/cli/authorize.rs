//! `authorize`: an operator signs in with a browser, and the program writes the refresh token to the file that the configuration
//! names.

use std::io::BufRead;
use std::sync::Arc;

use secrecy::{ExposeSecret, SecretString};
use tokio::sync::mpsc;
use tokio_rustls::rustls::ClientConfig;

use super::UsageError;
use super::output::message;
use crate::config::Config;
use crate::http::Url;
use crate::setup::Replacement;
use crate::setup::oauth::{AuthorizationWay, DeviceCode, Loopback, OAuthClient};
use crate::source::imap;
use crate::tls;
use crate::units::count;

pub(super) async fn run(config: &Config, name: &str) -> anyhow::Result<()> {
    let found = config.accounts.iter().position(|account| account.name == name);
    let missing = || UsageError(format!("no account is named {name:?} in the configuration"));
    let (n, account) = found.and_then(|n| Some((n, config.accounts.get(n)?))).ok_or_else(missing)?;
    let key = |key: &str| format!("account[{n}].{key}");
    let Some(settings) = &account.oauth2 else {
        return Err(config.wrong(&key("password"), "authorize needs [account.oauth2] in place of it").into());
    };
    let way =
        AuthorizationWay::from_settings(settings).map_err(|problem| config.wrong(&key("oauth2.token_url"), problem))?;
    let wrong_place = |problem: String| config.wrong(&key("oauth2.refresh_token"), problem);
    let file = settings.refresh_token.file().map_err(|missing| wrong_place(missing.to_string()))?;
    let client_secret = match &settings.client_secret {
        Some(source) => Some(config.secret(&key("oauth2.client_secret"), source).await?),
        None => None,
    };
    // `begin` tests whether the file can be written, before the person signs in. The provider may issue the token only once.
    let replacement = Replacement::begin(&file)
        .map_err(|e| anyhow::anyhow!("cannot write {}: {e}; run authorize with sudo", file.display()))?;
    let client = OAuthClient::new(settings, client_secret, roots(config, n, account, &way)?);
    let token = match way {
        AuthorizationWay::Device(url) => by_device(&client, &url, &account.user).await,
        AuthorizationWay::Browser(url) => by_browser(&client, &url, &account.user).await,
    };
    let token = token.map_err(anyhow::Error::msg)?;
    let stored = replacement.commit(&format!("{}\n", token.expose_secret()));
    stored.map_err(|e| anyhow::anyhow!("cannot write {}: {e}; make room and run authorize again", file.display()))?;
    message(&format!("authorized; the refresh token is in {}", file.display()));
    message("next: resmic-mailhook check --connect; then restart the daemon, if it runs");
    Ok(())
}

/// The TLS client for the endpoints of the OAuth provider; `None` if no endpoint needs TLS.
fn roots(
    config: &Config,
    n: usize,
    account: &imap::ImapSettings,
    way: &AuthorizationWay,
) -> anyhow::Result<Option<Arc<ClientConfig>>> {
    let (AuthorizationWay::Device(url) | AuthorizationWay::Browser(url)) = way;
    if !url.tls && !account.oauth2.as_ref().is_some_and(|settings| settings.token_url.tls) {
        return Ok(None);
    }
    let client = tls::client_config(account.ca_file.as_deref());
    Ok(Some(client.map_err(|e| config.wrong(&format!("account[{n}].ca_file"), e.to_string()))?))
}

async fn by_device(client: &OAuthClient, url: &Url, user: &str) -> Result<SecretString, String> {
    let code = DeviceCode::request(client, url).await?;
    message("Open this page in a browser on any device:");
    message(&format!("  {}", code.verification_uri));
    message(&format!("and enter the code {}. Sign in as {user}.", code.user_code));
    message(&format!("Waiting, for at most {} …", count(code.expires_in.as_secs().div_ceil(60), "minute")));
    code.wait(client).await
}

async fn by_browser(client: &OAuthClient, url: &Url, user: &str) -> Result<SecretString, String> {
    let authorization = Loopback::listen().await?;
    message(&format!("Open this page in a browser, and sign in as {user}:"));
    message(&format!("  {}", authorization.page(client, url, user)));
    message(&format!("The browser then opens {} on this machine.", authorization.redirect_uri()));
    message("If the browser runs on another machine, it shows an error. Paste the address of that error page here:");
    authorization.wait(client, pasted_lines(), message).await
}

/// Returns the lines of standard input, into which the person may paste the URL of the redirect.
fn pasted_lines() -> mpsc::Receiver<String> {
    let (lines, pasted) = mpsc::channel(1);
    // A read of standard input cannot be cancelled, so this thread may wait until the process ends.
    std::thread::spawn(move || {
        for line in std::io::stdin().lock().lines().map_while(Result::ok) {
            if lines.blocking_send(line).is_err() {
                return;
            }
        }
    });
    pasted
}
