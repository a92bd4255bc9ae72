package telemetry

import (
	"context"
	"fmt"
	"log/slog"
	"time"

	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/exporters/otlp/otlpmetric/otlpmetricgrpc"
	"go.opentelemetry.io/otel/sdk/instrumentation"
	"go.opentelemetry.io/otel/sdk/metric/metricdata"
	"go.opentelemetry.io/otel/sdk/resource"
	"go.opentelemetry.io/otel/semconv/v1.43.0"
	"google.golang.org/grpc"
)

// MetricOptions say where metrics go and how often.
type MetricOptions struct {
	Endpoint string        // URL; empty: OTEL_EXPORTER_OTLP_* or its default
	Interval time.Duration // default 60 s, as OTEL_METRIC_EXPORT_INTERVAL's
}

const defaultInterval = time.Minute

// metricExporter sends cumulative metrics, one resource per target, at an interval.
type metricExporter struct {
	exporter *otlpmetricgrpc.Exporter
	pipeline *Pipeline
	start    time.Time
	health   collectorHealth
	ctx      context.Context // of the periodic exports; ends with close
	cancel   context.CancelFunc
	done     chan struct{}
}

func newMetricExporter(opts MetricOptions, p *Pipeline, log *slog.Logger) (*metricExporter, error) {
	e := &metricExporter{
		pipeline: p, start: time.Now(), done: make(chan struct{}),
		health: collectorHealth{log: log, what: "metrics"},
	}
	e.ctx, e.cancel = context.WithCancel(context.Background())
	options := []otlpmetricgrpc.Option{
		otlpmetricgrpc.WithDialOption(grpc.WithChainUnaryInterceptor(
			func(ctx context.Context, method string, req, reply any, cc *grpc.ClientConn, invoke grpc.UnaryInvoker, opts ...grpc.CallOption) error {
				err := invoke(ctx, method, req, reply, cc, opts...)
				e.health.attempt(cc.Target(), err, 0)
				return err
			})),
	}
	if opts.Endpoint != "" {
		options = append(options, otlpmetricgrpc.WithEndpointURL(opts.Endpoint))
	}
	var err error
	if e.exporter, err = otlpmetricgrpc.New(context.Background(), options...); err != nil {
		return nil, fmt.Errorf("OTLP endpoint %q: %w", opts.Endpoint, err)
	}
	interval := opts.Interval
	if interval <= 0 {
		interval = defaultInterval
	}
	go e.run(interval)
	return e, nil
}

func (e *metricExporter) run(interval time.Duration) {
	defer close(e.done)
	tick := time.NewTicker(interval)
	defer tick.Stop()
	for {
		select {
		case <-tick.C:
			e.export(e.ctx)
		case <-e.ctx.Done():
			return
		}
	}
}

func (e *metricExporter) export(ctx context.Context) {
	for _, rm := range e.pipeline.collect(e.start) {
		if err := e.exporter.Export(ctx, rm); err != nil {
			e.health.lost(1, err)
			if ctx.Err() != nil {
				return
			}
		}
	}
}

func (e *metricExporter) close(ctx context.Context) {
	e.cancel() // one that is on its way is repeated below, with all that came since
	select {
	case <-e.done:
	case <-ctx.Done():
	}
	e.export(ctx)
	_ = e.exporter.Shutdown(ctx)
}

// collect copies the state of all targets, and of zerospan itself, into the SDK's data model.
func (p *Pipeline) collect(start time.Time) []*metricdata.ResourceMetrics {
	open := p.openCalls()
	balance := p.Balance()
	now := time.Now()
	p.mu.Lock()
	defer p.mu.Unlock()
	var out []*metricdata.ResourceMetrics
	for _, t := range p.targets {
		if t.metrics != Exported {
			continue
		}
		var metrics []metricdata.Metrics
		for _, r := range t.red.metrics {
			h := metricdata.Histogram[float64]{Temporality: metricdata.CumulativeTemporality}
			for _, s := range r.sorted() {
				h.DataPoints = append(h.DataPoints, metricdata.HistogramDataPoint[float64]{
					Attributes: attribute.NewSet(s.attrs...), StartTime: r.start, Time: now,
					Count: s.count, Sum: s.sum.Seconds(), Bounds: r.Bounds, BucketCounts: append([]uint64(nil), s.counts...),
				})
			}
			metrics = append(metrics, metricdata.Metrics{Name: r.Name, Description: r.Description, Unit: "s", Data: h})
		}
		active := map[*Metric]*metricdata.Sum[int64]{}
		for _, o := range t.openNow(open, now) {
			s := active[o.Metric]
			if s == nil {
				s = &metricdata.Sum[int64]{Temporality: metricdata.CumulativeTemporality}
				active[o.Metric] = s
			}
			s.DataPoints = append(s.DataPoints, metricdata.DataPoint[int64]{
				Attributes: attribute.NewSet(o.Attrs...), StartTime: start, Time: now, Value: o.Count,
			})
		}
		for m, s := range active {
			metrics = append(metrics, metricdata.Metrics{
				Name: m.Active, Description: "Number of calls that are open.", Unit: "{request}", Data: *s,
			})
		}
		if len(metrics) > 0 {
			out = append(out, resourceMetrics(t.Resource, metrics))
		}
	}
	self := []attribute.KeyValue{semconv.ServiceName("zerospan"), semconv.ServiceVersion(Version)}
	var metrics []metricdata.Metrics
	for _, v := range balance.values() {
		data := metricdata.DataPoint[int64]{Attributes: attribute.NewSet(v.attrs...), StartTime: start, Time: now, Value: int64(v.value)}
		last := len(metrics) - 1
		if last >= 0 && metrics[last].Name == v.name {
			s := metrics[last].Data.(metricdata.Sum[int64])
			s.DataPoints = append(s.DataPoints, data)
			metrics[last].Data = s
			continue
		}
		metrics = append(metrics, metricdata.Metrics{Name: v.name, Description: v.help, Unit: v.unit, Data: metricdata.Sum[int64]{
			Temporality: metricdata.CumulativeTemporality, IsMonotonic: !v.gauge, DataPoints: []metricdata.DataPoint[int64]{data},
		}})
	}
	return append(out, resourceMetrics(self, metrics))
}

// activeSeries is what a target had open calls of.
type activeSeries struct {
	attrs []attribute.KeyValue
	seen  time.Time // last
}

// openNow returns the target's open calls and, for a while, zeros for what was open
// before: a value that is left out would stay as it was. Beyond MaxSeries of a
// metric, calls are counted together.
func (t *Target) openNow(open []OpenCalls, now time.Time) (out []OpenCalls) {
	if t.active == nil {
		t.active = map[*Metric]map[attribute.Distinct]*activeSeries{}
	}
	overflow := map[*Metric]int{}
	for _, o := range open {
		if o.Target != t || o.Metric.Active == "" {
			continue
		}
		series := t.active[o.Metric]
		if series == nil {
			series = map[attribute.Distinct]*activeSeries{}
			t.active[o.Metric] = series
		}
		set := attribute.NewSet(o.Attrs...)
		key := set.Equivalent()
		known := series[key]
		if known == nil && len(series) >= MaxSeries {
			i, ok := overflow[o.Metric]
			if !ok {
				i = len(out)
				overflow[o.Metric] = i
				out = append(out, OpenCalls{Target: t, Metric: o.Metric, Attrs: []attribute.KeyValue{attribute.Bool("otel.metric.overflow", true)}})
			}
			out[i].Count += o.Count
			continue
		}
		if known == nil {
			known = &activeSeries{attrs: o.Attrs}
			series[key] = known
		}
		known.seen = now
		out = append(out, o)
	}
	for m, series := range t.active {
		for key, known := range series {
			switch {
			case known.seen.Equal(now):
			case now.Sub(known.seen) > seriesLifetime:
				delete(series, key)
			default:
				out = append(out, OpenCalls{Target: t, Metric: m, Attrs: known.attrs})
			}
		}
	}
	return out
}

func resourceMetrics(attrs []attribute.KeyValue, metrics []metricdata.Metrics) *metricdata.ResourceMetrics {
	return &metricdata.ResourceMetrics{
		Resource: resource.NewWithAttributes(semconv.SchemaURL, attrs...),
		ScopeMetrics: []metricdata.ScopeMetrics{{
			Scope: instrumentation.Scope{Name: "github.com/zerospan/zerospan", Version: Version}, Metrics: metrics,
		}},
	}
}

// openCalls asks the source, which may not be called under the lock: it reads maps.
func (p *Pipeline) openCalls() []OpenCalls {
	p.mu.Lock()
	s := p.source
	p.mu.Unlock()
	if s == nil {
		return nil
	}
	return s.OpenCalls()
}

// balanceValue is one term of the balance as a metric.
type balanceValue struct {
	name, help, unit string
	attrs            []attribute.KeyValue
	value            uint64
	gauge            bool
}

// values lists the balance's terms, those of one metric next to each other.
func (b Balance) values() []balanceValue {
	out := []balanceValue{
		{name: "zerospan.calls.started", help: "Calls whose start was seen.", unit: "{call}", value: b.Started},
		{name: "zerospan.calls.adopted", help: "Calls taken over from an earlier zerospan.", unit: "{call}", value: b.Adopted},
		{name: "zerospan.calls.completed", help: "Calls whose end was seen.", unit: "{call}", value: b.Completed},
		{name: "zerospan.calls.open", help: "Calls that are open.", unit: "{call}", value: b.Open, gauge: true},
	}
	for _, r := range []string{"target_exit", "evicted", "missed_end", "detached"} {
		out = append(out, balanceValue{
			name: "zerospan.calls.abandoned", help: "Calls whose end will not be seen.", unit: "{call}",
			attrs: []attribute.KeyValue{attribute.String("reason", r)}, value: b.Abandoned[r],
		})
	}
	out = append(out,
		balanceValue{name: "zerospan.spans.exported", help: "Completed calls that were delivered.", unit: "{span}", value: b.Exported},
		balanceValue{name: "zerospan.spans.sampled_out", help: "Completed calls without a span because of sampling.", unit: "{span}", value: b.SampledOut},
	)
	for _, r := range []string{"ring_full", "queue_full", "export_failed", "rejected", "malformed", "left_to_sdk"} {
		out = append(out, balanceValue{
			name: "zerospan.spans.dropped", help: "Completed calls whose span was lost.", unit: "{span}",
			attrs: []attribute.KeyValue{attribute.String("reason", r)}, value: b.Dropped[r],
		})
	}
	return append(out,
		balanceValue{name: "zerospan.spans.pending", help: "Spans on their way to the collector.", unit: "{span}", value: b.Pending, gauge: true},
		balanceValue{name: "zerospan.calls.unmatched", help: "Ends without a start: calls begun before the attach.", unit: "{call}", value: b.Unmatched},
		balanceValue{name: "zerospan.memory.faults", help: "Reads of a target's memory that failed.", unit: "{read}", value: b.Faults},
	)
}
