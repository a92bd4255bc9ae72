package telemetry

import (
	"strings"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"go.opentelemetry.io/otel/attribute"
)

// Collector serves the pipeline's state to Prometheus, with OpenTelemetry's
// names translated as its specification says: dots to underscores, the unit and
// _total appended.
func (p *Pipeline) Collector() prometheus.Collector { return promCollector{p, time.Now()} }

type promCollector struct {
	p     *Pipeline
	start time.Time
}

// Describe sends nothing: which series there are depends on the traffic.
func (promCollector) Describe(chan<- *prometheus.Desc) {}

func (c promCollector) Collect(out chan<- prometheus.Metric) {
	open := c.p.openCalls()
	for _, v := range c.p.Balance().values() {
		kind, name := prometheus.CounterValue, promName(v.name)+"_total"
		if v.gauge {
			kind, name = prometheus.GaugeValue, promName(v.name)
		}
		labels, values := promLabels(nil, v.attrs)
		out <- prometheus.MustNewConstMetric(prometheus.NewDesc(name, v.help, labels, nil), kind, float64(v.value), values...)
	}
	c.p.mu.Lock()
	defer c.p.mu.Unlock()
	for _, t := range c.p.targets {
		if t.metrics != Exported {
			continue
		}
		id := []attribute.KeyValue{attribute.String("service.name", t.Service), attribute.Int("process.pid", t.PID)}
		for _, r := range t.red.metrics {
			for _, s := range r.sorted() {
				labels, values := promLabels(id, s.attrs)
				buckets, below := make(map[float64]uint64, len(r.Bounds)), uint64(0)
				for i, bound := range r.Bounds {
					below += s.counts[i]
					buckets[bound] = below
				}
				out <- prometheus.MustNewConstHistogram(
					prometheus.NewDesc(promName(r.Name)+"_seconds", r.Description, labels, nil), s.count, s.sum.Seconds(), buckets, values...)
			}
		}
		for _, o := range t.openNow(open, time.Now()) {
			labels, values := promLabels(id, o.Attrs)
			out <- prometheus.MustNewConstMetric(
				prometheus.NewDesc(promName(o.Metric.Active), "Number of calls that are open.", labels, nil), prometheus.GaugeValue, float64(o.Count), values...)
		}
	}
}

func promName(name string) string { return strings.ReplaceAll(name, ".", "_") }

func promLabels(id, attrs []attribute.KeyValue) (labels, values []string) {
	for _, list := range [][]attribute.KeyValue{id, attrs} {
		for _, kv := range list {
			labels = append(labels, promName(string(kv.Key)))
			values = append(values, CleanUTF8(kv.Value.String()))
		}
	}
	return labels, values
}
