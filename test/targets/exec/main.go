// Command exec is a traced process for the tests: a server whose handlers run
// commands. It answers with the error of the last one.
package main

import (
	"context"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"
)

// deep calls f with n small frames below it.
func deep(n int, f func() error) error {
	if n == 0 {
		return f()
	}
	return deep(n-1, f)
}

func main() {
	dir := os.Args[1] // an empty folder of the test's
	long := filepath.Join(dir, strings.Repeat("d", 100), "long-way")
	check(os.MkdirAll(filepath.Dir(long), 0o755))
	check(os.WriteFile(long, []byte("#!/bin/sh\n"), 0o755))
	denied := filepath.Join(dir, "denied")
	check(os.WriteFile(denied, nil, 0o644))

	jobs := make(chan *exec.Cmd)
	results := make(chan error)
	go func() {
		for cmd := range jobs {
			results <- cmd.Run()
		}
	}()

	ways := map[string]func(ctx context.Context) error{
		"true":    func(context.Context) error { return exec.Command("true").Run() },
		"false":   func(context.Context) error { return exec.Command("false").Run() },
		"exit3":   func(context.Context) error { return exec.Command("sh", "-c", "exit 3").Run() },
		"killed":  func(context.Context) error { return exec.Command("sh", "-c", "kill -9 $$").Run() },
		"missing": func(context.Context) error { return exec.Command("no-such-command").Run() },
		"denied":  func(context.Context) error { return exec.Command(denied).Run() },
		"long":    func(context.Context) error { return exec.Command(long).Run() },
		"output": func(context.Context) error {
			_, err := exec.Command("echo", "x").Output()
			return err
		},
		// Another goroutine: only the context leads to the request.
		"context": func(ctx context.Context) error {
			jobs <- exec.CommandContext(ctx, "true")
			return <-results
		},
		// Nothing leads to it.
		"elsewhere": func(context.Context) error {
			jobs <- exec.Command("true")
			return <-results
		},
		"cancelled": func(ctx context.Context) error {
			ctx, cancel := context.WithCancel(ctx)
			cancel()
			return exec.CommandContext(ctx, "true").Run()
		},
		"timeout": func(ctx context.Context) error {
			ctx, cancel := context.WithTimeout(ctx, 50*time.Millisecond)
			defer cancel()
			return exec.CommandContext(ctx, "sleep", "60").Run()
		},
		"two": func(context.Context) error {
			if err := exec.Command("false").Run(); err == nil {
				return fmt.Errorf("false succeeded")
			}
			return exec.Command("true").Run()
		},
		// Not what is traced.
		"wait": func(context.Context) error {
			cmd := exec.Command("false")
			if err := cmd.Start(); err != nil {
				return err
			}
			return cmd.Wait()
		},
		// At one of the depths it is the call of Run that has to grow the stack.
		"grow": func(context.Context) error {
			var err error
			for n := 0; n < 256; n++ {
				run := exec.Command("no-such-command").Run
				ended := make(chan error)
				go func(n int) { ended <- deep(n, run) }(n)
				err = <-ended
			}
			return err
		},
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	check(err)
	go http.Serve(l, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		fmt.Fprint(w, ways[strings.TrimPrefix(r.URL.Path, "/")](r.Context()))
	}))
	fmt.Println("ready", l.Addr())
	io.Copy(io.Discard, os.Stdin)
}

func check(err error) {
	if err != nil {
		log.Fatal(err)
	}
}
