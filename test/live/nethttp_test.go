package live

import (
	"bufio"
	"context"
	"crypto/tls"
	"fmt"
	"io"
	"net"
	"net/http"
	"regexp"
	"strconv"
	"strings"
	"testing"
	"time"
)

// toolchains are the Go versions whose binaries must be traceable.
var toolchains = []string{"1.18.10", "1.20.14", "1.22.12", "1.23.12", "1.24.9", "1.26.5", "1.27.2"}

func atLeast(goVersion string, minor int) bool {
	v, err := strconv.Atoi(strings.Split(goVersion, ".")[1])
	return err == nil && v >= minor
}

// outcome is a request and the one call that it must give.
type outcome struct {
	name  string
	send  func(t *testing.T, s *session)
	paths string // url.path; the name with a slash if empty

	method  string // GET if empty
	status  int    // absent if 0
	errType string // no error if empty
	version string // 1.1 if empty
	scheme  string // http if empty
	route   string // since Go 1.23, or 1.22 where ServeMux is asked: absent if empty
	written int    // http.response.body.size; -1: must be absent
	sent    int    // http.request.body.size, absent if 0
	parent  string
	traceID string
	extra   string // another attribute that is allowed
	minimum time.Duration
	since   int // Go 1.x
}

// session sends requests that carry the outcome's name in their User-Agent.
type session struct {
	plain, secure string
	name          string
	h1, h2, h2c   *http.Client
}

func (s *session) request(method, url string, body io.Reader) *http.Request {
	req, err := http.NewRequest(method, url, body)
	if err != nil {
		panic(err)
	}
	req.Header.Set("User-Agent", "outcome/"+s.name)
	return req
}

func do(c *http.Client, req *http.Request) {
	// Many outcomes end in an error for the client; what counts is the call.
	if resp, err := c.Do(req); err == nil {
		_, _ = io.Copy(io.Discard, resp.Body)
		_ = resp.Body.Close()
	}
}

func get(path string) func(*testing.T, *session) {
	return func(t *testing.T, s *session) { do(s.h1, s.request("GET", "http://"+s.plain+path, nil)) }
}

func get2(path string) func(*testing.T, *session) {
	return func(t *testing.T, s *session) { do(s.h2, s.request("GET", "https://"+s.secure+path, nil)) }
}

func h2cGet(path string) func(*testing.T, *session) {
	return func(t *testing.T, s *session) { do(s.h2c, s.request("GET", "http://"+s.plain+path, nil)) }
}

// exchange writes raw bytes and reads until want was seen or the peer closes.
func exchange(t *testing.T, addr, want string, parts ...string) {
	t.Helper()
	c, err := net.DialTimeout("tcp", addr, patience)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	_ = c.SetDeadline(time.Now().Add(patience))
	for _, p := range parts {
		if _, err := io.WriteString(c, p); err != nil {
			t.Fatal(err)
		}
	}
	if want == "" {
		return
	}
	var got strings.Builder
	r := bufio.NewReader(c)
	for !strings.Contains(got.String(), want) {
		b, err := r.ReadByte()
		if err != nil {
			t.Fatalf("%v after %q", err, got.String())
		}
		got.WriteByte(b)
	}
}

const (
	traceID  = "0af7651916cd43dd8448eb211c80319c"
	parentID = "b7ad6b7169203331"
)

var outcomes = []outcome{
	{name: "hello", send: get("/hello?secret=1"), status: 200, written: 5, route: "/hello"},
	{name: "items", paths: "/items/77", send: get("/items/77"), status: 200, written: 4, route: "/items/{id}"},
	{name: "copied", paths: "/mw/items/78", send: get("/mw/items/78"), status: 200, written: 4, route: "/items/{id}"},
	{name: "escaped", paths: "/items/a%20b", send: get("/items/a%20b"), status: 200, written: 4, route: "/items/{id}"},
	{name: "implicit", send: get("/implicit"), status: 200, route: "/implicit"},
	{name: "notfound", paths: "/nowhere", send: get("/nowhere"), status: 404, written: 19},
	{name: "s204", paths: "/status/204", send: get("/status/204"), status: 204, route: "/status/"},
	{name: "s404", paths: "/status/404", send: get("/status/404"), status: 404, route: "/status/"},
	{name: "s503", paths: "/status/503", send: get("/status/503"), status: 503, errType: "503", route: "/status/"},
	{name: "panic", send: get("/panic"), errType: "panic", written: -1, route: "/panic"},
	{name: "panic-late", send: get("/panic-late"), status: 201, errType: "panic", route: "/panic-late"},
	{name: "abort", send: get("/abort"), errType: "http.ErrAbortHandler", written: -1, route: "/abort"},
	{name: "goexit", send: get("/goexit"), errType: "runtime.Goexit", written: -1, route: "/goexit"},
	{name: "hijack", send: get("/hijack"), written: -1, extra: "zerospan.http.hijacked", route: "/hijack"},
	{name: "stream", send: get("/stream"), status: 200, written: 35, route: "/stream"},
	{name: "grow", send: get("/grow"), status: 200, written: 5, route: "/grow"},
	{name: "timeout", send: get("/timeout"), status: 503, errType: "503", written: 8, minimum: 20 * time.Millisecond, route: "/timeout"},
	{name: "within", paths: "/within/x", send: get("/within/x"), status: 200, written: 6, route: "/within/"},
	{name: "slow", send: get("/slow?ms=50"), status: 200, written: 4, minimum: 50 * time.Millisecond, route: "/slow"},
	{name: "post", paths: "/echo", method: "POST", status: 200, written: 11, sent: 11, route: "/echo",
		send: func(t *testing.T, s *session) {
			do(s.h1, s.request("POST", "http://"+s.plain+"/echo", strings.NewReader("hello again")))
		}},
	{name: "head", paths: "/hello", method: "HEAD", status: 200, written: -1, route: "/hello",
		send: func(t *testing.T, s *session) { do(s.h1, s.request("HEAD", "http://"+s.plain+"/hello", nil)) }},
	{name: "odd-method", paths: "/hello", method: "_OTHER", status: 200, written: 5, route: "/hello", extra: "http.request.method_original",
		send: func(t *testing.T, s *session) { do(s.h1, s.request("BREW", "http://"+s.plain+"/hello", nil)) }},
	{name: "http10", paths: "/hello", version: "1.0", status: 200, written: 5, route: "/hello",
		send: func(t *testing.T, s *session) {
			exchange(t, s.plain, "hello", "GET /hello HTTP/1.0\r\nHost: "+s.plain+"\r\nUser-Agent: outcome/http10\r\n\r\n")
		}},
	{name: "absolute", paths: "/hello", status: 200, written: 5, route: "/hello",
		send: func(t *testing.T, s *session) {
			exchange(t, s.plain, "hello", "GET http://"+s.plain+"/hello?x HTTP/1.1\r\nHost: "+s.plain+"\r\nUser-Agent: outcome/absolute\r\n\r\n")
		}},
	{name: "continue", paths: "/echo", method: "POST", status: 200, written: 4, sent: 4, route: "/echo",
		send: func(t *testing.T, s *session) {
			exchange(t, s.plain, "ping", "POST /echo HTTP/1.1\r\nHost: "+s.plain+"\r\nUser-Agent: outcome/continue\r\nContent-Length: 4\r\nExpect: 100-continue\r\n\r\n", "ping")
		}},
	{name: "chunked", paths: "/echo", method: "POST", status: 200, written: 4, route: "/echo",
		send: func(t *testing.T, s *session) {
			exchange(t, s.plain, "ping", "POST /echo HTTP/1.1\r\nHost: "+s.plain+"\r\nUser-Agent: outcome/chunked\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nping\r\n0\r\n\r\n")
		}},
	{name: "client-gone", paths: "/wait", status: 499, errType: "client_disconnected", route: "/wait",
		send: func(t *testing.T, s *session) {
			exchange(t, s.plain, "", "GET /wait HTTP/1.1\r\nHost: "+s.plain+"\r\nUser-Agent: outcome/client-gone\r\n\r\n")
		}},
	{name: "traced", paths: "/hello", status: 200, written: 5, parent: parentID, traceID: traceID, route: "/hello",
		send: func(t *testing.T, s *session) {
			req := s.request("GET", "http://"+s.plain+"/hello", nil)
			req.Header.Set("Traceparent", "00-"+traceID+"-"+parentID+"-01")
			do(s.h1, req)
		}},
	{name: "traced-late", paths: "/hello", status: 200, written: 5, parent: parentID, traceID: traceID, route: "/hello",
		send: func(t *testing.T, s *session) { // the map has grown beyond one group
			req := s.request("GET", "http://"+s.plain+"/hello", nil)
			for i := range 30 {
				req.Header.Set(fmt.Sprintf("X-Filler-%d", i), "x")
			}
			req.Header.Set("Traceparent", "00-"+traceID+"-"+parentID+"-00")
			do(s.h1, req)
		}},
	{name: "bad-traceparent", paths: "/hello", status: 200, written: 5, route: "/hello",
		send: func(t *testing.T, s *session) {
			req := s.request("GET", "http://"+s.plain+"/hello", nil)
			req.Header.Set("Traceparent", "00-"+traceID+"-ZZad6b7169203331-01")
			do(s.h1, req)
		}},
	{name: "h2", paths: "/hello", version: "2", scheme: "https", status: 200, written: 5, send: get2("/hello"), route: "/hello"},
	{name: "h2-copied", paths: "/mw/items/9", version: "2", scheme: "https", status: 200, written: 4, send: get2("/mw/items/9"), route: "/items/{id}"},
	{name: "h2-implicit", paths: "/implicit", version: "2", scheme: "https", status: 200, send: get2("/implicit"), route: "/implicit"},
	{name: "h2-500", paths: "/status/500", version: "2", scheme: "https", status: 500, errType: "500", send: get2("/status/500"), route: "/status/"},
	{name: "h2-panic", paths: "/panic", version: "2", scheme: "https", errType: "panic", written: -1, send: get2("/panic"), route: "/panic"},
	{name: "h2-abort", paths: "/abort", version: "2", scheme: "https", errType: "http.ErrAbortHandler", written: -1, send: get2("/abort"), route: "/abort"},
	{name: "h2-goexit", paths: "/goexit", version: "2", scheme: "https", errType: "runtime.Goexit", written: -1, send: get2("/goexit"), route: "/goexit"},
	{name: "h2-stream", paths: "/stream", version: "2", scheme: "https", status: 200, written: 35, send: get2("/stream"), route: "/stream"},
	{name: "h2-timeout", paths: "/timeout", version: "2", scheme: "https", status: 503, errType: "503", written: 8, send: get2("/timeout"), route: "/timeout"},
	{name: "h2-head", paths: "/stream", method: "HEAD", version: "2", scheme: "https", status: 200, written: -1, route: "/stream",
		send: func(t *testing.T, s *session) { do(s.h2, s.request("HEAD", "https://"+s.secure+"/stream", nil)) }},
	{name: "h2-traced", paths: "/hello", version: "2", scheme: "https", status: 200, written: 5, parent: parentID, traceID: traceID, route: "/hello",
		send: func(t *testing.T, s *session) {
			req := s.request("GET", "https://"+s.secure+"/hello", nil)
			req.Header.Set("Traceparent", "00-"+traceID+"-"+parentID+"-01")
			do(s.h2, req)
		}},
	{name: "h2-reset", paths: "/wait", version: "2", scheme: "https", status: 499, errType: "client_disconnected", route: "/wait",
		send: func(t *testing.T, s *session) {
			ctx, cancel := context.WithTimeout(context.Background(), 50*time.Millisecond)
			defer cancel()
			do(s.h2, s.request("GET", "https://"+s.secure+"/wait", nil).WithContext(ctx))
		}},
	{name: "h2c", paths: "/hello", version: "2", status: 200, written: 5, since: 24, send: h2cGet("/hello"), route: "/hello"},
	{name: "h2c-panic", paths: "/panic", version: "2", errType: "panic", written: -1, since: 24, send: h2cGet("/panic"), route: "/panic"},
}

func newSession(t *testing.T, plain, secure string) *session {
	cleartext := new(http.Protocols)
	cleartext.SetUnencryptedHTTP2(true)
	s := &session{
		plain: plain, secure: secure,
		h1:  &http.Client{Transport: &http.Transport{DisableKeepAlives: true}},
		h2:  &http.Client{Transport: &http.Transport{ForceAttemptHTTP2: true, TLSClientConfig: &tls.Config{InsecureSkipVerify: true}}},
		h2c: &http.Client{Transport: &http.Transport{Protocols: cleartext}},
	}
	t.Cleanup(func() { s.h1.CloseIdleConnections(); s.h2.CloseIdleConnections(); s.h2c.CloseIdleConnections() })
	return s
}

// allowed are the attributes that a server call may have.
var allowed = map[string]bool{
	"http.request.method": true, "url.scheme": true, "url.path": true, "http.response.status_code": true, "http.route": true,
	"network.protocol.version": true, "error.type": true, "server.address": true, "server.port": true, "client.address": true,
	"user_agent.original": true, "http.request.body.size": true, "http.response.body.size": true, "zerospan.route.guess": true,
}

var hexID = regexp.MustCompile(`^[0-9a-f]+$`)

func (o outcome) check(t *testing.T, c call, goVersion string) {
	t.Helper()
	or := func(s, otherwise string) string {
		if s == "" {
			return otherwise
		}
		return s
	}
	equal := func(what string, got, want any) {
		t.Helper()
		if got != want {
			t.Errorf("%s: %s is %v, want %v", o.name, what, got, want)
		}
	}
	route := o.route
	if !atLeast(goVersion, 22) {
		route = ""
	}
	equal("kind", c.Kind, "server")
	equal("instrumentor", c.Instrumentor, "nethttp-server")
	equal("http.request.method", c.str("http.request.method"), or(o.method, "GET"))
	equal("url.path", c.str("url.path"), or(o.paths, "/"+o.name))
	equal("url.scheme", c.str("url.scheme"), or(o.scheme, "http"))
	equal("network.protocol.version", c.str("network.protocol.version"), or(o.version, "1.1"))
	equal("http.response.status_code", c.num("http.response.status_code"), o.status)
	equal("error.type", c.str("error.type"), o.errType)
	equal("error", c.Error, o.errType != "")
	equal("http.route", c.str("http.route"), route)
	equal("server.address", c.str("server.address"), "127.0.0.1")
	equal("client.address", c.str("client.address"), "127.0.0.1")
	if c.num("server.port") == 0 {
		t.Errorf("%s: no server.port", o.name)
	}
	equal("http.request.body.size", c.num("http.request.body.size"), o.sent)
	if _, there := c.Attributes["http.response.body.size"]; there == (o.written < 0) {
		t.Errorf("%s: http.response.body.size there: %v", o.name, there)
	}
	if o.written >= 0 {
		equal("http.response.body.size", c.num("http.response.body.size"), o.written)
	}
	equal("parent", c.ParentSpanID, o.parent)
	if o.traceID != "" {
		equal("trace id", c.TraceID, o.traceID)
	}
	if len(c.TraceID) != 32 || len(c.SpanID) != 16 || !hexID.MatchString(c.TraceID+c.SpanID) {
		t.Errorf("%s: ids %q %q", o.name, c.TraceID, c.SpanID)
	}
	if d := time.Duration(c.DurationNS); d < o.minimum || d > o.minimum+5*time.Second {
		t.Errorf("%s: duration %v, want at least %v", o.name, d, o.minimum)
	}
	if age := time.Since(c.Time); age < 0 || age > time.Minute {
		t.Errorf("%s: start %v is %v ago", o.name, c.Time, age)
	}
	for key := range c.Attributes {
		if !allowed[key] && key != o.extra {
			t.Errorf("%s: attribute %s is not on the list", o.name, key)
		}
	}
}

// checkCalls requires exactly one call for each outcome.
func checkCalls(t *testing.T, calls []call, sent []outcome, check func(outcome, call)) {
	t.Helper()
	want := map[string]outcome{}
	for _, o := range sent {
		want[o.name] = o
	}
	ids := map[string]bool{}
	for _, c := range calls {
		name := strings.TrimPrefix(c.str("user_agent.original"), "outcome/")
		o, ok := want[name]
		if !ok {
			t.Errorf("a call too many: %+v", c)
			continue
		}
		delete(want, name)
		if ids[c.SpanID] {
			t.Errorf("%s: span id %s is not unique", name, c.SpanID)
		}
		ids[c.SpanID] = true
		check(o, c)
	}
	for name := range want {
		t.Errorf("no call for %s", name)
	}
}

// checkOutcomes sends every outcome and requires exactly its call.
func checkOutcomes(t *testing.T, b build, list []outcome, z func(pid int) *tracer) {
	p := start(t, b.make(t))
	tr := z(p.Process.Pid)
	s := newSession(t, p.words[1], p.words[2])
	var sent []outcome
	for _, o := range list {
		if o.since > 0 && !atLeast(b.goVersion, o.since) {
			continue
		}
		s.name = o.name
		o.send(t, s)
		sent = append(sent, o)
	}
	// A malformed request and an unmet expectation give no call.
	exchange(t, s.plain, "400", "NONSENSE, LONGER THAN THE PREFACE OF HTTP/2\r\n\r\n")
	exchange(t, s.plain, "417", "POST /echo HTTP/1.1\r\nHost: x\r\nExpect: miracles\r\nContent-Length: 1\r\n\r\n")
	tr.waitCalls(len(sent))
	calls := tr.stop()
	checkCalls(t, calls, sent, func(o outcome, c call) { o.check(t, c, b.goVersion) })
	// One caller, traced-late, said that it does not sample.
	if started, completed, open, exported := tr.balance(); started != len(calls) || completed != len(calls) || open != 0 || exported != len(calls)-1 {
		t.Errorf("balance: started %d completed %d open %d exported %d, want %d calls", started, completed, open, exported, len(calls))
	}
}

func TestServerOutcomes(t *testing.T) {
	for _, version := range toolchains {
		for _, mode := range []string{"normal", "stripped", "pie"} {
			b := build{goVersion: version, dir: "nethttp", mode: mode}
			t.Run(b.String(), func(t *testing.T) {
				checkOutcomes(t, b, outcomes, func(pid int) *tracer {
					return trace(t, "--pid", strconv.Itoa(pid), "--print", "json")
				})
			})
		}
	}
	t.Run("cgo", func(t *testing.T) {
		checkOutcomes(t, build{goVersion: "1.26.5", dir: "nethttp", mode: "cgo"}, outcomes, func(pid int) *tracer {
			return trace(t, "--pid", strconv.Itoa(pid), "--print", "json")
		})
	})
}
