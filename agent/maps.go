package agent

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"strings"
	"sync"
	"unsafe"

	"github.com/cilium/ebpf"
	"golang.org/x/sync/errgroup"

	"github.com/zerospan/zerospan/bpf"
	"github.com/zerospan/zerospan/instrumentors"
	"github.com/zerospan/zerospan/telemetry"
)

// shared is the maps that all instrumentors use, by their name in bpf/.
type shared struct {
	maps                            map[string]*ebpf.Map
	ring, counts, control, fallback *ebpf.Map
	calls, index, entries           *ebpf.Map
	processes, types, cookies       *ebpf.Map

	mem     *ebpf.Memory // control, mapped: setting its flag costs no system call
	counter []uint64     // scratch, one a CPU
}

// newShared creates the maps; ringSize is in bytes, a power of two.
func newShared(ringSize, maxOpenCalls uint32, k kernel) (*shared, error) {
	spec, err := bpf.LoadShared()
	if err != nil {
		return nil, err
	}
	spec.Maps["zs_ring"].MaxEntries = ringSize
	spec.Maps["zs_calls"].MaxEntries = maxOpenCalls
	spec.Maps["zs_index"].MaxEntries = 2 * maxOpenCalls
	s := &shared{maps: map[string]*ebpf.Map{}}
	for name, m := range spec.Maps {
		if strings.HasPrefix(name, ".") { // constants: each program has its own
			continue
		}
		k.fit(m)
		if s.maps[name], err = ebpf.NewMap(m); err != nil {
			s.close()
			return nil, fmt.Errorf("create BPF map %s: %w", name, err)
		}
	}
	s.ring, s.counts, s.control, s.fallback = s.maps["zs_ring"], s.maps["zs_counts"], s.maps["zs_ctl"], s.maps["zs_fallback"]
	s.calls, s.index, s.entries = s.maps["zs_calls"], s.maps["zs_index"], s.maps["zs_entries"]
	s.processes, s.types, s.cookies = s.maps["zs_processes"], s.maps["go_types"], s.maps["zs_cookies"]
	if s.mem, err = s.control.Memory(); err != nil {
		s.close()
		return nil, fmt.Errorf("map the BPF control map: %w", err)
	}
	return s, nil
}

func (s *shared) close() {
	for _, m := range s.maps {
		if m != nil {
			_ = m.Close() // only a file descriptor
		}
	}
}

// describe tells the programs what they need to know of a process.
func (s *shared) describe(t *target) error {
	if err := s.processes.Put(t.id, bpf.SharedZsProcess{Bias: t.bias}); err != nil {
		return fmt.Errorf("store the load address: %w", err)
	}
	return t.eachType(func(key bpf.SharedGoTypeKey, value bpf.SharedGoType) error {
		if err := s.types.Put(key, value); err != nil {
			return fmt.Errorf("store the types of contexts and errors: %w", err)
		}
		return nil
	})
}

// forget undoes describe. What is not there is as good as deleted.
func (s *shared) forget(t *target) {
	_ = s.processes.Delete(t.id)
	for _, key := range t.cookies {
		_ = s.cookies.Delete(key)
	}
	_ = t.eachType(func(key bpf.SharedGoTypeKey, _ bpf.SharedGoType) error {
		_ = s.types.Delete(key)
		return nil
	})
}

// setSleeping tells the programs whether the next record must wake the consumer.
func (s *shared) setSleeping(sleeping bool) {
	var v [4]byte
	if sleeping {
		v[0] = 1
	}
	// Offset and length are constants that fit; there is nothing else to fail.
	_, _ = s.mem.WriteAt(v[:], 0)
}

// counters returns the sums over all CPUs for one instrumentor.
func (s *shared) counters(instrumentor uint16) (out [bpf.SharedZsCounterZS_COUNTERS]uint64, err error) {
	for i := range out {
		if bpf.SharedZsCounter(i) > bpf.SharedZsCounterZS_SKIPPED {
			break
		}
		key := uint32(instrumentor)*uint32(bpf.SharedZsCounterZS_COUNTERS) + uint32(i)
		if err := s.counts.Lookup(&key, &s.counter); err != nil {
			return out, fmt.Errorf("read counters: %w", err)
		}
		for _, v := range s.counter {
			out[i] += v
		}
	}
	return out, nil
}

// takeFallback moves what the programs folded since the last time to the pipeline.
func (a *Agent) takeFallback() {
	type entry struct {
		key   bpf.SharedZsFallbackKey
		value bpf.SharedZsFallbackValue
	}
	var entries []entry
	var e entry
	it := a.shared.fallback.Iterate()
	for it.Next(&e.key, &e.value) {
		entries = append(entries, e)
	}
	for _, e := range entries {
		t, l := a.byID[e.key.Target], a.byNumber(e.key.Instrumentor)
		seen := a.folded[e.key]
		if l == nil || e.value.Count == seen.Count {
			continue
		}
		a.folded[e.key] = e.value
		target := a.lost
		if t != nil {
			target = t.telemetry
		}
		a.pipeline.Fold(target, l.spec.Metric, l.spec.Folded(e.key.Class, e.key.Error != 0), int(e.key.Bucket),
			e.value.Count-seen.Count, durationNS(e.value.Sum-seen.Sum))
	}
}

// dropFallback forgets a target that is gone: its series are complete.
func (a *Agent) dropFallback(target uint32) {
	for key := range a.folded {
		if key.Target == target {
			delete(a.folded, key)
			if err := a.shared.fallback.Delete(&key); err != nil {
				a.log.Debug("an entry of the fallback histogram stays", "error", err)
			}
		}
	}
}

// entry is an entry of the map of calls. It is only valid while it is visited.
type entry struct {
	key  *bpf.SharedZsKey
	head *bpf.SharedZsHead
	raw  []byte // the record of an open call
}

func (e entry) open() bool { return e.head.Start != 0 }

// eachEntry visits the calls that are open, and the entries that a task keeps for
// its next one. Afterwards the programs' own count of entries is set right: what
// user space deletes, they don't see.
func (s *shared) eachEntry(visit func(entry)) error {
	var key bpf.SharedZsKey
	value := make([]byte, s.calls.ValueSize())
	// While entries come and go the walk may start over: each is visited once.
	seen := map[bpf.SharedZsKey]struct{}{}
	it := s.calls.Iterate()
	for it.Next(&key, &value) {
		if _, ok := seen[key]; ok {
			continue
		}
		seen[key] = struct{}{}
		visit(entry{&key, (*bpf.SharedZsHead)(unsafe.Pointer(unsafe.SliceData(value))), value})
	}
	if err := it.Err(); err != nil {
		if errors.Is(err, ebpf.ErrIterationAborted) { // too much came and went meanwhile
			return nil
		}
		return fmt.Errorf("read open calls: %w", err)
	}
	return s.entries.Put(uint32(0), uint64(len(seen)))
}

// eachOpen visits the calls that are open.
func (s *shared) eachOpen(visit func(entry)) error {
	return s.eachEntry(func(e entry) {
		if e.open() {
			visit(e)
		}
	})
}

// deleteEntry deletes an entry and what leads to it; false if it was gone already.
func (s *shared) deleteEntry(key bpf.SharedZsKey, owner bpf.SharedZsOwner) bool {
	for _, v := range []uint64{owner.Context, owner.Connection, owner.TaskId} {
		by := bpf.SharedZsIndexKey{Value: v, Tgid: key.Tgid}
		var task uint64
		if v != 0 && s.index.Lookup(by, &task) == nil && task == key.Task { // an address may be another's by now
			_ = s.index.Delete(by)
		}
	}
	return s.calls.Delete(key) == nil
}

// loaded is an instrumentor whose maps exist; its programs are loaded when the
// first binary needs them.
type loaded struct {
	spec     *instrumentors.Spec
	scope    string // the instrumentation scope of its spans
	number   uint16
	coll     *ebpf.CollectionSpec
	base     *ebpf.Collection // the maps
	layouts  *ebpf.Map
	programs map[string]*ebpf.Program
	layout   map[string]uint32 // index in layouts, by content
}

// DefaultMaxOpenCalls is how many calls can be open at a time in all targets. An
// entry takes about 1.2 KB.
const DefaultMaxOpenCalls = 8192

// prepare fits a collection to the kernel and returns the maps that it shares with others.
func (a *Agent) prepare(coll *ebpf.CollectionSpec) (map[string]*ebpf.Map, error) {
	replacements := map[string]*ebpf.Map{}
	for name, m := range a.shared.maps {
		if spec := coll.Maps[name]; spec != nil {
			spec.MaxEntries, spec.Flags, replacements[name] = m.MaxEntries(), m.Flags(), m
		}
	}
	for name, m := range coll.Maps {
		if replacements[name] == nil {
			a.kernel.fit(m)
		}
	}
	if v := coll.Variables["zs_no_cookies"]; v != nil && !a.kernel.cookies {
		if err := v.Set(uint32(1)); err != nil {
			return nil, err
		}
	}
	if a.kernel.multi {
		for _, p := range coll.Programs {
			p.AttachType = ebpf.AttachTraceUprobeMulti
		}
	}
	return replacements, nil
}

func (a *Agent) load(spec *instrumentors.Spec, number uint16) (*loaded, error) {
	coll, err := spec.Load()
	if err != nil {
		return nil, err
	}
	l := &loaded{spec: spec, scope: "github.com/zerospan/zerospan/" + spec.Library, number: number, coll: coll, programs: map[string]*ebpf.Program{}, layout: map[string]uint32{}}
	if err := coll.Variables["zs_instrumentor"].Set(number); err != nil {
		return nil, err
	}
	if err := coll.Variables["zs_seed"].Set([2]uint64{rand.Uint64(), rand.Uint64()}); err != nil {
		return nil, err
	}
	if err := coll.Variables["zs_keep_below"].Set(uint64(a.cfg.MaxOpenCalls / 2)); err != nil {
		return nil, err
	}
	var bounds [16]uint64
	for i, b := range telemetry.BoundsNS(spec.Metric.Bounds) {
		bounds[i] = uint64(b)
	}
	if err := coll.Variables["zs_bounds"].Set(bounds); err != nil {
		return nil, err
	}
	replacements, err := a.prepare(coll)
	if err != nil {
		return nil, err
	}
	maps := coll.Copy()
	maps.Programs = nil
	if l.base, err = ebpf.NewCollectionWithOptions(maps, ebpf.CollectionOptions{MapReplacements: replacements}); err != nil {
		return nil, fmt.Errorf("create the BPF maps of %s: %w", spec.Name, err)
	}
	l.layouts = l.base.Maps["layouts"]
	return l, nil
}

// loadPrograms loads the programs that a plan needs and that are not loaded yet.
func (l *loaded) loadPrograms(plan *instrumentors.Plan) error {
	missing := map[string]*ebpf.Program{}
	for _, s := range plan.Sites {
		if !s.Absent && s.Skipped == "" && l.programs[s.Program] == nil {
			missing[s.Program] = nil
		}
	}
	var group errgroup.Group
	var mu sync.Mutex
	for name := range missing {
		group.Go(func() error {
			p, err := l.program(name)
			mu.Lock()
			defer mu.Unlock()
			if p != nil {
				l.programs[name] = p
			}
			return err
		})
	}
	return group.Wait()
}

func (l *loaded) program(name string) (*ebpf.Program, error) {
	one := l.coll.Copy()
	for other := range one.Programs {
		if other != name {
			delete(one.Programs, other)
		}
	}
	c, err := ebpf.NewCollectionWithOptions(one, ebpf.CollectionOptions{MapReplacements: l.base.Maps})
	if err != nil {
		return nil, fmt.Errorf("load the BPF program %s of %s: %w", name, l.spec.Name, err)
	}
	defer c.Close()
	return c.DetachProgram(name), nil
}

func (l *loaded) close() {
	for _, p := range l.programs {
		_ = p.Close()
	}
	if l.base != nil {
		l.base.Close()
	}
}
