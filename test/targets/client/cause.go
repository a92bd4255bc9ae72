//go:build go1.20

package main

import (
	"context"
	"errors"
	"time"
)

func init() { operations["cause"] = cause }

func cause(u string) error {
	ctx, cancel := context.WithCancelCause(context.Background())
	time.AfterFunc(50*time.Millisecond, func() { cancel(errors.New("a reason of my own")) })
	return do(plain, request(ctx, "GET", u))
}
