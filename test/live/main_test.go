// Package live traces real targets with the real binary. It needs root and a
// kernel with BPF; without, its tests are skipped and say so, unless
// ZEROSPAN_REQUIRE_LIVE is set.
package live

import (
	"bufio"
	"encoding/json"
	"fmt"
	"io"
	"log"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"
)

var discard = log.New(io.Discard, "", 0)

var (
	root     string // of the repository
	zerospan string // the binary under test
)

func TestMain(m *testing.M) {
	os.Exit(run(m))
}

func run(m *testing.M) int {
	if os.Geteuid() != 0 {
		if os.Getenv("ZEROSPAN_REQUIRE_LIVE") != "" {
			fmt.Println("live tests are required, but this is not root")
			return 1
		}
		fmt.Println("SKIPPED: live tests need root (probes)")
		return 0
	}
	dir, err := os.MkdirTemp("", "zerospan-live")
	if err != nil {
		fmt.Println(err)
		return 1
	}
	defer os.RemoveAll(dir)
	if root, err = filepath.Abs("../.."); err != nil {
		fmt.Println(err)
		return 1
	}
	zerospan = filepath.Join(dir, "zerospan")
	if err := buildZerospan(zerospan, ""); err != nil {
		fmt.Println(err)
		return 1
	}
	return m.Run()
}

// buildZerospan builds it with build tags.
func buildZerospan(out, tags string) error {
	build := exec.Command("go", "build", "-tags", tags, "-o", out, "./cmd/zerospan")
	build.Dir = root
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if msg, err := build.CombinedOutput(); err != nil {
		return fmt.Errorf("build zerospan: %w\n%s", err, msg)
	}
	return nil
}

// build is a way to build a target.
type build struct {
	goVersion string
	dir       string // under test/targets
	mode      string // normal, stripped, pie, cgo
	modfile   string
}

func (b build) String() string { return b.goVersion + "/" + b.mode }

var builds sync.Map // build -> func() (string, error)

// make builds the target once per run and returns the executable.
func (b build) make(t *testing.T) string {
	t.Helper()
	once, _ := builds.LoadOrStore(b, sync.OnceValues(func() (string, error) {
		out := filepath.Join(filepath.Dir(zerospan), strings.NewReplacer("/", "-", ".", "_").Replace(b.dir+"-"+b.String()+b.modfile))
		args := []string{"build", "-o", out}
		env := append(os.Environ(), "CGO_ENABLED=0", "GOFLAGS=-buildvcs=false")
		switch b.mode {
		case "stripped":
			args = append(args, "-ldflags", "-s -w")
		case "pie":
			args = append(args, "-buildmode=pie", "-ldflags", "-s -w")
		case "cgo":
			args = append(args, "-ldflags", "-linkmode=external", "-tags", "netcgo")
			env = append(env, "CGO_ENABLED=1")
		}
		if b.modfile != "" {
			args = append(args, "-modfile", b.modfile)
		}
		if b.goVersion != "local" {
			env = append(env, "GOTOOLCHAIN=go"+b.goVersion)
		}
		cmd := exec.Command("go", append(args, ".")...)
		cmd.Dir = filepath.Join(root, "test/targets", b.dir)
		cmd.Env = env
		if msg, err := cmd.CombinedOutput(); err != nil {
			return "", fmt.Errorf("%v: %w\n%s", cmd.Args, err, msg)
		}
		return out, nil
	}))
	path, err := once.(func() (string, error))()
	if err != nil {
		t.Fatal(err)
	}
	return path
}

// target is a traced process.
type target struct {
	*exec.Cmd
	words []string // what it said when it was ready
	stdin io.WriteCloser
	out   *bufio.Reader
}

// start runs a target until the test's end.
func start(t *testing.T, exe string, args ...string) *target {
	t.Helper()
	p := &target{Cmd: exec.Command(exe, args...)}
	p.Stderr = os.Stderr
	out, err := p.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if p.stdin, err = p.StdinPipe(); err != nil {
		t.Fatal(err)
	}
	if err := p.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = p.Process.Kill(); _ = p.Wait() })
	p.out = bufio.NewReader(out)
	line, err := p.out.ReadString('\n')
	if err != nil {
		t.Fatalf("the target did not start: %v", err)
	}
	p.words = strings.Fields(line)
	return p
}

// call is a line of --print json.
type call struct {
	Time         time.Time      `json:"time"`
	Kind         string         `json:"kind"`
	Name         string         `json:"name"`
	Service      string         `json:"service"`
	PID          int            `json:"pid"`
	DurationNS   int64          `json:"duration_ns"`
	Error        bool           `json:"error"`
	TraceID      string         `json:"trace_id"`
	SpanID       string         `json:"span_id"`
	ParentSpanID string         `json:"parent_span_id"`
	Instrumentor string         `json:"instrumentor"`
	Attributes   map[string]any `json:"attributes"`
}

func (c call) str(key string) string { s, _ := c.Attributes[key].(string); return s }
func (c call) num(key string) int    { f, _ := c.Attributes[key].(float64); return int(f) }

// tracer is a running zerospan.
type tracer struct {
	*exec.Cmd
	t       *testing.T
	mu      sync.Mutex
	changed chan struct{}
	calls   []call
	stderr  strings.Builder
	ended   bool
	out     sync.WaitGroup
}

// trace starts zerospan with arguments and waits until it is attached.
func trace(t *testing.T, args ...string) *tracer {
	t.Helper()
	z := launch(t, args...)
	z.waitLog("msg=attached")
	return z
}

// launch starts zerospan and does not wait.
func launch(t *testing.T, args ...string) *tracer {
	t.Helper()
	return launchBinary(t, zerospan, args...)
}

// launchBinary starts a zerospan that was built in another way.
func launchBinary(t *testing.T, binary string, args ...string) *tracer {
	t.Helper()
	return launchCommand(t, exec.Command(binary, args...))
}

func launchCommand(t *testing.T, cmd *exec.Cmd) *tracer {
	t.Helper()
	z := &tracer{Cmd: cmd, t: t, changed: make(chan struct{}, 1)}
	stdout, err := z.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	stderr, err := z.StderrPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := z.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if z.ProcessState == nil {
			_ = z.Process.Kill()
			z.out.Wait()
			_ = z.Wait()
		}
		if t.Failed() {
			t.Logf("zerospan's standard error:\n%s", z.stderr.String())
		}
	})
	z.out.Go(func() {
		lines := bufio.NewScanner(stdout)
		lines.Buffer(nil, 1<<20)
		for lines.Scan() {
			var c call
			if err := json.Unmarshal(lines.Bytes(), &c); err != nil {
				t.Errorf("not a JSON line: %q", lines.Text())
				continue
			}
			z.note(func() { z.calls = append(z.calls, c) })
		}
	})
	z.out.Go(func() {
		lines := bufio.NewScanner(stderr)
		for lines.Scan() {
			z.note(func() { z.stderr.WriteString(lines.Text() + "\n") })
		}
		z.note(func() { z.ended = true })
	})
	return z
}

func (z *tracer) note(f func()) {
	z.mu.Lock()
	f()
	z.mu.Unlock()
	select {
	case z.changed <- struct{}{}:
	default:
	}
}

const patience = 20 * time.Second

// wait returns when cond, which runs under the lock, holds.
func (z *tracer) wait(what string, cond func() bool) {
	z.t.Helper()
	timeout := time.After(patience)
	for {
		z.mu.Lock()
		ok, ended := cond(), z.ended
		z.mu.Unlock()
		if ok {
			return
		}
		if ended {
			z.t.Fatalf("zerospan ended while the test waited for %s:\n%s", what, z.stderr.String())
		}
		select {
		case <-z.changed:
		case <-timeout:
			z.t.Fatalf("no %s after %v; %d calls so far:\n%s", what, patience, len(z.calls), z.stderr.String())
		}
	}
}

func (z *tracer) waitLog(text string) {
	z.t.Helper()
	z.wait(text, func() bool { return strings.Contains(z.stderr.String(), text) })
}

func (z *tracer) waitCalls(n int) {
	z.t.Helper()
	z.wait(fmt.Sprintf("%d calls", n), func() bool { return len(z.calls) >= n })
}

var balanceLine = regexp.MustCompile(`calls: (\d+) started = (\d+) completed \+ (\d+) open \+ (.*) abandoned\nspans: (\d+) completed = (\d+) exported \+ (\d+) sampled out \+ (.*) dropped`)

// stop ends zerospan and returns all calls. The books must balance.
func (z *tracer) stop() []call {
	z.t.Helper()
	_ = z.Process.Signal(os.Interrupt)
	z.finish(0)
	if !balanceLine.MatchString(z.stderr.String()) || strings.Contains(z.stderr.String(), "do not balance") {
		z.t.Errorf("the books do not balance:\n%s", z.stderr.String())
	}
	return z.calls
}

// finish waits for the end and checks the exit code.
func (z *tracer) finish(code int) string {
	z.t.Helper()
	timer := time.AfterFunc(patience, func() { _ = z.Process.Kill() })
	defer timer.Stop()
	z.out.Wait()
	_ = z.Wait()
	if got := z.ProcessState.ExitCode(); got != code {
		z.t.Errorf("exit code %d, want %d:\n%s", got, code, z.stderr.String())
	}
	return z.stderr.String()
}

// balance returns the numbers of the summary's last lines.
func (z *tracer) balance() (started, completed, open, exported int) {
	m := balanceLine.FindStringSubmatch(z.stderr.String())
	if m == nil {
		z.t.Fatalf("no balance:\n%s", z.stderr.String())
	}
	num := func(i int) int { n, _ := strconv.Atoi(m[i]); return n }
	return num(1), num(2), num(3), num(6)
}
