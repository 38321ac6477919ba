# Follows docs/install.md and docs/operations.md as an operator would. These pages contain each `documented` command literally.
# It runs inside the box, as root.
set -euo pipefail
. /box/common.sh

dpkg --unpack /box/first.deb >/dev/null # for the pages only
page=/box/pages.md
cat /usr/share/doc/resmic-mailhook/docs/{install,operations}.md > $page
dpkg -P resmic-mailhook >/dev/null 2>&1
sudo() { "$@"; }
# The files that an operator would type are in /box/typed.
sudoedit() { cat "/box/typed/$(basename "$1")" > "$1"; }
documented() {
    grep -qF -- "$1" $page || fail "not in docs/install.md or docs/operations.md: $1"
    echo "\$ $1"
    eval "$1" || fail "exit code $?: $1"
}
# Installs the n-th drop-in of the pages.
drop_in() {
    mkdir -p /etc/systemd/system/$unit.d
    awk -v n="$1" '/^```/ { inside = 0 } inside { print } /^```ini/ { inside = (++seen == n) }' $page \
        > /etc/systemd/system/$unit.d/override.conf
    [ -s /etc/systemd/system/$unit.d/override.conf ] || fail "no drop-in $1 on the pages"
    systemctl daemon-reload
}
database=/var/lib/resmic-mailhook/mailhook.db
ids() { query "SELECT event_id FROM events ORDER BY 1"; }
events() { says "SELECT count(*) FROM events" "$1"; }
delivered() { says "SELECT count(*) FROM deliveries WHERE state = 'delivered'" "$1"; }
pay() { mkdir -p /box/new; python3 /box/mails.py /box/dkim.pem /box/new "$@"; for n in $(seq "$1" "$2"); do deliver "/box/new/$n.eml"; done; }

step "servers, and mails that came before"
servers
pay 1 3
mkdir /box/typed
# init needs a mail server that the system trusts.
cp ca.pem /usr/local/share/ca-certificates/box.crt
update-ca-certificates >/dev/null 2>&1
cat > /box/typed/config.toml <<'CONF'
[[account]]
name = "shop"
host = "imap.shop.example"
ca_file = "ca.pem"
user = "payments@shop.example"
password = { credential = "imap-password" }

[sessions]
address = { mailbox = "payments@shop.example", key = { credential = "address-key" } }

[[forward]]
name = "shop"
url = "http://127.0.0.1:3000/payment-webhook"
secret = { credential = "webhook-secret" }

[telemetry]
metrics = "127.0.0.1:9464"
CONF
echo correct-horse > /box/typed/imap-password
echo s3cret > /box/typed/webhook-secret

step "Install"
mkdir -p /box/target/debian
cp /box/first.deb /box/target/debian/resmic-mailhook_0.1.0-1_amd64.deb
cd /box
documented 'sudo dpkg -i target/debian/resmic-mailhook_*.deb'
[ "$(property ConditionResult)" = no ] || fail "started without a configuration"
cp typed/imap-password imap-password.txt
# The command with flags has two lines on its page.
command=$(sed -n '/^sudo resmic-mailhook init --yes/,/[^\\]$/p' $page)
[ "$(wc -l <<< "$command")" = 2 ] || fail "not two lines: $command"
eval "$command" || fail "init"
rm imap-password.txt
[ "$(stat -c %a /etc/resmic-mailhook/config.toml /etc/resmic-mailhook/imap-password | xargs)" = "644 600" ] || fail "the modes of init"
documented 'sudo resmic-mailhook check --connect'
documented 'sudo systemctl start resmic-mailhook'
await "the first mails" delivered 3
await "idle" idle
documented 'sudo resmic-mailhook status'
systemctl status $unit | grep Status

step "Install: a change by hand"
cp /box/ca.pem /etc/resmic-mailhook/
documented 'sudoedit /etc/resmic-mailhook/config.toml'
documented 'sudo resmic-mailhook check'
moment
systemctl restart $unit || fail "does not start after a change"
await "idle after a change" idle

step "a payment for an order: session add, address, events --follow"
documented 'resmic-mailhook events --follow' > /box/followed &
follower=$!
order() { resmic-mailhook session add 591abe63-aa61-411d-a419-0b546729bbd0 --order A-1 --amount 4.00; }
order
address=$(resmic-mailhook address A-1)
pay 4 4 "$address"
await "the order's payment" delivered 4
says "SELECT session_source || ' ' || order_ref FROM events WHERE order_ref IS NOT NULL" "address A-1" || fail "not by its address"
await "not followed" grep -q 591abe63-aa61-411d-a419-0b546729bbd0 /box/followed
kill $follower
tail -1 /box/followed
journalctl -u resmic-mailhook MAILHOOK_SESSION_ID=591abe63-aa61-411d-a419-0b546729bbd0 -o cat
says "SELECT count(*) FROM mails WHERE trust = 'dkim'" 4 || fail "not by DKIM"

step "Alerts: cron is silent while all is well"
job=$(grep -o '\*/5 \* \* \* \* root .* status`' $page | sed 's/^.* root //; s/`$//')
[ -z "$(sh -c "$job")" ] || fail "cron would mail"

step "Credentials: a second account, no callback, and OAuth without a drop-in; another place and encryption with one"
cp /etc/resmic-mailhook/config.toml /box/one.toml
sed 's/"shop"/"second"/; s/imap-password/second-password/; /^$/,$d' /box/one.toml >> /etc/resmic-mailhook/config.toml
install -m 0600 /box/typed/imap-password /etc/resmic-mailhook/second-password
systemctl restart $unit || fail "does not start with two accounts"
await "the second account" says "SELECT count(*) FROM mailboxes WHERE account = 'second' AND mailbox = 'INBOX' AND state = 'idle'" 1
rm /etc/resmic-mailhook/second-password
sed '/^\[\[forward/,/^$/d' /box/one.toml > /etc/resmic-mailhook/config.toml
rm /etc/resmic-mailhook/webhook-secret
moment
systemctl restart $unit || fail "does not start without a callback"
await "idle without a callback" idle
mkdir -p /run/secrets
mv /etc/resmic-mailhook/imap-password /run/secrets/shop-imap
drop_in 1
moment
systemctl restart $unit || fail "does not start with a password in another place"
await "idle with a password in another place" idle
cp /box/one.toml /etc/resmic-mailhook/config.toml
install -m 0600 /box/typed/webhook-secret /etc/resmic-mailhook/webhook-secret
cp /box/typed/imap-password imap-password.txt
documented 'sudo systemd-creds encrypt --name=imap-password imap-password.txt /etc/resmic-mailhook/imap-password.cred'
rm imap-password.txt /run/secrets/shop-imap
drop_in 2
moment
systemctl restart $unit || fail "does not start with an encrypted password"
await "idle with an encrypted password" idle
documented 'sudo resmic-mailhook check --connect' >/dev/null
rm /etc/resmic-mailhook/imap-password.cred
rm -r /etc/systemd/system/$unit.d
systemctl daemon-reload
cat > /box/oauth.toml <<'CONF'
[account.oauth2]
token_url = "http://127.0.0.1:9/token"
client_id = "shop"
client_secret = { credential = "oauth-client-secret" }
refresh_token = { credential = "oauth-refresh-token" }
CONF
sed -e '/^password = /r /box/oauth.toml' -e '/^password = /d' /box/one.toml > /etc/resmic-mailhook/config.toml
echo s3cret | tee /etc/resmic-mailhook/oauth-client-secret > /etc/resmic-mailhook/oauth-refresh-token
systemctl restart $unit || fail "does not start with OAuth"
await "both secrets are there, and nobody answers" \
    says "SELECT last_error LIKE '%token%' FROM mailboxes WHERE account = 'shop' AND mailbox = 'INBOX'" 1
rm /etc/resmic-mailhook/oauth-*
cp /box/one.toml /etc/resmic-mailhook/config.toml
cp /box/typed/imap-password /etc/resmic-mailhook/
moment
documented 'systemctl restart resmic-mailhook'
await "idle again" idle
resmic-mailhook status || fail "status is red"

step "Backup under load: every copy is sound, and none has half a mail"
mkdir -p /var/backups
(pay 100 399) & load=$!
copies=0
while kill -0 $load 2>/dev/null; do
    resmic-mailhook backup /var/backups/copy-$copies.db 2>/dev/null || fail "backup $copies"
    copies=$((copies + 1))
done
wait $load || fail "the load"
documented 'sudo resmic-mailhook backup /var/backups/mailhook-$(date +%F).db'
[ "$(stat -c %a /var/backups/mailhook-*.db)" = 600 ] || fail "the copy is open to others"
seen=0
for copy in $(ls -v /var/backups/copy-*.db); do
    n=$(sqlite3 "$copy" "SELECT (SELECT count(*) FROM events) || ' ' || (SELECT count(*) FROM mails WHERE outcome = 'event') || ' ' || (SELECT count(*) FROM deliveries)")
    [ "$(sqlite3 "$copy" 'PRAGMA integrity_check; PRAGMA foreign_key_check')" = ok ] || fail "$copy is not sound"
    set -- $n
    [ "$1" = "$2" ] && [ "$1" = "$3" ] && [ "$1" -ge "$seen" ] || fail "$copy: $n"
    seen=$1
done
echo "$copies copies while 300 mails came"
[ "$copies" -gt 3 ] || fail "no load"
await "all of the load" delivered 304
ids > /box/ids
rm /var/backups/copy-*.db

step "Retention"
documented 'sudo resmic-mailhook prune --older-than 400d'
says "SELECT count(*) FROM mails WHERE raw IS NOT NULL AND outcome = 'event'" 304 || fail "too much was dropped"
sleep 1 # `prune --older-than 1s` keeps mails that are younger than a second
resmic-mailhook prune --older-than 1s
says "SELECT count(*) FROM mails WHERE raw IS NOT NULL" 0 || fail "the bytes are still there"
ids | cmp - /box/ids || fail "prune took events"
replays=$(query "SELECT count(*) FROM mails WHERE outcome = 'duplicate'")
deliver /box/new/100.eml
await "a replay is recognised after prune" says "SELECT count(*) FROM mails WHERE outcome = 'duplicate'" $((replays + 1))

step "Restore: what came since the copy is fetched again"
resmic-mailhook backup /box/before.db
pay 400 402
await "three more" delivered 307
cp /box/before.db /box/copy.db
moment
restore() {
    documented 'sudo systemctl stop resmic-mailhook'
    documented "sudo sh -c 'rm -f /var/lib/resmic-mailhook/mailhook.db*'"
    documented 'sudo cp copy.db /var/lib/resmic-mailhook/mailhook.db'
    documented 'sudo systemctl start resmic-mailhook'
}
restore
await "idle on the copy" idle
await "the three again" delivered 307
[ "$(sort /box/posted.keys | uniq -d | wc -l)" = 3 ] || fail "not exactly the three were posted again"
resmic-mailhook status || fail "status is red"
ids > /box/ids

step "The database is lost: the mailbox has it all"
rm /var/lib/resmic-mailhook/mailhook.db* 2>/dev/null && systemctl stop $unit
rm -f /var/lib/resmic-mailhook/mailhook.db*
systemctl start $unit
await "everything that needs no session" delivered 306
order
await "everything again" delivered 307
ids | cmp - /box/ids || fail "other ids than before"
[ "$(sort -u /box/posted.keys | wc -l)" = 307 ] || fail "other Idempotency-Keys than before"

step "The database is lost, and so are mails in the mailbox: import"
systemctl stop $unit
rm -f /var/lib/resmic-mailhook/mailhook.db*
doveadm expunge -u shop mailbox INBOX all
rm -r mails; mkdir mails
cp new/*.eml mails/
documented 'resmic-mailhook import mails/'
moment
systemctl start $unit || fail "does not start after an import by root"
await "idle after an import by root" idle
await "what was imported is delivered" delivered 306
order
await "the order is found again" delivered 307
ids | cmp - /box/ids || fail "other ids than before"
resmic-mailhook status || fail "status is red"

step "Upgrade"
moment
dpkg -i /box/second.deb >/dev/null
await "idle after the upgrade" idle
delivered 307 || fail "the upgrade"

step "Moving to another machine: everything of it is gone from this one, and comes from the copy"
documented 'systemctl disable --now resmic-mailhook'
documented 'resmic-mailhook backup /root/mailhook.db'
cp -a /etc/resmic-mailhook /root/etc
dpkg -P resmic-mailhook >/dev/null 2>&1
[ ! -e /var/lib/resmic-mailhook ] && [ ! -e /var/lib/private/resmic-mailhook ] && [ ! -e /etc/resmic-mailhook ] || fail "purge"
cd /box && dpkg -i target/debian/resmic-mailhook_*.deb >/dev/null
cp /root/etc/* /etc/resmic-mailhook/
documented 'sudo install -D -m 0600 /root/mailhook.db /var/lib/resmic-mailhook/mailhook.db'
posted_before=$(wc -l < /box/posted)
moment
systemctl start $unit || fail "does not start on the copy"
await "idle on the new machine" idle
pay 500 500
await "the next payment" delivered 308
[ "$(wc -l < /box/posted)" = $((posted_before + 1)) ] || fail "something was posted again"
resmic-mailhook status || fail "status is red"
[ "$(stat -c %a /var/lib/private/resmic-mailhook)" = 700 ] || fail "the state directory is open"

step "Remove, and install again: nothing is lost; purge: nothing stays"
dpkg -r resmic-mailhook >/dev/null
moment
dpkg -i target/debian/resmic-mailhook_*.deb >/dev/null
await "idle after a second installation" idle
delivered 308 || fail "the database after a second installation"
dpkg -P resmic-mailhook >/dev/null 2>&1

step "Install without the package"
dpkg-deb -x first.deb tree
mkdir -p target/release systemd
mv tree/usr/bin/resmic-mailhook target/release/
mv tree/lib/systemd/system/$unit systemd/ 2>/dev/null || mv tree/usr/lib/systemd/system/$unit systemd/
documented 'sudo install target/release/resmic-mailhook /usr/bin/'
documented 'sudo install -m 0644 systemd/resmic-mailhook.service /etc/systemd/system/'
documented 'sudo systemctl daemon-reload'
documented 'sudo systemctl enable resmic-mailhook'
mkdir -p /etc/resmic-mailhook
cp /root/etc/* /etc/resmic-mailhook/
moment
documented 'sudo systemctl start resmic-mailhook'
await "idle without the package" idle
await "what is in the mailbox" events "$(doveadm search -u shop mailbox INBOX all | wc -l)"

echo "== all is as it is documented"
