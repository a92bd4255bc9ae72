package doctor

import (
	"context"
	"errors"
	"fmt"
	"math"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/cilium/ebpf/rlimit"
	"golang.org/x/sys/unix"
)

const (
	patience = 2500 * time.Millisecond

	needsLocked = 16 << 20 // the ring and the maps
	needsMemory = needsLocked + 40<<20

	asRoot  = "run as root, or add CAP_BPF and CAP_PERFMON; containers: also allow bpf in seccomp"
	upgrade = "use Linux 5.10 or later"
)

// Examine tries everything. It takes about a second and leaves nothing behind.
func Examine(ctx context.Context) (r Report) {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	memlock := rlimit.RemoveMemlock() // as for tracing; without it the first map may be refused
	has, hasErr := Effective()
	r.kernel()
	create := r.bpf(ctx)
	r.capabilities(has, hasErr, memlock)
	r.restrictions(has)
	r.processes(has)
	r.memory(create, memlock)
	return r
}

func (r *Report) kernel() {
	version, machine, err := release()
	r.add("kernel",
		check{name: "release", try: func() (string, error) { return version, err }},
		check{name: "architecture", required: true, loses: "everything: zerospan's probes are for x86_64 only", try: func() (string, error) {
			if machine != "x86_64" {
				return "", errors.New(machine)
			}
			return machine, nil
		}},
		check{name: "BTF", loses: "nothing today", do: "nothing", try: func() (string, error) {
			s, err := os.Stat("/sys/kernel/btf/vmlinux")
			if err != nil {
				return "", errors.New("the kernel does not describe its types")
			}
			return mib(uint64(s.Size())) + " in /sys/kernel/btf/vmlinux", nil
		}})
}

// bpf tries the features in the order in which they need each other. It returns
// what creating a map gave.
func (r *Report) bpf(ctx context.Context) (create error) {
	const group = "BPF and uprobes, tried on helper processes"
	said := func(found string, err error) func() (string, error) {
		return func() (string, error) { return found, err }
	}
	load := LoadProgram()
	create = CreateMap()
	r.add(group,
		check{name: "program load", required: true, loses: "all tracing", do: upgrade, permit: asRoot, try: said("a uprobe program was loaded", load)},
		check{name: "map creation", required: true, loses: "all tracing", do: upgrade, permit: asRoot, try: said("a map was created", create)})

	var lab *Lab
	lacks := untried("needs program load and map creation")
	if load == nil && create == nil {
		var err error
		if lab, err = OpenLab(ctx); err != nil {
			lacks = "needs the helper processes"
		} else {
			defer lab.Close()
		}
		r.add(group, check{
			name: "helper processes", required: true, loses: "the answer to whether uprobes work here",
			do:  "let zerospan read and start its own executable, /proc/self/exe",
			try: said(fmt.Sprintf("two were started, %d threads each", Threads), err),
		})
	}
	tried := func(found string, f func(*Lab) error) func() (string, error) {
		return func() (string, error) {
			if lab == nil {
				return "", lacks
			}
			return found, f(lab)
		}
	}
	var multi Hits
	var multiErr error
	const instead = "nothing while perf events work: each probe takes a tenth of a second to remove"
	r.add(group,
		check{name: "uprobe_multi", loses: instead, do: "nothing, or use Linux 6.10 or newer", permit: asRoot, try: tried("a link was attached", func(l *Lab) error {
			if multi, multiErr = l.Select(UprobeMulti); multiErr == nil && multi.Threads == 0 {
				return limit("a link was attached, and its probe saw nothing")
			}
			return multiErr
		})},
		check{name: "process filter", loses: instead, do: "nothing, or use Linux 6.10 or newer",
			try: tried(fmt.Sprintf("saw all %d threads of the selected process, and not the other", Threads), func(*Lab) error {
				switch {
				case multiErr != nil:
					return untried("needs uprobe_multi")
				case !multi.Exact():
					return limit(multi.fault())
				}
				return nil
			})})
	perf := check{name: "uprobe (perf event)", loses: "nothing while uprobe_multi works", do: "nothing while uprobe_multi works",
		permit: "nothing while uprobe_multi works; the kernel asks for CAP_SYS_ADMIN",
		try: tried("every call was seen", func(l *Lab) error {
			h, err := l.Select(PerfEvent)
			if err == nil && !h.Exact() {
				err = limit(h.fault())
			}
			return err
		})}
	if multiErr != nil || !multi.Exact() {
		perf.required, perf.loses, perf.do, perf.permit = true, "all tracing", upgrade, "run as root, or add CAP_SYS_ADMIN"
	}
	r.add(group, perf,
		check{name: "attach cookies", loses: "tracing from within another PID namespace than the machine's", do: "nothing, or use Linux 5.15 or newer", permit: asRoot, try: tried("a program saw its cookie", (*Lab).Cookie)},
		check{name: "target memory", required: true, loses: "all that is in a call: paths, statuses, statements", do: upgrade,
			try: tried("a program read its target's memory", (*Lab).Memory)},
		check{name: "ring buffer", required: true, loses: "all tracing", do: upgrade, permit: asRoot, try: tried("a record arrived", (*Lab).RingBuffer)},
		check{name: "bpf_loop", loses: "nothing today", do: upgrade, try: tried("a program looped", (*Lab).Loop)},
		check{name: "return probes", loses: "nothing today: no return probe is used", do: "nothing; a sandboxed process must not get one: it would be killed",
			try: tried("a process with a seccomp filter lived through one", func(l *Lab) error {
				ret, err := l.ReturnInSandbox()
				switch {
				case err != nil:
					return err
				case ret.Killed != 0 && ret.Sandbox:
					return limit(fmt.Sprintf("it killed a process with a seccomp filter (%v)", ret.Killed))
				case ret.Killed != 0:
					return limit(fmt.Sprintf("it killed a process (%v)", ret.Killed))
				case ret.Hits != 2:
					return limit(fmt.Sprintf("%d of 2 returns were seen", ret.Hits))
				}
				return nil
			})})
	return create
}

// fault says in what a selection is not exact.
func (h Hits) fault() string {
	switch {
	case h.Other > 0:
		return "it saw a process that was not selected"
	case h.Twice > 0:
		return "it saw calls more than once"
	case h.Threads == 1 && h.First:
		return fmt.Sprintf("it saw only the first of %d threads, as Linux 6.6 to 6.9 do", Threads)
	}
	return fmt.Sprintf("it saw %d of %d threads", h.Threads, Threads)
}

// need is a capability and what is lost without it.
type need struct {
	name   string
	number int
	loses  string
}

func (n need) remedy() string {
	return "run as root, or add " + n.name + " (capabilities.add, --cap-add)"
}

var needs = []need{
	{"BPF", unix.CAP_BPF, "BPF programs and maps, so all tracing"},
	{"PERFMON", unix.CAP_PERFMON, "uprobe programs, so all tracing"},
	{"SYS_PTRACE", unix.CAP_SYS_PTRACE, "processes of other users, and those with more capabilities"},
	{"DAC_READ_SEARCH", unix.CAP_DAC_READ_SEARCH, "other users' OTEL_SERVICE_NAME, and executables not everybody may read"},
	// perf_event_open asks for it when a uprobe is attached; uprobe_multi does not.
	{"SYS_ADMIN", unix.CAP_SYS_ADMIN, ""},
	{"SYS_RESOURCE", unix.CAP_SYS_RESOURCE, "the right to raise RLIMIT_MEMLOCK for BPF maps before kernel 5.11"},
}

// Lacking says in one line which of the capabilities this process lacks, what is
// lost without them and what to do; it is empty if none of them is missing.
func Lacking(numbers ...int) string {
	has, err := Effective()
	if err != nil {
		return ""
	}
	var parts []string
	for _, n := range needs {
		covered := has.Has(unix.CAP_SYS_ADMIN) && (n.number == unix.CAP_BPF || n.number == unix.CAP_PERFMON)
		if slices.Contains(numbers, n.number) && !has.Has(n.number) && !covered {
			parts = append(parts, fmt.Sprintf("CAP_%s is missing (lost: %s): %s", n.name, n.loses, n.remedy()))
		}
	}
	return strings.Join(parts, "; ")
}

func (r *Report) capabilities(has Capabilities, hasErr, memlock error) {
	admin := has.Has(unix.CAP_SYS_ADMIN)
	r.add("capabilities", namespace("user namespace", initialUser, "all tracing: capabilities in it do not count for BPF",
		"run outside of it: no rootless container, hostUsers: true (Kubernetes)"))
	instead := map[int]string{ // what makes it unnecessary, if something does
		unix.CAP_BPF:             when(admin, "CAP_SYS_ADMIN covers it"),
		unix.CAP_PERFMON:         when(admin, "CAP_SYS_ADMIN covers it"),
		unix.CAP_DAC_READ_SEARCH: when(has.Has(unix.CAP_DAC_OVERRIDE), "CAP_DAC_OVERRIDE covers it"),
		unix.CAP_SYS_ADMIN:       "only perf events ask for it",
		unix.CAP_SYS_RESOURCE:    when(memlock == nil, "BPF memory needs no raised limit"),
	}
	for _, c := range needs {
		r.add("capabilities", check{
			name: "CAP_" + c.name, loses: c.loses, do: c.remedy(),
			try: func() (string, error) {
				switch {
				case hasErr != nil:
					return "", untried(oneLine(hasErr))
				case has.Has(c.number):
					return "present", nil
				case instead[c.number] != "":
					return "not present, not needed: " + instead[c.number], nil
				}
				return "", errors.New("not present")
			},
		})
	}
}

func when(holds bool, text string) string {
	if holds {
		return text
	}
	return ""
}

// namespace checks that a namespace of this process is the machine's own.
func namespace(name, initial, loses, do string) check {
	return check{name: name, loses: loses, do: do, try: func() (string, error) {
		kind, _, _ := strings.Cut(initial, ":")
		ns, err := os.Readlink("/proc/self/ns/" + kind)
		if err == nil && ns != initial {
			err = limit("a container's, not the machine's")
		}
		return "the machine's", err
	}}
}

// restrictions are settings that refuse BPF to those who lack capabilities.
func (r *Report) restrictions(has Capabilities) {
	information := func(name string) check {
		return check{name: name, try: func() (string, error) {
			v, err := setting(name)
			if has.Has(unix.CAP_SYS_ADMIN) || has.Has(unix.CAP_BPF) && has.Has(unix.CAP_PERFMON) {
				v += " (does not apply: the capabilities are there)"
			}
			return v, err
		}}
	}
	r.add("restrictions",
		check{name: "lockdown", loses: "what the items above say", do: "nothing, if they are ok", try: func() (string, error) {
			mode, err := Lockdown()
			if mode == "confidentiality" {
				err = limit(mode + ": some BPF helpers are refused")
			}
			return mode, err
		}},
		information("perf_event_paranoid"), information("unprivileged_bpf_disabled"))
}

func (r *Report) processes(has Capabilities) {
	advice := "run as root, or add CAP_SYS_PTRACE and CAP_DAC_READ_SEARCH"
	if has.Has(unix.CAP_SYS_PTRACE) && (has.Has(unix.CAP_DAC_READ_SEARCH) || has.Has(unix.CAP_DAC_OVERRIDE)) {
		advice = "nothing, unless it is to be traced: a security module may protect it"
	}
	r.add("other processes",
		namespace("PID namespace", initialPID, "processes outside of this container", "hostPID: true (Kubernetes), --pid=host (docker)"),
		check{name: "hidepid", loses: "processes of other users", do: "add CAP_SYS_PTRACE, or mount /proc without hidepid", try: func() (string, error) {
			mounts, err := os.ReadFile("/proc/self/mountinfo")
			mode := parseHidepid(string(mounts))
			if mode != "off" && has.Has(unix.CAP_SYS_PTRACE) {
				return mode + " (does not apply: CAP_SYS_PTRACE is there)", err
			}
			if mode != "off" {
				err = limit(mode)
			}
			return mode, err
		}},
		check{name: "executables", loses: "these processes can't be traced", do: advice, try: func() (string, error) {
			readable, refused, err := Executables()
			if len(refused) > 0 {
				err = limit(fmt.Sprintf("%d can be read; %d can't, such as that of process %d", readable, len(refused), refused[0]))
			}
			return fmt.Sprintf("all %d can be read", readable), err
		}})
}

func (r *Report) memory(create, memlock error) {
	r.add("memory",
		check{name: "locked memory", required: true, loses: "BPF maps: this kernel counts them as locked memory",
			do: "run as root, add CAP_SYS_RESOURCE, or raise the limit (ulimit -l, LimitMEMLOCK)",
			try: func() (string, error) {
				// It counts before kernel 5.11 only. Whether it does here is tried, with a map.
				var l unix.Rlimit
				err := unix.Getrlimit(unix.RLIMIT_MEMLOCK, &l)
				switch {
				case err != nil:
					return "", err
				case memlock == nil:
					return "not limited for BPF", nil
				case create != nil:
					return "", untried("needs map creation")
				case l.Cur < needsLocked:
					return "", limit(mib(l.Cur) + " of " + mib(needsLocked) + " that are needed")
				}
				return mib(l.Cur), nil
			}},
		check{name: "memory limit", loses: "zerospan itself, when it reaches the limit", do: "raise the container's memory limit", try: func() (string, error) {
			least, err := MemoryLimit()
			switch {
			case err != nil:
				return "", err
			case least == math.MaxUint64:
				return "none", nil
			case least < needsMemory:
				return "", limit(mib(least) + " of " + mib(needsMemory) + " that are needed")
			}
			return mib(least) + ", " + mib(needsMemory) + " are needed", nil
		}})
}
