package peers

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"sync"
)

const (
	// streamWindowBytes and connWindowBytes are what HBONE peers announce, and what an operator sets who knows
	// that the defaults throttle. They are used where a library lets one set them.
	streamWindowBytes = 4 << 20
	connWindowBytes   = 16 << 20
	// frameBytes is the largest frame that is accepted.
	frameBytes = 1 << 20
)

// Serve runs one proxy of a pair on ln until the listener fails. kind is "tls-relay", "x-net-http2" or
// "grpc-go". An entry accepts TCP connections and sends them to the exit at to; an exit accepts from entries and
// connects to the target at to. Both find their certificates in dir, as Material says.
func Serve(kind, role, dir, to string, ln net.Listener) error {
	conf, err := Material(dir, role)
	if err != nil {
		return err
	}
	serve, ok := map[string]func(*tls.Config, string, net.Listener) error{
		"tls-relay entry":   tlsRelayEntry,
		"tls-relay exit":    tlsRelayExit,
		"x-net-http2 entry": netHTTP2Entry,
		"x-net-http2 exit":  netHTTP2Exit,
		"grpc-go entry":     grpcEntry,
		"grpc-go exit":      grpcExit,
	}[kind+" "+role]
	if !ok {
		return fmt.Errorf("there is no %s of a pair %s", role, kind)
	}
	return serve(conf, to, ln)
}

// ExitName is the DNS name in the certificate of every exit.
const ExitName = "exit.bench"

// Material reads role.pem, role.key and roots.pem in dir and makes of them a configuration that serves both
// halves: TLS 1.3 only, certificates asked for and verified on either side. The cipher is the first of
// crypto/tls where the processor has AES: AES-128-GCM.
func Material(dir, role string) (*tls.Config, error) {
	cert, err := tls.LoadX509KeyPair(filepath.Join(dir, role+".pem"), filepath.Join(dir, role+".key"))
	if err != nil {
		return nil, err
	}
	text, err := os.ReadFile(filepath.Join(dir, "roots.pem"))
	if err != nil {
		return nil, err
	}
	roots := x509.NewCertPool()
	if !roots.AppendCertsFromPEM(text) {
		return nil, errors.New("no certificate in roots.pem")
	}
	return &tls.Config{
		MinVersion:   tls.VersionTLS13,
		Certificates: []tls.Certificate{cert},
		RootCAs:      roots,
		ServerName:   ExitName,
		ClientCAs:    roots,
		ClientAuth:   tls.RequireAndVerifyClientCert,
	}, nil
}

// accept hands every connection of ln to handle, in a goroutine of its own, until ln fails.
func accept(ln net.Listener, handle func(net.Conn)) error {
	for {
		c, err := ln.Accept()
		if err != nil {
			return err
		}
		// Ends with its connection. Nobody waits: the process is ended from outside.
		go handle(c)
	}
}

// halfCloser is a connection whose one direction can be ended.
type halfCloser interface {
	net.Conn
	CloseWrite() error
}

// join copies both ways between a and b until both directions have ended, and closes both.
func join(a, b halfCloser) {
	defer a.Close()
	defer b.Close()
	var up sync.WaitGroup
	up.Go(func() { pipe(b, a) })
	pipe(a, b)
	up.Wait()
}

// pipe copies from src to dst and passes the end on; a fault ends both connections.
func pipe(dst, src halfCloser) {
	// io.Copy as everybody writes it: between TCP and TLS it is a loop over a buffer of 32 KiB.
	if _, err := io.Copy(dst, src); err != nil {
		_ = src.Close()
		_ = dst.Close()
		return
	}
	_ = dst.CloseWrite() // fails if dst has gone, and then the other direction says so
}

// dialTCP connects to addr.
func dialTCP(ctx context.Context, addr string) (*net.TCPConn, error) {
	c, err := new(net.Dialer).DialContext(ctx, "tcp", addr)
	if err != nil {
		return nil, err
	}
	return c.(*net.TCPConn), nil
}
