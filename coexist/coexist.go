// Package coexist tells whether a process exports telemetry by itself, through
// the OpenTelemetry SDK for Go. That the SDK is linked in says little, since many
// programs carry it unconfigured: what counts is whether it runs.
package coexist

import (
	"errors"
	"fmt"
	"strconv"
	"time"

	"github.com/cilium/ebpf"

	"github.com/zerospan/zerospan/bpf"
	"github.com/zerospan/zerospan/offsets"
)

// Signal is what an SDK exports.
type Signal string

// The signals that are told apart.
const (
	Traces  Signal = "traces"
	Metrics Signal = "metrics"
)

const sdk = "go.opentelemetry.io/otel/sdk/"

// functions run when the SDK hands on what it has collected: span processors, of
// which the batching one comes by every five seconds even without spans (then it
// does not count), and readers of metrics. The names are the
// same in v1.0 and v1.47 of the SDK (metrics: v1.28 and v1.47).
var functions = []struct {
	signal        Signal
	program, name string
}{
	{Traces, "batches", sdk + "trace.(*batchSpanProcessor).exportSpans"},
	{Traces, "traces", sdk + "trace.(*simpleSpanProcessor).OnEnd"},
	{Metrics, "metrics", sdk + "metric.(*PeriodicReader).collectAndExport"},
	{Metrics, "metrics", sdk + "metric.(*ManualReader).Collect"},
}

// Site is where a signal's exports are seen.
type Site struct {
	Signal  Signal
	Program string // that counts them
	offsets.Site
}

// Plan is what is known of the SDK in a binary.
type Plan struct {
	Sites []Site
	Link  *Link // nil: its spans can't be found in contexts

	batch uint32 // offset of the spans that a batch processor has collected
}

// Has tells whether the SDK for a signal is linked in.
func (p *Plan) Has(s Signal) bool {
	for _, site := range p.Sites {
		if site.Signal == s {
			return true
		}
	}
	return false
}

// Link is where a context holds the SDK's current span.
type Link struct {
	Key  offsets.Addr   // the descriptor of its key's type
	Span []offsets.Addr // those of the span
	bpf.SharedGoSdk
}

// MakePlan looks for the SDK in a binary.
func MakePlan(b *offsets.Binary) (*Plan, error) {
	var names []string
	for _, f := range functions {
		names = append(names, f.name)
	}
	found, err := b.Functions(names)
	if err != nil {
		return nil, err
	}
	p := &Plan{}
	for _, f := range functions {
		fn, ok := found[f.name]
		if !ok {
			continue
		}
		sites, err := b.Sites(fn, offsets.AtEntry())
		if err != nil {
			return nil, err
		}
		p.Sites = append(p.Sites, Site{f.signal, f.program, sites[0]})
	}
	if p.Has(Traces) {
		p.Link = makeLink(b)
	}
	// Absent: any run of a batch processor counts.
	b.Resolve(offsets.Field{Into: &p.batch, Paths: []string{sdk + "trace.batchSpanProcessor.batch"}})
	return p, nil
}

func makeLink(b *offsets.Binary) *Link {
	const span = sdk + "trace.recordingSpan"
	keyType, ok := b.NamedType("go.opentelemetry.io/otel/trace.traceContextKeyType")
	recording, ok2 := b.Struct(span)
	if !ok || !ok2 {
		return nil
	}
	types := []offsets.Type{recording}
	b.AddPointers(types)
	l := &Link{Key: keyType, Span: types[0].Addrs}
	var key uint32
	for path, into := range map[string]*uint32{
		"context.valueCtx.key":        &key, // follows the context: programs read both at once
		"context.valueCtx.val":        &l.ValueVal,
		span + ".spanContext.traceID": &l.TraceId, span + ".spanContext.spanID": &l.SpanId,
		span + ".spanContext.traceFlags": &l.TraceFlags, span + ".spanKind": &l.SpanKind,
	} {
		if r := b.Resolve(offsets.Field{Into: into, Paths: []string{path}}); r.Err != nil {
			return nil
		}
	}
	if key != 16 {
		return nil
	}
	return l
}

// Window returns for how long a span processor may be silent: the SDK's delay
// between batches, which the process may have set (environ's
// OTEL_BSP_SCHEDULE_DELAY, in ms), and a second.
func Window(s Signal, environ map[string]string) time.Duration {
	name, usual, most := "OTEL_BSP_SCHEDULE_DELAY", 5*time.Second, time.Minute
	if s == Metrics {
		name, usual, most = "OTEL_METRIC_EXPORT_INTERVAL", time.Minute, 5*time.Minute
	}
	if ms, err := strconv.Atoi(environ[name]); err == nil && ms > 0 {
		usual = min(time.Duration(ms)*time.Millisecond, most)
	}
	return usual + time.Second
}

// Watcher counts exports; one for all targets.
type Watcher struct {
	coll *ebpf.Collection
}

// NewWatcher loads the programs. prepare fits them to the kernel and returns the
// maps that they share with others.
func NewWatcher(prepare func(*ebpf.CollectionSpec) (map[string]*ebpf.Map, error)) (*Watcher, error) {
	spec, err := loadProbe()
	if err != nil {
		return nil, err
	}
	shared, err := prepare(spec)
	if err != nil {
		return nil, err
	}
	coll, err := ebpf.NewCollectionWithOptions(spec, ebpf.CollectionOptions{MapReplacements: shared})
	if err != nil {
		return nil, fmt.Errorf("watch for exports of the OpenTelemetry SDK: %w", err)
	}
	return &Watcher{coll}, nil
}

// Program returns the program of a site.
func (w *Watcher) Program(s Site) *ebpf.Program { return w.coll.Programs[s.Program] }

// Add begins to count for a target.
func (w *Watcher) Add(target uint32, p *Plan) error {
	return w.coll.Maps["exported"].Put(target, probeExports{Batch: p.batch})
}

// Remove ends it.
func (w *Watcher) Remove(target uint32) {
	_ = w.coll.Maps["exported"].Delete(target) // what is not there is as good as deleted
}

// Exports returns how often a target has exported each signal.
func (w *Watcher) Exports(target uint32) (map[Signal]uint64, error) {
	var e probeExports
	if err := w.coll.Maps["exported"].Lookup(target, &e); err != nil {
		if errors.Is(err, ebpf.ErrKeyNotExist) {
			return nil, nil
		}
		return nil, fmt.Errorf("read exports: %w", err)
	}
	return map[Signal]uint64{Traces: e.Traces, Metrics: e.Metrics}, nil
}

// Close gives the programs back.
func (w *Watcher) Close() { w.coll.Close() }
