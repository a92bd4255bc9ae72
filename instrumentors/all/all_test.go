package all

import (
	"testing"

	"github.com/cilium/ebpf/asm"

	"github.com/zerospan/zerospan/instrumentors"
)

// TestProgramsUseTheirOwnStack: see zs_use_own_stack in bpf/probe.h. Only a
// preemptible kernel shows what happens otherwise, so that this can't be left to
// the live tests.
func TestProgramsUseTheirOwnStack(t *testing.T) {
	for _, spec := range instrumentors.All() {
		coll, err := spec.Load()
		if err != nil {
			t.Fatal(err)
		}
		for name, p := range coll.Programs {
			found := false
			for _, in := range p.Instructions {
				if in.IsBuiltinCall() && asm.BuiltinFunc(in.Constant) == asm.FnTailCall {
					found = true
				}
			}
			if !found {
				t.Errorf("%s of %s: it does not call zs_cookie or zs_use_own_stack", name, spec.Name)
			}
		}
	}
}
