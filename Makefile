# For a fresh Debian 12 or 13 machine with Rust; as root, or as somebody who may use sudo.

SUDO := $(shell [ "$$(id -u)" = 0 ] || echo sudo)
APT  := $(SUDO) env DEBIAN_FRONTEND=noninteractive apt-get
# What the tests and the demo stand on: a mail server, a DNS server, a signer, and the languages of the examples.
NEEDS := dovecot:dovecot-core dovecot-imapd:dovecot-imapd dovecot-lmtpd:dovecot-lmtpd nsd:nsd openssl:openssl php:php-cli \
         python3:python3 node:nodejs npm:npm cc:gcc

# What only some targets need is not put into the system but into target/tools, where the machine has none: the cargo
# commands in versions that build with the Rust of Cargo.toml, unoptimised (a minute each; they are built once and run
# for seconds).
TOOLS = $(CURDIR)/target/tools
export PATH := $(TOOLS)/bin:$(PATH)
INSTALL = cargo install --locked --debug --quiet --root $(TOOLS)

.PHONY: demo test check deps servers node bench bench-many soak fuzz clean deb deb-dev pages static test-systemd test-alerts \
        test-datasette deny sbom package cargo-deb cargo-deny cargo-cyclonedx

demo: deps ## watch payments arrive
	cargo build --locked --bin resmic-mailhook --example demo
	cargo run --locked --quiet --example demo

test: deps servers node ## every test
	cargo test --locked

check: ## what must hold before a commit, beside the tests
	cargo fmt --check
	cargo clippy --locked --all-targets -- -D warnings

bench: ## how fast it is, as ratios against a floor in the same run
	cargo bench --locked

bench-many: deps ## what a thousand mailboxes cost one process: make bench-many [MAILBOXES=1000] [SECONDS=60]
	cargo build --release --locked --bin resmic-mailhook
	MAILHOOK_BINARY=$(CURDIR)/target/release/resmic-mailhook \
	  cargo run --locked --quiet --example many -- $(or $(MAILBOXES),1000) $(or $(SECONDS),60)

soak: deps ## mails, and everything that can go wrong on their way, for as long as you like: make soak [MINUTES=10]
	cargo build --locked --bin resmic-mailhook --example soak
	cargo run --locked --quiet --example soak -- $(or $(MINUTES),10)

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

# Debian lets only one IMAP server be installed. The others are unpacked, with the libraries that this machine lacks.
servers: $(TOOLS)/servers/cyrus-imapd $(TOOLS)/servers/courier-imap

$(TOOLS)/servers/cyrus-imapd: PROGRAMS = $(addprefix usr/lib/cyrus/bin/,master ctl_cyrusdb idled imapd lmtpd)
$(TOOLS)/servers/courier-imap: PROGRAMS = usr/bin/imapd usr/libexec/gam_server
$(TOOLS)/servers/%: | deps
	@echo "unpacking: $*"
	@$(APT) update -qq
	@rm -rf $@.part; mkdir -p $@.part; folder=$$(mktemp -d) && cd $$folder \
	  && apt-get -o APT::Sandbox::User=root download -qq \
	       $$(apt-get install -s --no-install-recommends $* | sed -n 's/^Inst \([^ ]*\) (.*/\1/p' | grep -vE 'exim4|clamav') \
	  && for package in *.deb; do dpkg-deb -x $$package . || exit 1; done \
	  && for program in $(PROGRAMS); do [ ! -e $$program ] || cp $$program $@.part/; done \
	  && find . -name 'lib*.so*' -exec cp -P {} $@.part/ \; \
	  && mv $@.part $@ && rm -r $$folder

# The libraries of the examples and of the official verifier, as their lock files say.
node: deps
	@for folder in examples/node-express tests/standard-webhooks; do \
	  [ $$folder/node_modules -nt $$folder/package-lock.json ] || { npm ci --silent --no-audit --no-fund --prefix $$folder && touch $$folder/node_modules; } || exit 1; \
	done

# ---- for operators and packagers ----

# Bytes that depend on the source alone: no path of the machine that built, and the time of the last commit. Only here:
# whatever is compiled from C is compiled again when the time changes.
deb deb-dev sbom package: export SOURCE_DATE_EPOCH ?= $(shell git log -1 --format=%ct 2>/dev/null || date +%s)
REMAP = --remap-path-prefix=$(CURDIR)=. --remap-path-prefix=$(HOME)/.cargo=cargo

PACKAGING = target/packaging

cargo-deb:
	@command -v $@ >/dev/null || $(INSTALL) $@@3.8.0
cargo-deny:
	@command -v $@ >/dev/null || $(INSTALL) $@@0.20.2
cargo-cyclonedx:
	@command -v $@ >/dev/null || $(INSTALL) $@@0.5.9

# The Debian package, in target/debian/.
deb: cargo-deb
	RUSTFLAGS="$(RUSTFLAGS) $(REMAP)" cargo build --release --locked
	$(MAKE) pages BINARY=target/release/resmic-mailhook
	cargo deb --no-build --locked

# The same from a debug build, for tests of the package.
deb-dev: cargo-deb
	cargo build --locked
	$(MAKE) pages BINARY=target/debug/resmic-mailhook
	cargo deb --no-build --locked --profile dev --deb-version $(or $(VERSION),0.1.0-1) -o $(PACKAGING)/

# One static binary that needs nothing of the system, for another distribution on amd64; in target/$(MUSL)/release/.
MUSL = x86_64-unknown-linux-musl
static:
	@command -v musl-gcc >/dev/null || { $(APT) update -qq && $(APT) install -y -qq --no-install-recommends musl-tools >/dev/null; }
	rustup target add $(MUSL)
	CC_x86_64_unknown_linux_musl=musl-gcc RUSTFLAGS="$(RUSTFLAGS) $(REMAP)" cargo build --release --locked --target $(MUSL)

pages:
	mkdir -p $(PACKAGING)/man $(PACKAGING)/completions
	$(BINARY) man --out $(PACKAGING)/man
	$(BINARY) completions bash > $(PACKAGING)/completions/resmic-mailhook.bash
	$(BINARY) completions zsh > $(PACKAGING)/completions/_resmic-mailhook
	$(BINARY) completions fish > $(PACKAGING)/completions/resmic-mailhook.fish

# The package under a real systemd, in a booted container. Needs root.
test-systemd: deb-dev
	tests/systemd/run.sh

# The alerts are well-formed, and each is raised when it should be. promtool comes out of Debian's prometheus package,
# which is not installed: nothing is to be started.
test-alerts: $(if $(shell command -v promtool),,$(TOOLS)/bin/promtool)
	promtool check rules contrib/prometheus-rules.yml
	promtool test rules contrib/prometheus-tests.yml

$(TOOLS)/bin/promtool:
	@mkdir -p $(@D)
	@$(APT) update -qq
	@folder=$$(mktemp -d) && cd $$folder && apt-get -o APT::Sandbox::User=root download -qq prometheus \
	  && dpkg-deb --fsys-tarfile prometheus_*.deb | tar -xO ./usr/bin/promtool > $@.part \
	  && chmod 755 $@.part && mv $@.part $@ && rm -r $$folder

# contrib/datasette in the real Datasette, looked at with Chromium.
test-datasette: $(TOOLS)/datasette/bin/datasette
	@command -v chromium >/dev/null || { $(APT) update -qq && $(APT) install -y -qq --no-install-recommends chromium >/dev/null; }
	cargo build --locked
	$(TOOLS)/datasette/bin/python tests/datasette.py target/debug/resmic-mailhook

$(TOOLS)/datasette/bin/datasette:
	@python3 -c 'import ensurepip' 2>/dev/null || { $(APT) update -qq && $(APT) install -y -qq --no-install-recommends python3-venv >/dev/null; }
	python3 -m venv $(TOOLS)/datasette
	$(TOOLS)/datasette/bin/pip install --quiet datasette==0.65.5 datasette-vega==0.6.2

# Licences, bans and sources of all that is linked in. Advisories too, where there is a network: `cargo deny check`.
deny: cargo-deny
	cargo deny --locked check --hide-inclusion-graph licenses bans sources

# What is linked in, as CycloneDX: target/resmic-mailhook.cdx.json
sbom: cargo-cyclonedx
	cargo cyclonedx --quiet --format json --spec-version 1.5 --override-filename resmic-mailhook.cdx
	mv resmic-mailhook.cdx.json target/

package:
	cargo package --locked

# Looks for mails that break the reading, SECONDS for each of the two targets, from the samples on. Needs cargo-fuzz:
# cargo install cargo-fuzz --locked. The project's compiler is a stable one; coverage is a thing of unstable ones.
SECONDS ?= 60
fuzz:
	mkdir -p fuzz/corpus/mail fuzz/corpus/html
	for mail in sample-mails/documented/html-*.eml; do \
	  sed '1,/^\r*$$/d' $$mail > fuzz/corpus/html/$$(basename $$mail .eml).html || exit 1; \
	done
	RUSTC_BOOTSTRAP=1 cargo fuzz run --sanitizer none mail fuzz/corpus/mail sample-mails -- -max_total_time=$(SECONDS) -max_len=65536
	RUSTC_BOOTSTRAP=1 cargo fuzz run --sanitizer none html fuzz/corpus/html -- -max_total_time=$(SECONDS) -max_len=65536

clean:
	cargo clean
	rm -rf examples/node-express/node_modules tests/standard-webhooks/node_modules
