package telemetry

import (
	"encoding/binary"
	"fmt"
	"math"
	"strconv"
)

// Sampler decides on spans; metrics count every call whatever it says.
type Sampler struct {
	parentBased bool
	bound       uint64 // of 1<<63: what a root's trace id must stay below
}

// NewSampler understands the values of OTEL_TRACES_SAMPLER and its argument.
func NewSampler(name, arg string) (Sampler, error) {
	ratio := 1.0
	if arg != "" {
		var err error
		if ratio, err = strconv.ParseFloat(arg, 64); err != nil || ratio < 0 || ratio > 1 || math.IsNaN(ratio) {
			return Sampler{}, fmt.Errorf("sampling ratio %q: give a number from 0 to 1", arg)
		}
	}
	switch name {
	case "", "parentbased_always_on":
		return Sampler{true, 1 << 63}, nil
	case "always_on":
		return Sampler{false, 1 << 63}, nil
	case "always_off":
		return Sampler{false, 0}, nil
	case "parentbased_always_off":
		return Sampler{true, 0}, nil
	case "traceidratio":
		return Sampler{false, uint64(ratio * (1 << 63))}, nil
	case "parentbased_traceidratio":
		return Sampler{true, uint64(ratio * (1 << 63))}, nil
	}
	return Sampler{}, fmt.Errorf("sampler %q is not known: see OTEL_TRACES_SAMPLER", name)
}

// Never reports whether no call can ever be sampled.
func (s Sampler) Never() bool { return s.bound == 0 && !s.parentBased }

// sample uses the trace id's last 63 bits as the SDKs' ratio sampler does, so
// that all services of a trace agree.
func (s Sampler) sample(c *Call) bool {
	if s.parentBased && c.Decided {
		return c.TraceFlags&1 != 0
	}
	return binary.BigEndian.Uint64(c.TraceID[8:])>>1 < s.bound
}
