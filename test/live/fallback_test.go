package live

import (
	"strconv"
	"testing"
)

// TestFallbacks: what older kernels need instead of what this one has. They are
// told to do without here; kernels that really lack it are in test/kernels.
func TestFallbacks(t *testing.T) {
	for _, avoid := range []string{"multi", "multi,cookies"} {
		t.Run(avoid, func(t *testing.T) {
			args := []string{"--avoid", avoid, "--print", "json"}
			t.Run("server", func(t *testing.T) {
				checkOutcomes(t, build{goVersion: "1.24.9", dir: "nethttp", mode: "pie"}, outcomes, func(pid int) *tracer {
					return trace(t, append(args, "--pid", strconv.Itoa(pid))...)
				})
			})
			t.Run("client", func(t *testing.T) {
				checkClient(t, build{goVersion: "1.22.12", dir: "client", mode: "stripped"}, clientOperations, args...)
			})
			t.Run("tree", func(t *testing.T) {
				checkTree(t, build{goVersion: "1.26.5", dir: "tree", mode: "pie"}, 2000, 16, args...)
			})
		})
	}
}
