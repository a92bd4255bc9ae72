package main

import (
	"context"
	"crypto/tls"
	"fmt"
	"io"
	"log"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"sync/atomic"

	"github.com/zerospan/zerospan/test/kernels"
)

// serve is what the targets talk to; the replacer knows its addresses.
func serve() *strings.Replacer {
	mux := http.NewServeMux()
	mux.HandleFunc("/", func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, "ok") })
	mux.HandleFunc("/status/404", http.NotFound)
	mux.HandleFunc("/hang/", func(_ http.ResponseWriter, r *http.Request) { <-r.Context().Done() })
	plain, secure := httptest.NewServer(mux), httptest.NewUnstartedServer(mux)
	secure.EnableHTTP2, secure.Config.ErrorLog = true, log.New(io.Discard, "", 0)
	secure.StartTLS()
	return strings.NewReplacer("{backend}", plain.Listener.Addr().String(), "{backend2}", secure.Listener.Addr().String())
}

// work has the targets do the steps.
type work struct {
	targets   map[string]*process
	words     map[string][]string // what a target said when it was ready
	addresses *strings.Replacer
	h1, h2    *http.Client
}

func newWork(targets map[string]*process, addresses *strings.Replacer) *work {
	w := &work{targets: targets, words: map[string][]string{}, addresses: addresses, h1: &http.Client{Timeout: patience},
		h2: &http.Client{Timeout: patience, Transport: &http.Transport{ForceAttemptHTTP2: true, TLSClientConfig: &tls.Config{InsecureSkipVerify: true}}}}
	for name, p := range targets {
		line, err := p.out.ReadString('\n')
		if err != nil {
			err = fmt.Errorf("%s did not start: %w", name, err)
		}
		check(err)
		w.words[name] = strings.Fields(line)
	}
	return w
}

// run does each step as often as it says, or once, and returns how often in all.
// Targets work beside one another, and a server on several connections.
func (w *work) run(once bool) int {
	type job struct {
		step   kernels.Step
		number string
	}
	queues := map[string]chan job{}
	var workers sync.WaitGroup
	var done atomic.Int64
	for name, t := range kernels.Targets {
		q := make(chan job)
		queues[name] = q
		n := 4
		if t.Reads {
			n = 1
		}
		for range n {
			workers.Go(func() {
				for j := range q {
					if err := w.do(t, j.step, j.number); err != nil {
						failed("%s: %s: %v", name, j.step.Do, err)
					}
					done.Add(1)
				}
			})
		}
	}
	last := ""
	kernels.EachRun(func(s kernels.Step, number string) {
		if id := s.Target + s.Do; !once || id != last {
			last = id
			queues[s.Target] <- job{s, number}
		}
	})
	for _, q := range queues {
		close(q)
	}
	workers.Wait()
	return int(done.Load())
}

func (w *work) do(t kernels.Target, s kernels.Step, number string) error {
	do := strings.ReplaceAll(w.addresses.Replace(s.Do), "/N", "/"+number)
	p := w.targets[s.Target]
	if t.Reads {
		if _, err := fmt.Fprintln(p.in, do); err != nil {
			return err
		}
		if _, err := p.out.ReadString('\n'); err != nil {
			return fmt.Errorf("no answer: %w", err)
		}
		return nil
	}
	client, base := w.h1, "http://"+w.words[s.Target][1]
	do, h2 := strings.CutPrefix(do, "h2 ")
	if h2 {
		client, base = w.h2, "https://"+w.words[s.Target][2]
	}
	// On a connection that was used before, a request without an answer is sent again.
	do, alone := strings.CutPrefix(do, "alone ")
	if alone {
		client = &http.Client{Timeout: patience, Transport: &http.Transport{DisableKeepAlives: true}}
	}
	method, path, _ := strings.Cut(do, " ")
	req, err := http.NewRequestWithContext(context.Background(), method, base+path, nil)
	if err != nil {
		return err
	}
	resp, err := client.Do(req)
	if err != nil {
		if alone { // there is no answer
			return nil
		}
		return err
	}
	_, _ = io.Copy(io.Discard, resp.Body)
	return resp.Body.Close()
}
