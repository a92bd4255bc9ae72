package telemetry

import (
	"encoding/binary"
	"slices"
	"sort"
	"strings"
	"time"

	"go.opentelemetry.io/otel/attribute"
)

// MaxSeries bounds the series of one metric of one target. Calls beyond go to
// one series that carries otel.metric.overflow=true.
const MaxSeries = 2000

// series is a duration histogram for one set of attributes.
type series struct {
	attrs  []attribute.KeyValue
	counts []uint64 // one more than bounds
	sum    time.Duration
	count  uint64
}

// redTable aggregates the calls of one target, by metric.
type redTable struct {
	metrics []*redMetric
	scratch []byte
}

type redMetric struct {
	*Metric
	bounds []int64 // ns
	series map[string]*series
	start  time.Time
}

func (t *redTable) metric(m *Metric) *redMetric {
	for _, r := range t.metrics {
		if r.Metric == m {
			return r
		}
	}
	r := &redMetric{Metric: m, series: map[string]*series{}, start: time.Now(), bounds: BoundsNS(m.Bounds)}
	t.metrics = append(t.metrics, r)
	return r
}

// BoundsNS converts bucket boundaries from seconds to nanoseconds.
func BoundsNS(bounds []float64) []int64 {
	out := make([]int64, len(bounds))
	for i, b := range bounds {
		out[i] = int64(b * float64(time.Second))
	}
	return out
}

// seriesKey writes keys and values so that different attributes give different bytes.
func seriesKey(dst []byte, attrs []attribute.KeyValue) []byte {
	for i := range attrs {
		kv := &attrs[i]
		dst = append(append(dst, kv.Key...), 0)
		if kv.Value.Type() == attribute.INT64 {
			dst = binary.LittleEndian.AppendUint64(dst, uint64(kv.Value.AsInt64()))
			continue
		}
		s := kv.Value.AsString()
		dst = binary.LittleEndian.AppendUint16(dst, uint16(len(s)))
		dst = append(dst, s...)
	}
	return dst
}

func (t *redTable) find(r *redMetric, attrs []attribute.KeyValue) *series {
	t.scratch = seriesKey(t.scratch[:0], attrs)
	if s := r.series[string(t.scratch)]; s != nil {
		return s
	}
	key := string(t.scratch)
	if len(r.series) >= MaxSeries {
		attrs = []attribute.KeyValue{attribute.Bool("otel.metric.overflow", true)}
		if s := r.series["overflow"]; s != nil {
			return s
		}
		key = "overflow"
	}
	s := &series{counts: make([]uint64, len(r.bounds)+1)}
	for _, kv := range attrs {
		if kv.Value.Type() == attribute.STRING {
			kv.Value = attribute.StringValue(strings.Clone(kv.Value.AsString()))
		}
		s.attrs = append(s.attrs, kv)
	}
	r.series[key] = s
	return s
}

func (t *redTable) observe(m *Metric, attrs []attribute.KeyValue, ns int64) {
	r := t.metric(m)
	s := t.find(r, attrs)
	i, _ := slices.BinarySearch(r.bounds, ns)
	s.counts[i]++
	s.count++
	s.sum += time.Duration(ns)
}

// fold adds calls that the kernel counted because the ring was full.
func (t *redTable) fold(m *Metric, attrs []attribute.KeyValue, bucket int, count uint64, sum time.Duration) {
	r := t.metric(m)
	s := t.find(r, attrs)
	s.counts[min(bucket, len(r.bounds))] += count
	s.count += count
	s.sum += sum
}

// sorted returns the series in a stable order.
func (r *redMetric) sorted() []*series {
	keys := make([]string, 0, len(r.series))
	for k := range r.series {
		keys = append(keys, k)
	}
	sort.Strings(keys)
	out := make([]*series, len(keys))
	for i, k := range keys {
		out[i] = r.series[k]
	}
	return out
}
