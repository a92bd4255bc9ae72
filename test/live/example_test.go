package live

import (
	"fmt"
	"io"
	"net/http"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
)

// ran is a command that the exec target runs.
type ran struct {
	name    string // process.executable.name
	exit    string // process.exit.code; none if empty
	errType string
	orphan  bool // nothing leads from it to the request
	minimum time.Duration
}

// requestsToExec are the target's requests and the commands that each must give.
func requestsToExec() map[string][]ran {
	missing := ran{name: "no-such-command", errType: "*exec.Error"}
	return map[string][]ran{
		"true":      {{name: "true", exit: "0"}},
		"false":     {{name: "false", exit: "1", errType: "1"}},
		"exit3":     {{name: "sh", exit: "3", errType: "3"}},
		"killed":    {{name: "sh", errType: "SIGKILL"}},
		"missing":   {missing},
		"denied":    {{name: "denied", errType: "*fs.PathError"}},
		"long":      {{name: "long-way", exit: "0"}},
		"output":    {{name: "echo", exit: "0"}},
		"context":   {{name: "true", exit: "0"}},
		"elsewhere": {{name: "true", exit: "0", orphan: true}},
		"cancelled": {{name: "true", errType: "*errors.errorString"}},
		"timeout":   {{name: "sleep", errType: "SIGKILL", minimum: 50 * time.Millisecond}},
		"two":       {{name: "false", exit: "1", errType: "1"}, {name: "true", exit: "0"}},
		"wait":      {},
	}
}

func checkExample(t *testing.T, zerospan string, b build) {
	p := start(t, b.make(t), t.TempDir())
	z := launchBinary(t, zerospan, "--pid", strconv.Itoa(p.Process.Pid), "--print", "json")
	z.waitLog("msg=attached")
	total := 0
	get := func(path string, commands int) (answer string, server call, calls []call) {
		t.Helper()
		resp, err := http.Get("http://" + p.words[1] + "/" + path)
		if err != nil {
			t.Fatal(err)
		}
		defer resp.Body.Close()
		body, _ := io.ReadAll(resp.Body)
		z.waitCalls(total + commands + 1)
		z.mu.Lock()
		defer z.mu.Unlock()
		for _, c := range z.calls[total:] {
			if c.Kind == "server" {
				server = c
			} else {
				calls = append(calls, c)
			}
		}
		total += commands + 1
		if len(calls) != commands || server.str("url.path") != "/"+path {
			t.Fatalf("/%s: %d commands, want %d: %+v", path, len(calls), commands, calls)
		}
		return string(body), server, calls
	}
	for path, want := range requestsToExec() {
		answer, server, calls := get(path, len(want))
		for i, w := range want {
			w.check(t, path, server, calls[i])
		}
		if n := len(want); n > 0 && (answer == "%!v(<nil>)" || answer == "<nil>") == (want[n-1].errType != "") {
			t.Errorf("/%s: the target says %q", path, answer)
		}
	}
	// Each is one call, whether its stack had to grow or not.
	_, server, calls := get("grow", growths)
	for _, c := range calls {
		ran{name: "no-such-command", errType: "*exec.Error", orphan: c.ParentSpanID == ""}.check(t, "grow", server, c)
	}
	calls = z.stop()
	if started, completed, open, exported := z.balance(); len(calls) != total || started != total || completed != total || open != 0 || exported != total {
		t.Errorf("balance: started %d completed %d open %d exported %d, %d calls printed, want %d", started, completed, open, exported, len(calls), total)
	}
}

const growths = 256 // as the target has it

func (w ran) check(t *testing.T, path string, server, c call) {
	t.Helper()
	equal := func(what string, got, want any) {
		t.Helper()
		if got != want {
			t.Errorf("/%s: %s is %v, want %v", path, what, got, want)
		}
	}
	exit := ""
	if code, ok := c.Attributes["process.exit.code"]; ok {
		exit = fmt.Sprint(code)
	}
	parent := server.SpanID
	if w.orphan {
		parent = ""
	}
	equal("kind", c.Kind, "client")
	equal("instrumentor", c.Instrumentor, "os-exec")
	equal("name", c.Name, w.name)
	equal("process.executable.name", c.str("process.executable.name"), w.name)
	equal("process.exit.code", exit, w.exit)
	equal("error.type", c.str("error.type"), w.errType)
	equal("error", c.Error, w.errType != "")
	equal("parent", c.ParentSpanID, parent)
	equal("in the request's trace", c.TraceID == server.TraceID, !w.orphan)
	if d := time.Duration(c.DurationNS); d < w.minimum || d > w.minimum+5*time.Second {
		t.Errorf("/%s: duration %v, want at least %v", path, d, w.minimum)
	}
	for key := range c.Attributes {
		switch key {
		case "process.executable.name", "process.exit.code", "error.type":
		default:
			t.Errorf("/%s: attribute %s is not on the list", path, key)
		}
	}
}

// withExample builds zerospan with the worked example, once.
var withExample = sync.OnceValues(func() (string, error) {
	out := filepath.Join(filepath.Dir(zerospan), "zerospan-example")
	return out, buildZerospan(out, "example")
})

// TestExample traces with the worked example of docs/adding-an-instrumentor.md.
func TestExample(t *testing.T) {
	with, err := withExample()
	if err != nil {
		t.Fatal(err)
	}
	for _, b := range []build{
		{goVersion: "1.18.10", dir: "exec", mode: "stripped"},
		{goVersion: "1.22.12", dir: "exec", mode: "pie"},
		{goVersion: "1.24.9", dir: "exec", mode: "stripped"},
		{goVersion: "1.26.5", dir: "exec", mode: "normal"},
		{goVersion: "1.27.2", dir: "exec", mode: "pie"},
	} {
		t.Run(b.String(), func(t *testing.T) { checkExample(t, with, b) })
	}
	t.Run("released", func(t *testing.T) {
		p := start(t, build{goVersion: "1.26.5", dir: "exec", mode: "normal"}.make(t), t.TempDir())
		z := trace(t, "--pid", strconv.Itoa(p.Process.Pid), "--print", "none")
		z.stop()
		if strings.Contains(z.stderr.String(), "os-exec") {
			t.Error("the example is registered without its build tag")
		}
	})
}

var runCount = regexp.MustCompile(`(?m)^zerospan_process_run_duration_seconds_count\{(.*)\} (\d+)$`)

// TestExampleRingFull stops zerospan while calls come: those that the ring can't
// hold are counted by the program, which must know which of them failed.
func TestExampleRingFull(t *testing.T) {
	with, err := withExample()
	if err != nil {
		t.Fatal(err)
	}
	p := start(t, build{goVersion: "1.26.5", dir: "exec", mode: "normal"}.make(t), t.TempDir())
	metrics := freePort(t)
	z := launchBinary(t, with, "--pid", strconv.Itoa(p.Process.Pid), "--print", "none", "--ring-size", "4096", "--metrics-listen", "127.0.0.1:"+strconv.Itoa(metrics))
	z.waitLog("msg=attached")
	if err := z.Process.Signal(syscall.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	const good, bad = 7, 5
	for _, path := range append(append(slices.Repeat([]string{"true"}, good), slices.Repeat([]string{"false"}, bad)...), "grow", "false", "true") {
		resp, err := http.Get("http://" + p.words[1] + "/" + path)
		if err != nil {
			t.Fatal(err)
		}
		resp.Body.Close()
	}
	if err := z.Process.Signal(syscall.SIGCONT); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the counts", func() error {
		resp, err := http.Get("http://127.0.0.1:" + strconv.Itoa(metrics) + "/metrics")
		if err != nil {
			return err
		}
		defer resp.Body.Close()
		body, _ := io.ReadAll(resp.Body)
		failed, succeeded := 0, 0
		for _, m := range runCount.FindAllStringSubmatch(string(body), -1) {
			n, _ := strconv.Atoi(m[2])
			if strings.Contains(m[1], "error_type=") {
				failed += n
			} else {
				succeeded += n
			}
		}
		if failed != growths+bad+1 || succeeded != good+1 {
			return fmt.Errorf("%d failed and %d succeeded, want %d and %d", failed, succeeded, growths+bad+1, good+1)
		}
		return nil
	})
	z.stop()
	if !strings.Contains(z.stderr.String(), "ring_full") {
		t.Error("the ring was not too small")
	}
}
