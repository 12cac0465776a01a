# Culvert. `make help` lists the targets; CONTRIBUTING.md says which to run when.

GO        ?= go
PKG       ?= ./...
RUN       ?= .
BENCH     ?= .
COUNT     ?= 1
FUZZTIME  ?= 30s
HOURS     ?= 1
ROUNDS    ?= 5
PAIRS     ?=
MEASURES  ?=
PARTS     ?=
# A part of the comparison shall not take the place of the whole.
OUT       ?= $(if $(PAIRS)$(MEASURES)$(PARTS),.build/results,bench)
TIMEOUT   ?= 20m

# Tests against programs that are not ours, by name. They run in `make test` and `make conformance`, not in `make check`.
FOREIGN := ^Test(Foreign|H2spec|Conformance)
# Attacks on gateway processes, which take their second each. They run in `make test`, not in `make check`.
ATTACKS := ^TestAttack
# Tests that make hosts of network namespaces, as root. They run in `make test`, not in `make check`.
HOSTS   := ^TestNetns
# Tests that count what code costs. The race detector adds costs of its own, so they run without it.
COSTS   := Alloc|Cost|Memory

export CULVERT_TOOLS := $(CURDIR)/.build/bin
export PATH          := $(CULVERT_TOOLS):$(PATH):/usr/sbin:/sbin

SUITE := gotestsum --format pkgname --format-icons text --jsonfile

.DEFAULT_GOAL := help
MAKEFLAGS += --no-print-directory

.PHONY: help run build setup tools test check lint race costs portable conformance soak interop-ztunnel bench compare roles capture figures attack fuzz clean

help: ## list these targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-15s %s\n", $$1, $$2 }' $(firstword $(MAKEFILE_LIST))
	@echo "  PKG=./tunnel/... RUN=TestName narrow race, costs, conformance, soak, bench and fuzz"

run: build ## two gateways and a page behind them, to try with the curl lines it prints; ctrl-c ends it
	@.ci/setup run
	@exec bin/gateway demo

build: ## bin/gateway
	@CGO_ENABLED=0 $(GO) build -trimpath -o bin/gateway ./cmd/gateway

setup: ## everything `make test` needs: Debian packages (as root), pinned tools, Envoy
	@.ci/setup test

tools:
	@.ci/setup tools

test: ## the whole suite: setup, build, lint, portable, race, costs; fails in CI if a test is skipped
	@$(MAKE) setup
	@$(MAKE) build
	@$(MAKE) lint
	@$(MAKE) portable
	@$(MAKE) race
	@$(MAKE) costs

check: tools ## the quick part: lint and the unit tests, without race detector and foreign programs
	@$(MAKE) lint
	@$(GO) test -vet=off -short -skip '$(FOREIGN)|$(ATTACKS)|$(HOSTS)' $(PKG)

lint: tools ## gofmt, go vet, staticcheck
	@files=$$(gofmt -l .); [ -z "$$files" ] || { echo "not gofmt-ed:" $$files; exit 1; }
	@$(GO) vet ./...
	@staticcheck ./...

race: tools ## every test with the race detector, in shuffled order
	@$(SUITE) .build/race.json -- -vet=off -race -shuffle=on -timeout $(TIMEOUT) -run '$(RUN)' $(PKG)
	@.ci/noskip .build/race.json

costs: tools ## the limits on allocations and memory, without the race detector
	@$(SUITE) .build/costs.json -- -vet=off -count=1 -timeout $(TIMEOUT) -run '$(COSTS)' $(PKG)
	@.ci/noskip .build/costs.json

portable: ## what is not Linux-only must build elsewhere, tests included
	@CGO_ENABLED=0 GOOS=darwin $(GO) vet ./...
	@CGO_ENABLED=0 GOARCH=386 $(GO) vet ./...

conformance: setup ## h2spec and the foreign peers (curl, nghttp, nghttpx, Envoy, Node, grpc-go, Pebble) only
	@$(SUITE) .build/conformance.json -- -vet=off -count=1 -timeout $(TIMEOUT) -run '$(FOREIGN)' $(PKG)
	@.ci/noskip .build/conformance.json

soak: setup ## the suite with long counts: SOAK=1 and HOURS (default 1) reach the tests
	@SOAK=1 HOURS=$(HOURS) $(SUITE) .build/soak.json -- -vet=off -count=1 -timeout $$(( $(HOURS) + 2 ))h -run '$(RUN)' $(PKG)

interop-ztunnel: setup ## a certificate for, and flows with, the ztunnel that ZTUNNEL_BIN names; no part of `make test`
	@[ -n "$$ZTUNNEL_BIN" ] || { echo "ZTUNNEL_BIN is not set; it should be the path of a ztunnel" >&2; exit 1; }
	@$(GO) test -tags ztunnel -count=1 -run '^TestZtunnel$$' -v ./cmd/gateway

bench: ## Go benchmarks: BENCH=regexp, COUNT=10 for benchstat
	@$(GO) test -vet=off -run '^$$' -bench '$(BENCH)' -benchmem -count $(COUNT) $(PKG)

compare: ## this gateway pair beside others, into bench/RESULTS.md, and its roles: ROUNDS=5, and PAIRS=, MEASURES= for a part
	@.ci/setup compare
	@$(MAKE) build
	@$(GO) build -o .build/compare ./bench/compare
	@.build/compare -rounds $(ROUNDS) -pairs '$(PAIRS)' -measures '$(MEASURES)' -out $(OUT)
	@[ -n '$(PAIRS)$(MEASURES)' ] || $(MAKE) roles

roles: ## what the roles of a gateway cost beside others, into bench/ROLES.md: ROUNDS=3, and PARTS= for a part; as root
	@.ci/setup compare
	@$(MAKE) build
	@$(GO) build -o .build/roles ./bench/roles
	@.build/roles -rounds $(or $(filter-out 5,$(ROUNDS)),3) -parts '$(PARTS)' -out $(OUT)

capture: build ## what capturing costs, on hosts of network namespaces, into bench/CAPTURE.md; as root
	@CGO_ENABLED=0 $(GO) build -trimpath -tags plainudp -o .build/gateway-plain ./cmd/gateway
	@$(GO) build -o .build/capture ./bench/capture
	@.build/capture -rounds $(or $(filter-out 5,$(ROUNDS)),10)

figures: ## what identity and policy cost, beside their goals, into bench/IDENTITY.md: COUNT=5
	@$(GO) run ./bench/figures -count $(or $(filter-out 1,$(COUNT)),5)

attack: build ## the attacks of SECURITY.md at full speed on bin/gateway; prints a table and keeps it in docs/attacks.md
	@$(GO) run ./bench/attack/cmd -gateway bin/gateway -o docs/attacks.md

fuzz: ## every fuzz target for FUZZTIME (default 30s)
	@.ci/fuzz $(FUZZTIME)

clean: ## what make made
	@rm -rf .build bin
