package telemetry

import (
	"fmt"
	"io"
	"sort"
	"strings"
)

// Balance says what became of every call. Two equations hold at rest, and their
// terms are published as metrics:
//
//	Started + Adopted = Completed + Open + ΣAbandoned
//	Completed = Exported + SampledOut + ΣDropped + Pending
type Balance struct {
	Started   uint64 // calls whose start was seen
	Adopted   uint64 // calls taken over from an earlier zerospan
	Completed uint64 // calls whose end was seen
	Open      uint64
	Abandoned map[string]uint64 // by reason: target_exit, evicted, missed_end, detached

	Exported   uint64 // spans that the collector took; without one, calls that were shown or aggregated
	SampledOut uint64
	Dropped    map[string]uint64 // by reason: ring_full, queue_full, export_failed, rejected, malformed, left_to_sdk
	Pending    uint64            // spans on their way

	Unmatched   uint64 // ends without a start, of calls begun before the attach
	Skipped     uint64 // requests that are no calls
	StackGrowth uint64 // hits that were not calls yet
	Faults      uint64 // reads of a target's memory that failed
}

func sum(m map[string]uint64) (n uint64) {
	for _, v := range m {
		n += v
	}
	return n
}

// Check returns an error that names the equation that does not hold.
func (b Balance) Check() error {
	if in, out := b.Started+b.Adopted, b.Completed+b.Open+sum(b.Abandoned); in != out {
		return fmt.Errorf("%d calls started or adopted, but %d completed, open or abandoned", in, out)
	}
	if out := b.Exported + b.SampledOut + sum(b.Dropped) + b.Pending; b.Completed != out {
		return fmt.Errorf("%d calls completed, but %d exported, sampled out, dropped or pending", b.Completed, out)
	}
	return nil
}

func reasons(m map[string]uint64) string {
	var parts []string
	for k, v := range m {
		if v > 0 {
			parts = append(parts, fmt.Sprintf("%s %d", k, v))
		}
	}
	if len(parts) == 0 {
		return "0"
	}
	sort.Strings(parts)
	return fmt.Sprintf("%d (%s)", sum(m), strings.Join(parts, ", "))
}

// Write prints the balance as the last lines of the summary.
func (b Balance) Write(w io.Writer) {
	fmt.Fprintf(w, "calls: %d started = %d completed + %d open + %s abandoned\n", b.Started+b.Adopted, b.Completed, b.Open, reasons(b.Abandoned))
	fmt.Fprintf(w, "spans: %d completed = %d exported + %d sampled out + %s dropped", b.Completed, b.Exported, b.SampledOut, reasons(b.Dropped))
	if b.Pending > 0 {
		fmt.Fprintf(w, " + %d pending", b.Pending)
	}
	fmt.Fprintln(w)
	if b.Faults > 0 {
		fmt.Fprintf(w, "memory reads that failed: %d (some attributes are missing)\n", b.Faults)
	}
	if err := b.Check(); err != nil {
		fmt.Fprintf(w, "the books do not balance: %v\n", err)
	}
}
