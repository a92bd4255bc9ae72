// Command bench is the traced process of the benchmark. Without arguments it
// serves /hello the plain way; with "realistic" it adds what services have:
// routes with a parameter behind middleware that copies the request.
package main

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"strings"
)

type key struct{}

func main() {
	mux := http.NewServeMux()
	mux.HandleFunc("/hello", func(w http.ResponseWriter, r *http.Request) { io.WriteString(w, "hello") })
	var handler http.Handler = mux
	if len(os.Args) > 1 && os.Args[1] == "realistic" {
		handler = realistic(mux)
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		panic(err)
	}
	fmt.Println("ready", l.Addr())
	go http.Serve(l, handler)
	io.Copy(io.Discard, os.Stdin)
}

func realistic(mux *http.ServeMux) http.Handler {
	mux.HandleFunc("GET /users/{id}/orders", func(w http.ResponseWriter, r *http.Request) {
		if strings.HasSuffix(r.PathValue("id"), "13") {
			http.Error(w, "no luck", http.StatusInternalServerError)
			return
		}
		w.Header().Set("Content-Type", "application/json")
		io.WriteString(w, `{"orders":[]}`)
	})
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		mux.ServeHTTP(w, r.WithContext(context.WithValue(r.Context(), key{}, "user")))
	})
}
