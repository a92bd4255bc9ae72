package kernels

import (
	"fmt"
	"strings"
)

// table is what users read: what each kernel can do and how zerospan did.
type table struct{ rows [][]string }

var columns = []string{"kernel", "mode", "uprobe (perf event)", "uprobe_multi", "process filter", "attach cookies", "ring buffer", "bpf_loop", "return probes",
	"programs", "traces", "attach", "detach", "total"}

func (t *table) add(mode string, r *report) {
	if r.trace == nil {
		return
	}
	row := []string{r.release, mode}
	for _, item := range columns[2:9] {
		row = append(row, map[string]string{"ok": "yes", "missing": "no", "skipped": "not tried"}[r.doctorSays(item)])
		if last := &row[len(row)-1]; *last == "" {
			*last = r.doctorSays(item)
		}
	}
	loaded := 0
	for _, p := range r.programs {
		if a := p.Loaded(); a != nil && a.Way != NoCookie {
			loaded++
		}
	}
	row = append(row, fmt.Sprintf("%d of %d", loaded, len(r.programs)))
	if r.trace.Attached {
		row = append(row, fmt.Sprintf("%d calls", len(Expected())), fmt.Sprintf("%.1f s", r.trace.Attach.Seconds()), fmt.Sprintf("%.1f s", r.trace.Detach.Seconds()))
	} else {
		row = append(row, "no", "", "")
	}
	t.rows = append(t.rows, append(row, fmt.Sprintf("%.0f s", r.took.Seconds())))
}

// text is the table in Markdown.
func (t *table) text() string {
	var b strings.Builder
	rule := make([]string, len(columns))
	for i := range rule {
		rule[i] = "---"
	}
	for _, row := range append([][]string{columns, rule}, t.rows...) {
		fmt.Fprintf(&b, "| %s |\n", strings.Join(row, " | "))
	}
	return b.String()
}

func (t *table) document() string {
	return "# Kernels\n\n" + t.text()
}
