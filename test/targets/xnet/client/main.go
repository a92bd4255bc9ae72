// Command client is a traced process for the tests: requests through
// golang.org/x/net's http2.Transport, by itself and configured into net/http's.
package main

import (
	"bufio"
	"context"
	"crypto/tls"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"os"
	"strings"
	"time"

	"golang.org/x/net/http2"
)

func get(c *http.Client, ctx context.Context, url string) error {
	req, err := http.NewRequestWithContext(ctx, "GET", url, nil)
	if err != nil {
		return err
	}
	resp, err := c.Do(req)
	if err != nil {
		return err
	}
	io.Copy(io.Discard, resp.Body)
	return resp.Body.Close()
}

func main() {
	insecure := &tls.Config{InsecureSkipVerify: true}
	alone := &http.Client{Transport: &http2.Transport{TLSClientConfig: insecure}}
	cleartext := &http.Client{Transport: &http2.Transport{AllowHTTP: true,
		DialTLS: func(network, addr string, _ *tls.Config) (net.Conn, error) { return net.Dial(network, addr) }}}
	t := &http.Transport{TLSClientConfig: &tls.Config{InsecureSkipVerify: true}}
	if err := http2.ConfigureTransport(t); err != nil {
		log.Fatal(err)
	}
	configured := &http.Client{Transport: t}
	fmt.Println("ready")
	lines := bufio.NewScanner(os.Stdin)
	for lines.Scan() {
		words := strings.Fields(lines.Text())
		ctx, cancel := context.Background(), func() {}
		if strings.HasSuffix(words[0], "-deadline") {
			ctx, cancel = context.WithTimeout(ctx, 50*time.Millisecond)
		}
		c := map[string]*http.Client{"alone": alone, "cleartext": cleartext, "configured": configured}[strings.TrimSuffix(words[0], "-deadline")]
		err := get(c, ctx, words[1])
		cancel()
		fmt.Println(strings.ReplaceAll(fmt.Sprint(err), "\n", " "))
	}
}
