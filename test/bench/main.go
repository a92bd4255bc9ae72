// Command bench measures what tracing costs: the target's CPU per request, its
// throughput, zerospan's own CPU and memory, hits per request and calls lost.
// All modes run interleaved in one go, beside a null run (nothing against
// nothing) that shows how far the machine's noise reaches.
package main

import (
	"bufio"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/exec"
	"sort"
	"strconv"
	"strings"
	"time"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"
)

var (
	rounds   = flag.Int("rounds", 5, "rounds of all modes")
	seconds  = flag.Float64("seconds", 3, "length of one measurement")
	conns    = flag.Int("conns", 16, "keep-alive connections")
	workload = flag.String("workload", "hello,realistic,call,client", "what to measure")
	write    = flag.String("write", "", "write the results as Markdown to this file")
	role     = flag.String("role", "", "gate: compare counts with the committed ones; others are internal")
	address  = flag.String("address", "", "internal")
	file     = flag.String("figures", "test/bench/figures.json", "what the gate compares with")
	update   = flag.Bool("update", false, "write the figures instead")
	pid      = flag.Int("pid", 0, "internal")
	gate     = flag.Bool("gate", false, "fail when a figure that is not a time misses its goal")
)

func main() {
	flag.Parse()
	var err error
	switch *role {
	case "load":
		err = runLoad(*address, *workload, *conns, time.Duration(*seconds*float64(time.Second)))
	case "sink":
		err = runSink()
	case "serve":
		err = runServe()
	case "counted":
		err = runCounted(*pid, *address)
	case "gate":
		err = runGate(*file, *update)
	default:
		err = run()
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	}
}

// child is a process that says one line when it is ready.
type child struct {
	*exec.Cmd
	out   *bufio.Reader
	stdin io.WriteCloser
	err   *strings.Builder
}

func start(name string, args ...string) (*child, error) {
	c := &child{Cmd: exec.Command(name, args...), err: &strings.Builder{}}
	c.Stderr = c.err
	out, err := c.StdoutPipe()
	if err != nil {
		return nil, err
	}
	if c.stdin, err = c.StdinPipe(); err != nil {
		return nil, err
	}
	c.out = bufio.NewReader(out)
	return c, c.Start()
}

func (c *child) line() (string, error) {
	s, err := c.out.ReadString('\n')
	if err != nil {
		return "", fmt.Errorf("%s: %w: %s", c.Path, err, c.err)
	}
	return strings.TrimSpace(s), nil
}

// cpu returns the process's CPU time so far, user and system.
func (c *child) cpu() time.Duration {
	var ts unix.Timespec
	// A process's CPU clock: see CPUCLOCK_SCHED in the kernel's posix-timers.h.
	if err := unix.ClockGettime(int32(^c.Process.Pid<<3|2), &ts); err != nil {
		return 0
	}
	return time.Duration(ts.Nano())
}

func (c *child) memory() (rss int) {
	data, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", c.Process.Pid))
	if err != nil {
		return 0
	}
	for line := range strings.Lines(string(data)) {
		if v, ok := strings.CutPrefix(line, "VmRSS:"); ok {
			rss, _ = strconv.Atoi(strings.Fields(v)[0])
		}
	}
	return rss
}

func (c *child) stop() {
	c.stdin.Close()
	_ = c.Process.Signal(os.Interrupt)
	_ = c.Wait()
}

// mode is one way to run zerospan, or none.
type mode struct {
	name string
	args func(sink string) []string
}

var modes = []mode{
	{"none", nil},
	{"null", nil},
	{"otlp", func(sink string) []string { return []string{"--otlp-endpoint", sink} }},
	{"metrics", func(sink string) []string { return []string{"--otlp-endpoint", sink, "--no-traces"} }},
}

// result is one measurement.
type result struct {
	requests, failed int
	calls            int // that the requests must give
	elapsed          time.Duration
	target, zerospan time.Duration // CPU
	memory           int           // KiB
	spans            int
	balance          string
	stop             time.Duration
}

func (r result) rate() float64 { return float64(r.requests) / r.elapsed.Seconds() }

func (r result) perRequest(d time.Duration) float64 {
	return float64(d.Nanoseconds()) / 1000 / float64(r.requests)
}

func run() error {
	if os.Geteuid() != 0 {
		return errors.New("run as root: probes need it")
	}
	self, err := os.Executable()
	if err != nil {
		return err
	}
	target, cleanup, err := buildTarget()
	if err != nil {
		return err
	}
	defer cleanup()
	var report strings.Builder
	missed := false
	for _, w := range strings.Split(*workload, ",") {
		r, err := measure(self, target, w)
		if err != nil {
			return err
		}
		missed = r.write(&report, w) || missed
	}
	fmt.Print(report.String())
	if *write != "" {
		if err := os.WriteFile(*write, []byte(report.String()), 0o644); err != nil {
			return err
		}
	}
	if *gate && missed {
		return errors.New("a figure misses its goal")
	}
	return nil
}

type report struct {
	results    map[string][]result
	hits       map[string]float64
	firstSpan  []time.Duration
	idle       float64 // share of a core
	idleMemory int
}

func measure(self, target, workload string) (*report, error) {
	w, stop, err := newWork(self, target, workload)
	if err != nil {
		return nil, err
	}
	defer stop()
	t := w.target
	sink, err := start(self, "-role", "sink")
	if err != nil {
		return nil, err
	}
	defer sink.stop()
	sinkURL, err := sink.line()
	if err != nil {
		return nil, err
	}
	rep := &report{results: map[string][]result{}}
	if _, err := w.load(1); err != nil { // warm up
		return nil, err
	}
	for round := range *rounds {
		for i := range modes {
			m := modes[(i+round)%len(modes)]
			r, err := rep.once(w, m, sink, sinkURL)
			if err != nil {
				return nil, err
			}
			rep.results[m.name] = append(rep.results[m.name], r)
			fmt.Fprintf(os.Stderr, "%s round %d %-8s %8.0f/s  target %.1f µs  zerospan %.2f µs  rss %d KiB  spans %d of %d  stop %v  %s\n", workload, round+1, m.name,
				r.rate(), r.perRequest(r.target), r.perRequest(r.zerospan), r.memory, r.spans, r.calls, r.stop.Round(time.Millisecond), r.balance)
		}
	}
	if rep.hits, err = countHits(w, sinkURL); err != nil {
		return nil, err
	}
	return rep, rep.idleRun(t, sinkURL)
}

// attach starts zerospan and waits until it is attached.
func attach(pid int, args ...string) (*child, *bufio.Scanner, error) {
	c := &child{Cmd: exec.Command("bin/zerospan", append([]string{"--pid", strconv.Itoa(pid)}, args...)...)}
	stderr, err := c.StderrPipe()
	if err != nil {
		return nil, nil, err
	}
	if c.stdin, err = c.StdinPipe(); err != nil {
		return nil, nil, err
	}
	if err := c.Start(); err != nil {
		return nil, nil, err
	}
	lines := bufio.NewScanner(stderr)
	for lines.Scan() {
		if strings.Contains(lines.Text(), "msg=attached") {
			return c, lines, nil
		}
	}
	return nil, nil, errors.New("zerospan did not attach")
}

func (rep *report) once(w *work, m mode, sink *child, sinkURL string) (result, error) {
	t := w.target
	var z *child
	var lines *bufio.Scanner
	var err error
	before := ask(sink, "count")
	if m.args != nil {
		began := time.Now()
		if z, lines, err = attach(t.Process.Pid, m.args(sinkURL)...); err != nil {
			return result{}, err
		}
		if m.name == "otlp" { // one request: how long until its span is there?
			one, err := w.load(0)
			if err != nil {
				return result{}, err
			}
			for int(ask(sink, "count")-before) < one.calls {
				time.Sleep(5 * time.Millisecond)
				if time.Since(began) > 10*time.Second {
					return result{}, errors.New("no span arrives at the sink")
				}
			}
			rep.firstSpan = append(rep.firstSpan, time.Since(began))
			before = ask(sink, "count")
		}
	}
	var zBefore time.Duration
	if z != nil {
		zBefore = z.cpu()
	}
	tBefore := t.cpu()
	r, err := w.load(*seconds)
	if err != nil {
		return r, err
	}
	r.target = t.cpu() - tBefore
	if z == nil {
		return r, nil
	}
	r.memory = z.memory()
	// The last batch leaves within a second; its cost belongs to the requests.
	if m.name == "otlp" {
		for began := time.Now(); int(ask(sink, "count")-before) < r.calls && time.Since(began) < 3*time.Second; {
			time.Sleep(20 * time.Millisecond)
		}
	}
	r.zerospan = z.cpu() - zBefore
	stopping := time.Now()
	_ = z.Process.Signal(os.Interrupt)
	for lines.Scan() {
		if strings.HasPrefix(lines.Text(), "calls:") || strings.HasPrefix(lines.Text(), "spans:") || strings.Contains(lines.Text(), "balance") {
			r.balance += lines.Text() + "; "
		}
	}
	if err := z.Wait(); err != nil {
		return r, fmt.Errorf("zerospan: %w", err)
	}
	r.stop = time.Since(stopping)
	r.spans = int(ask(sink, "count") - before)
	return r, nil
}

// ask sends the sink a word and returns the number that it answers.
func ask(sink *child, what string) int64 {
	fmt.Fprintln(sink.stdin, what)
	line, err := sink.line()
	if err != nil {
		return -1
	}
	n, _ := strconv.ParseInt(line, 10, 64)
	return n
}

// work is what a target is made to do.
type work struct {
	self, name, addr string
	target           *child
	calls            int // that a request gives
}

// newWork starts what a workload needs.
func newWork(self, target, name string) (w *work, stop func(), err error) {
	t, err := start(target, name)
	if err != nil {
		return nil, nil, err
	}
	line, err := t.line()
	if err != nil {
		return nil, nil, err
	}
	w = &work{self: self, name: name, addr: strings.Fields(line)[1], target: t, calls: max(map[string]int{"call": 3}[name], 1)}
	if name != "client" {
		return w, t.stop, nil
	}
	server, err := start(self, "-role", "serve") // the target calls somebody else
	if err != nil {
		t.stop()
		return nil, nil, err
	}
	w.addr, err = server.line()
	return w, func() { t.stop(); server.stop() }, err
}

func goBuild(dir, out string) error {
	build := exec.Command("go", "build", "-o", out, ".")
	build.Dir = dir
	if msg, err := build.CombinedOutput(); err != nil {
		return fmt.Errorf("build %s: %w: %s", dir, err, msg)
	}
	return nil
}

// load runs the work for a time; once if it is zero.
func (w *work) load(seconds float64) (result, error) {
	var out string
	var err error
	if w.name == "client" {
		n := *conns
		if seconds == 0 {
			n = 1
		}
		fmt.Fprintln(w.target.stdin, w.addr, n, seconds)
		out, err = w.target.line()
	} else {
		cmd := exec.Command(w.self, "-role", "load", "-address", w.addr, "-workload", w.name, "-conns", strconv.Itoa(*conns), "-seconds", fmt.Sprint(seconds))
		cmd.Stderr = os.Stderr
		var raw []byte
		raw, err = cmd.Output()
		out = string(raw)
	}
	if err != nil {
		return result{}, fmt.Errorf("load: %w", err)
	}
	var r result
	var ns int64
	if _, err := fmt.Sscan(out, &r.requests, &r.failed, &ns); err != nil {
		return r, fmt.Errorf("load: %w: %q", err, out)
	}
	r.elapsed, r.calls = time.Duration(ns), r.requests*w.calls
	return r, nil
}

// countHits has the kernel count the runs of each program.
func countHits(w *work, sinkURL string) (map[string]float64, error) {
	stats, err := ebpf.EnableStats(uint32(unix.BPF_STATS_RUN_TIME))
	if err != nil {
		return nil, err
	}
	defer stats.Close()
	before := programRuns(nil)
	z, _, err := attach(w.target.Process.Pid, "--otlp-endpoint", sinkURL)
	if err != nil {
		return nil, err
	}
	defer z.stop()
	r, err := w.load(1)
	if err != nil {
		return nil, err
	}
	hits := map[string]float64{}
	for _, p := range programRuns(before) {
		hits[p.name] += float64(p.runs) / float64(r.requests)
	}
	return hits, nil
}

func (rep *report) idleRun(t *child, sinkURL string) error {
	z, _, err := attach(t.Process.Pid, "--otlp-endpoint", sinkURL)
	if err != nil {
		return err
	}
	defer z.stop()
	time.Sleep(2 * time.Second) // starting up is not idling
	const length = 8 * time.Second
	before := z.cpu()
	time.Sleep(length)
	rep.idle = float64(z.cpu()-before) / float64(length)
	rep.idleMemory = z.memory()
	return nil
}

func median(v []float64) float64 {
	s := append([]float64(nil), v...)
	sort.Float64s(s)
	if len(s) == 0 {
		return 0
	}
	return s[len(s)/2]
}

func (rep *report) series(mode string, f func(result) float64) (out []float64) {
	for _, r := range rep.results[mode] {
		out = append(out, f(r))
	}
	return out
}

// write prints the tables and reports whether a goal was missed.
func (rep *report) write(w io.Writer, workload string) (missed bool) {
	base := rep.series("none", result.rate)
	cpu := func(mode string) []float64 {
		return rep.series(mode, func(r result) float64 { return r.perRequest(r.target) })
	}
	ratio := func(mode string) float64 {
		var out []float64
		for i, v := range rep.series(mode, result.rate) {
			out = append(out, v/base[i])
		}
		return median(out)
	}
	added := func(mode string) float64 {
		var out []float64
		none := cpu("none")
		for i, v := range cpu(mode) {
			out = append(out, v-none[i])
		}
		return median(out)
	}
	own := func(mode string) float64 {
		return median(rep.series(mode, func(r result) float64 { return r.perRequest(r.zerospan) }))
	}
	lost, unbalanced, failed := 0, 0, 0
	var stop, memory float64
	for name, list := range rep.results {
		for _, r := range list {
			failed += r.failed
			if name == "otlp" {
				lost += r.calls - r.spans
			}
			if strings.Contains(r.balance, "do not balance") {
				unbalanced++
			}
			stop = max(stop, r.stop.Seconds())
			memory = max(memory, float64(r.memory)/1024)
		}
	}
	var first float64
	for _, d := range rep.firstSpan {
		first = max(first, d.Seconds())
	}
	var total float64
	var names []string
	for name, n := range rep.hits {
		total += n
		names = append(names, fmt.Sprintf("%s %.3f", name, n))
	}
	sort.Strings(names)

	fmt.Fprintf(w, "### %s, %d keep-alive connections, %d rounds of %gs\n\n", workload, *conns, *rounds, *seconds)
	fmt.Fprintf(w, "| | every span by OTLP | metrics only | null run |\n| --- | --- | --- | --- |\n")
	fmt.Fprintf(w, "| throughput, ratio to none (median of pairs) | %.2f | %.2f | %.2f |\n", ratio("otlp"), ratio("metrics"), ratio("null"))
	fmt.Fprintf(w, "| target CPU added per request, µs | %.2f | %.2f | %.2f |\n", added("otlp"), added("metrics"), added("null"))
	fmt.Fprintf(w, "| zerospan CPU per request, µs | %.2f | %.2f | |\n\n", own("otlp"), own("metrics"))
	fmt.Fprintf(w, "| | |\n| --- | --- |\n")
	fmt.Fprintf(w, "| none: requests a second, target CPU per request | %.0f, %.1f µs |\n", median(base), median(cpu("none")))
	fmt.Fprintf(w, "| uprobe hits per request | %.3f (%s) |\n", total, strings.Join(names, ", "))
	fmt.Fprintf(w, "| calls lost, requests failed, runs out of balance | %d, %d, %d |\n", lost, failed, unbalanced)
	fmt.Fprintf(w, "| memory (RSS) at the end of a run, when idle | %.0f MB, %.0f MB |\n", memory, float64(rep.idleMemory)/1024)
	fmt.Fprintf(w, "| start to first span at the collector, slowest | %.2f s |\n", first)
	fmt.Fprintf(w, "| stop with a live collector, slowest | %.2f s |\n", stop)
	fmt.Fprintf(w, "| idle | %.2f %% of a core |\n\n", rep.idle*100)
	return lost != 0 || failed != 0 || unbalanced != 0
}
