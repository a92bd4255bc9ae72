package kernels

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// deadline is for one machine. Most of its time it verifies programs, emulated.
const deadline = 3 * time.Minute

// stage builds what the guest needs into a folder.
func stage(t *testing.T, root string) string {
	t.Helper()
	dir := t.TempDir()
	build := func(in, out, toolchain string, args ...string) {
		cmd := exec.Command("go", append([]string{"build", "-buildvcs=false", "-trimpath", "-ldflags=-s -w", "-o", filepath.Join(dir, out)}, args...)...)
		cmd.Dir = filepath.Join(root, in)
		cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
		if toolchain != "" {
			cmd.Env = append(cmd.Env, "GOTOOLCHAIN=go"+toolchain)
		}
		if msg, err := cmd.CombinedOutput(); err != nil {
			t.Fatalf("%v: %v\n%s", cmd.Args, err, msg)
		}
	}
	build("", "zerospan", "", "./cmd/zerospan")
	build("", "guest", "", "./test/kernels/guest")
	for name, target := range Targets {
		build("test/targets/"+target.Dir, "targets/"+name, target.Go, ".")
	}
	// Programs that belong to no Spec.
	objects, err := filepath.Glob(filepath.Join(root, "*/*_bpfel.o"))
	if err != nil || len(objects) == 0 {
		t.Fatalf("no BPF objects: %v", err)
	}
	for _, o := range objects {
		raw, err := os.ReadFile(o)
		if err == nil {
			err = os.MkdirAll(filepath.Join(dir, "objects"), 0o755)
		}
		if err == nil {
			err = os.WriteFile(filepath.Join(dir, "objects", filepath.Base(filepath.Dir(o))+".o"), raw, 0o644)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

// pack writes an initramfs with the folder as /zs: an archive in cpio's newc format,
// not compressed, since the machine that unpacks it is emulated.
func pack(dir, out string) error {
	var b bytes.Buffer
	pad := func() { b.Write(make([]byte, -b.Len()&3)) }
	inode := 0
	add := func(name string, mode int, content []byte) {
		inode++
		// magic, inode, mode, uid, gid, links, time, size, device (2), special (2), length of the name, check
		fmt.Fprintf(&b, "070701%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x",
			inode, mode, 0, 0, 1, 0, len(content), 0, 0, 0, 0, len(name)+1, 0)
		b.WriteString(name + "\x00")
		pad()
		b.Write(content)
		pad()
	}
	const folder, program = 0o040755, 0o100755
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		name := "zs" + strings.TrimPrefix(path, dir)
		if d.IsDir() {
			add(name, folder, nil)
			return nil
		}
		content, err := os.ReadFile(path)
		add(name, program, content)
		return err
	})
	if err != nil {
		return err
	}
	add("TRAILER!!!", 0, nil)
	return os.WriteFile(out, b.Bytes(), 0o644)
}

// report is what a guest said.
type report struct {
	release  string
	programs []*Program
	calls    []*Call
	trace    *Trace
	doctor   string
	kernel   []string
	failed   []string
	end      bool
	took     time.Duration
}

// run runs a guest on this machine, or qemu, until it has ended.
func run(t *testing.T, console, name string, args ...string) *report {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), deadline)
	defer cancel()
	begun := time.Now()
	cmd := exec.CommandContext(ctx, name, args...)
	out, err := cmd.Output()
	r := &report{took: time.Since(begun)}
	if e := os.WriteFile(console, out, 0o644); e != nil {
		t.Error(e)
	}
	if err != nil {
		t.Errorf("after %.0f s: %v; the console is in %s", r.took.Seconds(), err, console)
		var exit *exec.ExitError
		if errors.As(err, &exit) {
			t.Logf("%s", exit.Stderr)
		}
	}
	var broken []string
	for line := range strings.Lines(string(out)) {
		_, text, ok := strings.Cut(line, Prefix) // the kernel may have begun the line
		if !ok {
			if Complaint(line) {
				r.kernel = append(r.kernel, strings.TrimSpace(line))
			}
			continue
		}
		var l Line
		if err := json.Unmarshal([]byte(text), &l); err != nil {
			broken = append(broken, fmt.Sprintf("%v in %q", err, text))
			continue
		}
		switch {
		case l.Release != "":
			r.release = l.Release
		case l.Program != nil:
			r.programs = append(r.programs, l.Program)
		case l.Call != nil:
			r.calls = append(r.calls, l.Call)
		case l.Trace != nil:
			r.trace = l.Trace
		case l.Doctor != "":
			r.doctor = l.Doctor
		case l.Kernel != "":
			r.kernel = append(r.kernel, l.Kernel)
		case l.Failed != "":
			r.failed = append(r.failed, l.Failed)
		case l.End:
			r.end = true
		}
	}
	if len(r.kernel) == 0 { // a kernel that complains writes into the guest's lines
		for _, b := range broken {
			t.Error(b)
		}
	}
	return r
}

// boot runs the guest on a kernel of its own. There may be no KVM.
func boot(t *testing.T, console, kernel, initramfs, mode string) *report {
	t.Helper()
	return run(t, console, "qemu-system-x86_64", "-M", "q35", "-accel", "tcg,thread=multi", "-cpu", "max", "-smp", "2", "-m", "512",
		"-nodefaults", "-nographic", "-serial", "stdio", "-no-reboot", "-kernel", kernel, "-initrd", initramfs,
		"-append", strings.TrimSpace("console=ttyS0 rdinit=/zs/guest quiet loglevel=1 oops=panic panic=-1 "+mode))
}

// doctorSays returns what zerospan doctor found of an item: its status.
func (r *report) doctorSays(item string) string {
	for line := range strings.Lines(r.doctor) {
		if len(line) > 12 && strings.HasPrefix(line[12:], item+"  ") {
			return strings.TrimSpace(line[:12])
		}
	}
	return "?"
}
