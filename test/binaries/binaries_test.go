// Package binaries plans for programs that nobody here wrote: every Go executable
// under .cache/binaries, which fetch.sh fills. It attaches to nothing.
package binaries

import (
	"debug/buildinfo"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/zerospan/zerospan/agent"
	"github.com/zerospan/zerospan/instrumentors"
	_ "github.com/zerospan/zerospan/instrumentors/all"
	"github.com/zerospan/zerospan/procdiscovery"
)

// What resolving a binary may take.
const (
	maxTime   = time.Second
	maxMemory = 64 << 20 // bytes allocated, freed or not
)

func TestBinaries(t *testing.T) {
	if os.Getenv("ZEROSPAN_BINARIES") == "" {
		t.Skip("asked for by make test-binaries")
	}
	found := 0
	err := filepath.WalkDir("../../.cache/binaries", func(path string, d fs.DirEntry, err error) error {
		if err != nil || !d.Type().IsRegular() {
			return err
		}
		info, err := buildinfo.ReadFile(path)
		if err != nil {
			return nil // no Go program
		}
		found++
		t.Run(filepath.Base(path), func(t *testing.T) { plan(t, path, info) })
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	if found < 10 {
		t.Errorf("%d Go programs, want at least 10: run test/binaries/fetch.sh", found)
	}
}

func plan(t *testing.T, path string, info *buildinfo.BuildInfo) {
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	size, _ := f.Stat()
	self, err := procdiscovery.Inspect(os.Getpid()) // stands for the process, which does not run
	if err != nil {
		t.Fatal(err)
	}
	var before, after runtime.MemStats
	runtime.GC()
	runtime.ReadMemStats(&before)
	began := time.Now()
	planned, err := agent.Plan(self, f)
	took := time.Since(began)
	runtime.ReadMemStats(&after)
	if err != nil {
		t.Fatal(err)
	}
	allocated := after.TotalAlloc - before.TotalAlloc
	var says []string
	for _, r := range planned.Results {
		switch {
		case r.Err == nil:
			says = append(says, r.Spec.Name)
			for _, field := range r.Plan.Fields {
				if field.Err != nil && field.Required {
					t.Errorf("%s: field %s: %v", r.Spec.Name, field.Path, field.Err)
				}
			}
		case errors.Is(r.Err, instrumentors.ErrAbsent):
		default: // a library that is there and can't be traced
			t.Errorf("%s: %v", r.Spec.Name, r.Err)
		}
	}
	t.Logf("%-24s %-10s %4d MB %8v %4d MB  %s", filepath.Base(path), info.GoVersion, size.Size()>>20, took.Round(time.Millisecond), allocated>>20, strings.Join(says, ", "))
	if took > maxTime {
		t.Errorf("it took %v, want at most %v", took, maxTime)
	}
	if allocated > maxMemory {
		t.Errorf("%d MB were allocated, want at most %d", allocated>>20, maxMemory>>20)
	}
}
