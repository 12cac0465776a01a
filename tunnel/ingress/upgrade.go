package ingress

import (
	"bufio"
	"errors"
	"maps"
	"net/http"
	"net/http/httputil"
	"strings"

	"culvert/tunnel"
	"culvert/tunnel/framing"
)

// upgrade forwards a request that asks for another protocol, such as WebSocket. Where the destination agrees, the flow becomes one of
// bytes; where it does not, its answer ends the connection, as what the client has sent after the request may be of that protocol.
func (q *exchange) upgrade(r *http.Request) error {
	out := r.Clone(r.Context())
	protocol := r.Header.Get("Upgrade")
	dropConnectionFields(out.Header)
	out.Header.Del("Proxy-Authenticate")
	out.Header.Del("Proxy-Authorization")
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
	if !strings.EqualFold(resp.Header.Get("Upgrade"), protocol) || q.r.ProtoMajor == 2 && resp.Header.Get("Sec-Websocket-Accept") != framing.WebSocketAccept(q.r.Header.Get("Sec-Websocket-Key")) {
		err := &tunnel.Error{Cause: tunnel.CauseHopProtocol, Reason: "the destination switches to another protocol than the client wants"}
		t.fail(err)
		return err
	}
	if q.r.ProtoMajor == 2 {
		return q.relay2(t, resp)
	}
	return q.relay1(t, resp)
}

// isWebSocket2 reports whether a request of HTTP/2 asks for a WebSocket (RFC 8441, section 5).
func isWebSocket2(r *http.Request) bool {
	return r.Method == http.MethodConnect && strings.EqualFold(first(r.Header[":protocol"], ""), "websocket")
}

// asUpgrade is r, a request for a WebSocket of HTTP/2, as HTTP/1.1 has it: policy and routes see no difference, and nor does the
// destination. The key that it lacks is made here.
func asUpgrade(r *http.Request) *http.Request {
	out := *r
	out.Method, out.Body, out.ContentLength = http.MethodGet, http.NoBody, 0
	out.Header = maps.Clone(r.Header)
	delete(out.Header, ":protocol")
	out.Header["Connection"], out.Header["Upgrade"] = []string{"Upgrade"}, []string{"websocket"}
	out.Header["Sec-Websocket-Key"] = []string{framing.WebSocketKey()}
	return &out
}

// roundTrip1 sends the request on a carrier of HTTP/1.1.
func (q *exchange) roundTrip1(r *http.Request) (*http.Response, error) {
	resp, err := q.try1(r)
	for again := (*againError)(nil); errors.As(err, &again) && again.stale && r.Context().Err() == nil; {
		resp, err = q.try1(r)
	}
	return resp, err
}

// notSwitched answers with what the destination says instead of switching.
func (q *exchange) notSwitched(resp *http.Response) error {
	defer resp.Body.Close()
	if q.r.ProtoMajor == 2 && resp.StatusCode < 300 {
		return &tunnel.Error{Cause: tunnel.CauseHopProtocol, Reason: "the destination answers the request for a WebSocket, and does not switch"} // a 2xx would say that it does
	}
	if err := q.answer(resp); err != nil {
		return err
	}
	h := q.w.Header()
	maps.Copy(h, resp.Header)
	dropConnectionFields(h)
	if q.r.ProtoMajor == 1 {
		h.Set("Connection", "close")
	}
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

// dropConnectionFields takes out of h what is of the connection that it came on (RFC 9110, section 7.6.1).
func dropConnectionFields(h http.Header) {
	for _, list := range h["Connection"] {
		for name := range strings.SplitSeq(list, ",") {
			h.Del(strings.TrimSpace(name))
		}
	}
	for _, name := range []string{"Connection", "Keep-Alive", "Proxy-Connection", "Upgrade", "Transfer-Encoding", "Te", "Trailer"} {
		h.Del(name)
	}
}

// relay2 tells the client, of HTTP/2, that its stream is a WebSocket now, and relays bytes until both sides have ended.
func (q *exchange) relay2(t *trip, resp *http.Response) error {
	if !t.stop() {
		t.fail(nil)
		return &tunnel.Error{Cause: tunnel.CauseSourceGone}
	}
	resp.StatusCode = http.StatusOK // RFC 8441, section 5
	if err := q.answer(resp); err != nil {
		t.fail(err)
		return err
	}
	h := q.w.Header()
	maps.Copy(h, resp.Header)
	dropConnectionFields(h)
	h.Del("Sec-Websocket-Accept")
	h.Del("Content-Length")
	q.w.WriteHeader(resp.StatusCode)
	nc, _, err := q.rc.Hijack()
	if err != nil {
		t.fail(err)
		return &tunnel.Error{Cause: tunnel.CauseSourceGone, Err: err}
	}
	q.x.Relay(tunnel.NewConn(nc), nil, t.c.Carrier, append([]byte(nil), t.c.rest()...))
	return nil
}

// relay1 takes the client's connection over, tells it that the protocol is switched, and relays bytes until both sides have ended.
func (q *exchange) relay1(t *trip, resp *http.Response) error {
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
