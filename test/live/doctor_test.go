package live

import (
	"bytes"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// doctor runs zerospan doctor and returns what it said of each item, its last
// line and the exit code.
func doctor(t *testing.T, as *syscall.SysProcAttr) (items map[string]string, last string, code int) {
	t.Helper()
	cmd := exec.Command(zerospan, "doctor")
	cmd.SysProcAttr = as
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	start := time.Now()
	out, err := cmd.Output()
	if took := time.Since(start); took > 3*time.Second {
		t.Errorf("it took %v", took)
	}
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		t.Fatal(err)
	}
	if stderr.Len() > 0 {
		t.Errorf("it said on standard error: %s", stderr.String())
	}
	t.Logf("%s", out)
	items = map[string]string{}
	name := ""
	for line := range strings.Lines(string(out)) {
		line = strings.TrimSuffix(line, "\n")
		if len(line) > 100 || strings.HasSuffix(line, "...") {
			t.Errorf("wider than 100 columns: %q", line)
		}
		switch {
		case strings.HasPrefix(line, "     ") && name != "":
			items[name] += "; " + strings.TrimSpace(line)
		case strings.HasPrefix(line, "  ") && len(line) > 39:
			name = strings.TrimSpace(line[12:39])
			items[name] = strings.TrimSpace(line[:12]) + ": " + line[39:]
		}
		last = line
	}
	helpers, _ := filepath.Glob("/proc/[0-9]*/cmdline")
	for _, h := range helpers {
		if args, err := os.ReadFile(h); err == nil && strings.HasSuffix(string(args), "\x00doctor-child\x00") {
			t.Errorf("a helper process is left: %s", h)
		}
	}
	return items, last, cmd.ProcessState.ExitCode()
}

// says checks the beginning of what was said of items.
func says(t *testing.T, items map[string]string, want map[string]string) {
	t.Helper()
	for name, text := range want {
		if !strings.HasPrefix(items[name], text) {
			t.Errorf("%s: %q, want %q", name, items[name], text)
		}
	}
}

var doctorTries = map[string]string{
	"program load": "ok: ", "map creation": "ok: ", "helper processes": "ok: two were started, 4 threads each", "uprobe_multi": "ok: ",
	"process filter": "ok: saw all 4 threads of the selected process, and not the other", "attach cookies": "ok: ", "target memory": "ok: ",
	"ring buffer": "ok: ", "bpf_loop": "ok: ", "return probes": "ok: a process with a seccomp filter lived through one",
}

func TestDoctor(t *testing.T) {
	items, last, code := doctor(t, nil)
	says(t, items, doctorTries)
	says(t, items, map[string]string{
		"release": "ok: ", "architecture": "ok: x86_64", "BTF": "ok: ", "uprobe (perf event)": "ok: every call was seen",
		"CAP_BPF": "ok: present", "CAP_PERFMON": "ok: present", "CAP_SYS_PTRACE": "ok: present", "CAP_DAC_READ_SEARCH": "ok: present",
		"CAP_SYS_ADMIN": "ok: present", "CAP_SYS_RESOURCE": "ok: ", "user namespace": "ok: ", "lockdown": "", "perf_event_paranoid": "ok: ",
		"unprivileged_bpf_disabled": "ok: ", "PID namespace": "", "hidepid": "", "executables": "", "locked memory": "ok: ", "memory limit": "",
	})
	if len(items) != 29 {
		t.Errorf("%d items, want 29", len(items))
	}
	if code != 0 || !strings.HasPrefix(last, "zerospan can trace here") {
		t.Errorf("exit code %d, %q", code, last)
	}
}

// nobody is a user who may run the binary and nothing else.
func nobody(t *testing.T, capabilities ...uintptr) *syscall.SysProcAttr {
	t.Helper()
	if err := os.Chmod(filepath.Dir(zerospan), 0o755); err != nil {
		t.Fatal(err)
	}
	return &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: 65534, Gid: 65534}, AmbientCaps: capabilities}
}

func TestDoctorUnprivileged(t *testing.T) {
	items, last, code := doctor(t, nobody(t))
	says(t, items, map[string]string{
		"program load":   "missing: not permitted; lost: all tracing; do: run as root, or add CAP_BPF and CAP_PERFMON",
		"map creation":   "missing: not permitted; lost: all tracing; do: run as root, or add CAP_BPF and CAP_PERFMON",
		"process filter": "skipped: needs program load and map creation",
		"locked memory":  "skipped: needs map creation",
		"CAP_BPF":        "missing: not present; lost: BPF programs and maps, so all tracing; do: run as root, or add BPF",
		"CAP_PERFMON":    "missing: not present; lost: uprobe programs, so all tracing; do: run as root, or add PERFMON",
		"CAP_SYS_PTRACE": "missing: not present; lost: processes of other users",
		"executables":    "degraded: ",
	})
	if want := "zerospan can't trace here; what it needs first: program load, map creation."; code != 1 || last != want {
		t.Errorf("exit code %d, %q, want %q", code, last, want)
	}
}

// The least that docs/privileges.md asks for is enough, also for a user who is not root.
func TestDoctorCapabilities(t *testing.T) {
	items, last, code := doctor(t, nobody(t, unix.CAP_BPF, unix.CAP_PERFMON, unix.CAP_SYS_PTRACE))
	says(t, items, doctorTries)
	says(t, items, map[string]string{
		"CAP_BPF": "ok: present", "CAP_PERFMON": "ok: present", "CAP_SYS_PTRACE": "ok: present",
		"CAP_DAC_READ_SEARCH": "missing: not present; lost: other users' OTEL_SERVICE_NAME",
		"CAP_SYS_ADMIN":       "ok: not present, not needed",
	})
	if code != 0 || !strings.HasPrefix(last, "zerospan can trace here; limited by: ") || !strings.Contains(last, "CAP_DAC_READ_SEARCH") {
		t.Errorf("exit code %d, %q", code, last)
	}
	items, last, code = doctor(t, nobody(t, unix.CAP_BPF, unix.CAP_SYS_PTRACE))
	says(t, items, map[string]string{
		"map creation": "ok: ", "program load": "missing: not permitted",
		"CAP_PERFMON": "missing: not present; lost: uprobe programs, so all tracing; do: run as root, or add PERFMON",
	})
	if code != 1 || last != "zerospan can't trace here; what it needs first: program load." {
		t.Errorf("exit code %d, %q", code, last)
	}
}
