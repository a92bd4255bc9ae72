package telemetry

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"go.opentelemetry.io/otel/attribute"
	colmetricspb "go.opentelemetry.io/proto/otlp/collector/metrics/v1"
	coltracepb "go.opentelemetry.io/proto/otlp/collector/trace/v1"
	commonpb "go.opentelemetry.io/proto/otlp/common/v1"
	metricspb "go.opentelemetry.io/proto/otlp/metrics/v1"
	tracepb "go.opentelemetry.io/proto/otlp/trace/v1"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
)

func sampleCall() *Call {
	return &Call{
		Kind: KindServer, Operation: "GET", Route: "/items/{id}", Start: 1_700_000_000_000_000_000, End: 1_700_000_000_001_000_000,
		TraceID: [16]byte{1, 2, 3}, SpanID: [8]byte{4}, ParentID: [8]byte{5}, ParentRemote: true, Decided: true, TraceFlags: 1, Status: 200,
		Attrs: []attribute.KeyValue{
			attribute.String("http.request.method", "GET"), attribute.Int("http.response.status_code", 200),
			attribute.String("url.path", "/items/7"), attribute.Bool("zerospan.http.hijacked", true), attribute.Int64("negative", -3),
		},
		Dims: 2,
	}
}

// TestSpanIsOTLP parses the hand-made bytes with the generated code.
func TestSpanIsOTLP(t *testing.T) {
	c := sampleCall()
	c.Error = true
	var ss tracepb.ScopeSpans
	if err := proto.Unmarshal(appendSpan(appendSpan(nil, c, ""), &Call{Kind: KindClient, Operation: "PUT"}, "/guess"), &ss); err != nil {
		t.Fatal(err)
	}
	str := func(s string) *commonpb.AnyValue {
		return &commonpb.AnyValue{Value: &commonpb.AnyValue_StringValue{StringValue: s}}
	}
	num := func(i int64) *commonpb.AnyValue {
		return &commonpb.AnyValue{Value: &commonpb.AnyValue_IntValue{IntValue: i}}
	}
	want := &tracepb.ScopeSpans{Spans: []*tracepb.Span{{
		TraceId: c.TraceID[:], SpanId: c.SpanID[:], ParentSpanId: c.ParentID[:], Name: "GET /items/{id}", Kind: tracepb.Span_SPAN_KIND_SERVER,
		StartTimeUnixNano: uint64(c.Start), EndTimeUnixNano: uint64(c.End), Flags: 0x301, Status: &tracepb.Status{Code: tracepb.Status_STATUS_CODE_ERROR},
		Attributes: []*commonpb.KeyValue{
			{Key: "http.request.method", Value: str("GET")}, {Key: "http.response.status_code", Value: num(200)}, {Key: "url.path", Value: str("/items/7")},
			{Key: "zerospan.http.hijacked", Value: &commonpb.AnyValue{Value: &commonpb.AnyValue_BoolValue{BoolValue: true}}}, {Key: "negative", Value: num(-3)},
		},
	}, {
		TraceId: make([]byte, 16), SpanId: make([]byte, 8), Name: "PUT /guess", Kind: tracepb.Span_SPAN_KIND_CLIENT, Flags: 1,
		Attributes: []*commonpb.KeyValue{{Key: "zerospan.route.guess", Value: str("/guess")}},
	}}}
	if !proto.Equal(&ss, want) {
		t.Errorf("got  %v\nwant %v", &ss, want)
	}
}

func TestRoutes(t *testing.T) {
	var g routeGuesser
	for path, want := range map[string]string{
		"/": "/", "": "/", "/items": "/items", "/items/7": "/items/{id}", "/u/3f2b8c1e-0a4d-4c8e-9b1a-7d5e6f708192/x": "/u/{id}/x", "//a//b": "/a/b",
	} {
		if got := g.guess(path); got != want {
			t.Errorf("%q: %q, want %q", path, got, want)
		}
	}
	names := map[string]bool{}
	for i := range 100_000 {
		names[g.guess(fmt.Sprintf("/x%c%c%c/y%c%c", 'a'+i%26, 'a'+i/26%26, 'a'+i/676%26, 'a'+i/3%26, 'a'+i/5%26))] = true
	}
	if len(names) > maxRouteNodes+1 {
		t.Errorf("%d names: the bound is %d", len(names), maxRouteNodes)
	}
	if g.Overflow == 0 && g.root.any == nil {
		t.Error("the bound was never reached")
	}
}

func TestSampler(t *testing.T) {
	s, err := NewSampler("parentbased_traceidratio", "0.25")
	if err != nil {
		t.Fatal(err)
	}
	n := 0
	c := sampleCall()
	c.ParentID, c.Decided = [8]byte{}, false
	for i := range 4096 {
		c.TraceID[8], c.TraceID[9] = byte(i>>4), byte(i<<4)
		if s.sample(c) {
			n++
		}
	}
	if n != 1024 {
		t.Errorf("%d of 4096 sampled, want a quarter", n)
	}
	c.ParentID, c.Decided, c.TraceFlags = [8]byte{1}, true, 0
	if s.sample(c) {
		t.Error("the caller's decision not to sample was ignored")
	}
	for _, bad := range []string{"2", "-1", "x", "NaN"} {
		if _, err := NewSampler("traceidratio", bad); err == nil {
			t.Errorf("ratio %s was accepted", bad)
		}
	}
}

func TestSeriesAreBounded(t *testing.T) {
	var table redTable
	m := &Metric{Name: "m", Bounds: HTTPBounds}
	for i := range 3 * MaxSeries {
		table.observe(m, []attribute.KeyValue{attribute.Int("i", i)}, 1e6)
	}
	r := table.metrics[0]
	if len(r.series) != MaxSeries+1 || r.series["overflow"].count != 2*MaxSeries {
		t.Errorf("%d series, %d calls in the overflow", len(r.series), r.series["overflow"].count)
	}
}

// collector is a real OTLP server whose answers the test decides.
type collector struct {
	coltracepb.UnimplementedTraceServiceServer
	mu     sync.Mutex
	spans  []*tracepb.Span
	answer func(n int) (*coltracepb.ExportTraceServiceResponse, error)
	tries  int
}

func (c *collector) Export(_ context.Context, r *coltracepb.ExportTraceServiceRequest) (*coltracepb.ExportTraceServiceResponse, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.tries++
	n := 0
	for _, rs := range r.ResourceSpans {
		for _, ss := range rs.ScopeSpans {
			n += len(ss.Spans)
		}
	}
	if c.answer != nil {
		if resp, err := c.answer(n); resp != nil || err != nil {
			return resp, err
		}
	}
	for _, rs := range r.ResourceSpans {
		for _, ss := range rs.ScopeSpans {
			c.spans = append(c.spans, ss.Spans...)
		}
	}
	return &coltracepb.ExportTraceServiceResponse{}, nil
}

func serve(t *testing.T, c *collector) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	s := grpc.NewServer()
	coltracepb.RegisterTraceServiceServer(s, c)
	go s.Serve(l)
	t.Cleanup(s.Stop)
	return "http://" + l.Addr().String()
}

// fixed is a Source of which only the completed calls matter.
type fixed struct{ completed uint64 }

func (f *fixed) Balance(b *Balance)     { b.Started, b.Completed = f.completed, f.completed }
func (f *fixed) OpenCalls() []OpenCalls { return nil }

func send(t *testing.T, endpoint string, n int, opts TraceOptions, log io.Writer, timeout time.Duration) Balance {
	t.Helper()
	opts.Endpoint = endpoint
	sampler, err := NewSampler("", "")
	if err != nil {
		t.Fatal(err)
	}
	p, err := NewPipeline(Options{Sampler: sampler, Traces: &opts, Print: PrintNone, Log: slog.New(slog.NewTextHandler(log, nil))})
	if err != nil {
		t.Fatal(err)
	}
	p.SetSource(&fixed{uint64(n)})
	target := NewTarget(1, "shop", []attribute.KeyValue{attribute.String("service.name", "shop")})
	p.AddTarget(target)
	m := &Metric{Name: "m", Bounds: HTTPBounds}
	for range n {
		p.Record(target, m, "test", "scope", sampleCall())
	}
	ctx, cancel := context.WithTimeout(context.Background(), timeout)
	defer cancel()
	began := time.Now()
	p.Close(ctx)
	if took := time.Since(began); took > timeout+2*time.Second {
		t.Errorf("closing took %v, the limit was %v", took, timeout)
	}
	b := p.Balance()
	if err := b.Check(); err != nil {
		t.Error(err)
	}
	return b
}

func TestExport(t *testing.T) {
	c := &collector{}
	b := send(t, serve(t, c), 5000, TraceOptions{}, io.Discard, 5*time.Second)
	if b.Exported != 5000 || len(c.spans) != 5000 {
		t.Errorf("exported %d, the collector has %d", b.Exported, len(c.spans))
	}
}

func TestExportRetries(t *testing.T) {
	c := &collector{}
	c.answer = func(int) (*coltracepb.ExportTraceServiceResponse, error) {
		if c.tries < 3 {
			return nil, status.Error(codes.Unavailable, "not yet")
		}
		return nil, nil
	}
	var log bytes.Buffer
	b := send(t, serve(t, c), 10, TraceOptions{}, &log, 10*time.Second)
	if b.Exported != 10 || len(c.spans) != 10 || c.tries != 3 {
		t.Errorf("exported %d after %d tries", b.Exported, c.tries)
	}
	if strings.Count(log.String(), "collector does not take spans") != 1 || !strings.Contains(log.String(), "answers again") {
		t.Errorf("log:\n%s", log.String())
	}
}

func TestPartialSuccess(t *testing.T) {
	c := &collector{answer: func(n int) (*coltracepb.ExportTraceServiceResponse, error) {
		return &coltracepb.ExportTraceServiceResponse{PartialSuccess: &coltracepb.ExportTracePartialSuccess{RejectedSpans: 3, ErrorMessage: "too old"}}, nil
	}}
	b := send(t, serve(t, c), 10, TraceOptions{}, io.Discard, 5*time.Second)
	if b.Exported != 7 || b.Dropped["rejected"] != 3 || c.tries != 1 {
		t.Errorf("exported %d rejected %d tries %d", b.Exported, b.Dropped["rejected"], c.tries)
	}
}

func TestExportRefused(t *testing.T) {
	c := &collector{answer: func(int) (*coltracepb.ExportTraceServiceResponse, error) {
		return nil, status.Error(codes.InvalidArgument, "no")
	}}
	b := send(t, serve(t, c), 10, TraceOptions{}, io.Discard, 5*time.Second)
	if b.Exported != 0 || b.Dropped["export_failed"] != 10 {
		t.Errorf("exported %d failed %d", b.Exported, b.Dropped["export_failed"])
	}
}

func TestCollectorAway(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	l.Close()
	var log bytes.Buffer
	b := send(t, "http://"+l.Addr().String(), 100, TraceOptions{}, &log, 2*time.Second)
	if b.Dropped["export_failed"] != 100 {
		t.Errorf("%+v", b)
	}
	if !strings.Contains(log.String(), "--otlp-endpoint") {
		t.Errorf("the log does not say what to do:\n%s", log.String())
	}
}

func TestQueueIsBounded(t *testing.T) {
	block := make(chan struct{})
	c := &collector{answer: func(int) (*coltracepb.ExportTraceServiceResponse, error) { <-block; return nil, nil }}
	time.AfterFunc(500*time.Millisecond, func() { close(block) })
	b := send(t, serve(t, c), 1000, TraceOptions{Queue: 100, Batch: 10}, io.Discard, 5*time.Second)
	if b.Dropped["queue_full"] < 800 || b.Exported+b.Dropped["queue_full"] != 1000 {
		t.Errorf("exported %d, queue full %d", b.Exported, b.Dropped["queue_full"])
	}
}

func TestPrintIsSafeAndStable(t *testing.T) {
	c := sampleCall()
	c.Route = "/\x1b]0;owned\a\u202e\u009b31m\x7f"
	target := NewTarget(7, "shop", nil)
	for _, format := range []Format{PrintText, PrintJSON} {
		var out bytes.Buffer
		p := newPrinter(format, &out)
		p.print(target, "test", c, "")
		p.flush()
		if strings.ContainsAny(out.String(), "\x1b\a\u009b\x7f") || strings.Count(out.String(), "\n") != 1 {
			t.Errorf("%s: %q", format, out.String())
		}
		if format == PrintJSON {
			var m map[string]any
			if err := json.Unmarshal(out.Bytes(), &m); err != nil {
				t.Fatal(err)
			}
			for _, key := range []string{"time", "kind", "name", "service", "pid", "duration_ns", "error", "trace_id", "span_id", "parent_span_id", "instrumentor", "attributes"} {
				if _, ok := m[key]; !ok {
					t.Errorf("no %s in %v", key, m)
				}
			}
		}
	}
}

type fullDisk struct{ room bool }

func (d *fullDisk) Write(p []byte) (int, error) {
	if d.room {
		return len(p), nil
	}
	return 0, errors.New("no space left on device")
}

func TestFullDisk(t *testing.T) {
	d := &fullDisk{}
	p := newPrinter(PrintText, d)
	target := NewTarget(7, "shop", nil)
	p.print(target, "test", sampleCall(), "")
	p.flush()
	if p.failed != 1 {
		t.Errorf("%d failures were counted", p.failed)
	}
	d.room = true
	p.print(target, "test", sampleCall(), "")
	p.flush()
	if p.failed != 1 {
		t.Error("it does not recover when there is room again")
	}
}

func TestBalanceCheck(t *testing.T) {
	b := Balance{Started: 5, Completed: 3, Open: 1, Abandoned: map[string]uint64{"evicted": 1}, Exported: 2, Dropped: map[string]uint64{"ring_full": 1}}
	if err := b.Check(); err != nil {
		t.Error(err)
	}
	b.Open = 0
	if b.Check() == nil {
		t.Error("a call is missing and the books still balance")
	}
	b.Open, b.Exported = 1, 1
	if b.Check() == nil {
		t.Error("a span is missing and the books still balance")
	}
}

// BenchmarkSpan is why spans are encoded by hand.
func BenchmarkSpan(b *testing.B) {
	c := sampleCall()
	b.Run("by hand", func(b *testing.B) {
		var buf []byte
		b.ReportAllocs()
		for b.Loop() {
			buf = appendSpan(buf[:0], c, "")
		}
	})
	b.Run("generated", func(b *testing.B) {
		var buf []byte
		b.ReportAllocs()
		for b.Loop() {
			s := &tracepb.Span{
				TraceId: c.TraceID[:], SpanId: c.SpanID[:], ParentSpanId: c.ParentID[:], Name: c.Operation + " " + c.Route, Kind: tracepb.Span_SpanKind(c.Kind),
				StartTimeUnixNano: uint64(c.Start), EndTimeUnixNano: uint64(c.End), Flags: 0x301,
			}
			for _, kv := range c.Attrs {
				s.Attributes = append(s.Attributes, protoAttribute(kv))
			}
			var err error
			if buf, err = (proto.MarshalOptions{}).MarshalAppend(buf[:0], s); err != nil {
				b.Fatal(err)
			}
		}
	})
}

// metricsCollector keeps the last request of each resource.
type metricsCollector struct {
	colmetricspb.UnimplementedMetricsServiceServer
	mu   sync.Mutex
	last map[string]*metricspb.ResourceMetrics
}

func (c *metricsCollector) Export(_ context.Context, r *colmetricspb.ExportMetricsServiceRequest) (*colmetricspb.ExportMetricsServiceResponse, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, rm := range r.ResourceMetrics {
		for _, kv := range rm.Resource.Attributes {
			if kv.Key == "service.name" {
				c.last[kv.Value.GetStringValue()] = rm
			}
		}
	}
	return &colmetricspb.ExportMetricsServiceResponse{}, nil
}

// TestMetricsExport: RED counts every call although none is sampled, and the
// books come along.
func TestMetricsExport(t *testing.T) {
	c := &metricsCollector{last: map[string]*metricspb.ResourceMetrics{}}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	s := grpc.NewServer()
	colmetricspb.RegisterMetricsServiceServer(s, c)
	go s.Serve(l)
	t.Cleanup(s.Stop)
	sampler, err := NewSampler("always_off", "")
	if err != nil {
		t.Fatal(err)
	}
	p, err := NewPipeline(Options{Sampler: sampler, Print: PrintNone, Log: slog.New(slog.DiscardHandler),
		Metrics: &MetricOptions{Endpoint: "http://" + l.Addr().String()}})
	if err != nil {
		t.Fatal(err)
	}
	const n = 100
	p.SetSource(&fixed{n + 5})
	target := NewTarget(1, "shop", []attribute.KeyValue{attribute.String("service.name", "shop")})
	p.AddTarget(target)
	m := &Metric{Name: "http.server.request.duration", Bounds: HTTPBounds}
	for i := range n {
		call := sampleCall()
		call.End = call.Start + int64(i+1)*int64(time.Millisecond)
		p.Record(target, m, "test", "scope", call)
	}
	p.Fold(target, m, []attribute.KeyValue{attribute.String("class", "2xx")}, 3, 5, 200*time.Millisecond)
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	p.Close(ctx)
	if err := p.Balance().Check(); err != nil {
		t.Error(err)
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.last["shop"] == nil || c.last["zerospan"] == nil {
		t.Fatalf("resources %v", c.last)
	}
	points := c.last["shop"].ScopeMetrics[0].Metrics[0].GetHistogram().DataPoints
	var count uint64
	for _, d := range points {
		count += d.Count
		if len(d.BucketCounts) != len(HTTPBounds)+1 {
			t.Errorf("%d buckets", len(d.BucketCounts))
		}
	}
	if len(points) != 2 || count != n+5 {
		t.Errorf("%d series with %d calls, want 2 with %d", len(points), count, n+5)
	}
	for _, d := range points {
		// 1 to 100 ms in steps of 1 ms: 5 up to 5 ms, 10 up to 10 ms, 25, 50, 75, 100.
		if d.Count == n && !slices.Equal(d.BucketCounts[:7], []uint64{5, 5, 15, 25, 25, 25, 0}) {
			t.Errorf("buckets %v", d.BucketCounts)
		}
	}
	names := map[string]bool{}
	for _, m := range c.last["zerospan"].ScopeMetrics[0].Metrics {
		names[m.Name] = true
	}
	for _, want := range []string{"zerospan.calls.started", "zerospan.calls.completed", "zerospan.calls.abandoned", "zerospan.spans.exported", "zerospan.spans.dropped"} {
		if !names[want] {
			t.Errorf("no metric %s", want)
		}
	}
}

// TestAside: the note on a call that hangs is exported as the call will be, and
// is not one of the spans that the books know.
func TestAside(t *testing.T) {
	c := &collector{}
	sampler, err := NewSampler("", "")
	if err != nil {
		t.Fatal(err)
	}
	p, err := NewPipeline(Options{Sampler: sampler, Traces: &TraceOptions{Endpoint: serve(t, c)}, Print: PrintNone, Log: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	call := sampleCall()
	call.ParentID = [8]byte{} // a root call is sampled, whatever its flags
	call.TraceFlags, call.Decided = 0, false
	if !p.Samples(call) {
		t.Fatal("a root call is not sampled")
	}
	p.Aside(NewTarget(1, "shop", nil), "scope", call)
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	p.Close(ctx)
	if b := p.Balance(); len(c.spans) != 1 || b.Exported != 0 || b.Check() != nil {
		t.Errorf("%d spans arrived; %+v", len(c.spans), b)
	}
}

// TestActiveReturnsToZero: what was open and is not any more is reported as 0.
func TestActiveReturnsToZero(t *testing.T) {
	target := NewTarget(1, "shop", nil)
	m := &Metric{Name: "m", Active: "m.active"}
	attrs := []attribute.KeyValue{attribute.String("http.request.method", "GET")}
	now := time.Now()
	if got := target.openNow([]OpenCalls{{Target: target, Metric: m, Attrs: attrs, Count: 3}}, now); len(got) != 1 || got[0].Count != 3 {
		t.Errorf("%+v", got)
	}
	if got := target.openNow(nil, now.Add(time.Minute)); len(got) != 1 || got[0].Count != 0 {
		t.Errorf("%+v, want one zero", got)
	}
	if got := target.openNow(nil, now.Add(2*seriesLifetime)); len(got) != 0 {
		t.Errorf("%+v, want none any more", got)
	}
	var open []OpenCalls
	for i := range 2 * MaxSeries {
		open = append(open, OpenCalls{Target: target, Metric: m, Attrs: []attribute.KeyValue{attribute.Int("server.port", i)}, Count: 1})
	}
	total := int64(0)
	got := target.openNow(open, now.Add(3*seriesLifetime))
	for _, o := range got {
		total += o.Count
	}
	if len(got) != MaxSeries+1 || total != 2*MaxSeries {
		t.Errorf("%d series with %d calls, want %d with %d", len(got), total, MaxSeries+1, 2*MaxSeries)
	}
}
