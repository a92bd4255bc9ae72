// Command zerospan traces running processes without touching their code.
package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/signal"
	"reflect"
	"runtime/debug"
	"strings"
	"syscall"

	"github.com/alecthomas/kong"
	"go.yaml.in/yaml/v3"

	_ "github.com/zerospan/zerospan/instrumentors/all"
	"github.com/zerospan/zerospan/telemetry"
)

type cli struct {
	Attach  attachCmd  `cmd:"" default:"withargs" help:"Trace processes (the default command)."`
	Explain explainCmd `cmd:"" help:"Say what would be attached to a process, and why not more."`
	Doctor  doctorCmd  `cmd:"" help:"Say whether this machine lets zerospan trace, and what is missing."`
	Demo    demoCmd    `cmd:"" help:"Start a small bundled service with traffic and trace it."`
	Version versionCmd `cmd:"" help:"Print the version."`

	DemoService demoServiceCmd `cmd:"" hidden:"" help:"The service that demo traces."`
	DoctorChild doctorChildCmd `cmd:"" hidden:"" help:"The process that doctor tries things on."`

	Config  kong.ConfigFlag `help:"Read flags from a YAML file." placeholder:"FILE"`
	Verbose bool            `short:"v" help:"Log more."`
}

const description = `Traces and RED metrics of running processes, without touching their code.

  zerospan --pid 1234                                        live lines, and a summary at the end
  zerospan --pid 1234 --otlp-endpoint http://localhost:4317  to Jaeger, a collector, anything OTLP
  zerospan --exe '*/checkout' --metrics-listen :9464         by executable; Prometheus metrics
  zerospan attach --help                                     all flags`

type versionCmd struct{}

func (versionCmd) Run() error {
	_, err := fmt.Println("zerospan", telemetry.Version)
	return err
}

// Exit codes.
const (
	exitFailed = 1
	exitUsage  = 2
)

func main() {
	os.Exit(run(os.Args[1:], os.Stdout, os.Stderr))
}

func run(args []string, stdout, stderr io.Writer) int {
	// An agent beside other people's workloads: memory over speed of collection.
	debug.SetGCPercent(50)
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	context.AfterFunc(ctx, stop) // a second signal ends it at once

	var c cli
	exited := -1
	parser, err := kong.New(&c,
		kong.Name("zerospan"),
		kong.Description(description),
		kong.UsageOnError(),
		kong.ConfigureHelp(kong.HelpOptions{Compact: true}),
		kong.DefaultEnvars("ZEROSPAN"),
		kong.Configuration(yamlConfig),
		kong.Writers(stdout, stderr),
		kong.Exit(func(code int) { exited = code; panic(exitPanic{}) }),
	)
	if err != nil {
		fmt.Fprintln(stderr, "zerospan:", err)
		return exitFailed
	}
	kctx, err := parse(parser, args)
	if exited >= 0 { // --help and the like
		return exited
	}
	if err != nil {
		fmt.Fprintf(stderr, "zerospan: %v: see zerospan --help\n", err)
		return exitUsage
	}
	level := slog.LevelInfo
	if c.Verbose {
		level = slog.LevelDebug
	}
	log := slog.New(slog.NewTextHandler(stderr, &slog.HandlerOptions{Level: level, ReplaceAttr: shortTime}))
	streams := &streams{out: stdout, err: stderr}
	err = kctx.Run(streams, log, bindContext{ctx})
	var usage usageError
	switch {
	case err == nil:
		return 0
	case errors.Is(err, errSaid):
		return exitFailed
	case errors.As(err, &usage):
		fmt.Fprintf(stderr, "zerospan: %v: see zerospan --help\n", err)
		return exitUsage
	default:
		fmt.Fprintf(stderr, "zerospan: %s\n", oneLine(err))
		return exitFailed
	}
}

// yamlConfig reads flags from YAML, with keys named as the flags are.
func yamlConfig(r io.Reader) (kong.Resolver, error) {
	var values map[string]any
	if err := yaml.NewDecoder(r).Decode(&values); err != nil && !errors.Is(err, io.EOF) {
		return nil, err
	}
	keys := make(map[string]any, len(values))
	for k, v := range values {
		keys[strings.ReplaceAll(k, "-", "_")] = v // the form that kong looks up
	}
	asJSON, err := json.Marshal(keys)
	if err != nil {
		return nil, err
	}
	return kong.JSON(bytes.NewReader(asJSON))
}

type exitPanic struct{}

func parse(p *kong.Kong, args []string) (ctx *kong.Context, err error) {
	defer func() {
		if r := recover(); r != nil && reflect.TypeOf(r) != reflect.TypeOf(exitPanic{}) {
			panic(r)
		}
	}()
	return p.Parse(args)
}

// streams are the program's outputs: calls to out, all else to err.
type streams struct{ out, err io.Writer }

// bindContext carries the context that ends with SIGINT or SIGTERM.
type bindContext struct{ context.Context }

// usageError is a wrong command line.
type usageError string

func (e usageError) Error() string { return string(e) }

// errSaid is a failure whose reason is on standard output already.
var errSaid = errors.New("failed")

func oneLine(err error) string { return strings.Join(strings.Fields(err.Error()), " ") }

func shortTime(groups []string, a slog.Attr) slog.Attr {
	if len(groups) == 0 && a.Key == slog.TimeKey {
		a.Value = slog.StringValue(a.Value.Time().Format("15:04:05.000"))
	}
	return a
}
