//! Compares the table `counts`, which triggers maintain, with the rows that it counts.

use rusqlite::Connection;

/// A query that counts the rows for each entry of the table `counts`.
const COUNTED: &str = "
    SELECT 'mails' AS name, outcome AS key, count(*) AS n FROM mails GROUP BY 1, 2
    UNION ALL SELECT 'events', status, count(*) FROM events GROUP BY 1, 2
    UNION ALL SELECT 'deliveries', state, count(*) FROM deliveries GROUP BY 1, 2
    UNION ALL SELECT 'confirmations', state, count(*) FROM confirmations GROUP BY 1, 2
    UNION ALL SELECT 'held', iif(e.hold IS NOT NULL, 'conflict', iif(e.session_id IS NULL, 'session', 'confirmation')), count(*) FROM events e
      WHERE EXISTS (SELECT 1 FROM deliveries d WHERE d.event_id = e.event_id AND d.state = 'held') GROUP BY 1, 2
    UNION ALL SELECT 'reasons', outcome || ' ' || substr(reason, 1, instr(reason, ':') - 1), count(*) FROM mails
      WHERE instr(reason, ':') > 0 GROUP BY 1, 2";

/// Compares the table `counts` with the counted rows, in one snapshot.
pub fn check(connection: &Connection) {
    let (counted, maintained) = (COUNTED, "SELECT name, key, n FROM counts WHERE n <> 0");
    let sql = format!(
        "SELECT 'counted', * FROM ({counted}) EXCEPT SELECT 'counted', * FROM ({maintained})
         UNION ALL SELECT * FROM (SELECT 'maintained', * FROM ({maintained}) EXCEPT SELECT 'maintained', * FROM ({counted}))"
    );
    let mut statement = connection.prepare(&sql).unwrap();
    let row = |row: &rusqlite::Row<'_>| {
        let text = |column| row.get::<_, String>(column);
        Ok(format!("{}: {} {} {}", text(0)?, text(1)?, text(2)?, row.get::<_, i64>(3)?))
    };
    let differences: Vec<String> = statement.query_map([], row).unwrap().map(Result::unwrap).collect();
    assert_eq!(differences, Vec::<String>::new());
}
