# Regatta's commands. `make help` lists them.
.DEFAULT_GOAL := help
.PHONY: help install build up down run test check bench logs ps clean

help: ## lists the targets
	@sed -n 's/^\([a-z]*\):[^#]*## \(.*\)/  make \1\t\2/p' $(MAKEFILE_LIST) | expand -t 18

install: ## installs what is missing: RabbitMQ, Docker and Compose, Python peers (Debian or Ubuntu)
	@scripts/install.sh

build: ## builds dist/regatta, dist/hello and, where Docker is, the image; without Rust, in Docker
	@scripts/build.sh

up: ## makes the broker ready, starts both workers and waits until they are healthy
	@test -x dist/hello || $(MAKE) --no-print-directory build
	@scripts/up.sh

down: ## stops the workers
	@scripts/down.sh

run: ## dispatches the two tasks: to the running workers, or on the embedded broker
	@scripts/run.sh

test: ## everything: Rust tests, real RabbitMQ, Docker and Python peers, the image, then up, run, down
	@scripts/test.sh

check: ## formats, lints, documentation and the house's rules
	cargo fmt --all --check
	cargo clippy --workspace --all-targets --locked -- -D warnings
	RUSTDOCFLAGS="-D warnings" cargo doc --workspace --no-deps --locked --quiet
	cargo xtask tidy
	@if command -v cargo-deny >/dev/null; then cargo deny check licenses bans sources; else \
		echo "check: NOT CHECKED: licenses, bans and sources of dependencies (cargo install --locked cargo-deny)"; fi

bench: ## ratios against Celery, xargs, pytest-xdist and cargo-nextest, side by side
	cargo run --release --locked --quiet -p xtask -- bench

logs: ## shows what the workers say
	@scripts/compose.sh logs --tail 100

ps: ## shows how the workers are
	@scripts/compose.sh ps

clean: ## takes away what was built and started, also at the broker; RabbitMQ and packages stay
	@scripts/clean.sh
