# Everything a stranger needs: make demo, make test. Both set up the machine first.
# As root on Debian 12. Programs come from apt, Python packages from PyPI into .venv.

SHELL := /bin/bash
PYTHON ?= python3
BIN := .venv/bin

# What runs containers (crun, runc), what tests and benchmarks compare with (containerd with ctr and
# its shim, Erlang's supervisor), who else drives us (dockerd with docker; where there is systemd, its
# own service starts too), what images are made of (busybox), what they are pushed to
# (docker-registry), who judges them (skopeo, umoci), what tests look with (the rest).
PROGRAMS := crun runc containerd docker.io erlang-base busybox-static python3-venv procps mount iproute2 \
	docker-registry skopeo umoci openssl

.PHONY: setup demo test test-of-registries test-of-records test-of-commands test-long check quick bench bench-against growth soak profile difftest difference faults chaos crash-sweep damage-sweep guest-test clean

ROOMS := actors supervision runtime storage api chaos_tests bench examples

# Where Python is told to write no bytecode, each start of a program would compile all it imports:
# twice the time until a restarted daemon answers. So it is compiled here, as pip does.
setup: .venv/programs .venv/packages
	@$(BIN)/python -m compileall -q $(ROOMS)

# apt runs only where a program is missing, so a second setup takes no time and no network.
.venv/programs: Makefile
	@missing=""; for p in $(PROGRAMS); do \
	  dpkg-query -W -f='$${Status}' $$p 2>/dev/null | grep -q "ok installed" || missing="$$missing $$p"; done; \
	if [ -n "$$missing" ]; then echo "installing:$$missing"; \
	  apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends $$missing >/dev/null; fi
	@mkdir -p .venv && touch $@

# uv comes through pip with the same hash-checked list, then installs the rest faster than pip would.
# Where an index is set for pip alone, uv does not find it, and pip installs all.
.venv/packages: requirements-dev.txt pyproject.toml .venv/programs
	@test -x $(BIN)/python || $(PYTHON) -m venv .venv
	@test -x $(BIN)/uv || { grep -A40 '^uv==' requirements-dev.txt | awk 'NR>1 && /^[a-z]/{exit} {print}' > .venv/uv.txt && \
	  $(BIN)/python -m pip install -q --disable-pip-version-check --require-hashes -r .venv/uv.txt; }
	@VIRTUAL_ENV=$(CURDIR)/.venv $(BIN)/uv pip install -q --require-hashes -r requirements-dev.txt || \
	  $(BIN)/python -m pip install -q --disable-pip-version-check --require-hashes -r requirements-dev.txt
	@VIRTUAL_ENV=$(CURDIR)/.venv $(BIN)/uv pip install -q --offline --no-deps --no-build-isolation -e .
	@$(BIN)/python -m compileall -q -j0 .venv/lib
	@touch $@

demo: setup
	@$(BIN)/python examples/demo.py
	@$(BIN)/python examples/blackout.py

# The gate. `quick` is what pre-commit runs.
quick: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports --no-cache

check: quick
	$(BIN)/mypy
	$(BIN)/basedpyright --level error

# Coverage is gathered from this process and from every child; the two floors are two reports.
# Tests that watch the clock have the machine to themselves; the others run side by side. What takes
# long and has a shorter one like it is for `make test-long`.
SHORT := -m pytest -q -m "not long"
BESIDE := registry difference storage supervision $(addprefix clients/test_,images_cli.py login_cli.py pull_cli.py)
test: check
	@$(BIN)/coverage erase
	$(BIN)/coverage run $(SHORT) $(addprefix --ignore=tests/,$(BESIDE))
	@$(MAKE) --no-print-directory --keep-going --jobs=3 --output-sync=target \
	  test-of-registries test-of-records test-of-commands
	@$(BIN)/coverage combine -q
	$(BIN)/coverage report --include='actors/*,supervision/*' --fail-under=95 --skip-covered
	$(BIN)/coverage report --include='storage/*,runtime/*,api/*' --fail-under=85 --skip-covered

test-of-registries:
	$(BIN)/coverage run $(SHORT) tests/registry tests/difference

test-of-records:
	$(BIN)/coverage run $(SHORT) tests/storage tests/supervision

# Most of their time is that of commands which start: without coverage it is half.
test-of-commands:
	$(BIN)/python $(SHORT) $(filter %.py,$(addprefix tests/,$(BESIDE)))

test-long: setup
	$(BIN)/python -m pytest -q -m long

# About ten minutes; what it prints is also in bench/results/latest.json.
bench: setup
	$(BIN)/python -m bench

# The same, and an error when a ratio is worse by a quarter than in the baseline, or in another file
# that a run has written: make bench-against BEFORE=before.json
BEFORE ?= bench/baseline.json
bench-against: setup
	$(BIN)/python -m bench --against $(BEFORE)

# Thousands of containers: nothing may be left, and with CYCLES=20000 memory may not grow either.
CYCLES ?= 2000
soak: setup
	$(BIN)/python -m bench.soak --cycles $(CYCLES)

# How cost grows with containers that are there and records that are stored. For the picture, put
# matplotlib into .venv, then: .venv/bin/python -m bench.growth --plot
growth: setup
	$(BIN)/python -m bench.growth

# Where the daemon's time goes while containers come and go, with a flame graph.
profile: setup
	$(BIN)/python -m bench.profile

# Any number of random histories against Erlang's own supervisor: make difftest N=20000 SEED=7
N ?= 5000
SEED ?=
difftest: setup
	$(BIN)/python tests/supervision/otp_difference.py --histories $(N) $(if $(SEED),--seed $(SEED))

# Any number of random sequences of calls, to Holdfast and to containerd: make difference N=20000 SEED=7
difference: setup
	$(BIN)/python -m tests.difference --sequences $(N) $(if $(SEED),--seed $(SEED))

# Any number of pulls through a proxy that does harm: make faults N=2000 SEED=7
faults: setup
	$(BIN)/python -m tests.registry.faults --runs $(N) $(if $(SEED),--seed $(SEED))

# Every set of our processes dies, in every state of a task: make chaos CONTAINERS=210 SEED=7
CONTAINERS ?= 2000
chaos: setup
	$(BIN)/python -m chaos_tests.deaths --containers $(CONTAINERS) $(if $(SEED),--seed $(SEED))

# Kill -9 at every durable step of every operation: make crash-sweep ARGS='--sample 30 --seed 7'
crash-sweep: setup
	$(BIN)/python -m chaos_tests.sweep $(ARGS)

# Any number of wounds to the metadata database: make damage-sweep ARGS='--wounds 200 --seed 7'
damage-sweep: setup
	$(BIN)/python -m chaos_tests.sweep_damage $(ARGS)

# The runtime's promises on Debian's 6.12 kernel with cgroup v2 alone, in a machine that qemu emulates.
# The first run makes its image in .cache/guest and takes a minute or two longer.
guest-test: setup
	$(BIN)/python tests/guest/run.py

clean:
	rm -rf .venv .mypy_cache .ruff_cache .pytest_cache .hypothesis .coverage* build dist
