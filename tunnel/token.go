package tunnel

import (
	"context"
	"fmt"
	"log/slog"
	"net/netip"
	"strings"
	"time"

	"culvert/pki/spiffe"
	"culvert/policy"
)

// Token is what a peer has shown besides its certificate, verified.
type Token struct {
	policy.Token
	// Until is when it ends: then flows that were begun with it run on, or are cut where Config.Expiry is end.
	Until time.Time
	// Valid reports whether it would be taken now: it is asked by Gateway.Recheck. Nil: it would.
	Valid func() bool
}

// shown is what policy is told of a flow besides who it is of and where it goes.
type shown struct {
	sni      string       // the server name that the app has asked TLS for
	remote   netip.Addr   // where it began, as a peer that is trusted with that has told
	token    *Token       // nil: none, or badToken says why it is not valid
	badToken string       // "": none was shown, or it is valid
	addrs    []netip.Addr // of the name, that policy was asked about
	network  string       // that it comes from, as a peer that is trusted with that has told; for the record alone

	http    *policy.HTTP    // the request that the flow is; nil: it is none
	wanted  Target          // where the flow wanted to go, that a route leads elsewhere; zero: nowhere else
	dialled netip.AddrPort  // by an exchange; not valid: nothing yet
	hopID   spiffe.ID       // of an exchange: the last hop of the connection that it has gone by; zero: none
	next    traceID         // in which the flow went on, where that is not its own; zero: nowhere, or in its own
	agent   *agentConn      // to which an exchange goes; nil: to none
	status  int             // of an exchange's answer; 0: none
	headers []policy.Header // that policy wants added to the request
}

// show returns what else is known of the flow, to be filled in.
func (f *Flow) show() *shown {
	if f.shown == nil {
		f.shown = new(shown)
	}
	return f.shown
}

// addrs are those of the name, that policy was asked about.
func (f *Flow) addrs() []netip.Addr {
	if f.shown == nil {
		return nil
	}
	return f.shown.addrs
}

// maxShownTokens is in how many fields a token is looked for.
const maxShownTokens = 16

// showToken verifies the token that came with a flow, if one did and the process can. It waits for the keys of an issuer
// that are fetched for the first time, as long as a connection may take. Where the rules of the workload say in which field
// a token stands, it is looked for there, else in authorization behind "Bearer " (RFC 6750, section 2.1).
func (g *Gateway) showToken(f *Flow) {
	fields := f.Request.fields
	if g.env.VerifyToken == nil || fields == nil {
		return
	}
	text, bad := shownToken(fields, f.plan.policy.TokenRules(f.plan.workloadOf(f.Target)))
	if text == "" && bad == "" {
		return
	}
	s := f.show()
	if s.badToken = bad; bad != "" {
		return
	}
	ctx, cancel := context.WithTimeout(g.grace, f.plan.timeouts.Dial)
	defer cancel()
	token, err := g.env.VerifyToken(ctx, text)
	if err != nil {
		s.badToken = err.Error()
		return
	}
	s.token = token
}

// shownToken finds the one token among the fields of a request; bad says why there is more than one.
func shownToken(fields interface{ Values(name string) []string }, rules []*policy.TokenRule) (text, bad string) {
	look := func(name, prefix string) {
		for _, value := range fields.Values(name) {
			token, ok := cutPrefixFold(value, prefix)
			if token = strings.TrimSpace(token); !ok || token == "" || token == text {
				continue
			}
			if text != "" {
				bad = "the request has two different tokens"
				return
			}
			text = token
		}
	}
	if len(rules) == 0 {
		look("authorization", "Bearer ")
		return text, bad
	}
	n := 0
	for _, r := range rules {
		for _, h := range r.FromHeaders {
			if n++; n > maxShownTokens {
				return "", fmt.Sprintf("the rules of the workload name more than %d fields for tokens", maxShownTokens)
			}
			look(h.Name, h.Prefix)
		}
	}
	return text, bad
}

// cutPrefixFold is strings.CutPrefix without regard to case: the scheme of authorization has none (RFC 9110, section
// 11.1).
func cutPrefixFold(s, prefix string) (rest string, ok bool) {
	if len(s) < len(prefix) || !strings.EqualFold(s[:len(prefix)], prefix) {
		return s, false
	}
	return s[len(prefix):], true
}

// tokenName names a token in records: ISS/SUB.
func (t *Token) name() string { return t.Issuer + "/" + t.Subject }

// tokenProblem says why a flow that was begun with a token may not go on, nil if it may.
func (f *Flow) tokenProblem(now time.Time, endsWith bool) error {
	if f.shown == nil || f.shown.token == nil {
		return nil
	}
	t := f.shown.token
	switch ended := !t.Until.IsZero() && now.After(t.Until); {
	case ended && endsWith:
		return &Error{Cause: CauseExpired, Reason: "the token " + t.name() + " that it was begun with has ended"}
	case !ended && t.Valid != nil && !t.Valid():
		return &Error{Cause: CauseRevoked, Reason: "the token " + t.name() + " that it was begun with is not valid any more: its key was withdrawn"}
	}
	return nil
}

// recheckTokens cuts the flows whose tokens are not valid any more.
func (g *Gateway) recheckTokens(now time.Time) {
	end := g.plan.Load().expiryEnds
	var flows []*Flow
	g.flows.each(func(f *Flow) bool {
		if f.stands() && f.shown != nil && f.shown.token != nil { // not before: shown is its own goroutine's until then
			flows = append(flows, f)
		}
		return true
	})
	for _, f := range flows {
		if why := f.tokenProblem(now, end); why != nil {
			f.cut(why)
		}
	}
}

// question appends what else policy was told.
func (s *shown) question(attrs []slog.Attr) []slog.Attr {
	attrs = s.request(attrs)
	if s.sni != "" {
		attrs = append(attrs, slog.String("sni", s.sni))
	}
	if s.remote.IsValid() {
		attrs = append(attrs, slog.String("remote", s.remote.String()))
	}
	if s.network != "" {
		attrs = append(attrs, slog.String("from_network", s.network))
	}
	if s.token != nil {
		attrs = append(attrs, slog.String("token", s.token.name()))
	}
	if s.badToken != "" {
		attrs = append(attrs, slog.String("bad_token", s.badToken))
	}
	return attrs
}

// request appends which request the flow is, if it is one.
func (s *shown) request(attrs []slog.Attr) []slog.Attr {
	if h := s.http; h != nil {
		attrs = append(attrs, slog.String("method", shorten(h.Method)), slog.String("path", shorten(h.Path)), slog.String("authority", shorten(h.Host)))
	}
	return attrs
}

// maxShown is how much of what a client has written a record has.
const maxShown = 256

// shorten cuts what a client has written to a length that is fit for a record.
func shorten(s string) string {
	if len(s) <= maxShown {
		return s
	}
	return s[:maxShown] + "…"
}
