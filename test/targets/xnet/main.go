// Command xnet is a traced process for the tests: HTTP/2 served by
// golang.org/x/net, in clear text (h2c) and configured into net/http's TLS server.
package main

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"fmt"
	"io"
	"log"
	"math/big"
	"net"
	"net/http"
	"os"
	"time"

	"golang.org/x/net/http2"
	"golang.org/x/net/http2/h2c"
)

func check(err error) {
	if err != nil {
		log.Fatal(err)
	}
}

func main() {
	mux := http.NewServeMux()
	mux.HandleFunc("/hello", func(w http.ResponseWriter, r *http.Request) { io.WriteString(w, "hello") })
	mux.HandleFunc("/status/503", func(w http.ResponseWriter, r *http.Request) { w.WriteHeader(503) })
	mux.HandleFunc("/panic", func(w http.ResponseWriter, r *http.Request) { panic("as asked") })
	plain, err := net.Listen("tcp", "127.0.0.1:0")
	check(err)
	secure, err := net.Listen("tcp", "127.0.0.1:0")
	check(err)
	quiet := log.New(io.Discard, "", 0)
	log.SetOutput(io.Discard)
	go http.Serve(plain, h2c.NewHandler(mux, &http2.Server{}))

	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	check(err)
	cert := &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "localhost"},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour), IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)}}
	der, err := x509.CreateCertificate(rand.Reader, cert, cert, &key.PublicKey, key)
	check(err)
	srv := &http.Server{Handler: mux, ErrorLog: quiet,
		TLSConfig: &tls.Config{Certificates: []tls.Certificate{{Certificate: [][]byte{der}, PrivateKey: key}}}}
	check(http2.ConfigureServer(srv, &http2.Server{}))
	go srv.ServeTLS(secure, "", "")
	fmt.Printf("ready %s %s\n", plain.Addr(), secure.Addr())
	io.Copy(io.Discard, os.Stdin)
}
