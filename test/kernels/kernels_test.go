package kernels

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/zerospan/zerospan/instrumentors"
	_ "github.com/zerospan/zerospan/instrumentors/all"
)

// kernel is one that is booted, and what is expected of it.
type kernel struct {
	name string
	// Where fetch.sh finds it: the archive, its suites and how the version begins.
	archive, suites, version string

	traces bool // zerospan can attach
	// cookies: it has bpf_get_attach_cookie. Without, programs that call it must
	// load but for that.
	cookies bool
	// refuses are the other programs that it does not load, a pattern, and what its
	// verifier says.
	refuses, because string
	complains        string // what it is known to log, a pattern
}

var kernels = []kernel{
	{name: "5.10", archive: "security", suites: "bullseye-security", version: "5[.]10[.]", traces: true,
		refuses: "doctor/loop", because: "func_info doesn't match",
		// Once, with a backtrace, for maps that are not preallocated.
		complains: "kernel/bpf/verifier[.]c|bpf_check"},
	{name: "6.1", archive: "security", suites: "bookworm-security", version: "6[.]1[.]", cookies: true, traces: true},
	{name: "6.12", archive: "security", suites: "trixie-security", version: "6[.]12[.]", cookies: true, traces: true},
	{name: "6.18", archive: "main", suites: "trixie-backports", version: "6[.]18[.]", cookies: true, traces: true},
	{name: "newest", archive: "main", suites: "sid trixie-backports", version: "[0-9]", cookies: true, traces: true},
}

// modes are what is added to a kernel's command line. A preemptible kernel runs a
// program on a processor where another task is in the midst of it.
var modes = []struct{ name, commandLine string }{
	{"as shipped", ""},
	{"locked down, preemptible", "lockdown=integrity preempt=full"},
}

func TestKernels(t *testing.T) {
	if os.Getenv("ZEROSPAN_KERNELS") == "" {
		t.Skip("SKIPPED: other kernels are booted by make test-kernels only")
	}
	root, err := filepath.Abs("../..")
	if err != nil {
		t.Fatal(err)
	}
	cache := filepath.Join(root, ".cache/kernels")
	if err := os.MkdirAll(cache, 0o755); err != nil {
		t.Fatal(err)
	}
	dir := stage(t, root)
	initramfs := filepath.Join(t.TempDir(), "initramfs")
	if err := pack(dir, initramfs); err != nil {
		t.Fatal(err)
	}
	steps := fmt.Sprint(Expected())
	for _, spec := range instrumentors.All() {
		if !strings.Contains(steps, ": "+spec.Name+" ") {
			fmt.Printf("SKIPPED: no step in test/kernels/scenario.go exercises %s\n", spec.Name)
		}
	}

	var table table
	t.Run("here", func(t *testing.T) { // what holds for the others has to hold here
		if os.Geteuid() != 0 {
			t.Skip("SKIPPED: needs root (probes)")
		}
		k := kernel{traces: true, cookies: true}
		k.check(t, run(t, filepath.Join(cache, "here.log"), filepath.Join(dir, "guest")))
	})
	for _, k := range kernels {
		t.Run(k.name, func(t *testing.T) {
			into := filepath.Join(cache, k.name)
			if msg, err := exec.Command("./fetch.sh", into, k.archive, k.suites, k.version).CombinedOutput(); err != nil {
				missing := fmt.Sprintf("SKIPPED: %s", msg)
				if os.Getenv("ZEROSPAN_REQUIRE_LIVE") != "" {
					t.Fatal(missing)
				}
				t.Skip(missing)
			}
			images, err := filepath.Glob(filepath.Join(into, "vmlinuz-*"))
			if err != nil || len(images) != 1 {
				t.Fatalf("%d kernels in %s: %v", len(images), into, err)
			}
			for _, m := range modes {
				t.Run(m.name, func(t *testing.T) {
					r := boot(t, filepath.Join(into, strings.Fields(m.name)[0]+".log"), images[0], initramfs, m.commandLine)
					defer func() { table.add(k.name, m.name, r, t.Failed()) }()
					k.check(t, r)
				})
			}
		})
	}
	fmt.Print(table.text())
	if doc := os.Getenv("ZEROSPAN_KERNELS_DOC"); doc != "" && len(table.rows) == len(kernels)*len(modes) {
		if err := os.WriteFile(filepath.Join(root, doc), []byte(table.document()), 0o644); err != nil {
			t.Error(err)
		}
	}
}

var balance = regexp.MustCompile(`calls: (\d+) started = (\d+) completed \+ (\d+) open \+ (.*) abandoned\nspans: (\d+) completed = (\d+) exported \+ 0 sampled out \+ 0 dropped\n`)

// check compares a report with what is expected.
func (k kernel) check(t *testing.T, r *report) {
	t.Helper()
	for _, f := range r.failed {
		t.Errorf("the guest: %s", f)
	}
	for _, line := range r.kernel {
		if k.complains == "" || !regexp.MustCompile(k.complains).MatchString(line) {
			t.Errorf("the kernel complains: %s", line)
		}
	}
	if !r.end || r.trace == nil {
		t.Fatal("the guest did not come to its end")
	}
	k.checkPrograms(t, r.programs)
	tr := r.trace
	for _, left := range tr.Left {
		t.Errorf("left behind: %s", left)
	}
	if tr.Attached != k.traces {
		t.Fatalf("attached: %v, expected %v; exit code %d:\n%s", tr.Attached, k.traces, tr.Exit, tr.Stderr)
	}
	if !tr.Attached {
		if tr.Exit != 1 {
			t.Errorf("exit code %d, want 1:\n%s", tr.Exit, tr.Stderr)
		}
		return
	}
	if d := Compare(Expected(), r.calls); len(d) > 0 {
		t.Errorf("%d differences between the calls seen and expected:\n%s", len(d), strings.Join(d[:min(20, len(d))], "\n"))
	}
	if tr.Exit != 0 || !balance.MatchString(tr.Stderr) || strings.Contains(tr.Stderr, "do not balance") {
		t.Errorf("exit code %d, or the books do not balance:\n%s", tr.Exit, tr.Stderr)
	}
}

// checkPrograms requires every program to be loaded but for those that are known not
// to be: what is known must not be out of date.
func (k kernel) checkPrograms(t *testing.T, programs []*Program) {
	t.Helper()
	refuses := regexp.MustCompile("^(" + k.refuses + ")$")
	var names []string
	for _, p := range programs {
		names = append(names, p.Name)
		loaded, last := p.Loaded(), p.Attempts[len(p.Attempts)-1]
		if loaded != nil && loaded.Way == NoCookie {
			if k.cookies {
				t.Errorf("%s is loaded only without its cookie: %s", p.Name, p.Attempts[0].Says())
			}
			continue
		}
		switch known := refuses.MatchString(p.Name); {
		case loaded == nil && !known:
			t.Errorf("%s is not loaded: %s\n%s", p.Name, last.Error, strings.Join(last.Log, "\n"))
		case loaded == nil && !strings.Contains(last.Says(), k.because):
			t.Errorf("%s is not loaded for another reason than is known: %s", p.Name, last.Says())
		case loaded != nil && known:
			t.Errorf("%s is loaded, though it is known not to be: let the table say so", p.Name)
		}
	}
	for _, spec := range instrumentors.All() {
		if !slices.ContainsFunc(names, func(n string) bool { return strings.HasPrefix(n, spec.Name+"/") }) {
			t.Errorf("no program of %s was tried", spec.Name)
		}
	}
}
