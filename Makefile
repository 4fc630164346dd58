# bash for pipefail; the usual place of Go for shells that do not read the login profile.
SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
export PATH := $(PATH):/usr/local/go/bin

# Static and the same with and without a C compiler; only the race detector turns it on.
export CGO_ENABLED := 0

VERSION := $(or $(shell git describe --tags --always --dirty 2>/dev/null),dev)
COMMIT := $(shell git rev-parse HEAD 2>/dev/null)
LINT := go tool -modfile=$(CURDIR)/tools.mod golangci-lint
# Modules of their own, because of what they require.
MODULES := deploy/render
# Packages with goroutines, which the race detector looks at.
RACE := ./agent/... ./certsync/... ./cluster/... ./incident/... ./conntrack/... ./lookup/... ./workload/... ./probe/... ./doctor/...
FUZZTIME ?= 30s
IMAGE ?= nodestead/nodestead:$(VERSION)

.DEFAULT_GOAL := help
.NOTPARALLEL:
.PHONY: help build image check lint test e2e race fuzz fmt bench demo manifest setup clean

define need-root
@[ "$$(id -u)" -eq 0 ] || { echo "make $@ needs root, because it makes network namespaces: sudo make $@" >&2; exit 1; }
endef

help: ## List the targets
	@awk -F ':.*## ' '/^[a-z0-9-]+:.*## /{printf "  %-8s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

build: ## Build the static binary bin/nodestead
	go build -buildvcs=false -trimpath -ldflags '-X main.version=$(VERSION) -X main.commit=$(COMMIT)' -o bin/nodestead ./cmd/nodestead

# DOCKER_BUILDKIT for a docker before 23.0.
image: ## Build the container image IMAGE (default nodestead/nodestead:VERSION) with docker
	DOCKER_BUILDKIT=1 docker build --build-arg VERSION=$(VERSION) --build-arg COMMIT=$(COMMIT) --tag $(IMAGE) .

check: lint test ## Everything that CI runs: lint, then test

lint: ## gofmt, go mod tidy, go vet, go fix and golangci-lint, changing nothing
	@rc=0; \
	echo '==> gofmt'; bad=$$(gofmt -s -l .) || rc=1; [ -z "$$bad" ] || { echo "make fmt would change:" $$bad; rc=1; }; \
	echo '==> go mod tidy'; go mod tidy -diff || rc=1; \
	echo '==> go vet'; go vet -tags e2e ./... || rc=1; \
	echo '==> go fix'; go fix -diff ./... || rc=1; \
	echo '==> golangci-lint (its first build takes some minutes)'; $(LINT) run || rc=1; \
	for dir in $(MODULES); do \
		echo "==> $$dir"; (cd $$dir; go mod tidy -diff && go vet ./... && go fix -diff ./... && $(LINT) run) || rc=1; \
	done; \
	exit $$rc

# -count=1: the kernel, and being root, are not part of go test's cache key. Packages that test the kernel's timing must
# not be disturbed: one at a time. Of the others, which wait most of their time, two.
TIMED := ./agent ./conntrack ./doctor ./incident ./internal/lab/demo ./lookup ./probe ./workload
test: ## Run all tests (root: with the kernel's; otherwise lists what was skipped), then race
ifeq ($(shell id -u),0)
	@echo '==> go test'; rc=0; \
	go test -count=1 -p 1 -timeout 15m $(TIMED) || rc=1; \
	go test -count=1 -p 2 -timeout 15m $$(go list ./... | grep -vxFf <(go list $(TIMED))) || rc=1; \
	exit $$rc
else
	@echo '==> go test, not as root: what needs network namespaces is skipped and listed; sudo make test runs all'
	@go test -v -count=1 -p 1 -timeout 15m ./... | grep -Ev '^(=== |PASS$$|[[:space:]]*--- PASS)'
endif
	@$(MAKE) --no-print-directory race

# Too long for make test: a real Kubernetes in a box, with kube-proxy in both its modes, and the chart on it. The first
# time it builds Kubernetes, CoreDNS and helm, twenty minutes or more on two cores, hence the timeout; that is kept in the lab's
# cache. Two packages at a time, which mostly wait; alone those of deploy, where time goes by a hundred times faster.
e2e: E2E := go test -tags e2e -count=1 -timeout 60m -v -run '^Test(Kubernetes|Story|AlertsFire|Hasten)'
e2e: ## Run the end-to-end tests, on a real Kubernetes in a box (needs root)
	$(need-root)
	@echo '==> go test, with Kubernetes'; $(E2E) -p 2 ./internal/lab/e2e ./cluster ./internal/lab; $(E2E) ./deploy

# Under the race detector the kernel's timing means nothing. In a user namespace root is nobody, and what needs root skips.
race: AS_NOBODY := $(if $(filter 0,$(shell id -u)),-exec 'unshare --user --map-user=65534')
race: ## Run the tests that need no root under the race detector
	@if [ "$$(id -u)" -eq 0 ]; then $(MAKE) --no-print-directory setup; fi
	@if ! command -v gcc >/dev/null; then echo '==> go test -race: left out, there is no C compiler: sudo make setup'; exit 0; fi; \
	if [ "$$(id -u)" -eq 0 ] && ! unshare --user --map-user=65534 true 2>/dev/null; then \
		echo '==> go test -race: left out, the kernel refuses user namespaces here (a chroot?)'; exit 0; fi; \
	echo '==> go test -race, without the tests that need root'; \
	CGO_ENABLED=1 go test -race -count=1 -timeout 5m $(AS_NOBODY) $(RACE)

fuzz: ## Run each fuzz test for FUZZTIME (default 30s)
	@go test -list '^Fuzz' ./... | awk '/^Fuzz/{f[++n]=$$1} /^ok/{for(i=1;i<=n;i++)print $$2,f[i]; n=0}' | \
	while read -r pkg name; do \
		echo "==> $$pkg $$name"; go test -run '^$$' -fuzz "^$$name\$$" -fuzztime $(FUZZTIME) "$$pkg" </dev/null; \
	done

fmt: ## Format: gofmt, go fix, go mod tidy
	gofmt -s -l -w .
	go fix ./...
	go mod tidy

bench: ## Compare what watching costs with conntrack -E (needs root; ARGS are passed on)
	$(need-root)
	go run ./internal/lab/bench $(ARGS)

demo: ## Lose lookups in a node in a box and watch nodestead explain them (needs root)
	$(need-root)
	@$(MAKE) --no-print-directory build
	go run ./internal/lab/demo bin/nodestead

manifest: ## Render deploy/nodestead.yaml from the chart, with the alerts and dashboards of deploy
	cp deploy/alerts/nodestead.rules.yaml deploy/chart/files/
	cp deploy/dashboards/*.json deploy/chart/files/dashboards/
	go run -C deploy/render . ../chart >deploy/nodestead.yaml.new
	mv deploy/nodestead.yaml.new deploy/nodestead.yaml

setup: ## Install what the race detector needs: gcc and libc6-dev (needs root and apt)
	@if ! command -v gcc >/dev/null || [ ! -e /usr/include/stdlib.h ]; then \
		if [ "$$(id -u)" -ne 0 ]; then echo 'make setup needs root, because it runs apt-get: sudo make setup' >&2; exit 1; fi; \
		echo '==> apt-get install gcc libc6-dev'; export DEBIAN_FRONTEND=noninteractive; \
		install() { apt-get install -qq -y --no-install-recommends gcc libc6-dev >/dev/null; }; \
		install 2>/dev/null || { apt-get update -qq && install; }; \
	fi

clean: ## Remove bin/
	rm -rf bin
