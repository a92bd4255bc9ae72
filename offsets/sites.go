package offsets

import (
	"fmt"
	"slices"

	"golang.org/x/arch/x86/x86asm"
)

// Site is an instruction to put a probe on.
type Site struct {
	Func       Func
	Addr       Addr
	FileOffset uint64
	Bytes      []byte // the instruction, as the file has it
	Text       string // the instruction, disassembled
	Emulated   bool   // the kernel emulates it; otherwise it is single-stepped, at many times the price
	StackCheck bool   // the stack check's own branch: a hit with the branch taken is not a call
}

// At says where in a function a probe goes.
type At interface {
	find(b *Binary, f Func, code []instruction) (Site, error)
	String() string
}

// AtEntry is the first instruction after the stack check: argument registers are
// intact there, and a call that has to grow its stack comes by once. Go 1.21 on
// has a push there, which the kernel emulates; before, the check's own branch
// is the site. At the very first instruction the probe would cost twenty times
// as much and count calls that grow their stack twice.
func AtEntry() At { return atEntry{} }

// AtCheckAfterCall is the first conditional jump after the only call of callee:
// the call's results are still in their registers.
func AtCheckAfterCall(callee string, keep ...x86asm.Reg) At { return atCheck{callee, keep} }

// Site finds the probe site in f.
func (b *Binary) Site(f Func, at At) (Site, error) {
	raw := b.bytes(f.Entry, f.Size)
	if raw == nil {
		return Site{}, fmt.Errorf("%s: its code is not in the file", f.Name)
	}
	s, err := at.find(b, f, disassemble(f.Entry, raw))
	if err != nil {
		return Site{}, fmt.Errorf("%s: %w", f.Name, err)
	}
	s.Func = f
	if s.FileOffset, err = b.FileOffset(s.Addr); err != nil {
		return Site{}, fmt.Errorf("%s: %w", f.Name, err)
	}
	return s, nil
}

type instruction struct {
	x86asm.Inst
	at  Addr
	raw []byte
}

// disassemble stops at the first thing that it can't decode: what it returns is
// certain to be on instruction boundaries.
func disassemble(at Addr, code []byte) []instruction {
	var out []instruction
	for len(code) > 0 {
		in, err := x86asm.Decode(code, 64)
		if err != nil || in.Len <= 0 || in.Len > len(code) {
			break
		}
		out = append(out, instruction{in, at, code[:in.Len]})
		at += Addr(in.Len)
		code = code[in.Len:]
	}
	return out
}

func (in instruction) site() Site {
	return Site{
		Addr: in.at, Bytes: slices.Clone(in.raw), Text: x86asm.GNUSyntax(in.Inst, uint64(in.at), nil),
		Emulated: in.emulated(),
	}
}

// target returns where a direct jump or call goes.
func (in instruction) target() (Addr, bool) {
	if rel, ok := in.Args[0].(x86asm.Rel); ok {
		return in.at + Addr(in.Len) + Addr(int64(rel)), true
	}
	return 0, false
}

func (in instruction) conditional() bool {
	b := in.raw
	return b[0]&0xf0 == 0x70 || b[0] == 0x0f && len(b) > 1 && b[1]&0xf0 == 0x80
}

// emulated reports whether the kernel emulates the instruction in place of
// single-stepping a copy: arch/x86/kernel/uprobes.c, branch_setup_xol_ops and
// push_setup_xol_ops. Prefixed forms are left out, as they are there.
func (in instruction) emulated() bool {
	b := in.raw
	switch {
	case b[0] == 0xe8, b[0] == 0xe9, b[0] == 0xeb: // call, jmp
		return true
	case b[0] == 0x90 && len(b) == 1: // nop
		return true
	case b[0]&0xf8 == 0x50: // push
		return true
	case b[0] == 0x41 && len(b) == 2 && b[1]&0xf8 == 0x50: // push r8 to r15
		return true
	}
	return in.conditional()
}

type atEntry struct{}

func (atEntry) String() string { return "entry" }

// maxPrologue bounds how far the stack check may be from a function's start.
const maxPrologue = 8

func (atEntry) find(b *Binary, f Func, code []instruction) (Site, error) {
	if len(code) == 0 {
		return Site{}, fmt.Errorf("its first instruction can't be decoded")
	}
	for i := 0; i+2 < len(code) && i < maxPrologue; i++ {
		in, branch, next := code[i], code[i+1], code[i+2]
		if !comparesStackGuard(in) {
			continue
		}
		if !branch.conditional() || !b.growsStack(branch, code) {
			break
		}
		if next.emulated() && !next.conditional() {
			return next.site(), nil
		}
		if branch.Op == x86asm.JBE {
			s := branch.site()
			s.StackCheck = true
			return s, nil
		}
		return next.site(), nil
	}
	// A function without a stack check has its arguments intact at the start.
	return code[0].site(), nil
}

// comparesStackGuard recognises cmp 0x10(%r14),%rsp or %r12: g.stackguard0.
func comparesStackGuard(in instruction) bool {
	if in.Op != x86asm.CMP {
		return false
	}
	m, ok := in.Args[1].(x86asm.Mem)
	return ok && m.Base == x86asm.R14 && m.Index == 0 && m.Disp == 0x10
}

// growsStack checks that the branch leads to a call of runtime.morestack.
func (b *Binary) growsStack(branch instruction, code []instruction) bool {
	to, ok := branch.target()
	if !ok {
		return false
	}
	i := slices.IndexFunc(code, func(in instruction) bool { return in.at == to })
	if i < 0 {
		// The rest was not decoded; the branch forward out of the prologue is enough.
		return to > branch.at
	}
	for ; i < len(code); i++ { // spills of the argument registers come first
		if code[i].Op == x86asm.CALL {
			callee, ok := code[i].target()
			if !ok {
				return false
			}
			g, ok := b.pclntab.funcOf(callee)
			return ok && (g.Name == "runtime.morestack_noctxt" || g.Name == "runtime.morestack" ||
				g.Name == "runtime.morestackc" || g.Name == "runtime.morestack_noctxt.abi0" || g.Name == "runtime.morestack.abi0")
		}
		if code[i].Op == x86asm.RET || code[i].Op == x86asm.JMP {
			return false
		}
	}
	return false
}

type atCheck struct {
	callee string
	keep   []x86asm.Reg
}

func (a atCheck) String() string { return "the check after the call of " + a.callee }

func (a atCheck) find(b *Binary, f Func, code []instruction) (Site, error) {
	end := code[len(code)-1]
	if uint64(end.at)+uint64(end.Len) != uint64(f.Entry)+f.Size {
		return Site{}, fmt.Errorf("it can't be disassembled to its end")
	}
	var found []int
	for i, in := range code {
		if in.Op != x86asm.CALL {
			continue
		}
		if to, ok := in.target(); ok {
			if g, ok := b.pclntab.funcOf(to); ok && g.Name == a.callee && g.Entry == to {
				found = append(found, i)
			}
		}
	}
	if len(found) == 0 {
		return Site{}, fmt.Errorf("it does not call %s in this version", a.callee)
	}
	if len(found) != 1 {
		return Site{}, fmt.Errorf("it calls %s at %d places, not at one", a.callee, len(found))
	}
	targets := map[Addr]bool{}
	for _, in := range code {
		if to, ok := in.target(); ok && in.Op != x86asm.CALL {
			targets[to] = true
		}
	}
	const near = 16
	for _, in := range code[found[0]+1 : min(found[0]+1+near, len(code))] {
		if targets[in.at] {
			return Site{}, fmt.Errorf("a jump leads in between the call of %s and the check behind it", a.callee)
		}
		if in.conditional() {
			return in.site(), nil
		}
		if in.Op == x86asm.CALL || in.Op == x86asm.RET || in.Op == x86asm.JMP {
			break
		}
		if r, ok := in.Args[0].(x86asm.Reg); ok && in.Op != x86asm.CMP && in.Op != x86asm.TEST && slices.Contains(a.keep, widen(r)) {
			return Site{}, fmt.Errorf("%v is overwritten behind the call of %s", r, a.callee)
		}
	}
	return Site{}, fmt.Errorf("no check behind the call of %s", a.callee)
}

// widen maps a register's narrow forms to the 64-bit one.
func widen(r x86asm.Reg) x86asm.Reg {
	switch {
	case r >= x86asm.EAX && r <= x86asm.R15L:
		return r - x86asm.EAX + x86asm.RAX
	case r >= x86asm.AX && r <= x86asm.R15W:
		return r - x86asm.AX + x86asm.RAX
	}
	return r
}
