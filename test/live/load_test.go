package live

import (
	"bytes"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"
)

var current = build{goVersion: "local", dir: "nethttp", mode: "normal"}

// hammer sends requests over keep-alive connections until stop and counts answers.
func hammer(addr string, conns int, stop <-chan struct{}) (answered, failed func() int64, wait func()) {
	var ok, bad atomic.Int64
	var wg sync.WaitGroup
	client := &http.Client{Transport: &http.Transport{MaxIdleConnsPerHost: conns, MaxConnsPerHost: conns}, Timeout: patience}
	for range conns {
		wg.Go(func() {
			for {
				select {
				case <-stop:
					return
				default:
				}
				resp, err := client.Get("http://" + addr + "/hello")
				if err != nil {
					bad.Add(1)
					continue
				}
				body, err := io.ReadAll(resp.Body)
				_ = resp.Body.Close()
				if err != nil || string(body) != "hello" || resp.StatusCode != 200 {
					bad.Add(1)
				}
				ok.Add(1)
			}
		})
	}
	return ok.Load, bad.Load, func() { wg.Wait(); client.CloseIdleConnections() }
}

// TestInFlight has 1,000 calls open at a time and requires every one of them.
func TestInFlight(t *testing.T) {
	p := start(t, current.make(t))
	z := trace(t, "--pid", strconv.Itoa(p.Process.Pid), "--print", "json")
	const n = 1000
	var wg sync.WaitGroup
	for range n {
		wg.Go(func() { exchange(t, p.words[1], "slow", "GET /slow?ms=2000 HTTP/1.1\r\nHost: x\r\n\r\n") })
	}
	wg.Wait()
	z.waitCalls(n)
	calls := z.stop()
	if len(calls) != n {
		t.Errorf("%d calls, want %d", len(calls), n)
	}
	for _, c := range calls {
		if c.DurationNS < int64(2*time.Second) {
			t.Fatalf("a call lasted %v, want at least 2s", time.Duration(c.DurationNS))
		}
	}
	if started, completed, open, _ := z.balance(); started != n || completed != n || open != 0 {
		t.Errorf("started %d completed %d open %d, want %d", started, completed, open, n)
	}
}

// TestAttachRounds attaches and detaches 100 times under load: no request may
// fail and nothing may stay behind.
func TestAttachRounds(t *testing.T) {
	p := start(t, current.make(t))
	stop := make(chan struct{})
	answered, failed, wait := hammer(p.words[1], 8, stop)
	rounds := 100
	if testing.Short() {
		rounds = 10
	}
	for i := range rounds {
		before := answered()
		z := trace(t, "--pid", strconv.Itoa(p.Process.Pid), "--print", "none")
		for began := time.Now(); answered() < before+50; { // some calls in each round
			if time.Since(began) > patience {
				t.Fatalf("round %d: the target does not answer", i)
			}
			time.Sleep(time.Millisecond)
		}
		z.stop()
	}
	close(stop)
	wait()
	if failed() != 0 || answered() == 0 {
		t.Errorf("%d of %d requests failed", failed(), answered())
	}
	if left := breakpoints(t, p.Process.Pid); left != 0 {
		t.Errorf("%d breakpoints are left in the target", left)
	}
}

// breakpoints compares the target's code in memory with its file, byte for byte.
func breakpoints(t *testing.T, pid int) (different int) {
	t.Helper()
	maps, err := os.ReadFile(fmt.Sprintf("/proc/%d/maps", pid))
	if err != nil {
		t.Fatal(err)
	}
	mem, err := os.Open(fmt.Sprintf("/proc/%d/mem", pid))
	if err != nil {
		t.Fatal(err)
	}
	defer mem.Close()
	exe, err := os.Open(fmt.Sprintf("/proc/%d/exe", pid))
	if err != nil {
		t.Fatal(err)
	}
	defer exe.Close()
	for line := range strings.Lines(string(maps)) {
		f := strings.Fields(line)
		if len(f) < 6 || !strings.Contains(f[1], "x") || !strings.HasPrefix(f[5], "/") {
			continue
		}
		var from, to, offset int64
		if _, err := fmt.Sscanf(f[0]+" "+f[2], "%x-%x %x", &from, &to, &offset); err != nil {
			t.Fatal(err)
		}
		a, b := make([]byte, to-from), make([]byte, to-from)
		if _, err := mem.ReadAt(a, from); err != nil {
			t.Fatal(err)
		}
		if _, err := exe.ReadAt(b, offset); err != nil && err != io.EOF {
			t.Fatal(err)
		}
		for i := range a {
			if a[i] != b[i] {
				different++
			}
		}
	}
	return different
}

// TestBreakpointsAreSeen proves that the check above can fail.
func TestBreakpointsAreSeen(t *testing.T) {
	p := start(t, current.make(t))
	z := trace(t, "--pid", strconv.Itoa(p.Process.Pid), "--print", "none")
	if breakpoints(t, p.Process.Pid) == 0 {
		t.Error("no breakpoint is seen while attached")
	}
	z.stop()
	if n := breakpoints(t, p.Process.Pid); n != 0 {
		t.Errorf("%d breakpoints are left", n)
	}
}

// TestKilled ends zerospan by SIGKILL under load: the target must not notice.
func TestKilled(t *testing.T) {
	p := start(t, current.make(t))
	stop := make(chan struct{})
	answered, failed, wait := hammer(p.words[1], 8, stop)
	z := trace(t, "--pid", strconv.Itoa(p.Process.Pid), "--print", "none")
	_ = z.Process.Kill()
	z.out.Wait()
	_ = z.Wait()
	for began := time.Now(); breakpoints(t, p.Process.Pid) != 0; {
		if time.Since(began) > patience {
			t.Fatal("breakpoints are left after SIGKILL")
		}
		time.Sleep(10 * time.Millisecond)
	}
	close(stop)
	wait()
	if failed() != 0 || answered() == 0 {
		t.Errorf("%d of %d requests failed", failed(), answered())
	}
}

// TestTargetEnds kills the target with a call open: zerospan ends by itself and
// the call is accounted for.
func TestTargetEnds(t *testing.T) {
	p := start(t, current.make(t))
	z := trace(t, "--pid", strconv.Itoa(p.Process.Pid), "--print", "json")
	exchange(t, p.words[1], "hello", "GET /hello HTTP/1.1\r\nHost: x\r\n\r\n")
	c, err := net.Dial("tcp", p.words[1])
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	fmt.Fprintf(c, "GET /wait HTTP/1.1\r\nHost: x\r\n\r\nGET /hello HTTP/1.1\r\n") // the start of a pipelined one
	z.waitCalls(1)
	waitOpen(t, p)
	_ = p.Process.Signal(syscall.SIGKILL)
	stderr := z.finish(0)
	if !strings.Contains(stderr, "target_exit 1") {
		t.Errorf("the open call is not accounted for:\n%s", stderr)
	}
}

// waitOpen returns once the target's handler of /wait runs.
func waitOpen(t *testing.T, p *target) {
	t.Helper()
	for began := time.Now(); ; time.Sleep(5 * time.Millisecond) {
		resp, err := http.Get("http://" + p.words[1] + "/waiting")
		if err != nil {
			t.Fatal(err)
		}
		body, _ := io.ReadAll(resp.Body)
		_ = resp.Body.Close()
		if strings.TrimSpace(string(body)) != "0" {
			return
		}
		if time.Since(began) > patience {
			t.Fatal("the handler was not reached")
		}
	}
}

// TestErrors: each ends with one line that says what to do.
func TestErrors(t *testing.T) {
	sleep := exec.Command("sleep", "60")
	if err := sleep.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() { _ = sleep.Process.Kill(); _ = sleep.Wait() }()
	config := t.TempDir() + "/config.yaml"
	if err := os.WriteFile(config, []byte("pid: [4194302]\notlp-endpoint: nonsense://\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		args []string
		code int
		want string
	}{
		{[]string{"--config", config}, 2, "nonsense://"},
		{[]string{"--config", config, "--otlp-endpoint", "localhost:1"}, 1, "no such process: 4194302"},
		{[]string{"--pid", "1", "--stuck-after=-1s"}, 2, "positive time"},
		{[]string{"--pid", "4194303"}, 1, "no such process: 4194303"},
		{[]string{"--pid", strconv.Itoa(sleep.Process.Pid)}, 1, "see zerospan explain --pid " + strconv.Itoa(sleep.Process.Pid)},
		{[]string{"--pid", "2"}, 1, "kernel thread"},
		{[]string{"--pid", "-5"}, 2, "--pid"},
		{[]string{}, 2, "--pid, --exe or --all"},
		{[]string{"--nonsense"}, 2, "--help"},
		{[]string{"--pid", "1", "--otlp-endpoint", "ht!tp://x:y"}, 2, "http://localhost:4317"},
		{[]string{"--pid", "1", "--sample", "7"}, 2, "from 0 to 1"},
	} {
		t.Run(strings.Join(c.args, " "), func(t *testing.T) {
			var stdout, stderr bytes.Buffer
			cmd := exec.Command(zerospan, c.args...)
			cmd.Stdout, cmd.Stderr = &stdout, &stderr
			_ = cmd.Run()
			if cmd.ProcessState.ExitCode() != c.code || !strings.Contains(stderr.String(), c.want) || strings.Contains(stderr.String(), "goroutine") {
				t.Errorf("exit code %d, want %d with %q:\n%s", cmd.ProcessState.ExitCode(), c.code, c.want, stderr.String())
			}
			if c.code == 1 && strings.Count(stderr.String(), "\n") != 1 {
				t.Errorf("not one line:\n%s", stderr.String())
			}
		})
	}
	t.Run("not permitted", func(t *testing.T) {
		p := start(t, current.make(t))
		var stderr bytes.Buffer
		bin := t.TempDir() + "/zerospan"
		if out, err := exec.Command("cp", zerospan, bin).CombinedOutput(); err != nil {
			t.Fatalf("%v: %s", err, out)
		}
		cmd := exec.Command("setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", zerospan, "--pid", strconv.Itoa(p.Process.Pid))
		if err := os.Chmod(strings.TrimSuffix(zerospan, "/zerospan"), 0o755); err != nil {
			t.Fatal(err)
		}
		cmd.Stderr = &stderr
		_ = cmd.Run()
		if cmd.ProcessState.ExitCode() != 1 || !strings.Contains(stderr.String(), "run as root") || strings.Count(stderr.String(), "\n") != 1 {
			t.Errorf("exit code %d:\n%s", cmd.ProcessState.ExitCode(), stderr.String())
		}
	})
}

// TestStuck lists a call that stays open, and still gives one call when it ends.
func TestStuck(t *testing.T) {
	p := start(t, current.make(t))
	z := launch(t, "--pid", strconv.Itoa(p.Process.Pid), "--print", "json", "--stuck-after", "1s")
	z.waitLog("msg=attached")
	done := make(chan struct{})
	go func() {
		defer close(done)
		exchange(t, p.words[1], "slow", "GET /slow?ms=4000 HTTP/1.1\r\nHost: x\r\n\r\n")
	}()
	z.waitLog("a call is still open")
	<-done
	z.waitCalls(1)
	calls := z.stop()
	if len(calls) != 1 {
		t.Errorf("%d calls, want 1", len(calls))
	}
	if n := strings.Count(z.stderr.String(), "a call is still open"); n != 1 {
		t.Errorf("the call was listed %d times", n)
	}
}

// TestTargetsComeAndGo selects by executable while processes start and end: each
// is traced, and zerospan does not grow.
func TestTargetsComeAndGo(t *testing.T) {
	exe := current.make(t)
	z := launch(t, "--exe", exe, "--print", "json")
	z.waitLog("waiting for one")
	rounds := 20
	if testing.Short() {
		rounds = 8
	}
	measure := func() (files, rss int) {
		fds, err := os.ReadDir(fmt.Sprintf("/proc/%d/fd", z.Process.Pid))
		if err != nil {
			t.Fatal(err)
		}
		status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", z.Process.Pid))
		if err != nil {
			t.Fatal(err)
		}
		for line := range strings.Lines(string(status)) {
			if v, ok := strings.CutPrefix(line, "VmRSS:"); ok {
				rss, _ = strconv.Atoi(strings.Fields(v)[0])
			}
		}
		return len(fds), rss
	}
	var files, rss int
	for i := range rounds {
		p := start(t, exe)
		z.waitLog(fmt.Sprintf("msg=attached pid=%d ", p.Process.Pid))
		exchange(t, p.words[1], "hello", "GET /hello HTTP/1.1\r\nHost: x\r\n\r\n")
		z.waitCalls(i + 1)
		_ = p.Process.Kill()
		_ = p.Wait()
		z.waitLog(fmt.Sprintf("msg=\"target has ended\" pid=%d ", p.Process.Pid))
		if i == rounds/4 {
			files, rss = measure()
		}
	}
	nowFiles, nowRSS := measure()
	if nowFiles > files+2 || nowRSS > rss+8<<10 {
		t.Errorf("zerospan grows: from %d files and %d KiB to %d files and %d KiB in %d targets", files, rss, nowFiles, nowRSS, rounds-rounds/4)
	}
	if calls := z.stop(); len(calls) != rounds {
		t.Errorf("%d calls, want %d", len(calls), rounds)
	}
}
