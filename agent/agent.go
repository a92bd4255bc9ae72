// Package agent joins the rooms: it finds processes, plans and attaches
// instrumentors, and carries their records to the telemetry pipeline.
package agent

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"sync"
	"time"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/rlimit"
	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/semconv/v1.43.0"
	"golang.org/x/sys/unix"

	"github.com/zerospan/zerospan/bpf"
	"github.com/zerospan/zerospan/coexist"
	"github.com/zerospan/zerospan/doctor"
	"github.com/zerospan/zerospan/instrumentors"
	"github.com/zerospan/zerospan/procdiscovery"
	"github.com/zerospan/zerospan/telemetry"
)

// ErrNothingTraceable means that no instrumentor fits the selected process.
var ErrNothingTraceable = errors.New("nothing traceable")

// Config says what to trace.
type Config struct {
	PIDs []int
	Exe  []string // globs on the executable's path
	All  bool     // whatever an instrumentor fits

	Service      string // overrides the name, with one target
	MaxOpenCalls uint32
	RingSize     uint32        // bytes, a power of two
	Avoid        []string      // features of the kernel that are not used, for tests: multi, cookies
	Coexist      Coexist       // with a target's own SDK; CoexistSkip if empty
	StuckAfter   time.Duration // calls open for longer are listed
	Log          *slog.Logger
}

// DefaultRingSize is 4 MiB: at 60,000 calls a second a third of a second.
const DefaultRingSize = 4 << 20

// DefaultStuckAfter is how long a call may be open before it is listed.
const DefaultStuckAfter = 30 * time.Second

func (c Config) dynamic() bool { return c.All || len(c.Exe) > 0 }

// Agent traces processes until it is closed.
type Agent struct {
	cfg      Config
	pipeline *telemetry.Pipeline
	shared   *shared
	kernel   kernel
	sdks     *coexist.Watcher // nil until a target carries the OpenTelemetry SDK
	log      *slog.Logger

	mu        sync.Mutex
	loaded    []*loaded
	targets   map[int]*target // by PID
	byID      map[uint32]*target
	refused   map[int]identity // by PID: what can't be traced
	nextID    uint32
	lost      *telemetry.Target // for calls of targets that are not known any more
	folded    map[bpf.SharedZsFallbackKey]bpf.SharedZsFallbackValue
	stuck     map[stuckCall]bool // open calls that were listed
	abandoned map[string]uint64
	final     *telemetry.Balance // once it is closed

	clock    clock
	exits    chan *target
	changes  chan adaptiveChange
	consumer *consumer
	watchers sync.WaitGroup // for the ends of targets
	attached chan struct{}  // closed with the first target
	once     sync.Once
}

// New creates the maps that all instrumentors share.
func New(cfg Config, pipeline *telemetry.Pipeline) (*Agent, error) {
	if cfg.MaxOpenCalls == 0 {
		cfg.MaxOpenCalls = DefaultMaxOpenCalls
	}
	if cfg.RingSize == 0 {
		cfg.RingSize = DefaultRingSize
	}
	if cfg.Coexist == "" {
		cfg.Coexist = CoexistSkip
	}
	if cfg.StuckAfter == 0 {
		cfg.StuckAfter = DefaultStuckAfter
	}
	// Before 5.11 BPF memory counts against this limit; later it does not matter.
	if err := rlimit.RemoveMemlock(); err != nil {
		cfg.Log.Debug("RLIMIT_MEMLOCK was left as it is", "error", err)
	}
	k := tryKernel(cfg.Avoid)
	s, err := newShared(cfg.RingSize, cfg.MaxOpenCalls, k)
	if err != nil {
		return nil, permission(err)
	}
	a := &Agent{
		cfg: cfg, pipeline: pipeline, shared: s, log: cfg.Log, kernel: k,
		targets: map[int]*target{}, byID: map[uint32]*target{}, refused: map[int]identity{},
		folded: map[bpf.SharedZsFallbackKey]bpf.SharedZsFallbackValue{}, stuck: map[stuckCall]bool{}, abandoned: map[string]uint64{},
		exits: make(chan *target, 64), changes: make(chan adaptiveChange, 16), attached: make(chan struct{}),
		lost: telemetry.NewTarget(0, "unknown", nil),
	}
	pipeline.SetSource(a)
	pipeline.AddTarget(a.lost)
	return a, nil
}

// permissionError says what is missing; what the kernel said of it would only repeat it.
type permissionError struct {
	message string
	err     error
}

func (e permissionError) Error() string { return e.message }
func (e permissionError) Unwrap() error { return e.err }

// permission says in one line what is missing.
func permission(err error) error {
	if !errors.Is(err, os.ErrPermission) && (!errors.Is(err, ebpf.ErrNotSupported) || os.Geteuid() == 0) {
		return err
	}
	if lacking := doctor.Lacking(unix.CAP_BPF, unix.CAP_PERFMON); lacking != "" {
		return permissionError{"not permitted to use BPF: " + lacking, err}
	}
	return fmt.Errorf("not permitted to use BPF, though the capabilities are there: zerospan doctor tries what is refused (%w)", err)
}

// Run attaches to what is selected and traces until ctx is done or, with PIDs
// only, until the last of them has ended.
func (a *Agent) Run(ctx context.Context) error {
	var err error
	if a.consumer, err = newConsumer(a); err != nil {
		return err
	}
	defer a.close()
	for _, pid := range a.cfg.PIDs {
		if a.targets[pid] != nil {
			continue
		}
		p, err := Inspect(pid)
		if err != nil {
			return err
		}
		if err := a.attach(ctx, p); err != nil {
			return err
		}
	}
	if a.cfg.dynamic() {
		a.scan(ctx)
		if len(a.targets) == 0 {
			a.log.Info("no process matches yet: waiting for one")
		}
	}
	a.consumer.started = true
	go a.consumer.run()

	scan := time.NewTicker(time.Second)
	defer scan.Stop()
	sweep := time.NewTicker(min(5*time.Second, a.cfg.StuckAfter))
	defer sweep.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case t := <-a.exits:
			a.log.Info("target has ended", "pid", t.process.PID, "exe", t.process.Name())
			a.remove(t)
			if len(a.targets) == 0 && !a.cfg.dynamic() {
				return nil
			}
		case c := <-a.changes:
			a.change(c)
		case now := <-scan.C:
			a.checkSDKs(now)
			a.follow(ctx)
			if a.cfg.dynamic() {
				a.scan(ctx)
			} else if len(a.targets) == 0 {
				return nil
			}
		case <-sweep.C:
			a.sweep(time.Now())
		}
	}
}

// identity is a process as long as it executes the same program.
type identity struct {
	start, stack uint64
	exe          [2]uint64
}

func identityOf(p *procdiscovery.Process) identity { return identity{p.StartTime, p.Stack, p.ExeID} }

// follow attaches again to processes that were named and execute another program
// now: the probes went with the old one.
func (a *Agent) follow(ctx context.Context) {
	for _, pid := range a.cfg.PIDs {
		t := a.targets[pid]
		if t == nil {
			continue
		}
		p, err := procdiscovery.Inspect(pid)
		if err != nil || identityOf(p) == identityOf(t.process) {
			continue // that it has ended is seen elsewhere
		}
		a.log.Info("target executes another program", "pid", pid, "exe", p.Name())
		a.remove(t)
		if err := a.attach(ctx, p); err != nil {
			a.log.Warn("not traced", "pid", pid, "exe", p.Name(), "reason", err)
		}
	}
}

// scan attaches to processes that match and are not attached yet.
func (a *Agent) scan(ctx context.Context) {
	pids, err := procdiscovery.List()
	if err != nil {
		a.log.Warn("can't list processes", "error", err)
		return
	}
	seen := make(map[int]bool, len(pids))
	for _, pid := range pids {
		seen[pid] = true
		if pid == os.Getpid() {
			continue
		}
		p, err := procdiscovery.Inspect(pid)
		if err != nil {
			continue
		}
		if t := a.targets[pid]; t != nil {
			if identityOf(t.process) == identityOf(p) {
				continue
			}
			a.log.Info("target executes another program", "pid", pid, "exe", p.Name())
			a.remove(t)
		}
		if !a.selected(p) {
			continue
		}
		if id, ok := a.refused[pid]; ok && id == identityOf(p) {
			continue
		}
		if err := a.attach(ctx, p); err != nil {
			a.refused[pid] = identityOf(p)
			if !a.cfg.All || !errors.Is(err, ErrNothingTraceable) {
				a.log.Warn("not traced", "pid", pid, "exe", p.Name(), "reason", err)
			}
		}
	}
	for pid := range a.refused {
		if !seen[pid] {
			delete(a.refused, pid)
		}
	}
}

func (a *Agent) selected(p *procdiscovery.Process) bool {
	if a.cfg.All {
		return true
	}
	return slices.ContainsFunc(a.cfg.Exe, func(glob string) bool { return matchExe(glob, p.Exe) })
}

// matchExe matches a glob against a path or, when it has no slash, its last
// element. A leading */ stands for any directory.
func matchExe(glob, path string) bool {
	if rest, ok := cutAnyDir(glob); ok {
		glob, path = rest, filepath.Base(path)
	} else if filepath.Base(glob) == glob {
		path = filepath.Base(path)
	}
	ok, err := filepath.Match(glob, path)
	return err == nil && ok
}

func cutAnyDir(glob string) (string, bool) {
	for _, prefix := range []string{"*/", "**/"} {
		if rest := glob[min(len(prefix), len(glob)):]; len(glob) > len(prefix) && glob[:len(prefix)] == prefix && filepath.Base(rest) == rest {
			return rest, true
		}
	}
	return "", false
}

// Attached is closed once the first target is attached.
func (a *Agent) Attached() <-chan struct{} { return a.attached }

func resourceOf(p *procdiscovery.Process, service, goVersion string) []attribute.KeyValue {
	attrs := []attribute.KeyValue{
		semconv.ServiceName(service),
		semconv.ProcessPID(p.PID),
		semconv.ProcessExecutableName(p.Name()),
		semconv.ProcessExecutablePath(p.Exe),
		semconv.TelemetryDistroName("zerospan"),
		semconv.TelemetryDistroVersion(telemetry.Version),
		semconv.OSTypeLinux,
		attribute.String("host.arch", runtime.GOARCH),
	}
	if goVersion != "" {
		attrs = append(attrs, semconv.TelemetrySDKLanguageGo, semconv.ProcessRuntimeName("go"), semconv.ProcessRuntimeVersion(goVersion))
	}
	if p.Container != "" {
		attrs = append(attrs, semconv.ContainerID(p.Container))
	}
	if host, err := os.Hostname(); err == nil {
		attrs = append(attrs, semconv.HostName(host))
	}
	return attrs
}

// instrumentor returns the loaded instrumentor of a spec, loading it if need be.
func (a *Agent) instrumentor(spec *instrumentors.Spec) (*loaded, error) {
	for _, l := range a.loaded {
		if l.spec == spec {
			return l, nil
		}
	}
	l, err := a.load(spec, uint16(len(a.loaded)))
	if err != nil {
		return nil, permission(err)
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	a.loaded = append(a.loaded, l)
	return l, nil
}

func (a *Agent) byNumber(n uint16) *loaded {
	if int(n) < len(a.loaded) {
		return a.loaded[n]
	}
	return nil
}

// Balance implements telemetry.Source.
func (a *Agent) Balance(b *telemetry.Balance) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if f := a.final; f != nil {
		*b = *f
		b.Abandoned, b.Dropped = maps.Clone(f.Abandoned), maps.Clone(f.Dropped)
		return
	}
	for _, l := range a.loaded {
		c, err := a.shared.counters(l.number)
		if err != nil {
			a.log.Warn("the balance is incomplete", "error", err)
			continue
		}
		skipped := c[bpf.SharedZsCounterZS_SKIPPED]
		b.Started += c[bpf.SharedZsCounterZS_STARTED] - skipped
		b.Completed += c[bpf.SharedZsCounterZS_COMPLETED]
		b.Abandoned["evicted"] += c[bpf.SharedZsCounterZS_EVICTED]
		b.Abandoned["missed_end"] += c[bpf.SharedZsCounterZS_MISSED_END]
		b.Unmatched += c[bpf.SharedZsCounterZS_UNMATCHED_END]
		b.StackGrowth += c[bpf.SharedZsCounterZS_STACK_GROWTH]
		b.Faults += c[bpf.SharedZsCounterZS_FAULTS]
		b.Skipped += skipped
		b.Dropped["ring_full"] += c[bpf.SharedZsCounterZS_FALLBACK_LOST]
	}
	if err := a.shared.eachOpen(func(entry) { b.Open++ }); err != nil {
		a.log.Warn("the balance is incomplete", "error", err)
	}
	for reason, n := range a.abandoned {
		b.Abandoned[reason] += n
	}
}

// OpenCalls implements telemetry.Source.
func (a *Agent) OpenCalls() []telemetry.OpenCalls {
	a.mu.Lock()
	defer a.mu.Unlock()
	type key struct {
		target *telemetry.Target
		metric *telemetry.Metric
		attrs  attribute.Distinct
	}
	var out []telemetry.OpenCalls
	index := map[key]int{}
	if a.final != nil {
		return nil
	}
	var c telemetry.Call
	err := a.shared.eachOpen(func(e entry) {
		t, l := a.byID[e.head.Target], a.byNumber(e.head.Instrumentor)
		c.Reset()
		if t == nil || l == nil || l.spec.Decode(e.raw, noImage{}, &c) != nil {
			return
		}
		attrs := cloneAttrs(c.Attrs[:l.spec.Active])
		set := attribute.NewSet(attrs...)
		k := key{t.telemetry, l.spec.Metric, set.Equivalent()}
		i, ok := index[k]
		if !ok {
			i = len(out)
			index[k] = i
			out = append(out, telemetry.OpenCalls{Target: t.telemetry, Metric: l.spec.Metric, Attrs: attrs})
		}
		out[i].Count++
	})
	if err != nil {
		a.log.Warn("open calls could not be counted", "error", err)
	}
	return out
}
