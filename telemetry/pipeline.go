package telemetry

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"strings"
	"sync"
	"time"

	"go.opentelemetry.io/otel/attribute"
)

// Options say where telemetry goes.
type Options struct {
	Sampler Sampler
	Traces  *TraceOptions  // nil: no spans to a collector
	Metrics *MetricOptions // nil: no metrics to a collector
	Print   Format
	Stdout  io.Writer
	Log     *slog.Logger
}

// Pipeline takes calls from the one goroutine that reads them and serves
// exporters and scrapers that run beside it.
type Pipeline struct {
	opts    Options
	traces  *traceExporter
	metrics *metricExporter
	printer *printer

	mu         sync.Mutex
	targets    []*Target
	gone       []departed
	summary    summary
	sampledOut uint64
	left       uint64 // spans that were left to a target's own SDK
	kept       uint64 // sampled calls without a collector to send them to
	folded     uint64
	malformed  uint64
	source     Source
}

type departed struct {
	target *Target
	at     time.Time
}

// seriesLifetime is how long a vanished target's series are still reported.
const seriesLifetime = 5 * time.Minute

// Source is what knows the calls that are not finished.
type Source interface {
	// Balance fills in what the kernel side counted.
	Balance(*Balance)
	// OpenCalls returns how many calls are open, by target and metric attributes.
	OpenCalls() []OpenCalls
}

// OpenCalls is one value of an active-requests counter.
type OpenCalls struct {
	Target *Target
	Metric *Metric
	Attrs  []attribute.KeyValue
	Count  int64
}

// NewPipeline starts the exporters.
func NewPipeline(opts Options) (*Pipeline, error) {
	p := &Pipeline{opts: opts}
	if opts.Print != PrintNone && opts.Print != "" {
		p.printer = newPrinter(opts.Print, opts.Stdout)
	}
	var err error
	if opts.Traces != nil {
		if p.traces, err = newTraceExporter(*opts.Traces, opts.Log); err != nil {
			return nil, err
		}
	}
	if opts.Metrics != nil {
		if p.metrics, err = newMetricExporter(*opts.Metrics, p, opts.Log); err != nil {
			return nil, err
		}
	}
	return p, nil
}

// SetSource tells the pipeline whom to ask for open calls; before it, there are none.
func (p *Pipeline) SetSource(s Source) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.source = s
}

// AddTarget makes a target known to scrapers.
func (p *Pipeline) AddTarget(t *Target) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.targets = append(p.targets, t)
}

// RemoveTarget keeps a vanished target's series for a while.
func (p *Pipeline) RemoveTarget(t *Target) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.gone = append(p.gone, departed{t, time.Now()})
}

// Record takes a finished call. scope names its instrumentation scope.
func (p *Pipeline) Record(t *Target, m *Metric, instrumentor, scope string, c *Call) {
	p.mu.Lock()
	defer p.mu.Unlock()
	guess := ""
	if c.Route == "" && c.Path != "" {
		guess = t.guesser(c.Kind).guess(c.Path)
	}
	t.called = true
	t.red.observe(m, c.Attrs[:c.Dims], c.End-c.Start)
	p.summary.observe(t, c, guess)
	if p.printer != nil {
		p.printer.print(t, instrumentor, c, guess)
	}
	if t.spans.links() && !c.ParentSDK && !c.ParentRemote {
		c.ParentID = [8]byte{} // a call of which there is no span
	}
	switch {
	case t.leaves(c):
		p.left++
	case !p.opts.Sampler.sample(c):
		p.sampledOut++
	case p.traces == nil:
		p.kept++
	default:
		p.traces.add(t, scope, c, guess)
	}
}

// Aside exports a span that is no call of its own (a note on one that hangs);
// it does not enter the balance's equations. The caller has asked Samples of the
// call that it belongs to.
func (p *Pipeline) Aside(t *Target, scope string, c *Call) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.traces == nil || t.spans != Exported {
		return // its call's span may be left to the target
	}
	p.traces.aside(t, scope, c)
}

// Samples reports whether the call's span will be exported.
func (p *Pipeline) Samples(c *Call) bool { return p.opts.Sampler.sample(c) }

// Fold adds calls of which the kernel only kept status class and duration.
func (p *Pipeline) Fold(t *Target, m *Metric, attrs []attribute.KeyValue, bucket int, count uint64, sum time.Duration) {
	p.mu.Lock()
	defer p.mu.Unlock()
	t.red.fold(m, attrs, bucket, count, sum)
	p.folded += count
}

// Malformed counts a record that could not be decoded.
func (p *Pipeline) Malformed() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.malformed++
}

// Tick writes out what waits: printed lines at once, spans when they are due.
func (p *Pipeline) Tick(now time.Time) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.printer != nil {
		p.printer.flush()
		if n := p.printer.failed; n >= p.printer.tellAt {
			p.opts.Log.Warn("lines could not be written to standard output", "error", p.printer.err, "count", n)
			p.printer.tellAt = n + 100000
		}
	}
	if p.traces != nil {
		p.traces.tick(now, false)
	}
	for len(p.gone) > 0 && now.Sub(p.gone[0].at) > seriesLifetime {
		for i, t := range p.targets {
			if t == p.gone[0].target {
				p.targets = append(p.targets[:i], p.targets[i+1:]...)
				break
			}
		}
		p.gone = p.gone[1:]
	}
}

// Balance returns the books as they stand.
func (p *Pipeline) Balance() Balance {
	b := Balance{Abandoned: map[string]uint64{}, Dropped: map[string]uint64{}}
	p.mu.Lock()
	source := p.source
	p.mu.Unlock()
	if source != nil { // not under the lock: it has one of its own, under which it records
		source.Balance(&b)
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	b.Exported = p.kept
	b.SampledOut = p.sampledOut
	b.Dropped["ring_full"] += p.folded
	b.Dropped["malformed"] += p.malformed
	b.Dropped["left_to_sdk"] += p.left
	if e := p.traces; e != nil {
		b.Exported += e.exported.Load()
		b.Dropped["queue_full"] += e.full.Load()
		b.Dropped["export_failed"] += e.failed.Load()
		b.Dropped["rejected"] += e.rejected.Load()
		b.Pending = uint64(max(e.pending(), 0))
	}
	return b
}

// Close exports what is left within ctx.
func (p *Pipeline) Close(ctx context.Context) {
	p.mu.Lock()
	for _, t := range p.targets { // there is no more time to find out
		if t.metrics.waits() {
			t.metrics = Exported
		}
	}
	if p.traces != nil {
		p.traces.tick(time.Now(), true)
	}
	if p.printer != nil {
		p.printer.flush()
	}
	p.mu.Unlock()
	var wg sync.WaitGroup
	if p.metrics != nil {
		wg.Go(func() { p.metrics.close(ctx) })
	}
	if p.traces != nil {
		wg.Go(func() { p.traces.close(ctx) })
	}
	wg.Wait()
}

// WriteSummary prints the table of routes and the balance.
func (p *Pipeline) WriteSummary(w io.Writer) {
	b := p.Balance()
	var s strings.Builder
	p.mu.Lock()
	p.summary.write(&s)
	p.mu.Unlock()
	fmt.Fprintln(w)
	fmt.Fprint(w, s.String())
	b.Write(w)
}
