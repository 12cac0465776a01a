package main

import (
	"bytes"
	"fmt"
	"io"
	"net"
	"strings"
	"sync"
)

// bodyBytes is what the backend answers a request with.
const bodyBytes = 1024

// backend is the server behind every proxy: it answers each head of a request over HTTP/1.1 with the same 1 KiB, and
// does as little as it can for that, so that what is measured is the proxies. It runs in the process that measures.
type backend struct {
	ln     net.Listener
	answer []byte
	served sync.WaitGroup
	mu     sync.Mutex
	conns  map[net.Conn]bool // guarded by mu
}

func newBackend() (*backend, error) {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, err
	}
	b := &backend{ln: ln, conns: make(map[net.Conn]bool)}
	b.answer = fmt.Appendf(nil, "HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nContent-Length: %d\r\n\r\n%s",
		bodyBytes, strings.Repeat("0123456789abcde\n", bodyBytes/16))
	b.served.Go(func() { // until the listener is closed; close waits
		for {
			c, err := ln.Accept()
			if err != nil {
				return
			}
			b.mu.Lock()
			b.conns[c] = true
			b.mu.Unlock()
			b.served.Go(func() { // until the proxy ends, or close; close waits
				b.serve(c)
				b.mu.Lock()
				delete(b.conns, c)
				b.mu.Unlock()
				_ = c.Close()
			})
		}
	})
	return b, nil
}

func (b *backend) addr() string { return b.ln.Addr().String() }

// close cuts off who is still connected.
func (b *backend) close() {
	_ = b.ln.Close()
	b.mu.Lock()
	for c := range b.conns {
		_ = c.Close()
	}
	b.mu.Unlock()
	b.served.Wait()
}

// serve answers every head, as soon as its end is there.
func (b *backend) serve(c net.Conn) {
	buf := make([]byte, 0, 16<<10)
	for {
		n, err := c.Read(buf[len(buf):cap(buf)])
		if err != nil {
			return
		}
		buf = buf[:len(buf)+n]
		for {
			_, rest, found := bytes.Cut(buf, []byte("\r\n\r\n"))
			if !found {
				break
			}
			if _, err := c.Write(b.answer); err != nil {
				return
			}
			buf = append(buf[:0], rest...)
		}
		if len(buf) == cap(buf) {
			_, _ = io.WriteString(c, "HTTP/1.1 431 \r\nContent-Length: 0\r\n\r\n") // a head that long is a fault of ours
			return
		}
	}
}
