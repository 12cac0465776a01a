package main_test

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
)

// pair is an entry with a forwarded port and an exit.
type pair struct {
	entry, exit *gateway
}

func newPair(t *testing.T, to string) pair {
	t.Helper()
	m := newMesh(t)
	exit := m.exit(t)
	return pair{entry: m.forward(t, exit.addr, to), exit: exit}
}

// idle waits until nothing is left of the flows at both gateways.
func (p pair) idle(t *testing.T) {
	t.Helper()
	p.entry.idle(t)
	p.exit.idle(t)
}

// records waits for the records of n flows, and returns those of flows that ended well and the others.
func (g *gateway) records(t *testing.T, n int) (well, cut []string) {
	t.Helper()
	within(t, "records", func() error {
		well, cut = nil, nil
		for line := range strings.Lines(g.out.String()) {
			switch {
			case !strings.Contains(line, " msg=flow "):
			case strings.Contains(line, " reason="):
				cut = append(cut, line)
			default:
				well = append(well, line)
			}
		}
		if len(well)+len(cut) != n {
			return fmt.Errorf("%d, want %d", len(well)+len(cut), n)
		}
		return nil
	})
	return well, cut
}

// Who ends a transfer first.
const (
	serverEnds   = 's' // the server; the client still sends what it has after it has seen the end
	serverCloses = 'x' // the server, and it takes nothing more
	clientEnds   = 'c' // the client; the server answers after it has seen the end
	bothEnd      = 'b' // both send at the same time
)

// transfer is one connection of TestHalfClose.
type transfer struct {
	kind     byte
	id       uint32
	down, up uint32     // bytes that the server and the client send
	slow     bool       // both ends read slowly
	served   chan error // what the server says of it
}

const headLen = 1 + 4 // kind, id

// content is what one end sends: n bytes that follow from the identity of the transfer, so that bytes of another one
// are noticed.
func (tr *transfer) content(end byte, n uint32) io.Reader {
	var seed [32]byte
	seed[0] = end
	binary.BigEndian.PutUint32(seed[1:], tr.id)
	return io.LimitReader(rand.NewChaCha8(seed), int64(n))
}

// send sends the content of one end, and then its end.
func (tr *transfer) send(nc *net.TCPConn, end byte, n uint32) error {
	if _, err := io.Copy(nc, tr.content(end, n)); err != nil {
		return fmt.Errorf("send: %w", err)
	}
	return nc.CloseWrite()
}

// receive reads to the end of stream, and compares.
func (tr *transfer) receive(nc *net.TCPConn, end byte, n uint32) error {
	got, want := sha256.New(), sha256.New()
	from := io.Reader(nc)
	if tr.slow {
		from = &slowReader{nc: nc}
	}
	count, err := io.Copy(got, from)
	if err != nil {
		return fmt.Errorf("receive: after %d of %d bytes: %w", count, n, err)
	}
	if _, err := io.Copy(want, tr.content(end, n)); err != nil {
		return err
	}
	if count != int64(n) || !bytes.Equal(got.Sum(nil), want.Sum(nil)) {
		return fmt.Errorf("receive: %d bytes with SHA-256 %x, want %d, %x", count, got.Sum(nil), n, want.Sum(nil))
	}
	return nil
}

// both runs two directions at the same time.
func both(one, two func() error) error {
	done := make(chan error, 1)
	go func() { done <- one() }() // ends with its direction, at a deadline at the latest; both waits for it
	err := two()
	return errors.Join(<-done, err)
}

func (tr *transfer) serve(nc *net.TCPConn) error {
	send := func() error { return tr.send(nc, 'd', tr.down) }
	receive := func() error { return tr.receive(nc, 'u', tr.up) }
	switch tr.kind {
	case serverEnds:
		return errors.Join(send(), receive())
	case serverCloses:
		_, err := io.Copy(nc, tr.content('d', tr.down))
		return errors.Join(err, nc.Close())
	case clientEnds:
		return errors.Join(receive(), send())
	}
	return both(send, receive)
}

func (tr *transfer) run(addr string) error {
	conn, err := net.DialTimeout("tcp", addr, patience)
	if err != nil {
		return err
	}
	return tr.runOn(conn.(*net.TCPConn))
}

// runOn is run on a connection that stands, which it closes.
func (tr *transfer) runOn(nc *net.TCPConn) (err error) {
	defer nc.Close()
	_ = nc.SetDeadline(time.Now().Add(patience))
	head := append([]byte{tr.kind}, binary.BigEndian.AppendUint32(nil, tr.id)...)
	if _, err := nc.Write(head); err != nil {
		return err
	}
	send := func() error { return tr.send(nc, 'u', tr.up) }
	receive := func() error { return tr.receive(nc, 'd', tr.down) }
	switch tr.kind {
	case serverEnds:
		err = errors.Join(receive(), send())
	case serverCloses:
		err = receive()
	case clientEnds:
		err = errors.Join(send(), receive())
	default:
		err = both(send, receive)
	}
	if err != nil {
		err = fmt.Errorf("client: %w", err)
	}
	select {
	case served := <-tr.served:
		if served != nil {
			err = errors.Join(err, fmt.Errorf("server: %w", served))
		}
	case <-time.After(patience):
		err = errors.Join(err, errors.New("the server has not seen the end"))
	}
	return err
}

// sizes of a transfer's main direction: every 50th is empty and every 50th has megabytes.
func size(r *rand.Rand, i int) uint32 {
	switch i % 50 {
	case 0:
		return 0
	case 1:
		return 1<<20 + r.Uint32N(3<<20)
	}
	return r.Uint32N(200_000)
}

// transfers makes n transfers where the server ends first, n where the client does, and some where both do.
func transfers(r *rand.Rand, n int) (list []*transfer) {
	add := func(kind byte, down, up uint32) {
		list = append(list, &transfer{kind: kind, id: uint32(len(list)), down: down, up: up, served: make(chan error, 1)})
	}
	for i := range n {
		n, less := size(r, i), r.Uint32N(20_000)*r.Uint32N(2)
		switch i % 4 {
		case 0:
			add(serverCloses, n, 0)
		default:
			add(serverEnds, n, less)
		}
		add(clientEnds, less, size(r, i))
		if i%10 == 0 {
			add(bothEnd, size(r, i), size(r, i+2))
		}
	}
	return list
}

// atOnce is how many transfers run at the same time.
const atOnce = 16

// TestHalfClose shows that what is sent before an end arrives, whoever ends first, and that one direction does not end
// the other.
func TestHalfClose(t *testing.T) {
	n := 1000
	switch {
	case os.Getenv("SOAK") != "":
		n = 10_000
	case testing.Short():
		n = 100
	}
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	list := transfers(rand.New(rand.NewPCG(seed, 0)), n)
	p := newPair(t, serveTransfers(t, list))
	lost := runTransfers(t, list, p.entry.addr)
	t.Logf("%d transfers; lost: the server ends first %d of %d, the client %d of %d, both %d",
		len(list), lost[serverEnds]+lost[serverCloses], n, lost[clientEnds], n, lost[bothEnd])
	p.idle(t)
	for _, g := range []*gateway{p.entry, p.exit} {
		if _, cut := g.records(t, len(list)); len(cut) > 0 {
			t.Errorf("%d of %d flows are recorded as cut, want none; the first: %s", len(cut), len(list), cut[0])
		}
	}
}

// serveTransfers is the server of all of list.
func serveTransfers(t *testing.T, list []*transfer) (addr string) {
	t.Helper()
	return serve(t, func(nc *net.TCPConn) {
		_ = nc.SetDeadline(time.Now().Add(patience))
		head := make([]byte, headLen)
		if _, err := io.ReadFull(nc, head); err != nil {
			t.Errorf("head of a transfer: %v", err)
			return
		}
		id := binary.BigEndian.Uint32(head[1:])
		if id >= uint32(len(list)) {
			t.Errorf("head of a transfer: %x", head)
			return
		}
		tr := list[id]
		tr.served <- tr.serve(nc)
	})
}

// runTransfers runs list, some at once, and returns how many of each kind were not as they should be.
func runTransfers(t *testing.T, list []*transfer, addr string) (lost map[byte]int) {
	t.Helper()
	lost = map[byte]int{}
	var mu sync.Mutex // guards lost
	queue := make(chan *transfer)
	var all sync.WaitGroup
	for range atOnce {
		all.Go(func() { // ends with the queue; Wait below
			for tr := range queue {
				err := tr.run(addr)
				if err == nil {
					continue
				}
				mu.Lock()
				if lost[tr.kind]++; lost[tr.kind] <= 5 {
					t.Errorf("transfer %d, kind %c, %d bytes down, %d up: %v", tr.id, tr.kind, tr.down, tr.up, err)
				}
				mu.Unlock()
			}
		})
	}
	for _, tr := range list {
		queue <- tr
	}
	close(queue)
	all.Wait()
	return lost
}

// slowReader takes 64 KiB at a time, and its time.
type slowReader struct{ nc *net.TCPConn }

func (r *slowReader) Read(p []byte) (int, error) {
	time.Sleep(3 * time.Millisecond)
	return r.nc.Read(p[:min(len(p), 64<<10)])
}

// reset ends a connection as a crash does: with RST.
func reset(nc *net.TCPConn) error {
	return errors.Join(nc.SetLinger(0), nc.Close())
}

// wantReset reads nc to its end, which must be a reset.
func wantReset(nc *net.TCPConn) error {
	n, err := io.Copy(io.Discard, nc)
	switch {
	case err == nil:
		return fmt.Errorf("a clean end after %d bytes, want a reset", n)
	case !errors.Is(err, syscall.ECONNRESET):
		return fmt.Errorf("%w after %d bytes, want a reset", err, n)
	}
	return nil
}

// resets are ways for one end, a, to break off. They return what is wrong with how the other end, b, sees it.
var resets = []struct {
	name string
	do   func(a, b *net.TCPConn) error
}{
	{"of a flow without bytes", func(a, b *net.TCPConn) error {
		return errors.Join(reset(a), wantReset(b))
	}},
	{"after bytes that were read", func(a, b *net.TCPConn) error {
		_, err := a.Write(make([]byte, 1000))
		_, err2 := io.ReadFull(b, make([]byte, 1000))
		return errors.Join(err, err2, reset(a), wantReset(b))
	}},
	{"with bytes on the way", func(a, b *net.TCPConn) error {
		_, err := a.Write(make([]byte, 100_000))
		return errors.Join(err, reset(a), wantReset(b))
	}},
	{"by a close with unread bytes", func(a, b *net.TCPConn) error {
		_, err := b.Write([]byte("12"))
		_, err2 := io.ReadFull(a, make([]byte, 1))
		return errors.Join(err, err2, a.Close(), wantReset(b))
	}},
	{"after the other has ended", func(a, b *net.TCPConn) error {
		err := b.CloseWrite()
		_, err2 := io.Copy(io.Discard, a)
		_, err3 := a.Write(make([]byte, 1000))
		return errors.Join(err, err2, err3, reset(a), wantReset(b))
	}},
	{"while the other sends", func(a, b *net.TCPConn) error {
		written := make(chan error, 1)
		go func() { // ends with the reset; the receive below waits for it
			_, err := io.Copy(b, rand.NewChaCha8([32]byte{}))
			written <- err
		}()
		_, err := io.ReadFull(a, make([]byte, 100_000))
		err = errors.Join(err, reset(a))
		// The system tells a reset once: to the reader or to the writer.
		read := wantReset(b)
		if write := <-written; errors.Is(write, syscall.ECONNRESET) || errors.Is(write, syscall.EPIPE) && read == nil {
			return err
		}
		return errors.Join(err, read)
	}},
}

// connect opens a flow to a server that ln stands for, and returns both of its ends.
func (p pair) connect(t *testing.T, ln *net.TCPListener) (client, server *net.TCPConn) {
	t.Helper()
	client = dial(t, p.entry.addr)
	_ = ln.SetDeadline(time.Now().Add(patience))
	server, err := ln.AcceptTCP()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = server.Close() })
	_ = server.SetDeadline(time.Now().Add(patience))
	return client, server
}

// perReset is how many flows TestHalfCloseReset has for each way and end.
const perReset = 20

// TestHalfCloseReset shows that a reset by one end is a reset at the other, and never a clean end.
func TestHalfCloseReset(t *testing.T) {
	ln := loopback(t)
	p := newPair(t, ln.Addr().String())
	for _, tt := range resets {
		for _, who := range []string{"server", "client"} {
			t.Run(who+" "+tt.name, func(t *testing.T) {
				for range perReset {
					b, a := p.connect(t, ln)
					if who == "client" {
						a, b = b, a
					}
					if err := tt.do(a, b); err != nil {
						t.Fatal(err)
					}
				}
			})
		}
	}
	p.idle(t)
	for _, g := range []*gateway{p.entry, p.exit} {
		if well, _ := g.records(t, 2*perReset*len(resets)); len(well) > 0 {
			t.Errorf("%d flows are recorded as ended well, want all to have a reason; the first: %s", len(well), well[0])
		}
	}
}

// TestHalfCloseKilledGateway shows that a gateway that crashes cuts its flows, and does not end them: the end that it
// has no socket with sees a reset.
func TestHalfCloseKilledGateway(t *testing.T) {
	for _, dies := range []string{"exit", "entry"} {
		t.Run(dies, func(t *testing.T) {
			ln := loopback(t)
			p := newPair(t, ln.Addr().String())
			dead := p.exit
			if dies == "entry" {
				dead = p.entry
			}
			connect := func() (sees, other *net.TCPConn) {
				client, server := p.connect(t, ln)
				if dies == "entry" {
					return server, client
				}
				return client, server
			}
			var running sync.WaitGroup
			endless := func(from, to *net.TCPConn) (written chan error) {
				written = make(chan error, 1)
				running.Go(func() { // ends when the flow is cut; Wait below
					_, err := io.Copy(from, rand.NewChaCha8([32]byte{}))
					written <- err
				})
				if _, err := io.ReadFull(to, make([]byte, 1<<20)); err != nil {
					t.Fatal(err)
				}
				return written
			}
			silent, _ := connect()
			receiving, source := connect()
			endless(source, receiving)
			sending, sink := connect()
			written := endless(sending, sink)
			dead.kill()
			if err := wantReset(silent); err != nil {
				t.Errorf("a flow without bytes: %v", err)
			}
			if err := wantReset(receiving); err != nil {
				t.Errorf("an end that receives: %v", err)
			}
			err := wantReset(sending) // the system tells a reset once: to the reader or to the writer
			if write := <-written; err != nil && !errors.Is(write, syscall.ECONNRESET) {
				t.Errorf("an end that sends: %v, the writer %v", err, write)
			}
			for _, nc := range []*net.TCPConn{source, sink} { // what they see is the system's matter
				_ = nc.Close()
			}
			running.Wait()
		})
	}
}

// TestHalfCloseThenTheGatewayLeaves shows that what was sent before the end arrives also when the gateway that has
// passed it on, and is done with the flow, is stopped in good order while the other one still holds the tail.
func TestHalfCloseThenTheGatewayLeaves(t *testing.T) {
	const n = 8 << 20
	for _, leaves := range []string{"entry", "exit"} {
		t.Run(leaves, func(t *testing.T) {
			ln := loopback(t)
			p := newPair(t, ln.Addr().String())
			client, server := p.connect(t, ln)
			from, to, leaving := client, server, p.entry
			if leaves == "exit" {
				from, to, leaving = server, client, p.exit
			}
			// A small buffer, so that the tail waits in the gateway that stays.
			if err := errors.Join(to.SetReadBuffer(256<<10), to.CloseWrite()); err != nil {
				t.Fatal(err)
			}
			if _, err := io.Copy(io.Discard, from); err != nil {
				t.Fatal(err)
			}
			tr := &transfer{id: 1}
			sent := make(chan error, 1)
			go func() { sent <- tr.send(from, 'u', n) }() // ends when all is sent, or at the deadline; received below
			// Read no more than is needed for the gateway to be done with the flow.
			var got bytes.Buffer
			for leaving.flowsEnded() == 0 && got.Len() < n {
				if _, err := io.CopyN(&got, to, 16<<10); err != nil {
					t.Fatalf("after %d bytes: %v", got.Len(), err)
				}
			}
			if err := <-sent; err != nil {
				t.Fatal(err)
			}
			early := got.Len()
			if err := leaving.cmd.Process.Signal(syscall.SIGTERM); err != nil {
				t.Fatal(err)
			}
			within(t, "end of the gateway", func() error {
				if leaving.alive() == nil {
					return errors.New("it runs still")
				}
				return nil
			})
			_, err := io.Copy(&got, to)
			t.Logf("%d of %d bytes were read before the gateway had left", early, n)
			if want, _ := io.ReadAll(tr.content('u', n)); err != nil || !bytes.Equal(got.Bytes(), want) {
				t.Errorf("%d bytes, %d of them before the gateway left, %v, want %d and the end", got.Len(), early, err, n)
			}
		})
	}
}

// flowsEnded returns how many flows of g have ended.
func (g *gateway) flowsEnded() int { return strings.Count(g.out.String(), " msg=flow ") }
