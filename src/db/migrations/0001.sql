-- The database is an interface: names and meanings are public (docs/database.md). Times are ISO 8601 in UTC with
-- milliseconds. Amounts are decimal text. Later migrations only add to the schema.
--
-- A CHECK that allows three or more words is written `x = 'a' OR x = 'b' OR …`. For `x IN (…)`, SQLite would build a table of
-- the words at each INSERT. Building that table took a tenth of the time of storing a mail.

-- One row for each examined mail, with its bytes. A mail that the server lists and does not deliver has a row, too.
-- AUTOINCREMENT: the id of a pruned mail is never given to another mail.
CREATE TABLE mails (
  id                INTEGER PRIMARY KEY AUTOINCREMENT,
  account           TEXT NOT NULL,             -- the account's name in config.toml
  mailbox           TEXT NOT NULL,             -- the mailbox on the server, or 'import'
  uid_validity      INTEGER,                   -- with uid: identifies the mail on the server (RFC 3501); NULL for an import
  uid               INTEGER,
  message_id        TEXT,                      -- the Message-ID header; chosen by the sender, so neither unique nor a proof
  sender            TEXT,                      -- the From header
  recipient         TEXT,                      -- the To header
  subject           TEXT,
  sent_at           TEXT,                      -- the Date header
  received_at       TEXT,                      -- when the mail server received the mail (INTERNALDATE)
  size              INTEGER NOT NULL,          -- bytes of the whole mail; more than length(raw) if `raw` was cut
  sha256            TEXT NOT NULL,             -- SHA-256 of raw as it arrived, in hex
  outcome           TEXT NOT NULL
                    CHECK (outcome = 'event' OR outcome = 'duplicate' OR outcome = 'ignored'
                           OR outcome = 'quarantined' OR outcome = 'deferred'),
  reason            TEXT,                      -- 'code: message'; NULL: the outcome needs no reason
  trust             TEXT
                    CHECK (trust = 'dkim' OR trust = 'authentication-results' OR trust = 'operator' OR trust = 'none'),
  event_id          TEXT REFERENCES events (event_id) DEFERRABLE INITIALLY DEFERRED,   -- the event that the mail made or repeats
  trust_domain      TEXT,                      -- the signing domain (d=) of the DKIM signature that proves the mail
  trust_selector    TEXT,                      -- the selector (s=) of that signature's key
  trust_covers      TEXT,                      -- the signed header fields, separated by spaces; '*' for all
  trust_to          TEXT,                      -- the addresses of the signed To field, separated by spaces
  judged_at         TEXT NOT NULL,             -- when the mail's outcome was last decided
  judgements        INTEGER NOT NULL DEFAULT 1,-- how often the mail's outcome was decided
  next_judgement_at TEXT,                      -- of a deferred mail: when it is authenticated again
  -- `raw` is the last column, so that SQLite reads the other columns without the pages that contain the mail.
  raw               BLOB                       -- the mail, byte for byte; NULL if it was pruned, or not delivered by the server
) STRICT;
-- A mail server that was restored from a backup may give a used UID to another mail. The rows of both mails differ in sha256.
CREATE UNIQUE INDEX mails_by_uid ON mails (account, mailbox, uid_validity, uid, sha256) WHERE uid IS NOT NULL;
CREATE UNIQUE INDEX mails_imported ON mails (account, sha256) WHERE uid IS NULL;
CREATE INDEX mails_by_event ON mails (event_id) WHERE event_id IS NOT NULL;
CREATE INDEX mails_by_outcome ON mails (outcome, id);
CREATE INDEX mails_deferred ON mails (next_judgement_at, account) WHERE outcome = 'deferred';
CREATE INDEX mails_to_review ON mails (id) WHERE outcome = 'quarantined' AND raw IS NOT NULL;
-- An index of the mails that the mail server lists and does not deliver. The sha256 of an undelivered mail is the SHA-256 of no
-- bytes. A pruned mail has no `raw` either, but its row keeps the sha256 of the bytes.
CREATE INDEX mails_without_raw ON mails (sha256, account, mailbox, uid_validity, id)
  WHERE outcome = 'quarantined' AND raw IS NULL;
CREATE INDEX mails_to_prune ON mails (judged_at) WHERE raw IS NOT NULL;
-- An index of the proven mails that are quarantined. If many proven mails are quarantined, the layout of Resmic's mails has
-- probably changed.
CREATE INDEX mails_proven_to_review ON mails (id)
  WHERE outcome = 'quarantined' AND trust IS NOT NULL AND raw IS NOT NULL;

-- One row for each event, in the webhook's model. A mail that is a duplicate adds no row.
CREATE TABLE events (
  event_id            TEXT PRIMARY KEY,        -- computed from the content: the same payment has the same id in every database
  status              TEXT NOT NULL CHECK (status = 'completed' OR status = 'failed' OR status = 'pending'),
  session_id          TEXT COLLATE NOCASE,     -- the payment session; NULL while it is unknown
  session_source      TEXT                     -- how the session was found
                      CHECK (session_source = 'mail' OR session_source = 'address' OR session_source = 'match'
                             OR session_source = 'operator' OR session_source = 'resmic'),
  order_ref           TEXT,                    -- the merchant's reference for what is paid
  amount              TEXT,                    -- plain decimal digits without thousands separators; trailing zeros are kept
  currency            TEXT,                    -- 'USD', or the token's symbol next to the amount; NULL: the amount has neither
  blockchain          TEXT,
  token               TEXT,
  from_wallet_address TEXT,
  transaction_hash    TEXT COLLATE NOCASE,     -- lookups ignore the case; the stored text keeps it
  tx_time             TEXT,
  tx_time_source      TEXT CHECK (tx_time_source IN ('mail', 'header')),
  webhook             TEXT NOT NULL,           -- the JSON body that is delivered
  hold                TEXT,                    -- why the event needs review before it is delivered; NULL: no review is needed
  created_at          TEXT NOT NULL,
  source              TEXT NOT NULL DEFAULT 'mail'   -- the source of the report: a mail, or Resmic's API if the mail is missing
                      CHECK (source = 'mail' OR source = 'resmic'),
  CHECK ((session_id IS NULL) = (session_source IS NULL)),
  CHECK ((tx_time IS NULL) = (tx_time_source IS NULL))
) STRICT;
CREATE INDEX events_by_session ON events (session_id) WHERE session_id IS NOT NULL;
CREATE INDEX events_by_hash ON events (transaction_hash) WHERE transaction_hash IS NOT NULL;
CREATE INDEX events_by_order ON events (order_ref) WHERE order_ref IS NOT NULL;
CREATE INDEX events_by_time ON events (created_at);
CREATE INDEX events_by_tx_time ON events (tx_time);
-- There is no index on `status` alone. In a query with `status` and `session_id`, SQLite would prefer an index on `status` to the
-- better index on `session_id`.
CREATE INDEX events_not_completed ON events (status) WHERE status <> 'completed';
-- An index for the view paid_by_day. The index contains an expression in place of `token`: in a query for a session and a token,
-- SQLite would prefer an index on `token` to the better index on `session_id`.
CREATE INDEX events_by_token ON events (token || '', coalesce(tx_time, created_at));
CREATE INDEX events_unresolved ON events (created_at) WHERE session_id IS NULL;
CREATE INDEX events_unmatched ON events (CAST(amount AS REAL), tx_time) WHERE session_id IS NULL AND order_ref IS NULL;
CREATE INDEX events_on_hold ON events (created_at) WHERE hold IS NOT NULL;

-- One row for each event and target.
CREATE TABLE deliveries (
  id              INTEGER PRIMARY KEY,
  event_id        TEXT NOT NULL REFERENCES events (event_id) DEFERRABLE INITIALLY DEFERRED,
  target          TEXT NOT NULL,               -- the [[forward]] entry's name
  state           TEXT NOT NULL CHECK (state = 'held' OR state = 'pending' OR state = 'delivered' OR state = 'dead'),
  attempts        INTEGER NOT NULL DEFAULT 0,  -- the number of attempts; increased before each attempt
  next_attempt_at TEXT CHECK (state <> 'pending' OR next_attempt_at IS NOT NULL),   -- pending: no attempt before this time
  last_status     INTEGER,                     -- the last HTTP status
  last_error      TEXT,                        -- why the last attempt failed
  delivered_at    TEXT,
  created_at      TEXT NOT NULL,
  first_attempt_at TEXT,                       -- the start of the give_up_after period: usually the first attempt since the
                                               -- delivery last became pending. The start is earlier than that attempt if the
                                               -- target could not be reached when the delivery was due
  receipt         TEXT,                        -- where a stream has the event: 'STREAM:SEQ', or 'there already: STREAM:SEQ'
                                               -- if the stream had it before the attempt
  acknowledged_at TEXT,                        -- when the stream last acknowledged the event: delivered_at, or later if the
                                               -- stream had lost the event and has stored it again
  UNIQUE (event_id, target)
) STRICT;
CREATE INDEX deliveries_due ON deliveries (target, next_attempt_at, id) WHERE state = 'pending';
CREATE INDEX deliveries_open ON deliveries (state, id) WHERE state <> 'delivered';
CREATE INDEX deliveries_in_streams ON deliveries (target, delivered_at) WHERE receipt IS NOT NULL;
CREATE INDEX deliveries_acknowledged ON deliveries (target, acknowledged_at) WHERE receipt IS NOT NULL;
-- An index of the pending deliveries that had a failed attempt, so that their give_up_after may have passed. A delivery that
-- succeeds at the first attempt is never in this index.
CREATE INDEX deliveries_failing ON deliveries (target, first_attempt_at) WHERE state = 'pending' AND last_error IS NOT NULL;

-- One row for each attempt of a delivery. The daemon inserts the row before it sends the request, and completes the row after the
-- attempt.
CREATE TABLE attempts (
  delivery_id INTEGER NOT NULL REFERENCES deliveries (id) ON DELETE CASCADE,
  attempt     INTEGER NOT NULL,                -- 1, 2, 3 …
  at          TEXT NOT NULL,
  status      INTEGER,                         -- the HTTP status, if there was a response
  error       TEXT,                            -- NULL: the attempt was accepted
  millis      INTEGER,                         -- the duration of the attempt; NULL until its end is stored
  -- After 'no_response' and 'interrupted', the handler may have the event, although the daemon got no response.
  result      TEXT NOT NULL DEFAULT 'interrupted'
              CHECK (result = 'accepted' OR result = 'rejected' OR result = 'no_response' OR result = 'not_sent'
                     OR result = 'interrupted'),
  PRIMARY KEY (delivery_id, attempt)
) STRICT, WITHOUT ROWID;
CREATE INDEX attempts_by_time ON attempts (at);

-- The state of each target that is a JetStream stream. The running daemon writes this table, and `status` reads it.
CREATE TABLE streams (
  target       TEXT PRIMARY KEY,               -- the [[forward]] entry's name
  stream       TEXT NOT NULL,                  -- the stream's name
  state        TEXT NOT NULL CHECK (state = 'connecting' OR state = 'connected' OR state = 'failed'),
  servers      TEXT NOT NULL,                  -- the configured URLs, separated by commas
  version      TEXT,                           -- the version of the server to which the daemon connected last
  changed_at   TEXT NOT NULL,                  -- since when the stream is in this state
  failing_since TEXT,                          -- NULL: the daemon is connected, or connects for the first time since its start
  problems     TEXT,                           -- why the daemon cannot publish; one problem on each line
  notes        TEXT,                           -- settings that should be changed; one note on each line
  needs_person INTEGER NOT NULL DEFAULT 0,     -- 1: the problem does not pass by itself
  there_already INTEGER NOT NULL DEFAULT 0,    -- how many deliveries had their message in the stream before an attempt
  refilled     INTEGER NOT NULL DEFAULT 0,     -- how many messages the stream had lost and got again
  gap_since    TEXT,                           -- when the daemon found that the stream has lost messages that were not
                                               -- published again; NULL: there is no such loss
  removed      INTEGER                         -- how many messages the stream had removed at the last connect; a higher number
                                               -- at the next connect is a loss. NULL: unknown, or its messages may expire
) STRICT;

-- The payment sessions that the merchant opened at Resmic. Other programs may insert into this table, and into no other.
CREATE TABLE sessions (
  session_id TEXT PRIMARY KEY COLLATE NOCASE CHECK (length(session_id) = 36),
  order_ref  TEXT CHECK (order_ref <> ''),
  amount     TEXT                              -- US dollars, decimal text
             CHECK (amount GLOB '[0-9]*' AND amount NOT GLOB '*[^0-9.]*' AND amount NOT GLOB '*.*.*'),
  blockchain TEXT,
  token      TEXT,
  created_at TEXT NOT NULL DEFAULT (strftime('%Y-%m-%dT%H:%M:%fZ', 'now')),
  expires_at TEXT                              -- after this time the session is no longer matched by amount
) STRICT;
CREATE INDEX sessions_by_order ON sessions (order_ref) WHERE order_ref IS NOT NULL;
CREATE INDEX sessions_by_time ON sessions (created_at);
CREATE INDEX sessions_by_amount ON sessions (CAST(amount AS REAL), created_at) WHERE amount IS NOT NULL;
CREATE INDEX sessions_without_amount ON sessions (created_at) WHERE amount IS NULL;

-- Sessions that any program inserted or changed. The daemon compares a session in this table with the session's
-- events, and then deletes the row from this table.
CREATE TABLE sessions_to_reconcile (
  session_id TEXT PRIMARY KEY COLLATE NOCASE
) STRICT, WITHOUT ROWID;
-- The trigger sessions_registered converts times that other programs write in other forms (2025-03-05 03:36:00,
-- 2025-03-05T04:36:00+01:00). The triggers sessions_registered and sessions_changed test NOT EXISTS in place of OR IGNORE,
-- because the conflict clause of the statement that fires a trigger replaces the conflict clauses in the trigger.
CREATE TRIGGER sessions_registered AFTER INSERT ON sessions BEGIN
  SELECT RAISE(ABORT, 'created_at and expires_at must be times, such as 2025-03-05T03:36:00Z')
  WHERE julianday(NEW.created_at) IS NULL OR (julianday(NEW.expires_at) IS NULL AND NEW.expires_at IS NOT NULL);
  UPDATE sessions SET created_at = strftime('%Y-%m-%dT%H:%M:%fZ', NEW.created_at),
    expires_at = strftime('%Y-%m-%dT%H:%M:%fZ', NEW.expires_at)
  WHERE session_id = NEW.session_id;
  INSERT INTO sessions_to_reconcile SELECT NEW.session_id
  WHERE NOT EXISTS (SELECT 1 FROM sessions_to_reconcile WHERE session_id = NEW.session_id);
END;
CREATE TRIGGER sessions_changed AFTER UPDATE ON sessions BEGIN
  INSERT INTO sessions_to_reconcile SELECT NEW.session_id
  WHERE NOT EXISTS (SELECT 1 FROM sessions_to_reconcile WHERE session_id = NEW.session_id);
END;

-- The cursor and the state of each mailbox.
CREATE TABLE mailboxes (
  account      TEXT NOT NULL,
  mailbox      TEXT NOT NULL,
  uid_validity INTEGER,                        -- with last_uid: the cursor. Every mail up to the cursor is stored, gone, not
                                               -- Resmic's, or excluded by `start`
  last_uid     INTEGER,
  state        TEXT NOT NULL DEFAULT 'connecting'
               CHECK (state = 'connecting' OR state = 'syncing' OR state = 'idle' OR state = 'polling'
                      OR state = 'failed'),
  last_seen_at TEXT,                           -- when the last round trip to the mail server was completed
  last_error   TEXT,
  -- begun_at and begun_uid are set if `start` excludes mails. begun_at and begun_uid also apply if the mailbox is renumbered and
  -- read again. When the mailbox is renumbered, begun_uid becomes the highest UID at that time.
  begun_at     TEXT,                           -- mails up to begun_uid that the server received before this time are skipped
  begun_uid    INTEGER,                        -- mails above this UID came later, and are not skipped
  -- newest_at and renumbered_after are for a server that was restored from a backup and gave used UIDs to other mails.
  newest_at    TEXT,                           -- when the server received the newest mail that was read. If a UID up to
                                               -- last_uid has a newer mail now, the server was restored
  renumbered_after INTEGER NOT NULL DEFAULT 0, -- the UIDs in rows of `mails` up to this id may mean other mails now
  PRIMARY KEY (account, mailbox)
) STRICT, WITHOUT ROWID;

-- One row for each account, so that `status` can warn of a long time without notifications (`quiet` in config.toml).
CREATE TABLE accounts (
  account              TEXT PRIMARY KEY,       -- the account's name in config.toml
  watched_since        TEXT,                   -- the first start of the daemon with this account; NULL: it was never watched
  last_notification_at TEXT                    -- when the account's newest proven notification was received; NULL: never
) STRICT, WITHOUT ROWID;

-- One row for each completed event that was to be delivered while a [[chain]] was configured. The row shows whether the chain
-- confirms the payment. An event without a row does not wait for the chain.
CREATE TABLE confirmations (
  event_id        TEXT PRIMARY KEY REFERENCES events (event_id) DEFERRABLE INITIALLY DEFERRED,
  state           TEXT NOT NULL
                  CHECK (state = 'waiting' OR state = 'confirmed' OR state = 'doubtful' OR state = 'unproven'
                         OR state = 'operator'),
  reason          TEXT,                        -- 'code: message'; NULL: confirmed by the chain or an operator, or no look yet
  chain_id        INTEGER,                     -- the id of the chain (EIP-155); NULL: no [[chain]] is configured for the chain
  paid_block      INTEGER,                     -- the block of the transaction that the event names
  paid_block_hash TEXT,
  arrival         TEXT,                        -- the transaction in which the money reached one of the merchant's wallets
  arrival_log     INTEGER,                     -- the first log or call that moved the money, numbered as in arrivals.log
  arrival_block   INTEGER,
  received        TEXT,                        -- how much arrived, decimal text
  received_token  TEXT,
  -- amount_checked is 1 if `received` was compared with the event's amount. amount_checked is 0 if the token is not a dollar
  -- token, and the event's amount is in dollars or has no currency.
  amount_checked  INTEGER CHECK (amount_checked = 0 OR amount_checked = 1),
  final           TEXT,                        -- which blocks counted as final: 'finalized', 'safe', or a number of blocks
  nodes           TEXT,                        -- the hosts of the nodes, separated by spaces
  looks           INTEGER NOT NULL DEFAULT 0,  -- the number of looks at the event, plus the number of its changes
  looked_at       TEXT,
  next_look_at    TEXT,                        -- the next look is not before this time; NULL: there is no further look
  confirmed_at    TEXT,
  waits_since     TEXT NOT NULL,               -- the start of the chain's give_up_after period
  CHECK (state <> 'waiting' OR next_look_at IS NOT NULL)
) STRICT;
CREATE INDEX confirmations_due ON confirmations (chain_id, next_look_at) WHERE next_look_at IS NOT NULL;
CREATE INDEX confirmations_by_state ON confirmations (state);
CREATE INDEX confirmations_by_arrival ON confirmations (chain_id, arrival) WHERE arrival IS NOT NULL;

-- The logs and calls that moved money to the merchant and pay an event. Because of the primary key, one arrival cannot pay two
-- events.
CREATE TABLE arrivals (
  chain_id INTEGER NOT NULL,
  tx       TEXT NOT NULL,
  log      INTEGER NOT NULL,                   -- the log's index in the block; -1: the transaction itself, -2, -3 …: its calls
  event_id TEXT NOT NULL REFERENCES events (event_id) DEFERRABLE INITIALLY DEFERRED,
  PRIMARY KEY (chain_id, tx, log)
) STRICT, WITHOUT ROWID;
CREATE INDEX arrivals_by_event ON arrivals (event_id);

-- The last answers of the nodes of each chain. The running daemon writes this table, and `status` reads it.
CREATE TABLE chains (
  chain_id     INTEGER PRIMARY KEY,
  name         TEXT NOT NULL,
  nodes        TEXT NOT NULL,                  -- the hosts, separated by spaces
  head         INTEGER,                        -- the newest block at one node: the node that reports the oldest final block
  head_age_s   INTEGER,                        -- the age of the block `head` in seconds, at the time asked_at
  final_block  INTEGER,                        -- the last final block at the node that reported `head`
  final_lag_s  INTEGER,                        -- how many seconds the block final_block is older than the block `head`
  asked_at     TEXT,
  last_error   TEXT,                           -- NULL: the last calls succeeded
  needs_person INTEGER NOT NULL DEFAULT 0      -- 1: the error does not pass by itself
) STRICT;

-- The registered sessions about which the daemon asks Resmic's API while [resmic] is configured.
CREATE TABLE session_inquiries (
  session_id         TEXT PRIMARY KEY COLLATE NOCASE,
  next_ask_at        TEXT,                     -- the daemon does not ask before this time; NULL: it does not ask again
  first_after_expiry TEXT,                     -- the time of the first answer after the session expired
  completed_since    TEXT,                     -- since when Resmic reports the session as Completed
  status             TEXT,                     -- payment_status in Resmic's last answer
  reason             TEXT,                     -- 'code: message', why the session needs review; NULL: no review is needed
  asks               INTEGER NOT NULL DEFAULT 0,
  asked_at           TEXT
) STRICT;
CREATE INDEX session_inquiries_due ON session_inquiries (next_ask_at) WHERE next_ask_at IS NOT NULL;
CREATE INDEX session_inquiries_missing ON session_inquiries (completed_since)
  WHERE completed_since IS NOT NULL AND next_ask_at IS NOT NULL;
CREATE INDEX session_inquiries_review ON session_inquiries (session_id) WHERE reason IS NOT NULL;

-- One row for each event whose session the daemon searches for, or has searched for, at Resmic's API.
CREATE TABLE session_searches (
  event_id    TEXT PRIMARY KEY REFERENCES events (event_id) DEFERRABLE INITIALLY DEFERRED,
  result      TEXT CHECK (result = 'found' OR result = 'none' OR result = 'ambiguous'),   -- NULL: the search goes on
  next_ask_at TEXT,                            -- the daemon does not ask before this time
  since       TEXT NOT NULL,
  CHECK ((result IS NULL) = (next_ask_at IS NOT NULL))
) STRICT;
CREATE INDEX session_searches_due ON session_searches (next_ask_at) WHERE next_ask_at IS NOT NULL;
CREATE INDEX session_searches_open ON session_searches (since) WHERE next_ask_at IS NOT NULL;

-- The transaction that Resmic's API names for a session. If the API named no transaction, the daemon asks about the session again
-- only when it searches for the session of another event.
CREATE TABLE session_transactions (
  session_id       TEXT PRIMARY KEY COLLATE NOCASE,
  transaction_hash TEXT,                       -- NULL: Resmic named no transaction
  blockchain       TEXT,
  asked_for        TEXT NOT NULL,              -- the event for whose session the daemon searched
  asked_at         TEXT NOT NULL
) STRICT;

-- One row for each completed event that was to be delivered while [resmic] require = true was configured. The row shows whether
-- Resmic's API reports the event's session as Completed. An event without a row does not wait for Resmic.
CREATE TABLE clearances (
  event_id    TEXT PRIMARY KEY REFERENCES events (event_id) DEFERRABLE INITIALLY DEFERRED,
  state       TEXT NOT NULL
              CHECK (state = 'waiting' OR state = 'confirmed' OR state = 'doubtful' OR state = 'operator'),
  reason      TEXT,                            -- why the event waits; for a doubtful event, usually 'code: message'
  next_ask_at TEXT,                            -- the daemon does not ask before this time; NULL: the event's session is
                                               -- unknown, or the state is final
  asks        INTEGER NOT NULL DEFAULT 0,      -- the number of Resmic's answers about the event, plus the number of its changes
  asked_at    TEXT,
  waits_since TEXT NOT NULL
) STRICT;
CREATE INDEX clearances_due ON clearances (next_ask_at) WHERE next_ask_at IS NOT NULL;
CREATE INDEX clearances_to_ask ON clearances (waits_since) WHERE next_ask_at IS NOT NULL;
CREATE INDEX clearances_open ON clearances (state, waits_since) WHERE state = 'waiting' OR state = 'doubtful';

-- The result of the last recorded request to Resmic's API. The daemon, `session check` and `reconcile` write this table, and
-- `status` reads it.
CREATE TABLE resmic_api (
  id           INTEGER PRIMARY KEY CHECK (id = 1),
  host         TEXT NOT NULL,
  asked_at     TEXT NOT NULL,
  failing_since TEXT,                          -- NULL: the last request succeeded
  last_error   TEXT,
  needs_person INTEGER NOT NULL DEFAULT 0      -- 1: the error does not pass by itself
) STRICT;

-- The newest state of each session. A later payment that is pending or failed never hides a completed payment of the session.
-- An event without a session has a separate row. With NOT EXISTS, SQLite uses the indexes of `events` to find one session.
-- With a window function, SQLite would read all sessions.
CREATE VIEW payments AS
SELECT e.session_id, e.order_ref, e.status, e.amount, e.currency, e.blockchain, e.token, e.from_wallet_address,
       e.transaction_hash, e.tx_time, e.event_id, e.session_source, e.hold, e.created_at,
       (SELECT CASE WHEN count(*) = 0 THEN NULL
                    WHEN sum(d.state = 'dead') > 0 THEN 'dead'
                    WHEN sum(d.state = 'held') > 0 THEN 'held'
                    WHEN sum(d.state = 'pending') > 0 THEN 'pending'
                    ELSE 'delivered' END
        FROM deliveries d WHERE d.event_id = e.event_id) AS delivery,
       (SELECT c.state FROM confirmations c WHERE c.event_id = e.event_id) AS confirmation
FROM events e
WHERE NOT EXISTS (
  SELECT 1 FROM events o
  WHERE o.session_id = e.session_id
    AND (o.status = 'completed', coalesce(o.tx_time, o.created_at), o.created_at, o.rowid)
      > (e.status = 'completed', coalesce(e.tx_time, e.created_at), e.created_at, e.rowid));

-- The sum that was paid in each token on each of 31 days. The last of the 31 days is the day of the newest event. SQLite makes
-- one search in an index for each day and token. LIMIT -1 keeps SQLite from repeating the search for each column.
CREATE VIEW paid_by_day AS
WITH RECURSIVE
  -- The last row of `tokens` is NULL, for the events without a token.
  tokens (token) AS (
    SELECT min(token || '') FROM events
    UNION ALL SELECT (SELECT min(e.token || '') FROM events e WHERE e.token || '' > t.token) FROM tokens t WHERE t.token IS NOT NULL),
  days (day) AS (
    SELECT substr(max((SELECT max(coalesce(e.tx_time, e.created_at)) FROM events e WHERE e.token || '' IS t.token
      AND coalesce(e.tx_time, e.created_at) < date('now', '+2 days'))), 1, 10) FROM tokens t
    UNION ALL SELECT date(day, '-1 day') FROM days LIMIT 31),
  sums (day, token, paid) AS (
    SELECT day, t.token,
           (SELECT json_array(count(*), sum(CAST(p.amount AS REAL))) FROM payments p
            WHERE p.token || '' IS t.token AND p.status = 'completed'
              AND coalesce(p.tx_time, p.created_at) >= day AND coalesce(p.tx_time, p.created_at) < date(day, '+1 day'))
    FROM days CROSS JOIN tokens t LIMIT -1)
SELECT day, token, json_extract(paid, '$[0]') AS payments, json_extract(paid, '$[1]') AS about
FROM sums WHERE json_extract(paid, '$[0]') > 0;

-- The numbers of rows in other tables, so that `status` and the metrics need not count the rows. Triggers maintain these numbers,
-- so the numbers are right whichever program writes.
CREATE TABLE counts (
  name TEXT NOT NULL,                          -- the table: 'mails', 'events', 'deliveries' or 'confirmations'. Or 'held': events
                                               -- with a held delivery. Or 'reasons': mails with a reason
  key  TEXT NOT NULL,                          -- of a table: the outcome, the status or the state of the counted rows.
                                               -- Of 'held': 'conflict', 'session', or 'confirmation' (by the chain or by Resmic).
                                               -- Of 'reasons': the outcome and the code of the reason, with a space between them
  n    INTEGER NOT NULL,
  PRIMARY KEY (name, key)
) STRICT, WITHOUT ROWID;
INSERT INTO counts (name, key, n) VALUES
  ('mails', 'event', 0), ('mails', 'duplicate', 0), ('mails', 'ignored', 0), ('mails', 'quarantined', 0),
  ('mails', 'deferred', 0), ('events', 'completed', 0), ('events', 'failed', 0), ('events', 'pending', 0),
  ('deliveries', 'held', 0), ('deliveries', 'pending', 0), ('deliveries', 'delivered', 0), ('deliveries', 'dead', 0),
  ('confirmations', 'waiting', 0), ('confirmations', 'confirmed', 0), ('confirmations', 'doubtful', 0),
  ('confirmations', 'unproven', 0), ('confirmations', 'operator', 0),
  ('held', 'conflict', 0), ('held', 'session', 0), ('held', 'confirmation', 0),
  ('reasons', 'event conflict', 0), ('reasons', 'duplicate unavailable', 0), ('reasons', 'deferred dns', 0),
  ('reasons', 'ignored not-a-payment', 0), ('reasons', 'ignored unavailable', 0),
  ('reasons', 'quarantined untrusted', 0), ('reasons', 'quarantined not-ours', 0), ('reasons', 'quarantined conflict', 0),
  ('reasons', 'quarantined unreadable', 0), ('reasons', 'quarantined malformed', 0), ('reasons', 'quarantined too-large', 0),
  ('reasons', 'quarantined dns', 0), ('reasons', 'quarantined unavailable', 0);

-- If a statement fires a trigger and may be rolled back without its transaction, SQLite keeps a copy of each page that the
-- statement changes. INSERT OR FAIL and UPDATE OR FAIL are not rolled back, so SQLite makes no copies for them. But SQLite does
-- make copies if a trigger or an index calls a function or has an ON CONFLICT clause, or if foreign keys are not deferred. The
-- copies would take a tenth of the time of a backfill.
CREATE TRIGGER mails_count_insert AFTER INSERT ON mails BEGIN
  UPDATE counts SET n = n + 1 WHERE name = 'mails' AND key = NEW.outcome;
END;
CREATE TRIGGER mails_count_update AFTER UPDATE OF outcome ON mails WHEN OLD.outcome <> NEW.outcome BEGIN
  UPDATE counts SET n = n - 1 WHERE name = 'mails' AND key = OLD.outcome;
  UPDATE counts SET n = n + 1 WHERE name = 'mails' AND key = NEW.outcome;
END;
CREATE TRIGGER mails_count_delete AFTER DELETE ON mails BEGIN
  UPDATE counts SET n = n - 1 WHERE name = 'mails' AND key = OLD.outcome;
END;

-- A reason is 'code: message'. The trigger finds the code by two comparisons with `counts.key`, because a trigger must not call a
-- function (see mails_count_insert). In ASCII, ';' follows ':', so every text that begins with the key and ':' is between `key:`
-- and `key;`.
CREATE TRIGGER mails_reason_insert AFTER INSERT ON mails WHEN NEW.reason IS NOT NULL BEGIN
  UPDATE counts SET n = n + 1 WHERE name = 'reasons'
    AND NEW.outcome || ' ' || NEW.reason >= key || ':' AND NEW.outcome || ' ' || NEW.reason < key || ';';
END;
CREATE TRIGGER mails_reason_update AFTER UPDATE OF outcome, reason ON mails
WHEN OLD.outcome <> NEW.outcome OR OLD.reason IS NOT NEW.reason BEGIN
  UPDATE counts SET n = n - 1 WHERE name = 'reasons'
    AND OLD.outcome || ' ' || OLD.reason >= key || ':' AND OLD.outcome || ' ' || OLD.reason < key || ';';
  UPDATE counts SET n = n + 1 WHERE name = 'reasons'
    AND NEW.outcome || ' ' || NEW.reason >= key || ':' AND NEW.outcome || ' ' || NEW.reason < key || ';';
END;
CREATE TRIGGER mails_reason_delete AFTER DELETE ON mails WHEN OLD.reason IS NOT NULL BEGIN
  UPDATE counts SET n = n - 1 WHERE name = 'reasons'
    AND OLD.outcome || ' ' || OLD.reason >= key || ':' AND OLD.outcome || ' ' || OLD.reason < key || ';';
END;

CREATE TRIGGER events_count_insert AFTER INSERT ON events BEGIN
  UPDATE counts SET n = n + 1 WHERE name = 'events' AND key = NEW.status;
END;
CREATE TRIGGER events_count_update AFTER UPDATE OF status ON events WHEN OLD.status <> NEW.status BEGIN
  UPDATE counts SET n = n - 1 WHERE name = 'events' AND key = OLD.status;
  UPDATE counts SET n = n + 1 WHERE name = 'events' AND key = NEW.status;
END;
CREATE TRIGGER events_count_delete AFTER DELETE ON events BEGIN
  UPDATE counts SET n = n - 1 WHERE name = 'events' AND key = OLD.status;
END;

CREATE TRIGGER deliveries_count_insert AFTER INSERT ON deliveries BEGIN
  UPDATE counts SET n = n + 1 WHERE name = 'deliveries' AND key = NEW.state;
END;
CREATE TRIGGER deliveries_count_update AFTER UPDATE OF state ON deliveries WHEN OLD.state <> NEW.state BEGIN
  UPDATE counts SET n = n - 1 WHERE name = 'deliveries' AND key = OLD.state;
  UPDATE counts SET n = n + 1 WHERE name = 'deliveries' AND key = NEW.state;
END;
CREATE TRIGGER deliveries_count_delete AFTER DELETE ON deliveries BEGIN
  UPDATE counts SET n = n - 1 WHERE name = 'deliveries' AND key = OLD.state;
END;

-- The rows 'held' of `counts` include an event while at least one of the event's deliveries is held.
CREATE TRIGGER held_count_insert AFTER INSERT ON deliveries
WHEN NEW.state = 'held' AND NOT EXISTS (
  SELECT 1 FROM deliveries d WHERE d.event_id = NEW.event_id AND d.state = 'held' AND d.id <> NEW.id) BEGIN
  UPDATE counts SET n = n + 1 WHERE name = 'held'
    AND key = (SELECT CASE WHEN hold IS NOT NULL THEN 'conflict' WHEN session_id IS NULL THEN 'session' ELSE 'confirmation' END
               FROM events WHERE event_id = NEW.event_id);
END;
CREATE TRIGGER held_count_begin AFTER UPDATE OF state ON deliveries
WHEN NEW.state = 'held' AND OLD.state <> 'held' AND NOT EXISTS (
  SELECT 1 FROM deliveries d WHERE d.event_id = NEW.event_id AND d.state = 'held' AND d.id <> NEW.id) BEGIN
  UPDATE counts SET n = n + 1 WHERE name = 'held'
    AND key = (SELECT CASE WHEN hold IS NOT NULL THEN 'conflict' WHEN session_id IS NULL THEN 'session' ELSE 'confirmation' END
               FROM events WHERE event_id = NEW.event_id);
END;
CREATE TRIGGER held_count_end AFTER UPDATE OF state ON deliveries
WHEN OLD.state = 'held' AND NEW.state <> 'held' AND NOT EXISTS (
  SELECT 1 FROM deliveries d WHERE d.event_id = NEW.event_id AND d.state = 'held') BEGIN
  UPDATE counts SET n = n - 1 WHERE name = 'held'
    AND key = (SELECT CASE WHEN hold IS NOT NULL THEN 'conflict' WHEN session_id IS NULL THEN 'session' ELSE 'confirmation' END
               FROM events WHERE event_id = NEW.event_id);
END;
CREATE TRIGGER held_count_delete AFTER DELETE ON deliveries
WHEN OLD.state = 'held' AND NOT EXISTS (
  SELECT 1 FROM deliveries d WHERE d.event_id = OLD.event_id AND d.state = 'held') BEGIN
  UPDATE counts SET n = n - 1 WHERE name = 'held'
    AND key = (SELECT CASE WHEN hold IS NOT NULL THEN 'conflict' WHEN session_id IS NULL THEN 'session' ELSE 'confirmation' END
               FROM events WHERE event_id = OLD.event_id);
END;
CREATE TRIGGER held_count_cause AFTER UPDATE OF hold, session_id ON events
WHEN ((OLD.hold IS NULL) <> (NEW.hold IS NULL) OR (OLD.session_id IS NULL) <> (NEW.session_id IS NULL)) AND EXISTS (
  SELECT 1 FROM deliveries d WHERE d.event_id = NEW.event_id AND d.state = 'held') BEGIN
  UPDATE counts SET n = n - 1 WHERE name = 'held'
    AND key = CASE WHEN OLD.hold IS NOT NULL THEN 'conflict' WHEN OLD.session_id IS NULL THEN 'session' ELSE 'confirmation' END;
  UPDATE counts SET n = n + 1 WHERE name = 'held'
    AND key = CASE WHEN NEW.hold IS NOT NULL THEN 'conflict' WHEN NEW.session_id IS NULL THEN 'session' ELSE 'confirmation' END;
END;

CREATE TRIGGER confirmations_count_insert AFTER INSERT ON confirmations BEGIN
  UPDATE counts SET n = n + 1 WHERE name = 'confirmations' AND key = NEW.state;
END;
CREATE TRIGGER confirmations_count_update AFTER UPDATE OF state ON confirmations WHEN OLD.state <> NEW.state BEGIN
  UPDATE counts SET n = n - 1 WHERE name = 'confirmations' AND key = OLD.state;
  UPDATE counts SET n = n + 1 WHERE name = 'confirmations' AND key = NEW.state;
END;
CREATE TRIGGER confirmations_count_delete AFTER DELETE ON confirmations BEGIN
  UPDATE counts SET n = n - 1 WHERE name = 'confirmations' AND key = OLD.state;
END;
