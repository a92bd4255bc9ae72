package main

import (
	"errors"
	"fmt"
	"io"
	"strings"
	"text/tabwriter"

	"github.com/zerospan/zerospan/agent"
	"github.com/zerospan/zerospan/coexist"
	"github.com/zerospan/zerospan/instrumentors"
	"github.com/zerospan/zerospan/offsets"
)

type explainCmd struct {
	PID int `name:"pid" short:"p" required:"" help:"The process." placeholder:"PID"`
}

func (c *explainCmd) Run(s *streams) error {
	p, err := agent.Inspect(c.PID)
	if err != nil {
		return err
	}
	exe, err := agent.OpenExe(p)
	if err != nil {
		return err
	}
	defer exe.Close()
	planned, err := agent.Plan(p, exe)
	fmt.Fprintf(s.out, "process %d: %s\n", p.PID, p.Exe)
	if planned.GoVersion != "" {
		fmt.Fprintf(s.out, "  built with %s\n", planned.GoVersion)
	}
	if p.Container != "" {
		fmt.Fprintf(s.out, "  container %s\n", p.Container)
	}
	if err != nil {
		fmt.Fprintf(s.out, "  nothing can be attached: %v\n", err)
		return nil
	}
	if sdk := planned.SDK; sdk != nil && len(sdk.Sites) > 0 {
		var signals []string
		for _, s := range []coexist.Signal{coexist.Traces, coexist.Metrics} {
			if sdk.Has(s) {
				signals = append(signals, string(s))
			}
		}
		fmt.Fprintf(s.out, "  carries the OpenTelemetry SDK for %s: while it exports them, zerospan does not (--coexist)\n", strings.Join(signals, " and "))
	}
	for _, r := range planned.Results {
		explainPlan(s.out, r)
	}
	return nil
}

func explainPlan(w io.Writer, r agent.PlanResult) {
	fmt.Fprintf(w, "\n%s (%s): ", r.Spec.Name, r.Spec.Title)
	switch {
	case errors.Is(r.Err, instrumentors.ErrAbsent), errors.Is(r.Err, offsets.ErrNotGo):
		fmt.Fprintf(w, "not attached: %v\n", r.Err)
		return
	case r.Err != nil:
		fmt.Fprintf(w, "not attached: %v\n", r.Err)
	default:
		fmt.Fprintln(w, "can be attached")
	}
	tw := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	fmt.Fprint(tw, "  SITE\tFUNCTION\tADDRESS\tINSTRUCTION\tPRICE\n")
	for _, site := range r.Plan.Sites {
		switch {
		case site.Absent:
		case site.Skipped != "":
			fmt.Fprintf(tw, "  %s\t%s\t-\t-\tnot attached: %s\n", site.Role, site.Symbols[0], site.Skipped)
		default:
			found := site.Found[0]
			price := "emulated"
			if !found.Emulated {
				price = "single-stepped (about 20 times an emulated one)"
			}
			if site.Rare != "" {
				price += ", " + site.Rare
			}
			at := fmt.Sprintf("%#x", uint64(found.Addr))
			if more := len(site.Found) - 1; more > 0 {
				at += fmt.Sprintf(" and %d more", more)
			}
			fmt.Fprintf(tw, "  %s\t%s\t%s\t%s\t%s\n", site.Role, found.Func.Name, at, found.Text, price)
		}
	}
	_ = tw.Flush()
	fmt.Fprint(tw, "  FIELD\tOFFSET\tFOUND BY\t\n")
	for _, f := range r.Plan.Fields {
		if f.Err != nil {
			fmt.Fprintf(tw, "  %s\t-\t%v; lost: %s\t\n", f.Path, f.Err, f.Loses)
			continue
		}
		fmt.Fprintf(tw, "  %s\t%d\t%s\t\n", f.Path, f.Offset, f.Rung)
	}
	_ = tw.Flush()
}
