//! What the demo prints: headings, facts, commands with their output, and rows.

use std::process::Command;

use rusqlite::types::ValueRef;
use testkit::daemon::Home;

/// The widest line of a table.
const WIDTH: usize = 118;
/// The widest cell of a table.
const CELL: usize = 40;

/// Prints the title of a part.
pub(crate) fn heading(title: &str) {
    println!("\n{title}\n{}", "─".repeat(title.chars().count()));
}

/// Prints a fact. Panics if it is wrong.
pub(crate) fn fact(holds: bool, words: &str) {
    assert!(holds, "this did not happen: {words}");
    println!("✓ {words}");
}

/// Runs a command of the program, and prints it with its output. Panics if its exit code is not `code`.
pub(crate) fn command(home: &Home, arguments: &[&str], code: i32) -> String {
    let output = run(home.command(arguments), code);
    println!("$ resmic-mailhook {}", arguments.join(" "));
    output.lines().for_each(|line| println!("{}", cut(&format!("  {line}"), WIDTH).trim_end()));
    output
}

fn run(mut command: Command, code: i32) -> String {
    let output = command.output().unwrap();
    let errors = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(code), "{command:?}: {errors}");
    String::from_utf8(output.stdout).unwrap() + &errors
}

/// Prints a query with its first `limit` rows, and returns the number of rows.
pub(crate) fn query(home: &Home, sql: &str, limit: usize) -> usize {
    println!("{sql}");
    let rows = rows(home, sql);
    print_table(&rows[..rows.len().min(limit + 1)]);
    let count = rows.len() - 1;
    if count > limit {
        println!("  … {count} rows");
    }
    count
}

/// The names of the columns, then the rows of a query, as text.
fn rows(home: &Home, sql: &str) -> Vec<Vec<String>> {
    let connection = home.sqlite();
    let mut statement = connection.prepare(sql).unwrap();
    let mut all = vec![statement.column_names().map(str::to_owned).collect::<Vec<_>>()];
    let columns = statement.column_count();
    let mut rows = statement.query([]).unwrap();
    while let Some(row) = rows.next().unwrap() {
        let cell = |n| match row.get_ref(n).unwrap() {
            ValueRef::Integer(n) => n.to_string(),
            ValueRef::Text(text) => String::from_utf8_lossy(text).into_owned(),
            _ => "-".into(),
        };
        all.push((0..columns).map(cell).collect());
    }
    all
}

fn print_table(rows: &[Vec<String>]) {
    let width = |column: usize| rows.iter().map(|row| row[column].chars().count().min(CELL)).max().unwrap_or(0);
    let widths: Vec<_> = (0..rows[0].len()).map(width).collect();
    for row in rows {
        let cells = row.iter().zip(&widths).map(|(cell, width)| format!("{:<width$}  ", cut(cell, CELL)));
        println!("  {}", cut(cells.collect::<String>().trim_end(), WIDTH));
    }
}

/// The text, or its beginning and `…`.
fn cut(text: &str, width: usize) -> String {
    if text.chars().count() <= width {
        return text.to_owned();
    }
    text.chars().take(width - 1).chain(['…']).collect()
}
