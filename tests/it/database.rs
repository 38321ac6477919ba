//! docs/database.md, README.md and the Datasette queries agree with the schema, and their queries run.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use regex::Regex;
use resmic_mailhook::db::{Store, StoreSettings};
use rusqlite::Connection;

/// Rows for which each documented query returns a result.
const ROWS: &str = "
    INSERT INTO sessions (session_id, order_ref, amount) VALUES
      ('591abe63-aa61-411d-a419-0b546729bbd0', 'A-1001', '20'), ('591abe63-aa61-411d-a419-0b546729bbd1', 'A-1003', '7');
    INSERT INTO events (event_id, status, session_id, session_source, order_ref, amount, token, webhook, hold, created_at) VALUES
      ('fd50a56e-6359-5deb-bbb1-c18babd155ef', 'completed', '591abe63-aa61-411d-a419-0b546729bbd0', 'mail', 'A-1001', '21',
       'DAI', '{}', 'conflict: the amount', strftime('%Y-%m-%dT%H:%M:%fZ', 'now')),
      ('fd50a56e-6359-5deb-bbb1-c18babd155ee', 'completed', NULL, NULL, NULL, '5', 'DAI', '{}', NULL, '2025-03-05T03:36:00.000Z');
    INSERT INTO deliveries (event_id, target, state, created_at)
      VALUES ('fd50a56e-6359-5deb-bbb1-c18babd155ef', 'shop', 'held', '2025-03-05T03:36:00.000Z');
    INSERT INTO attempts (delivery_id, attempt, at) VALUES (1, 1, '2025-03-05T03:36:00.000Z');
    INSERT INTO mails (account, mailbox, uid_validity, uid, size, sha256, outcome, reason, event_id, judged_at, received_at)
      VALUES ('shop', 'INBOX', 1, 1, 1, 'a', 'event', NULL, 'fd50a56e-6359-5deb-bbb1-c18babd155ef',
              '2025-03-05T03:36:00.000Z', '2025-03-05T03:36:00.000Z'),
             ('shop', 'INBOX', 1, 2, 1, 'b', 'quarantined', 'untrusted: no proof', NULL, '2025-03-05T03:36:00.000Z', NULL);
    INSERT INTO mailboxes (account, mailbox) VALUES ('shop', 'INBOX');
    INSERT INTO confirmations (event_id, state, reason, waits_since)
      VALUES ('fd50a56e-6359-5deb-bbb1-c18babd155ef', 'doubtful', 'short: 20 arrived', '2025-03-05T03:36:00.000Z');";

fn read_file(name: &str) -> String {
    fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join(name)).unwrap()
}

/// Creates a database with the program's schema and [`ROWS`].
fn database(folder: &Path) -> Connection {
    let path = folder.join("mailhook.db");
    let matching = resmic_mailhook::config::Config::default().sessions.matching();
    drop(
        Store::open(StoreSettings {
            path: path.clone(),
            targets: Vec::new(),
            matching,
            chains: Vec::new(),
            resmic: None,
        })
        .unwrap(),
    );
    let connection = Connection::open(path).unwrap();
    connection.execute_batch(ROWS).unwrap();
    connection
}

fn columns(connection: &Connection) -> BTreeMap<String, Vec<String>> {
    let sql = "SELECT s.name, c.name FROM sqlite_schema s JOIN pragma_table_info(s.name) c
               WHERE s.type IN ('table', 'view') ORDER BY s.name, c.cid";
    let mut statement = connection.prepare(sql).unwrap();
    let rows = statement.query_map([], |row| Ok((row.get(0)?, row.get(1)?))).unwrap();
    let mut columns: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for row in rows {
        let (table, column): (String, String) = row.unwrap();
        columns.entry(table).or_default().push(column);
    }
    columns
}

#[test]
fn every_table_and_column_is_documented() {
    let folder = tempfile::tempdir().unwrap();
    let real = columns(&database(folder.path()));
    let row = Regex::new(r"(?m)^\| `([a-z0-9_]+)` \|").unwrap();
    let mut said = BTreeMap::new();
    for section in read_file("docs/database.md").split("\n## ").skip(1) {
        if let Some(table) = section.lines().next().unwrap().strip_prefix('`').and_then(|l| l.strip_suffix('`')) {
            let columns: Vec<_> = row.captures_iter(section).map(|c| c[1].to_owned()).collect();
            said.insert(table.to_owned(), columns);
        }
    }
    assert_eq!(said, real);
}

#[test]
fn documented_queries_run() {
    let folder = tempfile::tempdir().unwrap();
    let connection = database(folder.path());
    let block = Regex::new(r"(?s)```sql\n(.*?)```").unwrap();
    let mut asked = 0;
    for file in ["docs/database.md", "README.md"] {
        let text = read_file(file);
        for sql in
            block.captures_iter(&text).flat_map(|c| c[1].split_inclusive(';').map(str::to_owned).collect::<Vec<_>>())
        {
            if sql.trim().is_empty() {
                continue;
            }
            asked += 1;
            let mut statement = connection.prepare(&sql).unwrap_or_else(|e| panic!("{file}: {sql}: {e}"));
            if statement.readonly() {
                assert!(statement.exists([]).unwrap(), "{file}: no row for {sql}");
            } else {
                assert_eq!(statement.execute([]).unwrap(), 1, "{sql}");
            }
        }
    }
    assert!(asked > 15, "{asked}");
}

#[test]
fn datasette_queries_run() {
    let folder = tempfile::tempdir().unwrap();
    let connection = database(folder.path());
    let metadata: serde_json::Value = serde_json::from_str(&read_file("contrib/datasette/metadata.json")).unwrap();
    let database = &metadata["databases"]["mailhook"];
    for (name, query) in database["queries"].as_object().unwrap() {
        let mut statement =
            connection.prepare(query["sql"].as_str().unwrap()).unwrap_or_else(|e| panic!("{name}: {e}"));
        if statement.parameter_count() == 1 {
            statement.raw_bind_parameter(1, "A-1001").unwrap();
        }
        assert!(statement.raw_query().next().unwrap().is_some(), "{name}");
    }
    let real = columns(&connection);
    for (table, of) in database["tables"].as_object().unwrap() {
        let facets = of.get("facets").and_then(|f| f.as_array()).cloned().unwrap_or_default();
        for column in facets.iter().chain(of.get("sort_desc")).chain(of.get("label_column")) {
            assert!(real[table].iter().any(|c| Some(c.as_str()) == column.as_str()), "{table}: {column}");
        }
    }
}
