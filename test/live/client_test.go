package live

import (
	"bufio"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// peers are the servers that a client's target talks to.
type peers struct {
	plain, secure, h2 *httptest.Server
	silent            string // accepts and never answers
	closing           string // reads a request and closes
	partial           string // answers half a header
	impatient         string // closes a connection under its second request
}

func newPeers(t *testing.T) *peers {
	mux := http.NewServeMux()
	mux.HandleFunc("/ok/", func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, "ok") })
	mux.HandleFunc("/status/", func(w http.ResponseWriter, r *http.Request) {
		code, _ := strconv.Atoi(r.URL.Path[len("/status/"):])
		w.WriteHeader(code)
	})
	mux.HandleFunc("/redirect/", func(w http.ResponseWriter, r *http.Request) {
		n, _ := strconv.Atoi(r.URL.Path[len("/redirect/"):])
		if n == 0 {
			return
		}
		http.Redirect(w, r, fmt.Sprintf("/redirect/%d", n-1), http.StatusFound)
	})
	mux.HandleFunc("/hang/", func(_ http.ResponseWriter, r *http.Request) { <-r.Context().Done() })
	p := &peers{plain: httptest.NewServer(mux), secure: httptest.NewTLSServer(mux), h2: httptest.NewUnstartedServer(mux)}
	p.h2.EnableHTTP2 = true
	p.h2.StartTLS()
	p.secure.Config.ErrorLog, p.h2.Config.ErrorLog = discard, discard
	t.Cleanup(func() { p.plain.Close(); p.secure.Close(); p.h2.Close() })
	raw := func(serve func(net.Conn)) string {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { l.Close() })
		go func() {
			for {
				c, err := l.Accept()
				if err != nil {
					return
				}
				go func() { defer c.Close(); serve(c) }()
			}
		}()
		return l.Addr().String()
	}
	p.silent = raw(func(c net.Conn) { _, _ = io.Copy(io.Discard, c) })
	p.closing = raw(func(c net.Conn) { _, _ = http.ReadRequest(bufio.NewReader(c)) })
	p.partial = raw(func(c net.Conn) {
		_, _ = http.ReadRequest(bufio.NewReader(c))
		_, _ = io.WriteString(c, "HTTP/1.1 200 OK\r\nContent-Length: 5\r\n")
	})
	var connections atomic.Int32
	p.impatient = raw(func(c net.Conn) {
		r := bufio.NewReader(c)
		first := connections.Add(1) == 1
		for n := 0; ; n++ {
			if _, err := http.ReadRequest(r); err != nil || first && n == 1 {
				return
			}
			_, _ = io.WriteString(c, "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")
		}
	})
	return p
}

// sent is an operation of the client target and a call that it must give.
type sent struct {
	op, url string
	want    []wanted
}

type wanted struct {
	method  string // GET if empty
	full    string // url.full; the operation's URL if empty
	status  int
	errType string
	version string // 1.1 if empty and there is a status
	resends int
	extra   string // another attribute that is allowed
	minimum time.Duration
}

func ok(w wanted) []wanted { w.status = 200; return []wanted{w} }

func failed(errType string) []wanted { return []wanted{{errType: errType}} }

func clientOperations(p *peers, goVersion string) []sent {
	plain := p.plain.URL
	host := strings.TrimPrefix(plain, "http://")
	late := func(errType string) []wanted {
		return []wanted{{errType: errType, minimum: 25 * time.Millisecond}} // its 50 ms begin before the call
	}
	list := []sent{
		{"get", plain + "/ok/1", ok(wanted{})},
		{"get", plain, []wanted{{full: plain, status: 404, errType: "404"}}},
		{"get", plain + "/status/204", []wanted{{status: 204}}},
		{"get", plain + "/status/404", []wanted{{status: 404, errType: "404"}}},
		{"get", plain + "/status/503", []wanted{{status: 503, errType: "503"}}},
		{"get", "http://me:secret@" + host + "/ok/2?token=secret", ok(wanted{full: "http://REDACTED:REDACTED@" + host + "/ok/2?REDACTED"})},
		{"get", plain + "/ok/a%2Fb%20c", ok(wanted{})},
		{"get", plain + "/ok/é", ok(wanted{full: plain + "/ok/%C3%A9"})},
		{"get", "http://localhost:" + host[strings.LastIndexByte(host, ':')+1:] + "/ok/3", ok(wanted{})},
		{"head", plain + "/ok/4", ok(wanted{method: "HEAD"})},
		{"odd", plain + "/ok/5", ok(wanted{method: "_OTHER", extra: "http.request.method_original"})},
		{"nometh", plain + "/ok/6", ok(wanted{})},
		{"post", plain + "/ok/7", ok(wanted{method: "POST"})},
		{"bare", plain + "/ok/8", ok(wanted{})},
		{"wrapped", plain + "/ok/9", ok(wanted{})},
		{"grow", plain + "/ok/10", ok(wanted{})},
		{"built", plain + "/ok/11", ok(wanted{})},
		{"get", plain + "/redirect/2", []wanted{
			{status: 302},
			{full: plain + "/redirect/1", status: 302, resends: 1},
			{full: plain + "/redirect/0", status: 200, resends: 2},
		}},
		{"retry", "http://" + p.impatient + "/r", append(ok(wanted{}), ok(wanted{resends: 1})...)},
		{"h2", p.h2.URL + "/ok/first", ok(wanted{version: "2"})},
		{"h2", p.h2.URL + "/ok/reused", ok(wanted{version: "2"})},
		{"h2", p.h2.URL + "/status/500", []wanted{{status: 500, errType: "500", version: "2"}}},
		{"h2", p.secure.URL + "/ok/https1", ok(wanted{})},
		{"h2deadline", p.h2.URL + "/hang/", late("timeout")},
		{"h2cancel", p.h2.URL + "/hang/", late("cancelled")},
		{"get", "http://127.0.0.1:1/refused", failed("connection_refused")},
		{"get", "http://no-such-host.invalid/", failed("name_resolution_error")},
		{"unverified", p.secure.URL + "/ok/x", failed("server_certificate_invalid")},
		{"h2", "https://" + host + "/ok/x", failed("tls_error")},
		{"timeout", "http://" + p.silent + "/t", late("timeout")},
		{"deadline", "http://" + p.silent + "/d", late("timeout")},
		{"cancel", "http://" + p.silent + "/c", late("cancelled")},
		{"cause", "http://" + p.silent + "/c", late("cancelled")},
		{"precancelled", plain + "/ok/never", failed("cancelled")},
		{"headertimeout", "http://" + p.silent + "/h", late("response_header_timeout")},
		{"tlstimeout", "https://" + p.silent + "/h", late("timeout")},
		{"proxy", plain + "/ok/proxied", failed("connection_refused")},
		{"get", "http://" + p.closing + "/e", failed("unexpected_eof")},
		{"get", "http://" + p.partial + "/e", failed("unexpected_eof")},
		{"scheme", plain + "/ok/y", []wanted{{full: "gopher://" + host + "/ok/y", errType: "unsupported_scheme"}}},
		{"cycle", plain + "/ok/cycle", ok(wanted{})},
		{"nowhere", plain + "/ok/nowhere", ok(wanted{})},
		{"deep", plain + "/ok/deep", ok(wanted{})},
		{"reporting", plain + "/ok/12", ok(wanted{})},
	}
	if atLeast(goVersion, 23) {
		list = append(list, sent{"panic", plain + "/ok/panic", failed("panic")})
	}
	parallel := sent{op: "parallel", url: plain + "/ok/p"}
	for i := range 100 {
		parallel.want = append(parallel.want, wanted{status: 200, full: fmt.Sprintf("%s/ok/p%d", plain, i)})
	}
	return append(list, parallel)
}

// allowedForClients are the attributes that a client's call may have.
var allowedForClients = map[string]bool{
	"http.request.method": true, "url.full": true, "http.response.status_code": true, "network.protocol.version": true, "error.type": true,
	"server.address": true, "server.port": true, "zerospan.route.guess": true, "http.request.resend_count": true,
}

func (w wanted) check(t *testing.T, o sent, c call) {
	t.Helper()
	equal := func(what string, got, want any) {
		t.Helper()
		if got != want {
			t.Errorf("%s %s: %s is %v, want %v", o.op, o.url, what, got, want)
		}
	}
	or := func(s, otherwise string) string {
		if s == "" {
			return otherwise
		}
		return s
	}
	full := or(w.full, o.url)
	version := w.version
	if version == "" && w.status != 0 {
		version = "1.1"
	}
	rest := full[strings.Index(full, "://")+3:]
	rest = rest[strings.IndexByte(rest, '@')+1:]
	host, _, _ := strings.Cut(rest, "/")
	address, port, _ := strings.Cut(host, ":")
	equal("kind", c.Kind, "client")
	equal("instrumentor", c.Instrumentor, "nethttp-client")
	equal("http.request.method", c.str("http.request.method"), or(w.method, "GET"))
	equal("url.full", c.str("url.full"), full)
	equal("http.response.status_code", c.num("http.response.status_code"), w.status)
	equal("error.type", c.str("error.type"), w.errType)
	equal("error", c.Error, w.errType != "")
	equal("network.protocol.version", c.str("network.protocol.version"), version)
	equal("http.request.resend_count", c.num("http.request.resend_count"), w.resends)
	equal("server.address", c.str("server.address"), address)
	equal("server.port", strconv.Itoa(c.num("server.port")), or(port, "80"))
	equal("parent", c.ParentSpanID, "")
	if d := time.Duration(c.DurationNS); d < w.minimum || d > w.minimum+5*time.Second {
		t.Errorf("%s %s: duration %v, want at least %v", o.op, o.url, d, w.minimum)
	}
	for key := range c.Attributes {
		if !allowedForClients[key] && key != w.extra {
			t.Errorf("%s %s: attribute %s is not on the list", o.op, o.url, key)
		}
	}
}

// operate has the client target run an operation and returns what it answers.
func (p *target) operate(t *testing.T, op, url string) string {
	t.Helper()
	if _, err := fmt.Fprintln(p.stdin, op, url); err != nil {
		t.Fatal(err)
	}
	line, err := p.out.ReadString('\n')
	if err != nil {
		t.Fatalf("the target ended in %s %s: %v", op, url, err)
	}
	return strings.TrimSpace(line)
}

func checkClient(t *testing.T, b build, list func(*peers, string) []sent, args ...string) {
	t.Helper()
	checkClientAfter(t, b, list, func(int) {}, args...)
}

// checkClientAfter calls before with the target's PID before each operation.
func checkClientAfter(t *testing.T, b build, list func(*peers, string) []sent, before func(pid int), args ...string) {
	t.Helper()
	peers := newPeers(t)
	p := start(t, b.make(t))
	z := trace(t, append(args, "--pid", strconv.Itoa(p.Process.Pid), "--print", "json")...)
	total := 0
	for _, o := range list(peers, b.goVersion) {
		before(p.Process.Pid)
		answer := p.operate(t, o.op, o.url)
		z.waitCalls(total + len(o.want))
		z.mu.Lock()
		calls := z.calls[total:]
		z.mu.Unlock()
		total += len(o.want)
		if failing := o.want[len(o.want)-1].status == 0; failing == (answer == "<nil>") {
			t.Errorf("%s %s: the target says %q", o.op, o.url, answer)
		}
		if len(calls) != len(o.want) {
			t.Fatalf("%s %s: %d calls, want %d: %+v", o.op, o.url, len(calls), len(o.want), calls)
		}
		if o.op == "parallel" {
			byURL := map[string]call{}
			for _, c := range calls {
				byURL[c.str("url.full")] = c
			}
			for i, w := range o.want {
				calls[i] = byURL[w.full]
			}
		}
		for i, w := range o.want {
			w.check(t, o, calls[i])
		}
	}
	calls := z.stop()
	if started, completed, open, exported := z.balance(); len(calls) != total || started != total || completed != total || open != 0 || exported != total {
		t.Errorf("balance: started %d completed %d open %d exported %d, %d calls printed, want %d", started, completed, open, exported, len(calls), total)
	}
}

func TestClientOperations(t *testing.T) {
	for _, version := range toolchains {
		modes := []string{"stripped", "pie"}
		if version == "1.26.5" {
			modes = append(modes, "normal", "cgo")
		}
		for _, mode := range modes {
			b := build{goVersion: version, dir: "client", mode: mode}
			t.Run(b.String(), func(t *testing.T) { checkClient(t, b, clientOperations) })
		}
	}
}

// pageOut has the kernel forget which pages of its files a process has touched, as
// memory pressure does: programs can't read them until the process touches them again.
func pageOut(t *testing.T, pid int) {
	t.Helper()
	fd, err := unix.PidfdOpen(pid, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fd)
	maps, err := os.ReadFile(fmt.Sprintf("/proc/%d/maps", pid))
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(maps)) {
		var from, to uintptr
		var mode string
		if _, err := fmt.Sscanf(line, "%x-%x %s", &from, &to, &mode); err != nil || !strings.Contains(line, " /") {
			continue
		}
		iov := struct{ base, len uintptr }{from, to - from}
		if _, _, errno := unix.Syscall6(unix.SYS_PROCESS_MADVISE, uintptr(fd), uintptr(unsafe.Pointer(&iov)), 1, unix.MADV_PAGEOUT, 0, 0); errno != 0 {
			t.Fatal("process_madvise: ", errno)
		}
	}
}

// TestClientColdPages: what a program can't read at the moment changes no outcome.
func TestClientColdPages(t *testing.T) {
	for _, b := range []build{
		{goVersion: "1.22.12", dir: "client", mode: "pie"}, {goVersion: "1.24.9", dir: "client", mode: "stripped"},
		{goVersion: "1.27.2", dir: "client", mode: "pie"},
	} {
		t.Run(b.String(), func(t *testing.T) {
			checkClientAfter(t, b, clientOperations, func(pid int) { pageOut(t, pid) })
		})
	}
}
