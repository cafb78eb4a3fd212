# Weft. `make help` lists what there is to do.
.DEFAULT_GOAL := help
SHELL := /bin/bash

VERSION ?= dev
COMMIT  ?= $(shell git describe --always --abbrev=40 --exclude='*' --dirty 2>/dev/null)
IMAGE   ?= dist/weft-image.tar
STAMP   := -X github.com/weft-cni/weft/internal/version.version=$(VERSION) \
	-X github.com/weft-cni/weft/internal/version.commit=$(COMMIT)

# The cluster.
NODES     ?= 3
TUNNEL    ?= geneve
IP_FAMILY ?= ipv4
SET       ?=
FOCUS     ?= services
NAME      ?= weft
DIR       ?= .cluster
CLUSTER   := bin/cluster --dir $(DIR)

# CI's log shows how long each part takes; .ci/run repeats at its end when each began, from the file TIMELINE.
BEGUN = echo "=== $@, $$(date +%T)" | tee -a "$${TIMELINE:-/dev/null}"

.PHONY: help
help: ## Show this list
	@awk -F ':.*## ' '/^[a-z0-9-]+:.*## / {printf "  make %-18s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

.PHONY: run
run: deps build ## A small shop with policies on real switches, without Kubernetes, and who reaches whom: seconds
	@bin/weft-lab down --name shop --ignore-not-found >/dev/null
	bin/weft-lab up --name shop -f examples/shop -f examples/shop-policies
	bin/weft-lab probe --name shop
	@printf '\nNext:  edit examples/shop-policies/policies.yaml and probe again;  bin/weft-lab --help;  bin/weft-lab down --name shop\n'

.PHONY: demo
demo: deps image bin/demo ## From nothing to a two-node cluster with Weft and an application, and a tour of it
	$(CLUSTER) up --name $(NAME) --nodes 2 --tunnel $(TUNNEL) --ip-family $(IP_FAMILY) --image $(IMAGE)
	bin/demo --dir $(DIR)

.PHONY: test
test: deps unit integration e2e kernel-test ## Every test, from nothing: unit, Open vSwitch, clusters, the kernel's datapath

.PHONY: deps
deps: bin/cluster ## Install the Debian packages that clusters and tests need
	@bin/cluster deps

.PHONY: build
build: ## Build Weft's programs and the lab into bin/
	CGO_ENABLED=0 go build -trimpath -ldflags '-s -w $(STAMP)' -o bin/ ./cmd/...
	CGO_ENABLED=0 go build -C test -trimpath -ldflags '-s -w $(STAMP)' -o ../bin/ ./weft-lab

# The workshop's tools are built from its own module, and run from here.
TOOLS := bin/bench bin/cluster bin/demo bin/image bin/kernel bin/scale
.PHONY: $(TOOLS)
$(TOOLS): bin/%:
	@go build -C test -o ../$@ ./$*

.PHONY: image
image: bin/image ## Build the image as a tar, without Docker
	@mkdir -p $(dir $(IMAGE))
	bin/image -o $(IMAGE) -version $(VERSION) -commit '$(COMMIT)'

REPOSITORY ?= weft.io/weft
RELEASE    ?= dist/release/$(VERSION)
.PHONY: release
release: bin/image ## A folder with all of a release: VERSION=v0.2.0, REPOSITORY=REGISTRY/weft of the image
	bin/image release -o $(RELEASE) -version $(VERSION) -repository $(REPOSITORY) -commit '$(COMMIT)' -created "$$(git log -1 --format=%ct)"

.PHONY: push
push: bin/image ## Send a release's image to a registry, and write the manifests for it: VERSION=v0.2.0 REGISTRY=registry.example/net
	bin/image push -from $(RELEASE) -registry $(REGISTRY) -o $(dir $(RELEASE))

.PHONY: lint
lint: cross ## gofmt, go vet and golangci-lint over everything, and cross
	@$(BEGUN)
	build/lint.sh

.PHONY: vuln
vuln: ## Published vulnerabilities that code here reaches; VULNDB=URL of the database where vuln.go.dev is out of reach
	VULNDB='$(VULNDB)' build/vuln.sh

.PHONY: cross
cross: ## Compile weftctl for Linux, macOS and Windows, on amd64 and arm64
	build/cross.sh

# The packages that start goroutines or are called by several. The others are pure functions, or drive other programs. The
# race detector needs a C compiler; RACE= leaves it out.
RACE       ?= -race
CONCURRENT := /pkg/(agent|programmer|cni|ovsdb|ofswitch|kube|healthcheck|peerprobe|state|host)(/|$$)|/cmd/weftctl$$|/internal/(connectivity|sysdump|unixctl|testing/apiserver|ui)$$
concurrent  = $$(go list ./... | grep -E '$(CONCURRENT)')
sequential  = $$(go list ./... | grep -vE '$(CONCURRENT)')

.PHONY: check
check: ## Before a commit, in a minute: format, words, go vet, the product's unit tests in short, scenarios
	@$(MAKE) --no-print-directory --jobs --output-sync=target check-format check-concurrent check-sequential check-scenarios

# The scenarios take a fifth less time with less garbage collection.
check-%: export GOGC = 400
.PHONY: check-format check-concurrent check-sequential check-scenarios
check-format:
	build/format.sh
	go vet ./...
check-concurrent:
	go test $(RACE) -short -vet=off $(concurrent)
check-sequential:
	go test -short -vet=off $(sequential)
check-scenarios:
	go test -C test ./scenario

.PHONY: unit
unit: ## Tests that need neither root nor Open vSwitch
	@$(BEGUN)
	go test $(RACE) $(concurrent)
	go test $(sequential)
	go test -C test ./...
	go test -C test/oracle/policy ./... # modules of their own: other projects' judgement
	go test -C test/oracle/service ./...
	@# -count=1 for what they read outside of their modules, which go test's cache does not look at.
	go test -C test/oracle/monitoring -vet=off -count=1 ./... # the alerts and the dashboard, by Prometheus' own code
	go test -C test/oracle/helm -vet=off -count=1 ./... # the chart, from which deploy/weft.yaml is made, and the kustomize base
	go test -C test/components ./admission # the admission policy, judged by the API server's own code

.PHONY: churn
churn: deps ## 2,000 pods added and deleted while plugins, agents and Open vSwitch are killed; needs root
	WEFT_CHURN=2000 go test -tags integration -v -timeout 1h -run TestChurn ./pkg/cni

.PHONY: hostile
hostile: ## Absurd, huge and malicious objects beside honest ones, in full, and what they cost: minutes, 10 GB
	go test -C test ./hostile -v -timeout 2h -size 8 -bench . -benchtime 1x
	go test -C test ./hostile -v -timeout 2h -size 32 -bench . -benchtime 1x

FUZZTIME ?= 1m
.PHONY: fuzz
fuzz: ## Fuzz what is read from others, and the compiler: FUZZTIME (1m) per target, one at a time
	FUZZTIME=$(FUZZTIME) build/fuzz.sh

# The product's test files that need the tag integration, with their packages and tests: unit has run the others.
TAGGED   := $$(grep -rlE --include='*_test.go' '^//go:build .*integration' build cmd deploy internal pkg)
packages  = $$(go list -tags integration $$(dirname $(TAGGED) | sort -u | sed 's,^,./,') | grep $(1) '$(CONCURRENT)')
tests     = "^($$(grep -hoE '^func Test\w+' $(TAGGED) | cut -c6- | paste -sd'|'))$$"

.PHONY: integration
integration: ## Tests on a real Open vSwitch and a real kernel; needs root
	@$(BEGUN)
	go test $(RACE) -tags integration -timeout 20m -run $(tests) $(call packages,-E)
	go test -tags integration -timeout 20m -run $(tests) $(call packages,-vE)
	go test -C test -tags integration -timeout 20m ./image ./cluster/agnhost ./page
	go test -C test -tags integration -timeout 40m -p 1 ./lab/... ./datapath/... # these compare the machine with before, so one at a time
	go test -C test -tags integration -timeout 30m -run TestLab/ipv6 ./scenario # the other families: make nightly

.PHONY: nightly
nightly: image ## 100,000 sets of random policies through the compiled flows and by other evaluators, 10,000 sequences of changes, all scenarios in the lab, the matrix of transports, clusters with dual stack over Geneve and with IPv6 alone; over an hour
	WEFT_POLICY_SETS=100000 go test ./pkg/trace -run TestRandomPolicies -timeout 4h
	go test -C test/oracle/policy -run TestRandomPolicies -timeout 4h -rapid.checks=100000
	go test ./pkg/state -run TestEveryChange -timeout 1h -rapid.checks=10000
	go test -C test -tags integration -timeout 1h -run TestLab ./scenario
	go test -C test -tags integration -timeout 10m ./bench
	$(MAKE) matrix
	test/e2e/run.sh dual/geneve ipv6/geneve

.PHONY: matrix matrix-update
matrix: deps ## Every transport with and without encryption, in every family, for every kind of destination and policy, in labs; compares with docs/matrix.md; needs root
	WEFT_MATRIX=1 go test -C test -tags integration -count=1 -timeout 1h -v -run 'TestMatrix$$' ./datapath
matrix-update: deps ## The same, and write docs/matrix.md
	WEFT_MATRIX=1 go test -C test -tags integration -count=1 -timeout 1h -v -run 'TestMatrix$$' ./datapath -update

.PHONY: names
names: deps ## 10,000 first connections after DNS lookups that policies with domainNames learn from, and latencies at 1,000 lookups a second; needs root
	WEFT_DNS_NAMES=5000 WEFT_DNS_RATE=1000 go test -C test -tags integration -count=1 -timeout 30m -v -run 'TestDomainNames$$' ./datapath

CHAOS ?= 30m
.PHONY: chaos
chaos: deps ## Faults of every kind in a random order while traffic goes every way: CHAOS=30m; needs root
	WEFT_CHAOS=$(CHAOS) go test -C test -tags integration -count=1 -timeout 3h -v -run TestChaos ./datapath

SOAK ?= 1h
.PHONY: soak
soak: deps ## Pods, policies and Services come and go under traffic; what the node uses must not grow: SOAK=1h; needs root
	WEFT_SOAK=$(SOAK) go test -C test -tags integration -count=1 -timeout 5h -v -run '^(TestSoak|TestRestartTouchesNothing)$$' ./datapath

.PHONY: e2e
e2e: image ## End-to-end tests on real clusters: IPv4 over Geneve, dual stack over VXLAN
	@$(BEGUN)
	test/e2e/run.sh

.PHONY: e2e-transports
e2e-transports: image ## The end-to-end tests that depend on it on clusters with every other way between nodes; an hour
	test/e2e/run.sh --transports

.PHONY: e2e-install
e2e-install: deps ## The outsider's path from the folders of two releases: check, install, test, faults, upgrade and rollback under traffic, removal; a quarter of an hour, not part of CI
	test/e2e/install.sh

.PHONY: kernel-test
kernel-test: deps bin/kernel ## Tests of the datapath on a stock Debian kernel's own, in an emulated machine; a quarter of an hour
	@$(BEGUN)
	bin/kernel test --timeout 30m --run 'TestForwarding/dual/geneve|TestSpoofing|TestTunnelSpoofing|TestPolicyRetransmittedSYN' datapath

.PHONY: kernel-test-all
kernel-test-all: deps image bin/kernel ## The same in full, and clusters on the kernel's datapath: two hours, not part of CI
	go test -C test -tags kernel ./kernel/machine
	bin/kernel test --timeout 40m datapath
	bin/kernel test --timeout 40m scenario
	bin/kernel test openvswitch
	bin/kernel test --timeout 60m cluster
	bin/kernel test --timeout 120m --ip-family ipv4 conformance

.PHONY: bench
bench: deps bin/bench ## Weft beside its peers in turns, dist/bench.json; a quarter of an hour; needs root
	bin/bench run -o dist/bench.json

.PHONY: bench-quick
bench-quick: deps bin/bench ## The same with fewer and shorter rounds: below three minutes; needs root
	bin/bench run --quick -o dist/bench-quick.json

.PHONY: bench-functions
bench-functions: ## Benchmarks of functions: compilation, and bundles on a real Open vSwitch
	go test -tags integration -run '^$$' -bench . -benchmem ./pkg/flows ./pkg/ofswitch

.PHONY: bench-scale
bench-scale: bin/scale ## The agent with 10,000 Services and with 5,000 policies over 10,000 pods, of one kind and of two; needs root
	bin/scale

AGAINST ?=
.PHONY: bench-connections
bench-connections: deps bin/bench ## Connections per second and ovs-vswitchd's CPU; AGAINST=COMMIT for another agent beside it; needs root
	bin/bench run --cases '^connections' --against '$(AGAINST)' -o dist/bench-connections.json

.PHONY: bench-kernel
bench-kernel: deps bin/bench bin/kernel ## The same on the kernel's datapath, in an emulated machine: AGAINST=COMMIT; half an hour; needs root
	@mkdir -p dist/bench
	bin/bench build dist/bench --against '$(AGAINST)'
	cp bin/bench dist/bench/bench
	bin/kernel run --timeout 60m --env WEFT_TEST_SLOW=4 --results dist -- $(CURDIR)/dist/bench/bench run --datapath system --programs $(CURDIR)/dist/bench --rounds 3 --cases '^(connections|requests|throughput)' -o /guest/results/bench-kernel.json

.PHONY: cluster
cluster: deps image ## A real cluster with Weft: NODES=3 TUNNEL=geneve|vxlan|gre IP_FAMILY=ipv4|ipv6|dual SET=transport=direct
	$(CLUSTER) up --name $(NAME) --nodes $(NODES) --tunnel $(TUNNEL) --ip-family $(IP_FAMILY) $(SET:%=--set %) --image $(IMAGE)

.PHONY: conformance
conformance: cluster ## Upstream's tests against it: FOCUS=services|netpol|ci|REGEXP of Kubernetes' specs, or clusternetworkpolicy, and what cluster takes
	$(CLUSTER) conformance --name $(NAME) --focus '$(FOCUS)'

.PHONY: cluster-down
cluster-down: bin/cluster ## Remove the cluster, in whatever state it is
	$(CLUSTER) down --name $(NAME)

.PHONY: cluster-load
cluster-load: bin/cluster ## Put an image on every node: IMAGE=FILE.tar
	$(CLUSTER) load --name $(NAME) $(IMAGE)

.PHONY: cluster-exec
cluster-exec: bin/cluster ## Run a command on a node: NODE=NAME CMD='…'
	$(CLUSTER) exec --name $(NAME) --node $(NODE) -- sh -c '$(CMD)'

.PHONY: cluster-status
cluster-status: bin/cluster ## Show what of the cluster stands and whether it is well
	$(CLUSTER) status --name $(NAME)

.PHONY: clean
clean: ## Remove what builds made here
	rm -rf bin dist
