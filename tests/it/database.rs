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
    let mut documented = BTreeMap::new();
    for section in read_file("docs/database.md").split("\n## ").skip(1) {
        if let Some(table) = section.lines().next().unwrap().strip_prefix('`').and_then(|l| l.strip_suffix('`')) {
            let columns: Vec<_> = row.captures_iter(section).map(|c| c[1].to_owned()).collect();
            documented.insert(table.to_owned(), columns);
        }
    }
    assert_eq!(documented, real);
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

/// The queries of the documents and of Datasette, each with the name of its document, query or table.
fn documented() -> Vec<(String, String)> {
    let block = Regex::new(r"(?s)```sql\n(.*?)```").unwrap();
    let mut found = Vec::new();
    for file in ["docs/database.md", "README.md"] {
        let text = read_file(file);
        let blocks = block.captures_iter(&text).map(|c| c[1].to_owned()).collect::<String>();
        found.extend(blocks.split_inclusive(';').map(|sql| (file.to_owned(), sql.to_owned())));
    }
    let metadata: serde_json::Value = serde_json::from_str(&read_file("contrib/datasette/metadata.json")).unwrap();
    let database = &metadata["databases"]["mailhook"];
    for (name, query) in database["queries"].as_object().unwrap() {
        found.push((name.clone(), query["sql"].as_str().unwrap().to_owned()));
    }
    for (table, page) in database["tables"].as_object().unwrap() {
        if let Some(column) = page.get("sort_desc").and_then(|column| column.as_str()) {
            found.push((table.clone(), format!("SELECT * FROM {table} ORDER BY {column} DESC LIMIT 51")));
        }
    }
    found.retain(|(_, sql)| !sql.trim().is_empty());
    found
}

/// Scans that a query plan may contain, because they read few rows: one row for each mailbox, counted value, day or token, or the
/// rows of a subquery with a LIMIT.
const SMALL: [&str; 6] = ["SCAN mailboxes", "SCAN counts", "SCAN (subquery-", "SCAN days", "SCAN t", "SCAN sums"];

/// The steps that read more rows than the result needs, or sort them.
fn slow_steps(connection: &Connection, sql: &str) -> Vec<String> {
    let mut plan = connection.prepare(&format!("EXPLAIN QUERY PLAN {sql}")).unwrap_or_else(|e| panic!("{sql}: {e}"));
    let mut steps = Vec::new();
    let mut rows = plan.raw_query();
    while let Some(row) = rows.next().unwrap() {
        steps.push(row.get::<_, String>(3).unwrap());
    }
    // In a table with an INTEGER PRIMARY KEY, the newest rows are the last ones. So a scan from the end stops at the limit.
    let newest_first = sql.contains("ORDER BY id DESC LIMIT");
    let scans = |step: &str| step.starts_with("SCAN ") && !step.contains(" USING ") && !newest_first;
    steps.retain(|step| {
        scans(step) && !SMALL.iter().any(|small| step.starts_with(small)) || step.contains("TEMP B-TREE")
    });
    steps
}

#[test]
fn documented_queries_use_indexes() {
    let folder = tempfile::tempdir().unwrap();
    let connection = database(folder.path());
    let documented = documented();
    assert!(documented.len() > 30, "{}", documented.len());
    for (place, sql) in documented {
        assert_eq!(slow_steps(&connection, &sql), Vec::<String>::new(), "{place}: {sql}");
    }
}

#[test]
fn payments_are_found_by_indexes() {
    let folder = tempfile::tempdir().unwrap();
    let connection = database(folder.path());
    let first_step = |condition: &str| -> String {
        let sql = format!("SELECT * FROM payments {condition}");
        assert_eq!(slow_steps(&connection, &sql), Vec::<String>::new(), "{sql}");
        let plan = format!("EXPLAIN QUERY PLAN {sql}");
        connection.query_row(&plan, [], |row| row.get(3)).unwrap()
    };
    for (condition, index) in [
        ("WHERE session_id = '591ABE63-AA61-411d-a419-0b546729bbd0'", "events_by_session (session_id=?)"),
        ("WHERE order_ref = 'A-1001'", "events_by_order (order_ref=?)"),
        ("WHERE event_id = 'fd50a56e-6359-5deb-bbb1-c18babd155ef'", "sqlite_autoindex_events_1 (event_id=?)"),
        ("WHERE transaction_hash = '0xA'", "events_by_hash (transaction_hash=?)"),
        ("WHERE status = 'completed' AND session_id = 'x'", "events_by_session (session_id=?)"),
        ("WHERE created_at >= date('now')", "events_by_time (created_at>?)"),
        ("ORDER BY created_at DESC LIMIT 20", "events_by_time"),
        ("WHERE status = 'completed' ORDER BY created_at DESC LIMIT 20", "events_by_time"),
        ("ORDER BY tx_time DESC LIMIT 20", "events_by_tx_time"),
        ("ORDER BY tx_time DESC NULLS LAST LIMIT 20", "events_by_tx_time"),
        ("WHERE session_id IS NULL ORDER BY created_at DESC LIMIT 20", "events_unresolved"),
        ("WHERE hold IS NOT NULL ORDER BY created_at DESC LIMIT 20", "events_on_hold"),
    ] {
        let step = first_step(condition);
        assert!(step.ends_with(&format!("INDEX {index}")), "{condition}: {step}");
    }
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
    for (table, settings) in database["tables"].as_object().unwrap() {
        let facets = settings.get("facets").and_then(|f| f.as_array()).cloned().unwrap_or_default();
        for column in facets.iter().chain(settings.get("sort_desc")).chain(settings.get("label_column")) {
            assert!(real[table].iter().any(|c| Some(c.as_str()) == column.as_str()), "{table}: {column}");
        }
    }
}

/// The steps of SQLite's plan for a query.
fn query_plan(connection: &Connection, sql: &str) -> Vec<String> {
    let mut statement = connection.prepare(&format!("EXPLAIN QUERY PLAN {sql}")).unwrap();
    let rows = statement.query_map([], |row| row.get(3)).unwrap();
    rows.collect::<rusqlite::Result<_>>().unwrap()
}

#[test]
fn payments_answers_from_indexes() {
    let folder = tempfile::tempdir().unwrap();
    let connection = database(folder.path());
    for rest in [
        "WHERE session_id = 'a'",
        "WHERE order_ref = 'a'",
        "WHERE event_id = 'a'",
        "WHERE transaction_hash = 'a'",
        "ORDER BY created_at DESC LIMIT 20",
        "ORDER BY tx_time DESC LIMIT 20",
    ] {
        let plan = query_plan(&connection, &format!("SELECT * FROM payments {rest}"));
        let bad = |step: &&String| {
            (step.starts_with("SCAN") && !step.contains("USING INDEX")) || step.contains("TEMP B-TREE")
        };
        assert_eq!(plan.iter().find(bad), None, "{rest}: {plan:?}");
    }
}

/// The definition of the view `payments` by a window function, which reads all events.
const NEWEST_BY_RANK: &str = "
    SELECT event_id FROM (SELECT event_id, row_number() OVER (
      PARTITION BY coalesce(lower(session_id), event_id)
      ORDER BY status = 'completed' DESC, coalesce(tx_time, created_at) DESC, created_at DESC, rowid DESC) AS place
    FROM events) WHERE place = 1 ORDER BY event_id";

#[test]
fn payments_has_the_newest_state_of_sessions() {
    let folder = tempfile::tempdir().unwrap();
    let connection = database(folder.path());
    // A linear congruential generator, which creates the same rows in each run.
    let mut seed = 7_u64;
    let mut below = |n: u64| {
        seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (seed >> 33) % n
    };
    for n in 0..2_000 {
        let status = ["completed", "failed", "pending"][below(3) as usize];
        let session = (below(4) > 0).then(|| {
            let id = format!("591abe63-aa61-411d-a419-0b5467{:06x}", below(300));
            if below(2) == 0 { id.to_uppercase() } else { id }
        });
        let time = |n: u64| format!("2025-03-05T03:36:{n:02}.000Z");
        let tx_time = (below(3) > 0).then(|| time(below(20)));
        let sql = "INSERT INTO events (event_id, status, session_id, session_source, tx_time, tx_time_source, webhook, created_at)
                   VALUES (?1, ?2, ?3, iif(?3 IS NULL, NULL, 'mail'), ?4, iif(?4 IS NULL, NULL, 'mail'), '{}', ?5)";
        connection.execute(sql, rusqlite::params![format!("e{n}"), status, session, tx_time, time(below(20))]).unwrap();
    }
    let ids = |sql: &str| -> Vec<String> {
        let mut statement = connection.prepare(sql).unwrap();
        statement.query_map([], |row| row.get(0)).unwrap().collect::<rusqlite::Result<_>>().unwrap()
    };
    let view = ids("SELECT event_id FROM payments ORDER BY event_id");
    assert!(view.len() > 500, "{}", view.len());
    assert_eq!(view, ids(NEWEST_BY_RANK));
}
