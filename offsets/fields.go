package offsets

import (
	"fmt"
	"strings"
)

// Absent is the offset of a field that a binary does not have.
const Absent = ^uint32(0)

// Rung names what answered for a field.
type Rung string

// The rungs of the ladder, in the order in which they are asked.
const (
	RungTypes Rung = "type descriptors"
	RungDWARF Rung = "DWARF"
	RungTable Rung = "table"
)

// Field asks for the offset of a struct field and says where the answer goes.
type Field struct {
	Into  *uint32           // set to the offset in bytes, or to Absent
	Paths []string          // aliases: "import/path.Type.field", or ".field.field" through nested structs
	Table map[string]uint32 // offset by path where neither descriptors nor DWARF know it; says why where it is set

	Required bool   // the instrumentor can't work without it
	Loses    string // what is not known without it, in a user's words
}

// Resolved is the answer for a Field.
type Resolved struct {
	Path   string // the alias that was found, or the first one
	Offset uint32 // bytes; Absent if it was not found
	Rung   Rung
	Err    error // why it was not found
}

// Resolve finds f in the binary and stores the offset through f.Into.
func (b *Binary) Resolve(f Field) Resolved {
	*f.Into = Absent
	r := Resolved{Path: f.Paths[0], Offset: Absent}
	for _, rung := range []struct {
		name Rung
		find func(string) (uint32, error)
	}{
		{RungTypes, b.typeOffset},
		{RungDWARF, b.dwarfOffset},
		{RungTable, func(path string) (uint32, error) {
			if off, ok := f.Table[path]; ok {
				return off, nil
			}
			return 0, fmt.Errorf("%s: not in the table", path)
		}},
	} {
		for _, path := range f.Paths {
			off, err := rung.find(path)
			if err == nil {
				*f.Into = off
				return Resolved{Path: path, Offset: off, Rung: rung.name}
			}
			if r.Err == nil {
				r.Err = err
			}
		}
	}
	return r
}

// splitPath parts "net/http.Request.Method" into "net/http.Request" and {"Method"}.
func splitPath(path string) (typ string, fields []string, err error) {
	slash := strings.LastIndexByte(path, '/') + 1
	parts := strings.Split(path[slash:], ".")
	if len(parts) < 3 {
		return "", nil, fmt.Errorf("%s: not of the form import/path.Type.field", path)
	}
	return path[:slash] + parts[0] + "." + parts[1], parts[2:], nil
}

func (b *Binary) typeOffset(path string) (uint32, error) {
	off, _, err := b.typeField(path)
	return off, err
}

// typeField returns a field's offset and the address of its type descriptor.
func (b *Binary) typeField(path string) (uint32, Addr, error) {
	name, fields, err := splitPath(path)
	if err != nil {
		return 0, 0, err
	}
	ix, err := b.typeDescriptors()
	if err != nil {
		return 0, 0, err
	}
	at, ok := ix.structs[name]
	if !ok {
		return 0, 0, fmt.Errorf("type %s is not in the binary", name)
	}
	var total uint64
next:
	for i, want := range fields {
		if i > 0 && b.kind(at) != kindStruct {
			return 0, 0, fmt.Errorf("%s: %s is no struct", path, fields[i-1])
		}
		for _, f := range b.fields(ix, at) {
			if f.name == want {
				total += f.offset
				at = f.typ
				continue next
			}
		}
		return 0, 0, fmt.Errorf("%s has no field %s", name, strings.Join(fields[:i+1], "."))
	}
	if total >= 1<<16 {
		return 0, 0, fmt.Errorf("%s: implausible offset %d", path, total)
	}
	return uint32(total), at, nil
}

// MapGroup describes how eight keys and elements lie in one group (Swiss map)
// or bucket of a map type. All numbers are bytes.
type MapGroup struct {
	Swiss             bool
	Keys, KeyStride   uint32 // the first key, and from one key to the next
	Elems, ElemStride uint32
	Size              uint32
}

// MapGroup reads the group layout of the map that the field at path holds, from
// the descriptor of the compiler's own group type: buckets (topbits, keys,
// elems), Swiss groups (ctrl, slots), and Swiss groups with split arrays.
func (b *Binary) MapGroup(path string) (MapGroup, error) {
	_, typ, err := b.typeField(path)
	if err != nil {
		return MapGroup{}, err
	}
	if b.kind(typ) != kindMap {
		return MapGroup{}, fmt.Errorf("%s is no map", path)
	}
	group, _ := b.word(typ + typeSize + 16)
	size, _ := b.word(Addr(group))
	g := MapGroup{Size: uint32(size)}
	if b.kind(Addr(group)) != kindStruct || size > 1<<12 {
		return MapGroup{}, fmt.Errorf("%s: the map's group type is not described", path)
	}
	element := func(array Addr) (Addr, uint32) { // of an array type: its element and that one's size
		if b.kind(array) != kindArray {
			return 0, 0
		}
		e, _ := b.word(array + typeSize)
		n, _ := b.word(Addr(e))
		return Addr(e), uint32(n)
	}
	for _, f := range b.fields(b.types, Addr(group)) {
		switch f.name {
		case "ctrl", "ctrls":
			g.Swiss = true
		case "keys":
			g.Keys = uint32(f.offset)
			_, g.KeyStride = element(f.typ)
		case "elems":
			g.Elems = uint32(f.offset)
			_, g.ElemStride = element(f.typ)
		case "slots":
			slot, stride := element(f.typ)
			g.KeyStride, g.ElemStride = stride, stride
			for _, s := range b.fields(b.types, slot) {
				switch s.name {
				case "key":
					g.Keys = uint32(f.offset + s.offset)
				case "elem":
					g.Elems = uint32(f.offset + s.offset)
				}
			}
		}
	}
	if g.KeyStride == 0 || g.ElemStride == 0 || g.Elems == 0 {
		return MapGroup{}, fmt.Errorf("%s: unknown map layout", path)
	}
	return g, nil
}

// Size returns the size in bytes of the struct type "import/path.Type", 0 if the
// binary does not describe it.
func (b *Binary) Size(typ string) uint32 {
	ix, err := b.typeDescriptors()
	if err != nil {
		return 0
	}
	at, ok := ix.structs[typ]
	if !ok {
		return 0
	}
	size, _ := b.word(at)
	return uint32(min(size, 1<<16))
}
