package offsets

import (
	"debug/dwarf"
	"debug/elf"
	"errors"
	"fmt"
	"io"
	"strings"
)

// maxDWARF bounds what one debug section may unpack to.
const maxDWARF = 128 << 20

// dwarfIndex answers from the debug information, which only unstripped binaries
// carry. It is opened when the type descriptors do not know a type.
type dwarfIndex struct {
	data *dwarf.Data
	err  error
}

func (b *Binary) openDWARF() (*dwarf.Data, error) {
	if b.dwarf != nil {
		return b.dwarf.data, b.dwarf.err
	}
	b.dwarf = &dwarfIndex{}
	b.dwarf.data, b.dwarf.err = b.loadDWARF()
	return b.dwarf.data, b.dwarf.err
}

func (b *Binary) loadDWARF() (*dwarf.Data, error) {
	read := func(name string) []byte {
		s := b.section(name)
		if s == nil {
			return nil
		}
		p, err := b.sectionData(s)
		if err != nil {
			return nil
		}
		return p
	}
	info, abbrev := read(".debug_info"), read(".debug_abbrev")
	if info == nil || abbrev == nil {
		return nil, errors.New("no debug information")
	}
	d, err := dwarf.New(abbrev, nil, nil, info, nil, nil, nil, read(".debug_str"))
	if err != nil {
		return nil, fmt.Errorf("debug information: %w", err)
	}
	for _, name := range []string{".debug_str_offsets", ".debug_addr", ".debug_line_str"} {
		if p := read(name); p != nil {
			if err := d.AddSection(name, p); err != nil {
				return nil, fmt.Errorf("debug information: %w", err)
			}
		}
	}
	return d, nil
}

// sectionData returns an uncompressed section as it lies in the mapped file, a
// compressed one unpacked within maxDWARF.
func (b *Binary) sectionData(s *elf.Section) ([]byte, error) {
	if s.Offset > uint64(len(b.data)) || s.FileSize > uint64(len(b.data))-s.Offset {
		return nil, errors.New("section lies outside of the file")
	}
	if s.Flags&elf.SHF_COMPRESSED == 0 {
		return b.data[s.Offset : s.Offset+s.FileSize], nil
	}
	return io.ReadAll(io.LimitReader(s.Open(), maxDWARF))
}

// dwarfOffset looks through the compilation unit of the type's package only.
func (b *Binary) dwarfOffset(path string) (uint32, error) {
	name, fields, err := splitPath(path)
	if err != nil {
		return 0, err
	}
	d, err := b.openDWARF()
	if err != nil {
		return 0, err
	}
	pkg := name[:strings.LastIndexByte(name, '.')]
	r := d.Reader()
	for {
		unit, err := r.Next()
		if err != nil || unit == nil {
			break
		}
		if unit.Tag == dwarf.TagCompileUnit {
			if n, _ := unit.Val(dwarf.AttrName).(string); n != pkg && n != "runtime" && pkg != "" {
				r.SkipChildren()
			}
			continue
		}
		if unit.Tag == dwarf.TagStructType {
			if n, _ := unit.Val(dwarf.AttrName).(string); n == name {
				return b.dwarfField(d, unit.Offset, path, fields)
			}
		}
		r.SkipChildren()
	}
	return 0, fmt.Errorf("type %s is not in the debug information", name)
}

func (b *Binary) dwarfField(d *dwarf.Data, at dwarf.Offset, path string, fields []string) (uint32, error) {
	typ, err := d.Type(at)
	if err != nil {
		return 0, fmt.Errorf("%s: %w", path, err)
	}
	var total int64
next:
	for _, want := range fields {
		if t, ok := typ.(*dwarf.TypedefType); ok {
			typ = t.Type
		}
		s, ok := typ.(*dwarf.StructType)
		if !ok {
			return 0, fmt.Errorf("%s: not a struct at %s", path, want)
		}
		for _, f := range s.Field {
			if f.Name == want {
				total += f.ByteOffset
				typ = f.Type
				continue next
			}
		}
		return 0, fmt.Errorf("%s: no field %s", path, want)
	}
	if total < 0 || total >= 1<<16 {
		return 0, fmt.Errorf("%s: implausible offset %d", path, total)
	}
	return uint32(total), nil
}
