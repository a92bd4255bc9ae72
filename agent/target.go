package agent

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"strings"
	"sync"
	"time"
	"unsafe"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"
	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"

	"github.com/zerospan/zerospan/bpf"
	"github.com/zerospan/zerospan/coexist"
	"github.com/zerospan/zerospan/doctor"
	"github.com/zerospan/zerospan/instrumentors"
	"github.com/zerospan/zerospan/offsets"
	"github.com/zerospan/zerospan/procdiscovery"
	"github.com/zerospan/zerospan/telemetry"
)

// target is a process that is traced.
type target struct {
	id        uint32
	process   *procdiscovery.Process
	exe       *os.File // what was planned for is what is attached to, whatever the process executes meanwhile
	telemetry *telemetry.Target
	starts    []link.Link
	ends      []link.Link
	adaptive  []*adaptive
	mu        sync.Mutex
	cookies   []bpf.SharedZsCookieKey // where the kernel has none
	biasErr   error                   // why bias is not known
	bias      uint64                  // what was added to the executable's addresses when it was loaded
	types     []instrumentors.GoType
	sdk       *sdkState         // nil: it carries no SDK, or that does not matter
	constants map[uint64][]byte // of the file, by address; belongs to the consumer's goroutine too
	names     map[uint64]string // of types, by address; belongs to the consumer's goroutine
	cancel    context.CancelFunc
}

// Inspect reads what is known of a process and says what is missing if it may not.
func Inspect(pid int) (*procdiscovery.Process, error) {
	p, err := procdiscovery.Inspect(pid)
	if errors.Is(err, os.ErrPermission) {
		if lacking := doctor.Lacking(unix.CAP_SYS_PTRACE); lacking != "" {
			err = fmt.Errorf("%w: %s", err, lacking)
		}
	}
	return p, err
}

// OpenExe opens a process's executable.
func OpenExe(p *procdiscovery.Process) (*os.File, error) {
	f, err := os.Open(p.ExePath())
	if errors.Is(err, os.ErrPermission) {
		lacking := doctor.Lacking(unix.CAP_SYS_PTRACE, unix.CAP_DAC_READ_SEARCH)
		if lacking == "" {
			lacking = "a security module may protect it"
		}
		err = fmt.Errorf("not permitted to read the executable of process %d: %s (%w)", p.PID, lacking, err)
	}
	return f, err
}

// Planned is what would be done with a process.
type Planned struct {
	GoVersion string
	Results   []PlanResult
	Types     []instrumentors.GoType
	SDK       *coexist.Plan // nil: not known
	Bias      uint64        // what was added to the executable's addresses when it was loaded
	BiasErr   error         // why that is not known
}

// PlanResult is what one instrumentor would do, or why it does nothing.
type PlanResult struct {
	Spec *instrumentors.Spec
	Plan *instrumentors.Plan
	Err  error
}

// Plan plans all instrumentors for a process and its executable.
func Plan(p *procdiscovery.Process, f *os.File) (*Planned, error) {
	planned := &Planned{GoVersion: goVersionOf(f)}
	b, err := offsets.Open(f)
	if err != nil {
		return planned, fmt.Errorf("%s: %w", p.Exe, err)
	}
	defer func() { _ = b.Close() }()
	for _, spec := range instrumentors.All() {
		r := PlanResult{Spec: spec}
		r.Err = b.Guard(func() (err error) {
			r.Plan, err = instrumentors.MakePlan(spec, b)
			return err
		})
		planned.Results = append(planned.Results, r)
	}
	if err := b.Guard(func() error { planned.Types = instrumentors.GoTypes(b); return nil }); err != nil {
		return planned, err
	}
	if err := b.Guard(func() (err error) { planned.SDK, err = coexist.MakePlan(b); return err }); err != nil && !errors.Is(err, offsets.ErrNotGo) {
		return planned, err
	}
	start, offset, err := p.Mapping()
	if err == nil {
		planned.Bias, err = b.Bias(start, offset)
	}
	planned.BiasErr = err
	return planned, nil
}

// attach plans and attaches all instrumentors that fit the process.
func (a *Agent) attach(ctx context.Context, p *procdiscovery.Process) error {
	exe, err := OpenExe(p)
	if err != nil {
		return err
	}
	planned, err := Plan(p, exe)
	if err != nil {
		_ = exe.Close()
		return fmt.Errorf("%w: %w: see zerospan explain --pid %d", ErrNothingTraceable, err, p.PID)
	}
	service := a.cfg.Service
	if service == "" {
		service = p.ServiceName
	}
	if service == "" {
		service = p.Name()
	}
	a.nextID++
	t := &target{id: a.nextID, process: p, exe: exe, telemetry: telemetry.NewTarget(p.PID, service, resourceOf(p, service, planned.GoVersion))}
	// Known before its first record can arrive.
	a.mu.Lock()
	a.byID[t.id] = t
	a.mu.Unlock()
	t.biasErr, err = planned.BiasErr, planned.BiasErr
	if err == nil {
		t.bias, t.types = planned.Bias, planned.Types
		err = a.shared.describe(t)
	}
	if err != nil {
		a.log.Warn("some parents and types of errors will not be known", "pid", p.PID, "reason", err)
	}
	loading := a.loadAll(planned)
	if err := a.watchSDK(t, planned.SDK); err != nil {
		a.log.Warn("whether the process exports telemetry by itself is not known", "pid", p.PID, "reason", err)
	}
	var attached []string
	var failed error
	for _, r := range planned.Results {
		if errors.Is(r.Err, instrumentors.ErrAbsent) || errors.Is(r.Err, offsets.ErrNotGo) {
			continue
		}
		err := r.Err
		if err == nil {
			err = <-loading[r.Spec]
		}
		if err == nil {
			err = a.attachPlan(t, r.Plan)
		}
		if err != nil {
			failed = errors.Join(failed, fmt.Errorf("%s: %w", r.Spec.Name, err))
			if errors.Is(err, os.ErrPermission) {
				continue // the same for all: said once
			}
			a.log.Warn("not attached", "pid", p.PID, "instrumentor", r.Spec.Name, "reason", err)
			continue
		}
		attached = append(attached, r.Spec.Name)
	}
	if len(attached) == 0 {
		a.abandon(t.id, "detached")
		a.forget(t)
		if errors.Is(failed, os.ErrPermission) {
			return permission(failed)
		}
		if failed == nil {
			failed = fmt.Errorf("%s has no library that zerospan knows", p.Exe)
		}
		return fmt.Errorf("%w: %w: see zerospan explain --pid %d", ErrNothingTraceable, failed, p.PID)
	}
	if !p.Alive() {
		t.detach()
		a.abandon(t.id, "detached")
		a.forget(t)
		return fmt.Errorf("%w: %d (it has just ended)", procdiscovery.ErrNotFound, p.PID)
	}
	a.targets[p.PID] = t
	a.pipeline.AddTarget(t.telemetry)
	a.log.Info("attached", "pid", p.PID, "exe", p.Name(), "service", service, "instrumentors", strings.Join(attached, ","))
	a.once.Do(func() { close(a.attached) })

	watch, cancel := context.WithCancel(ctx)
	t.cancel = cancel
	a.watchers.Go(func() {
		if err := p.WaitExit(watch); err != nil && watch.Err() == nil {
			a.log.Warn("the end of the process can't be seen", "pid", p.PID, "error", err)
			return
		}
		if watch.Err() == nil {
			select {
			case a.exits <- t:
			case <-watch.Done():
			}
		}
	})
	return nil
}

// loadAll loads all programs that are needed beside one another: the kernel
// verifies a large one for a few tenths of a second.
func (a *Agent) loadAll(planned *Planned) map[*instrumentors.Spec]chan error {
	out := map[*instrumentors.Spec]chan error{}
	for _, r := range planned.Results {
		if r.Err != nil {
			continue
		}
		done := make(chan error, 1)
		out[r.Spec] = done
		l, err := a.instrumentor(r.Spec)
		if err != nil {
			done <- err
			continue
		}
		go func() { done <- l.loadPrograms(r.Plan) }()
	}
	return out
}

// attachPlan stores the binary's layout and attaches ends before starts.
func (a *Agent) attachPlan(t *target, plan *instrumentors.Plan) error {
	l, err := a.instrumentor(plan.Spec)
	if err != nil {
		return err
	}
	id := fmt.Sprint(plan.Layout) // binaries of one layout share it, however many there are
	index, ok := l.layout[id]
	if !ok {
		index = uint32(len(l.layout))
		if index >= l.layouts.MaxEntries() {
			return fmt.Errorf("more than %d different layouts of binaries", l.layouts.MaxEntries())
		}
		if err := l.layouts.Put(index, plan.Layout); err != nil {
			return fmt.Errorf("store the layout: %w", err)
		}
		l.layout[id] = index
	}
	var starts, ends []link.Link
	var adaptives []*adaptive
	for _, role := range []instrumentors.Role{instrumentors.End, instrumentors.Extra, instrumentors.Start} {
		sites := plan.Attached(role)
		links := make([]link.Link, len(sites))
		var group errgroup.Group // each takes the kernel a while, most of which it waits
		for i, site := range sites {
			group.Go(func() (err error) {
				links[i], err = a.attachSite(t, l, site, index)
				return err
			})
		}
		err := group.Wait()
		for i, site := range sites {
			k := links[i]
			if k == nil {
				continue
			}
			switch {
			case site.Adaptive:
				adaptives = append(adaptives, &adaptive{target: t, site: site, layout: index, loaded: l, link: k})
			case role == instrumentors.Start:
				starts = append(starts, k)
			default:
				ends = append(ends, k)
			}
		}
		if err != nil { // of this plan nothing stays, of others everything
			for _, d := range adaptives {
				ends = append(ends, d.link)
			}
			closeLinks(starts)
			closeLinks(ends)
			return err
		}
	}
	a.mu.Lock() // records may come already
	defer a.mu.Unlock()
	t.starts, t.ends, t.adaptive = append(t.starts, starts...), append(t.ends, ends...), append(t.adaptive, adaptives...)
	return nil
}

// attachSite puts a program on its sites in one process.
func (a *Agent) attachSite(t *target, l *loaded, site instrumentors.PlannedSite, layout uint32) (link.Link, error) {
	return a.probe(t, l.programs[site.Program], site.Found, layout)
}

// probe puts a program on sites of the process's executable.
func (a *Agent) probe(t *target, p *ebpf.Program, sites []offsets.Site, layout uint32) (link.Link, error) {
	name := sites[0].Func.Name
	var addresses, cookies []uint64
	for _, site := range sites {
		// The last check before the kernel writes a breakpoint there.
		now := make([]byte, len(site.Bytes))
		if _, err := t.exe.ReadAt(now, int64(site.FileOffset)); err != nil || !bytes.Equal(now, site.Bytes) {
			return nil, fmt.Errorf("%s is not what it was: refused", name)
		}
		addresses = append(addresses, site.FileOffset)
		cookies = append(cookies, cookie(t.id, layout, site.StackCheck))
	}
	ex, err := link.OpenExecutable(fmt.Sprintf("/proc/self/fd/%d", t.exe.Fd()))
	if err != nil {
		return nil, fmt.Errorf("open the executable: %w", err)
	}
	if a.kernel.multi {
		k, err := ex.UprobeMulti(nil, p, &link.UprobeMultiOptions{Addresses: addresses, Cookies: cookies, PID: uint32(t.process.PID)})
		if err != nil {
			return nil, fmt.Errorf("attach to %s: %w", name, err)
		}
		return k, nil
	}
	if !a.kernel.cookies && t.biasErr != nil {
		return nil, fmt.Errorf("attach to %s: this kernel has no cookies, and %w", name, t.biasErr)
	}
	var all links
	for i, address := range addresses {
		options := &link.UprobeOptions{Address: address, PID: t.process.PID, Cookie: cookies[i]}
		if !a.kernel.cookies {
			options.Cookie = 0
			key := bpf.SharedZsCookieKey{Ip: uint64(sites[i].Addr) + t.bias, Tgid: uint32(t.process.PID)}
			if err := a.shared.cookies.Put(key, cookies[i]); err != nil {
				return nil, errors.Join(fmt.Errorf("attach to %s: %w", name, err), all.Close())
			}
			t.mu.Lock()
			t.cookies = append(t.cookies, key)
			t.mu.Unlock()
		}
		k, err := ex.Uprobe(name, p, options)
		if err != nil {
			return nil, errors.Join(fmt.Errorf("attach to %s: %w", name, err), all.Close())
		}
		all.list = append(all.list, k)
	}
	return &all, nil
}

// links are one where the kernel needs several.
type links struct {
	link.Link // not used: it makes this a link.Link, which has unexported methods
	list      []link.Link
}

func (l *links) Close() error {
	closeLinks(l.list)
	return nil
}

// cookie packs what a program knows of its site (bpf/probe.h).
func cookie(target, layout uint32, stackCheck bool) uint64 {
	c := uint64(target)<<32 | uint64(layout)
	if stackCheck {
		c |= 1 << 16
	}
	return c
}

// closeLinks detaches at once what would take a grace period of the kernel each.
func closeLinks(links []link.Link) {
	var all sync.WaitGroup
	for _, k := range links {
		all.Go(func() { _ = k.Close() }) // the file descriptor goes in any case
	}
	all.Wait()
}

// detach removes all probes, starts first: no call begins that can't end.
func (t *target) detach() {
	closeLinks(t.starts)
	for _, d := range t.adaptive {
		if d.link != nil {
			t.ends = append(t.ends, d.link)
			d.link = nil
		}
	}
	closeLinks(t.ends)
	t.starts, t.ends = nil, nil
}

// forget ends a target that has no probes any more.
func (a *Agent) forget(t *target) {
	a.unwatchSDK(t)
	_ = t.exe.Close()
	a.shared.forget(t)
	a.mu.Lock()
	defer a.mu.Unlock()
	delete(a.byID, t.id)
}

// remove takes a target that has ended out of the books.
func (a *Agent) remove(t *target) {
	t.cancel()
	t.detach()
	a.consumer.request(false) // what it completed before its end
	a.mu.Lock()
	a.takeFallback()
	a.dropFallback(t.id)
	a.mu.Unlock()
	a.abandon(t.id, "target_exit")
	delete(a.targets, t.process.PID)
	a.forget(t)
	a.pipeline.RemoveTarget(t.telemetry)
}

// abandon deletes a target's open calls and counts them.
func (a *Agent) abandon(id uint32, reason string) {
	a.mu.Lock()
	defer a.mu.Unlock()
	type found struct {
		key   bpf.SharedZsKey
		owner bpf.SharedZsOwner
		open  bool
	}
	var entries []found
	err := a.shared.eachEntry(func(e entry) {
		if e.head.Target == id {
			whole := (*bpf.SharedZsEntry)(unsafe.Pointer(unsafe.SliceData(e.raw)))
			entries = append(entries, found{*e.key, whole.Owner, e.open()})
		}
	})
	if err != nil {
		a.log.Warn("open calls could not be closed", "error", err)
	}
	for _, e := range entries {
		if a.shared.deleteEntry(e.key, e.owner) && e.open {
			a.abandoned[reason]++
		}
	}
}

// stuckCall is an open call that was listed.
type stuckCall struct {
	key   bpf.SharedZsKey
	start uint64
}

// sweep lists calls that have been open for long and collects what the ring had no room for.
func (a *Agent) sweep(now time.Time) {
	a.consumer.request(false)
	a.mu.Lock()
	defer a.mu.Unlock()
	a.takeFallback()
	a.clock.sync()
	limit := a.cfg.StuckAfter
	open := map[stuckCall]bool{}
	var c telemetry.Call
	err := a.shared.eachOpen(func(e entry) {
		if now.UnixNano()-a.clock.unix(e.head.Start) < limit.Nanoseconds() {
			return
		}
		k := stuckCall{*e.key, e.head.Start}
		open[k] = true
		t, l := a.byID[e.head.Target], a.byNumber(e.head.Instrumentor)
		c.Reset()
		if a.stuck[k] || t == nil || l == nil || l.spec.Decode(e.raw, noImage{}, &c) != nil {
			return
		}
		a.unfinished(t, l, e.head, &c, now)
	})
	if err != nil {
		a.log.Warn("open calls could not be listed", "error", err)
	}
	a.stuck = open
}
