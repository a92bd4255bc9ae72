// Command nethttp is a traced process for the tests: a net/http server with a
// route for each outcome that a call can have. It builds with Go 1.18 to 1.27.
package main

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"errors"
	"fmt"
	"io"
	"log"
	"math/big"
	"net"
	"net/http"
	"os"
	"runtime"
	"strconv"
	"strings"
	"sync/atomic"
	"syscall"
	"time"
)

type keyType struct{}

//go:noinline
func deep(n int) int {
	var pad [512]byte
	pad[n%512] = byte(n)
	if n == 0 {
		return int(pad[0])
	}
	return deep(n-1) + int(pad[n%512])
}

func routes() *http.ServeMux {
	mux := http.NewServeMux()
	handle := func(pattern string, h http.HandlerFunc) { mux.HandleFunc(pattern, h) }
	handle("/hello", func(w http.ResponseWriter, r *http.Request) { io.WriteString(w, "hello") })
	handle(itemPattern, func(w http.ResponseWriter, r *http.Request) { io.WriteString(w, "item") })
	handle("/status/", func(w http.ResponseWriter, r *http.Request) {
		code, _ := strconv.Atoi(r.URL.Path[strings.LastIndexByte(r.URL.Path, '/')+1:])
		w.WriteHeader(code)
	})
	handle("/implicit", func(w http.ResponseWriter, r *http.Request) {})
	handle("/panic", func(w http.ResponseWriter, r *http.Request) { panic("as asked") })
	handle("/panic-late", func(w http.ResponseWriter, r *http.Request) {
		w.WriteHeader(201)
		w.(http.Flusher).Flush()
		panic(errors.New("late"))
	})
	handle("/abort", func(w http.ResponseWriter, r *http.Request) { panic(http.ErrAbortHandler) })
	handle("/goexit", func(w http.ResponseWriter, r *http.Request) { runtime.Goexit() })
	handle("/hijack", func(w http.ResponseWriter, r *http.Request) {
		c, buf, err := w.(http.Hijacker).Hijack()
		if err != nil {
			http.Error(w, "no hijack", 500)
			return
		}
		buf.WriteString("HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: x\r\n\r\n")
		buf.Flush()
		c.Close()
	})
	handle("/stream", func(w http.ResponseWriter, r *http.Request) {
		for i := 0; i < 5; i++ {
			fmt.Fprintf(w, "part %d\n", i)
			w.(http.Flusher).Flush()
		}
	})
	handle("/echo", func(w http.ResponseWriter, r *http.Request) { io.Copy(w, r.Body) })
	handle("/slow", func(w http.ResponseWriter, r *http.Request) {
		ms, _ := strconv.Atoi(r.URL.Query().Get("ms"))
		time.Sleep(time.Duration(ms) * time.Millisecond)
		io.WriteString(w, "slow")
	})
	handle("/exec", func(w http.ResponseWriter, r *http.Request) {
		exe, err := os.Executable()
		check(err)
		check(syscall.Exec(exe, os.Args, os.Environ()))
	})
	var waiting int32
	handle("/waiting", func(w http.ResponseWriter, r *http.Request) { fmt.Fprintln(w, atomic.LoadInt32(&waiting)) })
	handle("/wait", func(w http.ResponseWriter, r *http.Request) {
		atomic.AddInt32(&waiting, 1)
		<-r.Context().Done()
		w.WriteHeader(499)
	})
	handle("/grow", func(w http.ResponseWriter, r *http.Request) {
		fmt.Fprint(w, deep(200))
	})
	mux.Handle("/timeout", http.TimeoutHandler(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		<-r.Context().Done()
	}), 20*time.Millisecond, "too slow"))
	inner := http.NewServeMux()
	inner.HandleFunc("/within/", func(w http.ResponseWriter, r *http.Request) { io.WriteString(w, "within") })
	mux.Handle("/within/", http.TimeoutHandler(inner, 5*time.Second, "too slow"))
	return mux
}

// root passes what is below /mw/ on as middleware does, with a copy of the request.
func root(mux *http.ServeMux) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if strings.HasPrefix(r.URL.Path, "/mw/") {
			http.StripPrefix("/mw", mux).ServeHTTP(w, r.WithContext(context.WithValue(r.Context(), keyType{}, 1)))
			return
		}
		mux.ServeHTTP(w, r)
	})
}

func certificate() tls.Certificate {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	check(err)
	t := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "localhost"},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(24 * time.Hour),
		DNSNames: []string{"localhost"}, IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)},
	}
	der, err := x509.CreateCertificate(rand.Reader, t, t, &key.PublicKey, key)
	check(err)
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}
}

func check(err error) {
	if err != nil {
		log.Fatal(err)
	}
}

func main() {
	log.SetOutput(io.Discard) // panics of handlers are asked for
	handler := root(routes())
	plain, err := net.Listen("tcp", "127.0.0.1:0")
	check(err)
	secure, err := net.Listen("tcp", "127.0.0.1:0")
	check(err)
	srv := &http.Server{Handler: handler}
	cleartextHTTP2(srv)
	go func() { check(srv.Serve(plain)) }()
	tlsServer := &http.Server{Handler: handler, TLSConfig: &tls.Config{Certificates: []tls.Certificate{certificate()}}}
	go func() { check(tlsServer.ServeTLS(secure, "", "")) }()
	fmt.Printf("ready %s %s\n", plain.Addr(), secure.Addr())
	io.Copy(io.Discard, os.Stdin) // ends with whoever started it
}
