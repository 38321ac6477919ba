# What an operator's or a packager's machine does with the project. `cargo` alone builds and tests it.
.PHONY: deb deb-dev test-systemd deny sbom package

# Bytes that depend on the source alone: no path of the machine that built, and the time of the last commit.
export SOURCE_DATE_EPOCH ?= $(shell git log -1 --format=%ct 2>/dev/null || date +%s)
REMAP = --remap-path-prefix=$(CURDIR)=. --remap-path-prefix=$(HOME)/.cargo=cargo

PACKAGING = target/packaging

# The Debian package, in target/debian/. Needs cargo-deb: cargo install cargo-deb --locked
deb:
	RUSTFLAGS="$(RUSTFLAGS) $(REMAP)" cargo build --release --locked
	$(MAKE) pages BINARY=target/release/resmic-mailhook
	cargo deb --no-build --locked

# The same from a debug build, for tests of the package.
deb-dev:
	cargo build --locked
	$(MAKE) pages BINARY=target/debug/resmic-mailhook
	cargo deb --no-build --locked --profile dev --deb-version $(or $(VERSION),0.1.0-1) -o $(PACKAGING)/

.PHONY: pages
pages:
	mkdir -p $(PACKAGING)/man $(PACKAGING)/completions
	$(BINARY) man --out $(PACKAGING)/man
	$(BINARY) completions bash > $(PACKAGING)/completions/resmic-mailhook.bash
	$(BINARY) completions zsh > $(PACKAGING)/completions/_resmic-mailhook
	$(BINARY) completions fish > $(PACKAGING)/completions/resmic-mailhook.fish

# The package under a real systemd, in a booted container. Needs root.
test-systemd: deb-dev
	tests/systemd/run.sh

# Licences, bans and sources of all that is linked in; advisories too where there is a network (`cargo deny check`).
# Needs cargo-deny: cargo install cargo-deny --locked
deny:
	cargo deny --offline check licenses bans sources

# What is linked in, as CycloneDX. Needs cargo-cyclonedx: cargo install cargo-cyclonedx --locked
sbom:
	cargo cyclonedx --format json --override-filename resmic-mailhook.cdx

package:
	cargo package --locked
