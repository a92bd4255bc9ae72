// Command gen writes docs/coverage.md from the Specs.
package main

//go:generate go run . ../coverage.md

import (
	"fmt"
	"log"
	"os"
	"strings"

	"github.com/zerospan/zerospan/instrumentors"
	_ "github.com/zerospan/zerospan/instrumentors/all"
)

func main() {
	var b strings.Builder
	b.WriteString("# What is traced\n\nGenerated from the instrumentors' Specs by `make generate`; `zerospan explain --pid PID` says the same of one process.\n")
	for _, s := range instrumentors.All() {
		fmt.Fprintf(&b, "\n## %s (`%s`)\n\n", s.Title, s.Name)
		for _, d := range s.Docs {
			fmt.Fprintf(&b, "- %s\n", d)
		}
		fmt.Fprintf(&b, "- metrics: `%s`", s.Metric.Name)
		if s.Metric.Active != "" {
			fmt.Fprintf(&b, ", `%s`", s.Metric.Active)
		}
		b.WriteString("\n\n| probe | function | where | |\n| --- | --- | --- | --- |\n")
		for _, site := range s.Sites {
			note := site.Group
			if site.Rare != "" {
				note += "; " + site.Rare
			}
			if site.Instead != "" {
				note += "; not where there is " + site.Instead
			}
			if site.Adaptive {
				note += "; detached while calls do not need it"
			}
			if len(site.OnlyWith) > 0 {
				note += "; only in binaries with `" + site.OnlyWith[0] + "` or the like"
			}
			fmt.Fprintf(&b, "| %s | `%s` | %s | %s |\n", site.Role, strings.Join(site.Symbols, "`, `"), site.At, note)
		}
	}
	if err := os.WriteFile(os.Args[1], []byte(b.String()), 0o644); err != nil {
		log.Fatal(err)
	}
}
