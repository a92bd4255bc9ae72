package live

import (
	"context"
	"crypto/tls"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"net/http/httptest"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
)

// way is a way in which the tree target hands work on.
type way struct {
	name  string
	calls int  // that the handler makes to the backend
	free  bool // nothing but the starting goroutine leads to the request: a parent may be missing
	none  bool // there must be no parent
}

var ways = []way{
	{name: "plain"},
	{name: "ctx", calls: 1},
	{name: "limited", calls: 1},
	{name: "background", calls: 1},
	{name: "derived", calls: 2},
	{name: "group", calls: 3},
	{name: "without", calls: 1},
	{name: "pool", calls: 1},
	{name: "poolfree", calls: 1, none: true},
	{name: "go", calls: 1, free: true},
	{name: "gowait", calls: 1, free: true},
	{name: "go2", calls: 1, none: true},
	{name: "started", calls: 1, none: true},
	{name: "lazy", calls: 1, none: true},
	{name: "after", calls: 1, none: true},
	{name: "nested", calls: 1},
	{name: "within", calls: 1},
}

// forest is what a traced tree target did.
type forest struct {
	servers map[string]call // by path
	clients map[string][]call
	found   map[string][2]int // by way: calls that have their parent, and all
}

// plant collects calls of the tree target.
func plant(t *testing.T, calls []call) *forest {
	f := &forest{servers: map[string]call{}, clients: map[string][]call{}, found: map[string][2]int{}}
	for _, c := range calls {
		if c.Kind == "server" {
			path := c.str("url.path")
			if _, twice := f.servers[path]; twice {
				t.Fatalf("two server calls for %s", path)
			}
			f.servers[path] = c
			continue
		}
		_, path, _ := strings.Cut(strings.TrimPrefix(c.str("url.full"), "http://"), "/")
		f.clients["/"+path] = append(f.clients["/"+path], c)
	}
	return f
}

// check compares each call's parent with the request that it was made for.
func (f *forest) check(t *testing.T, sent map[string]way) {
	byID := map[string]call{}
	for _, s := range f.servers {
		byID[s.SpanID] = s
	}
	errors := 0
	fail := func(format string, args ...any) {
		if errors++; errors <= 20 {
			t.Errorf(format, args...)
		}
	}
	for path, s := range f.servers {
		if s.ParentSpanID != "" {
			fail("%s has a parent, though nobody sent one", path)
		}
	}
	for path, w := range sent {
		s, ok := f.servers[path]
		if !ok {
			fail("no server call for %s", path)
			continue
		}
		if got := len(f.clients[path]); got != w.calls && w.name != "nested" {
			fail("%s: %d client calls, want %d", path, got, w.calls)
		}
		children := f.clients[path]
		if w.name == "nested" { // it calls /ctx of this server, which calls the backend
			inner := strings.Replace(path, "nested", "ctx", 1)
			children = nil
			for _, c := range f.clients[inner] {
				want := f.servers[inner]
				if !strings.Contains(c.str("url.full"), backendOf(f, inner)) {
					want = s
				}
				if c.ParentSpanID != want.SpanID || c.TraceID != want.TraceID {
					fail("%s within %s has the wrong parent: %+v", inner, path, c)
				}
			}
			if got := len(f.clients[inner]); got != 2 {
				fail("%s: %d client calls to %s, want 2", path, got, inner)
			}
		}
		for _, c := range children {
			count := f.found[w.name]
			count[1]++
			switch {
			case c.ParentSpanID == "" && (w.none || w.free):
			case c.ParentSpanID == s.SpanID && c.TraceID == s.TraceID && !w.none:
				count[0]++
			default:
				fail("%s: parent %q (%s), want %q", path, c.ParentSpanID, byID[c.ParentSpanID].str("url.path"), s.SpanID)
			}
			f.found[w.name] = count
		}
	}
	for path, children := range f.clients {
		if !strings.HasPrefix(path, "/periodic/") {
			continue
		}
		for _, c := range children {
			if c.ParentSpanID != "" {
				fail("%s has a parent: %s", path, byID[c.ParentSpanID].str("url.path"))
			}
		}
	}
	if errors > 20 {
		t.Errorf("and %d more", errors-20)
	}
}

// backendOf returns the address that the call to the backend went to: of the two
// clients of path, the one whose port is not the server's own.
func backendOf(f *forest, path string) string {
	own := fmt.Sprintf(":%d/", f.servers[path].num("server.port"))
	for _, c := range f.clients[path] {
		if !strings.Contains(c.str("url.full"), own) {
			return strings.TrimSuffix(strings.TrimPrefix(c.str("url.full"), "http://"), path)
		}
	}
	return "nowhere"
}

// grow sends n mixed requests over several connections, half of them HTTP/2, and
// returns what was sent by path.
func grow(t *testing.T, p *target, n, workers int) map[string]way {
	h1 := &http.Client{Transport: &http.Transport{MaxIdleConnsPerHost: workers}}
	h2 := &http.Client{Transport: &http.Transport{ForceAttemptHTTP2: true, TLSClientConfig: &tls.Config{InsecureSkipVerify: true}}}
	single := &http.Client{Transport: &http.Transport{DisableKeepAlives: true}}
	defer h1.CloseIdleConnections()
	defer h2.CloseIdleConnections()
	sent := map[string]way{}
	var mu sync.Mutex
	var next atomic.Int64
	var wg sync.WaitGroup
	get := func(c *http.Client, base, path string) {
		resp, err := c.Get(base + path)
		if err != nil {
			t.Error(err)
			return
		}
		_, _ = io.Copy(io.Discard, resp.Body)
		resp.Body.Close()
	}
	for i := range 4 { // each starts a worker that outlives it
		path := fmt.Sprintf("/starts/%d", i)
		get(h1, "http://"+p.words[1], path)
		sent[path] = way{name: "starts"}
	}
	// Two that start workers and stay open until all is done, over HTTP/1 and HTTP/2.
	hold, release := context.WithCancel(context.Background())
	var held sync.WaitGroup
	for c, base := range map[*http.Client]string{h1: "http://" + p.words[1], h2: "https://" + p.words[2]} {
		path := fmt.Sprintf("/holds/%d", len(sent))
		sent[path] = way{name: "holds"}
		held.Go(func() {
			req, _ := http.NewRequestWithContext(hold, "GET", base+path, nil)
			if resp, err := c.Do(req); err == nil {
				resp.Body.Close()
			}
		})
	}
	for range workers {
		wg.Go(func() {
			for i := next.Add(1); i <= int64(n); i = next.Add(1) {
				w := ways[rand.IntN(len(ways))]
				path := fmt.Sprintf("/%s/%d", w.name, i)
				mu.Lock()
				sent[path] = w
				mu.Unlock()
				switch rand.IntN(8) {
				case 0, 1, 2:
					get(h2, "https://"+p.words[2], path)
				case 3:
					get(single, "http://"+p.words[1], path)
				default:
					get(h1, "http://"+p.words[1], path)
				}
			}
		})
	}
	wg.Wait()
	release()
	held.Wait()
	return sent
}

func newBackend(t *testing.T) string {
	backend := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, "ok") }))
	t.Cleanup(backend.Close)
	return strings.TrimPrefix(backend.URL, "http://")
}

func (f *forest) report(t *testing.T) {
	for _, w := range ways {
		if c := f.found[w.name]; c[1] > 0 {
			t.Logf("%-10s %6d calls, %6.2f %% with their parent", w.name, c[1], 100*float64(c[0])/float64(c[1]))
		}
	}
}

// expected counts the calls that requests must give.
func expected(sent map[string]way) (n int) {
	for _, w := range sent {
		n += 1 + w.calls
		if w.name == "nested" { // the call to itself, the server call, its call to the backend
			n += 2
		}
	}
	return n
}

func checkTree(t *testing.T, b build, requests, workers int, args ...string) {
	p := start(t, b.make(t), newBackend(t))
	z := trace(t, append(args, "--pid", strconv.Itoa(p.Process.Pid), "--print", "json", "--ring-size", strconv.Itoa(64<<20))...)
	sent := grow(t, p, requests, workers)
	seen, asked, want := 0, 0, expected(sent)
	z.wait("all calls that requests asked for", func() bool {
		for ; seen < len(z.calls); seen++ {
			if !strings.Contains(z.calls[seen].str("url.full"), "/periodic/") {
				asked++
			}
		}
		return asked >= want
	})
	f := plant(t, z.stop())
	f.check(t, sent)
	f.report(t)
}

func TestTrees(t *testing.T) {
	for _, b := range []build{
		{goVersion: "1.21.13", dir: "tree", mode: "stripped"},
		{goVersion: "1.22.12", dir: "tree", mode: "pie"},
		{goVersion: "1.24.9", dir: "tree", mode: "pie"},
		{goVersion: "1.26.5", dir: "tree", mode: "normal"},
		{goVersion: "1.27.2", dir: "tree", mode: "stripped"},
	} {
		t.Run(b.String(), func(t *testing.T) { checkTree(t, b, 2000, 16) })
	}
}

// TestTreesOfMany: not one wrong parent in 100,000 requests at a time as many as
// the machine can do.
func TestTreesOfMany(t *testing.T) {
	if testing.Short() {
		t.Skip("100,000 requests are not short")
	}
	checkTree(t, build{goVersion: "1.26.5", dir: "tree", mode: "stripped"}, 100_000, 64)
}
