// Command client is a traced process for the tests: it makes HTTP requests as it
// is told on standard input, one operation a line, and answers each with what
// came of it. It builds with Go 1.18 to 1.27.
package main

import (
	"bufio"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os"
	"strconv"
	"strings"
	"time"
)

func insecure() *http.Transport {
	return &http.Transport{ForceAttemptHTTP2: true, TLSClientConfig: &tls.Config{InsecureSkipVerify: true}}
}

var (
	plain = &http.Client{Transport: &http.Transport{}}
	h2    = &http.Client{Transport: insecure()}
)

func request(ctx context.Context, method, url string) *http.Request {
	req, err := http.NewRequestWithContext(ctx, method, url, nil)
	if err != nil {
		panic(err)
	}
	return req
}

func finish(resp *http.Response, err error) error {
	if err != nil {
		return err
	}
	io.Copy(io.Discard, resp.Body)
	return resp.Body.Close()
}

func do(c *http.Client, req *http.Request) error { return finish(c.Do(req)) }

func get(c *http.Client, url string) error {
	return do(c, request(context.Background(), "GET", url))
}

// deep makes the stack grow within the operation.
func deep(n int, f func() error) error {
	var pad [512]byte
	pad[n%512] = 1
	if n == 0 {
		return f()
	}
	err := deep(n-1, f)
	pad[0]++
	return err
}

func with(change func(*http.Transport)) *http.Client {
	t := &http.Transport{}
	change(t)
	return &http.Client{Transport: t}
}

// wrapped is a transport that another package might bring.
type wrapped struct{ http.RoundTripper }

func (w wrapped) RoundTrip(r *http.Request) (*http.Response, error) {
	return w.RoundTripper.RoundTrip(r.Clone(r.Context()))
}

var operations = map[string]func(url string) error{
	"get":    func(u string) error { return get(plain, u) },
	"h2":     func(u string) error { return get(h2, u) },
	"head":   func(u string) error { return do(plain, request(context.Background(), "HEAD", u)) },
	"odd":    func(u string) error { return do(plain, request(context.Background(), "BREW", u)) },
	"nometh": func(u string) error { r := request(context.Background(), "GET", u); r.Method = ""; return do(plain, r) },
	"post": func(u string) error {
		return finish(plain.Post(u, "text/plain", strings.NewReader("hello")))
	},
	"bare": func(u string) error {
		return finish((&http.Transport{DisableKeepAlives: true}).RoundTrip(request(context.Background(), "GET", u)))
	},
	"wrapped": func(u string) error { return get(&http.Client{Transport: wrapped{plain.Transport}}, u) },
	"grow": func(u string) error {
		result := make(chan error)
		go func() { result <- deep(100, func() error { return get(plain, u) }) }()
		return <-result
	},
	"built": func(u string) error { // a URL that was not parsed in one piece
		p, err := url.Parse(u)
		if err != nil {
			return err
		}
		r := request(context.Background(), "GET", "http://x/")
		r.URL = &url.URL{Scheme: p.Scheme, Host: string([]byte(p.Host)), Path: p.Path}
		r.Host = "other.example"
		return do(plain, r)
	},
	"unverified": func(u string) error { return get(with(func(t *http.Transport) { t.ForceAttemptHTTP2 = true }), u) },
	"timeout": func(u string) error {
		return get(&http.Client{Transport: &http.Transport{}, Timeout: 50 * time.Millisecond}, u)
	},
	"deadline": func(u string) error {
		ctx, cancel := context.WithTimeout(context.Background(), 50*time.Millisecond)
		defer cancel()
		return do(plain, request(ctx, "GET", u))
	},
	"h2deadline": func(u string) error {
		ctx, cancel := context.WithTimeout(context.Background(), 50*time.Millisecond)
		defer cancel()
		return do(h2, request(ctx, "GET", u))
	},
	"cancel": func(u string) error {
		ctx, cancel := context.WithCancel(context.Background())
		time.AfterFunc(50*time.Millisecond, cancel)
		return do(plain, request(ctx, "GET", u))
	},
	"h2cancel": func(u string) error {
		ctx, cancel := context.WithCancel(context.Background())
		time.AfterFunc(50*time.Millisecond, cancel)
		return do(h2, request(ctx, "GET", u))
	},
	"precancelled": func(u string) error {
		ctx, cancel := context.WithCancel(context.Background())
		cancel()
		return do(plain, request(ctx, "GET", u))
	},
	"headertimeout": func(u string) error {
		return get(with(func(t *http.Transport) { t.ResponseHeaderTimeout = 50 * time.Millisecond }), u)
	},
	"tlstimeout": func(u string) error {
		return get(with(func(t *http.Transport) { t.TLSHandshakeTimeout = 50 * time.Millisecond }), u)
	},
	"proxy": func(u string) error { // refused by the proxy's address
		p, _ := url.Parse("http://127.0.0.1:1")
		return get(with(func(t *http.Transport) { t.Proxy = http.ProxyURL(p) }), u)
	},
	"scheme": func(u string) error { return get(plain, strings.Replace(u, "http:", "gopher:", 1)) },
	"panic": func(u string) (err error) {
		defer func() { err = fmt.Errorf("recovered: %v", recover()) }()
		return get(with(func(t *http.Transport) { t.Proxy = func(*http.Request) (*url.URL, error) { panic("as asked") } }), u)
	},
	"reporting": func(u string) (err error) { // a call while a panic is being handled
		defer func() {
			recover()
			err = get(plain, u)
		}()
		panic(errors.New("to be reported"))
	},
	// Contexts that lead to themselves, to nothing, and further than anybody looks.
	"cycle": func(u string) error {
		c := &loop{Context: context.Background()}
		c.Context = c
		return do(plain, request(c, "GET", u))
	},
	"nowhere": func(u string) error { return do(plain, request(&loop{}, "GET", u)) },
	"deep": func(u string) error {
		ctx := context.Background()
		for i := 0; i < 200; i++ {
			ctx = context.WithValue(ctx, keyType(i), i)
		}
		return do(plain, request(ctx, "GET", u))
	},
	// The first request leaves a connection that the server closes under the second.
	"retry": func(u string) error {
		if err := get(plain, u); err != nil {
			return err
		}
		return get(plain, u)
	},
	"parallel": func(u string) error {
		const n = 100
		results := make(chan error)
		for i := 0; i < n; i++ {
			go func(i int) { results <- get(plain, u+strconv.Itoa(i)) }(i)
		}
		var err error
		for i := 0; i < n; i++ {
			if e := <-results; e != nil {
				err = e
			}
		}
		return err
	},
}

// loop is a context whose embedded one is never asked.
type loop struct{ context.Context }

func (*loop) Done() <-chan struct{}             { return nil }
func (*loop) Err() error                        { return nil }
func (*loop) Value(interface{}) interface{}     { return nil }
func (*loop) Deadline() (t time.Time, set bool) { return }

type keyType int

func main() {
	fmt.Println("ready")
	lines := bufio.NewScanner(os.Stdin)
	for lines.Scan() {
		words := strings.Fields(lines.Text())
		err := operations[words[0]](words[1])
		plain.CloseIdleConnections()
		fmt.Println(strings.ReplaceAll(fmt.Sprint(err), "\n", " "))
	}
}
