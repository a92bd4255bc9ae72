package offsets

import (
	"encoding/binary"
	"errors"
	"strings"
)

// typeIndex holds the addresses of the runtime type descriptors of named
// structs, by qualified name. Layout: internal/abi/type.go (before Go
// 1.20 reflect/type.go), the same from Go 1.18 to 1.27 for what is used here.
type typeIndex struct {
	base    Addr // what name and type offsets count from: moduledata.types
	end     Addr
	structs map[string]Addr
	shifted bool // Go 1.18 keeps a field's offset shifted left by one
}

const (
	kindMask      = 1<<5 - 1
	kindArray     = 17
	kindInterface = 20
	kindMap       = 21
	kindPointer   = 22
	maxKind       = 26
	kindStruct    = 25

	nameEmbedded = 1 << 3 // a flag of abi.Name

	tflagUncommon  = 1 << 0
	tflagExtraStar = 1 << 1
	tflagNamed     = 1 << 2

	typeSize   = 48 // abi.Type
	structSize = typeSize + 8 + 24
	maxFields  = 1024
	maxName    = 512
)

// types walks [moduledata.types, etypes) once.
func (b *Binary) typeDescriptors() (*typeIndex, error) {
	if b.types != nil || b.typeErr != nil {
		return b.types, b.typeErr
	}
	b.types, b.typeErr = b.indexTypes()
	return b.types, b.typeErr
}

func (b *Binary) indexTypes() (*typeIndex, error) {
	t, err := b.functions()
	if err != nil {
		return nil, err
	}
	md, err := b.moduledata(t.addr)
	if err != nil {
		return nil, err
	}
	// Go 1.20 put covctrs and ecovctrs before end, gcdata, gcbss, types; Go 1.27
	// put a length, of the descriptors that reflection may search, before etypes.
	for _, off := range []Addr{296, 280} {
		types, ok1 := b.word(md + off)
		end, ok2 := b.word(md + off + 8)
		if ok1 && ok2 && end < types {
			end, ok2 = b.word(md + off + 16)
		}
		if !ok1 || !ok2 || types == 0 || end <= types || b.bytes(Addr(types), end-types) == nil {
			continue
		}
		ix := &typeIndex{base: Addr(types), end: Addr(end), structs: map[string]Addr{}}
		b.walkTypes(ix)
		if _, ok := ix.structs["runtime.g"]; ok {
			ix.detectShift(b)
			return ix, nil
		}
	}
	return nil, errors.New("type descriptors not found")
}

func (b *Binary) walkTypes(ix *typeIndex) {
	raw := b.bytes(ix.base, uint64(ix.end-ix.base))
	for off := 0; off+structSize <= len(raw); off += 8 {
		p := raw[off:]
		if p[23]&kindMask != kindStruct {
			continue
		}
		size, ptrdata := binary.LittleEndian.Uint64(p), binary.LittleEndian.Uint64(p[8:])
		if ptrdata > size || size > 1<<24 || p[20]&tflagNamed == 0 || p[20]&tflagUncommon == 0 {
			continue
		}
		name := b.name(ix.base + Addr(binary.LittleEndian.Uint32(p[40:])))
		if p[20]&tflagExtraStar != 0 {
			name = strings.TrimPrefix(name, "*")
		}
		short, ok := unqualified(name)
		if !ok {
			continue
		}
		a := ix.base + Addr(off)
		if !b.plausibleStruct(ix, a) {
			continue
		}
		if pkg := b.pkgPath(ix, a+structSize); pkg != "" {
			ix.structs[pkg+"."+short] = a
		}
	}
}

// unqualified strips the package name: "http.Request" gives "Request".
func unqualified(name string) (string, bool) {
	head := name
	if i := strings.IndexByte(name, '['); i >= 0 {
		head = name[:i]
	}
	i := strings.LastIndexByte(head, '.')
	if i <= 0 || i+1 >= len(name) {
		return "", false
	}
	return name[i+1:], true
}

// pkgPath reads the import path from the abi.UncommonType at a.
func (b *Binary) pkgPath(ix *typeIndex, a Addr) string {
	p := b.bytes(a, 4)
	if p == nil {
		return ""
	}
	off := binary.LittleEndian.Uint32(p)
	if off == 0 || Addr(off) >= ix.end-ix.base {
		return ""
	}
	return b.name(ix.base + Addr(off))
}

// name reads an abi.Name: flags, a varint length, the bytes.
func (b *Binary) name(a Addr) string {
	p := b.bytes(a, 4)
	if p == nil {
		return ""
	}
	n, k := binary.Uvarint(p[1:])
	if k <= 0 || n == 0 || n > maxName {
		return ""
	}
	return string(b.bytes(a+1+Addr(k), n))
}

// structField is one field of a struct type.
type structField struct {
	name   string
	typ    Addr // its type descriptor
	offset uint64

	embedded bool
}

// kind returns the kind of the type descriptor at a, 0 if there is none.
func (b *Binary) kind(a Addr) int {
	if p := b.bytes(a, typeSize); p != nil {
		return int(p[23] & kindMask)
	}
	return 0
}

func (b *Binary) plausibleStruct(ix *typeIndex, a Addr) bool {
	fields, ok1 := b.word(a + typeSize + 8)
	n, ok2 := b.word(a + typeSize + 16)
	c, ok3 := b.word(a + typeSize + 24)
	if !ok1 || !ok2 || !ok3 || n != c || n > maxFields {
		return false
	}
	return n == 0 || b.bytes(Addr(fields), n*24) != nil
}

// fields returns the fields of the struct type at a.
func (b *Binary) fields(ix *typeIndex, a Addr) []structField {
	if !b.plausibleStruct(ix, a) {
		return nil
	}
	first, _ := b.word(a + typeSize + 8)
	n, _ := b.word(a + typeSize + 16)
	out := make([]structField, 0, n)
	for i := uint64(0); i < n; i++ {
		at := Addr(first + i*24)
		name, _ := b.word(at)
		typ, _ := b.word(at + 8)
		off, _ := b.word(at + 16)
		f := structField{name: b.name(Addr(name)), typ: Addr(typ), offset: off}
		if ix.shifted { // and the lowest bit says that the field is embedded
			f.offset, f.embedded = off>>1, off&1 != 0
		} else if flags := b.bytes(Addr(name), 1); flags != nil {
			f.embedded = flags[0]&nameEmbedded != 0
		}
		out = append(out, f)
	}
	return out
}

// detectShift tells Go 1.18's encoding by a struct that every program has:
// runtime.g starts with stack (two words), so stackguard0 is at 16 or 32.
func (ix *typeIndex) detectShift(b *Binary) {
	for _, f := range b.fields(ix, ix.structs["runtime.g"]) {
		if f.name == "stackguard0" {
			ix.shifted = f.offset == 32
		}
	}
}

// Type is a struct type as programs recognise it in interface values.
type Type struct {
	Name  string
	Addrs []Addr // the descriptors of the struct and, if there is one, of its pointer type
	Next  uint32 // offset of the interface that it wraps
}

// Struct looks a struct type up by its qualified name.
func (b *Binary) Struct(name string) (Type, bool) {
	ix, err := b.typeDescriptors()
	if err != nil {
		return Type{}, false
	}
	a, ok := ix.structs[name]
	return Type{Name: name, Addrs: []Addr{a}, Next: Absent}, ok
}

// NamedType finds the descriptor of a named type that is no struct, by its
// qualified name; of those of one short name, the first.
func (b *Binary) NamedType(name string) (Addr, bool) {
	ix, err := b.typeDescriptors()
	if err != nil {
		return 0, false
	}
	short, pkg := name[strings.LastIndexByte(name, '.')+1:], name[:strings.LastIndexByte(name, '.')]
	want := pkg[strings.LastIndexByte(pkg, '/')+1:] + "." + short
	raw := b.bytes(ix.base, uint64(ix.end-ix.base))
	for off := 0; off+typeSize <= len(raw); off += 8 {
		p := raw[off:]
		if p[20]&tflagNamed == 0 || p[23]&kindMask == 0 || p[23]&kindMask > maxKind {
			continue
		}
		found := b.name(ix.base + Addr(binary.LittleEndian.Uint32(p[40:])))
		if p[20]&tflagExtraStar != 0 {
			found = strings.TrimPrefix(found, "*")
		}
		if found == want {
			return ix.base + Addr(off), true
		}
	}
	return 0, false
}

// AddPointers adds the descriptors of the types' pointer types.
func (b *Binary) AddPointers(types []Type) {
	ix, err := b.typeDescriptors()
	if err != nil {
		return
	}
	of := map[Addr]*Type{}
	for i := range types {
		of[types[i].Addrs[0]] = &types[i]
	}
	raw := b.bytes(ix.base, uint64(ix.end-ix.base))
	for off := 0; off+typeSize+8 <= len(raw); off += 8 {
		if raw[off+23]&kindMask != kindPointer || binary.LittleEndian.Uint64(raw[off:]) != 8 {
			continue
		}
		elem, _ := b.word(ix.base + Addr(off) + typeSize)
		if t := of[Addr(elem)]; t != nil {
			t.Addrs = append(t.Addrs, ix.base+Addr(off))
		}
	}
}

// TypeName returns the name of the type whose descriptor is at a, as reflect gives
// it; empty if there is none.
func (b *Binary) TypeName(a Addr) string {
	ix, err := b.typeDescriptors()
	if err != nil || a < ix.base || a >= ix.end || b.kind(a) == 0 {
		return ""
	}
	p := b.bytes(a, typeSize)
	name := b.name(ix.base + Addr(binary.LittleEndian.Uint32(p[40:])))
	if p[20]&tflagExtraStar != 0 {
		name = strings.TrimPrefix(name, "*")
	}
	return name
}

// Read returns what the file has at an address, at most n bytes.
func (b *Binary) Read(a Addr, n uint64) []byte {
	raw := b.tail(a)
	return raw[:min(n, uint64(len(raw)))]
}

// maxEmbedding is how many structs deep an embedded interface is looked for.
const maxEmbedding = 4

// Embedding returns the struct types that embed the interface type of the field
// at path, be it within structs that they embed by value, with its offset.
func (b *Binary) Embedding(path string) []Type {
	_, iface, err := b.typeField(path)
	if err != nil || b.kind(iface) != kindInterface {
		return nil
	}
	ix := b.types
	type answer struct {
		offset uint64
		ok     bool
	}
	known := map[Addr]answer{}
	var find func(a Addr, depth int) answer
	find = func(a Addr, depth int) (found answer) {
		if k, ok := known[a]; ok {
			return k
		}
		for _, f := range b.fields(ix, a) {
			if !f.embedded {
				continue
			}
			if f.typ == iface {
				found = answer{f.offset, true}
				break
			}
			if depth < maxEmbedding && b.kind(f.typ) == kindStruct {
				if inner := find(f.typ, depth+1); inner.ok {
					found = answer{f.offset + inner.offset, true}
					break
				}
			}
		}
		known[a] = found
		return found
	}
	var out []Type
	for name, a := range ix.structs {
		if k := find(a, 0); k.ok && k.offset < 1<<16 {
			out = append(out, Type{Name: name, Addrs: []Addr{a}, Next: uint32(k.offset)})
		}
	}
	return out
}
