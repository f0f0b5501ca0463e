PYTHON ?= python3
RUN = .venv/bin/python
EVAL = .venv/bin/diffseg-eval

export OMP_WAIT_POLICY ?= passive
export THP_MEM_ALLOC_ENABLE ?= 1

.PHONY: help evidence setup eval eval-coco eval-cityscapes eval-voc eval-context eval-ade20k eval-coco-object eval-bsds eval-sixpack check baselines ablations figures tables leaderboard paper test test-quick fuzz data-coco data-voc data-context data-ade20k data-bsds data-cityscapes lint docs bench mini clean

help:            ## this list
	@grep -E '^[a-z0-9-]+: .*##' $(MAKEFILE_LIST) | sed 's/:.*##/\t/' | expand -t 20

.venv/installed: pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "diffseg needs Python 3.11 or later; choose one with make PYTHON=...")'
	@echo "installing into .venv: 4 GB, minutes"
	$(PYTHON) -m venv .venv
	$(RUN) -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable ".[dev]"
	@touch $@

setup: .venv/installed  ## make .venv with everything in known-good versions

eval: setup      ## 64 held-out scenes with the embedded model: accuracy, mIoU, report.html; offline
	$(EVAL) $(ARGS)

eval-coco: setup  ## COCO-Stuff-27 in DATA with MODEL (sd14, mini, ...); more settings in ARGS="key=value ..."
	$(EVAL) experiment=coco dataset.root=$(or $(DATA),data/coco) model=$(or $(MODEL),sd14) $(ARGS)

eval-cityscapes: setup  ## Cityscapes in DATA with MODEL
	$(EVAL) experiment=cityscapes dataset.root=$(or $(DATA),data/cityscapes) model=$(or $(MODEL),sd14) $(ARGS)

eval-voc: setup  ## Pascal VOC 2012 in DATA with MODEL, as DiffCut scores
	$(EVAL) experiment=voc dataset.root=$(or $(DATA),data/voc) model=$(or $(MODEL),sd14) $(ARGS)

eval-context: setup  ## Pascal Context in DATA with MODEL, as DiffCut scores
	$(EVAL) experiment=pascal_context dataset.root=$(or $(DATA),data/voc) model=$(or $(MODEL),sd14) $(ARGS)

eval-ade20k: setup  ## ADE20K in DATA with MODEL, as DiffCut scores
	$(EVAL) experiment=ade20k dataset.root=$(or $(DATA),data/ade20k) model=$(or $(MODEL),sd14) $(ARGS)

eval-coco-object: setup  ## COCO-Object in DATA with MODEL, as DiffCut scores
	$(EVAL) experiment=coco_object dataset.root=$(or $(DATA),data/coco) model=$(or $(MODEL),sd14) $(ARGS)

eval-bsds: setup  ## BSDS500's test images in DATA with MODEL: covering, PRI, VI and boundary F of all methods over their settings
	$(EVAL) experiment=bsds500 dataset.root=$(or $(DATA),data/bsds500) model=$(or $(MODEL),sd14) $(ARGS)

eval-sixpack: setup  ## the six data sets of DiffCut's table below DATA with MODEL, and that table with ours beside
	$(EVAL) experiment=sixpack data=$(or $(DATA),data) model=$(or $(MODEL),sd14) $(ARGS)

check: setup     ## the gate: make eval's metrics against results/reference/mini-scenes.yaml
	$(EVAL) 'stages=[predict,score,report,check]' reference=mini-scenes $(ARGS)

baselines: setup  ## DiffSeg beside K-Means-C, K-Means-S and DBSCAN, on DATASET with MODEL
	$(EVAL) experiment=baselines dataset=$(or $(DATASET),scenes) model=$(or $(MODEL),mini) $(ARGS)

ABLATIONS = weights threshold relative anchors iterations refinement timestep
ablations: setup  ## the paper's ablations (R, tau, M, N, refinement, t) and relative thresholds, on DATASET with MODEL
	for what in $(ABLATIONS); do \
		$(EVAL) experiment=ablation_$$what dataset=$(or $(DATASET),scenes) model=$(or $(MODEL),mini) $(ARGS) || exit; \
	done

figures: setup   ## results/figures: the method at a glance, the effect of R, a gallery; curves of the ablations in RUNS="folders"
	$(RUN) -m diffseg.eval.show.figures overview --out results/figures/overview.png
	$(RUN) -m diffseg.eval.show.figures weights scene:3 --threshold 0.3 --out results/figures/weights.png
	$(RUN) -m diffseg.eval.show.figures gallery demo:china demo:flower demo:grace_hopper --columns 3 --width 1200 --out results/figures/demo.jpg
	$(RUN) -m diffseg.eval.show.figures gallery scene:1 scene:3 scene:7 scene:9 --out results/figures/gallery.jpg
	.venv/bin/diffseg label --demo --attention --out results/figures
	$(if $(RUNS),$(RUN) -m diffseg.eval.show.figures curves $(RUNS) --out results/figures)

tables: setup    ## results/tables: published beside measured, from your runs on disk (the project's own: results/evidence)
	$(RUN) -m diffseg.eval.show.tables

leaderboard: setup  ## results/leaderboard/index.html: all your runs in one page; others' as well: RUNS="folders"
	$(EVAL) leaderboard $(or $(RUNS),results/runs)

paper: setup     ## does it reproduce? the whole paper with MODEL on COCO=folder and CITYSCAPES=folder, one page; ARGS="--plan" says how long
	$(EVAL) paper $(if $(MODEL),--model $(MODEL)) $(if $(COCO),--coco $(COCO)) $(if $(CITYSCAPES),--cityscapes $(CITYSCAPES)) $(ARGS)

# What the project measured itself. A second call continues; after a change of the code, remove MEASURED first.
MEASURED = results/runs/evidence
MEASURE = $(EVAL) runs=$(MEASURED) run=$(MEASURED)
PHOTO = dataset=coco_stuff27 dataset.root=$(PHOTOS) dataset.split=all
evidence: setup  ## results/evidence, measured again (an hour and a half on two cores); with real photos too: PHOTOS=a folder like data/coco, BSDS=a folder like data/bsds500
	$(MEASURE)/scenes experiment=protocols dataset.count=200 +segmenter@segmenters.colour=colour
	$(MEASURE)/arena experiment=arena dataset.count=200
	$(MEASURE)/baselines experiment=baselines
	$(MEASURE)/baselines experiment=baselines score_size=320
	$(MEASURE)/untrained model=mini_untrained dataset.count=24
	for what in $(filter-out timestep,$(ABLATIONS)); do $(MEASURE)/$$what experiment=ablation_$$what dataset.count=24 || exit; done
	$(EVAL) runs=$(MEASURED) experiment=ablation_timestep dataset.count=24
	$(MEASURE)/granularity experiment=ablation_threshold 'protocol=[diffseg,majority,regions]'
	$(if $(PHOTOS),$(MEASURE)/photos-arena $(PHOTO) experiment=arena)
	$(if $(PHOTOS),$(MEASURE)/photos $(PHOTO) experiment=protocols +segmenter@segmenters.colour=colour)
	$(if $(PHOTOS),$(MEASURE)/photos $(PHOTO) experiment=protocols +segmenter@segmenters.colour=colour score_size=320)
	$(if $(BSDS),$(MEASURE)/bsds-arena experiment=arena dataset=bsds500 dataset.root=$(BSDS) protocol=[regions,boundaries] '~segmenters.kmeans_s')
	$(if $(PHOTOS),for what in threshold relative weights; do $(MEASURE)/photos-$$what $(PHOTO) experiment=ablation_$$what || exit; done)
	$(RUN) -m diffseg.eval.show.tables --runs $(MEASURED) --out results/evidence
	cd $(MEASURED) && $(abspath $(RUN)) -m diffseg.eval.show.figures curves sweeps/* $(filter-out timestep,$(ABLATIONS)) \
		$(if $(PHOTOS),photos-threshold photos-relative photos-weights) --out $(CURDIR)/results/evidence
	$(RUN) -m diffseg.eval.show.figures protocols $(MEASURED)/scenes --out docs/protocols.svg
	$(RUN) -m diffseg.eval.show.figures granularity $(MEASURED)/granularity --out docs/granularity.svg

# Two processes of one thread each: two of several threads would wait for each other's cores.
PYTEST = OMP_NUM_THREADS=1 $(RUN) -m pytest --numprocesses $(or $(JOBS),2) --dist loadfile --durations 12
test: setup      ## all tests (ten minutes, 8 GB of memory)
	$(PYTEST)

test-quick: setup  ## without the slow ones
	$(PYTEST) -m "not slow"

fuzz: setup      ## ten minutes of damaged and nonsensical inputs; a table of what was tried and how it was answered; ARGS="--minutes 60"
	$(RUN) -m tests.reliability $(ARGS)

data-coco: setup  ## fetch COCO val2017 photos and stuff labels into DATA (about 1.5 GB)
	$(RUN) -m diffseg.datasets.download $(or $(DATA),data/coco)

data-voc: setup  ## fetch Pascal VOC 2012 into DATA (about 2 GB)
	$(RUN) -m diffseg.datasets.download $(or $(DATA),data/voc) voc

data-context: setup  ## fetch Pascal Context's labels and the photos of VOC2010 into DATA (about 2 GB)
	$(RUN) -m diffseg.datasets.download $(or $(DATA),data/voc) context

data-ade20k: setup  ## fetch ADE20K's validation part into DATA (about 1 GB)
	$(RUN) -m diffseg.datasets.download $(or $(DATA),data/ade20k) ade20k

data-cityscapes: setup  ## check the Cityscapes folder DATA: what is missing, and where to get it
	$(RUN) -m diffseg.datasets.cityscapes $(or $(DATA),data/cityscapes)

data-bsds: setup  ## check the BSDS500 folder DATA: what is missing, and where to get it
	$(RUN) -m diffseg.datasets.bsds500 $(or $(DATA),data/bsds500)

lint: setup      ## style and types
	$(RUN) -m ruff check .
	$(RUN) -m ruff format --check .
	$(RUN) -m mypy

docs: setup      ## the documentation site in build/site, from docs/; offline, strict about every link
	OMP_NUM_THREADS=1 $(RUN) -m sphinx --quiet --fail-on-warning --keep-going -d build/doctrees docs build/site
	@echo build/site/index.html

bench: setup     ## seconds per stage, images/s, share of the limit, memory, merging against the straightforward way; ARGS
	$(RUN) -m diffseg.eval.bench $(ARGS)

mini: setup      ## train a model like the embedded one from nothing (hours on two cores); a trial: ARGS="--share 0.1"; longer: ARGS="--steps 20000 --batch 64"
	$(RUN) -m diffseg.mini.train $(ARGS)

clean:           ## remove .venv and caches; results stay
	rm -rf .venv build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
