package agent

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"strings"
	"time"

	"github.com/cilium/ebpf/link"

	"github.com/zerospan/zerospan/bpf"
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
	cancel    context.CancelFunc
}

// OpenExe opens a process's executable.
func OpenExe(p *procdiscovery.Process) (*os.File, error) {
	f, err := os.Open(p.ExePath())
	if errors.Is(err, os.ErrPermission) {
		err = fmt.Errorf("not permitted to read the executable of process %d: run as root, or with CAP_SYS_PTRACE (%w)", p.PID, err)
	}
	return f, err
}

// Plan plans all instrumentors for a process and its executable.
func Plan(p *procdiscovery.Process, f *os.File) (plans []PlanResult, goVersion string, err error) {
	goVersion = goVersionOf(f)
	b, err := offsets.Open(f)
	if err != nil {
		return nil, goVersion, fmt.Errorf("%s: %w", p.Exe, err)
	}
	defer func() { _ = b.Close() }()
	for _, spec := range instrumentors.All() {
		r := PlanResult{Spec: spec}
		err := b.Guard(func() (err error) {
			r.Plan, err = instrumentors.MakePlan(spec, b)
			return err
		})
		r.Err = err
		plans = append(plans, r)
	}
	return plans, goVersion, nil
}

// PlanResult is what one instrumentor would do, or why it does nothing.
type PlanResult struct {
	Spec *instrumentors.Spec
	Plan *instrumentors.Plan
	Err  error
}

// attach plans and attaches all instrumentors that fit the process.
func (a *Agent) attach(ctx context.Context, p *procdiscovery.Process) error {
	exe, err := OpenExe(p)
	if err != nil {
		return err
	}
	plans, goVersion, err := Plan(p, exe)
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
	t := &target{id: a.nextID, process: p, exe: exe, telemetry: telemetry.NewTarget(p.PID, service, resourceOf(p, service, goVersion))}
	// Known before its first record can arrive.
	a.mu.Lock()
	a.byID[t.id] = t
	a.mu.Unlock()
	var attached []string
	var failed error
	for _, r := range plans {
		if errors.Is(r.Err, instrumentors.ErrAbsent) || errors.Is(r.Err, offsets.ErrNotGo) {
			continue
		}
		err := r.Err
		if err == nil {
			err = a.attachPlan(t, r.Plan)
		}
		if err != nil {
			failed = errors.Join(failed, fmt.Errorf("%s: %w", r.Spec.Name, err))
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
	for _, role := range []instrumentors.Role{instrumentors.End, instrumentors.Extra, instrumentors.Start} {
		for _, site := range plan.Attached(role) {
			k, err := a.attachSite(t, l, site, index)
			if err != nil {
				t.detach()
				return err
			}
			switch {
			case site.Adaptive:
				a.mu.Lock() // records may come already
				t.adaptive = append(t.adaptive, &adaptive{target: t, site: site, layout: index, loaded: l, link: k})
				a.mu.Unlock()
			case role == instrumentors.Start:
				t.starts = append(t.starts, k)
			default:
				t.ends = append(t.ends, k)
			}
		}
	}
	return nil
}

// attachSite puts a program on a site of one process.
func (a *Agent) attachSite(t *target, l *loaded, site instrumentors.PlannedSite, layout uint32) (link.Link, error) {
	p, err := l.program(site.Program)
	if err != nil {
		return nil, err
	}
	// The last check before the kernel writes a breakpoint there.
	now := make([]byte, len(site.Found.Bytes))
	if _, err := t.exe.ReadAt(now, int64(site.Found.FileOffset)); err != nil || !bytes.Equal(now, site.Found.Bytes) {
		return nil, fmt.Errorf("%s is not what it was: refused", site.Found.Func.Name)
	}
	ex, err := link.OpenExecutable(fmt.Sprintf("/proc/self/fd/%d", t.exe.Fd()))
	if err != nil {
		return nil, fmt.Errorf("open the executable: %w", err)
	}
	k, err := ex.UprobeMulti(nil, p, &link.UprobeMultiOptions{
		Addresses: []uint64{site.Found.FileOffset},
		Cookies:   []uint64{cookie(t.id, layout, site.Found.StackCheck)},
		PID:       uint32(t.process.PID),
	})
	if err != nil {
		return nil, fmt.Errorf("attach to %s: %w", site.Found.Func.Name, err)
	}
	return k, nil
}

// cookie packs what a program knows of its site (bpf/probe.h).
func cookie(target, layout uint32, stackCheck bool) uint64 {
	c := uint64(target)<<32 | uint64(layout)
	if stackCheck {
		c |= 1 << 16
	}
	return c
}

func closeLinks(links []link.Link) {
	for i := len(links) - 1; i >= 0; i-- {
		_ = links[i].Close() // the file descriptor goes in any case
	}
}

// detach removes all probes, starts first: no call begins that can't end.
func (t *target) detach() {
	closeLinks(t.starts)
	closeLinks(t.ends)
	t.starts, t.ends = nil, nil
	for _, d := range t.adaptive {
		if d.link != nil {
			_ = d.link.Close()
			d.link = nil
		}
	}
}

// forget ends a target that has no probes any more.
func (a *Agent) forget(t *target) {
	_ = t.exe.Close()
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
	for _, l := range a.loaded {
		type entry struct {
			key  []byte
			open bool
		}
		var entries []entry
		err := l.eachEntry(func(key []byte, head *bpf.SharedZsHead, _ []byte) {
			if head.Target == id {
				entries = append(entries, entry{append([]byte(nil), key...), head.Start != 0})
			}
		})
		if err != nil {
			a.log.Warn("open calls could not be closed", "error", err)
		}
		for _, e := range entries {
			if l.calls.Delete(e.key) == nil && e.open {
				a.abandoned[reason]++
			}
		}
	}
}

// sweep lists calls that have been open for long and collects what the ring had no room for.
func (a *Agent) sweep(now time.Time) {
	a.consumer.request(false)
	a.mu.Lock()
	defer a.mu.Unlock()
	a.takeFallback()
	a.clock.sync()
	limit := a.cfg.StuckAfter
	open := map[string]bool{}
	var c telemetry.Call
	for _, l := range a.loaded {
		err := l.eachOpen(func(key []byte, head *bpf.SharedZsHead, raw []byte) {
			start := a.clock.unix(head.Start)
			if now.UnixNano()-start < limit.Nanoseconds() {
				return
			}
			k := string(key) + fmt.Sprint(head.Start)
			open[k] = true
			t := a.byID[head.Target]
			c.Reset()
			if a.stuck[k] || t == nil || l.spec.Decode(raw, &c) != nil {
				return
			}
			a.unfinished(t, l, head, &c, now)
		})
		if err != nil {
			a.log.Warn("open calls could not be listed", "error", err)
		}
	}
	a.stuck = open
}
