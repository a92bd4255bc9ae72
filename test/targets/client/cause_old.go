//go:build !go1.20

package main

func cause(u string) error { return operations["cancel"](u) }

func init() { operations["cause"] = cause }
