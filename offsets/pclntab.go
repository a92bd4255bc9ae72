package offsets

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"sort"
)

// Func is a function of the binary.
type Func struct {
	Name  string
	Entry Addr
	Size  uint64 // bytes, up to the next function
}

// pclntab is Go's table of functions (runtime.pcHeader and what follows it),
// which stripping leaves in place. Layout: runtime/symtab.go, Go 1.18 to 1.27.
type pclntab struct {
	addr    Addr
	text    Addr // where the entry offsets count from
	names   []byte
	functab []byte // pairs of uint32: entry offset, offset of the _func in funcs
	funcs   []byte
	nfunc   int
}

// maxPclntabTries bounds how many places that look like a header are tried.
const maxPclntabTries = 16

const (
	magicGo118 = 0xfffffff0
	magicGo120 = 0xfffffff1

	pcHeaderSize = 8 + 8*8
)

// functions returns the parsed table; ErrNotGo if there is none.
func (b *Binary) functions() (*pclntab, error) {
	if b.pclntab != nil {
		return b.pclntab, nil
	}
	addr, err := b.findPclntab()
	if err != nil {
		return nil, err
	}
	t, err := b.parsePclntab(addr)
	if err != nil {
		return nil, err
	}
	b.pclntab = t
	return t, nil
}

func (b *Binary) findPclntab() (Addr, error) {
	if s := b.section(".gopclntab", ".data.rel.ro.gopclntab"); s != nil {
		return Addr(s.Addr), nil
	}
	// No section headers, or another linker's names: look for the header itself.
	tries := 0
	for _, magic := range []uint32{magicGo120, magicGo118} {
		var head [8]byte
		binary.LittleEndian.PutUint32(head[:], magic)
		head[6], head[7] = 1, 8 // minLC of amd64, ptrSize
		for _, s := range b.segments {
			for at := 0; ; at += 8 {
				i := bytes.Index(s.data[at:], head[:])
				if i < 0 {
					break
				}
				if at += i; at%8 == 0 {
					if tries++; tries > maxPclntabTries {
						return 0, ErrNotGo
					}
					if _, err := b.parsePclntab(s.addr + Addr(at)); err == nil {
						return s.addr + Addr(at), nil
					}
				}
				at &^= 7
			}
		}
	}
	return 0, ErrNotGo
}

func (b *Binary) parsePclntab(addr Addr) (*pclntab, error) {
	p := b.tail(addr)
	if len(p) < pcHeaderSize {
		return nil, ErrNotGo
	}
	switch magic := binary.LittleEndian.Uint32(p); magic {
	case magicGo118, magicGo120:
	default:
		return nil, fmt.Errorf("function table of an unknown format (%#x): Go 1.18 to 1.27 are supported", magic)
	}
	if p[7] != 8 {
		return nil, errors.New("malformed function table: pointers are not 8 bytes")
	}
	field := func(i int) uint64 { return binary.LittleEndian.Uint64(p[8+8*i:]) }
	nfunc, textStart := field(0), field(2)
	names, cutab, funcs := field(3), field(4), field(7)
	size := uint64(len(p))
	if nfunc == 0 || nfunc > size/8 || names > size || cutab > size || names >= cutab || funcs > size ||
		(nfunc*2+1)*4 > size-funcs {
		return nil, errors.New("malformed function table")
	}
	t := &pclntab{
		addr:    addr,
		names:   p[names:cutab],
		funcs:   p[funcs:],
		functab: p[funcs : funcs+(nfunc*2+1)*4],
		nfunc:   int(nfunc),
	}
	// In a position-independent file the header's word is relocated; since Go
	// 1.26 it is unused, and moduledata has the only copy.
	if v, ok := b.word(addr + 8 + 16); ok {
		textStart = v
	}
	t.text = Addr(textStart)
	if textStart == 0 {
		md, err := b.moduledata(addr)
		if err != nil {
			return nil, err
		}
		v, _ := b.word(md + moduledataText)
		t.text = Addr(v)
	}
	if b.tail(t.text) == nil {
		return nil, errors.New("malformed function table: its text is not in the file")
	}
	return t, nil
}

// moduledataText is the offset of runtime.moduledata.text, the same from Go 1.18
// to 1.27: a pointer, six slices, findfunctab, minpc and maxpc come before it.
const moduledataText = 8 + 6*24 + 3*8

// moduledata finds runtime.firstmoduledata: its first word points to the pclntab.
func (b *Binary) moduledata(pclntab Addr) (Addr, error) {
	if s := b.section(".go.module"); s != nil { // since Go 1.26
		if v, ok := b.word(Addr(s.Addr)); ok && Addr(v) == pclntab {
			return Addr(s.Addr), nil
		}
	}
	plausible := func(a Addr) bool {
		v, _ := b.word(a)
		names, _ := b.word(a + 8)
		n, _ := b.word(a + 16)
		c, _ := b.word(a + 24)
		text, _ := b.word(a + moduledataText)
		etext, _ := b.word(a + moduledataText + 8)
		return Addr(v) == pclntab && Addr(names) > pclntab && n == c && n > 0 && text > 0 && etext > text
	}
	if len(b.relative) > 0 {
		for _, r := range b.relative {
			if Addr(r.value) == pclntab && plausible(r.at) {
				return r.at, nil
			}
		}
	}
	var want [8]byte
	binary.LittleEndian.PutUint64(want[:], uint64(pclntab))
	for _, s := range b.segments {
		if s.exec {
			continue
		}
		for at := 0; at < len(s.data); {
			i := bytes.Index(s.data[at:], want[:])
			if i < 0 {
				break
			}
			at += i
			if at%8 == 0 && plausible(s.addr+Addr(at)) {
				return s.addr + Addr(at), nil
			}
			at++
		}
	}
	return 0, errors.New("the Go runtime's module data was not found")
}

// nameOffset returns where name starts in the table of names, or -1.
func (t *pclntab) nameOffset(name string) int {
	if len(t.names) > len(name) && string(t.names[:len(name)]) == name && t.names[len(name)] == 0 {
		return 0
	}
	want := make([]byte, 0, len(name)+2)
	want = append(want, 0)
	want = append(want, name...)
	want = append(want, 0)
	if i := bytes.Index(t.names, want); i >= 0 {
		return i + 1
	}
	return -1
}

func (t *pclntab) entry(i int) Addr {
	return t.text + Addr(binary.LittleEndian.Uint32(t.functab[i*8:]))
}

// nameOff returns the offset of function i's name, or -1.
func (t *pclntab) nameOff(i int) int {
	off := uint64(binary.LittleEndian.Uint32(t.functab[i*8+4:]))
	if off+8 > uint64(len(t.funcs)) {
		return -1
	}
	return int(int32(binary.LittleEndian.Uint32(t.funcs[off+4:])))
}

func (t *pclntab) name(i int) string {
	off := t.nameOff(i)
	if off < 0 || off >= len(t.names) {
		return ""
	}
	n := bytes.IndexByte(t.names[off:], 0)
	if n < 0 {
		return ""
	}
	return string(t.names[off : off+n])
}

func (t *pclntab) funcAt(i int) Func {
	return Func{Name: t.name(i), Entry: t.entry(i), Size: uint64(t.entry(i+1) - t.entry(i))}
}

// Functions looks the names up; what is not in the binary is absent from the result.
func (b *Binary) Functions(names []string) (map[string]Func, error) {
	t, err := b.functions()
	if err != nil {
		return nil, err
	}
	wanted := make(map[int]string, len(names))
	for _, name := range names {
		if off := t.nameOffset(name); off >= 0 {
			wanted[off] = name
		}
	}
	found := make(map[string]Func, len(wanted))
	for i := 0; i < t.nfunc && len(found) < len(wanted); i++ {
		if name, ok := wanted[t.nameOff(i)]; ok {
			f := t.funcAt(i)
			if f.Size == 0 || f.Size > 1<<24 || b.bytes(f.Entry, f.Size) == nil {
				return nil, fmt.Errorf("malformed function table at %s", name)
			}
			found[name] = f
		}
	}
	return found, nil
}

// Mentions reports whether a function of that name was compiled into the
// binary, be it inlined into its callers.
func (b *Binary) Mentions(name string) bool {
	t, err := b.functions()
	return err == nil && t.nameOffset(name) >= 0
}

// funcOf returns the function that holds address a.
func (t *pclntab) funcOf(a Addr) (Func, bool) {
	i := sort.Search(t.nfunc, func(i int) bool { return t.entry(i) > a }) - 1
	if i < 0 || a >= t.entry(i+1) {
		return Func{}, false
	}
	return t.funcAt(i), true
}
