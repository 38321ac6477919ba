# For a fresh Debian 12 or 13 machine with Rust; as root, or as somebody who may use sudo.

SUDO := $(shell [ "$$(id -u)" = 0 ] || echo sudo)
APT  := $(SUDO) env DEBIAN_FRONTEND=noninteractive apt-get
# What the tests and the demo stand on: a mail server, a DNS server, a signer, and the languages of the examples.
NEEDS := dovecot:dovecot-core dovecot-imapd:dovecot-imapd dovecot-lmtpd:dovecot-lmtpd nsd:nsd openssl:openssl php:php-cli \
         python3:python3 node:nodejs npm:npm cc:gcc

.PHONY: demo test check deps node bench clean

demo: deps ## watch payments arrive
	cargo build --locked --bin resmic-mailhook --example demo
	cargo run --locked --quiet --example demo

test: deps node ## every test
	cargo test --locked

check: ## what must hold before a commit, beside the tests
	cargo fmt --check
	cargo clippy --locked --all-targets -- -D warnings

bench: ## how fast it is, as ratios against a floor in the same run
	cargo bench --locked

# Installs what is missing, and nothing else. Servers of Debian's own are not started by it.
deps:
	@missing=; \
	for need in $(NEEDS); do \
	  program=$${need%%:*}; package=$${need##*:}; \
	  case $$program in \
	    dovecot-imapd) [ -e /usr/lib/dovecot/imap ] || missing="$$missing $$package" ;; \
	    dovecot-lmtpd) [ -e /usr/lib/dovecot/lmtp ] || missing="$$missing $$package" ;; \
	    *) PATH="$$PATH:/usr/sbin:/sbin" command -v $$program >/dev/null || missing="$$missing $$package" ;; \
	  esac; \
	done; \
	if [ -n "$$missing" ]; then \
	  echo "installing:$$missing"; \
	  $(APT) update -qq && \
	  { [ -e /usr/sbin/policy-rc.d ] || { made=1; printf '#!/bin/sh\nexit 101\n' | $(SUDO) tee /usr/sbin/policy-rc.d >/dev/null; $(SUDO) chmod 755 /usr/sbin/policy-rc.d; }; }; \
	  $(APT) install -y -qq --no-install-recommends $$missing >/dev/null; status=$$?; \
	  [ -z "$$made" ] || $(SUDO) rm -f /usr/sbin/policy-rc.d; \
	  exit $$status; \
	fi

# The libraries of the examples and of the official verifier, as their lock files say.
node: deps
	@for folder in examples/node-express tests/standard-webhooks; do \
	  [ $$folder/node_modules -nt $$folder/package-lock.json ] || { npm ci --silent --no-audit --no-fund --prefix $$folder && touch $$folder/node_modules; } || exit 1; \
	done

clean:
	cargo clean
	rm -rf examples/node-express/node_modules tests/standard-webhooks/node_modules
