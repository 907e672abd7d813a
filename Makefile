# The verbs of this project. Logic lives in xtask; `make` lists what there is.

PREFIX ?= /usr/local
DESTDIR ?=
XTASK = cargo run --quiet --package xtask --

.PHONY: help up build test test-long test-guest check deny doc install uninstall conformance-docker conformance-registry conformance-compose

help: ## list the verbs
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## (.*)/  make \1\t\2/' | expand -t 18

up: ## build, start the platform, run the demo container; again: finds it as it was
	$(XTASK) setup up
	$(MAKE) --no-print-directory build
	$(XTASK) up

build: ## target/release/gantry and target/release/gantry-runtime
	$(XTASK) setup build
	cargo build --release --locked --package gantry
	$(XTASK) dist

test: ## everything CI runs; installs what it needs and says so
	$(XTASK) setup test
	$(XTASK) test

test-long: ## kill -9 and lost-exit tests with many rounds: GANTRY_TEST_ROUNDS=100
	$(XTASK) setup test
	GANTRY_TEST_ROUNDS=$${GANTRY_TEST_ROUNDS:-100} cargo test --locked --package gantry --test whole -- kill_9_in_the_middle_of_things --nocapture
	GANTRY_TEST_ROUNDS=$${GANTRY_TEST_ROUNDS:-1000} cargo test --locked --package gantry --test whole -- true_under_load --nocapture
	GANTRY_TEST_ROUNDS=$${GANTRY_TEST_ROUNDS:-25} cargo test --locked --package gantry --test whole -- kill_9_in_each_operation --nocapture
	GANTRY_TEST_CONTAINERS=$${GANTRY_TEST_CONTAINERS:-1000} cargo test --locked --package gantry --test whole -- many_containers --nocapture
	GANTRY_TEST_RACES=$${GANTRY_TEST_RACES:-10000} cargo test --locked --package gantry-runtime --test attacks_races -- --nocapture
	GANTRY_TEST_ROUNDS=$${GANTRY_TEST_ROUNDS:-1000} cargo test --locked --package gantry-runtime --test crashes -- --include-ignored --nocapture
	GANTRY_TEST_ROUNDS=$${GANTRY_TEST_ROUNDS:-1000} cargo test --locked --package gantry-runtime --test property -- --nocapture
	GANTRY_TEST_ROUNDS=$${GANTRY_TEST_ROUNDS:-200} cargo test --locked --package gantry-store --test faults -- kill_9
	GANTRY_TEST_ROUNDS=$${GANTRY_TEST_ROUNDS:-200} cargo test --locked --package gantry-image --test crash_transfer -- --nocapture
	GANTRY_TEST_ARCHIVES=10000 cargo test --locked --package gantry-image --test corpus -- --nocapture

test-guest: ## pure cgroup v2: the runtime on a Debian kernel in QEMU (10 s with KVM, a minute without)
	$(XTASK) setup test-guest
	cargo test --locked --package gantry-runtime --test guest -- --ignored pure_unified_cgroups --nocapture

conformance-docker: build ## other people's Docker clients against this build: 200 commands of the docker client, the Python SDK's tests
	$(XTASK) setup test
	python3 conformance/docker.py target/release/gantry

conformance-registry: build ## oras and cosign (and the official suite, OCI_SUITE=PROGRAM) against this build's registry
	python3 conformance/registry.py target/release/gantry

conformance-compose: build ## ten sample applications (web, Redis, PostgreSQL, …) by Debian's docker-compose against this build
	$(XTASK) setup test
	python3 conformance/compose.py target/release/gantry

check: ## the quick part: format, lints, tidy
	$(XTASK) check

deny: ## licences, advisories, sources and duplicates of the dependencies
	$(XTASK) deny

doc: ## our crates' documentation
	cargo doc --workspace --no-deps --locked

install: ## make install [PREFIX=/usr/local] [DESTDIR=]: both programs and the systemd unit
	install -D -m 0755 target/release/gantry $(DESTDIR)$(PREFIX)/bin/gantry
	install -D -m 0755 target/release/gantry-runtime $(DESTDIR)$(PREFIX)/bin/gantry-runtime
	install -d $(DESTDIR)$(PREFIX)/lib/systemd/system
	sed 's|@PREFIX@|$(PREFIX)|g' dist/gantry.service >$(DESTDIR)$(PREFIX)/lib/systemd/system/gantry.service
	@echo 'next: systemctl daemon-reload && systemctl enable --now gantry'
	@echo 'members of the group docker may use the socket: groupadd --system docker; adduser NAME docker'

uninstall: ## take away what `make install` brought; data stays (gantry down --purge removes it)
	rm -f $(DESTDIR)$(PREFIX)/bin/gantry $(DESTDIR)$(PREFIX)/bin/gantry-runtime $(DESTDIR)$(PREFIX)/lib/systemd/system/gantry.service
