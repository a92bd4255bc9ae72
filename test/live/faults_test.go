package live

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/cilium/ebpf"
)

// programs counts the uprobe programs that are loaded, whoever holds them.
func programs(t *testing.T) (n int) {
	t.Helper()
	for id := ebpf.ProgramID(0); ; {
		next, err := ebpf.ProgramGetNextID(id)
		if err != nil {
			return n
		}
		id = next
		p, err := ebpf.NewProgramFromID(id)
		if err != nil {
			continue // it is gone
		}
		if p.Type() == ebpf.Kprobe {
			n++
		}
		_ = p.Close()
	}
}

// nothingLeft waits until the target's code is as it was and no program is loaded
// that was not before.
func nothingLeft(t *testing.T, pid, before int) {
	t.Helper()
	for began := time.Now(); ; time.Sleep(10 * time.Millisecond) {
		left, loaded := breakpoints(t, pid), programs(t)-before
		if left == 0 && loaded <= 0 {
			return
		}
		if time.Since(began) > patience {
			t.Fatalf("%d breakpoints and %d programs are left", left, loaded)
		}
	}
}

// TestTwoZerospans: two on one target do not disturb each other, nor the target.
func TestTwoZerospans(t *testing.T) {
	before := programs(t)
	p := start(t, current.make(t))
	a := trace(t, "--pid", strconv.Itoa(p.Process.Pid), "--print", "json")
	b := trace(t, "--pid", strconv.Itoa(p.Process.Pid), "--print", "json")
	for range 100 {
		exchange(t, p.words[1], "hello", "GET /hello HTTP/1.1\r\nHost: x\r\n\r\n")
	}
	a.waitCalls(100)
	if n := len(a.stop()); n != 100 {
		t.Errorf("the first saw %d calls, want 100", n)
	}
	for range 100 {
		exchange(t, p.words[1], "hello", "GET /hello HTTP/1.1\r\nHost: x\r\n\r\n")
	}
	b.waitCalls(200)
	if n := len(b.stop()); n != 200 {
		t.Errorf("the second saw %d calls, want 200", n)
	}
	nothingLeft(t, p.Process.Pid, before)
}

func copyFile(t *testing.T, from, to string) {
	t.Helper()
	data, err := os.ReadFile(from)
	if err == nil {
		err = os.WriteFile(to, data, 0o755)
	}
	if err != nil {
		t.Fatal(err)
	}
}

// TestExecutableReplaced: the file that runs is what is traced, whatever lies at
// its path by now.
func TestExecutableReplaced(t *testing.T) {
	for _, replace := range []bool{false, true} {
		t.Run(strconv.FormatBool(replace), func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "service")
			copyFile(t, current.make(t), path)
			p := start(t, path)
			if err := os.Remove(path); err != nil {
				t.Fatal(err)
			}
			if replace {
				copyFile(t, build{goVersion: "1.22.12", dir: "nethttp", mode: "stripped"}.make(t), path)
			}
			z := trace(t, "--pid", strconv.Itoa(p.Process.Pid), "--print", "json")
			exchange(t, p.words[1], "hello", "GET /hello HTTP/1.1\r\nHost: x\r\n\r\n")
			z.waitCalls(1)
			if c := z.stop()[0]; c.str("url.path") != "/hello" || c.Service != "service" {
				t.Errorf("%+v", c)
			}
		})
	}
}

// TestExec: a process that executes another program goes on being traced.
func TestExec(t *testing.T) {
	exe := current.make(t)
	for _, by := range [][]string{{"--pid"}, {"--exe", filepath.Base(exe)}} {
		t.Run(by[0], func(t *testing.T) {
			p := start(t, exe)
			args := append(by, "--print", "json")
			if by[0] == "--pid" {
				args = []string{"--pid", strconv.Itoa(p.Process.Pid), "--print", "json"}
			}
			z := trace(t, args...)
			exchange(t, p.words[1], "hello", "GET /hello HTTP/1.1\r\nHost: x\r\n\r\n")
			z.waitCalls(1)
			exchange(t, p.words[1], "", "GET /exec HTTP/1.1\r\nHost: x\r\n\r\n")
			line, err := p.out.ReadString('\n')
			if err != nil {
				t.Fatal(err)
			}
			z.wait("a second attach", func() bool { return strings.Count(z.stderr.String(), "msg=attached") == 2 })
			exchange(t, strings.Fields(line)[1], "hello", "GET /hello HTTP/1.1\r\nHost: x\r\n\r\n")
			z.waitCalls(2)
			if calls := z.stop(); len(calls) != 2 || !strings.Contains(z.stderr.String(), "(target_exit 1) abandoned") {
				t.Errorf("%d calls, want 2:\n%s", len(calls), z.stderr.String())
			}
		})
	}
}

// TestFullDisk: lines that can't be written are counted, and nothing else suffers.
func TestFullDisk(t *testing.T) {
	p := start(t, current.make(t))
	z := launchCommand(t, exec.Command("sh", "-c", "exec "+zerospan+" --pid "+strconv.Itoa(p.Process.Pid)+" --print json >/dev/full"))
	z.waitLog("msg=attached")
	for range 50 {
		exchange(t, p.words[1], "hello", "GET /hello HTTP/1.1\r\nHost: x\r\n\r\n")
	}
	z.waitLog("lines could not be written")
	z.stop()
	if started, completed, _, exported := z.balance(); started != 50 || completed != 50 || exported != 50 {
		t.Errorf("started %d completed %d exported %d, want 50", started, completed, exported)
	}
}

// memoryGroup makes a cgroup with a limit in bytes and returns its cgroup.procs.
func memoryGroup(t *testing.T, limit int) string {
	t.Helper()
	for _, kind := range []struct{ root, file string }{
		{"/sys/fs/cgroup/memory", "memory.limit_in_bytes"}, {"/sys/fs/cgroup", "memory.max"},
	} {
		dir := filepath.Join(kind.root, fmt.Sprintf("zerospan-test-%d", os.Getpid()))
		if os.Mkdir(dir, 0o755) != nil {
			continue
		}
		t.Cleanup(func() { _ = os.Remove(dir) })
		if os.WriteFile(filepath.Join(dir, kind.file), []byte(strconv.Itoa(limit)), 0) == nil {
			return filepath.Join(dir, "cgroup.procs")
		}
	}
	t.Skip("SKIPPED: no cgroup with a memory limit can be made here")
	return ""
}

// TestOutOfMemory: the kernel ends zerospan for want of memory; the target lives on
// as if it had never been there.
func TestOutOfMemory(t *testing.T) {
	procs := memoryGroup(t, 96<<20)
	before := programs(t)
	p := start(t, current.make(t))
	stop := make(chan struct{})
	answered, failed, wait := hammer(p.words[1], 8, stop)
	// Spans for a collector that is not there wait in a queue without a useful bound.
	cmd := exec.Command("sh", "-c", "echo $$ >"+procs+"; exec "+zerospan+" --pid "+strconv.Itoa(p.Process.Pid)+" --otlp-endpoint http://127.0.0.1:1")
	cmd.Env = append(os.Environ(), "OTEL_BSP_MAX_QUEUE_SIZE=100000000")
	z := launchCommand(t, cmd)
	z.waitLog("msg=attached")
	timer := time.AfterFunc(patience, func() { _ = z.Process.Signal(os.Interrupt) })
	defer timer.Stop()
	z.out.Wait()
	if err := z.Wait(); err == nil || err.Error() != "signal: killed" {
		t.Fatalf("zerospan was not killed: %v", err)
	}
	nothingLeft(t, p.Process.Pid, before)
	at := answered()
	for began := time.Now(); answered() < at+100; time.Sleep(time.Millisecond) {
		if time.Since(began) > patience {
			t.Fatal("the target does not answer any more")
		}
	}
	close(stop)
	wait()
	if failed() != 0 {
		t.Errorf("%d of %d requests failed", failed(), answered())
	}
}
