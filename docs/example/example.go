// Package example traces the commands that Go programs run with os/exec. It is
// the worked example of docs/adding-an-instrumentor.md and no part of zerospan.
package example

import (
	"cmp"
	"errors"
	"path"
	"strconv"
	"unsafe"

	"go.opentelemetry.io/otel/semconv/v1.43.0"
	"golang.org/x/arch/x86/x86asm"
	"golang.org/x/sys/unix"

	"github.com/zerospan/zerospan/bpf"
	"github.com/zerospan/zerospan/instrumentors"
	"github.com/zerospan/zerospan/offsets"
	"github.com/zerospan/zerospan/telemetry"
)

func init() {
	const run, wait = "os/exec.(*Cmd).Run", "os/exec.(*Cmd).Wait"
	instrumentors.Register(&instrumentors.Spec{
		Name:    "os-exec",
		Title:   "Commands run by Go's os/exec",
		Library: "os/exec",
		Docs: []string{
			"Go 1.18 to 1.27, amd64",
			"`(*Cmd).Run`, `Output` and `CombinedOutput`; not seen: `Start` and `Wait` called by the program itself",
			"attributes: `process.executable.name`, `process.exit.code`, `error.type` (the exit code, the signal's name, the error's type)",
			"the duration ends with the process; the rest of its output is not waited for",
		},
		Load: loadExec,
		Sites: []instrumentors.Site{
			{Program: "run", Group: instrumentors.Required, Role: instrumentors.Start, Symbols: []string{run}, At: offsets.AtEntry()},
			{Program: "run_started", Group: instrumentors.Required, Role: instrumentors.End, Symbols: []string{run},
				At: offsets.AtCheckAfterCall("os/exec.(*Cmd).Start", x86asm.RAX)},
			{Program: "run_waited", Group: instrumentors.Required, Role: instrumentors.End, Symbols: []string{wait},
				At: offsets.AtCheckAfterCall("os.(*Process).wait", x86asm.RAX, x86asm.RBX)},
		},
		Layout: layout,
		Metric: &telemetry.Metric{
			Name:        "zerospan.process.run.duration",
			Description: "Duration of commands that the process ran.",
			Bounds:      []float64{0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 5, 10, 60},
		},
		Decode: decode,
		Folded: func(_ uint8, failed bool) []telemetry.Attribute {
			if failed {
				return []telemetry.Attribute{semconv.ErrorTypeOther}
			}
			return nil
		},
	})
}

func layout(b *offsets.Binary, _ *instrumentors.Plan) (any, []offsets.Field, error) {
	l := &execLayout{}
	return l, append(instrumentors.GoRuntime(b, (*bpf.SharedGoRuntimeLayout)(unsafe.Pointer(&l.Rt))),
		offsets.Field{Into: &l.Path, Paths: []string{"os/exec.Cmd.Path"}, Loses: "process.executable.name"},
		offsets.Field{Into: &l.Context, Paths: []string{"os/exec.Cmd.ctx"}, Loses: "parents that a context leads to"},
		offsets.Field{Into: &l.Status, Paths: []string{"os.ProcessState.status"}, Required: true},
	), nil
}

var (
	errMalformed = errors.New("malformed record")
	otherError   = semconv.ErrorTypeOther.Value.AsString()
)

const headSize = int(unsafe.Offsetof(execCall{}.Path))

// decode turns a record of probe.bpf.c into a call. The call's strings alias raw.
func decode(raw []byte, exe instrumentors.Image, c *telemetry.Call) error {
	if len(raw) < headSize {
		return errMalformed
	}
	r := (*execCall)(unsafe.Pointer(unsafe.SliceData(raw)))
	if int(r.PathLen) > len(raw)-headSize {
		return errMalformed
	}
	exitCode, errorType := -1, ""
	status := unix.WaitStatus(r.Status)
	switch result := execResult(r.Result); {
	case result == execResultRESULT_FAILED:
		errorType = cmp.Or(exe.TypeName(r.ErrorType), otherError)
	case result == execResultRESULT_EXITED && status.Exited():
		if exitCode = status.ExitStatus(); exitCode != 0 {
			errorType = strconv.Itoa(exitCode)
		}
	case result == execResultRESULT_EXITED:
		errorType = cmp.Or(unix.SignalName(status.Signal()), otherError)
	}

	c.Kind = telemetry.KindClient // as the conventions have it for who calls a command
	c.Operation = "exec"
	c.Error = errorType != ""
	// The metric's attributes first.
	if r.PathLen > 0 {
		file := unsafe.String(unsafe.SliceData(raw[headSize:]), int(r.PathLen))
		c.Operation = path.Base(telemetry.CleanUTF8(file))
		c.Add(semconv.ProcessExecutableName(c.Operation))
	}
	if c.Error {
		c.Add(semconv.ErrorTypeKey.String(errorType))
	}
	c.Dims = len(c.Attrs)
	if exitCode >= 0 {
		c.Add(semconv.ProcessExitCode(exitCode))
	}
	return nil
}
