-- The same conditions in other words: for `x IN (…)` with three or more values SQLite makes a table of them at each INSERT,
-- which was a tenth of what it costs to store a mail. What is on the disk stays as it is
-- (sqlite.org/lang_altertable.html#making_other_kinds_of_table_schema_changes).
PRAGMA writable_schema = ON;
UPDATE sqlite_schema SET sql = replace(replace(sql,
    'outcome IN (''event'', ''duplicate'', ''ignored'', ''quarantined'', ''deferred'')',
    'outcome = ''event'' OR outcome = ''duplicate'' OR outcome = ''ignored'' OR outcome = ''quarantined'' OR outcome = ''deferred'''),
    'trust IN (''dkim'', ''authentication-results'', ''operator'', ''none'')',
    'trust = ''dkim'' OR trust = ''authentication-results'' OR trust = ''operator'' OR trust = ''none''')
  WHERE type = 'table' AND name = 'mails';
UPDATE sqlite_schema SET sql = replace(replace(sql,
    'status IN (''completed'', ''failed'', ''pending'')',
    'status = ''completed'' OR status = ''failed'' OR status = ''pending'''),
    'session_source IN (''mail'', ''address'', ''match'', ''operator'')',
    'session_source = ''mail'' OR session_source = ''address'' OR session_source = ''match'' OR session_source = ''operator''')
  WHERE type = 'table' AND name = 'events';
UPDATE sqlite_schema SET sql = replace(sql,
    'state IN (''held'', ''pending'', ''delivered'', ''dead'')',
    'state = ''held'' OR state = ''pending'' OR state = ''delivered'' OR state = ''dead''')
  WHERE type = 'table' AND name = 'deliveries';
UPDATE sqlite_schema SET sql = replace(sql,
    'state IN (''connecting'', ''syncing'', ''idle'', ''polling'', ''failed'')',
    'state = ''connecting'' OR state = ''syncing'' OR state = ''idle'' OR state = ''polling'' OR state = ''failed''')
  WHERE type = 'table' AND name = 'mailboxes';
PRAGMA writable_schema = RESET;
