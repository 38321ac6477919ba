# Tests the package and its unit. It runs inside the box, as root.
set -euo pipefail
. /box/common.sh

step "a fresh install: enabled, not started, not failed"
dpkg -i /box/first.deb
[ "$(systemctl is-enabled $unit)" = enabled ] || fail "not enabled"
[ "$(property ActiveState) $(property ConditionResult) $(property NRestarts)" = "inactive no 0" ] || fail "not skipped cleanly"
man -w resmic-mailhook >/dev/null 2>&1 || [ -e /usr/share/man/man1/resmic-mailhook.1.gz ] || fail "no manual page"
for f in bash-completion/completions/resmic-mailhook zsh/vendor-completions/_resmic-mailhook \
    fish/vendor_completions.d/resmic-mailhook.fish doc/resmic-mailhook/docs/operations.md; do
    [ -s /usr/share/$f ] || fail "no /usr/share/$f"
done

# The box has no man program.
step "the unit: no unknown keys, exposure at most 1.2"
words=$(systemd-analyze verify --man=no $unit 2>&1) || fail "verify: $words"
[ -z "$words" ] || fail "verify: $words"
systemd-analyze security --threshold=12 $unit | tail -1

step "a mail server, a DNS server and a callback"
servers

step "configured, as the documentation says"
cat > /etc/resmic-mailhook/config.toml <<'CONF'
[[account]]
name = "shop"
host = "127.0.0.1"
tls = "none"
user = "payments@shop.example"
password = { credential = "imap-password" }
mailboxes = ["INBOX"]
dedicated = true
[trust]
accept = ["none"]
[[forward]]
name = "shop"
url = "http://127.0.0.1:3000/payment-webhook"
secret = { credential = "webhook-secret" }
unresolved = "send"
[telemetry]
metrics = "127.0.0.1:9464"
CONF
install -m 0600 /dev/null /etc/resmic-mailhook/imap-password
install -m 0600 /dev/null /etc/resmic-mailhook/webhook-secret
echo correct-horse > /etc/resmic-mailhook/imap-password
echo s3cret > /etc/resmic-mailhook/webhook-secret
resmic-mailhook check || fail "check"
resmic-mailhook check --connect > /box/check || fail "check --connect: $(cat /box/check)"
grep -q 'mailbox INBOX: 0 mails' /box/check && grep -q 'target shop: .* can be reached' /box/check || fail "check --connect"
systemctl start $unit || fail "does not start"
await "does not idle" idle
[ "$(stat -c %a /var/lib/private/resmic-mailhook)" = 700 ] || fail "the state directory is open"
[ "$(ps -o user= -p "$(property MainPID)")" != root ] || fail "runs as root"
[ "$(prlimit --nofile --output SOFT --noheadings --pid "$(property MainPID)")" -ge 16384 ] || fail "no room for many mailboxes"
resmic-mailhook status || fail "status is red"
resmic-mailhook status --json | grep -q '"ok":true' || fail "status --json"
curl -sf http://127.0.0.1:9464/healthz || fail "healthz is red"

step "mails become events, in the sandbox, and are posted"
python3 /box/mails.py /box/dkim.pem /box/mails 7 7 # a mail with a session
for mail in /box/mails/*.eml; do deliver "$mail"; done
n=$(query "SELECT count(*) FROM deliveries")
await "no event" says "SELECT count(*) > 0 FROM events" 1
await "not everything is judged" says "SELECT count(*) FROM mails" "$(ls /box/mails | wc -l)"
await "not everything is delivered" says "SELECT count(*) FROM deliveries WHERE state <> 'delivered'" 0
n=$(query "SELECT count(*) FROM deliveries")
await "not everything was posted" posted "$n"
echo "$n events posted"
! curl -s http://127.0.0.1:9464/metrics | grep -x 'resmic_mailhook_push_latency_seconds_count 0' || fail "no latency"
curl -s http://127.0.0.1:9464/metrics | grep -E '^resmic_mailhook_(events|push_latency_seconds_count|mailbox_connected)' || fail "metrics"
await "STATUS= does not say how many events there are" status_has "events: [1-9]"
property StatusText

step "the journal has fields"
id=$(query "SELECT event_id FROM events LIMIT 1")
about() { journalctl -u $unit "$@" -o json; }
about MAILHOOK_EVENT_ID="$id" MAILHOOK_MAILBOX=INBOX | grep -q '"MAILHOOK_ACCOUNT":"shop"' || fail "no journal fields of a mail"
about MAILHOOK_EVENT_ID="$id" MAILHOOK_CALLBACK=shop | grep -q '"MESSAGE":"delivered"' || fail "no journal fields of a delivery"
session=$(query "SELECT session_id FROM events WHERE session_id IS NOT NULL LIMIT 1")
[ "$(about MAILHOOK_SESSION_ID="$session" | wc -l)" -ge 2 ] || fail "no journal fields of a session"
! journalctl -u $unit | grep -E 'correct-horse|s3cret' || fail "a secret in the journal"

step "kill -9: a restart without duplicates"
before=$(property MainPID)
moment
kill -9 "$before"
await "not restarted after kill -9" pid_is_not "$before"
await "does not idle again" idle
says "SELECT count(*) FROM deliveries" "$n" || fail "deliveries doubled"
posted "$n" || fail "posted twice"

step "reload: a wrong configuration is refused, a valid one is used, the process stays"
before=$(property MainPID)
cp /etc/resmic-mailhook/config.toml /box/right.toml
echo 'bogus = 1' >> /etc/resmic-mailhook/config.toml
systemctl reload $unit || fail "reload"
await "the refusal is not said" status_has "the old one stays in force"
[ "$(property ActiveState)" = active ] || fail "not active after a refusal"
sed 's/mailboxes = .*/mailboxes = ["INBOX", "Trash"]/' /box/right.toml > /etc/resmic-mailhook/config.toml
doveadm mailbox create -u shop Trash
systemctl reload $unit || fail "reload"
await "the new mailbox is not watched" says "SELECT count(*) FROM mailboxes WHERE state = 'idle'" 2
[ "$(property MainPID)" = "$before" ] || fail "another process"
[ "$(property ActiveState)" = active ] || fail "not active after a reload"
cp /box/right.toml /etc/resmic-mailhook/config.toml
systemctl reload $unit

step "watchdog: a stopped process is restarted"
mkdir -p /etc/systemd/system/$unit.d
printf '[Service]\nWatchdogSec=3s\n' > /etc/systemd/system/$unit.d/watchdog.conf
systemctl daemon-reload
moment
systemctl restart $unit
await "does not idle" idle
before=$(property MainPID)
sleep 5 # Longer than WatchdogSec. An idle daemon must reset the watchdog, too.
[ "$(property MainPID)" = "$before" ] || fail "the watchdog bit an idle daemon"
moment
kill -STOP "$before"
await "the watchdog did not bite" pid_is_not "$before"
journalctl -u $unit | grep -qi watchdog || fail "not by the watchdog"
rm -r /etc/systemd/system/$unit.d
systemctl daemon-reload

step "an encrypted credential"
mkdir -p /etc/systemd/system/$unit.d
echo correct-horse | systemd-creds encrypt --name=imap-password --with-key=host - /box/imap-password.cred 2>/dev/null
# A drop-in that was written for an older version of the unit, which listed each credential and each condition.
cat > /etc/systemd/system/$unit.d/encrypted.conf <<'CONF'
[Unit]
ConditionPathExists=
ConditionPathExists=/etc/resmic-mailhook/config.toml
[Service]
LoadCredential=
LoadCredential=webhook-secret:/etc/resmic-mailhook/webhook-secret
LoadCredentialEncrypted=imap-password:/box/imap-password.cred
CONF
systemctl daemon-reload
moment
systemctl restart $unit || fail "does not start with an encrypted credential"
await "does not idle with an encrypted credential" idle
rm -r /etc/systemd/system/$unit.d
systemctl daemon-reload

step "a wrong configuration at the start: one failure with a message"
systemctl stop $unit
echo 'bogus = 1' >> /etc/resmic-mailhook/config.toml
! systemctl start $unit || fail "started"
[ "$(property ExecMainStatus) $(property NRestarts)" = "2 0" ] || fail "not left alone: $(property ExecMainStatus) $(property NRestarts)"
cp /box/right.toml /etc/resmic-mailhook/config.toml
systemctl reset-failed $unit
moment
systemctl start $unit
await "does not idle" idle

step "a backup while it runs, and a red status when the mail server is gone"
resmic-mailhook backup /box/copy.db
[ "$(sqlite3 /box/copy.db 'PRAGMA integrity_check; SELECT count(*) FROM deliveries')" = "ok
$n" ] || fail "the copy"
systemctl stop dovecot.socket dovecot 2>/dev/null || systemctl stop dovecot
await "does not notice" says "SELECT state FROM mailboxes WHERE mailbox = 'INBOX'" failed
! resmic-mailhook status || fail "status is green without a mail server"
! curl -sf http://127.0.0.1:9464/healthz || fail "healthz is green without a mail server"
moment
systemctl start dovecot
await "does not come back" idle

step "upgrade: the service runs on with its database and its configuration"
before=$(property MainPID)
moment
dpkg -i /box/second.deb
await "not restarted by the upgrade" pid_is_not "$before"
await "does not idle" idle
says "SELECT count(*) FROM deliveries" "$n" || fail "the database"
cmp /box/right.toml /etc/resmic-mailhook/config.toml || fail "the configuration was changed"

step "remove: the service stops, and the data stays"
dpkg -r resmic-mailhook
! systemctl is-active $unit || fail "still running"
[ -e /var/lib/private/resmic-mailhook/mailhook.db ] && [ -e /etc/resmic-mailhook/imap-password ] || fail "something is lost"

step "purge: nothing stays"
dpkg -P resmic-mailhook
left=$(find / -xdev \( -path /proc -o -path /sys -o -path /run -o -path /box -o -path /var/log \) -prune -o -name '*resmic*' -print)
[ -z "$left" ] || fail "left behind: $left"

echo "== all is as it should be"
