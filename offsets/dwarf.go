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

// dwarfField follows field names from the struct at an offset. It reads entries
// one by one: dwarf.Data.Type would follow every pointer of a hostile file.
func (b *Binary) dwarfField(d *dwarf.Data, at dwarf.Offset, path string, fields []string) (uint32, error) {
	var total int64
	for _, want := range fields {
		offset, typ, err := dwarfMember(d, at, want)
		if err != nil {
			return 0, fmt.Errorf("%s: %w", path, err)
		}
		total += offset
		at = typ
	}
	if total < 0 || total >= 1<<16 {
		return 0, fmt.Errorf("%s: implausible offset %d", path, total)
	}
	return uint32(total), nil
}

// maxTypedefs bounds how many names a struct may have.
const maxTypedefs = 8

// dwarfMember finds a member of the struct at an offset, or behind typedefs there.
func dwarfMember(d *dwarf.Data, at dwarf.Offset, want string) (offset int64, typ dwarf.Offset, err error) {
	r := d.Reader()
	for range maxTypedefs {
		r.Seek(at)
		e, err := r.Next()
		if err != nil {
			return 0, 0, err
		}
		if e == nil {
			break
		}
		if e.Tag == dwarf.TagTypedef {
			to, ok := e.Val(dwarf.AttrType).(dwarf.Offset)
			if !ok {
				break
			}
			at = to
			continue
		}
		if e.Tag != dwarf.TagStructType || !e.Children {
			break
		}
		for n := 0; n < maxFields; n++ {
			m, err := r.Next()
			if err != nil {
				return 0, 0, err
			}
			if m == nil || m.Tag == 0 {
				return 0, 0, fmt.Errorf("no field %s", want)
			}
			if name, _ := m.Val(dwarf.AttrName).(string); m.Tag == dwarf.TagMember && name == want {
				offset, _ := m.Val(dwarf.AttrDataMemberLoc).(int64)
				typ, _ := m.Val(dwarf.AttrType).(dwarf.Offset)
				return offset, typ, nil
			}
			r.SkipChildren()
		}
	}
	return 0, 0, fmt.Errorf("not a struct at %s", want)
}
