package doctor

import (
	"bytes"
	"errors"
	"fmt"
	"math"
	"os"
	"strings"
	"testing"
	"testing/fstest"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"
)

func TestParse(t *testing.T) {
	c, err := parseCapabilities("Name:\tx\nCapPrm:\t000001ffffffffff\nCapEff:\t000000c000080000\n")
	if err != nil || !c.Has(unix.CAP_BPF) || !c.Has(unix.CAP_PERFMON) || !c.Has(unix.CAP_SYS_PTRACE) || c.Has(unix.CAP_SYS_ADMIN) {
		t.Errorf("capabilities: %#x, %v", c, err)
	}
	if _, err := parseCapabilities("Name:\tx\n"); err == nil {
		t.Error("no capabilities, and no error")
	}
	for line, want := range map[string]string{
		"[none] integrity confidentiality\n": "none", "none [integrity] confidentiality\n": "integrity",
		"none integrity [confidentiality]\n": "confidentiality", "": "",
	} {
		if got := parseLockdown(line); got != want {
			t.Errorf("lockdown %q: %q, want %q", line, got, want)
		}
	}
	const other = "31 1 0:5 / /sys rw - sysfs sysfs rw,hidepid=2\n22 1 0:21 / /proc/x rw - proc proc rw,hidepid=2\n"
	for options, want := range map[string]string{"rw": "off", "rw,hidepid=0": "off", "rw,hidepid=2": "2", "rw,gid=5,hidepid=invisible": "invisible"} {
		if got := parseHidepid(other + "22 1 0:21 / /proc rw,relatime shared:13 - proc proc " + options + "\n" + other); got != want {
			t.Errorf("hidepid %q: %q, want %q", options, got, want)
		}
	}
}

func TestMemoryLimit(t *testing.T) {
	root := fstest.MapFS{}
	for name, v := range map[string]string{
		"a/memory.max": "150", "a/b/memory.max": "max", "memory.max": "200",
		"memory/memory.limit_in_bytes": "9223372036854771712", "memory/c/memory.limit_in_bytes": "100",
	} {
		root[name] = &fstest.MapFile{Data: []byte(v + "\n")}
	}
	for cgroup, want := range map[string]uint64{
		"0::/a/b\n": 150, "0::/the/path/on/the/host\n": 200, "4:cpu:/c\n3:memory:/c/d\n": 100,
		"3:memory:/\n": math.MaxUint64, "3:cpu:/a\nx\n": math.MaxUint64,
	} {
		if got := memoryLimit(root, cgroup); got != want {
			t.Errorf("%q: %d, want %d", cgroup, got, want)
		}
	}
}

func TestFault(t *testing.T) {
	for h, want := range map[Hits]string{
		{Threads: Threads, First: true}:           "",
		{Threads: 1, First: true}:                 "first of",
		{Threads: Threads - 1}:                    "saw 3 of 4",
		{Threads: Threads, First: true, Other: 1}: "not selected",
		{Threads: Threads, First: true, Twice: 1}: "more than once",
	} {
		if h.Exact() != (want == "") || !h.Exact() && !strings.Contains(h.fault(), want) {
			t.Errorf("%+v: exact %v, %q", h, h.Exact(), h.fault())
		}
	}
}

func TestReport(t *testing.T) {
	item := func(name string, err error) check {
		return check{name: name, required: name == "required", loses: "L", do: "D", permit: "P", try: func() (string, error) { return "found", err }}
	}
	var r Report
	r.add("group", item("fine", nil), item("limited", limit("less")), item("untried", untried("needs it")),
		item("forbidden", fmt.Errorf("x: %w", os.ErrPermission)), item("old", fmt.Errorf("x: %w", ebpf.ErrNotSupported)))
	print := func() (string, string) {
		var out bytes.Buffer
		r.Print(&out)
		lines := strings.Split(strings.TrimSpace(out.String()), "\n")
		return out.String(), lines[len(lines)-1]
	}
	got, last := print()
	for _, want := range []string{
		"  ok        fine                       found\n  degraded", "less\n              lost: L\n              do: D\n  skipped",
		"untried                    needs it\n  missing", "not permitted\n              lost: L\n              do: P\n", "does not have it\n",
	} {
		if !strings.Contains(got, want) {
			t.Errorf("%q is missing in\n%s", want, got)
		}
	}
	if want := "zerospan can trace here; limited by: limited, untried, forbidden, old."; last != want {
		t.Errorf("it ends with %q, want %q", last, want)
	}
	r.add("group", item("required", errors.New(strings.Repeat("long ", 40))))
	if _, last = print(); last != "zerospan can't trace here; what it needs first: required." {
		t.Errorf("it ends with %q", last)
	}
	for range 8 {
		r.add("group", check{name: "another requirement", required: true, try: item("", errors.New("x")).try})
	}
	if got, last = print(); !strings.HasSuffix(last, "another requirement and 7 more.") {
		t.Errorf("it ends with %q", last)
	}
	for line := range strings.Lines(got) {
		if len(line) > columns+1 {
			t.Errorf("wider than %d columns: %q", columns, line)
		}
	}
}
