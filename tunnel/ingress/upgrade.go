package ingress

import (
	"bufio"
	"errors"
	"net/http"
	"net/http/httputil"
	"strings"

	"culvert/tunnel"
)

// upgrade forwards a request that asks for another protocol, such as WebSocket. Where the destination agrees, the flow becomes one of
// bytes; where it does not, its answer ends the connection, as what the client has sent after the request may be of that protocol.
func (q *exchange) upgrade(r *http.Request) error {
	out := r.Clone(r.Context())
	protocol := r.Header.Get("Upgrade")
	out.Header.Del("Keep-Alive")
	out.Header.Del("Proxy-Connection")
	for _, name := range []string{"Te", "Trailer", "Transfer-Encoding", "Proxy-Authenticate", "Proxy-Authorization"} {
		out.Header.Del(name)
	}
	for _, list := range r.Header["Connection"] { // the others that are of this connection only
		for name := range strings.SplitSeq(list, ",") {
			if name = strings.TrimSpace(name); name != "" && !strings.EqualFold(name, "upgrade") {
				out.Header.Del(name)
			}
		}
	}
	out.Header["Connection"], out.Header["Upgrade"] = []string{"Upgrade"}, []string{protocol}
	out.Body = nil
	q.rewrite(&httputil.ProxyRequest{In: r, Out: out})
	resp, err := q.roundTrip1(out)
	if err != nil {
		return err
	}
	if resp.StatusCode != http.StatusSwitchingProtocols {
		return q.notSwitched(resp)
	}
	t := resp.Body.(*switched).t
	if !strings.EqualFold(resp.Header.Get("Upgrade"), protocol) {
		err := &tunnel.Error{Cause: tunnel.CauseHopProtocol, Reason: "the destination switches to another protocol than the client wants"}
		t.fail(err)
		return err
	}
	return q.relay(t, resp)
}

// roundTrip1 sends the request on a carrier of HTTP/1.1.
func (q *exchange) roundTrip1(r *http.Request) (*http.Response, error) {
	resp, err := q.try1(r)
	for again := (*againError)(nil); errors.As(err, &again) && again.stale; {
		resp, err = q.try1(r)
	}
	return resp, err
}

// notSwitched answers with what the destination says instead of switching.
func (q *exchange) notSwitched(resp *http.Response) error {
	defer resp.Body.Close()
	if err := q.answer(resp); err != nil {
		return err
	}
	h := q.w.Header()
	for name, values := range resp.Header {
		switch name {
		case "Connection", "Keep-Alive", "Proxy-Connection", "Upgrade", "Transfer-Encoding", "Te", "Trailer":
		default:
			h[name] = values
		}
	}
	h.Set("Connection", "close")
	q.w.WriteHeader(resp.StatusCode)
	buf := q.c.s.Get()
	defer q.c.s.Put(buf)
	for {
		n, err := resp.Body.Read(buf)
		if n > 0 {
			if _, werr := q.w.Write(buf[:n]); werr != nil {
				return &tunnel.Error{Cause: tunnel.CauseSourceBroke, Err: werr}
			}
		}
		switch {
		case isEOF(err):
			return nil
		case err != nil:
			return q.err
		}
	}
}

// relay takes the client's connection over, tells it that the protocol is switched, and relays bytes until both sides have ended.
func (q *exchange) relay(t *trip, resp *http.Response) error {
	nc, rw, err := q.rc.Hijack()
	if err != nil {
		t.fail(err)
		return &tunnel.Error{Cause: tunnel.CauseInternal, Err: err}
	}
	c := q.c
	c.hijacked = true
	defer c.done()
	if !t.stop() {
		t.fail(nil)
		_ = nc.Close() // the client has gone
		return &tunnel.Error{Cause: tunnel.CauseSourceGone}
	}
	if err := q.answer(resp); err != nil {
		return err
	}
	head := http.Response{Status: resp.Status, StatusCode: resp.StatusCode, ProtoMajor: 1, ProtoMinor: 1, Header: resp.Header}
	w := bufio.NewWriter(nc)
	if err = head.Write(w); err == nil {
		err = w.Flush()
	}
	if err != nil {
		t.fail(err)
		_ = nc.Close() // as above
		return &tunnel.Error{Cause: tunnel.CauseSourceGone, Err: err}
	}
	ahead := append([]byte(nil), buffered(rw.Reader)...)
	ahead = append(ahead, c.guard.rest()...)
	q.x.Relay(tunnel.NewConn(c.guard.Conn), ahead, t.c.Carrier, append([]byte(nil), t.c.rest()...))
	return nil
}

// rest is what was read and not given. Nobody reads any more.
func (g *guard) rest() []byte { return g.buf[g.r:g.w] }
