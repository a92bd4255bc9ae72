package live

import (
	"context"
	"encoding/hex"
	"fmt"
	"net"
	"net/http"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	colmetricpb "go.opentelemetry.io/proto/otlp/collector/metrics/v1"
	coltracepb "go.opentelemetry.io/proto/otlp/collector/trace/v1"
	resourcepb "go.opentelemetry.io/proto/otlp/resource/v1"
	tracepb "go.opentelemetry.io/proto/otlp/trace/v1"
	"google.golang.org/grpc"
)

// collector is an OTLP collector that keeps what zerospan and what others send apart.
type collector struct {
	coltracepb.UnimplementedTraceServiceServer
	url string

	mu          sync.Mutex
	ours        []*tracepb.Span
	theirs      []*tracepb.Span
	ourMetrics  map[string]int // by name
	theirMetric int
}

type metricCollector struct {
	colmetricpb.UnimplementedMetricsServiceServer
	*collector
}

func newCollector(t *testing.T) *collector {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	c := &collector{url: "http://" + l.Addr().String(), ourMetrics: map[string]int{}}
	s := grpc.NewServer()
	coltracepb.RegisterTraceServiceServer(s, c)
	colmetricpb.RegisterMetricsServiceServer(s, metricCollector{collector: c})
	go func() { _ = s.Serve(l) }()
	t.Cleanup(s.Stop)
	return c
}

// waitTheirs waits for the spans that the process itself exports.
func (c *collector) waitTheirs(t *testing.T, n int) {
	t.Helper()
	for began := time.Now(); ; time.Sleep(10 * time.Millisecond) {
		c.mu.Lock()
		got := len(c.theirs)
		c.mu.Unlock()
		if got >= n {
			return
		}
		if time.Since(began) > patience {
			t.Fatalf("%d spans of the process itself, want %d", got, n)
		}
	}
}

func isOurs(r *resourcepb.Resource) bool {
	for _, kv := range r.GetAttributes() {
		if kv.Key == "telemetry.distro.name" && kv.Value.GetStringValue() == "zerospan" {
			return true
		}
	}
	return false
}

func (c *collector) Export(_ context.Context, r *coltracepb.ExportTraceServiceRequest) (*coltracepb.ExportTraceServiceResponse, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, rs := range r.ResourceSpans {
		for _, ss := range rs.ScopeSpans {
			if isOurs(rs.Resource) {
				c.ours = append(c.ours, ss.Spans...)
			} else {
				c.theirs = append(c.theirs, ss.Spans...)
			}
		}
	}
	return &coltracepb.ExportTraceServiceResponse{}, nil
}

func (c metricCollector) Export(_ context.Context, r *colmetricpb.ExportMetricsServiceRequest) (*colmetricpb.ExportMetricsServiceResponse, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, rm := range r.ResourceMetrics {
		for _, sm := range rm.ScopeMetrics {
			for _, m := range sm.Metrics {
				if isOurs(rm.Resource) {
					c.ourMetrics[m.Name]++
				} else {
					c.theirMetric++
				}
			}
		}
	}
	return &colmetricpb.ExportMetricsServiceResponse{}, nil
}

// TestCoexist: a process with the OpenTelemetry SDK. What it exports is not
// exported twice, and what it does not export is not lost.
func TestCoexist(t *testing.T) {
	const requests = 5
	for _, c := range []struct {
		name, way string
		exports   []string
		log       string // when it is known what the process does
		spans     int    // of zerospan's
		metrics   bool   // zerospan's
		linked    bool
	}{
		{name: "silent", way: "skip", log: "does not export", spans: 3 * requests, metrics: true},
		// It has a provider, which samples nothing.
		{name: "unsampled", way: "skip", exports: []string{"traces", "never"}, log: "does not export\" pid=", spans: 3 * requests, metrics: true},
		{name: "traces", way: "skip", exports: []string{"traces"}, log: "exports by itself", metrics: true},
		{name: "metrics", way: "skip", exports: []string{"metrics"}, log: "signal=metrics", spans: 3 * requests},
		{name: "both", way: "skip", exports: []string{"traces", "metrics"}, log: "signal=metrics"},
		// Of the three calls of a request the server's is left to the SDK.
		{name: "link", way: "link", exports: []string{"traces"}, log: "exports by itself", spans: 2 * requests, metrics: true, linked: true},
		// And the client's that the SDK has a span for.
		{name: "link-client", way: "link", exports: []string{"traces", "client"}, log: "exports by itself", spans: requests, metrics: true, linked: true},
		{name: "ignore", way: "ignore", exports: []string{"traces", "metrics"}, log: "attached", spans: 3 * requests, metrics: true},
	} {
		t.Run(c.name, func(t *testing.T) {

			col := newCollector(t)
			t.Setenv("OTEL_METRIC_EXPORT_INTERVAL", "1000") // of zerospan and the target
			p := start(t, build{goVersion: "local", dir: "sdk", mode: "stripped"}.make(t),
				append([]string{"http://" + newBackend(t), col.url}, c.exports...)...)
			z := trace(t, "--pid", strconv.Itoa(p.Process.Pid), "--otlp-endpoint", col.url, "--print", "json", "--coexist", c.way, "--verbose")
			for i := range requests {
				resp, err := http.Get(fmt.Sprintf("http://%s/call/%d", p.words[1], i))
				if err != nil {
					t.Fatal(err)
				}
				resp.Body.Close()
			}
			z.waitLog(c.log)
			z.waitCalls(3 * requests) // they are shown whatever is exported
			if slices.Contains(c.exports, "traces") && !slices.Contains(c.exports, "never") {
				col.waitTheirs(t, requests)
			}
			z.stop()
			col.mu.Lock()
			defer col.mu.Unlock()
			if len(col.ours) != c.spans {
				t.Errorf("zerospan exported %d spans, want %d", len(col.ours), c.spans)
			}
			if got := col.ourMetrics["http.server.request.duration"] > 0; got != c.metrics {
				t.Errorf("zerospan exported metrics: %v, want %v", got, c.metrics)
			}
			if has := slices.Contains(c.exports, "traces") && !slices.Contains(c.exports, "never"); has != (len(col.theirs) > 0) {
				t.Errorf("the process exported %d spans", len(col.theirs))
			}
			if c.linked {
				checkLinked(t, col, requests)
			}
		})
	}
}

// checkLinked requires that calls within a span of the SDK are its children, and
// that others have no parent that nobody exported.
func checkLinked(t *testing.T, col *collector, requests int) {
	theirs := map[string]*tracepb.Span{}
	for _, s := range col.theirs {
		theirs[s.Name] = s
	}
	if len(theirs) != requests {
		t.Errorf("%d spans of the SDK, want %d", len(theirs), requests)
	}
	for _, s := range col.ours {
		full := ""
		for _, kv := range s.Attributes {
			if kv.Key == "url.full" {
				full = kv.Value.GetStringValue()
			}
		}
		path := full[strings.Index(full, "/call/"):]
		if strings.HasSuffix(path, "/outside") {
			if len(s.ParentSpanId) != 0 {
				t.Errorf("%s has the parent %s", path, hex.EncodeToString(s.ParentSpanId))
			}
			continue
		}
		want := theirs[strings.TrimSuffix(path, "/inside")]
		if want == nil || string(s.ParentSpanId) != string(want.SpanId) || string(s.TraceId) != string(want.TraceId) {
			t.Errorf("%s: parent %x in trace %x, want %v", path, s.ParentSpanId, s.TraceId, want)
		}
	}
}

// TestCoexistEnds: what waits for a target that ends is exported then, not when
// zerospan ends.
func TestCoexistEnds(t *testing.T) {
	col := newCollector(t)
	p := start(t, build{goVersion: "local", dir: "sdk", mode: "stripped"}.make(t), "http://"+newBackend(t), col.url)
	z := trace(t, "--exe", filepath.Base(p.Path), "--otlp-endpoint", col.url, "--print", "json")
	resp, err := http.Get("http://" + p.words[1] + "/call/1")
	if err != nil {
		t.Fatal(err)
	}
	resp.Body.Close()
	z.waitCalls(3)
	_ = p.Process.Kill()
	z.waitLog("target has ended")
	for began := time.Now(); ; time.Sleep(10 * time.Millisecond) {
		col.mu.Lock()
		n := len(col.ours)
		col.mu.Unlock()
		if n == 3 {
			break
		}
		if time.Since(began) > patience {
			t.Fatalf("%d spans, want 3", n)
		}
	}
	z.stop()
}
