package offsets

import (
	"fmt"
	"slices"
	"strings"

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

	// At a deferred closure: the function that deferred it, and where that
	// function's results are, in bytes from the stack pointer at the site.
	Caller  Func
	Results []uint32

	Global Addr // at a check: the variable that is compared with
}

// At says where in a function probes go.
type At interface {
	find(b *Binary, f Func, code []instruction) ([]Site, error)
	String() string
}

// AtEntry is the first instruction after the stack check: argument registers are
// intact there, and a call that has to grow its stack comes by once. Go 1.21 on
// has a push there, which the kernel emulates; before, the check's own branch
// is the site. At the very first instruction the probe would cost twenty times
// as much and count calls that grow their stack twice.
func AtEntry() At { return atEntry{} }

// AtCheckAfterCall is the first conditional jump after the only call of callee:
// the call's results are still in the registers that are kept.
func AtCheckAfterCall(callee string, keep ...x86asm.Reg) At {
	return atCheck{callee: callee, keep: keep}
}

// AtSharedCheckAfterCall is AtCheckAfterCall where the results of other, indirect
// calls come to the same check, in the same registers.
func AtSharedCheckAfterCall(callee string, keep ...x86asm.Reg) At {
	return atCheck{callee: callee, shared: true, keep: keep}
}

// AtGlobalCheckAfterIndirectCall is the conditional jump behind the only indirect
// call whose result in reg is at once compared with a global variable.
func AtGlobalCheckAfterIndirectCall(reg x86asm.Reg, keep ...x86asm.Reg) At {
	return atGlobalCheck{reg, keep}
}

// AtDeferredClosure is the entry of the one closure that the function defers. It
// runs once, when the function returns, panics or calls runtime.Goexit.
func AtDeferredClosure() At { return atDeferred{} }

// AtNilReturns are the RETs before which the function's first result is set to
// nil, and its deferred closure is not called: for errors that come early.
func AtNilReturns() At { return atNilReturns{} }

// AtFirst is the first of several that a function has.
func AtFirst(at ...At) At { return atFirst(at) }

// Sites finds the probe sites in f.
func (b *Binary) Sites(f Func, at At) ([]Site, error) {
	raw := b.bytes(f.Entry, f.Size)
	if raw == nil {
		return nil, fmt.Errorf("%s: its code is not in the file", f.Name)
	}
	sites, err := at.find(b, f, disassemble(f.Entry, raw))
	if err != nil {
		return nil, fmt.Errorf("%s: %w", f.Name, err)
	}
	for i := range sites {
		s := &sites[i]
		if s.Func.Name == "" {
			s.Func = f
		}
		if s.FileOffset, err = b.FileOffset(s.Addr); err != nil {
			return nil, fmt.Errorf("%s: %w", f.Name, err)
		}
	}
	return sites, nil
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

func (atEntry) find(b *Binary, _ Func, code []instruction) ([]Site, error) {
	s, err := b.entry(code)
	return []Site{s}, err
}

func (b *Binary) entry(code []instruction) (Site, error) {
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

type atFirst []At

func (a atFirst) String() string {
	names := make([]string, len(a))
	for i, at := range a {
		names[i] = at.String()
	}
	return strings.Join(names, " or ")
}

func (a atFirst) find(b *Binary, f Func, code []instruction) (sites []Site, err error) {
	for _, at := range a {
		if sites, err = at.find(b, f, code); err == nil {
			break
		}
	}
	return sites, err
}

type atCheck struct {
	callee string
	shared bool
	keep   []x86asm.Reg
}

func (a atCheck) String() string { return "the check after the call of " + a.callee }

const nearCheck = 16 // instructions between a call and the check of its result

func (a atCheck) find(b *Binary, f Func, code []instruction) ([]Site, error) {
	if err := complete(f, code); err != nil {
		return nil, err
	}
	var found []int
	for i, in := range code {
		if g, ok := b.callee(in); ok && g == a.callee {
			found = append(found, i)
		}
	}
	if len(found) == 0 {
		return nil, fmt.Errorf("it does not call %s in this version", a.callee)
	}
	if len(found) != 1 {
		return nil, fmt.Errorf("it calls %s at %d places, not at one", a.callee, len(found))
	}
	targets := jumpTargets(code)
	for _, in := range code[found[0]+1 : min(found[0]+1+nearCheck, len(code))] {
		if targets[in.at] && (!a.shared || !a.comeFromCalls(code, in.at, targets)) {
			return nil, fmt.Errorf("a jump leads in between the call of %s and the check behind it", a.callee)
		}
		if in.conditional() {
			return []Site{in.site()}, nil
		}
		if in.Op == x86asm.CALL || in.Op == x86asm.RET || in.Op == x86asm.JMP {
			break
		}
		if r, ok := in.Args[0].(x86asm.Reg); ok && in.Op != x86asm.CMP && in.Op != x86asm.TEST && slices.Contains(a.keep, widen(r)) {
			return nil, fmt.Errorf("%v is overwritten behind the call of %s", r, a.callee)
		}
	}
	return nil, fmt.Errorf("no check behind the call of %s", a.callee)
}

type atGlobalCheck struct {
	reg  x86asm.Reg
	keep []x86asm.Reg
}

func (atGlobalCheck) String() string {
	return "the check of an indirect call's result against a variable"
}

func (a atGlobalCheck) find(_ *Binary, f Func, code []instruction) ([]Site, error) {
	if err := complete(f, code); err != nil {
		return nil, err
	}
	targets := jumpTargets(code)
	var found []Site
	for i, in := range code {
		if !indirect(in) {
			continue
		}
		if s, ok := a.after(code[i+1:min(i+1+nearCheck, len(code))], targets); ok {
			found = append(found, s)
		}
	}
	if len(found) != 1 {
		return nil, fmt.Errorf("%d indirect calls have their result compared with a variable, not one", len(found))
	}
	return found, nil
}

// after looks for the comparison in what follows a call.
func (a atGlobalCheck) after(code []instruction, targets map[Addr]bool) (Site, bool) {
	var global Addr
	for _, in := range code {
		switch {
		case targets[in.at] || in.Op == x86asm.CALL || in.Op == x86asm.RET || in.Op == x86asm.JMP:
			return Site{}, false
		case in.conditional():
			s := in.site()
			s.Global = global
			return s, global != 0
		case in.Op == x86asm.CMP || in.Op == x86asm.TEST:
			m, isMem := in.Args[0].(x86asm.Mem)
			r, isReg := in.Args[1].(x86asm.Reg)
			if !isMem {
				m, isMem = in.Args[1].(x86asm.Mem)
				r, isReg = in.Args[0].(x86asm.Reg)
			}
			global = 0
			if in.Op == x86asm.CMP && isMem && isReg && m.Base == x86asm.RIP && r == a.reg {
				global = in.at + Addr(in.Len) + Addr(m.Disp)
			}
		default:
			if r, ok := in.Args[0].(x86asm.Reg); ok && slices.Contains(a.keep, widen(r)) {
				return Site{}, false
			}
		}
	}
	return Site{}, false
}

// comeFromCalls tells whether whatever jumps to an address does so right after an
// indirect call, whose results it leaves where they are.
func (a atCheck) comeFromCalls(code []instruction, to Addr, targets map[Addr]bool) bool {
	for i, in := range code {
		if t, ok := in.target(); !ok || in.Op == x86asm.CALL || t != to {
			continue
		}
		block := tail(code, i, targets)
		first := i - len(block)
		if first == 0 || !indirect(code[first-1]) || targets[code[first].at] {
			return false
		}
		for _, in := range block {
			if r, ok := in.Args[0].(x86asm.Reg); ok && in.Op != x86asm.CMP && in.Op != x86asm.TEST && slices.Contains(a.keep, widen(r)) {
				return false
			}
		}
	}
	return true
}

// complete checks that all of f's code could be disassembled.
func complete(f Func, code []instruction) error {
	if len(code) > 0 {
		if end := code[len(code)-1]; uint64(end.at)+uint64(end.Len) == uint64(f.Entry)+f.Size {
			return nil
		}
	}
	return fmt.Errorf("it can't be disassembled to its end")
}

// callee names the function that a direct call goes to.
func (b *Binary) callee(in instruction) (string, bool) {
	if in.Op != x86asm.CALL {
		return "", false
	}
	to, ok := in.target()
	if !ok {
		return "", false
	}
	g, ok := b.pclntab.funcOf(to)
	return g.Name, ok && g.Entry == to
}

func indirect(in instruction) bool {
	_, direct := in.target()
	return in.Op == x86asm.CALL && !direct
}

// jumpTargets are where jumps within the code lead.
func jumpTargets(code []instruction) map[Addr]bool {
	targets := map[Addr]bool{}
	for _, in := range code {
		if to, ok := in.target(); ok && in.Op != x86asm.CALL {
			targets[to] = true
		}
	}
	return targets
}

// tail returns the instructions before the RET at code[i] that always run before
// it: back to a call, to another jump, or to where a jump leads.
func tail(code []instruction, i int, targets map[Addr]bool) []instruction {
	first := i
	for first > 0 && !targets[code[first].at] {
		before := code[first-1]
		if _, jumps := before.target(); jumps || before.Op == x86asm.CALL || before.Op == x86asm.JMP || before.Op == x86asm.RET {
			break
		}
		first--
	}
	return code[first:i]
}

// stackSlot returns the offset of an operand in the function's frame.
func stackSlot(a x86asm.Arg) (int64, bool) {
	m, ok := a.(x86asm.Mem)
	return m.Disp, ok && m.Base == x86asm.RSP && m.Index == 0
}

type atNilReturns struct{}

func (atNilReturns) String() string { return "returns of errors" }

func (atNilReturns) find(_ *Binary, f Func, code []instruction) ([]Site, error) {
	if err := complete(f, code); err != nil {
		return nil, err
	}
	targets := jumpTargets(code)
	var sites []Site
	for i, in := range code {
		if in.Op == x86asm.RET && returnsNil(tail(code, i, targets)) {
			sites = append(sites, in.site())
		}
	}
	if len(sites) == 0 {
		return nil, fmt.Errorf("no return of an error was found in it")
	}
	return sites, nil
}

// returnsNil tells whether the first result is nil behind these instructions: AX
// is cleared, or a slot of the frame is, from which it is loaded.
func returnsNil(code []instruction) bool {
	cleared := map[int64]bool{}
	is := map[x86asm.Reg]bool{} // registers that hold nil
	for _, in := range code {
		to, toReg := in.Args[0].(x86asm.Reg)
		if toReg {
			to = widen(to)
		}
		switch {
		case in.Op == x86asm.XOR && toReg && in.Args[0] == in.Args[1]:
			is[to] = true
		case in.Op == x86asm.MOV && toReg:
			from, isReg := in.Args[1].(x86asm.Reg)
			slot, isSlot := stackSlot(in.Args[1])
			is[to] = isReg && is[widen(from)] || isSlot && cleared[slot]
		case in.Op == x86asm.MOV:
			if slot, ok := stackSlot(in.Args[0]); ok {
				value, constant := in.Args[1].(x86asm.Imm)
				cleared[slot] = constant && value == 0
			}
		case in.Op == x86asm.ADD || in.Op == x86asm.CMP || in.Op == x86asm.TEST || in.Op == x86asm.PUSH || in.Op == x86asm.NOP:
		case toReg:
			is[to] = false
		}
	}
	return is[x86asm.RAX]
}

type atDeferred struct{}

func (atDeferred) String() string { return "the closure that it defers" }

// resultRegs hold a Go function's first integer results.
var resultRegs = []x86asm.Reg{x86asm.RAX, x86asm.RBX, x86asm.RCX}

func (atDeferred) find(b *Binary, f Func, code []instruction) ([]Site, error) {
	if err := complete(f, code); err != nil {
		return nil, err
	}
	closure, err := b.deferredClosure(f, code)
	if err != nil {
		return nil, err
	}
	// With open-coded defers the function itself calls the closure before it
	// returns, then loads its results from its frame.
	var slots []uint32
	targets := jumpTargets(code)
	for i, in := range code {
		if in.Op != x86asm.RET {
			continue
		}
		block := tail(code, i, targets)
		first := slices.IndexFunc(code, func(in instruction) bool { return in.at == code[i].at }) - len(block)
		if first == 0 || !indirect(code[first-1]) {
			continue
		}
		loaded := loadedResults(block)
		if loaded == nil || slots != nil && !slices.Equal(slots, loaded) {
			return nil, fmt.Errorf("where its results are kept while %s runs is not clear", closure.Name)
		}
		slots = loaded
	}
	if slots == nil {
		return nil, fmt.Errorf("it does not call %s before it returns", closure.Name)
	}
	raw := b.bytes(closure.Entry, closure.Size)
	s, err := b.entry(disassemble(closure.Entry, raw))
	if err != nil {
		return nil, err
	}
	s.Func, s.Caller = closure, f
	for _, slot := range slots {
		s.Results = append(s.Results, slot+8) // the return address lies below the frame
	}
	return []Site{s}, nil
}

// deferredClosure finds the only closure of f that f refers to.
func (b *Binary) deferredClosure(f Func, code []instruction) (Func, error) {
	var names []string
	for _, kind := range []string{".func1", ".func2", ".func3", ".deferwrap1"} {
		names = append(names, f.Name+kind)
	}
	funcs, err := b.Functions(names)
	if err != nil {
		return Func{}, err
	}
	var found []Func
	for _, g := range funcs {
		if slices.ContainsFunc(code, func(in instruction) bool {
			m, ok := in.Args[1].(x86asm.Mem)
			return in.Op == x86asm.LEA && ok && m.Base == x86asm.RIP && in.at+Addr(in.Len)+Addr(m.Disp) == g.Entry
		}) {
			found = append(found, g)
		}
	}
	if len(found) != 1 {
		return Func{}, fmt.Errorf("it has %d closures that it might defer, not one", len(found))
	}
	return found[0], nil
}

// loadedResults returns the slots from which the result registers are loaded.
func loadedResults(code []instruction) []uint32 {
	slots := make([]uint32, len(resultRegs))
	for i := range slots {
		slots[i] = Absent
	}
	for _, in := range code {
		r, ok := in.Args[0].(x86asm.Reg)
		i := slices.Index(resultRegs, widen(r))
		if !ok || i < 0 || in.Op != x86asm.MOV {
			continue
		}
		if slot, ok := stackSlot(in.Args[1]); ok && slot >= 0 && slot < 1<<16 {
			slots[i] = uint32(slot)
		}
	}
	if slices.Contains(slots, Absent) {
		return nil
	}
	return slots
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
