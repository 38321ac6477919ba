-- Where a first run began that did not begin with the oldest mail: it counts again whenever a mailbox is read anew.
ALTER TABLE mailboxes ADD COLUMN begun_at TEXT;       -- what the server took before this is not read …
ALTER TABLE mailboxes ADD COLUMN begun_uid INTEGER;   -- … up to this UID; what is above it came since
-- By these it is seen that a server came back from its backup, and gave numbers that were read to other mails.
ALTER TABLE mailboxes ADD COLUMN newest_at TEXT;      -- when the server took the newest mail that was seen here
ALTER TABLE mailboxes ADD COLUMN renumbered_after INTEGER NOT NULL DEFAULT 0;   -- rows of mails up to this id: their UIDs may be other mails' by now
-- Until it is known: nothing that was there at the last look is newer than that, give or take what two clocks differ.
UPDATE mailboxes SET newest_at = strftime('%Y-%m-%dT%H:%M:%fZ', last_seen_at, '+1 minute') WHERE last_uid IS NOT NULL;
