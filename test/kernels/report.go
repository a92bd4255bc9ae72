// Package kernels proves zerospan on other kernels than this one: each is booted
// under qemu, with an initramfs of static binaries whose init is the guest program.
// It loads every BPF program, traces targets that work through Steps, and reports
// over the serial console.
package kernels

import (
	"fmt"
	"maps"
	"net/url"
	"slices"
	"strings"
	"time"
)

// Prefix begins the guest's lines on the console: what follows is a Line in JSON.
const Prefix = "zerospan-guest "

// Line is one piece of the guest's report; one field is set.
type Line struct {
	Release string   `json:",omitempty"` // the first line
	Program *Program `json:",omitempty"`
	Doctor  string   `json:",omitempty"` // what zerospan doctor prints
	Call    *Call    `json:",omitempty"`
	Trace   *Trace   `json:",omitempty"`
	Kernel  string   `json:",omitempty"` // a complaint of the kernel
	Failed  string   `json:",omitempty"` // what the guest could not do
	End     bool     `json:",omitempty"` // the last line
}

// Program is a BPF program that the guest tried to load.
type Program struct {
	Name         string // of its instrumentor or folder, and its own
	Instructions int
	Attempts     []Attempt // until one succeeded
}

// Loaded is the attempt that succeeded, or nil.
func (p *Program) Loaded() *Attempt {
	if a := &p.Attempts[len(p.Attempts)-1]; a.Error == "" {
		return a
	}
	return nil
}

// Attempt is one way to load a program.
type Attempt struct {
	Way      Way
	Took     time.Duration
	Verified uint64   `json:",omitempty"` // instructions that the verifier went through
	Error    string   `json:",omitempty"`
	Log      []string `json:",omitempty"` // its last lines
}

// Says returns what the verifier ended with.
func (a *Attempt) Says() string {
	for i := len(a.Log) - 1; i >= 0; i-- {
		if l := a.Log[i]; !strings.HasPrefix(l, "processed") && !strings.HasPrefix(l, "verification time") && !strings.HasPrefix(l, "stack depth") {
			return l
		}
	}
	return a.Error
}

// Complaint tells whether a line of the kernel's log says that something is wrong.
func Complaint(line string) bool {
	for _, word := range []string{"WARNING:", "BUG:", "Oops", "RIP: 0010", "general protection", "segfault", "RCU stall", "blocked for more than"} {
		if strings.Contains(line, word) {
			return true
		}
	}
	return false
}

// Way is how a program is loaded.
type Way string

// Ways, in the order in which they are tried.
const (
	Multi Way = "uprobe_multi"
	Perf  Way = "perf event"
	// NoCookie: as Perf, with another helper's call in place of bpf_get_attach_cookie,
	// to see whether that helper is all that the kernel lacks.
	NoCookie Way = "no cookie"
)

// Trace is how zerospan did.
type Trace struct {
	Attached        bool
	Attach, Detach  time.Duration // from its start until it says so; from SIGINT to its end
	Exit            int
	Stderr          string
	Left            []string // BPF objects that are there and were not before
	Want, Requested int      // calls to see; steps done
}

// Call is a line of --print json, and the name of its target.
type Call struct {
	Target       string
	PID          int            `json:"pid"`
	Instrumentor string         `json:"instrumentor"`
	Error        bool           `json:"error"`
	SpanID       string         `json:"span_id"`
	ParentSpanID string         `json:"parent_span_id"`
	Attributes   map[string]any `json:"attributes"`
}

// String describes the call by what the steps determine, but for its parent.
func (c *Call) String() string {
	words := []string{c.Instrumentor}
	for _, key := range []string{"http.request.method", "url.path", "url.full", "http.route", "http.response.status_code"} {
		v, ok := c.Attributes[key]
		if !ok {
			continue
		}
		if key == "url.full" { // its host and port are another in each run
			if u, err := url.Parse(fmt.Sprint(v)); err == nil {
				v = u.Path
			}
		}
		words = append(words, fmt.Sprint(v))
	}
	if c.Error {
		words = append(words, "error", fmt.Sprint(c.Attributes["error.type"]))
	}
	return strings.Join(words, " ")
}

// Noise tells whether the target makes the call by itself.
func (c *Call) Noise() bool {
	noise := Targets[c.Target].Noise
	return noise != "" && c.ParentSpanID == "" && strings.Contains(c.String(), " "+noise)
}

// Expected returns every call that Steps give, with its target. number is the one
// that N stands for in a run of a step; the guest and the test number them alike.
func Expected() (calls []string) {
	EachRun(func(s Step, n string) {
		for _, c := range s.Calls {
			calls = append(calls, s.Target+": "+strings.ReplaceAll(c, "/N", "/"+n))
		}
	})
	return calls
}

// EachRun visits each run of each step with its number.
func EachRun(visit func(s Step, n string)) {
	n := 0
	for _, s := range Steps {
		for range s.Times {
			n++
			visit(s, fmt.Sprint(n))
		}
	}
}

// Compare returns what is missing among the calls that were seen and what should
// not be there.
func Compare(want []string, calls []*Call) (differences []string) {
	byID := map[string]*Call{}
	for _, c := range calls {
		byID[c.SpanID] = c
	}
	count := map[string]int{}
	for _, w := range want {
		count[w]++
	}
	for _, c := range calls {
		if c.Noise() {
			continue
		}
		text := c.Target + ": " + c.String()
		if c.ParentSpanID != "" {
			parent := "unknown"
			if p := byID[c.ParentSpanID]; p != nil {
				parent = p.String()
			}
			text += " < " + parent
		}
		count[text]--
	}
	for _, text := range slices.Sorted(maps.Keys(count)) {
		if n := count[text]; n > 0 {
			differences = append(differences, fmt.Sprintf("missing %d: %s", n, text))
		} else if n < 0 {
			differences = append(differences, fmt.Sprintf("too many, %d: %s", -n, text))
		}
	}
	return differences
}
