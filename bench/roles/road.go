package main

import (
	"io"
	"net"
	"sync"
)

// road is the way from an agent to its gateway, which can be cut: all that is on it ends, and it can be taken again at
// once.
type road struct {
	ln   net.Listener
	to   string
	done sync.WaitGroup
	mu   sync.Mutex
	live map[net.Conn]bool // both ends of all connections, guarded by mu
}

func newRoad(to string) (*road, error) {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, err
	}
	r := &road{ln: ln, to: to, live: make(map[net.Conn]bool)}
	r.done.Go(func() { // until the listener is closed; close waits
		for {
			from, err := ln.Accept()
			if err != nil {
				return
			}
			r.done.Go(func() { r.carry(from) }) // until an end ends, or cut; close waits
		}
	})
	return r, nil
}

func (r *road) addr() string { return r.ln.Addr().String() }

// carry takes one connection to the gateway.
func (r *road) carry(from net.Conn) {
	to, err := net.Dial("tcp", r.to)
	if err != nil {
		_ = from.Close()
		return
	}
	r.mu.Lock()
	r.live[from], r.live[to] = true, true
	r.mu.Unlock()
	r.done.Go(func() { // until either end is closed, which the other direction sees to as well; close waits
		_, _ = io.Copy(to, from)
		_ = to.Close()
	})
	_, _ = io.Copy(from, to)
	_ = from.Close()
	r.mu.Lock()
	delete(r.live, from)
	delete(r.live, to)
	r.mu.Unlock()
}

// cut ends all connections.
func (r *road) cut() {
	r.mu.Lock()
	defer r.mu.Unlock()
	for c := range r.live {
		_ = c.Close()
	}
}

func (r *road) close() {
	_ = r.ln.Close()
	r.cut()
	r.done.Wait()
}
