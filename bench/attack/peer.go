package attack

import (
	"bufio"
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"sync"
	"time"

	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"
)

// Peer is one hostile end of an HTTP/2 connection. It writes what it is told, legal or not, and takes note of
// what the gateway answers. The writing methods are for one goroutine.
type Peer struct {
	Next uint32 // id of the next stream to open

	nc     net.Conn
	fr     *http2.Framer // writes
	out    *lockedWriter
	enc    *hpack.Encoder
	block  bytes.Buffer
	target string // where its tunnels lead

	mu      sync.Mutex
	changed sync.Cond
	seen    Seen // guarded by mu
	stopped chan struct{}
	quiet   bool // PING and SETTINGS are not answered any more; guarded by mu
}

// Seen is what came from the gateway.
type Seen struct {
	Settled   bool                     // SETTINGS and the acknowledgement of ours
	GoAways   []http2.ErrCode          // in order
	Resets    int                      // RST_STREAM frames
	ResetBy   map[uint32]http2.ErrCode // streams reset and how, the first thousands
	Status    map[uint32]string        // answers, likewise
	Data      int                      // bytes of DATA
	Frames    int                      // DATA frames
	Echo      map[uint32]string        // DATA, the first few KiB of each stream
	Opened    []uint32                 // streams that the gateway has opened
	Ended     bool                     // the gateway has closed the connection
	EndReason error
}

// kept bounds what Seen keeps of each kind.
const kept = 4096

// lockedWriter takes whole frames from the attack and from the reader that answers.
type lockedWriter struct {
	mu sync.Mutex
	w  *bufio.Writer
}

func (l *lockedWriter) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.w.Write(p)
}

func (l *lockedWriter) flush() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.w.Flush()
}

// newPeer takes over nc, whose TLS handshake is done.
func newPeer(nc net.Conn, target string) *Peer {
	p := &Peer{Next: 1, nc: nc, target: target, stopped: make(chan struct{})}
	p.out = &lockedWriter{w: bufio.NewWriterSize(nc, 32<<10)}
	p.fr = http2.NewFramer(p.out, nil)
	p.fr.AllowIllegalWrites = true
	p.enc = hpack.NewEncoder(&p.block)
	p.changed.L = &p.mu
	p.seen.ResetBy, p.seen.Status, p.seen.Echo = map[uint32]http2.ErrCode{}, map[uint32]string{}, map[uint32]string{}
	return p
}

// dialTLS connects to a gateway with the client's side of TLS.
func dialTLS(address string, conf *tls.Config) (*tls.Conn, error) {
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	nc, err := new(net.Dialer).DialContext(ctx, "tcp", address)
	if err != nil {
		return nil, err
	}
	tc := tls.Client(nc, conf)
	if err := tc.HandshakeContext(ctx); err != nil {
		_ = nc.Close()
		return nil, err
	}
	return tc, nil
}

// hello begins a client's connection and waits until both sides have settled.
func (p *Peer) hello(settings ...http2.Setting) error {
	if _, err := io.WriteString(p.out, http2.ClientPreface); err != nil {
		return err
	}
	return p.settle(settings...)
}

func (p *Peer) settle(settings ...http2.Setting) error {
	if err := errors.Join(p.fr.WriteSettings(settings...), p.Flush()); err != nil {
		return err
	}
	go p.readLoop() // ends with the connection; Close waits for it
	if !p.Wait(patience, func(s *Seen) bool { return s.Settled || s.Ended }) || p.Look().Ended {
		return errors.Join(errors.New("no HTTP/2 handshake"), p.Look().EndReason)
	}
	return nil
}

// Flush writes out what is buffered. It fails when the gateway has closed, or does not read for patience.
func (p *Peer) Flush() error {
	_ = p.nc.SetWriteDeadline(time.Now().Add(patience)) // a closed one fails below
	return p.out.flush()
}

// Hush stops the answers to PING and SETTINGS, which would come between.
func (p *Peer) Hush() {
	p.mu.Lock()
	p.quiet = true
	p.mu.Unlock()
}

// Close ends the connection without a word.
func (p *Peer) Close() {
	_ = p.nc.Close() // it may have been closed
	<-p.stopped
}

// Look returns a copy of what was seen so far; its maps are shared and only for use under Wait.
func (p *Peer) Look() Seen {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.seen
}

// Wait waits until ok reports true, for d at most, and reports whether it did.
func (p *Peer) Wait(d time.Duration, ok func(*Seen) bool) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	timer := time.AfterFunc(d, func() { p.changed.Broadcast() })
	defer timer.Stop()
	for end := time.Now().Add(d); !ok(&p.seen); p.changed.Wait() {
		if !time.Now().Before(end) {
			return false
		}
	}
	return true
}

// readLoop takes note of what comes until the connection ends.
func (p *Peer) readLoop() {
	defer close(p.stopped)
	answers := http2.NewFramer(p.out, p.nc)
	answers.SetMaxReadFrameSize(1 << 20)
	dec := hpack.NewDecoder(4096, nil)
	acked := false
	for {
		f, err := answers.ReadFrame()
		if err != nil {
			p.note(func(s *Seen) { s.Ended, s.EndReason = true, err })
			return
		}
		p.mu.Lock()
		quiet := p.quiet
		p.mu.Unlock()
		switch f := f.(type) {
		case *http2.SettingsFrame:
			acked = acked || f.IsAck()
			if !f.IsAck() && !quiet {
				_ = errors.Join(answers.WriteSettingsAck(), p.Flush()) // reading tells
			}
			p.note(func(s *Seen) { s.Settled = acked })
		case *http2.PingFrame:
			if !f.IsAck() && !quiet {
				_ = errors.Join(answers.WritePing(true, f.Data), p.Flush()) // reading tells
			}
		case *http2.HeadersFrame:
			fields, err := dec.DecodeFull(f.HeaderBlockFragment())
			p.note(func(s *Seen) { s.headers(f, fields, err) })
		default:
			p.note(func(s *Seen) { s.frame(f) })
		}
	}
}

func (p *Peer) note(f func(*Seen)) {
	p.mu.Lock()
	defer p.mu.Unlock()
	f(&p.seen)
	p.changed.Broadcast()
}

func (s *Seen) headers(f *http2.HeadersFrame, fields []hpack.HeaderField, err error) {
	if err != nil {
		s.EndReason = err
	}
	for _, x := range fields {
		if x.Name == ":status" && len(s.Status) < kept {
			s.Status[f.StreamID] = x.Value
		}
		if x.Name == ":method" {
			s.Opened = append(s.Opened, f.StreamID)
		}
	}
}

func (s *Seen) frame(f http2.Frame) {
	switch f := f.(type) {
	case *http2.GoAwayFrame:
		s.GoAways = append(s.GoAways, f.ErrCode)
	case *http2.RSTStreamFrame:
		s.Resets++
		if len(s.ResetBy) < kept {
			s.ResetBy[f.StreamID] = f.ErrCode
		}
	case *http2.DataFrame:
		s.Data += len(f.Data())
		s.Frames++
		if text := s.Echo[f.StreamID]; len(s.Echo) < kept && len(text) < kept {
			s.Echo[f.StreamID] = text + string(f.Data())
		}
	}
}

// Encode returns the block of a field list given as names and values.
func (p *Peer) Encode(fields ...string) []byte {
	p.block.Reset()
	for i := 0; i+1 < len(fields); i += 2 {
		_ = p.enc.WriteField(hpack.HeaderField{Name: fields[i], Value: fields[i+1]}) // to memory: no error
	}
	return bytes.Clone(p.block.Bytes())
}

// Headers writes a header block in one frame.
func (p *Peer) Headers(id uint32, end bool, fields ...string) error {
	return p.fr.WriteHeaders(http2.HeadersFrameParam{StreamID: id, EndHeaders: true, EndStream: end, BlockFragment: p.Encode(fields...)})
}

// Connect asks for a tunnel to the target and returns its stream.
func (p *Peer) Connect() (uint32, error) {
	id := p.Next
	p.Next += 2
	return id, p.Headers(id, false, ":method", "CONNECT", ":authority", p.target)
}

// Tunnel opens a tunnel and waits for its 200.
func (p *Peer) Tunnel() (uint32, error) {
	id, err := p.Connect()
	if err = errors.Join(err, p.Flush()); err != nil {
		return id, err
	}
	if !p.Wait(patience, func(s *Seen) bool { return s.Status[id] != "" || s.Ended || s.reset(id) }) || p.status(id) != "200" {
		return id, fmt.Errorf("CONNECT %s = %q", p.target, p.status(id))
	}
	return id, nil
}

// Echo sends text through a tunnel to an echo and wants it back. What came is given back as window.
func (p *Peer) Echo(id uint32, text string) error {
	p.mu.Lock()
	p.seen.Echo[id] = ""
	p.mu.Unlock()
	if err := errors.Join(p.fr.WriteData(id, false, []byte(text)), p.Flush()); err != nil {
		return err
	}
	p.Wait(patience, func(s *Seen) bool { return len(s.Echo[id]) >= len(text) || s.Ended || s.reset(id) })
	p.mu.Lock()
	defer p.mu.Unlock()
	if got := p.seen.Echo[id]; got != text {
		return fmt.Errorf("echo of the tunnel on stream %d = %q, want %q", id, got, text)
	}
	n := uint32(len(text))
	return errors.Join(p.fr.WriteWindowUpdate(0, n), p.fr.WriteWindowUpdate(id, n), p.Flush())
}

// last is the code of the last GOAWAY, NO_ERROR where there was none.
func (s *Seen) last() http2.ErrCode {
	if len(s.GoAways) == 0 {
		return http2.ErrCodeNo
	}
	return s.GoAways[len(s.GoAways)-1]
}

func (s *Seen) reset(id uint32) bool {
	_, ok := s.ResetBy[id]
	return ok
}

func (p *Peer) status(id uint32) string {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.seen.Status[id]
}
