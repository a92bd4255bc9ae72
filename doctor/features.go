package doctor

import (
	"errors"
	"fmt"
	"os"
	"syscall"
	"time"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/ringbuf"
)

// LoadProgram loads a program that does nothing. Since kernel 5.8 it needs
// CAP_BPF and CAP_PERFMON, before that CAP_SYS_ADMIN.
func LoadProgram() error {
	c, err := load("empty", PerfEvent)
	if err == nil {
		c.Close()
	}
	return err
}

// CreateMap creates a small hash map. Since kernel 5.8 it needs CAP_BPF, before
// that CAP_SYS_ADMIN.
func CreateMap() error {
	spec, err := loadProbe()
	if err != nil {
		return err
	}
	m, err := ebpf.NewMap(spec.Maps[probeMapHits])
	if err != nil {
		return err
	}
	return m.Close()
}

// Hits is what a probe saw of two processes, of which one was selected. Each
// called the probed function once on each of Threads threads.
type Hits struct {
	Threads int    // of the selected process that were seen
	First   bool   // its first thread was
	Twice   uint64 // calls of it that were counted more than once
	Other   uint64 // calls of the process that was not selected
}

// Exact reports whether the probe saw every call of the selected process and
// none of the other.
func (h Hits) Exact() bool { return h == Hits{Threads: Threads, First: true} }

// Select attaches to one process and counts what is seen of it and of another.
// Links came with kernel 6.6; until 6.9 their process filter let the first
// thread's calls through and no others. perf_event_open can do it since 4.17.
func (l *Lab) Select(m Method) (h Hits, err error) {
	c, err := load(probeProgHit, m)
	if err != nil {
		return h, err
	}
	defer c.Close()
	k, err := l.attach(m, c.Programs[probeProgHit], l.selected, l.probed, 0)
	if err != nil {
		return h, err
	}
	defer func() { _ = k.Close() }()
	if err := l.selected.ask("call"); err != nil {
		return h, err
	}
	total, err := eachHit(c, func(process, thread uint32, n uint64) {
		h.Threads++
		h.First = h.First || process == thread
		h.Twice += n - 1
	})
	if err != nil {
		return h, err
	}
	if err := l.other.ask("call"); err != nil {
		return h, err
	}
	after, err := eachHit(c, func(uint32, uint32, uint64) {})
	h.Other = after - total
	return h, err
}

// eachHit visits the threads that were seen, by their numbers in the initial PID
// namespace, and returns the sum of their hits.
func eachHit(c *ebpf.Collection, visit func(process, thread uint32, n uint64)) (sum uint64, err error) {
	var thread, n uint64
	it := c.Maps[probeMapHits].Iterate()
	for it.Next(&thread, &n) {
		visit(uint32(thread>>32), uint32(thread), n)
		sum += n
	}
	return sum, it.Err()
}

// ask runs a program once on the selected process and returns its answer.
func (l *Lab) ask(program string, cookie uint64) (v uint64, err error) {
	err = l.probe(program, l.selected, l.probed, cookie, func(c *ebpf.Collection) error {
		if err := l.selected.ask("call"); err != nil {
			return err
		}
		return c.Maps[probeMapAnswer].Lookup(uint32(0), &v)
	})
	return v, err
}

func (l *Lab) expect(program string, cookie, want uint64) error {
	got, err := l.ask(program, cookie)
	if err == nil && got != want {
		err = fmt.Errorf("it gave %#x, not %#x", got, want)
	}
	return err
}

// Cookie checks that a program sees the cookie it was attached with
// (bpf_get_attach_cookie): kernel 5.15.
func (l *Lab) Cookie() error { return l.expect(probeProgCookie, 0xc0017e, 0xc0017e) }

// Memory checks that a program reads the memory of the process that it probes
// (bpf_probe_read_user): kernel 5.5.
func (l *Lab) Memory() error { return l.expect(probeProgMemory, 0, mark) }

// Loop checks bpf_loop: kernel 5.17.
func (l *Lab) Loop() error { return l.expect(probeProgLoop, 0, 45) }

// RingBuffer checks that records of a program arrive: kernel 5.8.
func (l *Lab) RingBuffer() error {
	return l.probe(probeProgRecord, l.selected, l.probed, 0, func(c *ebpf.Collection) error {
		r, err := ringbuf.NewReader(c.Maps[probeMapRing])
		if err != nil {
			return err
		}
		defer func() { _ = r.Close() }()
		if err := l.selected.ask("call"); err != nil {
			return err
		}
		r.SetDeadline(time.Now().Add(200 * time.Millisecond)) // it is there already
		record, err := r.Read()
		if errors.Is(err, os.ErrDeadlineExceeded) {
			return errors.New("no record arrived")
		}
		if err == nil && len(record.RawSample) != 8 {
			err = fmt.Errorf("a record has %d bytes, not 8", len(record.RawSample))
		}
		return err
	})
}

// Return is what a return probe did to a process.
type Return struct {
	Hits    uint64         // returns that were seen
	Killed  syscall.Signal // what the process died of
	Sandbox bool           // it had set a seccomp filter by then
}

// ReturnInSandbox puts a return probe on a process, which sets a seccomp filter
// that knows none of the system calls of the kernel's probe trampolines. Since
// kernel 6.11 a return probe makes such a call; until some 6.13 the filter saw it.
func (l *Lab) ReturnInSandbox() (r Return, err error) {
	c, err := l.start()
	if err != nil {
		return r, err
	}
	defer func() {
		signal := c.end()
		if errors.Is(err, errChildEnded) && l.ctx.Err() == nil {
			r.Killed, err = signal, nil
		}
	}()
	err = l.probe(probeProgHit, c, l.returning, 0, func(coll *ebpf.Collection) error {
		if err := c.ask("return"); err != nil {
			return err
		}
		if err := c.ask("sandbox"); err != nil {
			return err
		}
		r.Sandbox = true
		if err := c.ask("return"); err != nil {
			return err
		}
		r.Hits, err = eachHit(coll, func(uint32, uint32, uint64) {})
		return err
	})
	return r, err
}
