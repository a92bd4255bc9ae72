package main

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"

	"github.com/zerospan/zerospan/agent"
	"github.com/zerospan/zerospan/instrumentors"
	_ "github.com/zerospan/zerospan/instrumentors/all"
	"github.com/zerospan/zerospan/telemetry"
)

// figures is what the regression gate compares with what was committed: counts,
// which do not depend on how busy the machine is. Times stand beside them for the
// reader and are not compared.
type figures struct {
	Kernel   string                      `json:"kernel"` // whose verifier counted
	Programs map[string]programFigures   `json:"programs"`
	Work     map[string]workloadFigures  `json:"workloads"`
	Times    map[string]map[string]int64 `json:"not_compared_ns_per_hit"`
}

type programFigures struct {
	Instructions int    `json:"instructions"`
	Verified     uint32 `json:"verified"`
}

type workloadFigures struct {
	Hits        float64 `json:"hits_per_call"`
	Allocations float64 `json:"allocations_per_call"`
}

const (
	gateCalls = 20000 // per workload, after the adaptive sites have settled
	maxRise   = 1.10
	// Exports and ticks come by the clock: so much of an allocation a call is noise.
	allocationNoise = 0.05
)

// runGate measures the figures and compares them with the file, or writes it.
func runGate(file string, update bool) error {
	if os.Geteuid() != 0 {
		return errors.New("run as root: probes need it")
	}
	now := figures{Kernel: kernel(), Programs: map[string]programFigures{}, Work: map[string]workloadFigures{}, Times: map[string]map[string]int64{}}
	if err := now.programs(); err != nil {
		return err
	}
	self, err := os.Executable()
	if err != nil {
		return err
	}
	target, cleanup, err := buildTarget()
	if err != nil {
		return err
	}
	defer cleanup()
	for _, name := range []string{"hello", "realistic", "call", "client"} {
		if err := now.workload(self, target, name); err != nil {
			return fmt.Errorf("%s: %w", name, err)
		}
	}
	if update {
		out, err := json.MarshalIndent(now, "", "  ")
		if err != nil {
			return err
		}
		return os.WriteFile(file, append(out, '\n'), 0o644)
	}
	raw, err := os.ReadFile(file)
	if err != nil {
		return err
	}
	var was figures
	if err := json.Unmarshal(raw, &was); err != nil {
		return fmt.Errorf("%s: %w", file, err)
	}
	if worse := now.compare(&was); len(worse) > 0 {
		return fmt.Errorf("%d figures changed by more than 10 %%:\n  %s\nif that is meant, say why in the commit and run: make figures", len(worse), strings.Join(worse, "\n  "))
	}
	fmt.Printf("%d programs and %d workloads are within 10 %% of %s\n", len(now.Programs), len(now.Work), file)
	return nil
}

// kernel returns the release up to its minor version: verifiers differ.
func kernel() string {
	var u unix.Utsname
	_ = unix.Uname(&u) // has no way to fail
	parts := strings.SplitN(unix.ByteSliceToString(u.Release[:]), ".", 3)
	return strings.Join(parts[:min(2, len(parts))], ".")
}

// compare lists what is more than 10 % above what it was, or new, and what is not
// there any more: a probe that is not hit costs nothing and sees nothing.
func (f *figures) compare(was *figures) (worse []string) {
	for _, name := range slices.Sorted(maps.Keys(f.Programs)) {
		p, old := f.Programs[name], was.Programs[name]
		if float64(p.Instructions) > maxRise*float64(old.Instructions) {
			worse = append(worse, fmt.Sprintf("%s: %d instructions, were %d", name, p.Instructions, old.Instructions))
		}
		if f.Kernel == was.Kernel && float64(p.Verified) > maxRise*float64(old.Verified) {
			worse = append(worse, fmt.Sprintf("%s: %d instructions verified, were %d", name, p.Verified, old.Verified))
		}
	}
	if f.Kernel != was.Kernel {
		fmt.Printf("SKIPPED: verified instructions were counted on kernel %s, this is %s\n", was.Kernel, f.Kernel)
	}
	for _, name := range slices.Sorted(maps.Keys(f.Work)) {
		w, old := f.Work[name], was.Work[name]
		if w.Hits > maxRise*old.Hits || maxRise*w.Hits < old.Hits {
			worse = append(worse, fmt.Sprintf("%s: %.3f hits a call, were %.3f", name, w.Hits, old.Hits))
		}
		if w.Allocations > maxRise*old.Allocations+allocationNoise {
			worse = append(worse, fmt.Sprintf("%s: %.3f allocations a call, were %.3f", name, w.Allocations, old.Allocations))
		}
	}
	for name := range was.Programs {
		if _, ok := f.Programs[name]; !ok {
			worse = append(worse, name+": there is no such program any more")
		}
	}
	return worse
}

// programs loads every program of every Spec.
func (f *figures) programs() error {
	for _, spec := range instrumentors.All() {
		coll, err := spec.Load()
		if err != nil {
			return err
		}
		for name, p := range coll.Programs {
			p.AttachType = ebpf.AttachTraceUprobeMulti
			one := coll.Copy()
			maps.DeleteFunc(one.Programs, func(other string, _ *ebpf.ProgramSpec) bool { return other != name })
			c, err := ebpf.NewCollection(one)
			if err != nil {
				return fmt.Errorf("%s of %s: %w", name, spec.Name, err)
			}
			info, err := c.Programs[name].Info()
			verified := uint32(0)
			if err == nil {
				verified, _ = info.VerifiedInstructions()
			}
			f.Programs[spec.Name+"/"+name] = programFigures{len(p.Instructions), verified}
			c.Close()
		}
	}
	return nil
}

// workload has a target work while an agent in a process of its own counts.
func (f *figures) workload(self, target, name string) error {
	w, stop, err := newWork(self, target, name)
	if err != nil {
		return err
	}
	defer stop()
	sink, err := start(self, "-role", "sink")
	if err != nil {
		return err
	}
	defer sink.stop()
	url, err := sink.line()
	if err != nil {
		return err
	}
	stats, err := ebpf.EnableStats(uint32(unix.BPF_STATS_RUN_TIME))
	if err != nil {
		return err
	}
	defer stats.Close()
	before := programRuns(nil)
	counter, err := start(self, "-role", "counted", "-address", url, "-pid", strconv.Itoa(w.target.Process.Pid))
	if err != nil {
		return err
	}
	defer counter.stop()
	if _, err := counter.line(); err != nil {
		return err
	}
	if _, err := w.load(0.5); err != nil { // adaptive sites settle, buffers grow
		return err
	}
	time.Sleep(1500 * time.Millisecond) // and the last of it is exported
	known := programRuns(before)
	allocations := ask(counter, "count")
	calls := 0
	for calls < gateCalls {
		r, err := w.load(0.5)
		if err != nil {
			return err
		}
		calls += r.calls
	}
	time.Sleep(1500 * time.Millisecond)
	allocations = ask(counter, "count") - allocations
	figure := workloadFigures{Allocations: round(float64(allocations) / float64(calls))}
	f.Times[name] = map[string]int64{}
	for id, p := range programRuns(before) {
		runs := p.runs - known[id].runs
		figure.Hits += float64(runs) / float64(calls)
		if runs > 100 {
			f.Times[name][p.name] = int64(p.time-known[id].time) / int64(runs)
		}
	}
	figure.Hits = round(figure.Hits)
	f.Work[name] = figure
	return nil
}

func round(v float64) float64 { return float64(int(v*1000+0.5)) / 1000 }

type programRun struct {
	name string
	runs uint64
	time time.Duration
}

// programRuns returns how often the uprobe programs ran that are not in without.
func programRuns(without map[ebpf.ProgramID]programRun) map[ebpf.ProgramID]programRun {
	out := map[ebpf.ProgramID]programRun{}
	for id := ebpf.ProgramID(0); ; {
		next, err := ebpf.ProgramGetNextID(id)
		if err != nil {
			return out
		}
		id = next
		p, err := ebpf.NewProgramFromID(id)
		if err != nil {
			continue // it is gone
		}
		info, err1 := p.Info()
		s, err2 := p.Stats()
		if _, old := without[id]; !old && err1 == nil && err2 == nil && info.Type == ebpf.Kprobe {
			out[id] = programRun{info.Name, s.RunCount, s.Runtime}
		}
		_ = p.Close()
	}
}

// runCounted is zerospan in this process: each line on its standard input is
// answered with how many objects it has allocated.
func runCounted(pid int, endpoint string) error {
	log := slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: slog.LevelWarn}))
	sampler, err := telemetry.NewSampler("", "")
	if err != nil {
		return err
	}
	pipeline, err := telemetry.NewPipeline(telemetry.Options{Sampler: sampler, Print: telemetry.PrintNone, Log: log,
		Traces: &telemetry.TraceOptions{Endpoint: endpoint}, Metrics: &telemetry.MetricOptions{Endpoint: endpoint}})
	if err != nil {
		return err
	}
	a, err := agent.New(agent.Config{PIDs: []int{pid}, Log: log}, pipeline)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	ended := make(chan error, 1)
	go func() { ended <- a.Run(ctx) }()
	select {
	case <-a.Attached():
	case err := <-ended:
		return err
	}
	fmt.Println("attached")
	in := bufio.NewScanner(os.Stdin)
	for in.Scan() {
		var m runtime.MemStats
		runtime.ReadMemStats(&m)
		fmt.Println(m.Mallocs)
	}
	cancel()
	err = <-ended
	pipeline.Close(context.Background())
	return err
}

// buildTarget builds the traced process of all workloads.
func buildTarget() (path string, cleanup func(), err error) {
	dir, err := os.MkdirTemp("", "zerospan-bench")
	if err != nil {
		return "", nil, err
	}
	path = filepath.Join(dir, "target")
	return path, func() { _ = os.RemoveAll(dir) }, goBuild("test/targets/bench", path)
}
