package doctor

import (
	"bufio"
	"fmt"
	"io"
	"os"
	"runtime"
	"sync"
	"unsafe"

	"golang.org/x/sys/unix"
)

// ChildCommand is the hidden command with which this executable starts itself
// as a helper process.
const ChildCommand = "doctor-child"

// Threads is how many threads of a helper process call the probed function.
const Threads = 4

// mark is what the probed function's argument points to.
const mark = 0x7a65726f7370616e

func init() {
	if len(os.Args) > 1 && os.Args[1] == ChildCommand {
		runtime.LockOSThread() // main then runs on the process's first thread
	}
}

// Child is what a helper process runs: it answers commands, one a line, until
// its input ends, so that none outlives the process that started it.
func Child(in io.Reader, out io.Writer) error {
	lines := bufio.NewScanner(in)
	for lines.Scan() {
		var err error
		switch lines.Text() {
		case "call":
			callOnThreads()
		case "return":
			callReturning()
		case "sandbox":
			err = sandbox()
		}
		if err != nil {
			fmt.Fprintln(out, oneLine(err))
			continue
		}
		fmt.Fprintln(out, "ok")
	}
	return lines.Err()
}

// callOnThreads calls the probed function once on each of Threads threads, of
// which the first is the process's own.
func callOnThreads() {
	var ready, ended sync.WaitGroup
	ready.Add(Threads - 1)
	for range Threads - 1 {
		ended.Go(func() {
			runtime.LockOSThread()
			defer runtime.UnlockOSThread()
			ready.Done()
			ready.Wait() // none gives its thread to another
			callProbed()
		})
	}
	callProbed()
	ended.Wait()
}

func callProbed() {
	v := uint64(mark)
	probed(&v)
}

// probed has a stack check and a push behind it, as the functions that zerospan probes have.
//
//go:noinline
func probed(p *uint64) { touch(p) }

//go:noinline
func touch(p *uint64) { *p++ }

// callReturning calls the assembly function on which return probes are tried.
func callReturning()

const probedName, returningName = "github.com/zerospan/zerospan/doctor.probed", "github.com/zerospan/zerospan/doctor.returning"

// The numbers between x86-64's own system calls and those that all machines
// share are only used by the kernel's probe trampolines: uretprobe is 335, since
// 6.11, and uprobe 336. Sandboxes whose lists are older do not allow them.
const firstTrampolineCall, firstSharedCall = 335, 424

// sandbox kills this process when its first thread uses a system call that an
// older sandbox does not know.
func sandbox() error {
	filter := []unix.SockFilter{
		{Code: unix.BPF_LD | unix.BPF_W | unix.BPF_ABS, K: 0}, // seccomp_data.nr
		{Code: unix.BPF_JMP | unix.BPF_JGE | unix.BPF_K, K: firstTrampolineCall, Jf: 1},
		{Code: unix.BPF_JMP | unix.BPF_JGE | unix.BPF_K, K: firstSharedCall, Jf: 1},
		{Code: unix.BPF_RET | unix.BPF_K, K: unix.SECCOMP_RET_ALLOW},
		{Code: unix.BPF_RET | unix.BPF_K, K: unix.SECCOMP_RET_KILL_PROCESS},
	}
	if err := unix.Prctl(unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0); err != nil {
		return fmt.Errorf("set no_new_privs: %w", err)
	}
	program := unix.SockFprog{Len: uint16(len(filter)), Filter: &filter[0]}
	if _, _, errno := unix.Syscall(unix.SYS_SECCOMP, unix.SECCOMP_SET_MODE_FILTER, 0, uintptr(unsafe.Pointer(&program))); errno != 0 {
		return fmt.Errorf("set a seccomp filter: %w", errno)
	}
	return nil
}
