// Command tree is a traced process for the tests: a server whose handlers call a
// backend in all the ways in which work is handed on. Handler and backend calls
// carry the same number in their paths, so that who belongs to whom is known:
// /<way>/<number> calls <backend>/<way>/<number>.
package main

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"fmt"
	"io"
	"log"
	"math/big"
	"net"
	"net/http"
	"os"
	"strings"
	"sync"
	"time"
)

var (
	backend string
	client  = &http.Client{Transport: &http.Transport{MaxIdleConnsPerHost: 256}}
	limited = &http.Client{Transport: client.Transport, Timeout: 10 * time.Second} // its calls get a context of their own
	self    string
)

type key struct{ name string }

// own is a context as frameworks have them.
type own struct {
	context.Context
	more string
}

type outer struct {
	name string
	own
}

func call(c *http.Client, ctx context.Context, path string) {
	req, err := http.NewRequestWithContext(ctx, "GET", "http://"+backend+path, nil)
	check(err)
	resp, err := c.Do(req)
	if err != nil {
		return // some are cancelled on purpose
	}
	io.Copy(io.Discard, resp.Body)
	resp.Body.Close()
}

type job struct {
	ctx  context.Context
	path string
	done chan struct{}
}

func worker(jobs chan job) {
	for j := range jobs {
		call(client, j.ctx, j.path)
		close(j.done)
	}
}

// hand gives a job to a worker and waits for it.
func hand(jobs chan job, ctx context.Context, path string) {
	j := job{ctx, path, make(chan struct{})}
	jobs <- j
	<-j.done
}

func all(fs ...func()) {
	var wg sync.WaitGroup
	for _, f := range fs {
		wg.Add(1)
		go func(f func()) { defer wg.Done(); f() }(f)
	}
	wg.Wait()
}

func routes() http.Handler {
	background := context.Background()
	mux := http.NewServeMux()
	handle := func(way string, h func(ctx context.Context, path string)) {
		mux.HandleFunc("/"+way+"/", func(w http.ResponseWriter, r *http.Request) {
			h(r.Context(), r.URL.Path)
			io.WriteString(w, "ok")
		})
	}
	pool := make(chan job)
	for i := 0; i < 8; i++ {
		go worker(pool)
	}
	handle("plain", func(context.Context, string) {})
	handle("ctx", func(ctx context.Context, path string) { call(client, ctx, path) })
	handle("limited", func(ctx context.Context, path string) { call(limited, ctx, path) })
	handle("background", func(ctx context.Context, path string) { call(client, background, path) })
	handle("derived", func(ctx context.Context, path string) {
		for i := 0; i < 5; i++ {
			ctx = context.WithValue(ctx, key{"x"}, i)
		}
		ctx, cancel := context.WithTimeout(ctx, time.Minute)
		defer cancel()
		ctx, cancel2 := context.WithCancel(own{ctx, "y"})
		defer cancel2()
		all(func() { call(client, &outer{"z", own{ctx, "w"}}, path) }, func() { call(limited, ctx, path) })
	})
	// As errgroup does: goroutines with a context that is cancelled with them.
	handle("group", func(ctx context.Context, path string) {
		ctx, cancel := context.WithCancelCause(ctx)
		defer cancel(nil)
		all(func() { call(client, ctx, path) }, func() { call(client, ctx, path) }, func() { call(client, ctx, path) })
	})
	handle("without", func(ctx context.Context, path string) {
		all(func() { call(client, context.WithoutCancel(ctx), path) })
	})
	handle("pool", func(ctx context.Context, path string) { hand(pool, ctx, path) })
	// Nothing leads from a pool's worker to the request.
	handle("poolfree", func(ctx context.Context, path string) { hand(pool, background, path) })
	handle("go", func(ctx context.Context, path string) { all(func() { call(client, background, path) }) })
	handle("gowait", func(ctx context.Context, path string) {
		time.Sleep(time.Millisecond) // the handler may go on on another P
		all(func() { call(client, background, path) })
	})
	handle("go2", func(ctx context.Context, path string) { // two goroutines away
		all(func() { all(func() { call(client, background, path) }) })
	})
	// A worker that a request starts works for others as well, and longer than it.
	started := make(chan job)
	handle("starts", func(ctx context.Context, path string) { go worker(started) })
	handle("started", func(ctx context.Context, path string) { hand(started, background, path) })
	// A worker that a request starts which stays open works for others meanwhile.
	// Jobs are handed out once they wait for some: who takes up another request's work
	// before it has ever waited can't be told from who works for its starter.
	lazy, ready := make(chan job), make(chan struct{})
	var once sync.Once
	handle("holds", func(ctx context.Context, path string) {
		once.Do(func() {
			for i := 0; i < 4; i++ {
				go worker(lazy)
			}
			time.Sleep(20 * time.Millisecond)
			close(ready)
		})
		<-ctx.Done()
	})
	handle("lazy", func(ctx context.Context, path string) {
		<-ready
		hand(lazy, background, path)
	})
	// The request is over when the call is made.
	handle("after", func(ctx context.Context, path string) {
		go func() {
			<-ctx.Done()
			time.Sleep(5 * time.Millisecond)
			call(client, context.WithoutCancel(ctx), path)
		}()
	})
	handle("nested", func(ctx context.Context, path string) {
		req, err := http.NewRequestWithContext(ctx, "GET", "http://"+self+strings.Replace(path, "nested", "ctx", 1), nil)
		check(err)
		if resp, err := client.Do(req); err == nil {
			io.Copy(io.Discard, resp.Body)
			resp.Body.Close()
		}
	})
	mux.Handle("/within/", http.TimeoutHandler(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		call(client, r.Context(), r.URL.Path)
	}), 10*time.Second, "too slow"))
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		mux.ServeHTTP(w, r.WithContext(context.WithValue(r.Context(), key{"middleware"}, 1)))
	})
}

func check(err error) {
	if err != nil {
		log.Fatal(err)
	}
}

func main() {
	backend = os.Args[1]
	l, err := net.Listen("tcp", "127.0.0.1:0")
	check(err)
	secure, err := net.Listen("tcp", "127.0.0.1:0")
	check(err)
	self = l.Addr().String()
	handler := routes()
	go http.Serve(l, handler)

	private, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	check(err)
	cert := &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "localhost"},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour), IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)}}
	der, err := x509.CreateCertificate(rand.Reader, cert, cert, &private.PublicKey, private)
	check(err)
	srv := &http.Server{Handler: handler, ErrorLog: log.New(io.Discard, "", 0),
		TLSConfig: &tls.Config{Certificates: []tls.Certificate{{Certificate: [][]byte{der}, PrivateKey: private}}}}
	go srv.ServeTLS(secure, "", "")

	// Calls that no request has to do with.
	go func() {
		for i := 0; ; i++ {
			time.Sleep(10 * time.Millisecond)
			call(client, context.Background(), fmt.Sprintf("/periodic/%d", i))
		}
	}()
	fmt.Println("ready", l.Addr(), secure.Addr())
	io.Copy(io.Discard, os.Stdin)
}
