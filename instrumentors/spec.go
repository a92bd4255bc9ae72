// Package instrumentors defines what an instrumentor is: a folder that describes,
// for one library, where its calls start and end, what to read there and what a
// record means. Each folder registers one Spec; nothing else knows its name.
package instrumentors

import (
	"sort"

	"github.com/cilium/ebpf"

	"github.com/zerospan/zerospan/offsets"
	"github.com/zerospan/zerospan/telemetry"
)

// Spec declares one instrumentor.
type Spec struct {
	Name  string   // short, in kebab case, as users see it: nethttp-server
	Title string   // what it traces, for the docs
	Docs  []string // what the docs' coverage table says: versions, attributes

	// Library is the import path of what is instrumented; it names the scope of
	// the spans.
	Library string

	// Load returns the collection that bpf2go embedded.
	Load func() (*ebpf.CollectionSpec, error)

	Sites []Site

	// Layout returns a new value of the program's layout struct and the fields
	// that it consists of. p knows which sites were found.
	Layout func(b *offsets.Binary, p *Plan) (layout any, fields []offsets.Field, err error)

	Metric *telemetry.Metric

	// Decode turns a record into a call; c is empty and may alias raw.
	Decode func(raw []byte, exe Image, c *telemetry.Call) error

	// Folded returns the metric attributes of calls of which only the status
	// class and whether they failed is known.
	Folded func(class uint8, failed bool) []telemetry.Attribute

	// Active returns how many leading attributes of a decoded open call belong to
	// the counter of open calls.
	Active int
}

// Image is what the file of a target's executable has at the addresses at which the
// target has it loaded: constants that a program could not read because the target
// never touched their page, and the names of types.
type Image interface {
	TypeName(addr uint64) string // empty: there is no type
	Bytes(addr uint64, n int) []byte
}

// Role says what a site's hit means.
type Role uint8

// The roles of a site. Ends are attached first and detached last, so that no call
// begins whose end can't be seen.
const (
	Start Role = iota
	End
	Extra // adds to a call between its start and its end
)

func (r Role) String() string { return [...]string{"start", "end", "extra"}[r] }

// Site is a place in the library to probe, or several that one program serves.
type Site struct {
	Program string   // the BPF program's name
	Group   string   // sites of one group are attached all or none
	Symbols []string // aliases of the function: the first that the binary has
	At      offsets.At
	Role    Role

	Rare string // which calls come by, where it is not every one: "only failing calls"

	// Instead: the site is left out where that group was found.
	Instead string

	// OnlyWith: the site is needed only if one of these functions was compiled
	// in; it costs a hit, so it is left out otherwise.
	OnlyWith []string

	// Adaptive: whether the site is needed shows in the traffic. It is detached
	// when many calls did without it (their records lack ZS_FLAG_EXTRA_USED) and
	// attached again when one would have used it (ZS_FLAG_EXTRA_MISSED).
	Adaptive bool
}

// Required names the group without which an instrumentor is not attached.
const Required = "required"

var registered []*Spec

// Register adds a Spec; called from the instrumentor's init.
func Register(s *Spec) { registered = append(registered, s) }

// All returns the registered Specs by name.
func All() []*Spec {
	sort.Slice(registered, func(i, j int) bool { return registered[i].Name < registered[j].Name })
	return registered
}
