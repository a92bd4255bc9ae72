package live

import (
	"fmt"
	"net/http"
	"os"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/cilium/ebpf"
)

// status returns a number of kB from /proc/PID/status.
func status(t *testing.T, pid int, name string) int {
	t.Helper()
	data, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(data)) {
		if v, ok := strings.CutPrefix(line, name+":"); ok {
			n, _ := strconv.Atoi(strings.Fields(v)[0])
			return n
		}
	}
	t.Fatalf("no %s", name)
	return 0
}

// mapEntries counts the entries of the maps that grow with calls and connections.
func mapEntries(t *testing.T) map[string]int {
	t.Helper()
	out := map[string]int{}
	for id := ebpf.MapID(0); ; {
		next, err := ebpf.MapGetNextID(id)
		if err != nil {
			return out
		}
		id = next
		m, err := ebpf.NewMapFromID(id)
		if err != nil {
			continue // it is gone
		}
		if info, err := m.Info(); err == nil && (info.Name == "zs_calls" || info.Name == "zs_index") {
			var key, value []byte
			for it := m.Iterate(); it.Next(&key, &value); {
				out[info.Name]++
			}
		}
		_ = m.Close()
	}
}

// TestSoak runs mixed requests for ZEROSPAN_SOAK (a duration): memory, files and map
// entries stay flat, the target's too, and the books balance.
func TestSoak(t *testing.T) {
	length, err := time.ParseDuration(os.Getenv("ZEROSPAN_SOAK"))
	if err != nil {
		t.Skip("asked for by make soak")
	}
	p := start(t, build{goVersion: "1.26.5", dir: "tree", mode: "stripped"}.make(t), newBackend(t))
	z := trace(t, "--pid", strconv.Itoa(p.Process.Pid), "--print", "none", "--metrics-listen", "127.0.0.1:0")
	type sample struct{ rss, files, calls, index int }
	var samples []sample
	for began := time.Now(); time.Since(began) < length; {
		grow(t, p, 20_000, 32)
		http.DefaultClient.CloseIdleConnections()
		time.Sleep(time.Second) // what is open ends
		entries := mapEntries(t)
		files, err := os.ReadDir(fmt.Sprintf("/proc/%d/fd", z.Process.Pid))
		if err != nil {
			t.Fatal(err)
		}
		s := sample{status(t, z.Process.Pid, "VmRSS"), len(files), entries["zs_calls"], entries["zs_index"]}
		samples = append(samples, s)
		t.Logf("%8v %+v", time.Since(began).Round(time.Second), s)
	}
	z.stop()
	first, last := samples[len(samples)/3], samples[len(samples)-1]
	if last.rss > first.rss*115/100+2048 || last.files > first.files || last.calls > first.calls+100 || last.index > first.index+200 {
		t.Errorf("after a third of the time %+v, at the end %+v", first, last)
	}
	if started, completed, _, exported := z.balance(); started == 0 || exported != completed {
		t.Errorf("started %d completed %d exported %d", started, completed, exported)
	}
}
