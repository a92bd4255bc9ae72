package instrumentors

import (
	"errors"
	"fmt"

	"github.com/zerospan/zerospan/offsets"
)

// ErrAbsent means that the binary does not contain the instrumented library.
var ErrAbsent = errors.New("not in this binary")

// Plan is what an instrumentor will do with one binary.
type Plan struct {
	Spec   *Spec
	Sites  []PlannedSite
	Fields []PlannedField
	Layout any // of the program's layout type

	attached map[string]bool
}

// PlannedSite is a site as it was found, or why it was not.
type PlannedSite struct {
	Site
	Found   []offsets.Site
	Skipped string // why it is not attached, though the library is there
	Absent  bool   // its function is not in the binary
}

// PlannedField is a field as it was found.
type PlannedField struct {
	offsets.Field
	offsets.Resolved
}

// MakePlan finds sites and fields in a binary. The error is ErrAbsent when the
// library is not in it; any other error says why it can't be traced. Even then
// the plan holds what was found, for explain.
func MakePlan(s *Spec, b *offsets.Binary) (*Plan, error) {
	p := &Plan{Spec: s, attached: map[string]bool{}}
	var names []string
	for _, site := range s.Sites {
		names = append(names, site.Symbols...)
	}
	funcs, err := b.Functions(names)
	if err != nil {
		return p, err
	}
	complete := map[string]bool{}
	present := map[string]bool{}
	for _, site := range s.Sites {
		if _, ok := complete[site.Group]; !ok {
			complete[site.Group] = true
		}
		ps := PlannedSite{Site: site, Absent: true}
		for _, name := range site.Symbols {
			f, ok := funcs[name]
			if !ok {
				continue
			}
			ps.Absent = false
			if ps.Found, err = b.Sites(f, site.At); err != nil {
				ps.Skipped = err.Error()
			}
			break
		}
		if !ps.Absent && ps.Skipped == "" && len(site.OnlyWith) > 0 && !mentionsAny(b, site.OnlyWith) {
			ps.Skipped = fmt.Sprintf("not needed: nothing here calls %s", site.OnlyWith[0])
		} else if ps.Absent || ps.Skipped != "" {
			complete[site.Group] = false
		}
		present[site.Group] = present[site.Group] || !ps.Absent
		p.Sites = append(p.Sites, ps)
	}
	if !present[Required] {
		return p, ErrAbsent
	}
	reasons := map[string]string{} // by group, the first site's own
	for i := range p.Sites {
		site := &p.Sites[i]
		if site.Absent {
			site.Skipped = "function " + site.Symbols[0] + " is not in this binary"
		}
		if site.Skipped != "" && reasons[site.Group] == "" && !complete[site.Group] {
			reasons[site.Group] = site.Skipped
		}
		if site.Absent {
			site.Skipped = ""
		}
	}
	if !complete[Required] {
		err = errors.New(reasons[Required])
	}
	for i := range p.Sites {
		site := &p.Sites[i]
		if !complete[site.Group] && !site.Absent && site.Skipped == "" {
			site.Skipped = "another site of the group " + site.Group + " was not found"
		}
	}
	if !complete[Required] {
		return p, err
	}
	for i := range p.Sites {
		if site := &p.Sites[i]; site.Instead != "" && complete[site.Instead] && !site.Absent {
			site.Skipped = "not needed: " + site.Instead + " serves"
			complete[site.Group] = false
		}
	}
	p.attached = complete
	layout, fields, err := s.Layout(b, p)
	if err != nil {
		return p, err
	}
	p.Layout = layout
	for _, f := range fields {
		r := b.Resolve(f)
		p.Fields = append(p.Fields, PlannedField{f, r})
		if r.Err != nil && f.Required && err == nil {
			err = fmt.Errorf("field %s: %w", f.Paths[0], r.Err)
		}
	}
	return p, err
}

func mentionsAny(b *offsets.Binary, names []string) bool {
	for _, name := range names {
		if b.Mentions(name) {
			return true
		}
	}
	return false
}

// Complete tells whether a group of sites was found.
func (p *Plan) Complete(group string) bool { return p.attached[group] }

// Site returns the first place where a program will be attached.
func (p *Plan) Site(program string) (offsets.Site, bool) {
	for _, s := range p.Sites {
		if s.Program == program && !s.Absent && s.Skipped == "" {
			return s.Found[0], true
		}
	}
	return offsets.Site{}, false
}

// Attached returns the sites to attach with a role.
func (p *Plan) Attached(role Role) []PlannedSite {
	var out []PlannedSite
	for _, s := range p.Sites {
		if s.Role == role && !s.Absent && s.Skipped == "" {
			out = append(out, s)
		}
	}
	return out
}
