-- The database is an interface: names and meanings are public, times are ISO 8601 UTC with
-- milliseconds, amounts are decimal text. Later files only add.

-- One row for each mail that was judged, and its bytes.
CREATE TABLE mails (
  id                INTEGER PRIMARY KEY,
  account           TEXT NOT NULL,             -- the account's name in config.toml
  mailbox           TEXT NOT NULL,             -- the mailbox on the server, or 'import'
  uid_validity      INTEGER,                   -- with uid: the mail's name on the server (RFC 3501); NULL for an import
  uid               INTEGER,
  message_id        TEXT,                      -- the Message-ID header; its sender's word, so neither unique nor a proof
  sender            TEXT,                      -- the From header
  recipient         TEXT,                      -- the To header
  subject           TEXT,
  sent_at           TEXT,                      -- the Date header
  received_at       TEXT,                      -- when the mail server took it
  size              INTEGER NOT NULL,          -- bytes of the whole mail; more than length(raw) if it was too large to keep
  sha256            TEXT NOT NULL,             -- of raw, in hex
  raw               BLOB,                      -- the mail, byte for byte; NULL once pruned
  outcome           TEXT NOT NULL CHECK (outcome IN ('event', 'duplicate', 'ignored', 'quarantined', 'deferred')),
  reason            TEXT,                      -- 'code: words'; NULL for an event
  trust             TEXT CHECK (trust IN ('dkim', 'authentication-results', 'operator', 'none')),
  event_id          TEXT REFERENCES events (event_id),   -- the event that it made, or repeats
  trust_domain      TEXT,                      -- the domain that signed (d=)
  trust_selector    TEXT,                      -- the key's name (s=)
  trust_covers      TEXT,                      -- the header fields signed, separated by spaces; '*' for all
  trust_to          TEXT,                      -- the addresses of the signed To, separated by spaces
  judged_at         TEXT NOT NULL,             -- when it was judged, last
  judgements        INTEGER NOT NULL DEFAULT 1,-- how often
  next_judgement_at TEXT                       -- deferred: when it is judged again
) STRICT;
CREATE UNIQUE INDEX mails_by_uid ON mails (account, mailbox, uid_validity, uid) WHERE uid IS NOT NULL;
CREATE UNIQUE INDEX mails_imported ON mails (account, sha256) WHERE uid IS NULL;
CREATE INDEX mails_by_event ON mails (event_id) WHERE event_id IS NOT NULL;
CREATE INDEX mails_by_outcome ON mails (outcome, id);
CREATE INDEX mails_deferred ON mails (next_judgement_at) WHERE outcome = 'deferred';

-- One row for each payment report, in the webhook's model.
CREATE TABLE events (
  event_id            TEXT PRIMARY KEY,        -- follows from the content: the same payment has the same id in every database
  status              TEXT NOT NULL CHECK (status IN ('completed', 'failed', 'pending')),
  session_id          TEXT COLLATE NOCASE,     -- the payment session; NULL while it is not known
  session_source      TEXT CHECK (session_source IN ('mail', 'address', 'match', 'operator')),  -- what named it
  order_ref           TEXT,                    -- the merchant's own name for what is paid
  amount              TEXT,                    -- plain decimal digits, as written
  currency            TEXT,                    -- 'USD', or the token that the amount names
  blockchain          TEXT,
  token               TEXT,
  from_wallet_address TEXT,
  transaction_hash    TEXT COLLATE NOCASE,     -- COLLATE for looking up only; the case is kept
  tx_time             TEXT,
  tx_time_source      TEXT CHECK (tx_time_source IN ('mail', 'header')),
  webhook             TEXT NOT NULL,           -- the body that is posted
  hold                TEXT,                    -- why a person has to decide before it is posted; NULL: nothing is in the way
  created_at          TEXT NOT NULL,
  CHECK ((session_id IS NULL) = (session_source IS NULL)),
  CHECK ((tx_time IS NULL) = (tx_time_source IS NULL))
) STRICT;
CREATE INDEX events_by_session ON events (session_id) WHERE session_id IS NOT NULL;
CREATE INDEX events_by_hash ON events (transaction_hash) WHERE transaction_hash IS NOT NULL;
CREATE INDEX events_unresolved ON events (tx_time) WHERE session_id IS NULL;
CREATE INDEX events_by_order ON events (order_ref) WHERE order_ref IS NOT NULL;
CREATE INDEX events_by_time ON events (created_at);

-- One row for each event and callback.
CREATE TABLE deliveries (
  id              INTEGER PRIMARY KEY,
  event_id        TEXT NOT NULL REFERENCES events (event_id),
  target          TEXT NOT NULL,               -- the [[forward]] entry's name
  state           TEXT NOT NULL CHECK (state IN ('held', 'pending', 'delivered', 'dead')),
  attempts        INTEGER NOT NULL DEFAULT 0,  -- counted before each is made
  next_attempt_at TEXT CHECK (state <> 'pending' OR next_attempt_at IS NOT NULL),   -- pending: not before this
  last_status     INTEGER,                     -- the last HTTP status
  last_error      TEXT,                        -- why the last attempt did not do
  delivered_at    TEXT,
  created_at      TEXT NOT NULL,
  first_attempt_at TEXT,                       -- the first since it last became pending: give_up_after counts from here
  UNIQUE (event_id, target)
) STRICT;
CREATE INDEX deliveries_due ON deliveries (target, next_attempt_at, id) WHERE state = 'pending';
CREATE INDEX deliveries_open ON deliveries (state, id) WHERE state <> 'delivered';

-- Every attempt to deliver.
CREATE TABLE attempts (
  delivery_id INTEGER NOT NULL REFERENCES deliveries (id) ON DELETE CASCADE,
  attempt     INTEGER NOT NULL,                -- 1, 2, 3 …
  at          TEXT NOT NULL,
  status      INTEGER,                         -- the HTTP status, if one came
  error       TEXT,                            -- NULL: it was accepted
  millis      INTEGER,                         -- how long it took
  PRIMARY KEY (delivery_id, attempt)
) STRICT, WITHOUT ROWID;

-- The sessions that the merchant opened at Resmic. The one table that others may insert into.
CREATE TABLE sessions (
  session_id TEXT PRIMARY KEY COLLATE NOCASE CHECK (length(session_id) = 36),
  order_ref  TEXT CHECK (order_ref <> ''),
  amount     TEXT                              -- US dollars, decimal text
             CHECK (amount GLOB '[0-9]*' AND amount NOT GLOB '*[^0-9.]*' AND amount NOT GLOB '*.*.*'),
  blockchain TEXT,
  token      TEXT,
  created_at TEXT NOT NULL DEFAULT (strftime('%Y-%m-%dT%H:%M:%fZ', 'now')),
  expires_at TEXT                              -- after this it is not matched by amount any more
) STRICT;
CREATE INDEX sessions_by_order ON sessions (order_ref) WHERE order_ref IS NOT NULL;
CREATE INDEX sessions_by_time ON sessions (created_at);

-- Sessions that were registered or changed, by whatever program, and whose events were not looked at since.
CREATE TABLE unsettled (
  session_id TEXT PRIMARY KEY COLLATE NOCASE
) STRICT, WITHOUT ROWID;
-- Others write times in their own ways (2025-03-05 03:36:00, 2025-03-05T04:36:00+01:00); they are kept in ours.
-- No OR IGNORE: the conflict clause of the statement that fires a trigger replaces the trigger's own.
CREATE TRIGGER sessions_registered AFTER INSERT ON sessions BEGIN
  SELECT RAISE(ABORT, 'created_at and expires_at must be times, such as 2025-03-05T03:36:00Z')
  WHERE julianday(NEW.created_at) IS NULL OR (julianday(NEW.expires_at) IS NULL AND NEW.expires_at IS NOT NULL);
  UPDATE sessions SET created_at = strftime('%Y-%m-%dT%H:%M:%fZ', NEW.created_at),
    expires_at = strftime('%Y-%m-%dT%H:%M:%fZ', NEW.expires_at)
  WHERE session_id = NEW.session_id;
  INSERT INTO unsettled SELECT NEW.session_id WHERE NOT EXISTS (SELECT 1 FROM unsettled WHERE session_id = NEW.session_id);
END;
CREATE TRIGGER sessions_changed AFTER UPDATE ON sessions BEGIN
  INSERT INTO unsettled SELECT NEW.session_id WHERE NOT EXISTS (SELECT 1 FROM unsettled WHERE session_id = NEW.session_id);
END;

-- How far each mailbox has been read, and how it is.
CREATE TABLE mailboxes (
  account      TEXT NOT NULL,
  mailbox      TEXT NOT NULL,
  uid_validity INTEGER,                        -- with last_uid: the cursor. Every mail up to it is stored, or was seen to be gone
  last_uid     INTEGER,
  state        TEXT NOT NULL DEFAULT 'connecting' CHECK (state IN ('connecting', 'syncing', 'idle', 'polling', 'failed')),
  last_seen_at TEXT,                           -- the last completed round trip
  last_error   TEXT,
  PRIMARY KEY (account, mailbox)
) STRICT, WITHOUT ROWID;

-- What a merchant wants to see first: the newest truth of each session. What is completed is never hidden by a later
-- report that it is pending, or by a failed attempt. An event without a session stands for itself.
CREATE VIEW payments AS
WITH ranked AS (
  SELECT *, row_number() OVER (
    PARTITION BY coalesce(lower(session_id), event_id)
    ORDER BY status = 'completed' DESC, coalesce(tx_time, created_at) DESC, created_at DESC, rowid DESC) AS place
  FROM events)
SELECT r.session_id, r.order_ref, r.status, r.amount, r.currency, r.blockchain, r.token, r.from_wallet_address,
       r.transaction_hash, r.tx_time, r.event_id, r.session_source, r.hold, r.created_at,
       (SELECT CASE WHEN count(*) = 0 THEN NULL
                    WHEN sum(d.state = 'dead') > 0 THEN 'dead'
                    WHEN sum(d.state = 'held') > 0 THEN 'held'
                    WHEN sum(d.state = 'pending') > 0 THEN 'pending'
                    ELSE 'delivered' END
        FROM deliveries d WHERE d.event_id = r.event_id) AS delivery
FROM ranked r WHERE r.place = 1;
