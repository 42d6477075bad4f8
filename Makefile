# Weir's commands. `make demo` and `make test` need nothing but Python 3.11, make and a package index.
PYTHON ?= python3
VENV   ?= .venv
BIN     = $(VENV)/bin
STAMP   = $(VENV)/.installed
TOOLS   = $(abspath $(VENV))/tools
HELM_VERSION      = v3.19.2
KUSTOMIZE_VERSION = v5.8.1

.DEFAULT_GOAL := help
.PHONY: help setup protos fix check test integration helm kustomize tools apiserver istiod integration-istiod istio-matrix lock image demo demo-full bench-picker bench-filter bench-xds bench-control-plane clean

help: ## this list
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-19s %s\n", $$1, $$2}'

setup: $(STAMP) ## a venv in .venv with Weir, a real Envoy and the developers' tools
$(STAMP): pyproject.toml xds/proto/generate.py xds/proto/weir/v1/pool.proto
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --editable '.[demo,kubernetes,uvloop]' --group dev
	@touch $(STAMP)

protos: ## generate xds/proto again
	$(BIN)/python -m pip install --quiet --no-deps --editable .

fix: setup ## format, and mend what the linter can
	$(BIN)/ruff format
	$(BIN)/ruff check --fix

check: setup ## the gates: format, lint, types, import contracts
	$(BIN)/ruff format --check
	$(BIN)/ruff check
	$(BIN)/mypy
	$(BIN)/lint-imports

test: setup ## fast tests and one real-Envoy test a tier: under 3 minutes
	$(BIN)/python -m pytest tests

integration: setup tools ## the rest: every tier and every failure through a real Envoy
	$(BIN)/python -m pytest integration

helm: setup ## helm in .venv/bin, built with Go: a minute and a half the first time
	GOBIN=$(abspath $(BIN)) go install helm.sh/helm/v3/cmd/helm@$(HELM_VERSION)

kustomize: setup ## kustomize in .venv/bin, built with Go
	GOBIN=$(abspath $(BIN)) go install sigs.k8s.io/kustomize/kustomize/v5@$(KUSTOMIZE_VERSION)

# What the tests of the manifests need beside Python: built where there is a Go, else they skip.
tools: setup
	@for tool in helm kustomize; do \
	  if test -x $(BIN)/$$tool || command -v $$tool >/dev/null; then :; \
	  elif command -v go >/dev/null; then $(MAKE) --no-print-directory $$tool || true; \
	  else echo "no Go to build $$tool with: tests that need it will skip"; fi; \
	done

apiserver: setup ## kube-apiserver and etcd in .venv/tools, built with Go: three minutes the first time
	$(BIN)/python -m integration.servers apiserver $(TOOLS)

istiod: setup ## istiod in .venv/tools, built with Go: four minutes the first time
	$(BIN)/python -m integration.servers istiod $(TOOLS)

# Where there is no Go they skip, and say so.
integration-istiod: setup tools ## what needs a real API server and a real istiod, which it builds first
	@test -n "$$KUBEBUILDER_ASSETS" || $(BIN)/python -m integration.servers apiserver $(TOOLS) || true
	@$(BIN)/python -m integration.servers istiod $(TOOLS) || true
	KUBEBUILDER_ASSETS=$${KUBEBUILDER_ASSETS:-$(TOOLS)} ISTIOD_ASSETS=$(TOOLS) $(BIN)/python -m pytest -rs \
	  $(wildcard integration/test_istiod*.py) integration/test_kubernetes_apiserver.py integration/test_keeper.py \
	  -k 'istiod or apiserver or api_server'

istio-matrix: setup ## docs/istio-matrix.md: each failure in each shape, run and counted
	$(BIN)/python -m integration.matrix > .istio-matrix || { rm .istio-matrix; exit 1; }
	mv .istio-matrix docs/istio-matrix.md

lock: setup ## pin what the image installs, with hashes
	$(BIN)/python -m pip install --quiet uv
	$(BIN)/python manifests/image/lock.py

image: ## the container image, with podman or docker (CONTAINER=docker)
	$(or $(CONTAINER),podman) build --tag weir:$(or $(TAG),dev) --file Containerfile .

demo: setup ## the main job on one machine, with a real Envoy: some 3 minutes
	$(BIN)/weir demo --quick

demo-full: setup ## every workload, on equal and on unequal servers
	$(BIN)/weir demo --full

bench-picker: setup ## CPU a request of the picker, through Envoy, in every mode
	$(BIN)/weir bench picker

bench-filter: setup ## what the digest filter costs Envoy
	$(BIN)/weir bench filter

bench-xds: setup ## a push to 2,000 streams, beside a bare server
	$(BIN)/weir bench xds

bench-control-plane: setup ## CPU and memory of the control plane with 1,000 Pods in 50 pools
	$(BIN)/weir bench control-plane

clean: ## remove the venv and what tools left
	rm -rf $(VENV) .mypy_cache .pytest_cache .ruff_cache .hypothesis .import_linter_cache
	find . -name '*_pb2.py*' -not -path './.venv/*' -delete
