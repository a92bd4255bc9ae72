//go:build example

package main

// With the tag, zerospan has the worked example of docs/adding-an-instrumentor.md.
// An instrumentor that belongs to zerospan is registered by instrumentors/all.
import _ "github.com/zerospan/zerospan/docs/example"
