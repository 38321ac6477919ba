-- A server that was restored from its backup gives the same UID to another mail: with its bytes, each is a mail of its own.
DROP INDEX mails_by_uid;
CREATE UNIQUE INDEX mails_by_uid ON mails (account, mailbox, uid_validity, uid, sha256) WHERE uid IS NOT NULL;
