//! Logins and TLS at a real server.

use resmic_mailhook::nats::{NatsError, NatsSettings};
use resmic_mailhook::secret::SecretSource;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::*;

/// A secret that a command prints.
fn secret(value: &str) -> Option<SecretSource> {
    Some(SecretSource::Command(vec!["printf".into(), "%s".into(), value.into()]))
}

fn nats(url: String) -> NatsSettings {
    NatsSettings { servers: vec![url.parse().unwrap()], ..NatsSettings::default() }
}

async fn connect(settings: &NatsSettings) -> Result<(), NatsError> {
    settings.check().unwrap();
    let connection = settings.load().await.unwrap().connect().await?;
    connection.client().flush().await.unwrap();
    assert!(!connection.is_lost());
    Ok(())
}

/// Whether the server refused the login, and the text has this advice and no secret.
fn is_refused(connected: &Result<(), NatsError>, advice: &str) -> bool {
    let message = format!("the server refuses the login; {advice}");
    matches!(connected, Err(NatsError::NotAllowed(text)) if text.ends_with(&message) && !text.contains("s3cret"))
}

#[tokio::test]
async fn users_and_tokens_log_in() {
    let server = NatsServer::start_with("authorization { user: mailhook, password: \"s3cret\" }");
    let mut settings = nats(server.url());
    assert!(is_refused(&connect(&settings).await, "set user and password, token, or client_certificate"));
    (settings.user, settings.password) = (Some("mailhook".into()), secret("s3cret"));
    connect(&settings).await.unwrap();
    settings.password = secret("s3cret-wrong");
    assert!(is_refused(&connect(&settings).await, "check user and password"));
    let server = NatsServer::start_with("authorization { token: \"s3cret\" }");
    let mut settings = nats(server.url());
    settings.token = secret("s3cret");
    connect(&settings).await.unwrap();
    settings.token = secret("s3cret-wrong");
    assert!(is_refused(&connect(&settings).await, "check token"));
}

const TLS: &str = "tls { cert_file: server.pem, key_file: server.key, ca_file: ca.pem";

#[tokio::test]
async fn tls_needs_a_trusted_certificate() {
    let server = NatsServer::start_with(&format!("{TLS} }}"));
    let mut settings = nats(format!("tls://localhost:{}", server.port));
    let unknown = connect(&settings).await.unwrap_err();
    assert!(matches!(&unknown, NatsError::NotAllowed(text) if text.contains("check ca_file")), "{unknown}");
    settings.ca_file = Some(server.ca());
    connect(&settings).await.unwrap();
    settings.servers = vec![format!("tls://127.0.0.1:{}", server.port).parse().unwrap()];
    connect(&settings).await.unwrap();
}

#[tokio::test]
async fn a_server_without_tls_gets_no_login() {
    let server = NatsServer::start_with("authorization { user: mailhook, password: \"s3cret\" }");
    let mut settings = nats(format!("tls://localhost:{}", server.port));
    (settings.user, settings.password) = (Some("mailhook".into()), secret("s3cret"));
    settings.ca_file = Some(server.ca());
    assert!(connect(&settings).await.is_err());
}

#[tokio::test]
async fn client_certificates_are_presented() {
    let server = NatsServer::start_with(&format!("{TLS}, verify: true }}"));
    let mut settings = nats(format!("tls://localhost:{}", server.port));
    settings.ca_file = Some(server.ca());
    assert!(connect(&settings).await.is_err());
    let key = server.folder.path().join("server.key");
    settings.client_certificate = Some(server.folder.path().join("server.pem"));
    settings.client_key = Some(SecretSource::File(key));
    connect(&settings).await.unwrap();
    settings.client_key = Some(SecretSource::File(server.ca()));
    assert_eq!(settings.load().await.unwrap_err().0, "client_key");
    settings.client_certificate = Some(server.folder.path().join("server.key"));
    settings.client_key = Some(SecretSource::File(server.folder.path().join("server.key")));
    assert_eq!(settings.load().await.unwrap_err().0, "client_certificate");
}

#[tokio::test]
async fn a_lost_connection_stays_lost() {
    let mut server = NatsServer::start();
    let settings = nats(server.url());
    let servers = settings.load().await.unwrap();
    let connection = servers.connect().await.unwrap();
    server.stop();
    tokio::time::timeout(Duration::from_secs(20), connection.lost()).await.unwrap();
    assert!(connection.is_lost());
    let unreachable = servers.connect().await.unwrap_err();
    assert!(matches!(&unreachable, NatsError::Unreachable(text) if text.contains("refused")), "{unreachable}");
    server.restart();
    assert!(connection.is_lost(), "the library must not log in again");
    servers.connect().await.unwrap();
}

#[tokio::test]
async fn another_machine_is_refused_without_tls() {
    // This address is for documentation (RFC 5737). Nothing is sent there.
    let servers = nats("nats://192.0.2.1".into()).load().await.unwrap();
    let refused = servers.connect().await.unwrap_err();
    assert!(matches!(&refused, NatsError::NotAllowed(text) if text.contains("no loopback address")), "{refused}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_endless_message_ends_the_connection() {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("nats://{}", listener.local_addr().unwrap());
    let flooding = tokio::spawn(async move {
        let (mut stream, _) = listener.accept().await.unwrap();
        stream.write_all(b"INFO {\"version\":\"2.12.0\",\"headers\":true}\r\n").await.unwrap();
        // CONNECT and PING
        assert!(stream.read(&mut [0; 4096]).await.unwrap() > 0);
        stream.write_all(b"PONG\r\nMSG x 0 9999999999999\r\n").await.unwrap();
        let mut sent: u64 = 0;
        // The server sends slowly, so a limit for the bytes in a second would not notice the flood.
        while stream.write_all(&[b'x'; 1 << 20]).await.is_ok() {
            sent += 1 << 20;
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        sent
    });
    let connection = nats(url).load().await.unwrap().connect().await.unwrap();
    tokio::time::timeout(Duration::from_secs(60), connection.lost()).await.unwrap();
    drop(connection);
    let sent = tokio::time::timeout(Duration::from_secs(60), flooding).await.unwrap().unwrap();
    assert!(sent < 1 << 28, "{sent} bytes were accepted");
}

/// A request notices a message that is too large sooner than an idle connection does, so a fast server fills less memory.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_flood_ends_a_request_early() {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("nats://{}", listener.local_addr().unwrap());
    let flooding = tokio::spawn(async move {
        let (mut stream, _) = listener.accept().await.unwrap();
        stream.write_all(GREETING.as_bytes()).await.unwrap();
        assert!(stream.read(&mut [0; 4096]).await.unwrap() > 0);
        stream.write_all(b"PONG\r\n").await.unwrap();
        // The request
        assert!(stream.read(&mut [0; 4096]).await.unwrap() > 0);
        stream.write_all(b"MSG x 0 9999999999999\r\n").await.unwrap();
        let mut sent: u64 = 0;
        // 100 MB a second
        while stream.write_all(&[b'x'; 1 << 20]).await.is_ok() {
            sent += 1 << 20;
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        sent
    });
    let connection = nats(url).load().await.unwrap().connect().await.unwrap();
    let error = connection.stream_info(STREAM).await.unwrap_err().to_string();
    assert!(error.contains("the NATS server sends a message of more than 16 MiB"), "{error}");
    assert!(connection.is_lost());
    drop(connection);
    let sent = tokio::time::timeout(Duration::from_secs(60), flooding).await.unwrap().unwrap();
    assert!(sent < 1 << 27, "{sent} bytes were accepted");
}

/// Starts a server that sends `greeting` to each client. If the client sends something, the server then sends `answer`.
async fn server_that_sends(greeting: &'static str, answer: &'static str) -> String {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("nats://{}", listener.local_addr().unwrap());
    tokio::spawn(async move {
        loop {
            let (mut stream, _) = listener.accept().await.unwrap();
            let _ = stream.write_all(greeting.as_bytes()).await;
            if stream.read(&mut [0; 4096]).await.is_ok_and(|n| n > 0) {
                let _ = stream.write_all(answer.as_bytes()).await;
                // The client ends the connection.
                let _ = stream.read(&mut [0; 4096]).await;
            }
        }
    });
    url
}

const GREETING: &str = "INFO {\"version\":\"2.12.0\",\"headers\":true}\r\n";
/// These lines make async-nats panic.
const BARE_ERROR: &str = "-ERR\r\n";
const HUGE_MESSAGE: &str = "MSG x 0 18446744073709551615\r\n";
const HUGE_MESSAGE_WITH_HEADERS: &str = "HMSG x 0 1 18446744073709551615\r\n";

#[tokio::test]
async fn no_greeting_ends_the_program() {
    for (greeting, answer) in [
        (BARE_ERROR, ""),
        (HUGE_MESSAGE, ""),
        (HUGE_MESSAGE_WITH_HEADERS, ""),
        (GREETING, BARE_ERROR),
        (GREETING, HUGE_MESSAGE),
        (GREETING, HUGE_MESSAGE_WITH_HEADERS),
    ] {
        for scheme in ["nats", "tls"] {
            if scheme == "tls" && greeting == GREETING {
                continue;
            }
            let url = server_that_sends(greeting, answer).await.replace("nats", scheme);
            let error = connect(&nats(url)).await.unwrap_err();
            let is_named = matches!(&error, NatsError::Unreachable(text) if text.contains("the server sends no NATS protocol; check `nats`"));
            assert!(is_named, "{scheme}: {greeting:?}, {answer:?}: {error}");
        }
    }
}

/// The forwarder records the problem and continues.
#[tokio::test]
async fn the_forwarder_outlasts_a_malformed_greeting() {
    let url = server_that_sends(BARE_ERROR, "").await;
    let mut setup = ForwarderSetup::new(vec![paid_stream(&url, "")]);
    setup.record(vec![paid(Some(1), 1)]).await;
    setup.start();
    setup.until_sql("SELECT problems FROM streams WHERE needs_person = 0", "sends no NATS protocol").await;
    assert_eq!(setup.deliveries()[0].attempts, 0);
    setup.stop().await;
}
