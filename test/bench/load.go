package main

import (
	"bytes"
	"fmt"
	"io"
	"net"
	"strconv"
	"sync"
	"time"
)

// request renders the i-th request of a workload.
func request(workload string, i int) []byte {
	if workload != "realistic" {
		return []byte("GET /" + workload + " HTTP/1.1\r\nHost: localhost:8080\r\nUser-Agent: bench/1.0\r\n\r\n")
	}
	id := 1000 + i
	if i%20 == 0 { // 5 % errors
		id = 13
	}
	return fmt.Appendf(nil, "GET /users/%d/orders HTTP/1.1\r\nHost: shop.example.com\r\nUser-Agent: Mozilla/5.0 (X11; Linux x86_64) bench/1.0\r\n"+
		"Accept: application/json\r\nAccept-Encoding: gzip, deflate, br\r\nAccept-Language: en-GB,en;q=0.5\r\nCache-Control: no-cache\r\n"+
		"Cookie: session=4f5a0f8c9c7d4e30b7a1\r\nX-Forwarded-For: 192.0.2.7\r\nX-Request-Id: %016x\r\nReferer: https://shop.example.com/\r\n"+
		"Traceparent: 00-%032x-%016x-01\r\n\r\n", id, i, i+1, i+1)
}

// runLoad sends requests over keep-alive connections for a time (one request if
// it is zero) and prints how many were answered, how many failed, and the time.
func runLoad(addr, workload string, conns int, length time.Duration) error {
	const variants = 1000
	requests := make([][]byte, variants)
	for i := range requests {
		requests[i] = request(workload, i)
	}
	if length == 0 {
		conns = 1
	}
	var wg sync.WaitGroup
	var mu sync.Mutex
	done, failed := 0, 0
	var firstErr error
	began := time.Now()
	for n := range conns {
		wg.Go(func() {
			ok, bad, err := loadConn(addr, requests[n*variants/conns:], began.Add(length))
			mu.Lock()
			defer mu.Unlock()
			done, failed = done+ok, failed+bad
			if err != nil && firstErr == nil {
				firstErr = err
			}
		})
	}
	wg.Wait()
	if firstErr != nil {
		return firstErr
	}
	fmt.Println(done, failed, time.Since(began).Nanoseconds())
	return nil
}

func loadConn(addr string, requests [][]byte, until time.Time) (ok, failed int, err error) {
	c, err := net.Dial("tcp", addr)
	if err != nil {
		return 0, 0, err
	}
	defer c.Close()
	buf := make([]byte, 8192)
	for i := 0; ; i++ {
		if _, err := c.Write(requests[i%len(requests)]); err != nil {
			return ok, failed, err
		}
		status, err := readResponse(c, buf)
		if err != nil {
			return ok, failed, err
		}
		if ok++; status != 200 && status != 500 {
			failed++
		}
		if i%16 == 0 || until.Before(time.Now()) {
			if !time.Now().Before(until) {
				return ok, failed, nil
			}
		}
	}
}

var contentLength = []byte("Content-Length: ")

// readResponse reads one response with a Content-Length.
func readResponse(c net.Conn, buf []byte) (status int, err error) {
	n := 0
	for {
		k, err := c.Read(buf[n:])
		if err != nil {
			return 0, err
		}
		n += k
		head := bytes.Index(buf[:n], []byte("\r\n\r\n"))
		if head < 0 {
			continue
		}
		i := bytes.Index(buf[:head], contentLength)
		if i < 0 || n < 12 {
			return 0, fmt.Errorf("unexpected response %q", buf[:n])
		}
		rest := buf[i+len(contentLength) : head+2]
		length, err := strconv.Atoi(string(rest[:bytes.IndexByte(rest, '\r')]))
		if err != nil {
			return 0, err
		}
		if n < head+4+length {
			if _, err := io.ReadFull(c, buf[n:head+4+length]); err != nil {
				return 0, err
			}
		}
		return strconv.Atoi(string(buf[9:12]))
	}
}

// runServe answers whatever comes over a connection, as cheaply as it can.
func runServe() error {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return err
	}
	fmt.Println(l.Addr())
	for {
		c, err := l.Accept()
		if err != nil {
			return err
		}
		go func() {
			defer c.Close()
			buf := make([]byte, 4096)
			for {
				if n, err := c.Read(buf); err != nil || !bytes.HasSuffix(buf[:n], []byte("\r\n\r\n")) {
					return
				}
				if _, err := io.WriteString(c, "HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nContent-Length: 5\r\n\r\nhello"); err != nil {
					return
				}
			}
		}()
	}
}
