//! docs/picture.svg, the picture of the README, shows what the program prints on a terminal.
//!
//! `make picture` draws it again. Apart from the times of the run, everything in the picture is printed by the program.

use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use regex::Regex;
use testkit::daemon::Home;
use testkit::shop::{Shop, published};

const PICTURE: &str = "docs/picture.svg";
/// The width of the terminal.
const COLUMNS: usize = 120;
/// This time replaces all times of the run. It is a second after the time that the mail states.
const TIME: &str = "2025-03-05T03:36:42.000Z";
const SOON: Duration = Duration::from_secs(60);

/// Runs a command on a terminal. Returns the command line and its output, as the terminal shows them.
fn on_terminal(home: &Home, arguments: &[&str]) -> String {
    let command = home.command(arguments);
    let command_line = std::iter::once(command.get_program()).chain(command.get_args());
    let command_line: Vec<_> = command_line.map(|word| word.to_str().unwrap()).collect();
    let mut script = Command::new("script");
    script.args([
        "-E",
        "never",
        "-qec",
        &format!("stty cols {COLUMNS} && exec {}", command_line.join(" ")),
        "/dev/null",
    ]);
    script.envs(command.get_envs().filter_map(|(name, value)| Some((name, value?))));
    script.env_remove("NO_COLOR").env("TERM", "xterm").stdin(Stdio::null());
    let output = String::from_utf8(script.output().unwrap().stdout).unwrap().replace("\r\n", "\n");
    let fits = |line: &str| without_escapes(line).chars().count() <= COLUMNS;
    assert!(output.lines().all(fits), "a terminal would break a line of: {output}");
    format!("\u{1b}[1m$ resmic-mailhook {}\u{1b}[0m\n{output}\n", arguments.join(" "))
}

/// The text without escape sequences.
fn without_escapes(text: &str) -> String {
    Regex::new("\u{1b}\\[[0-9;]*m").unwrap().replace_all(text, "").into_owned()
}

/// A payment arrives for an order, and a forged copy of its mail. Then the operator looks at both.
fn screen() -> String {
    let shop = Shop::open();
    let daemon = shop.watch(SOON);
    let mail = shop.sign(&published(&shop.sell()));
    shop.receive(&mail);
    shop.home.until("SELECT state FROM deliveries", "delivered", SOON);
    shop.receive(String::from_utf8(mail).unwrap().replace("$20", "$2000").as_bytes());
    shop.home.until("SELECT count(*) FROM mails WHERE outcome = 'quarantined'", "1", SOON);
    shop.home.until("SELECT state FROM mailboxes", "idle", SOON);
    let event = shop.home.ask("SELECT event_id FROM events");
    let commands: [&[&str]; 3] = [&["show", &event], &["mails", "--outcome", "quarantined"], &["status"]];
    let screen: String = commands.iter().map(|arguments| on_terminal(&shop.home, arguments)).collect();
    assert_eq!(daemon.end(), Some(0));
    let times = Regex::new(r"\b\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z").unwrap();
    let stated = "2025-03-05T03:36:41.000Z";
    assert!(Regex::new(r"T\d\d:\d\d:\d\d(\.\d*)?\s").unwrap().find(&screen).is_none(), "a time is broken: {screen}");
    times
        .replace_all(screen.trim_end(), |time: &regex::Captures<'_>| if &time[0] == stated { stated } else { TIME })
        .into()
}

fn draw(screen: &str) -> String {
    let picture = anstyle_svg::Term::new().palette(anstyle_svg::WIN10_CONSOLE).render_svg(screen);
    let title = "<title>Output of resmic-mailhook, made by `make picture`. All times of the run are replaced.</title>";
    picture.replacen('\n', &format!("\n  {title}\n"), 1)
}

#[test]
fn the_picture_shows_what_the_program_prints() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(PICTURE);
    let screen = screen();
    let picture = draw(&screen);
    if std::env::var_os("MAKE_PICTURE").is_some() {
        fs::write(&path, &picture).unwrap();
    }
    let kept = fs::read_to_string(&path).unwrap_or_default();
    let differs = kept.lines().zip(picture.lines()).find(|(kept, now)| kept != now);
    assert!(kept == picture, "{PICTURE} is old: run `make picture`, and look at it\n{differs:?}\n{screen}");
}
