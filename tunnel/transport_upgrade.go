package tunnel

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"sync"
	"time"

	"culvert/pki/spiffe"
	"culvert/tunnel/framing"
	"culvert/tunnel/h2"
)

const (
	// maxHeadBytes bounds the head of a request or an answer in HTTP/1.1: what HTTP/2 takes.
	maxHeadBytes = h2.DefaultMaxHeaderListBytes
)

// errUsed is why a connection takes no second tunnel.
var errUsed = errors.New("the connection has carried its one tunnel")

// upgradeTransport opens one tunnel on a connection to a proxy of others: a WebSocket in HTTP/1.1, which the connection becomes.
type upgradeTransport struct {
	// immutable
	nc       net.Conn
	hop      *Hop
	g        *Gateway
	draining chan struct{} // closed when the tunnel was asked for
	done     chan struct{} // closed when the connection was

	mu    sync.Mutex
	used  bool  // guarded by mu
	ended bool  // guarded by mu
	err   error // guarded by mu
}

func newUpgradeTransport(nc net.Conn, hop *Hop, g *Gateway) *upgradeTransport {
	return &upgradeTransport{nc: nc, hop: hop, g: g, draining: make(chan struct{}), done: make(chan struct{})}
}

// Connect asks for a WebSocket; see Transport.
func (t *upgradeTransport) Connect(ctx context.Context, req *ConnectRequest) (Stream, *ConnectResponse, error) {
	t.mu.Lock()
	used := t.used || t.ended
	t.used = true
	t.mu.Unlock()
	if used {
		return nil, nil, &UnprocessedError{Err: errUsed}
	}
	close(t.draining)
	authorization, err := t.hop.outer.authorization(ctx, t.g, t.hop.Name)
	if err != nil {
		t.end(err)
		return nil, nil, err
	}
	stop := context.AfterFunc(ctx, func() { _ = t.nc.SetDeadline(wakeNow) })
	r, err := t.upgrade(req.Target, authorization)
	if !stop() && err == nil {
		err = ctx.Err()
	}
	if err != nil {
		t.end(err)
		if ctx.Err() != nil {
			return nil, nil, &Error{Cause: networkCause(ctx.Err()), Hop: t.hop.Name, Reason: noAnswer(ctx.Err(), tunWebSocket), Err: ctx.Err()}
		}
		return nil, nil, err
	}
	below := &upgraded{socket: newSocket(ahead(t.nc, r)), t: t}
	return &outerStream{Conn: framing.NewWebSocket(below, true), below: below, form: tunWebSocket, client: true, done: t.done}, &ConnectResponse{}, nil
}

// upgrade writes the request and reads the answer (RFC 6455, section 4.1). What comes behind it is in the reader.
func (t *upgradeTransport) upgrade(to Target, authorization string) (*bufio.Reader, error) {
	key := framing.WebSocketKey()
	o := t.hop.outer
	var b bytes.Buffer
	fmt.Fprintf(&b, "GET %s HTTP/1.1\r\nHost: %s\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: %s\r\nX-Tun: %s\r\n",
		o.path, o.authority, key, to)
	if authorization != "" {
		fmt.Fprintf(&b, "Authorization: %s\r\n", authorization)
	}
	b.WriteString("\r\n")
	if _, err := t.nc.Write(b.Bytes()); err != nil {
		return nil, fmt.Errorf("hop %s: %w", t.hop.Name, &UnprocessedError{Err: err})
	}
	limited := &io.LimitedReader{R: t.nc, N: maxHeadBytes}
	r := bufio.NewReader(limited)
	if _, err := r.Peek(1); err != nil { // a proxy closes connections on which nothing was asked for long
		return nil, fmt.Errorf("hop %s: %w", t.hop.Name, &UnprocessedError{Err: err})
	}
	resp, err := http.ReadResponse(r, nil)
	if err != nil {
		return nil, &Error{Cause: CauseHopProtocol, Hop: t.hop.Name, Reason: "the answer is none of HTTP/1.1, or its head is longer than 64 KiB", Err: err}
	}
	limited.N = 1<<63 - 1
	switch h := resp.Header; {
	case resp.StatusCode != http.StatusSwitchingProtocols:
		return nil, refusedBy(t.hop.Name, resp.StatusCode, h.Values(fieldProxyStatus), h.Get(fieldChallenge))
	case !hasToken(h, "Connection", "upgrade") || !strings.EqualFold(h.Get("Upgrade"), protocolWebSocket) || h.Get("Sec-WebSocket-Accept") != framing.WebSocketAccept(key):
		return nil, &Error{Cause: CauseHopProtocol, Hop: t.hop.Name, Reason: "the answer switches to something else than this WebSocket"}
	case h.Get("Sec-WebSocket-Extensions") != "":
		return nil, &Error{Cause: CauseHopProtocol, Hop: t.hop.Name, Reason: "the answer names an extension that was not asked for"}
	}
	return r, nil
}

// hasToken reports whether a list in a field has a token, without regard to case.
func hasToken(h http.Header, field, token string) bool {
	for _, line := range h.Values(field) {
		for one := range strings.SplitSeq(line, ",") {
			if strings.EqualFold(strings.TrimSpace(one), token) {
				return true
			}
		}
	}
	return false
}

// ahead is nc with what r has read of it already.
func ahead(nc net.Conn, r *bufio.Reader) net.Conn {
	if r.Buffered() == 0 {
		return nc
	}
	rest, _ := r.Peek(r.Buffered()) // it is there
	return &readAhead{Conn: nc, rest: rest}
}

// readAhead is a connection of which some bytes were read before.
type readAhead struct {
	net.Conn
	rest []byte // owned by who reads
}

// Read reads what was read before first.
func (a *readAhead) Read(p []byte) (int, error) {
	if len(a.rest) == 0 {
		return a.Conn.Read(p)
	}
	n := copy(p, a.rest)
	a.rest = a.rest[n:]
	return n, nil
}

// CloseWrite ends the writing direction, where the connection can do that.
func (a *readAhead) CloseWrite() error { return newSocket(a.Conn).CloseWrite() }

// NetConn is the connection below.
func (a *readAhead) NetConn() net.Conn { return a.Conn }

// end closes the connection; err says why, where that is no normal end.
func (t *upgradeTransport) end(err error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.ended {
		return
	}
	t.ended, t.err = true, err
	close(t.done)
	_ = t.nc.Close() // nobody uses it any more
}

// upgraded is the connection that has become a tunnel. The transport ends with it.
type upgraded struct {
	*socket
	t *upgradeTransport
}

// Close closes the connection.
func (u *upgraded) Close() error {
	err := u.socket.Close()
	u.t.end(nil)
	return err
}

// Reset breaks the connection.
func (u *upgraded) Reset(cause error) {
	u.socket.Reset(cause)
	u.t.end(cause)
}

// Slots returns 1 before there was a tunnel.
func (t *upgradeTransport) Slots() int {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.used || t.ended {
		return 0
	}
	return 1
}

// limit returns how many streams there may be: one.
func (t *upgradeTransport) limit() int { return 1 }

// Ping returns an error: HTTP/1.1 has nothing to ask with.
func (t *upgradeTransport) Ping(context.Context) (time.Duration, error) {
	return 0, errors.New("the proxy speaks HTTP/1.1, in which there is no PING")
}

// Peer returns nobody; see outerTransport.
func (t *upgradeTransport) Peer() spiffe.ID { return spiffe.ID{} }

// Draining is closed when the tunnel was asked for.
func (t *upgradeTransport) Draining() <-chan struct{} { return t.draining }

// Drain waits for the tunnel to end, until ctx ends; then it closes.
func (t *upgradeTransport) Drain(ctx context.Context) error {
	t.mu.Lock()
	used := t.used
	t.used = true
	t.mu.Unlock()
	if used {
		select {
		case <-t.done:
		case <-ctx.Done():
		}
	} else {
		close(t.draining)
	}
	return t.Close()
}

// Close ends the connection and the tunnel on it.
func (t *upgradeTransport) Close() error {
	t.end(nil)
	return t.Err()
}

// Done is closed when the connection has ended.
func (t *upgradeTransport) Done() <-chan struct{} { return t.done }

// Err returns why the connection has ended.
func (t *upgradeTransport) Err() error {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.err
}

var _ Transport = (*upgradeTransport)(nil)
