package tunnel

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"culvert/pki/jwt"
	"culvert/tunnel/framing"
	"culvert/tunnel/h2"
)

// How many requests with x-tun may wait for the TLS handshake inside of them: on one connection of a balancer, which many
// clients share, and of one subject of tokens.
const (
	maxPendingOnConn    = 128
	maxPendingOfSubject = 32
)

// outerRequest is a request with x-tun: what it asks for, and who has sent it as far as its token tells.
type outerRequest struct {
	target Target
	form   string
	token  *Token
}

// subject names who shows the token, for limits and records.
func (o *outerRequest) subject() string { return o.token.name() }

// xTun says whose tokens let in requests with x-tun. It does not change.
type xTun struct{ issuers, audiences []string }

// takes says why a token that was verified is not taken here, "" if it is.
func (x *xTun) takes(t *Token) string {
	switch {
	case len(x.issuers) > 0 && !slices.Contains(x.issuers, t.Issuer):
		return "other-issuer"
	case len(x.audiences) > 0 && !slices.ContainsFunc(x.audiences, func(a string) bool { return slices.Contains(t.Audiences, a) }):
		return string(jwt.BadAudience)
	}
	return ""
}

// requestHead is what counts of a request with x-tun, in HTTP/2 or HTTP/1.1.
type requestHead struct {
	method, protocol string // :protocol, or upgrade
	values           func(name string) []string
}

// form is in which form a request carries a tunnel, "" for none.
func (h *requestHead) form() string {
	kind := strings.Join(h.values(fieldContentType), ",")
	switch {
	case strings.EqualFold(h.protocol, protocolWebSocket) && (h.method == http.MethodConnect || h.method == http.MethodGet):
		return tunWebSocket
	case h.protocol != "":
		return ""
	case h.method == http.MethodConnect:
		return tunConnect
	case h.method == http.MethodPost && (kind == typeGRPC || strings.HasPrefix(kind, typeGRPC+"+")):
		return tunGRPC
	case h.method == http.MethodPost:
		return tunPost
	}
	return ""
}

// judge reads a request with x-tun and finds out whether it may come in; x is nil where a reload has made the listener one that
// takes none. It may wait for the keys of an issuer.
func (l *listener) judge(x *xTun, h *requestHead) (*outerRequest, error) {
	if x == nil {
		return nil, &Error{Cause: CauseDraining, Reason: "the listener takes no x-tun any more"}
	}
	r := &outerRequest{form: h.form()}
	if r.form == "" {
		return nil, &Error{Cause: CauseNotConnect, Reason: "the request is " + strings.TrimSpace(h.method+" "+h.protocol) + ", and no form of x-tun"}
	}
	if len(h.values("content-length")) > 0 && r.form != tunConnect && r.form != tunWebSocket {
		return nil, &Error{Cause: CauseMalformed, Reason: "the request has a length, and a tunnel has none: " + buffers(r.form)}
	}
	// First who asks: a stranger learns nothing of what would be right.
	var err error
	if r.token, err = l.g.outerToken(x, h.values(fieldAuthorization)); err != nil {
		return nil, err
	}
	switch list := h.values(fieldTun); len(list) {
	case 0:
		return nil, &Error{Cause: CauseMalformed, Reason: "the request has no x-tun, which names the destination"}
	case 1:
		if r.target, err = ParseAuthority(list[0]); err != nil {
			return nil, fmt.Errorf("x-tun: %w", err)
		}
	default:
		return nil, &Error{Cause: CauseMalformed, Reason: "the request has more than one x-tun"}
	}
	p := l.g.plan.Load()
	if r.target.Addr.IsValid() && p.own.listensOn(r.target.AddrPort()) {
		return nil, &Error{Cause: CauseLoop, Reason: fmt.Sprintf("x-tun names %s, where this gateway itself listens", r.target)}
	}
	return r, nil
}

// outerToken verifies the one token of a request.
func (g *Gateway) outerToken(x *xTun, values []string) (*Token, error) {
	if len(values) == 0 {
		return nil, &Error{Cause: CauseToken, Rule: "token: missing", Reason: "the request shows no token (authorization: Bearer)"}
	}
	text, ok := cutPrefixFold(values[0], "Bearer ")
	if text = strings.TrimSpace(text); !ok || text == "" || len(values) > 1 {
		return nil, &Error{Cause: CauseToken, Rule: "token: malformed", Reason: "authorization is something else than one Bearer token"}
	}
	ctx, cancel := context.WithTimeout(g.grace, g.plan.Load().timeouts.Dial)
	defer cancel()
	token, err := g.env.VerifyToken(ctx, text)
	if err != nil {
		rule := "not-taken"
		if why, ok := errors.AsType[*jwt.Error](err); ok {
			rule = string(why.Reason)
		}
		return nil, &Error{Cause: CauseToken, Rule: "token: " + rule, Err: err}
	}
	if token == nil {
		return nil, &Error{Cause: CauseToken, Rule: "token: not-taken", Reason: "the configuration has no issuers of tokens (tokens)"}
	}
	if why := x.takes(token); why != "" {
		return nil, &Error{Cause: CauseToken, Rule: "token: " + why, Reason: "the token of " + token.name() + " is not one that this listener takes (xTun)"}
	}
	return token, nil
}

// pendingHandshakes counts, by who has sent them, the requests with x-tun inside of which a TLS handshake is under way.
type pendingHandshakes struct {
	mu sync.Mutex
	of map[string]int // without those that have none; guarded by mu
}

func (p *pendingHandshakes) begin(subject string) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.of[subject] >= maxPendingOfSubject {
		return false
	}
	if p.of == nil {
		p.of = make(map[string]int)
	}
	p.of[subject]++
	return true
}

func (p *pendingHandshakes) end(subject string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.of[subject]--; p.of[subject] == 0 {
		delete(p.of, subject)
	}
}

// enter sets aside a place for the handshake inside of r; leave gives it back. onConn counts those on the same connection.
func (l *listener) enter(r *outerRequest, conf *listenerConf, onConn *atomic.Int64) (leave func(), err error) {
	switch {
	case l.g.draining.Load():
		return nil, errDraining
	case conf.maxConnections > 0 && l.open.Load() >= conf.maxConnections:
		return nil, &Error{Cause: CauseFull, Reason: "maxConnections"}
	case l.g.env.Budget.Full():
		return nil, &Error{Cause: CauseFull, Reason: "out of memory for streams"}
	}
	if onConn.Add(1) > maxPendingOnConn {
		onConn.Add(-1)
		return nil, &Error{Cause: CauseFull, Reason: "too many handshakes are under way on one connection of the proxy"}
	}
	if !l.g.pending.begin(r.subject()) {
		onConn.Add(-1)
		return nil, &Error{Cause: CauseFull, Reason: "too many handshakes are under way of " + r.subject()}
	}
	return func() {
		onConn.Add(-1)
		l.g.pending.end(r.subject())
	}, nil
}

// serveOuter serves a stream of HTTP/2 on which a request with x-tun should be.
func (s *serverConn) serveOuter(st *h2.Stream, conf *listenerConf) {
	head := st.Request()
	r, err := s.l.judge(conf.xTun, &requestHead{method: head.Method, protocol: head.Protocol, values: head.Values})
	var leave func()
	if err == nil {
		leave, err = s.l.enter(r, conf, &s.pending)
	}
	if err != nil {
		defer s.streamEnded()
		if h := s.g.health(head.Method, head.Path); h != 0 && len(head.Values(fieldTun)) == 0 {
			_ = st.Respond(&h2.Header{Status: h}, true) // as below
			_ = st.Close()
			return
		}
		s.l.logOuterRefused(s.source.String(), conf, err)
		h := &h2.Header{Status: verdicts[CauseOf(err)].status}
		for _, f := range s.g.refusal(err) {
			h.Add(f[0], f[1])
		}
		_ = st.Respond(h, true) // a peer that has reset the stream wants no answer
		_ = st.Close()
		return
	}
	if err := st.Respond(answerTo(r.form), false); err != nil {
		leave()
		_ = st.Close() // the peer has reset it
		s.streamEnded()
		return
	}
	st.DropHeads()
	o := newOuterStream(&h2Stream{st}, r.form, false)
	if g, ok := o.Conn.(*framing.GRPC); ok {
		_ = st.SetWriteDeadline(time.Now().Add(s.g.plan.Load().timeouts.Handshake))
		_ = g.Flush() // a peer that has reset it, or takes nothing, is not served
		_ = st.SetWriteDeadline(time.Time{})
	}
	s.l.serveInner(o, conf, r, leave, s.streamEnded)
}

// healthPath is where balancers ask whether this gateway takes tunnels, without a token.
const healthPath = "/healthz"

// health is the answer to a balancer that looks whether the gateway is there, 0 where a request is no such question.
func (g *Gateway) health(method, path string) int {
	switch {
	case path != healthPath || method != http.MethodGet && method != http.MethodHead:
		return 0
	case g.draining.Load():
		return http.StatusServiceUnavailable
	}
	return http.StatusOK
}

// answerTo is the yes to a request in the given form. The last two fields ask proxies to change nothing and to hold nothing
// back; the latter is nginx's own.
func answerTo(form string) *h2.Header {
	h := &h2.Header{Status: statusOK}
	switch form {
	case tunConnect, tunWebSocket:
		return h
	case tunGRPC:
		h.Add(fieldContentType, typeGRPC)
	default:
		h.Add(fieldContentType, typeBytes)
	}
	h.Add("cache-control", "no-store, no-transform")
	h.Add("x-accel-buffering", "no")
	return h
}

// refusal are the fields of a no.
func (g *Gateway) refusal(err error) [][2]string {
	fields := [][2]string{{fieldProxyStatus, proxyStatus(g.plan.Load().name, err)}}
	var own *Error
	if errors.As(err, &own) && own.Cause == CauseToken {
		challenge := `Bearer realm="x-tun"`
		if why, _ := strings.CutPrefix(own.Rule, "token: "); why != "missing" { // RFC 6750, section 3.1
			challenge += `, error="invalid_token", error_description="` + why + `"`
		}
		fields = append(fields, [2]string{fieldChallenge, challenge})
	}
	return fields
}

// logOuterRefused tells of a request with x-tun that was not let in. A stranger can make any number of these, so after the
// first of them only some are logged.
func (l *listener) logOuterRefused(from string, conf *listenerConf, err error) {
	l.g.stats.outerRefused.add(1)
	if n := l.g.stats.outerRefused.load(); n > refusedLogEvery && n%refusedLogEvery != 0 {
		return
	}
	l.g.env.Log.Info("request with x-tun refused", "listener", conf.name, "src", from, "reason", CauseOf(err).String(), "err", err.Error())
}

// serveInner does the TLS handshake inside of a request that was let in, and begins to serve the connection that stands then.
// over is called when it is over.
func (l *listener) serveInner(nc net.Conn, conf *listenerConf, r *outerRequest, leave, over func()) {
	l.connBegun()
	s := l.meet(nc, conf, r, time.Now().Add(l.g.plan.Load().timeouts.Handshake))
	leave()
	if s == nil {
		l.connEnded()
		over()
		return
	}
	if o, ok := nc.(*outerStream); ok {
		if st, ok := o.below.(*h2Stream); ok {
			st.Widen(proxyStreamWindow) // see widen; the connection inside reads on from here
		}
	}
	s.attend(over)
}

// mayAsk says why a flow may not go to t that a peer has asked for on this connection, nil if it may: inside of a request
// with x-tun there is one destination, and whoever passed the request on has seen it.
func (s *serverConn) mayAsk(t Target) error {
	if s.inside == nil || t == s.inside.target {
		return nil
	}
	return &Error{Cause: CauseMalformed, Reason: fmt.Sprintf("the request asks for %s, and x-tun of the request around it names %s", t, s.inside.target)}
}

// errTokenEnded is why a peer starts no new flow inside of a request whose token was valid when it came.
var errTokenEnded = &Error{Cause: CauseExpired, Reason: "the token of the request around it has ended; the peer should ask again with a new one"}

// errTokenOther is the same where a reload has the listener take the tokens of others.
var errTokenOther = &Error{Cause: CauseToken, Reason: "the token of the request around it is not one that this listener takes any more; the peer should ask again with another one"}

// tokenTaken reports whether the listener takes the token of the request around the connection, if there is one.
func (s *serverConn) tokenTaken(conf *listenerConf) bool {
	return s.inside == nil || conf.xTun != nil && conf.xTun.takes(s.inside.token) == ""
}

// tokenEnded reports whether the token of the request around the connection has ended.
func (s *serverConn) tokenEnded(now time.Time) bool {
	return s.inside != nil && !s.inside.token.Until.IsZero() && now.After(s.inside.token.Until)
}

// tokenWithdrawn reports whether that token would not be taken any more, though it has not ended.
func (s *serverConn) tokenWithdrawn() bool {
	return s.inside != nil && !s.tokenEnded(time.Now()) && s.inside.token.Valid != nil && !s.inside.token.Valid()
}
