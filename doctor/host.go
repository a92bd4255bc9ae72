package doctor

import (
	"errors"
	"fmt"
	"io/fs"
	"math"
	"os"
	"path"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// Capabilities is a set of them, by their numbers.
type Capabilities uint64

// Has reports whether the set holds a capability (unix.CAP_BPF).
func (c Capabilities) Has(number int) bool { return c>>number&1 != 0 }

// Effective returns the capabilities that this process has.
func Effective() (Capabilities, error) {
	status, err := os.ReadFile("/proc/self/status")
	if err != nil {
		return 0, err
	}
	return parseCapabilities(string(status))
}

func parseCapabilities(status string) (Capabilities, error) {
	for line := range strings.Lines(status) {
		if hex, ok := strings.CutPrefix(line, "CapEff:"); ok {
			v, err := strconv.ParseUint(strings.TrimSpace(hex), 16, 64)
			return Capabilities(v), err
		}
	}
	return 0, errors.New("no CapEff in /proc/self/status")
}

// Lockdown returns the kernel's lockdown mode (since 5.4): none, integrity or
// confidentiality; none if it has no such thing.
func Lockdown() (string, error) {
	line, err := os.ReadFile("/sys/kernel/security/lockdown")
	if errors.Is(err, fs.ErrNotExist) {
		return "none", nil
	}
	return parseLockdown(string(line)), err
}

// parseLockdown takes the word in brackets: none [integrity] confidentiality.
func parseLockdown(line string) string {
	_, rest, _ := strings.Cut(line, "[")
	mode, _, _ := strings.Cut(rest, "]")
	return mode
}

// parseHidepid returns the hidepid option of what is mounted on /proc, off if
// it has none. Since kernel 5.8 it is a word, before that a number.
func parseHidepid(mountinfo string) string {
	mode := "off"
	for line := range strings.Lines(mountinfo) {
		f := strings.Fields(line)
		if len(f) < 7 || f[4] != "/proc" {
			continue
		}
		mode = "off" // the last one is what is seen
		for option := range strings.SplitSeq(f[len(f)-1], ",") {
			if v, ok := strings.CutPrefix(option, "hidepid="); ok && v != "0" {
				mode = v
			}
		}
	}
	return mode
}

// The machine's own namespaces have the same inodes on every kernel
// (PROC_PID_INIT_INO and PROC_USER_INIT_INO, since 3.8).
const initialPID, initialUser = "pid:[4026531836]", "user:[4026531837]"

// Executables counts the processes whose executables this one may read, and
// returns the PIDs of those whose executables it may not.
func Executables() (readable int, refused []int, err error) {
	entries, err := os.ReadDir("/proc")
	if err != nil {
		return 0, nil, err
	}
	const enough = 1000
	for _, e := range entries {
		pid, err := strconv.Atoi(e.Name())
		if err != nil || readable+len(refused) == enough {
			continue
		}
		dir := path.Join("/proc", e.Name())
		if line, err := os.ReadFile(path.Join(dir, "cmdline")); err == nil && len(line) == 0 {
			continue // a kernel thread or a zombie
		}
		f, err := os.Open(path.Join(dir, "exe"))
		switch {
		case err == nil:
			f.Close()
			readable++
		case errors.Is(err, fs.ErrPermission):
			refused = append(refused, pid)
		}
	}
	return readable, refused, nil
}

// MemoryLimit returns the least of the limits that this process's cgroup and
// those around it set, in bytes; math.MaxUint64 if there is none.
func MemoryLimit() (uint64, error) {
	cgroup, err := os.ReadFile("/proc/self/cgroup")
	return memoryLimit(os.DirFS("/sys/fs/cgroup"), string(cgroup)), err
}

func memoryLimit(root fs.FS, cgroup string) uint64 {
	least := uint64(math.MaxUint64)
	for line := range strings.Lines(cgroup) {
		part := strings.SplitN(strings.TrimSpace(line), ":", 3)
		if len(part) < 3 {
			continue
		}
		mount, file := ".", "memory.max"
		if part[1] == "memory" { // version 1
			mount, file = "memory", "memory.limit_in_bytes"
		} else if part[1] != "" {
			continue
		}
		// In a container the path may be the host's: then the root is its own cgroup.
		for dir := path.Clean("/" + part[2]); ; dir = path.Dir(dir) {
			text, _ := fs.ReadFile(root, path.Join(mount, dir, file))
			if v, err := strconv.ParseUint(strings.TrimSpace(string(text)), 10, 64); err == nil && v < 1<<62 {
				least = min(least, v) // version 1 says none with a number near 1<<63
			}
			if dir == "/" {
				break
			}
		}
	}
	return least
}

// setting returns a kernel setting as it stands.
func setting(name string) (string, error) {
	v, err := os.ReadFile("/proc/sys/kernel/" + name)
	if errors.Is(err, fs.ErrNotExist) {
		return "this kernel has no such setting", nil
	}
	return strings.TrimSpace(string(v)), err
}

func release() (release, machine string, err error) {
	var u unix.Utsname
	err = unix.Uname(&u)
	return unix.ByteSliceToString(u.Release[:]), unix.ByteSliceToString(u.Machine[:]), err
}

func mib(bytes uint64) string { return fmt.Sprintf("%.1f MiB", float64(bytes)/(1<<20)) }
