package agent

import (
	"fmt"
	"os"
	"runtime"
	"slices"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"github.com/cilium/ebpf/features"
	"github.com/cilium/ebpf/link"
	"golang.org/x/sys/unix"

	"github.com/zerospan/zerospan/offsets"
)

// kernel is what the running kernel can do, as it turned out when it was tried.
type kernel struct {
	// multi: uprobe_multi links (Linux 6.6), whose filter finds all threads of a
	// process (6.10: before, it found one). Otherwise each site is a perf event,
	// which takes CAP_SYS_ADMIN, and a tenth of a second to remove.
	multi bool
	// cookies: bpf_get_attach_cookie (5.15). Otherwise programs look up what a
	// cookie would say, by process and address.
	cookies bool
}

// tryKernel finds out; what is to be avoided is taken for absent.
func tryKernel(avoid []string) (k kernel) {
	k.cookies = !slices.Contains(avoid, "cookies") && features.HaveProgramHelper(ebpf.Kprobe, asm.FnGetAttachCookie) == nil
	k.multi = k.cookies && !slices.Contains(avoid, "multi") && tryMulti() == nil
	return k
}

// fit changes a map to what the kernel wants. Old ones warn in their log of maps that
// take memory while a program runs (Linux 5.10 does; 6.1 does not).
func (k kernel) fit(m *ebpf.MapSpec) {
	if m.Type == ebpf.Hash && !k.cookies {
		m.Flags &^= unix.BPF_F_NO_PREALLOC
	}
}

//go:noinline
func probed() {}

// probedName is probed as the function table has it.
const probedName = "github.com/zerospan/zerospan/agent.probed"

// tryMulti attaches a uprobe_multi link to this process and calls the function from
// another thread than the first.
func tryMulti() error {
	hits, err := ebpf.NewMap(&ebpf.MapSpec{Name: "zs_try", Type: ebpf.Array, KeySize: 4, ValueSize: 8, MaxEntries: 1})
	if err != nil {
		return err
	}
	defer func() { _ = hits.Close() }()
	p, err := ebpf.NewProgram(&ebpf.ProgramSpec{
		Name: "zs_try", Type: ebpf.Kprobe, AttachType: ebpf.AttachTraceUprobeMulti, License: "Dual BSD/GPL",
		Instructions: asm.Instructions{
			asm.StoreImm(asm.RFP, -4, 0, asm.Word),
			asm.LoadMapPtr(asm.R1, hits.FD()),
			asm.Mov.Reg(asm.R2, asm.RFP),
			asm.Add.Imm(asm.R2, -4),
			asm.FnMapLookupElem.Call(),
			asm.JEq.Imm(asm.R0, 0, "out"),
			asm.Mov.Imm(asm.R1, 1),
			asm.StoreMem(asm.R0, 0, asm.R1, asm.DWord),
			asm.Mov.Imm(asm.R0, 0).WithSymbol("out"),
			asm.Return(),
		},
	})
	if err != nil {
		return err
	}
	defer func() { _ = p.Close() }()
	offset, err := ownFunction(probedName)
	if err != nil {
		return err
	}
	self, err := link.OpenExecutable("/proc/self/exe")
	if err != nil {
		return err
	}
	k, err := self.UprobeMulti(nil, p, &link.UprobeMultiOptions{Addresses: []uint64{offset}, PID: uint32(os.Getpid())})
	if err != nil {
		return err
	}
	defer func() { _ = k.Close() }()
	done := make(chan struct{})
	go func() {
		defer close(done)
		runtime.LockOSThread() // never unlocked: the thread ends with the goroutine
		if os.Getpid() != unix.Gettid() {
			probed()
			return
		}
		other := make(chan struct{}) // this one holds the first thread
		go func() { defer close(other); probed() }()
		<-other
		runtime.UnlockOSThread()
	}()
	<-done
	var seen uint64
	if err := hits.Lookup(uint32(0), &seen); err != nil {
		return err
	}
	if seen == 0 {
		return fmt.Errorf("the process filter of uprobe_multi misses threads: %w", ebpf.ErrNotSupported)
	}
	return nil
}

// ownFunction returns the file offset of a probe site in this executable.
func ownFunction(name string) (offset uint64, err error) {
	f, err := os.Open("/proc/self/exe")
	if err != nil {
		return 0, err
	}
	defer f.Close()
	b, err := offsets.Open(f)
	if err != nil {
		return 0, err
	}
	defer func() { _ = b.Close() }()
	err = b.Guard(func() error {
		funcs, err := b.Functions([]string{name})
		if err != nil {
			return err
		}
		fn, ok := funcs[name]
		if !ok {
			return fmt.Errorf("function %s is not there", name)
		}
		sites, err := b.Sites(fn, offsets.AtEntry())
		if err == nil {
			offset = sites[0].FileOffset
		}
		return err
	})
	return offset, err
}
