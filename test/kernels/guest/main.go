// Command guest is the init of the machines that the test in test/kernels boots, and
// the program that works there. Started otherwise than as init it does the same on
// this machine. What it needs lies beside it: zerospan, targets/, objects/.
package main

import (
	"bufio"
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"
	"golang.org/x/sys/unix"

	"github.com/zerospan/zerospan/test/kernels"
)

// patience is for a machine that is emulated, and shares its processors.
const patience = 30 * time.Second

var dir = "/zs"

func main() {
	init := os.Getpid() == 1
	if init && len(os.Args) == 1 {
		boot()
		// Afresh: packages looked for /proc before it was there, and remember.
		check(unix.Exec(dir+"/guest", []string{"guest", "booted"}, os.Environ()))
	}
	if !init {
		self, err := os.Executable()
		check(err)
		dir = filepath.Dir(self)
	}
	var u unix.Utsname
	check(unix.Uname(&u))
	say(kernels.Line{Release: unix.ByteSliceToString(u.Release[:])})
	loadPrograms()
	trace()
	// A kernel that has no way to attach answers with an exit code.
	out, _ := exec.Command(dir+"/zerospan", "doctor").CombinedOutput()
	say(kernels.Line{Doctor: string(out)})
	if init {
		complaints()
	}
	say(kernels.Line{End: true})
	if init {
		check(unix.Reboot(unix.LINUX_REBOOT_CMD_POWER_OFF))
	}
}

var saying sync.Mutex

func say(l kernels.Line) {
	out, err := json.Marshal(l)
	check(err)
	saying.Lock()
	defer saying.Unlock()
	fmt.Printf("%s%s\n", kernels.Prefix, out)
}

func failed(format string, args ...any) {
	say(kernels.Line{Failed: fmt.Sprintf(format, args...)})
}

// check ends the guest, and with it the machine.
func check(err error) {
	if err != nil {
		failed("%v", err)
		os.Exit(1)
	}
}

// boot makes a system of a bare kernel.
func boot() {
	for _, m := range []struct {
		kind, at string
		must     bool
	}{
		{"proc", "/proc", true}, {"sysfs", "/sys", true}, {"devtmpfs", "/dev", true}, {"tmpfs", "/tmp", true},
		{"bpf", "/sys/fs/bpf", false}, {"securityfs", "/sys/kernel/security", false}, {"cgroup2", "/sys/fs/cgroup", false},
	} {
		_ = os.MkdirAll(m.at, 0o755) // the mount says what is amiss
		if err := unix.Mount(m.kind, m.at, m.kind, 0, ""); err != nil && m.must {
			check(fmt.Errorf("mount %s: %w", m.at, err))
		}
	}
	s, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM, 0)
	check(err)
	lo, err := unix.NewIfreq("lo")
	check(err)
	lo.SetUint16(unix.IFF_UP)
	check(unix.IoctlIfreq(s, unix.SIOCSIFFLAGS, lo))
	check(unix.Close(s))
}

// complaints reports what the kernel logged that it should not have.
func complaints() {
	log := make([]byte, 1<<20)
	n, err := unix.Klogctl(unix.SYSLOG_ACTION_READ_ALL, log)
	check(err)
	for line := range strings.Lines(string(log[:n])) {
		if kernels.Complaint(line) {
			say(kernels.Line{Kernel: strings.TrimSpace(line)})
		}
	}
}

// process is a target or zerospan.
type process struct {
	*exec.Cmd
	in  io.WriteCloser
	out *bufio.Reader
}

func start(path string, args ...string) *process {
	p := &process{Cmd: exec.Command(path, args...)}
	out, err := p.StdoutPipe()
	check(err)
	p.out = bufio.NewReader(out)
	p.in, err = p.StdinPipe()
	check(err)
	check(p.Start())
	return p
}

// trace has zerospan trace the targets while they work.
func trace() {
	addresses := serve()
	targets := map[string]*process{}
	names := map[int]string{}
	var args []string
	for name, t := range kernels.Targets {
		var with []string
		for _, a := range t.Args {
			with = append(with, addresses.Replace(a))
		}
		p := start(dir+"/targets/"+name, with...)
		targets[name], names[p.Process.Pid] = p, name
		args = append(args, "--pid", fmt.Sprint(p.Process.Pid))
		defer func() { _ = p.in.Close(); _ = p.Wait() }()
	}
	work := newWork(targets, addresses)
	work.run(true) // before anybody looks

	before := objects()
	t := &kernels.Trace{Want: len(kernels.Expected())}
	begun := time.Now()
	z := &process{Cmd: exec.Command(dir+"/zerospan", append(args, "--print", "json")...)}
	out, err := z.StdoutPipe()
	check(err)
	logs, err := z.StderrPipe()
	check(err)
	check(z.Start())
	giveUp := time.AfterFunc(4*patience, func() { _ = z.Process.Kill() })
	defer giveUp.Stop()

	attached := make(chan bool, 1)
	var reading sync.WaitGroup
	var stderr bytes.Buffer
	reading.Go(func() {
		n := 0
		for lines := bufio.NewScanner(logs); lines.Scan(); {
			fmt.Fprintln(&stderr, lines.Text())
			if strings.Contains(lines.Text(), "msg=attached") {
				if n++; n == len(targets) {
					attached <- true
				}
			}
		}
		close(attached)
	})
	complete := make(chan struct{})
	reading.Go(func() {
		seen := 0
		for lines := bufio.NewScanner(out); lines.Scan(); {
			c := &kernels.Call{}
			if err := json.Unmarshal(lines.Bytes(), c); err != nil {
				failed("not JSON: %q", lines.Text())
				continue
			}
			c.Target = names[c.PID]
			if c.Noise() {
				continue
			}
			say(kernels.Line{Call: c})
			if seen++; seen == t.Want {
				close(complete)
			}
		}
	})
	if t.Attached = <-attached; t.Attached {
		t.Attach = time.Since(begun)
		t.Requested = work.run(false)
		select {
		case <-complete:
		case <-time.After(patience / 3): // the calls that came tell what is missing
		}
		begun = time.Now()
		_ = z.Process.Signal(os.Interrupt)
	}
	reading.Wait()
	_ = z.Wait()
	if t.Attached {
		t.Detach = time.Since(begun)
	}
	t.Exit, t.Stderr = z.ProcessState.ExitCode(), stderr.String()
	t.Left = left(before)
	work.run(true) // the targets are as they were
	say(kernels.Line{Trace: t})
}

// objects returns the BPF objects in the kernel.
func objects() map[string]bool {
	all := map[string]bool{}
	for id := ebpf.ProgramID(0); ; {
		next, err := ebpf.ProgramGetNextID(id)
		if err != nil {
			break
		}
		id = next
		name := fmt.Sprintf("program %d", id)
		if p, err := ebpf.NewProgramFromID(id); err == nil {
			name += " " + p.String()
			_ = p.Close()
		}
		all[name] = true
	}
	for id := ebpf.MapID(0); ; {
		next, err := ebpf.MapGetNextID(id)
		if err != nil {
			break
		}
		id = next
		all[fmt.Sprintf("map %d", id)] = true
	}
	for it := new(link.Iterator); it.Next(); {
		all[fmt.Sprintf("link %d", it.ID)] = true
	}
	return all
}

// left returns the objects that were not there before. The kernel frees them a
// little after their last file descriptor.
func left(before map[string]bool) (names []string) {
	for deadline := time.Now().Add(patience / 3); ; time.Sleep(50 * time.Millisecond) {
		names = names[:0]
		for name := range objects() {
			if !before[name] {
				names = append(names, name)
			}
		}
		if len(names) == 0 || time.Now().After(deadline) {
			return names
		}
	}
}
