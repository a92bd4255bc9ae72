// Command bench is the traced process of the benchmark. Without arguments it
// serves /hello the plain way; with "realistic" it adds what services have:
// routes with a parameter behind middleware that copies the request. /call calls
// /hello of the same process. With "client" it makes requests, as many as it can,
// for the time that each line of its standard input says.
package main

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"time"
)

type key struct{}

func main() {
	mux := http.NewServeMux()
	mux.HandleFunc("/hello", func(w http.ResponseWriter, r *http.Request) { io.WriteString(w, "hello") })
	var handler http.Handler = mux
	var self string
	pooled := &http.Client{Transport: &http.Transport{MaxIdleConnsPerHost: 256}}
	mux.HandleFunc("/call", func(w http.ResponseWriter, r *http.Request) {
		req, err := http.NewRequestWithContext(r.Context(), "GET", "http://"+self+"/hello", nil)
		if err == nil {
			err = get(pooled, req)
		}
		if err != nil {
			http.Error(w, err.Error(), http.StatusBadGateway)
			return
		}
		io.WriteString(w, "called")
	})
	if len(os.Args) > 1 && os.Args[1] == "client" {
		client(pooled)
		return
	}
	if len(os.Args) > 1 && os.Args[1] == "realistic" {
		handler = realistic(mux)
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		panic(err)
	}
	self = l.Addr().String()
	fmt.Println("ready", self)
	go http.Serve(l, handler)
	io.Copy(io.Discard, os.Stdin)
}

func realistic(mux *http.ServeMux) http.Handler {
	mux.HandleFunc("GET /users/{id}/orders", func(w http.ResponseWriter, r *http.Request) {
		if strings.HasSuffix(r.PathValue("id"), "13") {
			http.Error(w, "no luck", http.StatusInternalServerError)
			return
		}
		w.Header().Set("Content-Type", "application/json")
		io.WriteString(w, `{"orders":[]}`)
	})
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		mux.ServeHTTP(w, r.WithContext(context.WithValue(r.Context(), key{}, "user")))
	})
}

func get(c *http.Client, req *http.Request) error {
	resp, err := c.Do(req)
	if err != nil {
		return err
	}
	io.Copy(io.Discard, resp.Body)
	return resp.Body.Close()
}

// client reads "address connections seconds", makes requests for so long and
// answers with how many succeeded, how many failed and how long it took, in ns.
func client(c *http.Client) {
	fmt.Println("ready -")
	for {
		var address string
		var conns int
		var seconds float64
		if _, err := fmt.Scanln(&address, &conns, &seconds); err != nil {
			return
		}
		began := time.Now()
		until := began.Add(time.Duration(seconds * float64(time.Second)))
		var done, failed int64
		var wg sync.WaitGroup
		for i := 0; i < conns; i++ {
			wg.Add(1)
			go func() {
				defer wg.Done()
				for {
					req, err := http.NewRequest("GET", "http://"+address+"/hello", nil)
					if err == nil {
						err = get(c, req)
					}
					if err != nil {
						atomic.AddInt64(&failed, 1)
					}
					if atomic.AddInt64(&done, 1); time.Now().After(until) {
						return
					}
				}
			}()
		}
		wg.Wait()
		fmt.Println(done, failed, time.Since(began).Nanoseconds())
	}
}
