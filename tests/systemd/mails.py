"""Writes payment mails with DKIM signatures (RFC 6376, simple/simple) by a given key.

mails.py KEY.pem FOLDER FIRST LAST [TO]  writes FOLDER/N.eml for each N from FIRST to LAST
mails.py KEY.pem                         prints the TXT record's data
"""
import base64
import hashlib
import subprocess
import sys

SIGNED = ["From", "To", "Subject", "Date", "Message-ID"]


def openssl(*arguments, data=b""):
    return subprocess.run(["openssl", *arguments], input=data, stdout=subprocess.PIPE, check=True).stdout


def record(key):
    public = base64.b64encode(openssl("pkey", "-in", key, "-pubout", "-outform", "DER")).decode()
    text = f"v=DKIM1; k=rsa; p={public}"
    return " ".join(f'"{text[n:n + 200]}"' for n in range(0, len(text), 200))


def payment(n, to):
    header = {"From": "Resmic <no-reply@resmic.com>", "To": to, "Subject": "Payment received",
              "Date": "Wed, 05 Mar 2025 03:36:41 +0000", "Message-ID": f"<{n}@resmic.com>"}
    body = [f"Amount: ${n}.00", "Blockchain: BASE", "Token: USDC", f"Transaction Hash: 0x{n:064x}"]
    # Like real mails, the mail for an order has no session.
    if "+" not in to:
        body.append(f"Session: 591abe63-aa61-411d-a419-{n:012x}")
    return header, "".join(line + "\r\n" for line in body)


def sign(header, body, key):
    digest = base64.b64encode(hashlib.sha256(body.encode()).digest()).decode()
    signature = ("DKIM-Signature: v=1; a=rsa-sha256; c=simple/simple; d=resmic.com; s=s1; "
                 f"h={':'.join(SIGNED)}; bh={digest}; b=")
    signed = "".join(f"{name}: {header[name]}\r\n" for name in SIGNED) + signature
    return signature + base64.b64encode(openssl("dgst", "-sha256", "-sign", key, data=signed.encode())).decode()


def main(key, folder=None, first=0, last=0, to="payments@shop.example"):
    if folder is None:
        print(record(key))
        return
    for n in range(int(first), int(last) + 1):
        header, body = payment(n, to)
        lines = [sign(header, body, key)] + [f"{name}: {value}" for name, value in header.items()]
        with open(f"{folder}/{n}.eml", "w", newline="") as mail:
            mail.write("\r\n".join(lines) + "\r\n\r\n" + body)


main(*sys.argv[1:])
