package telemetry

import (
	"fmt"
	"io"
	"sort"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/HdrHistogram/hdrhistogram-go"
)

// summary counts calls by service and name for the table at the end.
type summary struct {
	rows map[summaryKey]*summaryRow
}

type summaryKey struct {
	service, operation, route string
	peer                      string // whom a client's call went to
}

type summaryRow struct {
	calls, errors, notFound, serverErrors, timeouts uint64
	latency                                         *hdrhistogram.Histogram // µs
}

const (
	maxSummaryRows = 200
	maxLatency     = int64(time.Hour / time.Microsecond)
)

func (s *summary) observe(t *Target, c *Call, guess string) {
	key := summaryKey{t.Service, c.Operation, c.Route, c.Peer}
	if c.Route == "" {
		key.route = guess
	}
	row := s.rows[key]
	if row == nil {
		if s.rows == nil {
			s.rows = map[summaryKey]*summaryRow{}
		}
		if len(s.rows) >= maxSummaryRows {
			key = summaryKey{route: "(other)"}
			row = s.rows[key]
		}
		if row == nil {
			row = &summaryRow{latency: hdrhistogram.New(1, maxLatency, 2)}
			key.operation, key.route, key.peer = strings.Clone(key.operation), strings.Clone(key.route), strings.Clone(key.peer)
			s.rows[key] = row
		}
	}
	row.calls++
	if c.Error {
		row.errors++
	}
	if c.Status == 404 {
		row.notFound++
	}
	if c.Status >= 500 {
		row.serverErrors++
	}
	if c.Timeout {
		row.timeouts++
	}
	_ = row.latency.RecordValue(min(max((c.End-c.Start)/1000, 1), maxLatency)) // cannot be out of range
}

func (s *summary) write(w io.Writer) {
	type line struct {
		summaryKey
		*summaryRow
	}
	lines := make([]line, 0, len(s.rows))
	services := map[string]bool{}
	for k, r := range s.rows {
		lines = append(lines, line{k, r})
		services[k.service] = true
	}
	sort.Slice(lines, func(i, j int) bool {
		a, b := lines[i], lines[j]
		if a.calls != b.calls {
			return a.calls > b.calls
		}
		return a.service+a.peer+a.route+a.operation < b.service+b.peer+b.route+b.operation
	})
	if len(lines) == 0 {
		fmt.Fprintln(w, "No calls were seen.")
		return
	}
	tw := tabwriter.NewWriter(w, 0, 0, 2, ' ', tabwriter.AlignRight)
	fmt.Fprint(tw, "CALLS\tERRORS\t404\t5XX\tTIMEOUTS\tP50\tP95\tP99\t  ROUTE\n")
	for _, l := range lines {
		name := strings.TrimSpace(l.operation + " " + l.route)
		if l.peer != "" {
			name = "→ " + l.peer + "  " + name
		}
		if len(services) > 1 {
			name = l.service + "  " + name
		}
		fmt.Fprintf(tw, "%d\t%d\t%d\t%d\t%d\t%s\t%s\t%s\t  %s\n", l.calls, l.errors, l.notFound, l.serverErrors, l.timeouts,
			quantile(l.latency, 50), quantile(l.latency, 95), quantile(l.latency, 99), printable(name))
	}
	_ = tw.Flush() // a terminal that is gone can't be told
}

func quantile(h *hdrhistogram.Histogram, q float64) string {
	return formatDuration(time.Duration(h.ValueAtQuantile(q)) * time.Microsecond)
}

func formatDuration(d time.Duration) string {
	switch {
	case d < time.Millisecond:
		return fmt.Sprintf("%dµs", d.Microseconds())
	case d < 10*time.Millisecond:
		return fmt.Sprintf("%.2fms", float64(d)/1e6)
	case d < time.Second:
		return fmt.Sprintf("%.1fms", float64(d)/1e6)
	}
	return fmt.Sprintf("%.2fs", d.Seconds())
}
