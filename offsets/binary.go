// Package offsets finds where things are inside a Go binary: functions, probe
// sites and struct fields, in stripped and position-independent executables
// too. It knows files, not processes. Its input is hostile: every read is
// bounded, and a malformed file ends in an error.
package offsets

import (
	"bytes"
	"debug/elf"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"runtime/debug"
	"slices"
	"sort"

	"golang.org/x/sys/unix"
)

// ErrNotGo is returned for an executable that holds no Go program.
var ErrNotGo = errors.New("not a Go program")

// Addr is a virtual address as the ELF file names it, before any load bias.
type Addr uint64

// Binary is an ELF executable that is mapped for reading. Its methods are not
// safe for concurrent use.
type Binary struct {
	file     *elf.File
	data     []byte
	segments []segment
	relative []relocation // sorted by address; only in position-independent files

	pclntab *pclntab
	types   *typeIndex
	typeErr error
	dwarf   *dwarfIndex
}

type segment struct {
	addr   Addr
	off    uint64 // in the file
	data   []byte // what the file holds of it
	memory uint64 // its size once loaded
	exec   bool
}

type relocation struct {
	at    Addr
	value uint64
}

// maxSegments bounds what each read looks through; linkers make about five.
const maxSegments = 64

// maxRelocations bounds what a hostile file can make us sort (100 MB Go
// binaries in PIE mode have less than a million).
const maxRelocations = 8 << 20

// Open maps the executable that f refers to. f can be closed afterwards.
func Open(f *os.File) (_ *Binary, err error) {
	st, err := f.Stat()
	if err != nil {
		return nil, err
	}
	if !st.Mode().IsRegular() || st.Size() < 64 || int64(int(st.Size())) != st.Size() {
		return nil, errors.New("not an executable file")
	}
	data, err := unix.Mmap(int(f.Fd()), 0, int(st.Size()), unix.PROT_READ, unix.MAP_PRIVATE)
	if err != nil {
		return nil, fmt.Errorf("map executable: %w", err)
	}
	b := &Binary{data: data}
	if err := b.Guard(b.parse); err != nil {
		_ = b.Close()
		return nil, err
	}
	return b, nil
}

// Close unmaps the file.
func (b *Binary) Close() error {
	if b.data == nil {
		return nil
	}
	err := unix.Munmap(b.data)
	b.data = nil
	return err
}

// Guard runs f, which reads the mapped file, and turns the fault of a file that
// was truncated meanwhile, or any other panic on malformed input, into an error.
func (b *Binary) Guard(f func() error) (err error) {
	defer debug.SetPanicOnFault(debug.SetPanicOnFault(true))
	defer func() {
		if r := recover(); r != nil {
			err = fmt.Errorf("malformed executable: %v", r)
		}
	}()
	return f()
}

func (b *Binary) parse() error {
	file, err := elf.NewFile(bytes.NewReader(b.data))
	if err != nil {
		return fmt.Errorf("not an ELF executable: %w", err)
	}
	b.file = file
	if file.Class != elf.ELFCLASS64 || file.Data != elf.ELFDATA2LSB {
		return errors.New("not a 64-bit little-endian executable")
	}
	if file.Machine != elf.EM_X86_64 {
		return fmt.Errorf("machine %v is not supported yet, only x86-64", file.Machine)
	}
	for _, p := range file.Progs {
		if p.Type != elf.PT_LOAD {
			continue
		}
		if p.Off > uint64(len(b.data)) || p.Filesz > uint64(len(b.data))-p.Off || p.Vaddr+p.Memsz < p.Vaddr {
			return errors.New("malformed executable: a segment lies outside of the file")
		}
		b.segments = append(b.segments, segment{
			addr: Addr(p.Vaddr), off: p.Off, data: b.data[p.Off : p.Off+p.Filesz],
			memory: p.Memsz, exec: p.Flags&elf.PF_X != 0,
		})
	}
	if len(b.segments) > maxSegments {
		return errors.New("malformed executable: too many segments")
	}
	if len(b.segments) == 0 {
		return errors.New("malformed executable: nothing to load")
	}
	return b.parseRelocations()
}

// parseRelocations collects R_X86_64_RELATIVE entries: in a position-independent
// file the words they point to may be zero until the loader has run.
func (b *Binary) parseRelocations() error {
	if b.file.Type != elf.ET_DYN {
		return nil
	}
	for _, s := range b.file.Sections {
		if s.Type != elf.SHT_RELA || s.Flags&elf.SHF_ALLOC == 0 {
			continue
		}
		raw := b.bytes(Addr(s.Addr), s.Size)
		n := len(raw) / 24
		if len(b.relative)+n > maxRelocations {
			return errors.New("malformed executable: too many relocations")
		}
		b.relative = slices.Grow(b.relative, n)
		for ; len(raw) >= 24; raw = raw[24:] {
			if elf.R_X86_64(binary.LittleEndian.Uint32(raw[8:])) != elf.R_X86_64_RELATIVE {
				continue
			}
			b.relative = append(b.relative, relocation{
				at:    Addr(binary.LittleEndian.Uint64(raw)),
				value: binary.LittleEndian.Uint64(raw[16:]),
			})
		}
	}
	less := func(a, b relocation) int {
		switch {
		case a.at < b.at:
			return -1
		case a.at > b.at:
			return 1
		}
		return 0
	}
	if !slices.IsSortedFunc(b.relative, less) {
		slices.SortFunc(b.relative, less)
	}
	return nil
}

// bytes returns n bytes at a, or nil if the file does not hold them all.
func (b *Binary) bytes(a Addr, n uint64) []byte {
	for i := range b.segments {
		s := &b.segments[i]
		if a >= s.addr && uint64(a-s.addr) <= uint64(len(s.data)) && n <= uint64(len(s.data))-uint64(a-s.addr) {
			off := uint64(a - s.addr)
			return s.data[off : off+n : off+n]
		}
	}
	return nil
}

// tail returns what the file holds from a to the end of its segment.
func (b *Binary) tail(a Addr) []byte {
	for i := range b.segments {
		s := &b.segments[i]
		if a >= s.addr && uint64(a-s.addr) < uint64(len(s.data)) {
			return s.data[a-s.addr:]
		}
	}
	return nil
}

// word reads a pointer-sized word as it will be once loaded at bias zero.
func (b *Binary) word(a Addr) (uint64, bool) {
	if len(b.relative) > 0 {
		i := sort.Search(len(b.relative), func(i int) bool { return b.relative[i].at >= a })
		if i < len(b.relative) && b.relative[i].at == a {
			return b.relative[i].value, true
		}
	}
	p := b.bytes(a, 8)
	if p == nil {
		return 0, false
	}
	return binary.LittleEndian.Uint64(p), true
}

func (b *Binary) section(names ...string) *elf.Section {
	for _, name := range names {
		if s := b.file.Section(name); s != nil {
			return s
		}
	}
	return nil
}

// Bias returns what was added to the file's addresses when it was loaded so that
// its mapping from offset off on (bytes, a multiple of the page size) begins at start.
func (b *Binary) Bias(start, off uint64) (uint64, error) {
	if b.file.Type != elf.ET_DYN {
		return 0, nil
	}
	const page = 4096
	for _, s := range b.segments {
		if s.off&^(page-1) == off {
			return start - uint64(s.addr)&^(page-1), nil
		}
	}
	return 0, fmt.Errorf("no segment is mapped from offset %#x on", off)
}

// FileOffset translates an address in an executable segment into its offset in
// the file, which is what the kernel takes for a uprobe.
func (b *Binary) FileOffset(a Addr) (uint64, error) {
	for _, s := range b.segments {
		if s.exec && a >= s.addr && uint64(a-s.addr) < uint64(len(s.data)) {
			return s.off + uint64(a-s.addr), nil
		}
	}
	return 0, fmt.Errorf("address %#x is not executable", uint64(a))
}
