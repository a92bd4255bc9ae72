package doctor

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strings"
	"syscall"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"

	"github.com/zerospan/zerospan/offsets"
)

// Lab is two processes of this executable on which features are tried: one that
// is selected, one that is not. No other process is probed.
type Lab struct {
	ctx             context.Context
	exe             *os.File
	probed          uint64 // offsets in the file
	returning       uint64
	selected, other *child
}

// OpenLab starts the helper processes. They end with ctx or with Close.
func OpenLab(ctx context.Context) (_ *Lab, err error) {
	l := &Lab{ctx: ctx}
	defer func() {
		if err != nil {
			l.Close()
		}
	}()
	if l.exe, err = os.Open("/proc/self/exe"); err != nil {
		return nil, fmt.Errorf("open this executable: %w", err)
	}
	if err := l.find(); err != nil {
		return nil, fmt.Errorf("look into this executable: %w", err)
	}
	if l.selected, err = l.start(); err != nil {
		return nil, err
	}
	l.other, err = l.start()
	return l, err
}

func (l *Lab) find() error {
	b, err := offsets.Open(l.exe)
	if err != nil {
		return err
	}
	defer func() { _ = b.Close() }()
	return b.Guard(func() error {
		funcs, err := b.Functions([]string{probedName, returningName})
		if err != nil {
			return err
		}
		for name, off := range map[string]*uint64{probedName: &l.probed, returningName: &l.returning} {
			f, ok := funcs[name]
			if !ok {
				return fmt.Errorf("function %s is not there", name)
			}
			sites, err := b.Sites(f, offsets.AtEntry())
			if err != nil {
				return err
			}
			*off = sites[0].FileOffset
		}
		return nil
	})
}

// Close ends the helper processes.
func (l *Lab) Close() {
	for _, c := range []*child{l.selected, l.other} {
		if c != nil {
			_ = c.end()
		}
	}
	_ = l.exe.Close()
}

// child is a helper process.
type child struct {
	*exec.Cmd
	in  io.WriteCloser
	out *bufio.Reader
}

func (l *Lab) start() (*child, error) {
	cmd := exec.CommandContext(l.ctx, "/proc/self/exe", ChildCommand)
	cmd.Env = []string{} // no flags from variables
	in, err := cmd.StdinPipe()
	if err != nil {
		return nil, err
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		return nil, err
	}
	if err := cmd.Start(); err != nil {
		return nil, fmt.Errorf("start a helper process: %w", err)
	}
	c := &child{cmd, in, bufio.NewReader(out)}
	if err := c.ask("start"); err != nil {
		_ = c.end()
		return nil, err
	}
	return c, nil
}

var errChildEnded = errors.New("the helper process ended")

// ask gives a command and waits until it is done.
func (c *child) ask(command string) error {
	if _, err := fmt.Fprintln(c.in, command); err != nil {
		return fmt.Errorf("%w: %w", errChildEnded, err)
	}
	answer, err := c.out.ReadString('\n')
	if err != nil {
		return fmt.Errorf("%w: %w", errChildEnded, err)
	}
	if answer = strings.TrimSpace(answer); answer != "ok" {
		return errors.New(answer)
	}
	return nil
}

// end waits for the process's end and returns the signal that killed it, if one did.
func (c *child) end() syscall.Signal {
	_ = c.in.Close() // the process ends by itself, or has ended, or the context ends it
	_ = c.Wait()
	if status, ok := c.ProcessState.Sys().(syscall.WaitStatus); ok && status.Signaled() {
		return status.Signal()
	}
	return 0
}

// Method is a way to attach a uprobe.
type Method int

// Methods of attaching.
const (
	UprobeMulti Method = iota // a uprobe_multi link: kernel 6.6
	PerfEvent                 // perf_event_open: kernel 4.17
)

// load loads one program and the maps that it uses.
func load(program string, m Method) (*ebpf.Collection, error) {
	all, err := loadProbe()
	if err != nil {
		return nil, err
	}
	p := all.Programs[program]
	if m == UprobeMulti {
		p.AttachType = ebpf.AttachTraceUprobeMulti
	}
	one := &ebpf.CollectionSpec{
		Programs: map[string]*ebpf.ProgramSpec{program: p}, Maps: map[string]*ebpf.MapSpec{},
		Types: all.Types, ByteOrder: all.ByteOrder,
	}
	for _, in := range p.Instructions {
		if m := all.Maps[in.Reference()]; m != nil {
			one.Maps[in.Reference()] = m
		}
	}
	return ebpf.NewCollection(one)
}

// attach puts a program at an offset of the executable, for one process.
func (l *Lab) attach(m Method, p *ebpf.Program, c *child, offset, cookie uint64) (link.Link, error) {
	ex, err := link.OpenExecutable(fmt.Sprintf("/proc/self/fd/%d", l.exe.Fd()))
	if err != nil {
		return nil, err
	}
	multi := &link.UprobeMultiOptions{Addresses: []uint64{offset}, PID: uint32(c.Process.Pid)}
	if cookie != 0 {
		multi.Cookies = []uint64{cookie}
	}
	perf := &link.UprobeOptions{Address: offset, PID: c.Process.Pid, Cookie: cookie}
	// The one function that is safe to put a return probe on.
	switch ret := offset == l.returning; {
	case m == UprobeMulti && ret:
		return ex.UretprobeMulti(nil, p, multi)
	case m == UprobeMulti:
		return ex.UprobeMulti(nil, p, multi)
	case ret:
		return ex.Uretprobe("", p, perf)
	}
	return ex.Uprobe("", p, perf)
}

// probe attaches a program by whatever method works, at an offset that the
// helper process comes by once it is asked to, and shows the result to f.
func (l *Lab) probe(program string, c *child, offset, cookie uint64, f func(*ebpf.Collection) error) error {
	var failed error
	for _, m := range []Method{UprobeMulti, PerfEvent} {
		coll, err := load(program, m)
		if err != nil {
			return err // the method does not matter to it
		}
		defer coll.Close()
		k, err := l.attach(m, coll.Programs[program], c, offset, cookie)
		if err != nil {
			failed = errors.Join(failed, err)
			continue
		}
		defer func() { _ = k.Close() }()
		return f(coll)
	}
	return failed
}
