package main

import (
	"io"
	"net"
	"sync"
	"time"

	"culvert/bench/load"
)

const (
	// delayQueue is how many pieces wait in one direction of a connection: at the rate below the delay holds 40 whole
	// ones.
	delayQueue = 512
	// delayPieceBytes is the largest piece.
	delayPieceBytes = 64 << 10
	// delayBurst is how far behind its rate a link may catch up, so that a timer that comes late costs nothing.
	delayBurst = 5 * time.Millisecond
)

// delayRelay stands for a long road: it accepts connections and carries their bytes to another address, each way
// later by delay and no faster than a rate. A connection costs the round trip that TCP's own handshake would.
type delayRelay struct {
	ln       net.Listener
	to       string
	delay    time.Duration
	up, down link
	done     sync.WaitGroup

	mu    sync.Mutex
	conns []net.Conn // guarded by mu
}

// newDelayRelay starts a relay to an address. rate is in bytes a second for each direction.
func newDelayRelay(to string, delay time.Duration, rate float64) (*delayRelay, error) {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, err
	}
	d := &delayRelay{ln: ln, to: to, delay: delay, up: link{rate: rate}, down: link{rate: rate}}
	d.done.Go(func() { // until the listener is closed; close waits
		for {
			c, err := ln.Accept()
			if err != nil {
				return
			}
			d.done.Go(func() { d.serve(c.(*net.TCPConn)) }) // until both ends have ended, or close; close waits
		}
	})
	return d, nil
}

func (d *delayRelay) addr() string { return d.ln.Addr().String() }

// close ends the relay and every connection.
func (d *delayRelay) close() {
	_ = d.ln.Close()
	d.mu.Lock()
	for _, c := range d.conns {
		_ = c.Close()
	}
	d.conns = nil
	d.mu.Unlock()
	d.done.Wait()
}

// own remembers a connection for close.
func (d *delayRelay) own(c net.Conn) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.conns = append(d.conns, c)
}

func (d *delayRelay) serve(c *net.TCPConn) {
	defer c.Close()
	d.own(c)
	accepted := time.Now()
	time.Sleep(d.delay) // the SYN is on its way
	out, err := load.Dial(d.to, 0)
	if err != nil {
		return
	}
	defer out.Close()
	d.own(out)
	var ways sync.WaitGroup
	ways.Go(func() { d.carry(c, out, &d.down) })
	time.Sleep(time.Until(accepted.Add(2 * d.delay))) // and its answer
	d.carry(out, c, &d.up)
	ways.Wait()
}

// piece is what was read at once, and when it arrives.
type piece struct {
	bytes []byte
	due   time.Time
	end   bool // nothing follows
}

// carry takes bytes from src as fast as the link lets it, and hands them to dst when their time has come. The end of
// src is passed on like bytes; a fault on either side ends both.
func (d *delayRelay) carry(dst, src *net.TCPConn, l *link) {
	queue := make(chan piece, delayQueue)
	var late sync.WaitGroup
	late.Go(func() { // until the queue is closed; Wait below
		for p := range queue {
			time.Sleep(time.Until(p.due))
			var err error
			if p.end {
				err = dst.CloseWrite()
			} else {
				_, err = dst.Write(p.bytes)
			}
			if err != nil {
				_ = src.Close() // and go on until the reader has noticed
			}
		}
	})
	defer late.Wait()
	defer close(queue)
	buf := make([]byte, delayPieceBytes)
	for {
		n, err := src.Read(buf)
		if n > 0 {
			passed := l.pass(n)
			queue <- piece{bytes: append([]byte(nil), buf[:n]...), due: passed.Add(d.delay)}
			time.Sleep(time.Until(passed))
		}
		if err != nil {
			if err != io.EOF {
				_ = dst.Close()
				return
			}
			queue <- piece{end: true, due: time.Now().Add(d.delay)}
			return
		}
	}
}

// link is one direction of the road, shared by all connections.
type link struct {
	rate float64 // bytes a second
	mu   sync.Mutex
	free time.Time // when what was taken so far has passed, guarded by mu
}

// pass takes n more bytes and says when they will have gone through the link, which is not before now.
func (l *link) pass(n int) time.Time {
	l.mu.Lock()
	defer l.mu.Unlock()
	now := time.Now()
	if least := now.Add(-delayBurst); l.free.Before(least) {
		l.free = least
	}
	l.free = l.free.Add(time.Duration(float64(n) / l.rate * float64(time.Second)))
	if l.free.Before(now) {
		return now
	}
	return l.free
}
