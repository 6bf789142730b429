# make demo    compile the built-in model, check it, measure it
# make test    the tests, with the packages they need     (PYTEST_ARGS="-m slow": those that are left out by default)
# make bench   ours beside ONNX Runtime and OpenVINO       (BENCH_ARGS="--precisions int8 --batches 100")
# make bench-bags   embedding bags alone beside PyTorch's and ONNX Runtime's       (BENCH_ARGS="--bag 100")
# make lint    ruff
# make clean   remove what the above left, .venv included
#
# PYTHON=python3.12 chooses the interpreter, 3.10 to 3.13.

PYTHON ?= python3
VENV := .venv
PY := $(VENV)/bin/python
PIP_INSTALL := $(PY) -m pip install --quiet --disable-pip-version-check
CHECK_VERSION := import sys; v = sys.version_info[:2]; \
  (3, 10) <= v <= (3, 13) or sys.exit("Python %d.%d found, 3.10 to 3.13 was wanted. Try make PYTHON=python3.12." % v)
CHECK_VENV := import ensurepip, venv

.PHONY: demo test bench bench-bags lint clean
.DELETE_ON_ERROR:

demo: $(VENV)/.installed
	$(PY) compile.py
	$(PY) accuracy.py
	$(PY) multi_instance.py --duration 10

test: $(VENV)/.installed-dev
	$(PY) -m pytest --numprocesses 2 --dist loadfile $(PYTEST_ARGS)

bench: $(VENV)/.installed-dev
	PYTHONPATH=. $(PY) tests/benchmarks/bench.py $(BENCH_ARGS)

bench-bags: $(VENV)/.installed-dev
	PYTHONPATH=. $(PY) tests/benchmarks/bags.py $(BENCH_ARGS)

lint: $(VENV)/.installed-dev
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .

# Libraries of other names are the user's own, perhaps of a model that took hours: they stay.
clean:
	rm -rf $(VENV) .pytest_cache .ruff_cache __prebuilt/.building-*
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
	rm -f __prebuilt/dlrm_avx512_b* __prebuilt/dlrm_avx512.sweep.json* __prebuilt/.dlrm_avx512.sweep.json.* __prebuilt/bench_fp32_b* __prebuilt/bench_bf16_b* __prebuilt/bench_int8_b* __prebuilt/pytest_* __data/demo_dlrm_*

# A stamp is newer than what it was installed from: the second run installs nothing, a broken-off one starts anew.
$(VENV)/.installed: requirements.txt $(VENV)/.created
	$(PIP_INSTALL) -r $<
	@touch $@

$(VENV)/.installed-dev: requirements-dev.txt requirements-loadgen.txt requirements-plot.txt $(VENV)/.installed
	$(PIP_INSTALL) -r $<
	@touch $@

$(VENV)/.created:
	@command -v $(PYTHON) >/dev/null || { echo "$(PYTHON) not found. Install it: apt-get install python3 python3-venv"; exit 1; }
	@$(PYTHON) -c '$(CHECK_VERSION)'
	@$(PYTHON) -c '$(CHECK_VENV)' 2>/dev/null || { echo "$(PYTHON) cannot make a virtual environment. Install what it lacks: apt-get install python3-venv"; exit 1; }
	$(PYTHON) -m venv --clear $(VENV)
	@touch $@
