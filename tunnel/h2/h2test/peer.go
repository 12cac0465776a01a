package h2test

import (
	"bytes"
	"errors"
	"fmt"
	"net"
	"os"
	"testing"
	"time"

	"golang.org/x/net/http2/hpack"
)

// Preface is what a client sends first (RFC 9113, section 3.4).
const Preface = "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"

// Timeout is how long the Want methods wait unless Peer.Timeout says otherwise; synthetic time in a bubble.
const Timeout = 5 * time.Second

// initialWindow is where every window starts (RFC 9113, section 6.9.2).
const initialWindow = 65535

// Peer is one end of an HTTP/2 connection that does what a test tells it to. A Peer is for one goroutine,
// the test's.
//
// When a write fails because the tested end has closed or does not read, the Peer says so in the next
// failing Want and by Broken; it writes nothing any more.
type Peer struct {
	// Timeout is how long each Want method waits for its frame; 0 means the constant Timeout.
	Timeout time.Duration
	// NoSettingsAck keeps the Peer from acknowledging SETTINGS as it reads them.
	NoSettingsAck bool
	// NoPingAck keeps the Peer from answering PING as it reads them.
	NoPingAck bool
	// NoAudit switches the audit of what the tested end sends off.
	NoAudit bool
	// Theirs holds the settings that the tested end has announced, last value each.
	Theirs map[SettingID]uint32

	t      testing.TB
	nc     net.Conn
	server bool // the Peer plays the server

	enc    *hpack.Encoder
	encBuf bytes.Buffer
	dec    *hpack.Decoder

	in       []byte  // read and not yet parsed
	readErr  error   // why nothing more can be read
	writeErr error   // why nothing more can be written
	block    *Frame  // a field block under way
	queue    []Frame // read and not yet wanted by the script
	ignored  map[FrameType]bool

	sentSettings bool
	owedAcks     int // for SETTINGS that came before the Peer had sent its own

	audit audit
}

// NewClient returns a Peer that plays the client on nc. It writes nothing by itself before Handshake or
// WritePreface. nc is closed when the test ends.
func NewClient(t testing.TB, nc net.Conn) *Peer { return newPeer(t, nc, false) }

// NewServer returns a Peer that plays the server on nc. nc is closed when the test ends.
func NewServer(t testing.TB, nc net.Conn) *Peer { return newPeer(t, nc, true) }

func newPeer(t testing.TB, nc net.Conn, server bool) *Peer {
	p := &Peer{t: t, nc: nc, server: server, Theirs: map[SettingID]uint32{}, ignored: map[FrameType]bool{}}
	p.enc = hpack.NewEncoder(&p.encBuf)
	p.dec = hpack.NewDecoder(4096, nil)
	p.audit = newAudit(server)
	t.Cleanup(p.Close)
	return p
}

// Bidirectional tells the audit that the tested end may open streams and promise whatever its role is; see
// h2.Config. To be called before the Handshake.
func (p *Peer) Bidirectional() { p.audit.bidirectional = true }

// Close closes the connection without a word.
func (p *Peer) Close() { p.nc.Close() }

// Broken says if a write has failed: the tested end has closed the connection or has stopped reading.
func (p *Peer) Broken() bool { return p.writeErr != nil }

// Ignore makes the Want methods pass over frames of these types unless they are asked for by name.
// SETTINGS, PING, WINDOW_UPDATE, PRIORITY and unknown types are passed over without asking.
func (p *Peer) Ignore(types ...FrameType) {
	for _, t := range types {
		p.ignored[t] = true
	}
}

// Handshake does the start of the connection: preface and SETTINGS one way, SETTINGS the other way, and
// both acknowledgements.
func (p *Peer) Handshake(settings ...Setting) {
	p.t.Helper()
	if p.server {
		p.WantPreface()
		p.WriteSettings(settings...)
	} else {
		p.WritePreface(settings...)
		p.WantSettings("the server connection preface is a SETTINGS frame (section 3.4)")
	}
	p.WantSettingsAck("SETTINGS of the preface are acknowledged (section 3.4)")
}

// SendWindow says how many bytes of DATA the Peer may still send on the stream, or on the connection for
// id 0, by what it has read so far.
func (p *Peer) SendWindow(id uint32) int64 {
	if id == 0 {
		return p.audit.sendWindow
	}
	return p.audit.stream(id).sendWindow
}

// pump reads one frame, puts it into the queue and does what it obliges the Peer to do. It returns the
// error that ended the reading, os.ErrDeadlineExceeded when there was no whole frame before deadline.
func (p *Peer) pump(deadline time.Time) error {
	f, err := p.readFrame(deadline)
	if err != nil {
		return err
	}
	p.auditf(p.audit.received(f))
	if f.Type == Headers || f.Type == PushPromise || f.Type == Continuation {
		if f, err = p.assemble(f); err != nil {
			return err
		}
		if f.Type == Continuation {
			return nil // more to come
		}
	}
	switch {
	case f.Type == Settings && f.Flags&Ack == 0:
		p.obey(f)
	case f.Type == Ping && f.Flags&Ack == 0 && !p.NoPingAck:
		p.WriteFrame(Ping, Ack, 0, f.Payload)
	}
	p.queue = append(p.queue, f)
	return nil
}

func (p *Peer) auditf(breaches []string) {
	p.t.Helper()
	for _, breach := range breaches {
		if !p.NoAudit {
			p.t.Errorf("audit of what the tested end sends: %s", breach)
		}
	}
}

// readFrame reads one frame as it is on the wire. What was read of half a frame is kept for the next call.
func (p *Peer) readFrame(deadline time.Time) (Frame, error) {
	if err := p.fill(9, deadline); err != nil {
		return Frame{}, err
	}
	h := p.in
	n := int(h[0])<<16 | int(h[1])<<8 | int(h[2])
	if err := p.fill(9+n, deadline); err != nil {
		return Frame{}, err
	}
	h = p.in
	f := Frame{Type: FrameType(h[3]), Flags: Flags(h[4]),
		StreamID: uint32(h[5])<<24 | uint32(h[6])<<16 | uint32(h[7])<<8 | uint32(h[8]),
		Payload:  bytes.Clone(h[9 : 9+n])}
	p.in = h[9+n:]
	return f, nil
}

// fill reads until n bytes wait in p.in.
func (p *Peer) fill(n int, deadline time.Time) error {
	for len(p.in) < n {
		if p.readErr != nil {
			return p.readErr
		}
		p.nc.SetReadDeadline(deadline)
		buf := make([]byte, max(n-len(p.in), 4096))
		got, err := p.nc.Read(buf)
		p.in = append(p.in, buf[:got]...)
		switch {
		case err == nil:
		case errors.Is(err, os.ErrDeadlineExceeded):
			return err
		default:
			p.readErr = err
		}
	}
	return nil
}

// assemble collects the frames of a field block. It returns the finished HEADERS or PUSH_PROMISE frame, or
// the CONTINUATION frame itself when the block is not at its end.
func (p *Peer) assemble(f Frame) (Frame, error) {
	fragment, ok := f.fragment()
	if f.Type != Continuation {
		first := f
		p.block = &first
	}
	if !ok || p.block == nil {
		return f, fmt.Errorf("h2test: cannot take %v for part of a field block", f)
	}
	p.block.Block = append(p.block.Block, fragment...)
	if f.Type == Continuation {
		p.block.Continuations++
	}
	if f.Flags&EndHeaders == 0 {
		return Frame{Type: Continuation}, nil
	}
	whole := *p.block
	p.block = nil
	fields, err := p.dec.DecodeFull(whole.Block)
	if err != nil {
		return f, fmt.Errorf("h2test: field block of %v: %w", f, err)
	}
	whole.Fields = fields
	p.auditf(p.audit.section(whole))
	return whole, nil
}

// obey applies SETTINGS of the tested end and acknowledges them.
func (p *Peer) obey(f Frame) {
	for _, s := range f.Settings() {
		p.Theirs[s.ID] = s.Value
		if s.ID == HeaderTableSize {
			p.enc.SetMaxDynamicTableSizeLimit(s.Value)
		}
	}
	switch {
	case p.NoSettingsAck:
	case !p.sentSettings:
		p.owedAcks++ // "MUST be acknowledged … after sending the connection preface" (section 3.4)
	default:
		p.WriteSettingsAck()
	}
}
