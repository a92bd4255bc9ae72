package offsets

import (
	"golang.org/x/arch/x86/x86asm"
)

// GoidGen returns the address of runtime.sched.goidgen, the last id of the last
// batch of goroutine ids that a P took; 0 if it can't be told. Variables have no
// names in a stripped binary: runtime.newproc1 adds the size of a batch to it,
// lea goidgen(%rip),R; lock xadd Q,(R), as it does to nothing else.
func (b *Binary) GoidGen() Addr {
	const batch = 16 // runtime._GoidCacheBatch, Go 1.18 to 1.27
	funcs, err := b.Functions([]string{"runtime.newproc1"})
	f, ok := funcs["runtime.newproc1"]
	if err != nil || !ok {
		return 0
	}
	code := disassemble(f.Entry, b.bytes(f.Entry, f.Size))
	constants := map[x86asm.Reg]int64{}
	addresses := map[x86asm.Reg]Addr{}
	var found []Addr
	for _, in := range code {
		r, toReg := in.Args[0].(x86asm.Reg)
		if toReg {
			r = widen(r)
			delete(constants, r)
			delete(addresses, r)
		}
		switch in.Op {
		case x86asm.MOV:
			if v, ok := in.Args[1].(x86asm.Imm); ok && toReg {
				constants[r] = int64(v)
			}
		case x86asm.LEA:
			if m, ok := in.Args[1].(x86asm.Mem); ok && toReg && m.Base == x86asm.RIP {
				addresses[r] = in.at + Addr(in.Len) + Addr(m.Disp)
			}
		case x86asm.XADD:
			m, ok1 := in.Args[0].(x86asm.Mem)
			by, ok2 := in.Args[1].(x86asm.Reg)
			if !ok1 || !ok2 || by < x86asm.RAX || by > x86asm.R15 || constants[widen(by)] != batch {
				continue
			}
			if m.Base == x86asm.RIP {
				found = append(found, in.at+Addr(in.Len)+Addr(m.Disp))
			} else if a, ok := addresses[m.Base]; ok && m.Disp == 0 && m.Index == 0 {
				found = append(found, a)
			}
		}
		if in.Op == x86asm.CALL {
			clear(constants)
			clear(addresses)
		}
	}
	if len(found) != 1 {
		return 0
	}
	return found[0]
}
