package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"net"
	"net/http"
	"os"
	"os/exec"
	"strings"
	"time"

	"github.com/zerospan/zerospan/agent"
)

type demoCmd struct {
	output
	Duration time.Duration `help:"How long." default:"10s"`
}

// Run starts this executable once more as a service, sends it requests and
// traces it by its PID like any other process.
func (c *demoCmd) Run(s *streams, log *slog.Logger, ctx bindContext) error {
	exe, err := os.Executable()
	if err != nil {
		return err
	}
	service := exec.CommandContext(ctx, exe, "demo-service")
	service.Stderr = s.err
	out, err := service.StdoutPipe()
	if err != nil {
		return err
	}
	stdin, err := service.StdinPipe() // the service ends with it
	if err != nil {
		return err
	}
	defer stdin.Close()
	if err := service.Start(); err != nil {
		return fmt.Errorf("start the demo service: %w", err)
	}
	address, err := bufio.NewReader(out).ReadString('\n')
	if err != nil {
		return fmt.Errorf("the demo service did not start: %w", err)
	}
	url := "http://" + strings.TrimSpace(address)
	fmt.Fprintf(s.err, "A small shop is running as process %d on %s; zerospan attaches to it by its PID.\n", service.Process.Pid, url)
	if c.ServiceName == "" {
		c.ServiceName = "demo-shop"
	}
	bound, cancel := context.WithTimeout(ctx, c.Duration)
	defer cancel()
	err = c.trace(bound, s, log, agent.Config{PIDs: []int{service.Process.Pid}}, func() { demoTraffic(bound, url) })
	_ = service.Process.Kill() // it may have ended already
	_ = service.Wait()
	if err == nil {
		fmt.Fprintf(s.err, "\nTo see these calls in Jaeger: zerospan demo --otlp-endpoint http://localhost:4317\nTo trace a process of yours:   zerospan --pid PID\n")
	}
	return err
}

// demoTraffic sends a mix of requests, some of which fail, until ctx ends.
func demoTraffic(ctx context.Context, url string) {
	client := &http.Client{Timeout: 2 * time.Second}
	send := func(method, path string) {
		req, err := http.NewRequestWithContext(ctx, method, url+path, nil)
		if err != nil {
			return
		}
		req.Header.Set("User-Agent", "demo-traffic/1.0")
		if resp, err := client.Do(req); err == nil {
			_, _ = io.Copy(io.Discard, resp.Body)
			_ = resp.Body.Close()
		}
	}
	for ctx.Err() == nil {
		switch n := rand.IntN(20); {
		case n < 9:
			send("GET", fmt.Sprintf("/products/%d", rand.IntN(40)))
		case n < 13:
			send("GET", "/products")
		case n < 16:
			send("POST", "/checkout")
		case n < 17:
			send("GET", "/report")
		case n < 18:
			send("GET", "/favicon.ico")
		case n < 19:
			send("GET", "/products/0")
		default:
			send("GET", "/broken")
		}
		select {
		case <-ctx.Done():
		case <-time.After(time.Duration(20+rand.IntN(60)) * time.Millisecond):
		}
	}
}

type demoServiceCmd struct{}

// Run serves the demo's shop until its standard input is closed.
func (demoServiceCmd) Run(s *streams) error {
	pause := func(from, to int) { time.Sleep(time.Duration(from+rand.IntN(to-from)) * time.Millisecond) }
	mux := http.NewServeMux()
	mux.HandleFunc("GET /products", func(w http.ResponseWriter, _ *http.Request) {
		pause(2, 12)
		fmt.Fprintln(w, "forty products")
	})
	mux.HandleFunc("GET /products/{id}", func(w http.ResponseWriter, r *http.Request) {
		pause(1, 5)
		if r.PathValue("id") == "0" {
			http.NotFound(w, r)
			return
		}
		fmt.Fprintln(w, "product", r.PathValue("id"))
	})
	var address string
	mux.HandleFunc("POST /checkout", func(w http.ResponseWriter, r *http.Request) {
		pause(5, 20)
		req, err := http.NewRequestWithContext(r.Context(), "POST", "http://"+address+"/payments", nil)
		if err != nil {
			http.Error(w, err.Error(), http.StatusInternalServerError)
			return
		}
		resp, err := http.DefaultClient.Do(req)
		if err != nil {
			http.Error(w, err.Error(), http.StatusBadGateway)
			return
		}
		defer resp.Body.Close()
		if resp.StatusCode != http.StatusOK {
			http.Error(w, "no payment, no goods", http.StatusBadGateway)
			return
		}
		w.WriteHeader(http.StatusCreated)
	})
	mux.HandleFunc("POST /payments", func(w http.ResponseWriter, _ *http.Request) {
		pause(10, 40)
		if rand.IntN(5) == 0 {
			http.Error(w, "the card was declined by a machine", http.StatusPaymentRequired)
		}
	})
	mux.HandleFunc("GET /report", func(w http.ResponseWriter, _ *http.Request) {
		pause(300, 600)
		fmt.Fprintln(w, "all is well")
	})
	mux.HandleFunc("GET /broken", func(http.ResponseWriter, *http.Request) { panic("demo: this handler is broken") })
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return err
	}
	address = l.Addr().String()
	fmt.Fprintln(s.out, address)
	server := &http.Server{
		Handler: mux, ReadHeaderTimeout: 5 * time.Second,
		ErrorLog: slog.NewLogLogger(slog.NewTextHandler(io.Discard, nil), slog.LevelError), // the panic is part of the show
	}
	go func() {
		_, _ = io.Copy(io.Discard, os.Stdin)
		_ = server.Close()
	}()
	if err := server.Serve(l); !errors.Is(err, http.ErrServerClosed) {
		return err
	}
	return nil
}
