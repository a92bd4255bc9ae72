// Package telemetry turns finished calls into what users look at: spans, RED
// metrics (rate, errors, duration), live lines and a summary, and keeps the
// books of what became of every call. It knows no instrumentor by name.
package telemetry

import (
	"go.opentelemetry.io/otel/attribute"
	tracepb "go.opentelemetry.io/proto/otlp/trace/v1"
)

// Kind is the OpenTelemetry span kind.
type Kind uint8

// The span kinds, numbered as OTLP does.
const (
	KindInternal = Kind(tracepb.Span_SPAN_KIND_INTERNAL)
	KindServer   = Kind(tracepb.Span_SPAN_KIND_SERVER)
	KindClient   = Kind(tracepb.Span_SPAN_KIND_CLIENT)
	KindProducer = Kind(tracepb.Span_SPAN_KIND_PRODUCER)
	KindConsumer = Kind(tracepb.Span_SPAN_KIND_CONSUMER)
)

func (k Kind) String() string {
	switch k {
	case KindServer:
		return "server"
	case KindClient:
		return "client"
	case KindProducer:
		return "producer"
	case KindConsumer:
		return "consumer"
	}
	return "internal"
}

// Call is one finished request, query or command.
//
// A decoder fills the same Call again and again, and its strings may alias a
// buffer that is reused: whoever keeps one beyond Record clones it.
type Call struct {
	Kind      Kind
	Operation string // the span name's first word: a method, a command
	Route     string // the low-cardinality rest of the name, as the framework gives it
	Path      string // where Route is empty: what a route may be guessed from
	Peer      string // of a client's call: whom it went to, for the terminal

	Start, End int64 // ns since the Unix epoch

	TraceID      [16]byte
	SpanID       [8]byte
	ParentID     [8]byte // zero: a root span
	ParentRemote bool    // the parent came over the wire
	ParentSDK    bool    // the parent is a span of the target's own SDK
	SeenBySDK    bool    // which is of this very call
	Decided      bool    // the trace came with a decision whether to sample it, in TraceFlags
	TraceFlags   byte    // W3C trace flags
	Error        bool
	Status       int  // HTTP status and the like; 0 when there is none
	Timeout      bool // counted apart in the summary

	// Attributes of the span; the first Dims of them are the metric's as well.
	Attrs []attribute.KeyValue
	Dims  int
}

// Reset empties c for the next record and keeps its memory.
func (c *Call) Reset() {
	attrs := c.Attrs[:0]
	*c = Call{Attrs: attrs}
}

// Attribute is a key and a value, in OpenTelemetry's representation.
type Attribute = attribute.KeyValue

// Add appends an attribute.
func (c *Call) Add(kv attribute.KeyValue) { c.Attrs = append(c.Attrs, kv) }

// Metric describes the duration histogram that an instrumentor's calls go to.
type Metric struct {
	Name        string // OpenTelemetry name, such as http.server.request.duration
	Description string
	Bounds      []float64 // upper bounds in seconds
	Active      string    // name of the counter of open calls; empty: none
}

// HTTPBounds are the bucket boundaries, in seconds, that the semantic
// conventions advise for HTTP request durations.
var HTTPBounds = []float64{0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.25, 0.5, 0.75, 1, 2.5, 5, 7.5, 10}
