//go:build go1.22

//go:debug httpmuxgo121=0

package main

const itemPattern = "GET /items/{id}"
