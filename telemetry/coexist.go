package telemetry

// Signal is what a target may export by itself.
type Signal string

// The signals.
const (
	Traces  Signal = "traces"
	Metrics Signal = "metrics"
)

// Coexistence is what becomes of a signal of a target that carries an SDK of its own.
type Coexistence uint8

// What becomes of it.
const (
	Exported    Coexistence = iota
	Waits                   // until it is known whether the target exports it
	WaitsToLink             // the same, and then it will be Linked
	Left                    // to the target
	Linked                  // server calls are left to the target, others join its traces
)

// Coexist says what becomes of a target's signal from now on. Spans that waited are
// exported or left to the target; metrics are cumulative, so that nothing of them is lost.
func (p *Pipeline) Coexist(t *Target, s Signal, c Coexistence) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if s == Metrics {
		t.metrics = c
		return
	}
	t.spans = c
	if p.traces == nil {
		return
	}
	if c == Left || c == Linked {
		p.left += p.traces.discard(t, c == Left)
	}
}

func (c Coexistence) waits() bool { return c == Waits || c == WaitsToLink }

// links tells whether a call's parent must be known to the collector from others.
func (c Coexistence) links() bool { return c == Linked || c == WaitsToLink }

// doubled tells whether an SDK that exports makes a span of the call as well.
func (c *Call) doubled() bool { return c.Kind == KindServer || c.SeenBySDK }

// Called tells whether there was a call of a target.
func (p *Pipeline) Called(t *Target) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return t.called
}

// leaves tells whether a call's span is left to the target.
func (t *Target) leaves(c *Call) bool {
	return t.spans == Left || t.spans == Linked && c.doubled()
}
