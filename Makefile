# make demo    compile the built-in model, check it, measure it
# make demo-v2 the same with MLPerf's second DLRM (DLRM-DCNv2)
# make test    the tests, with the packages they need     (PYTEST_ARGS="-m slow": those that are left out by default)
# make bench   ours beside ONNX Runtime and OpenVINO: a sweep of the built-in model, about ten minutes
#              (PRECISIONS=int8 BATCHES=1,100 ENGINES=ours,openvino BENCH_ARGS="--repeats 5 --cores 1" in any choice)
# make bench-v2    the same with the second DLRM, at batches 1, 100, 512 and 2048; tables of at most 100,000 rows
# make bench-bags   embedding bags alone beside PyTorch's and ONNX Runtime's       (BENCH_ARGS="--bag 100")
# make fuzz    random files into the readers of ONNX, manifests, data, weights and logs, FUZZ_SECONDS=60 each
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
FUZZ_SECONDS := 60
ENGINES := ours,onnxruntime,openvino
PRECISIONS := fp32,bf16,int8
BATCHES := 1,16,100,2048
BENCH_NAME := bench
BENCH_SWEEP = instances=1;threads=1;engine=$(ENGINES);precision=$(PRECISIONS);batch=$(BATCHES)

.PHONY: demo demo-v2 test bench bench-v2 bench-bags fuzz lint clean
.DELETE_ON_ERROR:

demo: $(VENV)/.installed
	$(PY) compile.py
	$(PY) accuracy.py
	$(PY) multi_instance.py --duration 10

demo-v2: $(VENV)/.installed
	$(PY) compile.py --demo v2 --output-name dlrm_v2
	$(PY) accuracy.py --model __prebuilt/dlrm_v2_b100.so
	$(PY) multi_instance.py --model __prebuilt/dlrm_v2_b100.so --duration 10

test: $(VENV)/.installed-dev
	$(PY) -m pytest --numprocesses 2 --dist loadfile $(PYTEST_ARGS)

bench-v2: BENCH_NAME := bench_v2
bench-v2: BENCH_MODEL := --demo v2 --demo-table-rows 100000
bench-v2: BATCHES := 1,100,512,2048

# Compiled anew: kernels may have changed since.
bench bench-v2: $(VENV)/.installed-dev
	rm -f __prebuilt/$(BENCH_NAME)_*
	$(PY) compile.py $(BENCH_MODEL) --output-name $(BENCH_NAME)
	$(PY) multi_instance.py --model __prebuilt/$(BENCH_NAME)_b100.so --sweep "$(BENCH_SWEEP)" $(BENCH_ARGS)

bench-bags: $(VENV)/.installed-dev
	PYTHONPATH=.:tests/support $(PY) tests/benchmarks/bags.py $(BENCH_ARGS)

fuzz: $(VENV)/.installed-fuzz
	for each in onnx manifest npz criteo torch log; do \
	  $(PY) tests/hostile/fuzz.py $$each -max_total_time=$(FUZZ_SECONDS) -timeout=60 -rss_limit_mb=4096 || exit 1; done

lint: $(VENV)/.installed-dev
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .

# Libraries of other names are the user's own, perhaps of a model that took hours: they stay.
clean:
	rm -rf $(VENV) .pytest_cache .ruff_cache build dist dlrm_tvm.egg-info __prebuilt/.building-*
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
	rm -f __prebuilt/dlrm_avx512_b* __prebuilt/dlrm_avx512_fp32_b* __prebuilt/dlrm_avx512_bf16_b* __prebuilt/dlrm_avx512_int8_b*
	rm -f __prebuilt/dlrm_avx512.sweep.json* __prebuilt/.dlrm_avx512.sweep.json.* __prebuilt/bench_* __prebuilt/bench.sweep.json* __prebuilt/.bench.sweep.json.*
	rm -f __prebuilt/.bench_v2.sweep.json.*
	rm -f __prebuilt/pytest_* __prebuilt/dlrm_v2_b100* __data/demo_dlrm_*

$(VENV)/.installed-fuzz: requirements-fuzz.txt $(VENV)/.installed-dev
	$(PIP_INSTALL) -r $<
	@touch $@

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
