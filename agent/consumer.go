package agent

import (
	"debug/buildinfo"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"strings"
	"sync/atomic"
	"time"
	"unsafe"

	"github.com/cilium/ebpf/ringbuf"
	"go.opentelemetry.io/otel/attribute"
	"golang.org/x/sys/unix"

	"github.com/zerospan/zerospan/bpf"
	"github.com/zerospan/zerospan/instrumentors"
	"github.com/zerospan/zerospan/procdiscovery"
	"github.com/zerospan/zerospan/telemetry"
)

// While records come, the ring is drained by the clock; after idlePolls empty
// rounds the consumer sleeps until a program wakes it.
const (
	drainInterval = 8 * time.Millisecond
	idlePolls     = 25
	maxSleep      = 500 * time.Millisecond
)

// consumer reads the ring; one goroutine.
type consumer struct {
	a      *Agent
	reader *ringbuf.Reader
	record ringbuf.Record
	call   telemetry.Call

	requests chan chan struct{} // to drain and answer; nil: to stop
	stopped  chan struct{}
	started  bool
}

func newConsumer(a *Agent) (*consumer, error) {
	r, err := ringbuf.NewReader(a.shared.ring)
	if err != nil {
		return nil, fmt.Errorf("read the ring buffer: %w", err)
	}
	a.clock.sync()
	return &consumer{a: a, reader: r, requests: make(chan chan struct{}), stopped: make(chan struct{})}, nil
}

func (c *consumer) run() {
	defer close(c.stopped)
	idle := 0
	for {
		n, err := c.drain()
		if errors.Is(err, ringbuf.ErrClosed) || errors.Is(err, os.ErrClosed) {
			return
		}
		if err != nil {
			c.a.log.Error("the ring buffer can't be read: no more calls will be seen", "error", err)
			return
		}
		c.a.pipeline.Tick(time.Now())
		if n > 0 {
			idle = 0
		} else {
			idle++
		}
		wait := drainInterval
		if n == maxDrain {
			wait = 0 // there is more
		}
		if idle > idlePolls {
			wait = maxSleep
		}
		select {
		case done := <-c.requests:
			if done == nil {
				return
			}
			c.drainAll()
			close(done)
			continue
		default:
		}
		if wait <= drainInterval {
			time.Sleep(wait)
			continue
		}
		c.a.shared.setSleeping(true)
		c.reader.SetDeadline(time.Now().Add(wait))
		err = c.read() // what came before the flag was set, or the first record that sees it
		c.a.shared.setSleeping(false)
		if err == nil {
			idle = 0
		} else if errors.Is(err, ringbuf.ErrClosed) || errors.Is(err, os.ErrClosed) {
			return
		}
	}
}

// maxDrain bounds one round: what is due to be exported must not wait for the load to end.
const maxDrain = 16384

// drain reads until the ring is empty, or maxDrain records.
func (c *consumer) drain() (int, error) {
	c.reader.SetDeadline(time.Unix(1, 0))
	for n := 0; ; n++ {
		if n == maxDrain {
			return n, nil
		}
		switch err := c.read(); {
		case err == nil:
		case errors.Is(err, os.ErrDeadlineExceeded), errors.Is(err, ringbuf.ErrFlushed):
			return n, nil
		default:
			return n, err
		}
	}
}

// drainAll reads what the ring holds now, and some more if it goes on filling.
func (c *consumer) drainAll() {
	for left := c.reader.BufferSize(); left > 0; left -= maxDrain * headSize {
		n, err := c.drain()
		if err != nil {
			c.a.log.Debug("the ring buffer could not be drained", "error", err)
		}
		if err != nil || n < maxDrain {
			return
		}
	}
}

func (c *consumer) read() error {
	if err := c.reader.ReadInto(&c.record); err != nil {
		return err
	}
	c.take(c.record.RawSample)
	return nil
}

const headSize = int(unsafe.Sizeof(bpf.SharedZsHead{}))

// take turns a record into a call and hands it on.
func (c *consumer) take(raw []byte) {
	a := c.a
	if len(raw) < headSize {
		a.pipeline.Malformed()
		return
	}
	head := (*bpf.SharedZsHead)(unsafe.Pointer(unsafe.SliceData(raw)))
	a.mu.Lock()
	l, t := a.byNumber(head.Instrumentor), a.byID[head.Target]
	var sites []*adaptive
	if t != nil {
		sites = t.adaptive
	}
	a.mu.Unlock()
	c.call.Reset()
	var exe instrumentors.Image = noImage{}
	if t != nil {
		exe = t
	}
	if l == nil || l.spec.Decode(raw, exe, &c.call) != nil {
		a.pipeline.Malformed()
		return
	}
	target := a.lost
	if t != nil {
		target = t.telemetry
		a.adapt(sites, l, head)
	}
	a.identify(&c.call, head)
	a.pipeline.Record(target, l.spec.Metric, l.spec.Name, l.scope, &c.call)
}

// identify fills in what the head says.
func (a *Agent) identify(c *telemetry.Call, head *bpf.SharedZsHead) {
	c.Start, c.End = a.clock.unix(head.Start), a.clock.unix(head.End)
	c.TraceID, c.SpanID, c.ParentID = head.TraceId, head.SpanId, head.ParentId
	c.TraceFlags = head.TraceFlags
	flags := bpf.SharedZsFlag(head.Flags)
	c.Decided = flags&bpf.SharedZsFlagZS_FLAG_TRACEPARENT != 0
	c.ParentRemote = c.Decided && flags&bpf.SharedZsFlagZS_FLAG_LOCAL_PARENT == 0
	if flags&bpf.SharedZsFlagZS_FLAG_SDK_PARENT != 0 {
		c.Decided, c.ParentRemote, c.ParentSDK = true, false, true
		c.SeenBySDK = flags&bpf.SharedZsFlagZS_FLAG_SDK_CLIENT != 0
	}
}

// unfinished lists a call that has been open for long, and exports a span that
// points to it: the call's own span follows when it ends, so that there is one.
func (a *Agent) unfinished(t *target, l *loaded, head *bpf.SharedZsHead, c *telemetry.Call, now time.Time) {
	a.identify(c, head)
	name := strings.TrimSpace(c.Operation + " " + c.Route)
	path := ""
	for _, kv := range c.Attrs {
		if kv.Key == "url.path" || kv.Key == "url.full" {
			path = kv.Value.AsString()
		}
	}
	a.log.Warn("a call is still open", "pid", t.process.PID, "service", t.telemetry.Service, "name", name, "path", path,
		"open", time.Duration(now.UnixNano()-c.Start).Round(time.Second), "trace_id", fmt.Sprintf("%x", c.TraceID[:]))
	if !a.pipeline.Samples(c) {
		return
	}
	c.Kind, c.ParentID, c.ParentRemote = telemetry.KindInternal, c.SpanID, false
	c.SpanID = [8]byte{}
	binary.BigEndian.PutUint64(c.SpanID[:], binary.BigEndian.Uint64(c.ParentID[:])^0x5a5a5a5a5a5a5a5a)
	c.Operation = "unfinished " + c.Operation
	c.End = now.UnixNano()
	c.Add(attribute.Bool("zerospan.unfinished", true))
	c.Attrs = cloneAttrs(c.Attrs)
	a.pipeline.Aside(t.telemetry, l.scope, c)
}

// request has the running consumer drain the ring and, with stop, end.
func (c *consumer) request(stop bool) {
	if !c.started {
		return
	}
	done := make(chan struct{})
	message := done
	if stop {
		message = nil
	}
	for {
		select {
		case c.requests <- message:
			if stop {
				<-c.stopped
			} else {
				<-done
			}
			return
		case <-c.stopped: // it could not read any more
			return
		case <-time.After(10 * time.Millisecond):
			_ = c.reader.Flush() // it sleeps: only fails if it is closed
		}
	}
}

// close detaches everything, reads what is left and gives the maps back.
func (a *Agent) close() {
	for _, t := range a.targets {
		t.cancel()
		closeLinks(t.starts)
		t.starts = nil
	}
	for _, t := range a.targets {
		t.detach()
	}
	a.watchers.Wait()
	a.consumer.request(true)
	a.consumer.drainAll()
	_ = a.consumer.reader.Close()
	for id, t := range a.byID {
		a.abandon(id, "detached")
		a.unwatchSDK(t) // after its last calls
	}
	a.mu.Lock()
	a.takeFallback()
	a.mu.Unlock()
	final := telemetry.Balance{Abandoned: map[string]uint64{}, Dropped: map[string]uint64{}}
	a.Balance(&final)
	a.mu.Lock()
	defer a.mu.Unlock()
	a.final = &final
	for _, l := range a.loaded {
		l.close()
	}
	if a.sdks != nil {
		a.sdks.Close()
	}
	a.loaded = nil
	a.shared.close()
}

// clock translates CLOCK_MONOTONIC, which programs read, to Unix time.
type clock struct{ offset atomic.Int64 }

// sync measures the difference; the wall clock may have been set.
func (c *clock) sync() {
	var mono, real unix.Timespec
	if unix.ClockGettime(unix.CLOCK_MONOTONIC, &mono) == nil && unix.ClockGettime(unix.CLOCK_REALTIME, &real) == nil {
		c.offset.Store(real.Nano() - mono.Nano())
	}
}

func (c *clock) unix(mono uint64) int64 { return int64(mono) + c.offset.Load() }

func durationNS(ns uint64) time.Duration { return time.Duration(ns) }

func cloneAttrs(attrs []attribute.KeyValue) []attribute.KeyValue {
	out := make([]attribute.KeyValue, len(attrs))
	for i, kv := range attrs {
		if kv.Value.Type() == attribute.STRING {
			kv.Value = attribute.StringValue(strings.Clone(kv.Value.AsString()))
		}
		out[i] = kv
	}
	return out
}

// goVersionOf reads the build information; empty for what is no Go program.
func goVersionOf(f *os.File) string {
	info, err := buildinfo.Read(f)
	if err != nil {
		return ""
	}
	return procdiscovery.Clean(info.GoVersion, 64)
}
