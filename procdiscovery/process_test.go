package procdiscovery

import (
	"context"
	"errors"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"
)

func TestContainerID(t *testing.T) {
	const id = "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef"
	for text, want := range map[string]string{
		"0::/system.slice/docker-" + id + ".scope\n":                                                       id,
		"12:cpu:/docker/" + id + "\n0::/\n":                                                                id,
		"0::/kubepods.slice/kubepods-besteffort.slice/kubepods-pod1.slice/cri-containerd-" + id + ".scope": id,
		"3:memory:/kubepods/besteffort/pod7c1a/" + id + "\n":                                               id,
		"0::/machine.slice/libpod-" + id + ".scope/container\n":                                            id,
		"0::/user.slice\n": "", "": "", ":::\n::": "", "0::/docker/" + id[1:]: "",
	} {
		if got := containerID(text); got != want {
			t.Errorf("%q: %q, want %q", text, got, want)
		}
	}
}

func FuzzProcFiles(f *testing.F) {
	f.Add("1 (a b) c) S 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 99 20 21 22 23 24 140737488347136")
	f.Add("0::/docker/0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef")
	f.Add("00400000-00452000 r-xp 00001000 08:02 7 /usr/bin/x")
	f.Fuzz(func(t *testing.T, s string) {
		_, _, _ = startAndStack([]byte(s)) // only a panic is a failure
		_, _, _ = mapping(s, 7)
		if id := containerID(s); id != "" && len(id) != 64 {
			t.Errorf("container id %q", id)
		}
		if c := clean(s); strings.ContainsAny(c, "\x00\x1b\n\u009b") {
			t.Errorf("%q is not clean", c)
		}
	})
}

func TestInspectAndWait(t *testing.T) {
	cmd := exec.Command("sleep", "60")
	cmd.Env = append(os.Environ(), "OTEL_SERVICE_NAME=my-service\x1b[31m")
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	p, err := Inspect(cmd.Process.Pid)
	if err != nil {
		t.Fatal(err)
	}
	if p.Name() != "sleep" && !strings.Contains(p.Exe, "coreutils") || p.StartTime == 0 || !p.Alive() {
		t.Errorf("%+v", p)
	}
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	done := make(chan error, 1)
	go func() { done <- p.WaitExit(ctx) }()
	_ = cmd.Process.Kill()
	_ = cmd.Wait()
	if err := <-done; err != nil {
		t.Error(err)
	}
	if p.Alive() {
		t.Error("it is dead")
	}
	if _, err := Inspect(cmd.Process.Pid); !errors.Is(err, ErrNotFound) {
		t.Errorf("%v, want ErrNotFound", err)
	}
}

func TestWaitIsCancelled(t *testing.T) {
	p, err := Inspect(os.Getpid())
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	if err := p.WaitExit(ctx); !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
}
