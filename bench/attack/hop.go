package attack

import (
	"context"
	"crypto/tls"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"strings"
	"sync"
	"time"

	"golang.org/x/net/http2"
)

// Entry is a gateway under attack from a hop that it leads to. Its apps reach the hostile hop by one listener
// and a good exit by another.
type Entry struct {
	*Gateway
	Hostile string // SOCKS5 listener that leads to the hop
	Good    string // and to the exit
	Hop     *Hop
	Exit    *Exit
}

// StartEntry runs an entry between a hostile hop and an exit, which it starts too.
func (m *Mesh) StartEntry() (*Entry, error) {
	exit, err := m.StartExit("256MiB")
	if err != nil {
		return nil, err
	}
	e := &Entry{Exit: exit}
	if e.Hop, err = m.startHop(); err == nil {
		err = e.start(m)
	}
	if err != nil {
		e.Stop()
		return nil, err
	}
	return e, nil
}

func (e *Entry) start(m *Mesh) error {
	hostile, err := listen()
	if err != nil {
		return err
	}
	good, err := listen()
	if err != nil {
		return err
	}
	e.Hostile, e.Good = hostile.Addr().String(), good.Addr().String()
	e.Gateway, err = m.start("entry", fmt.Sprintf(`listeners:
- {name: hostile, kind: socks5, address: %q}
- {name: good, kind: socks5, address: %q}
hops:
  hostile: {address: %q, connections: 1}
  good: {address: %q}
routes:
- {listeners: [hostile], via: [hostile]}
- {listeners: [good], via: [good]}
memory: 256MiB
`, e.Hostile, e.Good, e.Hop.Address, e.Exit.Address), hostile, good)
	return err
}

// Stop ends everything that StartEntry started.
func (e *Entry) Stop() {
	if e.Gateway != nil {
		e.Gateway.Stop()
	}
	if e.Hop != nil {
		e.Hop.close()
	}
	e.Exit.Stop()
}

// Innocent opens a flow through the good exit to its echo.
func (e *Entry) Innocent() (net.Conn, error) { return dialSOCKS(e.Good, e.Exit.servers.echo, patience) }

// App opens a flow that leads through the hostile hop, if that lets it, and waits for its answer.
func (e *Entry) App(within time.Duration) (net.Conn, error) {
	return dialSOCKS(e.Hostile, "192.0.2.1:80", within)
}

// Script is what a hostile hop does on each connection that it accepts, which is closed when it returns.
type Script struct {
	Settings []http2.Setting
	Run      func(p *Peer)
}

// Hop is a hostile server that an entry connects to.
type Hop struct {
	Address string

	ln   net.Listener
	conf *tls.Config
	work sync.WaitGroup

	mu     sync.Mutex
	script Script         // guarded by mu
	open   map[*Peer]bool // guarded by mu; nil: closed
}

func (m *Mesh) startHop() (*Hop, error) {
	id, err := m.ca.Issue("hop")
	if err != nil {
		return nil, err
	}
	ln, err := listen()
	if err != nil {
		return nil, err
	}
	h := &Hop{Address: ln.Addr().String(), ln: ln, conf: id.ServerTLS(nil), open: map[*Peer]bool{}, script: Script{Run: func(*Peer) {}}}
	h.work.Go(h.acceptLoop) // ends with ln; close waits for it
	return h, nil
}

// Play sets what is done on the connections accepted from now on, and cuts those before.
func (h *Hop) Play(s Script) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.script = s
	for p := range h.open {
		_ = p.nc.Close() // its script ends
	}
}

func (h *Hop) acceptLoop() {
	for {
		nc, err := h.ln.Accept()
		if err != nil {
			return
		}
		h.work.Go(func() { h.serve(nc) }) // ends with nc, which close closes
	}
}

func (h *Hop) serve(nc net.Conn) {
	defer nc.Close()
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	tc := tls.Server(nc, h.conf)
	if tc.HandshakeContext(ctx) != nil {
		return
	}
	p := newPeer(tc, "")
	h.mu.Lock()
	script := h.script
	if h.open == nil {
		h.mu.Unlock()
		return
	}
	h.open[p] = true
	h.mu.Unlock()
	if p.welcome(script.Settings...) == nil {
		script.Run(p)
	}
	h.mu.Lock()
	delete(h.open, p)
	h.mu.Unlock()
	p.Close()
}

// welcome begins a server's connection.
func (p *Peer) welcome(settings ...http2.Setting) error {
	preface := make([]byte, len(http2.ClientPreface))
	_ = p.nc.SetReadDeadline(time.Now().Add(patience)) // a closed one fails below
	if _, err := io.ReadFull(p.nc, preface); err != nil {
		close(p.stopped)
		return err
	}
	_ = p.nc.SetReadDeadline(time.Time{})
	if err := errors.Join(p.fr.WriteSettings(settings...), p.Flush()); err != nil {
		close(p.stopped)
		return err
	}
	go p.readLoop() // ends with the connection; Close waits for it
	return nil
}

func (h *Hop) close() {
	_ = h.ln.Close() // the loop ends
	h.mu.Lock()
	for p := range h.open {
		_ = p.nc.Close()
	}
	h.open = nil
	h.mu.Unlock()
	h.work.Wait()
}

// Request waits for the nth tunnel that the entry asks for on the connection, from 1, and returns its stream.
func (p *Peer) Request(n int) (uint32, bool) {
	ok := p.Wait(patience, func(s *Seen) bool { return len(s.Opened) >= n || s.Ended })
	p.mu.Lock()
	defer p.mu.Unlock()
	if !ok || len(p.seen.Opened) < n {
		return 0, false
	}
	return p.seen.Opened[n-1], true
}

// dialSOCKS connects to an address through a SOCKS5 listener. An answer that is no success is an error, and
// so is none.
func dialSOCKS(proxy, target string, within time.Duration) (net.Conn, error) {
	at, err := netip.ParseAddrPort(target)
	if err != nil {
		return nil, err
	}
	nc, err := net.Dial("tcp", proxy)
	if err != nil {
		return nil, err
	}
	ip := at.Addr().As4()
	request := binary.BigEndian.AppendUint16(append([]byte{5, 1, 0, 5, 1, 0, 1}, ip[:]...), at.Port())
	reply := make([]byte, 2+10)
	_ = nc.SetDeadline(time.Now().Add(within)) // a closed one fails below
	_, err = nc.Write(request)
	if err == nil {
		_, err = io.ReadFull(nc, reply)
	}
	if err == nil && reply[3] != 0 {
		err = fmt.Errorf("SOCKS reply %d", reply[3])
	}
	if err != nil {
		_ = nc.Close()
		return nil, err
	}
	return nc, nc.SetDeadline(time.Time{})
}

// HopAttack is something that a hop does to an entry when it is asked for a tunnel. Where Codes is empty the
// connection lives and only the flow ends.
type HopAttack struct {
	Row      int
	Name     string
	Settings []http2.Setting
	Answer   bool // the tunnel is given first
	Turn     func(p *Peer, id uint32) error
	Limit    int
	Codes    []http2.ErrCode
}

// HopAttacks are those of a hostile hop.
func HopAttacks() []HopAttack {
	frame := func(kind http2.FrameType, flags http2.Flags, conn bool, payload string) func(*Peer, uint32) error {
		return func(p *Peer, id uint32) error {
			if conn {
				id = 0
			}
			return p.fr.WriteRawFrame(kind, flags, id, []byte(payload))
		}
	}
	head := func(fields ...string) func(*Peer, uint32) error {
		return func(p *Peer, id uint32) error { return p.Headers(id, false, fields...) }
	}
	list := []HopAttack{
		{Row: 4, Name: "PING", Turn: frame(http2.FramePing, 0, true, "12345678"), Limit: maxControl, Codes: calm},
		{Row: 4, Name: "SETTINGS", Turn: frame(http2.FrameSettings, 0, true, ""), Limit: maxControl, Codes: calm},
		{Row: 6, Name: "empty DATA", Answer: true, Turn: frame(http2.FrameData, 0, false, ""), Limit: maxEmpty, Codes: calm},
		{Row: 10, Name: "overflow of the connection's window", Turn: frame(http2.FrameWindowUpdate, 0, true, "\x7f\xff\xff\xff"), Limit: 1, Codes: flow},
		{Row: 11, Name: "an answer to nothing", Turn: func(p *Peer, id uint32) error { return p.Headers(id+2, false, ":status", "200") }, Limit: 1, Codes: protocol},
		{Row: 12, Name: "PRIORITY", Turn: frame(http2.FramePriority, 0, false, "\x00\x00\x00\x77\x00"), Limit: maxControl, Codes: calm},
		{Row: 13, Name: "PUSH_PROMISE", Answer: true, Turn: frame(http2.FramePushPromise, http2.FlagPushPromiseEndHeaders, false, "\x00\x00\x00\x02\x82"), Limit: 1, Codes: protocol},
		{Row: 14, Name: "GOAWAY", Turn: func(p *Peer, id uint32) error { return p.fr.WriteGoAway(id, http2.ErrCodeNo, nil) }, Limit: maxGlitches, Codes: calm},
		{Row: 14, Name: "GOAWAY with a rising stream", Turn: func(p *Peer, id uint32) error {
			return errors.Join(p.fr.WriteGoAway(id, http2.ErrCodeNo, nil), p.fr.WriteGoAway(id+2, http2.ErrCodeNo, nil))
		}, Limit: 1, Codes: protocol},
		{Row: 20, Name: "1xx without end", Turn: head(":status", "103"), Limit: 16 + maxControl + 200, Codes: calm},
	}
	return append(list, hopHeads(head)...)
}

func hopHeads(head func(...string) func(*Peer, uint32) error) []HopAttack {
	once := func(row int, name string, turn func(*Peer, uint32) error) HopAttack {
		return HopAttack{Row: row, Name: name, Turn: turn, Limit: 1}
	}
	list := []HopAttack{
		{Row: 3, Name: "an answer of empty CONTINUATION frames", Turn: func(p *Peer, id uint32) error {
			p.Hush()
			err := p.fr.WriteHeaders(http2.HeadersFrameParam{StreamID: id, BlockFragment: p.Encode(":status", "200")})
			for range maxBlockFrames {
				err = errors.Join(err, p.fr.WriteContinuation(id, false, nil))
			}
			return err
		}, Limit: 1, Codes: calm},
		{Row: 8, Name: "HPACK bomb", Turn: func(p *Peer, id uint32) error {
			block := append(p.Encode(":status", "200", "x", strings.Repeat("v", 3900)), strings.Repeat("\xbe", 12_000)...)
			return p.fr.WriteHeaders(http2.HeadersFrameParam{StreamID: id, EndHeaders: true, BlockFragment: block})
		}, Limit: 1, Codes: calm},
		once(8, "an answer with 300 fields", head(append([]string{":status", "200"}, many(300)...)...)),
		once(18, "an answer without status", head("x", "y")),
		once(18, "status 99", head(":status", "099")),
		once(18, "status of letters", head(":status", "abc")),
		once(18, "a request's field in the answer", head(":status", "200", ":path", "/")),
		once(18, "a line break in a value", head(":status", "200", "x", "a\r\nb")),
		once(18, "field connection in the answer", head(":status", "200", "connection", "close")),
		once(19, "content-length that is no number", head(":status", "200", "content-length", "-1")),
		once(20, "17 interim answers", func(p *Peer, id uint32) (err error) {
			for range 17 {
				err = errors.Join(err, p.Headers(id, false, ":status", "103"))
			}
			return err
		}),
		once(20, "101", head(":status", "101")),
		once(21, "trailers instead of an answer", func(p *Peer, id uint32) error { return p.Headers(id, true, "x", "y") }),
		once(6, "DATA before the answer", func(p *Peer, id uint32) error { return p.fr.WriteData(id, false, []byte("x")) }),
	}
	trailers := once(21, "trailers on a tunnel", func(p *Peer, id uint32) error { return p.Headers(id, true, "x", "y") })
	trailers.Answer = true
	return append(list, trailers)
}
