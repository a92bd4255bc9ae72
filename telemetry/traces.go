package telemetry

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"go.opentelemetry.io/otel/exporters/otlp/otlptrace"
	"go.opentelemetry.io/otel/exporters/otlp/otlptrace/otlptracegrpc"
	"go.opentelemetry.io/otel/semconv/v1.43.0"
	coltracepb "go.opentelemetry.io/proto/otlp/collector/trace/v1"
	commonpb "go.opentelemetry.io/proto/otlp/common/v1"
	tracepb "go.opentelemetry.io/proto/otlp/trace/v1"
	"google.golang.org/grpc"
	"google.golang.org/grpc/status"
)

// TraceOptions bounds what waits for the collector. The zero value means the defaults.
type TraceOptions struct {
	Endpoint string        // URL; empty: OTEL_EXPORTER_OTLP_* or its default
	Queue    int           // spans that may wait (default 32768)
	Batch    int           // spans in one request (default 2048)
	Delay    time.Duration // how long a span waits for company (default 1 s)
}

const (
	defaultQueue = 32768
	defaultBatch = 2048
	defaultDelay = time.Second
	firstDelay   = 200 * time.Millisecond

	maxBatchBytes   = 1 << 20 // collectors refuse messages of more than 4 MiB
	maxRequestBytes = 2 << 20
)

// spanBatch is encoded spans of one target and scope.
type spanBatch struct {
	target *Target
	scope  string
	spans  int
	buf    []byte
	since  time.Time

	doubled bool // an SDK in the target makes spans of these calls as well
}

// traceExporter takes encoded spans and hands them to a collector. Its queue is
// bounded; what does not fit or is refused is counted by reason.
type traceExporter struct {
	opts   TraceOptions
	client otlptrace.Client
	log    *slog.Logger
	scopes map[string]*commonpb.InstrumentationScope

	open   []*spanBatch // being filled; guarded by the pipeline's lock
	queue  chan *spanBatch
	free   sync.Pool
	queued atomic.Int64
	begun  atomic.Bool // the first batch went out

	exported atomic.Uint64
	full     atomic.Uint64
	failed   atomic.Uint64
	rejected atomic.Uint64

	health collectorHealth
	done   chan struct{}
	ctx    context.Context
	cancel context.CancelFunc
}

func newTraceExporter(opts TraceOptions, log *slog.Logger) (*traceExporter, error) {
	if opts.Queue <= 0 {
		opts.Queue = defaultQueue
	}
	if opts.Batch <= 0 {
		opts.Batch = defaultBatch
	}
	opts.Batch = min(opts.Batch, opts.Queue)
	if opts.Delay <= 0 {
		opts.Delay = defaultDelay
	}
	e := &traceExporter{
		opts: opts, log: log, scopes: map[string]*commonpb.InstrumentationScope{},
		queue: make(chan *spanBatch, 1024), done: make(chan struct{}),
		health: collectorHealth{log: log, what: "spans"},
	}
	e.ctx, e.cancel = context.WithCancel(context.Background())
	options := []otlptracegrpc.Option{
		otlptracegrpc.WithRetry(otlptracegrpc.RetryConfig{
			Enabled: true, InitialInterval: 500 * time.Millisecond, MaxInterval: 5 * time.Second, MaxElapsedTime: time.Minute,
		}),
		otlptracegrpc.WithDialOption(grpc.WithChainUnaryInterceptor(e.observe)),
	}
	if opts.Endpoint != "" {
		options = append(options, otlptracegrpc.WithEndpointURL(opts.Endpoint))
	}
	e.client = otlptracegrpc.NewClient(options...)
	if err := e.client.Start(e.ctx); err != nil {
		return nil, fmt.Errorf("OTLP endpoint %q: %w", opts.Endpoint, err)
	}
	go e.run()
	return e, nil
}

// rejectedKey is the context key of where observe leaves the number of spans that
// the collector refused: UploadTraces only has it in an error's text.
type rejectedKey struct{}

func (e *traceExporter) observe(ctx context.Context, method string, req, reply any, cc *grpc.ClientConn, invoke grpc.UnaryInvoker, opts ...grpc.CallOption) error {
	err := invoke(ctx, method, req, reply, cc, opts...)
	e.health.attempt(cc.Target(), err, e.queued.Load())
	if r, ok := reply.(*coltracepb.ExportTraceServiceResponse); ok && err == nil {
		if n, ok := ctx.Value(rejectedKey{}).(*int64); ok {
			*n = r.GetPartialSuccess().GetRejectedSpans()
			if *n > 0 {
				e.log.Warn("collector rejected spans", "rejected", *n, "message", r.GetPartialSuccess().GetErrorMessage())
			}
		}
	}
	return err
}

// add encodes c; the pipeline's lock is held.
func (e *traceExporter) add(t *Target, scope string, c *Call, guess string) {
	var b *spanBatch
	for _, open := range t.open {
		if open.scope == scope && open.doubled == c.doubled() {
			b = open
		}
	}
	if b == nil {
		b, _ = e.free.Get().(*spanBatch)
		if b == nil {
			b = &spanBatch{}
		}
		b.target, b.scope, b.doubled, b.spans, b.buf, b.since = t, scope, c.doubled(), 0, b.buf[:0], time.Now()
		t.open = append(t.open, b)
		e.open = append(e.open, b)
	}
	if t.spans.waits() && (b.spans >= e.opts.Batch || len(b.buf) >= maxBatchBytes) {
		e.full.Add(1)
		return
	}
	b.buf = appendSpan(b.buf, c, guess)
	b.spans++
	if !t.spans.waits() && (b.spans >= e.opts.Batch || len(b.buf) >= maxBatchBytes) {
		e.push(b)
	}
}

// aside encodes a span that the balance does not know.
func (e *traceExporter) aside(t *Target, scope string, c *Call) {
	b := &spanBatch{target: t, scope: scope, spans: 0, buf: appendSpan(nil, c, "")}
	select {
	case e.queue <- b:
	default: // an aside is not worth a place that a call could have
	}
}

// push moves a batch to the queue, or drops it when too many spans wait.
func (e *traceExporter) push(b *spanBatch) {
	e.take(b)
	n := int64(b.spans)
	if e.queued.Add(n) > int64(e.opts.Queue) {
		e.drop(b)
		return
	}
	select {
	case e.queue <- b:
	default:
		e.drop(b)
	}
}

// take removes a batch from those that are being filled.
func (e *traceExporter) take(b *spanBatch) {
	is := func(open *spanBatch) bool { return open == b }
	e.open = slices.DeleteFunc(e.open, is)
	b.target.open = slices.DeleteFunc(b.target.open, is)
}

// discard forgets the spans of a target that are not queued yet, of all calls or of
// those that the target's SDK sees too, and counts them.
func (e *traceExporter) discard(t *Target, all bool) (spans uint64) {
	for _, b := range slices.Clone(t.open) {
		if all || b.doubled {
			spans += uint64(b.spans)
			e.take(b)
			e.free.Put(b)
		}
	}
	return spans
}

func (e *traceExporter) drop(b *spanBatch) {
	e.queued.Add(-int64(b.spans))
	e.full.Add(uint64(b.spans))
	e.free.Put(b)
}

// tick pushes what has waited long enough; the pipeline's lock is held.
func (e *traceExporter) tick(now time.Time, all bool) {
	delay := e.opts.Delay
	if !e.begun.Load() {
		delay = min(delay, firstDelay)
	}
	for i := len(e.open) - 1; i >= 0; i-- {
		if e.open[i].target.spans.waits() && !all {
			continue
		}
		if all || now.Sub(e.open[i].since) >= delay {
			e.begun.Store(true)
			e.push(e.open[i])
		}
	}
}

// pending is the number of spans that are neither exported nor dropped.
func (e *traceExporter) pending() int64 {
	n := e.queued.Load()
	for _, b := range e.open {
		n += int64(b.spans)
	}
	return n
}

func (e *traceExporter) run() {
	defer close(e.done)
	var batches []*spanBatch
	for b := range e.queue {
		batches = append(batches[:0], b)
		size := len(b.buf)
	more:
		for size < maxRequestBytes-maxBatchBytes {
			select {
			case b, ok := <-e.queue:
				if !ok {
					break more
				}
				batches = append(batches, b)
				size += len(b.buf)
			default:
				break more
			}
		}
		e.upload(batches)
	}
}

func (e *traceExporter) upload(batches []*spanBatch) {
	var spans int64
	request := make([]*tracepb.ResourceSpans, 0, len(batches))
	for _, b := range batches {
		scope := e.scopes[b.scope]
		if scope == nil {
			scope = &commonpb.InstrumentationScope{Name: b.scope, Version: Version}
			e.scopes[b.scope] = scope
		}
		ss := &tracepb.ScopeSpans{Scope: scope, SchemaUrl: semconv.SchemaURL}
		// The spans are in wire format already; a message carries fields that it
		// does not know unchanged, which for the receiver are the spans.
		ss.ProtoReflect().SetUnknown(b.buf)
		request = append(request, &tracepb.ResourceSpans{
			Resource: b.target.proto, ScopeSpans: []*tracepb.ScopeSpans{ss}, SchemaUrl: semconv.SchemaURL,
		})
		spans += int64(b.spans)
	}
	var rejected int64
	err := e.client.UploadTraces(context.WithValue(e.ctx, rejectedKey{}, &rejected), request)
	switch {
	case rejected > 0:
		rejected = min(rejected, spans)
		e.rejected.Add(uint64(rejected))
		e.exported.Add(uint64(spans - rejected))
	case err != nil && !partial(err):
		e.failed.Add(uint64(spans))
		e.health.lost(spans, err)
	default:
		e.exported.Add(uint64(spans))
	}
	e.queued.Add(-spans)
	for _, b := range batches {
		b.target = nil
		e.free.Put(b)
	}
}

// partial tells the error that UploadTraces makes of a partial success without
// rejected spans (a warning) from a failure, which carries a gRPC status.
func partial(err error) bool {
	if errors.Is(err, context.DeadlineExceeded) || errors.Is(err, context.Canceled) {
		return false
	}
	_, isStatus := status.FromError(err)
	return !isStatus
}

// close sends what is queued and gives up at ctx's end; what is left then counts as failed.
func (e *traceExporter) close(ctx context.Context) {
	close(e.queue)
	select {
	case <-e.done:
	case <-ctx.Done():
		e.cancel()
		<-e.done
	}
	e.cancel()
	stop, cancel := context.WithTimeout(context.Background(), time.Second)
	defer cancel()
	_ = e.client.Stop(stop)
}

// collectorHealth logs when a collector stops and starts to answer, not every failure.
type collectorHealth struct {
	log  *slog.Logger
	what string

	mu     sync.Mutex
	down   bool
	logged time.Time
	count  int64
}

const healthLogInterval = 30 * time.Second

func (h *collectorHealth) attempt(target string, err error, waiting int64) {
	h.mu.Lock()
	defer h.mu.Unlock()
	switch {
	case err == nil && h.down:
		h.down = false
		h.log.Info("collector answers again", "endpoint", target)
	case err != nil && !h.down:
		h.down, h.logged = true, time.Now()
		h.log.Warn("collector does not take "+h.what+": retrying; is it running and is --otlp-endpoint right?",
			"endpoint", target, "error", status.Convert(err).Message(), "waiting", waiting)
	}
}

func (h *collectorHealth) lost(n int64, err error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.count += n
	if time.Since(h.logged) < healthLogInterval {
		return
	}
	h.logged = time.Now()
	h.log.Warn(h.what+" dropped: the collector did not take them", "dropped", h.count, "error", status.Convert(err).Message())
}
