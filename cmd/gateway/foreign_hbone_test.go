package main_test

import (
	"bytes"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"
)

// What follows is a peer written from notes on how HBONE looks on the wire, and from nothing of ours: it stands for a ztunnel
// where there is none. It sends what a ztunnel sends, byte for byte where they say which, and takes no more than a ztunnel
// takes.

// ztConn is an HTTP/2 connection as ztunnel has it, of either side.
type ztConn struct {
	nc     net.Conn
	client bool
	accept func(*ztStream) // of a server: serves a stream, in a goroutine

	wmu sync.Mutex // one frame at a time
	fr  *http2.Framer
	enc *hpack.Encoder
	blk bytes.Buffer

	mu      sync.Mutex
	cond    sync.Cond
	window  int64 // of the connection, for sending
	initial int64 // of a new stream, for sending
	streams map[uint32]*ztStream
	err     error
	running sync.WaitGroup
}

// ztStream is one CONNECT.
type ztStream struct {
	c       *ztConn
	id      uint32
	head    []hpack.HeaderField // of the request at a server, of the answer at a client; nil until it came
	noBody  bool                // the answer has ended the stream
	window  int64
	in      bytes.Buffer
	eof     bool
	err     error // a reset
	code    http2.ErrCode
	refusal bool
}

// The settings of a ztunnel.
const (
	ztStreamWindow = 4 << 20
	ztConnMore     = 16711681 // beyond the 64 KiB - 1 of RFC 9113: 16 MiB
	ztMaxFrame     = 1 << 20
)

// newZT begins HTTP/2 on nc.
func newZT(nc net.Conn, client bool, accept func(*ztStream)) (*ztConn, error) {
	c := &ztConn{nc: nc, client: client, accept: accept, window: 65535, initial: 65535, streams: make(map[uint32]*ztStream)}
	c.cond.L = &c.mu
	c.fr = http2.NewFramer(nc, nc)
	c.fr.SetMaxReadFrameSize(ztMaxFrame)
	c.fr.ReadMetaHeaders = hpack.NewDecoder(4096, nil)
	c.enc = hpack.NewEncoder(&c.blk)
	settings := []http2.Setting{{ID: http2.SettingMaxConcurrentStreams, Val: 200}, {ID: http2.SettingInitialWindowSize, Val: ztStreamWindow},
		{ID: http2.SettingMaxFrameSize, Val: ztMaxFrame}, {ID: http2.SettingMaxHeaderListSize, Val: 65536}}
	if client {
		settings[0] = http2.Setting{ID: http2.SettingEnablePush, Val: 0}
		settings[3].Val = 16384
		if _, err := io.WriteString(nc, http2.ClientPreface); err != nil {
			return nil, err
		}
	} else {
		preface := make([]byte, len(http2.ClientPreface))
		if _, err := io.ReadFull(nc, preface); err != nil || string(preface) != http2.ClientPreface {
			return nil, fmt.Errorf("preface %q, %v", preface, err)
		}
	}
	if err := errors.Join(c.fr.WriteSettings(settings...), c.fr.WriteWindowUpdate(0, ztConnMore)); err != nil {
		return nil, err
	}
	c.running.Go(c.readLoop) // ends with nc, which close ends and waits for
	return c, nil
}

func (c *ztConn) close() {
	_ = c.nc.Close()
	c.running.Wait()
}

// readLoop takes frames until the connection ends.
func (c *ztConn) readLoop() {
	var err error
	for err == nil {
		var f http2.Frame
		if f, err = c.fr.ReadFrame(); err == nil {
			err = c.take(f)
		}
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.err = err
	c.cond.Broadcast()
}

// take handles one frame.
func (c *ztConn) take(f http2.Frame) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	defer c.cond.Broadcast()
	s := c.streams[f.Header().StreamID]
	switch f := f.(type) {
	case *http2.SettingsFrame:
		if f.IsAck() {
			return nil
		}
		if v, ok := f.Value(http2.SettingInitialWindowSize); ok {
			for _, s := range c.streams {
				s.window += int64(v) - c.initial
			}
			c.initial = int64(v)
		}
		return c.write(func() error { return c.fr.WriteSettingsAck() })
	case *http2.PingFrame:
		if f.IsAck() {
			return nil
		}
		return c.write(func() error { return c.fr.WritePing(true, f.Data) })
	case *http2.WindowUpdateFrame:
		if f.StreamID == 0 {
			c.window += int64(f.Increment)
		} else if s != nil {
			s.window += int64(f.Increment)
		}
	case *http2.MetaHeadersFrame:
		return c.takeHead(s, f)
	case *http2.DataFrame:
		if s == nil {
			return nil // it was reset
		}
		s.in.Write(f.Data())
		s.eof = s.eof || f.StreamEnded()
	case *http2.RSTStreamFrame:
		if s != nil {
			s.code, s.refusal = f.ErrCode, true
			if s.err = fmt.Errorf("reset with %v", f.ErrCode); f.ErrCode == http2.ErrCodeNo || f.ErrCode == http2.ErrCodeCancel {
				s.err, s.eof = nil, true // as ztunnel reads it
			}
		}
	}
	return nil
}

// takeHead takes a request or an answer. Called with mu held.
func (c *ztConn) takeHead(s *ztStream, f *http2.MetaHeadersFrame) error {
	if c.client {
		if s == nil {
			return fmt.Errorf("an answer on stream %d", f.StreamID)
		}
		s.head, s.noBody = f.Fields, f.StreamEnded()
		s.eof = s.noBody
		return nil
	}
	if s != nil {
		return errors.New("trailers")
	}
	s = &ztStream{c: c, id: f.StreamID, head: f.Fields, window: c.initial}
	c.streams[s.id] = s
	c.running.Go(func() { c.accept(s) }) // ends with the stream or the connection; close waits for it
	return nil
}

// write lets f write a frame.
func (c *ztConn) write(f func() error) error {
	c.wmu.Lock()
	defer c.wmu.Unlock()
	return f()
}

// headers sends a head.
func (c *ztConn) headers(id uint32, end bool, fields ...string) error {
	return c.write(func() error {
		c.blk.Reset()
		for i := 0; i < len(fields); i += 2 {
			if err := c.enc.WriteField(hpack.HeaderField{Name: fields[i], Value: fields[i+1]}); err != nil {
				return err
			}
		}
		return c.fr.WriteHeaders(http2.HeadersFrameParam{StreamID: id, BlockFragment: c.blk.Bytes(), EndHeaders: true, EndStream: end})
	})
}

// connect asks for a tunnel on a new stream and waits for the answer: exactly 200 is a yes.
func (c *ztConn) connect(authority string, more ...string) (*ztStream, error) {
	c.mu.Lock()
	s := &ztStream{c: c, id: uint32(2*len(c.streams) + 1), window: c.initial}
	c.streams[s.id] = s
	c.mu.Unlock()
	fields := append([]string{":method", "CONNECT", ":authority", authority,
		"baggage", "k8s.cluster.name=c1,k8s.namespace.name=default,k8s.deployment.name=zt,service.name=zt,service.version=v1",
		"forwarded", `for="10.99.0.2:60470"`, "traceparent", "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-00"}, more...)
	if err := c.headers(s.id, false, fields...); err != nil {
		return nil, err
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	for s.head == nil && c.err == nil && s.err == nil && !s.refusal {
		c.cond.Wait()
	}
	switch {
	case s.head == nil:
		return nil, fmt.Errorf("no answer: %w", errors.Join(c.err, s.err))
	case s.field(":status") != "200":
		return s, fmt.Errorf("answer %s, %s", s.field(":status"), s.field("proxy-status"))
	}
	return s, nil
}

// field returns a field of the head, "" where there is none, its values with commas between where there are several.
func (s *ztStream) field(name string) string {
	var list []string
	for _, f := range s.head {
		if f.Name == name {
			list = append(list, f.Value)
		}
	}
	return strings.Join(list, ",")
}

// names are those of the fields, in order.
func (s *ztStream) names() string {
	var list []string
	for _, f := range s.head {
		list = append(list, f.Name)
	}
	return strings.Join(list, " ")
}

// Read returns what the peer has sent, and gives the window back.
func (s *ztStream) Read(p []byte) (int, error) {
	c := s.c
	c.mu.Lock()
	for s.in.Len() == 0 && !s.eof && s.err == nil && c.err == nil {
		c.cond.Wait()
	}
	n, _ := s.in.Read(p)
	eof, err := s.eof, errors.Join(s.err, c.err)
	c.mu.Unlock()
	switch {
	case n > 0:
		return n, c.write(func() error {
			return errors.Join(c.fr.WriteWindowUpdate(0, uint32(n)), c.fr.WriteWindowUpdate(s.id, uint32(n)))
		})
	case eof:
		return 0, io.EOF
	}
	return 0, err
}

// Write sends p in frames of 16 KiB at most, as the windows let it.
func (s *ztStream) Write(p []byte) (total int, err error) {
	c := s.c
	for len(p) > 0 {
		c.mu.Lock()
		for min(c.window, s.window) <= 0 && s.err == nil && c.err == nil && !s.refusal {
			c.cond.Wait()
		}
		if err := errors.Join(s.err, c.err); err != nil || s.refusal {
			c.mu.Unlock()
			return total, errors.Join(err, io.ErrClosedPipe)
		}
		n := int(min(int64(len(p)), c.window, s.window, 16384))
		c.window, s.window = c.window-int64(n), s.window-int64(n)
		c.mu.Unlock()
		if err := c.write(func() error { return c.fr.WriteData(s.id, false, p[:n]) }); err != nil {
			return total, err
		}
		total, p = total+n, p[n:]
	}
	return total, nil
}

// CloseWrite ends the direction, with an empty DATA frame as ztunnel does.
func (s *ztStream) CloseWrite() error {
	return s.c.write(func() error { return s.c.fr.WriteData(s.id, true, nil) })
}

// Close is CloseWrite: the connection ends it.
func (s *ztStream) Close() error                     { return s.CloseWrite() }
func (s *ztStream) LocalAddr() net.Addr              { return s.c.nc.LocalAddr() }
func (s *ztStream) RemoteAddr() net.Addr             { return s.c.nc.RemoteAddr() }
func (s *ztStream) SetDeadline(time.Time) error      { return nil } // that of the connection counts
func (s *ztStream) SetReadDeadline(time.Time) error  { return nil }
func (s *ztStream) SetWriteDeadline(time.Time) error { return nil }

// ztTLS are ztunnel's settings of TLS for either side: 1.3 alone, no name, a peer that has one of the identities.
func (m *mesh) ztTLS(t *testing.T, name string, identities ...string) *tls.Config {
	t.Helper()
	return &tls.Config{
		Certificates: []tls.Certificate{m.certificate(t, name)}, MinVersion: tls.VersionTLS13, MaxVersion: tls.VersionTLS13,
		NextProtos: []string{"h2"}, SessionTicketsDisabled: true, ClientAuth: tls.RequireAnyClientCert,
		InsecureSkipVerify: true, // no host names; VerifyConnection does it
		VerifyConnection: func(cs tls.ConnectionState) error {
			leaf := cs.PeerCertificates[0]
			if _, err := leaf.Verify(x509.VerifyOptions{Roots: m.roots, KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageAny}}); err != nil {
				return err
			}
			if len(leaf.URIs) != 1 || !slices.Contains(identities, leaf.URIs[0].String()) {
				return fmt.Errorf("the peer is %v, want one of %v", leaf.URIs, identities)
			}
			return nil
		},
	}
}

// ztDial begins TLS and HTTP/2 over nc.
func ztDial(t *testing.T, nc net.Conn, conf *tls.Config) (*ztConn, error) {
	t.Helper()
	tc := tls.Client(nc, conf)
	if err := tc.Handshake(); err != nil {
		return nil, err
	}
	if p := tc.ConnectionState().NegotiatedProtocol; p != "h2" {
		return nil, fmt.Errorf("ALPN %q, want h2", p)
	}
	c, err := newZT(tc, true, nil)
	if err != nil {
		return nil, err
	}
	t.Cleanup(c.close)
	return c, nil
}

// ztSeen is what a server has seen of one connection and a request on it.
type ztSeen struct {
	sni, alpn string
	peer      string
	request   *ztStream
}

// ztServer serves CONNECTs as a ztunnel does, with handle, which gets the stream after the answer. What it has seen is in seen.
func (m *mesh) ztServer(t *testing.T, conf *tls.Config, handle func(*ztStream)) (addr string, seen chan ztSeen) {
	t.Helper()
	seen = make(chan ztSeen, 100)
	addr = serve(t, func(nc *net.TCPConn) {
		_ = nc.SetDeadline(time.Now().Add(patience))
		var sni string
		conf := conf.Clone()
		conf.GetConfigForClient = func(h *tls.ClientHelloInfo) (*tls.Config, error) {
			sni = h.ServerName
			return nil, nil
		}
		tc := tls.Server(nc, conf)
		if tc.Handshake() != nil {
			return
		}
		cs := tc.ConnectionState()
		c, err := newZT(tc, false, func(s *ztStream) {
			seen <- ztSeen{sni: sni, alpn: cs.NegotiatedProtocol, peer: cs.PeerCertificates[0].URIs[0].String(), request: s}
			if s.field(":method") != "CONNECT" || s.field(":scheme")+s.field(":path") != "" {
				_ = s.c.headers(s.id, true, ":status", "400")
				return
			}
			if s.c.headers(s.id, false, ":status", "200", "baggage", "k8s.namespace.name=default,service.name=pod") == nil {
				handle(s)
			}
		})
		if err == nil {
			c.running.Wait()
		}
	})
	return addr, seen
}

// ztEcho sends back what comes, and then the end.
func ztEcho(s *ztStream) {
	if _, err := io.Copy(s, s); err == nil {
		_ = s.CloseWrite()
	}
}

// ztWantEcho sends n bytes, ends, and wants them back and the end.
func ztWantEcho(t *testing.T, s interface {
	io.ReadWriter
	CloseWrite() error
}, n int) {
	t.Helper()
	body := random(n)
	var sent sync.WaitGroup
	sent.Go(func() { // ends when all is sent, or with the connection; Wait below
		_, err := s.Write(body)
		if err := errors.Join(err, s.CloseWrite()); err != nil {
			t.Error(err)
		}
	})
	if got, err := io.ReadAll(s); !bytes.Equal(got, body) || err != nil {
		t.Errorf("echo = %d bytes, %v, want the %d that were sent and the end", len(got), err, n)
	}
	sent.Wait()
}
