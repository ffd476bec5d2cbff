# make demo   the whole job on a local control plane, from start to verified end
# make up     the same, kept running, with what to paste into an agent's configuration
#             SLACK=fake asks in a double of Slack, SLACK=slack.yaml in yours (docs/slack.md)
# make test   every test, end to end included
# make fuzz   whatever parses, with inputs that are made up; FUZZ=10m is each target for ten minutes
# make race   the same, all with the race detector, in about an hour
# make bench  calls beside the same requests sent straight, and what lies on their way, measured:
#             writes docs/benchmarks.md, in about a quarter of an hour; BENCH=100x is shorter
# make soak   an hour of 100 agents on 200 nodes and 10,000 pods in five minutes: bin/soak.txt; SOAK=1h is longer
# make chaos  a server killed 100 times under load while everything around it fails: bin/chaos.txt;
#             in about six minutes, CHAOS=10 is shorter, SEED=n repeats a run
# make profile  where the server spends its time in reads and writes: bin/read.pprof, bin/write.pprof
# make check  formatting, vet, lint, known vulnerabilities, tidy modules
# make build  bin/countersign
#
# Only Go, git and make are needed. The control plane is built from source once,
# into a cache folder; with KUBECONFIG set, demo and up use that cluster instead.

SHELL := /bin/bash
GOLANGCI_VERSION := v2.15.0
GOVULNCHECK_VERSION := v1.9.0
TOOLS := $(CURDIR)/.cache/tools
# The race detector needs a C compiler; without one the tests run without it.
RACE := $(if $(shell command -v gcc || command -v clang),-race)
VERSION := $(shell git describe --tags --always --dirty 2>/dev/null || echo dev)

.PHONY: build demo up test test-rooms test-e2e fuzz race bench soak chaos profile check

build:
	go build -ldflags "-X main.version=$(VERSION)" -o bin/countersign ./cmd/countersign

bin/demo: build
	go build -o $@ ./e2e/demo

demo: bin/demo
	bin/demo $(if $(SLACK),--slack '$(SLACK)')

up: bin/demo
	bin/demo --keep $(if $(SLACK),--slack '$(SLACK)')

# End-to-end tests mostly wait, so they run beside the others. The race detector, with which
# everything takes several times as long, is on where things run at the same time; make race
# has it on everywhere.
ALONE := /(action|audit|configs|policy|strictyaml|trial)$$
LONG := TestTamperedStore|TestAttacks
AT_ONCE := TestCancelOfAnother|TestClientsAtTheLimit|TestDiskFullUnderLoad|TestIssuerOutageAndStorm|TestKeyRotationWhileCallsRun|TestLockWhileItRuns|TestManyPending|TestRacingClicks|TestStopFinishesWhatRuns
test:
	go -C e2e/controlplane run . build
	$(MAKE) --no-print-directory -j2 test-rooms test-e2e

test-rooms:
	go test -p 1 $$(go list ./... | grep -E '$(ALONE)')
	go test -p 1 $(RACE) -skip '$(LONG)' $$(go list ./... | grep -vE '$(ALONE)|/e2e$$')
	go test -run '$(LONG)' ./approvals/slack ./storage
	$(MAKE) --no-print-directory fuzz
	go -C e2e/controlplane test -timeout 10m ./...

test-e2e:
	go test -timeout 20m -parallel 4 -skip '$(AT_ONCE)' ./e2e
	go test $(RACE) -timeout 20m -parallel 4 -run '$(AT_ONCE)' ./e2e

FUZZ := 300x
fuzz:
	set -e; grep -rno --include '*_test.go' '^func Fuzz[A-Za-z]*' . | sort | while IFS=': ' read -r file _ _ name; do \
		go test -run '^$$' -fuzz "^$$name$$" -fuzztime $(FUZZ) -fuzzminimizetime 20x -parallel 1 ./$$(dirname "$$file") </dev/null; \
	done

race:
	go -C e2e/controlplane run . build
	go test -race -p 1 -timeout 60m ./...

# bin/bench.txt is for benchstat. What is done with a million records is done a few times only.
BENCH := 500x
bench:
	mkdir -p bin
	go -C e2e/controlplane run . build
	go build -o bin/benchtable ./e2e/benchtable
	set -o pipefail; { \
		go test -run '^$$' -bench . -benchmem $$(go list ./... | grep -v /e2e) && \
		go test -run '^$$' -bench . -skip 'Million' -benchtime $(BENCH) -timeout 30m ./e2e && \
		go test -run '^$$' -bench 'Million' -benchtime 3x ./e2e; \
	} | tee bin/bench.txt | bin/benchtable docs/benchmarks.md

SOAK := 5m
soak:
	mkdir -p bin
	go -C e2e/controlplane run . build
	set -o pipefail; go test -v -count 1 -run '^TestSoak$$' -timeout 24h ./e2e -soak $(SOAK) | tee bin/soak.txt

CHAOS := 100
chaos:
	mkdir -p bin
	go -C e2e/controlplane run . build
	go test -v -run 'TestChaos$$' -timeout 60m ./e2e -chaos $(CHAOS) -chaos.seed $(or $(SEED),0) -chaos.to $(CURDIR)/bin/chaos.txt

profile:
	go -C e2e/controlplane run . build
	mkdir -p bin
	go test -run '^$$' -bench Allocations -benchtime 500x ./e2e -profile $(CURDIR)/bin
	go tool pprof -top -cum -nodecount 60 bin/read.pprof
	go tool pprof -top -cum -nodecount 60 bin/write.pprof

check: $(TOOLS)/golangci-lint-$(GOLANGCI_VERSION) $(TOOLS)/govulncheck-$(GOVULNCHECK_VERSION)
	@files=$$(gofmt -l $$(git ls-files '*.go')); if [ -n "$$files" ]; then echo "not formatted: $$files"; exit 1; fi
	go mod tidy -diff
	go vet ./...
	go -C e2e/controlplane vet ./...
	$(TOOLS)/golangci-lint-$(GOLANGCI_VERSION) run
	GOOS=darwin go vet ./admin ./cmd/...
	@if $(TOOLS)/govulncheck-$(GOVULNCHECK_VERSION) ./... > $(TOOLS)/govulncheck.log 2>&1; then echo "govulncheck: nothing known"; \
	elif grep -qE 'dial tcp|no such host|connection refused|unexpected HTTP status|403|context deadline' $(TOOLS)/govulncheck.log && ! grep -q 'Vulnerability #' $(TOOLS)/govulncheck.log; then \
		echo "govulncheck: skipped, the vulnerability database cannot be reached"; \
	else cat $(TOOLS)/govulncheck.log; exit 1; fi

$(TOOLS)/golangci-lint-$(GOLANGCI_VERSION):
	GOBIN=$(TOOLS) go install github.com/golangci/golangci-lint/v2/cmd/golangci-lint@$(GOLANGCI_VERSION)
	mv $(TOOLS)/golangci-lint $@

$(TOOLS)/govulncheck-$(GOVULNCHECK_VERSION):
	GOBIN=$(TOOLS) go install golang.org/x/vuln/cmd/govulncheck@$(GOVULNCHECK_VERSION)
	mv $(TOOLS)/govulncheck $@
