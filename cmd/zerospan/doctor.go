package main

import (
	"errors"
	"os"

	"github.com/zerospan/zerospan/doctor"
)

type doctorCmd struct{}

// Run prints what tracing needs and what of it is there.
func (doctorCmd) Run(s *streams, ctx bindContext) error {
	report := doctor.Examine(ctx)
	if ctx.Err() != nil {
		return errors.New("interrupted: nothing was found out")
	}
	report.Print(s.out)
	if len(report.Lacks()) > 0 {
		return errSaid
	}
	return nil
}

type doctorChildCmd struct{}

func (doctorChildCmd) Run(s *streams) error { return doctor.Child(os.Stdin, s.out) }
