package live

import (
	"net/http"
	"os/exec"
	"slices"
	"strconv"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// TestCapabilities: three capabilities are enough to trace another user's process,
// and each that is missing is named with what is lost without it.
func TestCapabilities(t *testing.T) {
	all := []uintptr{unix.CAP_BPF, unix.CAP_PERFMON, unix.CAP_SYS_PTRACE}
	p := start(t, build{goVersion: "1.26.5", dir: "nethttp", mode: "stripped"}.make(t))
	run := func(t *testing.T, capabilities []uintptr) *tracer {
		cmd := exec.Command(zerospan, "--pid", strconv.Itoa(p.Process.Pid), "--print", "json")
		cmd.SysProcAttr = nobody(t, capabilities...)
		return launchCommand(t, cmd)
	}
	t.Run("enough", func(t *testing.T) {
		z := run(t, all)
		z.waitLog("msg=attached")
		resp, err := http.Get("http://" + p.words[1] + "/hello")
		if err != nil {
			t.Fatal(err)
		}
		resp.Body.Close()
		z.waitCalls(1)
		if calls := z.stop(); len(calls) != 1 || calls[0].str("url.path") != "/hello" {
			t.Errorf("%+v", calls)
		}
	})
	for missing, says := range map[uintptr]string{
		unix.CAP_BPF:        "CAP_BPF is missing (lost: BPF programs and maps, so all tracing): run as root, or add BPF",
		unix.CAP_PERFMON:    "CAP_PERFMON is missing (lost: uprobe programs, so all tracing): run as root, or add PERFMON",
		unix.CAP_SYS_PTRACE: "CAP_SYS_PTRACE is missing (lost: processes of other users, and those with more capabilities): run as root, or add SYS_PTRACE",
	} {
		t.Run("without "+strconv.Itoa(int(missing)), func(t *testing.T) {
			z := run(t, slices.DeleteFunc(slices.Clone(all), func(c uintptr) bool { return c == missing }))
			if out := z.finish(1); !strings.Contains(out, says) || strings.Count(strings.TrimSpace(out), "\nzerospan:") > 0 {
				t.Errorf("%q, want %q", out, says)
			}
		})
	}
}
