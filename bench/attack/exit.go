package attack

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"sync"
	"syscall"
	"time"

	"golang.org/x/net/http2"

	"culvert/pki"
)

// Exit is a gateway under attack from a peer, with what its tunnels lead to.
type Exit struct {
	*Gateway
	Address string

	attacker *pki.Source
	servers  *servers
}

// StartExit runs an exit whose only destinations are this host's own addresses. memory is its budget.
func (m *Mesh) StartExit(memory string) (*Exit, error) {
	attacker, err := m.ca.Issue("attacker")
	if err != nil {
		return nil, err
	}
	s, err := newServers()
	if err != nil {
		return nil, err
	}
	ln, err := listen()
	if err != nil {
		s.close()
		return nil, err
	}
	e := &Exit{Address: ln.Addr().String(), attacker: attacker, servers: s}
	e.Gateway, err = m.start("exit", fmt.Sprintf("listeners:\n- {name: mesh, kind: hbone, address: %q}\n"+
		"routes:\n- {listeners: [mesh], destinations: [local]}\nmemory: %s\n", ln.Addr(), memory), ln)
	if err != nil {
		s.close()
	}
	return e, err
}

// Stop ends the exit and what its tunnels lead to.
func (e *Exit) Stop() {
	e.Gateway.Stop()
	e.servers.close()
}

// Peer connects a hostile peer, whose tunnels lead to target.
func (e *Exit) Peer(target string, settings ...http2.Setting) (*Peer, error) {
	tc, err := dialTLS(e.Address, e.attacker.ClientTLS(nil))
	if err != nil {
		return nil, err
	}
	p := newPeer(tc, target)
	if err := p.hello(settings...); err != nil {
		_ = tc.Close()
		return nil, err
	}
	return p, nil
}

// For connects the peer that an attack wants.
func (e *Exit) For(a *Attack) (*Peer, error) {
	target := e.servers.echo
	if a.Hangs {
		target = e.servers.hangs
	}
	return e.Peer(target, a.Settings...)
}

// servers are what tunnels lead to.
type servers struct {
	echo   string // sends back what it gets
	source string // sends without end
	hangs  string // does not answer, so that dials hang

	listeners []net.Listener
	fd        int        // of hangs
	filler    []net.Conn // fill its queue
	work      sync.WaitGroup

	mu   sync.Mutex
	open map[net.Conn]bool // guarded by mu; nil: closed
}

func newServers() (*servers, error) {
	s := &servers{fd: -1, open: map[net.Conn]bool{}}
	var err error
	if s.echo, err = s.serve(func(nc net.Conn) { _, _ = io.Copy(nc, nc) }); err == nil { // its end is nobody's matter
		s.source, err = s.serve(func(nc net.Conn) {
			_ = nc.(*net.TCPConn).SetWriteBuffer(64 << 10) // or it fills megabytes of the kernel's
			for buf := make([]byte, 64<<10); ; {
				if _, err := nc.Write(buf); err != nil {
					return
				}
			}
		})
	}
	if err == nil {
		err = s.hang()
	}
	if err != nil {
		s.close()
		return nil, err
	}
	return s, nil
}

// serve calls f for every connection to the address that it returns.
func (s *servers) serve(f func(net.Conn)) (string, error) {
	ln, err := listen()
	if err != nil {
		return "", err
	}
	s.listeners = append(s.listeners, ln)
	s.work.Go(func() { // ends with ln; close waits for it
		for {
			nc, err := ln.Accept()
			if err != nil {
				return
			}
			s.work.Go(func() { // ends with nc; close closes it and waits
				defer nc.Close()
				if s.note(nc, true) {
					f(nc)
				}
				s.note(nc, false)
			})
		}
	})
	return ln.Addr().String(), nil
}

func (s *servers) note(nc net.Conn, open bool) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.open == nil {
		return false
	}
	if open {
		s.open[nc] = true
	} else {
		delete(s.open, nc)
	}
	return true
}

// hang opens a socket that nobody accepts from, and fills its queue, so that the next connections get no
// answer to their SYN.
func (s *servers) hang() error {
	fd, err := syscall.Socket(syscall.AF_INET, syscall.SOCK_STREAM, 0)
	if err != nil {
		return err
	}
	s.fd = fd
	syscall.CloseOnExec(fd)
	if err := errors.Join(syscall.Bind(fd, &syscall.SockaddrInet4{Addr: [4]byte{127, 0, 0, 1}}), syscall.Listen(fd, 0)); err != nil {
		return err
	}
	at, err := syscall.Getsockname(fd)
	if err != nil {
		return err
	}
	s.hangs = fmt.Sprintf("127.0.0.1:%d", at.(*syscall.SockaddrInet4).Port)
	for range 4 {
		ctx, cancel := context.WithTimeout(context.Background(), 200*time.Millisecond)
		nc, err := new(net.Dialer).DialContext(ctx, "tcp", s.hangs)
		cancel()
		if err != nil {
			return nil // the queue is full
		}
		s.filler = append(s.filler, nc)
	}
	return errors.New("a queue of none takes four connections")
}

func (s *servers) close() {
	for _, ln := range s.listeners {
		_ = ln.Close() // the loop ends
	}
	for _, nc := range s.filler {
		_ = nc.Close()
	}
	if s.fd >= 0 {
		_ = syscall.Close(s.fd)
	}
	s.mu.Lock()
	for nc := range s.open {
		_ = nc.Close()
	}
	s.open = nil
	s.mu.Unlock()
	s.work.Wait()
}
