package live

import (
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"
)

// freePort asks the kernel for a port that nobody uses.
func freePort(t *testing.T) int {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return l.Addr().(*net.TCPAddr).Port
}

func getJSON(url string, into any) error {
	resp, err := http.Get(url)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	if resp.StatusCode != 200 {
		return fmt.Errorf("%s: %s", url, resp.Status)
	}
	return json.NewDecoder(resp.Body).Decode(into)
}

// eventually repeats f until it succeeds.
func eventually(t *testing.T, what string, f func() error) {
	t.Helper()
	for began := time.Now(); ; time.Sleep(50 * time.Millisecond) {
		err := f()
		if err == nil {
			return
		}
		if time.Since(began) > patience {
			t.Fatalf("%s: %v", what, err)
		}
	}
}

// TestJaeger sends spans to a real Jaeger and asks it for them.
func TestJaeger(t *testing.T) {
	jaeger := filepath.Join(root, ".cache/jaeger")
	if _, err := os.Stat(jaeger); err != nil {
		if os.Getenv("ZEROSPAN_REQUIRE_LIVE") != "" {
			t.Fatal("no .cache/jaeger: test/deps.sh builds it")
		}
		t.Skip("no .cache/jaeger: test/deps.sh builds it")
	}
	otlp, query, admin := freePort(t), freePort(t), freePort(t)
	port := func(n int) string { return "127.0.0.1:" + strconv.Itoa(n) }
	cmd := exec.Command(jaeger, "--collector.otlp.grpc.host-port", port(otlp), "--collector.otlp.http.host-port", port(freePort(t)),
		"--query.http-server.host-port", port(query), "--query.grpc-server.host-port", port(freePort(t)), "--admin.http.host-port", port(admin),
		"--collector.grpc-server.host-port", port(freePort(t)), "--collector.http-server.host-port", port(freePort(t)),
		"--log-level", "error")
	cmd.Env = append(os.Environ(), "SPAN_STORAGE_TYPE=memory")
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = cmd.Process.Kill(); _ = cmd.Wait() })
	eventually(t, "Jaeger starts", func() error {
		var services any
		return getJSON("http://"+port(query)+"/api/services", &services)
	})
	p := start(t, current.make(t))
	z := trace(t, "--pid", strconv.Itoa(p.Process.Pid), "--print", "json", "--otlp-endpoint", "http://"+port(otlp), "--service-name", "shop")
	began := time.Now()
	s := newSession(t, p.words[1], p.words[2])
	s.name = "jaeger"
	const n = 25
	for i := range n {
		get(fmt.Sprintf("/mw/items/%d", i))(t, s)
	}
	get("/status/503")(t, s)
	type answer struct {
		Data []struct {
			Spans []struct {
				TraceID, SpanID, OperationName string
				Duration                       int64
				Tags                           []struct {
					Key   string
					Value any
				}
			}
		}
	}
	var got answer
	count := func() (n int) {
		for _, d := range got.Data {
			n += len(d.Spans)
		}
		return n
	}
	eventually(t, "Jaeger has the spans", func() error {
		got = answer{}
		if err := getJSON("http://"+port(query)+"/api/traces?service=shop&limit=1000", &got); err != nil {
			return err
		}
		if count() < n+1 {
			return fmt.Errorf("%d spans of %d", count(), n+1)
		}
		return nil
	})
	t.Logf("%d spans were in Jaeger %v after the first request", count(), time.Since(began).Round(time.Millisecond))
	byID := map[string]call{}
	for _, c := range z.stop() {
		byID[c.SpanID] = c
	}
	if count() != n+1 || len(byID) != n+1 {
		t.Errorf("Jaeger has %d spans, zerospan printed %d, %d were sent", count(), len(byID), n+1)
	}
	for _, d := range got.Data {
		for _, sp := range d.Spans {
			c, ok := byID[sp.SpanID]
			if !ok || sp.TraceID != c.TraceID || sp.OperationName != c.Name || sp.Duration != c.DurationNS/1000 {
				t.Errorf("span %+v is not call %+v", sp, c)
			}
			tags := map[string]any{}
			for _, tag := range sp.Tags {
				tags[tag.Key] = tag.Value
			}
			for key, want := range c.Attributes {
				if fmt.Sprint(tags[key]) != fmt.Sprint(want) {
					t.Errorf("%s is %v in Jaeger, %v here", key, tags[key], want)
				}
			}
			if (tags["error"] == true) != c.Error || tags["span.kind"] != "server" {
				t.Errorf("error %v, kind %v of %s", tags["error"], tags["span.kind"], c.Name)
			}
		}
	}
}

// TestPrometheus scrapes exact counts while it runs, and an open call.
func TestPrometheus(t *testing.T) {
	p := start(t, current.make(t))
	metrics, health := freePort(t), freePort(t)
	z := trace(t, "--pid", strconv.Itoa(p.Process.Pid), "--print", "json", "--service-name", "shop",
		"--metrics-listen", "127.0.0.1:"+strconv.Itoa(metrics), "--health-listen", "127.0.0.1:"+strconv.Itoa(health))
	const n = 40
	for range n {
		exchange(t, p.words[1], "hello", "GET /hello HTTP/1.1\r\nHost: x\r\n\r\n")
	}
	z.waitCalls(n)
	held := make(chan struct{})
	go func() {
		defer close(held)
		exchange(t, p.words[1], "slow", "GET /slow?ms=3000 HTTP/1.1\r\nHost: x\r\n\r\n")
	}()
	want := []string{
		fmt.Sprintf(`http_server_request_duration_seconds_count{http_request_method="GET",http_response_status_code="200",http_route="/hello",network_protocol_version="1.1",process_pid="%d",service_name="shop",url_scheme="http"} %d`, p.Process.Pid, n),
		fmt.Sprintf(`http_server_active_requests{http_request_method="GET",process_pid="%d",service_name="shop",url_scheme="http"} 1`, p.Process.Pid),
		fmt.Sprintf("zerospan_calls_completed_total %d\n", n),
		"zerospan_calls_open 1\n",
		`zerospan_calls_abandoned_total{reason="evicted"} 0`,
	}
	eventually(t, "the metrics", func() error {
		resp, err := http.Get("http://127.0.0.1:" + strconv.Itoa(metrics) + "/metrics")
		if err != nil {
			return err
		}
		defer resp.Body.Close()
		text, err := io.ReadAll(resp.Body)
		if err != nil {
			return err
		}
		for _, line := range want {
			if !strings.Contains(string(text), line) {
				return fmt.Errorf("no %q in\n%s", line, text)
			}
		}
		return nil
	})
	if resp, err := http.Get("http://127.0.0.1:" + strconv.Itoa(health) + "/readyz"); err != nil || resp.StatusCode != 200 {
		t.Errorf("readyz: %v %v", resp, err)
	}
	<-held
	z.waitCalls(n + 1)
	z.stop()
}

// TestRingFull makes the ring too small for the load: what it can't hold is
// counted to the last call.
func TestRingFull(t *testing.T) {
	p := start(t, current.make(t))
	z := trace(t, "--pid", strconv.Itoa(p.Process.Pid), "--print", "none", "--ring-size", "4096")
	stop := make(chan struct{})
	answered, failed, wait := hammer(p.words[1], 32, stop)
	for began := time.Now(); answered() < 20000 && time.Since(began) < patience; {
		time.Sleep(10 * time.Millisecond)
	}
	close(stop)
	wait()
	z.stop()
	started, completed, _, exported := z.balance()
	if failed() != 0 || int64(started) != answered() || started != completed {
		t.Errorf("%d requests, %d failed; started %d completed %d", answered(), failed(), started, completed)
	}
	if !strings.Contains(z.stderr.String(), "ring_full") || exported >= completed {
		t.Errorf("the ring was not too small: exported %d of %d", exported, completed)
	}
}

// TestExplain names sites, fields and the rung that found each.
func TestExplain(t *testing.T) {
	p := start(t, build{goVersion: "1.20.14", dir: "nethttp", mode: "stripped"}.make(t))
	out, err := exec.Command(zerospan, "explain", "--pid", strconv.Itoa(p.Process.Pid)).CombinedOutput()
	if err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	for _, want := range []string{"nethttp-server", "built with go1.20.14", "net/http.serverHandler.ServeHTTP", "jbe", "emulated",
		"net/http.Request.Method", "type descriptors", "has no field Pattern; lost: http.route"} {
		if !strings.Contains(string(out), want) {
			t.Errorf("explain does not say %q:\n%s", want, out)
		}
	}
}

// TestDemo runs what a newcomer runs first.
func TestDemo(t *testing.T) {
	out, err := exec.Command(zerospan, "demo", "--duration", "3s").CombinedOutput()
	if err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	for _, want := range []string{"GET /products/{id}", "P99", "calls:", "--otlp-endpoint"} {
		if !strings.Contains(string(out), want) {
			t.Errorf("the demo does not show %q:\n%s", want, out)
		}
	}
}
