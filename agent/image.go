package agent

import (
	"github.com/zerospan/zerospan/bpf"
	"github.com/zerospan/zerospan/offsets"
	"github.com/zerospan/zerospan/procdiscovery"
)

// maxFacts bounds how many types' names, and how many constants, are remembered
// for a target; what comes after them is not known. Each takes the file to be opened.
const maxFacts = 1024

// TypeName implements instrumentors.Image.
func (t *target) TypeName(addr uint64) string {
	name, ok := t.names[addr]
	if ok || addr == 0 || len(t.names) >= maxFacts {
		return name
	}
	_ = t.file(func(b *offsets.Binary) { name = procdiscovery.Clean(b.TypeName(offsets.Addr(addr-t.bias)), 128) })
	if t.names == nil {
		t.names = map[uint64]string{}
	}
	t.names[addr] = name
	return name
}

// Bytes implements instrumentors.Image.
func (t *target) Bytes(addr uint64, n int) []byte {
	out, ok := t.constants[addr]
	if !ok && len(t.constants) < maxFacts {
		_ = t.file(func(b *offsets.Binary) { out = append(out, b.Read(offsets.Addr(addr-t.bias), maxConstant)...) })
		if t.constants == nil {
			t.constants = map[uint64][]byte{}
		}
		t.constants[addr] = out
	}
	return out[:max(0, min(n, len(out)))]
}

const maxConstant = 64 // bytes

// file opens the executable for what is rarely asked; without it, that is not known.
func (t *target) file(f func(*offsets.Binary)) error {
	b, err := offsets.Open(t.exe)
	if err != nil {
		return err
	}
	defer func() { _ = b.Close() }()
	return b.Guard(func() error { f(b); return nil })
}

// noImage stands for the executable of a target that is gone.
type noImage struct{}

func (noImage) TypeName(uint64) string   { return "" }
func (noImage) Bytes(uint64, int) []byte { return nil }

// eachType visits the types of the target's executable as programs look them up.
func (t *target) eachType(visit func(bpf.SharedGoTypeKey, bpf.SharedGoType) error) error {
	for _, g := range t.types {
		for _, addr := range g.Addrs {
			if err := visit(bpf.SharedGoTypeKey{Type: uint64(addr) + t.bias, Target: t.id}, g.SharedGoType); err != nil {
				return err
			}
		}
	}
	return nil
}
