package main

import (
	"errors"
	"fmt"
	"maps"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"github.com/cilium/ebpf/rlimit"

	"github.com/zerospan/zerospan/instrumentors"
	_ "github.com/zerospan/zerospan/instrumentors/all"
	"github.com/zerospan/zerospan/test/kernels"
)

// loadPrograms loads every program of every Spec and of the other objects, one by one.
func loadPrograms() {
	if err := rlimit.RemoveMemlock(); err != nil { // counts before 5.11
		failed("RLIMIT_MEMLOCK: %v", err)
	}
	for _, spec := range instrumentors.All() {
		coll, err := spec.Load()
		check(err)
		loadEach(spec.Name, coll)
	}
	files, err := filepath.Glob(dir + "/objects/*.o")
	check(err)
	for _, file := range files {
		coll, err := ebpf.LoadCollectionSpec(file)
		check(err)
		loadEach(strings.TrimSuffix(filepath.Base(file), ".o"), coll)
	}
}

func loadEach(of string, coll *ebpf.CollectionSpec) {
	shared := coll.Copy()
	shared.Programs = nil
	base, err := ebpf.NewCollection(shared)
	if err != nil {
		failed("the maps of %s: %v", of, err)
		return
	}
	defer base.Close()
	for _, name := range slices.Sorted(maps.Keys(coll.Programs)) {
		p := &kernels.Program{Name: of + "/" + name, Instructions: len(coll.Programs[name].Instructions)}
		for _, way := range []kernels.Way{kernels.Multi, kernels.Perf, kernels.NoCookie} {
			one := coll.Copy()
			maps.DeleteFunc(one.Programs, func(other string, _ *ebpf.ProgramSpec) bool { return other != name })
			if a, tried := attempt(one, one.Programs[name], way, base.Maps); tried {
				p.Attempts = append(p.Attempts, a)
				if a.Error == "" {
					break
				}
			}
		}
		say(kernels.Line{Program: p})
	}
}

var processed = regexp.MustCompile(`processed (\d+) insns`)

func attempt(one *ebpf.CollectionSpec, spec *ebpf.ProgramSpec, way kernels.Way, shared map[string]*ebpf.Map) (a kernels.Attempt, tried bool) {
	switch way {
	case kernels.Multi:
		spec.AttachType = ebpf.AttachTraceUprobeMulti
	case kernels.NoCookie:
		for i := range spec.Instructions {
			// Another helper without arguments, of whose result the verifier knows as little.
			if in := &spec.Instructions[i]; in.IsBuiltinCall() && in.Constant == int64(asm.FnGetAttachCookie) {
				in.Constant, tried = int64(asm.FnKtimeGetNs), true
			}
		}
		if !tried {
			return a, false
		}
	}
	a.Way = way
	begun := time.Now()
	c, err := ebpf.NewCollectionWithOptions(one, ebpf.CollectionOptions{
		MapReplacements: shared, Programs: ebpf.ProgramOptions{LogLevel: ebpf.LogLevelStats},
	})
	a.Took = time.Since(begun)
	var log []string
	if err != nil {
		a.Error = err.Error()
		var v *ebpf.VerifierError
		if errors.As(err, &v) {
			a.Error, log = fmt.Sprint(v.Cause), v.Log
			a.Log = log[max(0, len(log)-12):]
		}
	} else {
		defer c.Close()
		log = strings.Split(c.Programs[spec.Name].VerifierLog, "\n")
	}
	for _, line := range log {
		if m := processed.FindStringSubmatch(line); m != nil {
			a.Verified, _ = strconv.ParseUint(m[1], 10, 64)
		}
	}
	return a, true
}
