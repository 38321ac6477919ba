# Functions for the scripts that run inside the box. Each step prints its results; the first failure ends the script.
unit=resmic-mailhook.service
step() { echo "== $*"; }
fail() {
    echo "FAILED: $*"
    systemctl status $unit || true
    journalctl -u $unit -n 25 --no-pager || true
    exit 1
}
property() { systemctl show -P "$1" $unit; }
# Waits until a command succeeds, or fails after 30 seconds.
await() {
    local words=$1 until=$((SECONDS + 30)); shift
    until "$@" >/dev/null 2>&1; do
        [ $SECONDS -lt $until ] || fail "$words"
        sleep 0.1
    done
}
query() { sqlite3 "file:/var/lib/resmic-mailhook/mailhook.db?mode=ro" "$1"; }
says() { [ "$(query "$1")" = "$2" ]; }
# `idle` needs a round trip after `moment`, so that the row of an earlier process does not count.
moment() { since=$(date -u +%FT%T.%3NZ); }
idle() { says "SELECT state = 'idle' AND last_seen_at > '$since' FROM mailboxes WHERE account = 'shop' AND mailbox = 'INBOX'" 1; }
moment
pid_is_not() { local now; now=$(property MainPID); [ "$now" != 0 ] && [ "$now" != "$1" ] && [ "$(property ActiveState)" = active ]; }
status_has() { property StatusText | grep -q "$1"; }
posted() { [ "$(wc -l < /box/posted)" = "$1" ]; }

# Starts a mail server with IMAP over TLS, a DNS server with the sender's key, and a callback, on loopback.
servers() {
    useradd --create-home shop
    cd /box
    openssl req -x509 -newkey rsa:2048 -nodes -days 9 -subj '/CN=a CA of this box' -keyout ca.key -out ca.pem 2>/dev/null
    openssl req -newkey rsa:2048 -nodes -subj '/CN=imap.shop.example' -keyout imap.key -out imap.csr 2>/dev/null
    printf 'subjectAltName=DNS:imap.shop.example\n' > imap.ext
    openssl x509 -req -in imap.csr -CA ca.pem -CAkey ca.key -CAcreateserial -days 9 -extfile imap.ext -out imap.pem 2>/dev/null
    echo '127.0.0.1 imap.shop.example' >> /etc/hosts
    cat > /etc/dovecot/local.conf <<'CONF'
mail_location = maildir:~/Maildir
ssl_cert = </box/imap.pem
ssl_key = </box/imap.key
passdb {
  driver = static
  args = password=correct-horse
}
userdb {
  driver = static
  args = uid=shop gid=shop home=/home/shop
}
service imap-login {
  inet_listener imap {
    address = 127.0.0.1
  }
  inet_listener imaps {
    address = 127.0.0.1
  }
}
CONF
    sed -i 's/^!include auth-system/#&/' /etc/dovecot/conf.d/10-auth.conf
    systemctl restart dovecot
    openssl genpkey -algorithm RSA -pkeyopt rsa_keygen_bits:2048 -out dkim.pem 2>/dev/null
    cat > /etc/nsd/nsd.conf <<'CONF'
server:
  ip-address: 127.0.0.1
  database: ""
zone:
  name: resmic.com
  zonefile: /etc/nsd/zone
CONF
    {
        printf '$ORIGIN resmic.com.\n$TTL 60\n@ SOA ns root 1 60 60 600 60\n@ NS ns\nns A 127.0.0.1\n@ MX 10 ns\n'
        echo "s1._domainkey TXT $(python3 mails.py dkim.pem)"
        echo '_dmarc TXT "v=DMARC1; p=reject"'
    } > /etc/nsd/zone
    systemctl restart nsd
    echo 'nameserver 127.0.0.1' > /etc/resolv.conf
    : > posted
    systemd-run --quiet --unit=callback python3 /box/callback.py /box/posted
    await "the callback does not listen" curl -s http://127.0.0.1:3000/
}
deliver() { doveadm save -u shop -m INBOX < "$1"; }
