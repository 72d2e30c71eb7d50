# What people and CI both run. `make help` lists the targets; the work is done by scripts/.

SHELL := /bin/bash
.DEFAULT_GOAL := help
.PHONY: help setup build demo test quick full style sanitize neon bindings accuracy install clean

help:  ## this list
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 14

setup:  ## install what the build needs (Debian packages; only when something is missing)
	@scripts/setup.sh

build: setup  ## the program with all default features: target/release/fathom
	@source scripts/env.sh && cargo build --release

demo: setup  ## convert the small checkpoint, serve it, ask it one question
	@scripts/demo.sh

test: setup  ## every test that needs no GPU and no real weights, with the time of each group
	@scripts/test.sh

quick:  ## the tests to run all day: no llama.cpp, no libclang, no CMake
	@source scripts/env.sh && cargo quick

full: setup  ## the tests with llama.cpp
	@source scripts/env.sh && cargo full

style: setup  ## format, lints and documentation links
	@scripts/style.sh

sanitize:  ## the kernel tests under AddressSanitizer and UndefinedBehaviorSanitizer
	@scripts/sanitize.sh

neon:  ## the kernel tests for AArch64, emulated by qemu-user
	@scripts/neon.sh

bindings: setup  ## whether src/kernels/sys.rs is what bindgen makes of csrc/fathom.h
	@scripts/bindings.sh

accuracy: build  ## tables of docs/performance.md and routing.md: what row types, coarser files, engines and fewer experts cost on fathom-tiny
	@source scripts/env.sh && scripts/accuracy.sh "$$TARGET_DIR/release/fathom"

install: setup  ## put `fathom` into ~/.cargo/bin
	@source scripts/env.sh && cargo install --locked --path .

clean:  ## remove the target directory
	@source scripts/env.sh && cargo clean
