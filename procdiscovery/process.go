// Package procdiscovery tells which processes run, what they are, and when they
// end. Everything it reads belongs to processes that may lie: reads are
// bounded, and names are cleaned before they leave this package.
package procdiscovery

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// ErrNotFound means that no such process runs.
var ErrNotFound = errors.New("no such process")

// Process is a running process.
type Process struct {
	PID         int
	Stack       uint64            // where its stack begins: an exec changes it, even one of the same program
	StartTime   uint64            // clock ticks since boot; with the PID it names the process for good
	ExeID       [2]uint64         // device and inode of the executable: an exec changes it
	Exe         string            // path as the process sees it
	Container   string            // container id, if it runs in one
	ServiceName string            // its own OTEL_SERVICE_NAME, if it has one
	OTEL        map[string]string // its variables that begin with OTEL_, at most 64
}

// Name returns the base name of the executable.
func (p *Process) Name() string { return filepath.Base(p.Exe) }

// maxFile bounds what is read of a file in /proc.
const maxFile = 256 << 10

func readFile(path string) ([]byte, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	return io.ReadAll(io.LimitReader(f, maxFile))
}

// Inspect reads what is known of a process.
func Inspect(pid int) (*Process, error) {
	dir := fmt.Sprintf("/proc/%d", pid)
	stat, err := readFile(dir + "/stat")
	if err != nil {
		return nil, notFound(pid, err)
	}
	p := &Process{PID: pid, OTEL: map[string]string{}}
	if p.StartTime, p.Stack, err = startAndStack(stat); err != nil {
		return nil, err
	}
	exe, err := os.Readlink(dir + "/exe")
	if err != nil {
		return nil, notFound(pid, err)
	}
	var st unix.Stat_t
	if unix.Stat(dir+"/exe", &st) == nil {
		p.ExeID = [2]uint64{st.Dev, st.Ino}
	}
	p.Exe = clean(strings.TrimSuffix(exe, " (deleted)"))
	if cgroup, err := readFile(dir + "/cgroup"); err == nil {
		p.Container = containerID(string(cgroup))
	}
	if environ, err := readFile(dir + "/environ"); err == nil {
		for _, kv := range bytes.Split(environ, []byte{0}) {
			if name, v, ok := bytes.Cut(kv, []byte("=")); ok && bytes.HasPrefix(name, []byte("OTEL_")) && len(p.OTEL) < maxOTEL {
				p.OTEL[clean(string(name))] = clean(string(v))
			}
		}
	}
	p.ServiceName = p.OTEL["OTEL_SERVICE_NAME"]
	return p, nil
}

const maxOTEL = 64

func notFound(pid int, err error) error {
	switch {
	case errors.Is(err, fs.ErrNotExist), errors.Is(err, unix.ESRCH):
		if _, statErr := os.Stat(fmt.Sprintf("/proc/%d", pid)); statErr == nil {
			return fmt.Errorf("process %d has no executable: it is a kernel thread or has ended", pid)
		}
		return fmt.Errorf("%w: %d", ErrNotFound, pid)
	case errors.Is(err, fs.ErrPermission):
		return fmt.Errorf("process %d can't be inspected: %w", pid, fs.ErrPermission)
	}
	return err
}

// startAndStack are fields 22 and 28 of /proc/PID/stat; the second may hold anything
// in parentheses. The stack is 0 for who may not trace the process.
func startAndStack(stat []byte) (start, stack uint64, err error) {
	i := bytes.LastIndexByte(stat, ')')
	if i < 0 {
		return 0, 0, errors.New("malformed /proc/PID/stat")
	}
	fields := bytes.Fields(stat[i+1:])
	if len(fields) < 26 {
		return 0, 0, errors.New("malformed /proc/PID/stat")
	}
	if start, err = strconv.ParseUint(string(fields[19]), 10, 64); err == nil {
		stack, err = strconv.ParseUint(string(fields[25]), 10, 64)
	}
	return start, stack, err
}

// containerPattern: every runtime ends a container's cgroup path with its 64 hex
// digits, with a prefix and .scope under systemd (docker-, cri-containerd-, crio-, libpod-).
var containerPattern = regexp.MustCompile(`^(?:[a-z-]+-)?([0-9a-f]{64})(?:\.scope)?$`)

// containerID finds the container in /proc/PID/cgroup, v1 and v2.
func containerID(cgroup string) string {
	for line := range strings.Lines(cgroup) {
		parts := strings.SplitN(strings.TrimSpace(line), ":", 3)
		if len(parts) != 3 {
			continue
		}
		// Deeper groups (the container's own) come last.
		segments := strings.Split(parts[2], "/")
		for i := len(segments) - 1; i >= 0; i-- {
			if m := containerPattern.FindStringSubmatch(segments[i]); m != nil {
				return m[1]
			}
		}
	}
	return ""
}

func clean(s string) string { return Clean(s, 4096) }

// Clean makes a foreign string safe for logs and terminals, and at most limit bytes long.
func Clean(s string, limit int) string {
	s = s[:min(len(s), limit)]
	return strings.Map(func(r rune) rune {
		if r < 0x20 || r == 0x7f || r >= 0x80 && r < 0xa0 || r == '\uFFFD' {
			return '_'
		}
		return r
	}, strings.ToValidUTF8(s, "_"))
}

// ExePath names the process's executable for open and for the kernel: the link
// leads to the very file that runs, deleted or replaced or inside a container.
func (p *Process) ExePath() string { return fmt.Sprintf("/proc/%d/exe", p.PID) }

// Mapping returns where the first mapping of the executable begins, and at which
// offset in the file.
func (p *Process) Mapping() (start, offset uint64, err error) {
	maps, err := readFile(fmt.Sprintf("/proc/%d/maps", p.PID))
	if err != nil {
		return 0, 0, fmt.Errorf("read the mappings of process %d: %w", p.PID, err)
	}
	return mapping(string(maps), p.ExeID[1])
}

// mapping finds an inode in /proc/PID/maps. Its device is not compared: overlayfs
// shows another one there than stat does.
func mapping(maps string, inode uint64) (start, offset uint64, err error) {
	for line := range strings.Lines(maps) {
		fields := strings.Fields(line) // start-end perms offset device inode path
		if len(fields) < 5 || fields[4] != strconv.FormatUint(inode, 10) {
			continue
		}
		from, _, _ := strings.Cut(fields[0], "-")
		if start, err = strconv.ParseUint(from, 16, 64); err == nil {
			offset, err = strconv.ParseUint(fields[2], 16, 64)
		}
		return start, offset, err
	}
	return 0, 0, errors.New("the executable is not mapped")
}

// Alive reports whether this very process still runs.
func (p *Process) Alive() bool {
	stat, err := readFile(fmt.Sprintf("/proc/%d/stat", p.PID))
	if err != nil {
		return false
	}
	t, _, err := startAndStack(stat)
	return err == nil && t == p.StartTime
}

// WaitExit returns when the process has ended or ctx is done.
func (p *Process) WaitExit(ctx context.Context) error {
	fd, err := unix.PidfdOpen(p.PID, 0)
	if err != nil {
		if errors.Is(err, unix.ESRCH) {
			return nil
		}
		return fmt.Errorf("watch process %d: %w", p.PID, err)
	}
	defer func() { _ = unix.Close(fd) }()
	stop, err := unix.Eventfd(0, unix.EFD_CLOEXEC)
	if err != nil {
		return err
	}
	defer func() { _ = unix.Close(stop) }()
	if !p.Alive() {
		return nil // the PID was reused before the pidfd was opened
	}
	wake := func() { _, _ = unix.Write(stop, []byte{1, 0, 0, 0, 0, 0, 0, 0}) }
	finished := make(chan error, 1)
	go func() {
		fds := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}, {Fd: int32(stop), Events: unix.POLLIN}}
		for {
			_, err := unix.Poll(fds, -1)
			if errors.Is(err, unix.EINTR) {
				continue
			}
			finished <- err
			return
		}
	}()
	select {
	case err := <-finished:
		return err
	case <-ctx.Done():
		wake()
		if err := <-finished; err != nil {
			return err
		}
		return ctx.Err()
	}
}

// List returns the ids of all processes but kernel threads.
func List() ([]int, error) {
	dir, err := os.Open("/proc")
	if err != nil {
		return nil, err
	}
	defer dir.Close()
	names, err := dir.Readdirnames(-1)
	if err != nil {
		return nil, err
	}
	var pids []int
	for _, name := range names {
		if pid, err := strconv.Atoi(name); err == nil {
			pids = append(pids, pid)
		}
	}
	return pids, nil
}
