// Package doctor finds out what tracing needs and whether it is there. It tries
// each feature of the kernel on helper processes of its own in place of asking
// for version numbers, which distributions' kernels make meaningless.
package doctor

import (
	"errors"
	"fmt"
	"io"
	"os"
	"strings"

	"github.com/cilium/ebpf"
)

// Status says how an item was found.
type Status string

// Statuses.
const (
	OK       Status = "ok"
	Missing  Status = "missing"
	Degraded Status = "degraded" // there, and not as it should be
	Skipped  Status = "skipped"  // could not be tried
)

// Item is a line of the report.
type Item struct {
	Group, Name string
	Required    bool // nothing can be traced unless it is OK
	Status      Status
	Found       string
	Loses, Do   string // what is lost without it, and what to do; empty when it is OK
}

// Report is all that was examined.
type Report []Item

// Lacks returns the required items that are not OK.
func (r Report) Lacks() (names []string) {
	for _, i := range r {
		if i.Required && i.Status != OK && i.Status != Skipped {
			names = append(names, i.Name)
		}
	}
	return names
}

const columns = 100

// Print writes the report; its last line says whether zerospan can trace here.
func (r Report) Print(w io.Writer) {
	group := ""
	var amiss []string
	for _, i := range r {
		if i.Group != group {
			group = i.Group
			fmt.Fprintln(w, group)
		}
		fmt.Fprintln(w, cut(fmt.Sprintf("  %-9s %-26s %s", i.Status, i.Name, i.Found)))
		if i.Status == OK {
			continue
		}
		amiss = append(amiss, i.Name)
		for _, s := range []struct{ what, text string }{{"lost", i.Loses}, {"do", i.Do}} {
			if s.text != "" && i.Status != Skipped {
				fmt.Fprintln(w, cut(fmt.Sprintf("              %s: %s", s.what, s.text)))
			}
		}
	}
	fmt.Fprintln(w)
	switch lacks := r.Lacks(); {
	case len(lacks) > 0:
		fmt.Fprintln(w, sentence("zerospan can't trace here; what it needs first: ", lacks))
	case len(amiss) > 0:
		fmt.Fprintln(w, sentence("zerospan can trace here; limited by: ", amiss))
	default:
		fmt.Fprintln(w, "zerospan can trace here.")
	}
}

// sentence ends a line with as many names as fit.
func sentence(start string, names []string) string {
	for n := len(names); ; n-- {
		s := start + strings.Join(names[:n], ", ")
		if more := len(names) - n; more > 0 {
			s += fmt.Sprintf(" and %d more", more)
		}
		if len(s) < columns || n == 1 {
			return s + "."
		}
	}
}

func cut(line string) string {
	if len(line) > columns {
		return line[:columns-3] + "..."
	}
	return line
}

func oneLine(err error) string { return strings.Join(strings.Fields(err.Error()), " ") }

// limit is the error of a check that found less than there should be.
type limit string

func (l limit) Error() string { return string(l) }

// untried is the error of a check that could not be made.
type untried string

func (u untried) Error() string { return string(u) }

// check is an item before it is tried.
type check struct {
	name, loses, do string
	permit          string // what to do if it is only not permitted
	required        bool
	try             func() (found string, err error)
}

func (r *Report) add(group string, checks ...check) {
	for _, c := range checks {
		found, err := c.try()
		i := Item{Group: group, Name: c.name, Required: c.required, Status: OK, Found: found}
		if err != nil {
			i.Status, i.Found, i.Loses, i.Do = Missing, oneLine(err), c.loses, c.do
			var l limit
			var u untried
			switch {
			case errors.As(err, &l):
				i.Status = Degraded
			case errors.As(err, &u):
				i.Status = Skipped
			case errors.Is(err, os.ErrPermission):
				i.Found = "not permitted"
				if c.permit != "" {
					i.Do = c.permit
				}
			case errors.Is(err, ebpf.ErrNotSupported):
				i.Found = "this kernel does not have it"
			}
		}
		*r = append(*r, i)
	}
}
