# Everything a user or a maintainer runs. `make demo` and `make build` need only Go.
GO       ?= go
BIN      := bin/zerospan
VERSION  := $(shell git describe --tags --always --dirty 2>/dev/null || echo dev)
LDFLAGS  := -s -w -X github.com/zerospan/zerospan/telemetry.Version=$(VERSION)
GOLANGCI := github.com/golangci/golangci-lint/v2/cmd/golangci-lint@v2.15.0

.PHONY: build demo test test-deps test-kernels unit generate lint bench gate figures soak test-binaries fuzz clean

build:
	CGO_ENABLED=0 $(GO) build -trimpath -ldflags '$(LDFLAGS)' -o $(BIN) ./cmd/zerospan

# A small bundled service, traced for ten seconds. As root.
demo: build
	./$(BIN) demo

# All tests. As root it installs what they need from Debian's packages and
# traces real targets; otherwise it runs the rest and says what it skipped.
test: test-deps
	./test/run.sh

test-deps:
	./test/deps.sh

# Boots other kernels under qemu and writes docs/kernels.md. A few minutes.
test-kernels:
	ZEROSPAN_KERNELS_DOC=docs/kernels.md ./test/kernels/run.sh

unit:
	$(GO) test -race ./...

# Rebuilds the BPF objects and what is generated from the Specs.
generate:
	$(GO) generate ./bpf/... ./coexist/... ./doctor/... ./instrumentors/...
	$(GO) generate ./docs/...

lint:
	./test/lint.sh

bench: build
	$(GO) run ./test/bench

# Hits, verified instructions and allocations: none may rise by more than 10 %
# over test/bench/figures.json, unless that file is changed on purpose. As root.
gate:
	$(GO) run ./test/bench -role gate

figures:
	$(GO) run ./test/bench -role gate -update

# Mixed requests for ten minutes: nothing may grow. As root.
SOAK ?= 10m
soak: test-deps
	ZEROSPAN_REQUIRE_LIVE=1 ZEROSPAN_SOAK=$(SOAK) $(GO) test -count=1 -v -timeout 0 -run TestSoak ./test/live

# Programs that nobody here wrote: Debian's Go packages. As root on Debian.
test-binaries:
	./test/binaries/fetch.sh
	ZEROSPAN_BINARIES=1 $(GO) test -count=1 -v ./test/binaries

FUZZTIME ?= 30s
fuzz:
	./test/fuzz.sh $(FUZZTIME)

clean:
	rm -rf bin .cache
