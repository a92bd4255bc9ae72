package agent

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"unsafe"

	"github.com/cilium/ebpf"

	"github.com/zerospan/zerospan/bpf"
	"github.com/zerospan/zerospan/instrumentors"
	"github.com/zerospan/zerospan/telemetry"
)

// shared is the maps that all instrumentors use.
type shared struct {
	ring, counts, control, fallback *ebpf.Map

	mem     *ebpf.Memory // control, mapped: setting its flag costs no system call
	counter []uint64     // scratch, one a CPU
}

// newShared creates the maps; ringSize is in bytes, a power of two.
func newShared(ringSize uint32) (*shared, error) {
	spec, err := bpf.LoadShared()
	if err != nil {
		return nil, err
	}
	spec.Maps["zs_ring"].MaxEntries = ringSize
	s := &shared{}
	for name, m := range map[string]**ebpf.Map{"zs_ring": &s.ring, "zs_counts": &s.counts, "zs_ctl": &s.control, "zs_fallback": &s.fallback} {
		if *m, err = ebpf.NewMap(spec.Maps[name]); err != nil {
			s.close()
			return nil, fmt.Errorf("create BPF map %s: %w", name, err)
		}
	}
	if s.mem, err = s.control.Memory(); err != nil {
		s.close()
		return nil, fmt.Errorf("map the BPF control map: %w", err)
	}
	return s, nil
}

func (s *shared) replacements() map[string]*ebpf.Map {
	return map[string]*ebpf.Map{"zs_ring": s.ring, "zs_counts": s.counts, "zs_ctl": s.control, "zs_fallback": s.fallback}
}

func (s *shared) close() {
	for _, m := range []*ebpf.Map{s.ring, s.counts, s.control, s.fallback} {
		if m != nil {
			_ = m.Close() // only a file descriptor
		}
	}
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

// eachEntry visits the entries of the map of calls: those that are open, and
// those that a task keeps for its next one (head.Start is 0). raw and key are
// only valid during the visit. Afterwards the programs' own count of entries is
// set right: what user space deletes, they don't see.
func (l *loaded) eachEntry(visit func(key []byte, head *bpf.SharedZsHead, raw []byte)) error {
	key := make([]byte, l.calls.KeySize())
	value := make([]byte, l.calls.ValueSize())
	// While entries come and go the walk may start over: each is visited once.
	seen := map[string]struct{}{}
	it := l.calls.Iterate()
	for it.Next(&key, &value) {
		if _, ok := seen[string(key)]; ok {
			continue
		}
		seen[string(key)] = struct{}{}
		visit(key, (*bpf.SharedZsHead)(unsafe.Pointer(unsafe.SliceData(value))), value)
	}
	if err := it.Err(); err != nil {
		if errors.Is(err, ebpf.ErrIterationAborted) { // too much came and went meanwhile
			return nil
		}
		return fmt.Errorf("read open calls: %w", err)
	}
	return l.base.Maps["zs_entries"].Put(uint32(0), uint64(len(seen)))
}

// eachOpen visits the calls that are open.
func (l *loaded) eachOpen(visit func(key []byte, head *bpf.SharedZsHead, raw []byte)) error {
	return l.eachEntry(func(key []byte, head *bpf.SharedZsHead, raw []byte) {
		if head.Start != 0 {
			visit(key, head, raw)
		}
	})
}

// loaded is an instrumentor whose maps exist; its programs are loaded when the
// first binary needs them.
type loaded struct {
	spec     *instrumentors.Spec
	scope    string // the instrumentation scope of its spans
	number   uint16
	coll     *ebpf.CollectionSpec
	base     *ebpf.Collection // the maps
	calls    *ebpf.Map
	layouts  *ebpf.Map
	programs map[string]*ebpf.Program
	layout   map[string]uint32 // index in layouts, by content
}

// DefaultMaxOpenCalls is how many calls of one instrumentor can be open at a time
// in all targets. An entry of the largest instrumentor takes about 1 KB.
const DefaultMaxOpenCalls = 8192

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
	coll.Maps["calls"].MaxEntries = a.cfg.MaxOpenCalls
	coll.Maps["zs_ring"].MaxEntries = a.cfg.RingSize
	for _, p := range coll.Programs {
		p.AttachType = ebpf.AttachTraceUprobeMulti
	}
	maps := coll.Copy()
	maps.Programs = nil
	if l.base, err = ebpf.NewCollectionWithOptions(maps, ebpf.CollectionOptions{MapReplacements: a.shared.replacements()}); err != nil {
		return nil, fmt.Errorf("create the BPF maps of %s: %w", spec.Name, err)
	}
	l.calls, l.layouts = l.base.Maps["calls"], l.base.Maps["layouts"]
	return l, nil
}

// program loads a program when it is first asked for.
func (l *loaded) program(name string) (*ebpf.Program, error) {
	if p := l.programs[name]; p != nil {
		return p, nil
	}
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
	p := c.DetachProgram(name)
	l.programs[name] = p
	return p, nil
}

func (l *loaded) close() {
	for _, p := range l.programs {
		_ = p.Close()
	}
	if l.base != nil {
		l.base.Close()
	}
}
